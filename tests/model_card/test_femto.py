"""The model that the checkout ships: complete, small, in its languages; its card shows the values of its files."""

import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_card import public_summary
from model_card.facts import source_key
from model_card.files import read_json, sha256, verify_sums
from model_card.validate import validate

ROOT = Path(__file__).parents[2]
FEMTO = ROOT / "model_card" / "femto"
RUNS = [*"123456", "mean"]
# One sentence per language that is unlikely to be in any corpus, written for this test.
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


@pytest.fixture(scope="module")
def text():
    return (FEMTO / "README.md").read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[str]:
    """The other cells of the first table row on the card that begins with `first`."""
    row = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.M)
    return [cell.strip() for cell in row[1].split("|")]


def test_the_weights_are_the_released_ones_and_fit_64_megabytes():
    verify_sums(FEMTO)
    assert 0 < sum(file.stat().st_size for file in FEMTO.glob("*.safetensors")) <= 64e6


@pytest.mark.parametrize("run", [False, pytest.param(True, marks=pytest.mark.slow)])  # the code of the card
def test_its_card_is_valid(run):
    assert validate(FEMTO, run=run) == []


def test_its_public_summary_is_what_the_program_makes_of_its_evidence(tmp_path):
    """It lists every source of the shards, and states that nobody declares it."""
    public_summary.write_documents(public_summary.fill_documents(FEMTO, FEMTO / "provider.yaml"), tmp_path)
    for name in public_summary.PUBLISHED:
        assert (tmp_path / name).read_bytes() == (FEMTO / name).read_bytes(), name
    summary = read_json(FEMTO / "public_summary.json")
    assert not summary["declaration"] and not summary["basis"]["required"]
    tables = [summary["fields"][key]["answer"]["rows"] for key in ("2.1.c", "2.1.d.1")]
    sources = read_json(FEMTO / "evidence" / "sources.json")
    assert sum(map(len, tables)) == sources["count"] == 91
    assert sum(row[-4] > 0 for rows in tables for row in rows) == sources["in_text"] == 89
    assert all(row[1].startswith("https://") for rows in tables for row in rows)


def test_its_card_is_one_page(text):
    head = text.split("---\n")[1]
    assert text.count("\n") - head.count("\n") <= 210 and head.count("\n") + 2 <= 120


def test_the_number_of_parameters_on_the_card_is_that_of_the_weights(femto, text):
    assert f"A causal language model with {femto[0].num_parameters():,} parameters" in text
    assert femto[0].num_parameters() == 31_460_736


def test_the_bits_per_byte_on_the_card_are_those_of_the_evaluation_and_of_the_metadata(text):
    metrics = read_json(FEMTO / "evidence" / "eval" / "bits_per_byte.json")["metrics"]
    mean = sum(metrics[code]["value"] for code in SENTENCES) / len(SENTENCES)
    assert metrics["mean"]["value"] == pytest.approx(mean)
    smol = read_json(FEMTO / "evidence" / "comparison.json")["tasks"]["bits_per_byte"]["mean"]["values"]
    other = next(values for name, values in smol.items() if name.startswith("SmolLM2-135M-Instruct"))
    row = cells(text, "mean")
    assert row[0].startswith(f"{mean:.3f} (") and row[1].startswith(f"{other['value']:.3f} (")
    assert row[3].startswith(f"{mean - other['value']:+.3f} (") and mean < other["value"]
    results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert results[0]["metrics"][0] == {"type": "mean", "name": "mean", "value": metrics["mean"]["value"]}


def test_the_cost_on_the_card_is_the_sum_over_the_files_of_all_runs(text):
    emissions = [read_json(FEMTO / "runs" / name / "emissions.json") for name in RUNS]
    hours = sum(run["seconds"] for run in emissions) / 3600
    watt_hours, grams = (1000 * sum(run[key] for run in emissions) for key in ("kwh", "kg_co2eq"))
    assert f"Cost: {grams:.3g} g CO2eq from {watt_hours:.3g} Wh in {hours:.1f} hours (" in text
    assert yaml.safe_load(text.split("---\n")[1])["co2_eq_emissions"]["emissions"] == pytest.approx(grams)
    for name, run in zip(RUNS, emissions, strict=True):
        row = cells(text, f"[{name}](runs/{name}/config.yaml)")
        assert row[3:5] == [f"{run['seconds'] / 3600:.2f}", f"{1000 * run['kwh']:.1f}"]


def test_the_table_of_runs_on_the_card_follows_from_their_settings(text):
    total = 0
    for name in RUNS[:-1]:
        config = yaml.safe_load((FEMTO / "runs" / name / "config.yaml").read_text(encoding="utf-8"))
        steps = sum(stage["steps"] for stage in config["stages"])
        tokens = sum(stage["steps"] * stage["sequences"] for stage in config["stages"]) * config["sequence_length"]
        before = {"1": "scratch"}.get(name, str(int(name) - 1))
        assert cells(text, f"[{name}](runs/{name}/config.yaml)")[:3] == [before, f"{steps:,}", f"{tokens:,}"]
        total += tokens
    assert cells(text, "[mean](runs/mean/config.yaml)")[:3] == ["mean of 6 and 5", "0", "0"]
    assert f"\n{total:,} tokens in " in text


def test_each_run_started_from_the_weights_of_the_runs_that_the_lineage_names():
    rows = {row["name"]: row for row in read_json(FEMTO / "evidence" / "lineage.json")["runs"]}
    assert list(rows) == RUNS == sorted(path.name for path in (FEMTO / "runs").iterdir())
    for name in RUNS[1:]:
        session = read_json(FEMTO / "runs" / name / "run.json")["sessions"][0]
        used = [session[key]["model.safetensors"] for key in ("init_from", "average_with") if key in session]
        assert used == [rows[parent]["sha256"]["model.safetensors"] for parent in rows[name]["from"]]
    assert rows["mean"]["sha256"] == {"model.safetensors": sha256(FEMTO / "model.safetensors")}


def test_the_training_data_on_the_card_contain_each_document_once(text):
    """The first corpus has every document except for some interface messages and source code, which others add."""
    derived = read_json(FEMTO / "evidence" / "facts.json")
    documents, corpora = derived["text"]["train"]["documents"], [corpus["train"] for corpus in derived["corpora"]]
    assert corpora[0]["documents"] < documents < 1.05 * corpora[0]["documents"]
    assert f"\n{documents:,} documents, " in text


def test_its_manifests_count_every_token_by_source():
    manifests = [read_json(path) for path in sorted((FEMTO / "runs").glob("*/manifests/*.json"))]
    listed = {source_key(entry) for entry in read_json(FEMTO / "evidence" / "sources.json")["sources"]}
    assert len(manifests) == 8 and len(listed) == 91
    for manifest in manifests:
        sums = {"account": Counter(), "by_source": Counter()}
        for (name, counter), label in zip(sums.items(), ("license", "label"), strict=True):
            for row in manifest[name]:
                for measure in ("documents", "bytes", "tokens"):
                    counter[row["split"], row[label], measure] += row[measure]
        assert sums["by_source"] == sums["account"]
        assert {row["source"] for row in manifest["by_source"]} <= listed


@pytest.mark.parametrize("language", SENTENCES)
def test_it_knows_each_of_its_languages(language, femto):
    model, tokenizer = femto
    ids = tokenizer(SENTENCES[language], return_tensors="pt").input_ids
    with torch.no_grad():
        nats = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    # An untrained model needs 16 bits per token, about four per byte.
    assert nats / math.log(2) / len(SENTENCES[language].encode()) < 2.6


def test_the_samples_on_the_card_are_what_the_model_generates(femto):
    """Greedy text may leave the recorded one at a near tie of another CPU's arithmetic, so only its beginning is."""
    model, tokenizer = femto
    samples = read_json(FEMTO / "evidence" / "samples.json")
    assert [sample["language"] for sample in samples["samples"]] == list(SENTENCES)
    equal = 0
    for sample in samples["samples"]:
        ids = tokenizer(sample["prompt"], return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=4, do_sample=False, repetition_penalty=1.2)
        new = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        equal += sample["continuation"].startswith(new)
    assert equal >= 6
