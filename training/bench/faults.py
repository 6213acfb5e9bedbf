"""Kill small pretraining runs, corrupt their checkpoints, resume them, and compare with an uninterrupted run.

    python -m training.bench.faults --trials 200
    python -m training.bench.faults --trials 100 --processes 2     # the model and its checkpoints sharded over two

SIGKILL ends a run at a random moment, or at a random file operation of a save, which runs in the background during
training; then the run is started again until it is complete. After each kill the checkpoint found must be the latest
valid one, and byte-identical to that of an uninterrupted run. So must be the last checkpoint, the metrics and the
model at the end; otherwise the exit status is 1, with a one-line message. Runs are forked from one process that has
imported everything, so that a session takes a fraction of a second.
"""

if not __package__:  # run by path; same as `python -m training.bench.faults`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import io
import mmap
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.figure  # noqa: F401  (imported once for all children)
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from .. import pretrain as engine
from ..common.config import parse, run_main
from ..common.language import LANGUAGES
from ..data.corpus_builder import CorpusConfig
from ..data.documents import SCHEMA
from ..pretraining.prepare import DataConfig
from ..pretraining.recipe import IntervalConfig, PretrainConfig, Stage
from ..run import checkpoint
from ..run.metrics import read_metrics
from ..step.optimizer import OptimizerConfig

STAGES = (
    "starting",
    "in a step",
    "in a save, before the tensors",
    "in a save, between files",
    "in a save, before the rename",
    "in a save, after the rename, before LATEST",
    "in a save, after LATEST, pruning",
    "after the last step",
)
STARTING, STEP, BEFORE_TENSORS, BETWEEN_FILES, BEFORE_RENAME, BEFORE_LATEST, PRUNING, FINISHING = range(len(STAGES))
CLOCK = ("tokens_per_second", "mfu")  # metrics that may differ between two equal runs


@dataclass
class FaultsConfig:
    """A number of trials, and their faults.

    Args:
        trials: Number of runs to kill, resume and compare.
        processes: Processes per run. Two or more shard the model (FSDP2), and each writes its part of a checkpoint. A
            random one is killed, and then the others, as a launcher would.
        kills: Maximum kills per run.
        damage: Fraction of kills after which the latest checkpoint is truncated or has a bit flipped.
        seed: Seed of all random choices.
        out: Folder for the runs, which is kept if one fails. Default: a temporary folder.
    """

    trials: int = 200
    processes: int = 1
    kills: int = 3
    damage: float = 0.25
    seed: int = 0
    out: Path | None = None


class Failure(Exception):
    """Raised if a run did not survive a fault; the message is one line."""


# Progress that a child shares with its parent, however it ends -----------------------------------------------------


class Notes:
    """Shared memory in which a child records its stage and the number of file operations in each stage."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 8 * (3 + len(STAGES)))
        self.numbers = memoryview(self.memory).cast("q")

    def clear(self) -> None:
        """Reset for the next child."""
        self.memory[:] = bytes(len(self.memory))

    def note(self, stage: int) -> None:
        """Record the stage of the training thread, or of the thread that saves."""
        self.numbers[-2 if BEFORE_TENSORS <= stage <= PRUNING else -1] = stage

    def saved(self) -> None:
        """Record the end of a save."""
        self.numbers[-2] = 0

    def die(self) -> None:
        """End this process by SIGKILL, and record that this was intended."""
        self.numbers[-3] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def meant(self) -> bool:
        """Return whether the process ended itself."""
        return bool(self.numbers[-3])

    @property
    def stage(self) -> int:
        """Index into STAGES: the stage of the save if one is running, else of the training."""
        return self.numbers[-2] or self.numbers[-1]


def watch(notes: Notes, kill_at: tuple[int, int] | None) -> None:
    """Record the stages of this process and the file operations of its saves; kill it just before one of them.

    A file operation is what Python audits (a file opened, created, renamed, removed, listed) and every flush.

    Args:
        notes: Shared memory of this process.
        kill_at: Stage, and index of the operation in that stage, over all saves.
    """
    saving: set[int] = set()  # the thread that saves

    def operation(event: str, arguments: tuple = ()) -> None:
        if threading.get_ident() not in saving:
            return
        if not event.startswith(("open", "os.", "shutil.")) or event == "os.kill":
            return
        name = Path(os.fsdecode(arguments[1])).name if event == "os.rename" else str(arguments[:1])
        if name.startswith("step-"):
            notes.note(BEFORE_RENAME)
        elif notes.stage == BEFORE_TENSORS and "model" in name and "safetensors" in name:
            notes.note(BETWEEN_FILES)
        if (notes.stage, notes.numbers[notes.stage]) == kill_at:
            notes.die()
        notes.numbers[notes.stage] += 1
        if name.startswith("step-"):  # audited just before it happens
            notes.note(BEFORE_LATEST)
        elif name == "LATEST":
            notes.note(PRUNING)

    flush, write, schedule = os.fsync, checkpoint.write_checkpoint, engine.remaining_batches

    def watched_flush(descriptor: int) -> None:
        operation("os.fsync", (descriptor,))
        flush(descriptor)

    def watched_write(*arguments, **keywords) -> None:
        notes.note(BEFORE_TENSORS)
        saving.add(threading.get_ident())
        write(*arguments, **keywords)
        saving.clear()
        notes.saved()

    def watched_schedule(*arguments, **keywords):
        notes.note(STEP)
        yield from schedule(*arguments, **keywords)
        notes.note(FINISHING)

    os.fsync, checkpoint.write_checkpoint, engine.remaining_batches = watched_flush, watched_write, watched_schedule
    sys.addaudithook(operation)


# Expected results --------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def timeless(config: PretrainConfig) -> list[dict]:
    """Return the metrics without those that depend on time."""
    records = read_metrics(config.folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def newest_equal(config: PretrainConfig, unbroken: PretrainConfig) -> int | None:
    """Return the latest step whose checkpoint is byte-identical to that of an uninterrupted run."""
    folder, reference = config.folder / "checkpoints", unbroken.folder / "checkpoints"
    equal = (s for s in checkpoint.steps(folder) if content(folder / f"step-{s}") == content(reference / f"step-{s}"))
    return max(equal, default=None)


def compare(config: PretrainConfig, unbroken: PretrainConfig) -> None:
    """Raise Failure unless two complete runs have the same results."""
    if newest_equal(config, unbroken) != unbroken.steps:
        raise Failure("the last checkpoint differs from that of the uninterrupted run")
    if timeless(config) != timeless(unbroken):
        raise Failure("the metrics differ from those of the uninterrupted run")
    if content(config.folder / "model") != content(unbroken.folder / "model"):
        raise Failure("the model differs from that of the uninterrupted run")


def harm(path: Path, rng: random.Random) -> str:
    """Truncate a random file of a checkpoint or flip one of its bits; return which."""
    file = rng.choice(sorted(path.iterdir()))
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        file.write_bytes(data[: rng.randrange(len(data) - 1)])  # the last byte of a JSON file is only a line end
        return "truncated"
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return "bit flipped"


def isolate_bars() -> None:
    """Give every process its own lock of tqdm: a child killed while it prints would hold the shared lock forever."""
    tqdm.monitor_interval = 0  # the thread may hold the lock during a fork, and the child would inherit it
    tqdm.set_lock(threading.RLock())


# The trials --------------------------------------------------------------------------------------------------------


def tiny_run(folder: Path) -> PretrainConfig:
    """Return a config of twelve steps of a tiny model on synthetic text, with a checkpoint at every second step."""
    rng, code = random.Random(0), "en"
    rows = []
    for i in range(80):
        text = " ".join("".join(rng.choices("etaoinshr", k=rng.randint(2, 7))) for _ in range(120))
        row = dict.fromkeys(SCHEMA.names, "synthetic") | {"identifier": f"{code}-{i}", "text": text}
        rows.append(row | {"language": LANGUAGES[code], "license": "CC0-1.0", "word_count": 120, "token_count": 0})
    (folder / "text").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "text" / "en.parquet")
    return PretrainConfig(
        name="faults",
        stages=[Stage("first", steps=8, sequences=4), Stage("second", steps=4, sequences=2)],
        model={
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        corpus=CorpusConfig(source="parquet", languages=[code], path=folder / "text"),
        data=DataConfig(folder=folder / "data", validation_share=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3),
        every=IntervalConfig(log=2, validate=6, checkpoint=2, keep=2),
        out=folder / "first",
        sequence_length=32,
        micro_batch=2,
        precision="fp32",
        validation_tokens=128,
    )


class Trials:
    """Runs to kill, resume and compare with an uninterrupted one."""

    def __init__(self, config: FaultsConfig, folder: Path):
        self.config, self.folder, self.counts = config, folder, Counter()
        self.notes = [Notes() for _ in range(config.processes)]
        first = tiny_run(folder)  # builds the data
        # A stage with shards uses them unchanged; without, they are verified at every start, which takes seconds.
        stages = [replace(stage, shards=first.data.folder / "shards") for stage in first.stages]
        data = replace(first.data, tokenizer=first.data.folder / "tokenizer")
        self.run = replace(first, stages=stages, data=data, out=folder / "usual")
        self.unbroken = replace(self.run, every=replace(first.every, keep=100), out=folder / "unbroken")
        for run in (first, self.unbroken, self.run):
            start = time.perf_counter()
            if self.session(run):
                raise Failure(f"the uninterrupted run failed: {self.log(run).read_text()[-2000:]}")
        self.seconds = time.perf_counter() - start
        self.operations = [list(notes.numbers[: len(STAGES)]) for notes in self.notes]
        self.counts.clear()

    @staticmethod
    def log(run: PretrainConfig) -> Path:
        """Return the log file of a run's sessions."""
        return run.folder.with_suffix(".log")

    def session(
        self,
        run: PretrainConfig,
        *,
        victim: int = 0,
        kill_at: tuple[int, int] | None = None,
        after: float | None = None,
        since: int = STARTING,
    ) -> int:
        """Run one session in forked children; return 0, SIGKILL if the victim was killed, or the first failing status.

        Args:
            run: Config of the run.
            victim: Process to kill.
            kill_at: Stage and operation at which the victim kills itself.
            after: Seconds after which the victim is killed from outside, counted from its start of the stage `since`.
            since: Stage from which `after` counts.
        """
        self.counts["sessions"] += 1
        environment = self.environment()
        children = {}
        for rank, notes in enumerate(self.notes):
            notes.clear()
            child = os.fork()
            if child == 0:
                self.child(run, rank, environment, kill_at if rank == victim else None)
            children[child] = rank
        if after is not None:
            give_up = time.perf_counter() + 60
            while self.notes[victim].stage < since and time.perf_counter() < give_up:
                time.sleep(0.001)
            time.sleep(after)
            os.kill(next(child for child, rank in children.items() if rank == victim), signal.SIGKILL)
        ends = {}
        while children:
            child, status = os.wait()
            ends[children.pop(child)] = status
            if status:
                for other in children:  # they would wait for it or fail
                    os.kill(other, signal.SIGKILL)
        if ends[victim] == signal.SIGKILL and (after is not None or self.notes[victim].meant):
            return signal.SIGKILL
        return next(filter(None, ends.values()), 0)

    def environment(self) -> dict[str, str]:
        """Return the environment with which a launcher makes processes shard the model; empty for a single process."""
        if self.config.processes == 1:
            return {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        place = {"WORLD_SIZE": str(self.config.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return place | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

    def child(self, run: PretrainConfig, rank: int, environment: dict, kill_at: tuple[int, int] | None) -> None:
        """Run one process of a session; does not return."""
        status = 1
        try:
            output = os.open(self.log(run), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if environment:
                os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            watch(self.notes[rank], kill_at)
            engine.pretrain(run)
            status = 0
        except BaseException:  # any error: this process must end here and not run its parent's code
            traceback.print_exc()
        finally:
            os._exit(status)

    def plan(self, rng: random.Random) -> dict:
        """Sample the victim of a session, and its kill: at a file operation of a save, or at any moment."""
        kind, victim = rng.random(), rng.randrange(self.config.processes)
        if kind < 0.6:
            stage = rng.choice([s for s in range(BEFORE_TENSORS, PRUNING + 1) if self.operations[victim][s]])
            return {"victim": victim, "kill_at": (stage, rng.randrange(self.operations[victim][stage]))}
        if kind < 0.85:
            return {"victim": victim, "after": rng.uniform(0, self.seconds / 4), "since": STEP}
        return {"victim": victim, "after": rng.uniform(0, self.seconds)}

    def trial(self, number: int) -> None:
        """Kill, perhaps corrupt and resume one run some times, let it end, and compare it.

        Raises:
            Failure: If it does not resume, or its results differ from the uninterrupted run.
        """
        rng = random.Random(f"{self.config.seed}/{number}")
        run = replace(self.run, out=self.folder / f"trial-{number:04}")
        for _ in range(rng.randint(1, self.config.kills)):
            plan = self.plan(rng)
            status = self.session(run, **plan)
            if status == 0:
                self.counts["too late"] += 1
                break
            if status != signal.SIGKILL:
                raise Failure(f"a session failed: {self.log(run).read_text()[-2000:]}")
            self.counts[f"killed {STAGES[self.notes[plan['victim']].stage]}"] += 1
            self.look(run, rng)
        if self.session(run):
            raise Failure(f"it did not resume: {self.log(run).read_text()[-2000:]}")
        compare(run, self.unbroken)
        shutil.rmtree(run.folder)

    def look(self, run: PretrainConfig, rng: random.Random) -> None:
        """Perhaps corrupt the latest checkpoint; check that the latest valid one is found, and the corrupt one logged.

        Raises:
            Failure: If not.
        """
        checkpoints, corrupt = run.folder / "checkpoints", None
        on_disk = checkpoint.steps(checkpoints)
        if on_disk and rng.random() < self.config.damage:
            corrupt = checkpoints / f"step-{on_disk[-1]}"
            self.counts[f"latest checkpoint then {harm(corrupt, rng)}"] += 1
        with redirect_stderr(io.StringIO()) as output:
            step = checkpoint.latest_step(checkpoints)
        if step != (right := newest_equal(run, self.unbroken)):
            raise Failure(f"of the checkpoints {on_disk} {step} was found, and {right} is the latest valid one")
        if (f"{corrupt} is corrupt and skipped" in output.getvalue()) != (corrupt is not None):
            raise Failure(f"{corrupt or 'nothing'} was corrupted, and the warnings are: {output.getvalue() or 'none'}")
        place = "none" if step is None else ("latest", "one before")[on_disk[::-1].index(step)]
        self.counts[f"resumed from: {place}"] += 1


def print_trials(trials: Trials, seconds: float, console: Console) -> None:
    """Print the counts as a table."""
    counts, table = trials.counts, Table("", "number")
    kills = [f"killed {stage}" for stage in STAGES]
    corrupt = sorted(name for name in counts if name.startswith("latest checkpoint then "))
    for name in (*kills, *corrupt, *(f"resumed from: {place}" for place in ("latest", "one before", "none"))):
        table.add_row(name, str(counts[name]))
    console.print(table)
    runs, processes, operations = trials.config.trials, trials.config.processes, sum(map(sum, trials.operations))
    killed = sum(counts[name] for name in kills)
    console.print(
        f"{runs} runs on {processes} process{'es' if processes > 1 else ''}, {killed} kills in {counts['sessions']} "
        f"sessions ({counts['too late']} complete before their kill), {operations} file "
        f"operations in the saves of a run, {seconds:.0f} s: every run ended byte-identical to the uninterrupted one."
    )


def main() -> None:
    """`python -m training.bench.faults`."""
    config = parse(FaultsConfig, description="Kill, corrupt and resume tiny pretraining runs.")
    torch.set_num_threads(1)  # threads of the parent do not exist in a child after a fork
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder, number = config.out or Path(temporary), None
        try:
            isolate_bars()
            trials = Trials(config, folder)
            for number in tqdm(range(config.trials), desc="trials"):
                trials.trial(number)
        except Failure as failure:
            which = "" if number is None else f"trial {number} of seed {config.seed}: "
            sys.exit(f"error: {which}{failure}")
    print_trials(trials, time.perf_counter() - start, Console())


if __name__ == "__main__":
    run_main(main)
