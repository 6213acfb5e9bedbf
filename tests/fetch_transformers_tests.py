"""Unpack transformers' own tests, of exactly the installed version, into `<environment>/share/transformers-tests`.

They are the yardstick of `test_transformers_common.py`, are not in the wheel, and are not copied into this project:
they come from the source distribution on the package index. Run as `python tests/fetch_transformers_tests.py`; a
second run finds them and does nothing.
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
MEND = "run `python tests/fetch_transformers_tests.py`"


def fetched_version() -> str | None:
    """Version of transformers whose tests lie in FOLDER; None when there are none."""
    metadata = FOLDER / "PKG-INFO"
    return message_from_string(metadata.read_text(encoding="utf-8"))["Version"] if metadata.is_file() else None


def fetch() -> None:
    """Download the source distribution and keep its tests; FOLDER appears whole or not at all."""
    wanted = version("transformers")
    if fetched_version() == wanted:
        print(f"transformers {wanted}: tests are already in {FOLDER}")
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, "--dest", temporary, f"transformers=={wanted}"], check=True)
        root = f"transformers-{wanted}"
        with tarfile.open(next(Path(temporary).glob("transformers-*.tar.gz"))) as archive:
            kept = [m for m in archive if m.name == f"{root}/PKG-INFO" or m.name.startswith(f"{root}/tests/")]
            archive.extractall(temporary, members=kept, filter="data")
        # The archive leaves this empty file out; test_configuration_common.py executes it.
        (Path(temporary) / root / "tests" / "__init__.py").touch()
        shutil.rmtree(FOLDER, ignore_errors=True)
        (Path(temporary) / root).rename(FOLDER)
    print(f"transformers {wanted}: tests unpacked to {FOLDER}")


if __name__ == "__main__":
    fetch()
