"""Threads of a run under `accelerate launch` on a machine without a GPU; its processes are in test_pretrain.py."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
CORES = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    "options, environment, threads",
    [
        ([], {}, CORES),
        pytest.param(["--num_cpu_threads_per_process", "1"], {}, 1, marks=pytest.mark.slow),
        pytest.param([], {"OMP_NUM_THREADS": "1"}, 1, marks=pytest.mark.slow),
    ],
)
def test_all_cores_compute_unless_the_number_of_threads_is_specified(options, environment, threads, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\nfrom training.run.launch import launch_cpu_processes\n"
        "launch_cpu_processes([__file__])\nprint('threads', torch.get_num_threads())\n"
    )
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(program)],
        env=others | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert f"threads {threads}\n" in done.stdout, done.stderr
