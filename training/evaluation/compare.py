"""Compare models on the same examples: metrics, and paired differences to the first model."""

from pathlib import Path

from ..common.files import read_json
from ..common.intervals import Metric, bootstrap_interval, paired_difference


def with_interval(metric: Metric | float) -> dict | float:
    """Return a metric with its interval, as results store it.

    A metric without variation has no interval: one example, or copied characters if none are copied.
    """
    if not isinstance(metric, Metric):
        return metric
    if metric.rows.any(1).sum() < 2:
        return float(metric(metric.rows.sum(0)))
    values = bootstrap_interval(metric)
    return values if values["low"] < values["high"] else values["value"]


def compare(tasks: list, folders: dict[str, Path], contamination: dict) -> dict:
    """Return task -> metric -> {"values": {model: value}, "differences": {model: first minus model}}.

    The tasks must be measured on every model; `folders` has the results folder by model name, and `contamination` the
    TaskContamination by task.
    """
    content = {}
    for task in tasks:
        records = {name: read_json(record_path(folder, task.name))["record"] for name, folder in folders.items()}
        metrics = {name: task.metrics(record) for name, record in records.items()}
        if task.name in contamination:
            metrics = {name: contamination[task.name].metrics(values) for name, values in metrics.items()}
        first, *others = metrics.values()
        content[task.name] = {
            key: {
                "values": {name: with_interval(values[key]) for name, values in metrics.items()},
                "differences": {
                    name: paired_difference(first[key], values[key])
                    for name, values in list(metrics.items())[1:]
                    if isinstance(first[key], Metric)
                },
            }
            for key in first
            if all(key in values for values in others)
        }
    return content


def record_path(folder: Path, task: str) -> Path:
    """Return the path of a task's record, {"fingerprint", "record"}: outputs or scores that metrics follow from."""
    return folder / "records" / f"{task}.json"
