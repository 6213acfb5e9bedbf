"""Token shards -> batches, in an order computed from (seed, epoch, position) that no number of processes changes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .config import InputError
from .data.shard_files import TOKEN
from .files import read_json, sha256
from .language import LANGUAGES

ROUNDS = 4  # of the Feistel network; Luby and Rackoff: four make a strong pseudo-random permutation


def _mix(x: np.ndarray, key: int) -> np.ndarray:
    """splitmix64's finaliser: 64 bits in, 64 well-mixed bits out."""
    x = x + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permuted(positions: np.ndarray, *, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of range(size) sends `positions`; time and memory depend on len(positions) alone.

    A Feistel network on the smallest even number of bits that holds `size`; what falls outside goes round again
    (cycle walking), at most 4 times on average.

    Args:
        positions: (n,) integers in [0, size).
        seed, epoch: name the permutation.

    Returns:
        (n,) int64, distinct for distinct positions.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed, epoch], np.uint64), 0x9E3779B97F4A7C15)
        base = start[0] ^ (start[1] << np.uint64(1))
        keys = [int(key) for key in _mix(base + np.arange(ROUNDS, dtype=np.uint64), 1)]
        out = np.asarray(positions, np.uint64).copy()
        assert out.max(initial=0) < size, "a position outside would walk for ever"
        walking = np.ones(len(out), bool)
        while walking.any():
            left, right = out[walking] >> np.uint64(half), out[walking] & mask
            for key in keys:
                left, right = right, left ^ (_mix(right, key) & mask)
            out[walking] = (left << np.uint64(half)) | right
            walking = out >= np.uint64(size)
    return out.astype(np.int64)


class TokenStream:
    """The tokens of some shards, end to end, cut into windows of `sequence_length + 1`.

    Consecutive windows share no token, so each gives `sequence_length` predictions and the last few tokens, which fill
    no window, are left out. Documents follow each other within a window without a mask, as in the original's training.

    Args:
        folder: where manifest.json lies.
        shards: records of the manifest, in order.
        sequence_length: T.
        vocab_size: ids at or above it are refused when read.

    Raises:
        InputError: when a shard is missing or its length is not the manifest's, or there is not one full window.
    """

    def __init__(self, folder: Path, shards: list[dict], *, sequence_length: int, vocab_size: int):
        self.folder, self.shards = folder, shards
        self.window, self.vocab_size = sequence_length + 1, vocab_size
        for shard in shards:
            path = folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["tokens"] * TOKEN.itemsize:
                known = f"{shard['tokens'] * TOKEN.itemsize:,}"
                wrong = "is missing:" if size is None else f"has {size:,} bytes instead of {known}: delete it and"
                raise InputError(f"{path} {wrong} make the shards again.")
        self.starts = np.cumsum([0] + [shard["tokens"] for shard in shards])
        self.maps: dict[int, np.memmap] = {}
        if len(self) == 0:
            raise InputError(
                f"{folder} holds {self.starts[-1]:,} tokens here, fewer than one window of {self.window:,}: use more "
                "text or a shorter sequence_length."
            )

    def __len__(self) -> int:
        """Windows."""
        return int(self.starts[-1]) // self.window

    def verify(self) -> None:
        """Read every shard and compare its sha256 with the manifest's.

        Raises:
            InputError: naming the shard that was altered.
        """
        for shard in self.shards:
            if sha256(self.folder / shard["file"]) != shard["sha256"]:
                raise InputError(
                    f"{self.folder / shard['file']} was altered after the manifest was written (sha256 differs): "
                    "delete it and make the shards again."
                )

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop of the whole stream, uint16; may cross from one shard into the next."""
        parts = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[shard + 1]))
            if shard not in self.maps:
                self.maps[shard] = np.memmap(self.folder / self.shards[shard]["file"], TOKEN, mode="r")
            offset = int(self.starts[shard])
            parts.append(self.maps[shard][start - offset : end - offset])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def windows(self, indices: np.ndarray) -> np.ndarray:
        """(n, T + 1) int64 token ids of the named windows.

        Raises:
            InputError: when an id is not in the vocabulary.
        """
        batch = np.empty((len(indices), self.window), TOKEN)
        for row, index in enumerate(indices):
            batch[row] = self.tokens(int(index) * self.window, (int(index) + 1) * self.window)
        if (highest := int(batch.max(initial=0))) >= self.vocab_size:
            raise InputError(
                f"{self.folder} holds the id {highest}, above the model's vocabulary of {self.vocab_size}: "
                "shards and model belong to different tokenizers."
            )
        return batch.astype(np.int64)


class Shards:
    """A folder of token shards as its manifest describes it.

    Raises:
        InputError: when there is no manifest.
    """

    def __init__(self, folder: Path):
        if not (folder / "manifest.json").is_file():
            raise InputError(f"{folder / 'manifest.json'} is missing: make the shards first (training.shards).")
        self.folder, self.manifest = folder, read_json(folder / "manifest.json")

    def train(self, *, sequence_length: int, vocab_size: int) -> TokenStream:
        """The training split as one stream."""
        shards = [shard for shard in self.manifest["shards"] if shard["split"] == "train"]
        return TokenStream(self.folder, shards, sequence_length=sequence_length, vocab_size=vocab_size)

    def validation(self, *, sequence_length: int, vocab_size: int) -> dict[str, tuple[TokenStream, float]]:
        """For each language the validation stream and its UTF-8 bytes per token, delimiters counted as tokens."""
        by_language: dict[str, list[dict]] = {}
        for shard in self.manifest["shards"]:
            if shard["split"] == "validation":
                by_language.setdefault(shard["language"], []).append(shard)
        streams = {}
        order = list(LANGUAGES)
        for language in sorted(by_language, key=lambda code: ((*order, code).index(code), code)):
            shards = by_language[language]
            tokens = sum(shard["tokens"] for shard in shards)
            if tokens > sequence_length:
                stream = TokenStream(self.folder, shards, sequence_length=sequence_length, vocab_size=vocab_size)
                streams[language] = (stream, sum(r["bytes"] for shard in shards for r in shard["account"]) / tokens)
        return streams


def batch_windows(stream: TokenStream, step: int, *, sequences: int, seed: int) -> np.ndarray:
    """Window indices (sequences,) of global batch `step`: pass after pass over the stream, each in its own order."""
    position = np.arange(step * sequences, (step + 1) * sequences)
    epochs, position = np.divmod(position, len(stream))
    indices = np.empty_like(position)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permuted(position[here], size=len(stream), seed=seed, epoch=int(epoch))
    return indices


def batches(
    stream: TokenStream,
    steps: range,
    *,
    sequences: int,
    micro_batch: int,
    rank: int,
    processes: int,
    seed: int,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """This process's part of each global batch, read ahead by a thread while the last one is in use.

    Args:
        steps: which global batches, counted from the beginning of the stage.
        sequences: windows in a global batch, a multiple of `micro_batch * processes`.
        rank, processes: this process among all.

    Yields:
        step, and its micro batches, each (micro_batch, T + 1) int64. Over all ranks and micro batches the rows are the
        global batch, whatever the number of processes.
    """

    def load(step: int) -> list[np.ndarray]:
        indices = batch_windows(stream, step, sequences=sequences, seed=seed).reshape(-1, processes, micro_batch)
        return [stream.windows(micro) for micro in indices[:, rank]]

    with ThreadPoolExecutor(1, "loader") as reader:
        ahead = [reader.submit(load, step) for step in steps[:2]]
        for i, step in enumerate(steps):
            batch = ahead.pop(0).result()
            if i + 2 < len(steps):
                ahead.append(reader.submit(load, steps[i + 2]))
            yield step, batch
