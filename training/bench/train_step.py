"""Compare this training step with Trainer, SFTTrainer and a plain Accelerate loop: speed, utilisation, memory.

    python -m training.bench.train_step --backend cpu
    python -m training.bench.train_step --backend cuda --shape nano_1.2b --json step.json

All implementations train the same weights on the same batch of random tokens in the same precision, with fused AdamW
and clipping; their mean losses verify this. Every measurement runs in its own process, so that a memory peak belongs
to one implementation, and they alternate (A B C D A B C D ...), so that a machine that slows down slows all of them.
"""

if not __package__:  # run by path; same as `python -m training.bench.train_step`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback

from modeling_pleias import PleiasConfig, PleiasForCausalLM

from ..common.config import InputError, parse, run_main
from ..common.environment import environment, peak_memory
from ..common.files import write_json
from ..pretrain import train_step
from ..pretraining.recipe import PretrainConfig
from ..run.metrics import count_parameters, flops_per_token, peak_flops
from ..run.record import plain
from ..step.compute import NextTokenLoss, compile_layers, compute_dtype, configure_allocator
from ..step.optimizer import OptimizerConfig, adamw, build_optimizer
from ..step.step_guard import StepGuard

CONVENTIONS = ("none", "causal", "full")  # for counting attention's FLOPs; see flops_per_token
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {  # model, windows per batch, tokens predicted per window; the other sizes are packaged configs
    "26m": (dict(zip(NAMES, (256, 768, 12, 4, 2), strict=True)), 4, 1024),
    "125m": (dict(zip(NAMES, (768, 2048, 12, 12, 4), strict=True)), 4, 1024),
}


@dataclass
class TrainStepBench:
    """A benchmark of training steps.

    Args:
        backend: Device.
        shape: Model size: 26m has 12 layers of width 256 and a vocabulary of 65,536, 125m 12 layers of width 768; the
            others are packaged configs.
        model: Fields of PleiasConfig that differ from the size's.
        batch: Windows per step. Defaults to the size's.
        sequence_length: Tokens predicted per window. Defaults to the size's.
        implementations: Implementations to benchmark; "ours" is training.pretrain.
        rounds: Repetitions of each.
        steps: Timed steps per repetition.
        warmup: Untimed steps before them.
        precision: Dtype of matmuls, as in pretraining.
        compile: Implementations to compile: pretraining by layer, Trainer and SFTTrainer with torch_compile, the plain
            loop by compiling the model.
        memory: Implementations whose allocator keeps freed memory: pretraining, as it always does, or all.
        profile: Also print the time of a pretraining step by operator.
        learning_rate: Learning rate of all; the loss must change, or its agreement would prove nothing.
        seed: Seed of weights and tokens.
        json: File for all measurements.
    """

    backend: Literal["cpu", "cuda"] = "cpu"
    shape: Literal["26m", "125m", "nano_1.2b", "demo"] = "26m"
    model: dict[str, int | float | bool | str] = field(default_factory=dict)
    batch: int | None = None
    sequence_length: int | None = None
    implementations: list[Literal["ours", "trainer", "sft_trainer", "accelerate"]] = field(
        default_factory=lambda: ["ours", "trainer", "sft_trainer", "accelerate"]
    )
    rounds: int = 3
    steps: int = 3
    warmup: int = 2
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["none", "ours", "all"] = "ours"
    memory: Literal["ours", "all"] = "ours"
    profile: bool = False
    learning_rate: float = 1e-3
    seed: int = 0
    json: Path | None = None


class Workload:
    """The work of every implementation: model, batch, device, precision.

    Raises:
        InputError: If there is nothing to time, or the device does not exist.
    """

    def __init__(self, config: TrainStepBench):
        if min(config.rounds, config.steps, config.warmup) < 1 or not config.implementations:
            raise InputError("rounds, steps, warmup and the number of implementations must be at least 1.")
        if config.backend == "cuda" and not torch.cuda.is_available():
            raise InputError("--backend cuda: torch finds no CUDA device. Use --backend cpu.")
        if config.shape in SHAPES:
            shape, batch, length = SHAPES[config.shape]
        else:
            packaged = parse(PretrainConfig, ["--config", config.shape], description="")
            shape, batch, length = packaged.model, packaged.micro_batch, packaged.sequence_length
        self.config, self.steps = config, config.warmup + config.steps
        self.batch, self.length = config.batch or batch, config.sequence_length or length
        self.model_config = PleiasConfig(**{"max_position_embeddings": self.length, **shape, **config.model})
        self.device = torch.device(config.backend)
        self.dtype = compute_dtype(config.precision, self.device)

    def windows(self) -> torch.Tensor:
        """Return (B, T + 1) random ids, the batch of every step."""
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randint(self.model_config.vocab_size, (self.batch, self.length + 1), generator=generator)

    def pleias(self) -> PleiasForCausalLM:
        """Return this project's model."""
        torch.manual_seed(self.config.seed)
        return PleiasForCausalLM(self.model_config)

    def llama(self) -> LlamaForCausalLM:
        """Return transformers' Llama with the same weights."""
        known = LlamaConfig.__dataclass_fields__
        fields = {key: value for key, value in self.model_config.to_dict().items() if key in known}
        model = LlamaForCausalLM(LlamaConfig(**fields | {"use_cache": False}))
        model.load_state_dict(self.pleias().state_dict())
        return model.train()


class StepTimer:
    """Timer of steps. On CUDA it records events in the stream, so that timing does not synchronise."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def tick(self) -> None:
        """Record the end of a step."""
        if self.cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append(mark)

    def seconds(self, warmup: int) -> list[float]:
        """Return the time of each step after the first `warmup`."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = zip(self.marks[warmup - 1 :], self.marks[warmup:], strict=False)
        return [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in pairs]


# The implementations. Each trains job.steps steps, calls tick after each, and returns their mean loss ---------------


def ours(job: Workload, clock: StepTimer) -> float:
    """Train with the step of training.pretrain, its model, loss, precision and allocator."""
    accelerator = Accelerator(mixed_precision="no", cpu=job.device.type == "cpu")
    model = job.pleias()
    if job.config.compile != "none":
        compile_layers(model)
    o = OptimizerConfig(learning_rate=job.config.learning_rate)
    optimizer = accelerator.prepare(build_optimizer(o, model))
    module = accelerator.prepare(NextTokenLoss(model, job.dtype))
    guard, total = StepGuard(job.steps, accelerator.device), torch.zeros((), device=accelerator.device)
    for _ in range(job.steps):
        total += train_step(accelerator, module, optimizer, [job.windows().numpy()], clip=o.clip, guard=guard)[0]
        clock.tick()
    return total.item() / job.steps


def inputs(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Convert windows of T + 1 ids to inputs and labels with which a stock model predicts the same T tokens."""
    targets = windows[:, 1:].contiguous()
    return {"input_ids": windows[:, :-1], "labels": targets, "shift_labels": targets}


def accelerate(job: Workload, clock: StepTimer) -> float:
    """Train the stock model with its loss in a plain loop under Accelerate's mixed precision."""
    model = job.llama()
    if job.config.compile == "all":
        model.compile()
    mixed = "bf16" if job.dtype == torch.bfloat16 else "no"
    accelerator = Accelerator(mixed_precision=mixed, cpu=job.device.type == "cpu")
    o = OptimizerConfig(learning_rate=job.config.learning_rate)
    model, optimizer = accelerator.prepare(model, adamw(model.parameters(), o))
    windows, total = job.windows(), torch.zeros((), device=accelerator.device)
    for _ in range(job.steps):
        loss = model(**inputs(windows.to(accelerator.device, non_blocking=True))).loss
        accelerator.backward(loss)
        total += loss.detach()
        accelerator.clip_grad_norm_(model.parameters(), o.clip)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return total.item() / job.steps


class _Tick(TrainerCallback):
    def __init__(self, clock: StepTimer):
        self.clock = clock

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.tick()


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Collate rows to a batch, with a mask of ones by which SFTTrainer counts tokens."""
    batch = inputs(torch.stack([row["input_ids"] for row in rows]))
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def train_with(
    trainer_class: type, arguments_class: type, job: Workload, clock: StepTimer, more: dict, arguments: dict
):
    """Train with `Trainer` or a subclass, configured to do nothing but train."""
    from datasets import Dataset

    o = OptimizerConfig(learning_rate=job.config.learning_rate)
    rows = Dataset.from_dict({"input_ids": list(job.windows().repeat(job.steps, 1).numpy())})
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments_class(
            output_dir=folder,
            per_device_train_batch_size=job.batch,
            max_steps=job.steps,
            train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
            learning_rate=o.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=o.beta1,
            adam_beta2=o.beta2,
            adam_epsilon=o.epsilon,
            weight_decay=o.weight_decay,
            max_grad_norm=o.clip,
            bf16=job.dtype == torch.bfloat16,
            use_cpu=job.device.type == "cpu",
            torch_compile=job.config.compile == "all",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=job.config.seed,
            **arguments,
        )
        trainer = trainer_class(
            model=job.llama(),
            args=settings,
            train_dataset=rows.with_format("torch"),
            data_collator=collate,
            callbacks=[_Tick(clock)],
            **more,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer.train().training_loss


def trainer(job: Workload, clock: StepTimer) -> float:
    """Train with Hugging Face's Trainer."""
    from transformers import Trainer, TrainingArguments

    return train_with(Trainer, TrainingArguments, job, clock, {}, {"remove_unused_columns": False})


def sft_trainer(job: Workload, clock: StepTimer) -> float:
    """Train with TRL's SFTTrainer on ids, without packing or checkpointing; it has its own fused loss."""
    from trl import SFTConfig, SFTTrainer

    from modeling_pleias import PleiasTokenizer

    arguments = {"max_length": job.length + 1, "packing": False, "gradient_checkpointing": False}
    arguments["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return train_with(SFTTrainer, SFTConfig, job, clock, {"processing_class": PleiasTokenizer()}, arguments)


IMPLEMENTATIONS = {"ours": ours, "trainer": trainer, "sft_trainer": sft_trainer, "accelerate": accelerate}

# One run, in its own process ---------------------------------------------------------------------------------------


@dataclass
class RunResult:
    """Measurements of one run of one implementation.

    Args:
        seconds: Time of each timed step.
        loss: Mean loss over all steps, warm-up included.
        peak_bytes: Peak resident memory of the process; on CUDA, peak allocated memory of the device.
        training_bytes: Its part that was allocated after the libraries were loaded; on CUDA all of it.
    """

    seconds: list[float]
    loss: float
    peak_bytes: int
    training_bytes: int


def take_turn(config: TrainStepBench, name: str) -> RunResult:
    """Run one implementation in this process."""
    if name == "ours" or config.memory == "all":
        configure_allocator()
    job, clock = Workload(config), StepTimer(torch.device(config.backend))
    if name in ("trainer", "sft_trainer"):  # the memory of the libraries does not count as training's
        __import__("trl" if name == "sft_trainer" else "datasets")
    before = psutil.Process().memory_info().rss
    loss = IMPLEMENTATIONS[name](job, clock)
    peak = peak_memory(job.device)
    return RunResult(clock.seconds(config.warmup), loss, peak, peak - (0 if job.device.type == "cuda" else before))


def matmul_rates(config: TrainStepBench) -> dict[str, float]:
    """Return FLOP/s of single matmuls: a large square one, and the two largest of the model's forward pass."""
    job = Workload(config)
    rows, width = job.batch * job.length, job.model_config.hidden_size
    rates = {}
    for m, k, n in (
        (4096, 4096, 4096),
        (rows, width, job.model_config.intermediate_size),
        (rows, width, job.model_config.vocab_size),
    ):
        a, b = torch.randn(m, k).to(job.device, job.dtype), torch.randn(n, k).to(job.device, job.dtype)
        out = torch.empty(m, n, device=job.device, dtype=job.dtype)
        clock = StepTimer(job.device)
        for _ in range(max(5, min(100, round(8e11 / (2 * m * k * n))))):
            torch.mm(a, b.T, out=out)
            clock.tick()
        rates[f"{m} x {k} x {n}"] = 2 * m * k * n / min(clock.seconds(2))
    return rates


def profile_step(config: TrainStepBench) -> str:
    """Return a table of a pretraining step by operator, after the warm-up; times exclude called operators."""
    from torch.profiler import ProfilerActivity, profile

    job = Workload(config)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (job.device.type == "cuda")
    profiler = profile(activities=activities)

    class Profiled(StepTimer):
        def tick(self):
            super().tick()
            if len(self.marks) == config.warmup:
                profiler.start()
            elif len(self.marks) == job.steps:
                profiler.stop()

    ours(job, Profiled(job.device))
    by = f"self_{config.backend}_time_total" if config.backend == "cpu" else "self_device_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


def alone(function: Callable, *arguments):
    """Run a function in a fresh process; return its result.

    Raises:
        InputError: If a required library is not installed.
    """
    try:
        with get_context("spawn").Pool(1) as pool:
            return pool.apply(function, arguments)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed. Install it, or exclude its --implementations.") from error


# The report --------------------------------------------------------------------------------------------------------


def measure_steps(config: TrainStepBench, progress: Callable[[str], None]) -> dict:
    """Measure every implementation, and the matmuls to which they are compared."""
    job = Workload(config)
    turns: dict[str, list[RunResult]] = {name: [] for name in config.implementations}
    rates: list[dict[str, float]] = []
    for number in range(config.rounds):
        rates.append(alone(matmul_rates, config))
        for name in config.implementations:
            turn = alone(take_turn, config, name)
            turns[name].append(turn)
            progress(f"round {number + 1}, {name}: {median(turn.seconds):.3f} s per step, loss {turn.loss:.4f}")
    matrix = {shape: max(rate[shape] for rate in rates) for shape in rates[0]}
    data_sheet = peak_flops(job.device) if job.dtype == torch.bfloat16 else None
    peak = data_sheet or max(matrix.values())
    tokens = job.batch * job.length
    flops = {c: flops_per_token(job.model_config, job.length, attention=c) for c in CONVENTIONS}
    results = {}
    for name, runs in turns.items():
        seconds = [second for run in runs for second in run.seconds]
        rounds = [tokens * len(run.seconds) / sum(run.seconds) for run in runs]
        speed = median(rounds)
        results[name] = {
            "tokens_per_second": speed,
            "tokens_per_second_by_round": rounds,
            "step_seconds_p50": float(np.percentile(seconds, 50)),
            "step_seconds_p95": float(np.percentile(seconds, 95)),
            "mfu": {convention: speed * flops[convention] / peak for convention in CONVENTIONS},
            "peak_bytes": max(run.peak_bytes for run in runs),
            "training_bytes": max(run.training_bytes for run in runs),
            "loss": runs[0].loss,
        }
    losses = [result["loss"] for result in results.values()]
    assert max(losses) - min(losses) < 0.02 * max(losses), f"the implementations trained different models: {losses}"
    baselines = [name for name in results if name != "ours"]
    if "ours" in results and baselines:
        best = max(baselines, key=lambda name: results[name]["tokens_per_second"])
        least = {key: min(results[name][key] for name in baselines) for key in ("peak_bytes", "training_bytes")}
        ratios = {"best_baseline": best}
        ratios["tokens_per_second"] = results["ours"]["tokens_per_second"] / results[best]["tokens_per_second"]
        for key, value in least.items():
            ratios[key] = results["ours"][key] / value
    else:
        ratios = None
    facts = environment(("torch", "transformers", "accelerate", "trl"))
    return {
        "command": shlex.join(sys.orig_argv),
        **facts,
        "hardware": facts["hardware"] | {"load_at_end": os.getloadavg()[0]},
        "config": plain(asdict(config)),
        "model": {"parameters": count_parameters(job.model_config), "batch": job.batch, "sequence_length": job.length},
        "dtype": str(job.dtype),
        "flops_per_token": flops,
        "matrix_flops": matrix,
        "peak_flops": peak,
        "peak_source": "data sheet" if data_sheet else "fastest matmul of this run",
        "implementations": results,
        "ratios": ratios,
    }


def print_report(report: dict, console: Console) -> None:
    """Print the report as a table."""
    model, machine = report["model"], report["hardware"]
    console.print(
        f"{model['parameters']:,} parameters, {model['batch']} x {model['sequence_length']:,} tokens per step, "
        f"{report['dtype']} matmuls; {', '.join(machine['gpus']) or machine['cpu']}, {machine['threads']} threads"
    )
    for shape, rate in report["matrix_flops"].items():
        used = {
            name: row["mfu"]["full"] * report["peak_flops"] / rate for name, row in report["implementations"].items()
        }
        shares = ", ".join(f"{name} {value:.1%}" for name, value in used.items())
        console.print(f"matmul {shape}: {rate / 1e12:.3f} TFLOP/s, of which (full) {shares}")
    console.print(f"MFU is relative to {report['peak_flops'] / 1e12:.3f} TFLOP/s, {report['peak_source']}")
    table = Table()
    table.add_column("")
    for title in ("tokens/s", "step p50", "p95", "MFU 6N", "causal", "full", "peak memory", "of training", "loss"):
        table.add_column(title, justify="right")
    for name, row in report["implementations"].items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['step_seconds_p50']:.3f} s",
            f"{row['step_seconds_p95']:.3f} s",
            *(f"{row['mfu'][convention]:.1%}" for convention in CONVENTIONS),
            *(f"{row[key] / 1e9:.2f} GB" for key in ("peak_bytes", "training_bytes")),
            f"{row['loss']:.4f}",
        )
    console.print(table)
    if ratios := report["ratios"]:
        console.print(
            f"ours has {ratios['tokens_per_second']:.2f} times the tokens/s of {ratios['best_baseline']}, the fastest "
            f"baseline, and {ratios['peak_bytes']:.2f} times the peak memory of the smallest one "
            f"({ratios['training_bytes']:.2f} without the libraries)"
        )


def main() -> None:
    """`python -m training.bench.train_step`."""
    config = parse(TrainStepBench, description="Compare a training step with Trainer, SFTTrainer and Accelerate.")
    console = Console(width=None if sys.stdout.isatty() else 140)  # wide enough for the table in a file
    report = measure_steps(config, lambda line: print(line, file=sys.stderr, flush=True))
    print_report(report, console)
    if config.profile:
        console.print(alone(profile_step, config), soft_wrap=True)
    if config.json:
        write_json(config.json, report)


if __name__ == "__main__":
    run_main(main)
