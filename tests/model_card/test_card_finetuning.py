"""The card of a fine-tuned model has its base, settings, training data and results before and after."""

import shutil

import pytest
from cards import carded, examples, metadata

from model_card import validate
from model_card.files import write_json
from training.finetuning.examples import Examples
from training.tasks import TASKS


def test_the_card_of_a_fine_tuning_has_base_settings_training_data_and_results_before_and_after(dist, tuned, tmp_path):
    data = {"copy_rows": 1200, "clean_share": 0.2, "window": 60, "pairs": "../pairs", "path": None}
    folder = carded(dist, tuned(data=data, optimizer="muon", candidates=2048), tmp_path / "tuned")
    head, text = metadata(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert (head["base_model"], head["base_model_relation"]) == ("PleIAs/Pleias-Nano", "finetune")
    assert head["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert head["language"] == ["fr", "nl"]  # what the account has, the most tokens first
    assert "fine-tuned for correcting the errors of OCR from [PleIAs/Pleias-Nano](" in text
    assert "pretrained from scratch" not in text and "Every document of this training is in the public domain" in text
    for line in (
        "| learning rate | 0.0005 |",
        "| lr scheduler type | cosine |",
        "| task | ocr |",
        "| method | sft |",
        "| optimizer | muon |",
        "| candidates | 2,048 |",
        "| data, copy rows | 1,200 |",
        "| data, clean share | 0.2 |",
        "| data, pairs | ../pairs |",
        'print(ocr.correct(model, tokenizer, "Tbe old houfe ftood by tlie river.", window=60))',
        "| MPL-2.0 | 1 | 4 | 66.7% |",
        "| cer | 0.75 (0.625 to 0.875) | 0.25 (0.125 to 0.375) | -0.5 (-0.625 to -0.375) |",
    ):
        assert line in text.split("\n"), line
    assert "The weights are those of step 60, the best by cer" in text and "in 70 steps" in text
    assert "cer is `nrefs:1`" in text and "trl 1.16.0" in text and "200 held-out examples" in text
    (result,) = head["model-index"][0]["results"]
    named = [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]]
    assert named == [("cer", "cer", 0.25), ("cer_before", "cer of the model that training started from", 0.75)]


@pytest.mark.parametrize("task", TASKS)
def test_the_card_of_a_task_shows_its_usage_and_only_instruct_allows_conversations(dist, tuned, tmp_path, task):
    folder = carded(dist, tuned(task=task), tmp_path / "tuned")
    text = (folder / "README.md").read_text(encoding="utf-8")
    call = {"ocr": "correct", "translation": "translate", "rag": "answer", "instruct": "reply"}[task]
    assert f"from modeling_pleias.training.tasks import {task}\n" in text and f"{task}.{call}(model" in text
    # In the other folder lie files of the package's names.
    assert f"`modeling_pleias.training.tasks.{task}.{call}`" in (folder.parent / "custom" / "README.md").read_text()
    markers = {"ocr": "<|ocr_correction_start|>", "translation": "<|translation_start|><|fr|>"}
    assert markers.get(task, {"rag": "<|source_id_start|>", "instruct": "<|im_start|>assistant"}.get(task)) in text
    assert ("**Out of scope**: conversation" in text) == (task != "instruct")


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, data", [*((task, {}) for task in TASKS), ("rag", {"format": "rag-2025"})], ids=lambda value: str(value)
)
def test_the_code_of_a_task_s_card_runs(dist, tuned, tmp_path, task, data):
    folder = carded(dist, tuned(task=task, data=data), tmp_path / "tuned")
    for part in ("llama", "custom"):
        assert validate.validate(folder.parent / part, run=True) == []


def test_a_base_that_is_a_folder_is_identified_by_hashes_unless_its_name_is_passed(dist, tuned, tmp_path):
    folder = tuned(base_model="runs/femto/model")
    plain = carded(dist, folder, tmp_path / "plain")
    text = (plain / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in metadata(plain) and "from scratch" not in text
    assert "from a model identified by the [hashes](evidence/release.json)" in text
    assert metadata(plain)["co2_eq_emissions"]["training_type"] == "fine-tuning"
    named = carded(dist, folder, tmp_path / "named", base_model="someone/femto")
    assert metadata(named)["base_model"] == "someone/femto"


@pytest.mark.parametrize(
    "licence, message",
    [
        ("unknown", "1 documents (33.3% of the tokens) have no recorded licence"),
        ("CC-BY-NC-4.0", "1 documents (33.3% of the tokens) are under CC-BY-NC-4.0, which is not known to be an open"),
    ],
)
def test_text_that_is_not_known_to_be_open_is_reported(dist, tuned, tmp_path, licence, message):
    folder = carded(dist, tuned(examples(licence=licence), task="instruct"), tmp_path / "tuned")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert message in text and "Some training documents have no recorded licence or a licence that is not open" in text
    assert "is in the public domain or under an open licence" not in text and "and from open licences" not in text


def test_text_whose_language_is_not_recorded_is_not_described_as_in_eight_languages(dist, tuned, tmp_path):
    built = Examples()
    built.add([1, 5], group=("unknown", "CC0-1.0", "own"), source="own.jsonl", size=5)
    folder = carded(dist, tuned(built, task="instruct"), tmp_path / "tuned")
    assert metadata(folder)["language"] == ["und"]
    assert "for languages that are not recorded.\n" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "method, message",
    [
        ("dpo", "3 completions of these prompts by"),
        ("grpo", "completions of these prompts that the model in training"),
    ],
)
def test_completions_of_the_model_itself_are_reported_as_synthetic(dist, tuned, tmp_path, method, message):
    run = tuned(task="instruct", method=method, data={"tasks": ["ocr"], "settings": {"ocr": {"path": "my"}}})
    if method == "dpo":
        (run / "answers").mkdir()
        write_json(run / "answers" / "own.json", {"of": "x", "value": ["a", "b", "c"]})
    text = (carded(dist, run, tmp_path / "tuned") / "README.md").read_text(encoding="utf-8")
    assert (
        f"Text written by a language model was used, too: {message}" in text and " PleIAs/Pleias-Nano. Whether" in text
    )
    assert "No language model rewrote this text" not in text and "it is the user's own" in text


def test_whether_a_model_wrote_the_user_s_text_is_reported_as_unknown(dist, tuned, tmp_path):
    for data, user_written in (({"path": "mine.jsonl"}, True), ({"path": None, "tasks": ["ocr"]}, False)):
        folder = carded(dist, tuned(task="instruct", data=data), tmp_path / str(user_written))
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert ("Whether a language model wrote any of this text is not recorded" in text) == user_written
        assert ("No language model rewrote this text" in text) != user_written
        shutil.rmtree(tmp_path / "runs")
