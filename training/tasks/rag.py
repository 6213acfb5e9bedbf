"""Answers from sources (RAG): settings, rows, metrics, and `answer`; the formats are in `rag_formats`.

A question, one to ten sources with distractors, an answer whose every statement is followed by a literal quote, or a
refusal in the language of the question. Rows are made without a language model, from titled passages of encyclopaedic
articles and help pages in eight languages, or read from a file.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import InputError
from ..data.documents import checked_languages, corpus_files
from ..data.split import held_out_groups
from ..generation import complete
from ..intervals import Metric
from ..language import JUDGED_LETTERS, identify
from .rag_formats import STOP, Citation, Format, Response, format_prompt, parse_completion
from .rag_pages import pages, passages
from .rag_quotes import QuotesFromSources
from .rag_rows import drills, make, phrases, read_own

NAME = "rag"
HIGHER_IS_BETTER = True
DECODING = {"max_new_tokens": 256, "stop": STOP, "repetition_penalty": 1.0}
# The same with citations held to the sources: what users of a small model want, and not what is reported as its skill.
CONSTRAINED = {**DECODING, "guide": QuotesFromSources}


# Rows ---------------------------------------------------------------------------------------------


@dataclass
class RagData:
    """What answering from sources is trained and measured on.

    Args:
        format: of the prompts and answers: rag-0.1 (Pico and Nano 0.1) or rag-2025.
        path: your own questions (JSONL or Parquet: query, sources, answer; see training.tasks.rag_rows.read_own), or
            a corpus folder whose titled pages are made into questions; package registries when not given.
        train_rows: rows that are made to train on, as many of each language.
        held_out: share of the pages (of your own questions: of their documents) that is not trained on.
        held_out_rows: most rows to measure on.
        max_sources: most sources of a question; n sources come up in proportion to 1/n.
        unanswerable: share of questions that their sources do not answer.
        both: share of questions about two pages, whose answers cite two sources.
        source_words: most words of a source, unless the answer's own sentence is longer.
        answer_words: most words of the sentence that answers.
        quote_words: most words of a quote.
        curriculum: training rows with few and short sources come first, by and large; for a trainer that learns them
            as they come (training.finetune with shuffle: false).
        drills: further training rows, of words at random, which only copying answers; they come first if nothing
            shuffles them. A base that does not copy yet learns it from them sooner than from sentences.
        languages: ISO codes; all eight when not given.
        seed: decides what is held out and what is drawn.
    """

    format: Format = "rag-0.1"
    path: Path | None = None
    train_rows: int = 12_000
    held_out: float = 0.05
    held_out_rows: int = 400
    max_sources: int = 10
    unanswerable: float = 0.05
    both: float = 0.05
    source_words: int = 40
    answer_words: int = 30
    quote_words: int = 12
    curriculum: bool = False
    drills: int = 0
    languages: list[str] | None = field(default=None)
    seed: int = 0


def rows(data: RagData) -> dict[str, list[dict]]:
    """{"train": rows, "held_out": rows}; no page is in both, neither as what answers nor as a distractor.

    Raises:
        InputError: on a bad setting, or when the path holds neither questions nor pages.
    """
    if not 1 <= data.max_sources <= 10:
        raise InputError(f"max_sources is {data.max_sources}: the formats were trained with 1 to 10 sources.")
    if not 0 < data.held_out < 1:
        raise InputError(f"held_out is {data.held_out}: give a share of the pages, as 0.05.")
    languages = checked_languages(data.languages)
    own = _is_own(data.path)
    if own and data.drills:
        raise InputError(f"drills are made of pages, and {data.path} holds questions: set data.drills to 0.")
    found = _own(data, languages) if own else _made(data, languages)
    drilled = found.pop("drills", [])
    for name, some in found.items():
        if not some:
            raise InputError(f"no {name} rows can be made of {data.path or 'the packages'}: more pages are needed.")
        random.Random(data.seed).shuffle(some)
    if data.curriculum:
        draw = random.Random(data.seed)
        found["train"].sort(key=lambda row: len(row["prompt"]) * (1 + draw.random()))
    return {"train": [*drilled, *found["train"]], "held_out": found["held_out"][: data.held_out_rows]}


def _is_own(path: Path | None) -> bool:
    """Whether a path holds questions rather than a corpus."""
    if path is None:
        return False
    if path.suffix == ".jsonl" or any(path.rglob("*.jsonl")):
        return True
    return "query" in pq.read_schema(corpus_files(path)[0]).names


def _own(data: RagData, languages: list[str]) -> dict[str, list[dict]]:
    read = [row for row in read_own(data.path, data.format) if row["language"] in languages]
    apart = held_out_groups(((row["language"], row["source"]) for row in read), data.held_out, data.seed)
    return {
        "train": [row for row in read if row["source"] not in apart],
        "held_out": [row for row in read if row["source"] in apart],
    }


def _made(data: RagData, languages: list[str]) -> dict[str, list[dict]]:
    told = passages(pages(data.path, languages), data.source_words, data.answer_words)
    apart = held_out_groups(((one.language, one.page) for one in told), data.held_out, data.seed)
    parts = {
        "train": ([one for one in told if one.page not in apart], data.train_rows),
        "held_out": ([one for one in told if one.page in apart], data.held_out_rows),
    }
    settings = {
        "rag_format": data.format,
        **{name: getattr(data, name) for name in ("max_sources", "unanswerable", "both", "quote_words", "seed")},
    }
    found = {name: list(make(some, count, **settings)) for name, (some, count) in parts.items()}
    if data.drills:
        drill = {"rag_format": data.format, "quote_words": data.quote_words, "seed": data.seed}
        found["drills"] = list(drills(parts["train"][0], data.drills, **drill))
        random.Random(data.seed).shuffle(found["drills"])
    return found


# Metrics ------------------------------------------------------------------------------------------


def refuses(response: Response, refusal: str | None = None) -> bool:
    """Whether an answer declines: it cites nothing and says so as rag.yaml or the given text does, or a RAG 2025
    report says so."""
    if response.citations or response.malformed:
        return False
    if response.blocks.get("query_report") == "refused" or response.blocks.get("source_report") == "infeasible":
        return True
    known = [words["refusal"] for words in phrases().values()] + ([refusal] if refusal else [])
    return any(response.plain.casefold().startswith(one.casefold().rstrip(".")) for one in known)


def _share(numerators: Sequence[float], denominators: Sequence[float]) -> Metric:
    """Sum over sum; 0 when there is nothing to count, as the precision of a model that cites nothing."""

    def value(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)

    return Metric(np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1), value)


def _f1(answer: str, gold: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.casefold())) for text in (answer, gold))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Metrics of raw continuations.

    - citation_validity: share of citations whose quote stands in the cited source, sign for sign. An answer that cites
      nothing where a citation is due counts as one invalid citation, and so does one that cannot be read.
    - citation_precision: share of citations that are literal and from a source that answers.
    - citation_recall: share of the sources that answer that are cited literally.
    - answer_f1: shared words of answer and reference, citations aside (mean over questions that have an answer).
    - refusal_accuracy: share of questions that are refused if and only if their sources do not answer them.
    - refusals_found: share of the questions without an answer that are refused.
    - language_match: share of answers in the language of the question, of those whose reference can be told to be.
    """
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        response = parse_completion(output, row["format"])
        texts = {source["id"]: source["text"] for source in row["sources"]}
        due, made = not row["refused"], len(response.citations) + response.malformed
        literal = [citation.source for citation in response.citations if citation.literal(texts)]
        right = [source for source in literal if source in row["cited"]]
        refused = refuses(response, row["answer"] if row["refused"] else None)
        sure = sum(map(str.isalpha, row["answer"])) >= JUDGED_LETTERS and identify(row["answer"])[0] == row["language"]
        spoken = bool(response.plain) and identify(response.plain)[0] == row["language"]
        counts.append(
            {
                "citation_validity": (len(literal), max(made, due)),
                "citation_precision": (len(right), made),
                "citation_recall": (len(set(right)), len(row["cited"])),
                "answer_f1": (_f1(response.plain, row["answer"]) if due else 0, due),
                "refusal_accuracy": (refused == row["refused"], 1),
                "refusals_found": (refused and row["refused"], row["refused"]),
                "language_match": (sure and spoken, sure),
            }
        )
    return {name: _share(*zip(*(one[name] for one in counts), strict=True)) for name in counts[0]}


# For users ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a model makes of a question and its sources.

    Args:
        text: the answer with its citations, as RAG 0.1 writes them.
        plain: without them.
        citations: each with whether its quote stands in its source.
        refused: the model says that the sources do not answer.
        analysis: what it said of the sources first.
    """

    text: str
    plain: str
    citations: tuple[tuple[Citation, bool], ...]
    refused: bool
    analysis: str


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    query: str,
    sources: Sequence[str] | Mapping[str, str],
    *,
    rag_format: Format = "rag-0.1",
    constrain: bool = True,
    max_new_tokens: int = DECODING["max_new_tokens"],
) -> Answer:
    """Answer a question from sources, with citations.

    Args:
        sources: texts, which get the ids 1, 2, ...; or id -> text.
        rag_format: the one that the model was fine-tuned for.
        constrain: hold citations to the sources (training.tasks.rag_quotes): every quote is then literal.

    Raises:
        InputError: when an id cannot be written, the model's tokenizer lacks the task's tokens, or the question with
            its sources leaves no room in the model's context.
    """
    texts = dict(sources) if isinstance(sources, Mapping) else {str(n): text for n, text in enumerate(sources, 1)}
    if STOP not in tokenizer.get_vocab():
        raise InputError(f"the tokenizer has no {STOP}: give a model that was fine-tuned with --config finetune_rag.")
    try:
        prompt = format_prompt(query, texts, rag_format)
    except ValueError as error:
        raise InputError(str(error)) from None
    length, most = len(tokenizer(prompt).input_ids), model.config.max_position_embeddings
    if length + max_new_tokens > most:
        raise InputError(
            f"question and sources take {length} tokens, which with an answer of {max_new_tokens} is more than the "
            f"{most} that the model reads: give fewer or shorter sources."
        )
    decoding = {**(CONSTRAINED if constrain else DECODING), "max_new_tokens": max_new_tokens}
    response = parse_completion(complete(model, tokenizer, [prompt], **decoding)[0], rag_format)
    return Answer(
        text=response.text,
        plain=response.plain,
        citations=tuple((citation, citation.literal(texts)) for citation in response.citations),
        refused=refuses(response),
        analysis=response.blocks["source_analysis"],
    )
