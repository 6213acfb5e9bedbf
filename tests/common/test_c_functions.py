"""C functions are compiled and called, or None: without a compiler, a temporary folder, or the right to load."""

import ctypes
import shutil

import pytest

from training.common import c_functions
from training.common.c_functions import compile_c

SOURCE = "long twice(long x) { return 2 * x; }"


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_function_is_compiled_and_called():
    twice = compile_c(SOURCE).twice
    twice.argtypes, twice.restype = [ctypes.c_long], ctypes.c_long
    assert twice(2**40 + 1) == 2**41 + 2
    assert compile_c("no C") is None


@pytest.mark.parametrize("reason", ["no compiler", "no temporary folder", "a temporary folder mounted noexec"])
def test_functions_that_cannot_be_compiled_or_loaded_are_none(monkeypatch, tmp_path, reason):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    if reason == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif reason == "no temporary folder":
        monkeypatch.setattr(c_functions.tempfile, "tempdir", str(tmp_path / "missing"))
    else:
        monkeypatch.setattr(c_functions.ctypes, "CDLL", refuse)  # tests/test_container.py mounts one
    assert compile_c(SOURCE) is None
