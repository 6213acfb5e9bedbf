"""Normalised view of a text for recognisers, with a map of its offsets back to the original text.

A soft hyphen or a narrow space is not visible on the page, but makes another text of the same words. What decides
about a text (language, OCR quality, duplicates, toxicity, personal data, line repair) reads this view: without
invisible characters, with one kind of space, hyphen, digit and accented letter. The text itself does not change.
It is none of the normal forms of Unicode, which unicode_forms.py computes.
"""

import re
import sys
import unicodedata
from bisect import bisect_left, bisect_right
from functools import cache
from typing import NamedTuple

import numpy as np

# Visible alternatives of an ASCII character that no decomposition of Unicode covers.
HYPHENS = "\u2010\u2011\u2012\u02d7\u2212"  # not the dashes, which separate words
LINE_ENDS = {"\x85": "\n", "\u2028": "\n", "\u2029": "\n\n"}
# Decompositions that keep the meaning; superscripts, fractions and circled numbers do not.
_TAGS = ("<compat>", "<font>", "<wide>", "<narrow>", "<small>")
_RANGES = (range(0x80, 0x10000), range(0x1D400, 0x1D800), range(0x1FBF0, 0x1FBFA), range(0xE0000, 0xE0200))
_MARKS = tuple(range(*bounds) for bounds in ((0x300, 0x370), (0x1AB0, 0x1B00), (0x1DC0, 0x1E00), (0x20D0, 0x2100)))
MAX_MARKS = 8  # after a letter; Unicode's normalisation takes the square of their number
_CLUSTER = re.compile(rf".[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]{{0,{MAX_MARKS - 1}}}", re.DOTALL)
_SPACE = r"(?:[^\S\r\n\f\x85\u2028\u2029]|[\u200b-\u200d\u2060\ufeff])*"
_LINE_END = re.compile(rf"{_SPACE}[\r\n\f\x85\u2028\u2029]")
_DIVIDED = re.compile(rf"\u00ad{_SPACE}(?:\r?\n|[\x85\u2028]){_SPACE}(?=\w)")


class NormalizedText(NamedTuple):
    """A normalised view, and its differences to the original, in order.

    Args:
        text: Normalised text; the same object as the original if they are equal.
        starts: Offsets in `text` at which differences begin.
        differences: For each difference, its end in `text`, and its start and end in the original.
    """

    text: str
    starts: list[int]
    differences: list[tuple[int, int, int]]

    def start(self, position: int) -> int:
        """Return the offset in the original of the character at an offset in the view."""
        i = bisect_right(self.starts, position) - 1
        if i < 0:
            return position
        end, original_start, original_end = self.differences[i]
        return original_start if position < end else original_end + position - end

    def end(self, position: int) -> int:
        """Return the offset in the original behind the character before an offset in the view."""
        i = bisect_left(self.starts, position) - 1
        if i < 0:
            return position
        end, _, original_end = self.differences[i]
        return original_end if position <= end else original_end + position - end

    def span(self, start: int, end: int) -> slice:
        """Return the part of the original that became a part of the view, without invisible characters around it."""
        return slice(self.start(start), max(self.start(start), self.end(end)))


@cache
def _table() -> tuple[dict[str, str], np.ndarray]:
    """Return character -> replacement, and whether a code point may differ in the view."""
    table = dict.fromkeys(HYPHENS, "-") | LINE_ENDS
    for code in (code for codes in _RANGES for code in codes):
        character = chr(code)
        if character in table:
            continue
        category = unicodedata.category(character)
        if category == "Cf" or 0xFE00 <= code < 0xFE10 or 0xE0100 <= code < 0xE01F0:
            table[character] = ""
        elif category == "Zs":
            table[character] = " "
        elif category == "Nd":
            table[character] = str(unicodedata.decimal(character))
        elif category[0] in "LNPS" and (decomposition := unicodedata.decomposition(character)):
            tagged = decomposition.startswith(_TAGS)
            normal = unicodedata.normalize("NFKC" if tagged else "NFC", character)
            alike = normal.isalnum() or (decomposition.startswith(_TAGS[2:]) and normal.isprintable())
            if normal != character and (alike or not tagged) and not normal[0].isspace():
                table[character] = normal
    del table["\u00ad"]  # kept at line ends
    table["\u034f"] = ""  # combining grapheme joiner
    different = np.zeros(sys.maxunicode + 1, bool)
    different[[*map(ord, table), 0xAD]] = True
    for marks in _MARKS:
        different[marks.start : marks.stop] = True
    return table, different


def normalize(text: str, *, keep_lines: bool = False) -> NormalizedText:
    """Return the normalised view of a text.

    It has no invisible characters (category Cf); one kind of space, hyphen and line end; ASCII digits; composed
    accents; plain letters for ligatures, the long s, and wide and mathematical letters.

    Args:
        text: Any text.
        keep_lines: Keep soft hyphens at line ends. By default, they and the line ends that divide words are removed.
    """
    if text.isascii():
        return NormalizedText(text, [], [])
    table, different = _table()
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    pieces, starts, differences, at, size = [], [], [], 0, 0
    for start in np.flatnonzero(different[points]).tolist():
        if start < at:
            continue
        end = _CLUSTER.match(text, start).end()
        if text[start:end] == "\u00ad":
            replacement = "\u00ad" if keep_lines and _LINE_END.match(text, end) else ""
            if not keep_lines and (divided := _DIVIDED.match(text, start)):
                end = divided.end()
        elif end - start == 1 and text[start] in table:
            replacement = table[text[start]]
        else:
            start -= text[start] not in table and start > at  # marks alone: with their letter
            replacement = "".join(table.get(character, character) for character in text[start:end])
            replacement = unicodedata.normalize("NFC", replacement)
        if replacement == text[start:end]:
            continue
        pieces += [text[at:start], replacement]
        size += start - at
        starts.append(size)
        size += len(replacement)
        differences.append((size, start, end))
        at = end
    return NormalizedText("".join([*pieces, text[at:]]) if starts else text, starts, differences)
