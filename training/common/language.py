"""Identify the language of a text among eight, and drop paragraphs that are not in a document's language."""

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from .normalization import normalize

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# ISO 639-1 code -> the English name that Common Corpus uses; every table of this project has this order.
LANGUAGES = {
    "en": "English",
    "fr": "French",
    "es": "Spanish",
    "de": "German",
    "it": "Italian",
    "nl": "Dutch",
    "la": "Latin",
    "pt": "Portuguese",
}
CODES = {name: code for code, name in LANGUAGES.items()}
ISO_639_2 = {
    **{"eng": "en", "fra": "fr", "fre": "fr", "spa": "es", "deu": "de", "ger": "de", "ita": "it"},
    **{"nld": "nl", "dut": "nl", "lat": "la", "por": "pt"},
}
# Minimum letters to classify a paragraph, and minimum confidence to call it foreign: headings, formulas and names are
# no evidence. Measured on help pages, where untranslated English paragraphs of 60 letters score above 0.99.
JUDGED_LETTERS = 40
FOREIGN_CONFIDENCE = 0.9
JUDGED_CHARACTERS = 400  # prefix of a paragraph that is classified: enough for certainty, at a bounded cost
# Samples that curation reads of a document, so that a book costs no more than a page.
SAMPLED_CHARACTERS = 300  # at the beginning, the middle and the end
SAMPLED_PARAGRAPHS = 8  # evenly spaced over the document


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # lazy import: images of rented GPUs lack it

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES))
    return identifier


def identify(text: str) -> tuple[str, float]:
    """Return the ISO code of the most probable of eight languages, and its probability (about 4.5 MB/s per core)."""
    return _identifier().classify(normalize(text).text)


def language_name(label: str) -> str:
    """Return the English name of a label that is a name or code of one of the eight languages, else the label.

    Accepts ISO 639-1 and 639-2/3 codes, with region or script (pt-BR, eng_Latn), and any case.
    """
    text = label.strip().lower()
    code = re.fullmatch(r"([a-z]{2,3})(?:[-_][a-z0-9]+)*", text)
    key = ISO_639_2.get(code[1], code[1]) if code else CODES.get(text.capitalize())
    return LANGUAGES.get(key, label)


def language_code(label: str) -> str:
    """Return the ISO 639-1 code of a label that is a name or code of one of the eight languages, else the label."""
    return CODES.get(language_name(label), label)


def letters(text: str) -> int:
    """Count the letters of a text."""
    return sum(map(str.isalpha, normalize(text).text))


def paragraphs_in(language: str, paragraphs: list[str]) -> list[str]:
    """Return the paragraphs of a document without paragraphs in another of the eight languages.

    Paragraphs too short to classify follow the document: all are dropped if most of the classified text is foreign, or
    if nothing could be classified and the joined text is in another language.
    """
    remaining, native, foreign = [], 0, 0
    for paragraph in paragraphs:
        if letters(paragraph) >= JUDGED_LETTERS:
            identified, confidence = identify(paragraph[:JUDGED_CHARACTERS])
            if identified != language and confidence >= FOREIGN_CONFIDENCE:
                foreign += len(paragraph)
                continue
            native += len(paragraph)
        remaining.append(paragraph)
    if native == foreign == 0:
        return remaining if identify(" ".join(remaining)[:JUDGED_CHARACTERS])[0] == language else []
    return remaining if native >= foreign else []


class LanguageEstimate(NamedTuple):
    """Language of a document, and the share of the document in it.

    Args:
        language: ISO code of the most probable of the eight languages.
        confidence: Its probability.
        share: Fraction of the sampled paragraphs that are not clearly in another language.
    """

    language: str
    confidence: float
    share: float


def detect_languages(text: str) -> LanguageEstimate:
    """Identify the language of a document and of its paragraphs from samples, in at most 0.6 ms for any length."""
    size = SAMPLED_CHARACTERS
    if len(text) > 3 * size:
        middle = (len(text) - size) // 2
        language, confidence = identify(f"{text[:size]} {text[middle : middle + size]} {text[-size:]}")
    else:
        language, confidence = identify(text)
    paragraphs = [part for part in text.split("\n\n" if "\n\n" in text else "\n") if len(part) >= JUDGED_LETTERS]
    step = max(1, len(paragraphs) / SAMPLED_PARAGRAPHS)
    classified = foreign = 0
    for i in range(min(len(paragraphs), SAMPLED_PARAGRAPHS)):
        paragraph = paragraphs[int((i + 0.5) * step)][:JUDGED_CHARACTERS]
        if letters(paragraph) >= JUDGED_LETTERS:
            identified, probability = identify(paragraph)
            classified += 1
            foreign += identified != language and probability >= FOREIGN_CONFIDENCE
    return LanguageEstimate(language, confidence, 1 - foreign / classified if classified else 1.0)
