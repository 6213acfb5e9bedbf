"""Skip optimizer steps with a NaN or infinite loss or gradient norm, and report loss spikes.

The decision is a device tensor, so the GPU is never synchronised; `settle` reads many decisions at once.
"""

import math

import torch

from ..common.config import InputError

WINDOW = 128  # steps that the running mean is taken over; no step is called a spike before half of them are recorded
SIGMA = 6.0  # standard deviations above the running mean from which a loss or gradient norm is a spike


def finite_or_none(value: float) -> float | None:
    """Return a value that JSON can represent: None for NaN and the infinities."""
    return value if math.isfinite(value) else None


class StepGuard:
    """Check each step against the last `WINDOW` steps, and count; the result is the same on all processes.

    Args:
        limit: Number of consecutive non-finite steps after which the run must stop.
        device: Device of the loss.

    Attributes:
        skipped, spikes: Number of skipped steps and of spikes in the run, up to the last call of `settle`.
        in_a_row: Number of consecutive non-finite steps up to the latest step.

    Raises:
        InputError: If the limit is below 1.
    """

    def __init__(self, limit: int, device: torch.device):
        if limit < 1:
            raise InputError(f"max_nonfinite_steps must be at least 1, got {limit}.")
        self.limit, self.step = limit, 0
        self.seen = torch.full((2, WINDOW), math.nan, device=device)  # loss and norm; only finite values count
        self.skipped = self.spikes = self.in_a_row = 0
        self.pending: list[torch.Tensor] = []

    def check(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Return 1.0 if the step must be skipped, else 0.0, as a device scalar.

        Args:
            loss, norm: fp32 scalars, the same on every process.
        """
        now, known = torch.stack([loss, norm]), self.seen.isfinite()
        count = known.sum(1)
        mean = torch.where(known, self.seen, 0).sum(1) / count
        squares = torch.where(known, self.seen - mean[:, None], 0).square().sum(1)
        threshold = mean + SIGMA * (squares / (count - 1)).sqrt()
        sound = now.isfinite().all()
        spike = sound & ((now > threshold) & (count >= WINDOW // 2)).any()
        # A spike is recorded like any other step: at a new level, as after a change of text, steps soon are no spikes.
        self.seen[:, (self.step + len(self.pending)) % WINDOW] = torch.where(sound, now, math.nan)
        self.pending.append(torch.stack([*now, sound.float(), spike.float()]))
        return (~sound).float()

    def collect_events(self) -> list[dict]:
        """Wait for the steps checked since the last call, count them, and return the non-finite ones and the spikes.

        Returns:
            A line for metrics.jsonl for each: the step, and the event with its kind ("not finite" or "spike"), whether
            the step was skipped, its loss and its gradient norm.
        """
        events = []
        for loss, norm, sound, spike in torch.stack(self.pending).tolist() if self.pending else ():
            self.step += 1
            self.in_a_row = 0 if sound else self.in_a_row + 1
            self.skipped += int(not sound)
            self.spikes += int(spike)
            if spike or not sound:
                event = {"kind": "spike" if spike else "not finite", "skipped": not sound}
                event |= {"loss": finite_or_none(loss), "gradient_norm": finite_or_none(norm)}
                events.append({"step": self.step, "event": event})
        self.pending.clear()
        return events

    def state(self) -> dict:
        """Return the state for a checkpoint, as JSON; call `settle` before."""
        assert not self.pending
        seen = [[finite_or_none(value) for value in row] for row in self.seen.tolist()]
        counts = {"skipped": self.skipped, "spikes": self.spikes, "in_a_row": self.in_a_row}
        return {"step": self.step, **counts, "seen": seen}

    def load(self, state: dict) -> None:
        """Resume from a checkpoint's `state`."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.spikes, self.in_a_row = state["spikes"], state["in_a_row"]
        self.seen.copy_(torch.tensor([[math.nan if x is None else x for x in row] for row in state["seen"]]))
