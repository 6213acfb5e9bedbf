"""The tasks of training.tasks, on a model as it is: fine-tuned, or asked with worked examples or none."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .. import tasks
from ..config import InputError, typed
from ..data.split import hash_fraction
from ..files import fingerprint
from ..generation import complete
from ..intervals import Metric
from .models import Subject

NAMES = ("ocr", "translation", "rag")
LISTED = 40  # sources named


@dataclass
class TasksConfig:
    """Which examples, and how the model is asked.

    Args:
        examples: of each task, as many of each language.
        shots: worked examples before each prompt, from the training part, in the language of the prompt where there
            are some; 0 for a model that was fine-tuned.
        data: task -> settings of its data, as {ocr: {path: FOLDER}}; those of training.tasks when not given.
    """

    examples: int = 200
    shots: int = 0
    data: dict[str, dict[str, Any]] = field(default_factory=dict)


class TrainedTask:
    """One of the tasks, on its held-out rows.

    Args:
        name: of the task.
        config: which rows of it.
        runs: folders of runs; where one is of fine-tuning on this task, what it held out is measured on.
    """

    def __init__(self, name: str, config: TasksConfig, runs: list[Path]):
        self.name, self.config, self.task = name, config, tasks.load(name)
        given = config.data.get(name) or next(filter(None, (data_of(run, name) for run in runs)), {})
        rows = self.task.rows(typed(tasks.settings(name), given, f"tasks.data.{name}"))
        self.rows = _evenly(rows["held_out"], config.examples)
        if not self.rows:
            raise InputError(f"The data of the task {name} has no held-out row: give it other --tasks.data.")
        self.shots = [self._shots(row, rows["train"]) for row in self.rows]
        # The logits processor parses the prompt, and would parse the few-shot examples as well.
        self.decoding = {k: v for k, v in self.task.DECODING.items() if k != "logits_processor" or not config.shots}
        self.data = {
            "source": sorted({row["source"].partition(" via ")[0].partition("#")[0] for row in self.rows})[:LISTED],
            "settings": given,
            "languages": dict(Counter(row["language"] for row in self.rows)),
            "fingerprint": fingerprint([self.rows, self.shots]),
        }
        self.settings = {"examples": config.examples, "shots": config.shots}
        self.settings |= {"decoding": {key: getattr(of, "__qualname__", of) for key, of in self.decoding.items()}}

    def measure(self, subject: Subject) -> dict:
        """What the model writes after each prompt."""
        asked = [shots + row["prompt"] for shots, row in zip(self.shots, self.rows, strict=True)]
        title = f"{subject.name}: {self.name}"
        return {"outputs": complete(subject.model, subject.tokenizer, asked, **self.decoding, progress=title)}

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Those of the task."""
        return self.task.score(self.rows, record["outputs"])

    def facts(self, record: dict) -> dict:
        """The first row of each language with what was written."""
        found = {}
        for row, output in zip(self.rows, record["outputs"], strict=True):
            example = {"language": row["language"], "prompt": row["prompt"], "continuation": output}
            found.setdefault(row["language"], example | {"expected": row["completion"]})
        return {"shots": self.config.shots, **tasks.signatures(self.task), "examples": list(found.values())}

    def _shots(self, row: dict, train: list[dict]) -> str:
        if not self.config.shots:
            return ""
        same = [one for one in train if one["language"] == row["language"]] or train
        chosen = sorted(same, key=lambda one: hash_fraction(f"{row['id']} {one['id']}"))[: self.config.shots]
        return "".join(f"{one['prompt']}{one['completion']}\n\n" for one in chosen)


def data_of(run: Path, name: str) -> dict:
    """Settings of the data that a run was fine-tuned on, where that was this task."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    data = config.get("data") if config.get("task") == name else None
    return {key: value for key, value in (data or {}).items() if value is not None}


def _evenly(rows: list[dict], count: int) -> list[dict]:
    """So many rows, as many of each language, chosen by a hash."""
    languages = sorted({row["language"] for row in rows})
    each = -(-count // max(1, len(languages)))
    ordered = sorted(rows, key=lambda row: hash_fraction(row["id"]))
    return [row for language in languages for row in [one for one in ordered if one["language"] == language][:each]]
