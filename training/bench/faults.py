"""Kill small pretraining runs, damage what they left, resume them: does each end as if nothing had happened?

    python -m training.bench.faults --trials 200
    python -m training.bench.faults --trials 100 --processes 2     # the model and its checkpoints cut in two

A run killed by SIGKILL, at a random moment or at a random file operation of a save, which goes on in the background
while the run trains, is started again until it is complete. After each kill the checkpoint found must be the newest
whole one, byte for byte that of a run that nothing interrupted; at the end so must be the last checkpoint, the metrics
and the model. Exit status 1 and a sentence otherwise. Runs are forked from one process that has imported everything,
so a session takes a fraction of a second.
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
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.figure  # noqa: F401  (so that children need not)
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from .. import checkpoint
from .. import pretrain as engine
from ..config import parse, program
from ..corpus import CorpusConfig
from ..data.documents import SCHEMA
from ..language import LANGUAGES
from ..metrics import read_metrics
from ..prepare import DataConfig
from ..recipe import EveryConfig, OptimizerConfig, PretrainConfig, Stage

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
CLOCK = ("tokens_per_second", "mfu")  # what may differ between two equal runs


@dataclass
class FaultsConfig:
    """How many runs, and how hard they are hit.

    Args:
        trials: runs; each is killed, resumed and compared.
        processes: of a run; two or more cut its model (FSDP2), and each writes its part of a checkpoint. One of them,
            drawn anew each time, is killed, and the others after it, as a launcher would.
        kills: most kills of a run.
        damage: share of kills after which the newest checkpoint is truncated or has a bit flipped.
        seed: of everything that is drawn.
        out: folder for the runs, kept when one fails; a temporary one when not given.
    """

    trials: int = 200
    processes: int = 1
    kills: int = 3
    damage: float = 0.25
    seed: int = 0
    out: Path | None = None


class Failure(Exception):
    """A run did not survive what it should; one sentence."""


# What a child tells its parent, however it ends --------------------------------------------------------------------


class Notes:
    """Shared memory in which a child notes the stage it is in and the file operations that it made in each."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 8 * (3 + len(STAGES)))
        self.numbers = memoryview(self.memory).cast("q")

    def clear(self) -> None:
        """Before the next child."""
        self.memory[:] = bytes(len(self.memory))

    def note(self, stage: int) -> None:
        """The stage of the training thread, or of the thread that saves, is now this one."""
        self.numbers[-2 if BEFORE_TENSORS <= stage <= PRUNING else -1] = stage

    def saved(self) -> None:
        """No save is under way."""
        self.numbers[-2] = 0

    def die(self) -> None:
        """End this process by SIGKILL, and let it be known that it was meant."""
        self.numbers[-3] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def meant(self) -> bool:
        """Whether the process ended itself."""
        return bool(self.numbers[-3])

    @property
    def stage(self) -> int:
        """Index into STAGES: of the save while there is one, else of the training."""
        return self.numbers[-2] or self.numbers[-1]


def watch(notes: Notes, kill_at: tuple[int, int] | None) -> None:
    """Note the stages of this process and the file operations of its saves, and die by SIGKILL just before one.

    A file operation is what Python audits (a file opened, made, renamed, removed, listed) and every flush.

    Args:
        kill_at: stage, and which of the operations in that stage, over all saves.
    """
    saving: set[int] = set()  # the thread that does

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

    flush, write, schedule = os.fsync, checkpoint.write, engine.schedule

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

    os.fsync, checkpoint.write, engine.schedule = watched_flush, watched_write, watched_schedule
    sys.addaudithook(operation)


# What is right -----------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def timeless(config: PretrainConfig) -> list[dict]:
    """The metrics without what the clock decides."""
    records = read_metrics(config.folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def newest_equal(config: PretrainConfig, whole: PretrainConfig) -> int | None:
    """The newest checkpoint of a run that is, byte for byte, the one of an uninterrupted run."""
    folder, reference = config.folder / "checkpoints", whole.folder / "checkpoints"
    equal = (s for s in checkpoint.steps(folder) if content(folder / f"step-{s}") == content(reference / f"step-{s}"))
    return max(equal, default=None)


def compare(config: PretrainConfig, whole: PretrainConfig) -> None:
    """Raise Failure unless two complete runs left the same."""
    if newest_equal(config, whole) != whole.steps:
        raise Failure("the last checkpoint differs from that of the uninterrupted run")
    if timeless(config) != timeless(whole):
        raise Failure("the metrics differ from those of the uninterrupted run")
    if content(config.folder / "model") != content(whole.folder / "model"):
        raise Failure("the model differs from that of the uninterrupted run")


def harm(path: Path, draw: random.Random) -> str:
    """Truncate one file of a checkpoint or flip one of its bits; says which."""
    file = draw.choice(sorted(path.iterdir()))
    whole = bytearray(file.read_bytes())
    if draw.random() < 0.5:
        file.write_bytes(whole[: draw.randrange(len(whole) - 1)])  # the last byte of a JSON file says nothing
        return "truncated"
    bit = draw.randrange(8 * len(whole))
    whole[bit // 8] ^= 1 << bit % 8
    file.write_bytes(whole)
    return "bit flipped"


# The trials --------------------------------------------------------------------------------------------------------


def tiny_run(folder: Path) -> PretrainConfig:
    """Twelve steps of a tiny model on made-up text, with a checkpoint after every second."""
    draw, code = random.Random(0), "en"
    rows = []
    for i in range(80):
        text = " ".join("".join(draw.choices("etaoinshr", k=draw.randint(2, 7))) for _ in range(120))
        row = dict.fromkeys(SCHEMA.names, "made up") | {"identifier": f"{code}-{i}", "text": text}
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
        every=EveryConfig(log=2, validate=6, checkpoint=2, keep=2),
        out=folder / "first",
        sequence_length=32,
        micro_batch=2,
        precision="fp32",
        validation_tokens=128,
    )


@dataclass
class Tally:
    """What happened in all trials.

    Args:
        kills: by the stage they came in.
        damages: by kind.
        found: checkpoints a resumed session went on from, by their place among those on disk.
        sessions: processes.
        too_late: sessions that were complete before their kill came.
    """

    kills: Counter = field(default_factory=Counter)
    damages: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    sessions: int = 0
    too_late: int = 0


class Trials:
    """Runs that are killed, resumed and compared with one that nothing interrupted."""

    def __init__(self, config: FaultsConfig, folder: Path):
        self.config, self.folder, self.tally = config, folder, Tally()
        self.notes = [Notes() for _ in range(config.processes)]
        first = tiny_run(folder)  # makes the data
        # Shards named by a stage are taken as they are; the run's own are looked through at every start, for seconds.
        stages = [replace(stage, shards=first.data.folder / "shards") for stage in first.stages]
        data = replace(first.data, tokenizer=first.data.folder / "tokenizer")
        self.run = replace(first, stages=stages, data=data, out=folder / "usual")
        self.whole = replace(self.run, every=replace(first.every, keep=100), out=folder / "whole")
        for run in (first, self.whole, self.run):
            start = time.perf_counter()
            if self.session(run):
                raise Failure(f"the uninterrupted run failed: {self.log(run).read_text()[-2000:]}")
        self.seconds = time.perf_counter() - start
        self.operations = [list(notes.numbers[: len(STAGES)]) for notes in self.notes]
        self.tally = Tally()

    @staticmethod
    def log(run: PretrainConfig) -> Path:
        """Where the output of a run's sessions goes."""
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
        """One session of a run in forked children; 0, the victim's wait status, or that of the first to fail.

        Args:
            victim: the process that is killed.
            kill_at: stage and operation in it at which it kills itself.
            after: seconds after which it is killed from outside, counted from its entering the stage `since`.
        """
        self.tally.sessions += 1
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
                for other in children:  # they wait for it, or fail because it is silent
                    os.kill(other, signal.SIGKILL)
        if ends[victim] == signal.SIGKILL and (after is not None or self.notes[victim].meant):
            return signal.SIGKILL
        return next(filter(None, ends.values()), 0)

    def environment(self) -> dict[str, str]:
        """What a launcher tells processes that are to cut the model; nothing to a single one."""
        if self.config.processes == 1:
            return {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        place = {"WORLD_SIZE": str(self.config.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return place | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

    def child(self, run: PretrainConfig, rank: int, environment: dict, kill_at: tuple[int, int] | None) -> None:
        """A process of a session; does not return."""
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
        except BaseException:  # whatever it is, this process ends here and must not run its parent's code
            traceback.print_exc()
        finally:
            os._exit(status)

    def plan(self, draw: random.Random) -> dict:
        """When a session is killed: at a file operation in a stage of its saves, or at any moment; and who."""
        kind, victim = draw.random(), draw.randrange(self.config.processes)
        if kind < 0.6:
            stage = draw.choice([s for s in range(BEFORE_TENSORS, PRUNING + 1) if self.operations[victim][s]])
            return {"victim": victim, "kill_at": (stage, draw.randrange(self.operations[victim][stage]))}
        if kind < 0.85:
            return {"victim": victim, "after": draw.uniform(0, self.seconds / 4), "since": STEP}
        return {"victim": victim, "after": draw.uniform(0, self.seconds)}

    def trial(self, number: int) -> None:
        """One run: killed, perhaps damaged and resumed some times, then left to end, and compared.

        Raises:
            Failure: when it does not go on, or does not end, as the uninterrupted run did.
        """
        draw, tally = random.Random(f"{self.config.seed}/{number}"), self.tally
        run = replace(self.run, out=self.folder / f"trial-{number:04}")
        for _ in range(draw.randint(1, self.config.kills)):
            plan = self.plan(draw)
            status = self.session(run, **plan)
            if status == 0:
                tally.too_late += 1
                break
            if status != signal.SIGKILL:
                raise Failure(f"a session failed: {self.log(run).read_text()[-2000:]}")
            tally.kills[STAGES[self.notes[plan["victim"]].stage]] += 1
            self.look(run, draw)
        if self.session(run):
            raise Failure(f"it did not go on: {self.log(run).read_text()[-2000:]}")
        compare(run, self.whole)
        shutil.rmtree(run.folder)

    def look(self, run: PretrainConfig, draw: random.Random) -> None:
        """Perhaps damage the newest checkpoint; then the newest whole one must be found, and the damaged one named."""
        checkpoints, damaged = run.folder / "checkpoints", None
        on_disk = checkpoint.steps(checkpoints)
        if on_disk and draw.random() < self.config.damage:
            damaged = checkpoints / f"step-{on_disk[-1]}"
            self.tally.damages[harm(damaged, draw)] += 1
        with redirect_stderr(io.StringIO()) as said:
            found = checkpoint.latest_step(checkpoints)
        if found != (right := newest_equal(run, self.whole)):
            raise Failure(f"of the checkpoints {on_disk} {found} was found, and {right} is the newest whole one")
        if (f"{damaged} is damaged and passed over" in said.getvalue()) != (damaged is not None):
            raise Failure(f"{damaged or 'nothing'} was damaged, and the warnings are: {said.getvalue() or 'none'}")
        place = "none" if found is None else ("newest", "one before")[on_disk[::-1].index(found)]
        self.tally.found[place] += 1


def show(trials: Trials, seconds: float, console: Console) -> None:
    """The tally as a table."""
    tally, table = trials.tally, Table("", "number")
    for stage in STAGES:
        table.add_row(f"killed {stage}", str(tally.kills[stage]))
    for kind, number in sorted(tally.damages.items()):
        table.add_row(f"newest checkpoint then {kind}", str(number))
    for place in ("newest", "one before", "none"):
        table.add_row(f"resumed from: {place}", str(tally.found[place]))
    console.print(table)
    runs, processes, operations = trials.config.trials, trials.config.processes, sum(map(sum, trials.operations))
    console.print(
        f"{runs} runs on {processes} process{'es' if processes > 1 else ''}, {sum(tally.kills.values())} kills in "
        f"{tally.sessions} sessions ({tally.too_late} complete before their kill came), {operations} file operations "
        f"in the saves of a run, {seconds:.0f} s: every run ended as the uninterrupted one, byte for byte."
    )


def main() -> None:
    config = parse(FaultsConfig, description="Kill, damage and resume tiny pretraining runs.")
    torch.set_num_threads(1)  # a child must not inherit threads that are not there after a fork
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder, number = config.out or Path(temporary), None
        try:
            trials = Trials(config, folder)
            tqdm.monitor_interval = 0  # its thread may hold tqdm's lock when a child is forked, which would keep it
            for number in tqdm(range(config.trials), desc="trials"):
                trials.trial(number)
        except Failure as failure:
            which = "" if number is None else f"trial {number} of seed {config.seed}: "
            sys.exit(f"error: {which}{failure}")
    show(trials, time.perf_counter() - start, Console())


if __name__ == "__main__":
    program(main)
