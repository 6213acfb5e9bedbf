"""Complete `accelerate launch` on CPUs, where it starts one process with one thread."""

import argparse
import os
import sys
from pathlib import Path

import psutil
import torch
from accelerate.commands.config import default_config_file, load_config_from_file

# Set in a process that torchrun or an MPI has started: all processes exist already.
RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")


def launch_cpu_processes(program: list[str]) -> None:
    """Replace this process by the requested number of processes, and divide the cores among them.

    If Accelerate should have started several processes it sets MASTER_ADDR but no rank; their number is on its command
    line or in its config file. If the number of threads per process is not specified, it sets 1.

    Args:
        program: Arguments for Python that run the current program: `-m` and its module, or its path.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and not any(name in os.environ for name in RANKS)
    on_gpu = torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "True"
    if not by_accelerate or on_gpu:
        return
    launcher = psutil.Process(os.getppid())
    requested = _requested(launcher.cmdline())
    processes = requested.num_processes // requested.num_machines if "MASTER_ADDR" in os.environ else 1
    if requested.num_cpu_threads_per_process is None and "OMP_NUM_THREADS" not in launcher.environ():
        cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
        threads = max(cores // processes, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)  # this process has already read the variable
    if processes > 1 or requested.num_machines > 1:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        if requested.num_machines > 1:
            command += [f"--nnodes={requested.num_machines}", f"--node_rank={requested.machine_rank}"]
            command += [f"--master_addr={os.environ['MASTER_ADDR']}", f"--master_port={os.environ['MASTER_PORT']}"]
        else:
            command.append("--standalone")
        os.execv(sys.executable, [*command, *program, *sys.argv[1:]])


def _requested(command_line: list[str]) -> argparse.Namespace:
    """Return the numbers that `accelerate launch` uses: of its command line, else of its config file, else 1."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in (("num_processes", 1), ("num_machines", 1), ("machine_rank", 0)):
        options.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=int, default=default)
    options.add_argument("--num_cpu_threads_per_process", "--num-cpu-threads-per-process", type=int)
    options.add_argument("--config_file", "--config-file")
    options.add_argument("--cpu", action="store_true")
    requested = options.parse_known_args(command_line)[0]
    if requested.config_file or (Path(default_config_file).is_file() and not requested.cpu):
        options.set_defaults(**vars(load_config_from_file(requested.config_file)))
        requested = options.parse_known_args(command_line)[0]
    return requested
