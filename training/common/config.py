"""Parse command line and YAML into config dataclasses, and report bad input, in the same way for every program."""

import codecs
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .escaping import mask_passwords, terminal_line
from .signals import end_on_signals

CONFIGS = Path(__file__).parents[1] / "configs"
Config = TypeVar("Config")


class InputError(ValueError):
    """Invalid user input. The message gives the file or setting and the fix."""


def resolve_config(name: str) -> Path:
    """Return the path of a config, given as a path or as the name of a packaged config.

    Raises:
        InputError: If it is neither.
    """
    for path in (Path(name), *(path for path in CONFIGS.rglob("*.yaml") if path.stem == name)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in CONFIGS.rglob("*.yaml")))
    raise InputError(f"--config {name} is neither a file nor one of the packaged configs ({names}).")


def parse(
    config_class: type[Config], argv: list[str] | None = None, *, description: str, positional: str | None = None
) -> Config:
    """Build `config_class` from defaults, `--config` YAML and command line, the later overriding the earlier.

    An unknown key or a wrong type is an error. `--flag` alone is `--flag true`.

    Args:
        config_class: Dataclass, possibly nested; the `Args:` of its docstring are the `--help` texts.
        argv: Arguments. Default: those of the process.
        description: First paragraph of `--help`.
        positional: Field, a path or a list of paths, that the arguments without a name are. Default: none.
    """
    from jsonargparse import ArgumentParser  # lazy import: images of rented GPUs lack it

    argv = list(sys.argv[1:] if argv is None else argv)
    flags = {f"--{field.name}" for field in fields(config_class) if field.type in (bool, "bool")}
    for i in range(len(argv) - 1, -1, -1):
        if argv[i] in flags and argv[i + 1 : i + 2] not in (["true"], ["false"]):
            argv.insert(i + 1, "true")
    for i, argument in enumerate(argv):
        if argument == "--config" and i + 1 < len(argv):
            argv[i + 1] = str(resolve_config(argv[i + 1]))
        elif argument.startswith("--config="):
            argv[i] = f"--config={resolve_config(argument.removeprefix('--config='))}"
    called = Path(sys.argv[0])  # the file of a module, or "pleias PROGRAM" in the console script
    module = f"{sys.modules['__main__'].__package__}.{called.stem}".removesuffix(".__main__")
    prog = f"python -m {module}" if called.suffix == ".py" else called.name
    parser = ArgumentParser(description=description, prog=prog)
    parser.add_argument("--config", action="config", help="YAML file, or the name of a packaged config.")
    if positional:
        kind = next(field.type for field in fields(config_class) if field.name == positional)
        how = {"help": "Folder or file."} if kind is Path else {"help": "Files and folders.", "nargs": "+"}
        parser.add_argument(positional, type=Path, **how)
    parser.add_class_arguments(config_class, skip={positional} if positional else None)
    parsed = parser.instantiate(parser.parse_args(argv))
    del parsed["config"]
    return config_class(**parsed)


def read_yaml(path: Path) -> dict:
    """Read the settings of a YAML file; a byte order mark is skipped.

    Raises:
        InputError: If the file is not UTF-8 or not YAML, is nested too deeply, or has no settings.
    """
    try:
        settings = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}): correct it.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} has no settings (`name: value`): pass another file.")
    return settings


def dataclass_from_dict(settings_class: type, values: dict[str, Any], where: str):
    """Build a dataclass of settings from plain values: check types and convert paths.

    Raises:
        InputError: If a name is unknown or a value has the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser  # lazy import: see `parse`

    known = [field.name for field in fields(settings_class)]
    if unknown := sorted(set(values) - set(known)):
        raise InputError(
            f"{where}.{unknown[0]} is not a setting of {settings_class.__name__}, which has {', '.join(known)}."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(settings_class)
    try:
        return settings_class(**parser.instantiate(parser.parse_object(values)))
    except ArgumentError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def as_os_error(error: Exception, path: Path | None = None) -> OSError | None:
    """Return an error of the operating system with its reason and its file; None for any other error.

    Args:
        error: OSError, or the error of a library that only states the number (Arrow, safetensors, tokenizers).
        path: File of an error that does not name one.
    """
    stated = re.search(r"\b(?:errno|os error) (\d+)", str(error), re.IGNORECASE)
    if isinstance(error, OSError) and (path is None or error.filename is not None):
        return error
    if not isinstance(error, OSError) and not stated:
        return None
    if path is None:
        return OSError(str(error))
    if stated and int(stated[1]):
        return OSError(int(stated[1]), os.strerror(int(stated[1])), str(path))
    return OSError(f"{path}: {error}")  # as of NumPy, which does not state the reason


def encode_any_text() -> None:
    """Print characters that the encoding of a terminal or log lacks (Latin-1, cp1252) as similar ones of ASCII."""
    codecs.register_error("similar", _similar)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="similar")


def _similar(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_similar_character, error.object[error.start : error.end])), error.end


def _similar_character(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        return "+" if " AND " in name else "-" if "HORIZONTAL" in name else "|"
    for part, similar in (("DASH", "-"), ("HYPHEN", "-"), ("DOUBLE QUOT", '"'), ("SINGLE QUOT", "'")):
        if part in name:
            return similar
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def run_main(main: Callable[[], None]) -> None:
    """Run a program's `main`; report bad input and errors of the system as a one-line message, with status 2.

    SIGINT (Ctrl-C) and SIGTERM also end it with one line, and status 130 or 143.
    """
    end_on_signals()
    encode_any_text()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        failure = error if isinstance(error, InputError) else as_os_error(error)
        if failure is None:
            raise
        print(f"error: {terminal_line(mask_passwords(str(failure)))}", file=sys.stderr)
        raise SystemExit(2) from None
