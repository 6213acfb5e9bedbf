"""Evaluate a fine-tuned or base model, zero-shot or few-shot, on the tasks of training.tasks."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import tasks
from ..common.config import InputError, dataclass_from_dict, read_yaml
from ..common.files import fingerprint
from ..common.generation import complete
from ..common.intervals import Metric
from ..data.split import hash_fraction
from .held_out_text import Text
from .models import EvaluatedModel

NAMES = ("ocr", "translation", "rag")
LISTED = 40  # sources listed
MARKER = re.compile(r"<\|\w+\|>")


@dataclass
class TasksConfig:
    """Examples and prompts of the fine-tuning tasks.

    Args:
        examples: Held-out examples per task, the same number per language.
        num_fewshot: Few-shot examples before each prompt, from the training split, in the language of the prompt if
            available. Default: 0, for a fine-tuned model.
        data: Data settings by task, such as {ocr: {path: FOLDER}}. Defaults to the settings of the model's fine-tuning
            run, or of training.tasks.
    """

    examples: int = 200
    num_fewshot: int = 0
    data: dict[str, dict[str, Any]] = field(default_factory=dict)


class GenerationTask:
    """Task of training.tasks, evaluated on its held-out rows.

    Args:
        name: Name of the task.
        config: Examples and prompts.
        runs: Run folders of the models. If one is a fine-tuning run of this task, its held-out rows are used.
    """

    def __init__(self, name: str, config: TasksConfig, runs: list[Path]):
        self.name, self.config, self.task = name, config, tasks.load_task(name)
        settings = config.data.get(name) or next(filter(None, (data_of(run, name) for run in runs)), {})
        rows = self.task.rows(dataclass_from_dict(tasks.settings(name), settings, f"tasks.data.{name}"))
        self.rows = _evenly(rows["held_out"], config.examples)
        if not self.rows:
            raise InputError(f"The data of the task {name} has no held-out row: pass other --tasks.data.")
        self.shots = [self._shots(row, rows["train"]) for row in self.rows]
        # The logits processor parses the prompt, and would parse the few-shot examples as well.
        options = self.task.DECODING.items()
        self.decoding = {key: value for key, value in options if key != "logits_processor" or not config.num_fewshot}
        self.data = {
            "source": sorted({row["source"].partition(" via ")[0].partition("#")[0] for row in self.rows})[:LISTED],
            "settings": settings,
            "languages": dict(Counter(row["language"] for row in self.rows)),
            "fingerprint": fingerprint([self.rows, self.shots]),
        }
        decoding = {key: getattr(value, "__qualname__", value) for key, value in self.decoding.items()}
        self.settings = {"examples": config.examples, "num_fewshot": config.num_fewshot, "decoding": decoding}

    def test_texts(self) -> dict[str, list[Text]]:
        """Return prompt and completion of each row without the markers of the task's format."""
        texts = [MARKER.sub("\n", f"{row['prompt']}{row['completion']}") for row in self.rows]
        return {
            "": [
                Text(row["id"], row["language"], row["source"], "", text)
                for row, text in zip(self.rows, texts, strict=True)
            ]
        }

    def measure(self, subject: EvaluatedModel) -> dict:
        """Generate a completion of each prompt."""
        prompts = [shots + row["prompt"] for shots, row in zip(self.shots, self.rows, strict=True)]
        title = f"{subject.name}: {self.name}"
        return {"outputs": complete(subject.model, subject.tokenizer, prompts, **self.decoding, progress=title)}

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return the task's metrics."""
        return self.task.score(self.rows, record["outputs"])

    def details(self, record: dict) -> dict:
        """Return the first row of each language with its completion."""
        examples = {}
        for row, output in zip(self.rows, record["outputs"], strict=True):
            example = {"language": row["language"], "prompt": row["prompt"], "continuation": output}
            examples.setdefault(row["language"], example | {"expected": row["completion"]})
        signatures = tasks.signatures(self.task)
        return {"num_fewshot": self.config.num_fewshot, **signatures, "examples": list(examples.values())}

    def _shots(self, row: dict, train: list[dict]) -> str:
        if not self.config.num_fewshot:
            return ""
        candidates = [shot for shot in train if shot["language"] == row["language"]] or train
        candidates = sorted(candidates, key=lambda shot: hash_fraction(f"{row['id']} {shot['id']}"))
        return "".join(f"{shot['prompt']}{shot['completion']}\n\n" for shot in candidates[: self.config.num_fewshot])


def data_of(run: Path, name: str) -> dict:
    """Return the data settings of a run that was fine-tuned on this task, else {}."""
    config = read_yaml(run / "config.yaml")
    data = config.get("data") if config.get("task") == name else None
    return {key: value for key, value in (data or {}).items() if value is not None}


def _evenly(rows: list[dict], count: int) -> list[dict]:
    """Select `count` rows by hash, the same number per language."""
    by_language = defaultdict(list)
    for row in sorted(rows, key=lambda row: hash_fraction(row["id"])):
        by_language[row["language"]].append(row)
    return [row for language in sorted(by_language) for row in by_language[language][: -(-count // len(by_language))]]
