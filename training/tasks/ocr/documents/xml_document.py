"""Base of OCR documents in XML: a hardened parser, and a writer that replaces only the bytes of changed words."""

import copy
import io
import re
from pathlib import Path
from xml.parsers import expat

from lxml import etree

from ....common.config import InputError
from .document import Box, Document, Line, Note, Word

START_TAG = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*(/?)>""")
NAMESPACE = re.compile(rb'\s+xmlns(?::[\w.-]+)?="[^"]*"')


def parse_xml(path: Path, data: bytes) -> etree._Element:
    """Parse a file of other people: no entities, nothing from the network, libxml2's limits of depth and size.

    Raises:
        InputError: If it is not well-formed, or declares entities.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        tree = etree.parse(io.BytesIO(data), parser)
    except etree.XMLSyntaxError as error:
        line, column = error.position
        reason = error.msg.partition(", line ")[0]
        raise InputError(f"{path} is broken XML ({reason}, line {line}, column {column}): repair it.") from None
    if tree.docinfo.internalDTD is not None and any(tree.docinfo.internalDTD.iterentities()):
        raise InputError(f"{path} declares XML entities, which are not read: expand them.")
    return tree.getroot()


def local_name(node: etree._Element) -> str:
    """Return the name of an element without its namespace; of comments and instructions, nothing."""
    return etree.QName(node).localname if isinstance(node.tag, str) else ""


def descendants(node: etree._Element, name: str) -> list[etree._Element]:
    """Return the descendants with a name, in any namespace."""
    return [child for child in node.iter(f"{{*}}{name}") if child is not node]


def child(node: etree._Element, name: str) -> etree._Element | None:
    """Return the first child with a name, in any namespace."""
    return next(iter(node.findall(f"{{*}}{name}")), None)


def new_element(like: etree._Element, name: str, text: str | None = None, **attributes: str) -> etree._Element:
    """Return an element of the namespace of another."""
    node = etree.Element(etree.QName(etree.QName(like).namespace, name), attributes, nsmap=like.nsmap)
    node.text = text
    return node


def number(value: float) -> str:
    """Return a coordinate as whole pixels if it is almost whole, else with two decimals."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.005 else f"{value:.2f}"


class XmlDocument(Document):
    """Document in XML. Elements of words that do not change stay byte for byte, and so does everything around them.

    Args:
        path: Path of the file, for messages.
        data: Content of the file.
        root: Its parsed root.
    """

    id_attribute = "id"

    def __init__(self, path: Path, data: bytes, root: etree._Element):
        self.path, self.data, self.root = path, data, root
        self.encoding = root.getroottree().docinfo.encoding or "UTF-8"
        self.changed: set[etree._Element] = set()
        self.removed: set[etree._Element] = set()
        self.added: dict[etree._Element, list[etree._Element]] = {}  # elements after one of the file, their anchor
        self.anchors: dict[etree._Element, etree._Element] = {}  # of added elements
        self._nodes = [node for node in root.iter() if isinstance(node.tag, str)]  # keeps lxml's proxies alive
        self._ids = {node.get(self.id_attribute) for node in self._nodes}

    def set_word(self, node: etree._Element, text: str, box: Box | None, note: Note | None) -> None:
        """Set text, box and record of an element.

        Args:
            node: Element of the word.
            text: New text.
            box: New box; None leaves it.
            note: Record of the change; None if it has none.
        """
        raise NotImplementedError

    def separator(self, before: Box | None, after: Box | None, node: etree._Element) -> list[etree._Element]:
        """Return the elements between two words, if the format has such."""
        return []

    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace elements of words; the first of them becomes the first new word."""
        old = [word.node for word in line.words[first : first + count]]
        for node in old[bool(tokens) :]:
            self.remove(node)
        if not tokens:
            return []
        copies = [copy.deepcopy(old[0]) for _ in tokens[1:]]
        self.changed.add(old[0])
        self.set_word(old[0], tokens[0], boxes[0] if len(tokens) != count else None, note)
        previous = old[0]
        for i, node in enumerate(copies, 1):
            node.tail = None
            self._set_new_id(node)
            self.set_word(node, tokens[i], boxes[i], None)
            self.add(previous, [*self.separator(boxes[i - 1], boxes[i], node), node])
            previous = node
        return [Word(*parts) for parts in zip(tokens, boxes, [old[0], *copies], strict=True)]

    def add(self, previous: etree._Element, nodes: list[etree._Element]) -> None:
        """Add elements after another, which may be an added one."""
        anchor = self.anchors.get(previous, previous)
        added = self.added.setdefault(anchor, [])
        place = 0 if previous is anchor else added.index(previous) + 1
        added[place:place] = nodes
        self.anchors.update(dict.fromkeys(nodes, anchor))

    def remove(self, node: etree._Element) -> None:
        """Remove an element."""
        if node in self.anchors:
            self.added[self.anchors[node]].remove(node)
        else:
            self.removed.add(node)

    def _set_new_id(self, node: etree._Element) -> None:
        if (name := node.get(self.id_attribute)) is None:
            return
        count = 2
        while f"{name}_{count}" in self._ids:
            count += 1
        node.set(self.id_attribute, f"{name}_{count}")
        self._ids.add(f"{name}_{count}")

    def to_bytes(self) -> bytes:
        """Return the file, in which only the bytes of changed elements differ."""
        altered = self.changed | self.removed | self.added.keys()
        if not altered:
            return self.data
        spans = dict(zip(self._nodes, element_spans(self.data), strict=True))
        parts, position = [], 0
        for start, end, node in sorted((*spans[node], node) for node in altered):
            parts.append(self.data[position:start])
            element = self._serialise(node) if node in self.changed else self.data[start:end]
            elements = [] if node in self.removed else [element]
            parts.append(b" ".join([*elements, *map(self._serialise, self.added.get(node, ()))]))
            position = end
        return b"".join([*parts, self.data[position:]])

    def _serialise(self, node: etree._Element) -> bytes:
        text = etree.tostring(node, encoding=self.encoding, xml_declaration=False, with_tail=False)
        if b"\r\n" in self.data:  # a parser reads them as "\n"
            text = text.replace(b"\n", b"\r\n")
        tag = START_TAG.match(text)
        return NAMESPACE.sub(b"", tag[0]) + text[tag.end() :]


def element_spans(data: bytes) -> list[tuple[int, int]]:
    """Return the byte range of every element, in the order of their start tags."""
    spans: list[tuple[int, int]] = []
    unfinished: list[int] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        tag = START_TAG.match(data, parser.CurrentByteIndex)
        unfinished.append(len(spans))
        spans.append((tag.start(), tag.end() if tag[1] else 0))

    def end(name: str) -> None:
        index = unfinished.pop()
        if not spans[index][1]:
            spans[index] = spans[index][0], data.index(b">", parser.CurrentByteIndex) + 1

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(data, True)
    return spans
