"""Stopping a run on a signal: the step under way is finished, the state saved, and the exit status says why."""

import ctypes
import os
import signal
import sys

import torch
from accelerate import Accelerator

STOPPED = 75  # exit status of a run that saved and stopped on a signal: EX_TEMPFAIL, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is what Slurm is told to warn with

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stop_with_the_launcher() -> None:
    """SIGTERM ends `accelerate launch` without a word to the one process it started: have Linux send it on.

    (With several processes torchrun does.) Not to a process that something else started: the end of a shell must not
    end what nohup keeps.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class StopSignal:
    """Notes the first of SIGNALS; a second one ends the process at once."""

    def __init__(self):
        self.received: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number).name

    def agreed(self, accelerator: Accelerator, *, now: bool) -> str | None:
        """Name of the signal once every process knows of it; several processes compare only where `now` is true."""
        if accelerator.num_processes == 1:
            return self.received
        if not now:
            return None
        flag = torch.tensor(float(self.received is not None), device=accelerator.device)
        return (self.received or "a signal to another process") if accelerator.reduce(flag).item() else None
