"""Kill every program that writes a folder before each change on disk, fill the disk at each, and run two at once.

    python -m training.bench.output_faults
    python -m training.bench.output_faults --programs '[shards,trace]' --positions 10

A change is a file opened for writing, created, renamed or removed, as Python audits it. After a kill or an error a
result that counts as complete must be the earlier or the new one, byte by byte; the error must be one line that names
a file; the same command must then give the result of an undisturbed run and remove what was left. Of two programs at
once, one is refused in one line or finds the other's result. Otherwise the exit status is 1. Programs are forked from
one process that has imported everything. training.bench.faults does this for pretraining runs and their checkpoints.
"""

if not __package__:  # run by path; same as `python -m training.bench.output_faults`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

import matplotlib.figure  # noqa: F401  (imported once for all children)
import torch
import transformers.convert_slow_tokenizer  # noqa: F401
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import modeling_pleias  # noqa: F401

from ..common.config import InputError, parse, run_main
from ..data.documents import SCHEMA, DocumentWriter
from .faults import Failure, isolate_bars

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": 256}
VOLATILE = {"date", "created", "seconds", "blocks", "retrieved", "command", "hardware", "commit"}  # in JSON files
WORDS = "mill water book loft miller road stone winter bread grain horse river evening lamp letter field".split()


@dataclass
class Program:
    """A program, its options for two different results, and the file that marks a complete one.

    Args:
        module: Module with `main`.
        options: Options, without the output folder.
        other: Options that replace some, for an earlier result in the same folder; None if the folder must be new.
        complete: Name of the file that is written last; None if each file counts for itself.
        out: Option of the output folder.
        timed: Files that contain times, and are not compared.
    """

    module: str
    options: dict
    other: dict | None
    complete: str | None
    out: str = "--out"
    timed: tuple[str, ...] = ()


def programs(data: Path) -> dict[str, Program]:
    """Return the programs, on the small data of `prepare`."""
    corpus, tokenizer, shards = ({"--corpus": data / "corpus"}, {"--tokenizer": data / "tokenizer"}, data / "shards")
    sizes = {f"--model.{name}": value for name, value in SIZES.items()}
    text = {"--suite": "bits_per_byte", "--data.path": data / "corpus", "--data.bytes_per_language": 500}
    return {
        "corpus": Program(
            "training.corpus",
            {"--source": "parquet", "--path": data / "corpus", "--languages": "[en,fr]"},
            {"--megabytes_per_language": 0.01},
            "sources.json",
        ),
        "mixture": Program("training.mixture", corpus | {"--held_out": 0.2}, {"--held_out": 0.4}, "mixture.json"),
        "tokenizer": Program(
            "training.tokenizer",
            corpus | {"--vocab_size": 380, "--sample_bytes": 200_000},
            {"--vocab_size": 370},
            "tokenizer.json",
        ),
        "shards": Program(
            "training.shards",
            corpus | tokenizer | {"--validation_share": 0.2},
            {"--validation_share": 0.4},
            "manifest.json",
        ),
        "embeddings": Program(
            "training.embeddings", tokenizer | sizes | {"--shards": shards}, {"--seed": 7}, "config.json"
        ),
        "curation": Program(
            "training.curation.__main__",
            {"--in": data / "corpus", "--ocr_threshold": 0, "--workers": 1},
            {"--languages": "[en]"},
            "curation.json",
            timed=("curation.md",),
        ),
        "trace": Program(
            "training.trace",
            tokenizer | {"--shards": shards, "--block_megabytes": 0.05},
            {"--block_megabytes": 0.02},
            "index.json",
            out="--index",
        ),
        "evaluate": Program(
            "training.evaluate",
            text | {"--model": data / "model", "--bits.window": 32},
            {"--data.bytes_per_language": 300},
            None,
            timed=("README.md", "results.png"),
        ),
        "average": Program("training.average", {"A": data / "model", "B": data / "model"}, None, "config.json"),
        "release": Program(
            "model_card.release",
            {"--from_llama": data / "llama", "--formats": None},
            None,
            "release.json",
            timed=("release.json", "README.md", "card.json", "SHA256SUMS"),
        ),
    }


@dataclass
class OutputFaultsConfig:
    """Programs, and the number of their faults.

    Args:
        programs: Names of programs. Default: all.
        positions: Maximum changes of a program at which it is killed, and at which its disk is full.
        out: Folder for data and results, which is kept if a program fails. Default: a temporary folder.
    """

    programs: list[str] = field(default_factory=list)
    positions: int = 1000
    out: Path | None = None


class InProcessExecutor:
    """Executor that computes in this process, where its changes on disk are audited."""

    def __init__(self, workers: int):
        del workers

    def __enter__(self) -> "InProcessExecutor":
        return self

    def __exit__(self, *error) -> None:
        pass

    def submit(self, function: Callable, *arguments) -> Future:
        """Compute now."""
        future = Future()
        future.set_result(function(*arguments))
        return future


def watch(root: Path, position: int | None, *, kill: bool) -> Counter:
    """Count the changes below a folder in this process, and kill it or fill its disk at one of them.

    Args:
        root: Folder.
        position: Number of the change, from 0; None only counts.
        kill: Kill this process before the change. Otherwise nothing can be written from this change on.
    """
    counts, changes = Counter(), {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

    def hook(event: str, arguments: tuple) -> None:
        if event not in changes and event != "open":
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        name = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # to an opened folder: shutil.rmtree
        if not name.startswith(str(root)) and not relative:
            return
        if counts["changes"] == position:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            counts["full"] = 1
        counts["changes"] += 1
        if counts["full"] and (event == "os.mkdir" or event == "open" and not os.path.exists(name)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    sys.addaudithook(hook)
    return counts


class Trials:
    """Programs with faults, and the results that they must have."""

    def __init__(self, config: OutputFaultsConfig, folder: Path):
        self.folder, self.positions = folder, config.positions
        self.data = folder / "data"
        status, errors = self.fork(lambda: prepare(self.data))
        if status:
            raise Failure(f"the data could not be prepared: {errors}")
        self.programs = programs(self.data)
        if unknown := set(config.programs) - set(self.programs):
            raise InputError(f"--programs must be among {', '.join(self.programs)}, got {sorted(unknown)[0]}.")
        self.names = config.programs or list(self.programs)
        for name in self.names:
            import_module(self.programs[name].module)

    def fork(self, function: Callable[[], None]) -> tuple[int, str]:
        """Run a function in a child; return its status (128 + N for signal N) and its error lines."""
        return self.finish(*self.start(function))

    @staticmethod
    def start(function: Callable[[], None]) -> tuple[int, int]:
        """Start a child; return its process id and the end of a pipe from which its errors are read."""
        reader, writer = os.pipe()
        child = os.fork()
        if child:
            os.close(writer)
            return child, reader
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = (open(file, "w", encoding="utf-8", buffering=1) for file in (1, 2))
            isolate_bars()
            function()
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)

    @staticmethod
    def finish(child: int, reader: int) -> tuple[int, str]:
        """Wait for a child."""
        with open(reader, "rb") as pipe:
            errors = pipe.read().decode("utf-8", "replace")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = errors.replace("\r", "\n").splitlines()
        if not any("Traceback" in line for line in lines):
            lines = [line for line in lines if "error:" in line]
        return status if status >= 0 else 128 - status, "\n".join(lines)

    def run(self, name: str, out: Path, *, other: bool = False, watcher: Callable = lambda: None) -> tuple[int, str]:
        """Run a program to its end; see `fork`."""
        return self.fork(lambda: self.program(name, out, other=other, watcher=watcher))

    def program(self, name: str, out: Path, *, other: bool = False, watcher: Callable = lambda: None) -> None:
        """Turn this process into a program that writes to `out`."""
        program = self.programs[name]
        options = program.options | ((program.other or {}) if other else {}) | {program.out: out}
        words = []
        for option, value in options.items():
            words += [option] if option.startswith("--") else []
            words += [] if value is None else [str(value)]
        module = import_module(program.module)
        sys.argv = [module.__file__, *words]
        sys.orig_argv = [sys.executable, "-m", program.module, *words]
        if name == "shards":
            module.SpawnProcessPoolExecutor = InProcessExecutor
        if name == "release":  # its checks write nothing, and take most of its time
            module.check_variant = lambda *arguments: None
        package = program.module.partition(".")[0]
        runner = import_module({"training": "training.common.config", "model_card": "model_card.files"}[package])
        watcher()
        runner.run_main(module.main)

    # Results ---------------------------------------------------------------------------------------

    def snapshot(self, name: str, out: Path, *, hidden: bool = False) -> dict[str, object]:
        """Return the content of the files of a result by name; without times, and without hidden files by default."""
        program, files = self.programs[name], {}
        for path in sorted(out.rglob("*")):
            parts = path.relative_to(out).parts
            # A lock file that nobody holds is reused; the working folder of curation contains times.
            if path.is_dir() or path.name == ".lock" or parts[0] == ".curation":
                continue
            if not hidden and any(part[0] == "." for part in parts):
                continue
            content: object = path.read_bytes()
            if path.name in program.timed:
                content = "timed"
            elif path.suffix == ".json":
                try:
                    content = timeless(json.loads(content))
                except ValueError:
                    content = "invalid JSON"
            files["/".join(parts)] = content
        return files

    def check_state(self, name: str, out: Path, results: list[dict]) -> None:
        """Check that what a fault left is not taken for a complete result unless it is one.

        Raises:
            Failure: If it is.
        """
        left, complete = self.snapshot(name, out), self.programs[name].complete
        if complete is None:
            for file, content in left.items():
                if all(result.get(file) != content for result in results):
                    raise Failure(f"{file} is neither the earlier nor the new one")
        elif complete in left:
            wrong = [
                [file for file in result if left.get(file) != result[file]]
                for result in results
                if result.get(complete) == left[complete]
            ]
            if not wrong or all(wrong):
                raise Failure(f"{complete} exists, but {(wrong or [[complete]])[0][0]} does not belong to it")

    def trials(self, name: str, counts: Counter) -> None:
        """Run all trials of a program.

        Raises:
            Failure: If one does not end as it must.
        """
        program, folder = self.programs[name], self.folder / name
        before, out, number = (folder / part for part in ("before", "out", "changes"))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

        def reset() -> None:
            for path in folder.iterdir():
                if path not in (before, number):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if before.exists():
                shutil.copytree(before, out)

        def must(status: int, errors: str, what: str) -> None:
            if status:
                raise Failure(f"{what} failed with status {status}: {errors[-300:]}")

        if program.other is not None:
            must(*self.run(name, out, other=True), "the earlier run")
            out.rename(before)
            reset()
        must(*self.run(name, out), "the undisturbed run")
        expected = self.snapshot(name, out, hidden=True)
        results = [self.snapshot(name, out), *([self.snapshot(name, before)] if before.exists() else [])]
        if results[0] in results[1:]:
            raise Failure("the undisturbed run did not replace the earlier result")
        reset()

        def count() -> None:
            counter = watch(folder, None, kill=False)
            self.program(name, out)
            number.write_text(str(counter["changes"]))

        must(*self.fork(count), "the counted run")
        changes = counts["changes"] = int(number.read_text())
        picked = range(changes)
        if changes > self.positions:
            picked = sorted(random.Random(0).sample(picked, self.positions))

        def resume(what: str) -> None:
            if program.other is not None or not out.exists():  # an existing folder is refused by the others
                must(*self.run(name, out), f"the run after {what}")
            result = self.snapshot(name, out, hidden=True)
            if result != expected:
                different = [file for file in {**result, **expected} if result.get(file) != expected.get(file)]
                raise Failure(f"after {what} and the same command {different[0]} differs from the undisturbed run")
            known = (before, out, number, folder / f".{out.name}.lock")
            if left := [path.name for path in folder.iterdir() if path not in known]:
                raise Failure(f"after {what} and the same command {left[0]} is left")

        for kind, kill in (("kills", True), ("full disks", False)):
            for position in tqdm(picked, desc=f"{name}: {kind}", leave=False):
                what = f"{kind.removesuffix('s')} at change {position}"
                reset()
                status, errors = self.run(name, out, watcher=partial(watch, folder, position, kill=kill))
                counts[kind] += 1
                try:
                    if kill and status != 128 + signal.SIGKILL:
                        raise Failure(f"the program ended with status {status}: {errors[-300:]}")
                    if not kill and status not in (0, 2) or "Traceback" in errors or status == 2 and not errors:
                        raise Failure(f"the program ended with status {status}: {errors[-300:]}")
                    if status == 2 and str(folder) not in errors:
                        raise Failure(f"the error names no file: {errors[-300:]}")
                    self.check_state(name, out, results)
                    if not kill and program.complete and before.exists() and not (out / program.complete).exists():
                        counts["earlier result lost"] += 1
                        raise Failure("the earlier result is lost")
                    resume("it")
                except Failure as failure:
                    counts["failures"] += 1
                    tqdm.write(f"{name}: {what}: {failure}")
        for _ in range(min(3, self.positions)):
            reset()
            shutil.rmtree(out, ignore_errors=True)
            children = [self.start(lambda: self.program(name, out)) for _ in range(2)]
            ends = [self.finish(*child) for child in children]
            counts["two at once"] += 1
            try:
                refused = [errors for status, errors in ends if status]
                if len(refused) > 1 or any("Another" not in e and " exists" not in e for e in refused):
                    raise Failure(f"they ended with {ends}")
                resume("two at once")
            except Failure as failure:
                counts["failures"] += 1
                tqdm.write(f"{name}: two at once: {failure}")


def timeless(value: object) -> object:
    """Return a JSON value without what differs between two equal runs."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in VOLATILE}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def prepare(data: Path) -> None:
    """Write a small corpus, a tokenizer, shards, and a model in two formats."""
    draw, corpus = random.Random(0), data / "corpus"
    shutil.rmtree(data, ignore_errors=True)  # of an earlier run with the same --out
    corpus.mkdir(parents=True)
    empty = dict.fromkeys(SCHEMA.names, "") | {"word_count": 40, "token_count": 60, "language_type": "Spoken"}
    empty |= {"collection": "Synthetic", "license": "CC0-1.0", "open_type": "Open Culture"}
    with DocumentWriter(corpus) as writer:
        for code, language in (("en", "English"), ("fr", "French")):
            for i in range(60):
                subject, place = draw.sample(WORDS, 2)
                text = " ".join(f"The {subject} was at the {draw.choice(WORDS)} in the {place}." for _ in range(8))
                row = {"identifier": f"{code}-{i}", "language": language, "creator": f"writer {i % 9}", "text": text}
                writer.add(code, empty | row, len(text))
    tokenizer, shards, model = data / "tokenizer", data / "shards", data / "model"
    call("tokenizer", "--corpus", corpus, "--out", tokenizer, "--vocab_size", 380, "--sample_bytes", 200_000)
    call("shards", "--corpus", corpus, "--tokenizer", tokenizer, "--out", shards, "--validation_share", 0.2)
    sizes = [word for name, value in SIZES.items() for word in (f"--model.{name}", value)]
    call("embeddings", "--shards", shards, "--tokenizer", tokenizer, "--out", model, *sizes)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(data / "llama")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(data / "llama")


def call(name: str, *arguments: object) -> None:
    """Run `main` of a program of training/ in this process."""
    module = import_module(f"training.{name}")
    if name == "shards":
        module.SpawnProcessPoolExecutor = InProcessExecutor
    sys.argv = [module.__file__, *map(str, arguments)]
    module.main()


def main() -> None:
    """`python -m training.bench.output_faults`."""
    config = parse(
        OutputFaultsConfig, description="Kill programs at each change on disk, fill disks, run two at once."
    )
    torch.set_num_threads(1)  # threads of the parent do not exist in a child after a fork
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start, failures = time.perf_counter(), 0
    columns = ("changes", "kills", "full disks", "earlier result lost", "two at once", "failures")
    table = Table("program", *columns)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            isolate_bars()
            trials = Trials(config, (config.out or Path(temporary)).absolute())
            for name in trials.names:
                counts, begin = Counter(), time.perf_counter()
                try:
                    trials.trials(name, counts)
                except Failure as failure:  # the other programs are still tried
                    counts["failures"] += 1
                    tqdm.write(f"{name}: {failure}")
                table.add_row(name, *(str(counts[column]) for column in columns))
                values = ", ".join(f"{counts[column]} {column}" for column in columns)
                tqdm.write(f"{name}: {time.perf_counter() - begin:.0f} s, {values}")
                failures += counts["failures"]
        except Failure as failure:
            sys.exit(f"error: {failure}")
    console = Console()
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s; {failures} failures.")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
