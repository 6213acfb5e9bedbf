"""Intervals are those of the theory where there is one, and of a plain resampling loop everywhere."""

import numpy as np
import pytest

from training.intervals import Metric, difference, interval, ratio


def draws(count: int, samples: int, seed: int):
    """The resamples that the bootstrap draws, as indices."""
    random = np.random.default_rng(seed)
    return [random.integers(count, size=count) for _ in range(samples)]


def test_a_mean_has_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found, half = interval(Metric(values), samples=4000), 1.96 * values.std() / np.sqrt(2000)
    assert found["value"] == pytest.approx(values.mean())
    ends = values.mean() - half, values.mean() + half
    assert (found["low"], found["high"]) == pytest.approx(ends, abs=0.06 * half)


def test_a_ratio_of_sums_equals_a_plain_loop_over_resamples():
    random = np.random.default_rng(2)
    errors, characters = random.integers(0, 20, 50), random.integers(20, 200, 50)
    values = [errors[drawn].sum() / characters[drawn].sum() for drawn in draws(50, 300, seed=7)]
    low, high = np.percentile(values, [2.5, 97.5])
    expected = {"value": errors.sum() / characters.sum(), "low": low, "high": high}
    assert interval(ratio(errors, characters), samples=300, seed=7) == pytest.approx(expected)


def test_any_function_of_sums_is_resampled_as_a_whole():
    sums = np.random.default_rng(3).uniform(1, 2, (40, 3))
    metric = Metric(sums, lambda totals: totals[..., 0] * totals[..., 1] / totals[..., 2])
    values = [np.prod(sums[drawn].sum(0)[:2]) / sums[drawn].sum(0)[2] for drawn in draws(40, 200, seed=0)]
    low, high = np.percentile(values, [5, 95])
    found = interval(metric, samples=200, level=0.9)
    assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_a_paired_difference_is_drawn_over_the_same_examples():
    hard = np.random.default_rng(4).uniform(0, 100, 60)  # examples differ far more than the two models do
    found = difference(Metric(hard + 1.0), Metric(hard), samples=200)
    assert found == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    apart = interval(Metric(hard), samples=200)
    assert apart["high"] - apart["low"] > 10


@pytest.mark.parametrize("yes", [0, 30])
def test_yes_or_no_examples_that_all_agree_have_the_exact_interval(yes):
    """At its far end, as many that agree come up with probability alpha / 2."""
    found = interval(Metric(np.full(30, yes == 30)), level=0.9)
    far = found["high"] if yes == 0 else 1 - found["low"]
    assert found["value"] == (yes == 30) and (1 - far) ** 30 == pytest.approx(0.05)
    assert found["low"] == 0 if yes == 0 else found["high"] == 1


def test_a_group_that_a_resample_leaves_out_does_not_spoil_the_interval():
    inside = np.array([1, 1, 0, 0, 0, 0, 0, 0])
    found = interval(ratio(np.arange(8) * inside, inside))
    assert found["value"] == 0.5 and found["low"] == 0.0 and found["high"] == 1.0


def test_no_examples_and_unequal_numbers_of_them_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        interval(Metric(np.zeros(0)))
    with pytest.raises(ValueError, match="2 and 3 examples"):
        difference(Metric(np.zeros(2)), Metric(np.zeros(3)))
