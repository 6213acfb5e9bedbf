"""End a program that receives Ctrl-C or SIGTERM with one line and status 130 or 143."""

import os
import signal

ENDING = (signal.SIGINT, signal.SIGTERM)
USUAL = (signal.SIG_DFL, signal.default_int_handler)  # others are ignored (nohup) or belong to the program


def end_on_signals() -> None:
    """Have SIGINT and SIGTERM raise SystemExit in this process, so that its temporary files are removed."""
    for number in ENDING:
        if signal.getsignal(number) in USUAL:
            signal.signal(number, _end)


def _end(number: int, frame) -> None:
    for other in ENDING:
        signal.signal(other, lambda number, frame: os._exit(128 + number))  # the second ends the process at once
    os.write(2, f"\nStopped by {signal.Signals(number).name}.\n".encode())  # print() cannot be called inside print()
    raise SystemExit(128 + number)
