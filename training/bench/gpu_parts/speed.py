"""Speed and memory on a device: training step, matrix products, losses, FP8 and generation."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer

from ...common.environment import peak_memory
from ...run.metrics import flops_per_token, peak_flops
from ...step.compute import compile_layers, compute_dtype
from .checks import (
    CPU,
    Checks,
    SkipError,
    Trainer,
    deviation,
    last_line,
    load_model,
    model_folder,
    random_windows,
    seconds_per_call,
    sizes,
    synchronize,
)
from .parity import linear_loss

CONVENTIONS = {"none": "MFU 6N", "causal": "MFU causal", "full": "MFU PaLM"}


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


def generation(checks: Checks, device: torch.device, folder: Path) -> None:
    """Time greedy generation of both models, and compare the small one's text with the CPU's."""
    from ...common.generation import complete
    from ...pretraining.samples import PROMPTS

    size, dtype = sizes(device), compute_dtype("auto", device)
    path = model_folder(size, folder)
    prompt, new = size.generate

    def same_text() -> dict:
        tokenizer = PleiasTokenizer.from_pretrained(path)
        texts = [
            complete(load_model(path, place, torch.float32), tokenizer, list(PROMPTS.values()), max_new_tokens=new)
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
    for name, model in (("small", load_model(path, device, dtype)), ("large", large)):
        for batch in (1, 16):
            checks.run(f"{name} model, batch {batch}", speed, model, batch)
