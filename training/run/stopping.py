"""Stop a run on a signal: finish the step, save a checkpoint, and exit with a status that asks for a restart."""

import os
import signal

import torch
from accelerate import Accelerator

from ..common.signals import end_with_parent

EXIT_RESUMABLE = 75  # exit status of a run that saved and stopped on a signal: EX_TEMPFAIL, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: the usual warning of Slurm (--signal)


def forward_launcher_sigterm() -> None:
    """Have Linux send SIGTERM to this process when `accelerate launch`, which started it, ends.

    A launcher of one process ends on SIGTERM without passing it on; with several processes torchrun passes it on.
    Processes that something else started are not affected: the end of a shell must not end what nohup protects.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ:
        end_with_parent()


class StopSignal:
    """Handler that records the first of SIGNALS; a second one ends the process at once."""

    def __init__(self):
        self.received: str | None = None
        self.before = {number: signal.signal(number, self._record) for number in SIGNALS}

    def restore(self) -> None:
        """Have signals do what they did before this handler."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame) -> None:
        if self.received:
            os.write(2, f"\nStopped by {signal.Signals(number).name}, without saving.\n".encode())
            os._exit(128 + number)
        self.received = signal.Signals(number).name

    def received_by_all(self, accelerator: Accelerator, *, now: bool) -> str | None:
        """Return the signal's name once every process knows of it; several processes compare only if `now` is true."""
        if accelerator.num_processes == 1:
            return self.received
        if not now:
            return None
        flag = torch.tensor(float(self.received is not None), device=accelerator.device)
        return (self.received or "a signal to another process") if accelerator.reduce(flag).item() else None
