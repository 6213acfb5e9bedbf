"""Split a corpus into held-out text, by complete authors of every source, and mixtures of the rest in chosen shares.

    python -m training.mixture --config femto_mixture --corpus CORPUS --out data/femto/mixture

writes one corpus folder per mixture, and `held_out/`, which has no work and no author in common with any of them.
"""

if not __package__:  # run by path; same as `python -m training.mixture`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import re
import shutil
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from .common.config import InputError, parse, run_main
from .common.escaping import shell_line, terminal_line
from .common.files import are_unchanged, fingerprint, lock_folder, move_files, read_json, sha256, write_json
from .common.language import CODES, LANGUAGES
from .data.documents import DocumentWriter, corpus_files, corpus_root, read_documents
from .data.source_names import SourceCounts, default_source
from .data.split import hash_fraction, select_held_out

HELD_OUT = "held_out"


@dataclass
class MixtureRule:
    """Number of repetitions of the documents that match all patterns, which may contain `*` and `?`.

    Args:
        epochs: Repetitions: 0 drops the documents, 0.5 keeps half of them, 2 repeats each twice.
        language: Pattern of the language, in English.
        collection: Pattern of the collection.
        open_type: Pattern of the open type.
        language_type: Pattern of the language type.
        license: Pattern of the licence.
    """

    epochs: float
    language: str = "*"
    collection: str = "*"
    open_type: str = "*"
    language_type: str = "*"
    license: str = "*"

    def matches(self, document: dict) -> bool:
        """Return whether every pattern matches the document's column of that name."""
        patterns = {name: pattern for name, pattern in asdict(self).items() if name != "epochs"}
        return all(fnmatchcase(document[name] or "", pattern) for name, pattern in patterns.items())


@dataclass
class MixtureConfig:
    """Corpus, mixtures and held-out share.

    Args:
        corpus: Parquet file, or folder of Parquet files, with Common Corpus columns.
        out: Folder for held_out/ and one folder per mixture.
        mixtures: Name -> rules. The first rule that matches a document applies; without one it is written once.
        held_out: Share of the documents of each source that is held out from all mixtures.
    """

    corpus: Path
    out: Path
    mixtures: dict[str, list[MixtureRule]] = field(default_factory=lambda: {"train": []})
    held_out: float = 0.01


def repetitions(document: dict, rules: list[MixtureRule]) -> int:
    """Return how often a mixture contains a document; a hash of its identifier decides on a fraction."""
    epochs = next((rule.epochs for rule in rules if rule.matches(document)), 1)
    return int(epochs) + (hash_fraction(document["identifier"]) < epochs % 1)


def part_name(document: dict) -> str:
    """Return the name of a document's file in a mixture, without suffix: its language, code or other."""
    return CODES.get(document["language"], "code" if document["language_type"] == "Code" else "other")


class MixtureWriter:
    """Writer of documents to FOLDER/LANGUAGE.parquet, which counts them."""

    def __init__(self, folder: Path, stack: ExitStack):
        folder.mkdir(parents=True)
        self.counts = Counter()
        self._documents = stack.enter_context(DocumentWriter(folder))

    def add(self, document: dict, size: int) -> None:
        """Append a document of `size` bytes."""
        self._documents.add(part_name(document), document, size)
        for count, amount in (("documents", 1), ("bytes", size)):
            self.counts[document["language"], document["collection"], count] += amount

    def account(self) -> list[dict]:
        """Return documents and bytes by language and collection."""
        keys = sorted({key[:2] for key in self.counts})
        return [
            {"language": key[0], "collection": key[1]}
            | {count: self.counts[(*key, count)] for count in ("documents", "bytes")}
            for key in keys
        ]


def write_mixtures(config: MixtureConfig) -> dict[str, list[dict]]:
    """Write held_out/ and the mixtures, unless an earlier call wrote them from the same corpus and settings.

    Returns:
        Name of each folder -> rows of language, collection, documents and bytes.

    Raises:
        InputError: If a setting is invalid, or the corpus cannot be read.
    """
    if not 0 < config.held_out < 0.5:
        raise InputError(f"held_out must be a share between 0 and 0.5, such as 0.01, got {config.held_out}.")
    if bad := [name for name in config.mixtures if not re.fullmatch(r"[a-z]\w*", name) or name == HELD_OUT]:
        raise InputError(f"mixtures has {bad[0]!r}: use a lower-case folder name other than {HELD_OUT}.")
    if any(rule.epochs < 0 for rules in config.mixtures.values() for rule in rules):
        raise InputError("mixtures has a rule with negative epochs: use 0 to drop documents.")
    root = corpus_root(config.corpus)
    settings = {
        "files": {str(path.relative_to(root)): sha256(path) for path in corpus_files(config.corpus)},
        "held_out": config.held_out,
        "mixtures": {name: [asdict(rule) for rule in rules] for name, rules in config.mixtures.items()},
    }
    if known := _reusable(config.out / "mixture.json", settings):
        return known
    with lock_folder(config.out):
        return _reusable(config.out / "mixture.json", settings) or _build(config, settings)


def _reusable(path: Path, settings: dict) -> dict[str, list[dict]] | None:
    """Return the account in mixture.json if the mixtures were written with the same settings."""
    known = read_json(path) if path.is_file() else {}
    reusable = known.get("fingerprint") == fingerprint(settings) and are_unchanged(
        path.parent, known.get("written", {})
    )
    return known["account"] if reusable else None


def _build(config: MixtureConfig, settings: dict) -> dict[str, list[dict]]:
    """Write the mixtures into a locked folder; see `write_mixtures`."""
    building = config.out / ".building"
    shutil.rmtree(building, ignore_errors=True)  # of a killed program
    try:
        content = _fill(config, settings, building)
        stale = [path for name in content["account"] for path in (config.out / name).rglob("*") if path.is_file()]
        move_files(building, config.out, "mixture.json", stale=stale)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return content["account"]


def _fill(config: MixtureConfig, settings: dict, building: Path) -> dict:
    """Write every folder and mixture.json into a temporary folder; return the content of mixture.json."""
    columns = ["identifier", "collection", "language", "creator"]
    candidates = read_documents(config.corpus, columns=columns, dropped=Counter())  # reported below
    chosen = select_held_out(candidates, config.held_out)
    with ExitStack() as stack:
        parts = {name: MixtureWriter(building / name, stack) for name in (HELD_OUT, *config.mixtures)}
        root, counts = corpus_root(config.corpus), SourceCounts()
        unnamed = default_source(root)
        for document in tqdm(read_documents(config.corpus), desc="mixture", unit="document"):
            size = len(document["text"].encode())
            counts.add_document(document, size, unnamed)
            if document["identifier"] in chosen:
                parts[HELD_OUT].add(document, size)
                continue
            for name, rules in config.mixtures.items():
                for _ in range(repetitions(document, rules)):
                    parts[name].add(document, size)
    sources = root / "sources.json"
    command = shell_line(["python", *sys.orig_argv[1:]])
    content = {
        "fingerprint": fingerprint(settings),
        "settings": settings,
        "command": command,
        "account": {name: part.account() for name, part in parts.items()},
        "written": {str(path.relative_to(building)): sha256(path) for path in sorted(building.rglob("*.parquet"))},
    }
    for name in parts:
        origin = read_json(sources) if sources.is_file() else {"sources": counts.describe(root)}
        origin["mixture"] = {"name": name, "command": command, **settings}
        write_json(building / name / "sources.json", origin)
    write_json(building / "mixture.json", content)
    return content


def main() -> None:
    """Run `python -m training.mixture`."""
    config = parse(MixtureConfig, description="Hold out a share of a corpus, and mix the rest.")
    for name, rows in write_mixtures(config).items():
        languages = sorted({row["language"] for row in rows} & set(LANGUAGES.values()))
        for language in (None, *languages):
            group = [row for row in rows if language in (None, row["language"])]
            documents, size = (sum(row[count] for row in group) for count in ("documents", "bytes"))
            label = f"  {language}" if language else terminal_line(name)
            print(f"{label:<12}{documents:>10,} documents {size / 1e6:>9.2f} MB")


if __name__ == "__main__":
    run_main(main)
