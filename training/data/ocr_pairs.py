"""OCR pairs: pages of text as OCR read them, with the true text, in Parquet files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from .documents import corpus_files, read_columns

PAIR_COLUMNS = ("id", "ocr", "truth", "language", "source", "license")


def read_pairs(path: Path, columns: Iterable[str] = PAIR_COLUMNS) -> Iterator[dict]:
    """Stream the pairs of a Parquet file or folder, with the types of `read_rows` and ISO codes of languages.

    Pairs without OCR or without truth are skipped; other missing values are empty.

    Raises:
        InputError: If there is no file, or a file is damaged or lacks a column.
    """
    columns = list(columns)
    for file in corpus_files(path):
        for row in read_columns(file, columns, f"pairs have the columns {', '.join(PAIR_COLUMNS)}."):
            pair = {column: row[column] or "" for column in columns}
            if all(pair.get(column, "-").strip() for column in ("ocr", "truth")):
                yield pair
