"""How well personal data is found: precision and recall on sentences that are made from a seed, per language and kind.

The values come from Faker's own generators (other ones than the replacements are made with, wherever it has two), the
check digits from its arithmetic; telephone numbers that phonenumbers holds for impossible are drawn again.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import phonenumbers
import yaml

from .pii import faker, stretches
from .recognisers import Found, find

SENTENCES = Path(__file__).with_suffix(".yaml")
GROUPED = {"IBAN_CODE", "CREDIT_CARD"}  # written in fours half of the time
HARD = 0.25  # share of the sentences in which no word tells what a number is, or that it is no one's


def drawn(generator: str, kind: str, draw: random.Random) -> str:
    """A value of a kind."""
    locale, _, method = generator.partition(".")
    fake, value = faker(locale), ""
    while not possible(value, kind, locale[-2:]):
        fake.seed_instance(draw.getrandbits(64))
        value = getattr(fake, method)()
    if kind in GROUPED and draw.random() < 0.5:
        value = " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return value


def possible(value: str, kind: str, region: str) -> bool:
    """Whether Faker drew what can exist: it knows no dialling codes, and has cards of odd lengths."""
    if kind == "CREDIT_CARD":
        return len(value) == 16 and value[0] in "45"
    if kind == "PHONE_NUMBER":
        try:
            return "x" not in value and phonenumbers.is_valid_number(phonenumbers.parse(value, region))
        except phonenumbers.NumberParseException:
            return False
    return value != ""


def samples(language: str, *, count: int, seed: int) -> Iterator[tuple[str, list[Found]]]:
    """Sentences, as many with one value as without any, and what is to be found in each."""
    everything = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    sentences, hard = everything[language], everything["hard"]
    draw = random.Random(f"{seed} {language}")
    for i in range(count):
        bare = draw.random() < HARD
        if i % 2:
            fake = faker("en_US")
            fake.seed_instance(draw.getrandbits(64))
            yield fake.numerify(draw.choice((hard if bare else sentences)["without"])), []
            continue
        kind = draw.choice(sorted(sentences["with"]))
        value = drawn(draw.choice(sentences["values"][kind]), kind, draw)
        before, _, after = draw.choice(hard["with"] if bare else sentences["with"][kind]).partition("{}")
        yield before + value + after, [Found(len(before), len(before) + len(value), kind)]


def measure(languages: list[str], *, count: int = 2000, seed: int = 0) -> dict:
    """Language -> kind (and `all`) -> found, missed, false (numbers), precision and recall.

    A value counts as found when its kind, first and last character are right.

    Args:
        languages: ISO codes.
        count: sentences in each.
        seed: of the sentences.
    """
    result = {}
    for language in languages:
        counts: dict[str, Counter] = defaultdict(Counter)
        for text, wanted in samples(language, count=count, seed=seed):
            got = [value for start, end in stretches(text) for value in find(text, language, start, end)]
            for outcome, values in (
                ("found", set(wanted) & set(got)),
                ("missed", set(wanted) - set(got)),
                ("false", set(got) - set(wanted)),
            ):
                for value in values:
                    counts[value.kind][outcome] += 1
                    counts["all"][outcome] += 1
        result[language] = {kind: rates(of) for kind, of in sorted(counts.items())}
    return result


def rates(counts: Counter) -> dict:
    """Counts of found, missed and false, with precision and recall (None where nothing was found or wanted)."""
    found, missed, false = (counts[name] for name in ("found", "missed", "false"))
    return {
        "found": found,
        "missed": missed,
        "false": false,
        "precision": found / (found + false) if found + false else None,
        "recall": found / (found + missed) if found + missed else None,
    }
