"""The loss's kernels: C functions and PyTorch's operations agree with fp64, and NaN and infinity propagate."""

import shutil

import pytest
import torch

from training.step import cross_entropy_kernels
from training.step.cross_entropy_kernels import PIECES, accumulate_, exp_and_sum_

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
WAYS = [pytest.param(True, marks=needs_compiler, id="in C"), pytest.param(False, id="in PyTorch")]


@pytest.fixture
def way(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(cross_entropy_kernels, "load_cpu_kernels", lambda: None)
    return request.param


def logits(V: int, n: int, *, scale: float = 4.0) -> torch.Tensor:
    return (torch.randn(V, n, generator=torch.Generator().manual_seed(V * n)) * scale).bfloat16()


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("V, n", [(1, 1), (PIECES - 1, 3), (101, 37), (1000, 512), (333, 1025)])
def test_exponentials_equal_those_of_fp64_rounded_once_and_their_sum_is_not_rounded(way, V, n):
    values = logits(V, n)
    exponentials = values.clone()
    assert cross_entropy_kernels.has_cpu_kernel(exponentials) is way
    largest, total = exp_and_sum_(exponentials)
    exact = (values.double() - values.double().amax(0)).exp()
    assert torch.equal(largest, values.float().amax(0))
    torch.testing.assert_close(total.double(), exact.sum(0), rtol=2e-6, atol=0)
    # Half a unit of the last of eight bits, plus the error of exp near a tie; denormals (below 1.2e-38) are not exact.
    torch.testing.assert_close(exponentials.double(), exact, rtol=2**-8 * 1.001, atol=1.2e-38)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
def test_a_non_finite_logit_makes_the_sum_of_its_position_nan_and_no_other(way, dtype, bad):
    values = logits(200, 40).to(dtype)
    values[17, 3] = bad
    _, total = exp_and_sum_(values)
    assert total.isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_impossible_tokens_add_nothing_to_the_sum(way):
    values = logits(200, 40)
    values[:, 3] = -1e30
    values[5, 3] = 2.0
    largest, total = exp_and_sum_(values)
    assert largest[3] == 2.0 and total[3] == 1.0 and values[5, 3] == 1.0


@needs_compiler
def test_results_are_bit_identical_for_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values = logits(5000, 70)
            results.append((*exp_and_sum_(values), values))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_adding_bf16_to_a_wider_sum_rounds_nothing_else(way, wide):
    total, part = torch.randn(37, 11, dtype=wide), logits(37, 11)
    expected = total + part.to(wide)
    accumulate_(total, part)
    assert torch.equal(total, expected)
