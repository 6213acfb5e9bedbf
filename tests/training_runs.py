"""Helpers for tests of training programs: runs in this process, configs as files, tensors of checkpoints."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from training.finetuning.recipe import FinetuneConfig
from training.pretraining.recipe import PretrainConfig
from training.run import checkpoint
from training.run.record import plain
from training.run.stopping import SIGNALS


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the signal handlers, which a run replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def as_yaml(config: PretrainConfig | FinetuneConfig, path: Path) -> Path:
    """Write the config as a YAML file, as a user would."""
    path.write_text(yaml.safe_dump(plain(asdict(config))))
    return path


def state(config: PretrainConfig | FinetuneConfig, step: int) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint."""
    folder = config.folder / "checkpoints" / f"step-{step}"
    return {
        f"{part}:{k}": v for part in checkpoint.PARTS for k, v in load_file(folder / f"{part}.safetensors").items()
    }
