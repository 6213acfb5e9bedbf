"""Bootstrap intervals equal theory if there is one, and a plain resampling loop everywhere."""

import numpy as np
import pytest

from training.common.intervals import Metric, bootstrap_interval, paired_difference, ratio, ratios_by


def draws(count: int, samples: int, seed: int):
    """Return the bootstrap resamples as indices."""
    random = np.random.default_rng(seed)
    return [random.integers(count, size=count) for _ in range(samples)]


def test_a_mean_has_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    result, half = bootstrap_interval(Metric(values), samples=4000), 1.96 * values.std() / np.sqrt(2000)
    assert result["value"] == pytest.approx(values.mean())
    ends = values.mean() - half, values.mean() + half
    assert (result["low"], result["high"]) == pytest.approx(ends, abs=0.06 * half)


def test_a_ratio_of_sums_equals_a_plain_loop_over_resamples():
    random = np.random.default_rng(2)
    errors, characters = random.integers(0, 20, 50), random.integers(20, 200, 50)
    values = [errors[sample].sum() / characters[sample].sum() for sample in draws(50, 300, seed=7)]
    low, high = np.percentile(values, [2.5, 97.5])
    expected = {"value": errors.sum() / characters.sum(), "low": low, "high": high}
    assert bootstrap_interval(ratio(errors, characters), samples=300, seed=7) == pytest.approx(expected)


def test_any_function_of_sums_is_computed_from_resampled_sums():
    sums = np.random.default_rng(3).uniform(1, 2, (40, 3))
    metric = Metric(sums, lambda totals: totals[..., 0] * totals[..., 1] / totals[..., 2])
    values = [np.prod(sums[sample].sum(0)[:2]) / sums[sample].sum(0)[2] for sample in draws(40, 200, seed=0)]
    low, high = np.percentile(values, [5, 95])
    result = bootstrap_interval(metric, samples=200, level=0.9)
    assert (result["low"], result["high"]) == pytest.approx((low, high))


def test_a_paired_difference_resamples_the_same_examples():
    hard = np.random.default_rng(4).uniform(0, 100, 60)  # examples differ far more than the two models
    result = paired_difference(Metric(hard + 1.0), Metric(hard), samples=200)
    assert result == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    apart = bootstrap_interval(Metric(hard), samples=200)
    assert apart["high"] - apart["low"] > 10


@pytest.mark.parametrize("yes", [0, 30])
def test_yes_or_no_examples_that_all_agree_have_the_exact_interval(yes):
    """At the far end, n equal examples have probability alpha / 2."""
    result = bootstrap_interval(Metric(np.full(30, yes == 30)), level=0.9)
    far = result["high"] if yes == 0 else 1 - result["low"]
    assert result["value"] == (yes == 30) and (1 - far) ** 30 == pytest.approx(0.05)
    assert result["low"] == 0 if yes == 0 else result["high"] == 1


def test_a_resample_without_a_group_does_not_affect_its_interval():
    groups = ratios_by(["a", "a", "", "b", "b", "b", "b", "b"], np.arange(8), np.ones(8))
    assert list(groups) == ["a", "b"] and len(groups["a"].rows) == 8
    result = bootstrap_interval(groups["a"])
    assert result["value"] == 0.5 and result["low"] == 0.0 and result["high"] == 1.0


def test_no_examples_and_unequal_numbers_of_examples_are_rejected():
    with pytest.raises(ValueError, match="no examples"):
        bootstrap_interval(Metric(np.zeros(0)))
    with pytest.raises(ValueError, match="got 2 and 3 examples"):
        paired_difference(Metric(np.zeros(2)), Metric(np.zeros(3)))
