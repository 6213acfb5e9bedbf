"""Models side by side: the same examples, and the differences to the first with paired intervals."""

from pathlib import Path

from ..files import read_json
from ..intervals import Metric, difference, interval


def figure(metric: Metric | float) -> dict | float:
    """A metric as it is written: with its interval, or the number alone where resamples do not differ, as of one
    example, or of copied characters where none is."""
    if not isinstance(metric, Metric):
        return metric
    if metric.rows.any(1).sum() < 2:
        return float(metric(metric.rows.sum(0)))
    found = interval(metric)
    return found if found["low"] < found["high"] else found["value"]


def compare(tasks: list, folders: dict[str, Path]) -> dict:
    """Task -> metric -> {"values": {model: figure}, "differences": {model: first minus model}}.

    Args:
        tasks: that were measured on every model.
        folders: of their results, by the models' names; the first model is the one that the others are held against.
    """
    content = {}
    for task in tasks:
        found = {name: task.metrics(read_record(folder, task.name)["record"]) for name, folder in folders.items()}
        first, *others = found
        content[task.name] = {
            metric: {
                "values": {name: figure(of[metric]) for name, of in found.items()},
                "differences": {
                    name: difference(found[first][metric], found[name][metric])
                    for name in others
                    if isinstance(found[first][metric], Metric)
                },
            }
            for metric in found[first]
            if all(metric in of for of in found.values())
        }
    return content


def record_path(folder: Path, task: str) -> Path:
    """Where what a model did in a task is kept, beside its results."""
    return folder / "records" / f"{task}.json"


def read_record(folder: Path, task: str) -> dict:
    """{"fingerprint", "record"} of a task."""
    return read_json(record_path(folder, task))
