"""Parallel segments in several languages: LibreOffice help aligned by element id, the Bible aligned by verse.

A file of segments has the columns id, source (a page or chapter, the unit that is held out), license, and one per ISO
code, empty if the segment has no text in that language. `segments` builds such a file from package registries, or
reads a user-provided one.
"""

import csv
import os
import re
import sqlite3
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
from lxml import html
from tqdm import tqdm

from ...common.config import InputError
from ...common.files import fingerprint
from ...common.language import FOREIGN_CONFIDENCE, JUDGED_LETTERS, LANGUAGES, identify
from ...data import packages
from ...data.documents import corpus_files, read_columns
from ...data.readers import one_line
from ..sources import cached_rows, download_packages

COLUMNS = ["id", "source", "license", *LANGUAGES]
SHORTEST, LETTERS = 15, 0.6  # minimum characters of a segment, and minimum fraction of letters and spaces among them

# The Vulgate's books, as the package names them, by number in the Protestant order. Excluded are books that only the
# Vulgate has, the Psalms, which it numbers differently, and Esther and Daniel, of which its version is longer.
BOOKS = {
    "Gn": 1, "Ex": 2, "Lv": 3, "Nm": 4, "Dt": 5, "Jos": 6, "Jdc": 7, "Rt": 8, "1Rg": 9, "2Rg": 10, "3Rg": 11,
    "4Rg": 12, "1Par": 13, "2Par": 14, "Esr": 15, "Neh": 16, "Job": 18, "Pr": 20, "Ecl": 21, "Ct": 22, "Is": 23,
    "Jr": 24, "Lam": 25, "Ez": 26, "Os": 28, "Joel": 29, "Am": 30, "Abd": 31, "Jon": 32, "Mch": 33, "Nah": 34,
    "Hab": 35, "Soph": 36, "Agg": 37, "Zach": 38, "Mal": 39, "Mt": 40, "Mc": 41, "Lc": 42, "Jo": 43, "Act": 44,
    "Rom": 45, "1Cor": 46, "2Cor": 47, "Gal": 48, "Eph": 49, "Phlp": 50, "Col": 51, "1Thes": 52, "2Thes": 53,
    "1Tim": 54, "2Tim": 55, "Tit": 56, "Phlm": 57, "Hbr": 58, "Jac": 59, "1Ptr": 60, "2Ptr": 61, "1Jo": 62,
    "2Jo": 63, "3Jo": 64, "Jud": 65, "Apc": 66,
}  # fmt: skip
ENGLISH_BIBLE = "4"  # the World English Bible, in the package's naming: modern English, public domain
Verses = dict[tuple[int, int], dict[int, str]]  # (book, chapter) -> verse -> text


def help_page(path: Path) -> dict[str, str]:
    """Return element id -> text of the headings and paragraphs of a page of LibreOffice's help.

    Elements whose wording depends on the operating system are skipped: the file contains all their variants.
    """
    area = html.parse(str(path), html.HTMLParser(encoding="utf-8")).getroot().get_element_by_id("DisplayArea", None)
    if area is None:
        return {}
    elements = area.xpath(".//*[starts-with(@id, 'par_id') or starts-with(@id, 'hd_id')]")
    plain = (element for element in elements if not element.xpath(".//*[starts-with(@class, 'switch')]"))
    return {element.get("id"): one_line("".join(element.itertext())) for element in plain}


def is_prose_in(language: str, text: str) -> bool:
    """Return whether a segment is prose in the language: help pages contain untranslated English.

    Prose too short for language identification is accepted.
    """
    if len(text) < SHORTEST or sum(char.isalpha() or char == " " for char in text) < LETTERS * len(text):
        return False
    if sum(map(str.isalpha, text)) < JUDGED_LETTERS:
        return True
    identified, confidence = identify(text)
    return identified == language or confidence < FOREIGN_CONFIDENCE


def help_segments(folders: dict[str, Path]) -> Iterator[dict]:
    """Yield segments of LibreOffice's help; English text repeated in another language is skipped for that language.

    Args:
        folders: ISO code -> folder of the language's pages, with the same tree below each.
    """
    names = sorted({path.relative_to(folder) for folder in folders.values() for path in folder.rglob("*.html")})
    for name in tqdm(names, desc="help pages", unit="page", file=sys.stderr):
        pages = {code: help_page(folder / name) for code, folder in folders.items() if (folder / name).is_file()}
        for element in dict.fromkeys(element for page in pages.values() for element in page):
            texts = {code: page[element] for code, page in pages.items() if element in page}
            texts = {
                code: text
                for code, text in texts.items()
                if is_prose_in(code, text) and (code == "en" or text != texts.get("en"))
            }
            if len(texts) > 1:
                yield {"id": f"{name}#{element}", "source": f"LibreOffice help {name}", "license": "MPL-2.0", **texts}


def vulgate_verses(path: Path) -> Verses:
    """Read the verses of the books in BOOKS, without the markup of poetry and speakers."""
    verses: Verses = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["book"] in BOOKS:
                text = re.sub(r"[\[\]]", "", re.sub(r"<[^>]*>", " ", row["latin"]))
                text = one_line(unicodedata.normalize("NFC", text))
                verses.setdefault((BOOKS[row["book"]], int(row["chapter"])), {})[int(row["verse"])] = text
    return verses


def english_verses(path: Path) -> Verses:
    """Read the verses of the English Bible."""
    verses: Verses = {}
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        query = "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ?"
        for book, chapter, verse, text in database.execute(query, (ENGLISH_BIBLE,)):
            verses.setdefault((book, chapter), {})[verse] = one_line(text.replace("`", "'"))
    return verses


def bible_segments(latin: Verses, english: Verses) -> Iterator[dict]:
    """Yield the verses of chapters with equal verse numbers in both; in others, equal numbers are not equal verses."""
    for chapter in sorted(latin):
        if latin[chapter].keys() != english.get(chapter, {}).keys():
            continue
        name = next(book for book, number in BOOKS.items() if number == chapter[0])
        for verse, text in sorted(latin[chapter].items()):
            source = f"Bible {name} {chapter[1]}"
            texts = {"la": text, "en": english[chapter][verse]}
            if min(map(len, texts.values())) >= SHORTEST:
                yield {"id": f"{source}:{verse}", "source": source, "license": "Public Domain", **texts}


def segments(path: Path | None, languages: list[str]) -> list[dict]:
    """Return segments in at least two of the languages, from a file or folder, or from package registries.

    Raises:
        InputError: If a file lacks a column or is damaged, or no package is available.
    """
    expected = "segments have the columns id, source, license, and one per language; pass fewer with --data.languages."
    rows = []
    for file in corpus_files(_registry_segments(languages) if path is None else path):
        rows += read_columns(file, [*COLUMNS[:3], *languages], expected)
    return [row for row in rows if sum(bool(row[code]) for code in languages) > 1]


def _registry_segments(languages: list[str]) -> Path:
    """Return the file of segments from packages, built once and kept next to their downloads."""
    bibles = {"vulgate", "bibles"} if {"la", "en"} <= set(languages) else set()
    downloaded = download_packages(languages, lambda package: package.reader in {"libreoffice_help", *bibles})

    def build_rows() -> list[dict]:
        with tempfile.TemporaryDirectory() as temporary:
            # reader -> language -> common folder of all its files
            folders: dict[str, dict[str, Path]] = {}
            for download in downloaded:
                root = Path(temporary) / download.package.name
                for language, tags in packages.unpack(download, languages, root).items():
                    parents = [str(Path(name).parent) for names in tags.values() for name in names]
                    folders.setdefault(download.package.reader, {})[language] = root / os.path.commonpath(parents)
            rows = list(help_segments(folders.get("libreoffice_help", {})))
            if bibles and bibles <= folders.keys():
                latin = vulgate_verses(folders["vulgate"]["la"] / "clem_vulgate.csv")
                rows += bible_segments(latin, english_verses(folders["bibles"]["en"] / "bible.db"))
        if not rows:
            raise InputError(
                f"no segments in {', '.join(languages)}: make pip, apt-get and dpkg-deb work here (reasons above), or "
                "pass a file of segments with --data.path."
            )
        return rows

    key = fingerprint([[download.identifier for download in downloaded], languages])
    return cached_rows(f"segments-{key[:16]}", build_rows, pa.schema([(name, pa.string()) for name in COLUMNS]))
