"""Evaluate a model on held-out text, tasks and public benchmarks, or compare several models.

    python -m training.evaluate --model runs/demo/model --suite card
    python -m training.evaluate --model runs/demo/model --model BASELINE.gguf --suite bits_per_byte --out comparison

Each task writes TASK.json, with metrics and their intervals, which model cards are generated from; EVALUATION.md and a
chart summarise all tasks. Outputs and scores are cached in records/, so that a task with the same settings, data and
model is not run again.
"""

if not __package__:  # run by path; same as `python -m training.evaluate`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from .common.config import InputError, parse, run_main
from .common.files import fingerprint, lock_folder, read_json, write_json
from .evaluation import compare, report
from .evaluation.benchmarks import Continuation, Public, PublicConfig
from .evaluation.bits_per_byte import BitsConfig, BitsPerByte
from .evaluation.contamination import TaskContamination, check_index
from .evaluation.held_out_text import TextConfig, held_out
from .evaluation.language_adherence import Adherence, AdherenceConfig
from .evaluation.memorisation import Memorisation, MemorisationConfig
from .evaluation.minimal_pairs import MinimalPairs, MinimalPairsConfig
from .evaluation.models import EvaluatedModel
from .evaluation.ocr_correction import OcrCorrection, OcrCorrectionConfig
from .evaluation.speed import Speed, SpeedConfig
from .evaluation.tasks import NAMES, GenerationTask, TasksConfig
from .evaluation.toxicity import Toxicity, ToxicityEvalConfig
from .run.results import write_result
from .step.compute import configure_allocator
from .tracing.search import TraceIndex

SUITES = {
    "card": ["bits_per_byte", "language_adherence", "toxicity", "speed"],
    "tasks": list(NAMES),
    "public": ["public"],
}
CONTINUATIONS = 100  # examples per language
TASKS = ("bits_per_byte", "language_adherence", "toxicity", "speed", "memorisation", *NAMES, "ocr_correction")
TASKS += ("minimal_pairs", "continuation", "public")
WITH_TEST_TEXTS = ("bits_per_byte", *NAMES, "ocr_correction", "continuation", "public")


@dataclass
class EvaluateConfig:
    """Models, tasks and settings of an evaluation.

    Args:
        model: Model folder, run folder, .gguf file, or OWNER/NAME on the Hub. Repeat it to compare models, as in
            --model A --model B.
        suite: card, tasks or public, or comma-separated tasks: bits_per_byte, language_adherence, toxicity, speed,
            memorisation, ocr, translation, rag, ocr_correction, minimal_pairs, continuation, public.
        out: Results folder. Defaults to eval/ in the run folder (comparison/ for several models), or to eval/ in the
            working directory for a model without a run.
        data: Held-out text for bits per byte and for prompts.
        bits: Settings of bits per byte.
        adherence: Settings of language adherence.
        toxicity: Settings of toxicity.
        speed: Settings of speed.
        memorisation: Settings of memorisation.
        tasks: Settings of ocr, translation and rag.
        ocr_correction: Pairs on disk of OCR text and truth, and clean text, for ocr_correction.
        minimal_pairs: Minimal pairs on disk, or made from lexicons in packages.
        public: Settings of public benchmarks and of continuation.
        index: Folder of an index of the training shards (training.trace). If set, memorisation is measured too.
        contamination: Folder of an index of the training shards. If set, the share of test texts that occur verbatim
            in them is printed and stored with each result (training.trace --benchmark reports any other text).
        exclude_contaminated: Measure on the test texts that are not contaminated. The result also has each metric on
            all texts, and the paired difference.
        device: Torch device. auto is a GPU if available.
        precision: Dtype of the weights. auto is bf16 on a GPU that supports it, and fp32 on a CPU, where bits per byte
            still uses bf16 matmuls if the CPU is fast in bf16 and the metric stays the same.
    """

    model: list[str]
    suite: str = "card"
    out: Path | None = None
    data: TextConfig = field(default_factory=TextConfig)
    bits: BitsConfig = field(default_factory=BitsConfig)
    adherence: AdherenceConfig = field(default_factory=AdherenceConfig)
    toxicity: ToxicityEvalConfig = field(default_factory=ToxicityEvalConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    memorisation: MemorisationConfig = field(default_factory=MemorisationConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    ocr_correction: OcrCorrectionConfig = field(default_factory=OcrCorrectionConfig)
    minimal_pairs: MinimalPairsConfig = field(default_factory=MinimalPairsConfig)
    public: PublicConfig = field(default_factory=PublicConfig)
    index: Path | None = None
    contamination: Path | None = None
    exclude_contaminated: bool = False
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"


def select_tasks(config: EvaluateConfig) -> list[str]:
    """Return the tasks of a suite, or of a comma-separated list.

    Raises:
        InputError: If a task is unknown, memorisation or contamination has no index, or no task has test texts.
    """
    names = SUITES.get(config.suite) or [name.strip() for name in config.suite.split(",")]
    if unknown := [name for name in names if name not in TASKS]:
        known = f"{', '.join(SUITES)}, or tasks: {', '.join(TASKS)}"
        raise InputError(f"--suite must be one of {known}, got {unknown[0]!r}.")
    names = list(dict.fromkeys([*names, *(["memorisation"] if config.index else [])]))
    if "memorisation" in names and config.index is None:
        raise InputError(
            "Memorisation needs an index of the training shards: build it with training.trace, pass --index."
        )
    if config.exclude_contaminated and config.contamination is None:
        raise InputError("--exclude_contaminated needs an index of the training shards: pass --contamination.")
    if config.contamination is not None and not set(names) & set(WITH_TEST_TEXTS):
        raise InputError(f"--contamination needs a task with test texts: {', '.join(WITH_TEST_TEXTS)}.")
    return names


def build_tasks(names: list[str], config: EvaluateConfig, runs: list[Path]) -> list:
    """Build the tasks with their data."""
    run = runs[0] if runs else None
    with_text = {"bits_per_byte", "language_adherence", "memorisation", "continuation"}
    texts = held_out(config.data, run) if with_text & set(names) else []
    builders = {
        "bits_per_byte": lambda: BitsPerByte(texts, config.data, config.bits, run),
        "language_adherence": lambda: Adherence(texts, config.data, config.adherence, run),
        "toxicity": lambda: Toxicity(config.toxicity),
        "speed": lambda: Speed(config.speed),
        "memorisation": lambda: Memorisation(texts, config.memorisation, config.index),
        "ocr_correction": lambda: OcrCorrection(config.ocr_correction),
        "minimal_pairs": lambda: MinimalPairs(config.minimal_pairs),
        "continuation": lambda: Continuation(texts, config.data, config.public, run, examples=CONTINUATIONS),
        "public": lambda: Public(config.public),
    }
    return [builders[name]() if name in builders else GenerationTask(name, config.tasks, runs) for name in names]


def find_contamination(tasks: list, config: EvaluateConfig, finished: Path) -> dict[str, TaskContamination]:
    """Return the contamination of the tasks that have test texts, by task, if an index is set.

    Raises:
        InputError: If the index cannot be used, or all texts of a task are contaminated and excluded.
    """
    if config.contamination is None:
        return {}
    index = TraceIndex(config.contamination)
    check_index(index)
    settings = {"exclude": config.exclude_contaminated, "finished": finished}
    return {task.name: TaskContamination(task, index, **settings) for task in tasks if task.name in WITH_TEST_TEXTS}


def evaluate(task, subject: EvaluatedModel, folder: Path, contamination: TaskContamination | None) -> bool:
    """Measure one model on one task and write the result; return False if an equal result exists.

    A record of the same measurement is reused, so that its contamination can be added later.
    """
    identity = {
        "task": task.name,
        "settings": task.settings,
        "data": task.data["fingerprint"],
        "model": subject.fingerprint,
        "weights": [str(subject.dtype), subject.device.type],
    }
    measured = fingerprint(identity)
    digest = fingerprint([measured, contamination.identity]) if contamination else measured
    result, record_path = folder / f"{task.name}.json", compare.record_path(folder, task.name)
    known = read_json(result) if result.is_file() else {}
    stored = read_json(record_path) if record_path.is_file() else {}
    if stored.get("fingerprint") == measured and known.get("fingerprint") == digest:
        return False
    if stored.get("fingerprint") == measured and known.get("measured", known.get("fingerprint")) == measured:
        record, seconds = stored["record"], known["seconds"]
    else:
        start = time.perf_counter()
        record = task.measure(subject)
        seconds = round(time.perf_counter() - start, 1)
        write_json(record_path, {"fingerprint": measured, "record": record})
    facts, metrics = task.details(record), task.metrics(record)
    groups = facts.pop("groups", {})
    if contamination:
        facts |= {"measured": measured, "contamination": contamination.facts_of(metrics)}
        metrics = contamination.metrics(metrics)
        groups = {by: contamination.metrics(group) for by, group in groups.items()}
    write_result(
        folder,
        task.name,
        with_intervals(metrics),
        data=task.data,
        fingerprint=digest,
        model=subject.facts,
        settings=task.settings,
        groups={by: with_intervals(group) for by, group in groups.items()},
        seconds=seconds,
        **facts,
    )
    return True


def with_intervals(metrics: dict) -> dict[str, dict | float]:
    """Return metrics with their intervals, as results store them."""
    return {name: compare.with_interval(metric) for name, metric in metrics.items()}


def results_folder(config: EvaluateConfig, run: Path | None) -> Path:
    """Return the results folder."""
    if config.out or run is None:
        return config.out or Path("eval")
    return run / ("eval" if len(config.model) == 1 else "comparison")


def models_as_list(argv: list[str]) -> list[str]:
    """Join the values of all --model arguments into one list."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--model", action="append")
    known, rest = options.parse_known_args(argv)
    return rest + (["--model", json.dumps(known.model)] if known.model else [])


def main(argv: list[str] | None = None) -> None:
    """Run `python -m training.evaluate`."""
    configure_allocator()
    arguments = models_as_list(sys.argv[1:] if argv is None else argv)
    config = parse(EvaluateConfig, arguments, description="Evaluate a model, or compare several models.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    subjects = [EvaluatedModel(name, device=device, precision=config.precision) for name in config.model]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise InputError(f"Two models are named {max(names, key=names.count)}: rename a folder or a file.")
    runs = [subject.run for subject in subjects if subject.run]
    out = results_folder(config, subjects[0].run)
    tasks = build_tasks(select_tasks(config), config, runs)
    folders = {name: out if len(subjects) == 1 else out / name for name in names}
    with lock_folder(out):
        contamination = find_contamination(tasks, config, out / "records" / "contamination")
        write_results(subjects, tasks, folders, out, contamination)


def write_results(
    subjects: list[EvaluatedModel],
    tasks: list,
    folders: dict[str, Path],
    out: Path,
    contamination: dict[str, TaskContamination],
) -> None:
    """Measure every model on every task, and write results and reports."""
    facts = []
    for subject in subjects:
        for task in tasks:
            measured = evaluate(task, subject, folders[subject.name], contamination.get(task.name))
            print(report.line(folders[subject.name] / f"{task.name}.json") + ("" if measured else " (cached)"))
        print(report.write_page(folders[subject.name]))
        facts.append(read_json(folders[subject.name] / f"{tasks[0].name}.json")["model"])
        subject.release()
    if len(subjects) > 1:
        data = {task.name: task.data for task in tasks}
        data["fingerprint"] = fingerprint([task.data["fingerprint"] for task in tasks])
        write_result(
            out, report.COMPARISON, {}, data=data, models=facts, tasks=compare.compare(tasks, folders, contamination)
        )
        print(report.write_comparison(out))


if __name__ == "__main__":
    run_main(main)
