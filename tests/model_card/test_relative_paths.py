"""No path of a machine remains in the values and commands of a release."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_card.files import OPTION, relativize_paths


def test_an_absolute_path_becomes_relative_to_a_root_or_is_cut_to_its_last_part():
    root = Path("/srv/house")
    for path, relative in {
        "/srv/house/data/femto": "data/femto",
        "/home/me/.venv/bin/python -m training.shards --out=/srv/house/data/a --model '[\"/tmp/x/b.gguf\"]'": (
            "python -m training.shards --out=data/a --model '[\"b.gguf\"]'"
        ),
        "../shared/corpus": "../shared/corpus",
        "https://example.org/a/b and/or 1/2": "https://example.org/a/b and/or 1/2",
    }.items():
        assert relativize_paths({"a": [path]}, root) == {"a": [relative]}


NAMES = st.text("ab -.(),='\u00e9", min_size=1, max_size=9).filter(
    lambda name: name == name.strip() and name.strip(".") and not OPTION.search(name)
)


SECRET = "Jane Doe"


@given(folders=st.lists(NAMES, max_size=3), name=st.text("ab-_.", max_size=5))
def test_no_folder_of_a_path_with_blanks_remains_in_values_and_commands(folders, name):
    name = f"x{name}x"
    path = "/".join(["/home", SECRET, *folders, name])
    options = ["python", "-m", "training.pretrain", "--out"]
    assert relativize_paths([path, f"file://{path}", f"--out={path}"]) == [name, name, f"--out={name}"]
    assert relativize_paths({"files": [{path: [path]}]}) == {"files": [{name: [name]}]}
    for words, expected in (
        ([*options, path, "--seed", "3"], [*options, name, "--seed", "3"]),
        ([*options[:-1], f"--out={path}"], [*options[:-1], f"--out={name}"]),
        ([path, *options, "a/b"], [name, *options, "a/b"]),
    ):
        assert shlex.split(relativize_paths(shlex.join(words))) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ('"/home/Jane Doe/a b/c"', '"c"'),
        ("['/home/Jane Doe/a/x', '/home/Jane Doe/b/y']", "['x', 'y']"),
        ("read /home/Jane Doe/a/b.txt and wrote /srv/My Work/c d/e.txt.", "read b.txt and wrote c d/e.txt."),
        ("it's in /home/Jane Doe/runs/x", "it's in x"),
        ("--data /home/Jane Doe/runs/x --seed 3", "--data x --seed 3"),
        ("/home/Jane Doe/bin/python -m training.plan --config demo", "python -m training.plan --config demo"),
        ("training.average '/srv/My Work/runs/a/model' runs/b/model", "training.average 'runs/a/model' runs/b/model"),
        ("/home", "/home"),
        ("x --out '/srv/My Work/a' --url https://me:pw@host/v1", "x --out a --url 'https://***@host/v1'"),
    ],
)
def test_paths_with_blanks_in_a_text_are_made_relative(text, expected):
    assert relativize_paths(text, Path("/srv/My Work")) == expected


def test_files_of_one_name_in_several_folders_stay_apart():
    files = {"/home/a b/x/manifest.json": 1, "/home/a b/y/manifest.json": 2, "runs/z": 3}
    assert relativize_paths(files) == {"manifest.json (1)": 1, "manifest.json (2)": 2, "runs/z": 3}
