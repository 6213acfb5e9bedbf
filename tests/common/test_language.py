"""Language of a document, its confidence and share of paragraphs; and the accuracy on a corpus."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.common.language import LANGUAGES, detect_languages, identify
from training.curation.report import language_id_accuracy
from training.data.documents import COLUMNS

SENTENCES = {
    "en": "The keeper of the lighthouse climbed the narrow stairs every evening and lit the great lamp above the sea.",
    "fr": "Le gardien du phare montait chaque soir l'escalier étroit et allumait la grande lampe au-dessus de la mer.",
    "es": "El guarda del faro subía todas las noches la estrecha escalera y encendía la gran lámpara sobre el mar.",
    "de": "Der Wärter des Leuchtturms stieg jeden Abend die enge Treppe hinauf und entzündete die große Lampe.",
    "it": "Il guardiano del faro saliva ogni sera la scala stretta e accendeva la grande lampada sopra il mare.",
    "nl": "De wachter van de vuurtoren klom iedere avond de smalle trap op en stak de grote lamp boven de zee aan.",
    "la": "Custos phari quotidie vespere scalas angustas ascendebat, et lucernam magnam super mare accendebat.",
    "pt": "O guarda do farol subia todas as noites a escada estreita e acendia a grande lâmpada por cima do mar.",
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("gap", ["\n", "\n\n", " "])
@pytest.mark.parametrize("times", [1, 30])
def test_a_document_in_one_language_has_share_1(language, gap, times):
    detected = detect_languages(gap.join([SENTENCES[language]] * times))
    assert (detected.language, detected.share) == (language, 1.0) and detected.confidence > 0.99


@pytest.mark.parametrize("foreign", [0, 1, 2, 4])
def test_the_share_excludes_paragraphs_in_another_language(foreign):
    paragraphs = [SENTENCES["la"]] * (8 - foreign)
    for i in range(foreign):
        paragraphs.insert(2 * i + 1, SENTENCES["de"])
    detected = detect_languages("\n\n".join(paragraphs))
    assert detected.language == "la" or foreign == 4
    assert detected.share == 1 - foreign / 8


def test_a_long_document_is_identified_by_its_beginning_middle_and_end():
    text = SENTENCES["nl"] * 4 + SENTENCES["en"] * 2_000 + SENTENCES["nl"] * 4
    assert detect_languages(text).language in ("en", "nl")
    assert detect_languages(SENTENCES["fr"] * 9 + "1234 " * 50_000 + SENTENCES["fr"] * 9).language == "fr"


def test_paragraphs_without_letters_are_ignored():
    table = "\n\n".join(["12.5 | 13.7 | 19.2 | 21.4 | 99.1 | 17.0 | 18.3 | 16.2 | 12.9"] * 30)
    assert detect_languages(f"{SENTENCES['es']}\n\n{table}\n\n{SENTENCES['es']}").share == 1.0
    assert detect_languages("").share == 1.0


def test_short_documents_are_identified_from_all_their_text():
    assert detect_languages(SENTENCES["it"])[:2] == identify(SENTENCES["it"])


def test_the_accuracy_counts_correct_documents_and_errors_by_language(tmp_path):
    rows = [(SENTENCES["la"], "Latin")] * 9 + [
        (SENTENCES["it"], "Latin"),
        (SENTENCES["it"], "Italian"),
        ("x = 1", "Python"),
    ]
    table = [dict.fromkeys(COLUMNS, "") | {"text": text, "language": language} for text, language in rows]
    for row in table:
        del row["word_count"], row["token_count"]
        row["word_count"] = 1
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    accuracy = language_id_accuracy(tmp_path)
    assert accuracy["documents"] == 11 and list(accuracy["languages"]) == ["it", "la"]
    latin = accuracy["languages"]["la"]
    assert (latin["documents"], latin["right"], latin["taken_for"]) == (10, 0.9, {"it": 1})
    assert accuracy["languages"]["it"]["right"] == 1.0 and accuracy["megabytes"] > 0 and accuracy["seconds"] > 0
