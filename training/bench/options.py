"""Compare options of pretraining with the released recipe: held-out bits per byte at equal steps and at equal time.

    python -m training.bench.options --parts '[speed]' --json options.json      a minute; let nothing else run
    python -m training.bench.options --parts '[quality]' --json options.json    one run per option

All runs share seed, data, data order and a shortened config, except for the option under test. At equal time, a slower
option gets fewer steps in proportion, and its schedule fits them.
"""

if not __package__:  # run by path; same as `python -m training.bench.options`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import os
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table

from modeling_pleias import PleiasForCausalLM

from ..common.config import parse, run_main
from ..common.environment import hardware
from ..common.files import read_json, write_json
from ..data.loader import ShardDataset, TokenStream, batch_windows
from ..pretrain import pretrain, train_step
from ..pretraining.recipe import PretrainConfig
from ..run.metrics import count_parameters, read_metrics
from ..run.record import plain
from ..step.compute import NextTokenLoss, compute_dtype, configure_allocator
from ..step.optimizer import build_optimizer
from ..step.step_guard import StepGuard

OPTIONS = {
    "baseline": {},
    "wsd": {"schedule": "wsd"},
    "muon": {"name": "muon"},
}  # fields of OptimizerConfig
EQUAL = 0.03  # relative difference up to which two speeds count as equal: their spread from round to round


@dataclass
class OptionsBench:
    """A benchmark of options.

    Args:
        data: Folder of the demo's data, with corpus/, tokenizer/ and shards/.
        parts: Measurements: speed times single steps, interleaved; quality trains complete runs.
        options: Options to compare with the baseline.
        steps: Steps per run.
        rounds: Repetitions of the speed measurement.
        timed: Steps per repetition.
        json: File for all measurements. Those that it contains are not repeated.
    """

    data: Path = Path("data/demo")
    parts: list[Literal["speed", "quality"]] = field(default_factory=lambda: ["speed", "quality"])
    options: list[str] = field(default_factory=lambda: list(OPTIONS))
    steps: int = 350
    rounds: int = 5
    timed: int = 6
    json: Path | None = None


def with_option(config: PretrainConfig, name: str) -> PretrainConfig:
    """Return the config with one option of OPTIONS."""
    return replace(config, optimizer=replace(config.optimizer, **OPTIONS[name]))


def base(bench: OptionsBench) -> PretrainConfig:
    """Return the config of the demo with the requested number of steps, on existing shards."""
    config = parse(PretrainConfig, ["--config", "demo"], description="")
    stage = replace(config.stages[0], steps=bench.steps, shards=bench.data / "shards")
    data = replace(config.data, folder=bench.data, tokenizer=bench.data / "tokenizer", verify=False)
    every = replace(config.every, log=10, validate=10**9, checkpoint=10**9, background=False)
    return replace(config, stages=[stage], data=data, every=every, name="options")


class OptionRunner:
    """Training steps of one config, on the batches of its run."""

    def __init__(self, config: PretrainConfig, stream: TokenStream, accelerator: Accelerator):
        set_seed(config.seed)
        model = PleiasForCausalLM(config.model_config())
        dtype = compute_dtype(config.precision, accelerator.device)
        self.config, self.stream, self.accelerator, self.step = config, stream, accelerator, 0
        self.optimizer = accelerator.prepare(build_optimizer(config.optimizer, model))
        self.loss = accelerator.prepare(NextTokenLoss(model, dtype))
        self.guard = StepGuard(config.max_nonfinite_steps, accelerator.device)

    def seconds(self, steps: int) -> float:
        """Run the next steps; return their time."""
        sequences, seed = self.config.stages[0].sequences, self.config.data_seed(0)
        batches = [
            [self.stream.windows(batch_windows(self.stream, self.step + i, sequences=sequences, seed=seed))]
            for i in range(steps)
        ]
        self.step += steps
        start = time.perf_counter()
        for batch in batches:
            train_step(self.accelerator, self.loss, self.optimizer, batch, clip=1.0, guard=self.guard)
        self.guard.collect_events()  # synchronises a GPU
        return time.perf_counter() - start


def speeds(bench: OptionsBench) -> dict[str, list[float]]:
    """Return tokens/s of each option in each round."""
    config = base(bench)
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    sizes = {"sequence_length": config.sequence_length, "vocab_size": config.model_config().vocab_size}
    stream = ShardDataset(bench.data / "shards").train(**sizes)
    steppers = {name: OptionRunner(with_option(config, name), stream, accelerator) for name in bench.options}
    tokens = bench.timed * config.stages[0].sequences * config.sequence_length
    for stepper in steppers.values():
        stepper.seconds(2)
    rounds = [
        {name: tokens / stepper.seconds(bench.timed) for name, stepper in steppers.items()}
        for _ in range(bench.rounds)
    ]
    return {name: [speed[name] for speed in rounds] for name in steppers}


def quality(config: PretrainConfig) -> float:
    """Run a config; return bits per byte of held-out text after it, the mean of the languages."""
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "log", "w") as log, redirect_stdout(log), redirect_stderr(log):
            pretrain(replace(config, out=Path(folder) / "run"))
        *_, last = (line for line in read_metrics(Path(folder) / "run/metrics.jsonl") if "validation" in line)
    return mean(scores["bits_per_byte"] for scores in last["validation"].values())


def measure_options(bench: OptionsBench) -> dict:
    """Measure everything requested that the JSON file does not contain yet."""
    bench.options = ["baseline", *(name for name in bench.options if name != "baseline")]
    report = read_json(bench.json) if bench.json and bench.json.is_file() else {"speed": {}, "quality": {}}
    report |= {"hardware": hardware(), "config": plain(asdict(bench))}

    def store() -> None:
        if bench.json:
            write_json(bench.json, report)

    if "speed" in bench.parts and not report["speed"]:
        report["speed"] = speeds(bench)
        store()
    if "quality" in bench.parts:
        for name in bench.options:
            results, ratio = report["quality"].setdefault(name, {}), relative(report, name) or 1.0
            steps = {"equal steps": bench.steps, "equal time": bench.steps}
            if abs(ratio - 1) > EQUAL:
                steps["equal time"] = max(1, round(bench.steps * ratio))
            for kind in [kind for kind in steps if kind not in results]:
                if steps[kind] == bench.steps and results:
                    results[kind] = results["equal steps"]
                else:
                    config = with_option(base(replace(bench, steps=steps[kind])), name)
                    results[kind] = {"steps": steps[kind], "bits_per_byte": quality(config)}
                store()
    return report


def relative(report: dict, name: str) -> float | None:
    """Return the speed relative to the baseline: the median over rounds, in which a busy machine slows all equally."""
    if name not in report["speed"]:
        return None
    return median(a / b for a, b in zip(report["speed"][name], report["speed"]["baseline"], strict=True))


def print_report(bench: OptionsBench, report: dict, console: Console) -> None:
    """Print the report as a table."""
    config = base(bench)
    console.print(
        f"{count_parameters(config.model_config()):,} parameters, "
        f"{config.stages[0].sequences} x {config.sequence_length} tokens per step, {bench.steps} steps; "
        f"{report['hardware']['cpu']}, {report['hardware']['threads']} threads"
    )
    table = Table()
    table.add_column("")
    for title in ("tokens/s", "relative", "bits per byte, equal steps", "equal time (steps)"):
        table.add_column(title, justify="right")
    for name in bench.options:
        ratio, results = relative(report, name), report["quality"].get(name)
        speed = [f"{median(report['speed'][name]):,.0f}", f"{ratio:.2f}"] if ratio else ["-", "-"]
        runs = [results[kind] for kind in ("equal steps", "equal time")] if results else []
        bits = [f"{run['bits_per_byte']:.4f} ({run['steps']})" for run in runs] or ["-", "-"]
        table.add_row(name, *speed, *bits)
    console.print(table)


def main() -> None:
    """`python -m training.bench.options`."""
    configure_allocator()
    bench = parse(OptionsBench, description="Compare options of pretraining with the released recipe.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print_report(bench, measure_options(bench), Console(width=118))


if __name__ == "__main__":
    run_main(main)
