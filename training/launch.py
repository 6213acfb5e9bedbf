"""What `accelerate launch` leaves undone on machines without a GPU: it starts one process, with one thread."""

import argparse
import os
import sys

import psutil
import torch


def complete_launch(program: list[str]) -> None:
    """Start all the processes that the launcher was asked for, in place of this one, and share the cores among them.

    Accelerate leaves MASTER_ADDR without a rank behind where it should have started several, and the number on its own
    command line. Where nobody said how many threads a process is to have, it says 1.

    Args:
        program: Python's arguments that run the current program: `-m` and its module, or its path.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if not by_accelerate or "LOCAL_RANK" in os.environ or torch.accelerator.is_available():
        return
    launcher = psutil.Process(os.getppid())
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--num_processes", "--num-processes", type=int, default=1)
    options.add_argument("--num_cpu_threads_per_process", "--num-cpu-threads-per-process", type=int)
    asked = options.parse_known_args(launcher.cmdline())[0]
    processes = asked.num_processes if "MASTER_ADDR" in os.environ else 1
    if asked.num_cpu_threads_per_process is None and "OMP_NUM_THREADS" not in launcher.environ():
        cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
        threads = max(cores // processes, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)  # in this process it has been read
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        os.execv(sys.executable, [*command, *program, *sys.argv[1:]])
