"""Cross-entropy computed from hidden states in chunks: the (B, T, V) logits never exist, in any precision."""

import torch

from .cross_entropy_kernels import accumulate_, exp_and_sum_, has_cpu_kernel
from .sampled_softmax import Candidates, SampledCrossEntropy

CHUNK_BYTES = 2**27  # logits in memory at once: with V = 65,536 in bf16, those of 1,024 positions


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T`, a chunk of positions at a time; computes gradients in the same pass.

    The logits of a position are needed only for its loss and its two gradient matmuls, so those of each chunk are
    dropped at once: three matmuls in total, as in the plain implementation, and no second forward. Between the first
    matmul and the other two the logits are read twice and written once: they become exponentials, which are never
    divided by their sum; the small factors of the matmuls are divided instead.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, dtype):
        (N, _), V = hidden_ND.shape, len(weight_VD)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        ctx.gradients, ctx.dtypes = None, (hidden_ND.dtype, weight_VD.dtype)
        if any(ctx.needs_input_grad[:2]):
            ctx.gradients = torch.empty_like(hidden), torch.zeros_like(weight, dtype=exact)
        chunk_size = max(1, min(N, CHUNK_BYTES // (V * dtype.itemsize)))
        buffer = torch.empty(chunk_size * V, dtype=dtype, device=hidden.device)
        losses = torch.empty(N, dtype=exact, device=hidden.device)
        by_token = has_cpu_kernel(weight)  # this order, in which matmuls read it, makes two of them twice as fast
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in torch.arange(N, device=hidden.device).split(chunk_size):
                rows, target = hidden[chunk], targets_N[chunk]
                n = len(chunk)
                entries = target, chunk - chunk[0]
                logits = buffer[: V * n].view(V, n) if by_token else buffer[: V * n].view(n, V).T
                torch.mm(weight, rows.T, out=logits)
                at_target = logits[entries].to(exact)
                largest, total = exp_and_sum_(logits)
                losses[chunk] = largest + total.log() - at_target
                if ctx.gradients is None:
                    continue
                grad_hidden, grad_weight = ctx.gradients
                scale = (1 / (total * N))[:, None]
                logits[entries] = ((at_target - largest).exp() - total).to(dtype)
                grad_hidden[chunk] = ((logits.T @ weight) * scale).to(dtype)
                accumulate_(grad_weight, logits @ (rows * scale).to(dtype))
        return losses.mean().float()

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None  # scaled in place below: a second backward must fail, as it does in PyTorch
        hidden_dtype, weight_dtype = ctx.dtypes
        return grad_hidden.mul_(grad).to(hidden_dtype), grad_weight.mul_(grad).to(weight_dtype), None, None


def next_token_loss(
    model, windows: torch.Tensor, *, dtype: torch.dtype, candidates: Candidates | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy in nats of every token except the first, given the tokens before it.

    Args:
        model: A `PleiasForCausalLM`.
        windows: (B, T + 1) token ids; T predictions each.
        dtype: Dtype of the matmuls and of the residual stream; the loss itself is computed in fp32.
        candidates: Tokens from which the loss is estimated (sampled softmax). Without gradients, and by default, the
            loss is over the complete vocabulary.
    """
    embedded = model.model.embed_tokens(windows[:, :-1]).to(dtype)
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    weight = model.lm_head.weight
    if not torch.is_grad_enabled():
        weight = weight.detach()  # a Function sees whether its inputs require gradients, not no_grad
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), windows[:, 1:].reshape(-1)
    if candidates is not None and torch.is_grad_enabled():
        return SampledCrossEntropy.apply(hidden, weight, targets, candidates, dtype)
    return LinearCrossEntropy.apply(hidden, weight, targets, dtype)
