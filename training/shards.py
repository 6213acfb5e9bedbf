"""Tokenise a corpus into shards in datatrove's format, with a manifest that counts every token.

training/data/shard_files.py describes the files of a shard. New shards are in `.unfinished/` of the output folder
until all are complete: until then an earlier build remains, and a killed one resumes from there.
"""

if not __package__:  # run by path; same as `python -m training.shards`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from .common.config import InputError, parse, run_main
from .common.escaping import mask_passwords, shell_line, terminal_line
from .common.files import UNFINISHED, lock_folder, move_files, read_json, sha256, write_json
from .common.language import CODES
from .common.processes import SpawnProcessPoolExecutor
from .data.documents import corpus_files, corpus_root, note_casts, read_rows
from .data.licences import spdx_name
from .data.shard_files import (
    GROUP_COLUMNS,
    SIDECARS,
    SPLITS,
    TOKEN,
    ShardReader,
    ShardWriter,
    count_documents,
    count_sources,
    load_tokenizer,
    manifest_fingerprint,
    shard_files,
    sum_counts,
    tokenizer_facts,
    validate_document,
)
from .data.source_names import default_source
from .data.split import in_validation_split, register

BATCH_DOCUMENTS, BATCH_BYTES = 256, 8_000_000  # maximum to tokenise at a time, but at least one document


@dataclass
class ShardsConfig:
    """Corpus, tokenizer and output folder of token shards.

    Args:
        corpus: Parquet file, or folder of Parquet files, with Common Corpus columns.
        tokenizer: Folder with tokenizer.json and tokenizer_config.json; vocabulary size at most 65,536.
        out: Folder for the shards and manifest.json.
        validation_share: Share of the documents held out for validation, selected by a hash.
        validation_by: Column that is hashed: identifier, or creator to hold out complete authors.
        validation_corpus: Corpus folder with the validation text, instead of a share (training.mixture writes one).
        workers: Number of processes. Default: one per CPU. The result does not depend on it.
    """

    corpus: Path
    tokenizer: Path
    out: Path
    validation_share: float = 0.01
    validation_by: Literal["identifier", "creator"] = "identifier"
    validation_corpus: Path | None = None
    workers: int | None = None


def shard_provenance(source: Path, share: float, config: ShardsConfig, facts: dict) -> dict:
    """Describe what the shards of a corpus file are built from; `share` of its documents are validation text."""
    validation = [share, config.validation_by]
    return {"source": source.name, "sha256": sha256(source), "tokenizer": facts["sha256"], "validation": validation}


def reusable(name: str, origin: dict, out: Path) -> dict | None:
    """Return the record of the shards that an earlier build wrote from the same input, unless their files changed."""
    if not (path := out / "parts" / f"{name}.json").is_file():
        return None
    record = read_json(path)
    valid = record["origin"] == origin and all(is_unchanged(shard, out) for shard in record["shards"])
    return record if valid else None


def is_unchanged(shard: dict, out: Path) -> bool:
    """Return whether the files of a shard are those of its record, and its statistics those of its documents."""
    reader = ShardReader(out, shard)
    if not all((out / file).is_file() for file in shard_files(shard)) or sha256(reader.path) != shard["sha256"]:
        return False
    try:
        for suffix in SIDECARS:
            reader.verify_sidecar(out / (shard["file"] + suffix))
        documents = reader.documents().to_pydict()
        counts = {"account": count_documents(documents), "by_source": count_sources(documents)}
        return all(shard.get(name, count) == count for name, count in counts.items())
    except InputError:
        return False


def shard_file(source: Path, name: str, origin: dict, config: ShardsConfig, facts: dict) -> dict:
    """Tokenise one corpus file into `train/NAME.ds` and `validation/NAME.LANGUAGE.ds`, in a worker process.

    Args:
        source: Corpus file.
        name: Name of its shards.
        origin: What they are built from.
        config: All other settings.
        facts: Facts of the tokenizer.

    Returns:
        The record of the shards, also written to `parts/NAME.json`, where the next build finds it.
    """
    share = origin["validation"][0]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the worker processes already use every CPU
    backend = load_tokenizer(config.tokenizer / "tokenizer.json")
    backend.encode_special_tokens = True  # "<|end_of_text|>" written in a document is text
    columns = ["identifier", *GROUP_COLUMNS, config.validation_by, "open_type", "language_type", "text"]
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
                writer(document).add(ids, document | {"register": register(document)})

        pending: list[dict] = []
        for document in read_rows(source, dict.fromkeys(columns)):
            pending.append(validate_document(document, source))
            if len(pending) == BATCH_DOCUMENTS or sum(document["bytes"] for document in pending) >= BATCH_BYTES:
                flush(pending)
                pending = []
        if pending:
            flush(pending)
    shards = [
        {
            "file": file,
            "split": split,
            "language": language,
            "sha256": sha256(config.out / file),
            "tokens": shard.tokens,
            "sidecars": {suffix: sha256(config.out / (file + suffix)) for suffix in SIDECARS},
            "account": count_documents(shard.documents),
            "by_source": count_sources(shard.documents),
        }
        for (file, split, language), shard in sorted(writers.items(), key=lambda item: item[0][0])
    ]
    record = {"origin": origin, "shards": shards}
    write_json(config.out / "parts" / f"{name}.json", record)
    return record


def shard_all(
    todo: list[tuple[Path, str]], origins: dict[str, dict], config: ShardsConfig, facts: dict, *, workers: int
) -> dict[str, dict]:
    """Build the shards of (corpus file, name) pairs in worker processes and return their records by name."""
    records: dict[str, dict] = {}
    with SpawnProcessPoolExecutor(workers) as pool:
        jobs = {pool.submit(shard_file, source, name, origins[name], config, facts): name for source, name in todo}
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="shards", unit="file"):
            records[jobs[job]] = job.result()
    return records


def build_shards(config: ShardsConfig) -> dict:
    """Build the shards and the manifest of a corpus on all CPUs; shards that an earlier run completed are kept.

    Returns:
        The content of manifest.json.

    Raises:
        InputError: If the corpus is empty or lacks a column, a document has no open licence, the tokenizer has no
            delimiters or is too large, or a split is empty.
    """
    facts, root = tokenizer_facts(config.tokenizer), corpus_root(config.corpus)
    sources = {path: config.validation_share for path in corpus_files(config.corpus)}
    names = [str(path.relative_to(root).with_suffix("")).replace(os.sep, "-") for path in sources]
    if config.validation_corpus:
        sources = dict.fromkeys(sources, 0.0) | dict.fromkeys(corpus_files(config.validation_corpus), 1.0)
        names += [f"held_out-{path.stem}" for path in list(sources)[len(names) :]]
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise InputError(f"{config.corpus} has two files for the same shard {name}: rename one of them.")
    workers = min(config.workers or os.cpu_count(), len(sources))
    with ThreadPoolExecutor(workers) as pool:  # hashing releases the interpreter lock
        results = pool.map(lambda source: shard_provenance(source, sources[source], config, facts), sources)
    origins = dict(zip(names, results, strict=True))
    if (manifest := _written_manifest(config, origins, facts)) is not None:
        return manifest
    unfinished = config.out / UNFINISHED
    with lock_folder(config.out):
        records = _reusable_records(origins, config.out)
        records |= _resume(unfinished, {name: origins[name] for name, record in records.items() if record is None})
        todo = [(source, name) for source, name in zip(sources, names, strict=True) if records[name] is None]
        if todo:
            note_casts(source for source, _ in todo)
            building = replace(config, out=unfinished)
            records |= shard_all(todo, origins, building, facts, workers=min(workers, len(todo)))
        manifest = _manifest(config, records, facts)
        write_json(unfinished / "manifest.json", manifest)
        move_files(unfinished, config.out, "manifest.json", stale=_stale_files(config.out, manifest))
        shutil.rmtree(unfinished)
    return manifest


def _resume(unfinished: Path, origins: dict[str, dict]) -> dict[str, dict | None]:
    """Return the records of shards that an interrupted build completed, and remove its other files."""
    records = _reusable_records(origins, unfinished)
    shards = [shard for record in records.values() if record for shard in record["shards"]]
    current = {unfinished / file for shard in shards for file in shard_files(shard)}
    current |= {unfinished / "parts" / f"{name}.json" for name, record in records.items() if record}
    for path in list(unfinished.rglob("*")):
        if path.is_file() and path not in current:
            path.unlink()
    return records


def _reusable_records(origins: dict[str, dict], out: Path) -> dict[str, dict | None]:
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return dict(zip(origins, pool.map(lambda name: reusable(name, origins[name], out), origins), strict=True))


def _written_manifest(config: ShardsConfig, origins: dict[str, dict], facts: dict) -> dict | None:
    """Return the manifest of an earlier build if nothing must be written, so that no lock is needed."""
    path, records = config.out / "manifest.json", _reusable_records(origins, config.out)
    if None in records.values() or not path.is_file() or (config.out / UNFINISHED).exists():
        return None
    manifest = _manifest(config, records, facts)
    return manifest if read_json(path) == manifest and not _stale_files(config.out, manifest) else None


def _stale_files(out: Path, manifest: dict) -> set[Path]:
    """Return shards of a larger corpus or a killed build: programs that ignore the manifest would read them."""
    current = {out / file for shard in manifest["shards"] for file in shard_files(shard)}
    return {file for split in SPLITS for file in (out / split).glob("*.ds*")} - current


def _manifest(config: ShardsConfig, records: dict[str, dict], facts: dict) -> dict:
    """Return the manifest of complete records; the earlier one, with the command that built it, if it is the same.

    Raises:
        InputError: If a split is empty.
    """
    root = corpus_root(config.corpus)
    shards = [shard for record in records.values() for shard in record["shards"]]
    for split in SPLITS:
        if not any(shard["split"] == split for shard in shards):
            raise InputError(
                f"{config.corpus} has no {split} document: use more text or another --validation_share than "
                f"{config.validation_share}."
            )
    rows = ({"split": shard["split"], **row} for shard in shards for row in shard["account"])
    counted = all("by_source" in shard for shard in shards)  # not in shards of an earlier version
    manifest = {
        "tokenizer": facts,
        "dtype": "uint16",
        "validation": {"share": config.validation_share, "by": config.validation_by}
        if config.validation_corpus is None
        else {"folder": str(config.validation_corpus)},
        "shards": shards,
        "account": sum_counts(rows, ("split", *GROUP_COLUMNS)),
        **({"by_source": sum_sources(shards, str(default_source(root)))} if counted else {}),
        "corpus": {
            "files": [record["origin"] for record in records.values()],
            **{
                kind: mask_passwords(read_json(path)) if (path := root / f"{kind}.json").is_file() else None
                for kind in ("sources", "curation")
            },
        },
        "command": shell_line(["python", *sys.orig_argv[1:]]),
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    path = config.out / "manifest.json"
    earlier = read_json(path) if path.is_file() else None
    return earlier if earlier and earlier == manifest | {"command": earlier["command"]} else manifest


def sum_sources(shards: list[dict], unnamed: str) -> list[dict]:
    """Return the `by_source` of a manifest: documents, bytes and tokens by source, split and licence.

    Args:
        shards: Records of shards. Their licences are labels of the corpus, which become `label`; `license` is the SPDX
            expression.
        unnamed: Source of the documents whose identifiers name none.
    """
    rows = [
        {
            **row,
            **{"split": shard["split"], "source": row["source"] or unnamed},
            **{"license": spdx_name(row["license"]), "label": row["license"]},
        }
        for shard in shards
        for row in shard["by_source"]
    ]
    return sum_counts(rows, ("source", "split", "license", "label"))


def main() -> None:
    """Run `python -m training.shards`."""
    config = parse(ShardsConfig, description="Tokenise a corpus into shards with a manifest.")
    manifest = build_shards(config)
    for row in manifest["account"]:
        names = {column: terminal_line(row[column]) for column in ("split", *GROUP_COLUMNS)}
        print("{split:10} {language:12} {license:24} {collection:24}".format(**names), f"{row['tokens']:>14,}")
    print(f"wrote {config.out / 'manifest.json'}")


if __name__ == "__main__":
    run_main(main)
