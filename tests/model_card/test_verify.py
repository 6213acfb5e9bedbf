"""A changed, missing or added file of a release is named by the program for its recipient."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import test_bom

from model_card import verify
from model_card.files import BOM, SUMS, read_json, sha256, write_json, write_sums

build, released, run = test_bom.build, test_bom.released, test_bom.run


@pytest.fixture
def folder(released, tmp_path):
    """A copy of the llama variant alone, as from the Hub, to be damaged."""
    return shutil.copytree(released / "llama", tmp_path / "downloaded")


@pytest.fixture
def check(monkeypatch, capsys):
    """Function (folder, options) -> exit status and the lines that the program prints."""

    def run_verify(folder: Path, *options: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["verify", str(folder), *map(str, options)])
        status = 0
        try:
            verify.main()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out.splitlines()

    return run_verify


def change_a_byte(path: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_whole_release_and_each_of_its_folders_alone_are_verified(released, folder, check):
    status, lines = check(released)
    assert status == 0 and len(lines) == 9
    assert all(line.endswith((" ok", '[release]"')) for line in lines), lines
    status, lines = check(folder)
    assert status == 0 and [line.split("  ")[0] for line in lines] == [
        "SHA256SUMS",
        "bom.cdx.json, schema",
        "bom.cdx.json, hashes",
        "README.md against its files",
    ]


def test_a_changed_byte_names_its_file_for_each_file_in_turn(folder):
    names = [name for name in verify.present_files(folder) if name != SUMS]
    assert len(names) > 20 and "model.safetensors" in names and "runs/tiny/run.json" in names
    for name in names:
        before = (folder / name).read_bytes()
        change_a_byte(folder / name)
        assert list(verify.check_sums(folder, [])) == [f"{name} was changed"]
        if name != BOM:
            assert list(verify.check_bom_hashes(folder)) == [f"{name} was changed"]
        (folder / name).write_bytes(before)
    assert list(verify.check_sums(folder, [])) == list(verify.check_bom_hashes(folder)) == []


def test_the_program_names_changed_missing_and_added_files_and_fails(folder, check):
    change_a_byte(folder / "model.safetensors")
    (folder / "config.json").unlink()
    (folder / "runs" / "pwn.py").write_text("")
    (folder / "runs" / SUMS).write_text("")
    (folder / "runs" / "link").symlink_to("/etc")
    status, lines = check(folder)
    problems = [
        *("    config.json is missing", "    model.safetensors was changed"),
        *(f"    runs/{name} was added" for name in (SUMS, "link", "pwn.py")),
    ]
    assert status == 1 and lines[1:6] == problems and lines[0].endswith("FAILED")
    assert lines[-1] == "3 of 4 checks failed."  # the card lists the files of runs/, too


def test_a_changed_card_fails_even_with_hashes_made_again(folder, check):
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(text.replace("62,656 parameters", "62,657 parameters"), encoding="utf-8")
    content = read_json(folder / BOM)
    file = next(part for part in content["components"][0]["components"] if part["name"] == "README.md")
    file["hashes"][0]["content"] = sha256(folder / "README.md")
    write_json(folder / BOM, content)
    write_sums(folder)
    for path in folder.glob(f"*/{SUMS}"):
        path.unlink()  # of a release with folders
    status, lines = check(folder)
    assert status == 1 and any("62,657" in line for line in lines), lines


def test_a_missing_list_or_bom_is_a_failure(folder, check):
    (folder / BOM).unlink()
    status, lines = check(folder)
    assert status == 1 and f"    {BOM} is missing" in lines
    (folder / SUMS).unlink()
    status, lines = check(folder)
    assert status == 1 and lines[1] == f"    {SUMS} is missing"


def test_a_file_of_the_hub_s_client_is_no_part_of_a_release(folder, check):
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "CACHEDIR.TAG").write_text("")
    assert check(folder)[0] == 0


def test_links_to_files_as_in_the_hub_s_cache_are_verified(folder, check, tmp_path):
    shutil.move(folder / "model.safetensors", tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert check(folder)[0] == 0
    change_a_byte(tmp_path / "blob")
    assert "    model.safetensors was changed" in check(folder)[1]


def test_the_names_of_strangers_reach_no_terminal(folder, check):
    (folder / "a\x1b[2J\nSHA256SUMS ok\u202e").write_text("")
    os.mkfifo(folder / "pipe")
    status, lines = check(folder)
    assert status == 1 and "    pipe was added" in lines
    assert any(line.startswith("    a\\x1b[2J ") and line.endswith("\\u202e was added") for line in lines), lines


@pytest.mark.parametrize(
    "text", ["[]", '{"components": 1}', '{"components": [{"components": [{}]}]}', "{", "[" * 9999]
)
def test_a_bom_that_is_none_is_reported(folder, check, text):
    (folder / BOM).write_text(text)
    status, lines = check(folder)
    assert status == 1 and any(line.startswith("bom.cdx.json, hashes") and line.endswith("FAILED") for line in lines)
