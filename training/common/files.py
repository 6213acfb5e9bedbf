"""Atomic writes of files and folders, the lock of an output folder, hashes and fingerprints."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .config import InputError, as_os_error

LOCK = ".lock"
UNFINISHED = ".unfinished"  # folder inside an output folder, of what is not complete
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # of `atomic`
# What a file system answers that cannot flush a folder, or cannot flush at all.
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR, errno.EACCES, errno.EPERM}
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


def sync(path: Path) -> None:
    """Flush a file, or the renames inside a folder, to disk, if its file system can do so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise as_os_error(error, path) from None


@contextmanager
def lock(path: Path, output: Path) -> Iterator[bool]:
    """Hold a lock file, which is removed at the end; yield False if the file system has no locks.

    Raises:
        InputError: If another process holds it, so that another program is writing `output`.
    """
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # of a killed program of another user
            file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            locked = _flock(file, output)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):  # else its holder removed it in between
                    break
            os.close(file)
        except BaseException:
            os.close(file)
            raise
    try:
        yield locked
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _flock(file: int, output: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"Another run is writing to {output}. Wait for it, or use another folder.") from None
    except OSError as error:  # ENOSYS, ENOLCK, ENOTSUP: network file systems
        message = f"{output} cannot be locked ({error.strerror}): let no other program write to it."
        print(f"warning: {message}", file=sys.stderr)
        return False
    return True


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder, which is created if it is missing; remove temporary files of killed programs.

    Raises:
        InputError: If another process holds the lock.
        OSError: From the block, with the name of the folder if the system's error names no file.
    """
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock(folder / LOCK, folder) as locked:
            for parent, folders, names in os.walk(folder) if locked else ():
                if LOCK in names and Path(parent) != folder:  # of another program
                    folders.clear()
                    continue
                for name in filter(TEMPORARY.fullmatch, names):
                    Path(parent, name).unlink(missing_ok=True)
            try:
                yield
            except OSError as error:
                if error.errno is None or error.filename is not None:
                    raise
                raise as_os_error(error, folder) from error  # of a library that writes, as datatrove
    finally:
        if created:
            with suppress(OSError):  # it has files
                folder.rmdir()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; if the block succeeds, flush it to disk and rename it.

    Raises:
        OSError: If it cannot be written, with the reason and the name of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of the operating system that do not name one.

    Raises:
        OSError: If the block fails because of the system.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (failure := as_os_error(error, path)) in (None, error):
            raise
        raise failure from error


@contextmanager
def atomic_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, move its files into `folder`, `last` after all others.

    The files belong together if `last` exists. Weights that a new model does not replace are removed; other files of
    the folder remain.

    Raises:
        OSError: If a file cannot be written, with the reason and the name of a file.
    """
    temporary = folder / UNFINISHED
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed program
    temporary.mkdir(parents=True)
    try:
        with naming(folder):
            yield temporary
            move_files(temporary, folder, last, stale=folder.glob("*.safetensors*") if last == "config.json" else ())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_files(source: Path, folder: Path, last: str, *, stale: Iterable[Path] = ()) -> None:
    """Move the files below `source` to their places below `folder`, `last` after all others.

    `last` is removed first, so that the files belong together if it exists. Everything that needs space on the disk
    happens before: a full disk leaves the earlier files.

    Args:
        source: Folder inside `folder`.
        folder: Output folder.
        last: Name of the file that marks a complete result.
        stale: Files of an earlier result, which are removed unless new ones replace them.
    """
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and path != source / last]
    targets = {path: folder / path.relative_to(source) for path in files}
    folders = {folder, *(target.parent for target in targets.values())}
    for file in (*files, source / last):
        sync(file)
    for parent in folders:
        parent.mkdir(parents=True, exist_ok=True)
    (folder / last).unlink(missing_ok=True)
    sync(folder)
    for path in {*stale} - {*targets.values()}:
        path.unlink(missing_ok=True)
    for path, target in targets.items():
        os.replace(path, target)
    for parent in folders:
        sync(parent)
    os.replace(source / last, folder / last)
    sync(folder)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `out` if the block succeeds, and is removed otherwise.

    Raises:
        InputError: If `out` exists, or another program is writing it.
    """
    path = out.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f".{path.name}.lock"), out):
        if out.exists():
            raise InputError(f"{out} exists: delete it, or use another --out.")
        temporary = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed program
        temporary.mkdir()
        try:
            with naming(out):
                yield temporary
                temporary.rename(out)
                sync(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError; brackets nested too deeply
        raise InputError(f"{path} was altered and is no longer JSON ({error}): delete it and try again.") from error
