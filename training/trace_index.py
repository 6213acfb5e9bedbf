"""Token shards -> an index of their text on disk, block by block, in memory that the corpus does not change.

A block is whole documents of at most `block_megabytes` of text (or one larger document), indexed on its own:

    00000.text             a byte 0xFF, then each document's text and a byte 0xFF
    00000.suffixes         its suffix array (suffix_array.py), little-endian uint32
    00000.before           the byte before each suffix
    00000.tokens           one bit for each byte of the text: whether a token of the shard begins there
    00000.documents.arrow  where each document begins, what it is, which shard it is in (Arrow IPC, memory-mapped)
    00000.json             what the block was made from; written last, so that a stopped build goes on from here

Beside the blocks, `tokenizer.json` and, last of all, `index.json`. Together about 2.3 bytes for each byte of text. The
trade-off of blocks: building takes memory for one block, 10 bytes for a byte of text, whatever the corpus; but a query
asks every block in turn, so its time grows with their number and not with the logarithm of the whole.
"""

import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tqdm import tqdm

from .config import InputError
from .data.shard_files import ACCOUNT, SPLITS, ShardReader, tokenizer_facts
from .files import atomic, fingerprint, read_json, sha256, write_json
from .loader import Shards
from .suffix_array import BREAK, suffix_array

FORMAT = 1  # of the files; raised when an older index can no longer be read
DOCUMENTS_SCHEMA = pa.schema(
    [("start", pa.int64()), ("bytes", pa.int64()), ("identifier", pa.string())]
    + [(column, pa.string()) for column in (*ACCOUNT, "split", "shard")]
)
BLOCK_FILES = (".text", ".suffixes", ".before", ".tokens", ".documents.arrow")
LARGEST_BLOCK = 2**31 - 2  # bytes: the suffix sort counts in 32 bits with a sign
SLICE = 1 << 20  # tokens turned into bytes at a time


@dataclass(frozen=True)
class Piece:
    """Documents first..last of a shard."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class Source:
    """A shard that is indexed, and (documents,) the bytes and tokens of its documents."""

    file: ShardReader
    sidecar: str  # sha256 of X.ds.documents.parquet
    bytes: np.ndarray
    tokens: np.ndarray


def token_bytes(tokenizer: Path, facts: dict) -> list[bytes]:
    """What each id writes: its bytes; nothing for the beginning of a document; BREAK for the other special tokens.

    Args:
        tokenizer: a tokenizer.json.
        facts: of the tokenizer, as in a manifest.

    Raises:
        InputError: when the vocabulary is not byte-level, so that ids do not say which bytes they stand for.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # lazy import: takes a second

    backend = Tokenizer.from_file(str(tokenizer))
    byte = {character: value for value, character in bytes_to_unicode().items()}
    written = [b""] * facts["entries"]
    try:
        for token, id in backend.get_vocab(with_added_tokens=False).items():
            written[id] = bytes(byte[character] for character in token)
    except KeyError as error:
        raise InputError(
            f"{tokenizer} is not byte-level (it has {token!r}): an index needs to know the bytes of every token."
        ) from error
    for id, added in backend.get_added_tokens_decoder().items():
        written[id] = bytes([BREAK]) if added.special else added.content.encode()
    written[facts["bos"]] = b""
    return written


def sources(folders: list[Path], splits: list[str], tokenizer: dict) -> list[Source]:
    """The shards of some folders, in the order of their manifests, checked against them.

    Raises:
        InputError: when one is missing, was altered, or belongs to another tokenizer, or there is none.
    """
    found = []
    for folder in folders:
        shards = Shards(folder)
        manifest = shards.manifest
        if manifest["tokenizer"]["sha256"] != tokenizer["sha256"]:
            raise InputError(
                f"{folder} was made with another tokenizer (sha256 {manifest['tokenizer']['sha256'][:12]}..., not "
                f"{tokenizer['sha256'][:12]}...): give --tokenizer the folder that training.shards was given."
            )
        for shard in shards.readers(*splits):
            shard.verify()
            counts = shard.documents(["bytes", "tokens"])
            counts = [counts[name].to_numpy().astype(np.int64) for name in ("bytes", "tokens")]
            found.append(Source(shard, sha256(shard.sidecar), *counts))
    if not found:
        raise InputError(f"{folders[0]} has no shard of the splits {splits}: name others with --splits.")
    return found


def plan(shards: list[Source], capacity: int) -> Iterator[list[Piece]]:
    """Documents into blocks, in order: as many as have `capacity` bytes with their breaks, and one at least.

    Raises:
        InputError: when a document is too large for any block.
    """
    block, room = [], capacity
    for number, shard in enumerate(shards):
        if shard.bytes.max(initial=0) > LARGEST_BLOCK:
            raise InputError(f"{shard.file.path} has a document of more than 2 GiB: divide it.")
        ends = np.concatenate([[0], np.cumsum(shard.bytes + 1)])
        first = 0
        while first < len(shard.bytes):
            last = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
            if last <= first and block:
                yield block
                block, room = [], capacity
                continue
            last = max(last, first + 1)
            block.append(Piece(number, first, last))
            room -= int(ends[last] - ends[first])
            first = last
    if block:
        yield block


class Decoder:
    """Ids to bytes, many at a time.

    Args:
        written: what each id writes.
    """

    def __init__(self, written: list[bytes]):
        self.flat = np.frombuffer(b"".join(written), np.uint8)
        self.lengths = np.array([len(token) for token in written])
        self.offsets = np.cumsum(self.lengths) - self.lengths

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bytes,) uint8 that some ids write, and where in them each that writes something begins."""
        length = self.lengths[ids]
        begins = np.cumsum(length) - length
        text = self.flat[np.repeat(self.offsets[ids] - begins, length) + np.arange(length.sum())]
        return text, begins[length > 0]


def block_text(shards: list[Source], pieces: list[Piece], decode: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """The text of a block, and where its tokens begin: (bytes,) uint8 and (bytes,) bool.

    Raises:
        InputError: when the tokens of a shard are not the documents that its sidecar lists.
    """
    size = 1 + sum(int((shards[piece.shard].bytes[piece.first : piece.last] + 1).sum()) for piece in pieces)
    text, begins, at = np.empty(size, np.uint8), np.zeros(size, bool), 1
    text[0] = BREAK
    for piece in pieces:
        shard = shards[piece.shard]
        start, stop = (int(shard.tokens[:document].sum()) for document in (piece.first, piece.last))
        ends = at + np.cumsum(shard.bytes[piece.first : piece.last] + 1)
        tokens = shard.file.tokens[start:stop]
        wrong = len(tokens) < stop - start or tokens.max() >= len(decode.lengths)
        for i in range(0, 0 if wrong else len(tokens), SLICE):
            decoded, places = decode(tokens[i : i + SLICE])
            if wrong := at + len(decoded) > ends[-1]:
                break
            text[at : at + len(decoded)] = decoded
            begins[at + places] = True
            at += len(decoded)
        if wrong or at != ends[-1] or not (text[ends - 1] == BREAK).all():
            path = shard.file.path
            raise InputError(f"{path}: its tokens are not the documents that its sidecar lists: make it again.")
    return text, begins


def write_block(path: Path, text: np.ndarray, begins: np.ndarray, documents: pa.Table) -> None:
    """The files of a block, each whole or not there.

    Args:
        path: of the block, without an ending.
        text: (bytes,) uint8.
        begins: (bytes,) bool, where a token begins.
        documents: of DOCUMENTS_SCHEMA.
    """
    suffixes = suffix_array(text)
    arrays = text, suffixes, text[suffixes.astype(np.int64) - 1], np.packbits(begins)
    *endings, last = BLOCK_FILES
    for ending, array in zip(endings, arrays, strict=True):
        with atomic(path.with_name(path.name + ending)) as temporary:
            array.tofile(temporary)
    with atomic(path.with_name(path.name + last)) as temporary:
        with pa.ipc.new_file(str(temporary), DOCUMENTS_SCHEMA) as file:
            file.write_table(documents)


def block_documents(shards: list[Source], pieces: list[Piece]) -> pa.Table:
    """What the documents of a block are, and where they begin in it."""
    tables, at = [], 1
    for piece in pieces:
        shard = shards[piece.shard]
        table = shard.file.documents(["identifier", *ACCOUNT, "bytes"])
        table = table.slice(piece.first, piece.last - piece.first)
        size = table["bytes"].to_numpy() + 1
        columns = {name: table[name] for name in table.column_names} | {
            "start": pa.array(at + np.cumsum(size) - size),
            "split": pa.repeat(shard.file.record["split"], len(table)),
            "shard": pa.repeat(f"{shard.file.folder.resolve().name}/{shard.file.record['file']}", len(table)),
        }
        tables.append(pa.table([columns[name] for name in DOCUMENTS_SCHEMA.names], schema=DOCUMENTS_SCHEMA))
        at += int(size.sum())
    return pa.concat_tables(tables).combine_chunks()


def block_files(path: Path) -> dict[str, int]:
    """The files of a block that are there, and their sizes."""
    files = (path.with_name(path.name + ending) for ending in BLOCK_FILES)
    return {file.name: file.stat().st_size for file in files if file.is_file()}


def build(
    folders: list[Path], *, tokenizer: Path, out: Path, splits: list[str] = SPLITS, block_megabytes: float = 128
) -> dict:
    """Index the text of token shards; blocks that an earlier build of the same finished are kept.

    Args:
        folders: made by training.shards, with the same tokenizer.
        tokenizer: its folder.
        out: folder of the index.
        splits: train, validation or both.
        block_megabytes: millions of bytes of text in a block.

    Returns:
        The content of index.json.

    Raises:
        InputError: when shards are missing, altered or of another tokenizer, or a setting makes no sense.
    """
    if unknown := set(splits) - set(SPLITS):
        raise InputError(f"--splits {sorted(unknown)[0]} is no split: give some of {', '.join(SPLITS)}.")
    if not 0 < block_megabytes * 10**6 <= LARGEST_BLOCK:
        raise InputError(f"--block_megabytes {block_megabytes:g} is not above 0 and below {LARGEST_BLOCK / 1e6:,.0f}.")
    facts = tokenizer_facts(tokenizer)
    decode = Decoder(token_bytes(tokenizer / "tokenizer.json", facts))
    shards = sources(folders, splits, facts)
    blocks = list(plan(shards, int(block_megabytes * 10**6) - 1))
    out.mkdir(parents=True, exist_ok=True)
    origins = [
        {
            "format": FORMAT,
            "tokenizer": facts["sha256"],
            "pieces": [
                [shards[piece.shard].file.record["sha256"], shards[piece.shard].sidecar, piece.first, piece.last]
                for piece in pieces
            ],
        }
        for pieces in blocks
    ]
    records = []
    with tqdm(total=sum(int((shard.bytes + 1).sum()) for shard in shards), unit="B", unit_scale=True) as progress:
        for number, (pieces, origin) in enumerate(zip(blocks, origins, strict=True)):
            path = out / f"{number:05}"
            record_path = path.with_suffix(".json")
            record = read_json(record_path) if record_path.is_file() else None
            if record is None or record["origin"] != origin or record["files"] != block_files(path):
                # From here on files change, and what an earlier build says of them is no longer true.
                for account in (out / "index.json", record_path):
                    account.unlink(missing_ok=True)
                documents = block_documents(shards, pieces)
                write_block(path, *block_text(shards, pieces, decode), documents)
                tokens = sum(int(shards[piece.shard].tokens[piece.first : piece.last].sum()) for piece in pieces)
                counts = {"documents": len(documents), "bytes": sum(documents["bytes"].to_pylist()), "tokens": tokens}
                record = {"origin": origin, "files": block_files(path), **counts}
                write_json(record_path, record)
            records.append(record)
            progress.update(record["bytes"] + record["documents"])
    with atomic(out / "tokenizer.json") as temporary:
        shutil.copyfile(tokenizer / "tokenizer.json", temporary)
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint(origins),
        "tokenizer": facts,
        "shards": [
            {"folder": str(folder.resolve()), "fingerprint": Shards(folder).manifest["fingerprint"]}
            for folder in folders
        ],
        "splits": list(splits),
        "blocks": [{key: value for key, value in record.items() if key != "origin"} for record in records],
        **{key: sum(record[key] for record in records) for key in ("documents", "bytes", "tokens")},
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }
    write_json(out / "index.json", index)
    current = {f"{number:05}" for number in range(len(blocks))}
    for file in list(out.iterdir()):  # blocks of a larger build before, and what a killed one left half written
        name = file.name.partition(".")[0]
        if (name.isdigit() and name not in current) or file.suffix == ".tmp":
            file.unlink()
    return index
