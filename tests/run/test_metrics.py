"""Metrics equal direct counts, and the metrics log survives kills."""

import json
import math
import struct

import pytest
import torch

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.common.config import InputError
from training.run.metrics import (
    MetricsLog,
    bits_per_byte,
    count_parameters,
    flops_per_token,
    peak_flops,
    plot,
    read_metrics,
)

ODD = {"hidden_size": 24, "intermediate_size": 7, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 33}


@pytest.mark.parametrize(
    "config",
    [
        PleiasConfig.pico_350m(),
        PleiasConfig.nano_1_2b(),
        PleiasConfig.base_3b(),
        PleiasConfig(**ODD, num_key_value_heads=1),
        PleiasConfig(**ODD, num_key_value_heads=6, head_dim=10),
        PleiasConfig(**ODD, num_key_value_heads=2, tie_word_embeddings=False),
    ],
    ids=["pico", "nano", "3b", "one kv head", "wide heads", "untied"],
)
def test_parameters_are_those_of_the_model(config):
    with torch.device("meta"):
        model = PleiasForCausalLM(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("attention", "gigaflops"), [("none", 7.172), ("causal", 7.726), ("full", 8.280)])
def test_the_nano_model_needs_the_known_flops_per_token_at_2048(attention, gigaflops):
    assert flops_per_token(PleiasConfig(), 2048, attention=attention) / 1e9 == pytest.approx(gigaflops, abs=1e-3)


def test_full_attention_counts_every_matmul_of_the_forward_pass_three_times():
    # Forward FLOPs as PyTorch counts them; the backward pass computes each matmul twice. The embedding is a look-up,
    # not a matmul, but 6N counts tied weights once, as the head.
    from torch.utils.flop_counter import FlopCounterMode

    T = 40
    model = PleiasForCausalLM(PleiasConfig(**ODD, num_key_value_heads=6, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, T, dtype=torch.long))
    norms = ODD["hidden_size"] * (2 * ODD["num_hidden_layers"] + 1)
    assert flops_per_token(model.config, T) * T == 3 * counter.get_total_flops() + 6 * norms * T


def test_utilisation_is_only_computed_if_the_peak_is_known(monkeypatch):
    assert peak_flops(torch.device("cpu")) is None
    for name, peak in [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA T4", None)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak


def test_bits_per_byte_is_the_code_length_of_the_text_over_its_bytes():
    text, probabilities = "été à Nîmes", [0.5, 0.125, 0.01, 0.3]  # of its four tokens
    nats = sum(-math.log(p) for p in probabilities) / len(probabilities)
    expected = sum(-math.log2(p) for p in probabilities) / len(text.encode())
    assert bits_per_byte(nats, len(text.encode()) / len(probabilities)) == pytest.approx(expected, rel=1e-12)


def test_a_resumed_run_drops_the_records_of_steps_it_will_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path, resume_step=-1)
    for step in (0, 10, 20, 30):
        first.write({"step": step, "loss": step / 7})
    resumed = MetricsLog(path, resume_step=20)
    assert read_metrics(path) == [{"step": step, "loss": step / 7} for step in (0, 10, 20)]
    resumed.write({"step": 30, "loss": 1.0})
    assert [record["step"] for record in read_metrics(path)] == [0, 10, 20, 30]
    assert read_metrics(path)[-1]["loss"] == 1.0


def test_a_new_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, resume_step=-1).write({"step": 0})
    MetricsLog(path, resume_step=-1)
    assert read_metrics(path) == []


@pytest.mark.parametrize("line", ["[" * 100_000, "{,}"])
def test_a_line_that_is_no_json_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"Line 2 of .*metrics\.jsonl is not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_last_line_that_a_kill_truncated_anywhere_is_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    complete, cut = '{"step": 10, "loss": 1.5}\n', '{"step": 20, "loss": 2.5}\n'
    for length in range(len(cut)):
        path.write_text(complete + cut[:length])
        assert read_metrics(path) == [{"step": 10, "loss": 1.5}]
        MetricsLog(path, resume_step=20).write({"step": 20, "loss": 3.5})
        assert [record["loss"] for record in map(json.loads, path.read_text().splitlines())] == [1.5, 3.5]


def test_a_kill_while_a_resumed_run_rewrites_the_log_does_not_lose_it(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, resume_step=-1).write({"step": 1})

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(path, resume_step=1)
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("languages", [("en", "fr", "la"), ()])
def test_the_plot_is_a_png_of_the_run(tmp_path, languages):
    records = [{"step": step, "loss": 10 / (step + 1)} for step in range(1, 30)]
    for step in (0, 15, 29) if languages else ():
        records.append({"step": step, "validation": {code: {"bits_per_byte": 2 - step / 30} for code in languages}})
    plot(records, tmp_path / "loss.png")
    content = (tmp_path / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    assert struct.unpack(">II", content[16:24]) == (1200, 480)


def test_the_plot_of_a_fine_tuning_run_has_the_line_of_its_metric(tmp_path):
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    plot(records, tmp_path / "bare.png")
    figures = [{"step": step, "held_out": {"cer": cer, "wer": 1.0}} for step, cer in ((1, 0.5), (2, None), (3, 0.25))]
    sizes = []
    for count in (1, 3):
        plot([*records, *figures[:count]], tmp_path / "loss.png")
        sizes.append((tmp_path / "loss.png").read_bytes())
    assert len({*sizes, (tmp_path / "bare.png").read_bytes()}) == 3
