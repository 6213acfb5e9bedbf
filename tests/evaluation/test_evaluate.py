"""training.evaluate measures a run's model by default, writes files that the card reads, and repeats nothing."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from no_bf16 import cpu_without_bf16
from training_runs import forget_sidecars

from model_card.card import eval_results, task_results
from model_card.provenance import TracedValue, unwrap
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training import evaluate
from training.common.config import InputError
from training.common.files import read_json
from training.evaluation import held_out_text as texts_module
from training.evaluation.held_out_text import TextConfig, held_out
from training.evaluation.models import EvaluatedModel
from training.tracing.trace_index import build_index

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = "--adherence.prompts 2 --adherence.new_tokens 24 --toxicity.new_tokens 4 --toxicity.languages [en,la]"
SMALL += (
    " --speed.rounds 2 --speed.prompt_tokens 16 --speed.new_tokens 4 --bits.window 32 --bits.exact true --device cpu"
)


def make_run(folder, tokenizer, shards, *, seed=0, **config):
    """Write a run folder as training.pretrain does, with an untrained model."""
    torch.manual_seed(seed)
    shape = SHAPE | {"num_key_value_heads": 1, "max_position_embeddings": 128}
    PleiasForCausalLM(PleiasConfig(vocab_size=400, **shape)).to(torch.bfloat16).save_pretrained(folder / "model")
    PleiasTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "model")
    stages = [{"name": "base", "shards": str(shards)}]
    settings = {"stages": stages, "data": {"folder": str(shards.parent / "nowhere")}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer, tiny_shards):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_tokenizer, tiny_shards)


@pytest.fixture(scope="module")
def evaluated(run):
    """The run after `python -m training.evaluate --model RUN/model` with small sizes."""
    with cpu_without_bf16():
        evaluate.main(["--model", str(run / "model"), *SMALL.split()])
    return run


def test_the_card_suite_uses_the_held_out_text_of_the_run(evaluated, tiny_corpus, tiny_shards):
    result = read_json(evaluated / "eval" / "bits_per_byte.json")
    manifest = read_json(tiny_shards / "manifest.json")
    rows = [row for row in manifest["account"] if row["split"] == "validation"]
    bytes_of = {language: 0 for language in ("English", "French")}
    for row in rows:
        bytes_of[row["language"]] += row["bytes"]
    measured = {language: counts["bytes"] for language, counts in result["data"]["languages"].items()}
    assert measured == {"en": bytes_of["English"], "fr": bytes_of["French"]}
    assert set(result["metrics"]) == {"mean", "en", "fr"}
    assert set(result["groups"]["collection"]) == {"OpenCulture", "OpenScience"}
    documents = read_json(evaluated / "eval" / "records" / "bits_per_byte.json")["record"]["documents"]
    assert len(documents) == sum(row["documents"] for row in rows)


def test_every_value_of_the_report_is_in_a_file(evaluated):
    report = (evaluated / "eval" / "EVALUATION.md").read_text()
    assert "![Metrics with their intervals](evaluation.png)" in report
    assert (evaluated / "eval/evaluation.png").is_file()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", report, re.MULTILINE | re.DOTALL))
    for task in evaluate.SUITES["card"]:
        section = sections[task.replace("_", " ").capitalize()]
        for name, metric in read_json(evaluated / "eval" / f"{task}.json")["metrics"].items():
            value = metric["value"] if isinstance(metric, dict) else metric
            cells = re.search(rf"^\| {re.escape(name)} \| ([^|]*) \| ([^|]*) \|$", section, re.MULTILINE)
            assert cells and float(cells[1].replace(",", "")) == pytest.approx(value, rel=1e-3)


def test_the_card_reads_the_results(evaluated):
    files = sorted((evaluated / "eval").glob("*.json"))
    tasks = [task_results(TracedValue(read_json(path), f"{path.name}#", []), path.name) for path in files]
    assert len({task["task"] for task in tasks}) == len(evaluate.SUITES["card"]) == len(files)
    (bits,) = (task for task in tasks if task["task"] == "bits_per_byte")
    expected = read_json(evaluated / "eval" / "bits_per_byte.json")["metrics"]
    (result,) = (result for result in eval_results([bits]) if result.metric_type == "mean")
    assert unwrap(result.metric_value) == expected["mean"]["value"]
    assert unwrap(bits["metrics"]["fr"])["value"] == expected["fr"]["value"]


def test_an_existing_result_is_not_measured_again_unless_its_settings_changed(evaluated, capsys, monkeypatch):
    monkeypatch.setattr(evaluate.Adherence, "measure", lambda *_: pytest.fail("measured again"))
    before = {path.name: path.read_bytes() for path in (evaluated / "eval").glob("*.json")}
    arguments = ["--model", str(evaluated), *SMALL.split(), "--suite", "bits_per_byte,language_adherence"]
    evaluate.main(arguments)
    assert capsys.readouterr().out.count("(cached)") == 2
    assert {path.name: path.read_bytes() for path in (evaluated / "eval").glob("*.json")} == before
    evaluate.main([*arguments, "--bits.stride", "7"])
    after = {path.name for path in (evaluated / "eval").glob("*.json") if path.read_bytes() != before[path.name]}
    assert after == {"bits_per_byte.json"}


def test_two_models_are_compared_on_the_same_examples(run, tiny_tokenizer, tiny_shards, tmp_path):
    other = make_run(tmp_path / "other", tiny_tokenizer, tiny_shards, seed=1)
    out = tmp_path / "out"
    arguments = ["--model", str(run), "--model", str(other / "model"), "--suite", "bits_per_byte", "--out", str(out)]
    evaluate.main([*arguments, *SMALL.split()])
    mean = read_json(out / "comparison.json")["tasks"]["bits_per_byte"]["mean"]
    alone = [read_json(out / name / "bits_per_byte.json")["metrics"]["mean"] for name in ("tiny", "other")]
    assert list(mean["values"].values()) == alone
    difference = mean["differences"]["other"]
    assert difference["value"] == pytest.approx(alone[0]["value"] - alone[1]["value"])
    # The same documents are hard for both, so the interval of the difference is narrower.
    assert difference["high"] - difference["low"] < alone[0]["high"] - alone[0]["low"]
    report = (out / "EVALUATION.md").read_text()
    assert "# Comparison of tiny and other" in report and f"{difference['value']:.4g}" in report


# Contamination -----------------------------------------------------------------------------------


def test_contaminated_texts_are_counted_and_can_be_excluded_without_measuring_again(
    run, tiny_tokenizer, tiny_corpus, tiny_shards, tmp_path, monkeypatch, capsys
):
    build_index([tiny_shards], tokenizer=tiny_tokenizer, out=tmp_path / "index", splits=["train"])
    unseen = {text.identifier for text in held_out(TextConfig(), run)}
    rows = texts_module.read_documents(tiny_corpus, columns=["identifier", "language", "text"])
    trained = [row["text"] for row in rows if row["language"] == "French" and row["identifier"] not in unseen]
    foreign = "\u0436\u0448\u0449\u044e "
    texts = {"fr/1": foreign * 60, "en/1": f"{foreign * 20}9 8 7 6 5", "en/2": foreign * 40}
    for name, text in (texts | {"fr/planted": max(trained, key=len)}).items():
        path = tmp_path / "texts" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    other, out = make_run(tmp_path / "other", tiny_tokenizer, tiny_shards, seed=1), tmp_path / "out"
    arguments = ["--model", str(run), "--model", str(other), "--suite", "bits_per_byte", *SMALL.split()]
    arguments += ["--data.path", str(tmp_path / "texts"), "--out", str(out)]

    def measure(*options):
        evaluate.main([*arguments, *options])
        return read_json(out / "tiny" / "bits_per_byte.json")

    plain = measure()
    monkeypatch.setattr(evaluate.BitsPerByte, "measure", lambda *_: pytest.fail("measured again"))
    index = ["--contamination", str(tmp_path / "index")]
    counted = measure(*index)
    assert "contaminated: 1 of 4 texts, 25.0% (0.0 to 75.0)" in capsys.readouterr().out
    assert counted["metrics"] == plain["metrics"] and counted["seconds"] == plain["seconds"]
    contamination = counted["contamination"]
    assert (contamination["contaminated_texts"], contamination["texts"], contamination["excluded"]) == (1, 4, False)
    [longest] = contamination["texts_with_longest_passages"]
    assert longest["identifier"] == "fr/planted.txt" and longest["share"] == 1
    assert longest["passage"]["document"]["license"] in ("Public Domain", "CC-BY-4.0")

    excluded, expected = measure(*index, "--exclude_contaminated"), {}
    for model in ("tiny", "other"):
        documents = read_json(out / model / "records" / "bits_per_byte.json")["record"]["documents"]
        sums = {language: np.zeros(2) for language in ("fr", "en")}
        for row in documents:
            if row["identifier"] != "fr/planted.txt":
                sums[row["language"]] += row["nats"] / np.log(2), row["bytes"]
        expected[model] = {language: bits / size for language, (bits, size) in sums.items()}
        expected[model]["mean"] = sum(expected[model].values()) / 2
    values, before = (
        {name: metric["value"] if isinstance(metric, dict) else metric for name, metric in result["metrics"].items()}
        for result in (excluded, plain)
    )
    assert values == pytest.approx(expected["tiny"]) and values["fr"] != before["fr"] and values["en"] == before["en"]
    for name, compared in excluded["contamination"]["compared"].items():
        assert compared["all"] == plain["metrics"][name]
        assert compared["difference"]["value"] == pytest.approx(values[name] - before[name])
    mean = read_json(out / "comparison.json")["tasks"]["bits_per_byte"]["mean"]
    assert mean["differences"]["other"]["value"] == pytest.approx(expected["tiny"]["mean"] - expected["other"]["mean"])
    report = (out / "tiny" / "EVALUATION.md").read_text()
    assert "Contaminated: 1 of 4 texts" in report and "measured without the contaminated texts" in report


# Sources of held-out text ------------------------------------------------------------------------


def test_a_corpus_has_registers_and_code_and_the_maximum_sizes_hold(tmp_path, write_corpus):
    code = {"language": "Python", "language_type": "Code", "text": "x = 1\n" * 60}
    old = {"language": "French", "open_type": "Open Culture", "text": "é" * 400}
    write_corpus(tmp_path / "c.parquet", [old] * 5 + [code] + [{"language": "French", "text": "la maison"}] * 3)
    config = TextConfig(path=tmp_path, bytes_per_language=1_001, bytes_per_document=301)
    texts = held_out(config, None)
    french = [text for text in texts if text.language == "fr"]
    assert [text.language for text in texts] == ["fr"] * len(french) + ["code"]
    assert texts[-1].register == "code" and texts[-1].text == ("x = 1\n" * 60)[:301]
    assert {text.register for text in french if "é" in text.text} == {"old"}
    sizes = [len(text.text.encode()) for text in french]
    # 301 bytes would split a two-byte letter; the last document fills the budget up to a character boundary.
    assert max(sizes) == 300 and 999 <= sum(sizes) <= 1_001
    assert texts == held_out(config, None)


def test_the_held_out_text_of_a_run_is_that_of_its_corpus_with_registers(run, tiny_corpus, tmp_path):
    texts = held_out(TextConfig(), run)
    assert {text.register for text in texts} == {"modern"}
    rows = {
        row["identifier"]: row["text"]
        for row in texts_module.read_documents(tiny_corpus, columns=["identifier", "text"])
    }
    assert texts and all(rows[text.identifier] == text.text for text in texts)


def test_shards_without_registers_in_their_sidecars_are_read(run, tiny_tokenizer, tiny_shards, tmp_path):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    for path in (tmp_path / "shards").rglob("*.documents.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["register"]), path)
    forget_sidecars(tmp_path / "shards")
    older = make_run(tmp_path / "run", tiny_tokenizer, tmp_path / "shards")
    texts = held_out(TextConfig(), run)
    assert held_out(TextConfig(), older) == [replace(text, register="") for text in texts]


def test_a_fine_tuned_run_is_measured_on_the_held_out_text_of_its_base(run, tmp_path):
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "config.yaml").write_text(yaml.safe_dump({"task": "ocr", "base_model": str(run / "model"), "data": {}}))
    assert held_out(TextConfig(), tuned) == held_out(TextConfig(), run)


def test_a_run_that_names_itself_as_its_base_is_reported(tmp_path):
    settings = {"task": "ocr", "base_model": str(tmp_path / "model"), "data": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="names itself as its base model"):
        held_out(TextConfig(), tmp_path)


def test_text_files_are_in_the_language_of_their_name_or_in_the_identified_one(tmp_path):
    (tmp_path / "la").mkdir()
    (tmp_path / "la" / "1.txt").write_text("one two")
    (tmp_path / "nl.txt").write_text("drie")
    (tmp_path / "unknown.txt").write_text("Der Ausschuss trat am Dienstag zusammen, um über das Gesetz zu beraten.")
    languages = {text.identifier: text.language for text in held_out(TextConfig(path=tmp_path), None)}
    assert languages == {"la/1.txt": "la", "nl.txt": "nl", "unknown.txt": "de"}


# Invalid input -----------------------------------------------------------------------------


def rejected(pattern: str, *arguments: str) -> None:
    with pytest.raises(InputError, match=pattern) as error:
        evaluate.main([*arguments, "--device", "cpu"])
    assert "\n" not in str(error.value)


def test_contamination_without_an_index_or_a_test_text_is_rejected(run, tiny_shards, tiny_tokenizer, tmp_path):
    model, index = ["--model", str(run), "--suite", "bits_per_byte"], ["--contamination", str(tmp_path)]
    rejected("needs an index of the training shards: pass --contamination", *model, "--exclude_contaminated")
    rejected("--contamination needs a task with test texts: bits", *model, *index, "--suite", "speed")
    rejected("index.json is missing", *model, *index)
    build_index([tiny_shards], tokenizer=tiny_tokenizer, out=tmp_path, splits=["train", "validation"])
    rejected("contains the held-out documents too", *model, *index)


def test_missing_and_empty_data_are_rejected_with_their_path(run, tmp_path):
    model = "--model", str(run)
    rejected(r"nowhere does not exist", *model, "--data.path", str(tmp_path / "nowhere"))
    rejected(r"contains neither \.parquet nor \.txt", *model, "--data.path", str(tmp_path))
    (tmp_path / "en.txt").write_text(" \n")
    rejected(r"en\.txt is empty", *model, "--data.path", str(tmp_path / "en.txt"))
    (tmp_path / "en.txt").write_bytes(b"caf\xe9")
    rejected(r"en\.txt is not UTF-8", *model, "--data.path", str(tmp_path))
    (tmp_path / "fr.txt").write_text("la maison")
    rejected(r"no text in it in .*fr", *model, "--data.path", str(tmp_path / "fr.txt"), "--data.languages", "[it]")
    rejected(r"contains no prompt of 160 characters", *model, "--data.path", str(tmp_path / "fr.txt"))
    (tmp_path / "x.parquet").write_bytes(b"no Parquet")
    rejected(r"x\.parquet is not a valid Parquet file", *model, "--data.path", str(tmp_path))
    rejected(r"--suite must be one of card, .*, got 'nonsense'", *model, "--suite", "nonsense")
    rejected(r"Memorisation needs an index", *model, "--suite", "memorisation")


def test_a_folder_that_is_not_a_model_is_rejected_with_the_missing_file(run, tmp_path):
    rejected(r"nowhere is not a folder", "--model", str(tmp_path / "nowhere"))
    rejected(r"nowhere\.gguf does not exist", "--model", str(tmp_path / "nowhere.gguf"))
    rejected(r"has no config\.json", "--model", str(tmp_path))
    (tmp_path / "config.json").write_text((run / "model" / "config.json").read_text())
    rejected(r"has no weights", "--model", str(tmp_path))
    (tmp_path / "model.safetensors").symlink_to(run / "model" / "model.safetensors")
    rejected(r"has no tokenizer: put tokenizer\.json", "--model", str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((run / "model" / name).read_text())
    rejected(r"is not in a run folder, so there is no held-out text: pass --data\.path", "--model", str(tmp_path))


def test_a_tokenizer_of_another_model_is_rejected(run, tmp_path):
    for path in (run / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    PleiasTokenizer().train_new_from_iterator(["abc " * 9, "bcd " * 9], 500).save_pretrained(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 4000
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="ids up to 4,000 and a model with a vocabulary of 400"):
        EvaluatedModel(str(tmp_path)).model  # noqa: B018


def test_two_models_with_the_same_name_are_rejected(run):
    rejected(r"Two models are named tiny", "--model", str(run), "--model", str(run / "model"))
