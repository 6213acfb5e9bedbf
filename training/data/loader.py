"""Batches of token windows from shards, in an order that depends on seed, epoch and position alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..common.config import InputError
from ..common.language import LANGUAGES
from .shard_files import TOKEN, ShardReader, read_manifest

ROUNDS = 4  # rounds of the Feistel network: four make a strong pseudo-random permutation (Luby and Rackoff)


def _mix(x: np.ndarray, key: int) -> np.ndarray:
    """Hash 64-bit integers with the finaliser of splitmix64."""
    x = x + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def feistel_permutation(positions: np.ndarray, *, size: int, seed: int, epoch: int) -> np.ndarray:
    """Map positions by a pseudo-random permutation of range(size); time and memory depend only on len(positions).

    The permutation is a Feistel network on the smallest even number of bits that can represent `size`. Results outside
    the range are mapped again (cycle walking), at most 4 times on average.

    Args:
        positions: Integers in [0, size), (n,).
        seed, epoch: Key of the permutation.

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
        assert out.max(initial=0) < size, "a position outside the range would loop forever"
        walking = np.ones(len(out), bool)
        while walking.any():
            left, right = out[walking] >> np.uint64(half), out[walking] & mask
            for key in keys:
                left, right = right, left ^ (_mix(right, key) & mask)
            out[walking] = (left << np.uint64(half)) | right
            walking = out >= np.uint64(size)
    return out.astype(np.int64)


class TokenStream:
    """Concatenated tokens of some shards, split into windows of `sequence_length + 1`.

    Consecutive windows share no token, so each has `sequence_length` predictions; the last few tokens, which fill no
    window, are dropped. Documents follow each other within a window without a mask, as in the original's training.

    Args:
        folder: Folder of manifest.json.
        shards: Records of the manifest, in order.
        sequence_length: Predictions per window (T).
        vocab_size: Vocabulary size of the model; reading an id at or above it is an error.

    Raises:
        InputError: If a shard is missing or its size differs from the manifest, or the tokens do not fill one window.
    """

    def __init__(self, folder: Path, shards: list[dict], *, sequence_length: int, vocab_size: int):
        self.folder, self.shards = folder, [ShardReader(folder, shard) for shard in shards]
        self.window, self.vocab_size = sequence_length + 1, vocab_size
        for shard in self.shards:
            shard.check_size()
        self.starts = np.cumsum([0] + [shard["tokens"] for shard in shards])
        if len(self) == 0:
            raise InputError(
                f"{folder} has only {self.starts[-1]:,} tokens here, fewer than one window of {self.window:,}: use "
                "more text or a shorter sequence_length."
            )

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self.starts[-1]) // self.window

    def verify(self) -> None:
        """Read every shard and compare its sha256 with the manifest.

        Raises:
            InputError: If a shard differs from the manifest (the message gives its path).
        """
        for shard in self.shards:
            shard.verify()

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return tokens start..stop of the stream, uint16; the range may span several shards."""
        parts = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end, offset = min(stop, int(self.starts[shard + 1])), int(self.starts[shard])
            parts.append(self.shards[shard].tokens[start - offset : end - offset])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def windows(self, indices: np.ndarray) -> np.ndarray:
        """Return the token ids of windows, (n, T + 1) int64.

        Raises:
            InputError: If an id is not in the vocabulary.
        """
        batch = np.empty((len(indices), self.window), TOKEN)
        for row, index in enumerate(indices):
            batch[row] = self.tokens(int(index) * self.window, (int(index) + 1) * self.window)
        if (highest := int(batch.max(initial=0))) >= self.vocab_size:
            raise InputError(
                f"{self.folder} contains the id {highest}, but the model's vocabulary size is {self.vocab_size}: use "
                "the shards and the model of the same tokenizer."
            )
        return batch.astype(np.int64)


class ShardDataset:
    """A folder of token shards and its manifest.

    Raises:
        InputError: If there is no manifest, or it was altered.
    """

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, read_manifest(folder)

    def readers(self, *splits: str) -> list[ShardReader]:
        """Return readers of the shards of some splits, in the order of the manifest."""
        return [ShardReader(self.folder, shard) for shard in self.manifest["shards"] if shard["split"] in splits]

    def train(self, *, sequence_length: int, vocab_size: int) -> TokenStream:
        """Return the training split as one stream."""
        shards = [shard.record for shard in self.readers("train")]
        return TokenStream(self.folder, shards, sequence_length=sequence_length, vocab_size=vocab_size)

    def validation(self, *, sequence_length: int, vocab_size: int) -> dict[str, tuple[TokenStream, float]]:
        """Return for each language the validation stream and its UTF-8 bytes per token, counting delimiters as tokens.

        Languages with less text than one window are skipped.
        """
        by_language: dict[str, list[dict]] = {}
        for shard in self.readers("validation"):
            by_language.setdefault(shard.record["language"], []).append(shard.record)
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
    """Return the window indices (sequences,) of global batch `step`; each pass over the stream has another order."""
    position = np.arange(step * sequences, (step + 1) * sequences)
    epochs, position = np.divmod(position, len(stream))
    indices = np.empty_like(position)
    for epoch in np.unique(epochs):
        mask = epochs == epoch
        indices[mask] = feistel_permutation(position[mask], size=len(stream), seed=seed, epoch=int(epoch))
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
    """Yield this process's part of each global batch; a thread prefetches two batches.

    Args:
        steps: Global batches, counted from the first step of the stage.
        sequences: Windows per global batch, a multiple of `micro_batch * processes`.
        rank, processes: Rank of this process, and number of processes.

    Yields:
        The step and its micro batches, each (micro_batch, T + 1) int64. The rows of all ranks and micro batches are
        the global batch, whatever the number of processes.
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
