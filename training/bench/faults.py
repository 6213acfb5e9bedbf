"""Kill small pretraining runs, damage what they left, resume them: does each end as if nothing had happened?

    python -m training.bench.faults --trials 200

A run killed by SIGKILL, at a random moment or at a random file operation of a save, is started again until it is
complete. After each kill the checkpoint found must be the newest whole one, byte for byte that of a run that nothing
interrupted; at the end so must be the last checkpoint, the metrics and the model. Exit status 1 and a sentence
otherwise. Runs are forked from one process that has imported everything, so a session takes a fraction of a second.
"""

import io
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
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
from ..corpus import LANGUAGES, SCHEMA, CorpusConfig
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
        kills: most kills of a run.
        damage: share of kills after which the newest checkpoint is truncated or has a bit flipped.
        seed: of everything that is drawn.
        out: folder for the runs, kept when one fails; a temporary one when not given.
    """

    trials: int = 200
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
        self.memory = mmap.mmap(-1, 8 * (1 + len(STAGES)))
        self.numbers = memoryview(self.memory).cast("q")

    def clear(self) -> None:
        """Before the next child."""
        self.memory[:] = bytes(len(self.memory))

    @property
    def stage(self) -> int:
        """Index into STAGES."""
        return self.numbers[-1]

    @stage.setter
    def stage(self, stage: int) -> None:
        self.numbers[-1] = stage


def watch(notes: Notes, kill_at: tuple[int, int] | None) -> None:
    """Note the stages of this process and the file operations of its saves, and die by SIGKILL just before one.

    A file operation is what Python audits (a file opened, made, renamed, removed, listed) and every flush.

    Args:
        kill_at: stage, and which of the operations in that stage, over all saves.
    """

    def operation(event: str, arguments: tuple = ()) -> None:
        if not BEFORE_TENSORS <= notes.stage <= PRUNING:
            return
        if not event.startswith(("open", "os.", "shutil.")) or event == "os.kill":
            return
        name = Path(os.fsdecode(arguments[1])).name if event == "os.rename" else str(arguments[:1])
        if name.startswith("step-"):
            notes.stage = BEFORE_RENAME
        elif "model.safetensors" in name:
            notes.stage = BETWEEN_FILES
        if (notes.stage, notes.numbers[notes.stage]) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        notes.numbers[notes.stage] += 1
        if name.startswith("step-"):  # audited just before it happens
            notes.stage = BEFORE_LATEST
        elif name == "LATEST":
            notes.stage = PRUNING

    flush, save, schedule = os.fsync, checkpoint.save, engine.schedule

    def watched_flush(descriptor: int) -> None:
        operation("os.fsync", (descriptor,))
        flush(descriptor)

    def watched_save(*arguments, **keywords) -> Path:
        notes.stage = BEFORE_TENSORS
        path = save(*arguments, **keywords)
        notes.stage = STEP
        return path

    def watched_schedule(*arguments, **keywords):
        notes.stage = STEP
        yield from schedule(*arguments, **keywords)
        notes.stage = FINISHING

    os.fsync, checkpoint.save, engine.schedule = watched_flush, watched_save, watched_schedule
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
        data=DataConfig(folder=folder / "data", validation=0.1),
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
        self.config, self.folder, self.notes, self.tally = config, folder, Notes(), Tally()
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
        self.seconds, self.operations = time.perf_counter() - start, list(self.notes.numbers[:-1])
        self.tally = Tally()

    @staticmethod
    def log(run: PretrainConfig) -> Path:
        """Where the output of a run's sessions goes."""
        return run.folder.with_suffix(".log")

    def session(
        self,
        run: PretrainConfig,
        *,
        kill_at: tuple[int, int] | None = None,
        after: float | None = None,
        since: int = STARTING,
    ) -> int:
        """One session of a run in a forked child; its wait status.

        Args:
            kill_at: stage and operation in it at which it kills itself.
            after: seconds after which it is killed from outside, counted from its entering the stage `since`.
        """
        self.notes.clear()
        self.tally.sessions += 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                output = os.open(self.log(run), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                watch(self.notes, kill_at)
                engine.pretrain(run)
                status = 0
            except BaseException:  # whatever it is, this process ends here and must not run its parent's code
                traceback.print_exc()
            finally:
                os._exit(status)
        if after is not None:
            give_up = time.perf_counter() + 60
            while self.notes.stage < since and time.perf_counter() < give_up:
                time.sleep(0.001)
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    def plan(self, draw: random.Random) -> dict:
        """When a session is killed: at a file operation in a stage of its saves, or at any moment."""
        kind = draw.random()
        if kind < 0.6:
            stage = draw.randint(BEFORE_TENSORS, PRUNING)
            return {"kill_at": (stage, draw.randrange(self.operations[stage]))}
        if kind < 0.85:
            return {"after": draw.uniform(0, self.seconds / 4), "since": STEP}
        return {"after": draw.uniform(0, self.seconds)}

    def trial(self, number: int) -> None:
        """One run: killed, perhaps damaged and resumed some times, then left to end, and compared.

        Raises:
            Failure: when it does not go on, or does not end, as the uninterrupted run did.
        """
        draw, tally = random.Random(f"{self.config.seed}/{number}"), self.tally
        run = replace(self.run, out=self.folder / f"trial-{number:04}")
        for _ in range(draw.randint(1, self.config.kills)):
            status = self.session(run, **self.plan(draw))
            if status == 0:
                tally.too_late += 1
                break
            if status != signal.SIGKILL:
                raise Failure(f"a session failed: {self.log(run).read_text()[-2000:]}")
            tally.kills[STAGES[self.notes.stage]] += 1
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
    console.print(
        f"{trials.config.trials} runs, {sum(tally.kills.values())} kills in {tally.sessions} sessions "
        f"({tally.too_late} complete before their kill came), {sum(trials.operations)} file operations in the saves "
        f"of a run, {seconds:.0f} s: every run ended as the uninterrupted one, byte for byte."
    )


def main() -> None:
    config = parse(FaultsConfig, description="Kill, damage and resume tiny pretraining runs.")
    torch.set_num_threads(1)  # a child must not inherit threads that are not there after a fork
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder, number = config.out or Path(temporary), None
        try:
            trials = Trials(config, folder)
            for number in tqdm(range(config.trials), desc="trials"):
                trials.trial(number)
        except Failure as failure:
            which = "" if number is None else f"trial {number} of seed {config.seed}: "
            sys.exit(f"error: {which}{failure}")
    show(trials, time.perf_counter() - start, Console())


if __name__ == "__main__":
    program(main)
