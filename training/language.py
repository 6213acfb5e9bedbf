"""Which of the eight languages a text is in, and which paragraphs of a document are not in its language."""

from functools import cache
from typing import NamedTuple

from py3langid.langid import MODEL_FILE, LanguageIdentifier

# ISO 639-1 code -> the English name that Common Corpus uses; the order is that of every table in this project.
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
# A paragraph is judged when it has this many letters, and found foreign at this confidence: headings, formulas and
# names are no evidence. Measured on help pages, where untranslated English paragraphs of 60 letters score above 0.99.
JUDGED_LETTERS = 40
FOREIGN_CONFIDENCE = 0.9
JUDGED_CHARACTERS = 400  # of a paragraph's beginning: enough to be certain, and the cost no longer grows with length
# What curation reads of a document, so that a book costs no more than a page.
SAMPLED_CHARACTERS = 300  # at the beginning, the middle and the end
SAMPLED_PARAGRAPHS = 8  # evenly over the document


@cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES))
    return identifier


def identify(text: str) -> tuple[str, float]:
    """ISO code of the likeliest of the eight languages, and its probability (py3langid; about 4.5 MB/s a core)."""
    return _identifier().classify(text)


def paragraphs_in(language: str, paragraphs: list[str]) -> list[str]:
    """The paragraphs of a document without those in another of the eight languages.

    Paragraphs too short to judge follow the document: all go when most of the judged text is foreign, or when nothing
    could be judged and the document as a whole is in another language.
    """
    kept, own, foreign = [], 0, 0
    for paragraph in paragraphs:
        if sum(map(str.isalpha, paragraph)) >= JUDGED_LETTERS:
            found, confidence = identify(paragraph[:JUDGED_CHARACTERS])
            if found != language and confidence >= FOREIGN_CONFIDENCE:
                foreign += len(paragraph)
                continue
            own += len(paragraph)
        kept.append(paragraph)
    if own == foreign == 0:
        return kept if identify(" ".join(kept)[:JUDGED_CHARACTERS])[0] == language else []
    return kept if own >= foreign else []


class Languages(NamedTuple):
    """The language of a document and how far it goes.

    Args:
        language: ISO code of the likeliest of the eight.
        confidence: its probability.
        share: of the sampled paragraphs that are not plainly in another language.
    """

    language: str
    confidence: float
    share: float


def languages_of(text: str) -> Languages:
    """The language of a document and of its paragraphs, from samples: at most about 0.6 ms, whatever its length."""
    size = SAMPLED_CHARACTERS
    if len(text) > 3 * size:
        middle = (len(text) - size) // 2
        language, confidence = identify(f"{text[:size]} {text[middle : middle + size]} {text[-size:]}")
    else:
        language, confidence = identify(text)
    paragraphs = [one for one in text.split("\n\n" if "\n\n" in text else "\n") if len(one) >= JUDGED_LETTERS]
    step = max(1, len(paragraphs) / SAMPLED_PARAGRAPHS)
    judged = foreign = 0
    for i in range(min(len(paragraphs), SAMPLED_PARAGRAPHS)):
        paragraph = paragraphs[int((i + 0.5) * step)][:JUDGED_CHARACTERS]
        if sum(map(str.isalpha, paragraph)) >= JUDGED_LETTERS:
            found, sure = identify(paragraph)
            judged += 1
            foreign += found != language and sure >= FOREIGN_CONFIDENCE
    return Languages(language, confidence, 1 - foreign / judged if judged else 1.0)
