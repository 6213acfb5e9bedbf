"""Measure tracing: how fast an index is built and asked, how large it is, and whether it finds what was planted.

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

from ..config import InputError, parse, program
from ..data.shard_files import SPLITS, tokenizer_facts
from ..trace import Index, open_index
from ..trace_index import Source, sources

PLANTED = (20, 50, 100, 200)  # tokens
EDGES = ("", " ", "\n", "x", "7", ", ")  # what a planted passage is glued to the text with


@dataclass
class TraceBench:
    """What is indexed and asked.

    Args:
        shards: folder of token shards; its training split is indexed, its held-out text is asked about.
        tokenizer: folder of their tokenizer.
        block_megabytes: sizes of blocks; an index is built for each, and the first one is asked.
        tokens: lengths of the texts that are asked about.
        texts: asked about, of each length.
        plants: passages that are planted, of each length.
        seed: of what is drawn.
        out: folder for temporary files, about 2 bytes for each byte of text; the system's when not given.
    """

    shards: Path
    tokenizer: Path
    block_megabytes: list[float] = field(default_factory=lambda: [128.0, 32.0])
    tokens: list[int] = field(default_factory=lambda: [100, 1000, 4000])
    texts: int = 50
    plants: int = 100
    seed: int = 0
    out: Path | None = None


class Drawn:
    """Random documents of one split, as ids.

    Args:
        shards: all shards.
        split: which of them.
        draw: the generator.
    """

    def __init__(self, shards: list[Source], split: str, draw: random.Random):
        self.shards, self.draw = [shard for shard in shards if shard.file.record["split"] == split], draw
        self.weights = [shard.file.record["tokens"] for shard in self.shards]
        self.names = {shard.file.path: shard.file.documents(["identifier", "license"]) for shard in self.shards}

    def __call__(self, tokens: int) -> tuple[np.ndarray, dict]:
        """So many tokens of a document that has them, and its identifier and licence.

        Raises:
            InputError: when none is so long.
        """
        longest = max(int(shard.tokens.max(initial=0)) for shard in self.shards)
        if longest < tokens + 2:
            raise InputError(f"--tokens {tokens} is more than the longest document has ({longest - 2}): give less.")
        while True:
            [shard] = self.draw.choices(self.shards, self.weights)
            long = np.flatnonzero(shard.tokens >= tokens + 2)
            if len(long):
                row = int(self.draw.choice(long))
                first = int(shard.tokens[:row].sum()) + 1 + self.draw.randint(0, int(shard.tokens[row]) - 2 - tokens)
                ids = shard.file.tokens[first : first + tokens]
                return ids, self.names[shard.file.path].slice(row, 1).to_pylist()[0]


def build_index(config: TraceBench, folder: Path, megabytes: float) -> None:
    """Build in a process of its own, for its peak of memory, and print the row."""
    program_name = f"{__package__.rpartition('.')[0]}.trace"
    command = [sys.executable, "-m", program_name, "--index", folder, "--shards", config.shards]
    command += ["--tokenizer", config.tokenizer, "--block_megabytes", megabytes]
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise InputError(f"{' '.join(map(str, command))} failed: run it to see why.")
    facts = open_index(folder).facts
    text, tokens, blocks = facts["bytes"], facts["tokens"], facts["blocks"]
    size = sum(sum(block["files"].values()) for block in blocks)
    print(
        f"| {megabytes:g} | {len(blocks)} | {text / 1e6:,.1f} | {tokens:,} | {seconds:,.1f} "
        f"| {text / 1e6 / seconds:.2f} | {usage.ru_maxrss * 1024 / 1e6:,.0f} "
        f"| {size / 1e6:,.1f} | {size / text:.2f} | {size / tokens:.1f} |",
        flush=True,
    )


def ask(index: Index, name: str, texts: list[str], tokens: int) -> None:
    """Print the row of some texts."""
    index.spans(texts[0])  # the tokenizer is read, and the page cache is warm at the beginning
    milliseconds, found = [], 0
    for text in texts:
        start = time.perf_counter()
        found += len(index.spans(text))
        milliseconds.append(1000 * (time.perf_counter() - start))
    half, most = np.percentile(milliseconds, [50, 95])
    print(f"| {name} | {tokens:,} | {len(texts)} | {half:,.1f} | {most:,.1f} | {found} |", flush=True)


def plant(index: Index, config: TraceBench, length: int, train: Drawn, held_out: Drawn, draw: random.Random) -> None:
    """Print how many planted passages of a length are found with their document and licence."""
    found = documents = licences = 0
    for _ in range(config.plants):
        passage, around = "\ufffd", held_out(100)[0]
        while passage.startswith("\ufffd") or passage.endswith("\ufffd"):  # cut within a character
            ids, document = train(length)
            passage = index.text(ids)
        before = index.text(around[: draw.randint(1, 99)]) + draw.choice(EDGES)
        spans = index.spans(before + passage + draw.choice(EDGES) + index.text(around[50:]), documents=10**6)
        over = [s for s in spans if s.start <= len(before) <= len(before) + len(passage) <= s.start + len(s.text)]
        named = [one for span in over for one in span.documents if one.identifier == document["identifier"]]
        found += bool(over)
        documents += bool(named)
        licences += any(one.license == document["license"] for one in named)
    print(f"| {length} | {config.plants} | {found} | {documents} | {licences} |", flush=True)


def measure(config: TraceBench, folder: Path) -> None:
    """Print the measurements, each as soon as it is there."""
    print("| blocks of MB | blocks | MB of text | tokens | s | MB/s | peak MB | index MB | per byte | per token |")
    print("| ---: " * 10 + "|")
    for megabytes in config.block_megabytes:
        build_index(config, folder / f"{megabytes:g}", megabytes)
    index, draw = open_index(folder / f"{config.block_megabytes[0]:g}"), random.Random(config.seed)
    shards = sources([config.shards], list(SPLITS), tokenizer_facts(config.tokenizer))
    train, held_out = (Drawn(shards, split, draw) for split in SPLITS)
    print("\n| text | tokens | texts | median ms | 95% ms | spans of 20 tokens |\n| --- " + "| ---: " * 5 + "|")
    for name, source in (("held out", held_out), ("trained on", train)):
        for tokens in config.tokens:
            ask(index, name, [index.text(source(tokens)[0]) for _ in range(config.texts)], tokens)
    print("\n| planted tokens | passages | found | with the document | and its licence |\n" + "| ---: " * 5 + "|")
    for length in PLANTED:
        plant(index, config, length, train, held_out, draw)


def main() -> None:
    """`python -m training.bench.trace`."""
    config = parse(TraceBench, description="Measure building and asking an index of training text.")
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        measure(config, Path(folder))


if __name__ == "__main__":
    program(main)
