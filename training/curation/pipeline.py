"""Corpus -> curated corpus: the stages, in order, as one executable list; and what a re-run may leave alone."""

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

WORK = ".curation"  # in the output folder; hidden, so no part of the corpus
CACHE = "cache"  # in it: answers of the endpoint, of use to the next run too
HALVES = ("select", "finish")  # of the pipeline: before and after duplicates are known


@dataclass
class CurationConfig:
    """What is kept, what is changed, and where it runs.

    Args:
        out: folder of the curated corpus: Parquet files named as those of the input, dropped/, curation.json and
            curation.md.
        corpus: folder of Parquet files with Common Corpus columns; `--in` on the command line.
        edition: base leaves out what the annealing corpus takes up: text behind a content warning, and rewritten text.
        languages: ISO codes among en fr es de it nl la pt; all eight when not given. Other text, code included, goes.
        lines: mend hyphenation at line ends, running heads and page numbers.
        page_break: what a form feed becomes, such as the tokenizer's <|page_break|>; it stays when not given.
        ocr_threshold: least OCR quality from 0 to 1; the one that was calibrated when not given, 0 for none.
        pii: replace personal data with fictitious values.
        seed: of the fictitious values.
        toxicity: the scorer: lexicon, or a Celadon checkpoint by Hub name or folder; none when empty.
        policy: what is done with toxic text: tox (Toxicity of the Commons), card (the model card) or drop.
        device: of a neural scorer.
        endpoint: a language model that rewrites and warns; without it, text that needs it is dropped.
        max_megabytes: of a document; a longer one is dropped.
        on_error: drop what cannot be read or breaks a block, by name and reason, or stop with a sentence about it.
        executor: local processes, slurm or ray.
        workers: tasks (files) at a time; one per CPU when not given. With one, all is done in this process.
        options: for datatrove's Slurm or Ray executor, for example {partition: cpu, time: "24:00:00"}.
        explain: tell the story of the document with this identifier, and do nothing else.
    """

    out: Path
    corpus: Path | None = None
    edition: Literal["base", "annealing"] = "base"
    languages: list[str] | None = None
    lines: bool = True
    page_break: str | None = None
    ocr_threshold: float | None = None
    pii: bool = True
    seed: int = 1281
    toxicity: str = "lexicon"
    policy: Literal["tox", "card", "drop"] = "tox"
    device: str = "cpu"
    endpoint: Endpoint | None = None
    max_megabytes: float = 50
    on_error: Literal["drop", "stop"] = "drop"
    executor: executors.Kind = "local"
    workers: int | None = None
    options: dict = field(default_factory=dict)
    explain: str | None = None


WHERE = ("out", "corpus", "executor", "workers", "options", "explain", "device")  # decides nothing about the content


def stages(config: CurationConfig, files: list[str], publish: Publish) -> list[Stage]:
    """The pipeline."""
    work, lost, on_error = config.out / WORK, config.out / WORK / "lost", config.on_error
    selected, signatures, matches, clusters, kept = (
        work / name for name in ("selected", "signatures", "matches", "clusters", "kept")
    )
    corpus = config.corpus if config.corpus.is_dir() else config.corpus.parent
    dropped = [work / "dropped" / half for half in HALVES]
    select = [
        Read(corpus, files, lost, max_megabytes=config.max_megabytes, on_error=on_error),
        Licence(on_error),
        Language(checked_languages(config.languages), on_error),
        *([Lines(config.page_break, on_error)] if config.lines else []),
        Ocr(config.ocr_threshold, on_error),
        Part(selected, dropped[0], files, with_digest=True),
        Sign(signatures),
    ]
    finish = [
        ReadSelected(selected, files, lost, clusters),
        *([Pii(config.seed, on_error)] if config.pii else []),
        *(
            [
                Toxicity(
                    config.toxicity,
                    device=config.device,
                    policy=config.policy,
                    edition=config.edition,
                    endpoint=config.endpoint,
                    cache=work / CACHE,
                    on_error=on_error,
                )
            ]
            if config.toxicity
            else []
        ),
        Part(kept, dropped[1], files),
        Count(corpus, kept, dropped, files, lost, work / "counts"),
    ]
    buffered = {"config": MINHASH, "lines_to_buffer": 1000}
    return [
        Stage("select", select, len(files)),
        Stage("match", [MinhashDedupBuckets(str(signatures), str(matches), **buffered)], MINHASH.num_buckets),
        Stage(
            "cluster",
            [
                MinhashDedupCluster(str(matches), str(clusters), save_cluster_id=True, **buffered),
                Originals(clusters, [selected / name for name in files]),
            ],
            1,
        ),
        Stage("finish", finish, len(files)),
        Stage("publish", [publish], 1),
    ]


def curate(config: CurationConfig) -> dict | None:
    """Curate a corpus; what an earlier run with the same settings and input completed is kept.

    Returns:
        The content of curation.json; None when the work was handed to Slurm.

    Raises:
        InputError: on bad input, or when nothing was kept.
    """
    paths = corpus_files(config.corpus)
    base = config.corpus if config.corpus.is_dir() else config.corpus.parent
    files = [str(path.relative_to(base)) for path in paths]
    check_output(config, base)
    settings = {name: value for name, value in asdict(config).items() if name not in WHERE}
    stats = [path.stat() for path in paths]
    stamp = {
        "settings": settings,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(files, stats, strict=True)],
    }
    key, done = fingerprint(stamp), config.out / "curation.json"
    if done.is_file() and (content := read_json(done)).get("fingerprint") == key and whole(config.out, content):
        return content
    work = config.out / WORK
    begin(work, stamp, done.is_file())
    publish = Publish(work, config.out, config.corpus, settings=settings, fingerprint=key, halves=HALVES)
    ended = executors.run(
        stages(config, files, publish),
        work / "logs",
        executor=config.executor,
        workers=config.workers,
        options=config.options,
        give_up=partial(give_up, work / "lost", files) if config.on_error == "drop" else None,
    )
    if not ended:
        return None
    content = read_json(done)
    if not content["kept"]["documents"]:
        raise InputError(f"{config.corpus} gives no document to train on: {config.out / 'curation.md'} says why.")
    return content


def begin(work: Path, stamp: dict, done: bool) -> None:
    """Keep the work of a run that was cut short if it was the same run; else say what is different and start anew."""
    path = work / "run.json"
    if path.is_file():
        earlier = read_json(path)
        finished = done or (work / "logs" / "publish" / "completions" / "00000").is_file()
        if earlier == stamp and not finished:
            return
        before, now = earlier["settings"], stamp["settings"]
        different = [name for name in now if before.get(name) != now[name]]
        if not different:
            different = ["the files of the curated corpus" if earlier == stamp else "the files of the corpus"]
        print(f"{work.parent}: {', '.join(different)} changed: starting anew.", file=sys.stderr)
    for old in work.iterdir() if work.is_dir() else ():
        if old.is_file():
            old.unlink()
        elif old.name != CACHE:
            shutil.rmtree(old)
    write_json(path, stamp)


def whole(out: Path, content: dict) -> bool:
    """Whether the files that an account speaks of are there."""
    return all((out / name).is_file() for name in content["kept_files"])


def check_output(config: CurationConfig, base: Path) -> None:
    """Refuse to write into the corpus that is read, or over Parquet files that are not of this program's making."""
    out = config.out.resolve()
    if out == base.resolve() or base.resolve() in out.parents:
        raise InputError(f"--out {config.out} lies in the corpus that is read: choose another folder.")
    ours = (config.out / "curation.json").is_file() or (config.out / WORK).is_dir()
    if not ours and config.out.is_dir() and (foreign := next(config.out.rglob("*.parquet"), None)):
        raise InputError(f"{foreign} is not of this program's making: choose another folder for --out.")


def give_up(lost: Path, files: list[str], rank: int) -> None:
    """Drop the file of a task that keeps killing its worker."""
    if rank < len(files):
        lose(lost, rank, files[rank], "its worker was killed twice (out of memory?)")
