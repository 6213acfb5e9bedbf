"""The demo chooses steps that fit its time, keeps the choice on a rerun, and leaves steps that the user sets."""

import json
import sys
from dataclasses import replace

import pytest
import yaml
from training_runs import as_yaml

from training import demo
from training.common.config import parse
from training.common.files import read_json
from training.demo import MINIMUM_STEPS, choose_steps, steps_that_fit, with_steps
from training.pretraining.recipe import PretrainConfig
from training.run.metrics import read_metrics


@pytest.mark.parametrize(
    ("step_seconds", "other_seconds", "steps"),
    [
        ([0.5] * 8, 30, 300),
        ([0.5] * 8, 28, 300),  # 304, rounded down to tens
        ([0.5] * 5 + [20.0] * 3, 30, 300),  # another program slowed some steps
        ([1e-3] * 8, 10, 700),
        ([60.0] * 8, 30, MINIMUM_STEPS),
        ([0.5] * 8, 500, MINIMUM_STEPS),  # the other work alone takes longer
    ],
)
def test_steps_fit_the_time_left_within_bounds(step_seconds, other_seconds, steps):
    assert steps_that_fit(step_seconds, other_seconds, budget=180, maximum=700) == steps


def test_a_config_of_fewer_steps_than_the_minimum_keeps_its_steps():
    assert steps_that_fit([60.0], 30, budget=180, maximum=20) == 20


@pytest.mark.parametrize("name", ["demo", "continue"])
def test_warm_up_and_intervals_shrink_with_the_steps(name):
    full = parse(PretrainConfig, ["--config", name], description="")
    half = parse(PretrainConfig, ["--config", name, *with_steps(full, full.steps // 2)], description="")
    assert half.stages == [replace(full.stages[0], steps=full.steps // 2)]
    assert half.optimizer == replace(full.optimizer, warmup_steps=full.optimizer.warmup_steps // 2)
    assert half.every == replace(
        full.every, validate=-(-full.every.validate // 2), checkpoint=-(-full.every.checkpoint // 2)
    )
    assert parse(PretrainConfig, ["--config", name, *with_steps(full, full.steps)], description="") == full


@pytest.fixture
def run_demo(tmp_path, tiny_corpus, tiny_tokenizer, monkeypatch):
    """Function (more arguments): run the demo on a tiny corpus and model, and return the run's config.yaml."""
    sizes = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
    model = ["--model", sizes + "num_key_value_heads: 2, vocab_size: 400}", "--sequence_length", "32"]
    source = ["--corpus.source", "parquet", "--corpus.path", str(tiny_corpus), "--corpus.languages", "[en,fr]"]
    data = ["--data.folder", str(tmp_path / "data"), "--data.tokenizer", str(tiny_tokenizer), "--data.curation=null"]
    monkeypatch.setattr(demo, "SHIPPED", tmp_path / "not installed")

    def run(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["demo", *source, *data, *model, "--out", str(tmp_path / "run"), *arguments])
        demo.main()
        return yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())

    return run


def test_the_demo_times_its_steps_once_and_a_rerun_resumes_with_them(run_demo, tmp_path, capfd):
    config = run_demo()
    steps, records = config["stages"][0]["steps"], read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert MINIMUM_STEPS <= steps <= 700 and steps % 10 == 0 and records[-1]["step"] == steps
    screen = capfd.readouterr().out
    assert f"{steps} steps for a run of 180 s" in screen
    assert screen.count(" steps skipped, ") == 1  # only the run's summary, not that of the short run that was timed
    times = [line for line in screen.splitlines() if line.startswith("Time: ")]
    assert len(times) == 1 and all(part in times[0] for part in ("data ", "step timing ", "pretraining ", "total "))
    [session] = read_json(tmp_path / "run" / "run.json")["sessions"]
    assert session["dtype"].removeprefix("torch.") in screen.split("Computed on: ")[1]

    assert run_demo() == config
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == records
    assert " steps for a run of " not in capfd.readouterr().out


def test_an_interrupted_run_keeps_its_steps(tmp_path):
    config = replace(parse(PretrainConfig, ["--config", "demo"], description=""), out=tmp_path)
    as_yaml(replace(config, stages=[replace(config.stages[0], steps=90)]), tmp_path / "config.yaml")
    assert choose_steps(config, ["--no_such_option", "if this run were timed"], 180) == 90


@pytest.mark.slow
def test_steps_on_the_command_line_win(run_demo, capfd):
    stages = [{"name": "base", "steps": 5, "sequences": 2}]
    assert run_demo("--stages", json.dumps(stages))["stages"][0]["steps"] == 5
    assert " steps for a run of " not in capfd.readouterr().out
