"""Initial embeddings: co-occurrences, PPMI and eigenvectors are correct, and only the embeddings are replaced."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from hypothesis import given
from hypothesis import strategies as st

from modeling_pleias import PleiasForCausalLM, PleiasTokenizer
from training import embeddings
from training.common.config import InputError
from training.common.files import read_json
from training.pretraining.recipe import PretrainConfig

SHAPE = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


@given(blocks=st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=4), size=st.integers(1, 4))
def test_cooccurrences_equal_a_loop_over_all_pairs(blocks, size):
    expected = np.zeros((10, 10))
    for block in blocks:
        for i, a in enumerate(block):
            for j in range(i + 1, min(i + size + 1, len(block))):
                expected[a, block[j]] += 1 / (j - i)
                expected[block[j], a] += 1 / (j - i)
    counted = embeddings.cooccurrence_counts([np.array(b, "<u2") for b in blocks], vocab_size=10, window_size=size)
    np.testing.assert_allclose(counted.toarray(), expected, rtol=1e-5)


def test_mutual_information_equals_the_formula_if_positive():
    draw = np.random.default_rng(0)
    block = draw.choice(12, size=4000, p=np.arange(1, 13) / 78).astype("<u2")
    counts = embeddings.cooccurrence_counts([block], vocab_size=12, window_size=2)
    dense = counts.toarray()
    chance = dense.sum(1) ** embeddings.SMOOTHING / (dense.sum(1) ** embeddings.SMOOTHING).sum()
    expected = np.maximum(np.log(dense / dense.sum() / np.outer(chance, chance)), 0)
    result = embeddings.ppmi(counts).toarray()
    np.testing.assert_allclose(result, expected, atol=1e-4)
    np.testing.assert_allclose(result, result.T, atol=1e-6)


def test_tokens_with_similar_contexts_have_similar_embeddings():
    """Two synthetic languages of 30 words each: nearest neighbours are in the same language."""
    draw = np.random.default_rng(0)
    sentences = [draw.integers(0, 30, 12) + 30 * draw.integers(2) for _ in range(4000)]
    counts = embeddings.cooccurrence_counts((s.astype("<u2") for s in sentences), vocab_size=60, window_size=3)
    rows = embeddings.leading_eigenvectors(embeddings.ppmi(counts), size=4, seed=0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    nearest = (rows @ rows.T - 2 * np.eye(60)).argmax(1)
    assert Counter((nearest < 30) == (np.arange(60) < 30)) == {True: 60}


@pytest.fixture(scope="module")
def start(tiny_shards, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "model"
    config = embeddings.EmbeddingsConfig(shards=tiny_shards, tokenizer=tiny_tokenizer, out=folder, model=SHAPE)
    embeddings.build_embeddings(config)
    return config


def test_all_weights_but_the_embeddings_are_initialised_as_in_pretraining(start):
    model = PleiasForCausalLM.from_pretrained(start.out, dtype=torch.float32)
    set_seed(start.seed)
    random = PleiasForCausalLM(PretrainConfig(name="x", stages=[], model=SHAPE).model_config())
    for name, weight in random.state_dict().items():
        same = torch.equal(model.state_dict()[name], weight)
        assert same != (name in ("model.embed_tokens.weight", "lm_head.weight")), name
    norm = random.model.embed_tokens.weight.data.norm(dim=1).mean()
    assert model.model.embed_tokens.weight.data.norm(dim=1).mean() == pytest.approx(2 * norm.item(), rel=1e-4)
    assert len(PleiasTokenizer.from_pretrained(start.out)) == 400


def test_the_output_is_deterministic(start, tmp_path):
    embeddings.build_embeddings(replace(start, out=tmp_path / "again"))
    again, first = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "again", start.out))
    assert again == first


def test_the_folder_records_that_its_model_is_untrained_and_which_shards_were_counted(start):
    counted = read_json(start.shards / "manifest.json")["fingerprint"]
    assert read_json(start.out / "embeddings.json") == {"shards": counted}


def test_another_tokenizer_is_rejected(start, tmp_path):
    PleiasTokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="made with another tokenizer"):
        embeddings.build_embeddings(replace(start, tokenizer=tmp_path))
