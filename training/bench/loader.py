"""How fast the loader reads, next to a plain copy of the same bytes; and what starting inside 5 T tokens costs.

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

from ..config import parse, program
from ..data.shard_files import TOKEN
from ..loader import TokenStream, batch_windows


@dataclass
class LoaderBench:
    """Size of the measurement.

    Args:
        out: folder for the temporary shards; the system's when not given.
        tokens: in the shard that is read, two bytes each; they should fit in the page cache.
        sequence_length: T of the windows.
        sequences: windows in a global batch.
        apparent_tokens: in the sparse shard that stands for a whole corpus; its file system must allow such files.
        repeats: of each measurement; the fastest counts.
    """

    out: Path | None = None
    tokens: int = 100_000_000
    sequence_length: int = 2048
    sequences: int = 3072
    apparent_tokens: int = 5 * 10**12
    repeats: int = 5


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def open_stream(path: Path, tokens: int, config: LoaderBench) -> TokenStream:
    """A stream over one shard."""
    record = {"file": path.name, "tokens": tokens}
    return TokenStream(path.parent, [record], sequence_length=config.sequence_length, vocab_size=2**16)


def measure(config: LoaderBench, folder: Path) -> None:
    """Print the measurements."""
    path = folder / "warm.ds"
    np.random.default_rng(0).integers(2**16, size=config.tokens, dtype=np.uint16).tofile(path)
    stream = open_stream(path, config.tokens, config)
    indices = batch_windows(stream, 0, sequences=min(config.sequences, len(stream)), seed=42)
    content = np.fromfile(path, TOKEN, count=len(indices) * stream.window)
    copy = np.empty(content.shape, np.int64)

    def baseline() -> None:
        copy[:] = content

    baseline()  # brings the pages of the copy into being; the file's are in the cache since they were written
    for name, call in (
        ("plain copy uint16 -> int64", baseline),
        ("windows in shuffled order", lambda: stream.windows(indices)),
        ("their order alone", lambda: batch_windows(stream, 1, sequences=len(indices), seed=42)),
    ):
        speed = len(content) / fastest(call, config.repeats)
        print(f"{name:30} {speed / 1e6:>10,.0f} M tokens/s, one thread, warm page cache")

    path = folder / "sparse.ds"
    path.touch()
    os.truncate(path, config.apparent_tokens * TOKEN.itemsize)

    def start() -> np.ndarray:
        huge = open_stream(path, config.apparent_tokens, config)
        middle = len(huge) // config.sequences // 2
        return huge.windows(batch_windows(huge, middle, sequences=config.sequences, seed=42)[:8])

    seconds = fastest(start, 1)
    size = path.stat().st_size / 1e12
    print(f"{'start in the middle of':30} {size:>10,.1f} TB apparent: {seconds:.4f} s to the first 8 windows")


def main() -> None:
    """`python -m training.bench.loader`."""
    config = parse(LoaderBench, description="Measure the loader against a plain copy.")
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        measure(config, Path(folder))


if __name__ == "__main__":
    program(main)
