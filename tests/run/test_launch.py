"""Threads and processes of a program under `accelerate launch` on CPUs; a run with it is in test_pretrain.py."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
CORES = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


PROGRAM = """
import torch
from accelerate import PartialState
from training.run.launch import launch_cpu_processes

launch_cpu_processes([__file__])
state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}", flush=True)
print(f"threads {torch.get_num_threads()}", flush=True)
state.destroy_process_group()
"""


def launch(folder: Path, options: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Start a program that prints its process and threads."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(program)],
        cwd=folder,
        env=others | environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "options, environment, threads",
    [
        ([], {}, CORES),
        pytest.param(["--num_cpu_threads_per_process", "1"], {}, 1, marks=pytest.mark.slow),
        pytest.param([], {"OMP_NUM_THREADS": "1"}, 1, marks=pytest.mark.slow),
    ],
)
def test_all_cores_compute_unless_the_number_of_threads_is_specified(options, environment, threads, tmp_path):
    output = launch(tmp_path, options, environment).communicate()[0]
    assert f"threads {threads}\n" in output, output


CONFIG = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "mixed_precision": "no"}
CONFIG |= {"num_machines": 1, "machine_rank": 0, "num_processes": 2, "use_cpu": True, "debug": False}


@pytest.mark.parametrize(
    "place, options, processes",
    [
        ("two.yaml", ["--config_file", "two.yaml"], 2),
        pytest.param("hub/accelerate/default_config.yaml", [], 2, marks=pytest.mark.slow),
        pytest.param("two.yaml", ["--config-file", "two.yaml", "--num-processes", "1"], 1, marks=pytest.mark.slow),
    ],
)
def test_as_many_processes_start_as_the_config_file_of_accelerate_states(place, options, processes, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(json.dumps(CONFIG))  # YAML, too
    output = launch(tmp_path, options, {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")}).communicate()[0]
    started = re.findall(r"process (\d) of (\d)", output)
    assert sorted(started) == [(str(i), str(processes)) for i in range(processes)], output


@pytest.mark.slow
def test_the_machines_of_a_run_join_one_group(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank in range(2):
        options = ["--num_processes", "2", "--num_machines", "2", "--machine_rank", str(rank), "--cpu"]
        options += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        machines.append(launch(tmp_path, options, {"OMP_NUM_THREADS": "1"}))
    outputs = [machine.communicate()[0] for machine in machines]
    assert [re.findall(r"process (\d) of (\d)", output) for output in outputs] == [[("0", "2")], [("1", "2")]], outputs
