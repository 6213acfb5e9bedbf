"""Measure speed and memory of curation: MB/s of every block, scaling to a second process, and a much larger corpus.

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

from ..common.config import InputError, parse, run_main
from ..common.files import read_json
from ..curation.statistics_report import table
from ..data.documents import ROW_GROUP_BYTES, SCHEMA, corpus_files, read_documents

FILES = 8  # of a measured corpus, one task each


@dataclass
class CurationBench:
    """Corpora to measure. Temporary files go to TMPDIR.

    Args:
        corpus: Corpus folder from whose documents the measured corpora are built.
        settings: Config of training.curation, by name or path.
        megabytes: Size of the corpus for the comparison of workers, in MB of text.
        workers: The two numbers of processes to compare.
        times: Size of the large corpus as a multiple of the small one.
        small_megabytes: Size of the small corpus, in MB of text.
    """

    corpus: Path
    settings: str = "light"
    megabytes: float = 40
    workers: tuple[int, int] = (1, 2)
    times: int = 20
    small_megabytes: float = 5


class Turn(NamedTuple):
    """Measurements of one run of the program in separate processes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int  # of the largest process
    input_bytes: int


def documents(corpus: Path) -> Iterator[dict]:
    """Yield documents from all files of a corpus alternately, endlessly, with shuffled words from the second pass on.

    Shuffled text is no duplicate, and the other blocks take as long as before.
    """
    for copy in range(sys.maxsize):
        generator, streams = random.Random(copy), [read_documents(file) for file in corpus_files(corpus)]
        while streams:
            for stream in list(streams):
                row = next(stream, None)
                if row is None:
                    streams.remove(stream)
                    continue
                if copy:
                    words = row["text"].split(" ")
                    generator.shuffle(words)
                    row |= {"identifier": f"{row['identifier']} again {copy}", "text": " ".join(words)}
                yield row


def build_corpus(corpus: Path, out: Path, megabytes: float) -> None:
    """Write a corpus of a given size in `FILES` files."""
    out.mkdir()
    tables = [pq.ParquetWriter(out / f"{i:03d}.parquet", SCHEMA, compression="zstd") for i in range(FILES)]
    pending, sizes = [[] for _ in tables], [0] * FILES
    for row in documents(corpus):
        i = sizes.index(min(sizes))  # files of equal size, so that no process waits for another
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
        InputError: If the program failed; it has printed its error message.
    """
    package = __package__.partition(".bench")[0]
    command = [sys.executable, "-m", f"{package}.curation", "--config", settings, "--in", corpus, "--out", out]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command), "--workers", str(workers)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # including all child processes
    seconds = time.perf_counter() - start
    if status:
        raise InputError(f"{' '.join(map(str, command))} failed: fix the error above and run again.")
    size = read_json(out / "curation.json")["input"]["bytes"]
    return Turn(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, size)


def measure_curation(config: CurationBench, folder: Path) -> None:
    """Run and print the measurements."""
    few, many = config.workers
    sizes = [config.megabytes, config.small_megabytes, config.small_megabytes * config.times]
    corpora = [folder / name for name in ("corpus", "small", "large")]
    seconds = []
    print("| run | seconds | MB/s | MB/s per core | peak MB per process |\n| --- | ---: | ---: | ---: | ---: |")
    for corpus, megabytes, workers in zip([corpora[0], *corpora], [sizes[0], *sizes], [few, *[many] * 3], strict=True):
        if not corpus.is_dir():
            build_corpus(config.corpus, corpus, megabytes)
        result = turn(config.settings, corpus, folder / f"{corpus.name}-{workers}", workers)
        size = result.input_bytes / 1e6
        print(
            f"| {size:,.1f} MB, workers: {workers} | {result.seconds:,.1f} | {size / result.seconds:.2f} | "
            f"{size / result.cpu_seconds:.2f} | {result.peak_bytes / 1e6:,.0f} |",
            flush=True,
        )
        seconds.append(result.seconds)
    print(f"\n{many} workers are {seconds[0] / seconds[1]:.2f} times as fast as {few}\n")
    blocks = read_json(folder / f"corpus-{few}" / "curation.json")["blocks"].items()
    rows = [
        (name, f"{b['seconds']:,.2f}", f"{b['megabytes']:,.1f}", b["megabytes_per_second"] or "") for name, b in blocks
    ]
    print(table((f"block, {few} worker", "seconds", "MB", "MB/s"), rows))


def main() -> None:
    """Run the benchmark."""
    config = parse(CurationBench, description="Measure speed and memory of curation.")
    with tempfile.TemporaryDirectory() as folder:
        measure_curation(config, Path(folder))


if __name__ == "__main__":
    run_main(main)
