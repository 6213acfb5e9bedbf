"""Make clean text look like old print, and like what a machine reads off paper: seeded, rates written here."""

import random
import re

# How often which kind of page is drawn: (share, set in old type, read by a machine).
PAGES = ((0.25, True, False), (0.20, True, True), (0.40, False, True), (0.15, False, False))
WRAPPED = 0.75  # share of the pages that keep their lines
ERROR_RATES = (0.02, 0.04, 0.08)  # characters misread on a read page, one of these per document

# What machines make of a sign, most frequent first: a confusion's chance falls with its place in the list. Read off
# alignments of scans with their transcriptions.
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

# Machines that learned Roman type read blackletter wrongly in the same way again and again: (right, wrong, how often).
BLACKLETTER = (
    ("ch", "h", 0.15),
    ("ch", "d", 0.10),
    ("d", "b", 0.15),
    ("h", "b", 0.10),
    ("k", "f", 0.30),
    ("ſ", "j", 0.10),
)
SPECKS = (".", " ", ":", "i", "-", "'", "‘", "_ ", "| ", "© ")  # what is read where nothing stands

LETTER = r"[^\W\d_]"
LONG_S = re.compile(rf"s(?={LETTER})")
LINE = re.compile(rf"([^\n]{{50,70}}?)(?: |(?<={LETTER}{LETTER}{LETTER})(?={LETTER}{{3}}))")
OLD_VOWELS = str.maketrans({"ä": "aͤ", "ö": "oͤ", "ü": "uͤ", "Ä": "Aͤ", "Ö": "Oͤ", "Ü": "Uͤ"})
LIGATURES = (("ffi", "ﬃ"), ("ffl", "ﬄ"), ("fi", "ﬁ"), ("fl", "ﬂ"), ("ff", "ﬀ"), ("ae", "æ"), ("oe", "œ"))


def printed(text: str, draw: random.Random) -> str:
    """Old type: long s except at a word's end; by chance u for v, i for j, e above the vowel, ligatures, tildes."""
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


def wrapped(text: str, draw: random.Random) -> str:
    """Lines of 50 to 70 characters, as on the page; words are broken with a hyphen or `¬`."""
    hyphen = draw.choice(("-", "-", "¬"))
    return LINE.sub(lambda line: f"{line[1]}\n" if line[0].endswith(" ") else f"{line[1]}{hyphen}\n", text)


def read(text: str, rate: float, draw: random.Random, *, blackletter: bool = False) -> str:
    """What a machine reads: about `rate` of the characters confused, lost or made up; long s mostly read as f."""
    if blackletter:
        for right, wrong, share in BLACKLETTER:
            parts = text.split(right)
            joints = (wrong if draw.random() < share else right for _ in parts[1:])
            text = parts[0] + "".join(joint + part for joint, part in zip(joints, parts[1:], strict=True))
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


def aged(text: str, *, seed: str, blackletter: bool = False) -> str:
    """A text as an old page, a machine's reading of a page, or its lines alone; the same seed gives the same page.

    Args:
        text: clean text.
        seed: decides which kind of page, and every error.
        blackletter: whether old pages in the text's language were set in it (German).
    """
    draw = random.Random(seed)
    _, old, by_machine = draw.choices(PAGES, weights=[share for share, _, _ in PAGES])[0]
    if old:
        text = printed(text, draw)
    if draw.random() < WRAPPED:
        text = wrapped(text, draw)
    if by_machine:
        text = read(text, draw.choice(ERROR_RATES), draw, blackletter=old and blackletter and draw.random() < 0.7)
    return text
