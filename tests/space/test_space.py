"""The page marks what occurs in training shards and corrects OCR as the library does; bad input is one sentence."""

import ast
import html
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from model_card.formats import gguf_writer
from modeling_pleias import PleiasForCausalLM
from training.common.config import InputError
from training.common.files import read_json, sha256, write_json
from training.evaluation.models import EvaluatedModel
from training.tasks import ocr, pages, rag, translation
from training.tasks.ocr.changes import apply_changes
from training.tasks.pages import render_page
from training.tracing.search import MatchedSpan, TraceIndex
from training.tracing.trace_index import build_index as build_index

gr = pytest.importorskip("gradio", reason="the extra [app] is not installed")

from training import app  # noqa: E402
from training.space import app as space  # noqa: E402
from training.space.sources import segments  # noqa: E402
from training.space.tasks import changes_between, read_page  # noqa: E402

ROOT = Path(__file__).parents[2]
OCR_TEXT = (
    "It was the beft of times, it was tbe worst of tirnes, it was\nthe age of wisdom, it was tlie epoch of belief."
)
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def index(tiny_shards, tiny_tokenizer, tmp_path_factory):
    """Folder of the index of tiny shards."""
    folder = tmp_path_factory.mktemp("index")
    build_index([tiny_shards], tokenizer=tiny_tokenizer, out=folder)
    return folder


@pytest.fixture(scope="module")
def run(base_model, tiny_shards, tmp_path_factory):
    """Folder of a run whose model has read tiny shards."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(base_model, folder / "model")
    (folder / "config.yaml").write_text("name: tiny\n", encoding="utf-8")
    data = [read_json(tiny_shards / "manifest.json")["fingerprint"]]
    write_json(folder / "run.json", {"name": "tiny", "sessions": [{"data": data, "init_from": None}]})
    return folder


def handler(page: gr.Blocks, name: str):
    """The function of an event of the page."""
    return next(function.fn for function in page.fns.values() if function.name == name)


@pytest.fixture(scope="module")
def task_model(base_model, tmp_path_factory):
    """Folder of a model with random weights that has the tokens of all tasks."""
    folder = tmp_path_factory.mktemp("tasks") / "model"
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    tokenizer.add_tokens(list(app.STOPS.values()), special_tokens=True)
    model = PleiasForCausalLM.from_pretrained(base_model, max_position_embeddings=512)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def page(run, index):
    return app.open_page(app.AppConfig(run, index))[0]


@pytest.fixture(scope="module")
def planted(index):
    """A text with a passage of a training document: the text, the passage, and the document."""
    block = next(TraceIndex(index).blocks())
    row = next(row for row in block.documents.to_pylist() if row["bytes"] > 400)
    content = block.text[row["start"] : row["start"] + row["bytes"]].decode()
    passage = content[content.index(" ", 90) : content.index(" ", 250)]
    return f"<b>{{{{1}}}} ${{1}}{passage}qqz", passage, row


def test_a_passage_of_a_training_document_is_marked_with_its_licence_and_shown_in_its_neighbourhood(page, planted):
    text, passage, row = planted
    marked, summary, _, parts = handler(page, "mark")(text, 20)
    marks = re.findall(r'<mark [^>]* data-number="\d+">([^<]*)</mark>', marked)
    assert html.escape(passage) in "".join(marks) and marked.endswith("qqz</div>") and "Verbatim in" in summary
    number = next(i for i, part in enumerate(parts) if part.spans)
    span = max(parts[number].spans, key=lambda span: span.length)
    shown = handler(page, "show")(parts, gr.EventData(None, {"number": number}))
    document = span.documents[0]
    assert document.license in shown and document.identifier in shown and "on an unknown date" in shown
    assert f"<mark>{html.escape(span.text)}</mark>" in shown


def test_the_text_around_a_passage_is_that_of_the_document(index, planted):
    text, _, _ = planted
    index = TraceIndex(index)
    span = max(index.spans(text), key=lambda span: span.length)
    block = next(index.blocks())
    for document in span.documents:
        row = next(row for row in block.documents.to_pylist() if row["identifier"] == document.identifier)
        content = block.text[row["start"] : row["start"] + row["bytes"]].decode()
        place = len(content.encode()[: document.position].decode())
        before, after = index.around(span.text, document, 30)
        assert content.startswith(before + span.text + after, place - len(before))
        assert len(before) == min(30, place) and len(after) == min(30, len(content) - place - len(span.text))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=5))
def test_segments_are_the_text_and_each_lies_in_its_passages(places):
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJ"
    spans = [MatchedSpan(start, size, text[start : start + size], 1, 1, [], []) for start, size in places]
    parts, position = segments(text, spans), 0
    assert "".join(part.text for part in parts) == text
    for part in parts:
        end = position + len(part.text)
        inside = [span for span in spans if span.start < end and position < span.start + len(span.text)]
        assert sorted(inside, key=lambda span: -span.length) == part.spans
        position = end


def test_the_ocr_tab_corrects_as_the_library_and_its_review_states_probabilities(page):
    text, review = handler(page, "correct_text")(OCR_TEXT, "as identified")
    assert text == ocr.Corrector.load(app.PACKAGED).correct(OCR_TEXT, "en") != OCR_TEXT
    assert "&lt;del&gt;beft&lt;/del&gt;&lt;ins&gt;best&lt;/ins&gt;" in review
    assert re.search(r"data-probability=&quot;0\.\d{4}&quot;", review)


@settings(max_examples=30)
@given(*[st.text(alphabet="ab \u00e9", max_size=30)] * 2)
def test_the_changes_of_a_fine_tuned_model_give_its_correction(text, corrected):
    assert apply_changes(text, changes_between(text, corrected)) == corrected


def test_the_changes_of_a_fine_tuned_model_keep_line_ends():
    assert apply_changes("tbe\nend", changes_between("tbe\nend", "the end")) == "the\nend"


def test_a_change_without_probability_is_reviewed_without(tmp_path):
    class FineTuned:
        languages = ("en",)

        def changes(self, text, language, *, threshold=1.0):
            return changes_between(text, text.replace("beft", "best"))

    (source := tmp_path / "page.txt").write_text(OCR_TEXT)
    text, review = app.correct_page(FineTuned(), source, "en")
    assert text == OCR_TEXT.replace("beft", "best")
    assert 'data-probability=""' in review and "<sup></sup>" in review and "nan" not in review


@pytest.mark.parametrize("name", ["mark", "continue_text", "continue_greedily", "correct_text", "correct_image"])
def test_an_empty_text_is_one_sentence(page, name):
    arguments = {"continue_text": ("", 8, 0, 1), "continue_greedily": ("", 8), "correct_image": (None, "French")}
    with pytest.raises(gr.Error, match=r"(The text is empty|Upload a page image)[^\n]+\."):
        list(handler(page, name)(*arguments.get(name, (" \n", 20))))


def test_an_index_of_another_tokenizer_or_of_other_shards_is_refused(run, index, base_model, tiny_shards, tmp_path):
    other = TraceIndex(shutil.copytree(index, tmp_path / "other"))
    tokenizer = AutoTokenizer.from_pretrained(base_model).train_new_from_iterator(["une autre langue"] * 9, 300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    shutil.copyfile(tmp_path / "tokenizer" / "tokenizer.json", other.folder / "tokenizer.json")
    with pytest.raises(InputError, match="other has another tokenizer than tiny: pass that of its shards.$"):
        app.check_index(other, EvaluatedModel(str(run)))
    moved = shutil.copytree(run, tmp_path / "tiny")
    write_json(moved / "run.json", {"name": "tiny", "sessions": [{"data": ["0" * 64], "init_from": None}]})
    with pytest.raises(InputError, match="is of shards that tiny was not trained on: pass that of its shards.$"):
        app.open_page(app.AppConfig(moved, index))
    write_json(moved / "run.json", {"name": "tiny", "sessions": [{"data": ["0" * 64], "init_from": {"a": "b"}}]})
    app.check_index(TraceIndex(index), EvaluatedModel(str(moved)))  # its first model may have read them
    released = shutil.copytree(run / "model", tmp_path / "released")
    write_json(released / "runs" / "tiny" / "run.json", {"sessions": [{"data": ["0" * 64]}]})
    with pytest.raises(InputError, match="is of shards that released was not trained on: pass that of its shards.$"):
        app.check_index(TraceIndex(index), EvaluatedModel(str(released)))
    manifest = {"shards": read_json(tiny_shards / "manifest.json")["shards"]}  # of an earlier version
    write_json(released / "runs" / "tiny" / "manifests" / "base.json", manifest)
    app.check_index(TraceIndex(index), EvaluatedModel(str(released)))


def test_an_index_without_its_shards_works_and_the_first_screen_says_what_is_missing(run, index, tmp_path):
    copy = shutil.copytree(index, tmp_path / "index")
    facts = read_json(copy / "index.json")
    facts["shards"][0]["folder"] = str(tmp_path / "gone")
    write_json(copy / "index.json", facts)
    _, lines = app.open_page(app.AppConfig(run, copy))
    assert f"its shards {tmp_path}/gone are missing, and with them the dates of sources" in lines


def test_the_page_of_a_space_imports_nothing_of_this_project_unless_it_is_installed(base_model):
    tree = ast.parse(Path(space.__file__).read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imported if node.level or node.module.startswith("modeling_pleias")] == [
        "modeling_pleias.training.app"
    ]
    model = space.Torch.load(str(base_model), trust_remote_code=False)
    mark = space.origin("tiny", space.find_weights(str(base_model)))
    digest = sha256(base_model / "model.safetensors")
    assert mark == {"ai_generated": True, "model": "tiny", "sha256": digest}
    page = space.build_page(model, "tiny", {}, mark)
    texts, marks = zip(*handler(page, "continue_text")("the old house", 8, 0, 1), strict=True)
    assert all(returned is mark for returned in marks)
    ids = model.tokenizer("the old house", return_tensors="pt")
    generated = model.model.generate(**ids, max_new_tokens=8, do_sample=False, repetition_penalty=1.0)
    assert texts[-1] == model.tokenizer.decode(generated[0], skip_special_tokens=True)
    assert all(after.startswith(before) for before, after in pairwise(texts))


def test_the_first_screen_states_the_licence_of_a_release_and_of_a_gguf_file(base_model, index, tmp_path):
    variant = shutil.copytree(base_model, tmp_path / "dist" / "llama")
    write_json(variant / "evidence" / "release.json", {"license": "apache-2.0", "source": {"run": {"config": {}}}})
    assert "licence   apache-2.0\n" in app.open_page(app.AppConfig(tmp_path / "dist"))[1]
    gguf_writer.write_gguf(
        base_model, path := tmp_path / "a.gguf", format="BF16", name="a", license="mit", languages=[]
    )
    assert "licence   mit\nindex" in app.open_page(app.AppConfig(path, index))[1]


@pytest.mark.parametrize(
    ("folder", "content", "tasks"),
    [
        ("run/model", {}, ["Correct OCR"]),
        ("run/model", {"task": "translation"}, ["Correct OCR", "Translate"]),
        ("released", {"task": "rag"}, ["Correct OCR", "Answer from sources"]),
        ("downloaded", None, ["Correct OCR", "Translate", "Answer from sources"]),
    ],
)
def test_tabs_are_those_of_the_task_that_a_model_was_tuned_for(folder, content, tasks, task_model, tmp_path):
    shutil.copytree(task_model, folder := tmp_path / folder)
    if folder.name == "model":
        write_json(folder.parent / "config.yaml", content)  # JSON is YAML
    elif content:
        write_json(folder / "evidence" / "release.json", {"source": {"run": {"config": content}}})
    assert app.open_page(app.AppConfig(folder))[1].endswith(f"tabs      Continue, {', '.join(tasks)}")


def test_translations_and_answers_are_those_of_the_library_and_too_long_sources_one_sentence(task_model):
    subject = EvaluatedModel(str(task_model))
    page, _ = app.open_page(app.AppConfig(task_model))
    text = "the old house stood by the river.\n\nwhen bells rang"
    translated = translation.translate(subject.model, subject.tokenizer, text, target="fr")
    assert handler(page, "translate")(text, "French") == translated
    result = rag.answer(subject.model, subject.tokenizer, "who came?", ["the hills", "the river"])
    answer, analysis = handler(page, "answer")("who came?", "the hills\n \nthe river\n")
    assert answer.startswith(result.plain) and analysis == result.analysis
    with pytest.raises(gr.Error, match="exceeds the model's context length of 512: use fewer or shorter sources"):
        handler(page, "answer")("who came?", "the river\n" * 500)


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_error_of_the_generating_thread_is_an_error_of_the_request(base_model, tokens):
    class Failing:
        def generate(self, input_ids, streamer, **settings):
            streamer.put(input_ids)
            for token in input_ids[0, :tokens]:
                streamer.put(token[None])
            raise RuntimeError("probability tensor contains nan")

    model = space.Torch(Failing(), AutoTokenizer.from_pretrained(base_model))
    with pytest.raises(RuntimeError, match="contains nan"):
        list(model.stream("the old house by the river", 8, 0.7, 1.0))


@pytest.fixture
def program(run, index):
    """The program as a process, its first screen, and a listener that takes its connections to elsewhere."""
    command = [sys.executable, "-m", "training.app", str(run), "--index", str(index), "--port", "0"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    # What a shell starts in the background, such as these tests, ignores SIGINT, and so would the server.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        proxy = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        proxies = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}
        with subprocess.Popen(command, env=os.environ | proxies, **options) as process:
            try:
                yield process, list(iter(process.stdout.readline, "Ctrl-C ends it.\n")), elsewhere
            finally:
                process.kill()


def test_a_missing_language_pack_is_reported_in_the_words_of_the_program_that_renders_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "tesseract_languages", lambda: {"eng"})
    message = "^Tesseract has no language pack for French: install tesseract-ocr-fra.$"
    with pytest.raises(InputError, match=message):
        read_page(tmp_path / "scan.png", "fr", tmp_path)
    with pytest.raises(InputError, match=message):
        pages.build_pairs(pages.PagesConfig(out=tmp_path, languages=["fr"]))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_the_page_in_a_browser(program, planted, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    process, lines, elsewhere = program
    screen = dict(line.strip().split(None, 1) for line in lines)
    assert screen["model"].startswith("tiny (") and screen["licence"] == "not stated"
    assert screen["tabs"] == "Continue, Sources, Correct OCR"
    text, passage, row = planted
    render_page(OCR_TEXT, random.Random(0)).save(tmp_path / "scan.png")
    with sync_api.sync_playwright() as playwright:
        # A sandbox is unavailable to root in a container, and the page is the app's own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, addresses = browser.new_page(), []
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(screen["page"])
        page.get_by_role("tab", name="Sources", exact=True).click()
        page.get_by_role("button", name="Find sources", exact=True).click()
        page.get_by_text("The text is empty: enter one.").wait_for()
        field = page.get_by_label("Text; a continuation is added to it (AI-generated)")
        field.fill(text)
        page.get_by_role("button", name="Continue, then find sources").click()
        page.get_by_text("Verbatim in").wait_for()
        assert field.input_value().startswith(text) and field.input_value() != text
        assert "<b>{{1}} ${1}" in page.locator("#sources").inner_text()
        page.locator("#sources mark", has_text=passage[20:60]).first.click()
        page.locator("#documents blockquote mark").first.wait_for()
        assert passage in page.locator("#documents blockquote mark").first.text_content()
        page.get_by_role("tab", name="Correct OCR").click()
        page.get_by_label("OCR text").fill(OCR_TEXT)
        page.get_by_role("button", name="Correct the text").click()
        review = page.frame_locator("iframe")
        review.locator("mark ins", has_text="best").wait_for()
        page.get_by_label("Language").click()
        page.get_by_role("option", name="English").click()
        page.locator("input[type=file]").set_input_files(tmp_path / "scan.png")
        page.locator("img[alt]").last.wait_for()
        page.get_by_role("button", name="Read and correct the image").click()
        review.get_by_text("page.hocr").first.wait_for()
        review.locator("tbody img").first.wait_for()
        assert "it was the worst of times" in page.locator("#corrected textarea").input_value()
        browser.close()
    assert {urlsplit(address).netloc for address in addresses if address.startswith("http")} == {
        urlsplit(screen["page"]).netloc
    }
    with pytest.raises(BlockingIOError):
        elsewhere.accept()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read().endswith("\nStopped by SIGINT.\n")
