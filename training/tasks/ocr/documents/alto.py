"""ALTO (versions 1 to 4) as an OCR document."""

from pathlib import Path

from lxml import etree

from .document import HYPHENS, Box, Edit, Line, Note, Page, Word
from .xml_document import XmlDocument, child, descendants, local_name, new_element, number

SIDES = ("HPOS", "VPOS", "WIDTH", "HEIGHT")


def _box(node: etree._Element) -> Box | None:
    try:
        left, top, width, height = (float(node.attrib[side]) for side in SIDES)
    except (KeyError, ValueError):
        return None
    return left, top, left + width, top + height


def _language(node: etree._Element | None) -> str | None:
    while node is not None:
        if language := node.get("LANG") or node.get("language"):
            return language
        node = node.getparent()
    return None


def _block(node: etree._Element) -> etree._Element:
    """Return the outermost block of a line."""
    while local_name(node.getparent()) in ("TextBlock", "ComposedBlock"):
        node = node.getparent()
    return node


class AltoDocument(XmlDocument):
    """ALTO: Page, TextLine, String. A hyphen in its own element (HYP) is part of the word before it.

    A change is recorded as an ALTERNATIVE of the String with the words before it; PURPOSE has kind and probability.
    """

    id_attribute = "ID"

    def __init__(self, path: Path, data: bytes, root: etree._Element):
        super().__init__(path, data, root)
        image = next(iter(descendants(root, "fileName")), None)
        self.pages = []
        for page in descendants(root, "Page"):
            size = tuple(float(page.get(side) or 0) for side in ("WIDTH", "HEIGHT"))
            self.pages.append(Page(image=image.text if image is not None else None, size=size if all(size) else None))
            previous = None
            for node in descendants(page, "TextLine"):
                words = [
                    Word(string.get("CONTENT") or "", _box(string), string) for string in node.findall("{*}String")
                ]
                words = [word for word in words if word.text.strip()]
                if words:
                    hyphen = child(node, "HYP")
                    words[-1].text += hyphen.get("CONTENT", "") if hyphen is not None else ""
                    line = Line(words, _language(words[0].node), _box(node), hyphen, _block(node) is not previous)
                    self.pages[-1].lines.append(line)
                    previous = _block(node)
        self.number_lines()

    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace Strings of a line; a hyphen in its own element stays there, or is removed with the division."""
        texts = list(tokens)
        if line.node is not None and first + count == len(line.words):
            hyphen = line.node.get("CONTENT", "")
            if tokens and tokens[-1].endswith(hyphen) and tokens[-1] != hyphen:
                texts[-1] = tokens[-1].removesuffix(hyphen)
            else:
                self.removed.add(line.node)
                line.node = None
        words = super().rewrite(line, first, count, texts, boxes, note)
        for word, token in zip(words, tokens, strict=True):
            word.text = token
        return words

    def set_word(self, node: etree._Element, text: str, box: Box | None, note: Note | None) -> None:
        """Set content, box and record of a String."""
        node.attrib.pop("CC", None)  # confidences of the characters before
        node.set("CONTENT", text)
        if box:
            left, top, right, bottom = box
            for side, value in zip(SIDES, (left, top, right - left, bottom - top), strict=True):
                node.set(side, number(value))
        for part in list(node):
            if local_name(part) == "Glyph" or (box and local_name(part) == "Shape"):
                node.remove(part)
        if note:
            purpose = f"OCR before correction ({note.kind}, probability {note.probability:.3f})"
            place = sum(local_name(part) == "Shape" for part in node)
            node.insert(place, new_element(node, "ALTERNATIVE", note.before, PURPOSE=purpose))

    def separator(self, before: Box | None, after: Box | None, node: etree._Element) -> list[etree._Element]:
        """Return the space between two Strings."""
        space = new_element(node, "SP")
        if before and after:
            for side, value in zip(SIDES[:3], (before[2], before[1], after[0] - before[2]), strict=True):
                space.set(side, number(value))
        return [space]

    def remove(self, node: etree._Element) -> None:
        """Remove a String with the space before it; of the first in a line, with the space after it."""
        if node in self.anchors:
            added = self.added[self.anchors[node]]
            del added[added.index(node) - 1]
        for space in (node.getprevious(), node.getnext()):
            if space is not None and local_name(space) == "SP" and space not in self.removed:
                self.removed.add(space)
                break
        super().remove(node)

    def mark_division(self, edit: Edit, parts: list[str]) -> None:
        """Mark the halves of a word as ALTO does (SUBS_TYPE, SUBS_CONTENT); their text stays."""
        for i, (line, index) in enumerate(edit.places):
            node = line.words[index].node
            node.set("SUBS_TYPE", "HypPart1" if i < len(edit.places) - 1 else "HypPart2")
            node.set("SUBS_CONTENT", "".join(part.rstrip(HYPHENS) for part in parts))
            self.changed.add(node)

    def to_bytes(self) -> bytes:
        """Return the file; halves of a word that changed state the whole word as it is now."""
        for line, following in zip(self.lines, [*self.lines[1:], Line([Word("")])], strict=True):
            left, right = line.words[-1:], following.words[:1]
            nodes = [word.node for word in (*left, *right) if word.node is not None]
            if not left or left[0].node.get("SUBS_TYPE") != "HypPart1" or not self.changed.intersection(nodes):
                continue
            if len(nodes) == 2 and nodes[1].get("SUBS_TYPE") == "HypPart2":
                for node in nodes:
                    node.set("SUBS_CONTENT", left[0].text.rstrip(HYPHENS) + right[0].text)
                    self.changed.add(node)
            else:
                del nodes[0].attrib["SUBS_TYPE"]
                nodes[0].attrib.pop("SUBS_CONTENT", None)
        return super().to_bytes()
