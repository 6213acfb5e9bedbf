"""Documents of a corpus folder: Common Corpus columns, and a streaming reader and writer of their Parquet files."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.config import InputError, as_os_error
from ..common.files import atomic, naming
from ..common.language import LANGUAGES

TEXT_COLUMNS = "identifier collection open_type license date title creator language language_type".split()
SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXT_COLUMNS]
    + [("word_count", pa.int64()), ("token_count", pa.int64()), ("text", pa.string())]
)
COLUMNS = SCHEMA.names
OPTIONAL_COLUMNS = {"language_type", "token_count"}  # not in every published version of Common Corpus
ROW_GROUP_BYTES = 8_000_000  # bytes of text per row group, which a reader keeps in memory


def corpus_files(path: Path) -> list[Path]:
    """Return the Parquet files of a corpus, sorted by name: the file itself, or all files below a folder.

    Hidden folders (unfinished builds) and `dropped/` (documents dropped by curation) do not belong to a corpus.

    Raises:
        InputError: If there is no Parquet file.
    """
    if path.is_file():
        return [path]
    parts = {file: file.relative_to(path).parts for file in path.rglob("*.parquet") if file.is_file()}
    files = sorted(file for file in parts if not any(name == "dropped" or name[0] == "." for name in parts[file]))
    if not files:
        raise InputError(f"{path} contains no .parquet file: pass a corpus folder, or build one with training.corpus.")
    return files


def stored_names(names: Iterable[str], where: object) -> dict[str, str]:
    """Map each Common Corpus column to its name in some data (`open type` is accepted); skip missing optional columns.

    Raises:
        InputError: If a required column is missing.
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
    """Stream the documents of a corpus, file by file and batch by batch, in constant memory.

    Args:
        path: Folder (every Parquet file below it, sorted by name) or file.
        languages: ISO codes. Default: documents of every language, source code included.
        columns: Columns to read. Default: `COLUMNS`. An optional column that a file lacks is None.
        batch_size: Documents decoded at a time.

    Raises:
        InputError: If there is no file, or a file is damaged or lacks a column.
    """
    columns = columns or COLUMNS
    names = {LANGUAGES[code] for code in checked_languages(languages)} if languages else None
    for file in corpus_files(path):
        try:
            with pq.ParquetFile(file) as parquet:
                stored = stored_names(parquet.schema_arrow.names, file)
                read_columns = [stored[column] for column in {*columns, "language"} if column in stored]
                for batch in parquet.iter_batches(batch_size, columns=read_columns):
                    for row in batch.to_pylist():
                        if names is None or row["language"] in names:
                            yield {column: row.get(stored.get(column)) for column in columns}
        except pa.ArrowException as error:
            raise InputError(f"{file} is not a valid Parquet file ({error}): download or build it again.") from None
        except OSError as error:
            raise as_os_error(error, file) from None


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, **options) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet file for writing; on an error, such as a full disk, it is closed without a second error."""
    writer = pq.ParquetWriter(path, schema, **options)
    try:
        yield writer
        writer.close()
    finally:
        if writer.is_open:
            with suppress(OSError, pa.ArrowException):
                writer.close()
            writer.is_open = False  # else its destructor tries again, and prints a traceback


def write_parquet(path: Path, table: pa.Table, **options) -> None:
    """Write a Parquet file atomically."""
    with atomic(path) as temporary, parquet_writer(temporary, table.schema, **options) as writer:
        writer.write_table(table)


class DocumentWriter:
    """Context manager that writes documents to FOLDER/NAME.parquet, one row group at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._rows, self._sizes = defaultdict(list), Counter()
        self._files: dict[str, pq.ParquetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if failure[0] is not None:
            self._stack.__exit__(*failure)
            return
        with naming(self.folder), self._stack:
            for name in list(self._rows):
                self._flush(name)

    def add(self, name: str, document: dict, size: int) -> None:
        """Append a document of `size` bytes to a file."""
        self._rows[name].append(document)
        self._sizes[name] += size
        if self._sizes[name] >= ROW_GROUP_BYTES:
            self._flush(name)

    def _flush(self, name: str) -> None:
        rows, self._sizes[name] = self._rows.pop(name), 0
        with naming(path := self.folder / f"{name}.parquet"):
            if name not in self._files:
                self._files[name] = self._stack.enter_context(parquet_writer(path, SCHEMA, compression="zstd"))
            self._files[name].write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def checked_languages(languages: list[str] | None) -> list[str]:
    """Return ISO codes in the order of `LANGUAGES`; all of them for None.

    Raises:
        InputError: If a code is unknown.
    """
    if unknown := sorted(set(languages or []) - set(LANGUAGES)):
        raise InputError(f"languages has {', '.join(unknown)}: choose from {', '.join(LANGUAGES)}.")
    return [code for code in LANGUAGES if not languages or code in languages]
