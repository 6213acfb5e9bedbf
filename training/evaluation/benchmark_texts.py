"""Read the test texts of a benchmark: rows of files, held-out text of a run, or a task of lm-evaluation-harness."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..common.config import InputError
from ..common.files import read_text
from ..data.documents import as_text
from ..tasks.sources import read_user_files
from .benchmarks import PublicConfig, example_texts
from .held_out_text import CODE, Text, TextConfig, held_out

# Sets of columns that are a text; the later columns follow the first.
COLUMNS = (("text",), ("prompt", "completion"), ("prompt", "answer"), ("ocr", "truth"))
EVERYTHING = {"bytes_per_language": 2**62, "bytes_per_document": 2**62}


def read_test_texts(benchmark: str) -> list[Text]:
    """Return the test texts of a benchmark.

    Args:
        benchmark: JSON Lines or Parquet file, or folder of such files, with the columns text, prompt and completion,
            prompt and answer, or ocr and truth; .txt files; a run folder, for its held-out text; a YAML file of
            lm-evaluation-harness; or the name of one of its tasks, for the text of prompt and right answer.

    Raises:
        InputError: If it is none of these, or has no text.
    """
    path = Path(benchmark)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        name = re.search(r"""^task:\s*["']?([^\s"']+)""", read_text(path), re.MULTILINE)  # it may have tags of its own
        texts = _of_harness(name[1] if name else path.stem, path.parent)
    elif (path / "config.yaml").is_file():
        texts = held_out(TextConfig(**EVERYTHING), path)
    elif path.suffix == ".txt" or (path.is_dir() and any(path.rglob("*.txt"))):
        texts = held_out(TextConfig(path=path, **EVERYTHING), None)
    elif path.exists():
        texts = list(_of_rows(path))
    elif path.suffix or len(path.parts) > 1:
        raise InputError(f"--benchmark {benchmark} does not exist: pass a file, a folder, or a task of lm_eval.")
    else:
        texts = _of_harness(benchmark, None)
    if not texts:
        raise InputError(f"--benchmark {benchmark} has no text: pass another.")
    return texts


def _of_harness(name: str, folder: Path | None) -> list[Text]:
    config = PublicConfig(benchmarks=[name], include_path=folder)
    return [text for texts in example_texts([name], config).values() for text in texts]


def _of_rows(path: Path) -> Iterator[Text]:
    """Yield the texts of rows of JSON Lines or Parquet.

    Raises:
        InputError: If a row has none of the sets of columns.
    """
    choices = " or ".join(" and ".join(names) for names in COLUMNS)
    for file, i, row in read_user_files(path, f"rows with {choices}"):
        place, columns = f"{file}, row {i + 1}", None
        if isinstance(row, dict):
            columns = next((names for names in COLUMNS if all(row.get(name) for name in names)), None)
        if columns is None:
            raise InputError(f"{place} has no text: each row needs {choices}.")
        parts = [as_text(row[name], name) for name in columns]
        if any(isinstance(part, bytes) for part in parts):
            raise InputError(f"{place} has text that is not UTF-8: convert it.")
        identifier = row.get("id") or row.get("identifier") or place
        language = CODE if row.get("language_type") == "Code" else row.get("language") or ""
        yield Text(str(identifier), language, str(row.get("source") or ""), "", join(*parts))


def join(prompt: str, answer: str = "") -> str:
    """Return prompt and answer as one text, with a space between them unless there is white space already."""
    return prompt + (" " if answer and not (prompt[-1:].isspace() or answer[0].isspace()) else "") + answer
