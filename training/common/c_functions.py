"""Compile C functions at run time with the machine's compiler, or do without them: nothing is stored."""

import ctypes
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# Sums may be split over vector lanes, and products and sums fused. Not -ffast-math: linked in, it changes how the
# process treats denormals, and it assumes that NaN does not occur.
FLAGS = (
    "-O3 -march=native -fopenmp -shared -fPIC -ffp-contract=fast -fassociative-math -fno-signed-zeros "
    "-fno-trapping-math -fno-math-errno"
).split() + ["-mprefer-vector-width=512"] * (platform.machine() == "x86_64")


def compile_c(source: str) -> ctypes.CDLL | None:
    """Return the functions of a C source, or None if they cannot be compiled or loaded (0.1 to 0.3 s).

    They use the threads of PyTorch's OpenMP library, and its limit of the instruction set (ATEN_CPU_CAPABILITY).
    """
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    narrow = platform.machine() == "x86_64" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    flags = [*FLAGS, *["-mno-avx512f"] * narrow]
    try:
        with tempfile.TemporaryDirectory() as folder:
            file, library = Path(folder) / "functions.c", Path(folder) / "functions.so"
            file.write_text(source, encoding="ascii")
            if subprocess.run([compiler, *flags, str(file), "-o", str(library)], capture_output=True).returncode:
                return None
            return ctypes.CDLL(str(library))
    except OSError:  # no temporary folder, a full one, or one that is mounted noexec
        return None
