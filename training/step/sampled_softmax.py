"""Sampled softmax: cross-entropy over the most common tokens and a sample of the others, a new one for each step.

A small model with a large vocabulary spends most of its time on logits of tokens that almost never follow. The sum of
exponentials in the loss is estimated without bias: each sampled token represents several (Jean et al., arXiv
1412.2007, here with certain candidates in addition to sampled ones). The result does not depend on the division of a
step into micro batches and processes: all use the candidates of the step, and the target of each position is counted
exactly, sampled or not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..common.config import InputError
from .cross_entropy_kernels import exp_and_sum_

if TYPE_CHECKING:
    from ..data.loader import TokenStream

CHUNK_TOKENS = 2**24  # tokens counted at once


@dataclass
class Candidates:
    """Candidate tokens of one step.

    Args:
        ids: (K,) token ids, each once.
        certain: Number of ids, the first ones, that are candidates in every step.
        log_weight: ln of the number of tokens that each sampled id represents.
    """

    ids: torch.Tensor
    certain: int
    log_weight: float


def tokens_by_frequency(parts: Iterable[Sequence[int]], size: int, vocab_size: int) -> np.ndarray:
    """Return all token ids, those that are most frequent in `parts` first.

    Raises:
        InputError: If `size`, the number of candidates to choose, is not an even number below `vocab_size`.
    """
    if size % 2 or not 0 < size < vocab_size:
        raise InputError(f"candidates must be even and below the vocabulary's {vocab_size}, got {size}.")
    counts = np.zeros(vocab_size, dtype=np.int64)
    for ids in parts:
        np.add.at(counts, ids, 1)
    return np.argsort(-counts, kind="stable")


class CandidateSampler:
    """Sampler of the candidates of a step: half the most common tokens of a stream, half sampled from all others.

    Args:
        stream: Text whose tokens are counted.
        size: K.
        vocab_size: V.
        seed: Seed of the samples, together with the step.

    Raises:
        InputError: If `size` is not an even number below `vocab_size`.
    """

    def __init__(self, stream: "TokenStream", size: int, *, vocab_size: int, seed: int):
        total = int(stream.starts[-1])
        starts = range(0, total, CHUNK_TOKENS)
        parts = (stream.tokens(start, min(start + CHUNK_TOKENS, total)) for start in starts)
        order = tokens_by_frequency(parts, size, vocab_size)
        self.common, self.others, self.seed = order[: size // 2], order[size // 2 :], seed

    def __call__(self, step: int, device: torch.device) -> Candidates:
        """Return the candidates of a step, always the same."""
        sampled = np.random.default_rng((self.seed, step)).choice(self.others, len(self.common), replace=False)
        ids = torch.from_numpy(np.concatenate([self.common, sampled])).to(device)
        return Candidates(ids, len(self.common), float(np.log(len(self.others) / len(sampled))))


class SampledCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` over candidates; computes gradients in the same pass.

    The (K + 1) N logits of all N positions are in memory at once.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, candidates, dtype):
        N, K = len(hidden_ND), len(candidates.ids)
        positions = torch.arange(N, device=hidden_ND.device)
        hidden, exact = hidden_ND.to(dtype), torch.promote_types(dtype, torch.float32)
        weight_KD, target_ND = weight_VD[candidates.ids].to(dtype), weight_VD[targets_N].to(dtype)
        place = torch.full((len(weight_VD),), -1, device=hidden.device)
        place[candidates.ids] = torch.arange(K, device=hidden.device)
        among = place[targets_N]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.empty(K + 1, N, dtype=dtype, device=hidden.device)  # last row: the target of each position
            torch.mm(weight_KD, hidden.T, out=logits[:K])
            logits[candidates.certain : K] += candidates.log_weight
            # Count each target once, in the last row, which is overwritten. A mask as index would wait for a GPU.
            logits[torch.where(among < 0, K, among), positions] = -torch.inf
            logits[K] = (hidden.to(exact) * target_ND.to(exact)).sum(1)
            at_target = logits[K].to(exact, copy=True)  # rounded as in the sum
            largest, total = exp_and_sum_(logits)
            losses = largest + total.log() - at_target
            scale = (1 / (total * N))[:, None]
            pull = ((at_target - largest).exp() - total)[:, None] * scale
            grad_hidden = (logits[:K].T @ weight_KD).to(exact) * scale + pull * target_ND
            grad_weight = torch.zeros_like(weight_VD, dtype=exact)
            grad_weight.index_add_(0, targets_N, pull * hidden)
            grad_weight.index_add_(0, candidates.ids, (logits[:K] @ (hidden * scale).to(dtype)).to(exact))
        ctx.gradients = grad_hidden.to(hidden_ND.dtype), grad_weight.to(weight_VD.dtype)
        return losses.mean().float()

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None  # scaled in place, once
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None, None
