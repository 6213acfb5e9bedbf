"""Sampled softmax: its definition, an estimate without bias, and the candidates of a step."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.common.config import InputError
from training.step.loss import LinearCrossEntropy, next_token_loss
from training.step.sampled_softmax import CHUNK_TOKENS, Candidates, CandidateSampler, SampledCrossEntropy

N, D, V = 37, 16, 101
CPU = torch.device("cpu")


def problem(dtype=torch.float64):
    """hidden (N, D), weight (V, D), targets (N,)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype) for n in (N, V))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (N,), generator=generator)


def drawn(size: int = 40, seed: int = 1) -> Candidates:
    """Return some candidates, half of them certain."""
    ids = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[:size]
    return Candidates(ids, size // 2, float(np.log((V - size // 2) / (size - size // 2))))


def by_definition(hidden, weight, targets, candidates):
    """Compute the loss per position: the target, and each other candidate with its weight."""
    losses = []
    for row, target in zip(hidden.double(), targets, strict=True):
        terms = [row @ weight[target].double()]
        for i, token in enumerate(candidates.ids):
            if token != target:
                more = 0.0 if i < candidates.certain else candidates.log_weight
                terms.append(row @ weight[token].double() + more)
        losses.append(torch.stack(terms).logsumexp(0) - terms[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_value_and_gradients_are_those_of_the_definition(dtype, close):
    hidden, weight, targets = problem(torch.promote_types(dtype, torch.float32))
    candidates = drawn()
    assert 0 < sum(target in candidates.ids for target in targets) < N  # sampled targets, and others
    ours = SampledCrossEntropy.apply(hidden, weight, targets, candidates, dtype)
    expected = by_definition(hidden, weight, targets, candidates)
    assert ours.item() == pytest.approx(expected.item(), rel=max(close, 1e-6) / 3)  # the value itself is fp32
    for gradient, oracle in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (ours, expected)), strict=True):
        assert gradient.dtype == hidden.dtype
        assert (gradient - oracle).norm() < close * oracle.norm()


def test_with_every_token_certain_it_is_the_loss_over_the_vocabulary():
    hidden, weight, targets = problem()
    ours = SampledCrossEntropy.apply(hidden, weight, targets, Candidates(torch.randperm(V), V, 5.0), torch.float64)
    full = LinearCrossEntropy.apply(hidden, weight, targets, torch.float64)
    assert ours.item() == pytest.approx(full.item(), rel=1e-6)
    for gradient, oracle in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (ours, full)), strict=True):
        torch.testing.assert_close(gradient, oracle, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("target", [1, 5], ids=["a common target", "a rare target"])
def test_over_all_possible_samples_the_mean_sum_of_exponentials_is_that_of_the_vocabulary(target):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    logits = (hidden @ weight.T)[0]
    sums = []
    for rare in combinations([3, 4, 5, 6, 7], 3):
        candidates = Candidates(torch.tensor([0, 1, 2, *rare]), 3, float(np.log(5 / 3)))
        loss = SampledCrossEntropy.apply(hidden, weight, torch.tensor([target]), candidates, torch.float64)
        sums.append((loss.double() + logits[target]).exp())
    assert torch.stack(sums).mean().item() == pytest.approx(logits.exp().sum().item(), rel=1e-6)


def test_the_mean_over_micro_batches_is_the_loss_of_the_step():
    hidden, weight, targets = problem()
    parts = [
        SampledCrossEntropy.apply(hidden[rows], weight, targets[rows], drawn(), torch.float64) * len(rows) / N
        for rows in torch.arange(N).split(8)
    ]
    full = SampledCrossEntropy.apply(hidden, weight, targets, drawn(), torch.float64)
    assert sum(parts).item() == pytest.approx(full.item(), rel=1e-6)


def test_a_certain_prediction_has_no_gradient_left_in_bf16():
    hidden = torch.full((1, D), 3.0).requires_grad_()
    weight = torch.zeros(V, D)
    weight[7] = 1.01
    weight.requires_grad_()
    SampledCrossEntropy.apply(hidden, weight, torch.tensor([7]), drawn(), torch.bfloat16).backward()
    assert hidden.grad.abs().max() < 1e-6 and weight.grad.abs().max() < 1e-6


def stream(tokens: np.ndarray) -> SimpleNamespace:
    """Return the part of a TokenStream that the sampler reads, without shards."""
    return SimpleNamespace(starts=np.array([0, len(tokens)]), tokens=lambda start, stop: tokens[start:stop])


def test_half_of_the_candidates_are_the_most_common_tokens_and_the_others_change_from_step_to_step(monkeypatch):
    monkeypatch.setattr("training.step.sampled_softmax.CHUNK_TOKENS", 1000)
    assert CHUNK_TOKENS > 1000
    tokens = np.minimum(np.random.default_rng(0).geometric(0.02, 50_000), V - 1).astype(np.uint16)
    counts = np.bincount(tokens, minlength=V)
    draw = CandidateSampler(stream(tokens), 20, vocab_size=V, seed=3)
    first, again, second = draw(1, CPU), draw(1, CPU), draw(2, CPU)
    assert torch.equal(first.ids, again.ids) and not torch.equal(first.ids, second.ids)
    for candidates in (first, second):
        assert len(set(candidates.ids.tolist())) == 20 and candidates.certain == 10
        common, rare = counts[candidates.ids[:10]], np.delete(counts, candidates.ids[:10])
        assert common.min() >= rare.max()
        assert candidates.log_weight == pytest.approx(np.log((V - 10) / 10))


@pytest.mark.parametrize("size", [0, 21, V + 1])
def test_an_impossible_number_of_candidates_is_rejected(size):
    with pytest.raises(InputError, match=f"candidates must be even and below the vocabulary's {V}, got {size}"):
        CandidateSampler(stream(np.zeros(10, np.uint16)), size, vocab_size=V, seed=0)


def test_only_training_uses_candidates():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = PleiasForCausalLM(PleiasConfig(**shape, num_key_value_heads=2, vocab_size=V, tie_word_embeddings=True))
    windows = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(1))
    full = next_token_loss(model, windows, dtype=torch.float32)
    assert next_token_loss(model, windows, dtype=torch.float32, candidates=drawn()).item() != full.item()
    with torch.no_grad():
        held_out = next_token_loss(model, windows, dtype=torch.float32, candidates=drawn())
    assert held_out.item() == pytest.approx(full.item(), rel=1e-6)
