"""Run one part of training.bench.gpu in this process; the arguments are its name, the device and a JSON file."""

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from ...common.files import write_json
from ...common.signals import end_with_parent
from ...step.compute import configure_allocator
from .checks import Checks, last_line
from .parity import compiled, parity
from .programs import evaluate, finetuning, pretraining
from .speed import fp8, generation, step

PARTS: dict[str, Callable[[Checks, torch.device, Path], None]] = {
    "parity": parity,
    "compiled": compiled,
    "pretraining": pretraining,
    "evaluate": evaluate,
    **{
        f"finetune_{name}": partial(finetuning, f"finetune_{name}", task)
        for name, task in {
            "ocr": "ocr",
            "translation": "translation",
            "rag": "rag",
            "instruct": "instruct",
            "dpo": "instruct",
            "grpo_ocr": "ocr",
            "grpo_rag": "rag",
        }.items()
    },
    "step": step,
    "generation": generation,
    "fp8": fp8,
}


def main() -> None:
    """Run the part that the arguments of the process name, and write its checks as JSON."""
    end_with_parent()
    name, device, path = sys.argv[1], torch.device(sys.argv[2]), Path(sys.argv[3])
    configure_allocator()
    disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = Path(tempfile.mkdtemp(prefix="gpu-", dir=path.parent))
    checks = Checks(path)
    try:
        PARTS[name](checks, device, folder)
    except Exception as error:
        traceback.print_exc()
        checks.rows.append({"check": "part", "status": "failed", "seconds": 0.0, "error": last_line(error)})
        write_json(path, checks.rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
