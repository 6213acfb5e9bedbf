"""Unicode normal forms (NFC, NFD, NFKC, NFKD) of any text, in time linear in its length.

`unicodedata.normalize` takes the square of the length of a run of combining marks. normalization.py has the view that
recognisers read, which drops and replaces more characters and leads back to the original text.
"""

import unicodedata
from typing import Literal

import regex

PIECE = 4096  # characters normalised at a time
_MARKS = regex.compile(r"\p{M}{32}(?=\p{M})")  # more marks than any text has on a letter


def unicode_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """Return a text in a normal form, computed between spaces, which compose with nothing before them.

    The order of more than 32 marks on a letter is that of each 32.
    """
    pieces, start = [], 0
    while start < len(text):
        end = start + PIECE
        if end < len(text) and (space := text.rfind(" ", start + 1, end)) > 0:
            end = space
        for match in _MARKS.finditer(text, start, end):
            pieces.append(unicodedata.normalize(form, text[start : match.end()]))
            start = match.end()
        pieces.append(unicodedata.normalize(form, text[start:end]))
        start = end
    return "".join(pieces)
