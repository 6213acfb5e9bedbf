"""The model and its heads: declared features, initialisation, decoding, and loading with transformers."""

import copy
import inspect
import logging
from importlib.metadata import requires

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_pleias import (
    PleiasConfig,
    PleiasForCausalLM,
    PleiasForQuestionAnswering,
    PleiasForSequenceClassification,
    PleiasForTokenClassification,
    PleiasModel,
    PleiasTokenizer,
)
from modeling_pleias.configuration_pleias import NEWEST, OLDEST, check_transformers_version
from modeling_pleias.modeling_pleias import CACHE

# Auto class, this project's class, Llama's.
CLASSES = [
    (AutoModel, PleiasModel, LlamaModel),
    (AutoModelForCausalLM, PleiasForCausalLM, LlamaForCausalLM),
    (AutoModelForSequenceClassification, PleiasForSequenceClassification, LlamaForSequenceClassification),
    (AutoModelForTokenClassification, PleiasForTokenClassification, LlamaForTokenClassification),
    (AutoModelForQuestionAnswering, PleiasForQuestionAnswering, LlamaForQuestionAnswering),
]
every_class = pytest.mark.parametrize(("auto", "pleias", "llama"), CLASSES, ids=lambda kind: kind.__name__)
IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 3, 10, 11, 12]])
MASK = (IDS != 3).long()


def tiny(**changes) -> PleiasConfig:
    shape = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return PleiasConfig(**{**shape, **heads, **changes})


def seeded(model_class, config: PleiasConfig):
    torch.manual_seed(0)
    return model_class(config).eval()


# Declared features


@every_class
def test_the_auto_class_builds_loads_and_saves_it(tmp_path, auto, pleias, llama):
    model = auto.from_config(tiny(num_labels=3)).eval()
    assert type(model) is pleias
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is pleias and loaded.config.architectures == [pleias.__name__]
    assert torch.equal(loaded(IDS, attention_mask=MASK)[0], model(IDS, attention_mask=MASK)[0])


@every_class
def test_it_declares_what_llama_declares(auto, pleias, llama):
    model, oracle = pleias(tiny()), llama(llama.config_class(**tiny().to_dict()))
    for plan in ("tp_plan", "pp_plan", "_fsdp_plan"):
        # LlamaForQuestionAnswering alone calls its body `transformer`.
        expected = {name.replace("transformer.", "model."): how for name, how in getattr(oracle, plan).items()}
        assert getattr(model, plan) == expected != {}, plan
    for ability in (
        "supports_gradient_checkpointing",
        "_supports_flash_attn",
        "_supports_sdpa",
        "_supports_flex_attn",
        "_supports_attention_backend",
        "_can_compile_fullgraph",
        "_skip_keys_device_placement",
        "main_input_name",
    ):
        assert getattr(model, ability) == getattr(oracle, ability) is not False, ability
    assert {kind.replace("Pleias", "Llama") for kind in model._no_split_modules} == set(oracle._no_split_modules)
    assert model._can_record_outputs.keys() == oracle._can_record_outputs.keys()
    assert model.can_generate() == oracle.can_generate() == (pleias is PleiasForCausalLM)
    assert (getattr(pleias, "_tied_weights_keys", None)) == getattr(llama, "_tied_weights_keys", None)
    names = [CACHE if name == "cache" else name for name in inspect.signature(pleias.forward).parameters]
    assert names == list(inspect.signature(llama.forward).parameters)


def test_plans_name_modules_that_exist():
    model = PleiasForCausalLM(tiny())
    names = {name.replace(".0.", ".*.") for name, _ in model.named_modules()} | {"model.layers.*"}
    assert set(model.tp_plan) <= names and len(model.tp_plan) == 9
    assert set(model._fsdp_plan) == {"model.embed_tokens", "model.layers.*", "model.norm", "lm_head"}
    assert set(model.pp_plan) == {"model.embed_tokens", "model.layers", "model.norm", "lm_head"}


def test_the_tied_head_is_the_embedding_and_is_saved_once(tmp_path):
    model = PleiasForCausalLM(tiny())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert PleiasForCausalLM(tiny(tie_word_embeddings=False)).lm_head.weight is not model.model.embed_tokens.weight


def test_it_records_a_state_per_layer_and_one_before_and_a_map_per_layer():
    model = PleiasModel._from_config(tiny(), attn_implementation="eager")
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    assert [tuple(x.shape) for x in out.hidden_states] == [(2, 5, 64)] * 3
    assert [tuple(x.shape) for x in out.attentions] == [(2, 4, 5, 5)] * 2
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert all(torch.equal(weights, weights.tril()) for weights in out.attentions)


def test_ids_or_embeddings_but_not_both():
    for kwargs in ({}, {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 5, 64)}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            PleiasModel(tiny())(**kwargs)


# Computation, beyond test_parity.py


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_do_not_see_each_other(attention):
    model = PleiasForCausalLM._from_config(tiny(), attn_implementation=attention).eval()
    row = torch.arange(5, 20).unsqueeze(0)
    positions = torch.cat((torch.arange(6), torch.arange(9))).unsqueeze(0)
    packed = model(row, position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(part).logits for part in row.split((6, 9), dim=1)], dim=1)
    torch.testing.assert_close(packed, apart)
    assert not torch.allclose(packed, model(row).logits)


def test_a_pass_without_positions_looks_at_no_value_of_a_tensor():
    """Looking whether positions restart would wait for a GPU; tensors of the device `meta` have no values."""
    with torch.device("meta"):
        model, row = PleiasForCausalLM(tiny()), torch.zeros(2, 5, dtype=torch.long)
        assert model(row, use_cache=False).logits.shape == (2, 5, 320)
        with pytest.raises((NotImplementedError, RuntimeError), match="meta tensors"):
            model(row, position_ids=torch.arange(5).expand(2, 5), use_cache=False)


def test_left_padding_changes_nothing():
    model = seeded(PleiasForCausalLM, tiny())
    alone = model(IDS[1:, 2:]).logits
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    padded = model(IDS, attention_mask=MASK, position_ids=positions).logits[1:, 2:]
    torch.testing.assert_close(padded, alone)


def test_no_token_sees_a_later_one():
    model = seeded(PleiasForCausalLM, tiny())
    changed = IDS.clone()
    changed[:, 3] += 1
    before, after = model(IDS).logits, model(changed).logits
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3:], after[:, 3:])


@pytest.mark.slow
def test_flex_attention_agrees_with_sdpa():
    model = seeded(PleiasForCausalLM, tiny())
    other = copy.deepcopy(model)
    other.set_attn_implementation("flex_attention")
    with torch.no_grad():
        expected, flex = (m(IDS, attention_mask=MASK).logits[MASK.bool()] for m in (model, other))
    torch.testing.assert_close(flex, expected)


def test_the_model_exports_to_a_graph_that_accepts_other_batches_and_lengths():
    model = seeded(PleiasForCausalLM, tiny(use_cache=False))
    # Not a named Dim: torch 2.11 does not see that 16 * time <= 32 * time, a guard of this model, always holds.
    sizes = ({0: torch.export.Dim.DYNAMIC(max=64), 1: torch.export.Dim.DYNAMIC(max=128)},) * 2
    example = torch.randint(4, 320, (3, 11))
    program = torch.export.export(model, (example, torch.ones_like(example)), dynamic_shapes=sizes)
    torch.testing.assert_close(program.module()(IDS, MASK).logits, model(IDS, attention_mask=MASK).logits)


# The other heads


@every_class
def test_a_pretrained_body_loads_into_every_head_and_lacks_only_the_head(tmp_path, auto, pleias, llama):
    pretrained = PleiasForCausalLM(tiny())
    pretrained.save_pretrained(tmp_path)
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    heads = {PleiasModel: set(), PleiasForCausalLM: set(), PleiasForQuestionAnswering: {"qa_outputs"}}
    assert {key.split(".")[0] for key in info["missing_keys"]} == heads.get(pleias, {"score"})
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    body = model if pleias is PleiasModel else getattr(model, model.base_model_prefix)
    assert body.state_dict().keys() == pretrained.model.state_dict().keys()
    assert all(torch.equal(x, pretrained.model.state_dict()[key]) for key, x in body.state_dict().items())


@every_class
def test_a_head_scores_as_llamas_does(auto, pleias, llama):
    model = seeded(pleias, tiny(num_labels=3))
    oracle = llama(llama.config_class(**model.config.to_dict())).eval()
    state = model.state_dict()
    if pleias is PleiasForQuestionAnswering:
        state = {key.replace("model.", "transformer."): x for key, x in state.items()}
    oracle.load_state_dict(state, strict=True)
    targets = {
        PleiasModel: {},
        PleiasForCausalLM: {"labels": IDS},
        PleiasForSequenceClassification: {"labels": torch.tensor([0, 2])},
        PleiasForTokenClassification: {"labels": IDS % 3},
        PleiasForQuestionAnswering: {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
    }[pleias]
    out, expected = (m(IDS, attention_mask=MASK, **targets).to_tuple() for m in (model, oracle))
    assert all(torch.equal(x, y) for x, y in zip(out, expected, strict=True) if isinstance(x, torch.Tensor))


@pytest.mark.parametrize(
    "head, labels",
    [
        (PleiasForSequenceClassification, {"labels": 1}),
        (PleiasForTokenClassification, {"labels": [0, 1, 1, 0]}),
        (PleiasForQuestionAnswering, {"start_positions": 1, "end_positions": 2}),
        (PleiasForCausalLM, {"labels": [5, 6, 7, 8]}),
    ],
)
def test_accumulated_batches_train_as_one_batch_does(head, labels, tmp_path):
    rows = [{"input_ids": [5 + i, 6, 7, 8], "attention_mask": [1] * 4, **labels} for i in range(8)]
    logged, tuned = [], []
    for batch, accumulated in ((8, 1), (2, 4)):
        arguments = TrainingArguments(
            output_dir=tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            **{"max_steps": 1, "logging_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True},
            **{"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_strategy": "no"},
        )
        trainer = Trainer(seeded(head, tiny(classifier_dropout=0.0)), arguments, train_dataset=rows)
        trainer.train()
        logged.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
        tuned.append(trainer.model.state_dict())
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)
    for name, tensor in tuned[0].items():
        torch.testing.assert_close(tuned[1][name], tensor, rtol=0, atol=1e-6)


def test_a_sequence_is_scored_by_its_last_token_that_is_not_padding():
    model = seeded(PleiasForSequenceClassification, tiny(num_labels=3))
    right = torch.tensor([[10, 11, 12, 3, 3]])
    alone = model(right[:, :3]).logits
    torch.testing.assert_close(model(right, attention_mask=(right != 3).long()).logits, alone)
    torch.testing.assert_close(model(IDS[1:], attention_mask=MASK[1:]).logits, alone, rtol=1e-3, atol=1e-3)


# Initialisation


@pytest.fixture(scope="module")
def initialised() -> PleiasForCausalLM:
    """Big enough that a sample's standard deviation is within 2% of the distribution's (over 6 sigma)."""
    shape = {"hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 2048}
    return seeded(PleiasForCausalLM, tiny(**shape, tie_word_embeddings=False))


def test_a_new_model_is_initialised_as_in_pretraining(initialised):
    residual = 0.025 / 6**0.5
    kinds = set()
    for name, weight in initialised.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        kinds.add(name.split(".")[-2])
        rows = weight[torch.arange(len(weight)) != 3] if "embed_tokens" in name else weight
        expected = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.025
        assert rows.std().item() == pytest.approx(expected, rel=0.02), name
        assert abs(rows.mean().item()) < 5 * expected / rows.numel() ** 0.5, name
    assert kinds == {"embed_tokens", "lm_head", *(f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down"))}
    assert torch.equal(initialised.model.embed_tokens.weight[3], torch.zeros(384))


def test_the_config_decides_the_standard_deviation():
    model = seeded(PleiasModel, tiny(hidden_size=384, pretraining_init_std=0.1, num_hidden_layers=2))
    assert model.layers[0].mlp.gate_proj.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert model.layers[1].self_attn.o_proj.weight.std().item() == pytest.approx(0.05, rel=0.02)


def test_tensors_that_a_checkpoint_lacks_are_initialised_the_same_and_the_others_loaded(tmp_path, initialised):
    state = {key: x.clone() for key, x in initialised.state_dict().items() if "layers.1.mlp" not in key}
    state["model.embed_tokens.weight"][3] = 0.5  # a padding row that training has changed
    initialised.save_pretrained(tmp_path, state_dict=state)
    loaded, info = PleiasForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
    mlp = loaded.model.layers[1].mlp
    assert mlp.down_proj.weight.std().item() == pytest.approx(0.025 / 6**0.5, rel=0.02)
    assert mlp.up_proj.weight.std().item() == pytest.approx(0.025, rel=0.02)
    assert all(torch.equal(x, state[key]) for key, x in loaded.state_dict().items() if key in state)


def test_a_tied_checkpoint_that_contains_only_the_head_keeps_every_row(tmp_path):
    model = seeded(PleiasForCausalLM, tiny())
    state = {key: x.clone() for key, x in model.state_dict().items() if "embed_tokens" not in key}
    state["lm_head.weight"][3] = 0.5  # a padding row that training has changed
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = PleiasForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.model.embed_tokens.weight, state["lm_head.weight"])


@pytest.mark.parametrize("initializer_range", [0.02, 0.3])
def test_parameters_added_after_pretraining_are_initialised_with_initializer_range(
    tmp_path, initialised, initializer_range
):
    initialised.save_pretrained(tmp_path)
    kwargs = {"num_labels": 64, "initializer_range": initializer_range}
    for auto, head in ((AutoModelForSequenceClassification, "score"), (AutoModelForTokenClassification, "score")):
        weight = getattr(auto.from_pretrained(tmp_path, **kwargs), head).weight
        assert weight.std().item() == pytest.approx(initializer_range, rel=0.03)
    model = PleiasForCausalLM.from_pretrained(tmp_path, initializer_range=initializer_range)
    model.resize_token_embeddings(2048 + 256, mean_resizing=False)
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        assert weight[2048:].std().item() == pytest.approx(initializer_range, rel=0.02)
        assert weight[:2048].std().item() == pytest.approx(0.025, rel=0.02)
    assert torch.equal(model.model.embed_tokens.weight[:2048], initialised.model.embed_tokens.weight)


# Decoding


def test_it_decodes_greedily_with_the_cards_repetition_penalty(tmp_path):
    model = seeded(PleiasForCausalLM, tiny(tie_word_embeddings=False))
    settings = {"max_new_tokens": 20, "attention_mask": MASK}
    pleias = model.generate(IDS, **settings)
    explicit = GenerationConfig(do_sample=False, repetition_penalty=1.2, pad_token_id=3, eos_token_id=2)
    assert torch.equal(pleias, model.generate(IDS, generation_config=explicit, **settings))
    assert not torch.equal(pleias, model.generate(IDS, repetition_penalty=1.0, **settings))

    model.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.repetition_penalty) == (False, 1.2)
    assert torch.equal(pleias, PleiasForCausalLM.from_pretrained(tmp_path).generate(IDS, **settings))
    # A folder whose file does not set the decoding, or that has no file, decodes the same.
    (tmp_path / "generation_config.json").write_text('{"_from_model_config": true, "eos_token_id": 2}')
    assert torch.equal(pleias, PleiasForCausalLM.from_pretrained(tmp_path).generate(IDS, **settings))
    (tmp_path / "generation_config.json").unlink()
    bare = PleiasForCausalLM.from_pretrained(tmp_path)
    assert (bare.generation_config.do_sample, bare.generation_config.repetition_penalty) == (False, 1.2)
    assert torch.equal(pleias, bare.generate(IDS, **settings))


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.1])
def test_a_checkpoint_s_decoding_settings_win(tmp_path, repetition_penalty):
    model = PleiasForCausalLM(tiny())
    model.generation_config.update(repetition_penalty=repetition_penalty, do_sample=True, temperature=0.5)
    model.save_pretrained(tmp_path)
    loaded = PleiasForCausalLM.from_pretrained(tmp_path).generation_config
    assert (loaded.repetition_penalty, loaded.do_sample, loaded.temperature) == (repetition_penalty, True, 0.5)


# Auto classes and pipelines


@pytest.mark.parametrize(
    ("task", "model_class"),
    [
        ("text-generation", PleiasForCausalLM),
        ("text-classification", PleiasForSequenceClassification),
        ("zero-shot-classification", PleiasForSequenceClassification),
        ("token-classification", PleiasForTokenClassification),
        ("feature-extraction", PleiasModel),
    ],
)
def test_the_pipeline_opens_a_saved_folder(tmp_path, task, model_class):
    tokenizer = PleiasTokenizer()
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    config = tiny(vocab_size=len(tokenizer), id2label=labels, label2id={name: i for i, name in labels.items()})
    seeded(model_class, config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PleiasTokenizer
    pipe = pipeline(task, model=str(tmp_path))
    assert type(pipe.model) is model_class and type(pipe.tokenizer) is PleiasTokenizer
    texts = ["L'abbaye est fermée.", "Gallia est omnis divisa in partes tres."]
    if task == "zero-shot-classification":
        scored = pipe(texts, candidate_labels=["history", "law"])
        assert [sorted(result["labels"]) for result in scored] == [["history", "law"]] * 2
        assert all(sum(result["scores"]) == pytest.approx(1) for result in scored)
    elif task == "text-classification":
        assert {result["label"] for result in pipe(texts, batch_size=2)} <= set(labels.values())
        assert pipe(texts, batch_size=2)[1]["score"] == pytest.approx(pipe(texts[1])[0]["score"], abs=1e-3)
    elif task == "token-classification":
        assert all({token["entity"] for token in tokens} <= set(labels.values()) and tokens for tokens in pipe(texts))
    elif task == "feature-extraction":
        assert [len(features[0][0]) for features in pipe(texts)] == [64, 64]
    else:
        alone = [pipe(text, max_new_tokens=8)[0]["generated_text"] for text in texts]
        batch = [result[0]["generated_text"] for result in pipe(texts, max_new_tokens=8, batch_size=2)]
        # transformers' pipeline would sample at temperature 0.7 if the model did not set the decoding.
        greedy = [pipe.model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8) for text in texts]
        assert batch == alone == [tokenizer.decode(out[0], skip_special_tokens=True) for out in greedy]


# Dtype of a loaded model, and versions of transformers


@pytest.fixture
def bf16_folder(tmp_path):
    seeded(PleiasForCausalLM, tiny()).to(torch.bfloat16).save_pretrained(tmp_path)
    PleiasTokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_without_fast_bf16_weights_are_widened_to_fp32_with_a_warning_that_states_how_to_keep_them(
    bf16_folder, without_bf16, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_pleias"), "propagate", True)
    stored = PleiasForCausalLM.from_pretrained(bf16_folder, dtype=torch.bfloat16)
    for opened in (
        PleiasForCausalLM.from_pretrained(bf16_folder),
        AutoModelForCausalLM.from_pretrained(bf16_folder),
        pipeline("text-generation", model=str(bf16_folder)).model,
        PleiasForCausalLM.from_pretrained(bf16_folder, output_loading_info=True)[0],
    ):
        assert opened.dtype == opened.config.dtype == torch.float32
        for name, parameter in opened.named_parameters():
            assert torch.equal(parameter.bfloat16(), stored.get_parameter(name)), name
        assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert sum("dtype=torch.bfloat16 keeps them" in message for message in caplog.messages) <= 1  # once per process


def test_a_requested_dtype_or_device_map_is_honoured(bf16_folder, without_bf16):
    for settings in ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"device_map": "cpu"}):
        for auto in (PleiasForCausalLM, AutoModelForCausalLM):
            assert auto.from_pretrained(bf16_folder, **settings).dtype == torch.bfloat16, settings
    model = pipeline("text-generation", model=str(bf16_folder), dtype=torch.bfloat16).model
    assert model.dtype == torch.bfloat16


def test_with_fast_bf16_weights_keep_their_dtype(bf16_folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert PleiasForCausalLM.from_pretrained(bf16_folder).dtype == torch.bfloat16


def test_another_transformers_is_refused_if_older_and_warned_of_if_newer(caplog, monkeypatch):
    for name in ("transformers", "modeling_pleias"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with pytest.raises(ImportError, match=r"5.16.1 is too old: .* run: pip install 'transformers>=5.17,<5.25'"):
        check_transformers_version("5.16.1")
    for tested in ("5.17.0", "5.24.2"):
        check_transformers_version(tested)
    assert caplog.messages == []
    check_transformers_version("5.25.0.dev0")
    assert "transformers 5.25.0.dev0 is untested" in caplog.text and "pip install" in caplog.text


def test_the_range_that_the_code_checks_is_the_one_that_the_package_declares():
    declared = {requirement.name: requirement for requirement in map(Requirement, requires("modeling-pleias"))}
    specifier = declared["transformers"].specifier
    assert specifier == SpecifierSet(f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}")
