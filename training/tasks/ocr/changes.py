"""Changes of an OCR correction: place, replacement, kind and probability of each; and applying them to a text."""

from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("word", "split", "merge", "accent", "punctuation")


class Change(NamedTuple):
    """Replacement of `text[start:end]`, which is `before`, by `after`; offsets are characters of the OCR text."""

    start: int
    end: int
    before: str
    after: str
    kind: str
    probability: float


def apply_changes(text: str, changes: Iterable[Change]) -> str:
    """Return `text` with the changes made; everything outside of them stays byte for byte.

    Raises:
        ValueError: If two changes overlap, or the text does not have `before` at the place of a change.
    """
    parts, position = [], 0
    for change in sorted(changes):
        if change.start < position or text[change.start : change.end] != change.before:
            raise ValueError(f"{change} overlaps the one before it, or is not a change of this text.")
        parts += [text[position : change.start], change.after]
        position = change.end
    return "".join([*parts, text[position:]])
