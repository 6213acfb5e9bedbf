"""What tests of programs that train share: a run in this process, its config as a file, tensors of its checkpoints."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from training import checkpoint
from training.recipe import PretrainConfig
from training.record import plain
from training.stopping import SIGNALS
from training.tuning.recipe import FinetuneConfig


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Signal handlers are afterwards as they were: a run installs its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def as_yaml(config: PretrainConfig | FinetuneConfig, path: Path) -> Path:
    """The config as the file a user would write."""
    path.write_text(yaml.safe_dump(plain(asdict(config))))
    return path


def state(config: PretrainConfig | FinetuneConfig, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    folder = config.folder / "checkpoints" / f"step-{step}"
    return {
        f"{part}:{k}": v for part in checkpoint.PARTS for k, v in load_file(folder / f"{part}.safetensors").items()
    }
