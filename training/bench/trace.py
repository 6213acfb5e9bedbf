"""Benchmark training.trace: build time, query time and size of an index, and recall of planted passages.

python -m training.bench.trace --shards data/demo/shards --tokenizer data/demo/tokenizer
"""

if not __package__:  # run by path; same as `python -m training.bench.trace`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..common.config import InputError, parse, run_main
from ..data.shard_files import SPLITS, tokenizer_facts
from ..tracing.search import TraceIndex
from ..tracing.trace_index import IndexedShard, sources

PLANTED = (20, 50, 100, 200)  # tokens
EDGES = ("", " ", "\n", "x", "7", ", ")  # strings between a planted passage and the text around it


@dataclass
class TraceBench:
    """Data, sizes and number of queries.

    Args:
        shards: Folder of token shards. The training split is indexed; queries are from both splits.
        tokenizer: Folder of their tokenizer.
        block_megabytes: Block sizes; an index is built for each, and the first is queried.
        tokens: Lengths of the queries in tokens.
        texts: Number of queries per length.
        plants: Number of planted passages per length.
        seed: Random seed.
        out: Folder for temporary files, about 2 bytes per byte of text. Defaults to the system's.
    """

    shards: Path
    tokenizer: Path
    block_megabytes: list[float] = field(default_factory=lambda: [128.0, 32.0])
    tokens: list[int] = field(default_factory=lambda: [100, 1000, 4000])
    texts: int = 50
    plants: int = 100
    seed: int = 0
    out: Path | None = None


class PassageSampler:
    """Sampler of passages of one split, as ids.

    Args:
        shards: All shards.
        split: Split to sample from.
        rng: Random number generator.
    """

    def __init__(self, shards: list[IndexedShard], split: str, rng: random.Random):
        self.shards, self.rng = [shard for shard in shards if shard.file.record["split"] == split], rng
        self.weights = [shard.file.record["tokens"] for shard in self.shards]
        self.names = {shard.file.path: shard.file.documents(["identifier", "license"]) for shard in self.shards}

    def __call__(self, tokens: int) -> tuple[np.ndarray, dict]:
        """Return `tokens` consecutive ids of a random document, and its identifier and licence.

        Raises:
            InputError: If no document is that long.
        """
        longest = max(int(shard.tokens.max(initial=0)) for shard in self.shards)
        if longest < tokens + 2:
            raise InputError(f"--tokens must be at most {longest - 2}, the longest document, got {tokens}.")
        while True:
            [shard] = self.rng.choices(self.shards, self.weights)
            long = np.flatnonzero(shard.tokens >= tokens + 2)
            if len(long):
                row = int(self.rng.choice(long))
                first = int(shard.starts[row]) + 1 + self.rng.randint(0, int(shard.tokens[row]) - 2 - tokens)
                ids = shard.file.tokens[first : first + tokens]
                return ids, self.names[shard.file.path].slice(shard.rows[row], 1).to_pylist()[0]


def build_index(config: TraceBench, folder: Path, megabytes: float) -> None:
    """Build in a separate process, to measure its peak memory, and print the row."""
    program_name = f"{__package__.rpartition('.')[0]}.trace"
    command = [sys.executable, "-m", program_name, "--index", folder, "--shards", config.shards]
    command += ["--tokenizer", config.tokenizer, "--block_megabytes", megabytes]
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise InputError(f"{' '.join(map(str, command))} failed: run it to see why.")
    facts = TraceIndex(folder).facts
    text, tokens, blocks = facts["bytes"], facts["tokens"], facts["blocks"]
    size = sum(sum(block["files"].values()) for block in blocks)
    print(
        f"| {megabytes:g} | {len(blocks)} | {text / 1e6:,.1f} | {tokens:,} | {seconds:,.1f} "
        f"| {text / 1e6 / seconds:.2f} | {usage.ru_maxrss * 1024 / 1e6:,.0f} "
        f"| {size / 1e6:,.1f} | {size / text:.2f} | {size / tokens:.1f} |",
        flush=True,
    )


def ask(index: TraceIndex, name: str, texts: list[str], tokens: int) -> None:
    """Time queries and print their row."""
    index.spans(texts[0])  # loads the tokenizer and warms the page cache
    milliseconds, spans = [], 0
    for text in texts:
        start = time.perf_counter()
        spans += len(index.spans(text))
        milliseconds.append(1000 * (time.perf_counter() - start))
    median, slow = np.percentile(milliseconds, [50, 95])
    print(f"| {name} | {tokens:,} | {len(texts)} | {median:,.1f} | {slow:,.1f} | {spans} |", flush=True)


def plant(
    index: TraceIndex,
    config: TraceBench,
    length: int,
    train: PassageSampler,
    held_out: PassageSampler,
    rng: random.Random,
) -> None:
    """Print the number of planted passages of a length that are found with their document and licence."""
    hits = documents = licences = 0
    for _ in range(config.plants):
        passage, around = "\ufffd", held_out(100)[0]
        while passage.startswith("\ufffd") or passage.endswith("\ufffd"):  # split within a character
            ids, document = train(length)
            passage = index.text(ids)
        before = index.text(around[: rng.randint(1, 99)]) + rng.choice(EDGES)
        spans = index.spans(before + passage + rng.choice(EDGES) + index.text(around[50:]), max_documents=10**6)
        covering = [s for s in spans if s.start <= len(before) <= len(before) + len(passage) <= s.start + len(s.text)]
        matches = [
            match for span in covering for match in span.documents if match.identifier == document["identifier"]
        ]
        hits += bool(covering)
        documents += bool(matches)
        licences += any(match.license == document["license"] for match in matches)
    print(f"| {length} | {config.plants} | {hits} | {documents} | {licences} |", flush=True)


def measure_tracing(config: TraceBench, folder: Path) -> None:
    """Run all measurements and print each row when it is complete."""
    print("| blocks of MB | blocks | MB of text | tokens | s | MB/s | peak MB | index MB | per byte | per token |")
    print("| ---: " * 10 + "|")
    for megabytes in config.block_megabytes:
        build_index(config, folder / f"{megabytes:g}", megabytes)
    index, rng = TraceIndex(folder / f"{config.block_megabytes[0]:g}"), random.Random(config.seed)
    shards = sources([config.shards], list(SPLITS), tokenizer_facts(config.tokenizer))
    train, held_out = (PassageSampler(shards, split, rng) for split in SPLITS)
    print("\n| text | tokens | texts | median ms | 95% ms | spans of 20 tokens |\n| --- " + "| ---: " * 5 + "|")
    for name, source in (("held out", held_out), ("trained on", train)):
        for tokens in config.tokens:
            ask(index, name, [index.text(source(tokens)[0]) for _ in range(config.texts)], tokens)
    print("\n| planted tokens | passages | found | with the document | and its licence |\n" + "| ---: " * 5 + "|")
    for length in PLANTED:
        plant(index, config, length, train, held_out, rng)


def main() -> None:
    """Run `python -m training.bench.trace`."""
    config = parse(TraceBench, description="Benchmark building and searching an index of training text.")
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        measure_tracing(config, Path(folder))


if __name__ == "__main__":
    run_main(main)
