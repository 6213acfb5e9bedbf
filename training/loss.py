"""Cross-entropy straight from hidden states: (B, T, V) logits never exist, in any precision."""

import torch

from .kernels import add_, exponentials_, in_c
from .sampled import Candidates, SampledCrossEntropy

CHUNK_BYTES = 2**27  # of logits that are held at once: with V = 65,536 in bf16, those of 1,024 positions


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T`, some positions at a time; gradients are made in the same pass.

    A position's logits are only needed to make its loss and its two gradient products, so each chunk's are dropped at
    once: three matrix products in all, as in the plain way, and no second forward. Between the first product and the
    other two the logits are read twice and written once: they become exponentials, which are never divided by their
    sum: the small sides of the products are.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, dtype, z_loss=0.0):
        (N, _), V = hidden_ND.shape, len(weight_VD)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        ctx.gradients, ctx.dtypes = None, (hidden_ND.dtype, weight_VD.dtype)
        if any(ctx.needs_input_grad[:2]):
            ctx.gradients = torch.empty_like(hidden), torch.zeros_like(weight, dtype=exact)
        at_once = max(1, min(N, CHUNK_BYTES // (V * dtype.itemsize)))
        buffer = torch.empty(at_once * V, dtype=dtype, device=hidden.device)
        losses = torch.empty(N, dtype=exact, device=hidden.device)
        by_entry = in_c(weight)  # so that their large matrix lies as it is read, two products run at twice the rate
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in torch.arange(N, device=hidden.device).split(at_once):
                rows, target = hidden[chunk], targets_N[chunk]
                n = len(chunk)
                entries = target, chunk - chunk[0]
                logits = buffer[: V * n].view(V, n) if by_entry else buffer[: V * n].view(n, V).T
                torch.mm(weight, rows.T, out=logits)
                at_target = logits[entries].to(exact)
                largest, total = exponentials_(logits)
                log_sum = largest + total.log()
                losses[chunk] = log_sum - at_target + z_loss * log_sum.square()
                if ctx.gradients is None:
                    continue
                grad_hidden, grad_weight = ctx.gradients
                pull = 1 + 2 * z_loss * log_sum  # on every probability; 1 without z-loss
                scale = (pull / (total * N))[:, None]
                logits[entries] = ((at_target - largest).exp() - total / pull).to(dtype)
                grad_hidden[chunk] = ((logits.T @ weight) * scale).to(dtype)
                add_(grad_weight, logits @ (rows * scale).to(dtype))
        return losses.mean().float()

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None  # they are scaled in place: a second backward must fail, as PyTorch's own does
        hidden_dtype, weight_dtype = ctx.dtypes
        return grad_hidden.mul_(grad).to(hidden_dtype), grad_weight.mul_(grad).to(weight_dtype), None, None, None


def document_positions(ids: torch.Tensor, start: int) -> torch.Tensor:
    """Positions (B, T) that begin anew with each document, at the id `start`: our models keep such apart."""
    index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return index - torch.where(ids == start, index, 0).cummax(1).values


def next_token_loss(
    model,
    windows: torch.Tensor,
    *,
    dtype: torch.dtype,
    z_loss: float = 0.0,
    document_mask: bool = False,
    candidates: Candidates | None = None,
) -> torch.Tensor:
    """Mean cross-entropy in nats of every token but the first, given those before it.

    Args:
        model: a `PleiasForCausalLM`.
        windows: (B, T + 1) token ids; T predictions each.
        dtype: of the matrix products and of the residual stream; the loss itself is computed in fp32.
        z_loss: times the mean square of the logits' log-sum-exp is added, which keeps that near 0 (PaLM, arXiv
            2204.02311); where no gradient is wanted it is left out.
        document_mask: given those before it in its own document alone.
        candidates: what the loss is estimated from, without z-loss; all of the vocabulary when not given and where no
            gradient is wanted.
    """
    embedded = model.model.embed_tokens(windows[:, :-1]).to(dtype)
    positions = document_positions(windows[:, :-1], model.config.bos_token_id) if document_mask else None
    hidden = model.model(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
    weight = model.lm_head.weight
    if not torch.is_grad_enabled():
        weight, z_loss = weight.detach(), 0.0  # a Function sees only whether its inputs want gradients, not no_grad
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), windows[:, 1:].reshape(-1)
    if candidates is not None and torch.is_grad_enabled():
        return SampledCrossEntropy.apply(hidden, weight, targets, candidates, dtype)
    return LinearCrossEntropy.apply(hidden, weight, targets, dtype, z_loss)
