"""Compute settings of a training step: dtype, memory allocator, denormals and compilation."""

import ctypes
import os
import platform
import sys

import torch
from transformers import PreTrainedModel

from modeling_pleias import PleiasForCausalLM, cpu_compute_dtype

from .loss import next_token_loss
from .sampled_softmax import Candidates

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's names, from glibc's malloc.h


def configure_allocator() -> None:
    """Keep freed memory in the process, and allocate in pages of 2 MB. Call before creating tensors.

    By default glibc returns large blocks to the system as soon as they are freed. Allocated again they are zeroed,
    4 KB at a time, and a training step on a CPU frees and allocates such blocks all the time
    (training/bench/RESULTS.md has the cost). CUDA memory has PyTorch's own cache.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's own setting, read at its first allocation
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def flush_denormals() -> None:
    """Flush denormals to zero in this thread and its children. Call before creating tensors.

    Attention of a trained model is full of probabilities below 1.2e-38, and CPUs process them on a slow path: the
    backward pass through attention takes three times as long in total (training/bench/RESULTS.md).
    """
    torch.set_flush_denormal(True)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matmuls: the requested one, or for "auto" the one in which the device is fast.

    On a CPU with AVX512-BF16 a training step of femto takes a third of the time in bf16 compared with fp32; on a CPU
    without it, bf16 is tens of times slower than fp32 (training/bench/RESULTS.md).
    """
    if precision == "auto":
        if device.type != "cuda":
            return cpu_compute_dtype()
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def to_compute(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Move a bfloat16 model to the device and dtype for generation; widening to float32 is lossless."""
    # No conversion to bfloat16, which it already has: that would round the rotary frequencies, too.
    return model.to(device) if dtype == torch.bfloat16 else model.to(device, dtype)


class NextTokenLoss(torch.nn.Module):
    """Model and loss as one module: DDP wraps a single forward, which returns the loss and never the logits.

    Args:
        model: Model to train.
        dtype: Dtype of matmuls.

    Attributes:
        candidates: Tokens over which the current step estimates its loss; None for the complete vocabulary.
    """

    def __init__(self, model: PleiasForCausalLM, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.candidates: Candidates | None = None

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean loss in nats of (B, T + 1) ids."""
        with torch.autocast(windows.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return next_token_loss(self.model, windows, dtype=self.dtype, candidates=self.candidates)


def compile_layers(model: PleiasForCausalLM) -> None:
    """Compile each layer separately: in a fully compiled model attention gets a (T, T) mask and repeated heads.

    All layers share one compiled function. The first step takes some seconds longer (training/bench/RESULTS.md).
    """
    for layer in model.model.layers:
        layer.compile()
