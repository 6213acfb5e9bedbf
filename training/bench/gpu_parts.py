"""Parts of training.bench.gpu: checks and measurements on one device. A part runs in a process of its own.

On CUDA the sizes are those of femto and of the 1.2b, on a CPU they are tiny; the functions are the same. Each result
is stored as soon as it exists. A check that needs a library or a device that is missing is skipped.
"""

import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.utils.logging import disable_progress_bar

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer

from ..common.environment import peak_memory
from ..common.files import write_json
from ..common.signals import end_with_parent
from ..run.metrics import flops_per_token, peak_flops, read_metrics
from ..step.compute import NextTokenLoss, compile_layers, compute_dtype, configure_allocator, flush_denormals
from ..step.cross_entropy_kernels import exp_and_sum_
from ..step.loss import LinearCrossEntropy
from ..step.optimizer import OptimizerConfig, build_optimizer, orthogonalize
from ..step.sampled_softmax import Candidates, SampledCrossEntropy
from ..step.step_guard import StepGuard

ROOT = Path(__file__).parents[2]
FEMTO, TOKENIZER = ROOT / "model_card" / "femto", ROOT / "modeling_pleias" / "tokenizer"
HELD_OUT = ROOT / "data" / "femto" / "mixture" / "held_out"  # written by the commands of configs/pretrain/femto.yaml
CONVENTIONS = {"none": "MFU 6N", "causal": "MFU causal", "full": "MFU PaLM"}
NEWTON_SCHULZ = {"coefficients": (3.4445, -4.775, 2.0315), "steps": 5, "eps": 1e-7}  # of torch.optim.Muon
CPU = torch.device("cpu")


class SkipError(Exception):
    """A check that this device cannot run; the message states what it needs."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the workloads.

    Args:
        small: Shape of the model of most parts; femto's weights are used if it is femto's.
        large: Shape of the model of the training step.
        length: Tokens per window of the large model.
        micro_batches: Windows per micro batch that the training step tries, in this order.
        steps: Timed steps of each, after a warm-up of two.
        batch: Windows and tokens of the parity checks.
        loss: Positions and width in the checks of the loss, whose vocabulary is the small model's.
        square: Rows of the square matmul.
        generate: Tokens of a prompt, and new tokens.
        pretrain: Steps of each of two stages, sequences per step, tokens per sequence, windows per micro batch.
        documents: Documents of 500 words in the text of the pretraining part.
    """

    small: PleiasConfig
    large: PleiasConfig
    length: int
    micro_batches: tuple[int, ...]
    steps: int
    batch: tuple[int, int]
    loss: tuple[int, int]
    square: int
    generate: tuple[int, int]
    pretrain: tuple[int, int, int, int]
    documents: int


def sizes(device: torch.device) -> Sizes:
    """Return the sizes for a device."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tiny = PleiasConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, max_position_embeddings=512, **heads
    )
    if device.type == "cuda":
        femto, nano = PleiasConfig.from_pretrained(FEMTO), PleiasConfig.nano_1_2b()
        work = {"loss": (1500, 384), "square": 8192, "generate": (512, 128), "pretrain": (6, 256, 1024, 128)}
        return Sizes(femto, nano, 2048, (4, 8, 16, 32), 5, (2, 256), documents=500, **work)
    large = PleiasConfig(**tiny.to_diff_dict() | {"vocab_size": 512})
    work = {"loss": (70, 16), "square": 128, "generate": (16, 4), "pretrain": (4, 4, 64, 2)}
    return Sizes(tiny, large, 64, (1, 2), 2, (2, 32), documents=20, **work)


class Checks:
    """Results of a part, written to a JSON file after each check; one that fails does not stop the next.

    Args:
        path: JSON file: a list of {"check", "status", "seconds", "values"}, with "error" unless it passed.
    """

    def __init__(self, path: Path):
        self.path, self.rows = path, []

    def run(self, name: str, function: Callable[..., dict | None], *arguments) -> dict:
        """Run a check and store the values that it returns; it fails if `deviation` is not at most `limit`."""
        start, row = time.perf_counter(), {"check": name, "status": "passed"}
        try:
            row["values"] = values = function(*arguments) or {}
            if "limit" in values and not values["deviation"] <= values["limit"]:  # also NaN
                row |= {"status": "failed", "error": f"deviation {values['deviation']:.3g} above {values['limit']:g}"}
        except (SkipError, ModuleNotFoundError) as error:
            library = (getattr(error, "name", None) or "").partition(".")[0]
            if library in ("training", "modeling_pleias"):
                raise
            row |= {"status": "skipped", "error": f"needs {library or error}"}
        except Exception as error:
            traceback.print_exc()
            row |= {"status": "failed", "error": last_line(error)}
        row["seconds"] = round(time.perf_counter() - start, 2)
        self.rows.append(row)
        write_json(self.path, self.rows)
        print(f"{name}: {row['status']} in {row['seconds']} s {row.get('error', row.get('values', ''))}", flush=True)
        return row.get("values", {})


def last_line(error: BaseException) -> str:
    """Return type and last line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:300] if lines else ''}"


def deviation(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference relative to the reference's, in double precision."""
    a, b = result.detach().cpu().double(), reference.detach().cpu().double()
    return ((a - b).norm() / b.norm()).item()


def synchronize(device: torch.device) -> None:
    """Wait for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(function: Callable[[], object], device: torch.device, calls: int) -> float:
    """Return the time of a call, the median of `calls` after two of warm-up, each waited for."""
    times = []
    for _ in range(calls + 2):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def model_folder(size: Sizes, folder: Path) -> Path:
    """Return the folder of the small model with a tokenizer: femto, or a random one, which is written."""
    if size.small.to_dict() == PleiasConfig.from_pretrained(FEMTO).to_dict():
        return FEMTO
    torch.manual_seed(0)
    PleiasForCausalLM(size.small).save_pretrained(folder / "model")
    PleiasTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "model")
    return folder / "model"


def load(folder: Path, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> PleiasForCausalLM:
    """Load a model for inference."""
    options = {"dtype": dtype, "attn_implementation": attention}
    return PleiasForCausalLM.from_pretrained(folder, **options).to(device).eval()


def random_windows(vocab_size: int, batch: int, tokens: int) -> torch.Tensor:
    """Return (B, T) random ids, always the same."""
    return torch.randint(4, vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(1))


# Parity ------------------------------------------------------------------------------------------------------------


def parity(checks: Checks, device: torch.device, folder: Path) -> None:
    """Compare model, gradients, losses, optimizers and step guard with double precision on the CPU."""
    size = sizes(device)
    path = model_folder(size, folder)
    (batch, length), vocabulary = size.batch, size.small.vocab_size
    windows = random_windows(vocabulary, batch, length + 1)
    exact = load(path, CPU, torch.float64, "eager")
    logits = exact(input_ids=windows[:, :-1], use_cache=False).logits
    cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
    gradients = gradient(exact)

    def logits_of(dtype: torch.dtype, attention: str, limit: float, backend=None) -> dict:
        if attention == "flash_attention_2":
            import_module("flash_attn")  # transformers' error does not name the library
        kernel = torch.nn.attention.sdpa_kernel(backend) if backend else nullcontext()
        with torch.no_grad(), kernel:
            result = load(path, device, dtype, attention)(input_ids=windows[:, :-1].to(device), use_cache=False).logits
        return {"deviation": deviation(result, logits), "limit": limit}

    def gradients_of(dtype: torch.dtype, limit: float) -> dict:
        loss = NextTokenLoss(load(path, device, torch.float32), dtype)
        loss(windows.to(device)).backward()
        return {"deviation": deviation(gradient(loss), gradients), "limit": limit}

    flash = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    for name, arguments in {
        "logits, fp32, SDPA": (torch.float32, "sdpa", 1e-4),
        "logits, fp32, eager": (torch.float32, "eager", 1e-4),
        "logits, bf16, SDPA": (torch.bfloat16, "sdpa", 0.03),
        "logits, bf16, SDPA's flash kernel": (torch.bfloat16, "sdpa", 0.03, flash),
        "logits, bf16, flash_attn": (torch.bfloat16, "flash_attention_2", 0.03),
    }.items():
        checks.run(name, logits_of, *arguments)
    checks.run("gradients, fp32", gradients_of, torch.float32, 1e-3)
    checks.run("gradients, bf16", gradients_of, torch.bfloat16, 0.05)
    checks.run("attention of the large model, bf16", attention_parity, device)
    positions = (*size.loss, vocabulary)
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        name = str(dtype).removeprefix("torch.")
        checks.run(f"fused cross-entropy, {name}", loss_parity, linear_loss, device, dtype, positions, limit)
        checks.run(f"sampled softmax, {name}", loss_parity, sampled_loss, device, dtype, positions, limit)
    checks.run("exponentials over 400 nats, fp32", exponential_parity, device)
    checks.run("denormals of a product, fp32", denormals, device)
    checks.run("Muon's orthogonalisation", muon_parity, device)
    for name in ("adamw", "muon"):
        checks.run(f"one step of {name}", optimizer_parity, name, device, path, windows)
        checks.run(f"step guard, {name}", skipped_step, name, device, path, windows)
    checks.run("a step without synchronisation", unsynchronised_step, device, path, windows)


def gradient(module: torch.nn.Module) -> torch.Tensor:
    """Return all gradients of a module as one vector in double precision."""
    return torch.cat([parameter.grad.detach().cpu().double().flatten() for parameter in module.parameters()])


def attention_parity(device: torch.device) -> dict:
    """Compare causal grouped-query attention, forward and backward, in the flash kernel of SDPA."""
    config, length = sizes(device).large, sizes(device).length
    torch.manual_seed(0)
    shapes = [(1, heads, length, config.head_dim) for heads in (config.num_attention_heads,)]
    shapes += 2 * [(1, config.num_key_value_heads, length, config.head_dim)]
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    results = []
    for place, dtype, backend in (
        (CPU, torch.float64, torch.nn.attention.SDPBackend.MATH),
        (device, torch.bfloat16, torch.nn.attention.SDPBackend.FLASH_ATTENTION),
    ):
        q, k, v = (tensor.to(place, dtype).requires_grad_() for tensor in inputs)
        with torch.nn.attention.sdpa_kernel(backend):
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            out.square().sum().backward()
        results.append(torch.cat([t.detach().cpu().double().flatten() for t in (out, q.grad, k.grad, v.grad)]))
    return {"deviation": deviation(results[1], results[0]), "limit": 0.03}


def linear_loss(hidden, weight, targets, dtype):
    """Loss over the vocabulary; in double precision PyTorch's own."""
    if dtype == torch.float64:
        return cross_entropy(hidden @ weight.T, targets)
    return LinearCrossEntropy.apply(hidden, weight, targets, dtype)


def sampled_loss(hidden, weight, targets, dtype):
    """Loss over a quarter of the vocabulary."""
    ids = torch.randperm(len(weight), generator=torch.Generator().manual_seed(2))[: len(weight) // 4]
    return SampledCrossEntropy.apply(hidden, weight, targets, Candidates(ids.to(hidden.device), 8, 1.5), dtype)


def loss_parity(function: Callable, device: torch.device, dtype: torch.dtype, shape: tuple, limit: float) -> dict:
    """Compare a loss and its two gradients with double precision on the CPU."""
    N, D, V = shape
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D), torch.randn(V, D) * 3 / D**0.5
    targets, results = torch.randint(V, (N,)), []
    for place, computed, stored in ((CPU, torch.float64, torch.float64), (device, dtype, torch.float32)):
        inputs = hidden.to(dtype).to(place, stored).requires_grad_(), weight.to(place, stored).requires_grad_()
        loss = function(*inputs, targets.to(place), computed)
        loss.backward()
        results.append((loss, *(tensor.grad for tensor in inputs)))
    deviations = {name: deviation(b, a) for name, a, b in zip(("loss", "hidden", "weight"), *results, strict=True)}
    return {"deviation": max(deviations.values()), "limit": limit, **deviations}


def exponential_parity(device: torch.device) -> dict:
    """Compare the sums of exponentials of logits whose spread makes most of them denormal or zero."""
    torch.manual_seed(0)
    logits_Vn = (torch.rand(1000, 70) - 0.5) * 400
    exact = logits_Vn.double().logsumexp(0)
    largest, total = exp_and_sum_(logits_Vn.to(device))
    return {"deviation": deviation(largest + total.log(), exact), "limit": 1e-6}


def denormals(device: torch.device) -> dict:
    """Return whether the device keeps a product below 1.2e-38; on CPUs training flushes it to zero."""
    flush_denormals()
    result = torch.full((4,), 1e-30, device=device) * 1e-9
    return {"flushed to zero": bool((result == 0).all().item())}


def muon_parity(device: torch.device) -> dict:
    """Compare Newton-Schulz iterations in the device's dtype."""
    torch.manual_seed(0)
    matrix = torch.randn(384, 1024)
    exact = orthogonalize(matrix.double(), **NEWTON_SCHULZ)
    dtype = compute_dtype("auto", device)
    result = orthogonalize(matrix.to(device, dtype), **NEWTON_SCHULZ)
    return {"dtype": str(dtype), "deviation": deviation(result, exact), "limit": 0.1}


def updated(name: str, device: torch.device, path: Path, windows: torch.Tensor) -> torch.Tensor:
    """Return the change of all weights by one optimizer step in fp32."""
    model = load(path, device, torch.float32)
    before = torch.cat([parameter.detach().cpu().double().flatten() for parameter in model.parameters()])
    optimizer = build_optimizer(OptimizerConfig(name=name), model)
    optimizer.found_inf = torch.zeros((), device=device)
    NextTokenLoss(model, torch.float32)(windows.to(device)).backward()
    optimizer.step()
    return torch.cat([parameter.detach().cpu().double().flatten() for parameter in model.parameters()]) - before


def optimizer_parity(name: str, device: torch.device, path: Path, windows: torch.Tensor) -> dict:
    """Compare one optimizer step with the CPU. AdamW's first step is a sign: tiny gradients may change theirs."""
    reference = updated(name, CPU, path, windows)
    return {"deviation": deviation(updated(name, device, path, windows), reference), "limit": 0.1}


class Trainer:
    """Training steps of a model on a device, as in pretraining."""

    def __init__(self, model: PleiasForCausalLM, name: str, device: torch.device, dtype: torch.dtype):
        from accelerate import Accelerator

        from ..pretrain import train_step  # brings the libraries of the data

        self.accelerator, self.train_step = Accelerator(mixed_precision="no", cpu=device.type == "cpu"), train_step
        self.model, self.guard = model.train(), StepGuard(100, device)
        self.optimizer = self.accelerator.prepare(build_optimizer(OptimizerConfig(name=name), model))
        self.loss = self.accelerator.prepare(NextTokenLoss(model, dtype))

    def step(self, micro_batches: list) -> torch.Tensor:
        """Train one step on micro batches (arrays of ids); return the loss without waiting for it."""
        return self.train_step(self.accelerator, self.loss, self.optimizer, micro_batches, clip=1.0, guard=self.guard)[
            0
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of weights and optimizer state."""
        state = self.optimizer.optimizer.state
        tensors = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{name}/{key}": value.clone() for key, value in state[parameter].items()}
        return tensors


def skipped_step(name: str, device: torch.device, path: Path, windows: torch.Tensor) -> dict:
    """Check that a step with a NaN loss changes nothing, and that the next step trains."""
    trainer, ids = (
        Trainer(load(path, device, torch.float32), name, device, compute_dtype("auto", device)),
        [windows.numpy()],
    )
    trainer.step(ids)
    before, norm = trainer.tensors(), trainer.model.model.norm.weight
    with torch.no_grad():
        saved = norm[0].clone()
        norm[0] = torch.nan
    trainer.step(ids)
    with torch.no_grad():
        norm[0] = saved
    after = trainer.tensors()
    changed = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    assert not changed, f"changed by a skipped step: {changed[:3]}"
    trainer.step(ids)
    events = trainer.guard.collect_events()
    assert [event["event"]["kind"] for event in events] == ["not finite"], events
    assert any(not torch.equal(tensor, after[key]) for key, tensor in trainer.tensors().items())
    return {"skipped": trainer.guard.skipped}


def unsynchronised_step(device: torch.device, path: Path, windows: torch.Tensor) -> dict:
    """Check that a step of AdamW never waits for the GPU."""
    if device.type != "cuda":
        raise SkipError("CUDA")
    trainer = Trainer(load(path, device, torch.float32), "adamw", device, torch.bfloat16)
    for _ in range(3):
        trainer.step([windows.numpy()])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step([windows.numpy()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {}


def compiled(checks: Checks, device: torch.device, folder: Path) -> None:
    """Compare compiled layers with layers as they are: loss and gradients."""
    size = sizes(device)
    path = model_folder(size, folder)
    windows = random_windows(size.small.vocab_size, size.batch[0], size.batch[1] + 1)

    def gradients(compile_them: bool, dtype: torch.dtype) -> torch.Tensor:
        model = load(path, device, torch.float32)
        if compile_them:
            compile_layers(model)
        NextTokenLoss(model, dtype)(windows.to(device)).backward()
        return gradient(model)

    def compare(dtype: torch.dtype, limit: float) -> dict:
        return {"deviation": deviation(gradients(True, dtype), gradients(False, dtype)), "limit": limit}

    checks.run("gradients of compiled layers, fp32", compare, torch.float32, 1e-3)
    checks.run("gradients of compiled layers, bf16", compare, torch.bfloat16, 0.05)


# Training step -----------------------------------------------------------------------------------------------------


def matmul_rate(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype, calls: int = 10) -> float:
    """Return the FLOP/s of an (m, k) by (k, n) product on random numbers."""
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (n, k)))
    return 2 * m * k * n / seconds_per_call(lambda: a @ b.T, device, calls)


def step(checks: Checks, device: torch.device, folder: Path) -> None:
    """Time the training step of the large model: micro batches, compiled and not, with its utilisation and memory."""
    size, dtype = sizes(device), compute_dtype("auto", device)
    config, length, rates = size.large, size.length, {}

    def products() -> dict:
        tokens, D, F, V = 8 * length, config.hidden_size, config.intermediate_size, config.vocab_size
        for m, k, n in ((size.square,) * 3, (tokens, D, F), (tokens, F, D), (tokens, D, V)):
            rates[f"{m} x {k} x {n}"] = matmul_rate(m, k, n, device, dtype)
        return {f"TFLOP/s, {shape}": rate / 1e12 for shape, rate in rates.items()}

    checks.run(f"matmuls, {dtype}", products)
    peak = peak_flops(device) or max(rates.values(), default=float("nan"))
    flops = {c: flops_per_token(config, length, attention=c) for c in CONVENTIONS}
    torch.manual_seed(0)
    trainer = None

    def build() -> dict:
        nonlocal trainer
        with torch.device(device):
            model = PleiasForCausalLM(config)
        trainer = Trainer(model, "adamw", device, dtype)
        return {"parameters": model.num_parameters()}

    def measure(micro_batch: int, accumulate: int) -> dict:
        if trainer is None:
            raise SkipError("the model of the check before")
        micro_batches = [random_windows(config.vocab_size, micro_batch, length + 1).numpy()] * accumulate
        trainer.optimizer.zero_grad()  # also what a step without enough memory left
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds = seconds_per_call(partial(trainer.step, micro_batches), device, size.steps)
        except torch.OutOfMemoryError as error:  # where the search for the largest micro batch ends
            raise SkipError(f"more memory ({last_line(error)})") from None
        speed = micro_batch * accumulate * length / seconds
        trainer.guard.collect_events()
        values = {"tokens/s": speed, "seconds": seconds, "peak GB": peak_memory(device) / 1e9}
        return values | {name: flops[c] * speed / peak for c, name in CONVENTIONS.items()}

    checks.run("model", build)
    speeds = {}
    if trainer:
        checks.run(f"step, {size.micro_batches[-2]} windows, not compiled", measure, size.micro_batches[-2], 1)
        compile_layers(trainer.model)
    for micro_batch in size.micro_batches:
        torch.compiler.reset()  # else the second size is compiled for every size
        values = checks.run(f"step, {micro_batch} windows, compiled by layer", measure, micro_batch, 1)
        if not values:  # out of memory, as larger sizes would be
            break
        speeds[micro_batch] = values["tokens/s"]
    if speeds:
        best = max(speeds, key=speeds.get)
        torch.compiler.reset()
        checks.run(f"step, 2 micro batches of {best} windows, compiled", measure, best, 2)
        checks.run(f"profile of a step, {best} windows", profile_step, trainer, config, length, best, device)
    trainer = None
    gc.collect()
    for name, function in (("fused", linear_loss), ("PyTorch's", plain_loss)):
        checks.run(f"loss of 8 windows, {name}", loss_speed, function, config, 8 * length, device, dtype)


def profile_step(trainer: Trainer, config: PleiasConfig, length: int, batch: int, device: torch.device) -> dict:
    """Print the operators of a step that take most time to the log."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    windows = random_windows(config.vocab_size, batch, length + 1).numpy()
    with profile(activities=activities) as profiler:
        trainer.step([windows])
        synchronize(device)
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=70))
    return {"table": "in the log"}


def plain_loss(hidden, weight, targets, dtype):
    """Loss from all logits at once, as transformers computes it."""
    return cross_entropy((hidden.to(dtype) @ weight.to(dtype).T).float(), targets)


def loss_speed(
    function: Callable, config: PleiasConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> dict:
    """Time forward and backward of the loss at the head of the large model."""
    hidden = torch.randn(tokens, config.hidden_size, device=device).to(dtype).requires_grad_()
    weight = torch.randn(config.vocab_size, config.hidden_size, device=device).mul_(0.025).requires_grad_()
    targets = torch.randint(config.vocab_size, (tokens,), device=device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    def run() -> None:
        hidden.grad = weight.grad = None
        function(hidden, weight, targets, dtype).backward()

    return {"ms": 1000 * seconds_per_call(run, device, 5), "peak GB": peak_memory(device) / 1e9}


def fp8(checks: Checks, device: torch.device, folder: Path) -> None:
    """Time FP8 products at the shapes of the large model, with and without the conversion of their inputs."""
    from torch.nn.functional import ScalingType, scaled_mm  # new in PyTorch: without them the other parts still run

    size = sizes(device)
    rows, config = 8 * size.length, size.large
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size

    def scale(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max

    def convert(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factor = scale(tensor)
        return (tensor / factor).to(torch.float8_e4m3fn), factor

    def product(k: int, n: int) -> dict:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
            raise SkipError("a GPU with FP8 (compute capability 8.9)")
        a, b = (torch.randn(shape, device=device).bfloat16() for shape in ((rows, k), (n, k)))
        fast = {"use_fast_accum": True} if device.type == "cuda" else {}

        def multiply(a8, a_scale, b8, b_scale) -> torch.Tensor:
            recipes = (a_scale, ScalingType.TensorWise, b_scale, ScalingType.TensorWise)
            return scaled_mm(a8, b8.T, *recipes, output_dtype=torch.bfloat16, **fast)

        converting = torch.compile(convert) if device.type == "cuda" else convert
        inputs, flops = (*convert(a), *convert(b)), 2 * rows * k * n
        exact = a[:256].float() @ b.float().T
        times = {
            "bf16": lambda: a @ b.T,
            "FP8": lambda: multiply(*inputs),
            "FP8 with conversion": lambda: multiply(*converting(a), *converting(b)),
        }
        rates = {f"TFLOP/s, {name}": flops / seconds_per_call(f, device, 10) / 1e12 for name, f in times.items()}
        return rates | {"deviation": deviation(multiply(*inputs)[:256], exact), "limit": 0.06}

    for k, n in ((D, D), (D, F), (F, D), (D, V)):
        checks.run(f"{rows} x {k} x {n}", product, k, n)


# Generation and evaluation -----------------------------------------------------------------------------------------


def generation(checks: Checks, device: torch.device, folder: Path) -> None:
    """Time greedy generation of both models, and compare the small one's text with the CPU's."""
    from ..common.generation import complete
    from ..pretraining.samples import PROMPTS

    size, dtype = sizes(device), compute_dtype("auto", device)
    path = model_folder(size, folder)
    prompt, new = size.generate

    def same_text() -> dict:
        tokenizer = PleiasTokenizer.from_pretrained(path)
        texts = [
            complete(load(path, place, torch.float32), tokenizer, list(PROMPTS.values()), max_new_tokens=new)
            for place in (CPU, device)
        ]
        different = sum(a != b for a, b in zip(*texts, strict=True)) / len(PROMPTS)
        return {"deviation": different, "limit": 0.25}

    @torch.no_grad()
    def speed(model: PleiasForCausalLM, batch: int) -> dict:
        ids = random_windows(model.config.vocab_size, batch, prompt).to(device)
        options = {"attention_mask": torch.ones_like(ids), "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
        first = seconds_per_call(lambda: model.generate(ids, max_new_tokens=1, **options), device, 2)
        rest = seconds_per_call(lambda: model.generate(ids, max_new_tokens=new + 1, **options), device, 2) - first
        rates = {"prefill tokens/s": batch * prompt / first, "decode tokens/s": batch * new / rest}
        return rates | {"peak GB": peak_memory(device) / 1e9}

    checks.run("text equal to the CPU's in eight languages, fp32", same_text)
    with torch.device(device):
        torch.manual_seed(0)
        large = PleiasForCausalLM(size.large).to(dtype).eval()
    for name, model in (("small", load(path, device, dtype)), ("large", large)):
        for batch in (1, 16):
            checks.run(f"{name} model, batch {batch}", speed, model, batch)


def evaluate(checks: Checks, device: torch.device, folder: Path) -> None:
    """Evaluate the small model on held-out text, and compare its bits per byte with the CPU's."""
    from ..pretraining.samples import PROMPTS

    path, text = model_folder(sizes(device), folder), HELD_OUT
    if not text.exists():
        text = folder / "text"
        text.mkdir()
        for language, words in PROMPTS.items():
            (text / f"{language}.txt").write_text(f"{words} . " * 8, encoding="utf-8")

    def same_bits() -> dict:
        from ..evaluation.bits_per_byte import token_nats

        tokenizer = PleiasTokenizer.from_pretrained(path)
        sequences = [tokenizer(words).input_ids for words in PROMPTS.values()]
        nats = [
            torch.cat(
                [
                    torch.from_numpy(row)
                    for row in token_nats(load(path, place, dtype), sequences, window=256, stride=128)
                ]
            )
            for place, dtype in ((CPU, torch.float32), (device, compute_dtype("auto", device)))
        ]
        return {"deviation": deviation(nats[1].mean(), nats[0].mean()), "limit": 5e-3}

    def suite(name: str) -> dict:
        from .. import evaluate as program

        few = ["--data.bytes_per_language", "20000", "--adherence.prompts", "8", "--adherence.new_tokens"]
        few += [str(sizes(device).generate[1]), "--speed.new_tokens", "8", "--speed.rounds", "2"]
        out = ["--suite", name, "--data.path", str(text), "--out", str(folder / "eval"), "--device", device.type]
        program.main(["--model", str(path), *out, *few])
        metrics = json.loads((folder / "eval" / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
        means = {key: value["value"] if isinstance(value, dict) else value for key, value in metrics.items()}
        return {"text": "femto's held-out text" if text == HELD_OUT else "eight prompts"} | dict(
            list(means.items())[:3]
        )

    checks.run("bits per byte, compared with the CPU", same_bits)
    for name in ("bits_per_byte", "language_adherence", "speed"):
        checks.run(name, suite, name)


# Pretraining and fine-tuning ---------------------------------------------------------------------------------------


def sentences(language: str, count: int, words: int) -> list[str]:
    """Return texts of random words in the order of a seed."""
    from ..pretraining.samples import PROMPTS

    draw = random.Random(language)
    vocabulary = [word.strip(",") for word in PROMPTS[language].split()]
    return [" ".join(draw.choices(vocabulary, k=words)) + "." for _ in range(count)]


def write_corpus(folder: Path, documents: int, words: int) -> Path:
    """Write a corpus of random words in English and French."""
    import pyarrow as pa

    from ..common.language import LANGUAGES
    from ..data.documents import SCHEMA, write_parquet

    for code in ("en", "fr"):
        empty = {name: 0 if name.endswith("count") else "" for name in SCHEMA.names}
        rows = [
            empty | {"identifier": f"{code}/{i}", "text": text, "creator": f"author {i % 9}", "collection": "words"}
            for i, text in enumerate(sentences(code, documents, words))
        ]
        rows = [row | {"language": LANGUAGES[code], "license": "CC0-1.0"} for row in rows]
        folder.mkdir(exist_ok=True)
        write_parquet(folder / f"{code}.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))
    return folder


def train(config, kill_step: int | None, deterministic: bool) -> None:
    """Pretrain in this process. At `kill_step` it kills itself, once it has a checkpoint."""
    from ..pretrain import pretrain
    from ..pretraining.recipe import PretrainConfig

    end_with_parent()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
    learning_rate = PretrainConfig.learning_rate

    def rate_or_kill(self, number: int) -> float:
        if number == kill_step:
            for _ in range(600):
                if (self.folder / "checkpoints" / "LATEST").exists():
                    break
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return learning_rate(self, number)

    PretrainConfig.learning_rate = rate_or_kill
    pretrain(config)


def pretraining(checks: Checks, device: torch.device, folder: Path) -> None:
    """Kill a run of configs/pretrain/femto_gpu.yaml, resume it, and compare it with one that was not killed."""
    from safetensors.torch import load_file

    steps, sequences, length, micro_batch = sizes(device).pretrain
    prepared = {}

    def prepare() -> dict:
        from ..common.config import parse
        from ..pretraining.prepare import DataConfig
        from ..pretraining.recipe import IntervalConfig, PretrainConfig, Stage
        from ..shards import ShardsConfig, build_shards

        corpus, shards = write_corpus(folder / "corpus", sizes(device).documents, 500), folder / "shards"
        build_shards(ShardsConfig(corpus=corpus, tokenizer=TOKENIZER, out=shards, validation_share=0.1, workers=2))
        config = parse(PretrainConfig, ["--config", "femto_gpu"], description="")
        known = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        stages = [Stage("base", steps, sequences, shards, candidates=8192), Stage("anneal", steps, sequences, shards)]
        prepared["config"] = replace(
            config,
            init_from=None,
            model={name: getattr(sizes(device).small, name) for name in known},
            stages=stages,
            data=DataConfig(folder=folder, tokenizer=TOKENIZER),
            optimizer=replace(config.optimizer, warmup_steps=2, decay_steps=steps),
            every=IntervalConfig(log=1, validate=1000, checkpoint=2, keep=2 * steps),
            sequence_length=length,
            micro_batch=micro_batch,
            compile=device.type == "cuda",
            validation_tokens=length,
        )
        return {"documents": 2 * sizes(device).documents}

    def kill_and_resume(name: str, deterministic: bool, limit: float) -> dict:
        if not prepared:
            raise SkipError("the data of the check before")
        spawn, runs = get_context("spawn"), {}
        runs = {run: replace(prepared["config"], out=folder / name / run) for run in ("complete", "killed")}

        def start(run: str, kill_step: int | None):
            process = spawn.Process(target=train, args=(runs[run], kill_step, deterministic))
            process.start()
            return process

        complete, killed = start("complete", None), start("killed", steps + 2)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, f"the run to kill ended with status {killed.exitcode}"
        resumed = start("killed", None)
        resumed.join()
        complete.join()
        assert (complete.exitcode, resumed.exitcode) == (0, 0), f"status {complete.exitcode} and {resumed.exitcode}"
        tensors = {}
        for run, config in runs.items():
            last = config.folder / "checkpoints" / f"step-{config.steps}"
            tensors[run] = [load_file(last / f"{part}.safetensors") for part in ("model", "optimizer")]
        equal = all(
            torch.equal(tensor, other[key])
            for part, other in zip(tensors["complete"], tensors["killed"], strict=True)
            for key, tensor in part.items()
        )
        weights = [torch.cat([part[key].flatten() for key in sorted(part)]) for part, _ in tensors.values()]
        log = [line for line in read_metrics(runs["complete"].folder / "metrics.jsonl") if "loss" in line]
        speeds = [line["tokens_per_second"] for line in log]
        values = {"bit-equal": equal, "deviation": deviation(weights[1], weights[0]), "limit": limit}
        values |= {"tokens/s, sampled softmax": median(speeds[2:steps]), "tokens/s": median(speeds[steps + 1 :])}
        return values | {"first loss": log[0]["loss"], "last loss": log[-1]["loss"]}

    checks.run("data", prepare)
    # On CUDA sums by atomic additions have no fixed order, except with PyTorch's deterministic algorithms.
    checks.run("kill and resume", kill_and_resume, "usual", False, 0.01 if device.type == "cuda" else 0.0)
    if device.type == "cuda":
        checks.run("kill and resume, deterministic algorithms", kill_and_resume, "deterministic", True, 0.0)


def task_data(task: str, folder: Path) -> list[str]:
    """Write a few rows of a fine-tuning task; return the options that select them."""
    import pyarrow as pa

    from ..data.documents import write_parquet

    english, french = sentences("en", 60, 8), sentences("fr", 60, 8)
    origin = {"language": "en", "license": "CC0-1.0"}
    if task == "ocr":
        few = ["--data.synthetic_rows", "40", "--data.held_out_rows", "8", "--data.held_out", "0.3"]
        path = write_corpus(folder / "text", 40, 60)
        return ["--data.path", str(path), "--data.languages", "[en,fr]", "--data.copy_rows", "50", *few]
    if task == "translation":
        rows = [
            {"id": str(i), "source": f"page {i % 9}", "license": "CC0-1.0", "en": f"{a} {i}", "fr": f"{b} {i}"}
            for i, (a, b) in enumerate(zip(english, french, strict=True))
        ]
        write_parquet(folder / "segments.parquet", pa.Table.from_pylist(rows))
        limits = ["--data.languages", "[en,fr]", "--data.held_out", "0.3"]
        return ["--data.path", str(folder / "segments.parquet"), *limits]
    if task == "instruct":
        turns = [[("user", text), ("assistant", " ".join(text.split()[::-1]))] for text in english]
        messages = [[{"role": role, "content": text} for role, text in turn] for turn in turns]
        rows = [{"messages": row, "source": "random words", **origin} for row in messages]
        options = ["--data.tasks", "[]"]
    else:
        rows = []
        for i, text in enumerate(english):
            answer = f'It is so <ref name="1">"{text[:-1]}"</ref>.'
            row = {"query": f"What is number {i}?", "sources": [text, french[i]], "answer": answer, "source": str(i)}
            rows.append(row | {"language": "en"})
        options = ["--data.held_out", "0.4", "--data.copy_rows", "0"]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["--data.path", str(path), *options]


def finetuning(name: str, task: str, checks: Checks, device: torch.device, folder: Path) -> None:
    """Fine-tune the small model for two steps with a packaged config, and measure it."""

    def run() -> dict:
        from ..common.config import parse
        from ..finetune import finetune
        from ..finetuning.recipe import FinetuneConfig

        few = ["--max_steps", "2", "--measure.max_new_tokens", "4", "--measure.selection_rows", "2"]
        few += ["--measure.rows", "2", "--max_length", "512", "--preference_prompts", "16"]
        if device.type != "cuda":
            few += ["--trainer.per_device_train_batch_size", "2"]
            if "grpo" in name:
                few += ["--trainer.num_generations", "2", "--trainer.max_completion_length", "4"]
        options = ["--base_model", str(model_folder(sizes(device), folder)), "--out", str(folder / "run")]
        config = parse(FinetuneConfig, ["--config", name, *options, *few, *task_data(task, folder)], description="")
        finetune(config)
        losses = [line["loss"] for line in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in line]
        assert losses and (folder / "run" / "model" / "config.json").is_file(), "the run wrote no model"
        return {"loss": losses[-1], "peak GB": peak_memory(device) / 1e9}

    checks.run("two steps", run)


PARTS: dict[str, Callable[[Checks, torch.device, Path], None]] = {
    "parity": parity,
    "compiled": compiled,
    "pretraining": pretraining,
    "evaluate": evaluate,
    **{
        f"finetune_{name}": partial(finetuning, f"finetune_{name}", task)
        for name, task in {
            "ocr": "ocr",
            "translation": "translation",
            "rag": "rag",
            "instruct": "instruct",
            "dpo": "instruct",
            "grpo_ocr": "ocr",
            "grpo_rag": "rag",
        }.items()
    },
    "step": step,
    "generation": generation,
    "fp8": fp8,
}


def main() -> None:
    """Run one part; its name, the device and the path of its results are the arguments of the process."""
    end_with_parent()
    name, device, path = sys.argv[1], torch.device(sys.argv[2]), Path(sys.argv[3])
    configure_allocator()
    disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = Path(tempfile.mkdtemp(prefix="gpu-", dir=path.parent))
    checks = Checks(path)
    try:
        PARTS[name](checks, device, folder)
    except Exception as error:
        traceback.print_exc()
        checks.rows.append({"check": "part", "status": "failed", "seconds": 0.0, "error": last_line(error)})
        write_json(path, checks.rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
