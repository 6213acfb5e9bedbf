"""The text that models are measured on: what a run held out, a corpus in Parquet, or text files."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml
from tokenizers import Tokenizer

from ..config import InputError
from ..data.documents import checked_languages, read_documents
from ..data.shard_files import ShardReader
from ..data.split import hash_fraction, register
from ..files import fingerprint, sha256
from ..language import CODES, LANGUAGES, identify
from ..loader import Shards

CODE = "code"  # the "language" of what is in none
COLUMNS = ["identifier", "language", "language_type", "open_type", "collection", "text"]


@dataclass
class TextConfig:
    """Which held-out text.

    Args:
        path: Parquet with Common Corpus columns (file or folder), or .txt files, one document each, in the language
            that their name or folder's name says (fr.txt, fr/1.txt) or else in the one identified. What the first
            model's run held out when not given.
        languages: ISO codes; all that are there, and code, when not given.
        bytes_per_language: at most so many, of documents that a hash chooses.
        bytes_per_document: at most so many of each, from its beginning.
    """

    path: Path | None = None
    languages: list[str] | None = None
    bytes_per_language: int = 100_000
    bytes_per_document: int = 10_000


@dataclass(frozen=True)
class Text:
    """A document, or its beginning. `language` is an ISO code or "code"; what is not known is empty."""

    identifier: str
    language: str
    collection: str
    register: str
    text: str


def held_out(config: TextConfig, run: Path | None) -> list[Text]:
    """The chosen documents, ordered by language.

    Args:
        config: which.
        run: folder of the run whose held-out text is meant when no path is given.

    Raises:
        InputError: when there is no text, or no run to take it from.
    """
    checked_languages(config.languages)
    if config.path is None and run is None:
        raise InputError("The model lies in no run's folder, so there is no held-out text: give --data.path.")
    if config.path is None:
        found, where = _of_run(run), f"The shards of {run}"
    elif not config.path.exists():
        raise InputError(f"--data.path {config.path} is not there: give Parquet or .txt files.")
    else:
        found, where = _of_path(config.path), str(config.path)
    chosen = _choose(found, config)
    if not chosen:
        asked = f" in {', '.join(config.languages)}" if config.languages else ""
        raise InputError(f"{where} gives no text{asked}: add documents, or choose others with --data.path.")
    return chosen


def describe(texts: list[Text], config: TextConfig, run: Path | None) -> dict:
    """What was measured on, for the results: a fingerprint, documents and bytes by language."""
    languages = {
        language: {"documents": len(of), "bytes": sum(len(one.text.encode()) for one in of)}
        for language, of in by_language(texts).items()
    }
    where = str(config.path) if config.path else f"held out by {run.name}" if run else None
    return {"source": where, "languages": languages, "fingerprint": fingerprint([asdict(text) for text in texts])}


def by_language(texts: Iterable[Text]) -> dict[str, list[Text]]:
    """Texts by language, in the order of `LANGUAGES`, code last."""
    groups = defaultdict(list)
    for text in texts:
        groups[text.language].append(text)
    return {language: groups[language] for language in (*LANGUAGES, CODE) if language in groups}


def shorten(text: str, size: int) -> str:
    """The longest beginning of at most `size` UTF-8 bytes that cuts no character."""
    return text.encode()[:size].decode(errors="ignore")


def _choose(found: Iterable[Text], config: TextConfig) -> list[Text]:
    """For each language documents in the order of a hash, until the next would exceed the budget."""
    kept = defaultdict(list)
    for text in found:
        text = replace(text, text=shorten(text.text, config.bytes_per_document))
        if text.text.strip() and (config.languages is None or text.language in config.languages):
            kept[text.language].append(text)
    chosen: list[Text] = []
    for language in (*LANGUAGES, CODE):
        room = config.bytes_per_language
        for text in sorted(kept[language], key=lambda text: hash_fraction(text.identifier)):
            if len(text.text.encode()) > room:
                text = replace(text, text=shorten(text.text, room))  # the last one fills it
            room -= len(text.text.encode())
            chosen += [text] if text.text.strip() else []
            if room <= 0:
                break
    return chosen


def _of_path(path: Path) -> Iterator[Text]:
    if path.suffix == ".txt" or (path.is_dir() and not any(path.rglob("*.parquet"))):
        yield from _text_files(path)
    else:
        yield from _parquet(path)


def _text_files(path: Path) -> Iterator[Text]:
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    if not files:
        raise InputError(f"{path} holds neither .parquet nor .txt files: give a folder that does.")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}): convert it.") from None
        if not text.strip():
            raise InputError(f"{file} is empty: leave it out, or put text into it.")
        named = [name for name in (file.stem, file.parent.name) if name in LANGUAGES]
        name = file.name if path.is_file() else str(file.relative_to(path))
        yield Text(name, named[0] if named else identify(text)[0], "", "", text)


def _parquet(path: Path) -> Iterator[Text]:
    for row in read_documents(path, columns=COLUMNS):
        row = {name: value or "" for name, value in row.items()}
        yield Text(row["identifier"], _language(row), row["collection"], register(row), row["text"])


def _language(row: dict) -> str:
    return CODE if row["language_type"] == "Code" else CODES.get(row["language"], CODE)


# What a run held out ------------------------------------------------------------------------------


def _of_run(run: Path) -> Iterator[Text]:
    """The validation documents of a run's shards, back from their tokens: the text that training did not read."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    base = Path(config.get("base_model") or "")
    if base.name == "model" and (_found(base, run).parent / "config.yaml").is_file():
        yield from _of_run(_found(base, run).parent)  # of what was fine-tuned
        return
    if not config.get("stages") or "data" not in config:
        raise InputError(f"{run / 'config.yaml'} is not one of a pretraining run: give --data.path.")
    data = _found(Path(config["data"]["folder"]), run)
    shards = _found(Path(config["stages"][0].get("shards") or data / "shards"), run)
    if not (shards / "manifest.json").is_file():
        raise InputError(f"{shards} has no manifest.json, so what {run} held out is not there: give --data.path.")
    dataset, tokenizer = Shards(shards), run / "model" / "tokenizer.json"
    if sha256(tokenizer) != dataset.manifest["tokenizer"]["sha256"]:
        raise InputError(f"{shards} was made with another tokenizer than {tokenizer}: give --data.path.")
    backend = Tokenizer.from_file(str(tokenizer))
    for shard in dataset.readers("validation"):
        yield from _decoded(shard, backend)


def _found(path: Path, run: Path) -> Path:
    """A path of a config, which is relative to where the run was started: here, or two folders above the run's."""
    above = run.resolve().parent.parent / path
    return above if not path.exists() and above.exists() else path


def _decoded(shard: ShardReader, backend: Tokenizer) -> Iterator[Text]:
    for document, start, end in zip(shard.documents().to_pylist(), shard.bounds[:-1], shard.bounds[1:], strict=True):
        ids = shard.tokens[start + 1 : end - 1].tolist()  # without the delimiters
        text = backend.decode(ids, skip_special_tokens=False)
        if len(text.encode()) != document["bytes"]:
            raise InputError(f"{shard.path} does not give {document['identifier']} back: build the shards again.")
        kind = document["register"] or ""  # unknown in shards of an earlier version
        language = CODE if kind == "code" else CODES.get(document["language"], CODE)
        yield Text(document["identifier"], language, document["collection"], kind, text)
