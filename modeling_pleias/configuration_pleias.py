# Copyright 2026 the modeling-pleias authors.
#
# Licensed under the Apache License, Version 2.0: see LICENSE.
"""Configuration of a Pleias model. The defaults are Pleias-nano-1.2b-Preview."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, __version__
from transformers.utils import logging

# Oldest and newest transformers that the tests ran on, as in pyproject.toml. A folder on the Hub that contains this
# code has no other check of the version that it runs on.
OLDEST, NEWEST = (5, 17), (5, 24)
TESTED_VERSIONS = (
    f"this model code was tested with transformers 5.{OLDEST[1]} to 5.{NEWEST[1]}, and {__version__} is installed; "
    f"run: pip install 'transformers>=5.{OLDEST[1]},<5.{NEWEST[1] + 1}'"
)


def check_transformers_version(installed: str) -> None:
    """Refuse a transformers older than those tested, and warn of a newer one.

    Raises:
        ImportError: If `installed` is older than OLDEST.
    """
    release = tuple(int(part) for part in installed.split(".")[:2])
    if release < OLDEST:
        raise ImportError(f"transformers {installed} is too old: {TESTED_VERSIONS}.")
    if release > NEWEST:
        logging.get_logger(__name__).warning_once(f"transformers {installed} is untested: {TESTED_VERSIONS}.")


check_transformers_version(__version__)


@strict
class PleiasConfig(LlamaConfig):
    """Configuration of a Pleias model: Llama's layout with Pleias-nano-1.2b-Preview as the default.

    Every field of `LlamaConfig` is accepted; the fields below have other defaults. Source of each value: the published
    `config.json`, unless a comment names another.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type, heads do not divide (hidden size by
            heads, heads by key/value heads), or the head dimension is odd (rotary embedding rotates pairs). An unknown
            name becomes an attribute, as in every transformers config.
    """

    model_type = "pleias"

    vocab_size: int = 65_536
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 22
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    # The original's files specify no padding id, so batches fail; its vocabulary has [PAD] at 3.
    pad_token_id: int | None = 3
    # Standard deviation with which pretraining initialised embeddings and projections (published training settings,
    # nanotron YAML); divided by sqrt(2 * num_hidden_layers) for o_proj and down_proj. Heads and vocabulary rows added
    # after pretraining use the inherited initializer_range (0.02, as in the published config.json).
    pretraining_init_std: float = 0.025

    def __post_init__(self, **kwargs):
        kwargs.pop("model_type", None)  # the `llama` label of a file must not hide the class's own
        super().__post_init__(**kwargs)

    @property
    def residual_init_std(self) -> float:
        """Initial standard deviation of the two projections that write into the residual stream."""
        return self.pretraining_init_std / (2 * self.num_hidden_layers) ** 0.5

    def validate_architecture(self):
        """Check heads and head dimension; `@strict` calls it after construction."""
        super().validate_architecture()
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"The number of attention heads ({self.num_attention_heads}) is not a multiple of the number of "
                f"key/value heads ({self.num_key_value_heads})."
            )
        if self.head_dim % 2 != 0:
            raise ValueError(f"The head dimension ({self.head_dim}) is odd; rotary embedding needs an even one.")

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict, dict]:
        """Read a config as inherited, and one of model type `llama`, as the original's, as a Pleias model."""
        config, unused = super().get_config_dict(*args, **kwargs)
        if config.get("model_type") == "llama":
            config["model_type"] = cls.model_type
            if config.get("pad_token_id") is None:
                config["pad_token_id"] = cls.pad_token_id
        return config, unused

    @classmethod
    def pico_350m(cls, **overrides) -> "PleiasConfig":
        """Return the config of Pleias-350m-Preview: 353,424,384 parameters."""
        shape = {"hidden_size": 1024, "intermediate_size": 2560, "num_hidden_layers": 26, "num_attention_heads": 16}
        return cls(**{**shape, **overrides})

    @classmethod
    def nano_1_2b(cls, **overrides) -> "PleiasConfig":
        """Return the config of Pleias-1.2b-Preview, the default: 1,195,468,800 parameters (its card: 1.21 billion)."""
        return cls(**overrides)

    @classmethod
    def base_3b(cls, **overrides) -> "PleiasConfig":
        """Return the config of Pleias-3b-Preview: 3,211,926,528 parameters, context 4,096."""
        shape = {"hidden_size": 3072, "intermediate_size": 12_288, "max_position_embeddings": 4096}
        return cls(**{**shape, **overrides})


__all__ = ["PleiasConfig"]
