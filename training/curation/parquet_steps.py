"""Read documents from Parquet, run them through pipeline blocks, and write them to Parquet as kept or dropped.

A block is a pure function of a text and its metadata. The step around it records the findings in the document's
`curation` struct, and a reason if the document must be dropped. Later blocks ignore a document with a reason, and
`Part` writes it to the dropped documents, so that no document is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..common.config import InputError
from ..common.files import atomic, naming, write_json
from ..data.documents import (
    ROW_GROUP_BYTES,
    SCHEMA,
    batches,
    open_parquet,
    parquet_writer,
    read_rows,
    stored_names,
)
from .deduplication import digest, read_originals
from .recipe import CurationConfig
from .toxicity_axes import AXES

COUNTS = pa.map_(pa.string(), pa.int64())
STRING, INT, FLOAT, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
CURATION = pa.struct(
    {
        "file": STRING,  # input file and row number: they account for every document
        "row": INT,
        "words": INT,  # before curation
        "bytes": INT,
        "licence": pa.struct(dict.fromkeys(("label", "spdx", "decision", "rule"), STRING)),
        "language": pa.struct({"label": STRING, "found": STRING, "confidence": FLOAT, "share": FLOAT}),
        "lines": COUNTS,
        "ocr": pa.struct(dict.fromkeys(("score", "recognised", "non_letters", "surprise", "threshold"), FLOAT)),
        "duplicate": pa.struct({"of": STRING, "exact": BOOL}),
        "pii": COUNTS,
        # `start` is the place in the corrected text: with `before` there for `after`, the text is as it was
        "ocr_correction": pa.struct(
            {
                "decision": STRING,
                "changes": pa.list_(
                    pa.struct({"start": INT, "before": STRING, "after": STRING, "kind": STRING, "probability": FLOAT})
                ),
            }
        ),
        "toxicity": pa.struct(dict.fromkeys((*AXES, "total"), INT) | {"verdict": STRING, "by": STRING}),
        "rewriting": pa.struct(
            dict.fromkeys(("action", "rewritten_by", "prompt_version"), STRING)
            | {"synthetic": BOOL, "passages_rewritten": INT, "content_warning": STRING}
        ),
    }
)
KEPT_SCHEMA = SCHEMA.append(pa.field("curation", CURATION))
DROPPED_SCHEMA = KEPT_SCHEMA.append(pa.field("reason", STRING)).append(pa.field("detail", STRING))
SELECTED_SCHEMA = KEPT_SCHEMA.append(pa.field("digest", pa.binary()))  # between the two halves of the pipeline


# Reading ------------------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a Parquet file of a corpus or of the first half of the pipeline, as `read_rows` does.

    Raises:
        InputError: If a column is missing or the file is corrupt.
    """
    return read_rows(path, extra=("curation", "digest"))


def find_corruption(path: Path) -> str | None:
    """Read a complete Parquet file; return what makes it unusable as a corpus file, or None."""
    try:
        with open_parquet(path) as file:
            for _ in batches(file, list(stored_names(file.schema_arrow.names, path).values())):
                pass
    except (InputError, OSError) as error:
        return str(error)
    return None


def _documents(step: PipelineStep, path: Path, convert: Callable[[dict, int], Document]) -> Iterator[Document]:
    """Yield the rows of a file as documents; record time and bytes in the statistics of `step`."""
    source = rows(path)
    for number in count():
        with step.track_time():
            row = next(source, None)
            if row is None:
                return
            document = convert(row, number)
            step.stat_update("bytes", value=document.metadata["curation"]["bytes"])
        yield document


def drop_record(config: CurationConfig, rank: int) -> Path:
    """Path of the record that an input file was dropped."""
    return config.work / "dropped_files" / f"{rank:06d}.json"


def drop_file(config: CurationConfig, rank: int, file: str, reason: str) -> None:
    """Record that an input file is dropped."""
    write_json(drop_record(config, rank), {"file": file, "reason": reason})


class CurationStep(PipelineStep):
    """Base class of steps that need the config, and the names of the input files by rank."""

    type = "curation"

    def __init__(self, config: CurationConfig, files: Sequence[str] = ()):
        super().__init__()
        self.config, self.files = config, files


class CorpusReader(CurationStep):
    """Reader of one corpus file per task.

    It reads a file twice, because a corrupt file must be found before any of its documents is passed on. A corrupt
    file, or a file whose task the executor gave up, is dropped as a unit: it has a drop record and yields no document.
    """

    name = "read"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        name, path = self.files[rank], self.config.folder / self.files[rank]
        if drop_record(self.config, rank).is_file():
            return
        with self.track_time("file"):
            reason = find_corruption(path)
        if reason and self.config.on_error == "stop":
            raise InputError(f"{reason} To drop such files, pass --on_error drop.")
        if reason:
            drop_file(self.config, rank, name, reason)
            return
        yield from _documents(self, path, lambda row, number: self.document(row, name, number))

    def document(self, row: dict, file: str, number: int) -> Document:
        """Convert a row to a document; set the reason to drop it if it is invalid."""
        reason = detail = None
        if bad := [column for column, value in row.items() if isinstance(value, bytes)]:
            reason, detail = "invalid UTF-8", f"in {', '.join(bad)}"
            row = {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in row.items()}
        text = row.pop("text") or ""
        size = len(text.encode())
        if reason is None and size > self.config.max_megabytes * 1e6:
            reason, detail = "too large", f"{size:,} bytes"
        if reason and self.config.on_error == "stop":
            raise InputError(
                f"{file} has an invalid document in row {number} ({row['identifier']}): {reason}, {detail}. Fix it, "
                "or drop such documents with --on_error drop."
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


class ReadSelected(CurationStep):
    """Reader of the documents that the first half of the pipeline selected; gives duplicates their reason."""

    name = "duplicates"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = self.config.work / "selected" / self.files[rank]
        if drop_record(self.config, rank).is_file() or not path.is_file():  # no document was selected
            return
        originals = read_originals(self.config.work / "clusters", rank)
        yield from _documents(self, path, lambda row, number: self.document(row, originals.get(number)))

    def document(self, row: dict, original: tuple[str, bool] | None) -> Document:
        """Convert a row to a document; `original` is set if it duplicates another one."""
        del row["digest"]
        curation = row["curation"]
        for counts in ("lines", "pii"):
            curation[counts] = dict(curation[counts] or [])
        reason = detail = None
        if original:
            identifier, exact = original
            curation["duplicate"] = {"of": identifier, "exact": exact}
            reason, detail = "exact duplicate" if exact else "near duplicate", f"of {identifier}"
        return Document(row.pop("text"), row["identifier"], metadata={**row, "reason": reason, "detail": detail})


# Blocks -------------------------------------------------------------------------------------------


class BlockResult(NamedTuple):
    """Result of a block: findings for the `curation` struct, and the reason to drop the document, if any."""

    findings: dict
    reason: str | None = None
    detail: str | None = None


class Block(CurationStep):
    """Base class of a step around a pure function, which subclasses call in `judge`."""

    field: str  # of the `curation` struct

    def process(self, document: Document, row: dict) -> BlockResult:
        """Process one document; may change its text and its row."""
        raise NotImplementedError

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            if document.metadata["reason"] is None:
                with self.track_time():
                    self.stat_update("bytes", value=document.metadata["curation"]["bytes"])
                    self.apply(document)
            yield document

    def apply(self, document: Document) -> None:
        """Process one document and record the result; an exception drops the document or stops the run."""
        row = document.metadata
        try:
            findings, row["reason"], row["detail"] = self.process(document, row)
        except Exception as error:
            self.fail(document, error)
        else:
            row["curation"][self.field] = findings

    def fail(self, document: Document, error: Exception) -> None:
        """Drop a document on which the block failed, or stop the run.

        Raises:
            InputError: If `on_error` is stop.
        """
        row, detail = document.metadata, f"{type(error).__name__}: {error}"
        if self.config.on_error == "stop":
            raise InputError(
                f"The {self.name} block fails on a document of {row['curation']['file']} ({document.id}): {detail}. "
                "Fix the document, or drop such documents with --on_error drop."
            ) from error
        row["reason"], row["detail"] = f"error in {self.name}", detail


# Writing ------------------------------------------------------------------------------------------


class AtomicParquetWriter:
    """Atomic writer of a Parquet file, one row group at a time; creates no file if there are no rows."""

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
                writer = parquet_writer(temporary, self.schema, compression="zstd", write_page_checksum=True)
                self.file = self.stack.enter_context(writer)
            with naming(self.path):
                self.file.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.pending = [], 0


class KeptDroppedWriter(CurationStep):
    """Writer of kept documents and, with their reason, dropped documents; passes on the kept ones."""

    name = "write"

    def __init__(self, config: CurationConfig, files: Sequence[str], half: str):
        super().__init__(config, files)
        self.half = half

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        folder, schema = ("selected", SELECTED_SCHEMA) if self.half == "select" else ("kept", KEPT_SCHEMA)
        outputs = {folder: schema, f"dropped/{self.half}": DROPPED_SCHEMA}
        paths = [self.config.work / folder / self.files[rank] for folder in outputs]
        for path in paths:
            path.unlink(missing_ok=True)  # of an interrupted task
        with ExitStack() as stack:
            tables = [
                AtomicParquetWriter(path, schema, stack) for path, schema in zip(paths, outputs.values(), strict=True)
            ]
            for document in data:
                row = {**document.metadata, "text": document.text}
                is_dropped = row["reason"] is not None
                with self.track_time():
                    if schema is SELECTED_SCHEMA and not is_dropped:
                        row["digest"] = digest(document.text)
                    tables[is_dropped].add(row)
                    self.stat_update("bytes", value=row["curation"]["bytes"])
                if not is_dropped:
                    yield document
            with self.track_time():
                for table in tables:
                    table.flush()
