"""Steps that must not be taken, or that somebody should look at: no-number losses and gradients, and spikes.

The verdict is made of tensors where the loss is, so that a GPU never waits for it; what it was is read afterwards, for
many steps at once.
"""

import math
from dataclasses import dataclass

import torch

from .config import InputError


@dataclass
class GuardConfig:
    """What is done about steps whose loss or gradient norm is not finite, and about spikes.

    Args:
        stop_after: a run ends after so many steps in a row whose loss or gradient norm was not finite; each of them
            is left out.
        sigma: a loss or gradient norm so many standard deviations above its running mean is a spike.
        window: steps that mean and deviation are taken over; nothing is called a spike before half of it is there.
        skip_spikes: leave out the steps of spikes too.
    """

    stop_after: int = 10
    sigma: float = 6.0
    window: int = 128
    skip_spikes: bool = False


def finite(value: float) -> float | None:
    """A value as JSON can carry it: None for NaN and the infinities."""
    return value if math.isfinite(value) else None


class Guard:
    """Judges every step by the last `window` of them, and counts; all processes come to the same verdicts.

    Attributes:
        skipped, spikes: steps left out, and spikes, of the whole run as far as `settle` was told.
        in_a_row: newest steps without finite numbers.

    Raises:
        InputError: when a setting makes no sense.
    """

    def __init__(self, config: GuardConfig, device: torch.device):
        if config.stop_after < 1 or config.window < 4 or config.sigma <= 0:
            raise InputError("guard: stop_after must be at least 1, window at least 4 and sigma above 0.")
        self.config, self.step = config, 0
        self.seen = torch.full((2, config.window), math.nan, device=device)  # loss and norm; finite ones alone count
        self.skipped = self.spikes = self.in_a_row = 0
        self.pending: list[torch.Tensor] = []

    def judge(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """The verdict on one more step: 1.0 to leave it out, 0.0 to take it; a scalar on the device.

        Args:
            loss, norm: fp32 scalars, the same on every process.
        """
        now, known = torch.stack([loss, norm]), self.seen.isfinite()
        count = known.sum(1)
        mean = torch.where(known, self.seen, 0).sum(1) / count
        squares = torch.where(known, self.seen - mean[:, None], 0).square().sum(1)
        limit = mean + self.config.sigma * (squares / (count - 1)).sqrt()
        sound = now.isfinite().all()
        spike = sound & ((now > limit) & (count >= self.config.window // 2)).any()
        skip = ~sound | spike if self.config.skip_spikes else ~sound
        # A spike is remembered like any other step: at a new level, as after a change of text, it soon is none.
        self.seen[:, (self.step + len(self.pending)) % self.config.window] = torch.where(sound, now, math.nan)
        self.pending.append(torch.stack([*now, sound.float(), spike.float(), skip.float()]))
        return skip.float()

    def settle(self) -> list[dict]:
        """Wait for the steps judged since the last call, count them, and tell of those that were not as they should.

        Returns:
            A line for metrics.jsonl for each of them: the step, and the event with its kind ("not finite" or "spike"),
            whether it was skipped, its loss and its gradient norm.
        """
        events = []
        for loss, norm, sound, spike, skip in torch.stack(self.pending).tolist() if self.pending else ():
            self.step += 1
            self.in_a_row = 0 if sound else self.in_a_row + 1
            self.skipped += int(skip)
            self.spikes += int(spike)
            if spike or not sound:
                event = {"kind": "spike" if spike else "not finite", "skipped": bool(skip)}
                event |= {"loss": finite(loss), "gradient_norm": finite(norm)}
                events.append({"step": self.step, "event": event})
        self.pending.clear()
        return events

    def state(self) -> dict:
        """What a checkpoint keeps, as JSON; steps not settled are not in it."""
        assert not self.pending
        seen = [[finite(value) for value in row] for row in self.seen.tolist()]
        counts = {"skipped": self.skipped, "spikes": self.spikes, "in_a_row": self.in_a_row}
        return {"step": self.step, **counts, "seen": seen}

    def load(self, state: dict) -> None:
        """Go on from a checkpoint's `state`; with another `window` the running mean begins anew."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.spikes, self.in_a_row = state["spikes"], state["in_a_row"]
        seen = torch.tensor([[math.nan if value is None else value for value in row] for row in state["seen"]])
        if seen.shape == self.seen.shape:
            self.seen.copy_(seen)
