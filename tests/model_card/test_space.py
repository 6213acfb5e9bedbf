"""The app builds the prompts of fine-tuning, and states which quotations are verbatim."""

import importlib.util
import runpy
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from training.tasks import markers
from training.tasks.ocr.format import STOP as OCR_STOP
from training.tasks.ocr.format import format_ocr
from training.tasks.rag import format as rag_format
from training.tasks.translation.format import STOP as TRANSLATION_STOP
from training.tasks.translation.format import format_translation

PATH = Path(__file__).parents[2] / "model_card" / "space" / "formats.py"
spec = importlib.util.spec_from_file_location("space_formats", PATH)
formats = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = formats
spec.loader.exec_module(formats)

TEXTS = st.lists(
    st.sampled_from(["<|text_end|>", "<ref", "</ref>", "[PAD]", "<", "\u2060", "|", "word", " "]), max_size=6
).map("".join)


@given(text=TEXTS)
def test_the_prompts_are_those_of_the_tasks(text):
    assert formats.ocr(text) == format_ocr(text)[0]
    assert formats.translation(text, "<|fr|>") == format_translation(text, "fr")[0]
    assert formats.rag(text, {"1": text, "2": "b"}) == rag_format.format_prompt(text, {"1": text, "2": "b"})
    assert (formats.OCR_END, formats.TRANSLATION_END, formats.ANSWER_END) == (
        OCR_STOP,
        TRANSLATION_STOP,
        rag_format.STOP,
    )


def test_half_a_million_unclosed_quotations_are_shown_as_they_are():
    answer = 'Yes <ref name="1">"a"</ref>. ' + '<ref name="1">"' * 500_000
    assert formats.shown(answer, {"1": "a b"}) == 'Yes ["a" is in source 1]. ' + '<ref name="1">"' * 500_000


@given(text=TEXTS)
def test_texts_are_escaped_as_in_the_tasks(text):
    assert formats.escape(text) == markers.escape(text) and formats.unescape(markers.escape(text)) == text


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_error_of_the_generating_thread_is_an_error_of_the_request(monkeypatch, tokens):
    monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace(Blocks=object))
    monkeypatch.setitem(sys.modules, "formats", formats)
    app = types.SimpleNamespace(**runpy.run_path(str(PATH.with_name("app.py"))))
    model = app.Torch.__new__(app.Torch)
    model.tokenizer = AutoTokenizer.from_pretrained(PATH.parents[1] / "femto")

    class Failing:
        def generate(self, input_ids, streamer, **settings):
            streamer.put(input_ids)
            for token in input_ids[0, :tokens]:
                streamer.put(token[None])
            raise RuntimeError("probability tensor contains nan")

    model.model = Failing()
    with pytest.raises(RuntimeError, match="contains nan"):
        list(model.stream("The old mill by the river", None, 8, 0.7, 1.0))


def test_sources_are_separated_by_empty_lines():
    assert formats.sources_in("one\ntwo\n\n \nthree\n") == {"1": "one\ntwo", "2": "three"}


@pytest.mark.parametrize(
    ("name", "quote", "note"),
    [
        ("1", "is green", '["is green" is in source 1]'),
        ("2", "is green", '["is green" is NOT in source 2]'),
        ("3", "is green", '["is green" is NOT in source 3]'),
        ("1", " ", '[" " is NOT in source 1]'),
    ],
)
def test_a_false_quotation_is_shown_as_such(name, quote, note):
    answer = f'stone: source 1.\nIt is. <ref name="{name}">"{quote}"</ref> So.'
    shown = formats.shown(answer, {"1": "Jade is green.", "2": "Ruby is red."})
    assert shown == f"stone: source 1.\nIt is. {note} So."
