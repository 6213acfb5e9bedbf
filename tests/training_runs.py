"""Helpers for tests of training programs: runs in this process, configs as files, tensors of checkpoints."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from training.common.files import read_json, write_json
from training.data.shard_files import tokens_fingerprint
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


def forget_sidecars(shards: Path) -> None:
    """Make the manifest of shards that of an earlier version, without the hashes of their sidecars."""
    manifest = read_json(shards / "manifest.json")
    for shard in manifest["shards"]:
        del shard["sidecars"]
    write_json(shards / "manifest.json", manifest | {"fingerprint": tokens_fingerprint(manifest)})
