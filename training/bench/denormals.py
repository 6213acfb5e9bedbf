"""A training step on a CPU with numbers below 1.2e-38 as they are, and with those counted as 0 (flush_denormals).

    python -m training.bench.denormals
    python -m training.bench.denormals --model runs/NAME/model --text FILE

The model is a trained one and the text real: attention over random numbers was as fast unflushed. Each turn is a
process of its own, since threads take the setting from the one that starts them, and turns alternate.
"""

if not __package__:  # run by path; same as `python -m training.bench.denormals`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from modeling_pleias import PleiasForCausalLM

from ..compute import NextTokenLoss, compute_dtype, flush_denormals, keep_memory
from ..config import InputError, parse, program
from ..environment import hardware

WAYS = ("as they are", "as 0")


@dataclass
class DenormalsBench:
    """What is measured, and for how long.

    Args:
        model: folder of a trained model.
        text: file that the batch is made of, read again from its beginning as often as it takes.
        batch: windows in a step.
        sequence_length: tokens predicted in each.
        precision: of matrix products, as in training.
        rounds: turns of each way.
        steps: timed in a turn, after one that is not.
    """

    model: Path = Path("model_card/femto")
    text: Path = Path("README.md")
    batch: int = 4
    sequence_length: int = 1024
    precision: str = "auto"
    rounds: int = 3
    steps: int = 4


def turn(bench: DenormalsBench, way: str) -> dict:
    """Seconds of each forward and backward pass, the last loss and the norm of its gradient."""
    keep_memory()
    if way == "as 0":
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


def measure(bench: DenormalsBench) -> dict[str, list[dict]]:
    """The turns of each way.

    Raises:
        InputError: when the model or the text is not there.
    """
    for path in (bench.model / "config.json", bench.text):
        if not path.is_file():
            raise InputError(f"{path} is not there: start this in a checkout, or give --model and --text.")
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(bench.rounds):
        for way in WAYS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[way].append(pool.submit(turn, bench, way).result())
    return found


def main() -> None:
    """`python -m training.bench.denormals`."""
    bench = parse(DenormalsBench, description="What numbers too small for full precision cost a step on a CPU.")
    found = measure(bench)
    columns = ("numbers below 1.2e-38", "forward, s", "backward, s", "relative", "loss", "gradient norm")
    cpu, dtype = hardware()["cpu"], compute_dtype(bench.precision, torch.device("cpu"))
    table = Table(*columns, title=f"{bench.batch} x {bench.sequence_length} tokens, {dtype} products; {cpu}")
    first = None
    for way, turns in found.items():
        forward, backward = (median(s for one in turns for s in one[name]) for name in ("forward", "backward"))
        first = first or forward + backward
        relative = (forward + backward) / first
        figures = [f"{forward:.3f}", f"{backward:.3f}", f"{relative:.2f}"]
        table.add_row(way, *figures, f"{turns[-1]['loss']:.6f}", f"{turns[-1]['norm']:.6f}")
    Console(width=118).print(table)


if __name__ == "__main__":
    program(main)
