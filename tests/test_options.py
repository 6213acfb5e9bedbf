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
from training.files import read_json
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


def test_the_benchmark_measures_speed_and_gives_a_slower_option_fewer_steps_at_equal_time(
    tmp_path, tiny_shards, tiny_tokenizer
):
    (tmp_path / "shards").symlink_to(tiny_shards)
    (tmp_path / "tokenizer").symlink_to(tiny_tokenizer)
    sizes = {"steps": 2, "rounds": 1, "timed": 1, "json": tmp_path / "options.json"}
    bench = options.OptionsBench(data=tmp_path, options=["muon"], **sizes)
    report = options.measure(bench)
    assert set(report["speed"]) == set(report["quality"]) == {"baseline", "muon"}
    assert report["quality"]["baseline"]["equal steps"] == report["quality"]["baseline"]["equal time"]
    ratio = options.relative(report, "muon")
    fewer = 2 if abs(ratio - 1) <= options.ALIKE else round(2 * ratio)
    assert report["quality"]["muon"]["equal time"]["steps"] == fewer
    assert report["quality"]["muon"]["equal steps"] != report["quality"]["baseline"]["equal steps"]
    assert read_json(bench.json) == report == options.measure(bench) | {"config": report["config"]}
