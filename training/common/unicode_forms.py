"""Unicode normalisation in linear time: that of the standard library takes the square of a run of combining marks."""

import unicodedata
from typing import Literal

PIECE = 4096  # characters normalised at a time


def unicode_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """Return a text in a normal form, computed between spaces, which compose with nothing before them."""
    pieces, start = [], 0
    while start < len(text):
        end = start + PIECE
        if end < len(text) and (space := text.rfind(" ", start + 1, end)) > 0:
            end = space
        pieces.append(unicodedata.normalize(form, text[start:end]))
        start = end
    return "".join(pieces)
