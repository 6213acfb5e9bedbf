"""Benchmarks through lm-evaluation-harness: public ones from the Hub, and `continuation` from held-out text."""

import logging
from collections.abc import Iterator
from copy import copy
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

from ..common.config import InputError
from ..common.files import fingerprint
from ..common.intervals import Metric
from ..common.language import LANGUAGES
from ..data.split import hash_fraction
from .held_out_text import Text, TextConfig, by_language, describe_texts
from .models import EvaluatedModel, first_line

CONTINUATION = Path(__file__).parent / "continuation.yaml"
SEED = 1234  # the harness's default, for selecting few-shot examples
# Benchmarks in the project's eight languages. The first three families are those of the Common Corpus paper.
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
    """Benchmarks and settings of lm-evaluation-harness.

    Args:
        benchmarks: Task names of lm-evaluation-harness. Defaults to PUBLIC, in the eight languages.
        include_path: Folder with further YAML tasks.
        limit: Maximum examples per benchmark. Default: all.
        num_fewshot: Few-shot examples before each prompt. Defaults to the benchmark's own setting.
        batch_size: Sequences per forward pass.
    """

    benchmarks: list[str] = field(default_factory=lambda: list(PUBLIC))
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8


def load_benchmarks(benchmarks: list[str | dict], config: PublicConfig) -> dict:
    """Load benchmarks with their data, as the harness evaluates them: {"tasks": {name: task}, ...}.

    Raises:
        InputError: If a benchmark is unknown, or its data could not be downloaded.
    """
    from datasets.exceptions import DatasetsError  # lazy imports: take seconds
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = [name for name in benchmarks if isinstance(name, str)]
    folder = str(config.include_path) if config.include_path else None
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not all(manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=folder)  # reads thousands of files
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise InputError(f"lm-evaluation-harness has no task {unknown[0]!r}: pass others with --public.benchmarks.")
    try:
        return manager.load(list(benchmarks))
    except (OfflineModeIsEnabled, HfHubHTTPError, DatasetsError, OSError) as error:
        raise InputError(
            f"The data of the benchmarks could not be downloaded from the Hub ({first_line(error)}): connect to "
            "it, or use --suite card, which is offline."
        ) from None


def example_texts(benchmarks: list[str | dict], config: PublicConfig) -> dict[str, list[Text]]:
    """Return benchmark -> the text of each example, without few-shot examples: the prompt and the right answer.

    Raises:
        InputError: If a benchmark is unknown, or its data could not be downloaded.
    """
    return {
        name: [
            Text(f"{name} {i}", "", name, "", _example_text(task, doc))
            for i, doc in task.doc_iterator(limit=config.limit)
        ]
        for name, task in load_benchmarks(benchmarks, config)["tasks"].items()
    }


def _example_text(task, doc) -> str:
    """Return the prompt and the right answer of an example of the harness."""
    prompt, target = task.doc_to_text(doc), task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target  # the first of several right answers
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        if isinstance(prompt, int):  # the choice is between prompts, which have the same answer
            prompt = choices[prompt]
        elif isinstance(target, int):
            target = choices[target]
    return f"{prompt}{task.config.target_delimiter if prompt else ''}{target}"


def examine(
    subject: EvaluatedModel, benchmarks: list[str | dict], config: PublicConfig
) -> dict[str, dict[str, list[float]]]:
    """Return benchmark -> metric -> value per example.

    Raises:
        InputError: If a benchmark is unknown, or its data could not be downloaded.
    """
    from lm_eval.evaluator import evaluate  # lazy imports: take seconds
    from lm_eval.models.huggingface import HFLM

    loaded = load_benchmarks(benchmarks, config)
    tokenizer = copy(subject.tokenizer)
    tokenizer.split_special_tokens = True  # "<|end_of_text|>" written in a text is text
    model = HFLM(
        pretrained=subject.model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=config.batch_size,
        max_length=subject.context,
    )
    for task in loaded["tasks"].values():
        declared = task.get_config("num_fewshot")
        if declared is None or (config.num_fewshot is not None and declared):
            task.set_config("num_fewshot", config.num_fewshot or 0)  # a 0 in the benchmark's own file is intended
        task.set_fewshot_seed(seed=SEED)
    results = evaluate(model, loaded, limit=config.limit, bootstrap_iters=0, log_samples=True)
    return {name: dict(_values(samples)) for name, samples in results["samples"].items()}


def _values(samples: list[dict]) -> Iterator[tuple[str, list[float]]]:
    """Yield each metric with its values; a metric of a filter of the harness has the filter's name in its own."""
    for filter_name in dict.fromkeys(sample["filter"] for sample in samples):
        rows = [sample for sample in samples if sample["filter"] == filter_name]
        for metric in rows[0]["metrics"]:
            if all(isinstance(row[metric], int | float) for row in rows):
                name = metric if filter_name == "none" else f"{metric}, {filter_name}"
                yield name, [float(row[metric]) for row in rows]


class Public:
    """Task: benchmarks of lm-evaluation-harness."""

    name = "public"

    def __init__(self, config: PublicConfig):
        self.config = config
        self.settings = asdict(config) | {"include_path": str(config.include_path)}
        self.benchmarks: list[str | dict] = list(config.benchmarks)
        self.data = {"source": "lm-evaluation-harness", "benchmarks": config.benchmarks}
        self.data["fingerprint"] = fingerprint(self.data)

    def test_texts(self) -> dict[str, list[Text]]:
        """Return the texts of the examples by the beginning of the names of their metrics."""
        return {f"{name}, ": texts for name, texts in example_texts(self.benchmarks, self.config).items()}

    def measure(self, subject: EvaluatedModel) -> dict:
        """Return the value of every example."""
        return {"benchmarks": examine(subject, self.benchmarks, self.config)}

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return means over examples."""
        return {
            f"{name}, {metric}": Metric(np.array(values))
            for name, metrics in record["benchmarks"].items()
            for metric, values in metrics.items()
        }

    def details(self, record: dict) -> dict:
        """Return the version of the harness, and the number of examples per benchmark."""
        counts = {name: len(next(iter(metrics.values()))) for name, metrics in record["benchmarks"].items() if metrics}
        return {"lm_eval": version("lm_eval"), "examples_of_each": counts}


class Continuation(Public):
    """Task: offline multiple choice of which of four passages continues a text; three are from other positions."""

    name = "continuation"

    def __init__(self, texts: list[Text], text_config: TextConfig, config: PublicConfig, run, *, examples: int):
        super().__init__(config)
        self.rows = continuations(texts, examples)
        if not self.rows:
            raise InputError("The held-out text is too short for the task continuation: pass more with --data.path.")
        self.data = describe_texts(texts, text_config, run) | {
            "examples": {language: len(rows) for language, rows in self.rows.items()},
            "fingerprint": fingerprint(self.rows),
        }
        self.settings = {"batch_size": config.batch_size, "choices": CHOICES, "context": CONTEXT, "choice": CHOICE}
        declared = yaml.safe_load(CONTINUATION.read_text(encoding="utf-8"))
        self.benchmarks = [
            declared | {"task": f"continuation_{language}", "custom_dataset": lambda rows=rows, **_: _dataset(rows)}
            for language, rows in self.rows.items()
        ]


def continuations(texts: list[Text], examples: int) -> dict[str, list[dict]]:
    """Return language -> rows of {"context", "choices", "answer"}: a passage and four candidate continuations.

    Passages are evenly spaced over each language's documents; the wrong choices are true continuations of others.
    """
    examples_of = {}
    for language, documents in by_language(texts).items():
        if language not in LANGUAGES:  # code
            continue
        pairs = []
        for text in documents:
            for i, start in enumerate(range(0, len(text.text) - CONTEXT - 2 * CHOICE, CONTEXT + CHOICE)):
                middle = text.text.find(" ", start + CONTEXT)
                end = text.text.find(" ", middle + CHOICE)
                if 0 < middle < end:
                    pairs.append((f"{text.identifier} {i}", text.text[start:middle], text.text[middle:end]))
        pairs.sort(key=lambda pair: hash_fraction(pair[0]))
        pairs = pairs[: max(examples, CHOICES)]
        rows = []
        for i, (key, context, true) in enumerate(pairs if len(pairs) >= CHOICES else []):
            others = [pairs[(i + step) % len(pairs)][2] for step in range(1, CHOICES)]
            answer = int(hash_fraction(f"answer {key}") * CHOICES)
            rows.append({"context": context, "choices": [*others[:answer], true, *others[answer:]], "answer": answer})
        if rows:
            examples_of[language] = rows[:examples]
    return examples_of


def _dataset(rows: list[dict]) -> dict:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}
