"""Rows of questions with sources: built from passages with BM25 distractors, or read from user-provided files."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import bm25s
import yaml

from ...common.config import InputError
from ...common.language import LANGUAGES, identify
from ..copy_task import random_word_rows
from ..sources import read_user_files
from .rag_formats import Citation, Format, Response, format_rag, parse_answer
from .rag_passages import Passage

if TYPE_CHECKING:
    from . import RagData

POOL = 20  # distractors are sampled from this many best BM25 results
CLAUSE_WORDS = 4  # minimum words of a shortened quote, which ends at a comma if there is one,
LITTLE = 3  # else after a word of more characters than this, which excludes most articles and prepositions
COPY_TITLE, COPY_ANSWER = (1, 2), (5, 8)  # minimum and maximum words of the title and the answer of a copy-task row
USER_COLUMNS = ("query", "sources", "answer")


@cache
def phrases() -> dict[str, dict]:
    """Read rag.yaml: per ISO code, the templates of questions and analyses, and the refusal."""
    return yaml.safe_load(Path(__file__).with_name("rag.yaml").read_text(encoding="utf-8"))


def quote_of(sentence: str, max_words: int) -> str:
    """Return the quote of a sentence: all, or up to a comma or a longer word; without final punctuation."""
    words = list(re.finditer(r"\S+", sentence))
    if len(words) > max_words:
        words = words[:max_words]
        clauses = [word for word in words[CLAUSE_WORDS - 1 :] if word[0][-1] in ",;:"]
        longer = [word for word in words[CLAUSE_WORDS - 1 :] if len(word[0]) > LITTLE]
        words = clauses or longer or words
    return sentence[: words[-1].end()].rstrip(".,;:!?…")


def bm25_distractors(passages: list[Passage]) -> Callable[[Passage], list[Passage]]:
    """Return a function: passage -> distractors of other pages that do not mention its title, by BM25 score."""
    index = bm25s.BM25()
    tokens = bm25s.tokenize([passage.text for passage in passages], stopwords=None, show_progress=False)
    index.index(tokens, show_progress=False)

    def find(passage: Passage) -> list[Passage]:
        query = bm25s.tokenize(f"{passage.title} {passage.answer}", stopwords=None, show_progress=False)
        count = min(2 * POOL, len(passages))
        ranked, _ = index.retrieve(query, k=count, show_progress=False, backend_selection="numpy")
        title = passage.title.casefold()
        others = (passages[i] for i in ranked[0])
        distractors = (p for p in others if p.page != passage.page and title not in p.text.casefold())
        return list(islice(distractors, POOL))

    return find


def make_rows(passages: list[Passage], count: int, data: RagData) -> Iterator[dict]:
    """Yield `count` rows, equally many per language; if passages are too few, they recur with other sources.

    Args:
        passages: Passages of all languages, for questions and as distractors.
    """
    counts = range(1, data.max_sources + 1)
    languages = sorted({passage.language for passage in passages}, key=list(LANGUAGES).index)
    for language in languages:
        draw = random.Random(f"{data.seed}/{language}")
        candidates = [passage for passage in passages if passage.language == language]
        draw.shuffle(candidates)
        find = bm25_distractors(candidates)
        for passage in islice(cycle(candidates), -(-count // len(languages))):
            distractors = find(passage)
            number = draw.choices(counts, [1 / n for n in counts])[0]
            subjects = [passage]
            if draw.random() < data.two_source_share and distractors and data.max_sources > 1:
                subjects.append(draw.choice(distractors))
            answered = len(subjects) == 2 or draw.random() >= data.unanswerable or not distractors
            answering = subjects if answered else []
            pages = {subject.page for subject in subjects}
            others = [distractor for distractor in distractors if distractor.page not in pages]
            sources = [*answering, *draw.sample(others, max(0, min(len(others), number - len(answering))))]
            draw.shuffle(sources)
            yield _passage_row(subjects, sources, data, draw)


def copy_rows(passages: list[Passage], data: RagData) -> Iterator[dict]:
    """Yield copy-task rows, equally many per language: one source of random words, which only copying answers.

    A row has the page of one of its passages, and the licences of all passages that its words come from.
    """
    texts = ((passage.language, passage.text, passage) for passage in passages)
    for _, samples, words, draw in random_word_rows(texts, data.copy_rows, data.seed):
        end = draw.randint(*COPY_TITLE)
        title, answer = words[:end], words[end : end + draw.randint(*COPY_ANSWER)]
        title, answer = (" ".join(part).capitalize() for part in (title, answer))
        licences = " AND ".join(sorted({passage.license for passage in samples}))
        text = f"{title}\n{answer}."
        passage = replace(samples[0], title=title, text=text, answer=f"{answer}.", license=licences)
        yield _passage_row([passage], [passage], data, draw)


def _passage_row(subjects: list[Passage], sources: list[Passage], data: RagData, draw: random.Random) -> dict:
    """Return a row that asks about one or two subjects; it is a refusal unless all of them are among the sources."""
    ids = {source: str(n) for n, source in enumerate(sources, 1)}
    first, words = subjects[0], phrases()[subjects[0].language]
    answered = all(subject in ids for subject in subjects)
    if len(subjects) == 2:
        query = draw.choice(words["both"]).format(a=first.title, b=subjects[1].title)
    elif first.title.endswith("?"):
        query = first.title
    else:
        query = draw.choice(words[first.kind]).format(t=first.title)
    analysis = " ".join(
        words["found"].format(t=subject.title, ids=ids[subject])
        if subject in ids
        else words["missing"].format(t=subject.title)
        for subject in subjects
    )
    parts: list[str | Citation] = [] if answered else [words["refusal"]]
    for subject in subjects if answered else []:
        parts += [f"{' ' if parts else ''}{subject.answer} "]
        parts += [Citation(ids[subject], quote_of(subject.answer, data.max_quote_words))]
    blocks = {
        "language": LANGUAGES[first.language],
        "query_analysis": query,
        "query_report": "answerable",
        "source_analysis": analysis,
        "source_report": ("basic" if len(subjects) == 1 else "extensive") if answered else "infeasible",
        "draft": "\n".join(part.quote for part in parts if isinstance(part, Citation)),
    }
    texts = {ids[source]: source.text for source in sources}
    licences = " AND ".join(sorted({passage.license for passage in (*subjects, *sources)}))
    name = hashlib.sha256(repr((query, texts)).encode()).hexdigest()[:12]
    meta = {"id": f"{first.language}/{name}", "language": first.language, "source": first.page, "license": licences}
    return row(meta, query, texts, Response(tuple(parts), blocks), data.format)


def row(meta: dict, query: str, sources: dict[str, str], response: Response, rag_format: Format) -> dict:
    """Return a row: meta (id, language, source, license), prompt and completion, and the fields of the metrics."""
    prompt, completion = format_rag(query, sources, response, rag_format)
    return {
        **meta,
        "format": rag_format,
        "query": query,
        "sources": [{"id": source, "text": text} for source, text in sources.items()],
        "answer": response.plain,
        "cited": sorted({citation.source for citation in response.citations}),
        "refused": not response.citations,
        "prompt": prompt,
        "completion": completion,
    }


# User-provided rows -------------------------------------------------------------------------------


def read_user_rows(path: Path, rag_format: Format) -> list[dict]:
    """Read user-provided rows from a JSON Lines or Parquet file, or a folder of such files.

    Required columns: query; sources, a list of texts or of {"id", "text"}; answer, with citations as in RAG 0.1 (`<ref
    name="ID">"quote"</ref>`), or without any if it refuses. Optional columns: id, language (ISO code), license, source
    (the row's document; rows of one document are held out together), analysis (a sentence on the sources).

    Raises:
        InputError: If a file cannot be read or lacks a column, or a citation does not occur in the row's sources.
    """
    rows = read_user_files(path, f"questions with {', '.join(USER_COLUMNS)}")
    return [_user_row(raw, f"{file}, row {i + 1}", rag_format) for file, i, raw in rows]


def _user_row(raw: object, place: str, rag_format: Format) -> dict:
    for column in USER_COLUMNS:
        if not isinstance(raw, dict) or not raw.get(column):
            raise InputError(f"{place} has no {column}: each row needs {', '.join(USER_COLUMNS)}.")
        if not isinstance(raw[column], list if column == "sources" else str):
            kind = "list of sources" if column == "sources" else "text"
            raise InputError(f"{place} has {column} of type {type(raw[column]).__name__}: provide a {kind}.")
    listed = [
        source if isinstance(source, dict) else {"id": n, "text": source} for n, source in enumerate(raw["sources"], 1)
    ]
    if not all(source.get("id") and source.get("text") and isinstance(source["text"], str) for source in listed):
        raise InputError(f'{place} has a source without id or text: use texts, or {{"id": ..., "text": ...}}.')
    sources = {str(source["id"]): source["text"] for source in listed}
    response = parse_answer(raw["answer"])
    for citation in response.citations:
        if not citation.literal(sources):
            raise InputError(
                f'{place} cites "{citation.quote[:60]}" from source {citation.source!r}, where it does not occur: '
                "quotes must be verbatim."
            )
    if response.malformed:
        raise InputError(f'{place} has a citation that cannot be parsed: write <ref name="ID">"quote"</ref>.')
    language = raw.get("language") or identify(f"{raw['query']} {response.plain}")[0]
    blocks = {
        "language": LANGUAGES.get(language, language),
        "query_report": "answerable",
        "source_analysis": raw.get("analysis") or "",
        "source_report": "basic" if response.citations else "infeasible",
    }
    meta = {"id": str(raw.get("id") or place), "language": language, "license": raw.get("license") or "not stated"}
    meta["source"] = str(raw.get("source") or raw["query"])
    try:
        return row(meta, raw["query"], sources, Response(response.parts, blocks), rag_format)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
