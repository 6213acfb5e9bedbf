"""Optimizers of pretraining (AdamW, Muon), their learning-rate schedules, and steps skipped on the device."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributed.tensor import DTensor

from modeling_pleias import PleiasForCausalLM

from ..common.config import InputError
from .compute import compute_dtype


@dataclass
class OptimizerConfig:
    """The optimizer and its learning-rate schedule. Defaults: the published settings of the 1.2b (nanotron YAML).

    Args:
        name: Optimizer. adamw updates all parameters. muon updates the matrices inside the layers, and AdamW the
            embeddings and norms at the same learning rate, because Muon's update is scaled to the size of AdamW's.
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the end of the decay, and from there on.
        warmup_steps: Steps of linear warm-up from 0.
        schedule: Learning-rate schedule. cosine decays from the end of the warm-up. wsd (warm-up, stable, decay) keeps
            the peak and decays linearly at the end of the last stage.
        decay_steps: Steps of the decay. Default: cosine decays to the end of the last stage, and wsd in the last fifth
            of all steps.
        beta1: Decay rate of AdamW's first moment.
        beta2: Decay rate of AdamW's second moment.
        epsilon: Term added to the denominator of AdamW's update.
        weight_decay: Weight decay of every parameter, norms and embeddings included, as published.
        clip: Maximum gradient norm; larger gradients are scaled down to it.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 60_000
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_steps: int | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0


def learning_rate(o: OptimizerConfig, step: int, *, steps: int) -> float:
    """Return the learning rate at step `step` of `steps`, counted from 1: linear warm-up, decay, then constant."""
    if step <= o.warmup_steps:
        return o.learning_rate * step / o.warmup_steps
    if o.schedule == "cosine":
        decay = o.decay_steps or max(1, steps - o.warmup_steps)
        progress = min(1.0, (step - o.warmup_steps) / decay)
        share = (1 + math.cos(math.pi * progress)) / 2
    else:
        decay = o.decay_steps or max(1, steps // 5)
        progress = min(1.0, max(0.0, (step - steps + decay) / decay))
        share = 1 - progress
    return o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * share


def orthogonalize(matrix: torch.Tensor, *, coefficients: tuple[float, float, float], steps: int, eps: float):
    """Replace the singular values of an (M, N) matrix with values near 1, by Newton-Schulz iteration in its dtype.

    The operations are those of torch.optim.Muon, which always computes in bf16; in bf16 the result is bit-identical.
    """
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Muon):
    """torch.optim.Muon, computed in the dtype in which the device is fast.

    PyTorch's own computes in bf16 on every device: on a CPU without bf16 instructions 56 times slower than fp32 for a
    matrix of 384 x 1,024 (training/bench/RESULTS.md).
    """

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            newton_schulz = {"coefficients": group["ns_coefficients"], "steps": group["ns_steps"], "eps": group["eps"]}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])  # Nesterov
                update = orthogonalize(update.to(compute_dtype("auto", parameter.device)), **newton_schulz)
                # The root mean square of AdamW's update is about 0.2 ("match_rms_adamw" in PyTorch).
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices and fused AdamW for the other parameters, as one optimizer: one state, one list of groups."""

    def __init__(self, matrices: list, others: list, o: OptimizerConfig):
        self.muon = Muon(matrices, o.learning_rate, o.weight_decay)
        self.adamw = adamw(others, o)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Share groups and state with both optimizers; call again after loading, which replaces them."""
        muon, adamw = self.param_groups
        self.muon.param_groups, self.adamw.param_groups = [muon], [adamw]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state, as every optimizer does."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update unless `found_inf` is 1. Muon has no fused kernel that reads it on the device, so this waits."""
        self.adamw.found_inf = self.found_inf
        self.adamw.step()
        if not self.found_inf.item():
            self.muon.step()


def adamw(parameters, o: OptimizerConfig) -> torch.optim.AdamW:
    """Return fused AdamW with the settings of a config."""
    return torch.optim.AdamW(parameters, o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay, fused=True)


def build_optimizer(o: OptimizerConfig, model: PleiasForCausalLM) -> torch.optim.Optimizer:
    """Return the optimizer of a run, over all parameters of `model`.

    Raises:
        InputError: If Muon is requested for a sharded model: it needs unsharded matrices.
    """
    if o.name == "adamw":
        return adamw(model.parameters(), o)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise InputError(
            "optimizer.name muon needs unsharded matrices, and FSDP2 shards them. Launch with accelerate/ddp.yaml."
        )
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    by_muon = set(matrices)
    return MuonAdamW(matrices, [parameter for parameter in model.parameters() if parameter not in by_muon], o)


def conditional_step(skip: torch.Tensor, optimizer) -> None:
    """Run one step of a prepared optimizer; weights and state stay unchanged if `skip` is 1.0.

    Fused kernels read `skip` on the device, as they do for a GradScaler, without synchronisation.
    """
    optimizer.optimizer.found_inf = skip
    optimizer.step()
    optimizer.zero_grad()
