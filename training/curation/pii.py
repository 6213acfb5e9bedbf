"""Personal data in a text, replaced by fictitious values of the same form: never a mask, so that the text reads on.

What is found: see `recognisers`. The same value gets the same replacement throughout a document, and another one in
another document. Nothing else in the text changes.
"""

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from faker import Faker

logging.getLogger("presidio-analyzer").setLevel(logging.CRITICAL)  # before its import, which reports a device

# Where a value can be: an at sign, seven digits with little between them, and the few things that have fewer.
CANDIDATE = re.compile(
    r"@|\d(?<!\d\d)(?:"  # at the first digit of a row
    r"(?:[ .\-/()\xa0]{0,2}\d){6}"
    r"|\d{0,2}(?:\.\d{1,3}){3}"  # addresses
    r"|\d ?\d\d ?\d\d ?[A-D]\b"  # British numbers
    r"|\d[A-Z]\d\d[A-Z]\d{3})"  # Italian ones
)
COLONS = re.compile(r":[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:")  # addresses of the long kind
AROUND = 80  # characters that a value may reach beyond what its candidate is found by
TRIES = 10_000  # for a value; the rarest right form comes up once in some hundreds

LOCALES = {
    "en": "en_US",
    "fr": "fr_FR",
    "es": "es_ES",
    "de": "de_DE",
    "it": "it_IT",
    "nl": "nl_NL",
    "la": "it_IT",
    "pt": "pt_PT",
}
# Numbers that Faker makes whole, check digits included: locale, and the name of its method there.
MADE = {
    "FR_SOCIAL_SECURITY": ("fr_FR", "ssn"),
    "BE_NATIONAL_NUMBER": ("nl_BE", "ssn"),
    "DE_SOCIAL_SECURITY": ("de_DE", "rvnr"),
    "IT_FISCAL_CODE": ("it_IT", "ssn"),
    "BR_CPF": ("pt_BR", "ssn"),
}


class Replacement(NamedTuple):
    """A text without personal data."""

    text: str
    found: dict[str, int]  # Presidio's name of the entity -> how many were replaced


@cache
def faker(locale: str) -> Faker:
    """Faker's values of a country; seeded before each use."""
    return Faker(locale)


def stretches(text: str) -> Iterator[tuple[int, int]]:
    """Stretches of a text, in order and apart, in which values may stand."""
    spans = [match.span() for match in CANDIDATE.finditer(text)]
    spans = sorted(spans + [match.span() for match in COLONS.finditer(text)])
    start, end = 0, -1
    for first, last in spans:
        if first - AROUND > end:
            if end > 0:
                yield start, end
            start = max(0, first - AROUND)
        end = min(len(text), max(end, last + AROUND))
    if end > 0:
        yield start, end


def replace(text: str, language: str, *, seed: str | int) -> Replacement:
    """A text with its personal data replaced: e-mail, telephone, IBAN, card, IP address and national numbers.

    Args:
        text: a document.
        language: ISO code of one of the eight; decides whose national numbers are looked for.
        seed: of the fictitious values, such as the document's identifier.
    """
    spans = list(stretches(text))
    if not spans:
        return Replacement(text, {})
    from .recognisers import find, kinds  # seconds to import, which text without candidates need not spend

    accepts = {kind.name: kind.accepts for kind in kinds(language)}
    parts, at, found = [], 0, Counter()
    for start, end in spans:
        for value in find(text, language, start, end):
            parts += [
                text[at : value.start],
                fictitious(text[value.start : value.end], value.kind, language, seed, accepts[value.kind]),
            ]
            at = value.end
            found[value.kind] += 1
    return Replacement("".join([*parts, text[at:]]), dict(found))


def fictitious(value: str, kind: str, language: str, seed: str | int, accepts: Callable[[str], bool]) -> str:
    """Another value of a kind, written in the same way; the same for every spelling of a value.

    Args:
        value: as it stands in the text.
        kind: Presidio's name of the entity.
        language: of the text.
        seed: of the document.
        accepts: whether the recogniser that found the value takes another one as well.
    """
    bare = re.sub(r"[^\w+:.@]" if kind in ("EMAIL_ADDRESS", "IP_ADDRESS") else r"[^\w+]", "", value).lower()
    locale, method = MADE.get(kind, (LOCALES[language], ""))
    fake = faker(locale)
    fake.seed_instance(f"{seed} {kind} {bare}")
    if kind == "EMAIL_ADDRESS":
        return fake.ascii_safe_email()
    for _ in range(TRIES):
        if kind == "IP_ADDRESS":
            other = f"2001:{fake.ipv6().partition(':')[2]}" if ":" in value else fake.ipv4_public()
        elif method:
            other = laid(getattr(fake, method)(), value)
        else:
            other = laid(fake.bothify(pattern(bare.upper(), kind), letters=string.ascii_uppercase), value)
        if other != value and accepts(other):
            break
    return other


def pattern(bare: str, kind: str) -> str:
    """What of a value is drawn anew, as Faker writes it: `#` a digit, `?` a letter."""
    if kind == "IBAN_CODE":  # country and bank stay
        return bare[:2] + re.sub(r"\d", "#", bare[2:])
    if kind == "PHONE_NUMBER":  # country and area stay
        return bare[:-7] + re.sub(r"\d", "#", bare[-7:])
    stays = bare[:1] if kind == "CREDIT_CARD" else ""
    return stays + re.sub(r"[A-Z]", "?", re.sub(r"\d", "#", bare[len(stays) :]))


def laid(bare: str, value: str) -> str:
    """The letters and digits of one string in the places of another's."""
    signs = iter(re.sub(r"\W", "", bare))
    return "".join(next(signs, "") if sign.isalnum() else sign for sign in value)
