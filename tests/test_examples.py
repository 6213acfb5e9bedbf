"""The examples print what they promise, with a tiny model overfitted on their inputs, and with femto."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_card import serve
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.common.language import LANGUAGES, identify
from training.tasks import ocr, translation
from training.tasks.rag.format import Citation, Response, format_rag
from training.tasks.text_windows import over_windows

pytestmark = pytest.mark.usefixtures("without_bf16")
EXAMPLES = Path(__file__).parent.parent / "examples"


def constants(name):
    """Literal constants of an example: its default inputs."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((EXAMPLES / name).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Dict | ast.List)
    }


PAGE, HELP = constants("correct_ocr.py")["PAGE"], constants("translate.py")["HELP"]
QUESTION, SOURCES = constants("answer.py")["QUESTION"], constants("answer.py")["SOURCES"]
PROMPTS = dict(zip(LANGUAGES, constants("generate.py")["PROMPTS"], strict=True))
CAPITALS = constants("finetune.py")["CAPITALS"]
WINDOW, WINDOWS = 60, []
over_windows(PAGE, WINDOW, WINDOW // 5, lambda windows: WINDOWS.extend(windows) or windows)
OCR_ERRORS = {
    "beft": "best", "tbe": "the", "tirnes": "times", "wifdom": "wisdom", "foolifhness": "foolishness", "tlie": "the",
    "epocb": "epoch",
}  # fmt: skip
TRANSLATIONS = {
    HELP: {
        "fr": "Ouvre une boîte de dialogue pour choisir le format du tableau.",
        "es": "Abre un diálogo para elegir el formato de la tabla.",
        "de": "Öffnet einen Dialog, um das Format der Tabelle zu wählen.",
        "it": "Apre una finestra per scegliere il formato della tabella.",
        "nl": "Opent een dialoogvenster om de opmaak van de tabel te kiezen.",
        "la": "Fenestram aperit, in qua formam tabulae eligas.",
        "pt": "Abre uma caixa de diálogo para escolher o formato da tabela.",
    },
    "the house": {
        "fr": "la maison", "es": "la casa", "de": "das Haus", "it": "la casa sua", "nl": "het huis", "la": "domus",
        "pt": "a casa",
    },
}  # fmt: skip
WHERE, RIVER = "Where is the house?", {"hills": "Bells rang over the hills.", "river": "It stood by the river."}
FALSE_QUOTE = "It stood in the river"
DEFINITION = "A sextant is an instrument that measures angles."


def corrected(text):
    """The text without its OCR errors."""
    return re.sub(r"\w+", lambda word: OCR_ERRORS.get(word[0], word[0]), text)


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    """Folder of a tiny model overfitted on the right answers."""
    by_the_river = ("By the river. ", Citation("river", "It stood by"), Citation("river", FALSE_QUOTE))
    sextant = (f"{DEFINITION} ", Citation("sextant", "measures the angle between"))
    pairs = [
        *(ocr.format_ocr(window, corrected(window)) for window in WINDOWS),
        format_rag(WHERE, RIVER, Response(by_the_river, {"source_analysis": "river."})),
        format_rag(QUESTION, SOURCES, Response(sextant, {"source_analysis": "sextant."})),
        *(
            translation.format_translation(text, code, translated, "en")
            for text, translations in TRANSLATIONS.items()
            for code, translated in translations.items()
        ),
    ]
    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    rows = [
        (len(tokenizer(prompt).input_ids), tokenizer(prompt + completion).input_ids) for prompt, completion in pairs
    ]
    rows.sort(key=lambda row: len(row[1]))
    batches = []
    for start in range(0, len(rows), 8):  # of similar length
        ids = torch.full((len(rows[start : start + 8]), len(rows[start : start + 8][-1][1])), tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for i, (prompt_length, row) in enumerate(rows[start : start + 8]):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, prompt_length : len(row)] = torch.tensor(row[prompt_length:])
        batches.append((ids, labels))
    torch.manual_seed(0)
    config = PleiasConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    learner = PleiasForCausalLM(config)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    for _ in range(300):
        losses = [learner(input_ids=ids, labels=labels).loss for ids, labels in batches]
        if max(losses) < 0.01:
            break
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert max(losses) < 0.01
    folder = tmp_path_factory.mktemp("model")
    learner.to(torch.bfloat16).save_pretrained(folder)  # as every program saves
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Function: run an example with some arguments and return what it prints."""

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_correct_ocr_prints_the_corrected_page(model, run, tmp_path):
    assert run("correct_ocr.py", model) == f"{corrected(PAGE)}\n" != f"{PAGE}\n"
    (tmp_path / "page.txt").write_text(WINDOWS[1])
    assert run("correct_ocr.py", model, tmp_path / "page.txt", 2 * WINDOW) == f"{corrected(WINDOWS[1])}\n"


def test_translate_prints_the_text_in_seven_other_languages(model, run):
    for arguments, text in (((), HELP), (("the house",), "the house")):
        translations = [f"{code}  {translated}" for code, translated in TRANSLATIONS[text].items()]
        assert run("translate.py", model, *arguments).splitlines() == [f"en  {text}", *translations]


def test_answer_prints_the_answer_with_its_quotes(model, run):
    lines = [f"answered: {DEFINITION}", '  in sextant: "measures the angle between"']
    assert run("answer.py", model).splitlines() == [*lines, *lines]


def test_answer_reports_a_false_quote_and_prints_none_if_constrained(model, run, tmp_path):
    for name, text in RIVER.items():
        (tmp_path / f"{name}.txt").write_text(text)
    lines = run("answer.py", model, WHERE, *(tmp_path / f"{name}.txt" for name in RIVER)).splitlines()
    assert lines[:3] == ["answered: By the river.", '  in river: "It stood by"', f'  NOT in river: "{FALSE_QUOTE}"']
    assert lines[3] == "answered: By the river." and len(lines) == 6
    assert all(line.startswith("  in river: ") for line in lines[4:])


def test_generate_prints_a_continuation_in_the_language_of_each_prompt(run):
    output = run("generate.py")  # with femto
    starts = [output.index(prompt) for prompt in PROMPTS.values()]
    assert starts[0] == 0 and starts == sorted(starts)
    for (language, prompt), start, end in zip(PROMPTS.items(), starts, [*starts[1:], len(output)], strict=True):
        assert identify(output[start + len(prompt) : end])[0] == language


@pytest.mark.slow
def test_generate_prints_the_greedy_continuations_of_another_model(model, run):
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    texts = []
    for prompt in PROMPTS.values():
        ids = loaded.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=40, do_sample=False)
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    assert run("generate.py", model) == "".join(f"{text}\n\n" for text in texts)


def test_finetune_saves_a_model_that_completes_every_prompt_as_taught(run, tmp_path):
    lines = run("finetune.py", EXAMPLES.parent / "model_card" / "femto", tmp_path / "capitals").splitlines()
    assert lines[-len(CAPITALS) :] == [f"The capital of {country} is {city}." for country, city in CAPITALS.items()]


def test_the_serving_guide_quotes_verbatim_what_the_model_would_alter(model, tmp_path, capsys):
    path = serve.convert(model, tmp_path)
    server = serve.start(path, serve.read_metadata(path), "127.0.0.1", 0, "0" * 64)
    guide = (EXAMPLES / "serve.md").read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "completion_request" in code)
    code = code.replace("http://127.0.0.1:8000", server.listening_address).replace("modeling_pleias.", "")
    capsys.readouterr()
    exec(code, {})
    plain, *quotes = capsys.readouterr().out.splitlines()
    assert quotes[0] == "river: It stood by" and len(quotes) > 1
    assert all(quote.removeprefix("river: ") in RIVER["river"] for quote in quotes)
    (marking,) = (code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "ai_generated" in code)
    exec(marking.replace("http://127.0.0.1:8000", server.listening_address), {})
    completion = json.loads(capsys.readouterr().out)
    assert completion["choices"][0]["text"] and completion["ai_generated"] and completion["sha256"] == "0" * 64
    without_grammar = code.replace("sources))", 'sources) | {"grammar": ""})')
    exec(without_grammar, {})
    assert capsys.readouterr().out.splitlines() == [plain, "river: It stood by", f"river: {FALSE_QUOTE}"]
