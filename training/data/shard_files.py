"""Files of a token shard: dtypes, sidecars, the columns that tokens are counted by, and what they require.

A shard is three files: `X.ds`, the tokens of its documents one after the other, each delimited as
`<|begin_of_text|> ... <|end_of_text|>`, little-endian uint16; `X.ds.index`, where each document ends, uint64; and
`X.ds.metadata`, what datatrove prints. Next to them `X.ds.documents.parquet` identifies each document, its licence and
its length in tokens and in bytes, so that any token can be traced to its source.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ..config import InputError
from ..files import read_json, sha256
from .licences import decide

TOKEN = np.dtype("<u2")
DOCUMENT_END = np.dtype("<u8")
SPLITS = ("train", "validation")
ACCOUNT = ("language", "license", "collection")  # what tokens are counted by
DOCUMENTS_SCHEMA = pa.schema(
    [("identifier", pa.string())]
    + [(column, pa.string()) for column in ACCOUNT]
    + [("bytes", pa.int64()), ("tokens", pa.int64())]
)
SIDECARS = (".index", ".metadata", ".documents.parquet")


def shard_files(shard: dict) -> list[str]:
    """The four files of a shard, relative to the manifest."""
    return [shard["file"] + suffix for suffix in ("", *SIDECARS)]


def tokenizer_facts(folder: Path) -> dict:
    """Describe a tokenizer for a manifest: sha256 of tokenizer.json, vocabulary size, ids of the two delimiters.

    Raises:
        InputError: when a file or a delimiter is missing, or an id does not fit in 16 bits.
    """
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: give a tokenizer's folder, or train one.")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = read_json(folder / "tokenizer_config.json")
    ids = {}
    for role in ("bos", "eos"):
        token = special.get(f"{role}_token")
        ids[role] = backend.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
        if ids[role] is None:
            raise InputError(
                f"{folder} has no {role}_token and documents are delimited by it: name one in tokenizer_config.json."
            )
    entries = max(backend.get_vocab().values()) + 1
    if entries > 2**16:
        raise InputError(f"{folder} has {entries:,} entries; shards store 16-bit ids, so at most 65,536.")
    return {"sha256": sha256(folder / "tokenizer.json"), "entries": entries, **ids}


def checked(document: dict, source: Path) -> dict:
    """A document that can be accounted for: text, licence, language and identifier are there, a collection may be "".

    Raises:
        InputError: naming the document; without an open licence nothing goes into a shard.
    """
    document = document | {"collection": document["collection"] or ""}
    named = f"{source} has a document ({document['identifier'] or 'unnamed'})"
    fix = "build the corpus with training.corpus, which leaves such documents out."
    if lacks := [name for name in ("identifier", "language", "text") if not document[name]]:
        raise InputError(f"{named} without {' or '.join(lacks)}: {fix}")
    where = {name: document[name] for name in ("collection", "identifier")}
    if (licence := decide(document["license"], **where)).refused:
        raise InputError(f"{named} whose license {licence.label!r} is not open ({licence.rule}): {fix}")
    return document | {"bytes": len(document["text"].encode())}
