"""Benchmarks through lm-evaluation-harness: the public ones from the Hub, and own ones made of held-out text."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import yaml

from ..config import InputError
from ..data.split import hash_fraction
from ..files import fingerprint
from ..intervals import Metric
from ..language import LANGUAGES
from .models import Subject
from .texts import CODE, Text, TextConfig, by_language, describe

CONTINUATION = Path(__file__).parent / "continuation.yaml"
SEED = 1234  # the harness's own, for the choice of worked examples
# What there is for our eight languages, by the harness's names. The first three are those of the Common Corpus paper.
PUBLIC = (
    *(f"multiblimp_{code}" for code in ("eng", "fra", "spa", "deu", "ita", "nld", "lat", "por")),
    "xstorycloze_en",
    "xstorycloze_es",
    "xcopa_it",
    *(f"belebele_{code}_Latn" for code in ("eng", "fra", "spa", "deu", "ita", "nld", "por")),
    "hellaswag",
    *(f"hellaswag_{code}" for code in ("fr", "es", "de", "it", "nl", "pt")),
    "arc_easy",
    *(f"arc_{code}" for code in ("fr", "es", "de", "it", "nl", "pt")),
)
CHOICES = 4
CONTEXT, CHOICE = 300, 100  # characters


@dataclass
class PublicConfig:
    """Which benchmarks.

    Args:
        benchmarks: names that lm-evaluation-harness knows; for each language and in several tasks, those of PUBLIC.
        include: a folder with further YAML tasks.
        limit: examples of each at most.
        shots: worked examples before each; what the benchmark says when not given.
        batch: sequences at once.
    """

    benchmarks: list[str] = field(default_factory=lambda: list(PUBLIC))
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None
    batch: int = 8


def examine(subject: Subject, benchmarks: list[str | dict], config: PublicConfig) -> dict[str, dict[str, list[float]]]:
    """Benchmark -> metric -> its value on each example.

    Raises:
        InputError: when a benchmark is unknown, or its data cannot be had.
    """
    from datasets.exceptions import DatasetsError  # seconds to import, and of use here alone
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    named = [name for name in benchmarks if isinstance(name, str)]
    include = str(config.include) if config.include else None
    manager = TaskManager(include_path=include, include_defaults=False)
    if not all(manager.match_tasks([name]) for name in named):
        manager = TaskManager(include_path=include)  # reads thousands of files
    if unknown := [name for name in named if not manager.match_tasks([name])]:
        raise InputError(f"lm-evaluation-harness knows no {unknown[0]!r}: choose others with --public.benchmarks.")
    model = HFLM(
        pretrained=subject.model,
        tokenizer=subject.tokenizer,
        backend="causal",
        batch_size=config.batch,
        max_length=subject.context,
    )
    try:
        loaded = manager.load(list(benchmarks))
    except (OfflineModeIsEnabled, HfHubHTTPError, DatasetsError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"The data of the benchmarks cannot be had from the Hub ({reason}): run where it is reachable, or take "
            "--suite card, which is offline."
        ) from None
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None or (config.shots is not None and task.get_config("num_fewshot")):
            task.set_config("num_fewshot", config.shots or 0)  # 0 in a benchmark's own file is meant
        task.set_fewshot_seed(seed=SEED)
    found = evaluate(model, loaded, limit=config.limit, bootstrap_iters=0, log_samples=True)
    return {name: dict(_values(samples)) for name, samples in found["samples"].items()}


def _values(samples: list[dict]) -> Iterator[tuple[str, list[float]]]:
    for metric in samples[0]["metrics"]:
        if all(isinstance(sample[metric], int | float) for sample in samples):
            yield metric, [float(sample[metric]) for sample in samples]


class Public:
    """The task: the named benchmarks."""

    name = "public"

    def __init__(self, config: PublicConfig):
        self.config = config
        self.settings = asdict(config) | {"include": str(config.include)}
        self.benchmarks: list[str | dict] = list(config.benchmarks)
        self.data = {"source": "lm-evaluation-harness", "benchmarks": config.benchmarks}
        self.data["fingerprint"] = fingerprint(self.data)

    def measure(self, subject: Subject) -> dict:
        """The value on every example."""
        return {"benchmarks": examine(subject, self.benchmarks, self.config)}

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Means over examples."""
        return {
            f"{name}, {metric}": Metric(np.array(values))
            for name, of in record["benchmarks"].items()
            for metric, values in of.items()
        }

    def facts(self, record: dict) -> dict:
        """The harness's version, and how many examples each benchmark has."""
        from importlib.metadata import version

        counts = {name: len(next(iter(of.values()))) for name, of in record["benchmarks"].items() if of}
        return {"lm_eval": version("lm_eval"), "examples_of_each": counts}


class Continuation(Public):
    """Own benchmark, offline: which of four passages goes on a text; the others are from other held-out documents."""

    name = "continuation"

    def __init__(self, texts: list[Text], text_config: TextConfig, config: PublicConfig, run, *, examples: int):
        super().__init__(config)
        self.rows = continuations(texts, examples)
        if not self.rows:
            raise InputError("The held-out text is too short for the benchmark `continuation`: give more --data.path.")
        self.data = describe(texts, text_config, run) | {
            "examples": {language: len(of) for language, of in self.rows.items()},
            "fingerprint": fingerprint(self.rows),
        }
        self.settings = {"batch": config.batch, "choices": CHOICES, "context": CONTEXT, "choice": CHOICE}
        declared = yaml.safe_load(CONTINUATION.read_text(encoding="utf-8"))
        self.benchmarks = [
            declared | {"task": f"continuation_{language}", "custom_dataset": lambda rows=rows, **_: _dataset(rows)}
            for language, rows in self.rows.items()
        ]


def continuations(texts: list[Text], examples: int) -> dict[str, list[dict]]:
    """Language -> {"context", "choices", "answer"}: a passage, and four that might follow, one of which does.

    Passages are evenly spaced over each language's documents; the wrong choices are true continuations elsewhere.
    """
    found = {}
    for language, of in by_language(texts).items():
        if language not in LANGUAGES or language == CODE:
            continue
        pairs = []
        for text in of:
            for i, start in enumerate(range(0, len(text.text) - CONTEXT - 2 * CHOICE, CONTEXT + CHOICE)):
                cut = text.text.find(" ", start + CONTEXT)
                end = text.text.find(" ", cut + CHOICE)
                if 0 < cut < end:
                    pairs.append((f"{text.identifier} {i}", text.text[start:cut], text.text[cut:end]))
        pairs.sort(key=lambda pair: hash_fraction(pair[0]))
        pairs = pairs[: max(examples, CHOICES)]
        rows = []
        for i, (key, context, true) in enumerate(pairs if len(pairs) >= CHOICES else []):
            others = [pairs[(i + step) % len(pairs)][2] for step in range(1, CHOICES)]
            answer = int(hash_fraction(f"answer {key}") * CHOICES)
            rows.append({"context": context, "choices": [*others[:answer], true, *others[answer:]], "answer": answer})
        if rows:
            found[language] = rows[:examples]
    return found


def _dataset(rows: list[dict]) -> dict:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}
