"""Run the pipeline end to end: corpus, tokenizer, shards, pretraining, samples; then continue the shipped model."""

if not __package__:  # run by path; same as `python -m training.demo`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import shards
from .common.config import CONFIGS, InputError, parse, read_yaml, run_main
from .common.escaping import terminal_line
from .common.files import atomic, read_json
from .common.language import LANGUAGES
from .common.signals import end_with_parent
from .curation import statistics_report
from .pretraining.prepare import prepare
from .pretraining.recipe import PretrainConfig
from .run.metrics import read_metrics
from .run.record import plain

# The small model of a checkout; the installed package does not contain its weights.
SHIPPED = CONFIGS.parent.parent / "model_card" / "femto"
PRETRAINING_SECONDS, CONTINUATION_SECONDS = 180, 60
MINIMUM_STEPS = 20  # a very slow machine exceeds the time rather than train less
TIMING_STEPS, UNTIMED_STEPS = 8, 2  # steps of the timing run, and its first steps, which set up memory and threads


def launch(arguments: list[str], config: PretrainConfig, *, quiet: bool = False) -> None:
    """Pretrain under `accelerate launch`, in one process with all the CPU's cores (or the GPU).

    Args:
        arguments: Arguments of training.pretrain.
        config: The config that they parse to.
        quiet: Show the output only if the run fails.

    Raises:
        InputError: If the run fails; its own messages are printed.
    """
    package = __package__ or "training"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", f"{package}.pretrain", *arguments]
    if not quiet:
        print("$ accelerate launch", *command[3:], flush=True)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if quiet else {}
    # In a session of its own, Ctrl-C does not reach Accelerate, which would print a traceback.
    output |= {"start_new_session": True, "preexec_fn": end_with_parent}
    run = subprocess.run(command, check=False, encoding="utf-8", errors="replace", **output)
    if run.returncode != 0:
        print(run.stdout or "", end="", file=sys.stderr)
        raise InputError(f"Pretraining stopped early. Run the demo again to resume from {config.folder}.")


def steps_that_fit(step_seconds: list[float], other_seconds: float, *, budget: float, maximum: int) -> int:
    """Return the number of steps that a run completes in `budget` seconds: a multiple of 10 within the bounds.

    Args:
        step_seconds: Measured times of single steps; their median counts, as other programs may slow some of them.
        other_seconds: Time that a run takes besides its steps (start, validation, samples, saving).
        budget: Time for the complete run.
        maximum: Upper bound; the lower bound is MINIMUM_STEPS, or `maximum` if that is smaller.
    """
    steps = int((budget - other_seconds) / median(step_seconds)) // 10 * 10
    return min(max(steps, MINIMUM_STEPS), maximum)


def with_steps(config: PretrainConfig, steps: int) -> list[str]:
    """Return the arguments that set the steps of a one-stage run and scale its warm-up and intervals in proportion."""
    (stage,), ratio = config.stages, steps / config.steps
    values = {
        "stages": json.dumps([plain(asdict(replace(stage, steps=steps)))]),
        "optimizer.warmup_steps": math.ceil(config.optimizer.warmup_steps * ratio),
        "every.validate": math.ceil(config.every.validate * ratio),
        "every.checkpoint": math.ceil(config.every.checkpoint * ratio),
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def time_run(config: PretrainConfig, arguments: list[str]) -> tuple[list[float], float]:
    """Measure a short run of the same config, the way the demo launches it.

    Returns:
        Seconds of each step, without the first ones, and seconds of everything else.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = [*with_steps(config, TIMING_STEPS), "--every.log", "1", "--every.validate", "1000", "--trackers", "[]"]
        start = time.perf_counter()
        launch([*arguments, *short, "--out", folder], config, quiet=True)
        total = time.perf_counter() - start
        speeds = [row["tokens_per_second"] for row in read_metrics(Path(folder) / "metrics.jsonl") if "loss" in row]
    step_seconds = [config.stages[0].sequences * config.sequence_length / speed for speed in speeds]
    return step_seconds[UNTIMED_STEPS:], total - sum(step_seconds)


def choose_steps(config: PretrainConfig, arguments: list[str], budget: float) -> int:
    """Return the steps of the run in the config's folder, or if there is none the steps that fit the budget."""
    earlier = config.folder / "config.yaml"
    if earlier.is_file():
        return sum(stage["steps"] for stage in read_yaml(earlier)["stages"])
    step_seconds, other_seconds = time_run(config, arguments)
    steps = steps_that_fit(step_seconds, other_seconds, budget=budget, maximum=config.steps)
    print(
        f"{config.name}: {median(step_seconds):.2f} s per step plus {other_seconds:.0f} s of other work: "
        f"{steps} steps for a run of {budget} s (at most {config.steps}).",
        flush=True,
    )
    return steps


def device_facts(run: Path) -> str:
    """Return the device of a run and its dtype, on a CPU with the instruction set that torch's kernels use."""
    session = read_json(run / "run.json")["sessions"][-1]
    hardware, dtype = session["hardware"], session["dtype"].removeprefix("torch.")
    if session["device"] != "cpu" and hardware["gpus"]:
        return f"{hardware['gpus'][0]}, {dtype}"
    return f"{hardware['cpu']}, {hardware['cpus']} CPUs, {torch.backends.cpu.get_cpu_capability()} kernels, {dtype}"


def licences(manifest: dict) -> Table:
    """Return a table of the tokens of the shards by language and licence."""
    by = Counter()
    for row in manifest["account"]:
        by[row["language"], row["license"]] += row["tokens"]
    table = Table(title="Tokens by language and licence", title_justify="left")
    names = sorted({licence for _, licence in by})
    for column in ("language", *map(terminal_line, names)):
        table.add_column(Text(column), justify="left" if column == "language" else "right")
    for language in LANGUAGES.values():
        table.add_row(language, *(f"{by[language, name]:,}" if by[language, name] else "" for name in names))
    return table


def continuation(config: PretrainConfig, model: Path) -> tuple[PretrainConfig, list[str]]:
    """Build the shards for continuing the shipped model: the demo's text, tokenized with the model's tokenizer.

    Args:
        config: Config of the demo.
        model: Folder of the shipped model.

    Returns:
        The config of the continuation and its arguments.
    """
    text = config.data.folder / ("curated" if config.data.curation else "corpus")
    share = {"validation_share": config.data.validation_share, "validation_by": config.data.validation_by}
    arguments = ["--config", "continue", "--init_from", str(model), "--data.tokenizer", str(model)]
    more = parse(PretrainConfig, arguments, description="Continue the shipped model.")
    shards.build_shards(shards.ShardsConfig(corpus=text, tokenizer=model, out=more.stages[0].shards, **share))
    return more, arguments


def bits_per_byte_table(runs: dict[str, PretrainConfig]) -> Table:
    """Return a table of bits per byte on held-out text before and after each run, by language."""
    table = Table(title="Held-out text: bits per byte before -> after", title_justify="left")
    table.add_column("language")
    lines = {}
    for title, config in runs.items():
        table.add_column(title, justify="right")
        measured = [row["validation"] for row in read_metrics(config.folder / "metrics.jsonl") if "validation" in row]
        for language, before in measured[0].items():
            after = measured[-1][language]
            text = f"{before['bits_per_byte']:.3f} -> {after['bits_per_byte']:.3f}"
            lines.setdefault(language, {})[title] = text
    for language, cells in lines.items():
        table.add_row(Text(terminal_line(language)), *(cells.get(title, "") for title in runs))
    return table


def main() -> None:
    """Run `python -m training.demo`, with the options of training.pretrain. Default config: demo.

    The number of steps is chosen to fit the time, unless the command line sets --config or --stages.
    """
    options = sys.argv[1:]
    names = {option.split("=")[0] for option in options}
    arguments = options if "--config" in names else ["--config", "demo", *options]
    config = parse(PretrainConfig, arguments, description="Corpus, tokenizer, shards and pretraining.")
    console, seconds = Console(record=True, width=118), Counter()

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[part] += time.perf_counter() - start

    with timed("data"):
        manifest = prepare(config.data, config.corpus, vocab_size=config.model_config().vocab_size).manifest
    if curation := manifest["corpus"]["curation"]:
        console.print(f"Curation: {statistics_report.summary(curation)}", highlight=False)
    console.print(licences(manifest))
    if not names & {"--config", "--stages"}:
        with timed("step timing"):
            steps = choose_steps(config, arguments, PRETRAINING_SECONDS)
        arguments = ["--config", "demo", *with_steps(config, steps), *options]
    with timed("pretraining"):
        launch(arguments, config)
    runs = {"from scratch": config}
    if (SHIPPED / "config.json").is_file():
        console.print("\nContinued pretraining of the shipped model, in part on text that it was trained on before.")
        with timed("data"):
            more, arguments = continuation(config, SHIPPED)
        with timed("step timing"):
            steps = choose_steps(more, arguments, CONTINUATION_SECONDS)
        with timed("continuation"):
            launch([*arguments, *with_steps(more, steps)], more)
        runs["the shipped model"] = more
        console.print(bits_per_byte_table(runs))
    times = ", ".join(f"{part} {number:.0f} s" for part, number in seconds.items())
    console.print(f"Time: {times}; total {seconds.total():.0f} s.", highlight=False)
    console.print(f"Computed on: {device_facts(config.folder)}.", highlight=False)
    console.print(f"Text, tokenizer and shards: {config.data.folder}/{{corpus,tokenizer,shards}}, with their sources.")
    # The run has printed its summary already.
    text, summary = console.export_text(), (config.folder / "summary.txt").read_text(encoding="utf-8")
    with atomic(config.folder / "demo.txt") as path:
        path.write_text(text.replace("Time: data", f"{summary}Time: data", 1), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
