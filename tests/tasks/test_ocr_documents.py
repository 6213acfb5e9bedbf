"""OCR documents: text, hOCR, ALTO and PAGE XML are read with boxes and written with changes alone.

ocr_samples/: a rendered and degraded page (training.tasks.pages, seed 6) that Tesseract 5.3.0 read (`--psm 4 --dpi 150
hocr alto txt`); its PAGE XML is converted from the hOCR, since this version of Tesseract writes none.
"""

import difflib
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from ocr_dictionary import TABLE, Dictionary

from training.common.config import InputError
from training.curation.dehyphenation import divided_words, repair
from training.tasks.ocr.changes import Change, apply_changes
from training.tasks.ocr.documents import Line, Passage, Word, read_document
from training.tasks.ocr.documents.document import divide, within_lines, without_context
from training.tasks.pages import degrade, render_page

SAMPLES = Path(__file__).with_name("ocr_samples")
FILES = ("page.txt", "page.hocr", "page.alto", "page.xml")
BOXED = FILES[1:]


def text_of(document) -> str:
    """Return the text of a document as a corrector reads it."""
    return Passage(document.lines).text


def words_of(document) -> list[tuple[str, tuple | None]]:
    """Return the words of a document with their boxes."""
    return [(word.text, word.box) for line in document.lines for word in line.words]


def corrected(name: str | Path, table: dict, path: Path):
    """Correct a sample with a table, write it to `path` and read it again; return records, both documents and text."""
    document = read_document(SAMPLES / name)
    text = text_of(document)
    records = document.correct(Passage(document.lines), Dictionary(table).changes(text, "en"))
    path.write_bytes(document.to_bytes())
    return records, document, read_document(path)


@pytest.mark.parametrize("name", FILES)
def test_an_unchanged_file_is_written_byte_for_byte(name):
    document = read_document(SAMPLES / name)
    assert document.correct(Passage(document.lines), []) == []
    assert document.to_bytes() == (SAMPLES / name).read_bytes()


def test_all_formats_have_the_same_text_and_the_same_boxes():
    documents = [read_document(SAMPLES / name) for name in FILES]
    words = [text_of(document).split() for document in documents]
    assert words[0] == words[1] == words[2] == words[3] and len(words[0]) == 67
    assert words_of(documents[1]) == words_of(documents[2]) == words_of(documents[3])
    assert [document.pages[0].image for document in documents] == [None, "page.png", "page.png", "page.png"]
    assert {document.pages[0].size for document in documents[1:]} == {(507, 312)}
    assert [document.lines[0].language for document in documents] == [None, "eng", None, "English"]


@pytest.mark.parametrize("name", FILES)
def test_a_corrected_file_has_the_corrected_text_and_all_other_words_as_they_were(name, tmp_path):
    before = read_document(SAMPLES / name)
    records, document, after = corrected(name, TABLE, tmp_path / name)
    text, changes = text_of(before), Dictionary(TABLE).changes(text_of(before), "en")
    inside = [change for change in changes if "\n" not in change.before]  # a word that is divided stays divided
    assert text_of(after) == text_of(document) == apply_changes(text, inside)
    assert [record["after"] for record in records] == [change.after for change in inside]
    assert words_of(after) == words_of(document)
    steps = difflib.SequenceMatcher(None, words_of(before), words_of(after), autojunk=False).get_opcodes()
    altered = [word for tag, i, j, *_ in steps if tag != "equal" for word, _ in words_of(before)[i:j]]
    assert altered == "hamne mult, mitler's Le pt carrier brows! ane wits neves iz".split()


@pytest.mark.parametrize("name", BOXED)
def test_merged_words_get_the_union_and_split_words_share_the_width(name, tmp_path):
    _, _, after = corrected(name, TABLE, tmp_path / name)
    boxes = dict(words_of(after))
    assert boxes["house"] == (109, 42, 156, 73)
    assert boxes["kept"] == (413, 100, 446, 131)  # of (413, 100, 427, 131) and (433, 109, 446, 123)
    left, top, right, bottom = next(box for word, box in words_of(read_document(SAMPLES / name)) if word == "carrier")
    first, second = boxes["car"], boxes["rier"]
    assert (first[0], second[2], first[1], second[3]) == (left, right, top, bottom)
    assert first[2] - left == pytest.approx((right - left) * 3 / 8, abs=0.5)
    assert right - second[0] == pytest.approx((right - left) * 4 / 8, abs=0.5)


@pytest.mark.parametrize("name", BOXED)
def test_only_the_bytes_of_changed_words_differ(name, tmp_path):
    corrected(name, {"hamne": TABLE["hamne"]}, tmp_path / name)
    before, after = (SAMPLES / name).read_bytes(), (tmp_path / name).read_bytes()
    lines = [data.split(b"\n") for data in (before, after)]
    steps = difflib.SequenceMatcher(None, *lines, autojunk=False).get_opcodes()
    altered = [line for tag, i, j, *_ in steps if tag != "equal" for line in lines[0][i:j]]
    if name != "page.xml":
        (line,) = altered
        start, end = before.index(line), before.index(line) + len(line)
        assert after.startswith(before[: before.rindex(b"<", 0, before.index(b"hamne", start)) - 1])
        assert after.endswith(before[before.index(b">", before.index(b"hamne", start)) + 1 : end] + before[end:])
    else:  # the text of its line and of its region; that of the word is now an alternative
        assert sum(b"hamne" in line for line in altered) == 2 and len(altered) <= 9


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_any_changes_inside_lines_are_written_as_they_are_applied(name, seed, tmp_path_factory):
    draw, document = random.Random(seed), read_document(SAMPLES / name)
    text, changes, position = text_of(document), [], 0
    while position < len(text):
        start = position + draw.randint(0, 60)
        end = start + draw.randint(0, 9)
        before = text[start:end]
        if "\n" not in text[max(0, start - 1) : end + 1] and end <= len(text):
            after = draw.choice(["x", "x&<y", "\u017fo", "new word", "a\u0303 b c", before.replace(" ", "") or "z"])
            changes.append(Change(start, end, before, after, "word", 0.5))
        position = end + 1
    document.correct(Passage(document.lines), changes)
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(document.to_bytes())
    expected = re.sub(" +", " ", re.sub(r" ?(\n+) ?", r"\1", apply_changes(text, changes))).strip(" ")
    assert text_of(document) == expected and text_of(read_document(path)) == expected
    if path.suffix in (".hocr", ".alto", ".xml"):
        ids = etree.parse(path).xpath("//@id | //@ID")
        assert len(ids) == len(set(ids))


def test_a_change_is_recorded_where_each_format_has_a_place_for_it(tmp_path):
    for name in BOXED:
        corrected(name, TABLE, tmp_path / name)
    (title,) = etree.parse(tmp_path / "page.hocr").xpath("//*[text()='kept']/@title")
    assert title == 'bbox 413 100 446 131; x_wconf 80; x_before "Le pt"; x_change merge; x_change_conf 99'
    (alternative,) = etree.parse(tmp_path / "page.alto").xpath("//*[@CONTENT='kept']/*[local-name()='ALTERNATIVE']")
    assert alternative.text == "Le pt"
    assert alternative.get("PURPOSE") == "OCR before correction (merge, probability 0.990)"
    word = etree.parse(tmp_path / "page.xml").xpath("//*[local-name()='Word'][*/*[text()='kept']]")[0]
    texts = word.findall("{*}TextEquiv")
    assert [(text.get("index"), text.get("conf"), text[0].text) for text in texts] == [
        ("0", "0.990", "kept"),
        ("1", "0.80", "Le pt"),
    ]


def test_lines_and_regions_of_page_xml_follow_their_words(tmp_path):
    corrected("page.xml", TABLE, tmp_path / "page.xml")
    root = etree.parse(tmp_path / "page.xml").getroot()
    line = root.findall(".//{*}TextLine")[2]
    assert line.find("{*}TextEquiv/{*}Unicode").text == "lage to the mill, where the miller's dasghser kept"
    region = root.find(".//{*}TextRegion/{*}TextEquiv/{*}Unicode").text
    assert region.split("\n")[0] == "The old house stood by the river, and nobody came"
    assert region.split("\n")[2] == "lage to the mill, where the miller's dasghser kept"


def test_page_xml_of_2013_has_one_text_per_word_and_a_comment(tmp_path):
    data = (SAMPLES / "page.xml").read_text(encoding="utf-8").replace("2019-07-15", "2013-07-15")
    (tmp_path / "old.xml").write_text(re.sub(' index="1"', "", data), encoding="utf-8")
    corrected(tmp_path / "old.xml", TABLE, tmp_path / "new.xml")
    (word,) = etree.parse(tmp_path / "new.xml").xpath("//*[local-name()='Word'][*/*[text()='house']]")
    assert len(word.findall("{*}TextEquiv")) == 1
    assert word.get("comments") == "before correction: hamne (word, probability 0.970)"


def test_corrected_page_xml_is_valid_by_its_official_schema(tmp_path):
    """The package ocrd contains it (pagecontent 2019-07-15); no package on PyPI contains that of ALTO."""
    validators = pytest.importorskip("ocrd_validators", reason="ocrd contains the schema of PAGE XML")
    schema = etree.XMLSchema(etree.parse(Path(validators.__path__[0]) / "page.xsd"))
    data = (SAMPLES / "page.xml").read_text(encoding="utf-8")
    for text in (data, re.sub(r"(?s)\s*<Word .*?</Word>", "", data)):
        (tmp_path / "page.xml").write_text(text, encoding="utf-8")
        corrected(tmp_path / "page.xml", TABLE, tmp_path / "new.xml")
        schema.assertValid(etree.parse(tmp_path / "new.xml"))


def test_page_xml_with_lines_alone_is_corrected_in_its_lines(tmp_path):
    data = re.sub(r"(?s)\s*<Word .*?</Word>", "", (SAMPLES / "page.xml").read_text(encoding="utf-8"))
    (tmp_path / "lines.xml").write_text(data, encoding="utf-8")
    records, _, after = corrected(tmp_path / "lines.xml", TABLE, tmp_path / "new.xml")
    assert text_of(after).split("\n")[2] == "lage to the mill, where the miller's dasghser kept"
    assert records[0]["box"] == [20, 47, 465, 69]
    texts = etree.parse(tmp_path / "new.xml").findall(".//{*}TextLine")[2].findall("{*}TextEquiv")
    assert [text[0].text for text in texts][1] == "lage to the mult, where the mitler's dasghser Le pt"


def test_hocr_in_html_and_with_lines_alone_is_read_and_written(tmp_path):
    (tmp_path / "a.html").write_text(
        "<!DOCTYPE html><html><head><meta charset=utf-8></head><body><div class=ocr_page title='bbox 0 0 90 20'>"
        "<span class='ocr_line' title='bbox 0 0 90 20'><span class=ocrx_word title='bbox 0 0 9 9; x_bboxes 0 0 4 9'>"
        "<strong>Le</strong></span> <span class=ocrx_word title='bbox 10 0 30 9'>pt<br></span>\n"
        "<span class=ocrx_word>carrier</span></span><span class=ocr_line>the hamne &amp; co</span></div></body></html>"
    )
    _, _, after = corrected(tmp_path / "a.html", TABLE, tmp_path / "b.html")
    assert text_of(after) == "kept car rier\nthe house & co"
    written = (tmp_path / "b.html").read_text()
    assert '<strong>kept</strong></span> \n<span class="ocrx_word" title=' in written and "x_bboxes" not in written
    assert words_of(after)[0] == ("kept", (0, 0, 30, 9))


def test_spans_of_characters_are_replaced_with_the_word(tmp_path):
    characters = "".join(
        f"<span class='ocrx_cinfo' title='x_bboxes {i} 0 9 9'>{c}</span>" for i, c in enumerate("hamne")
    )
    data = (SAMPLES / "page.hocr").read_text(encoding="utf-8").replace(">hamne<", f">{characters}<")
    (tmp_path / "a.hocr").write_text(data, encoding="utf-8")
    _, _, after = corrected(tmp_path / "a.hocr", TABLE, tmp_path / "b.hocr")
    assert words_of(after)[2] == ("house", (109, 42, 156, 73))
    assert "ocrx_cinfo" not in (tmp_path / "b.hocr").read_text(encoding="utf-8")


def test_line_ends_and_byte_order_mark_of_the_file_stay(tmp_path):
    for name in FILES:
        data = b"\xef\xbb\xbf" + (SAMPLES / name).read_bytes().replace(b"\n", b"\r\n")
        (tmp_path / f"a.{name}").write_bytes(data)
        corrected(tmp_path / f"a.{name}", {"hamne": TABLE["hamne"]}, tmp_path / f"b.{name}")
        written = (tmp_path / f"b.{name}").read_bytes()
        assert written.startswith(b"\xef\xbb\xbf") and written.count(b"\n") == written.count(b"\r\n")
        assert b"house" in written and b"\xef" not in written[3:].replace(b"\xef\xac", b"")


# Words divided at line ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "joined", "halves"),
    [
        ("exani-", "ple", "example", ["exam-", "ple"]),
        ("vil-", "lagc", "village", ["vil-", "lage"]),
        ("well-", "knovvn", "well-known", ["well-", "known"]),
        ("exam", "ple", "example", ["exam", "ple"]),
        ("ni\u00ac", "cht", "nicht", ["ni\u00ac", "cht"]),
    ],
)
def test_a_joined_word_is_divided_where_its_halves_were(left, right, joined, halves):
    assert divide(left, right, joined) == halves


@pytest.mark.parametrize(
    ("change", "trimmed"),
    [
        ((4, 7, "\n\u00a9 ", "\n"), (5, 7, "\u00a9 ", "")),
        ((0, 7, "a bcd e", "a bxd e"), (2, 5, "bcd", "bxd")),
        ((0, 9, "old house", "oldhouse"), (0, 9, "old house", "oldhouse")),
        ((0, 3, "tbe", "the"), (0, 3, "tbe", "the")),
    ],
)
def test_a_change_is_trimmed_to_the_words_that_it_changes(change, trimmed):
    assert without_context(Change(*change, "word", 0.9)) == Change(*trimmed, "word", 0.9)


@pytest.mark.parametrize("name", BOXED)
def test_a_removed_speck_leaves_the_box_of_the_next_word(name, tmp_path):
    table = {"until": ("| until", "punctuation", 0.9), "Gagm to": ("to", "punctuation", 0.9)}
    records, _, after = corrected(name, table, tmp_path / name)
    before = dict(words_of(read_document(SAMPLES / name)))
    assert [word for word, _ in words_of(after)[34:37]] == ["read", "to", "her"]
    assert dict(words_of(after)[35:36])["to"] == (257, 139, 273, 150) and before["Gagm"] != before["to"]
    assert [(record["unit"], record["before"], record["after"]) for record in records][1] == (
        "Gagm to",
        "Gagm to",
        "to",
    )


def test_a_word_over_three_lines_is_divided_twice():
    change = Change(0, 17, "in-\ntcr-\nnatiomal", "international", "word", 0.9)
    assert within_lines(change).after == "in-\nter-\nnational"
    assert within_lines(change._replace(before="in-\n\nnatiomal", after="in-\n\nnational")).after == "in-\n\nnational"


def test_lines_between_which_others_are_missing_are_apart():
    lines = [Line([Word("vil-")], number=0), Line([Word("le")], number=1), Line([Word("lage")], number=2)]
    assert [Passage(lines).text, Passage(lines[::2]).text] == ["vil-\nle\nlage", "vil-\n\nlage"]


@pytest.mark.parametrize("name", FILES)
def test_a_correction_across_a_line_end_keeps_the_lines(name, tmp_path):
    records, _, after = corrected(name, {"vil-\nlage": ("pillage", "word", 0.9)}, tmp_path / name)
    lines = text_of(after).split("\n")
    assert lines[1].endswith("the pil-") and lines[2].startswith("lage to")
    assert [(record["unit"], record["word"], record["words"]) for record in records] == [("vil-\nlage", 9, 2)]


@pytest.mark.parametrize("name", FILES)
def test_line_ends_are_marked_or_joined_by_choice(name, tmp_path):
    texts = {}
    for mode in ("mark", "join"):
        document = read_document(SAMPLES / name)
        before = dict(words_of(document))
        assert document.set_line_ends(divided_words(text_of(document), "en"), mode) == 1
        path = tmp_path / f"{mode}.{name}"
        path.write_bytes(document.to_bytes())
        texts[mode] = text_of(read_document(path))
        assert texts[mode] == text_of(document)
        if mode == "join":
            assert dict(words_of(document))["village"] == before["vil-"]
    assert "the village\nto the mult" in texts["join"]
    if name == "page.alto":  # its own way
        root = etree.parse(tmp_path / "mark.page.alto")
        halves = root.xpath("//*[@SUBS_CONTENT='village']")
        assert [(half.get("CONTENT"), half.get("SUBS_TYPE")) for half in halves] == [
            ("vil-", "HypPart1"), ("lage", "HypPart2"),
        ]  # fmt: skip
    else:
        assert "the vil\u00ad\nlage to" in texts["mark"]


@pytest.mark.parametrize("mode", ["keep", "join"])
def test_the_hyphen_element_and_whole_word_of_alto_follow_its_halves(mode, tmp_path):
    data = (SAMPLES / "page.alto").read_text(encoding="utf-8")
    data = data.replace(
        'CONTENT="vil-"/>', 'CONTENT="vil" SUBS_TYPE="HypPart1" SUBS_CONTENT="vilage"/><HYP CONTENT="-"/>'
    )
    data = data.replace('CONTENT="lage"', 'SUBS_TYPE="HypPart2" SUBS_CONTENT="vilage" CONTENT="lage"')
    (tmp_path / "a.alto").write_text(data, encoding="utf-8")
    _, document, after = corrected(tmp_path / "a.alto", {"vil-\nlage": ("pillage", "word", 0.9)}, tmp_path / "b.alto")
    if mode == "join":
        document.set_line_ends(divided_words(text_of(document), "en"), "join")
        (tmp_path / "b.alto").write_bytes(document.to_bytes())
    nodes = etree.parse(tmp_path / "b.alto").xpath("//*[@CONTENT='pil' or @CONTENT='lage' or @CONTENT='pillage']")
    wholes, hyphens = [node.get("SUBS_CONTENT") for node in nodes], (tmp_path / "b.alto").read_text().count("<HYP")
    assert (wholes, hyphens) == ((["pillage", "pillage"], 1) if mode == "keep" else ([None], 0))


def test_divided_words_are_those_that_curation_joins():
    text = "A narrow lane led from the vil-\nlage to a well-\nknown mill of 1848-\n1849, and a co-\noperative one.\n"
    joined = text
    for start, end, joint in reversed(list(divided_words(text, "en"))):
        joined = joined[:start] + joint + joined[end:]
    assert joined.split() == repair(text, "en").text.split() and "village to a well-known mill of 1848-" in joined


# Bad input ----------------------------------------------------------------------------------------

BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha" * 10}">' for i in range(12))
BAD = {
    "image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is an image"),
    "latin": ("caf\u00e9".encode("latin-1"), "is not UTF-8"),
    "utf16": ("the house".encode("utf-16"), "is not UTF-8|is not text in UTF-8"),
    "zero": (b"the\0house", "is not text in UTF-8"),
    "broken": (b'<?xml version="1.0"?><alto><Layout>', "is broken XML"),
    "declared": (b'<?xml version="1.0"?><alto>\xff</alto>', "is broken XML"),
    "bomb": (f"<!DOCTYPE alto [{BOMB}]><alto>&e11;</alto>".encode(), "is broken XML|declares XML entities"),
    "external": (b'<!DOCTYPE alto [<!ENTITY x SYSTEM "/etc/hostname">]><alto>&x;</alto>', "declares XML entities"),
    "deep": (b"<alto>" + b"<a>" * 5000 + b"</a>" * 5000 + b"</alto>", "is broken XML"),
    "other": (b'<?xml version="1.0"?><TEI/>', "neither hOCR nor ALTO nor PAGE XML"),
    "html": (b"<!doctype html><p>text", "HTML without hOCR"),
    "blank": (b" \n\n", "has no text"),
    "page": (b'<alto><Layout><Page WIDTH="1" HEIGHT="1"/></Layout></alto>', "has no text"),
    "number": (b'<alto><Layout><Page WIDTH="wide"/></Layout></alto>', "has an invalid value"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_a_sentence(name, tmp_path):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        read_document(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


# Tesseract ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_the_boxes_of_a_page_that_tesseract_reads_stay(tmp_path):
    draw = random.Random(4)
    text = "The old house stood by the river, and nobody came\nuntil the spring. A narrow lane led from the village."
    degrade(render_page(text, draw), draw).save(tmp_path / "scan.png")
    command = ["tesseract", tmp_path / "scan.png", tmp_path / "scan", "-l", "eng", "--psm", "6", "--dpi", "150"]
    subprocess.run([*command, "hocr", "alto"], check=True, capture_output=True)
    (tmp_path / "scan.xml").rename(tmp_path / "scan.alto")
    table = {"river": ("ri ver", "split", 0.9), "old house": ("oldhouse", "merge", 0.9)}
    for name in ("scan.hocr", "scan.alto"):
        before = words_of(read_document(tmp_path / name))
        records, _, after = corrected(tmp_path / name, table, tmp_path / f"new.{name}")
        assert {record["kind"] for record in records} == {"split", "merge"}
        unchanged = [(word, box) for word, box in before if word not in ("old", "house", "river,")]
        assert len(unchanged) >= 15 and [entry for entry in words_of(after) if entry in unchanged] == unchanged
