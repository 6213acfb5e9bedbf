"""Long texts in overlapping windows, rejoined without loss; pairs of texts cut at the same places.

Both stand on the alignment of two spellings of one text (Levenshtein's): windows meet, and pairs are cut, at signs
that are the same on both sides.
"""

from collections.abc import Callable, Iterator

import numpy as np
from rapidfuzz.distance import Levenshtein

Span = tuple[int, int]


def matches(a: str, b: str) -> np.ndarray:
    """(len(a),) place in `b` of each character of `a` that stands there unchanged in the alignment; -1 elsewhere."""
    places = np.full(len(a), -1)
    for block in Levenshtein.opcodes(a, b):
        if block.tag == "equal":
            places[block.src_start : block.src_end] = np.arange(block.dest_start, block.dest_end)
    return places


def spans(text: str, size: int, overlap: int) -> list[Span]:
    """Windows of at most `size` characters that begin and end at word ends where there are some.

    Each shares about `overlap` characters with the next, and together they cover the text.

    Raises:
        ValueError: when `size` is less than four times `overlap`: three windows would meet in one place.
    """
    if not 0 <= 4 * overlap <= size or size < 4:
        raise ValueError(f"windows of {size} characters cannot overlap by {overlap}: four overlaps have to fit in one")
    found, start = [], 0
    while len(text) - start > size:
        end = _word_end(text, start + size // 2, start + size) or start + size
        found.append((start, end))
        start = _word_end(text, end - overlap, end - 1) or end - overlap
    return [*found, (start, len(text))]


def _word_end(text: str, low: int, high: int) -> int | None:
    """The last place in (low, high] that a blank stands before."""
    return next((place for place in range(high, low, -1) if text[place - 1].isspace()), None)


def join(text: str, windows: list[Span], outputs: list[str]) -> str:
    """What was made of overlapping windows, as one text: neighbours meet where both left the input as it was.

    Outputs equal to their windows give the text itself; of any other each place comes from exactly one output.
    """
    places = [matches(text[start:end], output) for (start, end), output in zip(windows, outputs, strict=True)]
    pieces, begin = [], 0
    for i, output in enumerate(outputs[:-1]):
        (left, end), (right, _) = windows[i], windows[i + 1]
        here, there = places[i][right - left :], places[i + 1][: end - right]
        end_here, begin_there = _seam(text[right:end], here, there, places[i], len(output))
        pieces.append(output[begin:end_here])
        begin = begin_there
    return "".join([*pieces, outputs[-1][begin:]])


def _seam(shared: str, here: np.ndarray, there: np.ndarray, before: np.ndarray, length: int) -> Span:
    """Where the first output ends and the second begins: a blank near the middle that both left as it was."""
    same = (here >= 0) & (there >= 0)
    if not same.any():  # nothing shared was left as it was: the second output stands, after what the first has before
        kept = before[: len(before) - len(shared)]
        return (int(kept.max()) + 1 if len(kept) and kept.max() >= 0 else min(length, len(kept))), 0
    middle = len(shared) / 2
    seam = min(np.flatnonzero(same), key=lambda i: (not shared[i].isspace(), abs(i - middle)))
    return int(here[seam]), int(there[seam])


def over_windows(text: str, size: int, overlap: int, change: Callable[[list[str]], list[str]]) -> str:
    """A text changed window by window; blanks around a window are not shown to `change`, and stay."""
    windows = spans(text, size, overlap)
    shown = [text[start:end] for start, end in windows]
    changed = iter(change([window.strip() for window in shown if window.strip()]))
    outputs = []
    for window in shown:
        inner = window.strip()
        before, _, after = window.partition(inner) if inner else (window, "", "")
        outputs.append(before + (next(changed) if inner else "") + after)
    return join(text, windows, outputs)


def cut_pair(ocr: str, truth: str, size: int) -> Iterator[tuple[str, str]]:
    """A pair of spellings as pairs of about `size` characters, cut at blanks that both have with like neighbours.

    Where no such blank comes in twice the size, the passage is left out: there the two do not tell the same.
    """
    places = matches(truth, ocr)
    same = places >= 0
    calm = same & np.roll(same, 1) & np.roll(same, -1)
    cuts = [i for i in np.flatnonzero(calm) if truth[i].isspace() and ocr[places[i]].isspace()]
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
