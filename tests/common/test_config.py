"""PleiasConfig has the published sizes, and its error messages contain the wrong value's name."""

import json
import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig

from modeling_pleias import PleiasConfig

# Values of the config.json of Pleias-1.2b-Preview, with the keys of the transformers version of that time.
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.2",
    "use_cache": True,
    "vocab_size": 65536,
}
SIZES = {"pico_350m": PleiasConfig.pico_350m, "nano_1_2b": PleiasConfig.nano_1_2b, "base_3b": PleiasConfig.base_3b}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


@pytest.mark.parametrize(
    ("size", "hidden", "intermediate", "layers", "heads", "head_dim", "context"),
    [
        (PleiasConfig.pico_350m, 1024, 2560, 26, 16, 64, 2048),
        (PleiasConfig.nano_1_2b, 2048, 6144, 22, 32, 64, 2048),
        (PleiasConfig.base_3b, 3072, 12288, 22, 32, 96, 4096),
    ],
)
def test_each_named_size_has_the_published_values(size, hidden, intermediate, layers, heads, head_dim, context):
    config = size()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (hidden, intermediate, layers)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (heads, 8, head_dim)
    assert config.max_position_embeddings == context


@every_size
def test_the_common_values_of_the_sizes_are_the_published_ones(size):
    config = size()
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (65_536, 1, 2, 3)
    assert (config.hidden_act, config.rms_norm_eps, config.initializer_range) == ("silu", 1e-5, 0.02)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    assert config.tie_word_embeddings is True
    assert (config.attention_bias, config.mlp_bias, config.attention_dropout) == (False, False, 0.0)
    assert config.pretraining_init_std == 0.025
    assert config.residual_init_std == 0.025 / (2 * config.num_hidden_layers) ** 0.5


def test_the_default_is_nano_and_a_size_accepts_overrides():
    assert PleiasConfig().to_dict() == PleiasConfig.nano_1_2b().to_dict()
    assert PleiasConfig.pico_350m(num_hidden_layers=2, vocab_size=512).num_hidden_layers == 2
    assert PleiasConfig.base_3b(max_position_embeddings=128).max_position_embeddings == 128


def test_it_is_a_llama_config_with_its_own_model_type():
    assert PleiasConfig.model_type == PleiasConfig().model_type == "pleias"
    assert isinstance(PleiasConfig(), LlamaConfig)
    assert type(AutoConfig.for_model("pleias")) is PleiasConfig


@every_size
def test_it_round_trips_through_dict_and_disk(tmp_path, size):
    config = size(id2label={0: "fr", 1: "en", 2: "la"}, rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert PleiasConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "pleias" and saved["rope_parameters"]["rope_theta"] == 10_000.0
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is PleiasConfig
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()


def test_a_file_contains_every_default_so_that_a_later_default_cannot_change_an_old_model(tmp_path):
    PleiasConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    keys = set(PleiasConfig().to_dict()) & set(PleiasConfig.__annotations__)
    assert keys and keys <= set(saved)
    assert {key: PleiasConfig().to_dict()[key] for key in keys} == {key: saved[key] for key in keys}


def test_creating_a_config_logs_nothing(caplog, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for size in SIZES.values():
        size()
    PleiasConfig(rope_theta=20_000.0)
    assert caplog.messages == [] and capfd.readouterr() == ("", "")


def test_rope_theta_is_stored_in_rope_parameters():
    assert PleiasConfig(rope_theta=500_000.0).rope_parameters == {"rope_type": "default", "rope_theta": 500_000.0}


def test_the_published_file_loads_as_the_default(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    for config in (PleiasConfig.from_dict(dict(PUBLISHED)), PleiasConfig.from_pretrained(tmp_path)):
        assert config.model_type == "pleias" and config.pad_token_id == 3 and config.dtype is torch.bfloat16
        excluded = {"architectures", "dtype", "rope_interleaved", "transformers_version", "_name_or_path"}
        read = {key: value for key, value in config.to_dict().items() if key not in excluded}
        assert read == {key: value for key, value in PleiasConfig().to_dict().items() if key not in excluded}
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 6}, r"hidden size \(2048\) is not a multiple of the number of attention heads \(6\)"),
        ({"num_key_value_heads": 5}, r"heads \(32\) is not a multiple of the number of key/value heads \(5\)"),
        ({"num_key_value_heads": 0}, r"heads \(32\) is not a multiple of the number of key/value heads \(0\)"),
        ({"head_dim": 63}, r"head dimension \(63\) is odd"),
        ({"hidden_size": 32 * 65}, r"head dimension \(65\) is odd"),
        ({"hidden_size": "2048"}, "'hidden_size' expected int, got str"),
        ({"num_hidden_layers": 2.0}, "'num_hidden_layers' expected int, got float"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' expected bool, got str"),
        ({"pretraining_init_std": "0.025"}, "'pretraining_init_std' expected float, got str"),
        ({"initializer_range": 2.0}, "'initializer_range'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(tmp_path, values, message):
    with pytest.raises(StrictDataclassError, match=message):
        PleiasConfig(**values)
    # The same from a file.
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, "head_dim": None, **values}))
    with pytest.raises(StrictDataclassError, match=message):
        PleiasConfig.from_pretrained(tmp_path)
