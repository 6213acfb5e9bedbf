"""datatrove steps: documents in from Parquet, through the blocks, and out again, kept or dropped.

A block is a pure function on a text and its metadata; the step around it keeps its findings in the document's
`curation` struct, and the reason when the document has to go. A document with a reason passes the blocks that follow
untouched, and `Part` writes it beside those that are kept: none is ever lost on the way.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..config import InputError
from ..data.documents import ROW_GROUP_BYTES, SCHEMA, stored_names
from ..files import atomic, read_json, write_json
from ..language import CODES
from .duplicates import digest, read_originals

BATCH_BYTES = 4_000_000  # of text, decoded at a time
COUNTS = pa.map_(pa.string(), pa.int64())


def struct(**fields: pa.DataType) -> pa.StructType:
    """A struct type by keywords."""
    return pa.struct(list(fields.items()))


STRING, WHOLE, REAL, TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()
CURATION = struct(
    file=STRING,  # where the document was read, and which row it was: with them every document is accounted for
    row=WHOLE,
    words=WHOLE,  # as it came
    bytes=WHOLE,
    licence=struct(label=STRING, spdx=STRING, decision=STRING, rule=STRING),
    language=struct(label=STRING, found=STRING, confidence=REAL, share=REAL),
    lines=COUNTS,
    ocr=struct(score=REAL, recognised=REAL, non_letters=REAL, surprise=REAL, threshold=REAL),
    duplicate=struct(of=STRING, exact=TRUTH),
    pii=COUNTS,
    toxicity=struct(
        race=WHOLE, gender=WHOLE, religion=WHOLE, ability=WHOLE, violence=WHOLE, total=WHOLE, verdict=STRING, by=STRING
    ),
    rewriting=struct(
        action=STRING,
        rewritten_by=STRING,
        prompt_version=STRING,
        synthetic=TRUTH,
        passages_rewritten=WHOLE,
        content_warning=STRING,
    ),
)
KEPT_SCHEMA = SCHEMA.append(pa.field("curation", CURATION))
DROPPED_SCHEMA = KEPT_SCHEMA.append(pa.field("reason", STRING)).append(pa.field("detail", STRING))
SELECTED_SCHEMA = KEPT_SCHEMA.append(pa.field("digest", pa.binary()))  # between the two halves of the pipeline


# In -----------------------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[dict]:
    """The rows of a Parquet file in batches that stay small however large its documents are.

    A string that is not UTF-8 comes as bytes.

    Raises:
        InputError: when a column is missing or the file is damaged.
    """
    try:
        with _open(path) as file:
            names = {stored: column for column, stored in stored_names(file.schema_arrow.names, path).items()}
            names |= {extra: extra for extra in ("curation", "digest") if extra in file.schema_arrow.names}
            for batch in _batches(file, list(names)):
                for row in _decoded(batch):
                    yield {names[stored]: value for stored, value in row.items()}
    except (pa.ArrowException, OSError) as error:
        raise InputError(_broken(path, error)) from None


def damage(path: Path) -> str | None:
    """What is wrong with a Parquet file as a corpus, found by reading all of it; None for a whole one."""
    try:
        with _open(path) as file:
            for _ in _batches(file, list(stored_names(file.schema_arrow.names, path).values())):
                pass
    except InputError as error:
        return str(error)
    except (pa.ArrowException, OSError) as error:
        return _broken(path, error)
    return None


def _broken(path: Path, error: Exception) -> str:
    said = " ".join(str(error).split())  # over several lines
    return f"{path} is not a whole Parquet file ({said}): fetch or build it again."


def _open(path: Path) -> pq.ParquetFile:
    # Without a buffer of its own whole column chunks come into memory. Checksums are checked where a file has them.
    return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of a file, with as many rows as make `BATCH_BYTES`."""
    for i in range(file.num_row_groups):
        group = file.metadata.row_group(i)
        size = max(1, min(1024, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        yield from file.iter_batches(size, row_groups=[i], columns=columns, use_threads=False)


def _decoded(batch: pa.RecordBatch) -> list[dict]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                columns[name] = column.to_pylist()
            except UnicodeDecodeError:
                columns[name] = [_text(value) for value in column.cast(pa.binary()).to_pylist()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _text(value: bytes | None) -> str | bytes | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value


class Read(PipelineStep):
    """The documents of one corpus file, which is one task.

    A file is read twice: that it is damaged has to be found before its first documents leave traces. A damaged file,
    and one whose task the executor has given up, is dropped whole: its record goes to `lost`, and it gives no
    document.
    """

    type, name = "curation", "read"

    def __init__(self, folder: Path, files: list[str], lost: Path, *, max_megabytes: float, on_error: str):
        super().__init__()
        self.folder, self.files, self.lost = folder, files, lost
        self.max_bytes, self.on_error = int(max_megabytes * 1e6), on_error

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        name = self.files[rank]
        if lost_file(self.lost, rank).is_file():
            return
        with self.track_time("file"):
            reason = damage(self.folder / name)
        if reason and self.on_error == "stop":
            raise InputError(f"{reason} Or let such files be dropped with --on_error drop.")
        if reason:
            lose(self.lost, rank, name, reason)
            return
        source = rows(self.folder / name)
        for i in count():
            with self.track_time():
                row = next(source, None)
                if row is None:
                    return
                document = self.document(row, name, i)
                self.stat_update("bytes", value=document.metadata["curation"]["bytes"])
            yield document

    def document(self, row: dict, file: str, number: int) -> Document:
        """A row as a document, with a reason to drop it when it cannot be one."""
        reason = detail = None
        if bad := [column for column, value in row.items() if isinstance(value, bytes)]:
            reason, detail = "invalid UTF-8", f"in {', '.join(bad)}"
            row = {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in row.items()}
        text = row.pop("text") or ""
        size = len(text.encode())
        if reason is None and size > self.max_bytes:
            reason, detail = "too large", f"{size:,} bytes"
        if reason and self.on_error == "stop":
            raise InputError(
                f"{file} has a bad document in row {number} ({row['identifier']}): {reason}, {detail}; mend it, or "
                "let such documents be dropped with --on_error drop."
            )
        if reason is None and not text.strip():
            reason = "empty"
        if reason is None and not row["identifier"]:
            reason = "no identifier"
        words = row["word_count"] = len(text.split())
        curation = {"file": file, "row": number, "words": words, "bytes": size}
        return Document(
            text, row["identifier"] or "", metadata={**row, "curation": curation, "reason": reason, "detail": detail}
        )


def lost_file(folder: Path, rank: int) -> Path:
    """Where the record of a file that was dropped whole lies."""
    return folder / f"{rank:06d}.json"


def lose(folder: Path, rank: int, file: str, reason: str) -> None:
    """Record that a file is dropped whole."""
    write_json(lost_file(folder, rank), {"file": file, "reason": reason})


class ReadSelected(PipelineStep):
    """The documents that the first half of the pipeline selected, in its order; duplicates get their reason."""

    type, name = "curation", "duplicates"

    def __init__(self, selected: Path, files: list[str], lost: Path, clusters: Path):
        super().__init__()
        self.selected, self.files, self.lost, self.clusters = selected, files, lost, clusters

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = self.selected / self.files[rank]
        if lost_file(self.lost, rank).is_file() or not path.is_file():  # none was selected
            return
        originals = read_originals(self.clusters, rank)
        source = rows(path)
        for i in count():
            with self.track_time():
                row = next(source, None)
                if row is None:
                    return
                curation = row["curation"]
                for counts in ("lines", "pii"):
                    curation[counts] = dict(curation[counts] or [])
                reason = detail = None
                if i in originals:
                    of, exact = originals[i]
                    curation["duplicate"] = {"of": of, "exact": exact}
                    reason, detail = "exact duplicate" if exact else "near duplicate", f"of {of}"
                self.stat_update("bytes", value=curation["bytes"])
                del row["digest"]
                text = row.pop("text")
            yield Document(text, row["identifier"], metadata={**row, "reason": reason, "detail": detail})


# Through ------------------------------------------------------------------------------------------


class Block(PipelineStep):
    """A step around a pure function: subclasses say in `judge` what it finds."""

    type = "curation"
    field: str  # of the curation struct

    def __init__(self, on_error: str = "drop"):
        super().__init__()
        self.on_error = on_error

    def judge(self, document: Document, row: dict) -> tuple[dict | None, str | None, str | None]:
        """Findings for the curation struct, the reason to drop the document if there is one, and its detail.

        May change the document's text and its row.
        """
        raise NotImplementedError

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            if document.metadata["reason"] is None:
                with self.track_time():
                    self.stat_update("bytes", value=document.metadata["curation"]["bytes"])
                    self.apply(document)
            yield document

    def apply(self, document: Document) -> None:
        """Judge one document; what goes wrong with it is a reason like any other, or stops the run."""
        row = document.metadata
        try:
            findings, row["reason"], row["detail"] = self.judge(document, row)
        except Exception as error:
            self.fail(document, error)
        else:
            row["curation"][self.field] = findings

    def fail(self, document: Document, error: Exception) -> None:
        """Drop a document that the block cannot take, or stop the run.

        Raises:
            InputError: with on_error = stop.
        """
        row, detail = document.metadata, f"{type(error).__name__}: {error}"
        if self.on_error == "stop":
            raise InputError(
                f"{row['curation']['file']} has a document ({document.id}) that the {self.name} block cannot take "
                f"({detail}): mend it, or let such documents be dropped with --on_error drop."
            ) from error
        row["reason"], row["detail"] = f"error in {self.name}", detail


# Out ----------------------------------------------------------------------------------------------


class Table:
    """A Parquet file that is whole or not there, written a row group at a time; no file where there is no row."""

    def __init__(self, path: Path, schema: pa.Schema, stack: ExitStack):
        self.path, self.schema, self.stack = path, schema, stack
        self.rows, self.pending, self.file = [], 0, None

    def add(self, row: dict) -> None:
        """Append a row."""
        self.rows.append(row)
        self.pending += len(row["text"])
        if self.pending >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows."""
        if self.rows:
            if self.file is None:
                temporary = self.stack.enter_context(atomic(self.path))
                writer = pq.ParquetWriter(temporary, self.schema, compression="zstd", write_page_checksum=True)
                self.file = self.stack.enter_context(writer)
            self.file.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.pending = [], 0


class Part(PipelineStep):
    """Writes documents to `kept` or, with their reason, to `dropped`; passes on those that are kept."""

    type, name = "curation", "write"

    def __init__(self, kept: Path, dropped: Path, files: list[str], *, with_digest: bool = False):
        super().__init__()
        self.kept, self.dropped, self.files, self.with_digest = kept, dropped, files, with_digest

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        paths = self.kept / self.files[rank], self.dropped / self.files[rank]
        for path in paths:
            path.unlink(missing_ok=True)  # of a task that was cut short
        with ExitStack() as stack:
            kept = Table(paths[0], SELECTED_SCHEMA if self.with_digest else KEPT_SCHEMA, stack)
            dropped = Table(paths[1], DROPPED_SCHEMA, stack)
            for document in data:
                with self.track_time():
                    reason = self.write(document, kept, dropped)
                if reason is None:
                    yield document
            with self.track_time():
                kept.flush()
                dropped.flush()

    def write(self, document: Document, kept: Table, dropped: Table) -> str | None:
        """Put a document where it belongs; returns the reason why it was dropped."""
        row = {**document.metadata, "text": document.text}
        if row["reason"] is not None:
            dropped.add(row)
        elif self.with_digest:
            kept.add({**row, "digest": digest(document.text)})
        else:
            kept.add(row)
        self.stat_update("bytes", value=row["curation"]["bytes"])
        return row["reason"]


def lost_files(folder: Path) -> list[dict]:
    """The records of the files that were dropped whole."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def changed(document: Document, text: str) -> None:
    """Give a document another text; what was counted of it is counted again."""
    if text != document.text:
        document.text = text
        document.metadata |= {"word_count": len(text.split()), "token_count": None}


def iso(row: dict) -> str:
    """ISO code of a document's language."""
    return CODES[row["language"]]


def batches(documents: Iterable[Document], most: int, size: int) -> Iterator[list[Document]]:
    """Documents in lists of at most `most`, and of about `size` characters that are still to be judged."""
    batch, pending = [], 0
    for document in documents:
        batch.append(document)
        pending += len(document.text) if document.metadata["reason"] is None else 0
        if len(batch) == most or pending >= size:
            yield batch
            batch, pending = [], 0
    if batch:
        yield batch
