"""A card prints numbers from files only, and its validator finds each kind of defect."""

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from model_card import card, provenance, release, run_export, validate
from model_card import run as run_module
from model_card.facts import base_of, collect_corpora, distinct_rows, facts, lineage, total_emissions
from model_card.files import (
    OPTION,
    ReleaseError,
    read_config,
    read_json,
    relativize_paths,
    sha256,
    verify_sums,
    write_json,
)
from model_card.formats import variants
from model_card.run import Run
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.average import average
from training.common.files import model_sha256
from training.common.files import read_json as read
from training.data import shard_files
from training.evaluation.models import EvaluatedModel
from training.finetuning import data_manifest
from training.finetuning.examples import Examples
from training.tasks import TASKS

MODEL_CARD = Path(card.__file__).parent
# Text that a model may generate: each of these once ended a line, a table, a block of code, or the card.
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
        {"name": "tiny", "parameters": 1234, "fingerprint": EvaluatedModel(str(folder)).fingerprint},
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
    """Folder of a release of it, without further formats."""
    out = tmp_path_factory.mktemp("dist") / "tiny"
    arguments = ["--run", str(run), "--out", str(out), "--formats"]
    release.build_release(release.options(arguments), "python -m model_card.release --run runs/tiny --out dist/tiny")
    return out


@pytest.fixture
def folder(dist, tmp_path):
    """A copy of the llama variant in its release, to be damaged."""
    shutil.copytree(dist, tmp_path / "tiny")
    return tmp_path / "tiny" / "llama"


def problems(folder: Path, kind: str) -> list[str]:
    """Messages of one kind; there are no problems of another kind."""
    problems = validate.validate(folder, run=False)
    assert {problem.kind for problem in problems} <= {kind}, problems
    return [problem.message for problem in problems]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()  # as it is: a model may have written a carriage return
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


def metadata(folder: Path) -> dict:
    return yaml.safe_load(validate.split_front_matter((folder / "README.md").read_text(encoding="utf-8"))[0])


# What is on a card --------------------------------------------------------------------------------


def test_a_release_writes_a_valid_card_for_each_folder_and_lists_its_hash(dist):
    for part in ("custom", "llama"):
        assert validate.validate(dist / part, run=False) == []
        listed = (dist / part / "SHA256SUMS").read_text()
        assert all(name in listed for name in ("README.md", "card.json", "evidence/facts.json"))
    verify_sums(dist)


def test_the_metadata_come_from_the_files_of_the_run(dist):
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
    assert values == [2.75, 0.125, 40]  # the mean over two languages, and the task's


def test_the_metadata_have_the_mean_and_the_languages_of_a_task_and_the_data_sets_of_the_hub(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    metrics = {name: {"value": i / 8} for i, name in enumerate(("mean", "en", "la", "code"))}
    result = {"task": "bits_per_byte", "metrics": metrics, "command": "c", "data": {"fingerprint": "f" * 64}}
    sources = [{"kind": kind, "name": f"a/{kind}{i}"} for i, kind in enumerate(("hf", "hf", "pip"))]
    for part in ("llama", "custom"):
        write_json(out / part / "evidence" / "eval" / "bits_per_byte.json", result)
        (corpus,) = read_json(out / part / "evidence" / "data.json")
        write_json(out / part / "evidence" / "data.json", [corpus | {"sources": {"sources": ["../x", *sources]}}])
    card.write_cards(out, "the command", run=None, repository="someone/tiny")
    head = metadata(out / "llama")
    assert [*validate.check_metadata(head)] == []
    assert head["datasets"] == ["PleIAs/common_corpus", "a/hf0", "a/hf1"]
    first = head["model-index"][0]["results"][0]
    named = [(metric["type"], metric["name"], metric["value"]) for metric in first["metrics"]]
    assert named == [("mean", "mean", 0), ("en", "English", 0.125), ("la", "Latin", 0.25)]
    assert first["dataset"]["revision"] == "f" * 64
    file = "evidence/eval/bits_per_byte.json"
    assert first["source"] == {"name": file, "url": f"https://huggingface.co/someone/tiny/blob/main/{file}"}


def test_a_result_on_a_benchmark_of_the_hub_is_in_its_format_and_one_on_a_part_of_it_is_not(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    metrics = {"gsm8k, exact_match, strict-match": {"value": 0.125, "low": 0.1, "high": 0.2}, "hellaswag, acc": 0.5}
    result = {"task": "public", "metrics": metrics, "command": "c", "date": "2026-11-30T10:00:00+00:00"}
    result |= {"lm_eval": "0.4.13", "settings": {"num_fewshot": 5, "limit": None}}
    for settings in (result["settings"], {"num_fewshot": None, "limit": 100}):
        for part in ("llama", "custom"):
            write_json(out / part / "evidence" / "eval" / "public.json", result | {"settings": settings})
        card.write_cards(out, "the command", run=None, repository="someone/tiny")
        if settings["limit"]:
            assert not list(out.rglob(".eval_results"))
            continue
        for part in ("llama", "custom"):
            (file,) = (out / part / ".eval_results").iterdir()
            (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
            assert file.name == "gsm8k.yaml" and entry == EvalResultEntry(
                dataset_id="openai/gsm8k",
                task_id="gsm8k",
                value=12.5,
                date="2026-11-30",
                source_url="https://huggingface.co/someone/tiny/blob/main/evidence/eval/public.json",
                source_name="evidence/eval/public.json",
                notes="5 few-shot examples; gsm8k, exact_match, strict-match; lm_eval 0.4.13",
            )


def test_the_training_data_add_up_to_the_manifest(dist, tiny_shards):
    derived = read_json(dist / "llama" / "evidence" / "facts.json")
    account = [row for row in read(tiny_shards / "manifest.json")["account"] if row["split"] == "train"]
    (corpus,) = derived["corpora"]  # one manifest for both stages
    assert corpus["stages"] == "base and annealing"
    assert corpus["train"]["tokens"] == sum(row["tokens"] for row in account)
    for column in ("language", "license", "collection"):
        rows = corpus[f"by_{column}"]
        assert sum(row["tokens"] for row in rows) == corpus["train"]["tokens"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert derived["tokens"] == (70 * 8 + 5 * 4) * 256
    assert derived["text"]["train"] == corpus["train"] and derived["text"]["by_license"] == corpus["by_license"]


def test_a_stage_that_was_trained_on_other_shards_than_those_on_disk_is_refused(run, tmp_path):
    spoiled = tmp_path / "runs" / "tiny"
    shutil.copytree(run, spoiled)
    change(spoiled / "run.json", read_json(run / "run.json")["sessions"][0]["data"][0], "0" * 64)
    with pytest.raises(ReleaseError, match="manifest.json is not the manifest that"):
        release.build_release(release.options(["--run", str(spoiled), "--out", str(tmp_path / "d"), "--formats"]), "")
    assert not (tmp_path / "d").exists()


def test_every_number_of_the_body_is_recorded_with_its_line_and_column(dist):
    lines = (dist / "llama" / "README.md").read_bytes().decode().split("\n")
    noted = read_json(dist / "llama" / "card.json")["numbers"]
    assert len(noted) > 50
    for number in noted:
        rest = "\n".join(lines[number["line"] - 1 :])[number["column"] - 1 :]
        assert rest.startswith(number["text"])
        assert re.fullmatch(r"evidence/[\w/]+\.json#(/.*)?", number["source"])


@pytest.mark.parametrize("template", ["templates/card.md", "templates/task_use.md", "nano_1.2b/template.md"])
def test_the_templates_state_no_number_of_their_own(template):
    text = (MODEL_CARD / template).read_text(encoding="utf-8")
    jinja = re.compile(r"\{[{%#].*?[}%#]\}", re.S)
    hidden = validate.mask_matches(
        text, validate.FENCE, jinja, validate.INLINE, re.compile(r"\]\([^)]*\)|https?://\S+")
    )
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
    options = {"repository": "someone/tiny", "base_model": "PleIAs/base", "relation": "finetune"}
    card.write_cards(out, "the command", run=Run(run), **options)
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


def test_the_card_of_the_original_s_recipe_is_valid_and_follows_from_its_facts(tmp_path):
    copy = tmp_path / "nano_1.2b"
    shutil.copytree(MODEL_CARD / "nano_1.2b", copy)
    assert validate.validate(copy, run=False) == []
    before = (copy / "README.md").read_text(encoding="utf-8")
    card.write_standalone_card(copy, "the command")
    assert (copy / "README.md").read_text(encoding="utf-8") == before
    for tokens in ("4,224,712,704,000", "3,772,000,000,000", "1,086,324,736,000", "nearly 5 trillion"):
        assert tokens in before


def test_the_numbers_of_the_recipe_s_card_are_those_of_its_config():
    recorded = read_json(MODEL_CARD / "nano_1.2b" / "facts.json")
    config = yaml.safe_load((MODEL_CARD.parent / "training/configs/pretrain/nano_1.2b.yaml").read_text())
    stages = [(stage["steps"], stage["first_step"]) for stage in recorded["stages"]]
    firsts = [1 + sum(stage["steps"] for stage in config["stages"][:i]) for i in range(len(config["stages"]))]
    assert stages == [(stage["steps"], first) for stage, first in zip(config["stages"], firsts, strict=True)]
    for stage, known in zip(config["stages"], recorded["stages"], strict=True):
        assert known["tokens"] == stage["steps"] * stage["sequences"] * config["sequence_length"]
    for name in ("learning_rate", "final_learning_rate", "warmup_steps", "decay_steps", "weight_decay", "clip"):
        assert recorded["training"][name]["value"] == config["optimizer"][name]
    assert recorded["training"]["tokens"]["value"] == sum(stage["tokens"] for stage in recorded["stages"])
    stated = recorded["contradiction"]
    product = stated["steps_of_the_card"]["value"] * stated["sequences_of_the_card"]["value"] * 2048
    assert stated["tokens_of_these"]["value"] == product


# Files of the run --------------------------------------------------------------------------------


def test_both_variants_of_a_pretraining_run_contain_its_log_and_its_manifests(dist, run, tiny_shards):
    for part in ("custom", "llama"):
        folder = dist / part / "runs" / "tiny"
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        expected = {"config.yaml", "run.json", "emissions.json", "summary.txt", "loss.png", "metrics.jsonl"}
        assert files == {*expected, "manifests/base-annealing.json"}  # one manifest for both stages
        assert [path.name for path in (dist / part / "runs").iterdir()] == ["tiny"]
        assert "runs/tiny/metrics.jsonl" in (dist / part / "SHA256SUMS").read_text()
    folder = dist / "llama" / "runs" / "tiny"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (1, 1001)
    assert {b - a for a, b in zip(steps, steps[1:], strict=False)} == {5, 6}
    complete = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if "loss" not in row] == [row for row in complete if "loss" not in row]
    short, manifest = read_json(folder / "manifests" / "base-annealing.json"), read(tiny_shards / "manifest.json")
    assert short["account"] == manifest["account"] and short["fingerprint"] == manifest["fingerprint"]
    assert [shard["sha256"] for shard in short["shards"]] == [shard["sha256"] for shard in manifest["shards"]]
    assert not any("account" in shard for shard in short["shards"])


def test_a_manifest_of_thousands_of_shards_contains_only_their_number(tiny_shards):
    manifest = read(tiny_shards / "manifest.json")
    many = run_export.trim_manifest({**manifest, "shards": manifest["shards"][:1] * 1000})
    assert (many["left_out"]["shards"], many["left_out"]["files"]) == (1000, len(manifest["corpus"]["files"]))
    assert "shards" not in many and "files" not in many["corpus"] and "sources" in many["corpus"]


def test_a_fine_tuning_has_no_such_folder(tuned, tmp_path):
    run_export.write_run(Run(tuned()), tmp_path / "variant")
    assert not (tmp_path / "variant").exists()


def test_no_path_of_the_machine_is_in_a_release(dist, run):
    for path in dist.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".txt", ".md") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert "/home/someone" not in text and str(run.parent.parent) not in text, path
    assert "Run: tiny\n" in (dist / "llama" / "runs" / "tiny" / "summary.txt").read_text()


def test_an_absolute_path_becomes_relative_to_a_root_or_is_cut_to_its_last_part():
    root = Path("/srv/house")
    for path, relative in {
        "/srv/house/data/femto": "data/femto",
        "/home/me/.venv/bin/python -m training.shards --out=/srv/house/data/a --model '[\"/tmp/x/b.gguf\"]'": (
            "python -m training.shards --out=data/a --model '[\"b.gguf\"]'"
        ),
        "../shared/corpus": "../shared/corpus",
        "https://example.org/a/b and/or 1/2": "https://example.org/a/b and/or 1/2",
    }.items():
        assert relativize_paths({"a": [path]}, root) == {"a": [relative]}


NAMES = st.text("ab -.(),='\u00e9", min_size=1, max_size=9).filter(
    lambda name: name == name.strip() and name.strip(".") and not OPTION.search(name)
)
SECRET = "Jane Doe"


@given(folders=st.lists(NAMES, max_size=3), name=st.text("ab-_.", max_size=5))
def test_no_folder_of_a_path_with_blanks_remains_in_values_and_commands(folders, name):
    name = f"x{name}x"
    path = "/".join(["/home", SECRET, *folders, name])
    options = ["python", "-m", "training.pretrain", "--out"]
    assert relativize_paths([path, f"file://{path}", f"--out={path}"]) == [name, name, f"--out={name}"]
    assert relativize_paths({"files": [{path: [path]}]}) == {"files": [{name: [name]}]}
    for words, expected in (
        ([*options, path, "--seed", "3"], [*options, name, "--seed", "3"]),
        ([*options[:-1], f"--out={path}"], [*options[:-1], f"--out={name}"]),
        ([path, *options, "a/b"], [name, *options, "a/b"]),
    ):
        assert shlex.split(relativize_paths(shlex.join(words))) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ('"/home/Jane Doe/a b/c"', '"c"'),
        ("['/home/Jane Doe/a/x', '/home/Jane Doe/b/y']", "['x', 'y']"),
        ("read /home/Jane Doe/a/b.txt and wrote /srv/My Work/c d/e.txt.", "read b.txt and wrote c d/e.txt."),
        ("it's in /home/Jane Doe/runs/x", "it's in x"),
        ("--data /home/Jane Doe/runs/x --seed 3", "--data x --seed 3"),
        ("/home/Jane Doe/bin/python -m training.plan --config demo", "python -m training.plan --config demo"),
        ("training.average '/srv/My Work/runs/a/model' runs/b/model", "training.average 'runs/a/model' runs/b/model"),
        ("/home", "/home"),
        ("x --out '/srv/My Work/a' --url https://me:pw@host/v1", "x --out a --url 'https://***@host/v1'"),
    ],
)
def test_paths_with_blanks_in_a_text_are_made_relative(text, expected):
    assert relativize_paths(text, Path("/srv/My Work")) == expected


def test_files_of_one_name_in_several_folders_stay_apart():
    files = {"/home/a b/x/manifest.json": 1, "/home/a b/y/manifest.json": 2, "runs/z": 3}
    assert relativize_paths(files) == {"manifest.json (1)": 1, "manifest.json (2)": 2, "runs/z": 3}


@pytest.mark.parametrize("text", ["demo", "my demo", "l'ete", "a;b", "$x y", "l'$x", "`a`"])
def test_a_name_in_a_command_of_a_card_is_one_word_of_the_shell(text):
    word = provenance.FILTERS["shell"](f"{text}-BF16.gguf")
    assert shlex.split(word) == [f"{text}-BF16.gguf"]
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{text}-BF16.gguf"


def test_a_file_of_the_run_that_was_changed_after_the_release_is_found(folder):
    with open(folder / "runs" / "tiny" / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    (folder / "runs" / "tiny" / "summary.txt").unlink()
    (folder / "runs" / "more.txt").touch()
    assert problems(folder, "number") == [
        "runs/more.txt is not the file that was released",
        "runs/tiny/metrics.jsonl is not the file that was released",
        "runs/tiny/summary.txt is missing, and was released",
    ]


def test_the_loss_curve_is_shown_if_it_exists(folder):
    picture = "](runs/tiny/loss.png)"
    assert picture in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "runs" / "tiny" / "loss.png").unlink()
    assert "runs/tiny/loss.png is not in the folder" in [p.message for p in validate.validate(folder, run=False)]
    card.write_cards(folder.parent, "the command")
    assert picture not in (folder / "README.md").read_text(encoding="utf-8")


def test_the_last_samples_are_on_the_card_unedited(dist):
    text = (dist / "llama" / "README.md").read_bytes().decode()
    assert "Greedy continuations with repetition penalty 1.2, unedited and complete:" in text
    for name, written in (("English", WRITTEN["en"]), ("French", WRITTEN["fr"]), ("Latin", "")):
        assert f'{name}, after "Rex 7":\n{written}\n\n' in text
    assert "\n`````text\nEnglish" in text and "early" not in text
    assert read_json(dist / "llama" / "evidence" / "samples.json")["repetition_penalty"] == 1.2
    assert validate.validate(dist / "llama", run=False) == []


def test_a_continuation_improved_by_hand_is_found_even_without_a_number(folder):
    change(folder / "README.md", "il l'\u00e9, la", "il l'eau, la")
    assert any("samples/1/continuation" in message for message in problems(folder, "number"))


def test_bits_per_byte_are_compared_with_those_of_baselines_and_the_command_is_shown(dist):
    text = (dist / "llama" / "README.md").read_text(encoding="utf-8")
    row = "2.250 | 2.500 (2.375 to 2.625) | -0.250 (-0.500 to +0.125) |\n"
    assert f"| mean | {row}| Latin | {row}" in text and "| peer-2 | 567,890 | base model |" in text
    assert "Command: `python -m training.evaluate --model runs/tiny --model peer-2.gguf`\n" in text


def test_a_difference_that_does_not_follow_from_the_values_is_found(folder):
    path = folder / "evidence" / "comparison.json"
    change(path, "-0.25", "-0.75")
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    (message,) = problems(folder, "number")
    assert "the difference to peer-2 (mean) does not follow" in message


def test_minimal_pairs_of_a_comparison_of_their_own_have_a_table_and_are_checked(folder):
    path, content = folder / "evidence" / "minimal_pairs.json", read_json(folder / "evidence" / "comparison.json")
    rows = content["tasks"].pop("bits_per_byte")
    content["tasks"]["minimal_pairs"] = {"mean": rows["mean"], "la": rows["la"], "subject_verb": rows["mean"]}
    write_json(path, content | {"command": "the command of the pairs"})
    write_json(
        folder / "evidence" / "eval" / "minimal_pairs.json", {"task": "minimal_pairs", "metrics": {"mean": 0.5}}
    )
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    text = (folder / "README.md").read_text(encoding="utf-8")
    row = "2.250 | 2.500 (2.375 to 2.625) | -0.250 (-0.500 to +0.125) |\n"
    assert f"| mean | {row}| Latin | {row}| subject verb | {row}" in text and "`the command of the pairs`" in text
    assert "[minimal_pairs]" not in text and problems(folder, "number") == []
    change(path, "-0.25", "-0.75")
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    assert "minimal_pairs.json: the difference to peer-2 (mean) does not follow" in problems(folder, "number")[0]


def test_a_comparison_of_other_weights_is_refused_and_another_folder_s_is_taken(dist, run, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    content = read_json(run / "comparison" / "comparison.json")
    (tmp_path / "other").mkdir()
    content["models"][1]["name"] = "peer-2"
    write_json(tmp_path / "other" / "comparison.json", {**content, "command": "another command"})
    card.write_cards(out, "", run=Run(run), comparison=tmp_path / "other")
    assert "\nCommand: `another command`\n" in (out / "llama" / "README.md").read_text(encoding="utf-8")
    content["models"][0]["fingerprint"] = "0" * 64
    write_json(tmp_path / "other" / "comparison.json", content)
    with pytest.raises(ReleaseError, match="compare again, with `--model .*tiny` before the others"):
        card.write_cards(out, "", run=Run(run), comparison=tmp_path / "other")


def test_the_commands_that_built_the_data_are_listed_before_the_run_s(dist, tiny_shards):
    derived = read_json(dist / "llama" / "evidence" / "facts.json")
    manifest = read(tiny_shards / "manifest.json")
    shards = relativize_paths(manifest["command"], Path.cwd())
    assert derived["commands"] == [shards, "python -m training.pretrain --config tiny"]
    assert derived["corpora"][0]["fingerprint"] == manifest["fingerprint"]
    text = (dist / "llama" / "README.md").read_text(encoding="utf-8")
    assert "[`facts.json`](evidence/facts.json) lists the recorded commands, in order" in text
    assert "Command of the last run: `python -m training.pretrain --config tiny` at commit" in text


def mixed(rows: list[tuple], rules: list[dict], files: str = "0") -> dict:
    """An entry of data.json: rows of (language, collection, documents) of a mixture of the corpus `files`."""
    account = [
        {"split": "train", "language": language, "license": "CC0-1.0", "collection": collection}
        | {"documents": count, "bytes": 100 * count, "tokens": 10 * count}
        for language, collection, count in rows
    ]
    built = {"name": "base", "files": {"a.parquet": files}, "held_out": 0.01, "command": "/a/b/mix --it"}
    built["mixtures"] = {"base": rules, "anneal": []}
    sources = {"sources": ["../shared/corpus"], "mixture": built}
    return {"stages": ["base"], "fingerprint": files, "account": account, "sources": sources, "curation": None}


def test_a_mixture_of_a_folder_that_names_no_sources_is_recorded_with_its_command(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    rules = [{"epochs": 0.3, "language_type": "Code", "collection": None, "license": "*"}]
    for part in ("custom", "llama"):
        data = read_json(out / part / "evidence" / "data.json")
        data[0] |= {"sources": mixed([], rules)["sources"], "fingerprint": "0" * 64}
        write_json(out / part / "evidence" / "data.json", data)
    card.write_cards(out, "")
    derived = read_json(out / "llama" / "evidence" / "facts.json")
    assert read_json(out / "llama" / "evidence" / "data.json")[0]["sources"]["mixture"]["mixtures"]["base"] == rules
    assert derived["commands"][0] == "mix --it"
    assert validate.validate(out / "llama", run=False) == []


def test_a_document_of_several_mixtures_is_counted_once():
    """The larger share contains the smaller; a mixture that repeats documents counts by its repetitions."""
    base = mixed([("English", "Novels", 100), ("French", "Help", 30)], [{"collection": "Help", "epochs": 0.3}])
    more = mixed([("English", "Novels", 40), ("French", "Help", 200)], [])
    more["sources"]["mixture"]["mixtures"]["base"] = [
        {"collection": "Novels", "open_type": "Open Web", "epochs": 0.4},
        {"language": "French", "epochs": 2.0},
    ]
    other = mixed([("English", "Novels", 7)], [], files="1")
    rows = distinct_rows([base, more, other])
    counts = [(row["language"], row["documents"], row["tokens"], row["exact"]) for row in rows]
    assert counts == [("English", 100, 1000, True), ("French", 100, 1000, False), ("English", 7, 70, True)]


def test_a_table_of_the_card_adds_up_its_smallest_rows(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    for part in ("custom", "llama"):
        rows = [(f"Language {i}", "x", 100 - i) for i in range(20)]
        write_json(out / part / "evidence" / "data.json", [mixed(rows, [])])
    card.write_cards(out, "")
    table = read_json(out / "llama" / "evidence" / "facts.json")["text"]["by_language"]
    assert len(table) == 12 and table[-1]["language"] == "9 others"
    assert sum(row["documents"] for row in table) == sum(range(81, 101))
    assert "| 9 others | 765 | 7,650 | " in (out / "llama" / "README.md").read_text(encoding="utf-8")
    assert validate.validate(out / "llama", run=False) == []


# After a base model -------------------------------------------------------------------------------


def examples(*, licence: str = "CC-BY-4.0", language: str = "Dutch") -> Examples:
    """Two examples, one of which may be under any licence."""
    built = Examples()
    built.add([1, 5, 6, 7], group=("French", "MPL-2.0", "help"), source="help pages", size=20)
    built.add([1, 8], group=(language, licence, "own"), source="own.jsonl", size=5)
    return built


@pytest.fixture
def tuned(run, tiny_tokenizer, tmp_path):
    """Function (examples, **config) -> folder of a fine-tuning run as training.finetune leaves it."""

    def make(trained: Examples | None = None, **config) -> Path:
        folder, trained = tmp_path / "runs" / "tuned", trained or examples()
        shutil.copytree(run / "model", folder / "model")
        usual = {"name": "tuned", "task": "ocr", "base_model": "PleIAs/Pleias-Nano", "method": "sft", "data": {}}
        usual |= {"trainer": {"learning_rate": 5e-4}, "replay": {"share": 0.0}, "seed": 42}
        config = usual | config | {"country": "FRA", "precision": "auto"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        manifest = data_manifest.build_manifest(trained, trained, tiny_tokenizer)
        data_manifest.write_data_manifests(folder, {config["task"]: manifest})
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
    """The llama variant with its card, of a release of the run whose tensors are another's."""
    shutil.copytree(dist, out, ignore=shutil.ignore_patterns("runs", "evidence", "card.json"))
    opened = Run(run)
    for part in ("custom", "llama"):
        release.write_run(opened, out / part)
    described = release.describe_source(variants.open_run(opened)) | {"folders": release.list_files(out)}
    write_json(out / "release.json", read_json(out / "release.json") | described)
    card.write_cards(out, "the command", run=opened, **options)
    assert validate.validate(out / "llama", run=False) == [] == validate.validate(out / "custom", run=False)
    return out / "llama"


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


def test_a_name_on_the_hub_is_distinguished_from_a_folder(tmp_path):
    run = tmp_path / "runs" / "tuned"
    (tmp_path / "models" / "mine").mkdir(parents=True)
    cached = "/cache/huggingface/hub/models--PleIAs--Pleias-Nano/snapshots/0123"
    assert base_of({"base_model": "PleIAs/Pleias-Nano"}, run) == "PleIAs/Pleias-Nano"
    assert base_of({"init_from": cached}, run) == base_of({"base_model": cached}, run) == "PleIAs/Pleias-Nano"
    assert base_of({"base_model": "models/mine"}, run) is None  # as seen from the folder that holds runs/
    assert base_of({"init_from": "data/start"}, run) is None  # which is always a folder
    assert base_of({}, run) is None


def test_continued_pretraining_is_described_as_such(dist, run, tmp_path):
    more = shutil.copytree(run, tmp_path / "runs" / "more")
    config = yaml.safe_load((more / "config.yaml").read_text(encoding="utf-8")) | {"init_from": "runs/femto/model"}
    (more / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    folder = carded(dist, more, tmp_path / "more")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pretrained further from a model identified by the [hashes]" in text and "from scratch" not in text
    assert metadata(folder)["co2_eq_emissions"]["training_type"] == "pre-training"
    assert "The training data of the model before it are not included." in text
    named = carded(dist, more, tmp_path / "named", base_model="someone/femto")
    assert metadata(named)["co2_eq_emissions"]["training_type"] == "pre-training"
    account_of_run = read_json(more / "run.json")
    account_of_run["sessions"][0]["init_untrained"] = True  # embeddings that were counted, and no step trained
    write_json(more / "run.json", account_of_run)
    begun = (carded(dist, more, tmp_path / "begun") / "README.md").read_text(encoding="utf-8")
    assert "pretrained from scratch" in begun and "Every document it was trained on is in the public" in begun
    assert "pretrained further from [someone/femto]" in (named / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def continued(run, tmp_path):
    """Folder of a run that started from the model of another one next to it."""
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


def test_a_run_that_started_from_another_includes_the_data_and_the_cost_of_both(dist, continued, tmp_path):
    folder = carded(dist, continued, tmp_path / "dist" / "more")
    derived = read_json(folder / "evidence" / "facts.json")
    assert [stage["name"] for stage in derived["stages"]] == ["base", "annealing", "more"]
    assert derived["tokens"] == (70 * 8 + 5 * 4) * 256 + 10 * 8 * 128 and derived["steps"] == 85
    assert derived["grams_co2eq"] == pytest.approx(2 * 0.073) and derived["hours"] == pytest.approx(2 * 190 / 3600)
    assert [corpus["stages"] for corpus in derived["corpora"]] == ["base and annealing and more"]  # one manifest
    assert derived["commands"][-2:] == [f"python -m training.pretrain --config {name}" for name in ("tiny", "more")]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "pretrained from scratch" in text and "Every document it was trained on is in the public" in text
    assert "(runs/first/loss.png)" in text and "(runs/more/loss.png)" in text
    assert "| [first](runs/first/config.yaml) | scratch | 75 | 148,480 | 0.05 | 1.3 | 0.073 |" in text
    assert "| [more](runs/more/config.yaml) | first | 10 | 10,240 | 0.05 | 1.3 | 0.073 |" in text
    rows = read_json(folder / "evidence" / "lineage.json")["runs"]
    assert [(row["name"], row["from"]) for row in rows] == [("first", []), ("more", ["first"])]
    for row in rows:
        source = continued.parent / row["name"]
        saved = yaml.safe_load((folder / "runs" / row["name"] / "config.yaml").read_text(encoding="utf-8"))
        assert saved["name"] == yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))["name"]
        hashes = model_sha256(source / "model")
        assert row["sha256"] == {name: hashes[name] for name in hashes if name != "tokenizer.json"}


def test_a_release_reads_and_hashes_each_run_of_its_lineage_once(dist, continued, tmp_path, monkeypatch):
    read, hashed = [], []
    monkeypatch.setattr(run_module, "read_config", lambda folder: read.append(folder.name) or read_config(folder))
    monkeypatch.setattr(run_module, "sha256", lambda path: hashed.append(path.parts[-3:]) or sha256(path))
    carded(dist, continued, tmp_path / "dist" / "more")
    assert sorted(read) == ["first", "more"] and len(hashed) == len(set(hashed))


def test_the_mean_of_two_runs_has_the_runs_of_both_models_before_it_each_once(dist, continued, tmp_path):
    first, mean = continued.parent / "first", continued.parent / "mean"
    average((continued / "model", first / "model"), mean / "model", "python -m training.average more first")
    names = [run.folder.name for run in Run(mean).lineage]
    assert names == ["first", "more", "mean"]
    folder = carded(dist, mean, tmp_path / "mean")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| mean | mean of more and first | - | 0 | - | - | - |" in text and "pretrained from scratch" in text
    assert "Command of the last run: `python -m training.average more first`" in text
    derived = read_json(folder / "evidence" / "facts.json")
    assert derived["steps"] == 85 and derived["hours"] == pytest.approx(2 * 190 / 3600)
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["first", "more"]
    last = shutil.copytree(continued, continued.parent / "last")
    config = yaml.safe_load((last / "config.yaml").read_text(encoding="utf-8")) | {"init_from": str(mean / "model")}
    (last / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    sessions = read_json(last / "run.json")
    sessions["sessions"][0]["init_from"] = model_sha256(mean / "model")
    write_json(last / "run.json", sessions)
    assert [run.folder.name for run in Run(last).lineage] == [*names, "last"]
    assert lineage(Run(last))["runs"][2]["from"] == ["more", "first"]
    weights = first / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match="first/model/model.safetensors is not the file that .*mean started from"):
        Run(last).lineage  # noqa: B018 (reads and compares)


def test_an_earlier_run_whose_model_changed_since_is_refused(continued, tmp_path):
    weights = continued.parent / "first" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match="first/model/model.safetensors is not the file that .*more started from"):
        release.build_release(
            release.options(["--run", str(continued), "--out", str(tmp_path / "d"), "--formats"]), ""
        )
    assert not (tmp_path / "d").exists()


def test_a_cost_has_no_sum_if_a_run_has_not_recorded_it(continued):
    (continued.parent / "first" / "emissions.json").unlink()
    runs = lineage(Run(continued))["runs"]
    assert total_emissions(runs, "watt_hours") is None and total_emissions(runs[1:], "watt_hours") == pytest.approx(
        1.3
    )


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


# What the validator finds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("license: apache-2.0", "license: apache2", "license: 'apache2' is not one of the Hub's licenses"),
        ("- fr\n", "- french\n", "language: 'french' is not one of the Hub's languages"),
        ("pipeline_tag: text-generation", "pipeline_tag: textgen", "pipeline_tag: 'textgen' is not one of"),
        ("library_name: transformers", "library_name: transformer", "library_name: 'transformer' is not one of"),
        ("tags:", "base_model: a/b\nbase_model_relation: child\ntags:", "base_model_relation: 'child' is not one of"),
        ("tags:", "base_model: a/b\ntags:", "base_model and base_model_relation must be set together"),
        ("- PleIAs/common_corpus", "- common corpus", "datasets: 'common corpus' is not OWNER/NAME"),
        ("tags:", "lisence: mit\ntags:", "lisence is not a key that the Hub knows"),
        ("pipeline_tag: text-generation\n", "", "pipeline_tag is missing"),
        ("training_type: pre-training", "training_type: training", "training_type must be one of"),
        ("      type: held-out", "      kind: held-out", "dataset needs type and name"),
    ],
)
def test_metadata_that_the_hub_would_not_accept_is_found(folder, old, new, message):
    change(folder / "README.md", old, new)
    reported = [p.message for p in validate.validate(folder, run=False)]
    assert any(message in text for text in reported), reported


@pytest.mark.parametrize("text", ["TODO", "[More Information Needed]", "{{ name }}", "{% endif %}", "<your name>"])
def test_a_placeholder_is_found_with_its_line(folder, text):
    with open(folder / "README.md", "a") as file:
        file.write(f"{text}\n")
    lines = (folder / "README.md").read_text().count("\n")
    reported = validate.validate(folder, run=False)
    assert {(p.kind, p.line) for p in reported} == {("placeholder", lines)}


@pytest.mark.parametrize(
    "link, message",
    [
        ("[x](nowhere.md)", "nowhere.md is not in the folder"),
        ("[x](../../secret)", "../../secret is not in the folder"),
        ("[x](#nothing-here)", "no heading has this anchor"),
        ("[x](https://hugging face.co)", None),
        ("[x](https://huggingface)", "is not an address"),
        ("<https://>", "is not an address"),
        ("[x](htp://example.org)", "htp is not a scheme of the web"),
        ("[x](mailto:nobody)", "is not a mail address"),
    ],
)
def test_a_link_without_a_target_is_found(folder, link, message):
    with open(folder / "README.md", "a") as file:
        file.write(f"{link}\n")
    reported = problems(folder, "link")
    assert (message is None and reported == []) or (len(reported) == 1 and message in reported[0]), reported


def test_links_with_a_target_are_accepted(folder):
    with open(folder / "README.md", "a") as file:
        file.write("[a](card.json) [b](#how-to-use) [c](https://arxiv.org/abs/2506.01732) [d](mailto:a@b.org)\n")
    assert problems(folder, "link") == []


def test_a_number_changed_by_hand_is_found_at_its_line(folder):
    parameters = f"{read_json(folder / 'evidence' / 'release.json')['model']['parameters']:,}"
    change(folder / "README.md", parameters, "9" + parameters[1:])
    assert any("model/parameters" in message for message in problems(folder, "number"))


def test_a_number_that_comes_from_no_file_is_found(folder):
    change(folder / "README.md", "It has the architecture", "It has 12 layers and the architecture")
    assert problems(folder, "number") == ["12 comes from no file: print it from a file in the template"]


def test_a_number_in_the_metadata_changed_by_hand_is_found(folder):
    change(folder / "README.md", "value: 2.75", "value: 1.25")
    assert "1.25" in problems(folder, "number")[0]


def test_a_source_that_changed_after_the_card_was_written_is_found(folder):
    path = folder / "evidence" / "release.json"
    (folder / "evidence" / "comparison.json").unlink()  # without it the card shows the run's last validation
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    assert "| French | 3.250 |\n| mean | 2.750 |" in (folder / "README.md").read_text(encoding="utf-8")
    content = read_json(path)
    content["source"]["run"]["validation"]["validation"]["fr"]["bits_per_byte"] = 1.5
    write_json(path, content)
    messages = "\n".join(problems(folder, "number"))
    assert "3.250 is stale" in messages and "changed after the card was written" in messages
    assert "facts.json: bits_per_byte does not follow" in messages


def test_numbers_that_do_not_follow_from_the_training_data_are_found(folder):
    path = folder / "evidence" / "data.json"
    content = read_json(path)
    content[0]["account"][0]["tokens"] += 1
    write_json(path, content)
    changed = "evidence/data.json: account differs from runs/tiny/manifests/base-annealing.json"
    assert problems(folder, "number") == [
        "evidence/data.json changed after the card was written: write the card again",
        changed,
        *(
            f"evidence/facts.json: {key} does not follow from release.json, data.json and lineage.json"
            for key in ("corpora", "text")
        ),
        "evidence/sources.json does not follow from data.json",
    ]
    card.write_cards(folder.parent, "the command")
    assert problems(folder, "number") == [changed]


def test_a_card_of_an_earlier_release_is_found_in_a_newer_one(folder):
    path = folder.parent / "release.json"
    write_json(path, {**read_json(path), "name": "newer"})
    assert any("write the card again" in message for message in problems(folder, "number"))


def test_the_files_of_a_variant_without_its_release_are_written_again_from_its_evidence(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["card.py", str(folder)])
    with pytest.raises(ReleaseError, match="is part of a release"):
        card.main()
    (folder.parent / "release.json").unlink()
    names = ["README.md", "ATTRIBUTION.md", "evidence/sources.json", "evidence/facts.json"]
    before = {name: (folder / name).read_bytes() for name in names}
    for name in (*names, "bom.cdx.json"):
        (folder / name).unlink()
    card.main()
    assert {name: (folder / name).read_bytes() for name in names} == before
    bom = read_json(folder / "bom.cdx.json")
    listed = {file["name"]: file["hashes"][0]["content"] for file in bom["components"][0]["components"]}
    assert listed["card.json"] == sha256(folder / "card.json") and problems(folder, "number") == []
    verify_sums(folder)
    (folder / "model.sig").write_text("{}")
    with pytest.raises(ReleaseError, match="is signed"):
        card.main()


def test_emissions_in_kilograms_are_found_even_if_every_file_agrees(folder):
    evidence = folder / "evidence"
    content, runs = read_json(evidence / "release.json"), read_json(evidence / "lineage.json")
    runs["runs"][0]["grams_co2eq"] /= 1000
    write_json(evidence / "lineage.json", runs)
    write_json(evidence / "facts.json", facts(content, read_json(evidence / "data.json"), runs))
    options = {"repository": None, "base_model": None, "relation": "finetune"}
    card.write_card(folder.parent, "llama", "the command", **options)
    (message,) = problems(folder, "number")
    assert "which no electricity emits: the Hub expects grams" in message


def test_a_heading_without_text_is_found(folder):
    with open(folder / "README.md", "a") as file:
        file.write("\n## Results\n")
    assert problems(folder, "section") == ["there is no text under 'Results'"]


@pytest.mark.parametrize(
    "language, code, message",
    [
        ("python", "print('x'", "was never closed"),
        ("bash", "if true; then", "syntax error"),
        ("json", "{,}", "Expecting property name"),
        ("json", "[" * 100_000, "recursion"),
        ("", "text", "a code fence without a language"),
    ],
)
def test_a_code_fence_that_does_not_parse_is_found(folder, language, code, message):
    with open(folder / "README.md", "a") as file:
        file.write(f"\n```{language}\n{code}\n```\n")
    (reported,) = problems(folder, "code")
    assert message in reported


def test_a_card_whose_metadata_are_nested_too_deeply_or_not_utf_8_is_named(tmp_path):
    (tmp_path / "README.md").write_text(f"---\na: {'[' * 1500}\n---\n")
    assert [problem.kind for problem in validate.validate(tmp_path)] == ["metadata"]
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\ncaf\xe9\n")
    with pytest.raises(ReleaseError, match=r"README\.md is not UTF-8 \(.* at byte 24\)"):
        validate.validate(tmp_path)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"[1]", b"caf\xe9", b'{"loss": 1'])
def test_a_line_of_a_log_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / "config.yaml").write_text("name: x\n")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_bytes('{"text": "a\u2028b"}\n'.encode() + line + b"\n")
    for look in (lambda: Run(tmp_path).metrics, lambda: run_export.last_samples(Run(tmp_path))):
        with pytest.raises(ReleaseError, match=r"Line 2 of .*\.jsonl is not a record in JSON"):
            look()


def test_the_code_of_the_template_runs_in_the_folder_and_an_error_is_reported_with_its_last_line(folder):
    assert "pipeline(" in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "transformers.py").write_text("open('RAN', 'w')")  # a file with the name of a module is none
    assert validate.validate(folder, run=True) == []
    (folder / "model.safetensors").unlink()
    (reported,) = validate.validate(folder, run=True)
    assert reported.kind == "code" and reported.message.startswith("python: ") and "model" in reported.message
    assert not (folder / "RAN").exists()


def test_code_that_no_template_wrote_does_not_run(folder):
    (folder / "template.md").write_text("```python\nopen('RAN', 'w')\n```\n")  # nor does one that the folder brings
    with open(folder / "README.md", "a") as file:
        file.write("\n```python\nopen('RAN', 'w')\n```\n")
    assert validate.validate(folder) == []
    (reported,) = validate.validate(folder, run=True)
    assert reported.message == "python: no template of this package wrote it: not run"
    assert not (folder / "RAN").exists()


def test_the_program_prints_a_table_and_exits_with_status_1(folder, monkeypatch, capsys):
    change(folder / "README.md", "license: apache-2.0", "license: apache2")
    change(folder / "README.md", "tags:", 'lisence: "\\e[2J"\ntags:')
    monkeypatch.setattr("sys.argv", ["validate", str(folder)])
    with pytest.raises(SystemExit) as end:
        validate.main()
    printed = capsys.readouterr().out
    assert end.value.code == 1 and "license: 'apache2'" in printed and "\x1b" not in printed


def test_a_template_that_prints_neither_number_nor_text_is_refused(tmp_path):
    (tmp_path / "template.md").write_text("{{ facts.a }}")
    value = provenance.TracedValue({"a": [1]}, "facts.json#", [])
    with pytest.raises(ReleaseError, match="facts.json#/a, which is neither number nor text"):
        provenance.render_with_marks(tmp_path / "template.md", {"facts": value})


# Texts of strangers -------------------------------------------------------------------------------

HOSTILE = (
    "Poems\n\n```python\nopen('RAN', 'w')\n```\n\n# Free | CC0-1.0 | 9\n---\nlicense: mit\n---\n<img src=x> "
    "[x](javascript:y) `a` ``` ~~~ \x1b[2J\u202e \ue0000\ue001 *b* "
)


HOSTILE_KEY = re.sub(r"\d", "", HOSTILE)  # a number in a name is not traced


def structure(text: str) -> list[str]:
    """Return what a card's body consists of, without the words: headings, rows, blocks of code, links, HTML."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(validate.split_front_matter(text)[1])
    kinds = [sorted({child.type for child in token.children or ()} - {"text", "text_special"}) for token in tokens]
    return [f"{token.type} {token.info} {kind}" for token, kind in zip(tokens, kinds, strict=True)]


def test_hostile_texts_in_the_evidence_do_not_change_the_structure_of_a_card(folder):
    before, evidence = (folder / "README.md").read_bytes().decode(), folder / "evidence"
    release_json = read_json(folder.parent / "release.json")
    release_json["folders"] = {"llama": release_json["folders"]["llama"]}
    release_json["command"] = HOSTILE
    (session,) = release_json["source"]["run"]["run"]["sessions"]
    session |= {
        "commit": HOSTILE,
        "versions": {HOSTILE_KEY: HOSTILE},
        "hardware": {"cpu": HOSTILE, "cpus": 2, "gpus": []},
    }
    write_json(folder.parent / "release.json", release_json)
    data, runs, compared = (read_json(evidence / f"{name}.json") for name in ("data", "lineage", "comparison"))
    for row in data[0]["account"]:
        row |= {column: HOSTILE + row[column] for column in ("language", "license", "collection")}
    data[0]["fingerprint"] = "0" * 64  # not that of a released manifest, which would be compared
    runs["runs"][0] |= {"command": HOSTILE, "measured_by": HOSTILE}
    compared["command"] = HOSTILE
    compared["tasks"]["bits_per_byte"] = {
        HOSTILE_KEY + name: row for name, row in compared["tasks"]["bits_per_byte"].items()
    }
    result = read_json(evidence / "eval" / "ocr.json")
    result |= {
        "task": HOSTILE_KEY,
        "metrics": {HOSTILE_KEY + name: value for name, value in result["metrics"].items()},
    }
    for name, content in {"data": data, "lineage": runs, "comparison": compared, "eval/ocr": result}.items():
        write_json(evidence / f"{name}.json", content)
    card.write_cards(folder.parent, "the command")
    text = (folder / "README.md").read_bytes().decode()
    assert structure(text) == structure(before)
    assert "\x1b" not in text.replace(WRITTEN["en"], "") and "\u202e" not in text.split("\n---\n", 1)[1]
    assert [p for p in validate.validate(folder, run=True) if p.kind in ("code", "number", "link")] == []
    assert not (folder / "RAN").exists()


def test_a_model_whose_name_needs_quoting_has_commands_and_code_that_parse(dist, tmp_path):
    out = shutil.copytree(dist, tmp_path / "tiny")
    content = read_json(out / "release.json")
    content |= {"name": 'it\'s "my" \u00e9 model', "folders": {"gguf": {"bytes": 0, "files": {}}}}
    write_json(out / "release.json", content)
    (out / "gguf").mkdir()
    card.write_cards(out, "")
    assert validate.validate(out / "gguf") == []
    text = (out / "gguf" / "README.md").read_text(encoding="utf-8")
    (bash,) = re.findall(r"^llama-server -m (.*)$", text, re.M)
    (python,) = re.findall(r"gguf_file=(.*), dtype", text)
    assert shlex.split(bash) == [ast.literal_eval(python)] == [content["name"] + "-BF16.gguf"]


@pytest.mark.parametrize(
    "name, value",
    [("folders", {"../llama": {"bytes": 0, "files": {}}}), ("source", {"run": {"base_model": "a/b](x) <img>"}})],
)
def test_names_in_a_release_that_are_no_names_are_refused(dist, tmp_path, name, value):
    out = shutil.copytree(dist, tmp_path / "tiny")
    write_json(out / "release.json", read_json(out / "release.json") | {name: value})
    with pytest.raises(ReleaseError, match="which is no folder of a release|not the name of a repository"):
        card.write_cards(out, "")


def test_half_a_surrogate_pair_in_a_file_is_refused_by_the_file_s_name(folder):
    path = folder / "evidence" / "data.json"
    path.write_text(json.dumps([{"account": "\ud800"}]))
    with pytest.raises(ReleaseError, match="data.json contains half a surrogate pair"):
        card.write_cards(folder.parent, "")


def test_a_card_that_names_a_file_outside_its_folder_is_refused(folder):
    content = read_json(folder / "card.json")
    content["numbers"][0]["source"] = "../release.json#/name"
    write_json(folder / "card.json", content)
    with pytest.raises(ReleaseError, match="'../release.json' is not the name of a file inside"):
        validate.validate(folder)


@pytest.mark.parametrize("name", ["../mine", "../../../mine", "/tmp/mine", "a/../../mine", "."])
def test_a_stage_whose_name_leads_out_of_the_folder_is_refused(run, tmp_path, name):
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(run, copy)
    settings = read_config(copy)
    settings["stages"][0]["name"] = name
    (copy / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    if name == ".":  # the name of no file, but of no other folder either
        run_export.write_run(Run(copy), tmp_path / "out")
        return
    with pytest.raises(ReleaseError, match="is not the name of a file inside"):
        run_export.write_run(Run(copy), tmp_path / "out")
    assert not list(tmp_path.rglob("mine*"))


@pytest.mark.parametrize(
    "change_manifest",
    [
        lambda m: m["account"][0].update(license="CC0-1.0 or so"),
        lambda m: m["account"][0].update(tokens=m["account"][0]["tokens"] + 1),
        lambda m: m["account"].pop(),
        lambda m: m["corpus"]["sources"].update(more="text"),
        lambda m: m["corpus"].update(curation={"reasons": {}}),
        lambda m: m["corpus"]["files"][0].update(sha256="0"),
        lambda m: m["shards"][0]["sidecars"].update({".index": "0"}),
        lambda m: m["validation"].update(share=0.5),
        lambda m: m.update(not_open=["unknown"]),
        lambda m: [shard.pop("sidecars") for shard in m["shards"]],
        lambda m: m.pop("corpus"),
    ],
)
def test_a_manifest_that_was_altered_after_the_run_read_it_is_refused(run, tiny_shards, tmp_path, change_manifest):
    manifest = read_json(tiny_shards / "manifest.json")
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(run, copy)
    shards = tmp_path / "shards" / "manifest.json"
    settings = read_config(copy)
    settings["stages"] = [{**settings["stages"][0], "shards": str(shards.parent)}]
    (copy / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    shards.parent.mkdir()
    write_json(shards, manifest)
    assert collect_corpora(Run(copy))[0]["account"] == manifest["account"]
    change_manifest(manifest)
    write_json(shards, manifest)
    with pytest.raises(ReleaseError, match="manifest.json was altered"):
        collect_corpora(Run(copy))


def test_an_exported_manifest_keeps_its_fingerprint_and_one_of_an_earlier_version_is_read(tiny_shards):
    manifest = read_json(tiny_shards / "manifest.json")
    many = {**manifest, "shards": manifest["shards"][:1] * 1000}
    for content in (manifest, many):
        fingerprint = shard_files.manifest_fingerprint(content)
        assert run_module.manifest_fingerprint(content) == fingerprint
        assert run_module.manifest_fingerprint(run_export.trim_manifest(content)) == fingerprint
    older = {**manifest, "shards": [{**shard} for shard in manifest["shards"]]}
    for shard in older["shards"]:
        del shard["sidecars"]
    known = shard_files.tokens_fingerprint(manifest)
    assert run_module.manifest_fingerprint(older) == shard_files.manifest_fingerprint(older) == known
    for path in sorted((MODEL_CARD / "femto" / "runs").glob("*/manifests/*.json")):
        assert run_module.read_manifest(path)["fingerprint"]


def test_a_fine_tuning_s_manifest_that_was_altered_is_refused_and_one_of_an_earlier_version_is_read(tuned):
    folder = tuned()
    path = folder / "manifests" / "ocr.json"
    manifest = read_json(path)
    older = {key: value for key, value in manifest.items() if key != "examples"}
    older["fingerprint"] = manifest["examples"]
    write_json(path, manifest | {"account": [row | {"license": "CC0-1.0"} for row in manifest["account"]]})
    with pytest.raises(ReleaseError, match="ocr.json was altered"):
        collect_corpora(Run(folder))
    write_json(path, older)
    change(folder / "run.json", manifest["fingerprint"], older["fingerprint"])
    assert collect_corpora(Run(folder))[0]["account"] == manifest["account"]


def test_passwords_in_addresses_are_not_in_a_release(run, tmp_path):
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(run, copy)
    secret = "http://ann:s3cret@host/v1"
    for name in ("config.yaml", "run.json"):
        change(copy / name, "FRA" if name == "config.yaml" else "--config tiny", secret)
    assert "s3cret" not in json.dumps([lineage(Run(copy)), release.run_metadata(Run(copy))])
    run_export.write_run(Run(copy), tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]


@pytest.mark.parametrize(
    "alter",
    [
        lambda out: (out / "llama" / "config.json").write_text("other"),
        lambda out: (out / "llama" / "config.json").unlink(),
        lambda out: (out / "llama" / "more.bin").touch(),
        lambda out: (out / "more" / "deep").mkdir(parents=True) or (out / "more" / "deep" / "file").touch(),
        lambda out: (out / "llama" / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n"),
        lambda out: (out / "llama" / "runs" / "SHA256SUMS").write_text("x"),
        lambda out: (out / "SHA256SUMS").write_text(""),
        lambda out: (out / "SHA256SUMS").unlink(),
        lambda out: (out / "SHA256SUMS").write_text((out / "SHA256SUMS").read_text() * 2),
    ],
)
def test_a_release_that_differs_from_its_lists_is_not_uploaded(dist, tmp_path, alter):
    out = shutil.copytree(dist, tmp_path / "tiny")
    verify_sums(out)
    alter(out)
    with pytest.raises(ReleaseError, match="is not the file that was verified"):
        release.push(out, "someone/tiny", private=True, api=lambda: pytest.fail("uploaded"))


def test_the_documents_of_the_ai_act_are_next_to_each_card_which_links_to_them(dist, run, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(dist, out)
    documents = []
    for name in ("public_summary.md", "model_documentation_form.md"):
        documents.append(tmp_path / name)
        documents[-1].write_text("# A document\n")
    card.write_cards(out, "the command", run=Run(run), documents=documents)
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
        write_json(out / part / "evidence" / "lineage.json", {"runs": []})
    card.write_cards(out, "the command", base_model="PleIAs/base")
    text = (out / "llama" / "README.md").read_text(encoding="utf-8")
    assert "| learning rate | 3e-05 |" in text and "| max steps | 200 |" in text and "packing" not in text
    assert validate.validate(out / "llama", run=False) == []
