"""Compare bfloat16 with float32 on this CPU: a matmul, Muon's orthogonalisation, and generation.

    python -m training.bench.dtypes
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m training.bench.dtypes    as on a CPU with AVX2 alone

The programs compute in the dtype that `modeling_pleias.cpu_compute_dtype` returns: this shows whether it is faster.
"""

if not __package__:  # run by path; same as `python -m training.bench.dtypes`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from modeling_pleias import PleiasForCausalLM, cpu_compute_dtype

from ..common.config import InputError, parse, run_main
from ..common.environment import hardware
from ..step.optimizer import orthogonalize

DTYPES = (torch.bfloat16, torch.float32)


@dataclass
class DtypesBench:
    """Sizes of the workloads.

    Args:
        model: Folder of a model that generates.
        prompt_tokens: Tokens of the prompt (prefill).
        new_tokens: Tokens generated after it (decode).
        rounds: Repetitions of each workload per dtype, alternating; the first is not counted.
    """

    model: Path = Path("model_card/femto")
    prompt_tokens: int = 256
    new_tokens: int = 24
    rounds: int = 4


def workloads(bench: DtypesBench, dtype: torch.dtype) -> dict[str, tuple[int, str, Callable[[], object]]]:
    """Return the workloads in one dtype: by name, the amount of work per call, its unit, and the call."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(512, 512, generator=generator).to(dtype)
    matrix = torch.randn(384, 1024, generator=generator).to(dtype)
    newton_schulz = {"coefficients": (3.4445, -4.775, 2.0315), "steps": 5, "eps": 1e-7}
    model = PleiasForCausalLM.from_pretrained(bench.model, dtype=dtype).eval()
    ids = torch.randint(4, model.config.vocab_size, (1, bench.prompt_tokens), generator=generator)

    def generate(count: int) -> torch.Tensor:
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, eos_token_id=None)

    return {
        "matrix product, 512 cubed": (2 * 512**3, "FLOP/s", lambda: square @ square),
        "Muon's orthogonalisation, 384 x 1,024": (1, "per second", lambda: orthogonalize(matrix, **newton_schulz)),
        "prefill": (bench.prompt_tokens, "tokens/s", lambda: generate(1)),
        "decode, with its prefill": (bench.new_tokens, "tokens/s", lambda: generate(bench.new_tokens)),
    }


@torch.no_grad()
def measure_dtypes(bench: DtypesBench) -> dict[str, dict]:
    """Time every workload in both dtypes, alternating; return rates by workload and dtype, with the unit.

    Raises:
        InputError: If the folder contains no model.
    """
    if not (bench.model / "config.json").is_file():
        raise InputError(f"{bench.model} contains no model: run this in a checkout, or pass --model FOLDER.")
    jobs = {dtype: workloads(bench, dtype) for dtype in DTYPES}
    report = {}
    for name, (_, unit, _) in jobs[torch.float32].items():
        rates: dict[torch.dtype, list[float]] = {dtype: [] for dtype in DTYPES}
        for _ in range(bench.rounds):
            for dtype in DTYPES:
                amount, _, run = jobs[dtype][name]
                start = time.perf_counter()
                run()
                rates[dtype].append(amount / (time.perf_counter() - start))
        report[name] = {"unit": unit} | {str(dtype): median(values[1:]) for dtype, values in rates.items()}
    return report


def main() -> None:
    """Run `python -m training.bench.dtypes`."""
    bench = parse(DtypesBench, description="Compare bfloat16 with float32 on this CPU.")
    report = measure_dtypes(bench)
    kernels, machine = torch.backends.cpu.get_cpu_capability(), hardware()
    title = (
        f"{machine['cpu']}, kernels for {kernels}, {machine['threads']} threads; programs use {cpu_compute_dtype()}"
    )
    table = Table("", "unit", "bfloat16", "float32", "float32 / bfloat16", title=title)
    for name, row in report.items():
        bf16, fp32 = (row[str(dtype)] for dtype in DTYPES)
        table.add_row(name, row["unit"], f"{bf16:,.4g}", f"{fp32:,.4g}", f"{fp32 / bf16:.2f}")
    Console(width=118).print(table)


if __name__ == "__main__":
    run_main(main)
