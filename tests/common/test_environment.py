"""Facts of the machine and the process: peak memory is that of the process alone, and git is optional."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from training.common.environment import commit, peak_memory

ROOT = Path(__file__).parents[2]


def test_peak_memory_of_a_child_does_not_include_its_parent():
    held = np.ones(100_000_000)  # 800 MB; ru_maxrss of a child is at least this
    code = "import torch; from training.common.environment import peak_memory; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 5e7 < int(done.stdout) < held.nbytes < peak_memory(torch.device("cpu"))


def test_without_git_the_commit_is_null_as_for_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
    (tmp_path / "git").write_text("not a program")
    (tmp_path / "git").chmod(0o755)
    assert commit() is None
