"""Atomic writes, hashes and fingerprints."""

import errno
import hashlib
import os

import pytest

from training.common.config import InputError
from training.common.files import atomic, fingerprint, read_json, sha256, write_json


def test_a_failure_while_writing_leaves_the_old_content_and_no_temporary(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["record.json"]


def test_a_failure_while_renaming_leaves_the_old_content_and_no_temporary(tmp_path):
    path = tmp_path / "record.json"
    (path / "inside").mkdir(parents=True)  # a folder cannot be replaced by a file
    with pytest.raises(OSError), atomic(path) as temporary:
        temporary.write_text("new")
    assert (path / "inside").is_dir() and os.listdir(tmp_path) == ["record.json"]


def test_the_content_is_on_disk_before_the_rename_and_the_rename_before_the_return(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def traced_replace(source, target):
        done.append(("replace", os.fspath(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    with atomic(tmp_path / "new") as temporary:
        temporary.write_text("new")
    assert done == [
        ("fsync", str(temporary)),
        ("replace", str(tmp_path / "new")),
        ("fsync", str(tmp_path)),
    ]


def test_an_error_of_the_disk_contains_the_file_name(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '.*record.json'"), atomic(tmp_path / "record.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # like the error of write(), which has no file name


def test_json_round_trips_and_is_readable(tmp_path):
    value = {"licence": "œuvre élevée ∞", "share": 0.1, "n": 2**60, "none": None}
    write_json(tmp_path / "a" / "b.json", value)
    assert read_json(tmp_path / "a" / "b.json") == value
    assert "œuvre élevée ∞" in (tmp_path / "a" / "b.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"{} {}"])
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json was altered and is no longer JSON .*: delete it"):
        read_json(tmp_path / "manifest.json")


def test_a_fingerprint_depends_on_values_and_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})


def test_sha256_is_that_of_the_complete_file(tmp_path):
    content = os.urandom(3_000_001)  # several blocks, the last one not full
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
