"""Parts of the tests of cards: what a model wrote, changes to a released folder, and its problems."""

import shutil
from pathlib import Path

import yaml

from model_card import card, release, validate
from model_card.files import read_json, write_json
from model_card.formats import variants
from model_card.run import Run
from training.finetuning.examples import Examples

MODEL_CARD = Path(card.__file__).parent
# Text that a model may generate: each of these once ended a line, a table, a block of code, or the card.
WRITTEN = {
    "en": (
        " 1.2.3.0 | <b>bold</b> {{ name }} TODO\n\n\n\n```python\nprint('x'\n"
        "````\r\n# 12 [x](nowhere.md) \ue0001\ue001"
    ),
    "fr": ", il l'\u00e9, la cre",
    "la": "",
}


def problems(folder: Path, kind: str) -> list[str]:
    """Messages of one kind; there are no problems of another kind."""
    problems = validate.validate(folder, run=False)
    assert {problem.kind for problem in problems} <= {kind}, problems
    return [problem.message for problem in problems]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()  # as it is: a model may have written a carriage return
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


def metadata(folder: Path) -> dict:
    return yaml.safe_load(validate.split_front_matter((folder / "README.md").read_text(encoding="utf-8"))[0])


def examples(*, licence: str = "CC-BY-4.0", language: str = "Dutch") -> Examples:
    """Two examples, one of which may be under any licence."""
    built = Examples()
    built.add([1, 5, 6, 7], group=("French", "MPL-2.0", "help"), source="help pages", size=20)
    built.add([1, 8], group=(language, licence, "own"), source="own.jsonl", size=5)
    return built


def carded(dist: Path, run: Path, out: Path, **options) -> Path:
    """The llama variant with its card, of a release of the run whose tensors are another's."""
    shutil.copytree(dist, out, ignore=shutil.ignore_patterns("runs", "evidence", "card.json"))
    opened = Run(run)
    for part in ("custom", "llama"):
        release.write_run(opened, out / part)
    described = release.describe_source(variants.open_run(opened)) | {"folders": release.list_files(out)}
    write_json(out / "release.json", read_json(out / "release.json") | described)
    card.write_cards(out, "the command", run=opened, **options)
    assert validate.validate(out / "llama", run=False) == [] == validate.validate(out / "custom", run=False)
    return out / "llama"
