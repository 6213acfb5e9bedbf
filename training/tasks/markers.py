"""Markers that stand in a user's text, escaped, so that no text can pass for a task's own markers.

A word joiner (U+2060, invisible, of no width) goes in after the first sign of whatever reads as a special token or as
a citation: `<|text_end|>` becomes `<` U+2060 `|text_end|>`. Text that already holds that spelling gets one more, so
`unescape(escape(text)) == text` for every text, and text without markers is its own escape.
"""

import re

WORD_JOINER = "\u2060"
# `<|...|>` covers the document tokens and begin and end of text; [UNK] and [PAD] are the other two special tokens;
# <ref ...> and </ref> are how answers cite.
_MARKER = r"(?=\||/?ref\b|UNK\]|PAD\])"
_PLAIN = re.compile(rf"([<\[]{WORD_JOINER}*){_MARKER}")
_ESCAPED = re.compile(rf"([<\[]{WORD_JOINER}*){WORD_JOINER}{_MARKER}")


def escape(text: str) -> str:
    """A text in which nothing reads as a marker; `unescape` gives it back exactly."""
    return _PLAIN.sub(rf"\1{WORD_JOINER}", text)


def unescape(text: str) -> str:
    """The text that was escaped; what was never escaped comes back as it is."""
    return _ESCAPED.sub(r"\1", text)
