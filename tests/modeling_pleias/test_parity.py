"""`LlamaForCausalLM` is the oracle: Pleias gives the same bits on equal weights, and each opens the other's files."""

import copy
import logging
import warnings

import pytest
import torch
from transformers import AutoConfig, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import is_optimum_quanto_available

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasForSequenceClassification, PleiasModel
from modeling_pleias.modeling_pleias import CACHE, PARTS, PleiasLinear

SHAPES = {
    "grouped-query": {"num_key_value_heads": 2},
    "as many key/value heads as heads": {"num_key_value_heads": 4},
    "heads wider than hidden size / heads": {"num_key_value_heads": 1, "head_dim": 32},
}
B, T, VOCABULARY, PAD = 3, 19, 128, 3
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def tiny(**changes) -> dict:
    """Return arguments of a tiny config for Pleias and Llama."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
    }
    return {**shape, **changes}


def pair(attention="sdpa", dtype=torch.float32, **shape) -> tuple[PleiasForCausalLM, LlamaForCausalLM]:
    """Return Pleias and Llama of one config with equal random weights and generation settings, in eval mode."""
    torch.manual_seed(0)
    models = []
    for config_class, model_class in ((PleiasConfig, PleiasForCausalLM), (LlamaConfig, LlamaForCausalLM)):
        config = config_class(**tiny(**shape), attn_implementation=attention, dtype=dtype)
        models.append(model_class._from_config(config, dtype=dtype).eval())
    pleias, llama = models
    with torch.no_grad():
        # Wide enough that attention is far from uniform, with norms that are not 1.
        for parameter in pleias.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    llama.load_state_dict(pleias.state_dict(), strict=True)
    llama.generation_config = copy.deepcopy(pleias.generation_config)
    return pleias, llama


def tokens() -> torch.Tensor:
    """Return ids (B, T) without special ones, the same in every call."""
    return torch.randint(4, VOCABULARY, (B, T), generator=torch.Generator().manual_seed(1))


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Return the keywords of a forward pass with a loss, for one kind of use."""
    ids = tokens()
    batch = {"input_ids": ids, "labels": ids}
    if kind == "left padding":
        seen = torch.arange(T) >= torch.tensor([[0], [4], [9]])
        labels = ids.where(seen, -100)
        batch = {"input_ids": ids.where(seen, PAD), "attention_mask": seen.long(), "labels": labels}
    elif kind == "packed positions":
        position_ids = torch.cat((torch.arange(7), torch.arange(T - 7))).expand(B, T)
        batch |= {"position_ids": position_ids, "use_cache": False}
    elif kind == "shifted labels":
        batch |= {"shift_labels": ids.roll(-1, dims=1), "num_items_in_batch": torch.tensor(B * T)}
    return batch


KINDS = ["plain", "left padding", "packed positions", "shifted labels"]


def differences(pleias: torch.nn.Module, llama: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
    """Return names of the outputs and gradients that are not bit-equal; an empty list is parity."""
    results = []
    for model in (pleias, llama):
        model.zero_grad()
        out = model(**batch, output_hidden_states=True, output_attentions=model.config._attn_implementation == "eager")
        out.loss.backward()
        result = {"logits": out.logits, "loss": out.loss}
        result |= {f"hidden state {i}": x for i, x in enumerate(out.hidden_states)}
        result |= {f"attention {i}": x for i, x in enumerate(out.attentions or ())}
        result |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
        results.append(result)
    actual, oracle = results
    assert actual.keys() == oracle.keys()
    return [name for name in oracle if not torch.equal(actual[name], oracle[name])]


def test_parameters_have_llamas_names_shapes_and_order():
    pleias, llama = pair()
    for tensors in ("named_parameters", "named_buffers"):
        actual, oracle = ([(name, x.shape) for name, x in getattr(model, tensors)()] for model in (pleias, llama))
        assert actual == oracle != []
    assert list(pleias.state_dict()) == list(llama.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@every_dtype
@every_attention
@every_shape
def test_logits_loss_states_attentions_and_gradients_are_bit_equal(shape, attention, dtype, kind):
    assert differences(*pair(attention, dtype, **shape), inputs(kind)) == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("kind", KINDS)
@every_attention
def test_gradients_are_bit_equal_under_activation_checkpointing(attention, kind):
    pleias, llama = pair(attention)
    plain = differences(pleias.train(), llama.train(), inputs(kind))
    full = {name: parameter.grad.clone() for name, parameter in pleias.named_parameters()}
    for model in (pleias, llama):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.model.gradient_checkpointing
    assert plain == differences(pleias, llama, inputs(kind)) == []
    assert all(torch.equal(parameter.grad, full[name]) for name, parameter in pleias.named_parameters())


@every_attention
def test_attention_dropout_samples_the_same_numbers(attention):
    results = []
    for model in pair(attention, attention_dropout=0.3):
        torch.manual_seed(0)
        results.append(model.train()(tokens()).logits)
    assert torch.equal(*results)
    assert not torch.equal(results[0], model.eval()(tokens()).logits)


@pytest.mark.parametrize("rope", ["linear", "dynamic", "yarn", "llama3"])
def test_an_extended_context_is_bit_equal(rope):
    rope_parameters = {
        "rope_type": rope,
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    keys = {"llama3": rope_parameters.keys(), "yarn": list(rope_parameters)[:4]}.get(rope, list(rope_parameters)[:3])
    pleias, llama = pair(rope_parameters={key: rope_parameters[key] for key in keys}, max_position_embeddings=16)
    assert differences(pleias, llama, inputs("plain")) == []
    assert not torch.equal(pleias(tokens()).logits, pair(max_position_embeddings=16)[0](tokens()).logits)


def test_embeddings_instead_of_ids_and_selected_logits_are_bit_equal():
    pleias, llama = pair()
    embeds = pleias.get_input_embeddings()(tokens())
    full = pleias(tokens()).logits
    for keep, rows in ((0, slice(None)), (2, slice(-2, None)), (torch.tensor([1, 5]), [1, 5])):
        actual, oracle = (model(inputs_embeds=embeds, logits_to_keep=keep).logits for model in (pleias, llama))
        assert torch.equal(actual, oracle)
        torch.testing.assert_close(actual, full[:, rows])


GENERATION = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("settings", GENERATION.values(), ids=GENERATION)
@every_dtype
@every_attention
def test_generation_from_a_left_padded_batch_is_bit_equal(attention, dtype, settings):
    batch = inputs("left padding")
    results = []
    for model in pair(attention, dtype):
        torch.manual_seed(0)
        out = model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=12,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
        results.append((out.sequences, torch.stack(out.scores)))
    (actual, actual_scores), (oracle, oracle_scores) = results
    assert actual.shape[1] > T
    assert torch.equal(actual, oracle) and torch.equal(actual_scores, oracle_scores)


def greedy(model, ids, **settings) -> torch.Tensor:
    """Generate twelve greedy tokens after `ids` (1, T) with a full forward pass for each: no cache, no `generate`."""
    for _ in range(12):
        scores = model(ids, use_cache=False, **settings).logits[:, -1]
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    return ids


def continued_from_a_cache(model, ids) -> torch.Tensor:
    """Generate five tokens, then seven more from the cache that the first call returned."""
    first = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True)
    return model.generate(first.sequences, max_new_tokens=7, **{CACHE: getattr(first, CACHE)})


def assisted(model, ids) -> torch.Tensor:
    """Generate with a smaller model that proposes tokens."""
    torch.manual_seed(1)
    assistant = type(model)(type(model.config)(**tiny(num_hidden_layers=1))).eval()
    return model.generate(ids, max_new_tokens=12, assistant_model=assistant)


DECODING = {
    "a dynamic cache": lambda model, ids: model.generate(ids, max_new_tokens=12),
    "a static cache": lambda model, ids: model.generate(
        ids, max_new_tokens=12, cache_implementation="static", disable_compile=True
    ),
    "a quantised cache": lambda model, ids: model.generate(
        ids, max_new_tokens=12, cache_implementation="quantized", cache_config={"residual_length": 64}
    ),
    "no cache": lambda model, ids: model.generate(ids, max_new_tokens=12, use_cache=False),
    "a cache of an earlier call": continued_from_a_cache,
    "an assistant model": assisted,
    "prompt look-up": lambda model, ids: model.generate(ids, max_new_tokens=12, prompt_lookup_num_tokens=3),
}


@pytest.mark.parametrize("how", DECODING)
def test_every_way_of_decoding_generates_the_greedy_text_of_llama_without_a_cache(how):
    if how == "a quantised cache" and not is_optimum_quanto_available():
        pytest.skip("a quantised cache needs optimum-quanto")
    pleias, llama = pair()
    for model in (pleias, llama):
        model.generation_config.update(repetition_penalty=1.0, eos_token_id=None)
    ids = tokens()[:1]
    assert torch.equal(DECODING[how](pleias, ids), greedy(llama, ids))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_a_left_padded_batch_is_continued_the_same_with_and_without_a_cache(cache, settings):
    pleias, llama = pair()
    batch = {key: inputs("left padding")[key] for key in ("input_ids", "attention_mask")}
    uncached = llama.generate(**batch, max_new_tokens=12, use_cache=False, **settings)
    assert torch.equal(pleias.generate(**batch, max_new_tokens=12, **cache, **settings), uncached)


def test_the_cache_is_accepted_by_its_old_and_its_new_name():
    pleias, llama = pair()
    ids = tokens()
    for name in ("cache", "past_key_values"):
        cache = pleias(ids[:, :-1], use_cache=True)[CACHE]
        assert cache.get_seq_length() == T - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from 5.24 on transformers warns of the old name
            last = pleias(ids[:, -1:], use_cache=True, **{name: cache}).logits[:, 0]
        torch.testing.assert_close(last, llama(ids).logits[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [PleiasForCausalLM, PleiasForSequenceClassification, PleiasModel])
def test_a_keyword_that_no_version_of_transformers_declares_is_refused(kind):
    model = kind(PleiasConfig(**tiny()))
    with pytest.raises(TypeError, match="unexpected keyword arguments: past_states. If transformers .* 5.17 to 5.24"):
        model(input_ids=tokens()[:1], past_states=DynamicCache(config=model.config))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_fully_compiled_graph_is_within_1e_6_of_eager(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = PleiasForCausalLM(PleiasConfig(**tiny(num_hidden_layers=2))).eval()
    with torch.no_grad():
        expected = model(**inputs("plain"))
        compiled = torch.compile(model, fullgraph=True, backend=backend)(**inputs("plain"))
    torch.testing.assert_close(compiled.logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled.loss, expected.loss, rtol=0, atol=1e-6)


def parameters(config: PleiasConfig) -> int:
    with torch.device("meta"):
        return PleiasForCausalLM(config).num_parameters()


def test_the_three_sizes_have_exactly_the_published_numbers_of_parameters():
    assert parameters(PleiasConfig.pico_350m()) == 353_424_384
    assert parameters(PleiasConfig.nano_1_2b()) == 1_195_468_800
    assert parameters(PleiasConfig.base_3b()) == 3_211_926_528


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("direction", ["llama to pleias", "pleias to llama"])
def test_a_checkpoint_of_one_loads_into_the_other_without_a_missing_or_unexpected_key(tmp_path, direction, tied):
    source, other = pair(tie_word_embeddings=tied)
    if direction == "llama to pleias":
        source, other = other, source
    source.save_pretrained(tmp_path)
    loaded, info = type(other).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(loaded(tokens()).logits, source(tokens()).logits)


def test_a_folder_of_model_type_llama_loads_silently_and_keeps_every_setting(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    _, llama = pair(rms_norm_eps=1e-6, tie_word_embeddings=False, pad_token_id=None, attention_bias=True)
    llama.save_pretrained(tmp_path)
    config = PleiasForCausalLM.from_pretrained(tmp_path).config
    assert caplog.messages == []
    # Including model_type: a folder saved again is of type pleias. A missing padding id becomes [PAD].
    expected = llama.config.to_dict() | {"model_type": "pleias", "pad_token_id": PAD}
    expected.pop("_name_or_path")
    assert {key: value for key, value in config.to_dict().items() if key in expected} == expected
    # AutoConfig still returns Llama for this model_type.
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlamaConfig


@every_shape
def test_without_padding_sdpa_gets_is_causal_no_mask_and_no_repeated_keys(monkeypatch, shape):
    calls = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        calls.append((key.shape[1], kwargs))
        return sdpa(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    pleias, _ = pair("sdpa", **shape)
    for batch in (inputs("plain"), {"input_ids": tokens(), "attention_mask": torch.ones(B, T)}):
        calls.clear()
        pleias(**batch)
        assert len(calls) == pleias.config.num_hidden_layers
        for key_heads, kwargs in calls:
            assert kwargs["attn_mask"] is None and kwargs["is_causal"] is True
            assert key_heads == pleias.config.num_key_value_heads
            assert kwargs.get("enable_gqa", False) is (key_heads != pleias.config.num_attention_heads)


def test_the_comparison_detects_one_weight_of_any_parameter():
    pleias, llama = pair(num_hidden_layers=1)
    row = tokens()[0, 0]
    for name, parameter in pleias.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter[row if name.endswith("embed_tokens.weight") else 0].view(-1)[0] += 1e-3
        assert "logits" in differences(pleias, llama, inputs("plain")), name
        with torch.no_grad():
            parameter.copy_(before)
    assert differences(pleias, llama, inputs("plain")) == []


@every_attention
def test_the_comparison_detects_the_softmax_scale_of_one_layer(attention):
    pleias, llama = pair(attention)
    pleias.model.layers[1].self_attn.scaling *= 1.001
    names = set(differences(pleias, llama, inputs("plain")))
    assert {"logits", "loss", "hidden state 2"} <= names and "hidden state 1" not in names


def test_the_comparison_detects_another_setting():
    _, llama = pair()
    for change in ({"rope_theta": 10_001.0}, {"rms_norm_eps": 1.1e-5}, {"hidden_act": "gelu"}):
        pleias = PleiasForCausalLM(PleiasConfig(**tiny(**change))).eval()
        pleias.load_state_dict(llama.state_dict(), strict=True)
        assert "logits" in differences(pleias, llama, inputs("plain")), change


@every_dtype
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_one_token_differs_in_the_order_of_additions_alone(dtype, bias):
    torch.manual_seed(0)
    layer = PleiasLinear(600, 4 * PARTS, bias=bias, dtype=dtype)
    stock = torch.nn.Linear(600, 4 * PARTS, bias=bias, dtype=dtype)
    stock.load_state_dict(layer.state_dict())
    enabled = torch.backends.mkldnn.enabled
    for shape in ((600,), (1, 600), (1, 1, 600)):
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            actual, exact = layer(x), torch.nn.functional.linear(x.double(), *(p.double() for p in layer.parameters()))
            assert actual.shape == exact.shape and actual.dtype == dtype
            rounding = 1e-5 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(actual.double(), exact, rtol=rounding, atol=rounding)
        assert torch.equal(layer(x), stock(x))  # with gradients: the stock layer, bit for bit
    two = torch.randn(2, 600, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(layer(two), stock(two))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(two[:1].float()), stock(two[:1].float()))
    assert torch.backends.mkldnn.enabled is enabled


@every_dtype
def test_one_sequence_is_generated_as_llama_generates_it(dtype):
    pleias, llama = pair(dtype=dtype)
    for count in (1, 7):
        ids = tokens()[:1, :count]
        assert torch.equal(pleias.generate(ids, max_new_tokens=20), llama.generate(ids, max_new_tokens=20))


@every_dtype
@every_shape
def test_a_token_attends_with_the_query_heads_of_a_key_as_rows_and_within_the_rounding_of_llama(
    monkeypatch, shape, dtype
):
    queries, sdpa = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, *args, **kwargs):
        queries.append(query.shape)
        return sdpa(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    pleias, llama = pair(dtype=dtype, **shape)
    H, G, K = (getattr(pleias.config, x) for x in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    for ids in (tokens(), tokens()[:1]):
        outputs = []
        for model, recorded in ((llama, True), (pleias, True), (llama, False), (pleias, False)):
            with torch.set_grad_enabled(recorded):
                cache = model(ids[:, :-1], use_cache=True)[CACHE]
                outputs.append(model(ids[:, -1:], use_cache=True, **{CACHE: cache}).logits)
        assert queries[-1] == (len(ids), G, H // G, K)
        assert torch.equal(*outputs[:2])  # with gradients: as Llama, bit for bit
        rounding = 1e-5 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(outputs[3], outputs[2], rtol=0, atol=rounding * outputs[2].abs().max().item())
