"""Documents of a corpus folder: Common Corpus columns, and a streaming reader and writer of their Parquet files."""

import math
import multiprocessing
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from functools import cache
from pathlib import Path, PurePath
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.config import InputError, as_os_error
from ..common.escaping import terminal_line
from ..common.files import atomic, naming
from ..common.language import LANGUAGES, language_code, language_name
from .parquet_pages import PageError, page_sizes

TEXT_COLUMNS = "identifier collection open_type license date title creator language language_type".split()
SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXT_COLUMNS]
    + [("word_count", pa.int64()), ("token_count", pa.int64()), ("text", pa.string())]
)
COLUMNS = SCHEMA.names
OPTIONAL_COLUMNS = {"language_type", "token_count"}  # not in every published version of Common Corpus
COUNTS = ("word_count", "token_count")
CORPUS_COLUMNS = f"a corpus has the columns of Common Corpus ({', '.join(COLUMNS)})."  # end of an error message
MAX_DOCUMENT_BYTES = 100_000_000  # larger ones are dropped: they would take gigabytes to tokenise
# A page is unpacked completely, however small it is on disk; text compresses 3 to 20 times. PyArrow writes pages of
# 1,024 documents, or of more than 1 MB.
PAGE_BYTES = 1_000_000_000  # a larger page is refused
UNPACKED_BYTES, UNPACKED_RATIO = 256_000_000, 200  # and one that is above both
BATCH_BYTES, BATCH_ROWS = 128_000_000, 256  # maximum of the rows that are decoded at a time
SEPARATORS = {"license": " AND "}  # between the parts of a list; the licence gate separates creators by semicolons
MIDNIGHT = re.compile(r"(?: 00:00:00)?(?:\.0+)?$")  # of a date stored as a timestamp; and empty fractions of seconds
ROW_GROUP_BYTES = 8_000_000  # bytes of text per row group, which a reader keeps in memory


def corpus_files(path: Path) -> list[Path]:
    """Return the Parquet files of a corpus, sorted by name: the file itself, or all files below a folder.

    Hidden folders (unfinished builds) and `dropped/` (documents dropped by curation) do not belong to a corpus.

    Raises:
        InputError: If there is no Parquet file, or its name is not UTF-8: manifests could not state it.
    """
    if path.is_file():
        return [_checked_name(path)]
    parts = {file: file.relative_to(path).parts for file in path.rglob("*.parquet") if file.is_file()}
    files = sorted(file for file in parts if not any(name == "dropped" or name[0] == "." for name in parts[file]))
    if not files:
        raise InputError(f"{path} contains no .parquet file: pass a corpus folder, or build one with training.corpus.")
    return list(map(_checked_name, files))


def _checked_name(file: Path) -> Path:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise InputError(f"The name of {str(file)!a} is not UTF-8: rename it.") from None
    return file


def corpus_root(path: Path) -> Path:
    """Return the folder to which the names of a corpus's files are relative: a corpus may be a single file."""
    return path if path.is_dir() else path.parent


def stored_names(
    names: Iterable[str], where: object, columns: Iterable[str] = COLUMNS, expected: str = CORPUS_COLUMNS
) -> dict[str, str]:
    """Map columns to their names in some data (`open type` and `Text` are accepted); skip missing optional columns.

    Raises:
        InputError: If a required column is missing, or a column occurs twice.
    """
    spelling: dict[str, list[str]] = defaultdict(list)
    for name in names:
        spelling[name.strip("\ufeff \t\r\n").lower().replace(" ", "_")].append(name)  # also of a CSV file with a mark
    columns = list(columns)
    missing = [column for column in columns if column not in spelling and column not in OPTIONAL_COLUMNS]
    if missing:
        raise InputError(f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: {expected}")
    stored = {column: spelling[column] for column in columns if column in spelling}
    for column, same in stored.items():
        if len(same) > 1 and same.count(column) != 1:
            raise InputError(f"{where} has {len(same)} columns {', '.join(same)}: keep one, named {column}.")
    return {column: column if column in same else same[0] for column, same in stored.items()}


# Types of other writers ---------------------------------------------------------------------------


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _casts(stored: dict[str, str], schema: pa.Schema) -> str:
    """Describe the columns whose types are not those of Common Corpus, or return ""."""
    casts = {"text": [], "whole numbers": []}
    for column, name in stored.items():
        kind = schema.field(name).type
        if not (pa.types.is_null(kind) or (pa.types.is_integer(kind) if column in COUNTS else _is_text(kind))):
            casts["whole numbers" if column in COUNTS else "text"].append(f"{column} ({kind})")
    return ", and to ".join(f"{target}: {', '.join(columns)}" for target, columns in casts.items() if columns)


@cache
def _note(message: str) -> None:
    """Print a message on stderr, once."""
    print(terminal_line(message), file=sys.stderr)


def note_casts(files: Iterable[Path]) -> None:
    """Report, once per folder and set of types, which columns the reader casts; damaged files are not opened.

    Programs that read in worker processes call this first, because only their main process reports casts.

    Raises:
        InputError: If a file is damaged or lacks a column.
    """
    for file in files:
        with open_parquet(file) as parquet:
            _note_casts(file, stored_names(parquet.schema_arrow.names, file), parquet.schema_arrow)


def _note_casts(file: PurePath, stored: dict[str, str], schema: pa.Schema) -> None:
    if multiprocessing.parent_process() is None and (casts := _casts(stored, schema)):
        _note(f"{file.parent}: columns cast to {casts}.")


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _plain(value) -> str | bytes | None:
    """Convert a value of any type to text; a number that is whole has no decimals, and NaN is missing."""
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, (float, Decimal)):
        if not math.isfinite(value):
            return None
        return str(int(value) if value == int(value) else value)
    return value if value is None or isinstance(value, str) else str(value)


def as_text(value, column: str) -> str | bytes | None:
    """Convert a value of a column to text; bytes if it is not valid UTF-8, None if it is missing.

    Parts of a list are joined so that none is lost: an unknown author of two stays an unknown author.
    """
    if isinstance(value, dict):
        value = ", ".join(str(part) for part in map(_plain, value.values()) if part not in (None, ""))
    if not isinstance(value, (list, tuple)):
        return _plain(value)
    parts = [as_text(part, column) for part in value]
    if any(isinstance(part, bytes) for part in parts):
        return b"\xff"  # not valid UTF-8
    parts = [part if (part or "").strip() else None for part in parts]
    if not any(parts):
        return None
    if column == "text":
        return "\n\n".join(filter(None, parts))
    if column == "license":
        parts = [f"({part})" if re.search(r"\sor\s", part or "", re.IGNORECASE) else part for part in parts]
    return SEPARATORS.get(column, "; ").join(part or "unknown" for part in parts)


def _as_count(value) -> int | None:
    """Convert a value to a count; NaN and text that is no count are missing."""
    try:
        number = float(value)
        return int(value if isinstance(value, int) else number) if 0 <= number < 2**63 else None
    except (TypeError, ValueError):
        return None


def _values(array: pa.Array) -> list:
    """Convert an array of any type to Python values; a string that is not valid UTF-8 is returned as bytes."""
    if isinstance(array.type, pa.BaseExtensionType) and array.type.extension_name != "arrow.uuid":
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(array.type):
        texts = array.cast(pa.timestamp(array.type.unit)).cast(pa.string()).to_pylist()
        return [MIDNIGHT.sub("", text) if text and text[0] != "<" else None for text in texts]  # "<out of range>"
    try:
        return array.to_pylist()
    except (ValueError, OverflowError):
        if _is_text(array.type):
            return array.cast(pa.large_binary()).to_pylist()
        return [_value(scalar) for scalar in array]


def _value(scalar: pa.Scalar):
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"
    except (ValueError, OverflowError):  # a date that Python cannot represent
        return None


# Reading ------------------------------------------------------------------------------------------


class CheckedParquetFile(pq.ParquetFile):
    """Parquet file whose pages are checked before they are read.

    Args:
        source: Open file.
        name: Its name, for error messages.
    """

    def __init__(self, source: BinaryIO | pa.NativeFile, name: PurePath, **options):
        self.source, self.name = source, name
        super().__init__(source, **options)

    def check_pages(self, group: int, columns: list[str] | None) -> None:
        """Check the sizes of the pages of a row group. Of a remote file, only those of large columns are read.

        Raises:
            InputError: If a page is too large.
        """
        metadata, is_local = self.metadata.row_group(group), isinstance(self.source, pa.NativeFile)
        for chunk in map(metadata.column, range(metadata.num_columns)):
            is_read = columns is None or f"{chunk.path_in_schema}.".startswith(tuple(f"{name}." for name in columns))
            if not is_read or not (is_local or chunk.total_uncompressed_size > UNPACKED_BYTES):
                continue
            start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
            for size, packed in page_sizes(self.source, start, chunk.total_compressed_size):
                if size > min(PAGE_BYTES, max(UNPACKED_BYTES, UNPACKED_RATIO * packed)):
                    raise InputError(
                        f"{self.name} unpacks to {size / 1e6:,.0f} MB of {chunk.path_in_schema} from "
                        f"{packed / 1e6:,.1f} MB, in one page: write it again with smaller row groups."
                    )


@contextmanager
def open_parquet(file: PurePath, source: BinaryIO | None = None) -> Iterator[CheckedParquetFile]:
    """Open a Parquet file; checksums are verified if it has them, and column chunks are not loaded completely.

    Args:
        file: Path, or the name of `source`.
        source: Open file to read instead.

    Raises:
        InputError: If the file is damaged.
    """
    options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
    try:
        with source or pa.OSFile(str(file)) as opened, CheckedParquetFile(opened, file, **options) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, PageError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the operating system
            raise as_os_error(error, file) from None
        message = " ".join(str(error).split())  # it may have several lines
        raise InputError(f"{file} is not a valid Parquet file ({message}): download or build it again.") from None


def batches(
    parquet: CheckedParquetFile, columns: list[str] | None = None, groups: Iterable[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most `BATCH_BYTES`, or of one row.

    No value is larger than its row group as stored without compression. Only this bounds a batch: of documents that
    are equal, a row group stores one.

    Raises:
        InputError: If a page is too large, or a few kB of it unpack to gigabytes.
    """
    for i in range(parquet.num_row_groups) if groups is None else groups:
        size = max(1, parquet.metadata.row_group(i).total_byte_size)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // size))
        parquet.check_pages(i, columns)
        yield from parquet.iter_batches(rows, row_groups=[i], columns=columns, use_threads=False)


def _cast_rows(
    batch: pa.RecordBatch, stored: dict[str, str], columns: Iterable[str], file: PurePath
) -> Iterator[dict]:
    """Yield the rows of a batch, cast to the types of Common Corpus."""
    values = {column: _values(batch[name]) for column, name in stored.items()}
    for i in range(len(batch)):
        row = dict.fromkeys(columns)
        for column, items in values.items():
            row[column] = _as_count(items[i]) if column in COUNTS else as_text(items[i], column)
        if isinstance(label := row.get("language"), str):
            row["language"] = name = language_name(label)
            if name != label and multiprocessing.parent_process() is None:
                _note(f"{file.parent}: language {label!r} is read as {name}.")
        yield row


def read_rows(
    file: PurePath,
    columns: Iterable[str] = COLUMNS,
    *,
    source: BinaryIO | None = None,
    required: Iterable[str] = COLUMNS,
    expected: str = CORPUS_COLUMNS,
    extra: Iterable[str] = (),
) -> Iterator[dict]:
    """Stream every row of a Parquet file with the types of Common Corpus, whoever wrote it, in bounded memory.

    Text columns are str (bytes if not valid UTF-8) or None, counts int or None. A language given by its ISO code has
    its English name. Reports once which columns are cast.

    Args:
        file: Path, or the name of `source`.
        columns: Columns to read.
        source: Open file to read instead.
        required: Columns that the file must have, in addition to those to read.
        expected: The sentence on required columns that ends the error message.
        extra: Further columns that are read as they are, if the file has them.

    Raises:
        InputError: If the file is damaged or lacks a column.
    """
    columns = list(columns)
    with open_parquet(file, source) as parquet:
        names = parquet.schema_arrow.names
        stored = stored_names(names, file, dict.fromkeys([*required, *columns]), expected)
        _note_casts(file, stored, parquet.schema_arrow)
        stored = {column: name for column, name in stored.items() if column in columns}
        extra = [name for name in extra if name in names]
        for batch in batches(parquet, [*stored.values(), *extra]):
            others = [batch[name].to_pylist() for name in extra]
            for row, *values in zip(_cast_rows(batch, stored, columns, file), *others, strict=True):
                yield row | dict(zip(extra, values, strict=True))


def read_columns(file: Path, columns: Iterable[str], expected: str) -> Iterator[dict]:
    """Stream some columns of a Parquet file that is no corpus as rows of text; a language gets its ISO code.

    Args:
        file: Path.
        columns: Columns to read, all of which the file must have.
        expected: The sentence on required columns that ends the error message.

    Raises:
        InputError: If the file is damaged, lacks a column, or has text that is not UTF-8.
    """
    for i, row in enumerate(read_rows(file, columns, required=(), expected=expected)):
        if any(isinstance(value, bytes) for value in row.values()):
            raise InputError(f"{file} has text that is not UTF-8 in row {i}: convert it.")
        yield row | ({"language": language_code(row["language"])} if row.get("language") else {})


def read_rows_at(file: Path, group: int, numbers: set[int], columns: list[str]) -> dict[int, dict]:
    """Return rows of a row group by their number in it, with the types of `read_rows`.

    Raises:
        InputError: If the file is damaged or lacks a column.
    """
    rows, start = {}, 0
    with open_parquet(file) as parquet:
        stored = stored_names(parquet.schema_arrow.names, file)
        _note_casts(file, stored, parquet.schema_arrow)
        stored = {column: stored[column] for column in columns if column in stored}
        for batch in batches(parquet, list(stored.values()), [group]):
            for number in numbers.intersection(range(start, start + len(batch))):
                (rows[number],) = _cast_rows(batch.slice(number - start, 1), stored, columns, file)
            start += len(batch)
    return rows


def unusable(row: dict) -> str | None:
    """Return why a row is no document, or None."""
    for column, reason in (("identifier", "no identifier"), ("text", "no text")):
        if column in row and not (row[column] or "").strip():
            return reason
    return invalid(row)


def invalid(row: dict) -> str | None:
    """Return why the values of a row cannot be used, or None."""
    values = [value for value in row.values() if isinstance(value, (str, bytes))]
    if any(isinstance(value, bytes) for value in values):
        return "invalid UTF-8"
    if 4 * sum(map(len, values)) > MAX_DOCUMENT_BYTES and sum(len(v.encode()) for v in values) > MAX_DOCUMENT_BYTES:
        return f"more than {MAX_DOCUMENT_BYTES // 10**6} MB"
    return None


def read_documents(
    path: Path,
    *,
    languages: list[str] | None = None,
    columns: list[str] | None = None,
    dropped: Counter | None = None,
) -> Iterator[dict]:
    """Stream the documents of a corpus, file by file, in bounded memory, with the types of `read_rows`.

    Rows without identifier or text, with invalid UTF-8 or above `MAX_DOCUMENT_BYTES` are dropped and counted.

    Args:
        path: Folder (every Parquet file below it, sorted by name) or file.
        languages: ISO codes. Default: documents of every language, source code included.
        columns: Columns to read. Default: `COLUMNS`. An optional column that a file lacks is None.
        dropped: Counter of dropped rows by reason. Default: they are reported on stderr at the end.

    Raises:
        InputError: If there is no file, or a file is damaged or lacks a column.
    """
    columns = columns or COLUMNS
    names = {LANGUAGES[code] for code in checked_languages(languages)} if languages else None
    counts: Counter = Counter() if dropped is None else dropped
    for file in corpus_files(path):
        for row in read_rows(file, dict.fromkeys([*columns, "language"])):
            if reason := unusable(row):
                counts[reason] += 1
            elif names is None or row["language"] in names:
                yield {column: row[column] for column in columns}
    if dropped is None and counts:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(counts.items()))
        _note(f"{path}: dropped {counts.total():,} documents ({reasons}).")


# Writing ------------------------------------------------------------------------------------------


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
