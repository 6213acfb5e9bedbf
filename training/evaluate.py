"""A model measured: what its card claims, its tasks, public benchmarks, or several models side by side.

    python -m training.evaluate --model runs/demo/model --suite card
    python -m training.evaluate --model runs/demo/model --model PEER.gguf --suite bits_per_byte --out comparison

Each task leaves TASK.json, with its figures and their intervals, in the form that the model's card reads;
EVALUATION.md and a chart show them together. What a model wrote or scored is kept in records/, so that a task whose
settings, data and model are as before is not run again.
"""

if not __package__:  # run by path; same as `python -m training.evaluate`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from .compute import keep_memory
from .config import InputError, parse, program
from .evaluation import compare, page
from .evaluation.adherence import Adherence, AdherenceConfig
from .evaluation.bits import BitsConfig, BitsPerByte
from .evaluation.memorisation import Memorisation, MemorisationConfig
from .evaluation.models import Subject
from .evaluation.public import Continuation, Public, PublicConfig
from .evaluation.speed import Speed, SpeedConfig
from .evaluation.tasks import NAMES, TasksConfig, TrainedTask
from .evaluation.texts import TextConfig, held_out
from .evaluation.toxicity import Toxicity, ToxicityConfig
from .files import fingerprint, read_json, write_json
from .results import write_result

SUITES = {
    "card": ["bits_per_byte", "language_adherence", "toxicity", "speed"],
    "tasks": list(NAMES),
    "public": ["public"],
}
CONTINUATIONS = 100  # examples in each language
TASKS = ("bits_per_byte", "language_adherence", "toxicity", "speed", "memorisation", *NAMES, "continuation", "public")


@dataclass
class EvaluateConfig:
    """What is measured of which models.

    Args:
        model: a model's or a run's folder, a .gguf file, or OWNER/NAME on the Hub; several are put side by side, as
            --model A --model B.
        suite: card, tasks or public, or names of tasks with commas between: bits_per_byte, language_adherence,
            toxicity, speed, memorisation, ocr, translation, rag, continuation, public.
        out: folder of the results; eval/ in the run's folder when not given (comparison/ for several models), and
            eval/ here for a model that no run made.
        data: held-out text, for bits per byte and for prompts.
        bits: of bits per byte.
        adherence: of language adherence.
        toxicity: of the toxicity of continuations.
        speed: of speed.
        memorisation: of memorisation.
        tasks: of ocr, translation and rag.
        public: of public benchmarks, and of continuation.
        index: folder of an index of the training shards (training.trace); with it memorisation is measured as well.
        device: auto is a GPU where there is one.
        precision: of the weights. auto is bf16 on a GPU that has it and fp32 on a CPU, where bits per byte still use
            bf16 products if the processor is fast in them and the figure stays the same.
    """

    model: list[str]
    suite: str = "card"
    out: Path | None = None
    data: TextConfig = field(default_factory=TextConfig)
    bits: BitsConfig = field(default_factory=BitsConfig)
    adherence: AdherenceConfig = field(default_factory=AdherenceConfig)
    toxicity: ToxicityConfig = field(default_factory=ToxicityConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    memorisation: MemorisationConfig = field(default_factory=MemorisationConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    public: PublicConfig = field(default_factory=PublicConfig)
    index: Path | None = None
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"


def chosen(config: EvaluateConfig) -> list[str]:
    """Names of the tasks of a suite, or of a list of names.

    Raises:
        InputError: when one is unknown.
    """
    names = SUITES.get(config.suite) or [name.strip() for name in config.suite.split(",")]
    if unknown := [name for name in names if name not in TASKS]:
        known = f"{', '.join(SUITES)}, or tasks: {', '.join(TASKS)}"
        raise InputError(f"--suite {config.suite} has {unknown[0]!r}, which is none of {known}.")
    names = list(dict.fromkeys([*names, *(["memorisation"] if config.index else [])]))
    if "memorisation" in names and config.index is None:
        raise InputError("Memorisation needs an index of the training shards: make one with training.trace, --index.")
    return names


def prepare(names: list[str], config: EvaluateConfig, runs: list[Path]) -> list:
    """The tasks, with their data."""
    run = runs[0] if runs else None
    with_text = {"bits_per_byte", "language_adherence", "memorisation", "continuation"}
    texts = held_out(config.data, run) if with_text & set(names) else []
    make = {
        "bits_per_byte": lambda: BitsPerByte(texts, config.data, config.bits, run),
        "language_adherence": lambda: Adherence(texts, config.data, config.adherence, run),
        "toxicity": lambda: Toxicity(config.toxicity),
        "speed": lambda: Speed(config.speed),
        "memorisation": lambda: Memorisation(texts, config.memorisation, config.index),
        "continuation": lambda: Continuation(texts, config.data, config.public, run, examples=CONTINUATIONS),
        "public": lambda: Public(config.public),
    }
    return [make[name]() if name in make else TrainedTask(name, config.tasks, runs) for name in names]


def evaluate(task, subject: Subject, folder: Path) -> bool:
    """Measure one model in one task and write its result; False when that is there already."""
    identity = {
        "task": task.name,
        "settings": task.settings,
        "data": task.data["fingerprint"],
        "model": subject.fingerprint,
        "weights": [str(subject.dtype), subject.device.type],
    }
    mark = fingerprint(identity)
    result, record_path = folder / f"{task.name}.json", compare.record_path(folder, task.name)
    if record_path.is_file() and result.is_file():
        if read_json(result).get("fingerprint") == mark == read_json(record_path)["fingerprint"]:
            return False
    start = time.perf_counter()
    record = task.measure(subject)
    write_json(record_path, {"fingerprint": mark, "record": record})
    facts = task.facts(record)
    groups = {
        by: {name: compare.figure(metric) for name, metric in of.items()} for by, of in facts.pop("groups", {}).items()
    }
    write_result(
        folder,
        task.name,
        {name: compare.figure(metric) for name, metric in task.metrics(record).items()},
        data=task.data,
        fingerprint=mark,
        model=subject.facts,
        settings=task.settings,
        groups=groups,
        seconds=round(time.perf_counter() - start, 1),
        **facts,
    )
    return True


def output(config: EvaluateConfig, run: Path | None) -> Path:
    """Folder of the results."""
    if config.out or run is None:
        return config.out or Path("eval")
    return run / ("eval" if len(config.model) == 1 else "comparison")


def models_as_list(argv: list[str]) -> list[str]:
    """Arguments with what follows each --model joined to one list."""
    models, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--model":
            models.append(next(words, ""))
        elif word.startswith("--model="):
            models.append(word.removeprefix("--model="))
        else:
            rest.append(word)
    return rest + (["--model", json.dumps(models)] if models else [])


def main(argv: list[str] | None = None) -> None:
    """`python -m training.evaluate`."""
    keep_memory()
    arguments = models_as_list(sys.argv[1:] if argv is None else argv)
    config = parse(EvaluateConfig, arguments, description="Measure a model, or several side by side.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    subjects = [Subject(name, device=device, precision=config.precision) for name in config.model]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise InputError(f"Two of the models are named {max(names, key=names.count)}: rename a folder or a file.")
    runs = [subject.run for subject in subjects if subject.run]
    out = output(config, subjects[0].run)
    tasks = prepare(chosen(config), config, runs)
    folders = {name: out if len(subjects) == 1 else out / name for name in names}
    facts = []
    for subject in subjects:
        for task in tasks:
            made = evaluate(task, subject, folders[subject.name])
            print(page.line(folders[subject.name] / f"{task.name}.json") + ("" if made else " (there already)"))
        print(page.write_page(folders[subject.name]))
        facts.append(read_json(folders[subject.name] / f"{tasks[0].name}.json")["model"])
        subject.release()
    if len(subjects) > 1:
        data = {task.name: task.data for task in tasks}
        data["fingerprint"] = fingerprint([task.data["fingerprint"] for task in tasks])
        write_result(out, page.COMPARISON, {}, data=data, models=facts, tasks=compare.compare(tasks, folders))
        print(page.write_comparison(out))


if __name__ == "__main__":
    program(main)
