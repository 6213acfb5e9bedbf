"""Compute settings: bf16 follows fp32, compiled layers use fused attention, freed memory is kept."""

import platform
from pathlib import Path

import pytest
import torch
from programs import run_program

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.step.compute import NextTokenLoss, compile_layers, compute_dtype
from training.step.optimizer import OptimizerConfig, adamw

ROOT = Path(__file__).parents[2]
SHAPE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}


def model() -> PleiasForCausalLM:
    torch.manual_seed(0)
    return PleiasForCausalLM(PleiasConfig(**SHAPE))


def losses(dtype: torch.dtype, *, steps: int, compiled: bool = False) -> list[float]:
    """Return losses on sequences whose ids are 3 times the previous one plus 1; it takes some dozen steps to learn."""
    pleias, generator = model(), torch.Generator().manual_seed(0)
    if compiled:
        compile_layers(pleias)
    module, optimizer = NextTokenLoss(pleias, dtype), adamw(pleias.parameters(), OptimizerConfig(learning_rate=5e-3))
    seen = []
    for _ in range(steps):
        ids = [torch.randint(256, (8,), generator=generator)]
        for _ in range(32):
            ids.append((ids[-1] * 3 + 1) % 256)
        loss = module(torch.stack(ids, 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pleias.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


def test_training_in_bf16_follows_training_in_fp32():
    fp32, bf16 = losses(torch.float32, steps=60), losses(torch.bfloat16, steps=60)
    assert fp32[0] > 5.4 and fp32[-1] < 1.0  # the task is learned
    assert max(abs(a - b) for a, b in zip(fp32, bf16, strict=True)) < 0.1
    assert abs(sum(fp32) - sum(bf16)) / len(fp32) < 0.02


def test_bf16_keeps_weights_gradients_and_optimizer_state_in_fp32_and_the_residual_stream_in_bf16():
    pleias = model()
    seen = []
    for layer in pleias.model.layers:
        layer.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    NextTokenLoss(pleias, torch.bfloat16)(torch.randint(256, (2, 33))).backward()
    assert seen == [torch.bfloat16] * 2
    optimizer = adamw(pleias.parameters(), OptimizerConfig())
    optimizer.step()
    held = [p for p in pleias.parameters()] + [p.grad for p in pleias.parameters()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_calls_causal_grouped_attention_without_mask_or_repeated_heads(dtype):
    calls, pleias = [], model()

    def backend(graph, inputs):
        for node in graph.graph.nodes:
            if node.target is torch.nn.functional.scaled_dot_product_attention:
                heads = [argument.meta["example_value"].shape[1] for argument in node.args[:3]]
                calls.append((heads, dict(node.kwargs)))
        return graph

    for layer in pleias.model.layers:
        layer.compile(backend=backend)
    NextTokenLoss(pleias, dtype)(torch.randint(256, (2, 33))).backward()
    assert len(calls) == 1  # one graph for all layers, without a break
    heads, options = calls[0]
    assert heads == [4, 2, 2]
    assert options["attn_mask"] is None and options["is_causal"] is True and options["enable_gqa"] is True


@pytest.mark.slow
def test_compiled_layers_train_like_the_others():
    torch._dynamo.reset()
    plain, compiled = losses(torch.float32, steps=5), losses(torch.float32, steps=5, compiled=True)
    assert compiled == pytest.approx(plain, abs=1e-4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_by_the_process(monkeypatch, tmp_path):
    code = """
import resource, sys, torch
from training.step.compute import configure_allocator
if sys.argv[1] == "keep":
    configure_allocator()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(25_000_000).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)  # a run in this process may have set it

    def faults(how: str) -> int:
        return int(run_program(None, how, prelude=code, log=tmp_path).stdout)

    left = faults("leave")
    assert left > 20_000  # 100 MB in pages of 4 KB
    assert faults("keep") < left / 10  # almost none, but a kernel short of memory reclaims some


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs may not support it")
@pytest.mark.parametrize("how, left", [("leave", True), ("flush", False)])
def test_denormals_are_flushed_to_zero_in_every_thread(how, left, tmp_path):
    code = """
import sys, torch
from training.step.compute import flush_denormals
if sys.argv[1] == "flush":
    flush_denormals()
torch.set_num_threads(2)
small = torch.full((1_000_000,), 1e-30, requires_grad=True)  # enough for several threads
out = small * 1e-10
out.backward(torch.full_like(out, 1e-30))
print(sorted({bool(half.any()) for x in (out, small.grad) for half in x.detach().chunk(2)}))
"""
    done = run_program(None, how, prelude=code, log=tmp_path)
    assert done.stdout.split() == [f"[{left}]"]


def test_precision_is_as_requested_and_auto_is_what_the_cpu_has_instructions_for():
    cpu = torch.device("cpu")
    # ATEN_CPU_CAPABILITY=avx2 makes torch compute as on a CPU without AVX512.
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    assert compute_dtype("bf16", cpu) == torch.bfloat16 and compute_dtype("fp32", cpu) == torch.float32
    assert compute_dtype("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
