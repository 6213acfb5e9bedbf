"""Escaping of task markers in user text, so that no text is mistaken for the markers of a task's format.

Everything of a user that becomes part of a prompt is escaped: texts, and the ids of sources. Names from a closed list
(languages, roles) are checked instead.

A word joiner (U+2060, invisible, zero width) is inserted after the first character of every special token or citation:
`<|text_end|>` becomes `<` U+2060 `|text_end|>`. An already escaped marker gets another one, so `unescape(escape(text))
== text` for every text, and text without markers is unchanged.
"""

import re

WORD_JOINER = "\u2060"
# `<|...|>` covers the document tokens and begin and end of text; [UNK] and [PAD] are the other two special tokens;
# <ref ...> and </ref> delimit citations.
_MARKER = r"(?=\||/?ref\b|UNK\]|PAD\])"
_PLAIN = re.compile(rf"([<\[]{WORD_JOINER}*){_MARKER}")
_ESCAPED = re.compile(rf"([<\[]{WORD_JOINER}*){WORD_JOINER}{_MARKER}")


def escape(text: str) -> str:
    """Escape all markers in a text; `unescape` is the exact inverse."""
    return _PLAIN.sub(rf"\1{WORD_JOINER}", text)


def language_marker(code: str) -> str:
    """Return the marker of a language.

    Raises:
        ValueError: If the code is not one of lower-case letters.
    """
    if not re.fullmatch("[a-z]+", code):
        raise ValueError(f"language {code!r}: a language is an ISO code, such as fr.")
    return f"<|{code}|>"


def unescape(text: str) -> str:
    """Undo `escape`; text that was never escaped is returned unchanged."""
    return _ESCAPED.sub(r"\1", text)
