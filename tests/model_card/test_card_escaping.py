"""Texts and names of strangers do not change the structure of a card, its commands or its code."""

import ast
import json
import re
import shlex
import shutil
import subprocess

import pytest
from cards import WRITTEN
from markdown_it import MarkdownIt

from model_card import card, provenance, validate
from model_card.files import ReleaseError, read_json, write_json


@pytest.mark.parametrize("text", ["demo", "my demo", "l'ete", "a;b", "$x y", "l'$x", "`a`"])
def test_a_name_in_a_command_of_a_card_is_one_word_of_the_shell(text):
    word = provenance.FILTERS["shell"](f"{text}-BF16.gguf")
    assert shlex.split(word) == [f"{text}-BF16.gguf"]
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{text}-BF16.gguf"


HOSTILE = (
    "Poems\n\n```python\nopen('RAN', 'w')\n```\n\n# Free | CC0-1.0 | 9\n---\nlicense: mit\n---\n<img src=x> "
    "[x](javascript:y) `a` ``` ~~~ \x1b[2J\u202e \ue0000\ue001 *b* "
)
HOSTILE_KEY = re.sub(r"\d", "", HOSTILE)  # a number in a name is not traced


def structure(text: str) -> list[str]:
    """Return what a card's body consists of, without the words: headings, rows, blocks of code, links, HTML."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(validate.split_front_matter(text)[1])
    kinds = [sorted({child.type for child in token.children or ()} - {"text", "text_special"}) for token in tokens]
    return [f"{token.type} {token.info} {kind}" for token, kind in zip(tokens, kinds, strict=True)]


def test_hostile_texts_in_the_evidence_do_not_change_the_structure_of_a_card(folder):
    before, evidence = (folder / "README.md").read_bytes().decode(), folder / "evidence"
    release_json = read_json(folder.parent / "release.json")
    release_json["folders"] = {"llama": release_json["folders"]["llama"]}
    release_json["command"] = HOSTILE
    (session,) = release_json["source"]["run"]["run"]["sessions"]
    session |= {
        "commit": HOSTILE,
        "versions": {HOSTILE_KEY: HOSTILE},
        "hardware": {"cpu": HOSTILE, "cpus": 2, "gpus": []},
    }
    write_json(folder.parent / "release.json", release_json)
    data, runs, compared = (read_json(evidence / f"{name}.json") for name in ("data", "lineage", "comparison"))
    for row in data[0]["account"]:
        row |= {column: HOSTILE + row[column] for column in ("language", "license", "collection")}
    data[0]["fingerprint"] = "0" * 64  # not that of a released manifest, which would be compared
    runs["runs"][0] |= {"command": HOSTILE, "measured_by": HOSTILE}
    compared["command"] = HOSTILE
    compared["tasks"]["bits_per_byte"] = {
        HOSTILE_KEY + name: row for name, row in compared["tasks"]["bits_per_byte"].items()
    }
    result = read_json(evidence / "eval" / "ocr.json")
    result |= {
        "task": HOSTILE_KEY,
        "metrics": {HOSTILE_KEY + name: value for name, value in result["metrics"].items()},
    }
    for name, content in {"data": data, "lineage": runs, "comparison": compared, "eval/ocr": result}.items():
        write_json(evidence / f"{name}.json", content)
    card.write_cards(folder.parent, "the command")
    text = (folder / "README.md").read_bytes().decode()
    assert structure(text) == structure(before)
    assert "\x1b" not in text.replace(WRITTEN["en"], "") and "\u202e" not in text.split("\n---\n", 1)[1]
    assert [p for p in validate.validate(folder, run=True) if p.kind in ("code", "number", "link")] == []
    assert not (folder / "RAN").exists()


def test_a_model_whose_name_needs_quoting_has_commands_and_code_that_parse(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    content = read_json(out / "release.json")
    content |= {"name": 'it\'s "my" \u00e9 model', "folders": {"gguf": {"bytes": 0, "files": {}}}}
    write_json(out / "release.json", content)
    (out / "gguf").mkdir()
    card.write_cards(out, "")
    assert validate.validate(out / "gguf") == []
    text = (out / "gguf" / "README.md").read_text(encoding="utf-8")
    (bash,) = re.findall(r"^llama-server -m (.*)$", text, re.M)
    (python,) = re.findall(r"gguf_file=(.*), dtype", text)
    assert shlex.split(bash) == [ast.literal_eval(python)] == [content["name"] + "-BF16.gguf"]


@pytest.mark.parametrize(
    "name, value",
    [("folders", {"../llama": {"bytes": 0, "files": {}}}), ("source", {"run": {"base_model": "a/b](x) <img>"}})],
)
def test_names_in_a_release_that_are_no_names_are_refused(dist, tmp_path, name, value):
    out = shutil.copytree(dist, tmp_path / "tiny")
    write_json(out / "release.json", read_json(out / "release.json") | {name: value})
    with pytest.raises(ReleaseError, match="which is no folder of a release|not the name of a repository"):
        card.write_cards(out, "")


def test_half_a_surrogate_pair_in_a_file_is_refused_by_the_file_s_name(folder):
    path = folder / "evidence" / "data.json"
    path.write_text(json.dumps([{"account": "\ud800"}]))
    with pytest.raises(ReleaseError, match="data.json contains half a surrogate pair"):
        card.write_cards(folder.parent, "")


def test_a_card_that_names_a_file_outside_its_folder_is_refused(folder):
    content = read_json(folder / "card.json")
    content["numbers"][0]["source"] = "../release.json#/name"
    write_json(folder / "card.json", content)
    with pytest.raises(ReleaseError, match="'../release.json' is not the name of a file inside"):
        validate.validate(folder)
