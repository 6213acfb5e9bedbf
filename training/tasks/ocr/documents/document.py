"""OCR documents as pages of lines of words with boxes, and the changes of a corrector written into them."""

import os
import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rapidfuzz.distance import Levenshtein

from ..changes import Change, apply_changes

Box = tuple[float, float, float, float]  # left, top, right, bottom, in the units of the page
HYPHENS = "-\u00ad\u00ac\u2010\u2e17="  # at line ends, as in training.curation.dehyphenation
SOFT_HYPHEN = "\u00ad"
LINE_ENDS = ("keep", "mark", "join")
LINE_END = re.compile(r"[^\S\u00a0]*\n[^\S\u00a0]*")


class Corrector(Protocol):
    """Finds the errors of a text: `training.tasks.ocr.corrector.Corrector`, or any object with these members."""

    languages: Iterable[str]

    def changes(self, text: str, language: str) -> list[Change]:
        """Return the changes of a text in a language (ISO code)."""


@dataclass(eq=False)
class Word:
    """A word, its box if its file has a box of it, and its place in the file."""

    text: str
    box: Box | None = None
    node: Any = None


@dataclass(eq=False)
class Line:
    """A line of words.

    Args:
        words: Words in reading order.
        language: Language that the file states, as it states it.
        box: Box of the line.
        node: Place in the file.
        starts_block: True if a paragraph, region or page starts here.
        page: Index of its page.
        number: Index in its page.
    """

    words: list[Word]
    language: str | None = None
    box: Box | None = None
    node: Any = None
    starts_block: bool = False
    page: int = 0
    number: int = 0


@dataclass
class Page:
    """A page: its lines, and the name and size (in the units of the boxes) of its image, if the file states them."""

    lines: list[Line] = field(default_factory=list)
    image: str | None = None
    size: tuple[float, float] | None = None


class Note(NamedTuple):
    """Record of a change in a file: the words before it, its kind and its probability."""

    before: str
    kind: str
    probability: float


class Passage:
    """Text of lines as a corrector reads it: words joined by spaces, lines by line ends, blocks by blank lines.

    Args:
        text: The text.
        places: Line and index in the line, of each word.
    """

    def __init__(self, lines: Iterable[Line]):
        self.places: list[tuple[Line, int]] = []
        self._starts, self._ends, parts, position, previous = [], [], [], 0, None
        for line in lines:
            follows = previous and not line.starts_block and line.number == previous.number + 1
            previous = line
            for i, word in enumerate(line.words):
                separator = " " if i else ("\n" if follows else "\n\n") if parts else ""
                text = re.sub(r"\s", "\u00a0", word.text)  # of a few programs, whose words contain spaces
                self._starts.append(position + len(separator))
                position = self._starts[-1] + len(text)
                self._ends.append(position)
                parts.append(separator + text)
                self.places.append((line, i))
        self.text = "".join(parts)

    def edits(self, changes: Iterable[Change]) -> list["Edit"]:
        """Return the changes by the words that they touch; changes that touch the same word belong together."""
        groups: list[tuple[int, int, list[Change]]] = []
        for change in sorted(changes):
            first, last = bisect_left(self._ends, change.start), bisect_right(self._starts, change.end)
            if groups and first < groups[-1][1]:
                start, end, earlier = groups.pop()
                groups.append((start, max(end, last), [*earlier, change]))
            else:
                groups.append((first, last, [change]))
        edits = []
        for first, last, group in groups:
            offset = self._starts[first]
            before = self.text[offset : self._ends[last - 1]]
            moved = [change._replace(start=change.start - offset, end=change.end - offset) for change in group]
            edits.append(Edit(offset, self.places[first:last], before, apply_changes(before, moved), group))
        return edits


class Edit(NamedTuple):
    """Words that become others: their place in the text, lines and indices, text before and after, and the changes."""

    start: int
    places: list[tuple[Line, int]]
    before: str
    after: str
    changes: list[Change]

    def by_line(self) -> Iterator[tuple[Line, int, int]]:
        """Yield each line of the words, with the range of their indices in it."""
        for line in dict.fromkeys(line for line, _ in self.places):
            indices = [i for other, i in self.places if other is line]
            yield line, indices[0], indices[-1] + 1


def union(boxes: Iterable[Box | None]) -> Box | None:
    """Return the smallest box that contains all boxes; None if one is missing."""
    sides = list(boxes)
    if not sides or None in sides:
        return None
    left, top, right, bottom = zip(*sides, strict=True)
    return min(left), min(top), max(right), max(bottom)


def share(box: Box | None, tokens: list[str]) -> list[Box | None]:
    """Divide the width of a box between words in proportion to their characters, with a space between them."""
    if box is None:
        return [None] * len(tokens)
    left, top, right, bottom = box
    width = (right - left) / max(1, sum(map(len, tokens)) + len(tokens) - 1)
    digits = None if all(side == int(side) for side in box) else 2  # whole pixels stay whole
    boxes, position = [], 0
    for token in tokens:
        start, end = (round(left + place * width, digits) for place in (position, position + len(token)))
        boxes.append((start, top, end, bottom))
        position += len(token) + 1
    return boxes


def divide(left: str, right: str, joined: str) -> list[str]:
    """Divide `joined`, to which the halves of a word at a line end were corrected, between the two lines again."""
    hyphen = left[-1:] if left[-1:] in HYPHENS else ""
    stem, place = left[: len(left) - len(hyphen)], len(joined)
    for step in Levenshtein.opcodes(stem + right, joined):
        if step.src_start <= len(stem) <= step.src_end:
            place = step.dest_start + min(len(stem) - step.src_start, step.dest_end - step.dest_start)
            place += joined[place : place + 1] in tuple(HYPHENS)  # of a compound
            break
    head, tail = joined[:place].rstrip(" "), joined[place:].lstrip(" ")
    return [head if not head or not tail or head[-1] in HYPHENS else head + hyphen, tail]


def without_context(change: Change) -> Change:
    """Return a change without the words and spaces at its ends that it does not change."""
    shared = os.path.commonprefix([change.before, change.after])
    start = len(shared) - len(re.split(r"\s", shared)[-1])
    before, after = change.before[start:], change.after[start:]
    shared = os.path.commonprefix([before[::-1], after[::-1]])
    end = len(shared) - len(re.split(r"\s", shared)[-1])
    moved = {"start": change.start + start, "end": change.end - end}
    return change._replace(before=before[: len(before) - end], after=after[: len(after) - end], **moved)


def within_lines(change: Change) -> Change:
    """Return a change that joins the halves of a word at a line end as one that corrects the halves."""
    before, gaps, joined = LINE_END.split(change.before), LINE_END.findall(change.before), change.after
    if not gaps or len(LINE_END.split(joined)) == len(before):
        return change
    after = []
    for i, gap in enumerate(gaps, 1):
        half, joined = divide(before[i - 1], "".join(part.rstrip(HYPHENS) for part in before[i:]), joined)
        after += [half, gap]
    return change._replace(after="".join([*after, joined]))


class Document(ABC):
    """An OCR document in memory, which is written back with its changes.

    Args:
        pages: Pages of lines of words; they follow the changes.
    """

    pages: list[Page]

    @abstractmethod
    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace the words `first` to `first + count` of a line in the file, and return the new words.

        Args:
            line: Line, whose `words` the caller replaces.
            first: Index of the first word to replace.
            count: Number of words to replace, at least 1.
            tokens: Text of each new word; none removes the words.
            boxes: Box of each new word.
            note: Record of the change for the file; None if it has none.
        """

    @abstractmethod
    def to_bytes(self) -> bytes:
        """Return the file; without changes, the bytes that were read."""

    @property
    def lines(self) -> list[Line]:
        """All lines, in reading order."""
        return [line for page in self.pages for line in page.lines]

    def number_lines(self) -> None:
        """Set page and number of every line."""
        for index, page in enumerate(self.pages):
            for number, line in enumerate(page.lines):
                line.page, line.number = index, number
            if page.lines:
                page.lines[0].starts_block = True

    def correct(self, passage: Passage, changes: Iterable[Change]) -> list[dict]:
        """Make the changes of a passage; lines stay lines, so that the halves of a divided word stay divided.

        Returns:
            One record per change that has an effect, in the order of the text. `page`, `line` and `word` are indices
            before the changes; `words` counts the words of `unit`, and `start` and `end` are places in it.
        """
        records, changes = [], [within_lines(without_context(change)) for change in changes]
        for edit in reversed(passage.edits(change for change in changes if change.after != change.before)):
            parts = LINE_END.split(edit.after)
            (line, word), *_ = edit.places
            box = union(place.words[i].box for place, i in edit.places if place is line)
            where = {"page": line.page, "line": line.number, "word": word, "words": len(edit.places)}
            for change in reversed(edit.changes):
                moved = change._replace(start=change.start - edit.start, end=change.end - edit.start)
                records.append({**where, "unit": edit.before, **moved._asdict(), "box": box and list(box)})
            note = Note(
                edit.before.replace("\n", " "),
                "+".join(dict.fromkeys(change.kind for change in edit.changes)),
                min(change.probability for change in edit.changes),
            )
            for (line, first, end), part in reversed(list(zip(edit.by_line(), parts, strict=True))):
                self._replace(line, first, end, part, note)
        return records[::-1]

    def set_line_ends(self, divided: Iterable[tuple[int, int, str]], mode: str) -> int:
        """Mark or join the words that line ends divide, and return their number.

        Args:
            divided: Place of each hyphen with the line end after it in the text of all lines (`Passage`), and what
                joins the halves: nothing, or the hyphen of a compound.
            mode: "mark" makes the hyphens soft; "join" moves the second half to the first line.
        """
        passage, count = Passage(self.lines), 0
        changes = [
            Change(start, end, passage.text[start:end], joint if mode == "join" else f"{SOFT_HYPHEN}\n", "", 1.0)
            for start, end, joint in divided
            if mode == "join" or not joint
        ]
        for edit in reversed(passage.edits(changes)):
            count += len(edit.changes)
            parts = LINE_END.split(edit.after)
            if mode == "mark":
                self.mark_division(edit, parts)
                continue
            places = list(edit.by_line())
            for (line, first, end), part in reversed(list(zip(places, [*parts, *[""] * len(places)], strict=False))):
                self._replace(line, first, end, part, None)
        return count

    def mark_division(self, edit: Edit, parts: list[str]) -> None:
        """Mark a word that a line end divides; a format that has an element for it overrides this."""
        for (line, first, end), part in reversed(list(zip(edit.by_line(), parts, strict=True))):
            self._replace(line, first, end, part, None)

    def _replace(self, line: Line, first: int, end: int, part: str, note: Note | None) -> None:
        tokens = [token for token in part.split(" ") if token]
        texts = [word.text for word in line.words[first:end]]
        if len(tokens) != len(texts):  # words at the ends that stay; a new word needs one next to it
            tail = len(os.path.commonprefix([texts[::-1], tokens[::-1]]))
            tail -= tail == len(texts)
            texts, tokens, end = texts[: len(texts) - tail], tokens[: len(tokens) - tail], end - tail
            head = len(os.path.commonprefix([texts, tokens]))
            head -= head == len(texts)
            tokens, first = tokens[head:], first + head
        words = line.words[first:end]
        if len(tokens) != len(words):
            boxes = share(union(word.box for word in words), tokens)
            line.words[first:end] = self.rewrite(line, first, len(words), tokens, boxes, note)
            return
        for i, (word, token) in enumerate(zip(words, tokens, strict=True), first):
            if token != word.text:
                own_note = note and note._replace(before=word.text)
                line.words[i : i + 1] = self.rewrite(line, i, 1, [token], [word.box], own_note)
