"""Every recogniser decides on the normalised view: characters that look alike do not change a result, nor the text."""

import re
import unicodedata

import numpy as np
import pytest

from training.common.language import LANGUAGES, detect_languages, identify
from training.curation import dehyphenation, ocr, pii
from training.curation.deduplication import digest, signature
from training.curation.lexicon import LexiconScorer
from training.curation.toxicity import verdict

PROSE = {
    "en": "The keeper of the lighthouse climbed the narrow stairs every evening and lit the great lamp above the sea.",
    "fr": "Le gardien du phare montait chaque soir l'escalier étroit et allumait la grande lampe au-dessus de la mer.",
    "es": "El guarda del faro subía todas las noches la estrecha escalera y encendía la gran lámpara sobre el mar.",
    "de": "Der Wärter des Leuchtturms stieg jeden Abend die enge Treppe hinauf und entzündete die große Lampe.",
    "it": "Il guardiano del faro saliva ogni sera la scala stretta e accendeva la grande lampada sopra il mare.",
    "nl": "De wachter van de vuurtoren klom iedere avond de smalle trap op en stak de grote lamp boven de zee aan.",
    "la": "Custos phari quotidie vespere scalas angustas ascendebat, et lucernam magnam super mare accendebat.",
    "pt": "O guarda do farol subia todas as noites a escada estreita e acendia a grande lâmpada por cima do mar.",
}
VARIANTS = {
    "soft hyphens": lambda text: re.sub(r"(\w{3})(?=\w{3})", "\\1\u00ad", text),
    "soft hyphens at line ends": lambda text: re.sub(r"(\w{3})(?=\w{4})", "\\1\u00ad\n", text, count=3),
    "zero-width spaces": lambda text: "\ufeff" + re.sub(r"(\w{2})(?=\w)", "\\1\u200b", text),
    "word joiners": lambda text: text.replace("e", "\u2060e"),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "narrow spaces": lambda text: text.replace(" ", "\u202f"),
    "figure spaces": lambda text: text.replace(" ", "\u2007"),
    "hyphens": lambda text: text.replace("-", "\u2010"),
    "no-break hyphens": lambda text: text.replace("-", "\u2011"),
    "combining accents": lambda text: unicodedata.normalize("NFD", text),
    "ligatures": lambda text: text.replace("fi", "\ufb01").replace("st", "\ufb06").replace("ij", "\u0133"),
    "wide characters": lambda text: re.sub("[0-9@.]", lambda match: chr(ord(match[0]) + 0xFEE0), text),
    "other digits": lambda text: re.sub("[0-9]", lambda match: chr(ord(match[0]) + 0x0660 - 0x30), text),
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@variants
def test_the_language_is_the_same(variant):
    for language, text in PROSE.items():
        assert identify(variant(text)) == identify(text)
        assert detect_languages("\n\n".join([variant(text)] * 9))[::2] == (language, 1.0)


@variants
def test_the_ocr_quality_is_the_same(variant):
    for language, text in PROSE.items():
        assert ocr.quality(variant(text * 5), language) == ocr.quality(text * 5, language)


@variants
def test_duplicates_are_found(variant):
    for text in PROSE.values():
        assert np.array_equal(signature(variant(text * 3)), signature(text * 3))
        assert digest(variant(text)) == digest(text)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "I hate immigrants."),
        ("fr", "Je d\u00e9teste les \u00e9trangers."),
        ("de", "Ich hasse Fl\u00fcchtlinge."),
    ],
)
@variants
def test_the_toxicity_is_the_same(variant, language, text):
    [plain, other] = LexiconScorer().score([text, variant(text)], [language] * 2)
    assert plain == other and verdict(plain) != "none"


VALUES = [
    ("en", "tel. ", "020 7946 0018", "PHONE_NUMBER"),
    ("fr", "t\u00e9l. ", "06-12-34-56-78", "PHONE_NUMBER"),
    ("en", "Visa ", "4111-1111-1111-1111", "CREDIT_CARD"),
    ("de", "IBAN ", "DE89 3704 0044 0532 0130 00", "IBAN_CODE"),
    ("en", "IP ", "93.184.216.34", "IP_ADDRESS"),
    ("fr", "Courriel : ", "jeanne.fitz@laposte.net", "EMAIL_ADDRESS"),
    ("nl", "BSN ", "111222333", "NL_BSN"),
    ("pt", "CPF ", "529.982.247-25", "BR_CPF"),
]


@pytest.mark.parametrize(("language", "label", "value", "kind"), VALUES)
@variants
def test_personal_data_is_replaced_and_the_text_around_it_stays_byte_equal(variant, language, label, value, kind):
    before, after = (
        "Da\u00a0steht \u201eco\u00adop\u201c, e\u0301 \ufb01n; " + variant(label),
        "; \u017fo\u200b, \u00bd.",
    )
    text, counts = pii.replace(f"{before}{variant(value)}{after}", language, seed=1)
    plain, _ = pii.replace(f"{label}{value}", language, seed=1)
    assert counts == {kind: 1}
    assert text.startswith(before.rstrip("\u00ad\u200b")) and text.endswith(after)
    other = text[len(before) : -len(after)]
    assert value not in other and re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", other)) == re.sub(
        r"[\W_]", "", plain.removeprefix(label)
    )


def test_a_text_without_values_is_returned_as_the_same_object():
    text = "co\u00adop\u00a01950 \ufb01n \u0661"
    assert pii.replace(text, "en", seed=1).text is text


@pytest.mark.parametrize(
    ("language", "printed", "expected"),
    [
        ("en", "a repre\u2010\nsentation of words", "a representation\nof words"),
        ("de", "der Fort\u2011\r\nschritt ist", "der Fortschritt\r\nist"),
        ("fr", "alors dit\u2010\nil et", "alors dit\u2010il\net"),
        ("fr", "ce\u0301le\u0301-\nbrite\u0301 de", "ce\u0301le\u0301brite\u0301\nde"),
        ("en", "repre-\u200b\nsentation of", "representation\nof"),
        ("en", "repre-\u00a0\n\u2003sentation of", "representation\nof"),
        ("en", "repre\u00ad\u200b\nsentation of", "representation\nof"),
        ("en", "re\u00adpre-\u2028sen\u00adtation of", "re\u00adpresen\u00adtation\nof"),
        ("en", "twenty\u2010\nfirst, a twenty\u2011first more", "twenty\u2010first,\na twenty\u2011first more"),
    ],
)  # fmt: skip
def test_words_divided_by_any_hyphen_are_joined_and_keep_their_letters(language, printed, expected):
    assert dehyphenation.repair(printed, language).text == expected


@pytest.mark.parametrize("number", ["\ufeff\u2013\u202f{}\u202f\u2013", "\u200b\u2010 {} \u2010", "{}\u00a0"])
def test_page_numbers_with_other_spaces_and_hyphens_are_removed(number):
    bodies = list(PROSE.values())[:3]
    pages = [f"{number.format(i)}\n{body}" for i, body in enumerate(bodies, 87)]
    done = dehyphenation.repair("\f".join(pages), "en")
    assert done.page_numbers_removed == 3 and done.text.split() == " ".join(bodies).split()


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_with_any_characters_and_without_repairs_is_byte_equal(language):
    text = "\ufeffco\u00adop, a\u2010b\u00a0\u2013 \ufb01n e\u0301\u2028\u0661\u200b\n" + PROSE[language]
    assert dehyphenation.repair(text, language).text == text
