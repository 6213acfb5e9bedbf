"""Fine-tuning tasks: each package defines a format, training data, decoding settings and metrics.

A task package exports NAME, DECODING (keyword arguments of training.common.generation.complete), HIGHER_IS_BETTER, a
dataclass of data settings named after it (OcrData), `rows(settings)` -> {"train": [...], "held_out": [...]},
`score(rows, outputs)` -> metrics by name, the first of which selects checkpoints, and the function for users
(`ocr.correct`). A row is a JSON-serialisable dict: id, language, source, license, prompt, completion, and the fields
that the metrics need.
"""

from importlib import import_module
from types import ModuleType

TASKS = ("ocr", "translation", "rag", "instruct")


def load_task(name: str) -> ModuleType:
    """Import the package of a task, on demand because each needs libraries of its own."""
    assert name in TASKS, name
    return import_module(f".{name}", __package__)


def signatures(task: ModuleType) -> dict[str, dict[str, str]]:
    """Return {"signatures": ...}, which state how sacrebleu computes a task's metrics; {} if it has none."""
    return {"signatures": task.signatures()} if hasattr(task, "signatures") else {}


def settings(name: str) -> type:
    """Return the dataclass of a task's data settings."""
    return getattr(load_task(name), f"{name.capitalize()}Data")
