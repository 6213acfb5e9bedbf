"""What is measured of a run: floating-point operations, utilisation, bits per byte, and the plot of all that."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .files import atomic

if TYPE_CHECKING:  # torch and transformers take seconds to import, and the arithmetic does not need them
    import torch

    from modeling_pleias import PleiasConfig

# Dense bf16 peak in FLOP/s of one device, by a part of its name. Source: NVIDIA's data sheets.
PEAK_FLOPS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}


def parameters(config: "PleiasConfig") -> int:
    """Trainable parameters of `PleiasForCausalLM`, tied embeddings counted once."""
    D, K = config.hidden_size, config.head_dim
    attention = 2 * D * K * (config.num_attention_heads + config.num_key_value_heads)
    mlp, norms = 3 * D * config.intermediate_size, 2 * D
    body = config.num_hidden_layers * (attention + mlp + norms) + D
    return body + config.vocab_size * D * (1 if config.tie_word_embeddings else 2)


def flops_per_token(config: "PleiasConfig", sequence_length: int, *, attention: str = "full") -> int:
    """Training FLOPs (forward and backward) for one token, by one of the three conventions in use.

    Args:
        sequence_length: T.
        attention: "none", 6N alone; "causal", plus the half of the scores that a causal mask needs; "full", plus all
            of them (the PaLM convention, used for MFU unless said otherwise).
    """
    share = {"none": 0, "causal": 1, "full": 2}[attention]
    scores = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length * share
    return 6 * parameters(config) + scores


def tokens_per_second(flops: int, *, mfu: float, peak: float) -> float:
    """Tokens that one device processes in a second.

    Args:
        flops: for one token.
        mfu: share of `peak` that is used, in the convention that `flops` is counted by.
        peak: FLOP/s of the device.
    """
    return mfu * peak / flops


def activation_bytes_per_token(config: "PleiasConfig") -> int:
    """Bytes that autograd keeps for one token between forward and backward under bf16 autocast, nothing recomputed.

    Counted operation by operation in eager mode with fused attention, so an upper bound for compiled layers. In a
    layer, with D hidden, H and G query and key/value heads of K, F intermediate: each of the two norms keeps its
    input in fp32, its normalised input in bf16 (12 D) and the root mean square (8); the inputs of q, k, v, gate and up
    are cast to bf16 one by one (10 D); attention keeps q, its output (4 H K), k, v (4 G K) and a
    sum per head (4 H); the MLP keeps gate, silu(gate), up and their product (8 F). At the end one norm (6 D + 4), the
    gradient of the hidden states (2 D), and the ids (16).
    """
    D, F, K = config.hidden_size, config.intermediate_size, config.head_dim
    H, G = config.num_attention_heads, config.num_key_value_heads
    layer = 22 * D + 4 * H * K + 4 * G * K + 4 * H + 8 * F + 8
    return config.num_hidden_layers * layer + 8 * D + 20


def peak_flops(device: "torch.device") -> float | None:
    """Return the dense bf16 FLOP/s of a device, or None if its data sheet is unknown."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Cross-entropy in bits per UTF-8 byte: what tokenizers of any size can be compared by."""
    return nats_per_token / math.log(2) / bytes_per_token


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line: training records have `loss`, evaluation records `validation`.

    A resumed run drops the records of steps that it is going to repeat.
    """

    def __init__(self, path: Path, *, resume_step: int):
        self.path = path
        kept = [record for record in read_metrics(path) if record["step"] <= resume_step] if path.exists() else []
        with atomic(path) as temporary:  # a kill here must not take the history with it
            temporary.write_text("".join(self.line(record) for record in kept), encoding="utf-8")

    def write(self, record: dict) -> None:
        """Append one record; a process killed after the call does not lose it."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(self.line(record))

    @staticmethod
    def line(record: dict) -> str:
        """A record as it is written."""
        return json.dumps(record, ensure_ascii=False) + "\n"


def read_metrics(path: Path) -> list[dict]:
    """Records of a metrics.jsonl; a last line that a kill cut short is left out."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]]


def plot(records: list[dict], path: Path) -> None:
    """`loss.png`: training loss by step, and held-out text: its bits per byte by language, or the task's metric."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [(record["step"], record["loss"]) for record in records if "loss" in record]
    left.plot(*zip(*train, strict=True), linewidth=1)
    tuned = [record for record in records if "held_out" in record]
    left.set(title="Training loss", xlabel="step", ylabel="loss" if tuned else "nats per token")
    held = [record for record in records if "validation" in record]
    for language in held[-1]["validation"] if held else ():
        points = [(record["step"], record["validation"][language]["bits_per_byte"]) for record in held]
        right.plot(*zip(*points, strict=True), label=language, linewidth=1)
    name = next(iter(tuned[0]["held_out"])) if tuned else "bits per byte"
    if tuned:  # where a metric is not defined the line has a gap
        points = [(record["step"], record["held_out"][name]) for record in tuned]
        right.plot(*np.array(points, dtype=float).T, marker=".", linewidth=1)
    right.set(title="Held-out text", xlabel="step", ylabel=name)
    if held:
        right.legend(ncols=2, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
