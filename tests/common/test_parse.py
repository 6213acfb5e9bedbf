"""The command line: paths without a name, and flags without a value."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from training.common.config import parse


@dataclass
class Config:
    """Settings of a program.

    Args:
        files: Files.
        out: Folder.
        quiet: Print nothing.
        level: A number.
    """

    files: list[Path]
    out: Path
    quiet: bool = False
    level: int = 0


@pytest.mark.parametrize(
    ("command", "files", "quiet"),
    [
        ("a b --out o", ["a", "b"], False),
        ("--out o a", ["a"], False),
        ("--quiet --out o a", ["a"], True),
        ("--out o --quiet a b", ["a", "b"], True),
        ("--out o a --quiet", ["a"], True),
        ("--out o --quiet false a --level 2", ["a"], False),
        ("--out=o --quiet=true a", ["a"], True),
    ],
)
def test_arguments_without_a_name_are_the_positional_field_and_a_bare_flag_is_true(command, files, quiet):
    config = parse(Config, command.split(), description="Test.", positional="files")
    assert config.files == list(map(Path, files)) and config.out == Path("o") and config.quiet is quiet


def test_a_command_without_the_positional_field_shows_how_it_is_called(capsys):
    with pytest.raises(SystemExit) as error:
        parse(Config, ["--out", "o"], description="Test.", positional="files")
    assert error.value.code == 2 and "files [files ...]" in capsys.readouterr().err
