"""How sure a measured figure is: bootstrap intervals over examples, and paired differences between two models."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A figure that follows from sums over examples, as error rates, means, chrF and BLEU do.

    Args:
        statistics: (N, K) what each of the N examples brings to the sums; (N,) for a plain mean.
        value: the figure, of the K sums (the last axis of an array of any shape); a mean when not given.
    """

    statistics: np.ndarray
    value: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """The figure of sums with K on the last axis."""
        return self.value(sums) if self.value else sums[..., 0] / sums[..., 1]

    @property
    def rows(self) -> np.ndarray:
        """(N, K) in double precision."""
        rows = np.asarray(self.statistics, dtype=np.float64)
        return rows if rows.ndim == 2 else np.stack([rows, np.ones_like(rows)], axis=1)


def ratio(numerators, denominators) -> Metric:
    """Sum over sum, as in an error rate: errors and characters of each example."""
    return Metric(np.stack([np.asarray(numerators), np.asarray(denominators)], axis=1))


def _resampled(rows: list[np.ndarray], samples: int, seed: int) -> list[np.ndarray]:
    """(samples, K) sums of each of some arrays over the same examples drawn with replacement."""
    count, random = len(rows[0]), np.random.default_rng(seed)
    sums = [np.empty((samples, one.shape[1])) for one in rows]
    for i in range(samples):
        drawn = np.bincount(random.integers(count, size=count), minlength=count).astype(np.float64)
        for one, into in zip(rows, sums, strict=True):
            into[i] = drawn @ one
    return sums


def _between(value: float, values: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return {"value": float(value), "low": float(low), "high": float(high)}


def interval(metric: Metric, *, samples: int = SAMPLES, seed: int = 0, level: float = 0.95) -> dict[str, float]:
    """{"value", "low", "high"}: a figure with its percentile bootstrap interval over examples.

    Where all of n yes-or-no examples come out alike, every resample does too; their interval is that of Clopper and
    Pearson, whose far end is 1 - (alpha / 2)^(1 / n) for none, alpha = 1 - level.

    Raises:
        ValueError: when there is no example.
    """
    rows = metric.rows
    if not len(rows):
        raise ValueError("a figure of no examples")
    yes, n = rows.sum(0)[:2]
    if metric.value is None and np.isin(rows, (0, 1)).all() and n and yes in (0, n):
        reach = 1 - ((1 - level) / 2) ** (1 / n)
        return {"value": float(yes / n), "low": float(max(0, yes / n - reach)), "high": float(min(1, yes / n + reach))}
    with np.errstate(invalid="ignore", divide="ignore"):
        return _between(metric(rows.sum(0)), metric(_resampled([rows], samples, seed)[0]), level)


def difference(
    a: Metric, b: Metric, *, samples: int = SAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """{"value", "low", "high"} of a - b, both drawn over the same examples: two models on the same texts.

    Raises:
        ValueError: when the two were not measured on equally many examples.
    """
    if len(a.rows) != len(b.rows):
        raise ValueError(f"a paired difference of {len(a.rows)} and {len(b.rows)} examples")
    first, second = a.rows, b.rows
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = _resampled([first, second], samples, seed)
        return _between(a(first.sum(0)) - b(second.sum(0)), a(drawn[0]) - b(drawn[1]), level)
