# Copyright 2026 the modeling-pleias authors.
#
# Licensed under the Apache License, Version 2.0: see LICENSE.
"""The Pleias model in dataflow order: norm, rotary, attention, MLP, layer, model, heads.

Llama's parameter names and arithmetic, operation for operation: `LlamaForCausalLM` on equal weights is the test
oracle and gives equal bits, except that on a CPU tokens that are generated one at a time are computed in another order
(PleiasLinear, PleiasAttention). Shapes: B batch, T time, D hidden size, H heads, G key/value heads, K head dimension,
V vocabulary; a suffix such as `q_BHTK` states the shape.
"""

from itertools import islice

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_kernel_forward_from_hub
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_pleias import TESTED_VERSIONS, PleiasConfig

logger = logging.get_logger(__name__)

# Name of the cache in forward calls and outputs: "past_key_values" up to transformers 5.23, "cache" from 5.24 on. Each
# `forward` accepts both names, the old one without a warning if it is the only one, and passes on the current one.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
either_cache_name = deprecate_kwarg("past_key_values", "5.40.0" if CACHE == "cache" else "5.0.0", new_name="cache")

# Keywords of `forward` in addition to its signature: those of attention and loss, and two that a decoder ignores. Any
# other is refused: transformers 5.24 renamed the cache, and a model that ignored it decoded without its context.
LOSS_KEYWORDS, IGNORED_KEYWORDS = {"ignore_index", "shift_labels"}, {"return_dict", "token_type_ids"}
KNOWN_KEYWORDS = frozenset(TransformersKwargs.__annotations__) | LOSS_KEYWORDS | IGNORED_KEYWORDS


PARTS = 16  # parts of a weight that PleiasLinear multiplies in parallel


def cpu_compute_dtype() -> torch.dtype:
    """Return the dtype in which this CPU multiplies matrices fast: bfloat16 if it has AVX512-BF16, else float32.

    Without these instructions PyTorch multiplies bfloat16 matrices in a plain loop on one thread, tens of times slower
    than float32 (training/bench/RESULTS.md). Every CPU with AMX has them, too. `ATEN_CPU_CAPABILITY=avx2` in the
    environment makes a CPU with AVX-512 count as one without. ARM CPUs compute in float32.
    """
    kernels, capabilities = torch.backends.cpu.get_cpu_capability(), torch.cpu.get_capabilities()
    fast = kernels.startswith("AVX512") and capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


@use_kernel_forward_from_hub("RMSNorm")
class PleiasRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32 and scaled in the input's precision."""

    def __init__(self, hidden_size: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dtype = hidden_states.dtype
        x = hidden_states.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class PleiasRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary angles, (B, T, K) each; computed in fp32 whatever the model's precision."""

    def __init__(self, config: PleiasConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        # Context extension (linear, yarn, llama3, ...) comes from transformers; the released models use none.
        compute = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: PleiasConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Return the inverse frequencies (K / 2,) and the scale of cos and sin, which is 1 for plain rotary."""
        K = config.head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, K, 2, dtype=torch.float) / K)), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles_BTK = torch.cat((angles, angles), dim=-1)
        cos, sin = angles_BTK.cos() * self.attention_scaling, angles_BTK.sin() * self.attention_scaling
        return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Map the halves (x1, x2) of the last dimension to (-x2, x1)."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q_BHTK, k_BGTK, cos_BTK, sin_BTK):
    """Rotate queries and keys by their positions."""
    cos, sin = cos_BTK.unsqueeze(1), sin_BTK.unsqueeze(1)
    return (q_BHTK * cos) + (rotate_half(q_BHTK) * sin), (k_BGTK * cos) + (rotate_half(k_BGTK) * sin)


def repeat_kv(x_BGTK: torch.Tensor, repeats: int) -> torch.Tensor:
    """Repeat each key/value head for the query heads that share it: (B, G, T, K) -> (B, H, T, K)."""
    if repeats == 1:
        return x_BGTK
    B, G, T, K = x_BGTK.shape
    return x_BGTK[:, :, None].expand(B, G, repeats, T, K).reshape(B, G * repeats, T, K)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Compute attention in plain matmuls with fp32 softmax: the reference, and the one that returns weights."""
    key_BHTK = repeat_kv(key, module.num_key_value_groups)
    value_BHTK = repeat_kv(value, module.num_key_value_groups)
    weights_BHTT = torch.matmul(query, key_BHTK.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights_BHTT = weights_BHTT + attention_mask
    weights_BHTT = nn.functional.softmax(weights_BHTT, dim=-1, dtype=torch.float32).to(query.dtype)
    weights_BHTT = nn.functional.dropout(weights_BHTT, p=dropout, training=module.training)
    return torch.matmul(weights_BHTT, value_BHTK).transpose(1, 2).contiguous(), weights_BHTT


def is_cpu_inference(x: torch.Tensor) -> bool:
    """Return whether an operation on a tensor runs on a CPU, outside of training, compilation and autocast."""
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and not recorded and not torch.is_autocast_enabled("cpu")


class PleiasLinear(nn.Linear):
    """Linear layer that multiplies one token on a CPU, outside of training, at the speed of memory.

    PyTorch passes a product with one row to libraries that read float32 weights on one thread, and bfloat16 weights at
    half the speed of its own product (training/bench/RESULTS.md). The sums are the same, in another order.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, size = self.weight, self.in_features
        # A parameter of another type is quantised or distributed.
        plain = type(weight) is nn.Parameter and x.dtype == weight.dtype
        if not plain or x.numel() != size or not is_cpu_inference(x):
            return super().forward(x)
        if x.dtype == torch.float32 and self.out_features % PARTS == 0:
            # A column that is a transposed row: MKL multiplies a true column five times slower.
            column = x.reshape(1, 1, size).transpose(1, 2).expand(PARTS, size, 1)
            out = torch.bmm(weight.view(PARTS, -1, size), column).view(*x.shape[:-1], -1)
            return out if self.bias is None else out + self.bias
        if x.dtype != torch.bfloat16:
            return super().forward(x)
        enabled = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False
        try:
            return super().forward(x)
        finally:
            torch.backends.mkldnn.enabled = enabled


class PleiasAttention(nn.Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, config: PleiasConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        D, K = config.hidden_size, self.head_dim
        HK, GK = config.num_attention_heads * K, config.num_key_value_heads * K
        self.q_proj = PleiasLinear(D, HK, bias=config.attention_bias)
        self.k_proj = PleiasLinear(D, GK, bias=config.attention_bias)
        self.v_proj = PleiasLinear(D, GK, bias=config.attention_bias)
        self.o_proj = PleiasLinear(HK, D, bias=config.attention_bias)

    @either_cache_name
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        BT = hidden_states.shape[:-1]
        q_BHTK = self.q_proj(hidden_states).view(*BT, -1, self.head_dim).transpose(1, 2)
        k_BGTK = self.k_proj(hidden_states).view(*BT, -1, self.head_dim).transpose(1, 2)
        v_BGTK = self.v_proj(hidden_states).view(*BT, -1, self.head_dim).transpose(1, 2)
        q_BHTK, k_BGTK = apply_rotary_pos_emb(q_BHTK, k_BGTK, *position_embeddings)
        if cache is not None:
            k_BGTK, v_BGTK = cache.update(k_BGTK, v_BGTK, self.layer_idx)
        sdpa = self.config._attn_implementation == "sdpa"
        if sdpa and attention_mask is None and is_cpu_inference(hidden_states) and BT[-1] == 1:
            # Query heads that share keys, as rows: as heads of their own they take five times as long in bf16.
            q_BGRK = q_BHTK.reshape(-1, k_BGTK.shape[1], self.num_key_value_groups, self.head_dim)
            out_BGRK = nn.functional.scaled_dot_product_attention(q_BGRK, k_BGTK, v_BGTK, scale=self.scaling)
            return self.o_proj(out_BGRK.reshape(*BT, -1)), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out_BTHK, weights = attend(
            self,
            q_BHTK,
            k_BGTK,
            v_BGTK,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(out_BTHK.reshape(*BT, -1).contiguous()), weights


class PleiasMLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    def __init__(self, config: PleiasConfig):
        super().__init__()
        self.gate_proj = PleiasLinear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = PleiasLinear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = PleiasLinear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class PleiasDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: PleiasConfig, layer_idx: int):
        super().__init__()
        self.self_attn = PleiasAttention(config, layer_idx)
        self.mlp = PleiasMLP(config)
        self.input_layernorm = PleiasRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = PleiasRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PleiasPreTrainedModel(PreTrainedModel):
    """Base class: declares features to transformers and initialises weights."""

    config_class = PleiasConfig
    config: PleiasConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PleiasDecoderLayer"]
    _skip_keys_device_placement = [CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PleiasDecoderLayer, "attentions": PleiasAttention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as transformers does, except that a CPU without fast bfloat16 gets float32 weights by default.

        Widening 16-bit weights to float32 is lossless, and such a CPU decodes with them several times as fast. This
        applies only if no dtype is requested, or "auto", which is what a pipeline passes when its user requests none;
        and only without `device_map` and for weights that are not quantised. `dtype=torch.bfloat16` is honoured.
        """
        default = kwargs.get("dtype", kwargs.get("torch_dtype")) in (None, "auto")
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        placed = kwargs.get("device_map") is not None or torch.accelerator.is_available()
        quantized = getattr(model.config, "quantization_config", None) is not None
        if default and not placed and not quantized and model.dtype.itemsize < cpu_compute_dtype().itemsize:
            logger.warning_once(
                f"Loaded {model.dtype} weights as torch.float32, which is lossless and faster on this CPU; "
                f"dtype={model.dtype} keeps them as they are stored."
            )
            model.float()
            model.config.dtype = torch.float32
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise a module with its `init_std` (see PleiasModel), or with initializer_range if added later."""
        if not isinstance(module, nn.Linear | nn.Embedding):
            return super()._init_weights(module)
        init.normal_(module.weight, std=getattr(module, "init_std", self.config.initializer_range))
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # A slice has no marker of a loaded weight, so check the full tensor.
            if not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])


class PleiasModel(PleiasPreTrainedModel):
    """Decoder body: token ids (B, T) to hidden states (B, T, D)."""

    def __init__(self, config: PleiasConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([PleiasDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = PleiasRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = PleiasRotaryEmbedding(config)
        self.gradient_checkpointing = False
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(("o_proj", "down_proj"))
                module.init_std = config.residual_init_std if residual else config.pretraining_init_std
        self.post_init()

    @either_cache_name
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Return the hidden states; keywords as in every transformers decoder.

        Args:
            input_ids: (B, T), or `inputs_embeds` (B, T, D) instead.
            attention_mask: (B, T), 0 on padding, or any form that `create_causal_mask` accepts.
            position_ids: (B, T). Positions that restart mark packed sequences, which do not see each other if neither
                an `attention_mask` nor a cache is passed (`use_cache=False`).
            cache: Keys and values of earlier tokens. Its name up to transformers 5.23 is `past_key_values`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: Unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if unknown := [keyword for keyword in kwargs if keyword not in KNOWN_KEYWORDS]:
            raise TypeError(
                f"forward() got unexpected keyword arguments: {', '.join(unknown)}. If transformers passed them: "
                f"{TESTED_VERSIONS}."
            )
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,  # None if the caller has none: looking for packed sequences waits for a GPU
            **{CACHE: cache},
        )
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in islice(self.layers, self.config.num_hidden_layers):
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE: cache})


class PleiasForCausalLM(PleiasPreTrainedModel, GenerationMixin):
    """Pleias with the pretraining head: hidden states to next-token logits through the tied embedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: PleiasConfig):
        super().__init__(config)
        self.model = PleiasModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = PleiasLinear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.init_std = config.pretraining_init_std
        self._set_default_decoding()
        self.post_init()

    def _set_default_decoding(self):
        """Default to greedy decoding with repetition penalty 1.2; the checkpoint's generation_config.json wins."""
        self.generation_config.update(defaults_only=True, do_sample=False, repetition_penalty=1.2)

    def adjust_generation_fn(self, *args, **kwargs):
        """Restore the defaults: `from_pretrained` replaces the generation config even if the checkpoint has none."""
        super().adjust_generation_fn(*args, **kwargs)
        self._set_default_decoding()

    @either_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, T, V), and the mean cross-entropy in nats if `labels` (B, T) are passed.

        Args:
            labels: Ids to predict, -100 to ignore a position; shifted inside, so T ids yield T - 1 targets.
            logits_to_keep: Number of last positions to compute logits for (0: all), or their indices.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(outputs.last_hidden_state[:, positions])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE)},
        )


# The loss of these three heads is a mean over its own batch. Trainer takes the **kwargs of their `forward` for the
# promise to divide by `num_items_in_batch`, and would add up the losses of accumulated batches.
class PleiasForSequenceClassification(GenericForSequenceClassification, PleiasPreTrainedModel):
    """One score per label from the last token that is not padding."""

    accepts_loss_kwargs = False


class PleiasForTokenClassification(GenericForTokenClassification, PleiasPreTrainedModel):
    """One score per label for every token."""

    accepts_loss_kwargs = False


class PleiasForQuestionAnswering(GenericForQuestionAnswering, PleiasPreTrainedModel):
    """Start and end scores of an answer span."""

    accepts_loss_kwargs = False


__all__ = [
    "PleiasForCausalLM",
    "PleiasForQuestionAnswering",
    "PleiasForSequenceClassification",
    "PleiasForTokenClassification",
    "PleiasModel",
    "PleiasPreTrainedModel",
]
