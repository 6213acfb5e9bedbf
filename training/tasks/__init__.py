"""The tasks that a model is fine-tuned for: each a module with its format, its data, its decoding and its metrics.

A task has NAME, DECODING (for training.generation.complete), HIGHER_IS_BETTER, a dataclass of settings named after it
(OcrData), `rows(settings)` -> {"train": [...], "held_out": [...]}, and `score(rows, outputs)` -> metrics by name, the
first of which chooses checkpoints. A row is a dict of what JSON can hold: id, language, source, license, prompt,
completion, and what the metrics need.
"""

from importlib import import_module
from types import ModuleType

TASKS = ("ocr", "translation", "rag", "instruct")
SIGNED = ("translation",)  # those with `signatures()`: how sacrebleu computed its scores


def load(name: str) -> ModuleType:
    """The module of a task; imported when it is wanted, because each has libraries of its own."""
    assert name in TASKS, name
    return import_module(f".{name}", __package__)


def signatures(task: ModuleType) -> dict[str, dict[str, str]]:
    """What belongs into a result beside the figures of a task whose metrics have an account of their own."""
    return {"signatures": task.signatures()} if task.NAME in SIGNED else {}


def settings(name: str) -> type:
    """The dataclass of the settings of a task's data."""
    return getattr(load(name), f"{name.capitalize()}Data")
