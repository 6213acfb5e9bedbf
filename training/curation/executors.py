"""The same stages on local processes, Slurm or Ray, and what happens when one of their tasks fails."""

import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import redirect_stderr
from copy import deepcopy
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import setup_default_logger

from ..config import InputError
from ..processes import exit_with_parent

Kind = Literal["local", "slurm", "ray"]
DEATHS = 2  # a task that has taken this many workers with it is given up


class Stage(NamedTuple):
    """A pipeline that runs once a task; a stage starts when the one before it is complete."""

    name: str
    steps: list[PipelineStep]
    tasks: int


class Crew:
    """Worker processes, each in a pool of its own, so that a death costs one task; they serve all stages.

    datatrove's own pool would wait for the task of a killed worker for ever.
    """

    def __init__(self, size: int):
        self.size, self.idle = size, SimpleQueue()
        for _ in range(size):
            self.idle.put(None)  # started when it is needed

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *failure) -> None:
        workers = list(filter(None, (self.idle.get() for _ in range(self.size))))
        for wait in (False, True):  # all are told before one is waited for: leaving takes a process a second
            for worker in workers:
                worker.shutdown(wait=wait)

    def call(self, function: Callable, *arguments):
        """Call a function in an idle process, waiting for one.

        Raises:
            BrokenProcessPool: when the process was killed.
        """
        worker = self.idle.get()
        try:
            if worker is None:
                spawn = multiprocessing.get_context("spawn")  # not forked: the caller may hold threads and locks
                worker = ProcessPoolExecutor(1, mp_context=spawn, initializer=exit_with_parent)
            return worker.submit(function, *arguments).result()
        except BrokenProcessPool:
            worker = None
            raise
        finally:
            self.idle.put(worker)


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on a crew whose workers may die; a crew of one is this process itself.

    Args:
        give_up: called with the rank of a task whose worker has died `DEATHS` times; the task is then run once more
            and has to end. Without it, the first death ends the run.
    """

    def __init__(self, stage: Stage, logs: Path, *, crew: Crew, give_up: Callable[[int], None] | None):
        super().__init__(stage.steps, stage.tasks, crew.size, str(logs))
        self.stage, self.logs, self.crew, self.give_up = stage, logs, crew, give_up

    def run(self) -> None:
        """Run what is incomplete.

        Raises:
            InputError: from a task, or when a worker died.
        """
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:  # as datatrove does it, in this process
            for rank in ranks:
                _run(self.stage, self.logs, rank)
            return
        with ThreadPoolExecutor(self.workers) as threads:  # they only wait
            jobs = [threads.submit(self._see_through, rank) for rank in ranks]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                threads.shutdown(cancel_futures=True)  # what is wrong is said now, not when the other tasks are done
                raise

    def _see_through(self, rank: int) -> None:
        for deaths in range(DEATHS + 1):
            if deaths == DEATHS:
                self.give_up(rank)
            try:
                return self.crew.call(_run, self.stage, self.logs, rank)
            except BrokenProcessPool:
                if self.give_up is None:
                    break
        raise InputError(
            f"A worker was killed (out of memory?) in task {rank} of stage {self.stage.name}: start the same command "
            "again and it goes on from there, or let a file that does so be dropped with --on_error drop."
        )


def _run(stage: Stage, logs: Path, rank: int) -> None:
    """One task; datatrove logs to the screen too, which is kept in a file instead."""
    stage = deepcopy(stage)  # its statistics are those of this task
    path = logs / "logs" / f"screen_{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "w") as file, redirect_stderr(file):
            LocalPipelineExecutor(stage.steps, stage.tasks, 1, str(logs))._run_for_rank(rank, local_rank=rank)
    finally:
        setup_default_logger()  # on the screen again, and not on a closed file


def run(
    stages: list[Stage],
    logs: Path,
    *,
    executor: Kind,
    workers: int | None,
    options: dict,
    give_up: Callable[[int], None] | None,
) -> bool:
    """Run stages one after the other; what an earlier run completed is left alone.

    Args:
        stages: what to do.
        logs: folder of completions, statistics and logs; where there are many machines, they share it.
        executor: where.
        workers: tasks at a time; one per CPU when not given, and as many as there are on Slurm.
        options: arguments of datatrove's SlurmPipelineExecutor or RayPipelineExecutor.
        give_up: see `LocalExecutor`.

    Returns:
        Whether the stages are done; False when they were submitted to Slurm.
    """
    if executor == "slurm":
        last = None
        for stage in stages:
            where = _common(stage, logs) | _slurm_options(stage, options)
            last = SlurmPipelineExecutor(**where, workers=workers or -1, depends=last)
        last.run()  # submits the stages that it depends on first
        return False
    size = min(workers or len(os.sched_getaffinity(0)), max(stage.tasks for stage in stages))
    with Crew(size) as crew:
        for stage in stages:
            many: PipelineExecutor
            if executor == "ray":
                many = RayPipelineExecutor(**_common(stage, logs), workers=workers or -1, **options)
            else:
                many = LocalExecutor(stage, logs / stage.name, crew=crew, give_up=give_up)
            many.run()
            if missing := many.get_incomplete_ranks(skip_completed=True):
                raise InputError(
                    f"{len(missing)} of {stage.tasks} tasks of stage {stage.name} failed (the first is {missing[0]}): "
                    f"see {logs / stage.name}/logs, mend what they name, and start the same command again."
                )
    return True


def _common(stage: Stage, logs: Path) -> dict:
    return {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(logs / stage.name)}


def _slurm_options(stage: Stage, options: dict) -> dict:
    """What a job needs to find this Python and these modules, and a name for it in the queue."""
    if missing := sorted({"partition", "time"} - set(options)):
        raise InputError(f"--executor slurm needs {' and '.join(missing)} in --options, for example {SLURM_EXAMPLE}.")
    root = Path(__file__).parents[__name__.count(".")]
    paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": root}
    environment = "; ".join(f"export {name}={shlex.quote(str(path))}:${name}" for name, path in paths.items())
    return {"job_name": f"curation-{stage.name}", "env_command": environment, "qos": "", **options}


SLURM_EXAMPLE = """'{partition: cpu, time: "24:00:00", mem_per_cpu_gb: 4}'"""
