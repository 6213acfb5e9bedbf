"""OCR correction: the published format, rows from pairs and from made-up errors, the metric, and `correct`."""

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

import jiwer
import numpy as np
from rapidfuzz.distance import Levenshtein
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..config import InputError
from ..data.documents import checked_languages, corpus_files, read_documents
from ..data.licences import decide
from ..data.split import author_key, hash_fraction, held_out_groups, work_id
from ..generation import complete
from ..intervals import Metric, ratio
from ..noise import ERROR_RATES
from ..noise import read as misread
from .drills import jumbled
from .markers import escape, unescape
from .near import NearInput, is_byte_level
from .sources import corpus_folder, read_columns
from .windows import cut_pair, over_windows

NAME = "ocr"
HIGHER_IS_BETTER = False
START, END = "<|text_start|>", "<|text_end|><|ocr_correction_start|>"
STOP = "<|ocr_correction_end|>"

WINDOW = 300  # characters; a window and its correction fit four times in a context of 1,024 tokens
EDIT_PRICE = 5.0  # of a changed byte (training.tasks.near); training.bench.ocr_price finds a model's own
RENDERED = re.compile("rendered page", re.IGNORECASE)  # how the source of a pair that may train begins
PAIR_COLUMNS = ["id", "ocr", "truth", "language", "source", "license"]
DRILL_WORDS = (4, 10)  # fewest and most
UNREADABLE = 0.5  # edits per character of truth above which a window teaches nothing
PARAGRAPH, LETTERS = 80, 0.7  # prose: characters of a paragraph at least, and the share of letters among them
PASSAGES = 8  # most passages of one document


# The format ---------------------------------------------------------------------------------------


def format_ocr(ocr: str, truth: str = "") -> tuple[str, str]:
    """(prompt, completion) as published: the text as read, and the text as it should be."""
    return f"{START}{escape(ocr)}{END}", f"{escape(truth)}{STOP}"


def parse_ocr(text: str) -> tuple[str, str]:
    """(text as read, correction) of a prompt with or without its completion.

    Raises:
        ValueError: when the text has no such prompt.
    """
    before, opened, rest = text.partition(START)
    ocr, closed, correction = rest.partition(END)
    if before or not opened or not closed:
        raise ValueError(f"no prompt of OCR correction: {text[:80]!r}")
    return unescape(ocr), parse_correction(correction)


def parse_correction(output: str) -> str:
    """The correction in what a model wrote after the prompt."""
    return unescape(output.partition(STOP)[0])


def near_input(tokenizer: PreTrainedTokenizerBase, prompts: list[str], price: float = EDIT_PRICE) -> LogitsProcessor:
    """The decoding of a batch of prompts: near their texts. Free, where the vocabulary is not byte-level."""
    if not is_byte_level(tokenizer):
        return LogitsProcessorList()
    texts = [prompt.rpartition(START)[2].partition(END)[0] for prompt in prompts]  # worked examples may stand before
    entries = tokenizer.get_vocab()
    stops = [entries[token] for token in (tokenizer.eos_token, STOP) if token in entries]
    return NearInput(tokenizer, texts, stops, price)


DECODING = {"max_new_tokens": 320, "stop": STOP, "repetition_penalty": 1.0, "guide": near_input}


# Rows ---------------------------------------------------------------------------------------------


@dataclass
class OcrData:
    """What OCR correction is trained and measured on.

    Args:
        pairs: Parquet, a file or a folder, with columns id, ocr, truth, language, source, license
            (training.tasks.pages makes such). Only pairs whose source begins with "rendered page" are trained on;
            all others count as historical scans.
        evaluate: held_out pairs that were rendered, or every historical scan; the latter are for evaluation only.
        path: corpus folder for rows with made-up errors; from package registries when not given.
        synthetic: training rows with made-up errors.
        clean: share of rows beside these whose text is right already, against correcting what needs none.
        drills: further training rows, of words at random that are right already; they come first if nothing shuffles
            them. A base that does not copy yet learns it from them sooner than from sentences.
        window: most characters of a row's text.
        held_out: share of the pages of each language, by whole authors or works, that is not trained on.
        held_out_rows: most rows to measure on, clean ones included.
        languages: ISO codes; all eight when not given.
        seed: decides what is held out and what is drawn.
    """

    pairs: Path | None = None
    evaluate: Literal["rendered", "historical"] = "rendered"
    path: Path | None = None
    synthetic: int = 8000
    clean: float = 0.1
    drills: int = 0
    window: int = WINDOW
    held_out: float = 0.1
    held_out_rows: int = 400
    languages: list[str] | None = None
    seed: int = 0


def rows(data: OcrData) -> dict[str, list[dict]]:
    """{"train": rows, "held_out": rows}; no author or work is in both.

    With pairs, what is held out are pairs: real misreadings. Without, it is made of errors as the training rows are.

    Raises:
        InputError: when the pairs or the corpus cannot be read, or hold nothing that may be used.
    """
    if data.pairs is None and not data.synthetic:
        raise InputError("no pairs and synthetic is 0: give --data.pairs or a number of made-up rows to train on.")
    languages = checked_languages(data.languages)
    train: list[dict] = []
    apart: list[dict] = []
    if data.pairs is not None:
        train, apart = _pair_rows(data, languages)
    if data.synthetic:
        made_up = _synthetic_rows(data, languages, {row["group"] for row in apart})
        train += made_up["train"]
        apart = apart or made_up["held_out"]
    mixed = {"train": _mixed(train, data.seed), "held_out": _mixed(apart, data.seed)}
    mixed["held_out"] = _evenly(mixed["held_out"], int(data.held_out_rows / (1 + data.clean)))
    for name, some in mixed.items():
        already_right = (row for row in some if hash_fraction(f"clean/{data.seed}/{row['id']}") < data.clean)
        clean = [
            _row({**row, "id": f"{row['id']}/clean"}, row["truth"], row["truth"], kind="clean")
            for row in already_right
        ]
        mixed[name] = _mixed([*clean, *some], data.seed)
    return {**mixed, "train": [*_drills(mixed["train"], data), *mixed["train"]]}


def _drills(train: list[dict], data: OcrData) -> list[dict]:
    """Rows of words at random out of the training rows, as many of each language."""
    rows = []
    some = ((row["language"], row["truth"], row) for row in train)
    for name, drawn, words, draw in jumbled(some, data.drills, data.seed):
        text = " ".join(words[: draw.randint(*DRILL_WORDS)])
        licences = " AND ".join(sorted({row["license"] for row in drawn}))
        rows.append(_row({**drawn[0], "id": name, "license": licences}, text, text, kind="drill"))
    return _mixed(rows, data.seed)


def read_pairs(path: Path, languages: list[str]) -> Iterator[dict]:
    """Pairs with their kind (rendered or historical) and group (what may not be on both sides of a split).

    Raises:
        InputError: when a file lacks a column or is damaged.
    """
    for file in corpus_files(path):
        for pair in read_columns(file, PAIR_COLUMNS, f"pairs have the columns {', '.join(PAIR_COLUMNS)}."):
            if pair["language"] in languages and (pair["ocr"] or "").strip() and (pair["truth"] or "").strip():
                kind = "rendered" if RENDERED.match(pair["source"]) else "historical"
                yield {**pair, "kind": kind, "group": group_of(pair["source"])}


def group_of(source: str) -> str:
    """The author of a pair's text where its source names one, `... by NAME` or a file `ELT01_Name`; else the work."""
    origin, _, creator = (source.partition("text from ")[2] or source).partition(" by ")
    stem = work_id(origin).rpartition("/")[2].removesuffix(".xml")
    named = re.match(r"[A-Z]+\d+_([^\W\d_]+)", stem)
    return author_key(creator) or (named[1].lower() if named else stem)


def _pair_rows(data: OcrData, languages: list[str]) -> tuple[list[dict], list[dict]]:
    """Rows to train on and rows to measure on."""
    pairs = list(read_pairs(data.pairs, languages))
    rendered = [pair for pair in pairs if pair["kind"] == "rendered"]
    chosen = [pair for pair in pairs if pair["kind"] == data.evaluate]
    if not chosen:
        raise InputError(
            f"{data.pairs} holds no {data.evaluate} pair in {', '.join(languages)}: its sources begin with "
            '"rendered page", or else are historical scans, which are for --data.evaluate historical only.'
        )
    apart = held_out_groups(((pair["language"], pair["group"]) for pair in rendered), data.held_out, data.seed)
    train = [pair for pair in rendered if pair["group"] not in apart and not decide(pair["license"]).refused]
    measured = [pair for pair in chosen if pair["kind"] == "historical" or pair["group"] in apart]
    return (
        [row for pair in train for row in _windows(pair, data.window) if _readable(row)],
        [row for pair in measured for row in _windows(pair, data.window)],
    )


def _readable(row: dict) -> bool:
    return Levenshtein.distance(row["ocr"], row["truth"]) <= UNREADABLE * len(row["truth"])


def _windows(pair: dict, size: int) -> Iterator[dict]:
    """A pair in rows of about `size` characters."""
    for i, (ocr, truth) in enumerate(cut_pair(pair["ocr"], pair["truth"], size)):
        yield _row({**pair, "id": f"{pair['id']}#{i}"}, ocr, truth, kind=pair["kind"])


def _row(pair: dict, ocr: str, truth: str, *, kind: str) -> dict:
    prompt, completion = format_ocr(ocr, truth)
    return {
        **{name: pair[name] for name in ("id", "language", "source", "license", "group")},
        **{"kind": kind, "ocr": ocr, "truth": truth, "prompt": prompt, "completion": completion},
    }


def _synthetic_rows(data: OcrData, languages: list[str], apart: set[str]) -> dict[str, list[dict]]:
    """Rows of clean text with made-up errors, as many in each language; nothing from the groups in `apart`."""
    folder = corpus_folder(data.path, languages)
    wanted = {"train": data.synthetic // len(languages), "held_out": 0}
    if data.pairs is None:
        wanted["held_out"] = data.held_out_rows // len(languages) + 1
    drawn = int(wanted["train"] / (1 - data.held_out) + wanted["held_out"] / data.held_out) + 1
    made: dict[str, list[dict]] = {name: [] for name in wanted}
    for language in languages:
        found = passages(folder, language, count=drawn, size=data.window, seed=data.seed)
        found = [row for row in found if row["group"] not in apart]
        chosen = held_out_groups(((language, row["group"]) for row in found), data.held_out, data.seed)
        for name, rows in made.items():
            mine = (row for row in found if (row["group"] in chosen) == (name == "held_out"))
            for row in islice(mine, wanted[name]):
                draw = random.Random(f"{data.seed}/{row['id']}")
                ocr = misread(row["text"], draw.choice(ERROR_RATES), draw)
                rows.append(_row(row, ocr, row["text"], kind="synthetic"))
    if not made["train"]:
        raise InputError(f"{folder} has no openly licensed prose in {', '.join(languages)}: give another --data.path.")
    return made


def passages(folder: Path, language: str, *, count: int, size: int, seed: int) -> list[dict]:
    """At least `count` passages of openly licensed prose, if there are so many, in lines as on a page.

    They come from all over the corpus, a few of each document, in an order that looks random and never changes.

    Returns:
        dicts of id, language, source (the document), creator, license, group (what goes whole into training or not)
        and text, of at most `size` characters.
    """
    total = sum(1 for _ in read_documents(folder, languages=[language], columns=["identifier"]))
    share = 2 * count / max(total, 1)  # not every document has a passage
    found, columns = [], ["identifier", "license", "creator", "text"]
    for document in read_documents(folder, languages=[language], columns=columns):
        key = f"{seed}/{document['identifier']}"
        if hash_fraction(key) >= share or decide(document["license"]).refused:
            continue
        draw = random.Random(key)
        texts = list(in_lines(document["text"], size, draw.randint(45, 75)))
        found += [
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
    authors = Counter(row["group"] for row in found)
    for row in found:  # who wrote most of a language's text, as the translator of a Bible, is held out by work
        if authors[row["group"]] > len(found) / 2:
            row["group"] = work_id(row["source"])
    return _mixed(found, seed)


def in_lines(text: str, size: int, width: int) -> Iterator[str]:
    """The prose of a text in passages of at most `size` characters, in lines of at most `width`."""
    passage = ""
    for paragraph in text.splitlines():
        if len(paragraph) < PARAGRAPH or sum(map(str.isalpha, paragraph)) < LETTERS * len(paragraph):
            continue
        for line in textwrap.wrap(paragraph, width):
            if passage and len(passage) + 1 + len(line) > size:
                yield passage
                passage = ""
            passage = f"{passage}\n{line}" if passage else line
    if len(passage) >= PARAGRAPH:
        yield passage


def _mixed(some: list[dict], seed: int) -> list[dict]:
    """Rows in an order that looks random and never changes."""
    return sorted(some, key=lambda row: hash_fraction(f"{seed}/{row['id']}"))


def _evenly(some: list[dict], count: int) -> list[dict]:
    """The first rows, as many of each language as there are."""
    seen: Counter = Counter()
    ranked = []
    for row in some:
        ranked.append((seen[row["language"]], row))
        seen[row["language"]] += 1
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:count]]


# The metric ---------------------------------------------------------------------------------------


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """How right the corrections are, runs of blanks and line ends counting as one blank (jiwer's distances).

    Returns:
        `cer`, `wer`: edits per character and per word of the truth; `cer_uncorrected`, `wer_uncorrected`: the same of
        the text as it was read; `error_reduction`: share of the misread characters that are gone, below 0 when the
        model made more than it mended; of rows that were right already `over_correction`: edits per character.
    """
    counts = []
    for row, output in zip(rows, outputs, strict=True):
        truth, ocr, made = (_one_line(text) for text in (row["truth"], row["ocr"], parse_correction(output)))
        after, before = jiwer.process_characters(truth, made), jiwer.process_characters(truth, ocr)
        words_after, words_before = jiwer.process_words(truth, made), jiwer.process_words(truth, ocr)
        distances = [_edits(one) for one in (after, before, words_after, words_before)]
        sizes = [len(after.references[0]), len(words_after.references[0])]
        counts.append([*distances, *sizes, 0, 0] if row["kind"] != "clean" else [0] * 6 + [distances[0], sizes[0]])
    (after, before, words_after, words_before, size, words, added, clean_size) = np.array(counts).reshape(-1, 8).T
    metrics = {
        "cer": ratio(after, size),
        "wer": ratio(words_after, words),
        "error_reduction": ratio(before - after, before),
        "cer_uncorrected": ratio(before, size),
        "wer_uncorrected": ratio(words_before, words),
    }
    return metrics | ({"over_correction": ratio(added, clean_size)} if clean_size.any() else {})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _edits(output: jiwer.CharacterOutput | jiwer.WordOutput) -> int:
    return output.substitutions + output.deletions + output.insertions


# Use ----------------------------------------------------------------------------------------------


def correct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int = WINDOW,
    overlap: int | None = None,
    price: float = EDIT_PRICE,
    progress: str | None = None,
) -> str:
    """A text of any length as a fine-tuned model corrects it, in overlapping windows rejoined without loss.

    Args:
        window: characters that the model reads at a time; what it was fine-tuned on is best.
        overlap: characters that neighbouring windows share; a fifth of one when not given.
        price: of a change; the higher the surer the model has to be (training.tasks.near).
        progress: title of a progress bar; none when not given.
    """

    def change(windows: list[str]) -> list[str]:
        prompts = [format_ocr(one)[0] for one in windows]
        longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0)
        options = {
            **DECODING,
            "max_new_tokens": longest + longest // 2,
            "guide": partial(near_input, price=price),
        }
        return [parse_correction(one) for one in complete(model, tokenizer, prompts, progress=progress, **options)]

    return over_windows(text, window, window // 5 if overlap is None else overlap, change)
