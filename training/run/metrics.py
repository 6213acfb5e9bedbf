"""Metrics of a run: FLOPs, utilisation (MFU), bits per byte, the metrics log, and the loss plot."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.config import InputError
from ..common.files import atomic, naming

if TYPE_CHECKING:  # slow to import, and not needed for the arithmetic
    import torch

    from modeling_pleias import PleiasConfig

# Dense bf16 peak in FLOP/s per device, by part of its name. Source: NVIDIA's data sheets.
PEAK_FLOPS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}


def count_parameters(config: "PleiasConfig") -> int:
    """Return the trainable parameters of `PleiasForCausalLM`, with tied embeddings counted once."""
    D, K = config.hidden_size, config.head_dim
    attention = 2 * D * K * (config.num_attention_heads + config.num_key_value_heads)
    mlp, norms = 3 * D * config.intermediate_size, 2 * D
    body = config.num_hidden_layers * (attention + mlp + norms) + D
    return body + config.vocab_size * D * (1 if config.tie_word_embeddings else 2)


def flops_per_token(config: "PleiasConfig", sequence_length: int, *, attention: str = "full") -> int:
    """Return training FLOPs (forward and backward) per token, by one of the three common conventions.

    Args:
        config: Model config.
        sequence_length: T.
        attention: "none" counts only 6N; "causal" adds the half of the attention scores that a causal mask needs;
            "full" adds all of them (the PaLM convention, used for MFU unless stated otherwise).
    """
    share = {"none": 0, "causal": 1, "full": 2}[attention]
    scores = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length * share
    return 6 * count_parameters(config) + scores


def tokens_per_second(flops: int, *, mfu: float, peak: float) -> float:
    """Return the tokens/s of one device.

    Args:
        flops: FLOPs per token.
        mfu: Used fraction of `peak`, in the convention of `flops`.
        peak: FLOP/s of the device.
    """
    return mfu * peak / flops


def activation_bytes_per_token(config: "PleiasConfig") -> int:
    """Return the bytes per token that autograd keeps between forward and backward under bf16 autocast.

    Without recomputation, counted per operation in eager mode with fused attention, so an upper bound for compiled
    layers. In a layer, with D hidden, H and G query and key/value heads of K, F intermediate: each of the two norms
    keeps its input in fp32, its normalised input in bf16 (12 D) and the root mean square (8); the inputs of q, k, v,
    gate and up are cast to bf16 one by one (10 D); attention keeps q, its output (4 H K), k, v (4 G K) and a sum per
    head (4 H); the MLP keeps gate, silu(gate), up and their product (8 F). After the layers: one norm (6 D + 4), the
    gradient of the hidden states (2 D), and the ids (16).
    """
    D, F, K = config.hidden_size, config.intermediate_size, config.head_dim
    H, G = config.num_attention_heads, config.num_key_value_heads
    layer = 22 * D + 4 * H * K + 4 * G * K + 4 * H + 8 * F + 8
    return config.num_hidden_layers * layer + 8 * D + 20


def peak_flops(device: "torch.device") -> float | None:
    """Return the dense bf16 peak of a device in FLOP/s, or None if its data sheet is unknown."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Convert cross-entropy to bits per UTF-8 byte, which is comparable across tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token


class MetricsLog:
    """Log in JSON Lines format: in metrics.jsonl training records have `loss`, evaluation records `validation`.

    Args:
        path: File of the log.
        resume_step: Step from which a run resumes; records of later steps are dropped, because they are repeated.
    """

    def __init__(self, path: Path, *, resume_step: int):
        self.path = path
        records = [record for record in read_metrics(path) if record["step"] <= resume_step] if path.exists() else []
        with atomic(path) as temporary:  # a kill here must not lose the history
            temporary.write_text("".join(self.line(record) for record in records), encoding="utf-8")

    def write(self, record: dict) -> None:
        """Append one record; it survives a kill of the process after this call."""
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(self.line(record))

    @staticmethod
    def line(record: dict) -> str:
        """Return a record as a line."""
        return json.dumps(record, ensure_ascii=False) + "\n"


def read_metrics(path: Path) -> list[dict]:
    """Return the records of a metrics.jsonl, without a last line that a kill truncated.

    Raises:
        InputError: If a line is not JSON.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"Line {number} of {path} is not JSON ({error}): remove it.") from None
    return records


def plot(records: list[dict], path: Path) -> None:
    """Plot training loss by step, and bits per byte of held-out text by language or the task's metric (loss.png)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [(record["step"], record["loss"]) for record in records if "loss" in record]
    left.plot(*zip(*train, strict=True), linewidth=1)
    tuned = [record for record in records if "held_out" in record]
    left.set(title="Training loss", xlabel="step", ylabel="loss" if tuned else "nats per token")
    validated = [record for record in records if "validation" in record]
    for language in validated[-1]["validation"] if validated else ():
        points = [(record["step"], record["validation"][language]["bits_per_byte"]) for record in validated]
        right.plot(*zip(*points, strict=True), label=language, linewidth=1)
    name = next(iter(tuned[0]["held_out"])) if tuned else "bits per byte"
    if tuned:  # the line has a gap if a metric is undefined
        points = [(record["step"], record["held_out"][name]) for record in tuned]
        right.plot(*np.array(points, dtype=float).T, marker=".", linewidth=1)
    right.set(title="Held-out text", xlabel="step", ylabel=name)
    if validated:
        right.legend(ncols=2, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
