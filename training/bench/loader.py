"""Measure the loader's throughput, compared with a plain copy, and the time to start in the middle of 5 T tokens.

python -m training.bench.loader
python -m training.bench.loader --out /a/disk/to/measure --tokens 1000000000
"""

if not __package__:  # run by path; same as `python -m training.bench.loader`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.config import parse, run_main
from ..data.loader import TokenStream, batch_windows
from ..data.shard_files import TOKEN

SEQUENCE_LENGTH, SEQUENCES = 2048, 3072  # windows per global batch
APPARENT_TOKENS = 5 * 10**12  # in a sparse file, which the file system must support
REPEATS = 5  # the fastest counts


@dataclass
class LoaderBench:
    """Folder and size of the measurement.

    Args:
        out: Folder for the temporary shards. Default: the system's.
        tokens: Tokens of the shard that is read, two bytes each; they should fit in the page cache.
    """

    out: Path | None = None
    tokens: int = 100_000_000


def fastest(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def open_stream(path: Path, tokens: int) -> TokenStream:
    """Open a stream of one shard."""
    record = {"file": path.name, "tokens": tokens}
    return TokenStream(path.parent, [record], sequence_length=SEQUENCE_LENGTH, vocab_size=2**16)


def measure_loader(tokens: int, folder: Path) -> None:
    """Print the measurements."""
    path = folder / "warm.ds"
    np.random.default_rng(0).integers(2**16, size=tokens, dtype=np.uint16).tofile(path)
    stream = open_stream(path, tokens)
    indices = batch_windows(stream, 0, sequences=min(SEQUENCES, len(stream)), seed=42)
    content = np.fromfile(path, TOKEN, count=len(indices) * stream.window)
    copy = np.empty(content.shape, np.int64)

    def baseline() -> None:
        copy[:] = content

    baseline()  # allocates the pages of the copy; the file's pages are in the cache since they were written
    for name, call in (
        ("plain copy uint16 -> int64", baseline),
        ("windows in shuffled order", lambda: stream.windows(indices)),
        ("order of the windows alone", lambda: batch_windows(stream, 1, sequences=len(indices), seed=42)),
    ):
        speed = len(content) / fastest(call)
        print(f"{name:30} {speed / 1e6:>10,.0f} M tokens/s, one thread, warm page cache")

    path = folder / "sparse.ds"
    path.touch()
    os.truncate(path, APPARENT_TOKENS * TOKEN.itemsize)

    def start() -> np.ndarray:
        huge = open_stream(path, APPARENT_TOKENS)
        middle = len(huge) // SEQUENCES // 2
        return huge.windows(batch_windows(huge, middle, sequences=SEQUENCES, seed=42)[:8])

    seconds = fastest(start, repeats=1)
    size = path.stat().st_size / 1e12
    print(f"{'start in the middle of':30} {size:>10,.1f} TB apparent: {seconds:.4f} s to the first 8 windows")


def main() -> None:
    """Run `python -m training.bench.loader`."""
    config = parse(LoaderBench, description="Measure the loader, compared with a plain copy.")
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        measure_loader(config.tokens, Path(folder))


if __name__ == "__main__":
    run_main(main)
