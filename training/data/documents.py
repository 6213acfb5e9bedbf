"""Documents of a corpus folder: Common Corpus columns, and a streaming reader of their Parquet files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..config import InputError
from ..language import LANGUAGES

TEXT_COLUMNS = "identifier collection open_type license date title creator language language_type".split()
SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXT_COLUMNS]
    + [("word_count", pa.int64()), ("token_count", pa.int64()), ("text", pa.string())]
)
COLUMNS = SCHEMA.names
OPTIONAL_COLUMNS = {"language_type", "token_count"}  # not in every published version of Common Corpus
ROW_GROUP_BYTES = 8_000_000  # of text; what a reader holds at a time


def corpus_files(path: Path) -> list[Path]:
    """The Parquet files of a corpus, sorted by name: the file itself, or all below a folder.

    Hidden folders (a build that is under way) and `dropped/` (what curation took out) are no part of a corpus.

    Raises:
        InputError: when there is none.
    """
    if path.is_file():
        return [path]
    found = (file for file in path.rglob("*.parquet") if file.is_file())
    inside = [(file, file.relative_to(path).parts) for file in found]
    files = sorted(file for file, parts in inside if "dropped" not in parts and not any(p[0] == "." for p in parts))
    if not files:
        raise InputError(f"{path} holds no .parquet file: give a corpus folder, or make one with training.corpus.")
    return files


def stored_names(names: Iterable[str], where: object) -> dict[str, str]:
    """Column -> its spelling in some data (`open type` is accepted); optional columns only where they are there.

    Raises:
        InputError: when a column is missing.
    """
    spelling = {name.replace(" ", "_"): name for name in names}
    missing = [column for column in COLUMNS if column not in spelling and column not in OPTIONAL_COLUMNS]
    if missing:
        raise InputError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: a corpus has the columns of "
            f"Common Corpus ({', '.join(COLUMNS)})."
        )
    return {column: spelling[column] for column in COLUMNS if column in spelling}


def read_documents(
    path: Path, *, languages: list[str] | None = None, columns: list[str] | None = None, batch_size: int = 256
) -> Iterator[dict]:
    """Stream the documents of a corpus, file by file and batch by batch, in memory that does not grow.

    Args:
        path: a folder (every Parquet file below it, sorted by name) or a file.
        languages: ISO codes; documents of every language, code included, when not given.
        columns: columns to read; all of `COLUMNS` when not given. An optional column that a file lacks reads as None.
        batch_size: documents decoded at a time.

    Raises:
        InputError: when there is no file, one is damaged, or one lacks a column.
    """
    wanted = columns or COLUMNS
    names = {LANGUAGES[code] for code in checked_languages(languages)} if languages else None
    for file in corpus_files(path):
        try:
            with pq.ParquetFile(file) as parquet:
                stored = stored_names(parquet.schema_arrow.names, file)
                read_columns = [stored[column] for column in {*wanted, "language"} if column in stored]
                for batch in parquet.iter_batches(batch_size, columns=read_columns):
                    for row in batch.to_pylist():
                        if names is None or row["language"] in names:
                            yield {column: row.get(stored.get(column)) for column in wanted}
        except pa.ArrowException as error:
            raise InputError(f"{file} is not a whole Parquet file ({error}): fetch or build it again.") from None


def checked_languages(languages: list[str] | None) -> list[str]:
    """ISO codes in the order of `LANGUAGES`; all of them for None.

    Raises:
        InputError: when one is unknown.
    """
    if unknown := sorted(set(languages or []) - set(LANGUAGES)):
        raise InputError(f"languages has {', '.join(unknown)}: choose among {', '.join(LANGUAGES)}.")
    return [code for code in LANGUAGES if not languages or code in languages]
