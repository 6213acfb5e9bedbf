"""Stages of the pipeline in order, and which work of an earlier run is reused."""

import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

from ..common.config import InputError
from ..common.files import are_unchanged, fingerprint, inside, lock_folder, read_json, sha256, write_json
from ..data.documents import checked_languages, corpus_files, note_casts
from ..tasks.ocr import corrector
from . import executors
from .deduplication import CONFIG as MINHASH
from .deduplication import DuplicateOriginals, MinhashSignature
from .executors import Stage
from .parquet_steps import CorpusReader, KeptDroppedWriter, ReadSelected, drop_file
from .pipeline_blocks import (
    CACHE,
    LanguageFilter,
    LicenceFilter,
    LineRepair,
    OcrCorrector,
    OcrFilter,
    PiiReplacer,
    ToxicityFilter,
)
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
        # After the OCR filter, whose threshold is for text as it was read: 14 of 21 pages that correction would lift
        # over it still have more than 10% wrong characters (training.bench.ocr_correction_band). After duplicates,
        # which need no correction, and personal data, which the record of the changes would keep. Before the toxicity
        # filter, which finds more in corrected text.
        *([OcrCorrector(config)] if config.ocr_correction else []),
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
    if config.ocr_correction:
        settings["ocr_corrector"] = corrector_fingerprint(config)
    else:  # a result of a version without this block stays valid
        del settings["ocr_correction"], settings["ocr_correction_band"]
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
    if not executors.run_stages(stages(config, files, publish), config, give_up=give_up):
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


def corrector_fingerprint(config: CurationConfig) -> str:
    """Return the hash of the files of the OCR corrector.

    Raises:
        InputError: If a file is missing, or the band is none.
    """
    band = config.ocr_correction_band
    if len(band) != 2 or not 0 <= band[0] <= band[1] <= 1:
        raise InputError(
            f"--ocr_correction_band {band} must be a minimum and a maximum from 0 to 1, such as [0.85, 0.98]."
        )
    folder = corrector.PACKAGED
    learned = corrector.Corrector.load(folder).languages
    if missing := [language for language in checked_languages(config.languages) if language not in learned]:
        raise InputError(
            f"The OCR corrector in {folder} has not learned {', '.join(missing)}: set --languages or --ocr_correction."
        )
    return fingerprint({path.name: sha256(path) for path in folder.iterdir() if path.is_file()})


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
