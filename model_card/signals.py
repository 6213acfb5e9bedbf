"""End a program that receives Ctrl-C or SIGTERM with one line, even in native code; end a process with its parent.

Python calls a signal handler only between two of its own instructions, so that native code, such as the training of a
tokenizer, would delay it. Then a thread ends the process after GRACE seconds, or at the second signal. It cannot do so
while native code holds Python's interpreter lock. `model_card` does not import `training`, nor the other way round, so
both packages have this module.
"""

import ctypes
import os
import signal
import sys
import threading

ENDING = (signal.SIGINT, signal.SIGTERM)
USUAL = (signal.SIG_DFL, signal.default_int_handler)  # others are ignored (nohup) or belong to the program
GRACE = 5  # seconds
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)  # loaded before a fork, after which another thread may hold the loader's lock forever


def end_on_signals() -> None:
    """Have SIGINT and SIGTERM raise SystemExit in this process, so that its temporary files are removed."""
    for number in ENDING:
        if signal.getsignal(number) in USUAL:
            signal.signal(number, _end)
    if (watched := signal.set_wakeup_fd(-1)) != -1:  # by this module, or an event loop
        signal.set_wakeup_fd(watched)
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


# A forked child would write its signals into the pipe of its parent.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _end(number: int, frame) -> None:
    for other in ENDING:
        signal.signal(other, _end_at_once)
    os.write(2, _line(number))  # print() cannot be called inside print()
    raise SystemExit(128 + number)


def _end_at_once(number: int, frame) -> None:
    os._exit(128 + number)


def _watch(reader: int) -> None:
    """Receive each signal as it arrives, whatever the main thread does; the second one ends the process at once."""
    first = True
    while number := os.read(reader, 1)[0]:
        if signal.getsignal(number) in (_end, _end_at_once):
            timer = threading.Timer(GRACE if first else 0, _end_if_busy, (number,), {"second": not first})
            timer.daemon = True
            timer.start()
            first = False


def _end_if_busy(number: int, *, second: bool) -> None:
    """End this process if the main thread has not reacted to a signal, or if it is the second one."""
    busy = signal.getsignal(number) is _end
    if busy:
        os.write(2, _line(number))
    if busy or second:
        os._exit(128 + number)


def _line(number: int) -> bytes:
    return f"\nStopped by {signal.Signals(number).name}.\n".encode()


def end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when the process that started it ends."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
