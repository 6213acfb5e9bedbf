"""Retrieval-augmented generation (RAG): data settings, rows, metrics, and `answer`; the formats are in `rag_formats`.

A row has a question, one to ten sources including distractors, and an answer in which every statement is followed by a
verbatim quote, or a refusal in the language of the question. Rows are built without a language model from titled
passages of encyclopaedia articles and help pages in eight languages, or read from a file.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.config import InputError
from ...common.generation import complete
from ...common.intervals import Metric
from ...data.documents import checked_languages, corpus_files, open_parquet
from ...data.split import held_out_groups
from ..scoring import language_match
from .rag_constrained import QuoteLogitsProcessor
from .rag_formats import STOP, Citation, Format, Response, format_prompt, parse_completion
from .rag_passages import pages, passages
from .rag_rows import copy_rows, make_rows, phrases, read_user_rows

NAME = "rag"
HIGHER_IS_BETTER = True
DECODING = {"max_new_tokens": 256, "stop": STOP, "repetition_penalty": 1.0}
# With citations constrained to the sources: for users of a small model. Metrics are reported without constraint.
CONSTRAINED = {**DECODING, "logits_processor": QuoteLogitsProcessor}


# Rows ---------------------------------------------------------------------------------------------


@dataclass
class RagData:
    """Training and evaluation data of RAG.

    Args:
        format: Format of prompts and answers: rag-0.1 (Pico and Nano 0.1) or rag-2025.
        path: User-provided questions (JSON Lines or Parquet with query, sources, answer; see
            training.tasks.rag.rag_rows.read_user_rows), or a corpus folder with titled pages to build questions from.
            Default:
            pages from package registries.
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
    with open_parquet(corpus_files(path)[0]) as parquet:
        return "query" in parquet.schema_arrow.names


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


# Metrics ------------------------------------------------------------------------------------------


def refuses(response: Response, refusal: str | None = None) -> bool:
    """Return whether an answer is a refusal: without citations, worded as in rag.yaml or `refusal`, or reported.

    Args:
        refusal: Another wording. Reports are the blocks query_report and source_report of RAG 2025.
    """
    if response.citations or response.malformed:
        return False
    if response.blocks.get("query_report") == "refused" or response.blocks.get("source_report") == "infeasible":
        return True
    known = [words["refusal"] for words in phrases().values()] + ([refusal] if refusal else [])
    return any(response.plain.casefold().startswith(wording.casefold().rstrip(".")) for wording in known)


def _share(numerators: Sequence[float], denominators: Sequence[float]) -> Metric:
    """Return sum over sum; 0 if there is nothing to count, such as the precision of a model that never cites."""

    def value(sums: np.ndarray) -> np.ndarray:
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)

    return Metric(np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1), value)


def _f1(answer: str, gold: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.casefold())) for text in (answer, gold))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compute the metrics of completions.

    - citation_validity: fraction of citations whose quote occurs verbatim in the cited source. An answer without the
      required citation counts as one invalid citation, and so does a citation that cannot be parsed.
    - citation_precision: fraction of citations that are verbatim and from an answering source.
    - citation_recall: fraction of the answering sources that are cited verbatim.
    - answer_f1: F1 of words of answer and reference without citations (mean over answerable questions).
    - refusal_accuracy: fraction of questions that are refused if and only if their sources do not answer them.
    - refusals_found: fraction of the unanswerable questions that are refused.
    - language_match: fraction of answers in the language of the question, if the reference is identified as it.
    """
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        response = parse_completion(output, row["format"])
        texts = {source["id"]: source["text"] for source in row["sources"]}
        due, citations = not row["refused"], len(response.citations) + response.malformed
        literal = [citation.source for citation in response.citations if citation.literal(texts)]
        right = [source for source in literal if source in row["cited"]]
        refused = refuses(response, row["answer"] if row["refused"] else None)
        counts.append(
            {
                "citation_validity": (len(literal), max(citations, due)),
                "citation_precision": (len(right), citations),
                "citation_recall": (len(set(right)), len(row["cited"])),
                "answer_f1": (_f1(response.plain, row["answer"]) if due else 0, due),
                "refusal_accuracy": (refused == row["refused"], 1),
                "refusals_found": (refused and row["refused"], row["refused"]),
                "language_match": language_match(response.plain, row["answer"], row["language"]),
            }
        )
    return {name: _share(*zip(*(count[name] for count in counts), strict=True)) for name in counts[0]}


# Use ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question with sources.

    Args:
        text: Answer with citations, in RAG 0.1 format.
        plain: Answer without citations.
        citations: Citations, each with whether its quote occurs verbatim in its source.
        refused: The model states that the sources do not answer the question.
        analysis: The model's analysis of the sources, generated before the answer.
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
        sources: Texts, which are assigned the ids 1, 2, ...; or id -> text.
        rag_format: Format that the model was fine-tuned for.
        constrain: Constrain citations to the sources (training.tasks.rag.rag_constrained), so that every quote is
            verbatim.
        max_new_tokens: Maximum tokens of the completion.

    Raises:
        InputError: If an id is invalid, the tokenizer lacks the task's tokens, or question, sources and answer exceed
            the model's context length.
    """
    texts = dict(sources) if isinstance(sources, Mapping) else {str(n): text for n, text in enumerate(sources, 1)}
    if STOP not in tokenizer.get_vocab():
        raise InputError(f"the tokenizer has no {STOP}: use a model that was fine-tuned with --config finetune_rag.")
    try:
        prompt = format_prompt(query, texts, rag_format)
    except ValueError as error:
        raise InputError(str(error)) from None
    length, context = len(tokenizer(prompt).input_ids), model.config.max_position_embeddings
    if length + max_new_tokens > context:
        raise InputError(
            f"question and sources have {length} tokens, which with an answer of {max_new_tokens} exceeds the model's "
            f"context length of {context}: use fewer or shorter sources."
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
