"""Statistics of a curation run: counts kept and dropped documents, publishes the result, and explains one document.

All counts come from the files on disk, not from what the blocks report.
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline

from ..common.config import InputError
from ..common.escaping import shell_line, terminal_line
from ..common.files import atomic, move_files, read_json, sha256, write_json
from ..data.documents import corpus_files
from . import statistics_report
from .parquet_steps import DROPPED_SCHEMA, KEPT_SCHEMA, CurationStep, drop_record
from .recipe import HALVES, CurationConfig

GROUP_COLUMNS = ("language", "license", "collection", "source", "reason")  # kept documents have no reason
INPUT_MEASURES = ("documents", "words", "bytes")  # before curation
MEASURES = (*INPUT_MEASURES, "final_words", "final_bytes")  # after curation
ROWS = pa.schema([(column, pa.string()) for column in GROUP_COLUMNS] + [(name, pa.int64()) for name in MEASURES])
SOURCE = r"^(\w+:[^=@#]+?)(?:==?|@).*$"  # pip:NAME==VERSION:..., github:OWNER/REPO@COMMIT:...


# One file -----------------------------------------------------------------------------------------


def count_file(file: str, input_file: Path, kept_file: Path, dropped_files: list[Path]) -> dict:
    """Count the documents of one input file: rows of `GROUP_COLUMNS` and `MEASURES`, and the changes.

    Raises:
        InputError: If kept and dropped documents together are not exactly those of the input.
    """
    seen = np.zeros(pq.ParquetFile(input_file).metadata.num_rows, np.uint8)
    sums, changes, foreign = [ROWS.empty_table()], Counter(), 0
    for path in filter(Path.is_file, (kept_file, *dropped_files)):
        for table in _batches(path):
            numbers = pc.struct_field(table["curation"], "row").to_numpy()
            inside = numbers < len(seen)
            np.add.at(seen, numbers[inside], 1)
            foreign += int((~inside).sum())
            sums.append(_sums(table))
            if path == kept_file:
                changes.update(_changes(table["curation"]))
    missing, twice = int((seen == 0).sum()), int((seen > 1).sum())
    if missing or twice or foreign:
        raise InputError(
            f"{file}: kept and dropped documents differ from the input ({missing} documents missing, {twice} twice, "
            f"{foreign} of another file). The corpus changed during the run, or a disk lost data: delete the output "
            "and run again."
        )
    return {
        "file": file,
        "documents": len(seen),
        "account": _sums(pa.concat_tables(sums)).to_pylist(),
        "changes": dict(changes),
    }


def _sums(table: pa.Table) -> pa.Table:
    """Sum the measures by group; return a table of `ROWS`."""
    sums = table.group_by(list(GROUP_COLUMNS)).aggregate([(measure, "sum") for measure in MEASURES])
    return sums.rename_columns([name.removesuffix("_sum") for name in sums.column_names]).select(ROWS.names).cast(ROWS)


def _batches(path: Path) -> Iterator[pa.Table]:
    """Yield the columns to count of the documents in a curated file."""
    with pq.ParquetFile(path) as file:
        dropped = "reason" in file.schema_arrow.names
        columns = ["identifier", "language", "license", "collection", "word_count", "curation"]
        for batch in file.iter_batches(2048, columns=[*columns, "reason" if dropped else "text"], use_threads=False):
            table = pa.Table.from_batches([batch])
            zeros = pa.array(np.zeros(len(table), np.int64))
            curation = table["curation"]
            coarse = pc.replace_substring_regex(table["identifier"], SOURCE, r"\1")
            named = pc.not_equal(coarse, table["identifier"])
            yield pa.table(
                {
                    **{column: pc.fill_null(table[column], "") for column in ("language", "license", "collection")},
                    "source": pc.if_else(named, coarse, pc.fill_null(table["collection"], "")),
                    "reason": table["reason"] if dropped else pa.nulls(len(table), pa.string()),
                    "documents": pa.array(np.ones(len(table), np.int64)),
                    "words": pc.struct_field(curation, "words"),
                    "bytes": pc.struct_field(curation, "bytes"),
                    "final_words": zeros if dropped else table["word_count"],
                    "final_bytes": zeros if dropped else pc.cast(pc.binary_length(table["text"]), pa.int64()),
                    "curation": curation,
                }
            )


def _changes(curation: pa.ChunkedArray) -> Counter:
    """Count the changes of kept documents by block and kind, and the changed documents by block."""
    changes = Counter()
    for findings in curation.to_pylist():
        for block in ("lines", "pii"):
            counts = {kind: number for kind, number in findings[block] or [] if number}
            changes.update({f"{block}: {kind}": number for kind, number in counts.items()})
            changes[f"documents with {block}"] += bool(counts)
        if correction := findings["ocr_correction"]:
            changes.update(f"ocr_correction: {change['kind']}" for change in correction["changes"])
            changes[f"documents with ocr_correction: {correction['decision']}"] += 1
        if findings["rewriting"] and findings["rewriting"]["action"]:
            changes[f"documents with {findings['rewriting']['action']}"] += 1
        if findings["language"] and findings["language"]["label"] != findings["language"]["found"]:
            changes["documents with another language than labelled"] += 1
        if findings["licence"] and findings["licence"]["label"] != findings["licence"]["spdx"]:
            changes["documents with a licence label made SPDX"] += 1
    return +changes


class CountStep(CurationStep):
    """Count the documents of one file, after `Part` has written them."""

    name = "count"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        for _ in data:
            pass
        name, work, record = self.files[rank], self.config.work, drop_record(self.config, rank)
        kept_file, dropped_files = work / "kept" / name, [work / "dropped" / half / name for half in HALVES]
        with self.track_time():
            if record.is_file():
                counts = record_dropped_file(self.config.folder / name, record)
                for path in (kept_file, *dropped_files):
                    path.unlink(missing_ok=True)
            else:
                counts = count_file(name, self.config.folder / name, kept_file, dropped_files)
            write_json(work / "counts" / f"{rank:06d}.json", counts)


def record_dropped_file(file: Path, record: Path) -> dict:
    """Return the counts of a dropped file: the number of its documents, if its footer is readable."""
    try:
        documents = pq.ParquetFile(file).metadata.num_rows
    except (pa.ArrowException, OSError):
        documents = None
    return {**read_json(record), "documents": documents, "account": [], "changes": {}}


# All files ----------------------------------------------------------------------------------------


class PublishStep(CurationStep):
    """Last step: collects the files and statistics, and moves them to the output folder, `curation.json` last."""

    name = "publish"

    def __init__(self, config: CurationConfig, *, settings: dict, fingerprint: str):
        super().__init__(config)
        command = shell_line(["python", *sys.orig_argv[1:]])
        self.header = {"fingerprint": fingerprint, "settings": settings, "command": command}

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        work, out = self.config.work, self.config.out
        content = {
            **self.header,
            "versions": {name: version(name) for name in ("datatrove", "pyarrow")},
            **merge([read_json(path) for path in sorted((work / "counts").glob("*.json"))]),
            "blocks": block_speeds(work / "logs"),
        }
        published, complete = work / "published", work / "published.json"
        if not complete.is_file():  # otherwise an interrupted attempt of this run has moved some files
            move(work / "kept", published)
            move(work / "dropped", published / "dropped")
            write_json(published / "dropped" / "files.json", content["lost_files"])
            if (sources := self.config.folder / "sources.json").is_file():
                with atomic(published / "sources.json") as path:
                    shutil.copyfile(sources, path)
            content["sha256"] = {name: sha256(published / name) for name in content["kept_files"]}
            statistics_report.write_statistics(published, content)
            write_json(published / "curation.json", content)
            files = (path for path in published.rglob("*") if path.is_file())
            write_json(complete, [str(path.relative_to(published)) for path in files])
        new = {out / name for name in read_json(complete)}
        old = [out / "sources.json", *(path for path in out.rglob("*.parquet") if work not in path.parents)]
        move_files(published, out, "curation.json", stale={*old} - new)
        for folder in ("selected", "signatures", "matches", "clusters", "published"):
            shutil.rmtree(work / folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Move the Parquet files of a folder; completes an interrupted move."""
    for path in sorted(source.rglob("*.parquet")):
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)


def merge(parts: list[dict]) -> dict:
    """Merge the counts of all files: totals, rows, changes, and the dropped files.

    Raises:
        InputError: If kept and dropped documents do not add up to the input.
    """
    changes = sum((Counter(part["changes"]) for part in parts), Counter())
    table = pa.Table.from_pylist([row for part in parts for row in part["account"]], schema=ROWS)
    rows = sorted(_sums(table).to_pylist(), key=lambda row: [str(row[column] or "") for column in GROUP_COLUMNS])
    by_reason: dict[str | None, list[dict]] = {}
    for row in rows:
        by_reason.setdefault(row["reason"], []).append(row)
    kept_total = total(by_reason.pop(None, []))
    reasons = {reason: total(group) for reason, group in by_reason.items()}
    dropped_total = total(reasons.values())
    documents = sum(part["documents"] for part in parts if "reason" not in part)
    if kept_total["documents"] + dropped_total["documents"] != documents:
        raise InputError(
            f"Kept ({kept_total['documents']:,}) and dropped ({dropped_total['documents']:,}) documents do not add up "
            f"to the {documents:,} documents of the input: delete the output and run again."
        )
    return {
        "input": _input(total(rows)),
        "kept": kept_total,
        "dropped": _input(dropped_total),
        "reasons": {
            name: _input(reasons[name]) for name in sorted(reasons, key=lambda name: (-reasons[name]["bytes"], name))
        },
        "changes": dict(sorted(changes.items())),
        "account": rows,
        "kept_files": [part["file"] for part in parts if any(row["reason"] is None for row in part["account"])],
        "lost_files": [
            {name: part[name] for name in ("file", "documents", "reason")} for part in parts if "reason" in part
        ],
    }


def total(rows: Collection[dict]) -> dict:
    """Return the sums of the measures over rows."""
    return {measure: sum(row[measure] for row in rows) for measure in MEASURES}


def _input(sums: dict) -> dict:
    return {measure: sums[measure] for measure in INPUT_MEASURES}


def block_speeds(logs: Path) -> dict[str, dict]:
    """Return the seconds of each block over all tasks, the MB of text before curation, and MB/s of one core."""
    seconds, size = Counter(), Counter()
    for path in sorted(logs.glob("*/stats/*.json")):
        for step in read_json(path):
            plain = step["name"].split(": ")[-1].encode("ascii", "ignore").decode().strip()  # datatrove's have emoji
            name = f"{path.parent.parent.name}: {plain}"
            seconds[name] += _sum(step["time_stats"])
            size[name] += _sum(step["stats"].get("bytes", 0))
    return {
        name: {
            "seconds": round(spent, 3),
            "megabytes": round(size[name] / 1e6, 3),
            "megabytes_per_second": round(size[name] / 1e6 / spent, 2) if spent and size[name] else None,
        }
        for name, spent in seconds.items()
    }


def _sum(statistic: dict | float) -> float:
    """Return the total of a datatrove statistic, which is written as a number if nothing else is known."""
    return statistic["total"] if isinstance(statistic, dict) else statistic


# One document -------------------------------------------------------------------------------------


def explain(out: Path, identifier: str) -> str:
    """Describe one document: its metadata, the findings of each block, and why it was kept or dropped.

    Raises:
        InputError: If no document has this identifier.
    """
    dropped_files, documents = sorted((out / "dropped").rglob("*.parquet")), []
    for files, schema in ((corpus_files(out), KEPT_SCHEMA), (dropped_files, DROPPED_SCHEMA)):
        columns = [name for name in schema.names if name != "text"]
        if files:
            table = ds.dataset(files, schema=schema).to_table(columns, ds.field("identifier") == identifier)
            documents += table.to_pylist()
    if not documents:
        raise InputError(f"{out} contains no document {identifier}, kept or dropped: pass its complete identifier.")
    return "\n".join(terminal_line(line) for row in documents for line in _describe(row))


def _describe(row: dict) -> list[str]:
    curation = row["curation"]
    lines = [
        f"{row['identifier']}",
        f"  {row['title'] or 'untitled'}, by {row['creator'] or 'unknown'}, {row['date'] or 'undated'}; "
        f"{row['collection'] or 'no collection'}",
        f"  input: row {curation['row']} of {curation['file']}: {curation['words']:,} words, "
        f"{curation['bytes']:,} bytes",
    ]
    for block, findings in curation.items():
        if isinstance(findings, list):
            findings = dict(findings) or {"no": "changes"}
        if isinstance(findings, dict):
            findings = {k: len(v) if isinstance(v, list) else v for k, v in findings.items() if v is not None}
            findings = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in findings.items()}
            lines.append(f"  {block:10} {', '.join(f'{name} {value}' for name, value in findings.items())}")
    if reason := row.get("reason"):
        return [*lines, f"  dropped: {reason}" + (f", {row['detail']}" if row["detail"] else "")]
    return [*lines, f"  kept: {row['word_count']:,} words, {row['language']}, {row['license']}"]
