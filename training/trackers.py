"""Trackers beside metrics.jsonl: TensorBoard, trackio, Weights & Biases, started and told through Accelerate."""

from dataclasses import asdict

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from .config import InputError
from .files import fingerprint
from .record import plain


def check(names: list[str]) -> None:
    """Raise InputError for a tracker that is not installed; Accelerate would leave it out without a word."""
    if missing := sorted(set(names) - {str(one) for one in get_available_trackers()}):
        packages = " ".join(missing)
        raise InputError(f"trackers: {', '.join(missing)} is not installed; pip install {packages}, or leave it out.")


def start(accelerator: Accelerator, config, *, begun: str, done: int) -> None:
    """Start the trackers that the accelerator was made with.

    Args:
        config: of the run.
        begun: when its first session began, by which a later one is known to belong to it.
        done: steps; what TensorBoard was told of later ones is taken back.
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
    """{"a": {"b": 1}} as {"a/b": 1}."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def numbers(line: dict) -> dict[str, float]:
    """What a tracker can plot of a line of metrics.jsonl."""
    return {key: value for key, value in flat(line).items() if isinstance(value, int | float) and key != "step"}
