"""Stages of the pipeline in order, and which work of an earlier run is reused."""

import shutil
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

from ..config import InputError
from ..data.documents import checked_languages, corpus_files
from ..files import fingerprint, read_json, write_json
from . import executors
from .account import Count, Publish
from .adapters import Language, Licence, Lines, Ocr, Pii, Toxicity
from .blocks import Part, Read, ReadSelected, lose
from .duplicates import CONFIG as MINHASH
from .duplicates import Originals, Sign
from .executors import Stage
from .rewriting import Endpoint

WORK = ".curation"  # in the output folder; hidden folders are not part of a corpus
CACHE = "cache"  # in WORK: responses of the endpoint, which later runs reuse
HALVES = ("select", "finish")  # stages before and after duplicates are known


@dataclass
class CurationConfig:
    """Input, output, filters and execution.

    Args:
        out: Folder of the curated corpus: Parquet files named like those of the input, dropped/, curation.json and
            curation.md.
        corpus: Folder of Parquet files with Common Corpus columns. --in is the same option.
        corpus_stage: base, or annealing. The annealing corpus also keeps toxic text that --endpoint rewrote or put
            behind a content warning; the base corpus drops it.
        languages: ISO codes of the languages to keep, among en fr es de it nl la pt. Text in other languages, and
            source code, is dropped. Default: all eight.
        repair_lines: Join words that are hyphenated at line ends, and remove running heads and page numbers.
        page_break: Replacement for form feeds, such as the tokenizer's <|page_break|>. Default: keep form feeds.
        ocr_threshold: Minimum OCR quality, from 0 to 1; 0 keeps everything. Default: the calibrated threshold.
        pii: Replace personal data with fictitious values.
        toxicity: Toxicity scorer: lexicon (offline), or a Celadon checkpoint by Hub name or folder. Empty: no filter.
        policy: Action in the annealing corpus. tox (paper): warn before mildly toxic text, rewrite toxic text. card
            (model card): rewrite mildly toxic text, drop toxic text. drop: drop both. The base corpus drops both.
        device: Device of a Celadon scorer.
        endpoint: Language model that rewrites toxic text and writes content warnings. Default: none, and text that
            needs one is dropped.
        max_megabytes: Maximum size of a document in MB. Larger ones are dropped.
        on_error: drop: record unreadable files and documents with the reason, and continue. stop: end the run with
            a one-line message.
        executor: Where tasks run: in local processes, on Slurm or on Ray.
        workers: Number of tasks (files) that run at the same time; 1 runs everything in this process. Default: one per
            CPU.
        executor_options: Arguments of datatrove's Slurm or Ray executor, such as {partition: cpu, time: "24:00:00"}.
            Slurm requires these two.
        explain: Identifier of a document in --out. Only print what each step found, and why the document was kept
            or dropped.
    """

    out: Path
    corpus: Path | None = None
    corpus_stage: Literal["base", "annealing"] = "base"
    languages: list[str] | None = None
    repair_lines: bool = True
    page_break: str | None = None
    ocr_threshold: float | None = None
    pii: bool = True
    toxicity: str = "lexicon"
    policy: Literal["tox", "card", "drop"] = "tox"
    device: str = "cpu"
    endpoint: Endpoint | None = None
    max_megabytes: float = 50
    on_error: Literal["drop", "stop"] = "drop"
    executor: executors.Kind = "local"
    workers: int | None = None
    executor_options: dict = field(default_factory=dict)
    explain: str | None = None


# Options that do not change the result.
EXECUTION = ("out", "corpus", "executor", "workers", "executor_options", "explain", "device")


def stages(config: CurationConfig, corpus: Path, files: list[str], publish: Publish) -> list[Stage]:
    """Return the stages of the pipeline over `files` in the folder `corpus`."""
    work, on_error = config.out / WORK, config.on_error
    drop_records, selected, signatures, matches, clusters, kept = (
        work / name for name in ("drop_records", "selected", "signatures", "matches", "clusters", "kept")
    )
    dropped = [work / "dropped" / half for half in HALVES]
    select = [
        Read(corpus, files, drop_records, max_megabytes=config.max_megabytes, on_error=on_error),
        Licence(on_error),
        Language(checked_languages(config.languages), on_error),
        *([Lines(config.page_break, on_error)] if config.repair_lines else []),
        Ocr(config.ocr_threshold, on_error),
        Part(selected, dropped[0], files, with_digest=True),
        Sign(signatures),
    ]
    finish = [ReadSelected(selected, files, drop_records, clusters)]
    if config.pii:
        finish.append(Pii(on_error))
    if config.toxicity:
        finish.append(
            Toxicity(
                config.toxicity,
                device=config.device,
                policy=config.policy,
                corpus_stage=config.corpus_stage,
                endpoint=config.endpoint,
                cache=work / CACHE,
                on_error=on_error,
            )
        )
    finish.append(Part(kept, dropped[1], files))
    finish.append(Count(corpus, kept, dropped, files, drop_records, work / "counts"))
    buffered = {"config": MINHASH, "lines_to_buffer": 1000}
    cluster = MinhashDedupCluster(str(matches), str(clusters), save_cluster_id=True, **buffered)
    return [
        Stage("select", select, len(files)),
        Stage("match", [MinhashDedupBuckets(str(signatures), str(matches), **buffered)], MINHASH.num_buckets),
        Stage("cluster", [cluster, Originals(clusters, [selected / name for name in files])], 1),
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
    corpus = config.corpus if config.corpus.is_dir() else config.corpus.parent
    files = [str(path.relative_to(corpus)) for path in paths]
    check_output(config, corpus)
    settings = {name: value for name, value in asdict(config).items() if name not in EXECUTION}
    stats = [path.stat() for path in paths]
    stamp = {
        "settings": settings,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(files, stats, strict=True)],
    }
    key, result = fingerprint(stamp), config.out / "curation.json"
    if result.is_file() and (content := read_json(result)).get("fingerprint") == key:
        if all((config.out / name).is_file() for name in content["kept_files"]):
            return content
    work = config.out / WORK
    resume_or_clear(work, stamp, result.is_file())
    publish = Publish(work, config.out, corpus, settings=settings, fingerprint=key, halves=HALVES)
    finished = executors.run(
        stages(config, corpus, files, publish),
        work / "logs",
        executor=config.executor,
        workers=config.workers,
        executor_options=config.executor_options,
        give_up=partial(give_up, work / "drop_records", files) if config.on_error == "drop" else None,
    )
    if not finished:
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


def check_output(config: CurationConfig, corpus: Path) -> None:
    """Refuse to write into the input corpus, or over Parquet files that this program did not write."""
    out = config.out.resolve()
    if out == corpus.resolve() or corpus.resolve() in out.parents:
        raise InputError(f"--out {config.out} is inside the input corpus: choose another folder.")
    if (config.out / "curation.json").is_file() or (config.out / WORK).is_dir() or not config.out.is_dir():
        return
    if foreign := next(config.out.rglob("*.parquet"), None):
        raise InputError(f"{foreign} was not written by this program: choose another folder for --out.")


def give_up(drop_records: Path, files: list[str], rank: int) -> None:
    """Drop the file of a task that repeatedly kills its worker."""
    if rank < len(files):
        lose(drop_records, rank, files[rank], "its worker was killed twice (out of memory?)")
