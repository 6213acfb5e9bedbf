"""What the programs of this room share: the error for users' mistakes, JSON, hashes, and the list of hashes."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

SUMS = "SHA256SUMS"


class ReleaseError(ValueError):
    """Something the user can mend, or a check that failed. Its message is one sentence."""


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path):
    """Read a JSON file.

    Raises:
        ReleaseError: when the file is not there or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReleaseError(f"{path} is not there: is {path.parent} the folder that was meant?") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ReleaseError(f"{path} is not JSON ({error}).") from error


def write_json(path: Path, value) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS (as `sha256sum -c` reads it) into a folder and into those of its subfolders that hold files.

    To be called again by whoever changes a file afterwards.
    """
    hashes = {
        path.relative_to(folder): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SUMS
    }
    for part in {Path(), *(Path(path.parts[0]) for path in hashes if len(path.parts) > 1)}:
        lines = [
            f"{value}  {path.relative_to(part).as_posix()}" for path, value in hashes.items() if part in path.parents
        ]
        (folder / part / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def verify_sums(folder: Path) -> None:
    """Compare every file of a release with SHA256SUMS.

    Raises:
        ReleaseError: naming the first that differs or is missing.
    """
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        value, _, name = line.partition("  ")
        if not (folder / name).is_file() or sha256(folder / name) != value:
            raise ReleaseError(f"{folder / name} is not the file that was verified: make the release anew.")


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the mode that a new one gets; safetensors are written for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def program(main: Callable[[], None]) -> None:
    """Run a program's `main`; bad input, a failed check and a failing disk end in one sentence and exit status 2."""
    try:
        main()
    except (ReleaseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
