"""Corpus -> token shards in datatrove's format, with a manifest that accounts for every token.

The files of a shard are described in training/data/shard_files.py.
"""

if not __package__:  # run by path; same as `python -m training.shards`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import multiprocessing
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tqdm import tqdm

from .config import InputError, parse, program
from .data.documents import corpus_files, read_documents
from .data.shard_files import (
    ACCOUNT,
    DOCUMENT_END,
    DOCUMENTS_SCHEMA,
    SIDECARS,
    SPLITS,
    TOKEN,
    checked,
    shard_files,
    tokenizer_facts,
)
from .data.split import in_validation_split
from .files import atomic, fingerprint, read_json, sha256, write_json
from .language import CODES
from .processes import exit_with_parent

BATCH_DOCUMENTS = 256


@dataclass
class ShardsConfig:
    """Which corpus becomes which shards.

    Args:
        corpus: folder of Parquet files with Common Corpus columns.
        tokenizer: folder with tokenizer.json and tokenizer_config.json; at most 65,536 entries.
        out: folder for the shards and manifest.json.
        validation: share of the documents held out, chosen by a hash.
        validation_by: the column whose hash chooses: identifier, or creator to hold out whole authors.
        held_out: corpus folder that is the validation text, in place of a share (training.mixture makes one).
        workers: processes; one per CPU when not given. The result does not depend on it.
    """

    corpus: Path
    tokenizer: Path
    out: Path
    validation: float = 0.01
    validation_by: Literal["identifier", "creator"] = "identifier"
    held_out: Path | None = None
    workers: int | None = None


class ShardWriter:
    """Writes the documents of one shard and keeps the account of them."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.ends, self.documents, self.tokens = [], {name: [] for name in DOCUMENTS_SCHEMA.names}, 0

    @classmethod
    @contextmanager
    def create(cls, path: Path, facts: dict) -> Iterator["ShardWriter"]:
        """A shard's four files; they take their names, the tokens last, when the block ends well, and never else."""
        with atomic(path) as temporary:
            with open(temporary, "wb") as file:
                writer = cls(file)
                yield writer
            index, metadata, documents = (path.with_name(path.name + sidecar) for sidecar in SIDECARS)
            with atomic(index) as temporary:
                np.asarray(writer.ends, DOCUMENT_END).tofile(temporary)
            with atomic(metadata) as temporary:
                tokens = writer.tokens
                temporary.write_text(f"{facts['sha256']}|{TOKEN.itemsize}\n{tokens}\n{tokens:,} tokens\n")
            with atomic(documents) as temporary:
                pq.write_table(pa.table(writer.documents, schema=DOCUMENTS_SCHEMA), temporary, compression="zstd")

    def add(self, ids: np.ndarray, document: dict) -> None:
        """Append one delimited document, (tokens,) uint16, and its line in the sidecar."""
        self.file.write(ids.tobytes())
        self.tokens += len(ids)
        self.ends.append(self.tokens)
        for name in self.documents:
            self.documents[name].append(len(ids) if name == "tokens" else document[name])

    def account(self) -> list[dict]:
        """Documents, bytes and tokens of the shard by language, licence and collection."""
        sums = {}
        for row in zip(*(self.documents[name] for name in (*ACCOUNT, "bytes", "tokens")), strict=True):
            counts = sums.setdefault(row[: len(ACCOUNT)], [0, 0, 0])
            for i, amount in enumerate((1, *row[len(ACCOUNT) :])):
                counts[i] += amount
        return [
            dict(zip((*ACCOUNT, "documents", "bytes", "tokens"), (*key, *counts), strict=True))
            for key, counts in sorted(sums.items())
        ]


def origin(source: Path, share: float, config: ShardsConfig, facts: dict) -> dict:
    """What the shards of a corpus file are made from; `share` of its documents are validation."""
    validation = [share, config.validation_by]
    return {"source": source.name, "sha256": sha256(source), "tokenizer": facts["sha256"], "validation": validation}


def reusable(name: str, origin: dict, out: Path) -> dict | None:
    """The record of shards that an earlier build made of the same, if they are still there."""
    if not (path := out / "parts" / f"{name}.json").is_file():
        return None
    record = read_json(path)
    whole = all((out / file).is_file() for shard in record["shards"] for file in shard_files(shard))
    return record if whole and record["origin"] == origin else None


def shard_file(source: Path, name: str, origin: dict, config: ShardsConfig, facts: dict) -> dict:
    """Tokenise one corpus file into `train/NAME.ds` and `validation/NAME.LANGUAGE.ds`; the work of one process.

    Args:
        source: the corpus file.
        name: of its shards.
        origin: what they are made from.
        config: everything else.
        facts: of the tokenizer.

    Returns:
        The record of what was made, also on disk as `parts/NAME.json`, where a re-run finds it.
    """
    share, record_path = origin["validation"][0], config.out / "parts" / f"{name}.json"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    backend = Tokenizer.from_file(str(config.tokenizer / "tokenizer.json"))
    backend.encode_special_tokens = True  # "<|end_of_text|>" written in a document is text
    backend.no_truncation()
    columns = list(dict.fromkeys(["identifier", *ACCOUNT, config.validation_by, "text"]))
    writers: dict[tuple[str, str, str | None], ShardWriter] = {}  # by file, split and language
    with ExitStack() as stack:

        def writer(document: dict) -> ShardWriter:
            language = CODES.get(document["language"], document["language"])
            if in_validation_split(document[config.validation_by] or document["identifier"], share):
                key = f"validation/{name}.{quote(language, safe='')}.ds", "validation", language
            else:
                key = f"train/{name}.ds", "train", None
            if key not in writers:
                writers[key] = stack.enter_context(ShardWriter.create(config.out / key[0], facts))
            return writers[key]

        def flush(documents: list[dict]) -> None:
            encoded = backend.encode_batch_fast([document["text"] for document in documents], add_special_tokens=False)
            for document, encoding in zip(documents, encoded, strict=True):
                ids = np.asarray([facts["bos"], *encoding.ids, facts["eos"]], TOKEN)
                writer(document).add(ids, document)

        pending: list[dict] = []
        for document in read_documents(source, columns=columns):
            pending.append(checked(document, source))
            if len(pending) == BATCH_DOCUMENTS:
                flush(pending)
                pending = []
        if pending:
            flush(pending)
        # From here on files change, and what an earlier build says of them is no longer true.
        for account in (config.out / "manifest.json", record_path):
            account.unlink(missing_ok=True)
    shards = [
        {
            "file": file,
            "split": split,
            "language": language,
            "sha256": sha256(config.out / file),
            "tokens": one.tokens,
            "account": one.account(),
        }
        for (file, split, language), one in sorted(writers.items(), key=lambda item: item[0][0])
    ]
    record = {"origin": origin, "shards": shards}
    write_json(record_path, record)
    return record


def shard_all(
    todo: list[tuple[Path, str]], origins: dict[str, dict], config: ShardsConfig, facts: dict, *, workers: int
) -> dict[str, dict]:
    """The records, by name, of corpus files and the names of their shards; made in processes of their own."""
    records: dict[str, dict] = {}
    # Spawned, not forked: the caller may hold threads and locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=exit_with_parent) as pool:
        jobs = {pool.submit(shard_file, source, name, origins[name], config, facts): name for source, name in todo}
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="shards", unit="file"):
                records[jobs[job]] = job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is wrong is said now and not when the other files are done
            raise
    return records


def build(config: ShardsConfig) -> dict:
    """Corpus -> shards and manifest, on all CPUs; what an earlier run finished is kept.

    Returns:
        The content of manifest.json.

    Raises:
        InputError: when the corpus is empty or lacks a column, a document lacks a licence, the tokenizer cannot
            delimit or is too large, or a split comes out empty.
    """
    facts = tokenizer_facts(config.tokenizer)
    sources = {path: config.validation for path in corpus_files(config.corpus)}
    names = [str(path.relative_to(config.corpus).with_suffix("")).replace(os.sep, "-") for path in sources]
    if config.held_out:
        sources = dict.fromkeys(sources, 0.0) | dict.fromkeys(corpus_files(config.held_out), 1.0)
        names += [f"held_out-{path.stem}" for path in list(sources)[len(names) :]]
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise InputError(f"{config.corpus} has two files that would both become the shard {name}: rename one.")
    workers = min(config.workers or os.cpu_count(), len(sources))
    with ThreadPoolExecutor(workers) as pool:  # hashing lets go of the interpreter
        made_from = pool.map(lambda source: origin(source, sources[source], config, facts), sources)
    origins = dict(zip(names, made_from, strict=True))
    records = {name: reusable(name, one, config.out) for name, one in origins.items()}
    todo = [(source, name) for source, name in zip(sources, names, strict=True) if records[name] is None]
    if todo:
        records |= shard_all(todo, origins, config, facts, workers=min(workers, len(todo)))
    shards = [shard for name in names for shard in records[name]["shards"]]
    for split in SPLITS:
        if not any(shard["split"] == split for shard in shards):
            raise InputError(
                f"{config.corpus} gives no {split} document: use more text or another --validation share "
                f"than {config.validation}."
            )
    totals = Counter()
    for shard in shards:
        for row in shard["account"]:
            key = (shard["split"], *(row[column] for column in ACCOUNT))
            for measure in ("documents", "bytes", "tokens"):
                totals[(*key, measure)] += row[measure]
    keys = sorted({key[:-1] for key in totals})
    manifest = {
        "tokenizer": facts,
        "dtype": "uint16",
        "validation": {"share": config.validation, "by": config.validation_by}
        if config.held_out is None
        else {"folder": str(config.held_out)},
        "shards": shards,
        "account": [
            dict(zip(("split", *ACCOUNT), key, strict=True))
            | {measure: totals[(*key, measure)] for measure in ("documents", "bytes", "tokens")}
            for key in keys
        ],
        "corpus": {
            "files": [records[name]["origin"] for name in names],
            **{
                kind: read_json(config.corpus / f"{kind}.json") if (config.corpus / f"{kind}.json").is_file() else None
                for kind in ("sources", "curation")
            },
        },
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "fingerprint": fingerprint([facts["sha256"], [[shard["file"], shard["sha256"]] for shard in shards]]),
    }
    path = config.out / "manifest.json"
    earlier = read_json(path) if path.is_file() else None
    if earlier and earlier == manifest | {"command": earlier["command"]}:
        manifest = earlier  # made by that command, not by this one
    else:
        write_json(path, manifest)
    # What a larger corpus or a killed build left would be read by who reads the folder without the manifest.
    current = {config.out / file for shard in shards for file in shard_files(shard)}
    for split in SPLITS:
        for file in set((config.out / split).glob("*.ds*")) - current:
            file.unlink()
    return manifest


def main() -> None:
    """`python -m training.shards`."""
    config = parse(ShardsConfig, description="Turn a corpus into token shards with a manifest.")
    manifest = build(config)
    for row in manifest["account"]:
        columns = f"{row['split']:10} {row['language']:12} {row['license']:24} {row['collection']:24}"
        print(f"{columns} {row['tokens']:>14,}")
    print(f"wrote {config.out / 'manifest.json'}")


if __name__ == "__main__":
    program(main)
