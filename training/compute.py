"""How a step computes: in which precision, in what memory, and what of it is compiled."""

import ctypes
import os
import platform
import sys

import torch
from transformers import PreTrainedModel

from modeling_pleias import PleiasForCausalLM, cpu_compute_dtype

from .loss import next_token_loss
from .sampled import Candidates

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's names, from glibc's malloc.h


def keep_memory() -> None:
    """Have freed memory stay with the process, and new memory come in pages of 2 MB; before the first tensor is made.

    Left alone, glibc hands large blocks back to the system as soon as they are freed; taken again they are zeroed,
    4 KB at a time, and a step on a CPU frees and takes such blocks all the time (training/bench/RESULTS.md has what it
    costs). CUDA memory has PyTorch's own cache.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's own setting, read at its first allocation
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def flush_denormals() -> None:
    """Have numbers below 1.2e-38 count as 0, in this thread and in those it starts; before the first tensor is made.

    Attention of a trained model is full of probabilities that small, and processors take a slow path for them: the
    backward pass through attention three times as long in all (training/bench/RESULTS.md).
    """
    torch.set_flush_denormal(True)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: the requested one, or for "auto" the one that the device is fast in.

    On a CPU with AVX512-BF16 a step of femto in bf16 takes a third of the time of one in fp32; on a CPU without, bf16
    is tens of times slower than fp32 (training/bench/RESULTS.md).
    """
    if precision == "auto":
        if device.type != "cuda":
            return cpu_compute_dtype()
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def to_compute(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Move a bfloat16 model to the device and dtype that it is to generate in; widening to float32 is lossless."""
    # Not to bfloat16, which it is in: that would round the rotary frequencies, too.
    return model.to(device) if dtype == torch.bfloat16 else model.to(device, dtype)


class NextTokenLoss(torch.nn.Module):
    """Model and loss as one module: what DDP wraps sees one forward, and logits never leave it.

    Args:
        options: of next_token_loss.

    Attributes:
        candidates: of the step, where its loss is over part of the vocabulary.
    """

    def __init__(self, model: PleiasForCausalLM, dtype: torch.dtype, **options):
        super().__init__()
        self.model, self.dtype, self.options = model, dtype, options
        self.candidates: Candidates | None = None

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(B, T + 1) ids to the mean loss in nats."""
        with torch.autocast(windows.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return next_token_loss(self.model, windows, dtype=self.dtype, candidates=self.candidates, **self.options)


def compile_layers(model: PleiasForCausalLM) -> None:
    """torch.compile each layer by itself: compiled whole, attention would be given a (T, T) mask and repeated heads.

    All layers share one compiled function. The first step takes some seconds more (training/bench/RESULTS.md).
    """
    for layer in model.model.layers:
        layer.compile()
