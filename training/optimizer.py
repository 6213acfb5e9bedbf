"""The optimizers of pretraining, their learning rate by step, and how one is told to leave out a step."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributed.tensor import DTensor

from modeling_pleias import PleiasForCausalLM

from .compute import compute_dtype
from .config import InputError


@dataclass
class OptimizerConfig:
    """The optimizer and its learning rate. Defaults: the published 1.2b settings (nanotron YAML).

    Args:
        name: adamw for every parameter; or muon for the matrices inside the layers and AdamW for the rest, embeddings
            and norms, at the same learning rate (Muon's update is scaled to the size that AdamW's has).
        learning_rate: at its highest.
        final_learning_rate: at the end of the decay, and from there on.
        warmup_steps: linear from 0.
        schedule: cosine, which decays from the end of the warm-up on; or wsd (warm-up, stable, decay), which stays at
            its highest until the decay that ends the last stage.
        decay: form of wsd's decay: linear, or 1-sqrt (arXiv 2405.18392), which falls fast at first.
        decay_steps: length of the decay. When not given, the cosine lasts to the end of the last stage, and wsd's is a
            fifth of all steps.
        beta1: of the first moment.
        beta2: of the second moment.
        epsilon: in the denominator.
        momentum: of Muon.
        weight_decay: on every parameter, norms and embeddings too, as published.
        clip: gradient norm above which gradients are scaled down.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 60_000
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: Literal["linear", "1-sqrt"] = "1-sqrt"
    decay_steps: int | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.01
    clip: float = 1.0


def learning_rate(o: OptimizerConfig, step: int, *, steps: int) -> float:
    """At optimizer step `step`, the first being 1, of `steps` in all: linear warm-up, the schedule, then flat."""
    if step <= o.warmup_steps:
        return o.learning_rate * step / o.warmup_steps
    if o.schedule == "cosine":
        decay = o.decay_steps or max(1, steps - o.warmup_steps)
        progress = min(1.0, (step - o.warmup_steps) / decay)
        share = (1 + math.cos(math.pi * progress)) / 2
    else:
        decay = o.decay_steps or max(1, steps // 5)
        progress = min(1.0, max(0.0, (step - steps + decay) / decay))
        share = 1 - (progress if o.decay == "linear" else math.sqrt(progress))
    return o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * share


def orthogonalize(matrix: torch.Tensor, *, coefficients: tuple[float, float, float], steps: int, eps: float):
    """Replace the singular values of a matrix (M, N) by values near 1, by Newton-Schulz iteration in its own dtype.

    The operations are those of torch.optim.Muon, which always computes in bf16; in bf16 the result has equal bits.
    """
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Muon):
    """torch.optim.Muon, computed in the dtype that the device is fast in.

    PyTorch's own is bf16 on every device: on a CPU without bf16 instructions 56 times slower than fp32 for a matrix of
    384 x 1,024 (training/bench/RESULTS.md).
    """

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every parameter with a gradient."""
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
                # The root mean square of AdamW's update, about 0.2 ("match_rms_adamw" in PyTorch).
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some parameters and fused AdamW for the others as one optimizer: one state, one list of groups."""

    def __init__(self, matrices: list, others: list, o: OptimizerConfig):
        self.muon = Muon(matrices, o.learning_rate, o.weight_decay, o.momentum)
        self.adamw = adamw(others, o)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make the two see what this one holds; loading replaces it."""
        muon, adamw = self.param_groups
        self.muon.param_groups, self.adamw.param_groups = [muon], [adamw]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        """As every optimizer's."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update, unless `found_inf` says no. Muon has no fused kernel to read that on the device, so this waits."""
        self.adamw.found_inf = self.found_inf
        self.adamw.step()
        if not self.found_inf.item():
            self.muon.step()


def adamw(parameters, o: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW by our settings."""
    return torch.optim.AdamW(parameters, o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay, fused=True)


def build(o: OptimizerConfig, model: PleiasForCausalLM) -> torch.optim.Optimizer:
    """The optimizer of a run, over all parameters of `model`.

    Raises:
        InputError: for Muon on a model that is cut: it needs whole matrices.
    """
    if o.name == "adamw":
        return adamw(model.parameters(), o)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise InputError(
            "optimizer.name muon needs whole matrices, and FSDP2 cuts them; launch with accelerate/ddp.yaml."
        )
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = set(matrices)
    return MuonAdamW(matrices, [parameter for parameter in model.parameters() if parameter not in chosen], o)


def step_unless(skip: torch.Tensor, optimizer) -> None:
    """One step of a prepared optimizer, which leaves weights and state as they are where `skip` is 1.0.

    Fused kernels read that on the device, as they do for a GradScaler: nothing waits for it.
    """
    optimizer.optimizer.found_inf = skip
    optimizer.step()
    optimizer.zero_grad()
