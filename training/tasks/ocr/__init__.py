"""OCR correction: the published format, rows from pairs and from synthetic errors, the metrics, and `correct`."""

import random
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from rapidfuzz.distance import Levenshtein
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ...common.config import InputError
from ...common.generation import complete
from ...common.intervals import Metric, ratio
from ...data import ocr_noise
from ...data.documents import checked_languages, corpus_files, read_documents
from ...data.licences import decide
from ...data.split import author_key, hash_fraction, held_out_groups, work_id
from ..copy_task import random_word_rows
from ..markers import escape, unescape
from ..sources import corpus_folder, order_by_hash, read_columns
from ..text_windows import over_windows, split_aligned_pair
from .edit_penalty import EditPenaltyLogitsProcessor, is_byte_level

NAME = "ocr"
HIGHER_IS_BETTER = False
START, END = "<|text_start|>", "<|text_end|><|ocr_correction_start|>"
STOP = "<|ocr_correction_end|>"

WINDOW = 300  # characters; a window and its correction fit four times in a context of 1,024 tokens
EDIT_PENALTY = (
    5.0  # per changed byte (training.tasks.ocr.edit_penalty); training.bench.ocr_price finds the best one for a model
)
RENDERED = re.compile("rendered page", re.IGNORECASE)  # begin of the source of pairs that may be trained on
PAIR_COLUMNS = ["id", "ocr", "truth", "language", "source", "license"]
COPY_WORDS = (4, 10)  # minimum and maximum words of a copy-task row
UNREADABLE = 0.5  # edits per character of truth above which a window is not trained on
PARAGRAPH, LETTERS = 80, 0.7  # prose: minimum characters of a paragraph, and minimum fraction of letters among them
PASSAGES = 8  # maximum passages per document


# Format -------------------------------------------------------------------------------------------


def format_ocr(ocr: str, truth: str = "") -> tuple[str, str]:
    """Return (prompt, completion) in the published format: the OCR text, and the correct text."""
    return f"{START}{escape(ocr)}{END}", f"{escape(truth)}{STOP}"


def parse_correction(output: str) -> str:
    """Return the correction in a generated completion."""
    return unescape(output.partition(STOP)[0])


def edit_penalty_processor(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], penalty: float = EDIT_PENALTY
) -> LogitsProcessor:
    """Build the logits processor of a batch of prompts: an edit penalty; none if the vocabulary is not byte-level."""
    if not is_byte_level(tokenizer):
        return LogitsProcessorList()
    texts = [prompt.rpartition(START)[2].partition(END)[0] for prompt in prompts]  # few-shot examples may precede
    vocabulary = tokenizer.get_vocab()
    stops = [vocabulary[token] for token in (tokenizer.eos_token, STOP) if token in vocabulary]
    return EditPenaltyLogitsProcessor(tokenizer, texts, stops, penalty)


DECODING = {"max_new_tokens": 320, "stop": STOP, "repetition_penalty": 1.0, "logits_processor": edit_penalty_processor}


# Rows ---------------------------------------------------------------------------------------------


@dataclass
class OcrData:
    """Training and evaluation data of OCR correction.

    Args:
        pairs: Parquet file or folder of OCR texts and their truth, with columns id, ocr, truth, language, source,
            license (training.tasks.pages generates such). Only pairs whose source begins with "rendered page" are
            trained on; all others count as historical scans. Default: no pairs.
        eval_pairs: Pairs to evaluate on: rendered (held-out rendered pages) or historical (all historical scans, which
            are never trained on).
        path: Corpus folder for rows with synthetic errors. Default: a corpus built from package registries.
        synthetic_rows: Number of training rows with synthetic OCR errors.
        clean_share: Number of rows whose text is already correct, as a fraction of the other rows; they teach the
            model not to correct what needs no correction.
        copy_rows: Number of additional copy-task rows (random words, already correct), which come first unless
            training shuffles. A base model that does not copy yet learns it sooner from them than from sentences.
        window: Maximum characters of a row's text.
        held_out: Fraction of each language's pages that is not trained on, by complete authors or works.
        held_out_rows: Maximum number of evaluation rows, including clean ones.
        languages: ISO codes. Default: all eight.
        seed: Seed of the held-out split and of sampling.
    """

    pairs: Path | None = None
    eval_pairs: Literal["rendered", "historical"] = "rendered"
    path: Path | None = None
    synthetic_rows: int = 8000
    clean_share: float = 0.1
    copy_rows: int = 0
    window: int = WINDOW
    held_out: float = 0.1
    held_out_rows: int = 400
    languages: list[str] | None = None
    seed: int = 0


def rows(data: OcrData) -> dict[str, list[dict]]:
    """Return {"train": rows, "held_out": rows}; no author or work is in both.

    With pairs, the held-out rows are pairs, with real OCR errors. Otherwise their errors are synthetic, as in
    training.

    Raises:
        InputError: If the pairs or the corpus cannot be read, or contain nothing that may be used.
    """
    if data.pairs is None and not data.synthetic_rows:
        raise InputError("no pairs and synthetic_rows is 0: pass --data.pairs, or a number of --data.synthetic_rows.")
    languages = checked_languages(data.languages)
    train, held_out = _pair_rows(data, languages) if data.pairs is not None else ([], [])
    if data.synthetic_rows:
        synthetic = _synthetic_rows(data, languages, {row["group"] for row in held_out})
        train += synthetic["train"]
        held_out = held_out or synthetic["held_out"]
    held_out = _evenly(order_by_hash(held_out, data.seed), int(data.held_out_rows / (1 + data.clean_share)))
    train, held_out = _add_clean(train, data), _add_clean(held_out, data)
    return {"train": [*_copy_rows(train, data), *train], "held_out": held_out}


def _add_clean(rows: list[dict], data: OcrData) -> list[dict]:
    """Add rows whose text is already correct, and shuffle all."""
    clean = [
        _row({**row, "id": f"{row['id']}/clean"}, row["truth"], row["truth"], kind="clean")
        for row in rows
        if hash_fraction(f"clean/{data.seed}/{row['id']}") < data.clean_share
    ]
    return order_by_hash([*clean, *rows], data.seed)


def _copy_rows(train: list[dict], data: OcrData) -> list[dict]:
    """Return rows of random words from the training rows, equally many per language."""
    rows = []
    texts = ((row["language"], row["truth"], row) for row in train)
    for name, sampled_rows, words, draw in random_word_rows(texts, data.copy_rows, data.seed):
        text = " ".join(words[: draw.randint(*COPY_WORDS)])
        licences = " AND ".join(sorted({row["license"] for row in sampled_rows}))
        rows.append(_row({**sampled_rows[0], "id": name, "license": licences}, text, text, kind="drill"))
    return order_by_hash(rows, data.seed)


def read_pairs(path: Path, languages: list[str]) -> Iterator[dict]:
    """Yield pairs with their kind (rendered or historical) and group (the unit of the held-out split).

    Raises:
        InputError: If a file lacks a column or is damaged.
    """
    for file in corpus_files(path):
        for pair in read_columns(file, PAIR_COLUMNS, f"pairs have the columns {', '.join(PAIR_COLUMNS)}."):
            if pair["language"] in languages and (pair["ocr"] or "").strip() and (pair["truth"] or "").strip():
                kind = "rendered" if RENDERED.match(pair["source"]) else "historical"
                yield {**pair, "kind": kind, "group": author_or_work(pair["source"])}


def author_or_work(source: str) -> str:
    """Return the author of a pair's text if its source names one (`... by NAME`, file `ELT01_Name`), else the work."""
    origin, _, creator = (source.partition("text from ")[2] or source).partition(" by ")
    stem = work_id(origin).rpartition("/")[2].removesuffix(".xml")
    author = re.match(r"[A-Z]+\d+_([^\W\d_]+)", stem)
    return author_key(creator) or (author[1].lower() if author else stem)


def _pair_rows(data: OcrData, languages: list[str]) -> tuple[list[dict], list[dict]]:
    """Return training and evaluation rows."""
    pairs = list(read_pairs(data.pairs, languages))
    rendered = [pair for pair in pairs if pair["kind"] == "rendered"]
    selected = [pair for pair in pairs if pair["kind"] == data.eval_pairs]
    if not selected:
        raise InputError(
            f"{data.pairs} contains no {data.eval_pairs} pair in {', '.join(languages)}: the sources of rendered "
            'pairs begin with "rendered page"; all others are historical scans, for --data.eval_pairs historical only.'
        )
    held_out = held_out_groups(((pair["language"], pair["group"]) for pair in rendered), data.held_out, data.seed)
    train = [pair for pair in rendered if pair["group"] not in held_out and not decide(pair["license"]).refused]
    evaluation = [pair for pair in selected if pair["kind"] == "historical" or pair["group"] in held_out]
    return (
        [row for pair in train for row in _window_rows(pair, data.window) if _readable(row)],
        [row for pair in evaluation for row in _window_rows(pair, data.window)],
    )


def _readable(row: dict) -> bool:
    return Levenshtein.distance(row["ocr"], row["truth"]) <= UNREADABLE * len(row["truth"])


def _window_rows(pair: dict, size: int) -> Iterator[dict]:
    """Split a pair into rows of about `size` characters."""
    for i, (ocr, truth) in enumerate(split_aligned_pair(pair["ocr"], pair["truth"], size)):
        yield _row({**pair, "id": f"{pair['id']}#{i}"}, ocr, truth, kind=pair["kind"])


def _row(pair: dict, ocr: str, truth: str, *, kind: str) -> dict:
    prompt, completion = format_ocr(ocr, truth)
    return {
        **{name: pair[name] for name in ("id", "language", "source", "license", "group")},
        **{"kind": kind, "ocr": ocr, "truth": truth, "prompt": prompt, "completion": completion},
    }


def _synthetic_rows(data: OcrData, languages: list[str], excluded: set[str]) -> dict[str, list[dict]]:
    """Return rows of clean text with synthetic errors, equally many per language, from no group in `excluded`."""
    folder = corpus_folder(data.path, languages)
    counts = {"train": data.synthetic_rows // len(languages), "held_out": 0}
    if data.pairs is None:
        counts["held_out"] = data.held_out_rows // len(languages) + 1
    total = int(counts["train"] / (1 - data.held_out) + counts["held_out"] / data.held_out) + 1
    rows: dict[str, list[dict]] = {name: [] for name in counts}
    for language in languages:
        passages = read_passages(folder, language, count=total, size=data.window, seed=data.seed)
        passages = [passage for passage in passages if passage["group"] not in excluded]
        groups = held_out_groups(((language, passage["group"]) for passage in passages), data.held_out, data.seed)
        for name, part in rows.items():
            available = (passage for passage in passages if (passage["group"] in groups) == (name == "held_out"))
            for passage in islice(available, counts[name]):
                draw = random.Random(f"{data.seed}/{passage['id']}")
                ocr = ocr_noise.simulate_ocr(passage["text"], draw.choice(ocr_noise.ERROR_RATES), draw)
                part.append(_row(passage, ocr, passage["text"], kind="synthetic"))
    if not rows["train"]:
        raise InputError(
            f"{folder} contains no openly licensed prose in {', '.join(languages)}: pass another --data.path."
        )
    return rows


def read_passages(folder: Path, language: str, *, count: int, size: int, seed: int) -> list[dict]:
    """Return at least `count` passages of openly licensed prose, or all if there are fewer, in lines as on a page.

    They are sampled from the complete corpus, a few per document, in a reproducible random order.

    Returns:
        Dicts of id, language, source (the document), creator, license, group (the unit of the held-out split) and text
        of at most `size` characters.
    """
    documents = sum(1 for _ in read_documents(folder, languages=[language], columns=["identifier"]))
    share = 2 * count / max(documents, 1)  # not every document has a passage
    passages, columns = [], ["identifier", "license", "creator", "text"]
    for document in read_documents(folder, languages=[language], columns=columns):
        key = f"{seed}/{document['identifier']}"
        if hash_fraction(key) >= share or decide(document["license"]).refused:
            continue
        draw = random.Random(key)
        texts = list(wrap_prose(document["text"], size, draw.randint(45, 75)))
        passages += [
            {
                "id": f"{document['identifier']}#{i}",
                "language": language,
                "source": document["identifier"],
                "creator": document["creator"] or "",
                "license": document["license"],
                "group": author_key(document["creator"] or "") or work_id(document["identifier"]),
                "text": texts[i],
            }
            for i in draw.sample(range(len(texts)), min(PASSAGES, len(texts)))
        ]
    authors = Counter(passage["group"] for passage in passages)
    for passage in passages:  # an author of most of a language's text, such as a Bible translator, is split by work
        if authors[passage["group"]] > len(passages) / 2:
            passage["group"] = work_id(passage["source"])
    return order_by_hash(passages, seed)


def wrap_prose(text: str, size: int, width: int) -> Iterator[str]:
    """Yield the prose of a text in passages of at most `size` characters, in lines of at most `width`."""
    passage = ""
    for paragraph in text.splitlines():
        if len(paragraph) < PARAGRAPH or sum(map(str.isalpha, paragraph)) < LETTERS * len(paragraph):
            continue
        if max(map(len, paragraph.split())) > size:  # no prose, and textwrap takes the square of a word's length
            continue
        for line in textwrap.wrap(paragraph, width):
            if passage and len(passage) + 1 + len(line) > size:
                yield passage
                passage = ""
            passage = f"{passage}\n{line}" if passage else line
    if len(passage) >= PARAGRAPH:
        yield passage


def _evenly(rows: list[dict], count: int) -> list[dict]:
    """Return `count` rows, the first of each language, equally many per language if there are enough."""
    seen: Counter = Counter()
    ranks = []
    for row in rows:
        ranks.append(seen[row["language"]])
        seen[row["language"]] += 1
    return [rows[i] for i in sorted(range(len(rows)), key=ranks.__getitem__)[:count]]


# Metrics ------------------------------------------------------------------------------------------


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compute the error rates of corrections; runs of whitespace count as one space, as in jiwer.

    Returns:
        `cer`, `wer`: edits per character and per word of the truth; `cer_uncorrected`, `wer_uncorrected`: the same for
        the OCR text; `error_reduction`: fraction of OCR errors removed, negative if the model adds more errors than it
        fixes; `over_correction`: edits per character in rows that were already correct.
    """
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        truth, ocr, corrected = (" ".join(t.split()) for t in (row["truth"], row["ocr"], parse_correction(output)))
        edits = [Levenshtein.distance(truth, text) for text in (corrected, ocr)]
        edits += [Levenshtein.distance(truth.split(), text.split()) for text in (corrected, ocr)]
        sizes = [len(truth), len(truth.split())]
        counts.append([*edits, *sizes, 0, 0] if row["kind"] != "clean" else [0] * 6 + [edits[0], sizes[0]])
    (after, before, words_after, words_before, size, words, added, clean_size) = np.array(counts).reshape(-1, 8).T
    metrics = {
        "cer": ratio(after, size),
        "wer": ratio(words_after, words),
        "error_reduction": ratio(before - after, before),
        "cer_uncorrected": ratio(before, size),
        "wer_uncorrected": ratio(words_before, words),
    }
    return metrics | ({"over_correction": ratio(added, clean_size)} if clean_size.any() else {})


# Use ----------------------------------------------------------------------------------------------


def correct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int = WINDOW,
    overlap: int | None = None,
    edit_penalty: float = EDIT_PENALTY,
    progress: str | None = None,
) -> str:
    """Correct a text of any length with a fine-tuned model, in overlapping windows that are rejoined without loss.

    Args:
        window: Characters per window; best is the window that the model was fine-tuned with.
        overlap: Characters that neighbouring windows share. Default: a fifth of `window`.
        edit_penalty: Penalty per changed byte (training.tasks.ocr.edit_penalty). Higher values cause fewer changes.
        progress: Title of a progress bar. Default: no bar.
    """

    def change(windows: list[str]) -> list[str]:
        prompts = [format_ocr(content)[0] for content in windows]
        longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0)
        options = {
            **DECODING,
            "max_new_tokens": longest + longest // 2,
            "logits_processor": partial(edit_penalty_processor, penalty=edit_penalty),
        }
        outputs = complete(model, tokenizer, prompts, progress=progress, **options)
        return [parse_correction(output) for output in outputs]

    return over_windows(text, window, window // 5 if overlap is None else overlap, change)
