"""Text of other people as a terminal line, a Markdown cell and a shell line, and addresses without their passwords.

Names, labels, identifiers and messages of files are written through these functions alone. Neither package imports
the other, so `model_card/escaping.py` has the same functions.
"""

import re
import shlex
from collections.abc import Iterable

# Control, bidirectional, private-use, tag and surrogate characters: invisible, or commands to a terminal.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ue000-\uf8ff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\U000f0000-\U0010ffff]"
)
LINE_END = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])")  # not an underscore inside a word
# The second: a password with a slash, which no parser of addresses takes for one.
USERINFO = re.compile(r"://[^\s/?#]*@|://[^\s/?#@:]*:(?!\d+(?:[/?#]|$))[^\s@]*@")
SECRET = re.compile(r"([?&][\w-]*(?:key|token|secret|password|signature)=)[^&#\s]+", re.I)


def visible(match: re.Match) -> str:
    """Return the escape of a character that bash, Python and people read."""
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 128 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def terminal_line(text: object) -> str:
    """Return a text as one line: line ends become spaces, and other control characters visible escapes."""
    line = re.sub(r"\s+", lambda space: " " if LINE_END.search(space[0]) else space[0], str(text))
    return CONTROL.sub(visible, line)


class Markdown(str):
    """Markdown that a writer has made, such as a code span, which `markdown_cell` leaves unchanged."""


def markdown_cell(text: object) -> str:
    """Return a text as one line of Markdown in which nothing is markup: a table cell, or words in a paragraph."""
    if isinstance(text, Markdown):
        return text
    line = re.sub(r"&(?=#?\w+;)", "&amp;", terminal_line(text).strip()).replace("<", "&lt;")
    return MARKUP.sub(r"\\\g<0>", line)


def code_span(text: object) -> Markdown:
    """Return a text as inline code of a paragraph, between more backticks than it contains in a row."""
    line = terminal_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " * (len(ticks) > 1)
    return Markdown(f"{ticks}{pad}{line}{pad}{ticks}")


def shell_line(arguments: Iterable[str]) -> str:
    """Return a command as one line that a shell splits into the same arguments, without passwords in addresses."""
    return " ".join(map(_quote, map(mask_passwords, arguments)))


def _quote(argument: str) -> str:
    if not CONTROL.search(argument):
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{CONTROL.sub(visible, escaped)}'"


def mask_passwords(value):
    """Return a JSON value in which addresses have *** instead of user, password and keys."""
    if isinstance(value, dict):
        return {key: mask_passwords(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_passwords(item) for item in value]
    return SECRET.sub(r"\1***", USERINFO.sub("://***@", value)) if isinstance(value, str) else value
