"""Find exact and near duplicates: one signature for both, and datatrove's MinHash stages over it.

A signature has 15 buckets of 8 hashes. Fourteen are MinHash over normalised 5-word shingles: two texts share a bucket
with probability `1 - (1 - s^8)^14` at Jaccard similarity s, which is 0.5 near s = 0.7. The fifteenth is the hash of
the normalised text, so that one clustering finds both kinds and keeps exactly one document of each cluster.
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

from ..common.normalization import normalize
from ..data.documents import write_parquet

SHINGLE = 5  # words
CONFIG = MinhashConfig(num_buckets=15, hashes_per_bucket=8, hash_config=HashConfig(precision=32))
MINHASHES = (CONFIG.num_buckets - 1) * CONFIG.hashes_per_bucket
MAX_HASH = 2**32 - 2  # datatrove marks the end of a bucket with 2^32 - 1
PIECE = 1 << 16  # characters hashed at a time, so that memory does not grow with the text
BLOCK = 256  # shingles hashed at a time: fits in the CPU cache


def _fold(code: int) -> int:
    """Return the lower-case base letter of a character, 0 for a word separator. The long s becomes s."""
    letter = unicodedata.normalize("NFKD", chr(code).casefold())[0]
    return ord(letter) if letter.isalnum() else 0


FOLDED = np.array([_fold(code) for code in range(0x3000)], np.uint64)  # characters above are unchanged
_random = np.random.default_rng(1)  # fixed seed: the machines of one run must agree
BASE = 0x9E3779B97F4A7C15
POWERS, INVERSES = (
    np.cumprod(np.array([1] + [factor] * (PIECE - 1), np.uint64)) for factor in (BASE, pow(BASE, -1, 2**64))
)
POSITION_FACTORS = _random.integers(2**63, size=SHINGLE, dtype=np.uint64) * 2 + 1
HASH_FACTORS = _random.integers(2**31, size=MINHASHES, dtype=np.uint32) * 2 + 1


def word_hashes(text: str) -> np.ndarray:
    """Return the hashes of the words of a text, (words,) uint64, ignoring case, accents and punctuation.

    A word is a sequence of letters and digits. Its hash is a polynomial of its letters, computed as the difference of
    two prefix sums, so that no Python object is created per word.
    """
    text, hashes = normalize(text).text, []
    for start in range(0, len(text), PIECE):
        piece = np.frombuffer(text[start : start + PIECE].encode("utf-32-le", "surrogatepass"), np.uint32)
        letters = np.where(piece < len(FOLDED), FOLDED[np.minimum(piece, len(FOLDED) - 1)], piece).astype(np.uint64)
        sums = np.cumsum(letters * POWERS[: len(letters)], dtype=np.uint64)
        edges = np.flatnonzero(np.diff(letters != 0, prepend=False, append=False))
        first, last = edges[::2], edges[1::2] - 1
        hashes.append((sums[last] - np.where(first > 0, sums[first - 1], np.uint64(0))) * INVERSES[first])
    return np.concatenate(hashes) if hashes else np.empty(0, np.uint64)


def shingle_hashes(text: str) -> np.ndarray:
    """Return the hashes of the 5-word shingles of a text, (shingles,) uint32; a shorter text is one shingle."""
    words = word_hashes(text)
    words = np.pad(words, (0, max(0, SHINGLE - len(words))))
    count = len(words) - SHINGLE + 1
    mixed = sum(words[i : i + count] * POSITION_FACTORS[i] for i in range(SHINGLE))
    return ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(16)).astype(np.uint32)


def signature(text: str) -> np.ndarray:
    """Return fourteen buckets of MinHash and one of the exact text, (15, 8) uint32."""
    shingles, smallest = shingle_hashes(text), np.full(MINHASHES, MAX_HASH, np.uint32)
    for start in range(0, len(shingles), BLOCK):
        hashes = shingles[start : start + BLOCK, None] * HASH_FACTORS
        np.minimum(smallest, hashes.min(axis=0), out=smallest)
    exact = np.frombuffer(digest(text), np.uint32)
    return np.minimum(np.concatenate([smallest, exact]), MAX_HASH).reshape(CONFIG.num_buckets, -1)


def digest(text: str) -> bytes:
    """Return a 32-byte hash of the normalised view of a text, which ignores the amount of whitespace."""
    return blake2b(" ".join(normalize(text).text.split()).encode("utf-8", "surrogatepass"), digest_size=32).digest()


# datatrove ----------------------------------------------------------------------------------------


class MinhashSignature(MinhashDedupSignature):
    """datatrove's first stage with the signature of this module, which it computes in two steps."""

    def __init__(self, folder: str):
        super().__init__(folder, CONFIG, language=WhitespaceTokenizer())  # the default would load spaCy

    def get_shingles(self, text: str) -> np.ndarray:
        with self.track_time():
            self.stat_update("bytes", value=len(text.encode()))
            return signature(text)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        return shingles.tolist()


class DuplicateOriginals(PipelineStep):
    """Record for each removed document which kept document it duplicates, and whether the texts are equal.

    Runs after datatrove's clustering and writes `RANK.originals.parquet` (position, original, exact) next to its
    files. Memory grows with the number of documents that have a duplicate, as in datatrove's clustering.
    """

    type, name = "curation", "originals"

    def __init__(self, clusters: Path, documents: list[Path]):
        super().__init__()
        self.clusters, self.documents = clusters, documents

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        originals, removed = {}, {}  # cluster -> (identifier, digest); rank -> [(position, cluster, digest)]
        for i, path in enumerate(self.documents):
            members = dict(_tuples(self.clusters / f"{i:06d}.clusters", "<2I"))
            if not members:
                continue
            removed_positions = {position for (position,) in _tuples(self.clusters / f"{i:06d}.remove", "<I")}
            table = pq.read_table(path, columns=["identifier", "digest"]).take(sorted(members))
            for position, row in zip(sorted(members), table.to_pylist(), strict=True):
                if position in removed_positions:
                    removed.setdefault(i, []).append((position, members[position], row["digest"]))
                else:
                    originals[members[position]] = row["identifier"], row["digest"]
        for i, documents in removed.items():
            rows = [
                {"position": position, "original": originals[cluster][0], "exact": originals[cluster][1] == own_digest}
                for position, cluster, own_digest in documents
            ]
            write_parquet(originals_file(self.clusters, i), pa.Table.from_pylist(rows))


def originals_file(clusters: Path, rank: int) -> Path:
    """Path of the file in which `Originals` records the duplicates of one task."""
    return clusters / f"{rank:06d}.originals.parquet"


def read_originals(clusters: Path, rank: int) -> dict[int, tuple[str, bool]]:
    """Return position -> (identifier of the kept document, whether the texts are equal)."""
    path = originals_file(clusters, rank)
    if not path.is_file():
        return {}
    return {row["position"]: (row["original"], row["exact"]) for row in pq.read_table(path).to_pylist()}


def _tuples(path: Path, form: str) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack(form, path.read_bytes())) if path.is_file() else []
