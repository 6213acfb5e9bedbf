"""Complete `accelerate launch` on machines without a GPU, where it starts one process with one thread."""

import argparse
import os
import sys

import psutil
import torch


def launch_cpu_processes(program: list[str]) -> None:
    """Replace this process by the requested number of processes, and divide the cores among them.

    If Accelerate should have started several processes it sets MASTER_ADDR but no rank; the number is on its command
    line. If the number of threads per process is not specified, it sets 1.

    Args:
        program: Arguments for Python that run the current program: `-m` and its module, or its path.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if not by_accelerate or "LOCAL_RANK" in os.environ or torch.accelerator.is_available():
        return
    launcher = psutil.Process(os.getppid())
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--num_processes", "--num-processes", type=int, default=1)
    options.add_argument("--num_cpu_threads_per_process", "--num-cpu-threads-per-process", type=int)
    requested = options.parse_known_args(launcher.cmdline())[0]
    processes = requested.num_processes if "MASTER_ADDR" in os.environ else 1
    if requested.num_cpu_threads_per_process is None and "OMP_NUM_THREADS" not in launcher.environ():
        cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
        threads = max(cores // processes, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)  # this process has already read the variable
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        os.execv(sys.executable, [*command, *program, *sys.argv[1:]])
