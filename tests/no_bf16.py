"""Simulate a CPU without bfloat16 instructions, on which any bfloat16 matmul is an error."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "matmul", "convolution")


class RefuseBf16Products(TorchDispatchMode):
    """Raise at a matmul or attention with a bfloat16 argument on the CPU, in forward or backward."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS or "dot_product" in name:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu":
                    raise AssertionError(f"{name} in bfloat16 on a CPU that has no instructions for it")
        return func(*args, **(kwargs or {}))


@contextmanager
def cpu_without_bf16() -> Iterator[None]:
    """Run the block, and the processes it starts, as on a CPU with only AVX2; bf16 matmuls in this process fail."""
    with pytest.MonkeyPatch.context() as patch, RefuseBf16Products():
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        patch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        yield
