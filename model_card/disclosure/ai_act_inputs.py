"""Read the inputs of the AI Act documents: provider.yaml, which only the provider knows, and a run's files."""

import math
from datetime import date
from pathlib import Path

from safetensors import safe_open

from ..facts import collect_corpora, of_corpus, stages_of
from ..files import ReleaseError, read_json, read_yaml, sha256
from ..run import Run

EXAMPLE = Path(__file__).with_name("provider.yaml")
CRAWLER_KEYS = {"names", "purposes", "behaviour", "period", "content", "domains"}


def in_range(value: float, ranges) -> str:
    """Return the name of the range that contains a value; `ranges` gives the lower bound and the name of each."""
    return [name for least, name in ranges if value >= least][-1]


def read_provider(path: Path) -> dict:
    """Read and check provider.yaml; `none`, which states that a field does not apply, becomes None.

    Raises:
        ReleaseError: If the file does not exist, or a field is missing, empty, unknown or of the wrong type.
    """
    if not path.is_file():
        raise ReleaseError(f"{path} does not exist. Copy {EXAMPLE} and fill in what only the provider knows.")
    content, example = (read_yaml(file) or {} for file in (path, EXAMPLE))
    if not isinstance(content, dict):
        raise ReleaseError(f"{path} is not a mapping. Copy {EXAMPLE}.")
    known = {f"{section}.{key}" for section, keys in example.items() for key in keys}
    fields = {
        f"{section}.{key}": value
        for section, keys in content.items()
        for key, value in (keys.items() if isinstance(keys, dict) else [("", None)])
    }
    missing = sorted(key for key in known if fields.get(key) in (None, "", [], {}))
    unknown = sorted(fields.keys() - known)
    if missing or unknown:
        lists = [f"{name}: {', '.join(keys)}" for name, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise ReleaseError(f"{path}: {'; '.join(lists)} (write none for what does not apply).")
    for name in ("provider.sme", "data.continuously_trained", "processing.code_of_practice_signatory"):
        if not isinstance(fields[name], bool):
            raise ReleaseError(f"{path}: {name} must be true or false.")
    for name in ("summary.date", "model.placed_on_union_market", "model.released"):
        if not isinstance(fields[name], date):
            raise ReleaseError(f"{path}: {name} must be a date such as 2026-11-23.")
    content = none_if_not_applicable(content)
    crawlers = content["data"]["crawlers"]
    if crawlers is not None and not (isinstance(crawlers, dict) and crawlers.keys() >= CRAWLER_KEYS):
        raise ReleaseError(f"{path}: data.crawlers must be none, or a mapping of {', '.join(sorted(CRAWLER_KEYS))}.")
    return content


def none_if_not_applicable(value):
    """Return a value of provider.yaml with None for each `none`."""
    if isinstance(value, dict):
        return {key: none_if_not_applicable(item) for key, item in value.items()}
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def read_run(run: Run) -> dict:
    """Read the files of a run: `config`, `model` (its config.json), `sessions`, `parameters`, `weights`.

    The following cover all runs of Run.lineage: `corpora`, `stages`, `tokens`, `seconds`, `kwh`, `method` of measuring
    these, and `inputs`, the sha256 of each file read.

    Raises:
        ReleaseError: If a file is missing, no manifest lists sources of text, or the run is not a pretraining run.
    """
    runs = [ancestor for ancestor in run.lineage if not ancestor.average]  # a mean of two models trains nothing
    emissions = [read_json(ancestor.folder / "emissions.json") for ancestor in runs]
    stages = [stage for ancestor in runs for stage in stages_of(ancestor.config)]
    corpora = [of_corpus(corpus) for corpus in collect_corpora(run)]
    if not any(corpus["sources"] for corpus in corpora):
        raise ReleaseError(
            f"{run.folder} has no shards whose manifest lists its sources, so its text cannot be summarised."
        )
    if not stages:
        raise ReleaseError(f"{run.folder} is not a pretraining run: the documents need the stages of its config.yaml.")
    if not run.weights:
        raise ReleaseError(f"{run.folder / 'model'} contains no weights. Wait for the run to finish.")
    files = [ancestor.folder / name for ancestor in runs for name in ("config.yaml", "run.json", "emissions.json")]
    files += [path for ancestor in runs for _, path, _ in ancestor.manifests]
    return {
        "config": runs[-1].config,
        "model": read_json(run.folder / "model" / "config.json"),
        "sessions": runs[-1].sessions,
        "stages": stages,
        "tokens": sum(stage["tokens"] for stage in stages),
        "seconds": sum(record["seconds"] for record in emissions),
        "kwh": sum(record["kwh"] for record in emissions),
        "method": "; ".join(dict.fromkeys(record["source"] for record in emissions)),
        "corpora": corpora,
        "parameters": sum(count_parameters(run.folder / "model" / name) for name in run.weights),
        "weights": run.weights,
        "inputs": {str(path): sha256(path) for path in files},
    }


def count_parameters(path: Path) -> int:
    """Count the parameters in a safetensors file."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def rows_by(run: dict, column: str) -> list[dict]:
    """Return tokens and their share by language or licence, largest first.

    Text that is in the corpora of two stages counts twice.
    """
    sums: dict[str, int] = {}
    for corpus in run["corpora"]:
        for row in corpus[f"by_{column}"]:
            sums[row[column]] = sums.get(row[column], 0) + row["tokens"]
    total = sum(sums.values())
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return [{column: name, "tokens": count, "share": count / total} for name, count in ordered]
