"""Speed and memory of curation: MB/s of every block, what a second process adds, and a much larger corpus.

python -m training.bench.curation --corpus CORPUS
"""

if not __package__:  # run by path; same as `python -m training.bench.curation`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..config import InputError, parse, program
from ..curation.page import table
from ..data.documents import ROW_GROUP_BYTES, SCHEMA, corpus_files, read_documents
from ..files import read_json


@dataclass
class CurationBench:
    """Size of the measurement.

    Args:
        corpus: a corpus folder; its documents are measured.
        settings: config of training.curation, by name or path.
        megabytes: of text, taken from all files of the corpus alike.
        files: the measured corpus has; one task each.
        workers: numbers of processes to compare.
        times: the larger corpus has this many times the text of the smaller.
        small_megabytes: of text in the smaller one.
        out: folder for the temporary corpora; the system's when not given.
    """

    corpus: Path
    settings: str = "light"
    megabytes: float = 40
    files: int = 8
    workers: tuple[int, int] = (1, 2)
    times: int = 20
    small_megabytes: float = 5
    out: Path | None = None


class Turn(NamedTuple):
    """One run of the program, in processes of its own."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int  # of the largest process
    account: dict


def documents(corpus: Path) -> Iterator[dict]:
    """Documents of all files of a corpus in turn, over and over, their words shuffled from the second time on.

    Shuffled text is new to the search for duplicates, and costs the other blocks what it cost before.
    """
    for copy in range(sys.maxsize):
        draw, streams = random.Random(copy), [read_documents(file) for file in corpus_files(corpus)]
        while streams:
            for stream in list(streams):
                row = next(stream, None)
                if row is None:
                    streams.remove(stream)
                    continue
                if copy:
                    words = row["text"].split(" ")
                    draw.shuffle(words)
                    row |= {"identifier": f"{row['identifier']} again {copy}", "text": " ".join(words)}
                yield row


def build(corpus: Path, out: Path, megabytes: float, files: int) -> None:
    """Write a corpus of some size."""
    out.mkdir()
    tables = [pq.ParquetWriter(out / f"{i:03d}.parquet", SCHEMA, compression="zstd") for i in range(files)]
    pending, sizes = [[] for _ in tables], [0] * files
    for row in documents(corpus):
        i = sizes.index(min(sizes))  # equal files, so that no process waits for another
        pending[i].append(row)
        sizes[i] += len(row["text"].encode())
        full = sum(sizes) >= megabytes * 1e6
        for rows, file in zip(pending, tables, strict=True):
            if rows and (full or sum(len(row["text"]) for row in rows[:1]) * len(rows) > ROW_GROUP_BYTES):
                file.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows.clear()
        if full:
            break
    for file in tables:
        file.close()


def turn(settings: str, corpus: Path, out: Path, workers: int) -> Turn:
    """Curate a corpus once.

    Raises:
        InputError: when the program failed; its own words are on the screen.
    """
    package = __package__.partition(".bench")[0]
    command = [sys.executable, "-m", f"{package}.curation", "--config", settings, "--in", corpus, "--out", out]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command), "--workers", str(workers)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # with all processes that it waited for
    seconds = time.perf_counter() - start
    if status:
        raise InputError(f"{' '.join(map(str, command))} failed: see above.")
    return Turn(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, read_json(out / "curation.json"))


def measure(config: CurationBench, folder: Path) -> None:
    """Print the measurements, each as soon as it is there."""
    few, many = config.workers
    sizes = [config.megabytes, config.small_megabytes, config.small_megabytes * config.times]
    corpora = [folder / name for name in ("corpus", "small", "large")]
    seconds = []
    print("| run | seconds | MB/s | MB/s a core | peak MB of a process |\n| --- | ---: | ---: | ---: | ---: |")
    for corpus, megabytes, workers in zip([corpora[0], *corpora], [sizes[0], *sizes], [few, *[many] * 3], strict=True):
        if not corpus.is_dir():
            build(config.corpus, corpus, megabytes, config.files)
        one = turn(config.settings, corpus, folder / f"{corpus.name}-{workers}", workers)
        size = one.account["input"]["bytes"] / 1e6
        print(
            f"| {size:,.1f} MB, workers: {workers} | {one.seconds:,.1f} | {size / one.seconds:.2f} | "
            f"{size / one.cpu_seconds:.2f} | {one.peak_bytes / 1e6:,.0f} |",
            flush=True,
        )
        seconds.append(one.seconds)
    print(f"\n{many} workers have {seconds[0] / seconds[1]:.2f} times the speed of {few}\n")
    blocks = read_json(folder / f"corpus-{few}" / "curation.json")["blocks"].items()
    rows = [
        (name, f"{b['seconds']:,.2f}", f"{b['megabytes']:,.1f}", b["megabytes_per_second"] or "") for name, b in blocks
    ]
    print(table((f"block, {few} worker", "seconds", "MB", "MB/s"), rows))


def main() -> None:
    """`python -m training.bench.curation`."""
    config = parse(CurationBench, description="Measure speed and memory of curation.")
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        measure(config, Path(folder))


if __name__ == "__main__":
    program(main)
