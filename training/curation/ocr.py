"""How well a machine read a page, without its original: a character model per language, and what trains it.

    python -m training.curation.ocr --corpus data/corpus --pairs data/ocr_pairs

Misread text is surprising: "tbe" is no beginning of an English word. Each language has the counts of its four-letter
sequences (statistics, no text: `ocr.safetensors` beside this file), and what a text's sequences cost in bits, above
what clean text costs, is turned into an estimate of the share of its characters that are wrong. Two more figures tell
what kind of text that is: the share of short segments that the models recognise as the document's language, and the
share of signs that are not letters, as in OCRoscope. How well each ranks real pages is in REPORT.md beside this file.
"""

if not __package__:  # run by path; same as `python -m training.curation.ocr`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import json
import random
import re
import shlex
import sys
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from rapidfuzz.distance import Levenshtein
from safetensors import safe_open
from safetensors.numpy import save_file

from ..config import InputError, parse, program
from ..data.documents import corpus_files
from ..data.split import register
from ..files import atomic, fingerprint, sha256
from ..language import LANGUAGES
from ..noise import read as misread

MODEL = Path(__file__).with_suffix(".safetensors")
# Documents estimated below this share of right characters are better left out. In steps of 0.05 it separates best, on
# one half of the calibration pages, those above and below 10% wrong characters ("poor" OCR in R. Holley, How Good Can
# It Get?, D-Lib Magazine 15 3/4, 2009); what it does on the other half is in REPORT.md.
THRESHOLD = 0.90

ORDER = 4
SIGNS = 44  # characters that a language's model knows apart; two more symbols stand for other letters and other signs
SYMBOLS = SIGNS + 2
SMOOTHING = 1.0  # Witten-Bell's weight of a context's distinct followers
LEAST_COUNT = 3  # a rarer sequence is as good as unseen: half the file, and 0.003 of rank correlation
STEPS = 2  # counts are kept to this many steps per doubling
BITS = 16  # a table's unit is 1 / BITS of a bit, so that a byte holds it
PROSE_LETTERS = 0.5  # of the signs; rows of dots and figures surprise no model, and are no prose
SEGMENT = 24  # characters; segments of 40 and 64 rank pages worse
SEGMENTS = 128  # at most so many are looked at
SAMPLE, STRETCHES = 8192, 16  # of a longer text: this many characters, in this many stretches evenly spread

OLD_SHARE = {"old": 2 / 3, "modern": 1 / 3}  # of a language's training text where it has both: pages are mostly old
CHUNK = 4_000_000  # characters counted at a time
# One document in twenty is not trained on; on their beginnings, and on these with a tenth of the characters misread,
# surprise is turned into errors. The scale begins where the tenth least surprising of a hundred clean texts stands.
ANCHOR_EVERY, ANCHORS, ANCHOR_CHARACTERS, ANCHOR_RATE, CLEAN_PERCENTILE = 20, 400, 2000, 0.1, 10

HYPHENATION = re.compile(r"[-=](?<=\w.)\s*\n\s*(?=\w)|\xac\s*")  # at a line's end; the not sign stands for one
SPACE = ord(" ")


def _folded() -> np.ndarray:
    """Code point -> the one that stands for it: small letters, one white space, one digit, one kind of quotes."""
    alike = dict(zip("\u2018\u2019\u201c\u201d\u201e\xab\xbb\u2013\u2014", "''" + '"""""' + "--", strict=True))
    folded = np.arange(1 << 16, dtype=np.uint16)
    for code in range(1 << 16):
        sign = alike.get(chr(code), chr(code).lower())
        sign = " " if sign.isspace() else "0" if sign.isdecimal() else sign
        folded[code] = ord(sign) if len(sign) == 1 else code
    return folded


FOLDED = _folded()
LETTER = np.array([chr(code).isalpha() for code in range(1 << 16)])


class Quality(NamedTuple):
    """What a machine's reading looks like."""

    score: float  # estimated share of the characters that are right, 0 to 1; less for what has too few letters
    recognised: float  # share of segments of 24 characters that the models find in the document's language
    non_letters: float  # share of the signs (white space apart) that are not letters
    surprise: float  # mean bits per character under the language's model


class Model(NamedTuple):
    """One language's character model, ready to look things up."""

    symbols: np.ndarray  # uint8, code point -> symbol
    surprise: np.ndarray  # uint8 of SYMBOLS ** 4: 1/16 bits of a sequence's last symbol after those before
    recogniser: np.ndarray  # the same of SYMBOLS ** 3, which stays in the processor's cache
    clean: float  # bits per character of clean text
    slope: float  # bits per character that wrong characters add, per share of wrong ones


def codes(text: str) -> np.ndarray:
    """Code points (uint16) of a text in one spelling: no line ends, capitals, ligatures, long s, kinds of quotes."""
    text = f" {unicodedata.normalize('NFKC', HYPHENATION.sub('', text))} "
    points = FOLDED[np.minimum(np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32), len(FOLDED) - 1)]
    space = points == SPACE
    space[1:] &= space[:-1]  # white space after white space
    space[0] = False
    return points[~space]


def symbol_table(alphabet: str) -> np.ndarray:
    """Folded code point -> symbol: 0 for other signs, 1 for other letters, then the alphabet."""
    table = LETTER.astype(np.uint8)
    table[[ord(sign) for sign in alphabet]] = np.arange(2, 2 + len(alphabet))
    return table


def sequences(symbols: np.ndarray, order: int) -> np.ndarray:
    """Numbers (int32) of all runs of `order` symbols, the first symbol most significant."""
    runs = max(0, len(symbols) - order + 1)
    number = np.zeros(runs, np.int32)
    for i in range(order):
        number = number * SYMBOLS + symbols[i : i + runs]
    return number


def surprises(counts: np.ndarray) -> np.ndarray:
    """Counts of all sequences of an order -> bits of each one's last symbol after the others, Witten-Bell smoothed."""
    order = round(np.log(counts.size) / np.log(SYMBOLS))
    chance = np.full(SYMBOLS, 1 / SYMBOLS, np.float32)
    for context in range(order):
        seen = counts.reshape(-1, SYMBOLS ** (context + 1)).sum(0, dtype=np.float32).reshape(-1, SYMBOLS)
        total = seen.sum(1, keepdims=True)
        novel = SMOOTHING * (seen > 0).sum(1, keepdims=True)
        shorter = np.tile(chance.reshape(-1, SYMBOLS), (SYMBOLS if context else 1, 1))
        chance = ((seen + novel * shorter) / np.maximum(total + novel, 1)).astype(np.float32)
        chance[total[:, 0] == 0] = shorter[total[:, 0] == 0]
    return -np.log2(chance.ravel())


def packed(counts: np.ndarray) -> np.ndarray:
    """Counts of sequences as few bytes: logarithms in steps of half a doubling, 0 for the rare, deflated (uint8)."""
    steps = np.where(counts < LEAST_COUNT, 0, 1 + np.round(STEPS * np.log2(np.maximum(counts, 1))))
    return np.frombuffer(zlib.compress(steps.astype(np.uint8).tobytes(), 9), np.uint8)


def unpacked(data: np.ndarray) -> np.ndarray:
    """The counts (float32) that `packed` kept."""
    steps = np.frombuffer(zlib.decompress(data.tobytes()), np.uint8)
    return np.append(0, 2 ** (np.arange(255) / STEPS)).astype(np.float32)[steps]


def build(counts: np.ndarray, alphabet: str, clean: float = 0.0, slope: float = 1.0) -> Model:
    """A model from counts (SYMBOLS ** 4)."""
    tables = (surprises(of) for of in (counts, counts.reshape(SYMBOLS, -1).sum(0)))
    four, three = (np.minimum(255, np.round(table * BITS)).astype(np.uint8) for table in tables)
    return Model(symbol_table(alphabet), four, three, clean, slope)


@cache
def models() -> dict[str, Model]:
    """ISO code -> model, for the eight languages; a second and 40 MB, once a process."""
    with safe_open(MODEL, "numpy") as file:
        settings = json.loads(file.metadata()["about"])["languages"]
        return {
            language: build(unpacked(file.get_tensor(language)), of["alphabet"], of["clean"], of["slope"])
            for language, of in settings.items()
        }


def sampled(text: str) -> str:
    """The text, or of a long one stretches evenly spread, so that its cost does not grow with its length."""
    if len(text) <= SAMPLE:
        return text
    starts = np.linspace(0, len(text) - SAMPLE // STRETCHES, STRETCHES).astype(int)
    return " ".join(text[start : start + SAMPLE // STRETCHES] for start in starts)


def bits(model: Model, points: np.ndarray) -> float:
    """Mean surprise per character."""
    return float(model.surprise[sequences(model.symbols[points], ORDER)].mean()) / BITS


def quality(text: str, language: str) -> Quality:
    """How well a text was read, judged on at most 8,192 characters of it.

    Args:
        text: a document or a page; on less than some hundred characters the figures are rough.
        language: ISO code of one of the eight.
    """
    points = codes(sampled(text))
    if len(points) < ORDER:
        return Quality(score=0.0, recognised=0.0, non_letters=1.0, surprise=255 / BITS)
    known = models()
    head = points[: SEGMENT * SEGMENTS]
    starts = np.arange(0, max(1, len(head) - SEGMENT // 2), SEGMENT)
    costs = np.stack(
        [
            np.add.reduceat(model.recogniser[sequences(model.symbols[head], ORDER - 1)], starts, dtype=np.int32)
            for model in known.values()
        ]
    )
    own = known[language]
    surprise = bits(own, points)
    letters = float(LETTER[points].sum() / max(1, (points != SPACE).sum()))
    right = min(1.0, max(0.0, 1 - (surprise - own.clean) / own.slope))
    return Quality(
        score=right * min(1.0, letters / PROSE_LETTERS),
        recognised=float((costs[list(known).index(language)] == costs.min(0)).mean()),
        non_letters=1 - letters,
        surprise=surprise,
    )


# Training -----------------------------------------------------------------------------------------


@dataclass
class OcrConfig:
    """What the character models are trained on.

    Args:
        corpus: folder of Parquet files with Common Corpus columns, clean text in the eight languages.
        pairs: folder of calibration pages (columns ocr, truth, source); documents that these were made from are left
            out of the training, so that the calibration is honest.
        out: file to write.
    """

    corpus: Path
    pairs: Path | None = None
    out: Path = MODEL


def page_sources(pairs: Path) -> set[str]:
    """Documents (identifiers without their part) that rendered calibration pages were made from."""
    sources = set()
    for file in corpus_files(pairs):
        for source in pq.read_table(file, columns=["source"])["source"].to_pylist():
            sources.add(source.partition("text from ")[2])
    return sources - {""}


def texts(corpus: Path, language: str, left_out: set[str]) -> Iterator[tuple[str, str]]:
    """The documents of a language: their part in training (old, modern or, for one in twenty, anchor), and text."""
    from ..words import documents

    for file in corpus_files(corpus):
        for row in documents(file):
            if row["language"] == LANGUAGES[language] and row["identifier"].partition("#part")[0] not in left_out:
                part = "old" if register(row) == "old" else "modern"
                yield "anchor" if zlib.crc32(row["identifier"].encode()) % ANCHOR_EVERY == 0 else part, row["text"]


def count(pages: Iterator[tuple[str, str]], bins: int, number: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Part -> how often each number comes up in its texts (int64), some millions of characters at a time."""
    totals, pending, size = {}, defaultdict(list), 0

    def flush() -> None:
        for part, found in pending.items():
            counts = np.bincount(number(np.concatenate(found)), minlength=bins)
            totals[part] = totals[part] + counts if part in totals else counts
        pending.clear()

    for part, text in pages:
        if part in OLD_SHARE:
            pending[part].append(codes(text))
            size += len(text)
            if size >= CHUNK:
                flush()
                size = 0
    flush()
    return totals


def mixed(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Counts of old and modern prose as one; the one that has less than its share is weighted up."""
    sizes = {part: of.sum() / OLD_SHARE[part] for part, of in counts.items()}
    return sum(of * (max(sizes.values()) / sizes[part]) for part, of in counts.items())


def train_language(corpus: Path, language: str, left_out: set[str]) -> tuple[np.ndarray, dict]:
    """Packed counts of one language, and what else its model is: alphabet, clean, slope.

    Raises:
        InputError: when the corpus has too little text in it.
    """
    anchors = []

    def watched() -> Iterator[tuple[str, str]]:
        for part, text in texts(corpus, language, left_out):
            if part == "anchor":
                anchors.append(text[:ANCHOR_CHARACTERS])
            yield part, text

    frequency = count(watched(), 1 << 16, lambda points: points)
    if not frequency or not anchors:
        raise InputError(f"{corpus} has too little {LANGUAGES[language]}: give a corpus with some megabytes of it.")
    common = np.argsort(-mixed(frequency), kind="stable")[:SIGNS]
    alphabet = "".join(map(chr, sorted(common)))
    table = symbol_table(alphabet)
    counts = count(texts(corpus, language, left_out), SYMBOLS**ORDER, lambda points: sequences(table[points], ORDER))
    data = packed(mixed(counts))
    model = build(unpacked(data), alphabet)

    clean, noisy, wrong = [], [], []
    for i, text in enumerate(anchors[:: -(-len(anchors) // ANCHORS)]):
        page = misread(text, ANCHOR_RATE, random.Random(f"{language} {i}"))
        clean.append(bits(model, codes(text)))
        noisy.append(bits(model, codes(page)))
        wrong.append(error_rate(page, text))
    slope = (np.mean(noisy) - np.mean(clean)) / np.mean(wrong)
    cleanest = float(np.percentile(clean, CLEAN_PERCENTILE))
    settings = {"alphabet": alphabet, "clean": round(cleanest, 4), "slope": round(float(slope), 4)}
    return data, settings | {"characters": {part: int(of.sum()) for part, of in frequency.items()}}


def error_rate(read: str, truth: str) -> float:
    """Character error rate: edits from what was read to what stands there, per character of that; runs of white space
    count as one space. Above 1 when there is more to delete than stands there."""
    read, truth = " ".join(read.split()), " ".join(truth.split())
    return Levenshtein.distance(read, truth) / max(1, len(truth))


def train(config: OcrConfig) -> dict:
    """Train the eight models and write them to `config.out`; returns what the file says of itself."""
    left_out = page_sources(config.pairs) if config.pairs else set()
    tensors, settings = {}, {}
    for language in LANGUAGES:
        tensors[language], settings[language] = train_language(config.corpus, language, left_out)
        print(language, settings[language], f"{tensors[language].nbytes:,} bytes", flush=True)
    about = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "corpus": fingerprint({file.name: sha256(file) for file in corpus_files(config.corpus)}),
        "documents_left_out": len(left_out),
        "languages": settings,
    }
    with atomic(config.out) as temporary:  # one entry, since the order of several differs from run to run
        save_file(tensors, temporary, metadata={"about": json.dumps(about, ensure_ascii=False)})
    return about


def main() -> None:
    """Command line."""
    config = parse(OcrConfig, description="Train the character models that judge OCR.")
    train(config)
    print(f"{config.out}: {config.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    program(main)
