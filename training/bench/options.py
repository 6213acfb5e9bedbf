"""The options of pretraining beside the released recipe: held-out bits per byte at equal steps and at equal time.

    python -m training.bench.options --parts '[speed]' --json options.json      a minute; let nothing else run
    python -m training.bench.options --parts '[quality]' --json options.json    a run for each

All runs have the seed, the text, the order of text and, but for the option, the settings of one config, shortened. An
option that is slower gets, at equal time, so many steps fewer, with its schedule made for them.
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

from ..compute import NextTokenLoss, compute_dtype, keep_memory
from ..config import parse, program
from ..environment import hardware
from ..files import read_json, write_json
from ..guard import Guard
from ..loader import Shards, TokenStream, batch_windows
from ..metrics import parameters, read_metrics
from ..optimizer import build
from ..pretrain import pretrain, train_step
from ..recipe import PretrainConfig
from ..record import plain

OPTIONS = {
    "baseline": {},
    "wsd, 1-sqrt": {"optimizer": {"schedule": "wsd", "decay": "1-sqrt"}},
    "wsd, linear": {"optimizer": {"schedule": "wsd", "decay": "linear"}},
    "muon": {"optimizer": {"name": "muon"}},
    "document mask": {"document_mask": True},
    "z-loss 1e-4": {"z_loss": 1e-4},
}
ALIKE = 0.03  # what two speeds may differ by and count as one: their spread from round to round


@dataclass
class OptionsBench:
    """What is measured, and for how long.

    Args:
        data: folder of the demo's data, with corpus/, tokenizer/ and shards/.
        parts: speed, the steps alone, interleaved; quality, whole runs.
        options: who takes part; the baseline always does.
        steps: of a run.
        rounds: turns of each in which its speed is taken.
        timed: steps in a turn.
        json: file for everything measured; what it holds already is not measured again.
    """

    data: Path = Path("data/demo")
    parts: list[Literal["speed", "quality"]] = field(default_factory=lambda: ["speed", "quality"])
    options: list[str] = field(default_factory=lambda: list(OPTIONS))
    steps: int = 350
    rounds: int = 5
    timed: int = 6
    json: Path | None = None


def with_option(config: PretrainConfig, name: str) -> PretrainConfig:
    """The config with one option of OPTIONS switched on."""
    change = dict(OPTIONS[name])
    if "optimizer" in change:
        change["optimizer"] = replace(config.optimizer, **change["optimizer"])
    return replace(config, **change)


def base(bench: OptionsBench) -> PretrainConfig:
    """The demo's run, so long as asked for, on finished shards."""
    config = parse(PretrainConfig, ["--config", "demo"], description="")
    stage = replace(config.stages[0], steps=bench.steps, shards=bench.data / "shards")
    data = replace(config.data, folder=bench.data, tokenizer=bench.data / "tokenizer", verify=False)
    every = replace(config.every, log=10, validate=10**9, checkpoint=10**9, background=False)
    return replace(config, stages=[stage], data=data, every=every, name="options")


class Stepper:
    """The training step of one config, on the batches of its run."""

    def __init__(self, config: PretrainConfig, stream: TokenStream, accelerator: Accelerator):
        set_seed(config.seed)
        model = PleiasForCausalLM(config.model_config())
        dtype = compute_dtype(config.precision, accelerator.device)
        options = {"z_loss": config.z_loss, "document_mask": config.document_mask}
        self.config, self.stream, self.accelerator, self.step = config, stream, accelerator, 0
        self.optimizer = accelerator.prepare(build(config.optimizer, model))
        self.loss = accelerator.prepare(NextTokenLoss(model, dtype, **options))
        self.guard = Guard(config.guard, accelerator.device)

    def seconds(self, steps: int) -> float:
        """What so many more steps take."""
        sequences, seed = self.config.stages[0].sequences, self.config.order_seed(0)
        batches = [
            [self.stream.windows(batch_windows(self.stream, self.step + i, sequences=sequences, seed=seed))]
            for i in range(steps)
        ]
        self.step += steps
        start = time.perf_counter()
        for batch in batches:
            train_step(self.accelerator, self.loss, self.optimizer, batch, clip=1.0, guard=self.guard)
        self.guard.settle()  # waits for a GPU
        return time.perf_counter() - start


def speeds(bench: OptionsBench) -> dict[str, list[float]]:
    """Tokens per second of each option, round by round."""
    config = base(bench)
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    sizes = {"sequence_length": config.sequence_length, "vocab_size": config.model_config().vocab_size}
    stream = Shards(bench.data / "shards").train(**sizes)
    steppers = {name: Stepper(with_option(config, name), stream, accelerator) for name in bench.options}
    tokens = bench.timed * config.stages[0].sequences * config.sequence_length
    for stepper in steppers.values():
        stepper.seconds(2)
    rounds = [
        {name: tokens / stepper.seconds(bench.timed) for name, stepper in steppers.items()}
        for _ in range(bench.rounds)
    ]
    return {name: [one[name] for one in rounds] for name in steppers}


def quality(config: PretrainConfig) -> float:
    """Bits per byte of held-out text after a run, mean of the languages."""
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "log", "w") as log, redirect_stdout(log), redirect_stderr(log):
            pretrain(replace(config, out=Path(folder) / "run"))
        held = [
            line["validation"] for line in read_metrics(Path(folder) / "run/metrics.jsonl") if "validation" in line
        ]
    return mean(one["bits_per_byte"] for one in held[-1].values())


def measure(bench: OptionsBench) -> dict:
    """Everything that was asked for, beside what the JSON file holds already."""
    bench.options = ["baseline", *(name for name in bench.options if name != "baseline")]
    report = read_json(bench.json) if bench.json and bench.json.is_file() else {"speed": {}, "quality": {}}
    report |= {"hardware": hardware(), "config": plain(asdict(bench))}

    def keep() -> None:
        if bench.json:
            write_json(bench.json, report)

    if "speed" in bench.parts and not report["speed"]:
        report["speed"] = speeds(bench)
        keep()
    if "quality" in bench.parts:
        for name in bench.options:
            found, ratio = report["quality"].setdefault(name, {}), relative(report, name) or 1.0
            steps = {"equal steps": bench.steps, "equal time": bench.steps}
            if abs(ratio - 1) > ALIKE:
                steps["equal time"] = max(1, round(bench.steps * ratio))
            for kind in [kind for kind in steps if kind not in found]:
                if steps[kind] == bench.steps and found:
                    found[kind] = found["equal steps"]
                else:
                    config = with_option(base(replace(bench, steps=steps[kind])), name)
                    found[kind] = {"steps": steps[kind], "bits_per_byte": quality(config)}
                keep()
    return report


def relative(report: dict, name: str) -> float | None:
    """Tokens per second, the baseline's being 1: median over the rounds, in which a busy machine slows all alike."""
    if name not in report["speed"]:
        return None
    return median(a / b for a, b in zip(report["speed"][name], report["speed"]["baseline"], strict=True))


def show(bench: OptionsBench, report: dict, console: Console) -> None:
    """Print the report as a table."""
    config = base(bench)
    console.print(
        f"{parameters(config.model_config()):,} parameters, {config.stages[0].sequences} x {config.sequence_length} "
        f"tokens a step, {bench.steps} steps; {report['hardware']['cpu']}, {report['hardware']['threads']} threads"
    )
    table = Table()
    table.add_column("")
    for title in ("tokens/s", "relative", "bits per byte, equal steps", "equal time (steps)"):
        table.add_column(title, justify="right")
    for name in bench.options:
        ratio, found = relative(report, name), report["quality"].get(name)
        speed = [f"{median(report['speed'][name]):,.0f}", f"{ratio:.2f}"] if ratio else ["-", "-"]
        kinds = ("equal steps", "equal time")
        bits = (
            [f"{found[kind]['bits_per_byte']:.4f} ({found[kind]['steps']})" for kind in kinds] if found else ["-", "-"]
        )
        table.add_row(name, *speed, *bits)
    console.print(table)


def main() -> None:
    """`python -m training.bench.options`."""
    keep_memory()
    bench = parse(OptionsBench, description="Measure the options of pretraining beside the released recipe.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    show(bench, measure(bench), Console(width=118))


if __name__ == "__main__":
    program(main)
