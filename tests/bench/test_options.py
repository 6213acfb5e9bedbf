"""Benchmark of options: each changes one setting, and slower ones get fewer steps at equal time."""

from dataclasses import replace

import pytest

from training.bench import options
from training.common.config import parse
from training.common.files import read_json, write_json
from training.pretraining.recipe import PretrainConfig


def test_the_benchmark_changes_one_thing_at_a_time():
    base = parse(PretrainConfig, ["--config", "demo"], description="")
    for name, change in options.OPTIONS.items():
        changed = options.with_option(base, name)
        assert (changed == base) == (name == "baseline")
        restored = replace(changed.optimizer, **{key: getattr(base.optimizer, key) for key in change})
        assert replace(changed, optimizer=restored) == base


@pytest.fixture
def bench(tmp_path, tiny_shards, tiny_tokenizer, monkeypatch) -> options.OptionsBench:
    """Benchmark of Muon and the baseline on the tiny shards: two steps of a tiny model per run."""
    model = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    demo = options.base
    monkeypatch.setattr(options, "base", lambda bench: replace(demo(bench), model=model, sequence_length=32))
    (tmp_path / "shards").symlink_to(tiny_shards)
    (tmp_path / "tokenizer").symlink_to(tiny_tokenizer)
    sizes = {"steps": 2, "rounds": 1, "timed": 1, "json": tmp_path / "options.json"}
    return options.OptionsBench(data=tmp_path, options=["muon"], **sizes)


def test_the_benchmark_measures_the_speed_of_each_option_and_keeps_it(bench):
    bench.parts = ["speed"]
    report = options.measure_options(bench)
    assert {name: len(rounds) for name, rounds in report["speed"].items()} == {"baseline": 1, "muon": 1}
    assert options.relative(report, "baseline") == 1 and options.relative(report, "muon") > 0
    assert read_json(bench.json) == report == options.measure_options(bench) | {"config": report["config"]}


@pytest.mark.parametrize("relative_speed, fewer", [(0.5, 1), (0.1, 1), (0.99, 2)])
def test_a_slower_option_trains_for_fewer_steps_at_equal_time_and_for_one_at_least(
    bench, relative_speed, fewer, monkeypatch
):
    monkeypatch.setattr(options, "quality", lambda config: config.stages[0].steps + (config.optimizer.name == "muon"))
    write_json(bench.json, {"speed": {"baseline": [100.0], "muon": [100.0 * relative_speed]}, "quality": {}})
    quality = options.measure_options(bench)["quality"]
    assert quality["baseline"]["equal steps"] == quality["baseline"]["equal time"]
    assert quality["muon"]["equal steps"] == {"steps": 2, "bits_per_byte": 3}
    assert quality["muon"]["equal time"] == {"steps": fewer, "bits_per_byte": fewer + 1}


def test_the_quality_of_a_run_is_that_of_its_last_validation_and_differs_between_options(bench):
    baseline, muon = (options.with_option(options.base(bench), name) for name in ("baseline", "muon"))
    scores = [options.quality(config) for config in (baseline, muon, baseline)]
    assert scores[0] == scores[2] != scores[1]
