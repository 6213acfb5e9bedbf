"""Model, gradients, losses, optimizers and step guard on a device, compared with double precision on the CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from ...step.compute import NextTokenLoss, compile_layers, compute_dtype, flush_denormals
from ...step.cross_entropy_kernels import exp_and_sum_
from ...step.loss import LinearCrossEntropy
from ...step.optimizer import OptimizerConfig, build_optimizer, orthogonalize
from ...step.sampled_softmax import Candidates, SampledCrossEntropy
from .checks import (
    CPU,
    Checks,
    SkipError,
    Trainer,
    deviation,
    gradient,
    load_model,
    model_folder,
    random_windows,
    sizes,
)

NEWTON_SCHULZ = {"coefficients": (3.4445, -4.775, 2.0315), "steps": 5, "eps": 1e-7}  # of torch.optim.Muon


def parity(checks: Checks, device: torch.device, folder: Path) -> None:
    """Compare model, gradients, losses, optimizers and step guard with double precision on the CPU."""
    size = sizes(device)
    path = model_folder(size, folder)
    (batch, length), vocabulary = size.batch, size.small.vocab_size
    windows = random_windows(vocabulary, batch, length + 1)
    exact = load_model(path, CPU, torch.float64, "eager")
    logits = exact(input_ids=windows[:, :-1], use_cache=False).logits
    cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
    gradients = gradient(exact)

    def logits_of(dtype: torch.dtype, attention: str, limit: float, backend=None) -> dict:
        if attention == "flash_attention_2":
            import_module("flash_attn")  # transformers' error does not name the library
        kernel = torch.nn.attention.sdpa_kernel(backend) if backend else nullcontext()
        with torch.no_grad(), kernel:
            result = load_model(path, device, dtype, attention)(
                input_ids=windows[:, :-1].to(device), use_cache=False
            ).logits
        return {"deviation": deviation(result, logits), "limit": limit}

    def gradients_of(dtype: torch.dtype, limit: float) -> dict:
        loss = NextTokenLoss(load_model(path, device, torch.float32), dtype)
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
    model = load_model(path, device, torch.float32)
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


def skipped_step(name: str, device: torch.device, path: Path, windows: torch.Tensor) -> dict:
    """Check that a step with a NaN loss changes nothing, and that the next step trains."""
    trainer, ids = (
        Trainer(load_model(path, device, torch.float32), name, device, compute_dtype("auto", device)),
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
    trainer = Trainer(load_model(path, device, torch.float32), "adamw", device, torch.bfloat16)
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
        model = load_model(path, device, torch.float32)
        if compile_them:
            compile_layers(model)
        NextTokenLoss(model, dtype)(windows.to(device)).backward()
        return gradient(model)

    def compare(dtype: torch.dtype, limit: float) -> dict:
        return {"deviation": deviation(gradients(True, dtype), gradients(False, dtype)), "limit": limit}

    checks.run("gradients of compiled layers, fp32", compare, torch.float32, 1e-3)
    checks.run("gradients of compiled layers, bf16", compare, torch.bfloat16, 0.05)
