"""Atomic file writes, hashes and fingerprints."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import InputError

UNTRAINED_MARKER = "embeddings.json"  # in the folder of an untrained model: the data of its initial embeddings


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of the weight and tokenizer files of a model folder, by file name."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "tokenizer.json"]
    return {path.name: sha256(path) for path in files if path.is_file()}


def fingerprint(value) -> str:
    """Return the hex sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder that another file names.

    Raises:
        InputError: If the name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise InputError(f"{folder} contains a file that names {name!r}, which is not inside that folder: correct it.")
    return folder / path


def are_unchanged(folder: Path, hashes: dict[str, str]) -> bool:
    """Return whether the files of a folder exist and have these sha256, by name."""
    return all(inside(folder, name).is_file() and sha256(folder / name) == known for name, known in hashes.items())


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable against power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; if the block succeeds, flush it to disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a failed write has no file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file as it is, with its line ends; a byte order mark is skipped.

    Raises:
        InputError: If the file is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it.") from None


def write_json(path: Path, value) -> None:
    """Write a JSON file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path):
    """Read a JSON file.

    Raises:
        InputError: If the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError; brackets nested too deeply
        raise InputError(f"{path} was altered and is no longer JSON ({error}): delete it and try again.") from error
