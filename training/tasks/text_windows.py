"""Split long texts into overlapping windows and rejoin them without loss; split pairs of texts at aligned places.

Both use the character alignment of two versions of a text (Levenshtein): windows are joined, and pairs are split, at
characters that are equal on both sides.
"""

from collections.abc import Callable, Iterator

import numpy as np
from rapidfuzz.distance import Levenshtein

Span = tuple[int, int]
PIECE = 8_192  # characters aligned at a time: an alignment takes the product of the two lengths


def align_characters(a: str, b: str) -> np.ndarray:
    """Return (len(a),): the index in `b` of each character of `a` that the alignment leaves unchanged, else -1.

    Texts longer than `PIECE` are aligned piece by piece.
    """
    places = np.full(len(a), -1)
    start, other = 0, 0
    while start < len(a) and other < len(b):
        rest = max(len(a) - start, len(b) - other) <= PIECE
        end, other_end = PIECE, PIECE
        for block in Levenshtein.opcodes(a[start : start + PIECE], b[other : other + PIECE]):
            if block.tag != "equal":
                continue
            places[start + block.src_start : start + block.src_end] = np.arange(
                other + block.dest_start, other + block.dest_end
            )
            if not rest and max(block.src_end, block.dest_end) > PIECE // 2:  # the next piece begins after it
                end, other_end = block.src_end, block.dest_end
                break
        start, other = start + end, other + other_end
    return places


def overlapping_windows(text: str, size: int, overlap: int) -> list[Span]:
    """Return windows of at most `size` characters that begin and end at word boundaries if there are any.

    Each shares about `overlap` characters with the next, and together they cover the text.

    Raises:
        ValueError: If `size` is less than four times `overlap`: three windows would overlap in one place.
    """
    if not 0 <= 4 * overlap <= size or size < 4:
        raise ValueError(f"windows of {size} characters cannot overlap by {overlap}: use at most a quarter")
    windows, start = [], 0
    while len(text) - start > size:
        end = _word_end(text, start + size // 2, start + size) or start + size
        windows.append((start, end))
        start = _word_end(text, end - overlap, end - 1) or end - overlap
    return [*windows, (start, len(text))]


def _word_end(text: str, low: int, high: int) -> int | None:
    """Return the last position in (low, high] that follows a whitespace character."""
    return next((place for place in range(high, low, -1) if text[place - 1].isspace()), None)


def join(text: str, windows: list[Span], outputs: list[str]) -> str:
    """Join the outputs for overlapping windows into one text, where neighbours both left the input unchanged.

    Outputs equal to their windows yield the text itself. In any other case each passage comes from exactly one output.
    """
    places = [align_characters(text[start:end], output) for (start, end), output in zip(windows, outputs, strict=True)]
    pieces, begin = [], 0
    for i, output in enumerate(outputs[:-1]):
        (left, end), (right, _) = windows[i], windows[i + 1]
        here, there = places[i][right - left :], places[i + 1][: end - right]
        end_here, begin_there = _seam(text[right:end], here, there, places[i], len(output))
        pieces.append(output[begin:end_here])
        begin = begin_there
    return "".join([*pieces, outputs[-1][begin:]])


def _seam(shared: str, here: np.ndarray, there: np.ndarray, before: np.ndarray, length: int) -> Span:
    """Return the end of the first output and the begin of the second: a space near the middle, unchanged in both."""
    same = (here >= 0) & (there >= 0)
    if not same.any():  # nothing is unchanged in both: the second output follows the first one's own part
        earlier = before[: len(before) - len(shared)]
        return (int(earlier.max()) + 1 if len(earlier) and earlier.max() >= 0 else min(length, len(earlier))), 0
    middle = len(shared) / 2
    seam = min(np.flatnonzero(same), key=lambda i: (not shared[i].isspace(), abs(i - middle)))
    return int(here[seam]), int(there[seam])


def split_spaces(text: str) -> tuple[str, str, str]:
    """Split a text into leading whitespace, content and trailing whitespace."""
    content = text.strip()
    return text.partition(content) if content else (text, "", "")


def over_windows(text: str, size: int, overlap: int, change: Callable[[list[str]], list[str]]) -> str:
    """Apply `change` to a text window by window; whitespace around a window is not passed to it, and is preserved."""
    windows = overlapping_windows(text, size, overlap)
    parts = [split_spaces(text[start:end]) for start, end in windows]
    contents = [content for _, content, _ in parts if content]
    changed = iter(change(contents) if contents else ())  # a blank page stays as it is
    outputs = [before + (next(changed) if content else "") + after for before, content, after in parts]
    return join(text, windows, outputs)


def split_aligned_pair(ocr: str, truth: str, size: int) -> Iterator[tuple[str, str]]:
    """Split an OCR text and its truth into pairs of about `size` characters, at spaces with equal neighbours in both.

    A passage of more than twice the size without such a space is dropped: the two texts differ there.
    """
    places = align_characters(truth, ocr)
    same = places >= 0
    unchanged = same & np.roll(same, 1) & np.roll(same, -1)
    cuts = [i for i in np.flatnonzero(unchanged) if truth[i].isspace() and ocr[places[i]].isspace()]
    begin = (0, 0)
    for cut, following in zip([*cuts, None], [*cuts[1:], None, None], strict=False):
        end = (len(truth), len(ocr)) if cut is None else (int(cut), int(places[cut]))
        after = (len(truth), len(ocr)) if following is None else (int(following), int(places[following]))
        if cut is not None and max(after[0] - begin[0], after[1] - begin[1]) <= size:
            continue
        a, b = truth[begin[0] : end[0]].strip(), ocr[begin[1] : end[1]].strip()
        if a and b and max(len(a), len(b)) <= 2 * size:
            yield b, a
        begin = end
