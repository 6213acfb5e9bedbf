"""OCR quality: the metrics rank text with OCR errors, and the models are reproducible."""

import json
import random
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from training.common.config import InputError
from training.common.files import sha256
from training.common.language import LANGUAGES
from training.curation import ocr
from training.curation.ocr import codes, page_sources
from training.curation.report import markdown, measure_ocr, spearman, threshold_metrics
from training.data.documents import SCHEMA
from training.data.ocr_noise import simulate_ocr as simulate_ocr
from training.vocabulary.tokenizer_report import page_texts

# Beginnings of the Declaration of Human Rights (public domain), and of Caesar's Gallic War.
CLEAN = {
    "en": "Whereas recognition of the inherent dignity and of the equal and inalienable rights of all members of the "
    "human family is the foundation of freedom, justice and peace in the world, whereas disregard and contempt for "
    "human rights have resulted in barbarous acts which have outraged the conscience of mankind.",
    "fr": "Considérant que la reconnaissance de la dignité inhérente à tous les membres de la famille humaine et de "
    "leurs droits égaux et inaliénables constitue le fondement de la liberté, de la justice et de la paix dans le "
    "monde, considérant que la méconnaissance et le mépris des droits de l'homme ont conduit à des actes de barbarie.",
    "es": "Considerando que la libertad, la justicia y la paz en el mundo tienen por base el reconocimiento de la "
    "dignidad intrínseca y de los derechos iguales e inalienables de todos los miembros de la familia humana, "
    "considerando que el desconocimiento y el menosprecio de los derechos humanos han originado actos de barbarie.",
    "de": "Da die Anerkennung der angeborenen Würde und der gleichen und unveräußerlichen Rechte aller Mitglieder der "
    "Gemeinschaft der Menschen die Grundlage von Freiheit, Gerechtigkeit und Frieden in der Welt bildet, da die "
    "Nichtanerkennung und Verachtung der Menschenrechte zu Akten der Barbarei geführt haben.",
    "it": "Considerato che il riconoscimento della dignità inerente a tutti i membri della famiglia umana e dei "
    "loro diritti, uguali ed inalienabili, costituisce il fondamento della libertà, della giustizia e della pace nel "
    "mondo, considerato che il disconoscimento e il disprezzo dei diritti umani hanno portato ad atti di barbarie.",
    "nl": "Overwegende, dat erkenning van de inherente waardigheid en van de gelijke en onvervreemdbare rechten van "
    "alle leden van de mensengemeenschap grondslag is voor de vrijheid, gerechtigheid en vrede in de wereld, "
    "overwegende, dat terzijdestelling van en minachting voor de rechten van de mens geleid hebben tot barbaarse "
    "handelingen.",
    "la": "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum "
    "lingua Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se differunt. Gallos ab "
    "Aquitanis Garumna flumen, a Belgis Matrona et Sequana dividit.",
    "pt": "Considerando que o reconhecimento da dignidade inerente a todos os membros da família humana e dos seus "
    "direitos iguais e inalienáveis constitui o fundamento da liberdade, da justiça e da paz no mundo, considerando "
    "que o desconhecimento e o desprezo dos direitos do homem conduziram a actos de barbárie.",
}


def pages(language: str, rate: float, count: int = 40) -> list[str]:
    """Return copies of the clean text with OCR errors."""
    return [simulate_ocr(CLEAN[language], rate, random.Random(f"{language} {rate} {i}")) for i in range(count)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_score_ranks_pages_by_their_error_rate(language):
    texts = [page for rate in (0.02, 0.05, 0.1, 0.2) for page in pages(language, rate)]
    errors = np.array([ocr.error_rate(page, CLEAN[language]) for page in texts])
    scores = np.array([ocr.quality(page, language).score for page in texts])
    assert spearman(-scores, errors) > 0.85


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_threshold_keeps_clean_text_and_drops_pages_with_a_quarter_of_the_characters_wrong(language):
    assert ocr.quality(CLEAN[language], language).score > ocr.THRESHOLD
    assert np.mean([ocr.quality(page, language).score < ocr.THRESHOLD for page in pages(language, 0.25)]) > 0.9


@pytest.mark.parametrize("language", LANGUAGES)
def test_segments_are_recognised_in_their_language_and_not_in_another(language):
    assert ocr.quality(CLEAN[language], language).recognised > 0.65
    other = "de" if language != "de" else "it"
    assert ocr.quality(CLEAN[language], other).recognised < 0.2


def test_capitals_line_ends_hyphenation_ligatures_and_long_s_are_not_errors():
    plain = "The first official office of the classical station and the missing passage of his message."
    old = "THE FIRST OﬃCIAL OFFICE OF THE CLAſſI-\nCAL STATION AND THE MIſſING PAſ¬\nSAGE\n\n\tOF HIS MESSAGE."
    assert ocr.quality(old, "en").score == ocr.quality(plain, "en").score


def batched(items: list[str], size: int) -> list[list[str]]:
    """Return parts of some items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def letter_spaced(text: str, gap: str) -> str:
    """Return a text with a space between letters, and a wider gap between words."""
    return gap.join(("\u2009" if gap == " " else " ").join(word) for word in text.split())


@pytest.mark.parametrize("gap", ["  ", "   ", "\u2003", " "])
@pytest.mark.parametrize("language", LANGUAGES)
def test_letter_spaced_text_has_the_quality_of_its_words(language, gap):
    text = CLEAN[language]
    assert ocr.quality(letter_spaced(text, gap), language).score == pytest.approx(
        ocr.quality(text, language).score, abs=0.03
    )
    emphasised = " ".join(" ".join(word) if len(word) > 6 else word for word in text.split())
    assert ocr.quality(emphasised, language).score > ocr.THRESHOLD
    page = simulate_ocr(text, 0.25, random.Random(language))
    assert ocr.quality(letter_spaced(page, gap), language).score < ocr.THRESHOLD


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_with_equal_gaps_between_letters_and_words_has_the_quality_of_its_words(language):
    def equally_spaced(text: str) -> str:
        return "\n".join(" ".join("".join(words)) for words in batched(text.split(), 8))

    text = CLEAN[language]
    assert ocr.quality(equally_spaced(text), language).score == pytest.approx(
        ocr.quality(text, language).score, abs=0.03
    )
    for rate in (0.15, 0.25):
        page = simulate_ocr(text, rate, random.Random(language))
        assert ocr.quality(equally_spaced(page), language).score < ocr.THRESHOLD


def table(form: str, language: str, rows: int = 30) -> str:
    """Return a table of words and numbers."""
    draw, cells = random.Random(f"{form} {language}"), [word for word in CLEAN[language].split() if word.isalpha()]
    lines = []
    for year in range(1840, 1840 + rows):
        name, *numbers = draw.choice(cells), *(draw.randrange(10, 10_000) for _ in range(3))
        lines.append(form.format(name=name, year=year, words=" ".join(draw.sample(cells, 4)), n=numbers))
    return "\n".join(lines)


FORMS = [
    "| {name} | {n[0]:,} | {n[1]} % |",
    "{name:<20}{n[0]:>10}{n[1]:>10}{n[2]:>10}",
    "{year}\t{n[0]} s. {n[1]} d.\t{n[2]}",
    "{name};{n[0]};{n[1]},5;{year}",
    "{words} .............. {n[0]}",
    "{year} {n[0]} {n[1]} {n[2]}",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_clean_tables_are_kept_and_tables_with_ocr_errors_are_dropped(language, form):
    text = table(form, language)
    assert ocr.quality(text, language).score > ocr.THRESHOLD
    assert ocr.quality(simulate_ocr(text, 0.3, random.Random(language)), language).score < ocr.THRESHOLD


def test_rows_of_rules_are_not_a_table():
    assert ocr.quality("| . - | ' ; l ! : i\n- . ~ ' | ! t , ;\n" * 20, "en").score < 0.5


def test_non_letters_is_the_fraction_of_characters_that_are_not_letters():
    assert ocr.quality("ab 12 ., \n é!", "fr").non_letters == pytest.approx(5 / 8)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(list(LANGUAGES)))
def test_the_metrics_of_any_text_are_in_range(text, language):
    quality = ocr.quality(text, language)
    assert all(0 <= value <= 1 for value in quality[:3])
    assert 0 <= quality.surprise <= 255 / ocr.BITS


def test_hyphenated_words_are_joined_over_any_number_of_line_ends_and_any_number_of_marks_is_normalised():
    line_ends = "\n \n" * 300_000
    assert codes(f"ab-{line_ends}cd").tolist() == codes("abcd").tolist()
    assert codes("a-\n" + line_ends).tolist() == codes("a-").tolist()
    marks = "\u0301\u0323"
    text = f"\ufb01{marks} e{marks}"
    assert codes(text).tolist() == codes(unicodedata.normalize("NFKC", text)).tolist()
    assert len(codes("a" + marks * 300_000)) > 300_000


@pytest.mark.parametrize("text", ["", " \n", "a", "\ud800", "\U0001f600" * 9])
def test_text_without_words_has_no_quality(text):
    assert ocr.quality(text, "en").score < 0.5


def test_a_long_text_is_sampled_from_beginning_to_end():
    good, bad = CLEAN["en"] + " ", pages("en", 0.3, 1)[0] + " "
    half = ocr.quality(good * 400 + bad * 400, "en").score
    assert ocr.quality(bad * 800, "en").score + 0.02 < half < ocr.quality(good * 800, "en").score - 0.02


def test_surprisals_are_those_of_a_probability_distribution():
    counts = np.random.default_rng(0).integers(0, 3, ocr.SYMBOLS**3)
    counts[: ocr.SYMBOLS * 5] = 0  # contexts without counts
    probabilities = 2.0 ** -ocr.surprises(counts).reshape(-1, ocr.SYMBOLS)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-4)


def test_packing_rounds_counts_to_half_a_doubling_and_drops_rare_ones():
    counts = np.array([0, 1, 2, 3, 10, 1000, 123_456] + [0] * 1000)
    unpacked = ocr.unpacked(ocr.pack_counts(counts))
    assert (unpacked[:3] == 0).all()
    assert (np.abs(np.log2(unpacked[3:7] / counts[3:7])) <= 1 / (2 * ocr.STEPS) + 1e-6).all()


def test_the_models_are_small_contain_no_text_and_state_their_training_data():
    assert ocr.MODEL.stat().st_size < 2_000_000
    with safe_open(ocr.MODEL, "numpy") as file:
        about = json.loads(file.metadata()["about"])
        assert set(file.keys()) == set(LANGUAGES)
    assert about["command"].startswith("python -m training.curation.ocr --corpus")
    assert len(about["corpus"]) == 64
    assert all(len(row["alphabet"]) == ocr.ALPHABET_SIZE for row in about["languages"].values())


def corpus(folder, texts: dict[str, list[str]]) -> None:
    """Write a corpus folder with numbered documents in each language."""
    rows = [
        {**dict.fromkeys(SCHEMA.names, ""), "identifier": f"book:{code}/{i}#part1", "language": LANGUAGES[code],
         "language_type": "Spoken", "open_type": "Open Culture", "word_count": 1, "token_count": 0, "text": text}
        for code, values in texts.items() for i, text in enumerate(values)
    ]  # fmt: skip
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "all.parquet")


def test_training_is_reproducible_and_excludes_the_sources_of_calibration_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(ocr, "LANGUAGES", {"en": "English"})
    secret = "zyzzogeton " * 50
    corpus(tmp_path / "corpus", {"en": [CLEAN["en"] + f" {i}." for i in range(200)] + [secret]})
    (tmp_path / "pairs").mkdir()
    source = "rendered page read by tesseract; text from book:en/200"
    pq.write_table(pa.table({"source": [source]}), tmp_path / "pairs" / "en.parquet")
    for out, pairs in (("a", "pairs"), ("b", "pairs"), ("c", None)):
        ocr.train(ocr.OcrConfig(tmp_path / "corpus", pairs and tmp_path / pairs, tmp_path / out))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    surprisals = {}
    for out in "ac":
        monkeypatch.setattr(ocr, "MODEL", tmp_path / out)
        ocr.models.cache_clear()
        surprisals[out] = ocr.quality("zyzzogeton zyzzogeton", "en").surprise
    monkeypatch.undo()
    ocr.models.cache_clear()
    assert surprisals["c"] < 1.5 < 4 < surprisals["a"]


def test_a_corpus_without_one_of_the_languages_is_an_error(tmp_path):
    corpus(tmp_path / "corpus", {"en": [CLEAN["en"]] * 200})
    with pytest.raises(InputError, match="too little French"):
        ocr.train(ocr.OcrConfig(tmp_path / "corpus", out=tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_spearman_is_the_correlation_of_ranks_with_ties_at_their_mean():
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 100, 1000, 10000])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 3, 2, 4])) == pytest.approx(0.9486833)  # computed with scipy
    assert spearman(np.array([1, 1, 1]), np.array([1, 2, 3])) == 0


def test_the_metrics_of_a_threshold_describe_the_pages_that_it_drops():
    metrics = threshold_metrics(np.array([0.5, 0.8, 0.95, 0.85]), np.array([0.3, 0.05, 0.02, 0.2]), 0.9)
    assert metrics == {
        "pages": 4,
        "poor": 0.5,
        "left_out": 0.75,
        "precision": 2 / 3,
        "recall": 1,
        "balanced_accuracy": 0.75,
    }


def test_the_report_measures_pages_with_a_known_error_rate(tmp_path):
    rows = [
        {"id": f"{code}{i}", "ocr": page, "truth": CLEAN[code], "language": code, "source": "rendered page"}
        for code in ("en", "de")
        for rate in (0.02, 0.3)
        for i, page in enumerate(pages(code, rate, 20))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pages.parquet")
    metrics, points = measure_ocr(tmp_path)
    assert set(points) == {"en", "de"} and metrics["all"]["pages"] == 80
    assert metrics["all"]["rank_correlation"] > 0.8
    assert metrics["threshold"]["other_half"]["de"]["balanced_accuracy"] > 0.9


def test_pairs_of_other_writers_give_the_same_measures(tmp_path):
    """Bytes, categories, names of languages, and rows without a text, as pandas, polars and Spark write them."""
    texts = {code: [*pages(code, 0.02, 8), *pages(code, 0.3, 8)] for code in ("en", "de")}
    rows = [
        {"id": str(i), "ocr": page, "truth": CLEAN[code], "language": code, "source": f"rendered page, text from w{i}"}
        for code, some in texts.items()
        for i, page in enumerate(some)
    ]
    names = {"en": "English", "de": "German"}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    other = {
        "id": pa.array([*map(int, columns["id"]), 7]),
        "ocr": pa.array([*(page.encode() for page in columns["ocr"]), None], pa.large_binary()),
        "truth": pa.array([*columns["truth"], "text"], pa.large_string()),
        "language": pa.array([*(names[code] for code in columns["language"]), None]).dictionary_encode(),
        "source": pa.array([*columns["source"], None]),
    }
    for folder, table in (("plain", pa.Table.from_pylist(rows)), ("other", pa.table(other))):
        (tmp_path / folder).mkdir()
        pq.write_table(table, tmp_path / folder / "pages.parquet")
    plain, cast = (measure_ocr(tmp_path / name) for name in ("plain", "other"))
    assert json.dumps(plain[0]) == json.dumps(cast[0])
    assert page_sources(tmp_path / "other") == {f"w{i}" for i in range(16)}
    assert page_texts(tmp_path / "other") == page_texts(tmp_path / "plain")
    pq.write_table(pa.Table.from_pylist([rows[0] | {"language": "Welsh"}]), tmp_path / "welsh.parquet")
    with pytest.raises(InputError, match="no pair in en, fr"):
        measure_ocr(tmp_path / "welsh.parquet")


def test_the_report_is_rendered_from_its_json_which_was_measured_with_these_models_and_this_threshold():
    report = json.loads((ocr.MODEL.parent / "report.json").read_text())
    assert report["data"]["models"] == sha256(ocr.MODEL)
    assert report["ocr"]["threshold"]["best"] == report["ocr"]["threshold"]["value"] == ocr.THRESHOLD
    assert report["ocr"]["all"]["rank_correlation"] > 0.8
    assert (ocr.MODEL.parent / "REPORT.md").read_text() == markdown(report)
    assert all(f"## {title}" in markdown(report) for title in ("OCR quality", "Personal data", "Language", "Toxicity"))
