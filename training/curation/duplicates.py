"""Exact and near duplicates: one signature for both, and datatrove's MinHash stages over it.

A signature has 15 buckets of 8 hashes. Fourteen are MinHash over folded 5-word shingles: two texts share a bucket with
probability `1 - (1 - s^8)^14` at Jaccard similarity s, one half near s = 0.7. The fifteenth is the hash of the text
itself, so that one clustering finds both kinds and keeps exactly one document of each cluster.
"""

import struct
import unicodedata
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WhitespaceTokenizer

from ..files import atomic

SHINGLE = 5  # words
CONFIG = MinhashConfig(num_buckets=15, hashes_per_bucket=8, hash_config=HashConfig(precision=32))
MINHASHES = (CONFIG.num_buckets - 1) * CONFIG.hashes_per_bucket
LARGEST = 2**32 - 2  # datatrove ends a bucket at 2^32 - 1
PIECE = 1 << 16  # characters hashed at a time; a longer text is hashed in pieces, and memory does not grow with it
BLOCK = 256  # shingles times hashes at a time: stays in the cache


def _fold(code: int) -> int:
    """The base letter of a character in lower case; 0 for what separates words. The long s is an s."""
    letter = unicodedata.normalize("NFKD", chr(code).casefold())[0]
    return ord(letter) if letter.isalnum() else 0


FOLDED = np.array([_fold(code) for code in range(0x3000)], np.uint64)  # higher characters stand for themselves
_draw = np.random.default_rng(1)  # the same on every machine: signatures of one corpus are made on many
BASE = 0x9E3779B97F4A7C15
POWERS, INVERSES = (
    np.cumprod(np.array([1] + [factor] * (PIECE - 1), np.uint64)) for factor in (BASE, pow(BASE, -1, 2**64))
)
PLACES = _draw.integers(2**63, size=SHINGLE, dtype=np.uint64) * 2 + 1
FACTORS = _draw.integers(2**31, size=MINHASHES, dtype=np.uint32) * 2 + 1


def word_hashes(text: str) -> np.ndarray:
    """Hashes of the words of a text, (words,) uint64: case, accents and punctuation do not matter.

    A word is a run of letters and digits; its hash is the polynomial of its letters, taken as the difference of two
    prefix sums, so that no Python object is made for a word.
    """
    hashes = []
    for start in range(0, len(text), PIECE):
        piece = np.frombuffer(text[start : start + PIECE].encode("utf-32-le", "surrogatepass"), np.uint32)
        letters = np.where(piece < len(FOLDED), FOLDED[np.minimum(piece, len(FOLDED) - 1)], piece).astype(np.uint64)
        sums = np.cumsum(letters * POWERS[: len(letters)], dtype=np.uint64)
        edges = np.flatnonzero(np.diff(letters != 0, prepend=False, append=False))
        first, last = edges[::2], edges[1::2] - 1
        hashes.append((sums[last] - np.where(first > 0, sums[first - 1], np.uint64(0))) * INVERSES[first])
    return np.concatenate(hashes) if hashes else np.empty(0, np.uint64)


def shingle_hashes(text: str) -> np.ndarray:
    """Hashes of the 5-word shingles of a text, (shingles,) uint32; a shorter text is one shingle."""
    words = word_hashes(text)
    words = np.pad(words, (0, max(0, SHINGLE - len(words))))
    count = len(words) - SHINGLE + 1
    mixed = sum(words[place : place + count] * PLACES[place] for place in range(SHINGLE))
    return ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(16)).astype(np.uint32)


def signature(text: str) -> np.ndarray:
    """Fourteen buckets of MinHash and one of the exact text, (15, 8) uint32."""
    shingles, smallest = shingle_hashes(text), np.full(MINHASHES, LARGEST, np.uint32)
    for start in range(0, len(shingles), BLOCK):
        products = shingles[start : start + BLOCK, None] * FACTORS
        np.minimum(smallest, products.min(axis=0), out=smallest)
    exact = np.frombuffer(digest(text), np.uint32)
    return np.minimum(np.concatenate([smallest, exact]), LARGEST).reshape(CONFIG.num_buckets, -1)


def digest(text: str) -> bytes:
    """32 bytes that are equal for equal texts, runs of white space aside."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=32).digest()


# datatrove ----------------------------------------------------------------------------------------


class Sign(MinhashDedupSignature):
    """datatrove's first stage with our signature, which it asks for in two steps."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), CONFIG, language=WhitespaceTokenizer())  # else it would look for spaCy

    def get_shingles(self, text: str) -> np.ndarray:
        with self.track_time():
            self.stat_update("bytes", value=len(text.encode()))
            return signature(text)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        return shingles.tolist()


class Originals(PipelineStep):
    """After datatrove's clustering: for each removed document, which one stands for it, and whether it is equal.

    Writes `RANK.originals.parquet` (position, original, exact) beside datatrove's own files. Memory grows with the
    number of documents that have a duplicate, as datatrove's clustering does.
    """

    type, name = "curation", "originals"

    def __init__(self, clusters: Path, documents: list[Path]):
        super().__init__()
        self.clusters, self.documents = clusters, documents

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        kept, removed = {}, {}  # cluster -> (identifier, digest); rank -> [(position, cluster, digest)]
        for i, path in enumerate(self.documents):
            members = dict(_pairs(self.clusters / f"{i:06d}.clusters"))
            if not members:
                continue
            gone = {position for (position,) in _tuples(self.clusters / f"{i:06d}.remove", "<I")}
            table = pq.read_table(path, columns=["identifier", "digest"]).take(sorted(members))
            for position, row in zip(sorted(members), table.to_pylist(), strict=True):
                if position in gone:
                    removed.setdefault(i, []).append((position, members[position], row["digest"]))
                else:
                    kept[members[position]] = row["identifier"], row["digest"]
        for i, documents in removed.items():
            rows = [
                {"position": position, "original": kept[cluster][0], "exact": kept[cluster][1] == own}
                for position, cluster, own in documents
            ]
            with atomic(originals_file(self.clusters, i)) as temporary:
                pq.write_table(pa.Table.from_pylist(rows), temporary)


def originals_file(clusters: Path, rank: int) -> Path:
    """Where `Originals` says what became of the duplicates in one file."""
    return clusters / f"{rank:06d}.originals.parquet"


def read_originals(clusters: Path, rank: int) -> dict[int, tuple[str, bool]]:
    """Position -> (identifier of the document that stands for it, whether the texts are equal)."""
    path = originals_file(clusters, rank)
    if not path.is_file():
        return {}
    return {row["position"]: (row["original"], row["exact"]) for row in pq.read_table(path).to_pylist()}


def _tuples(path: Path, form: str) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack(form, path.read_bytes())) if path.is_file() else []


def _pairs(path: Path) -> list[tuple[int, int]]:
    return _tuples(path, "<2I")
