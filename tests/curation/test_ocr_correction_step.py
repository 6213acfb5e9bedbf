"""Curation corrects OCR errors in the band of quality, records every change so that it can be undone, and abstains."""

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from training.common.config import InputError
from training.common.files import read_json
from training.curation import statistics
from training.curation.pipeline import curate
from training.curation.pipeline_blocks import OcrCorrector
from training.curation.recipe import CurationConfig
from training.tasks.ocr import corrector
from training.tasks.ocr.changes import Change, apply_changes

ROOT = Path(__file__).parents[2]
RARE = "upon yonder mountains shepherds gathered their flocks before dreadful storms destroyed several villages"
FOREIGN = "yonder mountains shepherds gathered flocks dreadful storms destroyed villages"


def prose(words: list[str], seed: int, count: int = 150) -> str:
    """Return sentences of words."""
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(words, k=10)).capitalize() + "." for _ in range(count // 10))


@pytest.fixture(scope="module")
def texts(known, confused):
    """Texts by what is decided on them."""
    clean = [prose(known, seed) for seed in range(8)]
    return {
        "clean": clean[0],
        "errors": confused(clean[1], 0.15, 1),
        "other errors": confused(clean[2], 0.15, 2),
        "poor": confused(clean[3], 0.9, 3),
        "unknown words": confused(prose(RARE.split(), 4), 0.15, 4),
        "short": confused(clean[5][:120], 0.15, 5),
        "letter": confused(clean[6], 0.15, 6) + " Write to john.smith@company-mail.com today.",
    }


@pytest.fixture
def settings(texts, packaged, monkeypatch, tmp_path, write_corpus):
    """Config of a corpus of these texts and the duplicate of one, corrected by the small corrector."""
    monkeypatch.setattr(corrector, "PACKAGED", packaged)
    write_corpus(tmp_path / "corpus" / "en.parquet", [{"text": text} for text in [*texts.values(), texts["errors"]]])
    return dict(
        corpus=tmp_path / "corpus", out=tmp_path / "out", workers=1, languages=["en"], ocr_threshold=0.0,
        ocr_correction=True, ocr_correction_band=[0.95, 0.985], toxicity="", pii=False,
    )  # fmt: skip


def kept(out: Path, texts: dict[str, str]) -> dict[str, dict]:
    """Return the kept documents by the name of their text."""
    names = list(texts)
    return {names[row["curation"]["row"]]: row for row in pq.read_table(out / "en.parquet").to_pylist()}


def test_documents_in_the_band_are_corrected_and_all_others_stay_byte_for_byte(settings, texts, known, tmp_path):
    content = curate(CurationConfig(**settings))
    rows = kept(tmp_path / "out", texts)
    decisions = {name: row["curation"]["ocr_correction"]["decision"] for name, row in rows.items()}
    assert decisions == {
        "clean": "outside the band",
        "errors": "corrected",
        "other errors": "corrected",
        "poor": "outside the band",
        "unknown words": "no error found",
        "short": "outside the band",
        "letter": "corrected",
    }
    for name in ("clean", "poor", "unknown words", "short"):
        assert rows[name]["text"] == texts[name] and rows[name]["curation"]["ocr_correction"]["changes"] == []
    assert rows["errors"]["text"] == prose(known, 1) and rows["other errors"]["text"] == prose(known, 2)
    assert rows["errors"]["word_count"] == len(rows["errors"]["text"].split())
    recorded = [change for row in rows.values() for change in row["curation"]["ocr_correction"]["changes"]]
    counted = Counter(f"ocr_correction: {change['kind']}" for change in recorded)
    counted.update(f"documents with ocr_correction: {decision}" for decision in decisions.values())
    assert {name: n for name, n in content["changes"].items() if "ocr_correction" in name} == counted
    assert content["reasons"]["exact duplicate"]["documents"] == 1
    assert content["blocks"]["finish: ocr_correction"]["seconds"] > 0
    assert f"ocr_correction: word | {len(recorded)} |" in (tmp_path / "out" / "curation.md").read_text()
    assert "decision corrected, changes" in statistics.explain(tmp_path / "out", "en/1")


def test_the_recorded_changes_undo_the_correction_and_contain_no_personal_data(settings, texts, tmp_path):
    curate(CurationConfig(**{**settings, "pii": True}))
    rows = kept(tmp_path / "out", texts)
    assert "john.smith@company-mail.com" not in str(rows["letter"])
    for name in ("errors", "other errors", "clean"):
        changes = [
            Change(c["start"], c["start"] + len(c["after"]), c["after"], c["before"], c["kind"], c["probability"])
            for c in rows[name]["curation"]["ocr_correction"]["changes"]
        ]
        assert apply_changes(rows[name]["text"], changes) == texts[name]


def test_a_long_text_is_corrected_if_the_corrector_abstains_from_less_than_half_of_it(settings, known, confused):
    block = OcrCorrector(CurationConfig(**settings))
    truth, foreign = prose(known, 9, 600) + "\n", prose(FOREIGN.split(), 9, 400) + "\n"
    assert 2000 < len(foreign) < 4000 and 2000 < len(truth) < 4000  # a piece each
    ocr, foreign = confused(truth, 0.05, 9), confused(foreign, 0.05, 9)
    assert block.decide(foreign + foreign + ocr, "en", 0.97) == ("abstained", [])
    decision, changes = block.decide(ocr + foreign + ocr, "en", 0.97)
    assert decision == "corrected" and apply_changes(ocr + foreign + ocr, changes) == truth + foreign + truth
    assert block.decide(ocr, "en", 0.94) == block.decide(ocr, "en", 0.99) == ("outside the band", [])


def test_another_corrector_starts_from_scratch_and_a_run_without_one_ignores_it(
    settings, packaged, tmp_path, monkeypatch, capsys
):
    first = curate(CurationConfig(**settings))
    assert curate(CurationConfig(**settings)) == first
    other = shutil.copytree(packaged, tmp_path / "other")
    (other / "corrector.json").write_text((other / "corrector.json").read_text().replace('"word": 0.5', '"word": 1.0'))
    monkeypatch.setattr(corrector, "PACKAGED", other)
    second = curate(CurationConfig(**settings))
    assert "ocr_corrector changed: starting from scratch" in capsys.readouterr().err
    assert not any(name.startswith("ocr_correction: ") for name in second["changes"])
    plain = curate(CurationConfig(**{**settings, "ocr_correction": False}))
    assert "ocr_correction" not in str(plain["settings"]) and "ocr_correction" not in str(plain["changes"])
    assert read_json(tmp_path / "out" / "curation.json") == plain


@pytest.mark.parametrize("missing", ["corrector.json", "en.lexicon", "gates.safetensors"])
def test_a_missing_file_of_the_corrector_stops_the_run_at_its_start(
    missing, settings, packaged, tmp_path, monkeypatch
):
    monkeypatch.setattr(corrector, "PACKAGED", shutil.copytree(packaged, tmp_path / "x", ignore=lambda *_: [missing]))
    with pytest.raises(InputError, match=f"contains no OCR corrector.*{missing}"):
        curate(CurationConfig(**settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("band", [[], [0.9], [0.9, 0.8], [-1, 1], [0, 2]])
def test_a_band_that_is_none_is_refused(band, settings):
    with pytest.raises(InputError, match="--ocr_correction_band .* must be a minimum and a maximum"):
        curate(CurationConfig(**{**settings, "ocr_correction_band": band}))


def test_correction_without_a_model_does_not_import_torch(packaged):
    code = (
        "import sys; from pathlib import Path; from training.curation.pipeline_blocks import open_corrector\n"
        f"open_corrector(Path({str(packaged)!r})).correct('the old rnother', 'en')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
