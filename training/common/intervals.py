"""Bootstrap confidence intervals of metrics, and paired differences between two models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A metric that is a function of sums over examples, such as an error rate, a mean, chrF or BLEU.

    Args:
        statistics: Contribution of each of the N examples to the K sums, (N, K); (N,) for a plain mean.
        value: Function from the K sums (the last axis of an array of any shape) to the metric. Default: the mean.
    """

    statistics: np.ndarray
    value: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Return the metric of sums with K on the last axis."""
        return self.value(sums) if self.value else sums[..., 0] / sums[..., 1]

    @property
    def rows(self) -> np.ndarray:
        """Statistics as (N, K) in double precision."""
        rows = np.asarray(self.statistics, dtype=np.float64)
        return rows if rows.ndim == 2 else np.stack([rows, np.ones_like(rows)], axis=1)


def ratio(numerators, denominators) -> Metric:
    """Return the metric sum / sum, such as an error rate from the errors and characters of each example."""
    return Metric(np.stack([np.asarray(numerators), np.asarray(denominators)], axis=1))


def ratios_by(groups: Iterable[str], numerators, denominators) -> dict[str, Metric]:
    """Return a ratio per group, in order of appearance; examples in the group "" are in none.

    The examples of other groups count as 0 / 0, so that two models are resampled over the same examples.
    """
    groups, numerators, denominators = np.array(list(groups)), np.asarray(numerators), np.asarray(denominators)
    metrics = {}
    for group in filter(None, dict.fromkeys(groups.tolist())):
        inside = groups == group
        metrics[group] = ratio(numerators * inside, denominators * inside)
    return metrics


def _resampled(rows: list[np.ndarray], samples: int, seed: int) -> list[np.ndarray]:
    """Return, for each array, the (samples, K) sums over the same examples sampled with replacement."""
    count, random = len(rows[0]), np.random.default_rng(seed)
    sums = [np.empty((samples, array.shape[1])) for array in rows]
    for i in range(samples):
        weights = np.bincount(random.integers(count, size=count), minlength=count).astype(np.float64)
        for array, array_sums in zip(rows, sums, strict=True):
            array_sums[i] = weights @ array
    return sums


def _between(value: float, values: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return {"value": float(value), "low": float(low), "high": float(high)}


def bootstrap_interval(
    metric: Metric, *, samples: int = SAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Return {"value", "low", "high"}: a metric with its percentile bootstrap interval over examples.

    If all n yes-or-no examples are equal, so is every resample; then the interval is that of Clopper and Pearson,
    whose far end is 1 - (alpha / 2)^(1 / n) for none, alpha = 1 - level.

    Raises:
        ValueError: If there are no examples.
    """
    rows = metric.rows
    if not len(rows):
        raise ValueError("a metric needs at least one example, got no examples")
    yes, n = rows.sum(0)[:2]
    if metric.value is None and np.isin(rows, (0, 1)).all() and n and yes in (0, n):
        margin = 1 - ((1 - level) / 2) ** (1 / n)
        share = float(yes / n)
        return {"value": share, "low": float(max(0, share - margin)), "high": float(min(1, share + margin))}
    with np.errstate(invalid="ignore", divide="ignore"):
        return _between(metric(rows.sum(0)), metric(_resampled([rows], samples, seed)[0]), level)


def paired_difference(
    a: Metric, b: Metric, *, samples: int = SAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Return {"value", "low", "high"} of a - b, both resampled over the same examples: two models on the same texts.

    Raises:
        ValueError: If the metrics have different numbers of examples.
    """
    first, second = a.rows, b.rows
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same examples, got {len(first)} and {len(second)} examples")
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = _resampled([first, second], samples, seed)
        return _between(a(first.sum(0)) - b(second.sum(0)), a(sums[0]) - b(sums[1]), level)
