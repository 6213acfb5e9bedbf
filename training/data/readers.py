"""Readers of downloaded packages, which convert the files of one kind of package to documents of clean paragraphs.

Every reader takes the folder of an unpacked package, the names of its files for one language in reading order, and the
package's tag of that language. It yields documents lazily.
"""

import csv
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lxml import etree, html

from ..common.unicode_forms import unicode_form

PART_CHARACTERS = 12_000  # a novel is split at paragraph ends into parts of about a chapter


@dataclass
class Document:
    """A document of a package; `name` is its path in the package."""

    name: str
    paragraphs: list[str]
    title: str = ""
    creator: str = ""
    date: str = ""


Reader = Callable[[Path, list[str], str], Iterator[Document]]


def hash_order(keys: Iterable) -> list:
    """Sort keys by hash: a pseudo-random order that never changes, so that a source's first megabytes are typical."""
    return sorted(keys, key=lambda key: hashlib.sha256(str(key).encode()).digest())


def one_line(text: str) -> str:
    """Replace runs of spaces and line ends by one space; no-break spaces, which French needs, are kept."""
    return re.sub(r"[ \t\r\n\f]+", " ", text).strip(" ")


def _replaced(pattern: str, replacement: str, text: str) -> str:
    """Replace a pattern that ends with a certain character, in linear time: no match begins after the last one."""
    end = text.rfind(pattern[-1]) + 1
    return re.sub(pattern, replacement, text[:end]) + text[end:]


# Marked-up pages ----------------------------------------------------------------------------------

HTML_BLOCKS = (
    "address article blockquote body caption dd div dl dt figure h1 h2 h3 h4 h5 h6 hr html li main ol p pre section "
    "table tbody td tfoot th thead tr ul"
)
MALLARD_BLOCKS = "comment desc example item listing list note page quote screen steps synopsis terms title tree"
BLOCKS = {*HTML_BLOCKS.split(), *MALLARD_BLOCKS.split()}
VERBATIM = {"pre", "screen", "code"}  # blocks of code; a paragraph is not searched for them
UNREAD = {"script", "style", "head", "info", "nav", "header", "footer", "button", "svg", "media"}
UNREAD_CLASSES = {"navheader", "navfooter", "toc", "relatedtopics", "noteicon", "debug"}


def _tag(node: etree._Element) -> str:
    """Return the local name of an element, or "" for an entity."""
    return etree.QName(node).localname if isinstance(node.tag, str) else ""


def blocks(node: etree._Element) -> Iterator[str]:
    """Yield the paragraphs of an element in reading order: each innermost block and each table row is one."""
    tag = _tag(node)
    if not tag or tag in UNREAD or UNREAD_CLASSES.intersection(node.get("class", "").split()):
        return
    if tag == "tr":
        cells = (one_line("".join(cell.itertext())) for cell in node)
        yield " | ".join(filter(None, cells))
    elif tag in VERBATIM:
        yield "".join(node.itertext()).strip("\n")
    elif any(_tag(inner) in BLOCKS for inner in node.iterdescendants()):
        for child in node:
            yield from blocks(child)
    else:
        yield one_line("".join(node.itertext()))


def _html(path: Path) -> html.HtmlElement:
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    return html.parse(str(path), parser).getroot()


def _page(name: str, root: etree._Element) -> Document:
    paragraphs = [paragraph for paragraph in blocks(root) if paragraph]
    return Document(name, paragraphs, title=paragraphs[0] if paragraphs else "")


def libreoffice_help(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read LibreOffice's help: one HTML page per topic, with the text in `#DisplayArea`."""
    for name in names:
        area = _html(folder / name).get_element_by_id("DisplayArea", None)
        if area is None:
            continue
        # Variants by system or program ("Command" on a Mac, else "Ctrl") are adjacent elements: only one is read.
        for switch in area.find_class("switchinline") + area.find_class("switch"):
            choices = list(switch)
            chosen = next((choice for choice in choices if choice.get("id", "").startswith("default")), None)
            for choice in choices:
                if choice is not (chosen if chosen is not None else choices[0]):
                    choice.drop_tree()
        yield _page(name, area)


def docbook_html(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read a manual of the DocBook stylesheets: one HTML page per section."""
    for name in names:
        yield _page(name, _html(folder / name).body)


def mallard(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read GNOME's help: one Mallard XML page per topic."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, recover=True, remove_comments=True, remove_pis=True
    )
    for name in names:
        yield _page(name, etree.parse(str(folder / name), parser).getroot())


# Data files ---------------------------------------------------------------------------------------


def wikipedia_leads(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read the lead sections of Wikipedia articles: JSON, title -> {"extract": text}."""
    for name in names:
        articles = json.loads((folder / name).read_text(encoding="utf-8"))
        for title in hash_order(articles):
            # Removed brackets left a space before the comma, or an empty pair of brackets.
            text = re.sub(r"(?<! ) +,(?=\s)", ",", articles[title]["extract"].replace(" ()", ""))
            paragraphs = [one_line(line) for line in text.splitlines() if line.strip()]
            yield Document(f"{name}#{title}", paragraphs, title=title, creator="Wikipedia contributors")


def vulgate(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read the Clementine Vulgate: CSV, one verse per line; a document is a chapter."""
    for name in names:
        chapters: dict[tuple[str, str], list[str]] = {}
        with open(folder / name, encoding="utf-8", newline="") as file:
            for verse in csv.DictReader(file):
                chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["latin"])
        for book, chapter in hash_order(chapters):
            # Square brackets mark the beginning and end of poetry, <...> is a speaker or heading. The file has
            # Israel's diaeresis as a combining mark, which printed editions do not need.
            text = _replaced(r"<[^>]*>", " ", " ".join(chapters[book, chapter]))
            text = re.sub(r"[\[\]]", "", text)
            yield Document(
                f"{name}#{book}/{chapter}",
                [one_line(unicode_form("NFC", text))],
                title=f"{book} {chapter}",
                creator="Biblia Sacra Vulgata Clementina",
                date="1592",
            )


# Translations out of copyright by both rules (70 years after death, 95 after publication), by the program's codes.
# Excluded: Ostervald in its revision of 1996, Basic English (1949, its translator died in 1968).
BIBLES = {
    "k": ("King James", "1611"),
    "4": ("World English Bible", "2000"),
    "l": ("Louis Segond", "1910"),
    "5": ("Darby", "1885"),
    "v": ("Reina-Valera", "1909"),
    "e": ("Elberfelder", "1932"),
    "d": ("Diodati", "1649"),
}


def bibles(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read Bibles from an SQLite file: table `bible` of verses, `bibleRef` of book names; a document is a chapter."""
    creator, date = BIBLES[tag]
    for name in names:
        with closing(sqlite3.connect(f"{(folder / name).as_uri()}?mode=ro", uri=True)) as database:
            books = dict(database.execute("SELECT bNumber, bName FROM bibleRef WHERE bbName = ?", (tag,)))
            chapters = database.execute("SELECT DISTINCT bNumber, cNumber FROM bible WHERE bbName = ?", (tag,))
            for book, chapter in hash_order(chapters):
                verses = database.execute(
                    "SELECT vText FROM bible WHERE bbName = ? AND bNumber = ? AND cNumber = ? ORDER BY vNumber",
                    (tag, book, chapter),
                )
                # The file joins the words of a name: 1Mose, CantiqueDesCantiques.
                title = re.sub(r"(?<=[^\W\d_])(?=[A-Z])(?<![A-Z])|(?<=\d)(?=[^\W\d_])", " ", books[book])
                text = one_line(" ".join(verse for (verse,) in verses).replace("`", "'"))
                yield Document(f"{name}#{tag}/{book}/{chapter}", [text], f"{title} {chapter}", creator, date)


NOVELS = {
    "en_US": ("Alice's Adventures in Wonderland", "Lewis Carroll", "1865"),
    "fr_FR": ("Madame Bovary", "Gustave Flaubert", "1857"),
    "fr_CA": ("La chasse galerie", "Honoré Beaugrand", "1900"),
    "es_ES": ("Trafalgar", "Benito Pérez Galdós", "1873"),
    "de_DE": ("Die Leiden des jungen Werther", "Johann Wolfgang von Goethe", "1774"),
    "nl_BE": ("De legende van Uilenspiegel en Lamme Goedzak", "Charles de Coster", "1867"),
    "pt_BR": ("Dom Casmurro", "Machado de Assis", "1899"),
}


def novels(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read a Project Gutenberg novel in PHP source: a `<<<'EOT' ... EOT;` string, wrapped or a paragraph per line."""
    title, creator, date = NOVELS[tag]
    for name in names:
        source = (folder / name).read_text(encoding="utf-8").replace("\r\n", "\n")
        text = source.partition("$baseText = <<<'EOT'\n")[2].partition("\nEOT;")[0]
        wrapped = max(map(len, text.splitlines()), default=0) < 200
        text = _replaced(r"\[Ill?ustra[^\]]*\]", "", text)
        text = re.sub(r"_([^_\n]+(?:\n[^_\n]+)?)_", r"\1", text)  # _italics_
        paragraphs = map(one_line, re.split(r"\n\s*\n" if wrapped else r"\n+", text))
        part, size, number = [], 0, 1
        for paragraph in (*(p for p in paragraphs if any(map(str.isalpha, p))), None):
            if part and (paragraph is None or size >= PART_CHARACTERS):
                yield Document(f"{name}#{number}", part, title, creator, date)
                part, size, number = [], 0, number + 1
            if paragraph is not None:
                part.append(paragraph)
                size += len(paragraph)


def translations(folder: Path, names: list[str], tag: str) -> Iterator[Document]:
    """Read a program's messages: nested JSON of strings; a document is one file's messages of 6 words or more."""

    def messages(value) -> Iterator[str]:
        if isinstance(value, str):
            yield from (one_line(line) for line in value.splitlines())
        else:
            for inner in value.values():
                yield from messages(inner)

    for name in names:
        lines = dict.fromkeys(messages(json.loads((folder / name).read_text(encoding="utf-8"))))
        yield Document(name, [line for line in lines if line.count(" ") >= 5])


READERS: dict[str, Reader] = {
    reader.__name__: reader
    for reader in (libreoffice_help, docbook_html, mallard, wikipedia_leads, vulgate, bibles, novels, translations)
}
