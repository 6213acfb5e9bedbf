"""Stages of the pipeline in order, and which work of an earlier run is reused."""

import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

from ..common.config import InputError
from ..common.files import are_unchanged, fingerprint, inside, lock_folder, read_json, write_json
from ..data.documents import checked_languages, corpus_files, note_casts
from . import executors
from .deduplication import CONFIG as MINHASH
from .deduplication import DuplicateOriginals, MinhashSignature
from .executors import Stage
from .parquet_steps import CorpusReader, KeptDroppedWriter, ReadSelected, drop_file
from .pipeline_blocks import CACHE, LanguageFilter, LicenceFilter, LineRepair, OcrFilter, PiiReplacer, ToxicityFilter
from .recipe import EXECUTION, CurationConfig
from .statistics import CountStep, PublishStep


def stages(config: CurationConfig, files: list[str], publish: PublishStep) -> list[Stage]:
    """Return the stages of the pipeline over input files."""
    signatures, matches, clusters = (str(config.work / name) for name in ("signatures", "matches", "clusters"))
    buffered = {"config": MINHASH, "lines_to_buffer": 1000}
    select = [
        CorpusReader(config, files),
        LicenceFilter(config),
        LanguageFilter(config),
        *([LineRepair(config)] if config.repair_lines else []),
        OcrFilter(config),
        KeptDroppedWriter(config, files, "select"),
        MinhashSignature(signatures),
    ]
    cluster = [
        MinhashDedupCluster(matches, clusters, save_cluster_id=True, **buffered),
        DuplicateOriginals(config.work / "clusters", [config.work / "selected" / name for name in files]),
    ]
    finish = [
        ReadSelected(config, files),
        *([PiiReplacer(config)] if config.pii else []),
        *([ToxicityFilter(config)] if config.toxicity else []),
        KeptDroppedWriter(config, files, "finish"),
        CountStep(config, files),
    ]
    return [
        Stage("select", select, len(files)),
        Stage("match", [MinhashDedupBuckets(signatures, matches, **buffered)], MINHASH.num_buckets),
        Stage("cluster", cluster, 1),
        Stage("finish", finish, len(files)),
        Stage("publish", [publish], 1),
    ]


def curate(config: CurationConfig) -> dict | None:
    """Curate a corpus; reuse what an earlier run with the same settings and input completed.

    Returns:
        The content of curation.json, or None if the jobs were submitted to Slurm.

    Raises:
        InputError: If the input is invalid, or no document was kept.
    """
    paths = corpus_files(config.corpus)
    files = [str(path.relative_to(config.folder)) for path in paths]
    check_output(config)
    checked_languages(config.languages)
    if config.endpoint:
        config.endpoint.check_address()
    settings = {name: value for name, value in asdict(config).items() if name not in EXECUTION}
    stats = [path.stat() for path in paths]
    stamp = {
        "settings": settings,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(files, stats, strict=True)],
    }
    key, result = fingerprint(stamp), config.out / "curation.json"
    if result.is_file() and (content := read_json(result)).get("fingerprint") == key:
        # curation.json of an earlier version has no hashes.
        if are_unchanged(config.out, content.get("sha256", {})) and all(
            inside(config.out, name).is_file() for name in content["kept_files"]
        ):
            return content
    with lock_folder(config.out):
        return _curate(config, files, stamp)


def _curate(config: CurationConfig, files: list[str], stamp: dict) -> dict | None:
    """Write the result into a locked folder; see `curate`."""
    key, result = fingerprint(stamp), config.out / "curation.json"
    resume_or_clear(config.work, stamp, result.is_file() and read_json(result).get("fingerprint") == key)
    for name in files:
        with suppress(InputError, OSError):  # the file is dropped, or stops the run, when it is read
            note_casts([config.folder / name])
    publish = PublishStep(config, settings=stamp["settings"], fingerprint=key)
    give_up = partial(drop_killer, config, files) if config.on_error == "drop" else None
    if not executors.run(stages(config, files, publish), config, give_up=give_up):
        return None
    content = read_json(result)
    if not content["kept"]["documents"]:
        raise InputError(f"No document of {config.corpus} was kept: {config.out / 'curation.md'} lists the reasons.")
    return content


def resume_or_clear(work: Path, stamp: dict, published: bool) -> None:
    """Keep the work of an interrupted run with the same stamp; otherwise report what changed and clear the folder."""
    path = work / "run.json"
    if path.is_file():
        earlier = read_json(path)
        if earlier == stamp and not (published or (work / "logs" / "publish" / "completions" / "00000").is_file()):
            return
        before, now = earlier["settings"], stamp["settings"]
        changes = [name for name in now if before.get(name) != now[name]]
        if not changes:
            changes = ["the files of the curated corpus" if earlier == stamp else "the files of the corpus"]
        print(f"{work.parent}: {', '.join(changes)} changed: starting from scratch.", file=sys.stderr)
    for old in work.iterdir() if work.is_dir() else ():
        if old.is_file():
            old.unlink()
        elif old.name != CACHE:
            shutil.rmtree(old)
    write_json(path, stamp)


def check_output(config: CurationConfig) -> None:
    """Refuse to write into the input corpus, or over Parquet files that this program did not write."""
    out, corpus = config.out.resolve(), config.folder.resolve()
    if out == corpus or corpus in out.parents:
        raise InputError(f"--out {config.out} is inside the input corpus: choose another folder.")
    if (config.out / "curation.json").is_file() or config.work.is_dir():
        return
    if foreign := next(config.out.rglob("*.parquet"), None):
        raise InputError(f"{foreign} was not written by this program: choose another folder for --out.")


def drop_killer(config: CurationConfig, files: list[str], rank: int) -> None:
    """Drop the file of a task that repeatedly kills its worker."""
    if rank < len(files):
        drop_file(config, rank, files[rank], "its worker was killed twice (out of memory?)")
