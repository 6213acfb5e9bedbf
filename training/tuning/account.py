"""RUN/manifests/: what a fine-tuning was made of, in the form of a shard's manifest, which cards are written from."""

import re
import shlex
import sys
from pathlib import Path

from ..data.licences import decide
from ..data.shard_files import ACCOUNT, tokenizer_facts
from ..files import fingerprint, read_json, write_json
from .examples import Examples

MEASURES = ("documents", "bytes", "tokens")
LISTED = 40  # sources that are named one by one


def fingerprint_of(examples: Examples) -> str:
    """What examples are known by."""
    return fingerprint(examples.input_ids)


def manifest(train: Examples, held_out: Examples | None, tokenizer_folder: Path, *, path: Path | None = None) -> dict:
    """The account of examples.

    Args:
        train, held_out: what was learnt from, and measured on.
        tokenizer_folder: with tokenizer.json.
        path: corpus or shards that they were drawn from, whose account of sources is carried along; their own is when
            not given.
    """
    splits = {"train": train} | ({"validation": held_out} if held_out else {})
    rows = [
        {"split": split, **dict(zip(ACCOUNT, key, strict=True)), **dict(zip(MEASURES, counts, strict=True))}
        for split, examples in splits.items()
        for key, counts in sorted(examples.account.items())
    ]
    licences = {row["license"] for row in rows if row["split"] == "train"}
    carried = (path and corpus_of(path)) or {"sources": None, "curation": None}
    return {
        "tokenizer": tokenizer_facts(tokenizer_folder),
        "validation": {"by": "the task's own split"},
        "account": rows,
        "not_open": sorted(one for one in licences if decide(one).refused),
        "corpus": {"files": [], **carried, "sources": carried["sources"] or grouped(train.sources)},
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "fingerprint": fingerprint_of(train),
    }


def grouped(sources: dict[str, dict]) -> dict:
    """sources.json of examples; more than a card can list are told by what stands before their first mark."""
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
    """sources.json and curation.json of a corpus, or of the corpus that shards were made of."""
    names = ("sources", "curation")
    if (path / "manifest.json").is_file():
        corpus = read_json(path / "manifest.json")["corpus"]
        return {name: corpus[name] for name in names}
    files = {name: path / f"{name}.json" for name in names}
    return {name: read_json(file) if file.is_file() else None for name, file in files.items()}


def write(folder: Path, manifests: dict[str, dict]) -> None:
    """Write RUN/manifests/NAME.json for each."""
    for name, content in manifests.items():
        write_json(folder / "manifests" / f"{name}.json", content)
