"""Metric of conversations."""

from collections import Counter

from ...common.intervals import Metric, ratio
from ..markers import unescape
from .format import END


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compute `answer_f1`, the F1 of words shared with the reference answers, also per task (`ocr_answer_f1`)."""
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        texts = row["completion"].partition(END)[0], output
        reference, generated = (Counter(unescape(text).lower().split()) for text in texts)
        counts.append([2 * (reference & generated).total(), reference.total() + generated.total()])
    groups = {"answer_f1": range(len(rows))}
    for task in sorted({row["task"] for row in rows if row.get("task")}):
        groups[f"{task}_answer_f1"] = [i for i, row in enumerate(rows) if row.get("task") == task]
    return {name: ratio([counts[i][0] for i in some], [counts[i][1] for i in some]) for name, some in groups.items()}
