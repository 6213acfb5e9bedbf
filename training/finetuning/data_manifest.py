"""RUN/manifests/: what a run was fine-tuned on, in the form of a shard manifest, from which cards are written."""

import re
import sys
from pathlib import Path

from ..common.escaping import mask_passwords, shell_line
from ..common.files import fingerprint, read_json, write_json
from ..data.licences import decide
from ..data.shard_files import GROUP_COLUMNS, manifest_fingerprint, read_manifest, tokenizer_facts
from .examples import Examples

MEASURES = ("documents", "bytes", "tokens")
LISTED = 40  # maximum number of sources that are listed one by one


def fingerprint_of(examples: Examples) -> str:
    """Return the hash that identifies examples."""
    return fingerprint(examples.input_ids)


def build_manifest(
    train: Examples, held_out: Examples | None, tokenizer_folder: Path, *, path: Path | None = None
) -> dict:
    """Return the manifest of examples.

    Args:
        train: Training examples.
        held_out: Examples of the final comparison.
        tokenizer_folder: Folder with tokenizer.json.
        path: Corpus or shards that the examples were sampled from, whose sources and curation are copied. Defaults to
            the sources of the examples themselves.
    """
    splits = {"train": train} | ({"validation": held_out} if held_out else {})
    rows = [
        {"split": split, **dict(zip(GROUP_COLUMNS, key, strict=True)), **dict(zip(MEASURES, counts, strict=True))}
        for split, examples in splits.items()
        for key, counts in sorted(examples.group_counts.items())
    ]
    licences = {row["license"] for row in rows if row["split"] == "train"}
    corpus = (path and corpus_of(path)) or {"sources": None, "curation": None}
    manifest = {
        "tokenizer": tokenizer_facts(tokenizer_folder),
        "validation": {"by": "the task's own split"},
        "account": rows,
        "not_open": sorted(licence for licence in licences if decide(licence).refused),
        "corpus": {"files": [], **corpus, "sources": corpus["sources"] or group_sources(train.sources)},
        "command": shell_line(["python", *sys.orig_argv[1:]]),
        "examples": fingerprint_of(train),
    }
    return manifest | {"fingerprint": manifest_fingerprint(manifest)}


def group_sources(sources: dict[str, dict]) -> dict:
    """Return sources.json of examples. If they have more than `LISTED` sources, merge those with a common prefix."""
    groups: dict[str, dict] = {}
    for name, entry in sources.items():
        short = name if len(sources) <= LISTED else re.split(r"[/#:,(]", name)[0].strip()
        group = groups.setdefault(short, {"name": short, "licences": {}, "languages": {}, "documents": 0, "bytes": 0})
        for key in ("documents", "bytes"):
            group[key] += entry[key]
        for key in ("licences", "languages"):
            for label, count in entry[key].items():
                group[key][label] = group[key].get(label, 0) + count
    return {"sources": [{**group, "licence": " and ".join(sorted(group["licences"]))} for group in groups.values()]}


def corpus_of(path: Path) -> dict[str, dict | None]:
    """Return sources.json and curation.json of a corpus, or of the corpus that shards were built from."""
    names = ("sources", "curation")
    if (path / "manifest.json").is_file():
        corpus = read_manifest(path)["corpus"]
        return {name: corpus[name] for name in names}
    files = {name: path / f"{name}.json" for name in names}
    return {name: mask_passwords(read_json(file)) if file.is_file() else None for name, file in files.items()}


def write_data_manifests(folder: Path, manifests: dict[str, dict]) -> None:
    """Write RUN/manifests/NAME.json for each manifest."""
    for name, content in manifests.items():
        write_json(folder / "manifests" / f"{name}.json", content)
