"""A release contains the files of its run, without the machine's paths, and refuses those that changed since."""

import json
import shutil

import pytest
import yaml
from cards import MODEL_CARD, change

from model_card import release, run_export
from model_card import run as run_module
from model_card.facts import collect_corpora, lineage
from model_card.files import ReleaseError, read_config, read_json, write_json
from model_card.run import Run
from training.data import shard_files


def test_a_stage_that_was_trained_on_other_shards_than_those_on_disk_is_refused(run, tmp_path):
    spoiled = tmp_path / "runs" / "tiny"
    shutil.copytree(run, spoiled)
    change(spoiled / "run.json", read_json(run / "run.json")["sessions"][0]["data"][0], "0" * 64)
    with pytest.raises(ReleaseError, match="manifest.json is not the manifest that"):
        release.build_release(release.options(["--run", str(spoiled), "--out", str(tmp_path / "d"), "--formats"]), "")
    assert not (tmp_path / "d").exists()


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
    short, manifest = read_json(folder / "manifests" / "base-annealing.json"), read_json(tiny_shards / "manifest.json")
    assert short["account"] == manifest["account"] and short["fingerprint"] == manifest["fingerprint"]
    assert [shard["sha256"] for shard in short["shards"]] == [shard["sha256"] for shard in manifest["shards"]]
    assert not any("account" in shard for shard in short["shards"])


def test_a_manifest_of_thousands_of_shards_contains_only_their_number(tiny_shards):
    manifest = read_json(tiny_shards / "manifest.json")
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


@pytest.mark.parametrize("line", [b"[" * 100_000, b"[1]", b"caf\xe9", b'{"loss": 1'])
def test_a_line_of_a_log_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / "config.yaml").write_text("name: x\n")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_bytes('{"text": "a\u2028b"}\n'.encode() + line + b"\n")
    for look in (lambda: Run(tmp_path).metrics, lambda: run_export.last_samples(Run(tmp_path))):
        with pytest.raises(ReleaseError, match=r"Line 2 of .*\.jsonl is not a record in JSON"):
            look()


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
