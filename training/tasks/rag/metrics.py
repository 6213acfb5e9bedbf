"""Metrics of RAG."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...common.intervals import Metric
from ..scoring import language_match
from .data import phrases
from .format import Response, parse_completion


def refuses(response: Response, refusal: str | None = None) -> bool:
    """Return whether an answer is a refusal: without citations, worded as in phrases.yaml or `refusal`, or reported.

    Args:
        refusal: Another wording. Reports are the blocks query_report and source_report of RAG 2025.
    """
    if response.citations or response.malformed:
        return False
    if response.blocks.get("query_report") == "refused" or response.blocks.get("source_report") == "infeasible":
        return True
    known = [words["refusal"] for words in phrases().values()] + ([refusal] if refusal else [])
    return any(response.plain.casefold().startswith(wording.casefold().rstrip(".")) for wording in known)


def _share(numerators: Sequence[float], denominators: Sequence[float]) -> Metric:
    """Return sum over sum; 0 if there is nothing to count, such as the precision of a model that never cites."""

    def value(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)

    return Metric(np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1), value)


def _f1(answer: str, gold: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.casefold())) for text in (answer, gold))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compute the metrics of completions.

    - citation_validity: fraction of citations whose quote occurs verbatim in the cited source. An answer without the
      required citation counts as one invalid citation, and so does a citation that cannot be parsed.
    - citation_precision: fraction of citations that are verbatim and from an answering source.
    - citation_recall: fraction of the answering sources that are cited verbatim.
    - answer_f1: F1 of words of answer and reference without citations (mean over answerable questions).
    - refusal_accuracy: fraction of questions that are refused if and only if their sources do not answer them.
    - refusals_found: fraction of the unanswerable questions that are refused.
    - language_match: fraction of answers in the language of the question, if the reference is identified as it.
    """
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        response = parse_completion(output, row["format"])
        texts = {source["id"]: source["text"] for source in row["sources"]}
        due, citations = not row["refused"], len(response.citations) + response.malformed
        literal = [citation.source for citation in response.citations if citation.literal(texts)]
        right = [source for source in literal if source in row["cited"]]
        refused = refuses(response, row["answer"] if row["refused"] else None)
        counts.append(
            {
                "citation_validity": (len(literal), max(citations, due)),
                "citation_precision": (len(right), citations),
                "citation_recall": (len(set(right)), len(row["cited"])),
                "answer_f1": (_f1(response.plain, row["answer"]) if due else 0, due),
                "refusal_accuracy": (refused == row["refused"], 1),
                "refusals_found": (refused and row["refused"], row["refused"]),
                "language_match": language_match(response.plain, row["answer"], row["language"]),
            }
        )
    return {name: _share(*zip(*(count[name] for count in counts), strict=True)) for name in counts[0]}
