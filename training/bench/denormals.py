"""Time a training step on a CPU with and without denormals (numbers below 1.2e-38) flushed to zero.

    python -m training.bench.denormals
    python -m training.bench.denormals --model runs/NAME/model --text FILE

The model must be trained and the text real: with random numbers attention is as fast without flushing. Each run has
its own process, because threads inherit the setting from the thread that starts them, and runs alternate.
"""

if not __package__:  # run by path; same as `python -m training.bench.denormals`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from modeling_pleias import PleiasForCausalLM

from ..common.config import InputError, parse, run_main
from ..common.environment import hardware
from ..step.compute import NextTokenLoss, compute_dtype, configure_allocator, flush_denormals
from .train_step import alone

WAYS = ("kept", "flushed to 0")


@dataclass
class DenormalsBench:
    """A benchmark of denormals.

    Args:
        model: Folder of a trained model.
        text: Text file of the batch, repeated if it is too short.
        batch: Windows per step.
        sequence_length: Tokens predicted per window.
        precision: Dtype of matmuls, as in training.
        rounds: Repetitions.
        steps: Timed steps per repetition, after an untimed one.
    """

    model: Path = Path("model_card/femto")
    text: Path = Path("README.md")
    batch: int = 4
    sequence_length: int = 1024
    precision: str = "auto"
    rounds: int = 3
    steps: int = 4


def turn(bench: DenormalsBench, way: str) -> dict:
    """Return the time of each forward and backward pass, the last loss and its gradient norm."""
    configure_allocator()
    if way == "flushed to 0":
        flush_denormals()
    ids = AutoTokenizer.from_pretrained(bench.model)(bench.text.read_text(encoding="utf-8"), verbose=False).input_ids
    window = bench.sequence_length + 1
    windows = torch.tensor((ids * (bench.batch * window // len(ids) + 1))[: bench.batch * window]).view(-1, window)
    model = PleiasForCausalLM.from_pretrained(bench.model, dtype=torch.float32)
    loss_model = NextTokenLoss(model, compute_dtype(bench.precision, torch.device("cpu")))
    seconds = {"forward": [], "backward": []}
    for _ in range(bench.steps + 1):
        model.zero_grad()
        start = time.perf_counter()
        loss = loss_model(windows)
        middle = time.perf_counter()
        loss.backward()
        seconds["forward"].append(middle - start)
        seconds["backward"].append(time.perf_counter() - middle)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]).item()
    return {name: times[1:] for name, times in seconds.items()} | {"loss": loss.item(), "norm": norm}


def measure_denormals(bench: DenormalsBench) -> dict[str, list[dict]]:
    """Return the runs with and without flushing.

    Raises:
        InputError: If the model or the text does not exist.
    """
    for path in (bench.model / "config.json", bench.text):
        if not path.is_file():
            raise InputError(f"{path} does not exist. Run this in a checkout, or pass --model and --text.")
    runs: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(bench.rounds):
        for way in WAYS:
            runs[way].append(alone(turn, bench, way))
    return runs


def main() -> None:
    """`python -m training.bench.denormals`."""
    bench = parse(DenormalsBench, description="Measure what denormals cost a training step on a CPU.")
    runs = measure_denormals(bench)
    columns = ("denormals", "forward, s", "backward, s", "relative", "loss", "gradient norm")
    cpu, dtype = hardware()["cpu"], compute_dtype(bench.precision, torch.device("cpu"))
    table = Table(*columns, title=f"{bench.batch} x {bench.sequence_length} tokens, {dtype} matmuls; {cpu}")
    baseline = None
    for way, turns in runs.items():
        forward, backward = (median(s for run in turns for s in run[name]) for name in ("forward", "backward"))
        baseline = baseline or forward + backward
        times = [f"{forward:.3f}", f"{backward:.3f}", f"{(forward + backward) / baseline:.2f}"]
        table.add_row(way, *times, f"{turns[-1]['loss']:.6f}", f"{turns[-1]['norm']:.6f}")
    Console(width=118).print(table)


if __name__ == "__main__":
    run_main(main)
