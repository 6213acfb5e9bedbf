"""Which passages of a text stand word for word in the training shards, in which documents, under which licences.

    python -m training.trace --index INDEX --shards SHARDS --tokenizer TOKENIZER    # build, once
    python -m training.trace --index INDEX --text FILE

A passage counts when it has at least `minimum` whole tokens of a training document. Passages are looked for as bytes,
so it makes no difference how the text around a passage cuts it into tokens: every stretch of the text that stands in
a document, is no part of a longer one that does, and begins and ends at whole characters, is found. (Passed over, so
that not every pair of words is looked up, are stretches of fewer than half of `minimum` tokens as the text is cut.)
"""

if not __package__:  # run by path; same as `python -m training.trace`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from .config import InputError, parse, program
from .data.licences import decide
from .files import read_json, write_json
from .suffix_array import POSITION, SHORTEST, Block, anchors
from .trace_index import BLOCK_FILES, FORMAT, build, token_bytes

THRESHOLDS = (10, 20, 50, 100, 200)  # tokens
COUNTED = 100  # occurrences of a passage whose tokens are counted; the most that one has is its length


@dataclass(frozen=True)
class Document:
    """A document that has a passage.

    Args:
        identifier: and
        collection: as the corpus names them; the collection is the source.
        language: likewise.
        license: likewise.
        decision: open, attribution, share-alike or refused (training.curation.licences).
        split: train, or validation for a document that was held out.
        shard: where it lies, below the folder that holds the shards' folder.
        position: of the passage's first byte in the document's text.
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
class Span:
    """A passage of the text that stands in training documents.

    Args:
        start: its first character in the text.
        length: whole tokens that it has in a training document, the most of its first 100 occurrences.
        text: the passage.
        occurrences: how often it stands in the index.
        in_documents: in how many documents.
        documents: the first of them.
        outside: those whose licence is not on the open lists, all of them.
    """

    start: int
    length: int
    text: str
    occurrences: int
    in_documents: int
    documents: list[Document]
    outside: list[Document]


def mapped(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, read where they are looked at."""
    with open(path, "rb") as file:  # an empty file cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


class IndexedBlock(Block):
    """A block on disk, with its tokens and documents.

    Args:
        path: of its files, without an ending.
    """

    def __init__(self, path: Path):
        text, suffixes, before, tokens, self.path = (path.with_name(path.name + ending) for ending in BLOCK_FILES)
        super().__init__(
            mapped(text), np.frombuffer(mapped(suffixes), POSITION), np.frombuffer(mapped(before), np.uint8)
        )
        self.begins = np.frombuffer(mapped(tokens), np.uint8)

    @cached_property
    def documents(self) -> pa.Table:
        """Of DOCUMENTS_SCHEMA; opened where a passage is found."""
        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()

    def tokens(self, position: int, size: int) -> int:
        """Whole tokens among some bytes: one fewer than there are places, from first byte to end, where one begins."""
        bits = np.unpackbits(self.begins[position // 8 : (position + size) // 8 + 1])
        return max(0, int(bits[position % 8 : position % 8 + size + 1].sum()) - 1)

    def documents_at(self, positions: np.ndarray) -> Iterator[Document]:
        """The documents that some ascending positions lie in, each once, with the first position in it."""
        starts = self.documents["start"].to_numpy()
        rows, first = np.unique(np.searchsorted(starts, positions, side="right") - 1, return_index=True)
        columns = ("identifier", "collection", "language", "license", "split", "shard")
        for row, position in zip(self.documents.take(rows).to_pylist(), positions[first].tolist(), strict=True):
            where = {name: row[name] for name in ("collection", "identifier")}
            decision = decide(row["license"], **where).decision
            facts = {name: row[name] for name in columns}
            yield Document(**facts, decision=decision, position=position - row["start"])


@dataclass
class _Found:
    """A passage of a query that stands somewhere in the index, and what is found of it block by block."""

    start: int
    passage: bytes
    length: int = 0
    counted: int = 0
    positions: list[np.ndarray] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    def look(self, block: IndexedBlock) -> None:
        """Where it stands in one more block, and how many tokens it has there."""
        self.positions.append(block.find(self.passage))
        for position in self.positions[-1][: COUNTED - self.counted].tolist():
            self.length = max(self.length, block.tokens(position, len(self.passage)))
            self.counted += 1


class Index:
    """An index on disk. Nothing of it is held in memory, and a query opens its blocks one after the other.

    Args:
        folder: what `training.trace_index.build` wrote.

    Raises:
        InputError: when it is not there, not whole, or no longer that of its shards.
    """

    def __init__(self, folder: Path):
        path = folder / "index.json"
        if not path.is_file():
            raise InputError(f"{path} is missing: build the index first (--shards and --tokenizer).")
        self.folder, self.facts = folder, read_json(path)
        if self.facts["format"] != FORMAT:
            raise InputError(f"{folder} has the format {self.facts['format']}, not {FORMAT}: build the index again.")
        for block in self.facts["blocks"]:
            for name, size in block["files"].items():
                if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                    raise InputError(f"{folder / name} is missing or cut short: build the index again.")
        for shards in self.facts["shards"]:
            manifest = Path(shards["folder"]) / "manifest.json"
            # Shards that are gone cannot have changed: the index holds what it needs of them.
            if manifest.is_file() and read_json(manifest)["fingerprint"] != shards["fingerprint"]:
                raise InputError(f"{folder} is stale: {shards['folder']} was made anew since. Build the index again.")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        backend = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        backend.encode_special_tokens = True  # as in the shards: "<|end_of_text|>" written in a text is text
        backend.no_truncation()
        return backend

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id writes."""
        return token_bytes(self.folder / "tokenizer.json", self.facts["tokenizer"])

    def blocks(self) -> Iterator[IndexedBlock]:
        """Opened one by one, so that an index may have more of them than a process may have files."""
        for number in range(len(self.facts["blocks"])):
            yield IndexedBlock(self.folder / f"{number:05}")

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids of the index's tokenizer, with U+FFFD for special tokens and parts of characters."""
        return b"".join(self.token_bytes[id] for id in ids).decode("utf-8", "replace")

    def spans(self, text: str | Sequence[int], *, minimum: int = 20, documents: int = 10) -> list[Span]:
        """The passages of a text that stand in the index, in the order in which they begin; they may overlap.

        Args:
            text: or the ids of one, in the tokenizer of the index.
            minimum: whole tokens of a training document that a passage has at least.
            documents: listed for each.

        Raises:
            InputError: when `minimum` is too small for the index to find every such passage.
        """
        if minimum < SHORTEST:
            raise InputError(f"{minimum} tokens are too few: the index finds passages of {SHORTEST} bytes or more.")
        text = text if isinstance(text, str) else self.text(text)
        query = text.encode()
        found = [_Found(start, query[start:end]) for start, end in self._longest(text, query, minimum)]
        for block in self.blocks():
            for one in found:
                one.look(block)
        found = [one for one in found if one.length >= minimum]
        for number, block in enumerate(self.blocks() if found else ()):
            for one in found:
                if len(one.positions[number]):
                    one.documents.extend(block.documents_at(one.positions[number]))
        return [
            Span(
                start=len(query[: one.start].decode()),
                length=one.length,
                text=one.passage.decode(),
                occurrences=sum(map(len, one.positions)),
                in_documents=len(one.documents),
                documents=one.documents[:documents],
                outside=[document for document in one.documents if document.decision == "refused"],
            )
            for one in found
        ]

    def _longest(self, text: str, query: bytes, minimum: int) -> list[tuple[int, int]]:
        """From which to which byte the longest passages reach that have half of `minimum` tokens in the text."""
        values = np.frombuffer(query, np.uint8)
        anchor = anchors(values)
        if not len(anchor):
            return []
        characters = np.append(np.flatnonzero((values & 0xC0) != 0x80), len(query))  # where they begin, and the end
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        tokens = characters[[start for start, _ in offsets]]
        # A passage from a byte touches the token there (the first one there: a character may be several) and those
        # after it; `needed` is where it has touched enough.
        there = tokens[np.searchsorted(tokens, np.arange(len(anchor)), side="right") - 1]
        last = np.searchsorted(tokens, there) + (minimum + 1) // 2 - 1
        needed = np.where(last < len(tokens), tokens[np.minimum(last, len(tokens) - 1)] + 1, len(query) + 1)
        needed = np.maximum(needed, np.arange(len(anchor)) + SHORTEST)
        ends = np.zeros(len(anchor), np.int64)
        for block in self.blocks():
            block.reach(query, anchor, needed, ends)
        starts = characters[characters < len(anchor)]
        ends = characters[np.searchsorted(characters, ends[starts], side="right") - 1]  # at whole characters
        kept = (ends > np.concatenate([[0], ends[:-1]])) & (ends >= needed[starts])
        return list(zip(starts[kept].tolist(), ends[kept].tolist(), strict=True))


def open_index(folder: Path) -> Index:
    """The index in a folder.

    Raises:
        InputError: when it is not there, not whole, or no longer that of its shards.
    """
    return Index(Path(folder))


def copied_characters(spans: list[Span], *, minimum: int = 0) -> int:
    """Characters of a text that lie in at least one of its spans of at least `minimum` tokens."""
    copied = reached = 0
    for span in sorted(spans, key=lambda span: span.start):
        end = span.start + len(span.text)
        if span.length >= minimum:
            copied += max(0, end - max(reached, span.start))
            reached = max(reached, end)
    return copied


def copied_share(text: str, spans: list[Span], *, thresholds: Sequence[int] = THRESHOLDS) -> dict[int, float]:
    """For each length in tokens, the share of a text's characters that lie in spans at least as long.

    Args:
        text: not empty.
        spans: of the text, found with a `minimum` of the least threshold or less.
        thresholds: lengths.
    """
    return {minimum: copied_characters(spans, minimum=minimum) / len(text) for minimum in thresholds}


# The program --------------------------------------------------------------------------------------


@dataclass
class TraceConfig:
    """Build an index, hold a text against one, or both.

    Args:
        index: folder of the index.
        text: the text, UTF-8.
        minimum: tokens that a passage has at least to be listed.
        documents: listed for each passage.
        json: file that the findings are written to, whole.
        shards: build the index, of this folder of token shards, or of several: '[A,B]'.
        tokenizer: folder of the tokenizer that the shards were made with.
        splits: which of the shards: train, or '[train,validation]'.
        block_megabytes: millions of bytes of text that are indexed at a time, in 10 times as much memory.
    """

    index: Path
    text: Path | None = None
    minimum: int = 20
    documents: int = 3
    json: Path | None = None
    shards: list[Path] | Path | None = None
    tokenizer: Path | None = None
    splits: list[str] = field(default_factory=lambda: ["train"])
    block_megabytes: float = 128


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        InputError: when it is empty or not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"--text {path} is not a file: give a text file.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--text {path} is not UTF-8 ({error}): convert it.") from None
    if not text:
        raise InputError(f"--text {path} is empty: give a file with text in it.")
    return text


def findings(index: Index, text: str, spans: list[Span]) -> dict:
    """What is said of a text: shares, spans, and the documents outside the open lists.

    Args:
        index: that the text was held against.
        text: the text.
        spans: found in it with a `minimum` of the least threshold or less.
    """
    outside = {document.identifier: asdict(document) for span in spans for document in span.outside}
    return {
        "characters": len(text),
        "index": {key: index.facts[key] for key in ("fingerprint", "documents", "tokens", "splits")},
        "copied": copied_share(text, spans),
        "spans": [asdict(span) for span in spans],
        "outside": list(outside.values()),
    }


def report(found: dict, *, minimum: int) -> str:
    """`findings` for a reader; spans of at least `minimum` tokens are listed."""
    index, spans = found["index"], [span for span in found["spans"] if span["length"] >= minimum]
    lines = [
        f"{found['characters']:,} characters, held against {index['documents']:,} documents of {index['tokens']:,} "
        f"tokens ({', '.join(index['splits'])}; index {index['fingerprint'][:12]})",
        "copied in spans of at least "
        + ", ".join(f"{tokens} tokens: {100 * share:.1f}%" for tokens, share in found["copied"].items()),
        f"spans of at least {minimum} tokens: {len(spans)}",
    ]
    for span in spans:
        text = " ".join(span["text"].split())
        text = text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"
        times = f"{span['occurrences']} time{'s' * (span['occurrences'] > 1)}"
        where = f"{span['in_documents']} document{'s' * (span['in_documents'] > 1)}"
        end = span["start"] + len(span["text"])
        lines += ["", f"characters {span['start']}-{end}: {span['length']} tokens, {times} in {where}", f'  "{text}"']
        for document in span["documents"]:
            lines.append(
                f"  {document['identifier']} | {document['collection']} | {document['language']} | "
                f"{document['license']} ({document['decision']}) | {document['split']} | {document['shard']}, "
                f"byte {document['position']:,}"
            )
        if more := span["in_documents"] - len(span["documents"]):
            lines.append(f"  and {more:,} more")
    if found["outside"]:
        lines += ["", f"documents with a span that are OUTSIDE the open lists: {len(found['outside'])}"]
        lines += [f"  {document['identifier']} ({document['license']!r})" for document in found["outside"]]
    elif found["spans"]:
        lines += ["", "every document with a span is on the open lists"]
    return "\n".join(lines)


def main() -> None:
    """`python -m training.trace`."""
    config = parse(TraceConfig, description="Find which passages of a text stand in the training shards.")
    if config.shards is None and config.text is None:
        raise InputError("Nothing to do: give --text FILE, or --shards and --tokenizer to build the index.")
    if config.shards is not None:
        if config.tokenizer is None:
            raise InputError("--tokenizer is missing: give the folder that training.shards was given.")
        settings = {"splits": config.splits, "block_megabytes": config.block_megabytes}
        folders = config.shards if isinstance(config.shards, list) else [config.shards]
        facts = build(folders, tokenizer=config.tokenizer, out=config.index, **settings)
        size = sum(sum(block["files"].values()) for block in facts["blocks"])
        print(
            f"wrote {config.index / 'index.json'}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, "
            f"{facts['bytes'] / 1e6:,.1f} MB of text; {len(facts['blocks'])} blocks of {size / 1e6:,.1f} MB altogether"
        )
    if config.text is not None:
        text, index = read_text(config.text), open_index(config.index)
        least = min(config.minimum, *THRESHOLDS)
        found = findings(index, text, index.spans(text, minimum=least, documents=config.documents))
        print(report(found, minimum=config.minimum))
        if config.json:
            write_json(config.json, {"text": str(config.text), **found})


if __name__ == "__main__":
    program(main)
