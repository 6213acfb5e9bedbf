"""Contamination of evaluations: test texts that occur verbatim in the training shards, and metrics without them."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..common.config import InputError
from ..common.intervals import Metric, paired_difference, ratio
from ..tracing.contamination import TextOverlap, find_overlaps
from ..tracing.search import THRESHOLDS, TraceIndex
from .compare import with_interval
from .held_out_text import Text

# A text is contaminated if passages of MIN_TOKENS cover SHARE of its tokens. Measured with femto's training documents,
# in texts of 100 tokens: found are all texts that were trained on, also with 5% of their words replaced; 96% with 10%
# replaced, 47% with 20%, and 88% with other line breaks. Of texts of held-out works and authors 6.0% are contaminated,
# because formulas, licences and help pages repeat each other; of the same with shuffled words, 0.3%. Passages of 20
# tokens with a share of 0.2 find all, 99%, 90%, 51% and 23%, and have 7.7% and 0.7%.
MIN_TOKENS, SHARE = 10, 0.5
LISTED = 20  # texts with the longest passages in a result


def totals(overlaps: list[TextOverlap], min_tokens: int) -> dict:
    """Return the number of contaminated texts, their share and that of covered tokens, with intervals.

    Texts that are too short to be checked count as not contaminated.
    """
    flags = np.array([is_contaminated(overlap, min_tokens) for overlap in overlaps])
    tokens = [overlap.tokens for overlap in overlaps]
    covered = {length: [overlap.covered[length] for overlap in overlaps] for length in lengths_for(min_tokens)}
    return {
        "texts": len(overlaps),
        "too_short": sum(not overlap.checked for overlap in overlaps),
        "tokens": sum(tokens),
        "contaminated_texts": int(flags.sum()),
        "contaminated": with_interval(Metric(flags)),
        "covered_tokens": with_interval(ratio(covered[min_tokens], tokens)),
        "covered_by_length": {str(length): sum(counts) / max(1, sum(tokens)) for length, counts in covered.items()},
        "longest": max((overlap.longest for overlap in overlaps), default=0),
    }


def lengths_for(min_tokens: int) -> tuple[int, ...]:
    """Return the minimum tokens of a passage that a report counts by, among them `min_tokens`."""
    return tuple(sorted({min_tokens, *THRESHOLDS}))


def is_contaminated(overlap: TextOverlap, min_tokens: int) -> bool:
    """Return whether SHARE of the tokens of a text are covered."""
    return overlap.share(min_tokens) >= SHARE


def text_report(text: Text, overlap: TextOverlap, min_tokens: int) -> dict:
    """Return the row of a text in a report."""
    passage = asdict(overlap.passage) if overlap.passage else None
    if passage:
        [passage["document"]] = passage.pop("documents")
        passage = {key: passage[key] for key in ("start", "text", "occurrences", "in_documents", "document")}
    return {
        "identifier": text.identifier,
        "language": text.language,
        "tokens": overlap.tokens,
        "covered_tokens": overlap.covered[min_tokens],
        "share": overlap.share(min_tokens),
        "contaminated": is_contaminated(overlap, min_tokens),
        "longest": overlap.longest,
        "passage": passage,
    }


def check_index(index: TraceIndex) -> None:
    """Check that an index has training documents only.

    Raises:
        InputError: If it has held-out documents, in which every held-out text occurs.
    """
    if "validation" in index.facts["splits"]:
        raise InputError(
            f"{index.folder} contains the held-out documents too, in which held-out text occurs verbatim: build an "
            "index of the training documents (--splits train)."
        )


def describe_index(index: TraceIndex) -> dict:
    """Return the facts of an index that a report repeats."""
    return {key: index.facts[key] for key in ("fingerprint", "documents", "tokens", "splits")}


def summary(total: dict) -> str:
    """Return the sentence of a total that results print."""
    return (
        f"contaminated: {total['contaminated_texts']:,} of {total['texts']:,} texts, "
        f"{percent(total['contaminated'])}; covered tokens {percent(total['covered_tokens'])}"
    )


def percent(metric: dict | float) -> str:
    """Format a share with its interval."""
    if not isinstance(metric, dict):
        return f"{100 * metric:.1f}%"
    return f"{100 * metric['value']:.1f}% ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"


def describe_contamination(contamination: dict) -> str:
    """Return the sentence of a task's contamination that follows its result."""
    return summary(contamination) + ("; measured without the contaminated texts" if contamination["excluded"] else "")


class TaskContamination:
    """Contamination of the test texts of one task, and the task's metrics without the contaminated ones.

    Args:
        task: Task with `test_texts`.
        index: Index of the training shards.
        exclude: Measure on the texts that are not contaminated.
        finished: Folder for the overlaps, from which a later call resumes.

    Raises:
        InputError: If no text remains.
    """

    def __init__(self, task, index: TraceIndex, *, exclude: bool, finished: Path):
        self.exclude, groups = exclude, task.test_texts()
        texts = [text for group in groups.values() for text in group]
        overlaps = find_overlaps(
            index,
            [text.text for text in texts],
            lengths_for(MIN_TOKENS),
            finished=finished / task.name,
            progress=f"{task.name}: contamination",
        )
        ends = np.cumsum([len(group) for group in groups.values()]).tolist()
        parts = {
            prefix: overlaps[end - len(group) : end] for (prefix, group), end in zip(groups.items(), ends, strict=True)
        }
        self.clean = {
            prefix: np.array([not is_contaminated(overlap, MIN_TOKENS) for overlap in part])
            for prefix, part in parts.items()
        }
        if exclude and not any(clean.any() for clean in self.clean.values()):
            raise InputError(
                f"All test texts of {task.name} are contaminated: measure without --exclude_contaminated."
            )
        self.identity = {"min_tokens": MIN_TOKENS, "share": SHARE, "excluded": exclude}
        self.identity["index"] = describe_index(index)
        rows = [text_report(text, overlap, MIN_TOKENS) for text, overlap in zip(texts, overlaps, strict=True)]
        rows = sorted((row for row in rows if row["passage"]), key=lambda row: -row["longest"])
        self.facts = self.identity | totals(overlaps, MIN_TOKENS) | {"texts_with_longest_passages": rows[:LISTED]}
        if len(parts) > 1:
            by = {prefix.strip(" ,_") or "pairs": part for prefix, part in parts.items()}
            self.facts["groups"] = {name: totals(part, MIN_TOKENS) for name, part in by.items()}

    def metrics(self, metrics: dict) -> dict:
        """Return the metrics over the texts that count: all, or those that are not contaminated.

        A metric that is undefined without the contaminated texts is omitted.
        """
        if not self.exclude:
            return metrics
        clean = {name: self._without(name, metric) for name, metric in metrics.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: metric for name, metric in clean.items() if np.isfinite(metric(metric.rows.sum(0)))}

    def facts_of(self, metrics: dict) -> dict:
        """Return the facts that a result stores.

        If the contaminated texts are excluded, with each metric over all texts and the paired difference to it.
        """
        if not self.exclude:
            return self.facts
        compared = {
            name: {"all": with_interval(metrics[name]), "difference": paired_difference(clean, metrics[name])}
            for name, clean in self.metrics(metrics).items()
        }
        return self.facts | {"compared": compared}

    def _without(self, name: str, metric: Metric) -> Metric:
        """Return a metric whose contaminated examples count as 0 / 0, so that both resample the same examples."""
        clean = self.clean[max((prefix for prefix in self.clean if name.startswith(prefix)), key=len)]
        assert len(metric.rows) % len(clean) == 0, f"{name} is not a metric of the test texts"
        # The harness repeats all examples per filter.
        return Metric(metric.rows * np.resize(clean, len(metric.rows))[:, None], metric.value)
