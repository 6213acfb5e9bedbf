"""The chunked loss equals cross-entropy on full logits, in value and gradients, and never stores those logits."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.step import cross_entropy_kernels, loss
from training.step.loss import LinearCrossEntropy, next_token_loss

N, D, V = 37, 16, 101


def problem(dtype=torch.float64, seed=0):
    """hidden (N, D), weight (V, D), targets (N,); logits of a few units: the softmax is neither flat nor one-hot."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), generator=generator)


def plain(hidden, weight, targets):
    """The oracle: (N, V) logits and PyTorch's cross-entropy, in fp64."""
    return functional.cross_entropy(hidden.double() @ weight.double().T, targets)


class Recorder(TorchDispatchMode):
    """Record every operation and the size of the largest tensor returned."""

    def __init__(self):
        super().__init__()
        self.operations, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append(function.overloadpacket.__name__)
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 5, N - 1, N, 10 * N], ids=lambda rows: f"{rows} rows at once")
def test_value_and_gradients_equal_those_of_full_logits_for_every_chunk_size(monkeypatch, rows, dtype):
    monkeypatch.setattr(loss, "CHUNK_BYTES", rows * V * dtype.itemsize)
    hidden, weight, targets = problem(dtype)
    ours = LinearCrossEntropy.apply(hidden, weight, targets, dtype)
    expected = plain(hidden, weight, targets)
    assert ours.dtype == torch.float32 and ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, oracle in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (ours, expected)), strict=True):
        assert gradient.dtype == dtype
        assert (gradient - oracle).abs().max() < 1e-6 * oracle.abs().max()


def test_bf16_matmuls_are_close_to_fp32_and_gradients_have_the_dtype_of_the_weights():
    hidden, weight, targets = problem(torch.float32)
    ours = LinearCrossEntropy.apply(hidden, weight, targets, torch.bfloat16)
    expected = plain(hidden, weight, targets)
    assert ours.item() == pytest.approx(expected.item(), rel=5e-3)  # bf16 has 8 bits of mantissa
    for gradient, oracle in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (ours, expected)), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - oracle).norm() < 0.02 * oracle.norm()


def test_the_gradient_is_scaled_by_the_incoming_gradient():
    hidden, weight, targets = problem(torch.float32)

    def gradients(factor):
        ours = LinearCrossEntropy.apply(hidden, weight, targets, torch.float32)
        return torch.autograd.grad(ours * factor, (hidden, weight))

    once, scaled = gradients(1.0), gradients(0.25)
    for gradient, quarter in zip(once, scaled, strict=True):
        assert torch.equal(gradient * 0.25, quarter)  # a power of two: exact


def test_certain_and_hopeless_predictions_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    ours = LinearCrossEntropy.apply(hidden, weight, torch.tensor([0, 0]), torch.float32)
    assert ours.item() == 1e4  # (0 + 2e4) / 2
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(ours, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_all_logits_is_created(dtype, monkeypatch):
    rows, entries = 1024, 65_536
    monkeypatch.setattr(loss, "CHUNK_BYTES", rows * entries * dtype.itemsize // 4)
    hidden = torch.randn(rows, 4).requires_grad_()
    weight = torch.randn(entries, 4).requires_grad_()
    with Recorder() as recorder:
        LinearCrossEntropy.apply(hidden, weight, torch.arange(rows), dtype).backward()
    assert recorder.largest == rows * entries // 4
    assert hidden.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0


def tiny_model(*, tied: bool) -> PleiasForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return PleiasForCausalLM(PleiasConfig(**shape, num_key_value_heads=2, vocab_size=V, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_gets_the_gradients_of_the_plain_loss_and_tied_weights_the_sum_of_both_uses(tied):
    model = tiny_model(tied=tied).double()
    windows = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(1))
    ours = next_token_loss(model, windows, dtype=torch.float64)
    ours.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    # The Function computes softmax and sums in fp32, hence the tolerance.
    logits = model(input_ids=windows[:, :-1]).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ("lm_head.weight" in gradients) is not tied
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-8, msg=name)
    if tied:
        # Tokens that occur only as inputs, and only as targets, both change the shared weight.
        rows = gradients["model.embed_tokens.weight"].abs().sum(-1)
        assert (rows > 0).all()


def test_it_is_the_mean_over_every_token_except_the_first_as_in_transformers():
    model = tiny_model(tied=True)
    windows = torch.randint(V, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=windows, labels=windows).loss
    assert next_token_loss(model, windows, dtype=torch.float32).item() == pytest.approx(expected.item(), rel=1e-6)


def test_validation_computes_no_gradients(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 8 * V * 4)
    model = tiny_model(tied=True)
    windows = torch.randint(V, (2, 9))
    with torch.no_grad(), Recorder() as recorder:
        value = next_token_loss(model, windows, dtype=torch.float32)
    assert not value.requires_grad
    with Recorder() as training:
        next_token_loss(model, windows, dtype=torch.float32)
    # Two chunks; each has one matmul for logits and two for gradients.
    assert training.operations.count("mm") - recorder.operations.count("mm") == 4


def test_a_second_backward_fails_and_does_not_return_gradients_scaled_twice():
    hidden, weight, targets = problem(torch.float32)
    ours = LinearCrossEntropy.apply(hidden, weight, targets, torch.float32)
    ours.backward(retain_graph=True)
    with pytest.raises(TypeError):
        ours.backward()


@pytest.mark.parametrize("rows", [5, 10 * N], ids=lambda rows: f"{rows} rows at once")
def test_without_compiled_kernels_bf16_gives_the_same_up_to_rounding(monkeypatch, rows):
    monkeypatch.setattr(loss, "CHUNK_BYTES", rows * V * 2)
    hidden, weight, targets = problem(torch.float32)

    def results():
        ours = LinearCrossEntropy.apply(hidden, weight, targets, torch.bfloat16)
        return ours, *torch.autograd.grad(ours, (hidden, weight))

    first = results()
    monkeypatch.setattr(cross_entropy_kernels, "load_cpu_kernels", lambda: None)
    for first_result, other in zip(first, results(), strict=True):
        assert (first_result - other).norm() <= 0.005 * other.norm()
