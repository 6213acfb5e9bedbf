"""The summary of a run shows the values in its files, whatever text a model generated."""

import json
from dataclasses import replace

import pytest

from training.common.config import parse
from training.common.files import write_json
from training.pretraining.recipe import PretrainConfig
from training.pretraining.summary import write_summary


@pytest.fixture
def run(tmp_path) -> PretrainConfig:
    """The files of a run of the demo's length, in two sessions, with its last steps skipped."""
    config = replace(parse(PretrainConfig, ["--config", "demo"], description=""), out=tmp_path)
    step = {"tokens_per_second": 1000.0, "mfu": 0.4, "skipped": 0, "spikes": 0}
    metrics = [
        {
            "step": 0,
            "validation": {"en": {"loss": 9.0, "bits_per_byte": 4.0}, "la": {"loss": 9.0, "bits_per_byte": 5}},
        },
        step | {"step": 10, "loss": 8.5},
        step | {"step": 400, "loss": 4.25, "tokens_per_second": 3000.0, "mfu": 0.5},
        {"step": 690, "event": {"kind": "not finite", "skipped": True, "loss": None, "gradient_norm": None}},
        step | {"step": 700, "loss": None, "tokens_per_second": 2000.0, "mfu": 0.45, "skipped": 10, "spikes": 2},
        {
            "step": 700,
            "validation": {"en": {"loss": 4.0, "bits_per_byte": 2.5}, "la": {"loss": 4, "bits_per_byte": 3}},
        },
    ]
    samples = [
        {"step": 350, "language": "en", "prompt": "An early", "continuation": " one."},
        {"step": 700, "language": "en", "prompt": "In the", "continuation": " [/end] [UNK]\n[bold]red"},
    ]
    for name, lines in {"metrics": metrics, "samples": samples}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(tmp_path / "run.json", {"sessions": [{"peak_memory_bytes": 3e9}, {"peak_memory_bytes": 2e9}]})
    emissions = {"seconds": 1234.4, "kwh": 0.5, "kg_co2eq": 0.025, "source": "codecarbon"}
    write_json(tmp_path / "emissions.json", emissions)
    return config


def test_the_summary_contains_the_values_of_the_files(run):
    text = write_summary(run)
    words = " ".join(text.split())
    assert text == (run.folder / "summary.txt").read_text(encoding="utf-8")
    assert "demo: 1,433,600 tokens in 700 steps and 1,234 s; 2,000 tokens/s, 45.0% of the peak; " in words
    assert "at most 3.00 GB per process." in words
    assert "Loss 8.500 -> 4.250 nats per token; 10 steps skipped, 2 spikes." in words
    assert "500.00 Wh, 25.00 g CO2eq (codecarbon)." in words
    assert "│ la │ 5.000 │ 3.000 │" in words


def test_only_the_last_samples_are_shown_and_verbatim(run):
    words = " ".join(write_summary(run).split())
    assert "│ en │ 4.000 │ 2.500 │ In the [/end] [UNK] [bold]red │" in words and "An early" not in words
