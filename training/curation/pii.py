"""Replace personal data with fictitious values of the same form instead of a mask, so that the text stays readable.

`recognisers` detects the values. All occurrences of a value in a document get the same replacement, which differs
between documents. Nothing else in the text changes.
"""

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from faker import Faker

from ..common.language import LANGUAGES
from ..common.normalization import NormalizedText, normalize

logging.getLogger("presidio-analyzer").setLevel(logging.CRITICAL)  # before its import, which reports a device

# Indications of a value: an at sign, seven digits with few other characters between them, and forms with fewer digits.
CANDIDATE = re.compile(
    r"@|\d(?<!\d\d)(?:"  # at the first of consecutive digits
    r"(?:[ .\-/()]{0,2}\d){6}"
    r"|\d{0,2}(?:\.\d{1,3}){3}"  # IPv4 addresses
    r"|\d ?\d\d ?\d\d ?[A-D]\b"  # UK_NINO
    r"|\d[A-Z]\d\d[A-Z]\d{3})"  # IT_FISCAL_CODE
)
COLONS = re.compile(r":[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:")  # IPv6 addresses
CONTEXT = 80  # characters that a value may extend beyond the match of CANDIDATE or COLONS
FREE_FORM = ("EMAIL_ADDRESS", "IP_ADDRESS")  # replaced without the digits and separators of the value
# Characters searched at a time, because the pattern of e-mail addresses takes the square of them. Longer spans, as in
# telephone directories, are split at the last place of the first kind in their second half. No value has a line end.
MAX_SPAN = 2_000
SPLITS = [re.compile(place) for place in (r"\n", r"(?<=[a-z]{3})\s|[,;|]\s", r"\s")]
MAX_TRIES = 10_000  # for a valid value; the rarest form takes some hundreds

LOCALES = {code: f"{code}_{code.upper()}" for code in LANGUAGES} | {"en": "en_US", "la": "it_IT"}
# Numbers that Faker generates with valid check digits: locale and method.
FAKER_METHODS = {
    "FR_SOCIAL_SECURITY": ("fr_FR", "ssn"),
    "BE_NATIONAL_NUMBER": ("nl_BE", "ssn"),
    "DE_SOCIAL_SECURITY": ("de_DE", "rvnr"),
    "IT_FISCAL_CODE": ("it_IT", "ssn"),
    "BR_CPF": ("pt_BR", "ssn"),
}


class Replacement(NamedTuple):
    """A text without personal data, and the number of replacements."""

    text: str
    counts: dict[str, int]  # by Presidio entity


@cache
def faker(locale: str) -> Faker:
    """Return the generator of a locale; seed it before each use."""
    return Faker(locale)


def candidate_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of a text that may contain values, in order, without overlaps, of at most `MAX_SPAN`."""
    for start, end in _merged_spans(text):
        while end - start > MAX_SPAN:
            low, high = start + MAX_SPAN // 2, start + MAX_SPAN
            ends = next(
                filter(None, ([place.end() for place in kind.finditer(text, low, high)] for kind in SPLITS)), [high]
            )
            yield start, ends[-1]
            start = ends[-1]
        yield start, end


def _merged_spans(text: str) -> Iterator[tuple[int, int]]:
    spans = [match.span() for match in CANDIDATE.finditer(text)]
    spans = sorted(spans + [match.span() for match in COLONS.finditer(text)])
    start, end = 0, -1
    for first, last in spans:
        if first - CONTEXT > end:
            if end > 0:
                yield start, end
            start = max(0, first - CONTEXT)
        end = min(len(text), max(end, last + CONTEXT))
    if end > 0:
        yield start, end


def searched_text(view: NormalizedText) -> str:
    """Return the text in which values are detected, of the length of a normalised view."""
    return view.text.replace("\u2013", "-")  # the dash of typesetters between numbers


def replace(text: str, language: str, *, seed: str | int) -> Replacement:
    """Replace e-mail addresses, telephone numbers, IBANs, card numbers, IP addresses and national numbers.

    Args:
        text: Text of a document.
        language: ISO code of one of the eight languages; decides which countries' national numbers are detected.
        seed: Seed of the fictitious values, such as the document's identifier.
    """
    view = normalize(text)
    source = searched_text(view)
    spans = list(candidate_spans(source))
    if not spans:
        return Replacement(text, {})
    from .pii_recognizers import find, kinds  # lazy import: takes seconds

    accepts = {kind.name: kind.accepts for kind in kinds(language)}
    parts, at, counts = [], 0, Counter()
    for start, end in spans:
        for value in find(source, language, start, end):
            original, span = source[value.start : value.end], view.span(value.start, value.end)
            other = fake_value(original, value.kind, language, seed, accepts[value.kind])
            if original != text[span] and value.kind not in FREE_FORM:
                other = apply_format(other, text[span])
            parts += [text[at : span.start], other]
            at = span.stop
            counts[value.kind] += 1
    return Replacement("".join([*parts, text[at:]]), dict(counts))


def fake_value(value: str, kind: str, language: str, seed: str | int, accepts: Callable[[str], bool]) -> str:
    """Return another value of a type in the same format; it does not depend on the separators in the value.

    Args:
        value: Value in the text.
        kind: Presidio entity.
        language: ISO code of the text.
        seed: Seed of the document.
        accepts: Returns whether the recogniser of the value also accepts another one.
    """
    bare = re.sub(r"[^\w+:.@]" if kind in FREE_FORM else r"[^\w+]", "", value).lower()
    locale, method = FAKER_METHODS.get(kind, (LOCALES[language], ""))
    fake = faker(locale)
    fake.seed_instance(f"{seed} {kind} {bare}")
    if kind == "EMAIL_ADDRESS":
        return fake.ascii_safe_email()
    for _ in range(MAX_TRIES):
        if kind == "IP_ADDRESS":
            other = f"2001:{fake.ipv6().partition(':')[2]}" if ":" in value else fake.ipv4_public()
        elif method:
            other = apply_format(getattr(fake, method)(), value)
        else:
            other = fake.bothify(pattern(bare.upper(), kind), letters=string.ascii_uppercase)
            other = apply_format(other, value)
        if other != value and accepts(other):
            break
    return other


def pattern(bare: str, kind: str) -> str:
    """Return Faker's pattern of the replacement: `#` is a random digit, `?` a random letter."""
    if kind == "IBAN_CODE":  # keep country and bank
        return bare[:2] + re.sub(r"\d", "#", bare[2:])
    if kind == "PHONE_NUMBER":  # keep country and area
        return bare[:-7] + re.sub(r"\d", "#", bare[-7:])
    prefix = bare[:1] if kind == "CREDIT_CARD" else ""
    return prefix + re.sub(r"[A-Z]", "?", re.sub(r"\d", "#", bare[len(prefix) :]))


def apply_format(bare: str, value: str) -> str:
    """Replace the letters and digits of `value` with those of `bare`, in order."""
    characters = iter(re.sub(r"\W", "", bare))
    return "".join(next(characters, "") if character.isalnum() else character for character in value)
