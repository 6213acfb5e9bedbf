"""Which of the eight languages a text is in, and which paragraphs of a document are not in its language."""

from functools import cache

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
# A paragraph is judged when it has this many letters, and found foreign at this confidence: headings, formulas and
# names are no evidence. Measured on help pages, where untranslated English paragraphs of 60 letters score above 0.99.
JUDGED_LETTERS = 40
FOREIGN_CONFIDENCE = 0.9
JUDGED_CHARACTERS = 400  # of a paragraph's beginning: enough to be certain, and the cost no longer grows with length


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
