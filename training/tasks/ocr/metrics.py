"""Metrics of OCR correction."""

import numpy as np
from rapidfuzz.distance import Levenshtein

from ...common.intervals import Metric, ratio
from .format import parse_correction


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compute the error rates of corrections; runs of whitespace count as one space, as in jiwer.

    Returns:
        `cer`, `wer`: edits per character and per word of the truth; `cer_uncorrected`, `wer_uncorrected`: the same for
        the OCR text; `error_reduction`: fraction of OCR errors removed, negative if the model adds more errors than it
        fixes; `over_correction`: edits per character in rows that were already correct.
    """
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        truth, ocr, corrected = (" ".join(t.split()) for t in (row["truth"], row["ocr"], parse_correction(output)))
        edits = [Levenshtein.distance(truth, text) for text in (corrected, ocr)]
        edits += [Levenshtein.distance(truth.split(), text.split()) for text in (corrected, ocr)]
        sizes = [len(truth), len(truth.split())]
        counts.append([*edits, *sizes, 0, 0] if row["kind"] != "clean" else [0] * 6 + [edits[0], sizes[0]])
    (after, before, words_after, words_before, size, words, added, clean_size) = np.array(counts).reshape(-1, 8).T
    metrics = {
        "cer": ratio(after, size),
        "wer": ratio(words_after, words),
        "error_reduction": ratio(before - after, before),
        "cer_uncorrected": ratio(before, size),
        "wer_uncorrected": ratio(words_before, words),
    }
    return metrics | ({"over_correction": ratio(added, clean_size)} if clean_size.any() else {})
