"""Worker processes that end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from .config import InputError


class SpawnProcessPoolExecutor(ProcessPoolExecutor):
    """ProcessPoolExecutor of spawned workers (the caller may have threads and locks) that never outlive this process.

    They end at once if this process ends, even killed, or if the `with` block fails; otherwise they would finish their
    work, or wait for work forever. Ctrl-C reaches this process alone.

    Raises:
        InputError: From the `with` block, if a worker was killed.
    """

    def __init__(self, workers: int):
        reader, self._writer = multiprocessing.Pipe(duplex=False)
        spawn = multiprocessing.get_context("spawn")
        super().__init__(workers, mp_context=spawn, initializer=_exit_at_end_of, initargs=(reader,))

    def submit(self, *arguments, **keywords) -> Future:
        """Submit a call, as ProcessPoolExecutor does; new workers inherit that SIGINT is blocked."""
        resource_tracker.ensure_running()  # which unblocks SIGINT when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*arguments, **keywords)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def abort(self) -> None:
        """End the workers at once."""
        self._writer.close()

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None:
            self.abort()
        self.shutdown(cancel_futures=error is not None)
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "A worker process was killed (out of memory?). Run the same command again to resume, with fewer "
                "workers if the memory does not suffice."
            ) from error


def _exit_at_end_of(reader: Connection) -> None:
    """Exit this worker as soon as the other end of a pipe is closed, by its process or by the end of it."""
    threading.Thread(target=lambda: (reader.poll(None), os._exit(1)), daemon=True).start()
