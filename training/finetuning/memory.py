"""Estimate the GPU memory of full fine-tuning: an upper bound per strategy."""

from bisect import bisect_left
from typing import TYPE_CHECKING

from ..run.metrics import activation_bytes_per_token, count_parameters

if TYPE_CHECKING:  # lazy import: transformers takes seconds to import, and the arithmetic does not need it
    from modeling_pleias import PleiasConfig

GPUS = {"24 GB": 24e9, "80 GB": 80e9}
RESERVE = 1e9  # CUDA's own memory, and what the allocator cannot use
TILE_TOKENS, TILE_ENTRIES = 4096, 32_768  # logits that TRL's loss has in memory at a time (trl 1.16, kernels)
ANSWER_TOKENS = (
    8192  # tokens of prompts and completions in a batch of generation (training.common.generation.complete)
)

# name: (trainer settings, 8-bit optimizer state, activation checkpointing)
STRATEGIES = {
    "AdamW": ("", False, False),
    "AdamW, recomputing": ("activation_checkpointing: true", False, True),
    "8-bit AdamW": ("optim: adamw_8bit", True, False),
    "8-bit AdamW, recomputing": ("optim: adamw_8bit, activation_checkpointing: true", True, True),
}


def stored_activation_bytes(config: "PleiasConfig", *, recomputed: bool) -> int:
    """Return the bytes that a token needs between forward and backward; recomputed, each layer keeps its fp32 input.

    It is more than in pretraining (training.run.metrics): the residual stream and the outputs of the norms are fp32.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    total = activation_bytes_per_token(config) + (4 * L + 4) * D
    if not recomputed:
        return total
    return 4 * D * (L + 4) + total // L  # the layer that is being recomputed has all its activations


def finetune_memory(config: "PleiasConfig", *, eight_bit: bool, recomputed: bool, tokens: int) -> dict[str, float]:
    """Return the bytes on one GPU by purpose, for a micro batch of `tokens` tokens.

    Weights, gradients and the two Adam moments are fp32. 8-bit moments take a byte each and a scale per 256 of them,
    but those of the embedding stay fp32 (as in Trainer). Autocast keeps a bf16 copy of every matrix. The loss needs a
    tile of logits in bf16 and twice in fp32, and the fp32 gradient of the head. During evaluation there are no
    activations, but a bf16 copy of the model, and keys and values; the larger of the two phases counts.
    """
    N, V, D = count_parameters(config), config.vocab_size, config.hidden_size
    embedding = V * D
    moments = 8 * embedding + 2 * (1 + 4 / 256) * (N - embedding) if eight_bit else 8 * N
    tile = min(TILE_TOKENS, tokens) * min(TILE_ENTRIES, V)
    step = {
        "weights, bf16 copies": 2 * N,
        f"activations of {tokens:,} tokens": stored_activation_bytes(config, recomputed=recomputed) * tokens,
        "loss": (2 + 4 + 4) * tile + 4 * embedding,
    }
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * ANSWER_TOKENS
    evaluation = {"bf16 copy of the model for evaluation": 2 * N, "keys and values": cache}
    largest = max(step, evaluation, key=lambda parts: sum(parts.values()))
    return {"weights, fp32": 4 * N, "gradients, fp32": 4 * N, "optimizer state": moments, **largest}


def max_tokens(config: "PleiasConfig", size: float, *, eight_bit: bool, recomputed: bool) -> int:
    """Return the maximum tokens of a micro batch on a GPU of `size` bytes, in hundreds; 0 if not even 100 fit."""

    def exceeds(hundreds: int) -> bool:
        parts = finetune_memory(config, eight_bit=eight_bit, recomputed=recomputed, tokens=100 * hundreds)
        return sum(parts.values()) + RESERVE > size

    return 100 * bisect_left(range(1, int(size)), True, key=exceeds)  # a token needs more than a byte


def finetune_plan(config: "PleiasConfig", tokens: int) -> dict:
    """Return plan.json: each strategy's memory by purpose for a micro batch of `tokens`, and what fits on each GPU."""
    rows = []
    for name, (settings, eight_bit, recomputed) in STRATEGIES.items():
        strategy = {"eight_bit": eight_bit, "recomputed": recomputed}
        parts = finetune_memory(config, tokens=tokens, **strategy)
        fits = {gpu: max_tokens(config, size, **strategy) for gpu, size in GPUS.items()}
        rows.append(
            {"name": name, "trainer": settings, "parts": parts, "total": sum(parts.values()), "most_tokens": fits}
        )
    return {"parameters": count_parameters(config), "tokens": tokens, "reserve": RESERVE, "strategies": rows}
