"""Experiment trackers in addition to metrics.jsonl (TensorBoard, trackio, Weights & Biases), through Accelerate."""

from dataclasses import asdict

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..common.config import InputError
from ..common.files import fingerprint
from .record import plain


def check_trackers(names: list[str]) -> None:
    """Raise InputError if a tracker is not installed; Accelerate would skip it silently."""
    if missing := sorted(set(names) - {str(name) for name in get_available_trackers()}):
        fix = f"Run pip install {' '.join(missing)}, or remove it from trackers."
        raise InputError(f"trackers: {', '.join(missing)} is not installed. {fix}")


def start(accelerator: Accelerator, config, *, begun: str, done: int) -> None:
    """Start the trackers with which the accelerator was created.

    Args:
        accelerator: Accelerator of the run.
        config: Config of the run.
        begun: Start time of the run's first session; identifies the run, so that later sessions continue its curves.
        done: Completed steps; TensorBoard discards what was logged for later ones.
    """
    identity = fingerprint([str(config.folder.resolve()), begun])[:16]
    resumed = {"name": f"{config.name}-{identity}", "resume": "allow"}
    options = {
        "tensorboard": {"purge_step": done + 1},
        "trackio": resumed,
        "wandb": {**resumed, "id": identity, "dir": str(config.folder)},
    }
    settings = {name: str(value) for name, value in flat(plain(asdict(config))).items()}
    accelerator.init_trackers(config.name, settings, {name: options[name] for name in config.trackers})


def flat(tree: dict, prefix: str = "") -> dict:
    """Flatten {"a": {"b": 1}} to {"a/b": 1}."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def numbers(line: dict) -> dict[str, float]:
    """Return the numbers in a line of metrics.jsonl, which trackers can plot."""
    return {key: value for key, value in flat(line).items() if isinstance(value, int | float) and key != "step"}
