"""A card prints numbers from the files of a run only, and shows what they contain."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from cards import MODEL_CARD, WRITTEN, change, metadata, problems
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from model_card import card, provenance, validate
from model_card.facts import distinct_rows
from model_card.files import (
    ReleaseError,
    read_json,
    relativize_paths,
    sha256,
    verify_sums,
    write_json,
)
from model_card.run import Run


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
    account = [row for row in read_json(tiny_shards / "manifest.json")["account"] if row["split"] == "train"]
    (corpus,) = derived["corpora"]  # one manifest for both stages
    assert corpus["stages"] == "base and annealing"
    assert corpus["train"]["tokens"] == sum(row["tokens"] for row in account)
    for column in ("language", "license", "collection"):
        rows = corpus[f"by_{column}"]
        assert sum(row["tokens"] for row in rows) == corpus["train"]["tokens"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert derived["tokens"] == (70 * 8 + 5 * 4) * 256
    assert derived["text"]["train"] == corpus["train"] and derived["text"]["by_license"] == corpus["by_license"]


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


def test_bits_per_byte_are_compared_with_those_of_baselines_and_the_command_is_shown(dist):
    text = (dist / "llama" / "README.md").read_text(encoding="utf-8")
    row = "2.250 | 2.500 (2.375 to 2.625) | -0.250 (-0.500 to +0.125) |\n"
    assert f"| mean | {row}| Latin | {row}" in text and "| peer-2 | 567,890 | base model |" in text
    assert "Command: `python -m training.evaluate --model runs/tiny --model peer-2.gguf`\n" in text


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
    manifest = read_json(tiny_shards / "manifest.json")
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


def test_a_template_that_prints_neither_number_nor_text_is_refused(tmp_path):
    (tmp_path / "template.md").write_text("{{ facts.a }}")
    value = provenance.TracedValue({"a": [1]}, "facts.json#", [])
    with pytest.raises(ReleaseError, match="facts.json#/a, which is neither number nor text"):
        provenance.render_with_marks(tmp_path / "template.md", {"facts": value})


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
