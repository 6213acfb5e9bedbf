"""Training and evaluation data of RAG: rows built from passages with BM25 distractors, or user-provided questions.

A row has a question, one to ten sources including distractors, and an answer in which every statement is followed by a
verbatim quote, or a refusal in the language of the question. Rows are built without a language model from titled
passages of encyclopaedia articles and help pages in eight languages, or read from a file.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import bm25s
import pyarrow.parquet as pq
import yaml

from ...common.config import InputError
from ...common.language import LANGUAGES
from ...data.documents import checked_languages, corpus_files
from ...data.split import held_out_groups
from ..copy_task import random_word_rows
from .format import Citation, Format, Response
from .passages import Passage, pages, passages
from .user_rows import read_user_rows, row

POOL = 20  # distractors are sampled from this many best BM25 results
CLAUSE_WORDS = 4  # minimum words of a shortened quote, which ends at a comma if there is one,
LITTLE = 3  # else after a word of more characters than this, which excludes most articles and prepositions
COPY_TITLE, COPY_ANSWER = (1, 2), (5, 8)  # minimum and maximum words of the title and the answer of a copy-task row


@dataclass
class RagData:
    """Training and evaluation data of RAG.

    Args:
        format: Format of prompts and answers: rag-0.1 (Pico and Nano 0.1) or rag-2025.
        path: User-provided questions (JSON Lines or Parquet with query, sources, answer; see
            training.tasks.rag.user_rows.read_user_rows), or a corpus folder with titled pages to build questions from.
            Default: pages from package registries.
        train_rows: Number of training rows to build, equally many per language.
        held_out: Fraction of the pages (of user-provided questions: of their documents) that is not trained on.
        held_out_rows: Maximum number of evaluation rows.
        max_sources: Maximum sources per question; the probability of n sources is proportional to 1/n.
        unanswerable: Fraction of questions that their sources do not answer.
        two_source_share: Fraction of questions about two pages, whose answers cite two sources.
        max_source_words: Maximum words of a source, unless the answering sentence is longer.
        max_answer_words: Maximum words of the answering sentence.
        max_quote_words: Maximum words of a quote.
        curriculum: Order training rows roughly from few and short sources to many and long ones; requires training
            without shuffling (training.finetune with shuffle: false).
        copy_rows: Number of additional copy-task rows (random words), which come first unless training shuffles. A
            base model that does not copy yet learns it sooner from them than from sentences.
        languages: ISO codes. Default: all eight.
        seed: Seed of the held-out split and of sampling.
    """

    format: Format = "rag-0.1"
    path: Path | None = None
    train_rows: int = 12_000
    held_out: float = 0.05
    held_out_rows: int = 400
    max_sources: int = 10
    unanswerable: float = 0.05
    two_source_share: float = 0.05
    max_source_words: int = 40
    max_answer_words: int = 30
    max_quote_words: int = 12
    curriculum: bool = False
    copy_rows: int = 0
    languages: list[str] | None = None
    seed: int = 0


def rows(data: RagData) -> dict[str, list[dict]]:
    """Return {"train": rows, "held_out": rows}; no page is in both, neither as the answer nor as a distractor.

    Raises:
        InputError: If a setting is invalid, or the path contains neither questions nor pages.
    """
    if not 1 <= data.max_sources <= 10:
        raise InputError(f"max_sources must be 1 to 10, as the formats were trained with, got {data.max_sources}.")
    if not 0 < data.held_out < 1:
        raise InputError(f"held_out must be a fraction between 0 and 1, such as 0.05, got {data.held_out}.")
    languages = checked_languages(data.languages)
    questions = _has_questions(data.path)
    if questions and data.copy_rows:
        raise InputError(f"copy_rows needs pages, and {data.path} contains questions: set data.copy_rows to 0.")
    train, held_out, copies = _user_rows(data, languages) if questions else _page_rows(data, languages)
    for name, part in (("train", train), ("held_out", held_out)):
        if not part:
            raise InputError(f"no {name} rows can be built from {data.path or 'the packages'}: provide more pages.")
        random.Random(data.seed).shuffle(part)
    if data.curriculum:
        draw = random.Random(data.seed)
        train.sort(key=lambda row: len(row["prompt"]) * (1 + draw.random()))
    return {"train": [*copies, *train], "held_out": held_out[: data.held_out_rows]}


def _has_questions(path: Path | None) -> bool:
    """Return whether a path contains questions, not a corpus."""
    if path is None:
        return False
    if path.suffix == ".jsonl" or any(path.rglob("*.jsonl")):
        return True
    return "query" in pq.read_schema(corpus_files(path)[0]).names


def _user_rows(data: RagData, languages: list[str]) -> tuple[list[dict], list[dict], list[dict]]:
    """Return training, held-out and (no) copy-task rows of user-provided questions."""
    rows = [row for row in read_user_rows(data.path, data.format) if row["language"] in languages]
    groups = held_out_groups(((row["language"], row["source"]) for row in rows), data.held_out, data.seed)
    train = [row for row in rows if row["source"] not in groups]
    return train, [row for row in rows if row["source"] in groups], []


def _page_rows(data: RagData, languages: list[str]) -> tuple[list[dict], list[dict], list[dict]]:
    """Return training, held-out and copy-task rows built from pages."""
    titled = passages(pages(data.path, languages), data.max_source_words, data.max_answer_words)
    groups = held_out_groups(((passage.language, passage.page) for passage in titled), data.held_out, data.seed)
    train = [passage for passage in titled if passage.page not in groups]
    held_out = [passage for passage in titled if passage.page in groups]
    copies = list(copy_rows(train, data))
    random.Random(data.seed).shuffle(copies)
    return list(make_rows(train, data.train_rows, data)), list(make_rows(held_out, data.held_out_rows, data)), copies


@cache
def phrases() -> dict[str, dict]:
    """Read phrases.yaml: per ISO code, the templates of questions and analyses, and the refusal."""
    return yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))


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
