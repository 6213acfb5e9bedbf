"""Errors for users, atomic files and folders, settings of runs, relative paths and hashes."""

import codecs
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from .escaping import mask_passwords, terminal_line
from .signals import end_on_signals

SUMS, BOM, SIGNATURE = "SHA256SUMS", "bom.cdx.json", "model.sig"
# Added to a folder by git and the Hub's client.
FOREIGN = (".git", ".gitattributes", ".gitignore", ".github", ".cache")
# An absolute path of at least two parts in a text, at the beginning of a word or of an option's value. The name of a
# folder may contain blanks, but not before an option or another path.
_NAME = r"[^\s/=,;\"'`\])}](?:(?:[^\n/=,;\"'`\])} ]| (?!--?\w|/))*[^\s/=,;\"'`\])}])?"
ABSOLUTE = re.compile(rf"(?<![^\s=,;\"'`\[({{])(?:file://)?/(?:{_NAME}/)+[^\s/=,;\"'`\])}}]*")
OPTION = re.compile(r" --?\w")
# A value that is a path, alone or of an option, whatever characters it contains.
PATH = re.compile(r"([\w.-]*=)?((?:file://)?/[^/\n]+/.*)")


class ReleaseError(ValueError):
    """Invalid user input, or a failed check. The message gives the fix."""


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path):
    """Read a JSON file.

    Raises:
        ReleaseError: If the file does not exist, is not JSON, or contains half a surrogate pair.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if re.search(r"\\ud[89a-f]", text, re.I):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ReleaseError(f"{path} contains half a surrogate pair, which is no text: correct the file.") from None
    except FileNotFoundError:
        raise ReleaseError(f"{path} does not exist: check that {path.parent} is the right folder.") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError; brackets nested too deeply
        raise ReleaseError(f"{path} is not JSON ({error}).") from error


def read_config(run: Path) -> dict:
    """Return the settings of a run, from config.yaml in its folder.

    Raises:
        ReleaseError: If the folder is not a run folder, or the file is not YAML.
    """
    try:
        return read_yaml(run / "config.yaml") or {}
    except FileNotFoundError:
        raise ReleaseError(f"{run} is not a run: it has no config.yaml.") from None


def read_yaml(path: Path):
    """Read a YAML file, with or without a byte order mark.

    Raises:
        ReleaseError: If the file is not YAML in UTF-8.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = " ".join(str(error).split())  # it has several lines
        raise ReleaseError(f"{path} is not YAML in UTF-8 ({problem}): correct it.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        OSError: If it cannot be written, with the reason and the name of the file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise as_os_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock file of a folder, which is next to it and is removed at the end.

    Raises:
        ReleaseError: If another process holds it, so that another program is writing the folder.
    """
    path = (folder := folder.absolute()).with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ReleaseError(f"Another program is writing to {folder}. Wait for it, or use another --out.") from None
        except OSError as error:  # ENOSYS, ENOLCK, ENOTSUP: network file systems
            message = f"{folder} cannot be locked ({error.strerror}): let no other program write to it."
            print(f"warning: {message}", file=sys.stderr)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):  # else its holder removed it in between
                break
        os.close(file)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `out` if the block succeeds, and removed otherwise.

    Raises:
        ReleaseError: If `out` exists, or another program is writing it.
    """
    with locked(out):
        if out.exists():
            raise ReleaseError(f"{out} exists: delete it, or use another --out.")
        temporary = out.absolute().with_name(f".{out.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed program
        temporary.mkdir()
        try:
            yield temporary
            temporary.rename(out)
        except Exception as error:
            failure = None if isinstance(error, ReleaseError) else as_os_error(error, out)
            if failure in (None, error):
                raise
            raise failure from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder that another file names.

    Raises:
        ReleaseError: If the name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise ReleaseError(f"{name!r} is not the name of a file inside {folder}: correct the file that contains it.")
    return folder / path


def relativize_paths(value, *roots: Path):
    """Return a JSON value without the folders of the machine that wrote it, and without passwords in addresses.

    A value that begins as an absolute path is one path, as is a quoted word of a command line.

    Args:
        value: The value.
        roots: Folders; an absolute path below one of them becomes relative to it, any other is cut to its last part.
    """
    if isinstance(value, dict):
        short = {key: relativize_paths(key, *roots) for key in value}
        names = Counter(short.values())
        if repeated := [key for key in value if names[short[key]] > 1]:  # different files of one name
            short |= {key: f"{short[key]} ({i})" for i, key in enumerate(repeated, 1)}
        return {short[key]: relativize_paths(item, *roots) for key, item in value.items()}
    if isinstance(value, list):
        return [relativize_paths(item, *roots) for item in value]

    def shorter(name: str) -> str:
        path = Path(name.removeprefix("file://"))
        below = [path.relative_to(root).as_posix() for root in roots if path.is_relative_to(root)]
        return below[0] if below else path.name

    def shorter_value(text: str) -> str:
        match = PATH.fullmatch(text)
        return (match[1] or "") + shorter(match[2]) if match and not OPTION.search(text) else text

    def shorter_quoted(word: str) -> str:
        return shorter_value(word) if shlex.quote(word) != word else word

    if not isinstance(value, str):
        return value
    words = mask_passwords(quoted_command(value))
    text = shlex.join(map(shorter_quoted, words)) if words else shorter_value(mask_passwords(value))
    return ABSOLUTE.sub(lambda match: shorter(match[0]), text)


def quoted_command(text: str) -> list[str]:
    """Return the words of a command line that `shlex.join` wrote, if it has an option and a quoted word; else none."""
    if "'" not in text or not OPTION.search(text):
        return []
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe
        return []
    return words if shlex.join(words) == text else []


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS (for `sha256sum -c`) into a folder and into its subfolders that contain files.

    Call it again after changing a file.
    """
    for part, lines in sums(folder).items():
        (folder / part / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def sums(folder: Path) -> dict[Path, list[str]]:
    """Return the lines of SHA256SUMS for a folder (".") and its subfolders, from the files that exist.

    The signature of a folder is not listed, because it signs the list.
    """
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    unlisted = [name for name in names if name.name == SUMS or name.name == SIGNATURE and len(name.parts) <= 2]
    hashes = {name: sha256(path) for name, path in names.items() if name not in unlisted}
    parts = {Path(), *(Path(path.parts[0]) for path in hashes if len(path.parts) > 1)}
    return {
        part: [f"{hashes[path]}  {path.relative_to(part).as_posix()}" for path in hashes if part in path.parents]
        for part in parts
    }


def verify_sums(folder: Path) -> None:
    """Compare every file of a folder with its SHA256SUMS, and every list below it with the files of its folder.

    Raises:
        ReleaseError: If a file or a list differs, is missing or is added (the message names the first).
    """
    expected = sums(folder)
    for path in sorted({folder / SUMS, *folder.rglob(SUMS)}):
        lines = [*expected.get(path.parent.relative_to(folder), []), ""]
        listed = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        if listed != lines:
            name = min((line.partition("  ")[2] for line in {*listed} ^ {*lines}), default="") or SUMS
            raise ReleaseError(f"{path.parent / name} is not the file that was verified: make the release again.")


def present_files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by name; also links to folders, broken links and devices."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name.partition("/")[0] not in FOREIGN}


def compare_hashes(listed: dict[str, str], folder: Path, unlisted: set[str]) -> Iterator[str]:
    """Yield each file that is changed, missing or added.

    Args:
        listed: sha256 of each file.
        folder: The folder.
        unlisted: Files that no list contains.
    """
    there = present_files(folder)
    for name in sorted(listed.keys() | there.keys() - unlisted):
        if name not in there:
            yield f"{name} is missing"
        elif name not in listed:
            yield f"{name} was added"
        elif not there[name].is_file() or sha256(there[name]) != listed[name]:
            yield f"{name} was changed"


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the mode of a new file; safetensors writes files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        with suppress(PermissionError):  # a file system without modes
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def as_os_error(error: Exception, path: Path | None = None) -> OSError | None:
    """Return an error of the operating system with its reason and its file; None for any other error.

    Like training.common.config.as_os_error.

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
        failure = error if isinstance(error, ReleaseError) else as_os_error(error)
        if failure is None:
            raise
        print(f"error: {terminal_line(mask_passwords(str(failure)))}", file=sys.stderr)
        raise SystemExit(2) from None
