"""Plain text as an OCR document: form feeds separate pages; words have no boxes."""

import re
from codecs import BOM_UTF8

from .document import Box, Document, Line, Note, Page, Word

SPACE = re.compile(r"([ \t\r\n\v\f]+)")  # no-break spaces are part of a word


class SpacedText:
    """Text whose words can be replaced while everything between them stays.

    Args:
        text: The text.
    """

    def __init__(self, text: str):
        pieces = SPACE.split(text)  # word, space, word ...; the first and the last word may be empty
        if len(pieces) > 1 and not pieces[-1]:
            pieces.pop()
        self.indent = "" if pieces[0] else "".join(pieces[1:2])
        start = 0 if pieces[0] else 2
        self.words, self._spaces = pieces[start::2], pieces[start + 1 :: 2]
        self._spaces += [""] * (len(self.words) - len(self._spaces))

    def replace(self, first: int, count: int, tokens: list[str]) -> None:
        """Replace words. More words are separated by one space; the space after the last stays."""
        end = first + count
        *spaces, last = self._spaces[first:end]
        before = self._spaces[first - 1] if first else self.indent
        if not tokens and (end == len(self.words) or "\n" in last) and "\n" not in before:  # the line end stays
            if first:
                self._spaces[first - 1] = last
            else:
                self.indent = last
        between = (spaces + [" "] * len(tokens))[: max(0, len(tokens) - 1)]
        self.words[first:end], self._spaces[first:end] = tokens, [*between, last][: len(tokens)]

    def __str__(self):
        pairs = zip(self.words, self._spaces, strict=True)
        return self.indent + "".join(word + space for word, space in pairs)


class PlainTextDocument(Document):
    """Text in UTF-8, with any line ends."""

    def __init__(self, data: bytes):
        self._mark = BOM_UTF8 if data.startswith(BOM_UTF8) else b""
        text = data.removeprefix(BOM_UTF8).decode("utf-8")
        self.pages, blank = [Page()], True
        self._lines: list[SpacedText] = []
        for piece in re.split(r"(?<=[\n\f])", text):
            spaced = SpacedText(piece)
            self._lines.append(spaced)
            if spaced.words:
                words = [Word(word) for word in spaced.words]
                self.pages[-1].lines.append(Line(words, node=spaced, starts_block=blank))
            blank = not spaced.words
            if piece.endswith("\f"):
                self.pages.append(Page())
        self.number_lines()

    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace words of a line."""
        line.node.replace(first, count, tokens)
        return [Word(token) for token in tokens]

    def to_bytes(self) -> bytes:
        """Return the text."""
        return self._mark + "".join(map(str, self._lines)).encode()
