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


def compose(text: str, first: list[Change], second: list[Change]) -> list[Change]:
    """Return the changes of a text that equal two corrections of it, the second made in the result of the first.

    Changes that meet become one, with the kind of the second and the lower probability.

    Args:
        text: Text before both.
        first: Changes of the text, in its order.
        second: Changes of the corrected text, in its order.
    """
    moved, places = 0, []  # in the corrected text
    for change in first:
        start = change.start + moved
        moved += len(change.after) - len(change.before)
        places.append((start, change.end + moved, True, change))
    places += [(change.start, change.end, False, change) for change in second]
    groups: list[list] = []
    for place in sorted(places):
        if groups and place[0] < max(end for _, end, _, _ in groups[-1]):
            groups[-1].append(place)
        else:
            groups.append([place])
    corrected, moved, result = apply_changes(text, first), 0, []
    for group in groups:
        start, end = group[0][0], max(end for _, end, _, _ in group)
        before = start - moved
        moved += sum(len(change.after) - len(change.before) for _, _, is_first, change in group if is_first)
        later = [change for _, _, is_first, change in group if not is_first]
        if not later:
            result.append(group[0][3])
            continue
        inside = [change._replace(start=change.start - start, end=change.end - start) for change in later]
        old, new = text[before : end - moved], apply_changes(corrected[start:end], inside)
        if old != new:
            probability = min(change.probability for *_, change in group)
            result.append(Change(before, end - moved, old, new, later[-1].kind, probability))
    return result
