"""OCR correction of pairs on disk: its measures equal those of other scorers, and clean text is counted separately."""

import json
import random

import jiwer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_evaluate import run  # noqa: F401 (a fixture)

from training import evaluate
from training.common.config import InputError
from training.common.files import read_json
from training.evaluation.ocr_correction import OcrCorrection, OcrCorrectionConfig
from training.tasks import ocr
from training.tasks.ocr.metrics import correction_metrics, match_errors, normalize

# truth, OCR, correction; hits, edits and preference that hipe-ocrepair-scorer 0.9.9 computes for the correction
CASES = [
    ("Die Stra\u00dfe war leer.", "Die Strafse war leer,", "Die Strasse war leer", 20, 0, 1),
    ("the old house", "tbe old hou5e", "the old hou5e", 12, 1, 1),
    ("la maison", "la maison", "la mai son", 9, 1, -1),
    ("\u00ab O\u00f9 ? \u00bb", "0u", "O\u00f9", 2, 0, 1),
    ("divi\u00ac\nded line", "divi\u00ac\nded 1ine", "divided line", 12, 0, 1),
    ("...", ", ,", "", 0, 0, 0),
    ("c\u0153ur", "coeur", "caeur", 4, 1, -1),
    ("ab", "ba", "ba", 1, 2, 0),
]
PAIRS = [
    {"id": "a", "ocr": "tbe old hou5e", "truth": "the old house", "language": "en", "source": "book; page 1"},
    {"id": "b", "ocr": "nobody came", "truth": "nobody came", "language": "en", "source": "book; page 2"},
    {"id": "c", "ocr": "la rnaison", "truth": "la maison", "language": "fr", "source": "newspaper#7"},
]


def values(metrics: dict) -> dict[str, float]:
    return {name: float(metric(metric.rows.sum(0))) for name, metric in metrics.items()}


def as_units(cases: list[tuple]) -> tuple[list[dict], list[str]]:
    return [{"truth": truth, "ocr": text, "kind": "pair"} for truth, text, *_ in cases], [case[2] for case in cases]


def random_pairs() -> list[tuple[str, str]]:
    draw, letters = random.Random(0), "abAB  \u00df\u0153\u00e6a\u0364.,-_\n\u2014\u00ac\u00e9\u017f"
    return [("".join(draw.choices(letters, k=20)), "".join(draw.choices(letters, k=20))) for _ in range(200)]


def test_match_error_rate_and_preference_equal_the_scorer_of_the_competition():
    for truth, text, corrected, hits, edits, preference in CASES:
        assert match_errors(truth, corrected) == (edits, hits + edits)
        unit = as_units([(truth, text, corrected)])
        assert values(correction_metrics(*unit))["preference"] == preference
    measured = values(correction_metrics(*as_units(CASES)))
    assert measured["cmer"] == pytest.approx(0.07692307692307693) and measured["preference"] == 0.25
    assert (measured["improved"], measured["worsened"]) == (4 / 8, 2 / 8)
    assert measured["worsened_of_changed"] == 2 / 7  # one correction equals its OCR text


def test_match_errors_equal_those_of_jiwer():
    for truth, text in random_pairs():
        output = jiwer.process_characters(normalize(truth), normalize(text))
        edits = output.substitutions + output.deletions + output.insertions
        assert match_errors(truth, text) == (edits, output.hits + edits)


def test_texts_are_normalised_as_by_the_scorer_of_the_competition():
    scorer = pytest.importorskip("hipe_ocrepair_scorer.ocrepair_eval", reason="hipe-ocrepair-scorer needs Python 3.12")
    assert all(scorer.norm(text) == normalize(text) for pair in random_pairs() for text in pair)


def test_error_rates_of_texts_equal_jiwer():
    """On one line: for jiwer, a line break does not end a word."""
    cases = [tuple(" ".join(text.split()) for text in case[:3]) for case in CASES]
    units, texts = as_units(cases)
    measured, truths = values(correction_metrics(units, texts)), [unit["truth"] for unit in units]
    assert measured["cer"] == pytest.approx(jiwer.cer(truths, texts))
    assert measured["wer"] == pytest.approx(jiwer.wer(truths, texts))
    assert measured["wer_uncorrected"] == pytest.approx(jiwer.wer(truths, [unit["ocr"] for unit in units]))


@pytest.fixture
def pairs(tmp_path):
    """Folder of a JSON Lines file, and of a Parquet file as another library writes it."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "en.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:2])))
    row = PAIRS[2] | {"ocr": PAIRS[2]["ocr"].encode(), "language": "French", "id": 7}
    table = pa.table({name: [value] for name, value in row.items() if name != "source"})
    pq.write_table(table, folder / "fr.parquet")
    return folder


def test_pairs_are_read_from_both_formats_and_equal_ones_are_clean(pairs):
    task = OcrCorrection(OcrCorrectionConfig(pairs=pairs))
    assert [(unit["id"], unit["kind"], unit["ocr"]) for unit in sorted(task.units, key=lambda unit: unit["id"])] == [
        ("7", "pair", "la rnaison"), ("a", "pair", "tbe old hou5e"), ("b", "clean", "nobody came"),
    ]  # fmt: skip
    assert task.data["languages"] == {"en": 2, "fr": 1} and task.data["sources"] == ["book", "fr"]
    assert [unit["id"] for unit in OcrCorrection(OcrCorrectionConfig(pairs=pairs, languages=["fr"])).units] == ["7"]
    assert len(OcrCorrection(OcrCorrectionConfig(pairs=pairs, examples=2)).units) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"ocr": "a", "language": "en"}'], r"row 1 has no truth: each row needs ocr, truth, language"),
        (["[1]"], "row 1 has no ocr"),
        (['{"ocr": "a", "truth": "b", "language": "en"}', "{"], "line 2 of .* is not JSON"),
        ([], "no pair in fr"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(tmp_path, lines, message):
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        OcrCorrection(OcrCorrectionConfig(pairs=tmp_path, languages=["fr"]))


def test_without_pairs_or_clean_text_there_is_nothing_to_correct():
    with pytest.raises(InputError, match="pass --ocr_correction.pairs or .clean"):
        OcrCorrection(OcrCorrectionConfig())


def test_clean_text_counts_in_its_own_metrics(pairs, tmp_path):
    (tmp_path / "en.txt").write_text("the river rose in the night")
    task = OcrCorrection(OcrCorrectionConfig(pairs=pairs, clean=tmp_path / "en.txt"))
    outputs = {"tbe old hou5e": "the old hou5e", "the river rose in the night": "the river rose in the might"}
    record = {"outputs": [outputs.get(unit["ocr"], unit["ocr"]) for unit in task.units], "how": {}}
    measured, characters = values(task.metrics(record)), len("nobody came") + len("the river rose in the night")
    assert measured["error_reduction"] == 1 / 4 and measured["preference"] == 1 / 2
    assert (measured["clean_edits"], measured["clean_touched"]) == (1 / characters, 1 / 2)
    groups = {by: values(metrics) for by, metrics in task.details(record)["groups"].items()}
    assert groups["language, errors removed"] == {"en": 1 / 2, "fr": 0}
    assert groups["source, worsened of changed"] == {"book": 0}
    assert groups["language, match errors removed"] == {"en": 1 / 2, "fr": 0}
    assert groups["source, match error rate"] == pytest.approx({"book": 1 / 13, "fr": 2 / 10})
    alone = OcrCorrection(OcrCorrectionConfig(clean=tmp_path / "en.txt"))
    assert values(alone.metrics({"outputs": [alone.units[0]["ocr"]]})) == {"clean_edits": 0, "clean_touched": 0}
    assert alone.details({"outputs": [""], "how": {}})["units"] == []


def test_a_model_is_measured_as_users_correct_with_it(run, pairs, tmp_path):  # noqa: F811
    arguments = ["--model", str(run / "model"), "--suite", "ocr_correction", "--out", str(tmp_path / "eval")]
    evaluate.main([*arguments, "--ocr_correction.pairs", str(pairs), "--device", "cpu"])
    result = read_json(tmp_path / "eval" / "ocr_correction.json")
    subject = evaluate.EvaluatedModel(str(run / "model"))
    task = OcrCorrection(OcrCorrectionConfig(pairs=pairs))
    texts = [ocr.correct(subject.model, subject.tokenizer, unit["ocr"]) for unit in task.units]
    assert read_json(tmp_path / "eval/records/ocr_correction.json")["record"]["outputs"] == texts
    expected = values(task.metrics({"outputs": texts}))
    stored = {name: m["value"] if isinstance(m, dict) else m for name, m in result["metrics"].items()}
    assert stored == pytest.approx(expected) and {unit["id"] for unit in result["units"]} == {"a", "7"}
    report = (tmp_path / "eval" / "EVALUATION.md").read_text()
    assert "## Ocr correction" in report and "| by language, match errors removed |" in report
    assert "| en | tbe old hou5e |" in report
