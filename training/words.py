"""Count the pieces of text that byte-pair merging starts from, by language and register, in parallel."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import regex
from rich.progress import track

from modeling_pleias.tokenization_pleias import PATTERN

from .config import InputError
from .noise import aged

COLUMNS = ["text", "language", "language_type", "open_type", "collection", "creator", "identifier"]
Stratum = tuple[str, str]  # language, register: "old", "modern", "code" or "noise"


def register(document: dict) -> str:
    """Which kind of writing a document is: code and markup; old (cultural heritage); or modern."""
    if document["language_type"] == "Code":
        return "code"
    return "old" if document["open_type"] == "Open Culture" else "modern"


def is_held_out(document: dict, share: float) -> bool:
    """Whether a document is kept for evaluation: by author in cultural heritage, else by source file, from a hash."""
    key = document["identifier"].split("#part")[0]
    if register(document) == "old" and document["creator"]:
        key = document["creator"]
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64


def files(corpus: Path) -> list[Path]:
    """The Parquet files of a corpus folder, in order of name."""
    found = sorted(Path(corpus).glob("*.parquet"))
    if not found:
        raise InputError(f"{corpus} holds no Parquet file: give --corpus a folder that training.corpus has written.")
    return found


def documents(path: Path):
    """The documents of one file as dictionaries of `COLUMNS`; a column that the file lacks is empty."""
    file = pq.ParquetFile(path)
    columns = [name for name in COLUMNS if name in file.schema_arrow.names]
    for name in ("text", "language"):
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}: write the corpus with training.corpus.")
    for batch in file.iter_batches(batch_size=256, columns=columns):
        for row in batch.to_pylist():
            yield {name: row.get(name) or "" for name in COLUMNS}


def _count_file(path: Path, held_out: float, noise: bool, seed: int) -> dict[tuple[str, str, str], Counter]:
    """(language, register, collection) -> pieces of one file."""
    pieces = regex.compile(PATTERN)
    counts: dict[tuple[str, str, str], Counter] = {}
    for document in documents(path):
        if is_held_out(document, held_out):
            continue
        kind = register(document)
        text = document["text"]
        key = (document["language"], kind, document["collection"])
        counts.setdefault(key, Counter()).update(pieces.findall(text))
        if noise and kind != "code":
            key = (document["language"], "noise", document["collection"])
            noisy = aged(text, seed=f"{seed} {document['identifier']}")
            counts.setdefault(key, Counter()).update(pieces.findall(noisy))
    return counts


def count(corpus: Path, *, held_out: float = 0.0, noise: bool = False, seed: int = 42) -> dict[Stratum, Counter]:
    """Pieces of a corpus folder by stratum, each with how often it stands there.

    Args:
        corpus: folder of Parquet files with at least `text` and `language`.
        held_out: share of documents left out, see `is_held_out`.
        noise: whether to count the prose a second time, made noisy.
        seed: of the noise.
    """
    strata: dict[Stratum, Counter] = {}
    paths = sorted(files(corpus), key=lambda path: (-path.stat().st_size, path))
    with ProcessPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:
        results = pool.map(partial(_count_file, held_out=held_out, noise=noise, seed=seed), paths)
        for counts in track(results, description="Counting words", total=len(paths), transient=True):
            for (language, kind, _), counter in counts.items():
                strata.setdefault((language, kind), Counter()).update(counter)
    return strata
