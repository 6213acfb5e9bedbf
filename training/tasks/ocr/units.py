"""Units of a text for OCR correction: words with their places, the gaps between them, and folded spelling."""

import re
import unicodedata
from typing import NamedTuple

# Everything that no word contains; other symbols between letters are taken for letters that were read wrongly.
UNIT = re.compile(
    r"[^\s.,:;!?'\"()\[\]\-/|_=*~<>+^\xab\xbb\xac\xad\xb0\xb7\u2010-\u201f\u2022\u2026\u2032\u2033\u2039\u203a]+"
    r"|(?<!\S)\|(?!\S)"  # a bar alone may be a letter
)
WORD = re.compile(r"[^\W\d_]|^[\d|]$")
LONG_S, OLD_UMLAUT = "\u017f", "\u0364"  # long s; small e above a vowel
_OLD_FORMS = str.maketrans(
    {LONG_S: "s", "\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st"}
)
HYPHEN = re.compile(r"(?:[-\xac\xad\u2010]|\u2e17)[^\S\n]*\n\s*|[-\xac\xad\u2010] +|[\xac\xad]")


class Unit(NamedTuple):
    """A word of a text: its place, its characters, and its folded spelling."""

    start: int
    end: int
    text: str
    folded: str


def fold(unit: str) -> str:
    """Return a word in lower case and today's letters: long s, ligatures and e above vowels are resolved."""
    if unit.isascii():
        return unit.lower()
    lowered = unit.translate(_OLD_FORMS).replace(OLD_UMLAUT, "\u0308").lower()
    return unicodedata.normalize("NFC", lowered)


def units(text: str) -> list[Unit]:
    """Return the words of a text: runs without spaces and punctuation with a letter, and what may be one letter."""
    return [
        Unit(match.start(), match.end(), match[0], fold(match[0]))
        for match in UNIT.finditer(text)
        if WORD.search(match[0])
    ]


def plain(word: str) -> str:
    """Return a word without its accents."""
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def accents(word: str) -> int:
    """Return the number of accents of a word."""
    return 0 if word.isascii() else sum(map(bool, map(unicodedata.combining, unicodedata.normalize("NFD", word))))


def recase(word: str, like: str, capital: bool) -> str:
    """Return a folded word in the case of the OCR's word; `capital` decides where that begins with no letter."""
    letters = [c for c in like if c.isalpha()]
    if len(letters) > 1 and len(word) > 1 and sum(map(str.isupper, letters)) > 0.6 * len(letters):
        return word.upper() if "\xdf" not in word else word
    upper = like[0].isupper() if like[0].isalpha() else capital
    return word[:1].upper() + word[1:] if upper else word
