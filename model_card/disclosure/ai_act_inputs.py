"""Read the inputs of the AI Act documents: provider.yaml, which only the provider knows, and a run or a release."""

import math
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from safetensors import safe_open

from ..facts import collect_corpora, datasets, lineage, of_corpus, stages_of
from ..files import ReleaseError, read_json, read_yaml, relativize_paths, sha256
from ..run import Run, path_roots

EXAMPLE = Path(__file__).with_name("provider.yaml")
CRAWLER_KEYS = {"names", "purposes", "behaviour", "from", "to", "content", "domains"}
VERSION_KEYS = {"version", "date", "link"}
# Answers that describe something: a warning if they are none or have fewer words.
DESCRIPTIONS = (
    "data.content",
    "data.other_characteristics",
    "data.personal_data",
    "data.obtained",
    "model.intended_uses",
    "processing.rights_reservations",
    "processing.copyright_policy",
    "processing.illegal_content",
)
WORDS = 8  # a sentence that says something about data
OPTIONAL_DESCRIPTIONS = (
    "data.licensed_datasets",
    "data.private_datasets_other",
    "data.user_data_model",
    "data.user_data_services",
    "data.synthetic_beyond_curation",
    "data.other_sources",
)
LINKS = ("summary.published_at", "summary.changes_announced_at", "model.documentation")


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
    content = none_if_not_applicable(content)
    for name in ("summary.date", "model.placed_on_union_market", "model.released"):
        value = value_of(content, name)
        if not isinstance(value, date) and (value is not None or name == "summary.date"):
            raise ReleaseError(f"{path}: {name} must be a date such as 2026-11-23.")
    for name in ("summary.version", "model.names"):
        if value_of(content, name) is None:
            raise ReleaseError(f"{path}: {name} must not be none.")
    crawlers, versions = content["data"]["crawlers"], content["summary"]["previous_versions"]
    if crawlers is not None and not (isinstance(crawlers, dict) and crawlers.keys() >= CRAWLER_KEYS):
        raise ReleaseError(f"{path}: data.crawlers must be none, or a mapping of {', '.join(sorted(CRAWLER_KEYS))}.")
    if crawlers and not all(isinstance(crawlers[key], date) for key in ("from", "to")):
        raise ReleaseError(f"{path}: from and to of data.crawlers must be dates such as 2026-11-23.")
    if crawlers and not isinstance(crawlers["domains"], list | None):
        raise ReleaseError(f"{path}: domains of data.crawlers must be none, or a list of names.")
    if versions is not None and not (
        isinstance(versions, list)
        and all(isinstance(row, dict) and row.keys() >= VERSION_KEYS for row in versions)
        and all(isinstance(row["date"], date) for row in versions)
    ):
        raise ReleaseError(f"{path}: summary.previous_versions must be none, or a list of {{version, date, link}}.")
    if not isinstance(content["data"]["synthetic_models_not_on_market"], dict | None):
        raise ReleaseError(f"{path}: data.synthetic_models_not_on_market must be none, or {{name: description}}.")
    return content


def value_of(content: dict, name: str):
    """Return the value of a field, named SECTION.KEY."""
    section, key = name.split(".")
    return content[section][key]


def none_if_not_applicable(value):
    """Return a value of provider.yaml with None for each `none`."""
    if isinstance(value, dict):
        return {key: none_if_not_applicable(item) for key, item in value.items()}
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def questions() -> dict[str, str]:
    """Return what each field of provider.yaml must state: the comment above it in the example."""
    wanted, section, comment = {}, "", []
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"  # (.*)", line):
            comment.append(match[1])
        elif match := re.match(r"  (\w+):", line):
            wanted[f"{section}.{match[1]}"], comment = " ".join(comment), []
        elif match := re.match(r"(\w+):", line):
            section = match[1]
    return wanted


def thin_answers(provider: dict) -> Iterator[str]:
    """Yield a warning for each answer of `read_provider` that leaves a field of the forms thin."""
    wanted = questions()
    texts = {name: value_of(provider, name) for name in (*DESCRIPTIONS, *OPTIONAL_DESCRIPTIONS)}
    crawlers = provider["data"]["crawlers"] or {}
    texts |= {f"data.crawlers.{key}": crawlers[key] for key in ("purposes", "behaviour", "content") if crawlers}
    for name, text in texts.items():
        words = len(str(text or "").split())
        if words < WORDS and (text is not None or name in DESCRIPTIONS):
            stated = wanted.get(name) or wanted["data.crawlers"]
            yield f"{name} has {words} word{'' if words == 1 else 's'}. It must state: {stated}"
    for name in LINKS:
        if "://" not in str(value_of(provider, name)):
            yield f"{name} has no link. It must state: {wanted[name]}"
    for name in ("model.dependencies", "data.private_datasets_known"):
        if (value := value_of(provider, name)) and "://" not in str(value):
            yield f"{name} has no link. It must state: {wanted[name]}"
    summary = provider["summary"]
    if bool(summary["changes"]) != bool(summary["previous_versions"]):
        yield f"summary.changes and summary.previous_versions belong together. {wanted['summary.previous_versions']}"


def read_run(run: Run) -> dict:
    """Read the files of a run: `config`, `model` (its config.json), `sessions`, `parameters`, `weights`.

    The following cover all runs of Run.lineage: `seconds`, `kwh`, `method` of measuring these, those of
    `training_history`, and `inputs`, the sha256 of each file read.

    Raises:
        ReleaseError: If a file is missing, no manifest lists sources of text, or the run is not a pretraining run.
    """
    runs = [ancestor for ancestor in run.lineage if not ancestor.average]  # a mean of two models trains nothing
    emissions = [read_json(ancestor.folder / "emissions.json") for ancestor in runs]
    data = collect_corpora(run)
    history = training_history(run.folder, data, lineage(run)["runs"])
    if not any(stages_of(ancestor.config) for ancestor in runs):
        raise ReleaseError(f"{run.folder} is not a pretraining run: the documents need the stages of its config.yaml.")
    if not run.weights:
        raise ReleaseError(f"{run.folder / 'model'} contains no weights. Wait for the run to finish.")
    files = [ancestor.folder / name for ancestor in runs for name in ("config.yaml", "run.json", "emissions.json")]
    manifests = [(path, manifest) for ancestor in runs for _, path, manifest in ancestor.manifests]
    inputs = {str(path): sha256(path) for path in [*files, *(path for path, _ in manifests)]}
    names = dict(zip(inputs, run.relative(inputs), strict=True))
    paths = {manifest["fingerprint"]: names[str(path)] for path, manifest in reversed(manifests)}
    return {
        "config": runs[-1].config,
        "model": read_json(run.folder / "model" / "config.json"),
        "sessions": runs[-1].sessions,
        "seconds": sum(record["seconds"] for record in emissions),
        "kwh": sum(record["kwh"] for record in emissions),
        "method": "; ".join(dict.fromkeys(record["source"] for record in emissions)),
        "parameters": sum(count_parameters(run.folder / "model" / name) for name in run.weights),
        "weights": run.weights,
        "inputs": run.relative(inputs),
        "relative": run.relative,
        "pointers": {
            "account": [f"{paths[corpus['fingerprint']]}#/account" for corpus in data],
            "corpus": [f"{paths[corpus['fingerprint']]}#/corpus" for corpus in data],
        },
        **history,
    }


def read_release(folder: Path) -> dict:
    """Read the evidence of a folder of a release: what `read_run` reads of a run, without that of the form.

    Raises:
        ReleaseError: If a file is missing, no corpus lists its sources, or the model is not of a pretraining run.
    """
    names = [f"evidence/{name}.json" for name in ("data", "lineage", "release")]
    data, history, release = (read_json(folder / name) for name in names)
    return {
        "parameters": release["model"]["parameters"],
        "inputs": {name: sha256(folder / name) for name in names},
        "relative": lambda value: relativize_paths(value, *path_roots(folder)),
        "pointers": dict.fromkeys(("account", "corpus"), [f"{names[0]}#/{i}" for i in range(len(data))]),
        **training_history(folder, data, history["runs"]),
    }


def training_history(folder: Path, data: list[dict], runs: list[dict]) -> dict:
    """Return what all runs that the weights come from have read: `data`, `corpora`, `stages`, `tokens`, `foreign`.

    `foreign` names the runs that started from a model that no recorded run trained.

    Args:
        folder: Folder to name in an error.
        data: data.json.
        runs: The rows of lineage.json.

    Raises:
        ReleaseError: If no corpus lists its sources.
    """
    if not any(datasets(corpus) for corpus in data):
        raise ReleaseError(f"{folder} has no shards whose manifest lists its sources, which a summary needs.")
    stages = [stage for row in runs for stage in row["stages"]]
    parents = {"scratch": 0, "average": 2}  # of a run of each origin; of any other, one
    return {
        "data": data,
        "corpora": [of_corpus(corpus) for corpus in data],
        "stages": stages,
        "tokens": sum(stage["tokens"] for stage in stages),
        "foreign": [row["name"] for row in runs if len(row["from"]) < parents.get(row["origin"], 1)],
    }


def check_dependencies(provider_file: Path, provider: dict, run: dict) -> None:
    """Compare the provider's `dependencies` with the history of the model.

    Raises:
        ReleaseError: If it is none, but a run started from a model that no recorded run trained.
    """
    if run["foreign"] and not provider["model"]["dependencies"]:
        raise ReleaseError(
            f"{provider_file}: model.dependencies is none, but the run {', '.join(run['foreign'])} started from a "
            "model that no recorded run trained: name the model and its version, with a link to its summary."
        )


def count_parameters(path: Path) -> int:
    """Count the parameters in a safetensors file."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
