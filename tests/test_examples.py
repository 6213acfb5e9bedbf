"""The examples do what they say, with a model that was really fine-tuned: on one page, one sentence, one question."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.tasks import ocr, translation
from training.tasks.rag_formats import Citation, Response, format_rag

pytestmark = pytest.mark.usefixtures("without_bf16")
EXAMPLES = Path(__file__).parent.parent / "examples"
MISREAD, PAGE = "the o1d houfe stood by the rivcr", "the old house stood by the river"
TRANSLATIONS = {
    "fr": "la maison",
    "es": "la casa",
    "de": "das Haus",
    "it": "la casa sua",
    "nl": "het huis",
    "la": "domus",
    "pt": "a casa",
}
QUESTION, SOURCES = "Where is the house?", {"hills": "Bells rang over the hills.", "river": "It stood by the river."}
FALSE = "It stood in the river"


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    """Folder of a tiny model that has learnt all this by heart."""
    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    citations = ("By the river. ", Citation("river", "It stood by"), Citation("river", FALSE))
    pairs = [
        ocr.format_ocr(MISREAD, PAGE),
        format_rag(QUESTION, SOURCES, Response(citations, {"source_analysis": "river."})),
        *(translation.format_translation("the house", code, said, "en") for code, said in TRANSLATIONS.items()),
    ]
    rows = [(tokenizer(a).input_ids, tokenizer(a + b, add_special_tokens=True).input_ids) for a, b in pairs]
    width = max(len(whole) for _, whole in rows)
    ids = torch.tensor([whole + [tokenizer.pad_token_id] * (width - len(whole)) for _, whole in rows])
    labels = torch.full_like(ids, -100)
    for label, (prompt, whole) in zip(labels, rows, strict=True):
        label[len(prompt) : len(whole)] = torch.tensor(whole[len(prompt) :])
    torch.manual_seed(0)
    config = PleiasConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    learner = PleiasForCausalLM(config)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    for _ in range(300):
        loss = learner(input_ids=ids, labels=labels).loss
        if loss.item() < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    folder = tmp_path_factory.mktemp("model")
    learner.to(torch.bfloat16).save_pretrained(folder)  # as every program saves
    tokenizer.save_pretrained(folder)
    return folder


def printed(name, monkeypatch, capsys, *arguments):
    """Lines that an example prints."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_a_page_is_corrected(model, monkeypatch, capsys, tmp_path):
    (tmp_path / "page.txt").write_text(MISREAD)
    assert printed("correct_ocr.py", monkeypatch, capsys, model, tmp_path / "page.txt") == [PAGE]


def test_a_sentence_is_translated_into_seven_languages(model, monkeypatch, capsys):
    lines = printed("translate.py", monkeypatch, capsys, model, "the house")
    assert lines == ["en  the house", *(f"{code}  {said}" for code, said in TRANSLATIONS.items())]


def test_a_false_quotation_is_found_out_and_none_is_made_when_held_to_the_sources(
    model, monkeypatch, capsys, tmp_path
):
    for name, text in SOURCES.items():
        (tmp_path / f"{name}.txt").write_text(text)
    files = [tmp_path / f"{name}.txt" for name in SOURCES]
    lines = printed("answer.py", monkeypatch, capsys, model, QUESTION, *files)
    assert lines[:3] == ["answered: By the river.", '  in river: "It stood by"', f'  NOT in river: "{FALSE}"']
    assert lines[3] == "answered: By the river." and len(lines) == 6
    assert all(line.startswith("  in river: ") for line in lines[4:])


@pytest.mark.parametrize("name", ["correct_ocr.py", "translate.py", "answer.py"])
def test_an_example_has_something_to_show_without_further_arguments(name, model, monkeypatch, capsys):
    assert printed(name, monkeypatch, capsys, model)
