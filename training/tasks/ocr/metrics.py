"""Metrics of OCR correction: error rates, and the measures of the competition HIPE-OCRepair."""

import re

import numpy as np
from rapidfuzz.distance import Levenshtein

from ...common.intervals import Metric, ratio
from .format import parse_correction

# Replacements of HIPE-OCRepair's scorer (hipe-ocrepair-scorer 0.9.9), besides letter case and punctuation.
REPLACEMENTS = {
    **{"\u00df": "ss", "\ua75b": "r", "\u0153": "oe", "\u00e6": "ae"},
    **{"a\u0364": "\u00e4", "o\u0364": "\u00f6", "u\u0364": "\u00fc"},
    **{"\u2014\n": "", "\u00ac\n": ""},  # words divided at the end of a line
}


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compute the error rates of generated corrections; see `error_rates`."""
    return error_rates(rows, [parse_correction(output) for output in outputs])


def error_rates(rows: list[dict], texts: list[str]) -> dict[str, Metric]:
    """Compute the error rates of corrected texts; runs of whitespace count as one space, as in jiwer.

    Returns:
        `cer`, `wer`: edits per character and per word of the truth; `cer_uncorrected`, `wer_uncorrected`: the same for
        the OCR text; `error_reduction`: fraction of OCR errors removed, negative if the model adds more errors than it
        fixes; `over_correction`: edits per character in rows that were already correct.
    """
    counts = []
    for row, text in zip(rows, texts, strict=True):
        truth, ocr, corrected = (" ".join(t.split()) for t in (row["truth"], row["ocr"], text))
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


def normalize(text: str) -> str:
    """Return a text as HIPE-OCRepair compares it: lower case, without punctuation, with single spaces."""
    text = text.lower()
    for before, after in REPLACEMENTS.items():
        text = text.replace(before, after)
    return " ".join(re.sub(r"[\W_]", " ", text).split())


def match_errors(truth: str, text: str) -> tuple[int, int]:
    """Return the edits between two normalised texts, and hits plus edits; their ratio is the match error rate."""
    truth, text = normalize(truth), normalize(text)
    edits = Levenshtein.editops(truth, text)
    return len(edits), len(truth) + sum(edit.tag == "insert" for edit in edits)


def edit_errors(truth: str, text: str) -> int:
    """Return the edits between two texts; runs of whitespace count as one space."""
    return Levenshtein.distance(" ".join(truth.split()), " ".join(text.split()))


def correction_metrics(units: list[dict], texts: list[str]) -> dict[str, Metric]:
    """Compute the metrics of corrected texts.

    Args:
        units: Dicts of ocr, truth and kind: clean if the OCR text is the truth.
        texts: Corrected texts.

    Returns:
        Over the units with errors, those of `error_rates`; `cmer` and `cmer_uncorrected`, the match error rate of
        HIPE-OCRepair (edits / (hits + edits) of all characters); `improved` and `worsened`, the fraction of units with
        a lower and a higher rate than before; `preference`, their difference; `worsened_of_changed`. Over the clean
        units `clean_edits`, per character, and `clean_touched`, the fraction of units with an edit.
        A metric that is 0 / 0 is omitted.
    """
    metrics = {}
    if pairs := [(unit, text) for unit, text in zip(units, texts, strict=True) if unit["kind"] != "clean"]:
        after = np.array([match_errors(unit["truth"], text) for unit, text in pairs])
        before = np.array([match_errors(unit["truth"], unit["ocr"]) for unit, _ in pairs])
        change = _rates(before) - _rates(after)
        changed = np.array([text != unit["ocr"] for unit, text in pairs])
        ones = np.ones(len(pairs))
        metrics = error_rates(*map(list, zip(*pairs, strict=True))) | {
            "cmer": ratio(*after.T),
            "cmer_uncorrected": ratio(*before.T),
            "preference": ratio(np.sign(change), ones),
            "improved": ratio(change > 0, ones),
            "worsened": ratio(change < 0, ones),
            "worsened_of_changed": ratio(change < 0, changed),
        }
    if clean := [(unit["truth"], text) for unit, text in zip(units, texts, strict=True) if unit["kind"] == "clean"]:
        edits = np.array([Levenshtein.distance(truth, text) for truth, text in clean])
        metrics["clean_edits"] = ratio(edits, [len(truth) for truth, _ in clean])
        metrics["clean_touched"] = ratio(edits > 0, np.ones(len(clean)))
    return defined(metrics)


def defined(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """Return the ratios that are not 0 / 0."""
    return {name: metric for name, metric in metrics.items() if metric.rows[:, 1].any()}


def _rates(errors: np.ndarray) -> np.ndarray:
    """Return the match error rate of each unit; 0 for two empty texts."""
    return errors[:, 0] / np.maximum(errors[:, 1], 1)
