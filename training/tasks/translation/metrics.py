"""Metrics of translation: sacrebleu's, and the language of the output."""

from functools import partial

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from ...common.intervals import Metric, ratio
from ..scoring import language_match
from .format import parse_output

CHRF2PP, BLEU4 = CHRF(word_order=2), BLEU()


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compare translations with the references.

    Returns:
        `chrf2++`, `bleu`: sacrebleu's, 0 to 100 (`signatures`); `language_match`: fraction of translations in the
        target language, among rows whose reference is identified as it.
    """
    translations = [parse_output(output).strip() for output in outputs]
    references = [row["translation"] for row in rows]
    matches = [
        language_match(translation, reference, row["language"])
        for translation, reference, row in zip(translations, references, rows, strict=True)
    ]
    return {
        "chrf2++": _sacrebleu(CHRF2PP, translations, references),
        "bleu": _sacrebleu(BLEU4, translations, references),
        "language_match": ratio(*zip(*matches, strict=True)),
    }


def _sacrebleu(metric: CHRF | BLEU, outputs: list[str], references: list[str]) -> Metric:
    """Return a corpus score of sacrebleu, from the statistics that its own significance tests resample."""
    statistics = np.array(metric._extract_corpus_statistics(outputs, [references]), dtype=np.float64)

    def value(sums: np.ndarray) -> float:
        return metric._compute_score_from_stats(sums.astype(int).tolist()).score

    return Metric(statistics, partial(np.apply_along_axis, value, -1))


def signatures() -> dict[str, str]:
    """Return sacrebleu's signature of each of its scores, which states how it is computed."""
    for metric in (CHRF2PP, BLEU4):
        metric.corpus_score(["a"], [["a"]])  # sets the number of references in the signature to 1
    return {"chrf2++": str(CHRF2PP.get_signature()), "bleu": str(BLEU4.get_signature())}
