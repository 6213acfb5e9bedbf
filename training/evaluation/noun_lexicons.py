"""Nouns with their gender and forms, read from lexicons in packages: Apertium, german-nouns and Whitaker's Words.

A reader takes a file and yields one noun at a time as {cell: form}. A cell is gender (m, f, n, or c for the Dutch
common gender; none in English), number (s, p) and, in Latin, case (n, a, b for the ablative): "fp", "p", "msb". A noun
is not used if the lexicon knows another reading of one of its forms, because a wrong sentence might then be right.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from ..common.config import InputError

LONGEST = 15  # letters of a form; an analyser also has endless compounds

# Apertium -----------------------------------------------------------------------------------------

GENDERS = {"m": "m", "f": "f", "nt": "n"}
DUTCH = {"m": "c", "f": "c", "mf": "c", "ut": "c", "nt": "n"}
MOST_TAGS = 9
PARTS = {"compound-R", "compound-only-L", "cmp"}  # readings as a part of compounds


def apertium(file: Path) -> Iterator[dict[str, str]]:
    """Read the nouns of a morphological analyser (automorf.bin)."""
    genders = DUTCH if file.name.startswith("nld") else GENDERS
    nouns, double = defaultdict(dict), set()
    for form, readings in _readings(file).items():
        if len(readings) > 1:
            double.update(lemma for lemma, _ in readings)
            continue
        ((lemma, tags),) = readings
        if tags[:1] != ("n",) or tags[-1] not in ("sg", "pl") or len(tags) > 3:
            continue
        if len(tags) == 3 and tags[1] not in genders:
            continue
        cell = (genders[tags[1]] if len(tags) == 3 else "") + tags[-1][0]
        if cell in nouns[lemma, tags[1:-1]]:
            double.add(lemma)
        nouns[lemma, tags[1:-1]][cell] = form
    yield from (forms for (lemma, _), forms in nouns.items() if lemma not in double)


def _readings(file: Path) -> dict[str, set[tuple[str, tuple[str, ...]]]]:
    """Return form -> its readings as (lemma, tags), of a transducer in the format of lttoolbox."""
    data = file.read_bytes()
    if data[:12] != b"LTTB" + bytes(8):
        raise InputError(f"{file.name} is not a transducer of lttoolbox without weights: use another package.")
    numbers = _numbers(data, 12)

    def text() -> str:
        return "".join(chr(next(numbers)) for _ in range(next(numbers)))

    text()  # the letters
    symbols = [text() for _ in range(next(numbers))]
    # A pair is (input, output): 0 is nothing, a positive number a letter, a negative one a symbol.
    shift = len(symbols)
    pairs = [(next(numbers) - shift, next(numbers) - shift) for _ in range(next(numbers))]
    arcs = [(chr(a) if a > 0 else "", chr(b) if b > 0 else "", symbols[-b - 1] if b < 0 else "") for a, b in pairs]
    readable = [a == 0 or (a > 0 and chr(a).isalpha()) for a, _ in pairs]
    readings = defaultdict(set)
    for _ in range(next(numbers)):
        name, (start, final, states) = text(), _transducer(numbers)
        todo = [(start, "", "", ())] if name.startswith("main") else []
        while todo:
            state, form, lemma, tags = todo.pop()
            if state in final and not PARTS.intersection(tags):
                readings[form].add((lemma, tags))
            for arc, target in states[state]:
                letter, output, tag = arcs[arc]
                short = len(form + letter) <= LONGEST and len(lemma + output) <= LONGEST and len(tags) < MOST_TAGS
                if short and readable[arc]:
                    todo.append((target, form + letter, lemma + output, (*tags, tag.strip("<>")) if tag else tags))
    return readings


def _numbers(data: bytes, start: int) -> Iterator[int]:
    """Yield numbers of 6 to 30 bits: the first two bits of each are the number of bytes that follow the first.

    A transducer begins with the bytes LTTD and eight zeros, for the features that it does not use.
    """
    i = start
    while i < len(data):
        if data[i : i + 12] == b"LTTD" + bytes(8):
            i += 12
        size = data[i] >> 6
        yield int.from_bytes(bytes([data[i] & 0x3F]) + data[i + 1 : i + 1 + size], "big")
        i += 1 + size


def _transducer(numbers: Iterator[int]) -> tuple[int, set[int], list[list[tuple[int, int]]]]:
    """Return first state, final states, and the (pair, target) of every state; most are stored as differences."""
    start, final, last = next(numbers), set(), 0
    for _ in range(next(numbers)):
        last += next(numbers)
        final.add(last)
    states, total = [], next(numbers)
    for state in range(total):
        pair, arcs = 0, []
        for _ in range(next(numbers)):
            pair += next(numbers)
            arcs.append((pair, (state + next(numbers)) % total))
        states.append(arcs)
    return start, final, states


# german-nouns -------------------------------------------------------------------------------------

CASES = ("nominativ", "dativ", "akkusativ")


def german_nouns(file: Path) -> Iterator[dict[str, str]]:
    """Read nouns whose cases differ at most in the dative plural, from the table of German Wiktionary."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["pos"] == "Substantiv"]
    lemmas = defaultdict(set)
    for row in rows:
        for form in {value for name, value in row.items() if name.startswith(CASES) and value}:
            lemmas[form].add((row["lemma"], row["genus"]))
    for row in rows:
        singular, plural = ({row[f"{case} {number}"] for case in CASES} for number in ("singular", "plural"))
        forms = singular | plural
        plural.discard(row["dativ plural"])
        if not row["genus"] or "" in forms or len(singular) != 1 or len(plural) > 1 or singular & plural:
            continue
        if row["dativ plural"] in singular or any(len(lemmas[form]) > 1 for form in forms):
            continue
        many = row["nominativ plural"]
        yield {row["genus"] + "s": row["nominativ singular"], row["genus"] + "p": many}


# Whitaker's Words ---------------------------------------------------------------------------------

STEM = 19  # columns of each of the four stems of a line
FREQUENT = "AB"
# (declension, variant, gender) -> cell -> ending, without the cells that look like another one.
ENDINGS = {
    ("1", "1", "F"): {"fsn": "a", "fsa": "am", "fpa": "as"},
    ("2", "1", "M"): {"msn": "us", "msa": "um", "msb": "o", "mpn": "i", "mpa": "os", "mpb": "is"},
    ("2", "2", "N"): {"nsn": "um", "nsb": "o", "npn": "a", "npb": "is"},
}


def whitakers_words(file: Path) -> Iterator[dict[str, str]]:
    """Read the frequent nouns of the first and second declension whose stem is no other noun or adjective."""
    stems, frequent = defaultdict(int), []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        stem, (part, *codes) = line[:STEM].strip(), line[4 * STEM :].split()[:9] or [""]
        if part in ("N", "ADJ"):
            stems[stem] += 1
        if part == "N" and tuple(codes[:3]) in ENDINGS and codes[7] in FREQUENT and stem.islower():
            frequent.append((stem, ENDINGS[tuple(codes[:3])]))
    for stem, endings in frequent:
        if stems[stem] == 1:
            yield {cell: stem + ending for cell, ending in endings.items()}


LEXICONS: dict[str, Callable[[Path], Iterator[dict[str, str]]]] = {
    "apertium": apertium,
    "german_nouns": german_nouns,
    "whitakers_words": whitakers_words,
}
