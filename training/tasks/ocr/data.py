"""Training and evaluation data of OCR correction: rows from pairs and from synthetic errors."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from rapidfuzz.distance import Levenshtein

from ...common.config import InputError
from ...data import ocr_noise, ocr_pairs
from ...data.documents import checked_languages
from ...data.licences import decide
from ...data.split import author_key, hash_fraction, held_out_groups, work_id
from ..copy_task import random_word_rows
from ..sources import corpus_folder, order_by_hash
from ..text_windows import split_aligned_pair
from .format import WINDOW, format_ocr
from .passages import read_passages

RENDERED = re.compile("rendered page", re.IGNORECASE)  # begin of the source of pairs that may be trained on
COPY_WORDS = (4, 10)  # minimum and maximum words of a copy-task row
UNREADABLE = 0.5  # edits per character of truth above which a window is not trained on


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
    for pair in ocr_pairs.read_pairs(path):
        if pair["language"] in languages:
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


def _evenly(rows: list[dict], count: int) -> list[dict]:
    """Return `count` rows, the first of each language, equally many per language if there are enough."""
    seen: Counter = Counter()
    ranks = []
    for row in rows:
        ranks.append(seen[row["language"]])
        seen[row["language"]] += 1
    return [rows[i] for i in sorted(range(len(rows)), key=ranks.__getitem__)[:count]]
