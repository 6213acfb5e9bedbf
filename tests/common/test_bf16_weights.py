"""Models that read bf16 weights compute what fp32 computes, in any batch, and are unchanged after a `with` block."""

import shutil
from unittest import mock

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from modeling_pleias.modeling_pleias import CACHE
from training.common import bf16_weights, generation
from training.common.bf16_weights import (
    FEW_ROWS,
    Bf16Linear,
    _call,
    load_product,
    read_bf16_weights,
    reading_bf16_weights,
)
from training.common.generation import complete

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
FEMTO = "model_card/femto"
# Beginnings in the eight languages of the model, of different lengths.
PROMPTS = {
    "en": "The history of the city begins",
    "fr": "La maison au bord de la rivi\u00e8re",
    "es": "En el a\u00f1o 1810 el pueblo",
    "de": "Der alte Mann ging durch den Wald und",
    "it": "Nel mezzo della notte",
    "nl": "Het kind liep naar",
    "la": "In principio creavit Deus",
    "pt": "Era uma vez um rei que",
}
KINDS = [
    pytest.param(pair, id=pair[1].__name__)
    for pair in ((PleiasConfig, PleiasForCausalLM), (LlamaConfig, LlamaForCausalLM))
]
every_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(kind=(PleiasConfig, PleiasForCausalLM), **changes):
    """Return a tiny model in eval mode with fp32 weights that bf16 represents, except for its norms."""
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": 401, "tie_word_embeddings": True, "pad_token_id": 3}
    config = kind[0](**shape | changes)
    model = kind[1](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
            if parameter.ndim == 2:
                parameter.copy_(parameter.bfloat16())
    return model


def tokens(B: int, T: int) -> torch.Tensor:
    return torch.randint(4, 401, (B, T), generator=torch.Generator().manual_seed(1))


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 4, 7, FEW_ROWS, FEW_ROWS + 1, 100])
@pytest.mark.parametrize("N, K", [(1, 1), (37, 31), (3, 700), (1030, 1100)])
def test_the_product_is_that_of_fp64_within_the_rounding_of_fp32(rows, N, K):
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, K, generator=generator), torch.randn(N, K, generator=generator).bfloat16()
    layer = Bf16Linear(K, N, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.copy_(weight)
    exact, scale = x.double() @ weight.double().T, x.abs().double() @ weight.abs().double().T
    assert ((layer(x).double() - exact).abs() <= 2e-6 * scale).all()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert rows > FEW_ROWS or torch.equal(layer(x), layer(x.clone()))
        several = layer(x)
        torch.set_num_threads(1)
        assert rows > FEW_ROWS or torch.equal(layer(x), several)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.no_grad()
def test_logits_are_those_of_fp32_and_the_weights_take_two_bytes(kind, dtype):
    # Biases, and a head that is not the embedding.
    plain = tiny(kind, attention_bias=True, tie_word_embeddings=False).to(dtype).float()
    model = read_bf16_weights(tiny(kind, attention_bias=True, tie_word_embeddings=False).to(dtype))
    assert sum(type(module) is Bf16Linear for module in model.modules()) == 2 * 7 + 1
    for B, T in ((1, 1), (3, 5), (4, 40)):
        actual, expected = model(tokens(B, T)).logits, plain(tokens(B, T)).logits
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size < 1.2 * 2 * model.num_parameters()


@needs_compiler
@hypothesis.settings(max_examples=20)
@given(
    kind=st.sampled_from([(PleiasConfig, PleiasForCausalLM), (LlamaConfig, LlamaForCausalLM)]),
    B=st.integers(1, 4),
    T=st.integers(1, 9),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 70)),
    padding=st.integers(0, 3),
    hidden_act=st.sampled_from(["silu", "silu", "silu", "gelu"]),
)
def test_a_layer_computes_in_c_what_its_modules_compute(kind, B, T, heads, sizes, padding, hidden_act):
    (H, G), (half, unit, width) = heads, sizes
    shape = {"hidden_size": unit * H, "intermediate_size": width, "head_dim": 2 * half, "hidden_act": hidden_act}
    model = read_bf16_weights(tiny(kind, **shape, num_attention_heads=H, num_key_value_heads=G))
    seen, outputs = torch.ones(B, T + 1, dtype=torch.long), []
    seen[B // 2, : min(padding, T - 1)] = 0
    for recorded in (True, False):  # with gradients enabled a layer calls its modules
        with torch.set_grad_enabled(recorded), mock.patch.object(bf16_weights, "_call", wraps=_call) as calls:
            first = model(tokens(B, T), attention_mask=seen[:, :T], use_cache=True)
            second = model(tokens(B, 1), attention_mask=seen, use_cache=True, **{CACHE: getattr(first, CACHE)})
            outputs.append(torch.cat([first.logits, second.logits], 1)[seen.bool()])
        passes = 0 if recorded or hidden_act != "silu" else 1 + (B * T <= FEW_ROWS)
        assert calls.call_count == 2 * 2 * passes  # two functions of two layers
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5 * outputs[0].abs().max().item())


@needs_compiler
@torch.no_grad()
def test_a_module_of_a_layer_is_called_if_it_has_a_hook_or_replaces_a_converted_one():
    model, ids, calls = read_bf16_weights(tiny()), tokens(1, 3), []
    mlp = model.model.layers[0].mlp
    hook = mlp.register_forward_hook(lambda *args: calls.append(args))
    hooked = model(ids).logits
    hook.remove()
    torch.testing.assert_close(model(ids).logits, hooked, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    mlp.down_proj = torch.nn.Linear(100, 48)
    with torch.enable_grad():
        expected = model(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, hooked, atol=1e-2)


@needs_compiler
@every_kind
def test_a_left_padded_batch_and_a_continued_cache_generate_the_text_of_fp32(kind):
    plain, model = tiny(kind), read_bf16_weights(tiny(kind))
    ids, seen = tokens(3, 9), torch.arange(9) >= torch.tensor([[0], [4], [6]])
    batch = {"input_ids": ids.where(seen, 3), "attention_mask": seen.long(), "max_new_tokens": 24}
    for settings in ({}, {"repetition_penalty": 1.2}, {"num_beams": 2}):
        assert torch.equal(model.generate(**batch, **settings), plain.generate(**batch, **settings))
    results = []
    for generator in (plain, model):
        first = generator.generate(ids[:1], max_new_tokens=5, return_dict_in_generate=True)
        results.append(generator.generate(first.sequences, max_new_tokens=7, **{CACHE: getattr(first, CACHE)}))
    assert torch.equal(*results)


@needs_compiler
@torch.no_grad()
def test_femto_generates_the_text_of_fp32_in_eight_languages_and_logits_within_bf16_rounding():
    tokenizer = AutoTokenizer.from_pretrained(FEMTO, padding_side="left")
    batch = tokenizer(list(PROMPTS.values()), return_tensors="pt", padding=True)
    plain, narrow = (PleiasForCausalLM.from_pretrained(FEMTO, dtype=x).eval() for x in (torch.float32, torch.bfloat16))
    french, latin = (tokenizer(PROMPTS[name], return_tensors="pt") for name in ("fr", "la"))
    texts = ((batch, 12), (french, 64), (latin, 64))
    expected = [plain.generate(**prompts, max_new_tokens=count) for prompts, count in texts]
    logits = [model(**batch).logits[:, -1] for model in (plain, narrow)]
    model = read_bf16_weights(narrow)
    for (prompts, count), ids in zip(texts, expected, strict=True):
        assert torch.equal(model.generate(**prompts, max_new_tokens=count), ids)
    change = (model(**batch).logits[:, -1] - logits[0]).abs().max()
    assert change < 0.01 * (logits[1] - logits[0]).abs().max()  # a hundredth of what bf16 arithmetic changes


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_model_is_the_same_after_the_block_even_if_it_fails(dtype):
    model = tiny().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(KeyError), reading_bf16_weights(model):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert type(model.lm_head) is Bf16Linear and model.dtype == torch.bfloat16
        raise KeyError
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@needs_compiler
@every_kind
@torch.no_grad()
def test_a_converted_model_is_not_converted_again(kind):
    model = read_bf16_weights(tiny(kind))
    ids, modules = tokens(2, 9), [type(module) for module in model.modules()]
    before = model(ids).logits
    with reading_bf16_weights(model):
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(read_bf16_weights(model)(ids).logits, before)
    assert [type(module) for module in model.modules()] == modules


@needs_compiler
def test_weights_that_bf16_does_not_represent_remain_in_fp32():
    model = tiny()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-4
    read_bf16_weights(model)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert type(model.model.layers[1].mlp.up_proj) is Bf16Linear
    assert model(tokens(1, 5)).logits.isfinite().all()


@needs_compiler
def test_a_converted_model_is_saved_and_loaded_with_equal_weights(tmp_path):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read_bf16_weights(model).save_pretrained(tmp_path)
    loaded = PleiasForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())


@needs_compiler
def test_gradients_of_inputs_are_those_of_fp32():
    plain, model = tiny(), read_bf16_weights(tiny())
    gradients = []
    for reader in (plain, model):
        embeds = plain.get_input_embeddings()(tokens(2, 6)).detach().requires_grad_()
        reader(inputs_embeds=embeds).logits.square().mean().backward()
        gradients.append(embeds.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_the_model_computes_in_fp32(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bf16_weights, "load_product", load_product.__wrapped__)
    model = read_bf16_weights(tiny().bfloat16())
    assert model.dtype == torch.float32
    assert torch.equal(model(tokens(2, 6)).logits, tiny().bfloat16().float()(tokens(2, 6)).logits)
    with reading_bf16_weights(model):
        assert model.dtype == torch.float32


@needs_compiler
def test_completions_are_those_without_it_and_the_model_reads_bf16_weights(monkeypatch, tiny_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    model, prompts = tiny(vocab_size=len(tokenizer)), ["the old house", "", "la vieille maison au bord de l'eau"]
    options = {"max_new_tokens": 12, "repetition_penalty": 1.2}
    expected, calls = complete(model, tokenizer, prompts, **options), []
    forward = Bf16Linear.forward
    monkeypatch.setattr(Bf16Linear, "forward", lambda self, x: (calls.append(1), forward(self, x))[1])
    monkeypatch.setattr(generation, "SMALL", 0)
    assert complete(model, tokenizer, prompts, **options) == expected
    assert calls and model.dtype == torch.float32
