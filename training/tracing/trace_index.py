"""Build an on-disk index of the text of token shards, block by block, in memory independent of the corpus size.

A block contains complete documents of at most `block_megabytes` of text (or one larger document):

    00000.text             a byte 0xFF, then each document's text and a byte 0xFF
    00000.suffixes         its suffix array (suffix_array.py), little-endian uint32
    00000.before           the byte before each suffix
    00000.tokens           one bit per byte of the text: whether a token of the shard begins there
    00000.documents.arrow  start, metadata and shard of each document (Arrow IPC, memory-mapped)
    00000.json             inputs of the block, and sizes and hashes of its files; an interrupted build resumes here

A document that is repeated, in one shard or in several, is indexed once: the shards of a mixture with more than one
epoch repeat documents, and those of later runs most documents of the first.

`tokenizer.json` and, written last, `index.json` are next to the blocks. Until all blocks are complete, new ones are
in `.unfinished/`, and an earlier index remains. In total about 2.3 bytes per byte of text. The
trade-off of blocks: building needs memory for one block, 10 bytes per byte of its text, whatever the corpus; but a
query searches every block in turn, so its time is linear in their number, not logarithmic in the corpus size.
"""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..common.config import InputError
from ..common.escaping import shell_line
from ..common.files import (
    UNFINISHED,
    are_unchanged,
    atomic,
    fingerprint,
    lock_folder,
    move_files,
    read_json,
    sha256,
    write_json,
)
from ..data.loader import ShardDataset
from ..data.shard_files import GROUP_COLUMNS, SPLITS, ShardReader, load_tokenizer, tokenizer_facts
from .suffix_array import BREAK, suffix_array

FORMAT = 1  # increased when older indexes can no longer be read
DOCUMENTS_SCHEMA = pa.schema(
    [("start", pa.int64()), ("bytes", pa.int64()), ("identifier", pa.string())]
    + [(column, pa.string()) for column in (*GROUP_COLUMNS, "split", "shard")]
)
BLOCK_FILES = (".text", ".suffixes", ".before", ".tokens", ".documents.arrow")
LARGEST_BLOCK = 2**31 - 2  # bytes: the suffix sort uses signed 32-bit indices
SLICE = 1 << 20  # tokens decoded at a time
DIGEST = 16  # bytes of the hash of a document


@dataclass(frozen=True)
class DocumentRange:
    """Documents first..last (exclusive) of those to index of a shard, by the shard's index."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class IndexedShard:
    """A shard, with rows in the sidecar, first tokens, bytes and tokens of its documents to index, (documents,)."""

    file: ShardReader
    sidecar: str  # sha256 of X.ds.documents.parquet
    rows: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    def select(self, chosen: np.ndarray) -> "IndexedShard":
        """Return the shard with some of its documents, (documents,) bool."""
        names = ("rows", "starts", "bytes", "tokens")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def origin(self, first: int, last: int) -> list:
        """Return what identifies the text of documents first..last in an index."""
        rows = self.rows[first:last]
        skipped = [fingerprint(rows.tolist())] if rows[-1] != last - 1 else []  # documents before or between them
        return [self.file.record["sha256"], self.sidecar, first, last, *skipped]


def token_bytes(tokenizer: Path, facts: dict) -> list[bytes]:
    """Return the bytes of each token id: none for beginning-of-text, BREAK for the other special tokens.

    Args:
        tokenizer: Path of a tokenizer.json.
        facts: Its `tokenizer` entry in a manifest.

    Raises:
        InputError: If the vocabulary is not byte-level, so that the bytes of a token are unknown.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # lazy import: takes a second

    backend = load_tokenizer(tokenizer)
    byte = {character: value for value, character in bytes_to_unicode().items()}
    written = [b""] * facts["entries"]
    try:
        for token, id in backend.get_vocab(with_added_tokens=False).items():
            written[id] = bytes(byte[character] for character in token)
    except KeyError as error:
        raise InputError(
            f"{tokenizer} is not byte-level (it contains {token!r}): an index needs the bytes of every token."
        ) from error
    for id, added in backend.get_added_tokens_decoder().items():
        written[id] = bytes([BREAK]) if added.special else added.content.encode()
    written[facts["bos"]] = b""
    return written


def sources(folders: list[Path], splits: list[str], tokenizer: dict) -> list[IndexedShard]:
    """Return the shards of some folders in manifest order, after checking them against the manifests.

    A document is in the first shard only that has it, once.

    Raises:
        InputError: If a shard is missing, altered or made with another tokenizer, or if there is none.
    """
    shards, digests = [], []
    for folder in folders:
        dataset = ShardDataset(folder)
        manifest = dataset.manifest
        if manifest["tokenizer"]["sha256"] != tokenizer["sha256"]:
            raise InputError(
                f"{folder} was made with another tokenizer (sha256 {manifest['tokenizer']['sha256'][:12]}..., not "
                f"{tokenizer['sha256'][:12]}...): pass the folder that was passed to training.shards as --tokenizer."
            )
        for shard in dataset.readers(*splits):
            shard.verify()
            documents = shard.documents(["identifier", *GROUP_COLUMNS, "bytes", "tokens"])
            size, tokens = (documents[name].to_numpy().astype(np.int64) for name in ("bytes", "tokens"))
            starts = np.cumsum(tokens) - tokens
            digests += document_digests(shard, documents, starts)
            shards.append(IndexedShard(shard, sha256(shard.sidecar), np.arange(len(tokens)), starts, size, tokens))
    if not shards:
        raise InputError(f"{folders[0]} has no shard of the splits {splits}: pass others with --splits.")
    distinct = np.zeros(len(digests), bool)
    distinct[np.unique(np.frombuffer(b"".join(digests), f"V{DIGEST}"), return_index=True)[1]] = True
    ends = np.cumsum([len(shard.rows) for shard in shards])
    return [shard.select(part) for shard, part in zip(shards, np.split(distinct, ends[:-1]), strict=True)]


def document_digests(shard: ShardReader, documents: pa.Table, starts: np.ndarray) -> Iterator[bytes]:
    """Yield a hash of each document of a shard: its tokens, identifier, language, licence, collection and split."""
    columns = documents.select(["identifier", *GROUP_COLUMNS])
    for row, start, size in zip(columns.to_pylist(), starts, documents["tokens"].to_pylist(), strict=True):
        digest = hashlib.blake2b(repr((*row.values(), shard.record["split"])).encode(), digest_size=DIGEST)
        digest.update(shard.tokens[start : start + size].tobytes())
        yield digest.digest()


def plan(shards: list[IndexedShard], capacity: int) -> Iterator[list[DocumentRange]]:
    """Group documents into blocks, in order: at most `capacity` bytes with their breaks, at least one document.

    Raises:
        InputError: If a document is too large for any block.
    """
    block, remaining = [], capacity
    for number, shard in enumerate(shards):
        if shard.bytes.max(initial=0) > LARGEST_BLOCK:
            raise InputError(f"{shard.file.path} has a document of more than 2 GiB: split it.")
        ends = np.concatenate([[0], np.cumsum(shard.bytes + 1)])
        first = 0
        while first < len(shard.bytes):
            last = int(np.searchsorted(ends, ends[first] + remaining, side="right")) - 1
            if last <= first and block:
                yield block
                block, remaining = [], capacity
                continue
            last = max(last, first + 1)
            block.append(DocumentRange(number, first, last))
            remaining -= int(ends[last] - ends[first])
            first = last
    if block:
        yield block


class Decoder:
    """Vectorised decoder from token ids to bytes, given the bytes of each token id."""

    def __init__(self, tokens: list[bytes]):
        self.flat = np.frombuffer(b"".join(tokens), np.uint8)
        self.lengths = np.array([len(token) for token in tokens])
        self.offsets = np.cumsum(self.lengths) - self.lengths

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (bytes,) uint8 of some ids, and the start of each id that has bytes."""
        length = self.lengths[ids]
        begins = np.cumsum(length) - length
        text = self.flat[np.repeat(self.offsets[ids] - begins, length) + np.arange(length.sum())]
        return text, begins[length > 0]


def block_text(
    shards: list[IndexedShard], pieces: list[DocumentRange], decode: Decoder
) -> tuple[np.ndarray, np.ndarray]:
    """Return the text of a block, (bytes,) uint8, and a mask of its token starts, (bytes,) bool.

    Raises:
        InputError: If the tokens of a shard do not match the documents in its sidecar.
    """
    size = 1 + sum(int((shards[piece.shard].bytes[piece.first : piece.last] + 1).sum()) for piece in pieces)
    text, begins, at = np.empty(size, np.uint8), np.zeros(size, bool), 1
    text[0] = BREAK
    for piece in pieces:
        shard = shards[piece.shard]
        ends = at + np.cumsum(shard.bytes[piece.first : piece.last] + 1)
        starts = shard.starts[piece.first : piece.last]
        stops = starts + shard.tokens[piece.first : piece.last]
        gaps = np.flatnonzero(starts[1:] != stops[:-1])  # of documents that are indexed elsewhere
        ranges = zip(starts[np.append(0, gaps + 1)].tolist(), stops[np.append(gaps, -1)].tolist(), strict=True)
        wrong, slices = False, ((i, min(i + SLICE, stop)) for start, stop in ranges for i in range(start, stop, SLICE))
        for start, stop in slices:
            tokens = shard.file.tokens[start:stop]
            if wrong := len(tokens) < stop - start or tokens.max() >= len(decode.lengths):
                break
            decoded, places = decode(tokens)
            if wrong := at + len(decoded) > ends[-1]:
                break
            text[at : at + len(decoded)] = decoded
            begins[at + places] = True
            at += len(decoded)
        if wrong or at != ends[-1] or not (text[ends - 1] == BREAK).all():
            path = shard.file.path
            raise InputError(f"{path}: its tokens do not match the documents in its sidecar: build it again.")
    return text, begins


def write_block(path: Path, text: np.ndarray, begins: np.ndarray, documents: pa.Table) -> None:
    """Write the files of a block, each atomically; `path` has no suffix, and the arrays are those of `block_text`."""
    suffixes = suffix_array(text)
    arrays = text, suffixes, text[suffixes.astype(np.int64) - 1], np.packbits(begins)
    *array_files, documents_file = BLOCK_FILES
    for suffix, array in zip(array_files, arrays, strict=True):
        with atomic(path.with_name(path.name + suffix)) as temporary:
            temporary.write_bytes(array.data)  # tofile() does not state why it fails
    with atomic(path.with_name(path.name + documents_file)) as temporary:
        with pa.ipc.new_file(str(temporary), DOCUMENTS_SCHEMA) as file:
            file.write_table(documents)


def block_documents(shards: list[IndexedShard], pieces: list[DocumentRange]) -> pa.Table:
    """Return the metadata of the documents of a block, and their starts in it."""
    tables, at = [], 1
    for piece in pieces:
        shard = shards[piece.shard]
        table = shard.file.documents(["identifier", *GROUP_COLUMNS, "bytes"])
        table = table.take(shard.rows[piece.first : piece.last])
        size = table["bytes"].to_numpy() + 1
        columns = {name: table[name] for name in table.column_names} | {
            "start": pa.array(at + np.cumsum(size) - size),
            "split": pa.repeat(shard.file.record["split"], len(table)),
            "shard": pa.repeat(f"{shard.file.folder.resolve().name}/{shard.file.record['file']}", len(table)),
        }
        tables.append(pa.table([columns[name] for name in DOCUMENTS_SCHEMA.names], schema=DOCUMENTS_SCHEMA))
        at += int(size.sum())
    return pa.concat_tables(tables).combine_chunks()


def block_files(path: Path) -> list[Path]:
    """Return the files of a block, without its record."""
    return [path.with_name(path.name + suffix) for suffix in BLOCK_FILES]


def reusable(path: Path, origin: dict) -> dict | None:
    """Return the record of a block that an earlier build wrote from the same input, unless its files changed.

    A block of an earlier version, whose record has no hashes, is not reusable.
    """
    record = read_json(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else None
    valid = record and record["origin"] == origin and "sha256" in record
    return record if valid and are_unchanged(path.parent, record["sha256"]) else None


def build_index(
    folders: list[Path], *, tokenizer: Path, out: Path, splits: list[str] = SPLITS, block_megabytes: float = 128
) -> dict:
    """Index the text of token shards. Complete blocks of an earlier build from the same inputs are reused.

    Args:
        folders: Folders of token shards made with the same tokenizer.
        tokenizer: Folder of that tokenizer.
        out: Folder of the index.
        splits: train, validation or both.
        block_megabytes: Megabytes of text per block.

    Returns:
        Content of index.json.

    Raises:
        InputError: If shards are missing, altered or of another tokenizer, or a setting is invalid.
    """
    if unknown := set(splits) - set(SPLITS):
        raise InputError(f"--splits must be among {', '.join(SPLITS)}, got {sorted(unknown)[0]}.")
    if not 0 < block_megabytes * 10**6 <= LARGEST_BLOCK:
        largest = f"{LARGEST_BLOCK / 1e6:,.0f}"
        raise InputError(f"--block_megabytes must be above 0 and below {largest}, got {block_megabytes:g}.")
    with lock_folder(out):
        return _build(folders, tokenizer, out, splits, block_megabytes)


def _build(folders: list[Path], tokenizer: Path, out: Path, splits: list[str], block_megabytes: float) -> dict:
    """Write the index into a locked folder; see `build_index`."""
    facts = tokenizer_facts(tokenizer)
    decode = Decoder(token_bytes(tokenizer / "tokenizer.json", facts))
    shards = sources(folders, splits, facts)
    blocks = list(plan(shards, int(block_megabytes * 10**6) - 1))
    origins = [
        {
            "format": FORMAT,
            "tokenizer": facts["sha256"],
            "pieces": [shards[piece.shard].origin(piece.first, piece.last) for piece in pieces],
        }
        for pieces in blocks
    ]
    records, unfinished = [], out / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    with tqdm(total=sum(int((shard.bytes + 1).sum()) for shard in shards), unit="B", unit_scale=True) as progress:
        for number, (pieces, origin) in enumerate(zip(blocks, origins, strict=True)):
            path = unfinished / f"{number:05}"
            if (record := reusable(out / path.name, origin)) is not None:
                for file in (*block_files(path), path.with_suffix(".json")):  # of a build from other input
                    file.unlink(missing_ok=True)
            elif (record := reusable(path, origin)) is None:
                documents = block_documents(shards, pieces)
                write_block(path, *block_text(shards, pieces, decode), documents)
                record = {
                    "origin": origin,
                    "files": {file.name: file.stat().st_size for file in block_files(path)},
                    "sha256": {file.name: sha256(file) for file in block_files(path)},
                    "documents": len(documents),
                    "bytes": sum(documents["bytes"].to_pylist()),
                    "tokens": sum(int(shards[piece.shard].tokens[piece.first : piece.last].sum()) for piece in pieces),
                }
                write_json(path.with_suffix(".json"), record)
            records.append(record)
            progress.update(record["bytes"] + record["documents"])
    with atomic(unfinished / "tokenizer.json") as temporary:
        shutil.copyfile(tokenizer / "tokenizer.json", temporary)
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint(origins),
        "tokenizer": facts,
        "shards": [
            {"folder": str(folder.resolve()), "fingerprint": ShardDataset(folder).manifest["fingerprint"]}
            for folder in folders
        ],
        "splits": list(splits),
        "blocks": [{key: value for key, value in record.items() if key != "origin"} for record in records],
        **{key: sum(record[key] for record in records) for key in ("documents", "bytes", "tokens")},
        "command": shell_line(["python", *sys.orig_argv[1:]]),
    }
    write_json(unfinished / "index.json", index)
    for file in _other_blocks(unfinished, len(blocks)):
        file.unlink()
    move_files(unfinished, out, "index.json", stale=_other_blocks(out, len(blocks)))
    shutil.rmtree(unfinished)
    return index


def _other_blocks(folder: Path, blocks: int) -> list[Path]:
    """Return the files of blocks of an earlier, larger build."""
    current = {f"{number:05}" for number in range(blocks)}
    names = {file: file.name.partition(".")[0] for file in folder.iterdir()}
    return [file for file, name in names.items() if name.isdigit() and name not in current]
