"""The optimizers: what Muon and AdamW each update, skipped steps, and the learning rate by step."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.step.optimizer import Muon, MuonAdamW, OptimizerConfig, build_optimizer, conditional_step, learning_rate

SETTINGS = OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=10)
BOTH = pytest.mark.parametrize("name", ["adamw", "muon"])


def model() -> PleiasForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return PleiasForCausalLM(PleiasConfig(vocab_size=100, num_key_value_heads=2, **shape))


def train(pleias, optimizer, skips: list[float], seed: int = 1) -> None:
    """Run one step per decision, each on its own random tokens."""
    for i, skip in enumerate(skips):
        ids = torch.randint(100, (2, 16), generator=torch.Generator().manual_seed(seed + i))
        pleias(input_ids=ids, labels=ids).loss.backward()
        if skip:
            pleias.model.norm.weight.grad.fill_(math.nan)
        conditional_step(torch.tensor(skip), optimizer)


def prepared(name: str, pleias):
    return Accelerator(cpu=True).prepare(build_optimizer(replace(SETTINGS, name=name), pleias))


def content(pleias, optimizer) -> list[torch.Tensor]:
    state = [value for p in pleias.parameters() for _, value in sorted(optimizer.state.get(p, {}).items())]
    return [*(p.detach() for p in pleias.parameters()), *state]


@BOTH
def test_a_skipped_step_changes_nothing(name):
    first, other = model(), model()
    with_skips, without = prepared(name, first), prepared(name, other)
    train(first, with_skips, [0.0])
    train(first, with_skips, [1.0, 1.0], seed=50)
    train(first, with_skips, [0.0], seed=2)
    train(other, without, [0.0, 0.0])
    a, b = content(first, with_skips), content(other, without)
    assert len(a) == len(b) > 2 * len(list(first.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(p.grad is None for p in first.parameters())


@BOTH
def test_a_step_taken_moves_every_parameter(name):
    pleias = model()
    before = [p.detach().clone() for p in pleias.parameters()]
    train(pleias, prepared(name, pleias), [0.0])
    assert not any(torch.equal(p, old) for p, old in zip(pleias.parameters(), before, strict=True))


def test_muon_takes_the_matrices_inside_the_layers_and_adamw_the_rest():
    pleias = model()
    optimizer = build_optimizer(replace(SETTINGS, name="muon"), pleias)
    train(pleias, Accelerator(cpu=True).prepare(optimizer), [0.0])
    by_muon = {name for name, p in pleias.named_parameters() if set(optimizer.state[p]) == {"momentum_buffer"}}
    by_adamw = {name for name, p in pleias.named_parameters() if "exp_avg_sq" in optimizer.state[p]}
    assert by_adamw == {name for name, p in pleias.named_parameters() if "embed" in name or "norm" in name}
    assert by_muon | by_adamw == {name for name, _ in pleias.named_parameters()} and not by_muon & by_adamw


@pytest.mark.parametrize("shape", [(48, 128), (100, 40)])
def test_muon_is_torchs_own_bit_for_bit_in_bf16_and_within_its_rounding_in_fp32(shape, monkeypatch):
    def updated(kind, **settings) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(shape, generator=generator))
        optimizer = kind([matrix], lr=1.0, weight_decay=0.01, momentum=0.95, **settings)
        for _ in range(3):
            matrix.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        return matrix.detach()

    oracle = updated(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    monkeypatch.setattr("training.step.optimizer.compute_dtype", lambda precision, device: torch.bfloat16)
    assert torch.equal(updated(Muon), oracle)
    monkeypatch.setattr("training.step.optimizer.compute_dtype", lambda precision, device: torch.float32)
    relative = (updated(Muon) - oracle).norm() / oracle.norm()
    assert 0 < relative < 2e-2  # bf16 has 8 bits of precision, and its errors add up over five iterations


def test_muon_takes_no_bf16_product_on_a_cpu_without_bf16(without_bf16):
    pleias = model()
    train(pleias, prepared("muon", pleias), [0.0])


def test_one_learning_rate_serves_both_because_their_updates_are_of_one_size():
    pleias = model()
    before = {name: p.detach().clone() for name, p in pleias.named_parameters()}
    train(pleias, prepared("muon", pleias), [0.0])
    rms = {name: (p.detach() - before[name]).square().mean().sqrt() / 1e-2 for name, p in pleias.named_parameters()}
    assert all(0.1 < rms[name] < 0.35 for name in rms if name.endswith("proj.weight")), rms  # 0.2 as they aim at


@BOTH
def test_an_optimizer_with_the_loaded_state_of_another_continues_the_same(name):
    source, other = model(), model()
    first, second = prepared(name, source), prepared(name, other)
    train(source, first, [0.0, 0.0])
    other.load_state_dict(source.state_dict())
    second.load_state_dict(deepcopy(first.state_dict()))
    for optimizer in (first, second):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3
    train(source, first, [0.0], seed=9)
    train(other, second, [0.0], seed=9)
    assert all(torch.equal(x, y) for x, y in zip(content(source, first), content(other, second), strict=True))
    assert isinstance(second.optimizer, MuonAdamW) == (name == "muon")


def test_wsd_keeps_its_peak_and_decays_linearly_at_the_end():
    o = replace(SETTINGS, schedule="wsd")
    rate = [learning_rate(o, step, steps=100) for step in range(1, 101)]
    assert rate[:10] == pytest.approx([1e-3 * step for step in range(1, 11)])
    assert rate[10:80] == pytest.approx([1e-2] * 70)  # a fifth of all steps decays
    assert rate[80:] == pytest.approx([1e-2 - (1e-2 - 1e-3) * n / 20 for n in range(1, 21)])
    shorter = [learning_rate(replace(o, decay_steps=16), step, steps=100) for step in (84, 92, 100, 500)]
    assert shorter == pytest.approx([1e-2, (1e-2 + 1e-3) / 2, 1e-3, 1e-3])


def test_a_longer_wsd_run_is_the_same_up_to_the_decay_of_the_shorter():
    o = replace(SETTINGS, schedule="wsd", decay_steps=10)
    assert [learning_rate(o, s, steps=50) for s in range(1, 41)] == [
        learning_rate(o, s, steps=90) for s in range(1, 41)
    ]
