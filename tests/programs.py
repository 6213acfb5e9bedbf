"""Run programs of this project in forked processes that start with their libraries imported.

A new Python that imports torch and transformers uses 4 to 7 s of CPU time, and the tests start many programs. A server
process (`multiprocessing`'s forkserver) imports the libraries once per test worker and computes nothing itself: each
program forked from it starts in the state of a fresh interpreter. The server ends with the test worker.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path

from training.common.config import run_main

ROOT = Path(__file__).parent.parent
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["training.pretrain"])


def _run(
    module: str | None, arguments: list[str], cwd: Path, environment: dict[str, str], prelude: str, files: list
) -> None:
    """Turn this process into the program: set its working directory, environment, output files and arguments."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = [prelude, *arguments]
    exec(prelude, {"__name__": "__main__"})
    if module:
        imported = importlib.import_module(module)
        sys.argv[0] = imported.__file__
        sys.orig_argv = [sys.executable, "-m", module.removesuffix(".__main__"), *arguments]  # for recorded commands
        run_main(imported.main)


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_program(
    module: str | None,
    *arguments: object,
    log: Path,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    prelude: str = "",
    processes: int = 1,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """Run `main()` of a module and return its exit status, stdout and stderr.

    Args:
        module: Name of a module with a `main()`, such as `training.pretrain`; None runs `prelude` alone.
        arguments: Command-line arguments.
        log: Folder for the files of stdout and stderr.
        environment: Additional environment variables.
        prelude: Python code run before the program, such as one that makes it fail.
        processes: Number of ranks, with the environment that a launcher sets. When one fails, all are killed.
        timeout: Seconds after which all are killed and the test fails.
    """
    log.mkdir(parents=True, exist_ok=True)
    files = [log / "stdout", log / "stderr"]
    for file in files:
        file.write_bytes(b"")
    ranks, words = {}, [str(argument) for argument in arguments]
    launcher = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for rank in range(processes):
        places = launcher | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        variables = {**os.environ, **{name: str(value) for name, value in places.items()}, **(environment or {})}
        process = FORKSERVER.Process(target=_run, args=(module, words, cwd, variables, prelude, files))
        process.start()
        ranks[process.sentinel] = process
    give_up, running, status = time.monotonic() + timeout, dict(ranks), 0
    while running and not status and time.monotonic() < give_up:
        for sentinel in wait(running, give_up - time.monotonic()):
            ended = running.pop(sentinel)
            ended.join()
            status = status or ended.exitcode
    for process in running.values():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    done = subprocess.CompletedProcess([module, *words], status, *(file.read_text() for file in files))
    assert status or not running, f"{module} did not end within {timeout} s: {done.stderr}"
    return done
