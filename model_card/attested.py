"""What the documents for the AI Act are filled from: provider.yaml, which is never guessed, and the files of a run."""

import math
from datetime import date
from pathlib import Path

import yaml
from safetensors import safe_open

from .facts import gather, of_corpus, stages_of
from .files import ReleaseError, read_json, sha256
from .run import Run

EXAMPLE = Path(__file__).with_name("provider.yaml")
NONE = "None."


def in_range(value: float, ranges) -> str:
    """The name of the range that a value falls in; each range is where it begins and its name."""
    return [name for least, name in ranges if value >= least][-1]


def read_provider(path: Path) -> dict:
    """provider.yaml, whole.

    Raises:
        ReleaseError: naming every field that is missing, empty or unknown.
    """
    if not path.is_file():
        raise ReleaseError(f"{path} is not there: copy {EXAMPLE} and say what only the provider can.")
    given, example = (yaml.safe_load(one.read_text(encoding="utf-8")) or {} for one in (path, EXAMPLE))
    if not isinstance(given, dict):
        raise ReleaseError(f"{path} is not a mapping: copy {EXAMPLE}.")
    known = {f"{section}.{key}" for section, fields in example.items() for key in fields}
    there = {
        f"{section}.{key}": value
        for section, fields in given.items()
        for key, value in (fields.items() if isinstance(fields, dict) else [("", None)])
    }
    missing = sorted(key for key in known if there.get(key) in (None, "", [], {}))
    unknown = sorted(there.keys() - known)
    if missing or unknown:
        told = [f"{name}: {', '.join(keys)}" for name, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise ReleaseError(f"{path}: {'; '.join(told)} (write none where nothing applies).")
    for name in ("provider.sme", "data.continuously_trained", "processing.code_of_practice_signatory"):
        if not isinstance(there[name], bool):
            raise ReleaseError(f"{path}: {name} is to be true or false.")
    for name in ("summary.date", "model.placed_on_union_market", "model.released"):
        if not isinstance(there[name], date):
            raise ReleaseError(f"{path}: {name} is to be a date such as 2026-11-23.")
    crawlers, asked = there["data.crawlers"], {"names", "purposes", "behaviour", "period", "content", "domains"}
    if not nothing(crawlers) and not (isinstance(crawlers, dict) and asked <= crawlers.keys()):
        raise ReleaseError(f"{path}: data.crawlers is to be none, or to give {', '.join(sorted(asked))}.")
    return given


def nothing(value) -> bool:
    """Whether the provider says that nothing applies."""
    return isinstance(value, str) and value.strip().lower() == "none"


def or_none(value) -> str:
    """An answer as a sentence."""
    if nothing(value):
        return NONE
    return ", ".join(map(str, value)) if isinstance(value, list) else " ".join(str(value).split())


def yes_no(value) -> str:
    """Yes, unless the provider says that nothing applies."""
    return "Yes" if value is True or not (value is False or nothing(value)) else "No"


def read_run(run: Run) -> dict:
    """What the files of a run say: `config`, `model`, `sessions`, `parameters`, `weights`.

    And of it with the runs that it went on from (Run.lineage): `corpora`, `stages`, `tokens`, `seconds`, `kwh`,
    `method` of measuring these, `inputs`.

    Raises:
        ReleaseError: when a file is missing, or names no text.
    """
    runs = [one for one in run.lineage if not one.average]  # a mean of two models trains nothing
    emissions = [read_json(one.folder / "emissions.json") for one in runs]
    configs = [one.config for one in runs]
    stages = [stage for one in configs for stage in stages_of(one)]
    corpora = [of_corpus(corpus) for corpus in gather(run)]
    if not corpora or not any(corpus["sources"] for corpus in corpora):
        raise ReleaseError(
            f"{run.folder} names no shards whose manifest names its sources: the summary has nothing to say."
        )
    weights = sorted((run.folder / "model").glob("*.safetensors"))
    if not weights:
        raise ReleaseError(f"{run.folder / 'model'} holds no weights: let the run finish.")
    files = [one.folder / name for one in runs for name in ("config.yaml", "run.json", "emissions.json")]
    files += [path for one in runs for _, path, _ in one.manifests]
    return {
        "config": configs[-1],
        "model": read_json(run.folder / "model" / "config.json"),
        "sessions": runs[-1].sessions,
        "stages": stages,
        "tokens": sum(stage["tokens"] for stage in stages),
        "seconds": sum(one["seconds"] for one in emissions),
        "kwh": sum(one["kwh"] for one in emissions),
        "method": "; ".join(dict.fromkeys(one["source"] for one in emissions)),
        "corpora": corpora,
        "parameters": sum(map(count_parameters, weights)),
        "weights": run.weights,
        "inputs": {str(path): sha256(path) for path in files},
    }


def count_parameters(path: Path) -> int:
    """Numbers in a safetensors file."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def rows_by(run: dict, column: str) -> dict[str, int]:
    """Tokens by language or licence, the largest first; a text in the corpora of two stages counts twice."""
    sums: dict[str, int] = {}
    for corpus in run["corpora"]:
        for row in corpus[f"by_{column}"]:
            sums[row[column]] = sums.get(row[column], 0) + row["tokens"]
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))
