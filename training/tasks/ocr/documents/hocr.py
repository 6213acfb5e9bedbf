"""hOCR as an OCR document: XHTML, as Tesseract writes it, or HTML."""

import re
from pathlib import Path

from lxml import etree, html

from ....common.config import InputError
from .document import Box, Line, Note, Page, Word
from .plain_text import SpacedText
from .xml_document import XmlDocument, number

LINES = frozenset("ocr_line ocrx_line ocr_header ocr_caption ocr_textfloat".split())
BLOCKS = frozenset("ocr_carea ocr_page".split())  # Tesseract sees paragraphs where there are none
BOX = re.compile(r"\bbbox((?:\s+-?\d+(?:\.\d+)?){4})")
IMAGE = re.compile(r"""\bimage\s+(?:"([^"]*)"|'([^']*)'|([^\s;]+))""")
# Confidences and boxes of the characters of a word that is now another.
OF_CHARACTERS = re.compile(r";?\s*\b(?:x_confs|x_bboxes|cuts|nlp)\s[^;]*")
XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def _classes(node: etree._Element) -> set[str]:
    return set((node.get("class") or "").split())


def _box(node: etree._Element) -> Box | None:
    match = BOX.search(node.get("title") or "")
    return tuple(map(float, match[1].split())) if match else None


def _language(node: etree._Element) -> str | None:
    """Return the language of an element; that of the root is "en" in every file of Tesseract, and states nothing."""
    while node.getparent() is not None:
        if language := node.get("lang") or node.get(XML_LANGUAGE):
            return language
        node = node.getparent()
    return None


def _block(node: etree._Element) -> etree._Element | None:
    while (node := node.getparent()) is not None:
        if _classes(node) & BLOCKS:
            return node
    return None


def parse_html(path: Path, data: bytes) -> etree._Element:
    """Parse HTML that is not XML, as hOCR in UTF-8.

    Raises:
        InputError: If it is empty.
    """
    try:
        return html.document_fromstring(data, parser=html.HTMLParser(encoding="utf-8", huge_tree=False))
    except etree.ParserError:
        raise InputError(f"{path} is empty HTML: pass a file with hOCR.") from None


class HocrDocument(XmlDocument):
    """hOCR: pages (ocr_page), lines (ocr_line and its kinds) and words (ocrx_word) by the classes of elements.

    A change is recorded in the `title` of the word: `x_before "tbe"; x_change word; x_change_conf 98`.
    """

    def __init__(self, path: Path, data: bytes, root: etree._Element, *, is_xml: bool = True):
        super().__init__(path, data, root)
        self._is_xml, self.pages, block = is_xml, [], None
        for node in root.iter():
            classes = _classes(node) if isinstance(node.tag, str) else set()
            if "ocr_page" in classes or (classes & LINES and not self.pages):
                title, box = node.get("title") or "", _box(node) if "ocr_page" in classes else None
                image = IMAGE.search(title)
                image = next(filter(None, image.groups()), None) if image else None
                self.pages.append(Page(image=image, size=box and (box[2], box[3])))
            if classes & LINES:
                line = self._line(node)
                if line.words:
                    line.starts_block, block = _block(node) is not block, _block(node)
                    self.pages[-1].lines.append(line)
        if not self.pages:
            raise InputError(f"{path} is HTML without hOCR (no element of class ocr_page or ocr_line): pass hOCR.")
        self.number_lines()

    def _line(self, node: etree._Element) -> Line:
        nodes = [child for child in node.iter() if isinstance(child.tag, str) and "ocrx_word" in _classes(child)]
        words = [Word(" ".join("".join(child.itertext()).split()), _box(child), child) for child in nodes]
        words = [word for word in words if word.text]
        spaced = None
        if not nodes:  # a program that writes lines alone
            spaced = SpacedText("".join(node.itertext()))
            words = [Word(word, _box(node), node) for word in spaced.words]
        return Line(words, _language(words[0].node if words else node), _box(node), (node, spaced))

    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace words of a line."""
        node, spaced = line.node
        if spaced is None:
            return super().rewrite(line, first, count, tokens, boxes, note)
        spaced.replace(first, count, tokens)
        _set_text(node, str(spaced))
        self.changed.add(node)
        return [Word(token, line.box, node) for token in tokens]

    def set_word(self, node: etree._Element, text: str, box: Box | None, note: Note | None) -> None:
        """Set text, box and record of a word."""
        _set_text(node, text)
        title = OF_CHARACTERS.sub("", node.get("title") or "")
        if box:
            title = BOX.sub("bbox " + " ".join(f"{side:.0f}" for side in box), title)
        if note:
            before = re.sub(r'[%";\\]', lambda match: f"%{ord(match[0]):02X}", note.before)
            confidence = number(100 * note.probability)
            title = f'{title}; x_before "{before}"; x_change {note.kind}; x_change_conf {confidence}'
        node.set("title", title.removeprefix("; "))

    def to_bytes(self) -> bytes:
        """Return the file; HTML that is not XML is serialised again."""
        if self._is_xml or not (self.changed or self.removed or self.added):
            return super().to_bytes()
        for node, added in self.added.items():
            node.tail, tail = " ", node.tail
            place = node.getparent().index(node) + 1
            node.getparent()[place:place] = added
            for element in added:
                element.tail = " "
            added[-1].tail = tail
        for node in self.removed:
            node.drop_tree()
        return html.tostring(self.root.getroottree(), encoding="utf-8")


def _set_text(node: etree._Element, text: str) -> None:
    """Set the text of a word inside the <strong> or <em> that contains it."""
    while len(node) == 1 and not (node.text or "").strip() and not (node[0].tail or "").strip():
        node = node[0]
    for child in list(node):
        node.remove(child)
    node.text = text
