"""Unpack transformers' tests, of exactly the installed version, into `<environment>/share/transformers-tests`.

`test_transformers_common.py` runs them. They are neither in the wheel nor copied into this project: they come from the
source distribution on the package index. Run as `python tests/fetch_transformers_tests.py`; a second run does nothing.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(sys.prefix) / "share" / "transformers-tests"
FIX = "run `python tests/fetch_transformers_tests.py`"


def fetched_version() -> str | None:
    """Return the version of transformers whose tests are in FOLDER, or None."""
    metadata = FOLDER / "PKG-INFO"
    return message_from_string(metadata.read_text(encoding="utf-8"))["Version"] if metadata.is_file() else None


def fetch() -> None:
    """Download the source distribution and unpack its tests; FOLDER appears atomically."""
    installed = version("transformers")
    if fetched_version() == installed:
        print(f"transformers {installed}: tests are already in {FOLDER}")
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, "--dest", temporary, f"transformers=={installed}"], check=True)
        root = f"transformers-{installed}"
        with tarfile.open(next(Path(temporary).glob("transformers-*.tar.gz"))) as archive:
            members = [m for m in archive if m.name == f"{root}/PKG-INFO" or m.name.startswith(f"{root}/tests/")]
            archive.extractall(temporary, members=members, filter="data")
        # The archive lacks this empty file, which test_configuration_common.py executes.
        (Path(temporary) / root / "tests" / "__init__.py").touch()
        shutil.rmtree(FOLDER, ignore_errors=True)
        (Path(temporary) / root).rename(FOLDER)
    print(f"transformers {installed}: tests unpacked to {FOLDER}")


if __name__ == "__main__":
    fetch()
