"""Peak memory is that of the process alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from training.common.environment import peak_memory

ROOT = Path(__file__).parents[2]


def test_peak_memory_of_a_child_does_not_include_its_parent():
    held = np.ones(100_000_000)  # 800 MB; ru_maxrss of a child is at least this
    code = "import torch; from training.common.environment import peak_memory; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 5e7 < int(done.stdout) < held.nbytes < peak_memory(torch.device("cpu"))
