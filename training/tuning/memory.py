"""What full fine-tuning takes of one GPU, by strategy: an estimate from above, by arithmetic."""

from typing import TYPE_CHECKING

from ..metrics import activation_bytes_per_token, parameters

if TYPE_CHECKING:  # transformers takes seconds to import, and the arithmetic does not need it
    from modeling_pleias import PleiasConfig

GPUS = {"24 GB": 24e9, "80 GB": 80e9}
RESERVE = 1e9  # CUDA's own, and what the allocator cannot use
TILE_TOKENS, TILE_ENTRIES = 4096, 32_768  # of the logits that TRL's loss has at once (trl 1.16, kernels)
ANSWER_TOKENS = 8192  # prompts and answers that are generated at once (measure.batch_tokens)

# name: (trainer settings, 8-bit moments, activations recomputed)
STRATEGIES = {
    "AdamW": ("", False, False),
    "AdamW, recomputing": ("activation_checkpointing: true", False, True),
    "8-bit AdamW": ("optim: adamw_8bit", True, False),
    "8-bit AdamW, recomputing": ("optim: adamw_8bit, activation_checkpointing: true", True, True),
}


def kept_per_token(config: "PleiasConfig", *, recomputed: bool) -> int:
    """Bytes that one token takes between forward and backward; recomputed, each layer keeps its input in fp32.

    More than in pretraining (training.metrics): what runs through the layers is fp32, so what the norms give is, too.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    whole = activation_bytes_per_token(config) + (4 * L + 4) * D
    if not recomputed:
        return whole
    return 4 * D * (L + 4) + whole // L  # and the layer that is being computed again has everything


def finetune_memory(config: "PleiasConfig", *, eight_bit: bool, recomputed: bool, tokens: int) -> dict[str, float]:
    """Bytes on one GPU by what they are for, with `tokens` in a micro batch.

    fp32 weights, gradients and two moments; 8-bit moments take a byte each and a scale for every 256, but those of the
    embedding stay fp32 (as Trainer has it). Autocast keeps a bf16 copy of every matrix. The loss holds a tile of
    logits in bf16 and twice in fp32, and the fp32 gradient of the head. While the metric is measured there are no
    activations, but a bf16 copy of the model, and keys and values; where that is more, it is what counts.
    """
    N, V, D = parameters(config), config.vocab_size, config.hidden_size
    embedding = V * D
    moments = 8 * embedding + 2 * (1 + 4 / 256) * (N - embedding) if eight_bit else 8 * N
    tile = min(TILE_TOKENS, tokens) * min(TILE_ENTRIES, V)
    step = {
        "weights, bf16 copies": 2 * N,
        f"activations of {tokens:,} tokens": kept_per_token(config, recomputed=recomputed) * tokens,
        "loss": (2 + 4 + 4) * tile + 4 * embedding,
    }
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * ANSWER_TOKENS
    measuring = {"the model as it is measured, bf16": 2 * N, "keys and values": cache}
    most = max(step, measuring, key=lambda parts: sum(parts.values()))
    return {"weights, fp32": 4 * N, "gradients, fp32": 4 * N, "moments": moments, **most}


def most_tokens(config: "PleiasConfig", size: float, *, eight_bit: bool, recomputed: bool) -> int:
    """Tokens that a micro batch can have on a GPU of `size` bytes, in hundreds; 0 where even those do not fit."""

    def fits(tokens: int) -> bool:
        parts = finetune_memory(config, eight_bit=eight_bit, recomputed=recomputed, tokens=tokens)
        return sum(parts.values()) + RESERVE <= size

    low, high = 0, 1
    while fits(100 * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(100 * middle) else (low, middle)
    return 100 * low


def finetune_plan(config: "PleiasConfig", tokens: int) -> dict:
    """Every strategy with its parts for a micro batch of `tokens`, and what fits on each GPU; as it is in the JSON."""
    rows = []
    for name, (settings, eight_bit, recomputed) in STRATEGIES.items():
        how = {"eight_bit": eight_bit, "recomputed": recomputed}
        parts = finetune_memory(config, tokens=tokens, **how)
        fits = {gpu: most_tokens(config, size, **how) for gpu, size in GPUS.items()}
        rows.append(
            {"name": name, "trainer": settings, "parts": parts, "total": sum(parts.values()), "most_tokens": fits}
        )
    return {"parameters": parameters(config), "tokens": tokens, "reserve": RESERVE, "strategies": rows}
