"""Token shards on disk: the file format, its reader and writer, and the checks of tokenizers and documents.

A shard is four files: `X.ds`, the tokens of its documents one after the other, each document delimited as
`<|begin_of_text|> ... <|end_of_text|>`, little-endian uint16; `X.ds.index`, where each document ends, uint64;
`X.ds.metadata`, which datatrove prints; and the sidecar `X.ds.documents.parquet`, which identifies each document, its
licence, its register, and its length in tokens and in bytes, so that any token can be traced to its source.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tokenizers.models import BPE

from ..common.config import InputError
from ..common.files import atomic, fingerprint, inside, naming, read_json, sha256
from .documents import invalid, write_parquet
from .licences import decide
from .source_names import source_of

TOKEN = np.dtype("<u2")
DOCUMENT_END = np.dtype("<u8")
SPLITS = ("train", "validation")
GROUP_COLUMNS = ("language", "license", "collection")  # columns by which tokens are counted
COUNTS = ("documents", "bytes", "tokens")
DOCUMENTS_SCHEMA = pa.schema(
    [("identifier", pa.string())]
    + [(column, pa.string()) for column in (*GROUP_COLUMNS, "register")]
    + [("bytes", pa.int64()), ("tokens", pa.int64())]
)
SIDECARS = (".index", ".metadata", ".documents.parquet")


def shard_files(shard: dict) -> list[str]:
    """Return the four files of a shard, relative to the manifest."""
    return [shard["file"] + suffix for suffix in ("", *SIDECARS)]


def tokens_fingerprint(manifest: dict) -> str:
    """Return the hash of the tokens and their tokenizer: what a run must not change when it resumes."""
    files = [[shard["file"], shard["sha256"]] for shard in manifest["shards"]]
    return fingerprint([manifest["tokenizer"]["sha256"], files])


def manifest_fingerprint(manifest: dict) -> str:
    """Return the hash of all that later programs repeat of a manifest: tokens, statistics, licences and sources.

    `model_card.run` computes it again. The statistics of single shards are not included, because their sums are. A
    manifest of an earlier version, whose shards have no hashes of their sidecars, has the hash of its tokens.
    """
    content = {key: value for key, value in manifest.items() if key not in ("fingerprint", "command")}
    if "shards" in manifest:
        if not all("sidecars" in shard for shard in manifest["shards"]):
            return tokens_fingerprint(manifest)
        shards = [
            {key: value for key, value in shard.items() if key not in ("account", "by_source")}
            for shard in manifest["shards"]
        ]
        content["shards"] = fingerprint(shards)
    content["corpus"] = manifest["corpus"] | {"files": fingerprint(manifest["corpus"]["files"])}
    return fingerprint(content)


def read_manifest(folder: Path) -> dict:
    """Read manifest.json of shards.

    Raises:
        InputError: If the file is missing or was altered.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: build the shards first (training.shards).")
    manifest = read_json(path)
    try:
        rows = ({"split": shard["split"], **row} for shard in manifest["shards"] for row in shard["account"])
        counted = sum_counts(rows, ("split", *GROUP_COLUMNS))
        valid = manifest_fingerprint(manifest) == manifest["fingerprint"] and counted == manifest["account"]
    except (LookupError, TypeError, AttributeError):  # not a manifest
        valid = False
    if not valid:
        raise InputError(f"{path} was altered after it was written: build the shards again (training.shards).")
    return manifest


def sum_counts(rows: Iterable[dict], columns: tuple[str, ...]) -> list[dict]:
    """Sum the documents, bytes and tokens of rows by some columns, sorted by these."""
    sums: dict[tuple, dict] = {}
    for row in rows:
        key = tuple(row[column] for column in columns)
        counts = sums.setdefault(key, dict(zip(columns, key, strict=True)) | dict.fromkeys(COUNTS, 0))
        for name in COUNTS:
            counts[name] += row[name]
    return [counts for _, counts in sorted(sums.items())]


class ShardReader:
    """Reader of one shard: its tokens, the ends of its documents, and its sidecar, each opened at the first use.

    Args:
        folder: Folder of manifest.json.
        record: Record of the shard in the manifest.
    """

    def __init__(self, folder: Path, record: dict):
        self.folder, self.record = folder, record
        self.path, self.index, _, self.sidecar = (inside(folder, name) for name in shard_files(record))

    @cached_property
    def tokens(self) -> np.memmap:
        """Memory-mapped token ids, (tokens,) uint16."""
        return np.memmap(self.path, TOKEN, mode="r")

    @cached_property
    def bounds(self) -> np.ndarray:
        """Start of each document in tokens, and the end of the last one, (documents + 1,) int64."""
        self.verify_sidecar(self.index)
        return np.concatenate([[0], np.fromfile(self.index, DOCUMENT_END).astype(np.int64)])

    def documents(self, columns: list[str] | None = None) -> pa.Table:
        """Read the sidecar, one row per document; all columns by default. A column that an older one lacks is null.

        Raises:
            InputError: If the sidecar is missing, was altered or is not a Parquet file.
        """
        try:
            self.verify_sidecar(self.sidecar)
            return pq.read_table(self.sidecar, columns=columns, schema=DOCUMENTS_SCHEMA)
        except FileNotFoundError:
            raise InputError(f"{self.sidecar} is missing: build the shards again (training.shards).") from None
        except pa.ArrowException as error:
            raise InputError(
                f"{self.sidecar} is not a valid Parquet file ({error}): delete it and build the shards again."
            ) from None

    def verify_sidecar(self, path: Path) -> None:
        """Compare the sha256 of a sidecar with the manifest, unless that is of an earlier version.

        Raises:
            InputError: If the file differs.
        """
        known = self.record.get("sidecars", {}).get(path.name.removeprefix(self.path.name))
        if known and sha256(path) != known:
            raise InputError(f"{path} was altered after the manifest was written: build the shards again.")

    def check_size(self) -> None:
        """Compare the size of the token file with the manifest.

        Raises:
            InputError: If the file is missing, truncated or too long.
        """
        if not self.path.is_file():
            raise InputError(f"{self.path} is missing: build the shards again (training.shards).")
        size, expected = self.path.stat().st_size, self.record["tokens"] * TOKEN.itemsize
        if size != expected:
            raise InputError(
                f"{self.path} has {size:,} bytes instead of {expected:,}: delete it and build the shards again."
            )

    def verify(self) -> None:
        """Read the token file and compare its sha256 with the manifest.

        Raises:
            InputError: If the file is missing or differs.
        """
        self.check_size()
        if sha256(self.path) != self.record["sha256"]:
            raise InputError(
                f"{self.path} was altered after the manifest was written (sha256 differs): delete it and build the "
                "shards again."
            )


class ShardWriter:
    """Writer of one shard, which counts its documents, bytes and tokens."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.ends, self.documents, self.tokens = [], {name: [] for name in DOCUMENTS_SCHEMA.names}, 0

    @classmethod
    @contextmanager
    def create(cls, path: Path, facts: dict) -> Iterator["ShardWriter"]:
        """Write a shard's four files. They get their names, the tokens last, only if the block ends without error."""
        with atomic(path) as temporary:
            with open(temporary, "wb") as file:
                writer = cls(file, path)
                yield writer
            index, metadata, documents = (path.with_name(path.name + sidecar) for sidecar in SIDECARS)
            with atomic(index) as temporary:
                temporary.write_bytes(np.asarray(writer.ends, DOCUMENT_END).data)
            with atomic(metadata) as temporary:
                tokens = writer.tokens
                temporary.write_text(f"{facts['sha256']}|{TOKEN.itemsize}\n{tokens}\n{tokens:,} tokens\n", "ascii")
            write_parquet(documents, pa.table(writer.documents, schema=DOCUMENTS_SCHEMA), compression="zstd")

    def add(self, ids: np.ndarray, document: dict) -> None:
        """Append one delimited document, (tokens,) uint16, and its row of the sidecar."""
        with naming(self.path):
            self.file.write(ids.tobytes())
        self.tokens += len(ids)
        self.ends.append(self.tokens)
        for name in self.documents:
            self.documents[name].append(len(ids) if name == "tokens" else document[name])


def count_documents(documents: dict[str, list]) -> list[dict]:
    """Return documents, bytes and tokens of a sidecar, as its columns, by language, licence and collection."""
    names = (*GROUP_COLUMNS, "bytes", "tokens")
    rows = zip(*(documents[name] for name in names), strict=True)
    return sum_counts((dict(zip(names, row, strict=True), documents=1) for row in rows), GROUP_COLUMNS)


def count_sources(documents: dict[str, list]) -> list[dict]:
    """Return documents, bytes and tokens of a sidecar, as its columns, by source and licence.

    The source is "" for a document whose identifier names none.
    """
    sources = [str(source_of(identifier) or "") for identifier in documents["identifier"]]
    rows = zip(sources, *(documents[name] for name in ("license", "bytes", "tokens")), strict=True)
    names = ("source", "license", "bytes", "tokens")
    return sum_counts((dict(zip(names, row, strict=True), documents=1) for row in rows), ("source", "license"))


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json, without the state that libraries leave in it (see `parse_tokenizer`).

    Raises:
        InputError: If the file is not a tokenizer.
    """
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path} is not a tokenizer.json ({error}): save the tokenizer again.") from None


def parse_tokenizer(content: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json: it encodes a text completely, and always to the same ids.

    transformers saves how a tokenizer last padded and truncated, and tokenizers saves the dropout of merges. All three
    would apply to every text.
    """
    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if isinstance(tokenizer.model, BPE):
        tokenizer.model.dropout = None
    return tokenizer


def tokenizer_facts(folder: Path) -> dict:
    """Describe a tokenizer for a manifest: sha256 of tokenizer.json, vocabulary size, ids of the two delimiters.

    Raises:
        InputError: If a file or a delimiter is missing, or an id does not fit in 16 bits.
    """
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: pass a tokenizer folder, or train a tokenizer.")
    backend = load_tokenizer(folder / "tokenizer.json")
    special = read_json(folder / "tokenizer_config.json")
    ids = {}
    for role in ("bos", "eos"):
        token = special.get(f"{role}_token")
        ids[role] = backend.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
        if ids[role] is None:
            raise InputError(f"{folder} has no {role}_token, a document delimiter: set it in tokenizer_config.json.")
    vocab_size = max(backend.get_vocab().values()) + 1
    if vocab_size > 2**16:
        raise InputError(f"{folder} has a vocabulary of {vocab_size:,}; shards store 16-bit ids, so at most 65,536.")
    return {"sha256": sha256(folder / "tokenizer.json"), "entries": vocab_size, **ids}


def validate_document(document: dict, source: Path) -> dict:
    """Return a document with its number of `bytes`, if it has text, language, identifier and an open licence.

    Raises:
        InputError: If one of them is missing, or the text is not UTF-8 or too large. Text without an open licence
            never enters a shard.
    """
    document = document | {"collection": document["collection"] or ""}
    name = f"{source} has a document ({document['identifier'] or 'unnamed'})"
    fix = "build the corpus with training.corpus, which drops such documents."
    if missing := [column for column in ("identifier", "language", "text") if not document[column]]:
        raise InputError(f"{name} without {' or '.join(missing)}: {fix}")
    if reason := invalid(document):
        raise InputError(f"{name} that cannot be used ({reason}): {fix}")
    origin = {column: document[column] for column in ("collection", "identifier")}
    if (licence := decide(document["license"], **origin)).refused:
        raise InputError(f"{name} whose license {licence.label!r} is not open ({licence.rule}): {fix}")
    return document | {"bytes": len(document["text"].encode())}
