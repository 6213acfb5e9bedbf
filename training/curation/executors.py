"""Run stages on local processes, Slurm or Ray, and handle tasks that fail."""

import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from copy import deepcopy
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import setup_default_logger

from ..common.config import InputError
from ..common.processes import SpawnProcessPoolExecutor
from .recipe import CurationConfig

MAX_DEATHS = 2  # a task that killed this many workers is given up


class Stage(NamedTuple):
    """A pipeline that runs once per task. A stage starts when the previous one is complete."""

    name: str
    steps: list[PipelineStep]
    tasks: int


class WorkerPool:
    """Worker processes of all stages, each in a separate pool, so that a killed worker costs one task.

    datatrove's pool would wait forever for the task of a killed worker.
    """

    def __init__(self, size: int):
        self.size, self.idle, self.aborted = size, SimpleQueue(), False
        self.workers: set[SpawnProcessPoolExecutor] = set()
        for _ in range(size):
            self.idle.put(None)  # started when needed

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error) -> None:
        workers = list(filter(None, (self.idle.get() for _ in range(self.size))))
        for wait in (False, True):  # signal all before waiting: a process takes a second to exit
            for worker in workers:
                worker.shutdown(wait=wait)

    def call(self, function: Callable, *arguments):
        """Wait for an idle process and call a function in it.

        Raises:
            BrokenProcessPool: If the process was killed.
        """
        worker = self.idle.get()
        try:
            if worker is None:
                worker = SpawnProcessPoolExecutor(1)
                self.workers.add(worker)
            return worker.submit(function, *arguments).result()
        except BrokenProcessPool:
            self.workers.discard(worker)
            worker = None
            raise
        finally:
            self.idle.put(worker)

    def abort(self) -> None:
        """End all workers at once."""
        self.aborted = True
        for worker in list(self.workers):
            worker.abort()


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on workers that may be killed. With one worker, tasks run in this process.

    Args:
        stage: Stage to run.
        logs: Folder of completions, statistics and logs.
        crew: Worker processes.
        give_up: Called with the rank of a task that killed `MAX_DEATHS` workers; the task then runs once more and must
            succeed. Without it, the first killed worker ends the run.
    """

    def __init__(self, stage: Stage, logs: Path, *, crew: WorkerPool, give_up: Callable[[int], None] | None):
        super().__init__(stage.steps, stage.tasks, crew.size, str(logs))
        self.stage, self.logs, self.crew, self.give_up = stage, logs, crew, give_up

    def run(self) -> None:
        """Run the incomplete tasks.

        Raises:
            InputError: From a task, or if a worker was killed.
        """
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                _run(self.stage, self.logs, rank)
            return
        with ThreadPoolExecutor(self.workers) as threads:  # each waits for a worker process
            jobs = [threads.submit(self._run_task, rank) for rank in ranks]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                self.crew.abort()  # report the error without waiting for other tasks
                threads.shutdown(cancel_futures=True)
                raise

    def _run_task(self, rank: int) -> None:
        for deaths in range(MAX_DEATHS + 1):
            if deaths == MAX_DEATHS:
                self.give_up(rank)
            try:
                return self.crew.call(_run, self.stage, self.logs, rank)
            except BrokenProcessPool:
                if self.give_up is None or self.crew.aborted:
                    break
        raise InputError(
            f"A worker was killed (out of memory?) in task {rank} of stage {self.stage.name}. Run the same command "
            "again to resume, or pass --on_error drop to drop a file that repeatedly kills its worker."
        )


def _run(stage: Stage, logs: Path, rank: int) -> None:
    """Run one task; write to a file what datatrove logs to stderr."""
    stage = deepcopy(stage)  # its statistics must contain this task only
    path = logs / "logs" / f"screen_{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "w", encoding="utf-8") as file, redirect_stderr(file):
            LocalPipelineExecutor(stage.steps, stage.tasks, 1, str(logs))._run_for_rank(rank, local_rank=rank)
    finally:
        setup_default_logger()  # log to stderr again, not to the closed file


def run_stages(stages: list[Stage], config: CurationConfig, *, give_up: Callable[[int], None] | None) -> bool:
    """Run stages one after the other as the config specifies; skip tasks that an earlier run completed.

    Completions, statistics and logs are in the working folder, which all machines must share.

    Args:
        stages: Stages in order.
        config: Config of the run.
        give_up: See `LocalExecutor`.

    Returns:
        True if the stages are complete, False if they were submitted to Slurm.

    Raises:
        InputError: If a task failed.
    """
    logs = config.work / "logs"

    def settings(stage: Stage) -> dict:
        common = {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(logs / stage.name)}
        return common | {"workers": config.workers or -1} | config.executor_options

    if config.executor == "slurm":
        last = None
        for stage in stages:
            last = SlurmPipelineExecutor(**_slurm_defaults(stage, config) | settings(stage), depends=last)
        last.run()  # submits the stages that it depends on first
        return False
    size = min(config.workers or len(os.sched_getaffinity(0)), max(stage.tasks for stage in stages))
    with WorkerPool(size) as crew:
        for stage in stages:
            runner: PipelineExecutor
            if config.executor == "ray":
                runner = RayPipelineExecutor(**settings(stage))
            else:
                runner = LocalExecutor(stage, logs / stage.name, crew=crew, give_up=give_up)
            runner.run()
            if missing := runner.get_incomplete_ranks(skip_completed=True):
                raise InputError(
                    f"{len(missing)} of {stage.tasks} tasks of stage {stage.name} failed (first: {missing[0]}). Fix "
                    f"the errors reported in {logs / stage.name}/logs and run the same command again."
                )
    return True


def _slurm_defaults(stage: Stage, config: CurationConfig) -> dict:
    """Return a job name, and an environment with this Python and these modules."""
    if missing := sorted({"partition", "time"} - set(config.executor_options)):
        raise InputError(
            f"--executor slurm needs {' and '.join(missing)} in --executor_options, for example {SLURM_EXAMPLE}."
        )
    root = Path(__file__).parents[__name__.count(".")]
    paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": root}
    environment = "; ".join(f"export {name}={shlex.quote(str(path))}:${name}" for name, path in paths.items())
    return {"job_name": f"curation-{stage.name}", "env_command": environment, "qos": ""}


SLURM_EXAMPLE = """'{partition: cpu, time: "24:00:00", mem_per_cpu_gb: 4}'"""
