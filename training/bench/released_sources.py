"""Add the sources of its text to the manifests of a released model, from its corpus.

    python -m training.bench.released_sources --release model_card/femto --corpus CORPUS --out data/corpus_shards

For manifests of an earlier version, which do not count by source. The corpus is tokenised once; its tokens, in the
order and shares of each mixture, must have the sha256 of every shard of the manifest, which shows that the text is the
same. Fingerprints and statistics do not change. data.json and release.json in `evidence/` follow; afterwards
`python -m model_card.card` writes the card again.
"""

if not __package__:  # run by path; same as `python -m training.bench.released_sources`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

from dataclasses import dataclass
from hashlib import sha256 as new_sha256
from pathlib import Path
from urllib.parse import quote

from ..common.config import InputError, parse, run_main
from ..common.files import read_json, sha256, write_json
from ..common.language import CODES
from ..data.documents import corpus_files, read_rows
from ..data.shard_files import (
    GROUP_COLUMNS,
    ShardReader,
    count_documents,
    count_sources,
    manifest_fingerprint,
    sum_counts,
)
from ..data.source_names import SourceCounts, default_source, parse_source
from ..data.split import in_validation_split, select_held_out
from ..mixture import MixtureRule, part_name, repetitions
from ..shards import ShardsConfig, build_shards, sum_sources

# Source -> label of the corpus, which the copyright file of the package contradicts, and the licence in that file.
CORRECTIONS = {"installation-guide-amd64": ("GPL-2.0-or-later", "GPL-2.0-only")}
COLUMNS = ["identifier", *GROUP_COLUMNS, "creator", "date", "open_type", "language_type"]


@dataclass
class ReleasedSourcesConfig:
    """Release, its corpus, and a folder for the tokens of the corpus.

    Args:
        release: Folder of a release with runs/, evidence/ and the tokenizer of the model.
        corpus: Folder of the corpus from which training.mixture made the text.
        out: Folder for the shards of the corpus.
        workers: Number of processes. Default: one per CPU.
    """

    release: Path
    corpus: Path
    out: Path
    workers: int | None = None


def read_corpus(config: ReleasedSourcesConfig) -> list[dict]:
    """Tokenise the corpus and return its documents in order: columns, bytes, number of tokens, and `ids`."""
    shards = ShardsConfig(config.corpus, config.release, config.out, workers=config.workers)
    tokenised = {}
    for shard in build_shards(shards)["shards"]:
        reader = ShardReader(config.out, shard)
        suffix = f".{quote(shard['language'], safe='')}.ds" if shard["language"] else ".ds"
        rows = reader.documents(["bytes", "tokens"]).to_pylist()
        ids = [reader.tokens[begin:end] for begin, end in zip(reader.bounds, reader.bounds[1:], strict=False)]
        name = Path(shard["file"]).name.removesuffix(suffix), shard["split"], shard["language"]
        tokenised[name] = iter([row | {"ids": part} for row, part in zip(rows, ids, strict=True)])
    documents = []
    for file in corpus_files(config.corpus):
        for row in read_rows(file, dict.fromkeys(COLUMNS)):
            language = CODES.get(row["language"], row["language"])
            held = in_validation_split(row["identifier"], shards.validation_share)
            key = (file.stem, "validation", language) if held else (file.stem, "train", None)
            documents.append(row | {"collection": row["collection"] or ""} | next(tokenised[key]))
    return documents


def list_sources(documents: list[dict], corpus: Path) -> list[dict]:
    """Return the entries of sources.json of a corpus, as training.mixture writes them."""
    if (path := corpus / "sources.json").is_file():
        return read_json(path)["sources"]
    counts, unnamed = SourceCounts(), default_source(corpus)
    for document in documents:
        counts.add_document(document, document["bytes"], unnamed)
    return counts.describe(corpus)


def correct_licences(by_source: list[dict], sources: list[dict]) -> None:
    """Correct the licences in the `by_source` and the entries of sources of a manifest; the corpus's labels stay."""
    for entry in sources:
        label, licence = CORRECTIONS.get(entry["name"], (None, None))
        if label and entry["license"] == label:
            entry |= {"license": licence, "licences": {licence: entry["documents"]}}
    for row in by_source:
        label, licence = CORRECTIONS.get(parse_source(row["source"]).name, (None, None))
        row["license"] = licence if row["license"] == label else row["license"]


def mix(documents: list[dict], mixture: dict) -> dict[str, list[dict]]:
    """Return the documents of each shard of a mixture, with repetitions, as mixture and shards write them."""
    rules = [MixtureRule(**rule) for rule in mixture["mixtures"][mixture["name"]]]
    chosen, shards = select_held_out(documents, mixture["held_out"]), {}
    for document in documents:
        part, language = part_name(document), CODES.get(document["language"], document["language"])
        if document["identifier"] in chosen:
            shards.setdefault(f"validation/held_out-{part}.{quote(language, safe='')}.ds", []).append(document)
        elif times := repetitions(document, rules):
            shards.setdefault(f"train/{part}.ds", []).extend([document] * times)
    return shards


def add_sources(manifest: dict, documents: list[dict], sources: list[dict], config: ReleasedSourcesConfig) -> dict:
    """Return a manifest with its text counted by source, and with the list of sources of its corpus.

    Raises:
        InputError: If the manifest states no mixture, the corpus differs, or a shard or its statistics do.
    """
    known = manifest["corpus"]["sources"] or {}
    if "mixture" not in known:
        raise InputError(f"A manifest of {config.release} states no mixture, so its text cannot be built again.")
    for name, digest in known["mixture"]["files"].items():
        if sha256(config.corpus / name) != digest:
            raise InputError(f"{config.corpus / name} is not the file that {config.release} was trained on.")
    shards, counted = mix(documents, known["mixture"]), []
    for shard in manifest["shards"]:
        rows, digest = shards.pop(shard["file"], []), new_sha256()
        for row in rows:
            digest.update(row["ids"])
        if digest.hexdigest() != shard["sha256"]:
            raise InputError(f"{shard['file']} of {manifest['fingerprint'][:12]} cannot be built again: it differs.")
        columns = {name: [row[name] for row in rows] for name in ("identifier", *GROUP_COLUMNS, "bytes", "tokens")}
        counts = {"account": count_documents(columns), "by_source": count_sources(columns)}
        counted.append({"split": shard["split"], **counts})
    rows = ({"split": shard["split"], **row} for shard in counted for row in shard["account"])
    if shards or sum_counts(rows, ("split", *GROUP_COLUMNS)) != manifest["account"]:
        raise InputError(f"The statistics of {manifest['fingerprint'][:12]} differ from its shards.")
    new = {"by_source": sum_sources(counted, str(default_source(config.corpus)))}
    correct_licences(new["by_source"], sources)
    new["corpus"] = manifest["corpus"] | {"sources": known | {"sources": sources}}
    filled = follow(manifest, "account", new)
    assert manifest_fingerprint(filled) == manifest["fingerprint"]
    return filled


def follow(content: dict, before: str, new: dict) -> dict:
    """Return a JSON object with new values, in its order; a new key follows the key `before`."""
    filled = {}
    for key, value in content.items():
        filled[key] = new.get(key, value)
        filled |= {name: item for name, item in new.items() if name not in content} if key == before else {}
    return filled


def update_evidence(release: Path, manifests: dict[Path, dict]) -> None:
    """Repeat what changed in the manifests in data.json, and their sizes and hashes in release.json."""
    evidence, known = release / "evidence", {manifest["fingerprint"]: manifest for manifest in manifests.values()}
    data = []
    for corpus in read_json(evidence / "data.json"):
        manifest = known[corpus["fingerprint"]]
        new = {"by_source": manifest["by_source"], "sources": manifest["corpus"]["sources"]}
        data.append(follow(corpus, "account", new))
    write_json(evidence / "data.json", data)
    content = read_json(evidence / "release.json")
    for folder in content["folders"].values():
        for path in manifests:
            if entry := folder["files"].get(path.relative_to(release).as_posix()):
                entry |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
        folder["bytes"] = sum(entry["bytes"] for entry in folder["files"].values())
    write_json(evidence / "release.json", content)


def fill_release(config: ReleasedSourcesConfig) -> None:
    """Add the sources to all manifests of a release; errors as in `add_sources`, before anything is written."""
    documents = read_corpus(config)
    sources, manifests = list_sources(documents, config.corpus), {}
    for path in sorted(config.release.glob("runs/*/manifests/*.json")):
        manifest = add_sources(read_json(path), documents, sources, config)
        manifests[path] = manifest
        tokens = sum(row["tokens"] for row in manifest["by_source"])
        named = len({row["source"] for row in manifest["by_source"]})
        print(f"{path}: {len(manifest['shards'])} shards equal, {tokens:,} tokens of {named} sources")
    for path, manifest in manifests.items():
        write_json(path, manifest)
    update_evidence(config.release, manifests)


def main() -> None:
    """Run `python -m training.bench.released_sources`."""
    fill_release(
        parse(ReleasedSourcesConfig, description="Add the sources of its text to the manifests of a release.")
    )


if __name__ == "__main__":
    run_main(main)
