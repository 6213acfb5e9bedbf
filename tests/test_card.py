"""A card prints figures from files alone, and its validator finds each kind of defect."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from model_card import card, flavours, release, run_files, validate
from model_card.facts import base_of, facts, history, mixture, spent
from model_card.files import ReleaseError, portable, read_json, verify_sums, write_json
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.evaluation.models import Subject
from training.files import model_sha256
from training.files import read_json as read
from training.tasks import TASKS
from training.tuning import account
from training.tuning.examples import Examples

MODEL_CARD = Path(card.__file__).parent
# What a model may write: each of these once ended a line, a table, a block of code, or the card.
WRITTEN = {
    "en": (
        " 1.2.3.0 | <b>bold</b> {{ name }} TODO\n\n\n\n```python\nprint('x'\n"
        "````\r\n# 12 [x](nowhere.md) \ue0001\ue001"
    ),
    "fr": ", il l'\u00e9, la cre",
    "la": "",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer, tiny_shards):
    """Folder of a run as training leaves it, over real shards, with a small model and the results of one task."""
    folder = tmp_path_factory.mktemp("card") / "runs" / "tiny"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PleiasConfig(
        vocab_size=len(PleiasTokenizer.from_pretrained(tiny_tokenizer)),
        num_key_value_heads=1,
        max_position_embeddings=256,
        **shape,
    )
    PleiasForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_tokenizer / name, folder / "model" / name)
    settings = {
        "name": "tiny",
        "stages": [
            {"name": "base", "steps": 70, "sequences": 8, "shards": str(tiny_shards)},
            {"name": "annealing", "steps": 5, "sequences": 4, "shards": str(tiny_shards)},
        ],
        "corpus": {"source": "common_corpus", "dataset": "PleIAs/common_corpus", "languages": ["en", "fr"]},
        "data": {"folder": "data/tiny"},
        "optimizer": {"learning_rate": 0.002, "beta1": 0.9, "decay_steps": None},
        "sequence_length": 256,
        "micro_batch": 8,
        "precision": "auto",
        "seed": 42,
        "country": "FRA",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    session = {
        "command": "/home/someone/.venv/bin/python -m training.pretrain --config tiny",
        "commit": "0123456789abcdef",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "A processor", "cpus": 2, "gpus": []},
        "processes": 1,
        "dtype": "torch.bfloat16",
        "data": [read(tiny_shards / "manifest.json")["fingerprint"]],
    }
    write_json(folder / "run.json", {"name": "tiny", "sessions": [session]})
    emissions = {"seconds": 190.0, "kwh": 0.0013, "kg_co2eq": 7.3e-05, "source": "codecarbon, electricity of FRA"}
    write_json(folder / "emissions.json", emissions)
    scores = {code: {"loss": 5.5 + i, "bits_per_byte": 2.25 + i} for i, code in enumerate(("en", "fr"))}
    rows = [{"step": step, "loss": 6.0} for step in range(1, 1002)]
    rows[500:500] = [{"step": 500, "event": {"skipped": 1}}, {"step": 500, "validation": scores}]
    rows.append({"step": 75, "validation": scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "loss.png").write_bytes(b"a plot")
    (folder / "summary.txt").write_text("greedy, repetition penalty 1.2\nRun: /home/someone/runs/tiny\n", "utf-8")
    lines = [
        {"step": step, "language": code, "prompt": "Rex 7", "continuation": text if step == 75 else "early"}
        for step in (40, 75)
        for code, text in WRITTEN.items()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    bits = {"tiny": 2.25, "peer-2": {"value": 2.5, "low": 2.375, "high": 2.625}}
    row = {"values": bits, "differences": {"peer-2": {"value": -0.25, "low": -0.5, "high": 0.125}}}
    models = [
        {"name": "tiny", "parameters": 1234, "fingerprint": Subject(str(folder)).fingerprint},
        {"name": "peer-2", "parameters": 567890, "source": "/home/someone/peers/peer-2.gguf"},
    ]
    beside = {"models": models, "tasks": {"bits_per_byte": {"mean": row, "la": row}}}
    beside["command"] = "/home/someone/python -m training.evaluate --model runs/tiny --model /home/someone/peer-2.gguf"
    (folder / "comparison").mkdir()
    write_json(folder / "comparison" / "comparison.json", beside)
    metrics = {"character_error_rate": {"value": 0.125, "low": 0.1, "high": 0.15}, "documents": 40}
    (folder / "eval").mkdir()
    write_json(folder / "eval" / "ocr.json", {"task": "ocr", "metrics": metrics, "command": "the command"})
    return folder


@pytest.fixture(scope="module")
def dist(run, tmp_path_factory):
    """Folder of a release of it, its flavours alone."""
    out = tmp_path_factory.mktemp("dist") / "tiny"
    arguments = ["--run", str(run), "--out", str(out), "--formats"]
    release.build(release.options(arguments), "python -m model_card.release --run runs/tiny --out dist/tiny")
    return out


@pytest.fixture
def folder(dist, tmp_path):
    """A copy of the llama flavour in its release, to be spoiled."""
    shutil.copytree(dist, tmp_path / "tiny")
    return tmp_path / "tiny" / "llama"


def problems(folder: Path, kind: str) -> list[str]:
    """Messages of one kind; there are no problems of another kind."""
    found = validate.validate(folder, run=False)
    assert {problem.kind for problem in found} <= {kind}, found
    return [problem.message for problem in found]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()  # as it is: a model may have written a carriage return
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


def metadata(folder: Path) -> dict:
    return yaml.safe_load(validate.parts((folder / "README.md").read_text(encoding="utf-8"))[0])


# What is on a card --------------------------------------------------------------------------------


def test_a_release_writes_a_card_for_each_folder_which_is_in_order_and_in_its_hashes(dist):
    for part in ("custom", "llama"):
        assert validate.validate(dist / part, run=False) == []
        listed = (dist / part / "SHA256SUMS").read_text()
        assert all(name in listed for name in ("README.md", "card.json", "evidence/facts.json"))
    verify_sums(dist)


def test_the_metadata_is_what_the_files_of_the_run_say(dist):
    head = metadata(dist / "llama")
    assert head["language"] == ["en", "fr"] and head["datasets"] == ["PleIAs/common_corpus"]
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert head["co2_eq_emissions"] == {
        "emissions": pytest.approx(0.073),  # grams, of 7.3e-05 kg
        "source": "codecarbon, electricity of FRA",
        "training_type": "pre-training",
        "geographical_location": "FRA",
        "hardware_used": "A processor",
    }
    values = [m["value"] for result in head["model-index"][0]["results"] for m in result["metrics"]]
    assert values == [2.25, 3.25, 0.125, 40]


def test_the_account_of_the_text_adds_up_to_the_manifest(dist, tiny_shards):
    told = read_json(dist / "llama" / "evidence" / "facts.json")
    account = [row for row in read(tiny_shards / "manifest.json")["account"] if row["split"] == "train"]
    (corpus,) = told["corpora"]  # one manifest for both stages
    assert corpus["stages"] == "base and annealing"
    assert corpus["train"]["tokens"] == sum(row["tokens"] for row in account)
    for column in ("language", "license", "collection"):
        rows = corpus[f"by_{column}"]
        assert sum(row["tokens"] for row in rows) == corpus["train"]["tokens"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert told["tokens"] == (70 * 8 + 5 * 4) * 256


def test_a_stage_that_was_trained_on_other_shards_than_those_on_disk_is_refused(run, tmp_path):
    spoiled = tmp_path / "runs" / "tiny"
    shutil.copytree(run, spoiled)
    change(spoiled / "run.json", read_json(run / "run.json")["sessions"][0]["data"][0], "0" * 64)
    with pytest.raises(ReleaseError, match="manifest.json is not the manifest that"):
        release.build(release.options(["--run", str(spoiled), "--out", str(tmp_path / "d"), "--formats"]), "")
    assert not (tmp_path / "d").exists()


def test_every_number_of_the_body_is_noted_with_the_place_it_stands_at(dist):
    lines = (dist / "llama" / "README.md").read_bytes().decode().split("\n")
    noted = read_json(dist / "llama" / "card.json")["numbers"]
    assert len(noted) > 50
    for number in noted:
        rest = "\n".join(lines[number["line"] - 1 :])[number["column"] - 1 :]
        assert rest.startswith(number["text"])
        assert re.fullmatch(r"evidence/[\w/]+\.json#(/.*)?", number["source"])


@pytest.mark.parametrize("template", ["template.md", "task_use.md", "nano_1.2b/template.md"])
def test_the_templates_state_no_number_of_their_own(template):
    text = (MODEL_CARD / template).read_text(encoding="utf-8")
    jinja = re.compile(r"\{[{%#].*?[}%#]\}", re.S)
    hidden = validate.blanked(text, validate.FENCE, jinja, validate.INLINE, re.compile(r"\]\([^)]*\)|https?://\S+"))
    assert validate.NUMBER.findall(hidden) == []


def test_a_path_of_the_machine_that_trained_is_not_on_the_card(dist):
    assert "python -m training.pretrain --config tiny" in (dist / "llama" / "README.md").read_text()
    assert "/home/someone" not in (dist / "llama" / "README.md").read_text()


def test_a_fine_tune_names_its_base_and_quantised_formats_name_the_release(dist, run, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(dist, out)
    (out / "gguf").mkdir()
    content = read_json(out / "release.json")
    write_json(out / "release.json", {**content, "folders": {**content["folders"], "gguf": {"bytes": 0, "files": {}}}})
    card.write_cards(
        out, "the command", run=run, repository="someone/tiny", base_model="PleIAs/base", relation="finetune"
    )
    llama, gguf = metadata(out / "llama"), metadata(out / "gguf")
    assert (llama["base_model"], llama["base_model_relation"]) == ("PleIAs/base", "finetune")
    assert llama["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert (gguf["base_model"], gguf["base_model_relation"]) == ("someone/tiny", "quantized")
    assert validate.validate(out / "llama", run=False) == []
    assert validate.validate(out / "gguf", run=False) == []


def test_a_converted_folder_without_a_run_gets_a_card_too(dist, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(dist, out)
    shutil.rmtree(out / "llama" / "evidence")
    content = read_json(out / "release.json")
    content["source"] |= {"kind": "llama", "run": None}
    write_json(out / "release.json", {**content, "folders": {"llama": content["folders"]["llama"]}})
    card.write_cards(out, "the command")
    assert "model-index" not in metadata(out / "llama")
    assert validate.validate(out / "llama", run=False) == []


def test_the_card_of_the_original_s_recipe_is_as_its_facts_are_and_in_order(tmp_path):
    copy = tmp_path / "nano_1.2b"
    shutil.copytree(MODEL_CARD / "nano_1.2b", copy)
    assert validate.validate(copy, run=False) == []
    before = (copy / "README.md").read_text(encoding="utf-8")
    card.write_own(copy, "the command")
    assert (copy / "README.md").read_text(encoding="utf-8") == before
    for tokens in ("4,224,712,704,000", "3,772,000,000,000", "1,086,324,736,000", "nearly 5 trillion"):
        assert tokens in before


def test_the_figures_of_the_recipe_s_card_are_those_of_its_config():
    told = read_json(MODEL_CARD / "nano_1.2b" / "facts.json")
    config = yaml.safe_load((MODEL_CARD.parent / "training" / "configs" / "nano_1.2b.yaml").read_text())
    stages = [(stage["steps"], stage["first_step"]) for stage in told["stages"]]
    firsts = [1 + sum(stage["steps"] for stage in config["stages"][:i]) for i in range(len(config["stages"]))]
    assert stages == [(stage["steps"], first) for stage, first in zip(config["stages"], firsts, strict=True)]
    for stage, known in zip(config["stages"], told["stages"], strict=True):
        assert known["tokens"] == stage["steps"] * stage["sequences"] * config["sequence_length"]
    for name in ("learning_rate", "final_learning_rate", "warmup_steps", "decay_steps", "weight_decay", "clip"):
        assert told["training"][name]["value"] == config["optimizer"][name]
    assert told["training"]["tokens"]["value"] == sum(stage["tokens"] for stage in told["stages"])
    card_says = told["contradiction"]
    product = card_says["steps_of_the_card"]["value"] * card_says["sequences_of_the_card"]["value"] * 2048
    assert card_says["tokens_of_these"]["value"] == product


# How a run went ----------------------------------------------------------------------------------


def test_both_flavours_of_a_pretraining_run_carry_how_it_went_and_what_it_read(dist, run, tiny_shards):
    for part in ("custom", "llama"):
        found = {path.relative_to(dist / part / "run").as_posix() for path in (dist / part / "run").rglob("*.*")}
        account = {"config.yaml", "run.json", "emissions.json", "summary.txt", "loss.png", "metrics.jsonl"}
        assert found == {*account, "manifests/base-annealing.json"}  # one manifest for both stages
        assert "run/metrics.jsonl" in (dist / part / "SHA256SUMS").read_text()
    folder = dist / "llama" / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (1, 1001)
    assert {b - a for a, b in zip(steps, steps[1:], strict=False)} == {5, 6}
    whole = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if "loss" not in row] == [row for row in whole if "loss" not in row]
    short, manifest = read_json(folder / "manifests" / "base-annealing.json"), read(tiny_shards / "manifest.json")
    assert short["account"] == manifest["account"] and short["fingerprint"] == manifest["fingerprint"]
    assert [one["sha256"] for one in short["shards"]] == [one["sha256"] for one in manifest["shards"]]
    assert not any("account" in one for one in short["shards"])


def test_of_thousands_of_shards_a_manifest_tells_the_number(tiny_shards):
    manifest = read(tiny_shards / "manifest.json")
    many = run_files.shortened({**manifest, "shards": manifest["shards"][:1] * 1000})
    assert many["left_out"] == {"shards": 1000, "files": len(manifest["corpus"]["files"])}
    assert "shards" not in many and "files" not in many["corpus"] and "sources" in many["corpus"]


def test_a_fine_tuning_has_no_such_folder(tuned, tmp_path):
    run_files.write_run(tuned(), tmp_path / "flavour")
    assert not (tmp_path / "flavour").exists()


def test_no_path_of_the_machine_is_in_a_release(dist, run):
    for path in dist.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".txt", ".md") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert "/home/someone" not in text and str(run.parent.parent) not in text, path
    assert "Run: tiny\n" in (dist / "llama" / "run" / "summary.txt").read_text()


def test_an_absolute_path_is_seen_from_a_root_or_cut_to_its_last_part():
    root = Path("/work/house")
    for given, kept in {
        "/work/house/data/femto": "data/femto",
        "/home/me/.venv/bin/python -m training.shards --out=/work/house/data/a --model '[\"/tmp/x/b.gguf\"]'": (
            "python -m training.shards --out=data/a --model '[\"b.gguf\"]'"
        ),
        "../shared/corpus": "../shared/corpus",
        "https://example.org/a/b and/or 1/2": "https://example.org/a/b and/or 1/2",
    }.items():
        assert portable({"a": [given]}, root) == {"a": [kept]}


def test_a_file_of_the_run_that_was_changed_after_the_release_is_found(folder):
    with open(folder / "run" / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    (folder / "run" / "summary.txt").unlink()
    (folder / "run" / "more.txt").touch()
    assert problems(folder, "number") == [
        "run/metrics.jsonl is not the file that was released",
        "run/more.txt is not the file that was released",
        "run/summary.txt is missing, and was released",
    ]


def test_the_loss_curve_is_shown_where_there_is_one(folder):
    picture = "](run/loss.png)"
    assert picture in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "run" / "loss.png").unlink()
    assert "run/loss.png is not in the folder" in [p.message for p in validate.validate(folder, run=False)]
    card.write_cards(folder.parent, "the command")
    assert picture not in (folder / "README.md").read_text(encoding="utf-8")


def test_what_the_model_wrote_last_is_on_the_card_as_it_is(dist):
    text = (dist / "llama" / "README.md").read_bytes().decode()
    assert "What it wrote at step 75, greedily, with repetition penalty 1.2;" in text
    for name, written in (("English", WRITTEN["en"]), ("French", WRITTEN["fr"]), ("Latin", "")):
        assert f'{name}, after "Rex 7":\n{written}\n\n' in text
    assert "\n`````text\nEnglish" in text and "early" not in text
    assert read_json(dist / "llama" / "evidence" / "samples.json")["repetition_penalty"] == 1.2
    assert validate.validate(dist / "llama", run=False) == []


def test_a_continuation_improved_by_hand_is_found_though_no_figure_is_in_it(folder):
    change(folder / "README.md", "il l'\u00e9, la", "il l'eau, la")
    assert any("samples/1/continuation" in message for message in problems(folder, "number"))


def test_bits_per_byte_stand_beside_those_of_peers_with_the_command(dist):
    text = (dist / "llama" / "README.md").read_text(encoding="utf-8")
    row = "2.250 | 2.500 (2.375 to 2.625) | -0.250 (-0.500 to +0.125) |\n"
    assert f"| mean | {row}| Latin | {row}" in text and "| peer-2 | 567,890 |" in text
    assert "python -m training.evaluate --model runs/tiny --model peer-2.gguf\n" in text


def test_a_difference_that_does_not_follow_from_the_values_is_found(folder):
    path = folder / "evidence" / "comparison.json"
    change(path, "-0.25", "-0.75")
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    (message,) = problems(folder, "number")
    assert "the difference to peer-2 (mean) does not follow" in message


def test_a_comparison_of_other_weights_is_refused_and_another_folder_s_is_taken(dist, run, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    content = read_json(run / "comparison" / "comparison.json")
    (tmp_path / "other").mkdir()
    content["models"][1]["name"] = "peer-2"
    write_json(tmp_path / "other" / "comparison.json", {**content, "command": "another command"})
    card.write_cards(out, "", run=run, comparison=tmp_path / "other")
    assert "\nanother command\n" in (out / "llama" / "README.md").read_text(encoding="utf-8")
    content["models"][0]["fingerprint"] = "0" * 64
    write_json(tmp_path / "other" / "comparison.json", content)
    with pytest.raises(ReleaseError, match="compare anew, with `--model .*tiny` before the others"):
        card.write_cards(out, "", run=run, comparison=tmp_path / "other")


def test_the_commands_that_made_the_data_are_listed_before_the_run_s(dist, tiny_shards):
    told = read_json(dist / "llama" / "evidence" / "facts.json")
    made = portable(read(tiny_shards / "manifest.json")["command"], Path.cwd())
    assert told["commands"] == [made, "python -m training.pretrain --config tiny"]
    text = (dist / "llama" / "README.md").read_text(encoding="utf-8")
    assert f"```bash\n{made}\npython -m training.pretrain --config tiny\n```\n" in text
    assert f"base and annealing `{told['corpora'][0]['fingerprint']}`" in text


def test_a_mixture_of_a_folder_that_names_no_sources_is_told_by_its_rules(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    rules = [{"epochs": 0.3, "language_type": "Code", "collection": None, "license": "*"}]
    made = {"name": "base", "files": {"a.parquet": "0"}, "held_out": 0.01, "mixtures": {"base": rules, "anneal": []}}
    for part in ("custom", "llama"):
        data = read_json(out / part / "evidence" / "data.json")
        data[0]["sources"] = {"sources": ["../shared/corpus"], "mixture": {**made, "command": "/a/b/mix --it"}}
        write_json(out / part / "evidence" / "data.json", data)
    card.write_cards(out, "")
    text = (out / "llama" / "README.md").read_text(encoding="utf-8")
    assert "Mixed as `base` from 1 files, of which 1.0% of the documents" in text
    assert "| language_type Code | 0.3 |" in text and "```bash\nmix --it\n" in text
    assert validate.validate(out / "llama", run=False) == []
    assert mixture({"sources": {"mixture": {**made, "name": "held_out"}}})["rules"] == []


# After a base model -------------------------------------------------------------------------------


def examples(*, licence: str = "CC-BY-4.0", language: str = "Dutch") -> Examples:
    """Two examples, one of which may be under any licence."""
    made = Examples()
    made.add([1, 5, 6, 7], group=("French", "MPL-2.0", "help"), source="help pages", size=20)
    made.add([1, 8], group=(language, licence, "own"), source="own.jsonl", size=5)
    return made


@pytest.fixture
def tuned(run, tiny_tokenizer, tmp_path):
    """Function (examples, **config) -> folder of a fine-tuning run as training.finetune leaves it."""

    def make(learnt: Examples | None = None, **config) -> Path:
        folder, learnt = tmp_path / "runs" / "tuned", learnt or examples()
        shutil.copytree(run / "model", folder / "model")
        usual = {"name": "tuned", "task": "ocr", "base_model": "PleIAs/Pleias-Nano", "method": "sft", "data": {}}
        usual |= {"trainer": {"learning_rate": 5e-4}, "replay": {"share": 0.0}, "seed": 42}
        config = usual | config | {"country": "FRA", "precision": "auto"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        manifest = account.manifest(learnt, learnt, tiny_tokenizer)
        account.write(folder, {config["task"]: manifest})
        session = read_json(run / "run.json")["sessions"][0] | {"data": [manifest["fingerprint"]], "steps": 70}
        session |= {
            "base_files": {"model.safetensors": "0" * 64},
            "kept": {"step": 60, "metric": "cer", "value": 0.25},
        }
        session |= {
            "trainer": {"learning_rate": 5e-4, "lr_scheduler_type": "cosine", "world_size": 1},
            "trl": "1.16.0",
        }
        write_json(folder / "run.json", {"name": "tuned", "sessions": [session]})
        shutil.copyfile(run / "emissions.json", folder / "emissions.json")
        figures = {"cer": 0.25, "cer_before": 0.75, "cer_change": -0.5}
        metrics = {name: {"value": x, "low": x - 0.125, "high": x + 0.125} for name, x in figures.items()}
        result = {"task": config["task"], "metrics": metrics, "data": {"rows": 200}, "signatures": {"cer": "nrefs:1"}}
        (folder / "eval").mkdir()
        write_json(folder / "eval" / f"{config['task']}.json", result)
        return folder

    return make


def carded(dist: Path, run: Path, out: Path, **options) -> Path:
    """The llama flavour with its card, of a release of the run whose tensors are another's."""
    shutil.copytree(dist, out, ignore=shutil.ignore_patterns("run", "evidence", "card.json"))
    for part in ("custom", "llama"):
        release.write_run(run, out / part)
    described = release.describe(flavours.open_run(run)) | {"folders": release.list_files(out)}
    write_json(out / "release.json", read_json(out / "release.json") | described)
    card.write_cards(out, "the command", run=run, **options)
    assert validate.validate(out / "llama", run=False) == [] == validate.validate(out / "custom", run=False)
    return out / "llama"


def test_a_fine_tuning_is_told_with_its_base_its_settings_its_text_and_both_sides_of_its_results(
    dist, tuned, tmp_path
):
    data = {"copy_rows": 1200, "clean_share": 0.2, "window": 60, "pairs": "../pairs", "path": None}
    folder = carded(dist, tuned(data=data, optimizer="muon", candidates=2048), tmp_path / "tuned")
    head, text = metadata(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert (head["base_model"], head["base_model_relation"]) == ("PleIAs/Pleias-Nano", "finetune")
    assert head["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert head["language"] == ["fr", "nl"]  # what the account has, the most tokens first
    assert "fine-tuned for correcting the errors of OCR from [PleIAs/Pleias-Nano](" in text
    assert "pretrained from scratch" not in text and "Every text that was learnt after that is in the public" in text
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
        "| MPL-2.0 | 4 | 66.7% |",
        "| cer | 0.75 (0.625 to 0.875) | 0.25 (0.125 to 0.375) | -0.5 (-0.625 to -0.375) |",
    ):
        assert line in text.split("\n"), line
    assert "the weights of step 60, the best by cer" in text and "in 70 steps" in text and "cer is `nrefs:1`" in text
    assert "trl 1.16.0" in text and "200 held-out examples" in text
    (result,) = head["model-index"][0]["results"]
    named = [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]]
    assert named == [("cer", "cer", 0.25), ("cer_before", "cer of the model that training started from", 0.75)]


@pytest.mark.parametrize("task", TASKS)
def test_the_card_of_a_task_says_how_to_use_it_and_only_one_for_conversations_allows_them(dist, tuned, tmp_path, task):
    folder = carded(dist, tuned(task=task), tmp_path / "tuned")
    text = (folder / "README.md").read_text(encoding="utf-8")
    call = {"ocr": "correct", "translation": "translate", "rag": "answer", "instruct": "reply"}[task]
    assert f"from modeling_pleias.training.tasks import {task}\n" in text and f"{task}.{call}(model" in text
    # In the other folder lie files of the package's names.
    assert f"`modeling_pleias.training.tasks.{task}.{call}`" in (folder.parent / "custom" / "README.md").read_text()
    markers = {"ocr": "<|ocr_correction_start|>", "translation": "<|translation_start|><|fr|>"}
    assert markers.get(task, {"rag": "<|source_id_start|>", "instruct": "<|im_start|>assistant"}.get(task)) in text
    assert ("**Not meant for**: conversation" in text) == (task != "instruct")


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, data", [*((task, {}) for task in TASKS), ("rag", {"format": "rag-2025"})], ids=lambda one: str(one)
)
def test_the_code_of_a_task_s_card_runs(dist, tuned, tmp_path, task, data):
    folder = carded(dist, tuned(task=task, data=data), tmp_path / "tuned")
    for part in ("llama", "custom"):
        assert validate.validate(folder.parent / part) == []


def test_a_base_that_is_a_folder_is_told_by_hashes_unless_its_name_is_given(dist, tuned, tmp_path):
    folder = tuned(base_model="runs/femto/model")
    plain = carded(dist, folder, tmp_path / "plain")
    text = (plain / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in metadata(plain) and "from scratch" not in text
    assert "from a model that is known by the [hashes](evidence/release.json)" in text
    assert metadata(plain)["co2_eq_emissions"]["training_type"] == "fine-tuning"
    named = carded(dist, folder, tmp_path / "named", base_model="someone/femto")
    assert metadata(named)["base_model"] == "someone/femto"


def test_a_name_on_the_hub_is_told_from_a_folder(tmp_path):
    run = tmp_path / "runs" / "tuned"
    (tmp_path / "models" / "mine").mkdir(parents=True)
    cached = "/cache/huggingface/hub/models--PleIAs--Pleias-Nano/snapshots/0123"
    assert base_of({"base_model": "PleIAs/Pleias-Nano"}, run) == "PleIAs/Pleias-Nano"
    assert base_of({"init_from": cached}, run) == base_of({"base_model": cached}, run) == "PleIAs/Pleias-Nano"
    assert base_of({"base_model": "models/mine"}, run) is None  # as seen from the folder that holds runs/
    assert base_of({"init_from": "data/start"}, run) is None  # which is always a folder
    assert base_of({}, run) is None


def test_continued_pretraining_is_told_as_such(dist, run, tmp_path):
    more = shutil.copytree(run, tmp_path / "runs" / "more")
    config = yaml.safe_load((more / "config.yaml").read_text(encoding="utf-8")) | {"init_from": "runs/femto/model"}
    (more / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    folder = carded(dist, more, tmp_path / "more")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pretrained further from a model that is known by the [hashes]" in text and "from scratch" not in text
    assert metadata(folder)["co2_eq_emissions"]["training_type"] == "pre-training"
    assert "what the model before it had read is not in that account" in text
    named = carded(dist, more, tmp_path / "named", base_model="someone/femto")
    assert metadata(named)["co2_eq_emissions"]["training_type"] == "pre-training"
    account_of_run = read_json(more / "run.json")
    account_of_run["sessions"][0]["init_untrained"] = True  # embeddings that were counted, and nothing learnt
    write_json(more / "run.json", account_of_run)
    begun = (carded(dist, more, tmp_path / "begun") / "README.md").read_text(encoding="utf-8")
    assert "pretrained from scratch" in begun and "Every document it was trained on is in the public" in begun
    assert "pretrained further from [someone/femto]" in (named / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def continued(run, tmp_path):
    """Folder of a run that went on from the model of another, which lies beside it."""
    first = shutil.copytree(run, tmp_path / "runs" / "first")
    more = shutil.copytree(run, tmp_path / "runs" / "more")
    config = yaml.safe_load((more / "config.yaml").read_text(encoding="utf-8"))
    config |= {"name": "more", "init_from": "runs/first/model", "sequence_length": 128}
    config["stages"] = [{**config["stages"][0], "name": "more", "steps": 10}]
    (more / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    sessions = read_json(more / "run.json")
    sessions["sessions"][0] |= {"init_from": model_sha256(first / "model"), "init_untrained": False}
    sessions["sessions"][0]["command"] = "python -m training.pretrain --config more"
    write_json(more / "run.json", sessions)
    return more


def test_a_run_that_went_on_from_another_accounts_for_what_both_read_and_took(dist, continued, tmp_path):
    folder = carded(dist, continued, tmp_path / "dist" / "more")
    told = read_json(folder / "evidence" / "facts.json")
    assert [stage["name"] for stage in told["stages"]] == ["base", "annealing", "more"]
    assert told["tokens"] == (70 * 8 + 5 * 4) * 256 + 10 * 8 * 128 and told["steps"] == 85
    assert told["grams_co2eq"] == pytest.approx(2 * 0.073) and told["minutes"] == pytest.approx(2 * 190 / 60)
    assert [corpus["stages"] for corpus in told["corpora"]] == ["base and annealing and more"]  # one manifest
    assert told["commands"][-2:] == [f"python -m training.pretrain --config {name}" for name in ("tiny", "more")]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pretrained from scratch" in text and "Every document it was trained on is in the public" in text
    assert "(run/loss.png)" in text and "(run/before/loss.png)" in text and "setting of the run `tiny`" in text
    for name, of in (("run", continued), ("run/before", continued.parent / "first")):
        kept = yaml.safe_load((folder / name / "config.yaml").read_text(encoding="utf-8"))
        assert kept["name"] == yaml.safe_load((of / "config.yaml").read_text(encoding="utf-8"))["name"]


def test_a_run_that_began_with_a_mean_has_the_runs_of_both_models_before_it_each_once(dist, continued, tmp_path):
    first = continued.parent / "first"
    last = shutil.copytree(continued, continued.parent / "last")
    config = yaml.safe_load((last / "config.yaml").read_text(encoding="utf-8"))
    config |= {"init_from": "runs/more/model", "average_with": "runs/first/model"}
    (last / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    sessions = read_json(last / "run.json")
    keys = ("init_from", "average_with")
    sessions["sessions"][0] |= {key: model_sha256(last.parent.parent / config[key]) for key in keys}
    write_json(last / "run.json", sessions)
    assert history(last) == [first, continued, last]
    other = shutil.copytree(first, continued.parent / "other")
    config["average_with"] = "runs/other/model"
    (last / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert history(last) == [first, continued, other, last]
    text = (carded(dist, last, tmp_path / "last") / "README.md").read_text(encoding="utf-8")
    assert "`, from the mean of the weights in `runs/more/model` and `runs/other/model`." in text
    assert "`, from the weights that the run before it left." in text
    weights = other / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match="other/model/model.safetensors is not the file that .*last went on from"):
        history(last)


def test_an_earlier_run_whose_model_was_made_anew_since_is_refused(continued, tmp_path):
    weights = continued.parent / "first" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match="first/model/model.safetensors is not the file that .*more went on from"):
        release.build(release.options(["--run", str(continued), "--out", str(tmp_path / "d"), "--formats"]), "")
    assert not (tmp_path / "d").exists()


def test_what_one_of_the_runs_took_is_no_sum_where_it_is_not_on_file(continued):
    (continued.parent / "first" / "emissions.json").unlink()
    runs = [release.account_of_run(one) for one in history(continued)]
    assert spent(runs, "kwh", 1000) is None and spent(runs[1:], "kwh", 1000) == pytest.approx(1.3)


@pytest.mark.parametrize(
    "licence, told",
    [
        ("unknown", "1 documents (33.3% of the tokens) came without a licence"),
        ("CC-BY-NC-4.0", "1 documents (33.3% of the tokens) are under CC-BY-NC-4.0, which is not known to be an open"),
    ],
)
def test_text_that_is_not_known_to_be_open_is_said_to_be_so(dist, tuned, tmp_path, licence, told):
    folder = carded(dist, tuned(examples(licence=licence), task="instruct"), tmp_path / "tuned")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert told in text and "Not all of its text is known to be open" in text
    assert "is in the public domain or under an open licence" not in text and "what open licences" not in text


def test_text_whose_language_is_not_on_file_is_not_said_to_be_in_eight(dist, tuned, tmp_path):
    made = Examples()
    made.add([1, 5], group=("unknown", "CC0-1.0", "own"), source="own.jsonl", size=5)
    folder = carded(dist, tuned(made, task="instruct"), tmp_path / "tuned")
    assert metadata(folder)["language"] == ["und"]
    assert "for languages that are not on file.\n" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "method, told",
    [("dpo", "3 answers to these prompts by"), ("grpo", "answers to these prompts, on the way, by the model")],
)
def test_answers_that_a_model_learnt_from_itself_are_told_as_synthetic(dist, tuned, tmp_path, method, told):
    run = tuned(task="instruct", method=method, data={"tasks": ["ocr"], "settings": {"ocr": {"path": "my"}}})
    if method == "dpo":
        (run / "answers").mkdir()
        write_json(run / "answers" / "own.json", {"of": "x", "value": ["a", "b", "c"]})
    text = (carded(dist, run, tmp_path / "tuned") / "README.md").read_text(encoding="utf-8")
    assert f"written by a language model: {told}" in text and " PleIAs/Pleias-Nano. Whether" in text
    assert "None of this text is synthetic" not in text and "it is the user's own" in text


def test_whether_a_model_wrote_the_user_s_own_text_is_said_to_be_unknown(dist, tuned, tmp_path):
    for data, own in (({"path": "mine.jsonl"}, True), ({"path": None, "tasks": ["ocr"]}, False)):
        folder = carded(dist, tuned(task="instruct", data=data), tmp_path / str(own))
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert ("Whether a language model wrote any of this text is not on file" in text) == own
        assert ("None of this text is synthetic" in text) != own
        shutil.rmtree(tmp_path / "runs")


# What the validator finds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("license: apache-2.0", "license: apache2", "license: 'apache2' is not one of the Hub's licenses"),
        ("- fr\n", "- french\n", "language: 'french' is not one of the Hub's languages"),
        ("pipeline_tag: text-generation", "pipeline_tag: textgen", "pipeline_tag: 'textgen' is not one of"),
        ("library_name: transformers", "library_name: transformer", "library_name: 'transformer' is not one of"),
        ("tags:", "base_model: a/b\nbase_model_relation: child\ntags:", "base_model_relation: 'child' is not one of"),
        ("tags:", "base_model: a/b\ntags:", "base_model and base_model_relation belong together"),
        ("- PleIAs/common_corpus", "- common corpus", "datasets: 'common corpus' is no OWNER/NAME"),
        ("tags:", "lisence: mit\ntags:", "lisence is no key that the Hub knows"),
        ("pipeline_tag: text-generation\n", "", "pipeline_tag is missing"),
        ("training_type: pre-training", "training_type: training", "training_type is to be one of"),
        ("    type: held-out", "    kind: held-out", "dataset needs type and name"),
    ],
)
def test_metadata_that_the_hub_would_not_take_is_found(folder, old, new, message):
    change(folder / "README.md", old, new)
    found = [p.message for p in validate.validate(folder, run=False)]
    assert any(message in one for one in found), found


@pytest.mark.parametrize("text", ["TODO", "[More Information Needed]", "{{ name }}", "{% endif %}", "<your name>"])
def test_a_placeholder_is_found_with_its_line(folder, text):
    with open(folder / "README.md", "a") as file:
        file.write(f"{text}\n")
    lines = (folder / "README.md").read_text().count("\n")
    found = validate.validate(folder, run=False)
    assert {(p.kind, p.line) for p in found} == {("placeholder", lines)}


@pytest.mark.parametrize(
    "link, message",
    [
        ("[x](nowhere.md)", "nowhere.md is not in the folder"),
        ("[x](../../secret)", "../../secret is not in the folder"),
        ("[x](#nothing-here)", "no heading has this anchor"),
        ("[x](https://hugging face.co)", None),
        ("[x](https://huggingface)", "is no address"),
        ("<https://>", "is no address"),
        ("[x](htp://example.org)", "htp is not a scheme of the web"),
        ("[x](mailto:nobody)", "is no mail address"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(folder, link, message):
    with open(folder / "README.md", "a") as file:
        file.write(f"{link}\n")
    found = problems(folder, "link")
    assert (message is None and found == []) or (len(found) == 1 and message in found[0]), found


def test_links_that_lead_somewhere_are_not_found(folder):
    with open(folder / "README.md", "a") as file:
        file.write("[a](card.json) [b](#how-to-use) [c](https://arxiv.org/abs/2506.01732) [d](mailto:a@b.org)\n")
    assert problems(folder, "link") == []


def test_a_number_changed_by_hand_is_found_at_its_line(folder):
    parameters = f"{read_json(folder / 'evidence' / 'release.json')['model']['parameters']:,}"
    change(folder / "README.md", parameters, "9" + parameters[1:])
    assert any("model/parameters" in message for message in problems(folder, "number"))


def test_a_number_that_comes_from_no_file_is_found(folder):
    change(folder / "README.md", "A decoder of the Llama family", "A decoder of 12 layers of the Llama family")
    assert problems(folder, "number") == ["12 comes from no file: print it from one in the template"]


def test_a_number_in_the_metadata_changed_by_hand_is_found(folder):
    change(folder / "README.md", "value: 2.25", "value: 1.25")
    assert "1.25" in problems(folder, "number")[0]


def test_a_source_that_changed_after_the_card_was_made_is_found(folder):
    path = folder / "evidence" / "release.json"
    content = read_json(path)
    content["source"]["run"]["validation"]["validation"]["fr"]["bits_per_byte"] = 1.5
    write_json(path, content)
    told = "\n".join(problems(folder, "number"))
    assert "3.250 is stale" in told and "has changed since the card was made" in told
    assert "facts.json: bits_per_byte does not follow" in told


def test_figures_that_do_not_follow_from_the_account_of_the_text_are_found(folder):
    path = folder / "evidence" / "data.json"
    content = read_json(path)
    content[0]["account"][0]["tokens"] += 1
    write_json(path, content)
    assert problems(folder, "number") == [
        "evidence/facts.json: corpora does not follow from release.json and data.json"
    ]


def test_a_card_of_an_earlier_release_is_found_in_a_newer_one(folder):
    path = folder.parent / "release.json"
    write_json(path, {**read_json(path), "name": "newer"})
    assert any("make the card anew" in message for message in problems(folder, "number"))


def test_emissions_in_kilograms_are_found_even_where_every_file_agrees(folder):
    path = folder / "evidence" / "release.json"
    content = read_json(path)
    content["source"]["run"]["emissions"]["kg_co2eq"] /= 1000
    for place in (path, folder.parent / "release.json"):
        write_json(place, content)
    write_json(folder / "evidence" / "facts.json", facts(content, read_json(folder / "evidence" / "data.json")))
    options = {"repository": None, "base_model": None, "relation": "finetune"}
    card.write_card(folder.parent, "llama", "the command", **options)
    (message,) = problems(folder, "number")
    assert "which no electricity gives: the Hub wants grams" in message


def test_a_heading_with_nothing_under_it_is_found(folder):
    with open(folder / "README.md", "a") as file:
        file.write("\n## Results\n")
    assert problems(folder, "section") == ["nothing stands under 'Results'"]


@pytest.mark.parametrize(
    "language, code, message",
    [
        ("python", "print('x'", "was never closed"),
        ("bash", "if true; then", "syntax error"),
        ("json", "{,}", "Expecting property name"),
        ("", "text", "a code fence without a language"),
    ],
)
def test_a_code_fence_that_does_not_parse_is_found(folder, language, code, message):
    with open(folder / "README.md", "a") as file:
        file.write(f"\n```{language}\n{code}\n```\n")
    (found,) = problems(folder, "code")
    assert message in found


def test_python_fences_run_in_the_folder_and_the_one_that_fails_is_named_with_its_last_words(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline(" in text
    with open(folder / "README.md", "a") as file:
        file.write("\n```python\nopen('config.json').close()\nopen('no such file')\n```\n")
    (found,) = validate.validate(folder)
    assert found.kind == "code" and "no such file" in found.message


def test_the_program_prints_a_table_and_exits_with_status_1(folder, monkeypatch, capsys):
    change(folder / "README.md", "license: apache-2.0", "license: apache2")
    monkeypatch.setattr("sys.argv", ["validate", str(folder), "--no_run"])
    with pytest.raises(SystemExit) as end:
        validate.main()
    assert end.value.code == 1 and "license: 'apache2'" in capsys.readouterr().out


def test_a_template_that_prints_what_is_no_value_is_refused(tmp_path):
    (tmp_path / "template.md").write_text("{{ facts.a }}")
    noted = []
    with pytest.raises(ReleaseError, match="facts.json#/a, which is no number or text"):
        card.render(tmp_path / "template.md", {"facts": card.Doc({"a": [1]}, "facts.json#", noted)}, noted)


def test_the_documents_of_the_ai_act_lie_beside_each_card_which_links_to_them(dist, run, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(dist, out)
    documents = []
    for name in ("public_summary.md", "model_documentation_form.md"):
        documents.append(tmp_path / name)
        documents[-1].write_text("# A document\n")
    card.write_cards(out, "the command", run=run, documents=documents)
    for part in ("custom", "llama"):
        assert "(public_summary.md)" in (out / part / "README.md").read_text(encoding="utf-8")
        assert validate.validate(out / part, run=False) == []
    (out / "llama" / "public_summary.md").unlink()
    assert problems(out / "llama", "link") == ["public_summary.md is not in the folder"]


def test_a_run_with_another_kind_of_config_has_its_settings_on_the_card(dist, run, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(dist, out)
    content = read_json(out / "release.json")
    content["source"]["run"]["config"] = {"country": "FRA", "learning_rate": 3e-5, "max_steps": 200, "packing": None}
    write_json(out / "release.json", content)
    for part in ("custom", "llama"):
        write_json(out / part / "evidence" / "data.json", [])
    card.write_cards(out, "the command", base_model="PleIAs/base")
    text = (out / "llama" / "README.md").read_text(encoding="utf-8")
    assert "| learning rate | 3e-05 |" in text and "| max steps | 200 |" in text and "packing" not in text
    assert validate.validate(out / "llama", run=False) == []
