"""Formats of OCR: plain text, hOCR, ALTO and PAGE XML, read as pages of lines of words and written with changes."""

import re
from pathlib import Path

from ....common.config import InputError
from .alto import AltoDocument
from .document import Corrector, Document, Line, Page, Passage, Word
from .hocr import HocrDocument, parse_html
from .page_xml import PageXmlDocument
from .plain_text import PlainTextDocument
from .xml_document import local_name, parse_xml

__all__ = ["SUFFIXES", "Corrector", "Document", "Line", "Page", "Passage", "Word", "read_document"]
SUFFIXES = frozenset((".txt", ".hocr", ".html", ".htm", ".xhtml", ".xml", ".alto", ".page"))
MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml\b|<!DOCTYPE\b|<!--|<(?:\w+:)?(?:html|alto|PcGts)\b)", re.IGNORECASE
)
HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!DOCTYPE\s+)?html\b", re.IGNORECASE | re.DOTALL)
FORMATS = {"html": HocrDocument, "alto": AltoDocument, "PcGts": PageXmlDocument}
IMAGES = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF", b"BM": "BMP",
    b"\0\0\0\x0cjP": "JPEG 2000", b"RIFF": "WebP",
}  # fmt: skip


def read_document(path: Path) -> Document:
    """Read a file of OCR text; its content decides on its format.

    Raises:
        InputError: If it is an image, not UTF-8, broken, of another format, or without text.
    """
    data = path.read_bytes()
    for magic, name in IMAGES.items():
        if data.startswith(magic) and b"\0" in data[:64]:
            raise InputError(f"{path} is an image ({name}): pass its OCR, as of `tesseract IMAGE NAME hocr`.")
    try:
        document = _parse(path, data)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it.") from None
    except InputError:
        raise
    except ValueError as error:  # a number that is none
        raise InputError(f"{path} has an invalid value ({error}): correct it.") from error
    if not document.lines:
        raise InputError(f"{path} has no text: nothing to correct.")
    return document


def _parse(path: Path, data: bytes) -> Document:
    if not MARKUP.match(data):
        if b"\0" in data:
            raise InputError(f"{path} is not text in UTF-8 (it contains zero bytes): convert it.")
        return PlainTextDocument(data)
    is_html = HTML.match(data) is not None
    try:
        root = parse_xml(path, data)
    except InputError:
        if not is_html:
            raise
        data.decode("utf-8")
        return HocrDocument(path, data, parse_html(path, data), is_xml=False)
    if (name := local_name(root)) not in FORMATS:
        raise InputError(f"{path} is XML, but neither hOCR nor ALTO nor PAGE XML (its root is {name}).")
    return FORMATS[name](path, data, root)
