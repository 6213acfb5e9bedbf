"""Search a text for passages that occur verbatim in indexed training shards.

A passage is listed if it contains at least `min_tokens` complete tokens of a training document. Passages are matched
as bytes, so the result does not depend on how the text around a passage is tokenized: the search returns every
maximal substring of the text that occurs in a document and that begins and ends at character boundaries. Substrings
with fewer than half of `min_tokens` tokens in the text's own tokenization are skipped, so that not every pair of words
is looked up.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from ..common.config import InputError
from ..common.files import inside, read_json, sha256
from ..data.licences import decide
from ..data.shard_files import load_tokenizer
from .suffix_array import POSITION, SHORTEST, Block, anchors
from .trace_index import BLOCK_FILES, FORMAT, token_bytes

THRESHOLDS = (10, 20, 50, 100, 200)  # tokens
COUNTED = 100  # occurrences of a passage whose tokens are counted; the longest count is the passage's length


@dataclass(frozen=True)
class MatchedDocument:
    """A document that contains a passage.

    Args:
        identifier: Document identifier in the corpus.
        collection: Collection in the corpus, the document's source.
        language: Language in the corpus.
        license: License in the corpus.
        decision: open, attribution, share-alike or refused (training.data.licences).
        split: train, or validation for a held-out document.
        shard: Shard file, relative to the parent of the shards' folder.
        position: Offset of the passage's first byte in the document's text.
    """

    identifier: str
    collection: str
    language: str
    license: str
    decision: str
    split: str
    shard: str
    position: int


@dataclass(frozen=True)
class MatchedSpan:
    """A passage of the text that occurs in training documents.

    Args:
        start: Index of its first character in the text.
        length: Complete tokens of the training document in it; the maximum over its first 100 occurrences.
        text: The passage.
        occurrences: Number of occurrences in the index.
        in_documents: Number of documents that contain it.
        documents: The first of these documents.
        outside: All of these documents whose licence is not on the open lists.
    """

    start: int
    length: int
    text: str
    occurrences: int
    in_documents: int
    documents: list[MatchedDocument]
    outside: list[MatchedDocument]


def mapped(path: Path) -> mmap.mmap | bytes:
    """Memory-map a file."""
    with open(path, "rb") as file:  # an empty file cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


class IndexedBlock(Block):
    """A block on disk, with its tokens and documents; `path` has no suffix."""

    def __init__(self, path: Path):
        text, suffixes, before, tokens, self.path = (path.with_name(path.name + suffix) for suffix in BLOCK_FILES)
        super().__init__(
            mapped(text), np.frombuffer(mapped(suffixes), POSITION), np.frombuffer(mapped(before), np.uint8)
        )
        self.begins = np.frombuffer(mapped(tokens), np.uint8)

    @cached_property
    def documents(self) -> pa.Table:
        """Table of DOCUMENTS_SCHEMA, opened when the first passage is found."""
        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()

    def tokens(self, position: int, size: int) -> int:
        """Count the complete tokens in a byte range: the token starts from its first byte to its end, minus one."""
        bits = np.unpackbits(self.begins[position // 8 : (position + size) // 8 + 1])
        return max(0, int(bits[position % 8 : position % 8 + size + 1].sum()) - 1)

    def rows_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the documents that contain the ascending positions, and the first position in each."""
        starts = self.documents["start"].to_numpy()
        rows, first = np.unique(np.searchsorted(starts, positions, side="right") - 1, return_index=True)
        return rows, positions[first]

    def documents_at(self, rows: np.ndarray, positions: np.ndarray) -> Iterator[MatchedDocument]:
        """Yield the documents of some rows, each matched at a position."""
        columns = ("identifier", "collection", "language", "license", "split", "shard")
        for row, position in zip(self.documents.take(rows).to_pylist(), positions.tolist(), strict=True):
            decision = decide(row["license"], collection=row["collection"], identifier=row["identifier"]).decision
            fields = {name: row[name] for name in columns}
            yield MatchedDocument(**fields, decision=decision, position=position - row["start"])


class Query:
    """A text under search: from each of its bytes, the end of the longest passage in the blocks searched so far.

    Args:
        text: The text.
        tokenizer: Tokenizer of the index.
        overlapped: Minimum tokens of the text that a passage overlaps.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, overlapped: int):
        self.bytes = text.encode()
        values = np.frombuffer(self.bytes, np.uint8)
        self.anchor = anchors(values)
        self.ends = np.zeros(len(self.anchor), np.int64)
        # Character starts, and the end. The bytes of a token are those of its characters.
        self.characters = np.append(np.flatnonzero((values & 0xC0) != 0x80), len(values))
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        self.tokens = self.characters[np.array(offsets, np.int64).reshape(-1, 2)]  # start and end of each in bytes
        if not len(self.anchor):
            return
        # A passage from a byte overlaps the token at that byte (the first one: a character may be several tokens) and
        # the following tokens; `needed` is the end at which it overlaps enough of them.
        starts, first = self.tokens[:, 0], np.arange(len(self.anchor))
        current = starts[np.searchsorted(starts, first, side="right") - 1]
        last = np.searchsorted(starts, current) + overlapped - 1
        needed = np.where(last < len(starts), starts[np.minimum(last, len(starts) - 1)] + 1, len(values) + 1)
        self.needed = np.maximum(needed, first + SHORTEST)

    def search(self, block: Block) -> None:
        """Search another block."""
        if len(self.anchor):
            block.reach(self.bytes, self.anchor, self.needed, self.ends)

    def passages(self) -> list[tuple[int, int]]:
        """Return (start, end) bytes of the maximal passages that begin and end at character boundaries."""
        if not len(self.anchor):
            return []
        starts = self.characters[self.characters < len(self.anchor)]
        ends = self.characters[np.searchsorted(self.characters, self.ends[starts], side="right") - 1]
        maximal = (ends > np.concatenate([[0], ends[:-1]])) & (ends >= self.needed[starts])
        return list(zip(starts[maximal].tolist(), ends[maximal].tolist(), strict=True))


@dataclass
class _SpanMatches:
    """A passage of a query that occurs in the index, and its matches block by block."""

    query: Query
    start: int
    passage: bytes
    length: int = 0
    counted: int = 0
    positions: list[np.ndarray] = field(default_factory=list)
    in_documents: int = 0
    documents: list[MatchedDocument] = field(default_factory=list)

    def search(self, block: IndexedBlock) -> None:
        """Find its positions in another block, and count its tokens there."""
        self.positions.append(block.find(self.passage))
        for position in self.positions[-1][: COUNTED - self.counted].tolist():
            self.length = max(self.length, block.tokens(position, len(self.passage)))
            self.counted += 1

    def identify(self, number: int, block: IndexedBlock, most: int | None) -> None:
        """Add the documents of a block that contain it, until there are `most`."""
        if len(self.positions[number]):
            rows, first = block.rows_at(self.positions[number])
            self.in_documents += len(rows)
            more = None if most is None else max(0, most - len(self.documents))
            self.documents.extend(block.documents_at(rows[:more], first[:more]))


class TraceIndex:
    """An index on disk. It is memory-mapped, and a query opens its blocks one after another.

    Args:
        folder: Output folder of `training.tracing.trace_index.build_index`.

    Raises:
        InputError: If it is missing, incomplete, altered or older than its shards.
    """

    def __init__(self, folder: Path):
        path = folder / "index.json"
        if not path.is_file():
            raise InputError(f"{path} is missing: build the index first (--shards and --tokenizer).")
        self.folder, self.facts, written = folder, read_json(path), path.stat().st_mtime_ns
        if self.facts["format"] != FORMAT:
            raise InputError(f"{folder} has format {self.facts['format']}, not {FORMAT}: build the index again.")
        for block in self.facts["blocks"]:
            for name, size in block["files"].items():
                file = inside(folder, name)
                if not file.is_file() or file.stat().st_size != size:
                    raise InputError(f"{file} is missing or truncated: build the index again.")
                # A file that is older than index.json, which is written last, has not changed since. An index of an
                # earlier version has no hashes.
                known = block.get("sha256", {}).get(name)
                if known and file.stat().st_mtime_ns >= written and sha256(file) != known:
                    raise InputError(f"{file} was altered after the index was built: build the index again.")
        for shards in self.facts["shards"]:
            manifest = Path(shards["folder"]) / "manifest.json"
            # Deleted shards cannot have changed; the index contains what it needs of them.
            if manifest.is_file() and read_json(manifest)["fingerprint"] != shards["fingerprint"]:
                raise InputError(f"{folder} is stale: {shards['folder']} was rebuilt since. Build the index again.")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the shards."""
        backend = load_tokenizer(self.folder / "tokenizer.json")
        backend.encode_special_tokens = True  # as in the shards: "<|end_of_text|>" written in a text is text
        return backend

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes of each token id."""
        return token_bytes(self.folder / "tokenizer.json", self.facts["tokenizer"])

    def blocks(self) -> Iterator[IndexedBlock]:
        """Open the blocks one by one, so that an index may have more blocks than a process may have open files."""
        for number in range(len(self.facts["blocks"])):
            yield IndexedBlock(self.folder / f"{number:05}")

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids, with U+FFFD for special tokens and incomplete characters."""
        return b"".join(self.token_bytes[id] for id in ids).decode("utf-8", "replace")

    def spans(self, text: str | Sequence[int], *, min_tokens: int = 20, max_documents: int = 10) -> list[MatchedSpan]:
        """Return the passages of a text that occur in the index, by start; they may overlap.

        Args:
            text: The text, or its ids in the tokenizer of the index.
            min_tokens: Minimum complete tokens of a training document in a passage.
            max_documents: Maximum documents listed per passage.

        Raises:
            InputError: If `min_tokens` is too small for the index to find every such passage.
        """
        if min_tokens < SHORTEST:
            raise InputError(f"min_tokens must be at least {SHORTEST} (bytes of a match), got {min_tokens}.")
        text = text if isinstance(text, str) else self.text(text)
        # Half of the tokens, because the training document may be tokenized otherwise.
        query = Query(text, self.tokenizer, (min_tokens + 1) // 2)
        for block in self.blocks():
            query.search(block)
        matches = self.match([(query, start, end) for start, end in query.passages()], min_tokens=min_tokens)
        return [replace(match, documents=match.documents[:max_documents]) for match in matches]

    def match(
        self, passages: list[tuple[Query, int, int]], *, min_tokens: int = 0, max_documents: int | None = None
    ) -> list[MatchedSpan]:
        """Return passages, (text, start, end) in bytes, with their occurrences and documents.

        Args:
            passages: Passages that occur in the index.
            min_tokens: Minimum complete tokens of a training document; passages with fewer are not returned.
            max_documents: Maximum documents per passage, also of those that are `outside`.
        """
        matches = [_SpanMatches(query, start, query.bytes[start:end]) for query, start, end in passages]
        for block in self.blocks() if matches else ():
            for match in matches:
                match.search(block)
        matches = [match for match in matches if match.length >= min_tokens]
        for number, block in enumerate(self.blocks() if matches else ()):
            for match in matches:
                match.identify(number, block, max_documents)
        return [
            MatchedSpan(
                start=len(match.query.bytes[: match.start].decode()),
                length=match.length,
                text=match.passage.decode(),
                occurrences=sum(map(len, match.positions)),
                in_documents=match.in_documents,
                documents=match.documents,
                outside=[document for document in match.documents if document.decision == "refused"],
            )
            for match in matches
        ]

    def around(self, passage: str, document: MatchedDocument, size: int) -> tuple[str, str]:
        """Return at most `size` characters of a document before and after a passage that was found in it."""
        length, most = len(passage.encode()), 4 * size  # bytes
        for block in self.blocks():
            table = block.documents
            named = pc.equal(table["identifier"], document.identifier)
            for row in table.filter(pc.and_(named, pc.equal(table["shard"], document.shard))).to_pylist():
                first, last = row["start"], row["start"] + row["bytes"]
                start, end = first + document.position, first + document.position + length
                if block.text[start:end] == passage.encode():
                    before = block.text[max(first, start - most) : start].decode("utf-8", "replace")
                    after = block.text[end : min(end + most, last)].decode("utf-8", "replace")
                    return before[-size:], after[:size]
        raise AssertionError(f"{document.identifier} does not contain the passage")


def copied_characters(spans: list[MatchedSpan], *, min_tokens: int = 0) -> int:
    """Count the characters of a text that are in at least one of its spans of `min_tokens` tokens or more."""
    copied = reached = 0
    for span in sorted(spans, key=lambda span: span.start):
        end = span.start + len(span.text)
        if span.length >= min_tokens:
            copied += max(0, end - max(reached, span.start))
            reached = max(reached, end)
    return copied


def copied_share(text: str, spans: list[MatchedSpan]) -> dict[int, float]:
    """Return, per threshold, the fraction of a text's characters in spans of at least that many tokens.

    The spans must be found with a `min_tokens` of the smallest threshold or less.
    """
    return {length: copied_characters(spans, min_tokens=length) / len(text) for length in THRESHOLDS}


def build_report(index: TraceIndex, text: str, spans: list[MatchedSpan]) -> dict:
    """Build the JSON report of a text: copied shares, spans, and the documents outside the open lists."""
    outside = {document.identifier: asdict(document) for span in spans for document in span.outside}
    return {
        "characters": len(text),
        "index": {key: index.facts[key] for key in ("fingerprint", "documents", "tokens", "splits")},
        "copied": copied_share(text, spans),
        "spans": [asdict(span) for span in spans],
        "outside": list(outside.values()),
    }
