"""Estimate OCR quality without a reference: a character 4-gram model per language, and the program that trains it.

    python -m training.curation.ocr --corpus data/corpus --pairs data/ocr_pairs

Text with OCR errors has a high surprisal: no English word starts with "tbe". Each language has the counts of its
4-grams (statistics, no text: `ocr.safetensors` next to this file). The bits per character of a text, minus those of
clean text, give an estimate of the fraction of wrong characters. Two more metrics describe the text: the fraction of
short segments that the models recognise as the document's language, and the fraction of characters that are not
letters, as in OCRoscope. REPORT.md next to this file states how well each ranks real pages.
"""

if not __package__:  # run by path; same as `python -m training.curation.ocr`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import json
import random
import re
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from safetensors import safe_open
from safetensors.numpy import save_file

from ..common.config import InputError, parse, run_main
from ..common.escaping import shell_line
from ..common.files import atomic, fingerprint, sha256
from ..common.language import LANGUAGES
from ..common.normalization import normalize
from ..common.unicode_forms import unicode_form
from ..data.documents import corpus_files
from ..data.ocr_noise import simulate_ocr as simulate_ocr
from ..data.ocr_pairs import read_pairs
from ..data.split import register

MODEL = Path(__file__).with_suffix(".safetensors")
# Minimum estimated fraction of correct characters. Among steps of 0.05 it best separates one half of the calibration
# pages into those above and below 10% wrong characters ("poor" OCR in R. Holley, How Good Can It Get?, D-Lib Magazine
# 15 3/4, 2009); REPORT.md has its accuracy on the other half.
THRESHOLD = 0.90

ORDER = 4
ALPHABET_SIZE = 44  # characters in a language's model; two more symbols represent other letters and other characters
SYMBOLS = ALPHABET_SIZE + 2
SMOOTHING = 1.0  # Witten-Bell weight of the distinct successors of a context
MIN_COUNT = 3  # rarer sequences are dropped: halves the file, costs 0.003 of rank correlation
STEPS = 2  # counts are stored with this many steps per doubling
BITS = 16  # the unit of a table is 1 / BITS bit, so that a value fits in a byte
PROSE_LETTERS = 0.5  # minimum fraction of letters; rows of dots and digits have a low surprisal, but are no prose
SEGMENT = 24  # characters; segments of 40 and 64 rank pages worse
MAX_SEGMENTS = 128
SAMPLE, SAMPLE_PARTS = 8192, 16  # characters of a long text, in this many evenly spaced parts

OLD_SHARE = {"old": 2 / 3, "modern": 1 / 3}  # of a language's training text if it has both, because most scans are old
CHUNK = 4_000_000  # characters counted at a time
# 1 in 20 documents is not trained on. Their beginnings, clean and with a tenth of the characters replaced by OCR
# errors, calibrate the conversion of surprisal to errors. The scale starts at the 10th percentile of clean texts.
ANCHOR_EVERY, ANCHORS, ANCHOR_CHARACTERS, ANCHOR_RATE, CLEAN_PERCENTILE = 20, 400, 2000, 0.1, 10

# Hyphens at line ends; the not sign is an OCR error for one.
HYPHENATION = re.compile(r"[-=](?<=\w.)[^\S\n]*\n\s*(?=\w)|\xac\s*")
SPACE = ord(" ")
# Letter-spaced words, whose letters are tokens. Their words are further apart, or their letters have thinner spaces.
WIDE_SPACES = dict.fromkeys(map(ord, "\u2001\u2003\u3000"), "  ")
THIN_SPACED = re.compile(r"(?<!\w)[^\W\d_](?:[\u2006\u2008-\u200a\u202f][^\W\d_])+(?!\w)")
LETTER_SPACED = re.compile(r"(?<!\S)[^\W\d_](?: [^\W\d_]){2,}(?: [^\w\s])?(?!\S)")
SPACED_LINE = re.compile(r"^(?:[ \t]*\S(?!\S)){6,}[ \t]*$", re.MULTILINE)
# Lines whose words are no further apart than their letters: minimum letters of such a line, which no word has, and
# what the errors of a text are multiplied by whose words the model divided where it expects a space. Measured on text
# with 10 to 25% errors in eight languages: 1.4 to 1.8.
EQUAL_GAPS, DIVIDED_ERRORS = 25, 1.5
# Cells of a table: numbers with their units, and rules and leaders, which are not cells but separate them.
CELL = re.compile(r"[^\s;|]+")
UNITS = "st|nd|rd|th|er|re|[sd]|[ckm]?m|k?g"
NUMBER = re.compile(
    rf"[(+\-<~]?[$\xa3\u20ac]?\d+(?:[.,:/'\-]\d+)*(?:{UNITS})?[%\xb0.,)]{{0,2}}|[$\xa3\u20ac%]", re.IGNORECASE
)
RULE = re.compile(r"[-:=_.*+\u2013\u2014\u2026\xb7]+")
LEADER = 3  # minimum characters of a rule that makes a line of words a line of a table, as in tables of contents


def _folded() -> np.ndarray:
    """Return the table code point -> normalised one: lower case, one space, one digit, one kind of quotes."""
    alike = dict(zip("\u2018\u2019\u201c\u201d\u201e\xab\xbb\u2013\u2014", "''" + '"""""' + "--", strict=True))
    folded = np.arange(1 << 16, dtype=np.uint16)
    for code in range(1 << 16):
        character = alike.get(chr(code), chr(code).lower())
        character = " " if character.isspace() else "0" if character.isdecimal() else character
        folded[code] = ord(character) if len(character) == 1 else code
    return folded


FOLDED = _folded()
LETTER = np.array([chr(code).isalpha() for code in range(1 << 16)])


class OcrQuality(NamedTuple):
    """OCR quality of a text."""

    score: float  # estimated fraction of correct characters, 0 to 1; reduced if few letters are not in tables
    recognised: float  # fraction of segments of 24 characters recognised as the document's language
    non_letters: float  # fraction of non-space characters that are not letters
    surprise: float  # mean surprisal under the language's model, in bits per character


class CharacterModel(NamedTuple):
    """Lookup tables of one language's character model."""

    symbols: np.ndarray  # uint8, code point -> symbol
    surprise: np.ndarray  # uint8 of SYMBOLS ** 4: surprisal of a sequence's last symbol, in 1/16 bit
    recogniser: np.ndarray  # the same of SYMBOLS ** 3, which fits in the CPU cache
    clean: float  # bits per character of clean text
    slope: float  # increase of bits per character per fraction of wrong characters


def without_letter_spacing(text: str, model: CharacterModel) -> tuple[str, int]:
    """Return a normalised text in which letter-spaced words are joined, and the characters of lines with equal gaps.

    Two spaces or more divide such words. Lines with equal gaps are divided where the model expects spaces.
    """
    divided = 0

    def joined(match: re.Match) -> str:
        nonlocal divided
        line = re.sub(r"(?<=\S)[ \t](?=\S)", "", match[0]).strip()
        if sum(map(str.isalpha, line)) < EQUAL_GAPS or re.search(r"\s", line):
            return line
        divided += len(line)
        return divide_words(line, model)

    text = normalize(THIN_SPACED.sub(lambda word: word[0][::2], text.translate(WIDE_SPACES))).text
    if SPACED_LINE.search(text):
        text = SPACED_LINE.sub(joined, text)
    return LETTER_SPACED.sub(lambda word: word[0].replace(" ", ""), text), divided


def divide_words(line: str, model: CharacterModel) -> str:
    """Insert the spaces with which a line without spaces has the least surprisal under a model (Viterbi)."""
    points = FOLDED[np.minimum(np.frombuffer(line.encode("utf-32-le", "replace"), np.uint32), len(FOLDED) - 1)]
    space, surprise = int(model.symbols[SPACE]), model.surprise
    paths: dict[tuple, tuple[int, tuple]] = {(space,) * (ORDER - 1): (0, ())}  # by the last symbols; linked backwards
    for character, symbol in zip(line, model.symbols[points].tolist(), strict=True):
        extended: dict[tuple, tuple[int, tuple]] = {}
        for last, (cost, path) in paths.items():
            for added in ((symbol,), (space, symbol)) if last[-1] != space else ((symbol,),):
                context, total = last, cost
                for next_symbol in added:
                    total += int(surprise[reduce(lambda number, s: number * SYMBOLS + s, (*context, next_symbol))])
                    context = (*context[1:], next_symbol)
                if context not in extended or total < extended[context][0]:
                    extended[context] = total, (path, " " * (len(added) - 1) + character)
        paths = extended
    _, path = min(paths.values(), key=lambda cost_and_path: cost_and_path[0])
    pieces = []
    while path:
        path, piece = path
        pieces.append(piece)
    return "".join(reversed(pieces))


def without_table_numbers(text: str) -> tuple[str, int]:
    """Return a text without the numbers and rules in its tables, and the number of characters of the numbers.

    Numbers without an error say nothing about the words next to them. A number that OCR did not read remains.
    """
    lines, characters = text.split("\n"), 0
    for i, line in enumerate(lines):
        words, numbers, separators, leaders = [], [], line.count("|"), False
        for cell in CELL.findall(line):
            if NUMBER.fullmatch(cell):
                numbers.append(cell)
            elif RULE.fullmatch(cell):
                separators += 1
                leaders = leaders or len(cell) >= LEADER
            else:
                words.append(cell)
        if leaders or numbers and len(numbers) + separators >= len(words):
            lines[i] = " ".join(words)
            characters += sum(len(number) for number in numbers if len(number) > 1)  # OCR reads specks as 1
    return "\n".join(lines), characters


def codes(text: str) -> np.ndarray:
    """Return the code points (uint16) of a text without line ends, capitals, ligatures, long s and kinds of quotes."""
    text = f" {unicode_form('NFKC', HYPHENATION.sub('', normalize(text).text))} "
    points = FOLDED[np.minimum(np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32), len(FOLDED) - 1)]
    space = points == SPACE
    space[1:] &= space[:-1]  # whitespace after whitespace
    space[0] = False
    return points[~space]


def symbol_table(alphabet: str) -> np.ndarray:
    """Return the table normalised code point -> symbol: 0 other characters, 1 other letters, then the alphabet."""
    table = LETTER.astype(np.uint8)
    table[[ord(character) for character in alphabet]] = np.arange(2, 2 + len(alphabet))
    return table


def sequences(symbols: np.ndarray, order: int) -> np.ndarray:
    """Return the numbers (int32) of all sequences of `order` symbols, the first symbol most significant."""
    runs = max(0, len(symbols) - order + 1)
    number = np.zeros(runs, np.int32)
    for i in range(order):
        number = number * SYMBOLS + symbols[i : i + runs]
    return number


def surprises(counts: np.ndarray) -> np.ndarray:
    """Return the surprisal in bits of each sequence's last symbol from counts, with Witten-Bell smoothing."""
    order = round(np.log(counts.size) / np.log(SYMBOLS))
    probability = np.full(SYMBOLS, 1 / SYMBOLS, np.float32)
    for context in range(order):
        seen = counts.reshape(-1, SYMBOLS ** (context + 1)).sum(0, dtype=np.float32).reshape(-1, SYMBOLS)
        total = seen.sum(1, keepdims=True)
        novel = SMOOTHING * (seen > 0).sum(1, keepdims=True)
        shorter = np.tile(probability.reshape(-1, SYMBOLS), (SYMBOLS if context else 1, 1))
        probability = ((seen + novel * shorter) / np.maximum(total + novel, 1)).astype(np.float32)
        probability[total[:, 0] == 0] = shorter[total[:, 0] == 0]
    return -np.log2(probability.ravel())


def pack_counts(counts: np.ndarray) -> np.ndarray:
    """Compress counts (uint8): logarithms in steps of half a doubling, 0 for rare sequences, deflated."""
    steps = np.where(counts < MIN_COUNT, 0, 1 + np.round(STEPS * np.log2(np.maximum(counts, 1))))
    return np.frombuffer(zlib.compress(steps.astype(np.uint8).tobytes(), 9), np.uint8)


def unpacked(data: np.ndarray) -> np.ndarray:
    """Return the counts (float32) stored by `packed`."""
    steps = np.frombuffer(zlib.decompress(data.tobytes()), np.uint8)
    return np.append(0, 2 ** (np.arange(255) / STEPS)).astype(np.float32)[steps]


def build_character_model(counts: np.ndarray, alphabet: str, clean: float = 0.0, slope: float = 1.0) -> CharacterModel:
    """Build a model from counts (SYMBOLS ** 4)."""
    tables = map(surprises, (counts, counts.reshape(SYMBOLS, -1).sum(0)))
    four, three = (np.minimum(255, np.round(table * BITS)).astype(np.uint8) for table in tables)
    return CharacterModel(symbol_table(alphabet), four, three, clean, slope)


@cache
def models() -> dict[str, CharacterModel]:
    """Load the models of the eight languages by ISO code: 1 s and 40 MB, once per process."""
    with safe_open(MODEL, "numpy") as file:
        settings = json.loads(file.metadata()["about"])["languages"]
        return {
            language: build_character_model(
                unpacked(file.get_tensor(language)), values["alphabet"], values["clean"], values["slope"]
            )
            for language, values in settings.items()
        }


def sample_text(text: str) -> str:
    """Return the text, or evenly spaced parts of a long one, so that the cost does not grow with the length."""
    if len(text) <= SAMPLE:
        return text
    starts = np.linspace(0, len(text) - SAMPLE // SAMPLE_PARTS, SAMPLE_PARTS).astype(int)
    return " ".join(text[start : start + SAMPLE // SAMPLE_PARTS] for start in starts)


def bits(model: CharacterModel, points: np.ndarray) -> float:
    """Return the mean surprisal in bits per character."""
    return float(model.surprise[sequences(model.symbols[points], ORDER)].mean()) / BITS


def quality(text: str, language: str) -> OcrQuality:
    """Estimate the OCR quality of a text from at most 8,192 of its characters.

    Args:
        text: A document or a page. Below some hundred characters the estimate is imprecise.
        language: ISO code of one of the eight languages.
    """
    by_language = models()
    model = by_language[language]
    text, divided = without_letter_spacing(sample_text(text), model)
    points, (prose, numbers) = codes(text), without_table_numbers(text)
    non_letters = 1 - share_of_letters(points)
    if prose != text:
        points = codes(prose)
    if len(points) < ORDER:
        return OcrQuality(float(numbers > 0), recognised=0.0, non_letters=non_letters, surprise=255 / BITS)
    head = points[: SEGMENT * MAX_SEGMENTS]
    starts = np.arange(0, max(1, len(head) - SEGMENT // 2), SEGMENT)
    costs = np.stack(
        [
            np.add.reduceat(model.recogniser[sequences(model.symbols[head], ORDER - 1)], starts, dtype=np.int32)
            for model in by_language.values()
        ]
    )
    surprise = bits(model, points)
    errors = (surprise - model.clean) / model.slope
    errors *= 1 + (DIVIDED_ERRORS - 1) * min(1.0, divided / len(points))
    correct = min(1.0, max(0.0, 1 - errors))
    correct *= min(1.0, share_of_letters(points) / PROSE_LETTERS)
    return OcrQuality(
        score=(correct * len(points) + numbers) / (len(points) + numbers),
        recognised=float((costs[list(by_language).index(language)] == costs.min(0)).mean()),
        non_letters=non_letters,
        surprise=surprise,
    )


def share_of_letters(points: np.ndarray) -> float:
    """Return the fraction of non-space characters that are letters."""
    return float(LETTER[points].sum() / max(1, (points != SPACE).sum()))


# Training -----------------------------------------------------------------------------------------


@dataclass
class OcrConfig:
    """Training data and output of the character models.

    Args:
        corpus: Folder of Parquet files with Common Corpus columns: clean text in the eight languages.
        pairs: Folder of calibration pages (columns ocr, truth, source). The documents that they were rendered from
            are excluded from training, so that the calibration is on unseen text. Default: none.
        out: Model file to write.
    """

    corpus: Path
    pairs: Path | None = None
    out: Path = MODEL


def page_sources(pairs: Path) -> set[str]:
    """Return the documents (identifiers without their part) that calibration pages were rendered from."""
    sources = set()
    for pair in read_pairs(pairs, ["source"]):
        sources.add(pair["source"].partition("text from ")[2])
    return sources - {""}


def texts(corpus: Path, language: str, excluded: set[str]) -> Iterator[tuple[str, str]]:
    """Yield role and text of the documents of a language; the role is old, modern or, for 1 in 20, anchor."""
    from ..vocabulary.piece_counts import documents

    for file in corpus_files(corpus):
        for row in documents(file):
            if row["language"] == LANGUAGES[language] and row["identifier"].partition("#part")[0] not in excluded:
                role = "old" if register(row) == "old" else "modern"
                yield "anchor" if zlib.crc32(row["identifier"].encode()) % ANCHOR_EVERY == 0 else role, row["text"]


def count(pages: Iterator[tuple[str, str]], bins: int, number: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Return role -> counts (int64) of the numbers of its texts, computed on `CHUNK` characters at a time."""
    totals, pending, size = {}, defaultdict(list), 0

    def flush() -> None:
        for role, points in pending.items():
            counts = np.bincount(number(np.concatenate(points)), minlength=bins)
            totals[role] = totals[role] + counts if role in totals else counts
        pending.clear()

    for role, text in pages:
        if role in OLD_SHARE:
            pending[role].append(codes(text))
            size += len(text)
            if size >= CHUNK:
                flush()
                size = 0
    flush()
    return totals


def weighted_sum(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the counts of old and modern text, weighted by `OLD_SHARE`."""
    sizes = {role: values.sum() / OLD_SHARE[role] for role, values in counts.items()}
    return sum(values * (max(sizes.values()) / sizes[role]) for role, values in counts.items())


def train_language(corpus: Path, language: str, excluded: set[str]) -> tuple[np.ndarray, dict]:
    """Return the packed counts of one language, and its settings: alphabet, clean, slope.

    Raises:
        InputError: If the corpus has too little text in the language.
    """
    anchors = []

    def collect_anchors() -> Iterator[tuple[str, str]]:
        for role, text in texts(corpus, language, excluded):
            if role == "anchor":
                anchors.append(text[:ANCHOR_CHARACTERS])
            yield role, text

    frequency = count(collect_anchors(), 1 << 16, lambda points: points)
    if not frequency or not anchors:
        raise InputError(f"{corpus} has too little {LANGUAGES[language]} text: pass a corpus with some MB of it.")
    common = np.argsort(-weighted_sum(frequency), kind="stable")[:ALPHABET_SIZE]
    alphabet = "".join(map(chr, sorted(common)))
    table = symbol_table(alphabet)
    counts = count(texts(corpus, language, excluded), SYMBOLS**ORDER, lambda points: sequences(table[points], ORDER))
    data = pack_counts(weighted_sum(counts))
    model = build_character_model(unpacked(data), alphabet)

    clean, noisy, wrong = [], [], []
    for i, text in enumerate(anchors[:: -(-len(anchors) // ANCHORS)]):
        page = simulate_ocr(text, ANCHOR_RATE, random.Random(f"{language} {i}"))
        clean.append(bits(model, codes(text)))
        noisy.append(bits(model, codes(page)))
        wrong.append(error_rate(page, text))
    slope = (np.mean(noisy) - np.mean(clean)) / np.mean(wrong)
    cleanest = float(np.percentile(clean, CLEAN_PERCENTILE))
    settings = {"alphabet": alphabet, "clean": round(cleanest, 4), "slope": round(float(slope), 4)}
    return data, settings | {"characters": {role: int(values.sum()) for role, values in frequency.items()}}


def error_rate(text: str, truth: str) -> float:
    """Return the character error rate: edits from text to truth per character of the truth.

    Consecutive whitespace counts as one space. The rate exceeds 1 if there are more deletions than true characters.
    """
    text, truth = " ".join(text.split()), " ".join(truth.split())
    return Levenshtein.distance(text, truth) / max(1, len(truth))


def train(config: OcrConfig) -> dict:
    """Train the eight models and write them to `config.out`; return the metadata of the file."""
    excluded = page_sources(config.pairs) if config.pairs else set()
    tensors, settings = {}, {}
    for language in LANGUAGES:
        tensors[language], settings[language] = train_language(config.corpus, language, excluded)
        print(language, settings[language], f"{tensors[language].nbytes:,} bytes", flush=True)
    about = {
        "command": shell_line(["python", *sys.orig_argv[1:]]),
        "corpus": fingerprint({file.name: sha256(file) for file in corpus_files(config.corpus)}),
        "documents_left_out": len(excluded),
        "languages": settings,
    }
    with atomic(config.out) as temporary:  # one metadata key, because the order of several differs between runs
        save_file(tensors, temporary, metadata={"about": json.dumps(about, ensure_ascii=False)})
    return about


def main() -> None:
    """Command line."""
    config = parse(OcrConfig, description="Train the character models that estimate OCR quality.")
    train(config)
    print(f"{config.out}: {config.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_main(main)
