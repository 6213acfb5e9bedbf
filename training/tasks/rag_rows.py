"""Rows of questions with sources: made from passages with BM25's distractors, or read from a user's own file."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import bm25s
import yaml

from ..config import InputError
from ..language import LANGUAGES, identify
from .drills import jumbled
from .rag_formats import Citation, Format, Response, format_rag, parse_answer
from .rag_pages import Passage
from .sources import read_rows

POOL = 20  # distractors are drawn among so many of BM25's best
CLAUSE_WORDS = 4  # a quote that has to be short has so many words at least, and ends at a comma if there is one,
LITTLE = 3  # else after a word of more letters than an article or a preposition has
DRILL_TITLE, DRILL_ANSWER = (1, 2), (5, 8)  # words of its title and of its sentence: fewest and most
OWN_COLUMNS = ("query", "sources", "answer")


@cache
def phrases() -> dict[str, dict]:
    """rag.yaml: for each ISO code the templates of questions and analyses, and the refusal."""
    return yaml.safe_load(Path(__file__).with_name("rag.yaml").read_text(encoding="utf-8"))


def quote_of(sentence: str, words: int) -> str:
    """What is quoted of a sentence: all, or up to a comma or a longer word; without the sign at its end."""
    found = list(re.finditer(r"\S+", sentence))
    if len(found) > words:
        found = found[:words]
        clauses = [word for word in found[CLAUSE_WORDS - 1 :] if word[0][-1] in ",;:"]
        longer = [word for word in found[CLAUSE_WORDS - 1 :] if len(word[0]) > LITTLE]
        found = clauses or longer or found
    return sentence[: found[-1].end()].rstrip(".,;:!?…")


def neighbours(passages: list[Passage]) -> Callable[[Passage], list[Passage]]:
    """Function: the passages that BM25 finds for one's title and answer and that do not tell of it; best first."""
    index = bm25s.BM25()
    tokens = bm25s.tokenize([one.text for one in passages], stopwords=None, show_progress=False)
    index.index(tokens, show_progress=False)

    def find(passage: Passage) -> list[Passage]:
        asked = bm25s.tokenize(f"{passage.title} {passage.answer}", stopwords=None, show_progress=False)
        most = min(2 * POOL, len(passages))
        found, _ = index.retrieve(asked, k=most, show_progress=False, backend_selection="numpy")
        named = passage.title.casefold()
        others = (passages[i] for i in found[0])
        near = (one for one in others if one.page != passage.page and named not in one.text.casefold())
        return list(islice(near, POOL))

    return find


def make(
    passages: list[Passage],
    count: int,
    *,
    rag_format: Format,
    max_sources: int,
    unanswerable: float,
    both: float,
    quote_words: int,
    seed: int,
) -> Iterator[dict]:
    """`count` rows, as many of each language; passages come again, with other sources, where there are too few.

    Args:
        passages: of all the languages; sources come from among them too.
        max_sources: n sources, 1 <= n <= max_sources, come up in proportion to 1/n.
        unanswerable: share of questions whose answer is in none of their sources.
        both: share of questions about two passages.
        quote_words: most words of a quote.
    """
    languages = sorted({one.language for one in passages}, key=list(LANGUAGES).index)
    for language in languages:
        draw = random.Random(f"{seed}/{language}")
        own = [one for one in passages if one.language == language]
        draw.shuffle(own)
        find = neighbours(own)
        for passage in islice(cycle(own), -(-count // len(languages))):
            near = find(passage)
            wanted = draw.choices(range(1, max_sources + 1), [1 / n for n in range(1, max_sources + 1)])[0]
            asked = [passage]
            if draw.random() < both and near and max_sources > 1:
                asked.append(draw.choice(near))
            known = asked if len(asked) == 2 or draw.random() >= unanswerable or not near else []
            about = {one.page for one in asked}
            far = [one for one in near if one.page not in about]
            sources = [*known, *draw.sample(far, max(0, min(len(far), wanted - len(known))))]
            draw.shuffle(sources)
            yield _row(asked, sources, rag_format, quote_words, draw)


def drills(passages: list[Passage], count: int, *, rag_format: Format, quote_words: int, seed: int) -> Iterator[dict]:
    """`count` rows with one source, whose words are drawn at random: nothing but copying answers. As many of each
    language; of a passage there is its page, and the licences of those that gave the words."""
    some = ((one.language, one.text, one) for one in passages)
    for _, drawn, words, draw in jumbled(some, count, seed):
        end = draw.randint(*DRILL_TITLE)
        title, answer = words[:end], words[end : end + draw.randint(*DRILL_ANSWER)]
        title, answer = (" ".join(part).capitalize() for part in (title, answer))
        licences = " AND ".join(sorted({one.license for one in drawn}))
        text = f"{title}\n{answer}."
        passage = replace(drawn[0], title=title, text=text, answer=f"{answer}.", license=licences)
        yield _row([passage], [passage], rag_format, quote_words, draw)


def _row(
    asked: list[Passage], sources: list[Passage], rag_format: Format, quote_words: int, draw: random.Random
) -> dict:
    ids = {one: str(n) for n, one in enumerate(sources, 1)}
    first, words = asked[0], phrases()[asked[0].language]
    answered = all(one in ids for one in asked)
    if len(asked) == 2:
        query = draw.choice(words["both"]).format(a=first.title, b=asked[1].title)
    elif first.title.endswith("?"):
        query = first.title
    else:
        query = draw.choice(words[first.kind]).format(t=first.title)
    analysis = " ".join(
        words["found"].format(t=one.title, ids=ids[one]) if one in ids else words["missing"].format(t=one.title)
        for one in asked
    )
    parts: list[str | Citation] = [] if answered else [words["refusal"]]
    for one in asked if answered else []:
        parts += [f"{' ' if parts else ''}{one.answer} ", Citation(ids[one], quote_of(one.answer, quote_words))]
    blocks = {
        "language": LANGUAGES[first.language],
        "query_analysis": query,
        "query_report": "answerable",
        "source_analysis": analysis,
        "source_report": ("basic" if len(asked) == 1 else "extensive") if answered else "infeasible",
        "draft": "\n".join(part.quote for part in parts if isinstance(part, Citation)),
    }
    texts = {ids[one]: one.text for one in sources}
    licences = " AND ".join(sorted({one.license for one in (*asked, *sources)}))
    name = hashlib.sha256(repr((query, texts)).encode()).hexdigest()[:12]
    meta = {"id": f"{first.language}/{name}", "language": first.language, "source": first.page, "license": licences}
    return row(meta, query, texts, Response(tuple(parts), blocks), rag_format)


def row(meta: dict, query: str, sources: dict[str, str], response: Response, rag_format: Format) -> dict:
    """A row of the task: meta (id, language, source, license), prompt and completion, and what the metrics need."""
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


# A user's own rows --------------------------------------------------------------------------------


def read_own(path: Path, rag_format: Format) -> list[dict]:
    """Rows of a JSONL or Parquet file, or a folder of such.

    Columns: query; sources, a list of texts or of {"id", "text"}; answer, which cites as RAG 0.1 does
    (`<ref name="ID">"quote"</ref>`) or, citing nothing, declines. If there: id, language (ISO code), license, source
    (a row's document: rows with the same are held out together), analysis (a sentence on the sources).

    Raises:
        InputError: when a file cannot be read or lacks a column, or a row cites what is not in its sources.
    """
    return [_own(raw, place, rag_format) for place, raw in _raw(path)]


def _raw(path: Path) -> Iterator[tuple[str, object]]:
    files = sorted(one for one in path.rglob("*") if one.suffix in (".jsonl", ".parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no .jsonl or .parquet file: give questions with {', '.join(OWN_COLUMNS)}.")
    for file in files:
        yield from ((f"{file}, row {number}", raw) for number, raw in enumerate(read_rows(file), 1))


def _own(raw: object, place: str, rag_format: Format) -> dict:
    for column in OWN_COLUMNS:
        if not isinstance(raw, dict) or not raw.get(column):
            raise InputError(f"{place} has no {column}: each row needs {', '.join(OWN_COLUMNS)}.")
    named = [one if isinstance(one, dict) else {"id": n, "text": one} for n, one in enumerate(raw["sources"], 1)]
    if not all(one.get("id") and one.get("text") for one in named):
        raise InputError(f'{place} has a source without id or text: write texts, or {{"id": ..., "text": ...}}.')
    sources = {str(one["id"]): one["text"] for one in named}
    response = parse_answer(raw["answer"])
    for citation in response.citations:
        if not citation.literal(sources):
            raise InputError(
                f'{place} cites "{citation.quote[:60]}" from source {citation.source!r}, where it does not stand: '
                "a quote has to be in its source sign for sign."
            )
    if response.malformed:
        raise InputError(f'{place} has a citation that cannot be read: write <ref name="ID">"quote"</ref>.')
    language = raw.get("language") or identify(f"{raw['query']} {response.plain}")[0]
    refused = not response.citations
    blocks = {
        "language": LANGUAGES.get(language, language),
        "query_report": "answerable",
        "source_analysis": raw.get("analysis") or "",
        "source_report": "infeasible" if refused else "basic",
    }
    meta = {"id": str(raw.get("id") or place), "language": language, "license": raw.get("license") or "not stated"}
    meta["source"] = str(raw.get("source") or raw["query"])
    try:
        return row(meta, raw["query"], sources, Response(response.parts, blocks), rag_format)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
