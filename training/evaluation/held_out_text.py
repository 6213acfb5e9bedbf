"""Read held-out text to evaluate on: the validation split of a run, a corpus in Parquet, or text files."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from ..common.config import InputError, read_yaml
from ..common.files import fingerprint, read_text, sha256
from ..common.language import CODES, LANGUAGES, identify
from ..data.documents import checked_languages, read_documents
from ..data.loader import ShardDataset
from ..data.shard_files import ShardReader, load_tokenizer
from ..data.split import hash_fraction, register

CODE = "code"  # the "language" of source code
COLUMNS = ["identifier", "language", "language_type", "open_type", "collection", "text"]


@dataclass
class TextConfig:
    """Held-out text and its maximum size.

    Args:
        path: Parquet with Common Corpus columns (file or folder), or .txt files, one document each, whose language is
            the name of the file or folder (fr.txt, fr/1.txt) or else identified. Defaults to the validation split of
            the first model's run.
        languages: ISO codes. Default: all languages in the data, and code.
        bytes_per_language: Maximum bytes per language, of documents selected by a hash.
        bytes_per_document: Maximum bytes per document, from its beginning.
    """

    path: Path | None = None
    languages: list[str] | None = None
    bytes_per_language: int = 100_000
    bytes_per_document: int = 10_000


@dataclass(frozen=True)
class Text:
    """A document, or its beginning. `language` is an ISO code or "code"; unknown fields are empty."""

    identifier: str
    language: str
    collection: str
    register: str
    text: str


def held_out(config: TextConfig, run: Path | None) -> list[Text]:
    """Return the selected documents, ordered by language.

    Args:
        config: Path, languages and maximum sizes.
        run: Run folder whose validation split is used if the path is not set.

    Raises:
        InputError: If there is no text, or neither a path nor a run.
    """
    checked_languages(config.languages)
    if config.path is None and run is None:
        raise InputError("The model is not in a run folder, so there is no held-out text: pass --data.path.")
    if config.path is None:
        texts, source = _of_run(run), f"the shards of {run}"
    elif not config.path.exists():
        raise InputError(f"--data.path {config.path} does not exist: pass Parquet or .txt files.")
    else:
        texts, source = _of_path(config.path), str(config.path)
    selected = _choose(texts, config)
    if not selected:
        languages = f" in {', '.join(config.languages)}" if config.languages else ""
        raise InputError(f"There is no text{languages} in {source}: add documents, or pass others with --data.path.")
    return selected


def describe_texts(texts: list[Text], config: TextConfig, run: Path | None) -> dict:
    """Describe the evaluation data for the results: source, documents and bytes by language, fingerprint."""
    languages = {
        language: {"documents": len(documents), "bytes": sum(len(text.text.encode()) for text in documents)}
        for language, documents in by_language(texts).items()
    }
    source = str(config.path) if config.path else f"held out by {run.name}" if run else None
    return {"source": source, "languages": languages, "fingerprint": fingerprint([asdict(text) for text in texts])}


def by_language(texts: Iterable[Text]) -> dict[str, list[Text]]:
    """Group texts by language, in the order of `LANGUAGES`, code last."""
    groups = defaultdict(list)
    for text in texts:
        groups[text.language].append(text)
    return {language: groups[language] for language in (*LANGUAGES, CODE) if language in groups}


def shorten(text: str, size: int) -> str:
    """Truncate a text to at most `size` UTF-8 bytes, at a character boundary."""
    return text.encode()[:size].decode(errors="ignore")


def _choose(texts: Iterable[Text], config: TextConfig) -> list[Text]:
    """Select the documents of each language by hash until they have `bytes_per_language` bytes."""
    candidates = []
    for text in texts:
        text = replace(text, text=shorten(text.text, config.bytes_per_document))
        if text.text.strip() and (config.languages is None or text.language in config.languages):
            candidates.append(text)
    selected: list[Text] = []
    for documents in by_language(candidates).values():
        remaining = config.bytes_per_language
        for text in sorted(documents, key=lambda text: hash_fraction(text.identifier)):
            text = replace(text, text=shorten(text.text, remaining))  # the last document fills the budget
            remaining -= len(text.text.encode())
            selected += [text] if text.text.strip() else []
            if remaining <= 0:
                break
    return selected


def _of_path(path: Path) -> Iterator[Text]:
    if path.suffix == ".txt" or (path.is_dir() and not any(path.rglob("*.parquet"))):
        yield from _text_files(path)
    else:
        yield from _parquet(path)


def _text_files(path: Path) -> Iterator[Text]:
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    if not files:
        raise InputError(f"{path} contains neither .parquet nor .txt files: pass a folder that does.")
    for file in files:
        text = read_text(file)
        if not text.strip():
            raise InputError(f"{file} is empty: remove it, or put text into it.")
        languages = [name for name in (file.stem, file.parent.name) if name in LANGUAGES]
        name = file.name if path.is_file() else str(file.relative_to(path))
        yield Text(name, languages[0] if languages else identify(text)[0], "", "", text)


def _rows(path: Path, columns: list[str]) -> Iterator[dict]:
    """Yield the documents of a corpus with "" for missing values."""
    for row in read_documents(path, columns=columns):
        yield {name: value or "" for name, value in row.items()}


def _parquet(path: Path) -> Iterator[Text]:
    for row in _rows(path, COLUMNS):
        yield Text(row["identifier"], _language(row), row["collection"], register(row), row["text"])


def _language(row: dict) -> str:
    return CODE if row["language_type"] == "Code" else CODES.get(row["language"], CODE)


# Validation split of a run ------------------------------------------------------------------------------


def _of_run(run: Path) -> Iterator[Text]:
    """Yield the validation documents of a run's shards, decoded from their tokens."""
    seen = {run.resolve()}
    while True:
        config = read_yaml(run / "config.yaml")
        base = _resolve(Path(config.get("base_model") or ""), run)
        if base.name != "model" or not (base.parent / "config.yaml").is_file():
            break
        run = base.parent  # the run that pretrained the base model
        if run.resolve() in seen:
            raise InputError(f"{run / 'config.yaml'} names itself as its base model: pass --data.path.")
        seen.add(run.resolve())
    if not config.get("stages") or "data" not in config:
        raise InputError(f"{run / 'config.yaml'} does not belong to a pretraining run: pass --data.path.")
    data = _resolve(Path(config["data"]["folder"]), run)
    shards = _resolve(Path(config["stages"][0].get("shards") or data / "shards"), run)
    if not (shards / "manifest.json").is_file():
        raise InputError(f"{shards} has no manifest.json, so the held-out text of {run} is missing: pass --data.path.")
    dataset, tokenizer = ShardDataset(shards), run / "model" / "tokenizer.json"
    if sha256(tokenizer) != dataset.manifest["tokenizer"]["sha256"]:
        raise InputError(f"{shards} was made with another tokenizer than {tokenizer}: pass --data.path.")
    backend = load_tokenizer(tokenizer)
    for shard in dataset.readers("validation"):
        yield from _decoded(shard, backend)


def _resolve(path: Path, run: Path) -> Path:
    """Resolve a path of a config relative to the run's working directory: this one, or two folders above the run."""
    above = run.resolve().parent.parent / path
    return above if not path.exists() and above.exists() else path


def _decoded(shard: ShardReader, backend: Tokenizer) -> Iterator[Text]:
    for document, start, end in zip(shard.documents().to_pylist(), shard.bounds[:-1], shard.bounds[1:], strict=True):
        ids = shard.tokens[start + 1 : end - 1].tolist()  # without the delimiters
        text = backend.decode(ids, skip_special_tokens=False)
        if len(text.encode()) != document["bytes"]:
            raise InputError(f"{shard.path} does not decode to {document['identifier']}: build the shards again.")
        kind = document["register"] or ""  # unknown in shards of an earlier version
        language = CODE if kind == "code" else CODES.get(document["language"], CODE)
        yield Text(document["identifier"], language, document["collection"], kind, text)
