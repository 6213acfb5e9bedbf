"""Noisy channel of characters: what OCR reads for which characters, with costs learned from aligned pairs."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein

LONGEST = 3  # characters of a confusion
MIN_COUNT = 3
PER_READING = 12  # confusions of one reading, the cheapest
FREE = 9.0  # cost of an edit that was never seen, in bits
PUNCTUATION_COUNT = 2
READINGS = 6  # of one gap, the most frequent


def segments(ocr: str, truth: str) -> Iterable[tuple[int, int, int, int]]:
    """Yield the places (start and end in OCR text, start and end in truth) where two texts differ."""
    current = None
    for operation in Levenshtein.opcodes(ocr, truth):
        if operation.tag == "equal":
            if current:
                yield tuple(current)
            current = None
        elif current:
            current[1], current[3] = operation.src_end, operation.dest_end
        else:
            current = [operation.src_start, operation.src_end, operation.dest_start, operation.dest_end]
    if current:
        yield tuple(current)


class Channel:
    """Costs of confusions, in bits: of right characters that were read as others.

    Args:
        costs: Reading -> right characters in lower case -> cost. "" as reading stands for a character that is lost.
        gaps: Punctuation between two words as read -> what stood there -> share; spaces and line ends are one space.
    """

    def __init__(self, costs: dict[str, dict[str, float]], gaps: dict[str, dict[str, float]]):
        self.costs, self.gaps = costs, gaps
        self.lost = costs.get("", {})

    @classmethod
    def learn(cls, pairs: Iterable[tuple[str, str]], gaps: dict[str, Counter]) -> "Channel":
        """Count confusions of OCR texts and their truths, equally long runs of whitespace taken for one space."""
        confusions: Counter = Counter()
        printed: Counter = Counter()
        for ocr, truth in pairs:
            lowered = truth.lower()
            for size in range(1, LONGEST + 1):
                printed.update(lowered[i : i + size] for i in range(len(lowered) - size + 1))
            for start, end, right_start, right_end in segments(ocr, truth):
                read, right = ocr[start:end], truth[right_start:right_end].lower()
                if max(len(read), len(right)) > LONGEST or not (read + right).strip() or read.lower() == right:
                    continue
                if any(not c.isalpha() for c in right) or any(c.isspace() for c in read):
                    continue
                confusions[read, right] += 1
                if not read and start and ocr[start - 1].isalpha():  # a lost character, seen with the one before
                    confusions[ocr[start - 1], ocr[start - 1].lower() + right] += 1
        total = printed.total() / LONGEST
        costs: dict[str, dict[str, float]] = defaultdict(dict)
        for (read, right), count in confusions.items():
            if count >= MIN_COUNT:
                costs[read][right] = round(math.log2((printed[right] if right else total) + 1) - math.log2(count), 2)
        return cls(
            {
                read: dict(sorted(rights.items(), key=lambda item: (item[1], item[0]))[:PER_READING])
                for read, rights in sorted(costs.items())
            },
            {
                gap: {right: round(n / counts.total(), 4) for right, n in counts.most_common(READINGS)}
                for gap, counts in sorted(gaps.items())
                if counts.total() >= PUNCTUATION_COUNT
            },
        )

    def single_edits(self, unit: str, folded: str) -> list[tuple[float, int, int, str]]:
        """Return the confusions that a word can contain: cost, start, end and right characters, cheapest first."""
        shown = unit if len(unit) == len(folded) else folded
        edits = {}
        for start in range(len(folded)):
            for end in range(start + 1, min(start + LONGEST, len(folded)) + 1):
                for spelling in {shown[start:end], folded[start:end]}:
                    for right, cost in self.costs.get(spelling, {}).items():
                        key = (start, end, right)
                        edits[key] = min(cost, edits.get(key, cost))
        return sorted((cost, *key) for key, cost in edits.items())
