"""The model that the checkout ships: whole, small enough, in its languages, and as its card says."""

import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_card.files import verify_sums
from model_card.validate import validate

ROOT = Path(__file__).parent.parent
FEMTO = ROOT / "model_card" / "femto"
# A sentence of each language that no corpus is likely to hold, written for this test.
SENTENCES = {
    "en": "The old woman put the letters back into the drawer and went down to the garden.",
    "fr": "La vieille femme remit les lettres dans le tiroir et descendit au jardin.",
    "es": "La anciana guardó las cartas en el cajón y bajó al jardín.",
    "de": "Die alte Frau legte die Briefe wieder in die Schublade und ging in den Garten hinunter.",
    "it": "La vecchia rimise le lettere nel cassetto e scese nel giardino.",
    "nl": "De oude vrouw legde de brieven weer in de la en ging naar de tuin.",
    "la": "Tunc mulier epistulas in arcam reposuit et in hortum descendit.",
    "pt": "A velha guardou as cartas na gaveta e desceu ao jardim.",
}


@pytest.fixture(scope="module")
def femto():
    return AutoModelForCausalLM.from_pretrained(FEMTO, dtype=torch.float32), AutoTokenizer.from_pretrained(FEMTO)


def test_the_weights_are_those_that_were_released_and_fit_64_megabytes():
    verify_sums(FEMTO)
    assert 0 < sum(file.stat().st_size for file in FEMTO.glob("*.safetensors")) <= 64e6


@pytest.mark.parametrize("run", [False, pytest.param(True, marks=pytest.mark.slow)])  # the code of the card
def test_its_card_is_in_order(run):
    assert validate(FEMTO, run=run) == []


@pytest.mark.parametrize("language", SENTENCES)
def test_it_knows_each_of_its_languages(language, femto):
    model, tokenizer = femto
    ids = tokenizer(SENTENCES[language], return_tensors="pt").input_ids
    with torch.no_grad():
        nats = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    # A model that has learnt nothing needs 16 bits a token: about four a byte.
    assert nats / math.log(2) / len(SENTENCES[language].encode()) < 2.6


def test_the_example_writes_in_eight_languages_with_no_argument(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    written = capsys.readouterr().out
    starts = [written.index(prompt) for prompt in example["PROMPTS"]] + [len(written)]
    assert len(starts) == 9 and starts == sorted(starts)
    for prompt, start, end in zip(example["PROMPTS"], starts[:-1], starts[1:], strict=True):
        assert len(written[start:end].strip()) > len(prompt) + 40
