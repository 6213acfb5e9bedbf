"""Atomic writes, locks, hashes and fingerprints."""

import errno
import hashlib
import os
import stat

import pytest

from model_card import files as release_files
from model_card.files import ReleaseError
from training.common import files as training_files
from training.common.config import InputError
from training.common.files import (
    UNFINISHED,
    atomic,
    atomic_files,
    fingerprint,
    lock_folder,
    move_files,
    read_json,
    sha256,
    write_json,
)


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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("100000 requested and 2500 written"), "record.json: 100000 requested and 2500 written"),  # NumPy
        (
            OSError(f"Error writing bytes to file. Detail: [errno {errno.EDQUOT}] Disk quota exceeded"),
            "quota.*'.*json'",
        ),
        (Exception("No space left on device (os error 28)"), r"\[Errno 28\] No space left on device: '.*record.json'"),
        (FileNotFoundError(errno.ENOENT, "No such file", "other.txt"), "No such file: 'other.txt'"),
    ],
    ids=["numpy", "arrow", "tokenizers and safetensors", "of another file"],
)
def test_an_error_of_a_library_that_writes_states_reason_and_file(tmp_path, error, message):
    with pytest.raises(OSError, match=message), atomic(tmp_path / "record.json"):
        raise error


def test_an_error_that_is_not_of_the_system_stays_itself(tmp_path):
    with pytest.raises(ValueError, match="^28$"), atomic(tmp_path / "record.json"):
        raise ValueError("28")


# Locks ------------------------------------------------------------------------------------------------


def test_a_locked_folder_is_refused_and_is_free_again_afterwards(tmp_path):
    folder = tmp_path / "new" / "out"
    with lock_folder(folder):
        with pytest.raises(InputError, match="Another run is writing to .*out"), lock_folder(folder):
            raise AssertionError
        with lock_folder(folder / "part"):  # the folder of another program
            pass
    with lock_folder(folder):
        write_json(folder / "record.json", 1)
    assert os.listdir(folder) == ["record.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_an_error_of_the_system_without_a_file_names_the_locked_folder(tmp_path, number):
    with pytest.raises(OSError, match=f"{os.strerror(number)}: '.*out'"), lock_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    for other in (OSError("the network is unreachable"), OSError(number, os.strerror(number), "file")):
        with pytest.raises(OSError) as raised, lock_folder(tmp_path / "out"):
            raise other
        assert raised.value is other


def test_a_folder_to_which_nothing_was_written_is_removed_unless_it_existed(tmp_path):
    for folder, exists in ((tmp_path / "new", False), (tmp_path, True)):
        with pytest.raises(ZeroDivisionError), lock_folder(folder):
            raise ZeroDivisionError
        assert folder.exists() == exists


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "ENOTSUP"])
def test_a_file_system_without_locks_is_a_warning_and_not_another_run(tmp_path, monkeypatch, capsys, name):
    def flock(file, operation):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / ".other.json.77.tmp").write_text("of a program that may still write")
    with lock_folder(tmp_path):
        write_json(tmp_path / "record.json", 1)
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path} cannot be locked (")
    assert sorted(os.listdir(tmp_path)) == [".other.json.77.tmp", "record.json"]


def test_a_lock_removes_what_killed_programs_left_but_nothing_of_running_ones(tmp_path):
    for part in ("", "parts", "eval"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / ".shard.ds.4242.tmp").write_text("half")
        (tmp_path / part / ".hidden").write_text("of the user")
    with lock_folder(tmp_path / "eval"):
        (tmp_path / "eval" / ".result.json.4242.tmp").write_text("half")
        with lock_folder(tmp_path):
            assert sorted(os.listdir(tmp_path)) == [".hidden", ".lock", "eval", "parts"]
            assert os.listdir(tmp_path / "parts") == [".hidden"]
            assert sorted(os.listdir(tmp_path / "eval")) == [".hidden", ".lock", ".result.json.4242.tmp"]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_a_folder_is_no_error(tmp_path, monkeypatch, error):
    fsync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_json(tmp_path / "record.json", 1)
    assert read_json(tmp_path / "record.json") == 1


def test_a_disk_that_fails_to_flush_is_an_error(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error: '.*record.json"):
        write_json(tmp_path / "record.json", 1)
    assert os.listdir(tmp_path) == []


# Folders ----------------------------------------------------------------------------------------------


def model_folder(path, **files):
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", "-").replace("_", ".")).write_text(content)


def contents(path):
    return {file.name: file.read_text() for file in path.iterdir() if file.is_file()}


def test_files_of_a_folder_are_replaced_together_and_others_remain(tmp_path):
    folder = tmp_path / "model"
    model_folder(folder, config_json="old", model_safetensors="old", notes_md="of the user")
    with atomic_files(folder, last="config.json") as temporary:
        model_folder(temporary, config_json="new", model__1_safetensors="new", model__2_safetensors="new")
        assert contents(folder) == {"config.json": "old", "model.safetensors": "old", "notes.md": "of the user"}
    new = dict.fromkeys(("config.json", "model-1.safetensors", "model-2.safetensors"), "new")
    assert contents(folder) == new | {"notes.md": "of the user"}


def test_a_failure_while_writing_files_leaves_the_earlier_ones(tmp_path):
    folder = tmp_path / "model"
    model_folder(folder, config_json="old", model_safetensors="old")
    before = contents(folder)
    with pytest.raises(OSError, match="No space left on device: '.*model'"):
        with atomic_files(folder, last="config.json") as temporary:
            model_folder(temporary, config_json="new")
            raise Exception("I/O error: No space left on device (os error 28)")
    assert contents(folder) == before


def all_files(path):
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_moved_files_replace_those_of_an_earlier_result_in_every_subfolder(tmp_path):
    for name in ("parts/a", "parts/b", "index", "parts/of_the_user"):
        write_json(tmp_path / name, "old")
    for name in ("parts/a", "new/c", "index"):
        write_json(tmp_path / UNFINISHED / name, "new")
    move_files(tmp_path / UNFINISHED, tmp_path, "index", stale=[tmp_path / "parts" / name for name in "abc"])
    new = dict.fromkeys(("parts/a", "new/c", "index"), '"new"\n')
    assert all_files(tmp_path) == new | {"parts/of_the_user": '"old"\n'}


@pytest.mark.parametrize("event", ["os.mkdir", "os.remove", "os.rename"])
def test_a_stopped_move_leaves_the_earlier_files_or_no_last_one_and_is_completed_by_another(tmp_path, event):
    def stop(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for name in ("a", "old", "index"):
        write_json(tmp_path / name, "old")
    for name in ("a", "new/c", "index"):
        write_json(tmp_path / UNFINISHED / name, "new")
    earlier, source = all_files(tmp_path), tmp_path / UNFINISHED
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space left"):
        target = {"os.mkdir": "pathlib.Path.mkdir", "os.remove": "pathlib.Path.unlink", "os.rename": "os.replace"}
        patch.setattr(target[event], stop)
        move_files(source, tmp_path, "index", stale=[tmp_path / "old"])
    left = all_files(tmp_path)
    assert left == earlier if event != "os.rename" else "index" not in left
    move_files(source, tmp_path, "index", stale=[tmp_path / "old"])
    assert all_files(tmp_path) == dict.fromkeys(("a", "new/c", "index"), '"new"\n')


@pytest.mark.parametrize("system", [training_files, release_files], ids=["training", "model_card"])
def test_a_new_folder_is_complete_or_absent_and_leaves_nothing_next_to_it(tmp_path, system):
    refused = (InputError, ReleaseError)
    (tmp_path / ".dist.tmp").mkdir()  # of a killed program
    (tmp_path / ".dist.tmp" / "weights").write_text("half")
    with pytest.raises(ZeroDivisionError), system.atomic_folder(tmp_path / "dist") as folder:
        assert os.listdir(folder) == []
        with pytest.raises(refused, match="Another (run|program) is writing to"):
            with system.atomic_folder(tmp_path / "dist"):
                raise AssertionError
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with system.atomic_folder(tmp_path / "dist") as folder:
        (folder / "weights").write_text("complete")
    assert os.listdir(tmp_path) == ["dist"] and contents(tmp_path / "dist") == {"weights": "complete"}
    with pytest.raises(refused, match="dist exists: delete it"), system.atomic_folder(tmp_path / "dist"):
        raise AssertionError
    assert os.listdir(tmp_path) == ["dist"]


@pytest.mark.parametrize("system", [training_files, release_files], ids=["training", "model_card"])
def test_a_full_disk_in_a_new_folder_is_named(tmp_path, system):
    with pytest.raises(OSError, match="No space left on device: '.*dist'"), system.atomic_folder(tmp_path / "dist"):
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert os.listdir(tmp_path) == []
