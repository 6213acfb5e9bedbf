"""The card of a model that started from others has the runs, the data and the cost of all."""

import shutil

import pytest
import yaml
from cards import carded, metadata

from model_card import release
from model_card import run as run_module
from model_card.facts import base_of, lineage, total_emissions
from model_card.files import ReleaseError, read_config, read_json, sha256, write_json
from model_card.run import Run
from training.average import average
from training.common.files import model_sha256


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
