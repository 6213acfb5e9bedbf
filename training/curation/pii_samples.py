"""Measure personal data detection on synthetic sentences, by language and type, and on clean text without any.

Faker generates the values and their check digits, with other generators than those of the replacements if it has two.
Telephone numbers that phonenumbers considers invalid are generated again.
"""

import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import phonenumbers
import yaml

from ..common.normalization import normalize
from .pii import candidate_spans, faker, searched_text
from .pii_recognizers import PiiMatch, find

SENTENCES = Path(__file__).with_suffix(".yaml")
SENTENCE_COUNT = 2000  # per language
GROUPED = {"IBAN_CODE", "CREDIT_CARD"}  # half of them are written in groups of four
HARD = 0.25  # share of the sentences in which no word identifies the number
CLEAN_TOKENS = 3000  # per language and kind of clean text
CLEAN_LINES = (1, 2, 12)  # of one form in succession: a table, or a line of prose


def random_value(generator: str, kind: str, draw: random.Random) -> str:
    """Generate a valid value of a type."""
    locale, _, method = generator.partition(".")
    fake, value = faker(locale), ""
    while not is_valid(value, kind, locale[-2:]):
        fake.seed_instance(draw.getrandbits(64))
        value = getattr(fake, method)()
    if kind in GROUPED and draw.random() < 0.5:
        value = " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return value


def is_valid(value: str, kind: str, region: str) -> bool:
    """Return whether a value of Faker can exist: it does not know dialling codes, and has cards of unusual lengths."""
    if kind == "CREDIT_CARD":
        return len(value) == 16 and value[0] in "45"
    if kind == "PHONE_NUMBER":
        try:
            return "x" not in value and phonenumbers.is_valid_number(phonenumbers.parse(value, region))
        except phonenumbers.NumberParseException:
            return False
    return value != ""


def samples(language: str, *, count: int, seed: int) -> Iterator[tuple[str, list[PiiMatch]]]:
    """Yield sentences and the values in them; half contain one value, half none."""
    templates = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    sentences, hard = templates[language], templates["hard"]
    draw = random.Random(f"{seed} {language}")
    for i in range(count):
        bare = draw.random() < HARD
        if i % 2:
            fake = faker("en_US")
            fake.seed_instance(draw.getrandbits(64))
            yield fake.numerify(draw.choice((hard if bare else sentences)["without"])), []
            continue
        kind = draw.choice(sorted(sentences["with"]))
        value = random_value(draw.choice(sentences["values"][kind]), kind, draw)
        before, _, after = draw.choice(hard["with"] if bare else sentences["with"][kind]).partition("{}")
        yield before + value + after, [PiiMatch(len(before), len(before) + len(value), kind)]


def clean_text(kind: str, *, tokens: int, seed: str) -> str:
    """Return text without personal data: tables, catalogues, laws, source code or old print."""
    templates = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))["clean"][kind]
    draw = random.Random(f"{seed} {kind}")
    symbols = {"#": string.digits, "%": string.digits[1:], "^": string.ascii_uppercase}
    blocks, count = [], 0
    while count < tokens:
        template, first, step = draw.choice(templates), draw.randrange(1500, 2000), draw.choice((1, 1, 2, 5, 10))
        lines = []
        for _ in range(draw.choice(CLEAN_LINES)):
            line = template.format(*range(first, first + 6 * step, step))
            lines.append(re.sub("[#%^]", lambda match: draw.choice(symbols[match[0]]), line))
            count += len(lines[-1].split())
            first += draw.choice((0, step))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def count_values(text: str, language: str, *, surroundings: bool) -> int:
    """Return the number of values that are detected in a text, with or without the checks of their surroundings."""
    source = searched_text(normalize(text))
    return sum(len(find(source, language, *span, surroundings=surroundings)) for span in candidate_spans(source))


def measure_clean_text(languages: list[str], *, tokens: int = CLEAN_TOKENS, seed: int = 0) -> dict:
    """Return kind of clean text -> tokens, and the false values `unchecked` and `checked` by their surroundings."""
    result = {}
    for kind in yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))["clean"]:
        counts = Counter()
        for language in languages:
            text = clean_text(kind, tokens=tokens, seed=f"{seed} {language}")
            counts["tokens"] += len(text.split())
            counts["unchecked"] += count_values(text, language, surroundings=False)
            counts["checked"] += count_values(text, language, surroundings=True)
        result[kind] = dict(counts)
    return result


def measure_detection(languages: list[str], *, count: int = SENTENCE_COUNT, seed: int = 0) -> dict:
    """Return language -> type (and `all`) -> found, missed, false (numbers), precision and recall.

    A value is found if its type, first and last character are correct.

    Args:
        languages: ISO codes.
        count: Number of sentences per language.
        seed: Seed of the sentences.
    """
    result = {}
    for language in languages:
        counts: dict[str, Counter] = defaultdict(Counter)
        for text, values in samples(language, count=count, seed=seed):
            true = set(values)
            detected = {value for span in candidate_spans(text) for value in find(text, language, *span)}
            for value in true | detected:
                outcome = "missed" if value not in detected else "found" if value in true else "false"
                counts[value.kind][outcome] += 1
                counts["all"][outcome] += 1
        result[language] = {kind: rates(outcomes) for kind, outcomes in sorted(counts.items())}
    return result


def rates(counts: Counter) -> dict:
    """Return the counts with precision and recall, which are None if undefined."""
    true, missed, false = (counts[name] for name in ("found", "missed", "false"))
    return {
        "found": true,
        "missed": missed,
        "false": false,
        "precision": true / (true + false) if true + false else None,
        "recall": true / (true + missed) if true + missed else None,
    }
