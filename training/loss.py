"""Cross-entropy straight from hidden states: (B, T, V) logits never exist, in any precision."""

import torch

CHUNK_ROWS = 512  # positions whose logits are held at once: with V = 65,536, 128 MB in fp32


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T`, some rows at a time; gradients are made in the same pass.

    A row's logits are only needed to make its loss and its two gradient products, so each chunk's are dropped at once:
    three matrix products in all, as in the plain way, and no second forward.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, dtype):
        N = len(hidden_ND)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        with_gradients = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if with_gradients else None
        losses = torch.empty(N, dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, N, CHUNK_ROWS):
                chunk = slice(start, start + CHUNK_ROWS)
                target = targets_N[chunk, None]
                log_probabilities = torch.log_softmax(hidden[chunk] @ weight.T, -1, dtype=torch.float32)
                losses[chunk] = -log_probabilities.gather(-1, target).squeeze(-1)
                if with_gradients:
                    grad = log_probabilities.exp_()
                    grad.scatter_add_(-1, target, torch.full_like(target, -1.0, dtype=torch.float32))
                    grad = grad.to(dtype)
                    grad_hidden[chunk] = grad @ weight
                    grad_weight += grad.T @ hidden[chunk]
        if with_gradients:
            ctx.save_for_backward(grad_hidden.to(hidden_ND.dtype), grad_weight.to(weight_VD.dtype))
        return losses.mean()

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        grad = grad / len(grad_hidden)  # the mean's share, on the small products instead of on every logit
        return grad_hidden * grad, grad_weight * grad, None, None


def next_token_loss(model, windows: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Mean cross-entropy in nats of every token but the first, given those before it.

    Args:
        model: a `PleiasForCausalLM`.
        windows: (B, T + 1) token ids; T predictions each.
        dtype: of the matrix products; the loss itself is computed in fp32.
    """
    hidden = model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    weight = model.lm_head.weight
    if not torch.is_grad_enabled():
        weight = weight.detach()  # a Function cannot see no_grad, only whether its inputs want gradients
    return LinearCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight, windows[:, 1:].reshape(-1), dtype)
