"""PAGE XML (2013 to 2019) as an OCR document, with words or with lines alone."""

import copy
import re
from pathlib import Path

from lxml import etree
from rapidfuzz.distance import Levenshtein

from .document import Box, Line, Note, Page, Word
from .plain_text import SpacedText
from .xml_document import XmlDocument, child, descendants, local_name, number

INDEXED = 2017  # the first version in which an element may have several texts, in the order of their index


def _box(node: etree._Element) -> Box | None:
    coordinates = child(node, "Coords")
    points = (coordinates.get("points") or "") if coordinates is not None else ""
    pairs = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", points)]
    if not pairs:
        return None
    xs, ys = zip(*pairs, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _language(node: etree._Element | None) -> str | None:
    while node is not None:
        if language := node.get("language") or node.get("primaryLanguage"):
            return language
        node = node.getparent()
    return None


def _main_text(node: etree._Element) -> etree._Element | None:
    """Return the TextEquiv of an element with the lowest index: its text."""
    texts = [text for text in node.findall("{*}TextEquiv") if child(text, "Unicode") is not None]
    return min(texts, key=lambda text: int(text.get("index") or 0), default=None)


def _unicode(node: etree._Element) -> str:
    text = _main_text(node)
    return (child(text, "Unicode").text or "") if text is not None else ""


class PageXmlDocument(XmlDocument):
    """PAGE XML: TextRegion, TextLine, Word; or TextLine alone, whose words then have the box of the line.

    A change is recorded as an alternative TextEquiv with the words before it, and the new text has the change's
    probability as its confidence. Before 2017, when an element had one text, the attribute `comments` records it.
    The texts of lines and regions follow the words, if they agreed with them.
    """

    def __init__(self, path: Path, data: bytes, root: etree._Element):
        super().__init__(path, data, root)
        year = re.search(r"/(\d{4})-\d\d-\d\d$", etree.QName(root).namespace or "")
        self._indexed, self.pages = year is not None and int(year[1]) >= INDEXED, []
        for page in descendants(root, "Page"):
            size = tuple(float(page.get(side) or 0) for side in ("imageWidth", "imageHeight"))
            self.pages.append(Page(image=page.get("imageFilename"), size=size if all(size) else None))
            region = None
            for node in descendants(page, "TextLine"):
                words = [Word(" ".join(_unicode(word).split()), _box(word), word) for word in node.findall("{*}Word")]
                words, spaced = [word for word in words if word.text], None
                if not words:
                    spaced = SpacedText(_unicode(node))
                    words = [Word(word, _box(node), node) for word in spaced.words]
                if words:
                    place = (node, spaced, [word.text for word in words])
                    line = Line(words, _language(words[0].node), _box(node), place, node.getparent() is not region)
                    self.pages[-1].lines.append(line)
                    region = node.getparent()
        self.number_lines()

    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace words of a line."""
        node, spaced, _ = line.node
        if spaced is None:
            return super().rewrite(line, first, count, tokens, boxes, note)
        spaced.replace(first, count, tokens)
        self.changed.add(node)
        self._set_text(node, str(spaced), note and note._replace(before=_unicode(node)))
        return [Word(token, line.box, node) for token in tokens]

    def set_word(self, node: etree._Element, text: str, box: Box | None, note: Note | None) -> None:
        """Set text, box and record of a Word."""
        for glyph in node.findall("{*}Glyph"):
            node.remove(glyph)
        if box and (coordinates := child(node, "Coords")) is not None:
            left, top, right, bottom = map(number, box)
            coordinates.set("points", f"{left},{top} {right},{top} {right},{bottom} {left},{bottom}")
        self._set_text(node, text, note)

    def _set_text(self, node: etree._Element, text: str, note: Note | None) -> None:
        """Set the text of a word or line, and record the change."""
        main, texts = _main_text(node), node.findall("{*}TextEquiv")
        if note and self._indexed and not any(part.get("comments") for part in texts):
            before = copy.deepcopy(main)
            for index, part in enumerate([before, *(part for part in texts if part is not main)], 1):
                part.set("index", str(index))
            child(before, "Unicode").text = note.before
            before.set("comments", f"OCR before correction ({note.kind}, probability {note.probability:.3f})")
            main.set("index", "0")
            main.set("conf", f"{note.probability:.3f}")
            main.addnext(before)
        elif note and not self._indexed:
            record = f"before correction: {note.before} ({note.kind}, probability {note.probability:.3f})"
            node.set("comments", "; ".join(filter(None, (node.get("comments"), record))))
        for plain in main.findall("{*}PlainText"):
            main.remove(plain)
        child(main, "Unicode").text = text

    def to_bytes(self) -> bytes:
        """Return the file, with the texts of lines and regions that follow their words."""
        regions: dict[etree._Element, tuple[list[str], list[str]]] = {}
        for line in self.lines:
            node, spaced, before = line.node
            after = [word.text for word in line.words]
            if spaced is None:
                self._follow(node, before, after)
            while local_name(node := node.getparent()) != "Page":
                texts = regions.setdefault(node, ([], []))
                texts[0].extend(before)
                texts[1].extend(after)
        for node, (before, after) in regions.items():
            self._follow(node, before, after)
        return super().to_bytes()

    def _follow(self, node: etree._Element, before: list[str], after: list[str]) -> None:
        """Replace the words of the text of a line or region that contains the same words as its parts."""
        text = _main_text(node)
        if before == after or text is None or (spaced := SpacedText(_unicode(node))).words != before:
            return
        for step in reversed(list(Levenshtein.opcodes(before, after))):
            first, count, tokens = (
                step.src_start,
                step.src_end - step.src_start,
                after[step.dest_start : step.dest_end],
            )
            if step.tag == "insert":  # next to the word before it, or before the first
                first = max(0, first - 1)
                tokens = [before[first], *tokens] if step.src_start else [*tokens, before[first]]
                count = 1
            if step.tag != "equal":
                spaced.replace(first, count, tokens)
        child(text, "Unicode").text = str(spaced)
        self.changed.add(text)
