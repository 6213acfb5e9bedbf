"""Options of the loss: z-loss equals its formula, and the document mask keeps documents apart."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training import loss
from training.bench import options
from training.compute import NextTokenLoss
from training.config import parse
from training.files import read_json, write_json
from training.loss import LinearCrossEntropy, document_positions, next_token_loss
from training.recipe import PretrainConfig

N, D, V, BOS, EOS = 37, 16, 101, 1, 2


@pytest.fixture(scope="module")
def model() -> PleiasForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return PleiasForCausalLM(PleiasConfig(vocab_size=V, num_key_value_heads=2, **shape))


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("rows", [5, 10 * N])
def test_z_loss_adds_the_mean_square_of_the_log_sum_and_its_gradient(monkeypatch, z_loss, rows):
    monkeypatch.setattr(loss, "CHUNK_BYTES", rows * V * 8)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(V, (N,), generator=generator)
    ours = LinearCrossEntropy.apply(hidden, weight, targets, torch.float64, z_loss)
    logits = hidden @ weight.T
    expected = functional.cross_entropy(logits, targets) + z_loss * logits.logsumexp(-1).square().mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, oracle in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (ours, expected)), strict=True):
        assert (mine - oracle).abs().max() < 1e-6 * oracle.abs().max()


def test_z_loss_is_part_of_what_is_minimised_and_not_of_what_is_validated(model):
    windows = torch.randint(3, V, (2, 17))
    with_it, without = (NextTokenLoss(model, torch.float32, z_loss=z, document_mask=False) for z in (1.0, 0.0))
    assert with_it(windows) > without(windows) + 1
    with torch.no_grad():
        assert torch.equal(with_it(windows), without(windows))


def test_positions_begin_anew_with_each_document():
    ids = torch.tensor([[5, 6, BOS, 7, 8, BOS, BOS, 9], [BOS, 5, 6, 7, 8, 9, 5, 6]])
    assert document_positions(ids, BOS).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_under_the_document_mask_a_window_is_worth_its_documents_one_by_one(model):
    documents = [[5, 6, 7, EOS], [BOS, 8, 9, 10, 11, 12, EOS], [BOS, 13, EOS], [BOS, 14, 15, 16]]
    window = torch.tensor([sum(documents, [])])

    def total(ids, **mask) -> float:
        return next_token_loss(model, ids, dtype=torch.float32, **mask).item() * (ids.shape[1] - 1)

    apart = 0.0
    for i, one in enumerate(documents):  # each with the beginning of the next as the last thing to predict
        apart += total(torch.tensor([[*one, *(documents[i + 1][:1] if i + 1 < len(documents) else [])]]))
    assert total(window, document_mask=True) == pytest.approx(apart, rel=1e-5)
    assert total(window) != pytest.approx(apart, rel=1e-4)


def test_the_benchmark_changes_one_thing_at_a_time():
    base = parse(PretrainConfig, ["--config", "demo"], description="")
    for name, change in options.OPTIONS.items():
        changed = options.with_option(base, name)
        assert (changed == base) == (name == "baseline")
        assert replace(changed, **{key: getattr(base, key) for key in change}) == base


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
    report = options.measure(bench)
    assert {name: len(rounds) for name, rounds in report["speed"].items()} == {"baseline": 1, "muon": 1}
    assert options.relative(report, "baseline") == 1 and options.relative(report, "muon") > 0
    assert read_json(bench.json) == report == options.measure(bench) | {"config": report["config"]}


@pytest.mark.parametrize("relative_speed, fewer", [(0.5, 1), (0.1, 1), (0.99, 2)])
def test_a_slower_option_trains_for_fewer_steps_at_equal_time_and_for_one_at_least(
    bench, relative_speed, fewer, monkeypatch
):
    monkeypatch.setattr(options, "quality", lambda config: config.stages[0].steps + (config.optimizer.name == "muon"))
    write_json(bench.json, {"speed": {"baseline": [100.0], "muon": [100.0 * relative_speed]}, "quality": {}})
    quality = options.measure(bench)["quality"]
    assert quality["baseline"]["equal steps"] == quality["baseline"]["equal time"]
    assert quality["muon"]["equal steps"] == {"steps": 2, "bits_per_byte": 3}
    assert quality["muon"]["equal time"] == {"steps": fewer, "bits_per_byte": fewer + 1}


def test_the_quality_of_a_run_is_that_of_its_last_validation_and_differs_between_options(bench):
    baseline, muon = (options.with_option(options.base(bench), name) for name in ("baseline", "muon"))
    scores = [options.quality(config) for config in (baseline, muon, baseline)]
    assert scores[0] == scores[2] != scores[1]
