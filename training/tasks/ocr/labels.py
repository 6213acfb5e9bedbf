"""Labels of proposed changes from aligned truth: errors that each removes; and readings of punctuation."""

import re
from collections import Counter, defaultdict

import numpy as np
from rapidfuzz.distance import Levenshtein

from .proposals import LONGEST_GAP, Proposal, gap_key
from .units import units

ANCHOR = 3  # characters read right that are compared on both sides of a change
SPACE = re.compile(r"\s")


def anchors(ocr: str, truth: str) -> np.ndarray:
    """Return, for each character of an OCR text, its place in the truth; -1 where it was read wrongly."""
    places = np.full(len(ocr), -1)
    for operation in Levenshtein.opcodes(ocr, truth):
        if operation.tag == "equal":
            places[operation.src_start : operation.src_end] = np.arange(operation.dest_start, operation.dest_end)
    return places


def gains(ocr: str, truth: str, proposals: list[Proposal]) -> list[int]:
    """Return the edits to the truth that each change saves; negative if it adds errors."""
    ocr, truth = SPACE.sub(" ", ocr), SPACE.sub(" ", truth)
    places = anchors(ocr, truth)
    result = []
    for proposal in proposals:
        start, matched = proposal.start, 0
        while start and matched < ANCHOR:
            start -= 1
            matched = matched + 1 if places[start] >= 0 else 0
        end, matched = proposal.end, 0
        while end < len(ocr) and matched < ANCHOR:
            matched = matched + 1 if places[end] >= 0 else 0
            end += 1
        first = places[start] if start < len(ocr) and places[start] >= 0 else 0
        last = places[end - 1] + 1 if end and places[end - 1] >= 0 else len(truth)
        right, before = truth[first:last], ocr[start:end]
        after = ocr[start : proposal.start] + SPACE.sub(" ", proposal.after) + ocr[proposal.end : end]
        result.append(Levenshtein.distance(before, right) - Levenshtein.distance(after, right))
    return result


def punctuation_readings(pairs) -> dict[str, Counter]:
    """Return what stood where the punctuation between two rightly read words was read, as counts by reading."""
    gaps: dict[str, Counter] = defaultdict(Counter)
    for ocr, truth in pairs:
        ocr, truth = SPACE.sub(" ", ocr), SPACE.sub(" ", truth)
        places, words = anchors(ocr, truth), units(ocr)
        borders = [0, *(place for word in words for place in (word.start, word.end)), len(ocr)]
        for i, (start, end) in enumerate(zip(borders[::2], borders[1::2], strict=True)):
            first, last = i == 0, i == len(words)
            if start and places[start - 1] < 0 or end < len(ocr) and places[end] < 0:
                continue
            right = truth[places[start - 1] + 1 if start else 0 : places[end] if end < len(ocr) else len(truth)]
            gap = ocr[start:end]
            if max(len(gap), len(right)) <= LONGEST_GAP and not any(c.isalnum() for c in gap + right) and gap.strip():
                gaps[gap_key(gap, first, last)][gap_key(right, first, last)] += 1
    return gaps
