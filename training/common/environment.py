"""Hardware, software versions, commit and peak memory of this process, as stored with every run and result."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from modeling_pleias import __version__

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")


def environment(packages: Iterable[str] = PACKAGES) -> dict:
    """Return `commit`, `versions` (Python, this project and the packages) and `hardware`."""
    versions = {"python": platform.python_version(), "modeling_pleias": __version__}
    versions |= {name: version(name) for name in packages}
    return {"commit": commit(), "versions": versions, "hardware": hardware()}


def hardware() -> dict:
    """Return the CPU, memory and GPUs of this machine, and PyTorch's CPU threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def commit() -> str | None:
    """Return the commit of the checkout that contains this file, or None for an installed package or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError:  # git is not installed, as in slim containers, or may not be run
        return None
    return done.stdout.strip() or None


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: allocated on a GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # on Linux, because ru_maxrss includes the parent's memory at the time of exec
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
