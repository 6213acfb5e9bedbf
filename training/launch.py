"""Processes on machines without a GPU: `accelerate launch --num_processes N` starts one there and says nothing."""

import argparse
import os
import sys

import psutil
import torch


def start_the_others(module: str) -> None:
    """Start all the processes that the launcher was asked for, in place of this one, where it did not.

    Accelerate leaves MASTER_ADDR without a rank behind in that case, and the number on its own command line.

    Args:
        module: that is being run, as `-m` names it.
    """
    if "MASTER_ADDR" not in os.environ or "LOCAL_RANK" in os.environ or torch.accelerator.is_available():
        return
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--num_processes", "--num-processes", type=int, default=1)
    processes = options.parse_known_args(psutil.Process(os.getppid()).cmdline())[0].num_processes
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        os.execv(sys.executable, [*command, "-m", module, *sys.argv[1:]])
