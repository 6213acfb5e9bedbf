"""Simulate historical typography and OCR errors on clean text: seeded, with the error rates below."""

import random
import re
from collections.abc import Iterable

# Kinds of pages: (share, historical typography, OCR errors).
PAGES = ((0.25, True, False), (0.20, True, True), (0.40, False, True), (0.15, False, False))
WRAPPED = 0.75  # share of the pages with line breaks
ERROR_RATES = (0.02, 0.04, 0.08)  # character error rates of OCR pages; one is sampled per document

# OCR confusions of characters, most frequent first: the probability decreases along the list. Taken from alignments of
# scans with their transcriptions.
CONFUSIONS = {
    "rn": ("m",), "ch": ("d",), "ck": ("d",), "tz": ("g",), "ll": ("U",), "in": ("m",), "li": ("h",), "cl": ("d",),
    "nn": ("im",), "ſſ": ("ff",), " ": ("", ". ", "-", " - ", " '"), ",": (".", ";", ""), ".": (",", ":", ""),
    "-": ("", " ", "— "), "'": ("’", "", '"'), "a": ("o", "á", "à", "e", "ä"), "b": ("h", "6"), "c": ("e", "o", "t"),
    "d": ("b", "o", "cl"), "e": ("é", "c", "o", "a"), "f": ("t", ""), "g": ("9", "q"), "h": ("b", "li"),
    "i": ("t", "l", "", "1"), "k": ("f", "h"), "l": ("i", "t", "f", "1"), "m": ("in", "rn", "ni"),
    "n": ("ri", "m", "u", "h"), "o": ("a", "e", "c", "0"), "p": ("y",), "r": ("t", "v", "n"), "s": ("f", "a", "S"),
    "t": ("r", "l", "i", "f"), "u": ("ü", "n", "i", "w"), "v": ("b", "r"), "y": ("p", "v"), "ſ": ("f", "j", "l"),
    "ä": ("a",), "é": ("e", "ó"), "è": ("é", "e"), "í": ("i",), "ö": ("o",), "ü": ("u", "ii"), "B": ("V",),
    "E": ("S", "F"), "G": ("W", "C"), "H": ("D", "R"), "I": ("1", "l"), "S": ("E", "8"), "T": ("Z",), "D": ("O",),
}  # fmt: skip

# Systematic errors of OCR models trained on Roman type when they read blackletter: (right, wrong, probability).
BLACKLETTER = (
    ("ch", "h", 0.15),
    ("ch", "d", 0.10),
    ("d", "b", 0.15),
    ("h", "b", 0.10),
    ("k", "f", 0.30),
    ("ſ", "j", 0.10),
)
# Confusions that recur on a page besides those of letters: capital I, and marks at the end of a sentence.
HABITUAL = (("I", "1"), ("I", "|"), ("!", "l"), ("!", " 1"), ("!", "t"), ("!", " t"), ("?", "2"), ("?", " 1"))
HABITS = (1, 4)  # minimum and maximum number of confusions that recur on a page
HABIT_SHARE = (0.03, 0.35)  # of the places where one can occur
SPECKS = (".", " ", ":", "i", "-", "'", "‘", "_ ", "| ", "© ")  # recognised where nothing is printed

LETTER = r"[^\W\d_]"
LONG_S = re.compile(rf"s(?={LETTER})")
LINE = re.compile(rf"([^\n]{{50,70}}?)(?: |(?<={LETTER}{LETTER}{LETTER})(?={LETTER}{{3}}))")
OLD_VOWELS = str.maketrans({"ä": "aͤ", "ö": "oͤ", "ü": "uͤ", "Ä": "Aͤ", "Ö": "Oͤ", "Ü": "Uͤ"})
LIGATURES = (("ffi", "ﬃ"), ("ffl", "ﬄ"), ("fi", "ﬁ"), ("fl", "ﬂ"), ("ff", "ﬀ"), ("ae", "æ"), ("oe", "œ"))


def historical_typography(text: str, draw: random.Random) -> str:
    """Set a text in old type: long s inside words; at random u for v, i for j, e above vowels, ligatures, tildes."""
    text = LONG_S.sub("ſ", text)
    if draw.random() < 0.3:
        text = re.sub(rf"\bu(?={LETTER})", "v", re.sub(rf"(?<={LETTER})v", "u", text)).replace("j", "i")
    if draw.random() < 0.5:
        text = text.translate(OLD_VOWELS)
    if draw.random() < 0.2:
        for letters, ligature in LIGATURES:
            text = text.replace(letters, ligature)
    if draw.random() < 0.1:
        text = re.sub(r"([aeiou])[mn](?=[bcdfgpqtſ])", "\\1\u0303", text)
    return text


def wrap_lines(text: str, draw: random.Random) -> str:
    """Break a text into lines of 50 to 70 characters, as on a page; words are hyphenated with a hyphen or `¬`."""
    hyphen = draw.choice(("-", "-", "¬"))
    return LINE.sub(lambda line: f"{line[1]}\n" if line[0].endswith(" ") else f"{line[1]}{hyphen}\n", text)


def simulate_ocr(text: str, rate: float, draw: random.Random, *, blackletter: bool = False) -> str:
    """Confuse, delete or insert about `rate` of the characters, as OCR does; long s is mostly read as f."""
    if blackletter:
        text = _confuse(text, BLACKLETTER, draw)
    if draw.random() < 0.8:
        text = text.replace("ſ", "f")
    out, at = [], 0
    while True:
        error = at + int(draw.expovariate(rate))
        out.append(text[at:error])
        if error >= len(text):
            return "".join(out)
        for length in (2, 1):
            options = CONFUSIONS.get(text[error : error + length])
            if options:
                out.append(options[int(len(options) * draw.random() ** 2)])
                at = error + length
                break
        else:
            out.append(draw.choice(SPECKS))
            at = error


def recurring_confusions(text: str, draw: random.Random) -> str:
    """Confuse characters as an OCR engine does that misreads one typeface: few confusions, each of them often."""
    letters = [(right, wrong) for right, wrongs in CONFUSIONS.items() if right.isalpha() for wrong in wrongs if wrong]
    habits = draw.sample(letters, draw.randint(*HABITS)) + draw.sample(HABITUAL, 2)
    return _confuse(text, [(*habit, draw.uniform(*HABIT_SHARE)) for habit in habits], draw)


def _confuse(text: str, confusions: Iterable[tuple[str, str, float]], draw: random.Random) -> str:
    for right, wrong, share in confusions:
        parts = text.split(right)
        joints = (wrong if draw.random() < share else right for _ in parts[1:])
        text = parts[0] + "".join(joint + part for joint, part in zip(joints, parts[1:], strict=True))
    return text


def simulate_page(text: str, *, seed: str, blackletter: bool = False) -> str:
    """Simulate a page of a kind in PAGES from a text; the same seed results in the same page.

    Args:
        text: Clean text.
        seed: Seed of the kind of page and of every error.
        blackletter: Old pages in the text's language were set in blackletter (German).
    """
    draw = random.Random(seed)
    _, old, recognised = draw.choices(PAGES, weights=[share for share, _, _ in PAGES])[0]
    if old:
        text = historical_typography(text, draw)
    if draw.random() < WRAPPED:
        text = wrap_lines(text, draw)
    if recognised:
        text = simulate_ocr(
            text, draw.choice(ERROR_RATES), draw, blackletter=old and blackletter and draw.random() < 0.7
        )
    return text
