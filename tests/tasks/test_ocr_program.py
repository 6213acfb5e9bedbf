"""`pleias ocr`: folders of files are corrected, resumed and reviewed, and a bad file stops no other."""

import base64
import hashlib
import io
import json
import random
import re
import shutil
import zlib
from pathlib import Path

import pytest
from lxml import html
from ocr_dictionary import TABLE, DictionaryLoader
from PIL import Image, ImageDraw
from programs import run_program

from training import ocr
from training.common.config import InputError
from training.common.files import lock_folder, read_json
from training.ocr import CorrectorLoader, OcrConfig, correct_files
from training.tasks.ocr.corrector import PACKAGED
from training.tasks.ocr.documents import Passage, read_document
from training.tasks.ocr.review import write_review
from training.tasks.pages import degrade, render_page

FEMTO = Path(__file__).parents[2] / "model_card" / "femto"

SAMPLES = Path(__file__).with_name("ocr_samples")
HERE = str(Path(__file__).parent)
USE_DICTIONARY = (
    f"import sys; sys.path.insert(0, {HERE!r}); import ocr_dictionary, training.ocr; "
    "training.ocr.CorrectorLoader = ocr_dictionary.{}"
)


@pytest.fixture
def scans(tmp_path):
    """Folder with a page in four formats, in a subfolder too."""
    folder = tmp_path / "scans"
    for place in (folder, folder / "more"):
        shutil.copytree(SAMPLES, place)
    return folder


def run(folder: Path, out: Path, **settings) -> dict:
    """Correct a folder with the dictionary in this process."""
    return correct_files(OcrConfig(files=[folder], out=out, workers=1, **settings), DictionaryLoader())


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("ocr.json", ".lock")
    }


def test_a_folder_is_corrected_into_another_with_a_record_per_file(scans, tmp_path):
    summary = run(scans, tmp_path / "out")
    assert summary["files"] == {"corrected": 8, "reused": 0, "failed": 0}
    assert summary == read_json(tmp_path / "out" / "ocr.json")
    names = {
        f"{place}{name}" for place in ("", "more/") for name in ("page.txt", "page.hocr", "page.alto", "page.xml")
    }
    assert set(snapshot(tmp_path / "out")) == names | {f"{name}.changes.json" for name in names}
    record = read_json(tmp_path / "out" / "page.alto.changes.json")
    assert record["characters"] == {"en": 349} and record["line_ends"] == 0
    assert record["changes"][3] == {
        "page": 0, "line": 2, "word": 8, "words": 2, "unit": "Le pt", "start": 0, "end": 5, "before": "Le pt",
        "after": "kept", "kind": "merge", "probability": 0.99, "box": [413, 100, 446, 131],
    }  # fmt: skip
    document = read_document(scans / "page.alto")
    assert record["pages"][0]["lines"] == [[word.text for word in line.words] for line in document.lines]
    assert summary["changes"] == {
        kind: 8 * sum(kind == entry[1] and "\n" not in before for before, entry in TABLE.items())
        for kind in ("word", "merge", "split", "punctuation")
    }


def test_a_done_file_is_skipped_and_one_from_other_input_is_never_overwritten_unasked(scans, tmp_path, capsys):
    out = tmp_path / "out"
    run(scans, out)
    before = snapshot(out)
    assert run(scans, out)["files"] == {"corrected": 0, "reused": 8, "failed": 0}
    (out / "more" / "page.txt").unlink()
    assert run(scans, out)["files"] == {"corrected": 1, "reused": 7, "failed": 0}
    assert {name: content for name, (content, _) in snapshot(out).items()} == {
        name: content for name, (content, _) in before.items()
    }
    (scans / "page.txt").write_text("The hamne stood by the river until the spring.", encoding="utf-8")
    assert run(scans, out)["files"] == {"corrected": 0, "reused": 7, "failed": 1}
    assert f"{out / 'page.txt'} was made from another file" in capsys.readouterr().err
    assert snapshot(out)["page.txt"] == before["page.txt"]
    assert run(scans, out, overwrite=True)["files"] == {"corrected": 1, "reused": 7, "failed": 0}
    assert (out / "page.txt").read_text(encoding="utf-8") == "The house stood by the river until the spring."
    assert run(scans, out, line_ends="join")["files"]["failed"] == 8


def test_a_dry_run_reports_the_changes_and_writes_only_the_review(scans, tmp_path):
    summary = run(scans, tmp_path / "out", dry_run=True, review=tmp_path / "review.html")
    assert summary["files"]["corrected"] == 8 and sum(summary["changes"].values()) == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["review.html", "scans"]


def test_bad_files_are_named_and_the_others_corrected(scans, tmp_path):
    (scans / "broken.xml").write_bytes(b'<?xml version="1.0"?><alto>')
    (scans / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (scans / "scan.png").write_bytes(b"\x89PNG")
    (scans / "scan.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (scans / "blank.txt").write_bytes(b"\n")
    (scans / "METS.xml").write_bytes(b"<mets/>")  # beside ALTO: no error
    write_review(scans / "review.html", {})
    arguments = [scans, tmp_path / "none", "--out", tmp_path / "out", "--workers", 1]
    done = run_program(
        "training.ocr", *arguments, log=tmp_path / "log", prelude=USE_DICTIONARY.format("DictionaryLoader")
    )
    assert done.returncode == 2
    assert done.stdout.startswith(
        "8 files corrected, 0 done before, 5 failed; 64 changes in 2,800 characters (40 word"
    )
    errors = [line for line in done.stderr.replace("\r", "\n").split("\n") if line.startswith("error: ")]
    assert [line for line in errors if str(tmp_path / "none") in line and "does not exist" in line]
    for name, reason in {
        "broken.xml": "is broken XML",
        "latin.txt": "is not UTF-8",
        "scan.txt": "is an image (PNG)",
        "blank.txt": "has no text",
    }.items():
        assert [line for line in errors if name in line and reason in line], name
    assert errors[-1] == "error: 5 of the inputs could not be corrected; see the messages above."
    assert not [
        path for path in (tmp_path / "out").rglob("*") if path.name.startswith(("broken", "latin", "scan", "blank"))
    ]


def test_50_pages_killed_and_resumed_are_those_of_an_uninterrupted_run(tmp_path):
    for i in range(50):
        (tmp_path / "scans" / f"{i:02}").mkdir(parents=True)
        shutil.copy(SAMPLES / "page.hocr", tmp_path / "scans" / f"{i:02}" / "page.hocr")
    command = ["training.ocr", tmp_path / "scans", "--workers", 1, "--out"]

    def start(out: str, loader: str):
        return run_program(*command, tmp_path / out, log=tmp_path / "log", prelude=USE_DICTIONARY.format(loader))

    assert start("out", "KillingLoader").returncode < 0
    before = snapshot(tmp_path / "out")
    assert len([name for name in before if name.endswith("page.hocr")]) == 19
    done = start("out", "DictionaryLoader")
    assert done.stdout.startswith("31 files corrected, 19 done before, 0 failed"), done.stderr
    assert start("at_once", "DictionaryLoader").returncode == 0
    after = snapshot(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in snapshot(tmp_path / "at_once").items()
    }


@pytest.mark.slow
def test_worker_processes_write_the_same_files(scans, tmp_path):
    run(scans, tmp_path / "one")
    summary = correct_files(OcrConfig(files=[scans], out=tmp_path / "two", workers=2), DictionaryLoader())
    assert summary["files"]["corrected"] == 8
    contents = [{name: content for name, (content, _) in snapshot(tmp_path / out).items()} for out in ("one", "two")]
    assert contents[0] == contents[1]


def test_two_files_for_one_output_and_a_file_as_its_own_output_are_refused(scans, tmp_path):
    files = [scans / "page.txt", scans / "more" / "page.txt"]
    with pytest.raises(InputError, match="would both be written"):
        correct_files(OcrConfig(files=files, out=tmp_path / "out"), DictionaryLoader())
    with pytest.raises(InputError, match="is the folder of"):
        correct_files(OcrConfig(files=files[:1], out=scans), DictionaryLoader())
    with lock_folder(tmp_path / "out"), pytest.raises(InputError, match="Another run is writing"):
        run(scans, tmp_path / "out")


# Languages ----------------------------------------------------------------------------------------

DUTCH = "Het oude huis stond aan de rivier, en niemand kwam tot het voorjaar; een smalle weg liep naar de molen. " * 3


def languages(tmp_path: Path, text: str, *, language: str | None = None, known=("en", "nl")) -> dict[str, int]:
    """Return the language and number of the lines of a file."""
    (tmp_path / "file").write_text(text, encoding="utf-8")
    document = read_document(tmp_path / "file")
    config = OcrConfig(files=[], out=tmp_path, language=language)
    corrector = DictionaryLoader(languages=known)()
    groups = ocr.by_language(document, config, corrector, tmp_path / "file")
    return {code: len(lines) for code, lines in groups.items()}


def test_the_language_is_the_given_or_stated_or_identified_one(tmp_path):
    stated = (SAMPLES / "page.hocr").read_text(encoding="utf-8")
    assert languages(tmp_path, stated) == {"en": 8}
    assert languages(tmp_path, stated, language="nl") == {"nl": 8}
    assert languages(tmp_path, DUTCH) == {"nl": 1}
    first = stated.replace("lang='eng'", "lang='nld'", 1)  # too little text to contradict the file
    assert languages(tmp_path, first.replace("lang='eng'", "lang='swe'")) in ({"nl": 5}, {"en": 5})


def test_text_that_is_clearly_in_another_language_contradicts_the_default_of_tesseract(tmp_path):
    words = "".join(f"<span class='ocrx_word'>{word}</span> " for word in DUTCH.split())
    page = f"<?xml version='1.0'?><html><body lang='eng'><p class='ocr_line'>{words}</p></body></html>"
    assert languages(tmp_path, page) == {"nl": 1}


@pytest.mark.parametrize(
    ("text", "language", "message"),
    [
        ("1848 1849", None, "is in an unclear language"),
        ("Det gamla huset", "sv", r"without a corrector \(sv\): pass --language, one of en, nl"),
        ("<html><p class='ocr_line' lang='swe'>Det gamla huset</p></html>", None, r"without a corrector \(swe\)"),
    ],
)
def test_a_language_without_a_corrector_is_refused_by_name(tmp_path, text, language, message):
    with pytest.raises(InputError, match=message):
        languages(tmp_path, text, language=language)


# Review -------------------------------------------------------------------------------------------


def test_the_review_marks_every_change_and_shows_the_image_of_its_word(scans, tmp_path):
    document = read_document(scans / "page.hocr")
    page = Image.new("L", (2 * 507, 2 * 312), 255)  # at twice the resolution of the OCR
    shades = {}
    for i, word in enumerate(word for line in document.lines for word in line.words):
        shades[word.text] = 10 + 3 * i
        ImageDraw.Draw(page).rectangle([2 * side for side in word.box], fill=shades[word.text])
    page.save(scans / "page.png")
    shutil.rmtree(scans / "more")
    run(scans / "page.hocr", tmp_path / "out", review=tmp_path / "review.html")
    root = html.parse(str(tmp_path / "review.html")).getroot()
    marks = [(mark.get("class"), mark[0].text, mark[1].text, mark[2].text) for mark in root.findall(".//mark")]
    record = read_json(tmp_path / "out" / "page.hocr.changes.json")
    assert marks == [
        (change["kind"], change["before"], change["after"], str(int(100 * change["probability"])))
        for change in record["changes"]
    ]
    for mark in root.findall(".//mark"):
        mark[0].drop_tree()
        mark[1].drop_tree()
    text = root.find(".//div[@class='page']").text_content()
    written = Passage(read_document(tmp_path / "out" / "page.hocr").lines).text
    assert text == written
    rows = root.findall(".//tbody/tr")
    images = [row.find(".//img").get("src").removeprefix("data:image/jpeg;base64,") for row in rows]
    middle = Image.open(io.BytesIO(base64.b64decode(images[0])))
    assert middle.getpixel((middle.width // 2, middle.height // 2)) == pytest.approx(shades["hamne"], abs=4)
    assert len(images) == len(record["changes"]) == 8


def test_the_review_loads_nothing_and_escapes_the_text_of_documents(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(1)> {{ script }} \u202e\x07 & \"'"
    (scans / "<b>&.txt").write_text(f"The old hamne {evil} and hamne came until the spring", encoding="utf-8")
    table = {"hamne": (f"house{evil}", "word", 0.9), "<script>alert(1)</script>": ("<i>", "word", 0.5)}
    config = OcrConfig(files=[scans], out=tmp_path / "out", language="en", workers=1, review=tmp_path / "review.html")
    correct_files(config, DictionaryLoader(table=table))
    source = (tmp_path / "review.html").read_text(encoding="utf-8")
    root = html.fromstring(source)
    (script,) = root.findall(".//script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = root.find(".//meta[@http-equiv]").get("content")
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not root.findall(".//img") and not root.findall(".//i") and not root.findall(".//main//b//*")
    assert "<b>&amp;" not in source and "\u202e" not in source and "\x07" not in source
    assert r"\u202e\x07" in root.find(".//div[@class='page']").text_content()


def test_a_file_that_is_no_review_is_not_overwritten(scans, tmp_path):
    (tmp_path / "thesis.html").write_text("my thesis")
    arguments = [scans, "--out", tmp_path / "out", "--review", tmp_path / "thesis.html"]
    done = run_program("training.ocr", *arguments, log=tmp_path / "log")
    assert done.returncode == 2 and "thesis.html exists and is no review" in done.stderr
    assert (tmp_path / "thesis.html").read_text() == "my thesis"


def test_a_damaged_page_image_leaves_the_review_without_its_words(scans, tmp_path):
    (scans / "page.png").write_bytes(b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(200))
    run(scans, tmp_path / "out", review=tmp_path / "review.html")
    root = html.parse(str(tmp_path / "review.html")).getroot()
    assert not root.findall(".//img") and len(root.findall(".//mark")) == 64


# Searchable PDFs ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ocrmypdf") is None, reason="ocrmypdf is not installed")
def test_the_text_layer_of_a_scanned_pdf_is_corrected(tmp_path):
    draw = random.Random(4)
    text = "The old house stood by the river, and nobody came\nuntil the spring. A narrow lane led from the village."
    scan = degrade(render_page(text, draw), draw)
    scan.save(tmp_path / "scan.pdf", save_all=True, append_images=[Image.new("L", scan.size, 255)], resolution=150)
    config = OcrConfig(files=[tmp_path / "scan.pdf"], out=tmp_path / "out", language="en", workers=1)
    summary = correct_files(config, DictionaryLoader(table={"river": ("mountain", "word", 0.9)}))
    assert summary["files"]["corrected"] == 1 and summary["changes"] == {"word": 1}
    assert json.dumps(read_json(tmp_path / "out" / "scan.pdf.changes.json")["pages"][1]["lines"]) == "[]"
    streams = re.findall(rb"(?s)FlateDecode.*?stream\r?\n(.*?)endstream", (tmp_path / "out" / "scan.pdf").read_bytes())
    layer = b"".join(zlib.decompressobj().decompress(stream) for stream in streams if stream.startswith(b"\x78"))
    assert b"mountain" in layer and b"river" not in layer and b"nobody" in layer


def test_femto_judges_the_changes_of_the_packaged_corrector_and_another_model_is_refused(base_model):
    assert CorrectorLoader(FEMTO).folder == CorrectorLoader().folder == PACKAGED
    assert CorrectorLoader(FEMTO).fingerprint() != CorrectorLoader().fingerprint()
    assert CorrectorLoader(FEMTO)().judge is not None
    with pytest.raises(
        InputError, match=r"has no OCR corrector \(ocr_channel\), and that of this package was learned"
    ):
        CorrectorLoader(base_model).fingerprint()
