"""The account of a curation: every document that came in is found again, kept or dropped, and counted.

It is made from the files on disk and not from what the blocks say they did.
"""

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..config import InputError
from ..data.documents import corpus_files
from ..files import read_json, write_json
from . import page
from .blocks import DROPPED_SCHEMA, KEPT_SCHEMA, lost_file

ACCOUNT = ("language", "license", "collection", "source", "reason")  # what is counted by; kept has no reason
MEASURES = ("documents", "words", "bytes", "final_words", "final_bytes")  # as they came; after curation
SOURCE = r"^(\w+:[^=@#]+?)(?:==?|@).*$"  # pip:NAME==VERSION:..., github:OWNER/REPO@COMMIT:...


def count(file: str, input_file: Path, kept: Path, dropped: list[Path]) -> dict:
    """The account of one input file: rows with `ACCOUNT` and `MEASURES`, and what was changed.

    Raises:
        InputError: when kept and dropped are not the documents of the input, each once.
    """
    seen = np.zeros(pq.ParquetFile(input_file).metadata.num_rows, np.uint8)
    sums, changes, foreign = {}, Counter(), 0
    for path in (path for path in (kept, *dropped) if path.is_file()):
        for table in _batches(path):
            place = pc.struct_field(table["curation"], "row").to_numpy()
            inside = place < len(seen)
            np.add.at(seen, place[inside], 1)
            foreign += int((~inside).sum())
            for row in table.drop(["curation"]).group_by(list(ACCOUNT)).aggregate(SUMS).to_pylist():
                measures = sums.setdefault(tuple(row[column] for column in ACCOUNT), Counter())
                measures.update({measure: row[f"{measure}_sum"] for measure in MEASURES})
            if path == kept:
                changes.update(_changes(table["curation"]))
    missing, twice = int((seen == 0).sum()), int((seen > 1).sum())
    if missing or twice or foreign:
        raise InputError(
            f"{file}: kept and dropped are not the input ({missing} documents missing, {twice} twice, {foreign} of "
            "another file): the corpus changed during the run or a disk lost data; delete the output and start again."
        )
    rows = [
        dict(zip(ACCOUNT, key, strict=True)) | {measure: measures[measure] for measure in MEASURES}
        for key, measures in sums.items()
    ]
    return {"file": file, "documents": len(seen), "account": rows, "changes": dict(changes)}


SUMS = [(measure, "sum") for measure in MEASURES]


def _batches(path: Path) -> Iterator[pa.Table]:
    """What is counted of the documents in a curated file."""
    with pq.ParquetFile(path) as file:
        dropped = "reason" in file.schema_arrow.names
        columns = ["identifier", "language", "license", "collection", "word_count", "curation"]
        for batch in file.iter_batches(2048, columns=[*columns, "reason" if dropped else "text"], use_threads=False):
            table = pa.Table.from_batches([batch])
            nothing = pa.array(np.zeros(len(table), np.int64))
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
                    "final_words": nothing if dropped else table["word_count"],
                    "final_bytes": nothing if dropped else pc.cast(pc.binary_length(table["text"]), pa.int64()),
                    "curation": curation,
                }
            )


def _changes(curation: pa.ChunkedArray) -> Counter:
    """What was changed in kept documents: numbers by block and kind, and documents by block."""
    found = Counter()
    for one in curation.to_pylist():
        for block in ("lines", "pii"):
            counts = {kind: number for kind, number in one[block] or [] if number}
            found.update({f"{block}: {kind}": number for kind, number in counts.items()})
            found[f"documents with {block}"] += bool(counts)
        if one["rewriting"] and one["rewriting"]["action"]:
            found[f"documents with {one['rewriting']['action']}"] += 1
        if one["language"] and one["language"]["label"] != one["language"]["found"]:
            found["documents with another language than labelled"] += 1
        if one["licence"] and one["licence"]["label"] != one["licence"]["spdx"]:
            found["documents with a licence label made SPDX"] += 1
    return +found


class Count(PipelineStep):
    """After `Part`: the account of one file, from disk."""

    type, name = "curation", "count"

    def __init__(self, corpus: Path, kept: Path, dropped: list[Path], files: list[str], lost: Path, out: Path):
        super().__init__()
        self.corpus, self.kept, self.dropped, self.files, self.lost, self.out = corpus, kept, dropped, files, lost, out

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        for _ in data:
            pass
        name = self.files[rank]
        with self.track_time():
            if lost_file(self.lost, rank).is_file():
                record = lose_whole(self.corpus / name, lost_file(self.lost, rank))
                for folder in (self.kept, *self.dropped):
                    (folder / name).unlink(missing_ok=True)
            else:
                record = count(name, self.corpus / name, self.kept / name, [folder / name for folder in self.dropped])
            write_json(self.out / f"{rank:06d}.json", record)


def lose_whole(file: Path, record: Path) -> dict:
    """The account of a file that is dropped whole: how many documents it has, where its footer can be read."""
    try:
        documents = pq.ParquetFile(file).metadata.num_rows
    except (pa.ArrowException, OSError):
        documents = None
    return {**read_json(record), "documents": documents, "account": [], "changes": {}}


# The whole ----------------------------------------------------------------------------------------


class Publish(PipelineStep):
    """The last step: files take their places, the account is made whole, and `curation.json` comes last of all."""

    type, name = "curation", "publish"

    def __init__(self, work: Path, out: Path, corpus: Path, *, settings: dict, fingerprint: str, halves: tuple):
        super().__init__()
        self.work, self.out, self.corpus, self.settings = work, out, corpus, settings
        self.fingerprint, self.halves = fingerprint, halves
        self.command = shlex.join(["python", *sys.orig_argv[1:]])

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        parts = [read_json(path) for path in sorted((self.work / "counts").glob("*.json"))]
        content = {
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "command": self.command,
            "versions": {name: version(name) for name in ("datatrove", "pyarrow")},
            **merge(parts),
            "blocks": block_speeds(self.work / "logs"),
        }
        begun = self.work / "publishing.json"
        if not begun.is_file():  # else files of this run are there already: an earlier attempt was cut short
            (self.out / "curation.json").unlink(missing_ok=True)
            for path in self.out.rglob("*.parquet"):
                if self.work not in path.parents:
                    path.unlink()
            write_json(begun, {})
        move(self.work / "kept", self.out)
        for half in self.halves:
            move(self.work / "dropped" / half, self.out / "dropped" / half)
        write_json(self.out / "dropped" / "files.json", content["lost_files"])
        sources = (self.corpus if self.corpus.is_dir() else self.corpus.parent) / "sources.json"
        if sources.is_file():
            shutil.copyfile(sources, self.out / "sources.json")
        page.write(self.out, content)
        write_json(self.out / "curation.json", content)
        for folder in ("selected", "signatures", "matches", "clusters"):
            shutil.rmtree(self.work / folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Move the files below a folder; an earlier move that was cut short is completed."""
    if not source.is_dir():
        return
    for path in sorted(source.rglob("*.parquet")):
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, to)


def merge(parts: list[dict]) -> dict:
    """The account of a corpus out of those of its files: totals, rows, changes, and the files dropped whole.

    Raises:
        InputError: when kept and dropped do not add up to the input.
    """
    sums, changes = {}, Counter()
    for part in parts:
        changes.update(part["changes"])
        for row in part["account"]:
            sums.setdefault(tuple(row[c] for c in ACCOUNT), Counter()).update({m: row[m] for m in MEASURES})
    rows = [
        dict(zip(ACCOUNT, key, strict=True)) | {measure: sums[key][measure] for measure in MEASURES}
        for key in sorted(sums, key=lambda key: [str(value or "") for value in key])
    ]
    lost = [
        {name: part[name] for name in ("file", "documents", "reason")} for part in parts if "reason" in part
    ]  # a file dropped whole
    kept, dropped = (total([row for row in rows if (row["reason"] is None) == is_kept]) for is_kept in (True, False))
    whole = total(rows)
    read = sum(part["documents"] for part in parts if "reason" not in part)
    if kept["documents"] + dropped["documents"] != read:
        raise InputError(
            f"Kept ({kept['documents']:,}) and dropped ({dropped['documents']:,}) are not the {read:,} documents that "
            "came in: delete the output and start again."
        )
    return {
        "input": {measure: whole[measure] for measure in ("documents", "words", "bytes")},
        "kept": kept,
        "dropped": {measure: dropped[measure] for measure in ("documents", "words", "bytes")},
        "reasons": {
            reason: {measure: value for measure, value in counts.items() if not measure.startswith("final")}
            for reason, counts in by(rows, "reason").items()
            if reason is not None
        },
        "changes": dict(sorted(changes.items())),
        "account": rows,
        "kept_files": [part["file"] for part in parts if any(row["reason"] is None for row in part["account"])],
        "lost_files": lost,
    }


def total(rows: list[dict]) -> dict:
    """Sums of the measures over rows of an account."""
    return {measure: sum(row[measure] for row in rows) for measure in MEASURES}


def by(rows: list[dict], column: str) -> dict:
    """Value of a column -> sums over the rows that have it, the largest first."""
    values = {row[column] for row in rows}
    sums = {value: total([row for row in rows if row[column] == value]) for value in values}
    return dict(sorted(sums.items(), key=lambda item: (-item[1]["bytes"], str(item[0]))))


def block_speeds(logs: Path) -> dict[str, dict]:
    """Seconds of each block over all tasks, the text that it saw (as it came), and MB/s on one core."""
    seconds, size = Counter(), Counter()
    for path in sorted(logs.glob("*/stats/*.json")):
        for step in read_json(path):
            plain = step["name"].split(": ")[-1].encode("ascii", "ignore").decode().strip()  # theirs have pictures
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


def _sum(measured: dict | float) -> float:
    """The total in a statistic as datatrove writes it, which is a bare number when there is nothing else to say."""
    return measured["total"] if isinstance(measured, dict) else measured


# One document -------------------------------------------------------------------------------------


def explain(out: Path, identifier: str) -> str:
    """One document's story, in lines: what it was, what each block found, what became of it.

    Raises:
        InputError: when no document has this identifier.
    """
    wanted = ds.field("identifier") == identifier
    dropped_files = sorted((out / "dropped").rglob("*.parquet"))
    found = []
    for files, schema in ((corpus_files(out), KEPT_SCHEMA), (dropped_files, DROPPED_SCHEMA)):
        columns = [name for name in schema.names if name != "text"]
        found += ds.dataset(files, schema=schema).to_table(columns=columns, filter=wanted).to_pylist() if files else []
    if not found:
        raise InputError(f"{out} has no document {identifier}, kept or in dropped/: copy its identifier whole.")
    return "\n".join(line for row in found for line in _story(row))


def _story(row: dict) -> list[str]:
    curation = row["curation"]
    lines = [
        f"{row['identifier']}",
        f"  {row['title'] or 'untitled'}, by {row['creator'] or 'unknown'}, {row['date'] or 'undated'}; "
        f"{row['collection'] or 'no collection'}",
        f"  came as row {curation['row']} of {curation['file']}: {curation['words']:,} words, "
        f"{curation['bytes']:,} bytes",
    ]
    for block, findings in curation.items():
        if isinstance(findings, list):
            findings = dict(findings) or {"nothing": "changed"}
        if isinstance(findings, dict):
            told = ", ".join(f"{name} {_plain(value)}" for name, value in findings.items() if value is not None)
            lines.append(f"  {block:10} {told}")
    if reason := row.get("reason"):
        return [*lines, f"  dropped: {reason}" + (f", {row['detail']}" if row["detail"] else "")]
    return [*lines, f"  kept: {row['word_count']:,} words, {row['language']}, {row['license']}"]


def _plain(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
