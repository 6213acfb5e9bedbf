"""Count pre-tokenised pieces, the input of BPE training, by language, register and collection, in parallel."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import regex
from tqdm import tqdm

from ..common.processes import SpawnProcessPoolExecutor
from ..data.documents import corpus_files, note_casts, read_documents
from ..data.ocr_noise import simulate_page
from ..data.split import Register, in_tokenizer_evaluation, register

COLUMNS = ["text", "language", "language_type", "open_type", "collection", "creator", "identifier"]
PARALLEL_BYTES = 50_000_000  # bytes of Parquet below which starting processes takes longer than they save
AGED_CHARACTERS = 40_000  # of each document: enough for its vocabulary, and a novel does not outweigh a letter


class TextSource(NamedTuple):
    """A kind of text with its own share of the counts."""

    language: str  # English name; empty for code
    register: Register
    collection: str  # empty for noise


def documents(path: Path) -> Iterator[dict]:
    """Yield the documents of a corpus with `COLUMNS`; missing values are empty strings."""
    for row in read_documents(path, columns=COLUMNS):
        yield {column: row[column] or "" for column in COLUMNS}


def _weigh_file(path: Path, power: float, noise: bool, share: float, seed: int) -> dict[TextSource, dict[str, float]]:
    from modeling_pleias.tokenization_pleias import PATTERN  # lazy import: takes seconds

    pieces = regex.compile(PATTERN)
    weights: dict[TextSource, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(source: TextSource, text: str) -> None:
        total = weights[source]
        for piece, count in Counter(pieces.findall(text)).items():
            total[piece] += count**power

    for document in documents(path):
        if in_tokenizer_evaluation(document, share=share, seed=seed):
            continue
        kind = register(document)
        add(TextSource("" if kind == "code" else document["language"], kind, document["collection"]), document["text"])
        if noise and kind == "old":
            page = simulate_page(
                document["text"][:AGED_CHARACTERS],
                seed=f"{seed} {document['identifier']}",
                blackletter=document["language"] == "German",
            )
            add(TextSource(document["language"], "noise", ""), page)
    return {source: dict(total) for source, total in weights.items()}


def count_pieces(
    corpus: Path, *, power: float, noise: bool = False, held_out: float = 0.0, seed: int = 0
) -> dict[TextSource, dict[str, float]]:
    """Count the pieces of each source: the sum over documents of (occurrences ** power).

    Args:
        corpus: Folder of Parquet files with Common Corpus columns.
        power: 1 counts occurrences; below 1, a piece of many documents outweighs names and formulas of one document.
        noise: Also count the old documents as simulated old pages and OCR output.
        held_out: Share of documents that are skipped.
        seed: Random seed of the held-out selection and of the noise.

    Returns:
        Source -> piece -> count, deterministic for a corpus.
    """
    paths = corpus_files(corpus)
    largest_first = sorted(paths, key=lambda path: (-path.stat().st_size, path))
    work = partial(_weigh_file, power=power, noise=noise, share=held_out, seed=seed)
    weights: dict[TextSource, dict[str, float]] = {}
    with ExitStack() as stack:
        parts = map(work, largest_first)
        if sum(path.stat().st_size for path in paths) > PARALLEL_BYTES:
            note_casts(paths)
            pool = stack.enter_context(SpawnProcessPoolExecutor(min(len(paths), os.cpu_count() or 1)))
            parts = pool.map(work, largest_first)
        for part in tqdm(parts, "Counting pieces", len(paths), unit="file"):
            for source, pieces in part.items():
                total = weights.setdefault(source, {})
                for piece, weight in pieces.items():
                    total[piece] = total.get(piece, 0.0) + weight
    return weights
