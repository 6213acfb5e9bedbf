"""Bits per byte are exact: every byte once, each token given its window, for any model and tokenizer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from model_card.formats import gguf_writer
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.evaluation import bits_per_byte
from training.evaluation.bits_per_byte import BitsConfig, BitsPerByte, token_nats, windows
from training.evaluation.held_out_text import Text, TextConfig
from training.evaluation.models import EvaluatedModel

V, WINDOW, STRIDE = 400, 16, 6
SHAPE = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
MODELS = {
    "pleias": lambda: PleiasForCausalLM(PleiasConfig(**WIDE)),
    "llama, untied output matrix": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, tie_word_embeddings=False)),
    "gemma 2, logits capped after the head": lambda: Gemma2ForCausalLM(
        Gemma2Config(**WIDE, final_logit_softcapping=2.0, query_pre_attn_scalar=16)
    ),
    "gpt 2, learned positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    ),
}
EXACT = BitsConfig(window=WINDOW, stride=STRIDE, exact=True)
NASTY = "Où l'on voit, en 1789, la ſaiſon ¬\r\n\f\t… <|end_of_text|> d'où 12345  deux  espaces ѣ 💡"


def random_model(make):
    """Build a model whose weights are far from uniform attention and uniform predictions."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def sequences() -> list[list[int]]:
    """Sequences shorter than a window, of one token, as long as a window, and of several windows."""
    draw = torch.Generator().manual_seed(1)
    return [[1, *torch.randint(4, V, (n,), generator=draw).tolist()] for n in (5, 1, 16, 17, 50)]


@torch.no_grad()
def brute_force(model, ids: list[int], window: int, stride: int) -> list[float]:
    """Return -log p of each token but the first in double precision, with one forward pass per token."""
    nats = []
    for target in range(1, len(ids)):
        # The first window scores all its tokens; each later window moves by `stride`.
        stop = min(len(ids) - 1, window if target <= window else window + stride * -(-(target - window) // stride))
        start = max(0, stop - window)
        logits = model(torch.tensor([ids[start:target]])).logits[0, -1].double()
        nats.append(-float(logits[ids[target]] - logits.logsumexp(0)))
    return nats


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_windows_score_every_token_once_with_the_stated_context(length, window, data):
    stride = data.draw(st.integers(1, window))
    scored = []
    for start, first, stop in windows(length, window, stride):
        assert start <= first < stop <= length and stop - start <= window
        assert start == 0 or first - start >= window - stride
        scored += range(first, stop)
    assert scored == list(range(length))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_nats_equal_one_forward_pass_per_token(make, monkeypatch):
    model = random_model(make)
    monkeypatch.setattr(bits_per_byte, "BATCH_TOKENS", 40)  # several batches, some with padding
    monkeypatch.setattr(bits_per_byte, "LOGITS_BYTES", 4 * V * 7)  # several chunks of logits per batch
    scored = token_nats(model, sequences(), window=WINDOW, stride=STRIDE)
    for ids, nats in zip(sequences(), scored, strict=True):
        assert nats == pytest.approx(brute_force(model, ids, WINDOW, STRIDE), rel=1e-6, abs=1e-6)


def test_only_a_head_without_further_operations_is_plain():
    assert [bits_per_byte.plain_head(random_model(make)) for make in MODELS.values()] == [True, True, False, True]


def save(folder, model, tokenizer) -> str:
    model.save_pretrained(folder)
    PleiasTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts() -> list[Text]:
    return [
        Text("1", "fr", "Books", "old", NASTY * 4),
        Text("2", "fr", "Laws", "modern", "la vieille maison au bord de l'eau"),
        Text("3", "en", "Laws", "modern", "the old house stood by the river"),
        Text("4", "code", "Laws", "code", "x = 1"),
    ]


def test_a_record_and_its_metrics_follow_from_the_definition(tmp_path, tiny_tokenizer, texts):
    model = random_model(MODELS["pleias"])
    task = BitsPerByte(texts, TextConfig(), EXACT, None)
    record = task.measure(EvaluatedModel(save(tmp_path, model, tiny_tokenizer)))
    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    size = {text.identifier: len(text.text.encode()) for text in texts}
    expected = {}
    for text in texts:
        ids = [1, *tokenizer(text.text, add_special_tokens=False, split_special_tokens=True).input_ids]
        assert 2 not in ids  # the written form of end-of-text is text
        expected[text.identifier] = sum(brute_force(model, ids, WINDOW, STRIDE)) / math.log(2)
    for row in record["documents"]:
        assert row["bytes"] == size[row["identifier"]]
        assert row["nats"] / math.log(2) == pytest.approx(expected[row["identifier"]], rel=1e-6)
    metrics = {name: metric(metric.rows.sum(0)) for name, metric in task.metrics(record).items()}
    french = (expected["1"] + expected["2"]) / (size["1"] + size["2"])
    english = expected["3"] / size["3"]
    definition = {"mean": (french + english) / 2, "fr": french, "en": english, "code": expected["4"] / size["4"]}
    assert metrics == pytest.approx(definition, rel=1e-6)
    metric = task.details(record)["groups"]["collection"]["Laws"]
    laws = sum(expected[i] for i in "234") / sum(size[i] for i in "234")
    assert metric(metric.rows.sum(0)) == pytest.approx(laws, rel=1e-6)


def test_bf16_is_used_only_if_it_is_nearly_exact(tmp_path, tiny_tokenizer, texts, monkeypatch):
    monkeypatch.setattr(bits_per_byte, "compute_dtype", lambda *_: torch.bfloat16)
    subject = EvaluatedModel(save(tmp_path, random_model(MODELS["pleias"]), tiny_tokenizer))
    task = BitsPerByte(texts, TextConfig(), BitsConfig(), None)
    records = {}
    for limit in (1.0, 0.0):
        monkeypatch.setattr(bits_per_byte, "TINY", limit)
        records[limit] = task.measure(subject)
    change = records[1.0]["how"]["bf16 against fp32, relative"]
    assert [record["how"]["matrix products"] for record in records.values()] == ["bfloat16", "float32"]
    total = {limit: sum(row["nats"] for row in record["documents"]) for limit, record in records.items()}
    assert 0 < abs(change) < 1e-2 and total[1.0] / total[0.0] - 1 == pytest.approx(change, rel=1e-3)


def test_a_uniform_model_needs_log_of_the_vocabulary_size_per_token(tmp_path, tiny_tokenizer, texts):
    model = MODELS["pleias"]()
    torch.nn.init.zeros_(model.lm_head.weight)
    task = BitsPerByte(texts, TextConfig(), BitsConfig(exact=True), None)
    record = task.measure(EvaluatedModel(save(tmp_path, model, tiny_tokenizer)))
    for row in record["documents"]:
        assert row["nats"] == pytest.approx(row["tokens"] * math.log(V), rel=1e-6)


def test_a_gguf_file_has_the_ids_and_metrics_of_its_source_folder(tmp_path, tiny_tokenizer, texts):
    """transformers uses the pre-tokenizer of GPT-2, unless corrected by the file's metadata."""
    model = random_model(
        lambda: LlamaForCausalLM(LlamaConfig(**WIDE, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True))
    )
    folder = save(tmp_path / "folder", model, tiny_tokenizer)
    path = tmp_path / "tiny.gguf"
    gguf_writer.write_gguf(tmp_path / "folder", path, format="F32", name="tiny", license="cc0-1.0", languages=["fr"])
    gguf, original = EvaluatedModel(str(path)), EvaluatedModel(folder)
    for text in (NASTY, "a 1234 b12 c  d\n\n e's"):
        assert bits_per_byte.encode(gguf, text) == bits_per_byte.encode(original, text)
        marked = f"{text}<|text_start|>{text}"
        assert gguf.tokenizer(marked).input_ids[-9:] == original.tokenizer(marked).input_ids[-9:]
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(gguf.model(ids).logits, original.model(ids).logits)
    task = BitsPerByte(texts, TextConfig(), EXACT, None)
    gguf_record, original_record = task.measure(gguf), task.measure(original)
    assert gguf_record["documents"] == original_record["documents"]
    assert gguf_record["how"] == original_record["how"]
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for row, text in zip(gguf_record["documents"], texts, strict=True):
        nats = brute_force(reference, bits_per_byte.encode(original, text.text), WINDOW, STRIDE)
        assert row["nats"] == pytest.approx(sum(nats), rel=1e-6)
