"""Write the card of a folder from a Jinja template and evidence files: README.md, and card.json with the sources.

    python -m model_card.card dist/NAME          rewrite the cards of a release, one per folder
    python -m model_card.card model_card/femto   the card of a variant without its release, from the evidence in it
    python -m model_card.card model_card/nano_1.2b      the card of a folder with its own template.md and facts.json

A template sees only files. card.json (provenance.py) records every value that it prints, with its line and column in
README.md, its file and JSON pointer, and its format. `model_card.validate` reads all of them again.

The evidence of a release is in `evidence/` of each folder, so that the card can be checked wherever the folder is:
`release.json`; `data.json`, `lineage.json` and `facts.json` (see facts.py); `generation_config.json`; `eval/TASK.json`
of the run; and, if they exist, `samples.json`, `comparison.json` (see run_export.py) and
`minimal_pairs.json`, a comparison on minimal pairs alone.
"""

if not __package__:  # run by path; same as `python -m model_card.card`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from .disclosure.attribution import write_attribution
from .disclosure.bom import BomBuilder, write_boms
from .disclosure.dataset_metadata import write_shard_metadata
from .escaping import shell_line
from .facts import HUB_NAME, LANGUAGE_NAMES, collect_corpora, facts, lineage
from .files import (
    BOM,
    SIGNATURE,
    SUMS,
    ReleaseError,
    inside,
    locked,
    read_json,
    read_yaml,
    run_main,
    sha256,
    sums,
    write_json,
    write_sums,
    write_text,
)
from .hub import write_benchmark_results
from .provenance import FENCE, TracedValue, fence, locate, render_with_marks, resolve_pointer, unwrap, unwrap_metadata
from .run import Run
from .run_export import last_samples, read_comparison

TEMPLATES = Path(__file__).parent / "templates"
EVIDENCE = "evidence"
PURPOSES = {  # of the tasks that a model is tuned for
    "ocr": "correcting the errors of OCR",
    "translation": "translating between the languages of its training text",
    "rag": "answering questions from given sources, with quotations",
    "instruct": "following instructions in conversation",
}
BEFORE, CHANGE = "_before", "_change"  # after the name of a metric: the base model's value, and the difference
PAGE_ONLY = ("speed", "toxicity")  # tasks whose results depend on the machine, or need the explanation on the page
COMPARED = ("bits_per_byte", "minimal_pairs")  # tasks with a table beside other models
RELATIONS = ("adapter", "finetune", "merge", "quantized")  # that the Hub knows between a model and its base
FORMATS = {"gguf": "GGUF", "onnx": "ONNX", "openvino": "OpenVINO"}  # folders besides the variants -> name on the Hub
PARTS = ("llama", "custom", *FORMATS)  # the folders of a release
BITS = {"2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "8": "eight"}


def write_card_files(
    folder: Path, template: Path, sources: dict[str, Path], metadata, command: str, **context
) -> None:
    """Write README.md and card.json of a folder.

    Args:
        folder: The folder.
        template: The template.
        sources: Name in the template -> JSON file below the folder.
        metadata: Function of the traced values that returns the card's metadata; it may add names for the template.
        command: Command that wrote the card.
        context: Further names in the template.
    """
    traced, traced_metadata = [], []
    values = trace(folder, sources, traced)
    head = unwrap_metadata(metadata(values), "", traced_metadata)
    body, numbers = locate(render_with_marks(template, values, head=head, **context), traced)
    text = f"---\n{yaml_dump(head, sort_keys=False)}---\n{body}"
    shift = text[: len(text) - len(body)].count("\n")
    write_text(folder / "README.md", text)
    content = {
        "command": command,
        "evidence": {path.relative_to(folder).as_posix(): sha256(path) for path in sources.values()},
        "numbers": [{**number, "line": number["line"] + shift} for number in numbers],
        "metadata": traced_metadata,
    }
    write_json(folder / "card.json", content)


def trace(folder: Path, sources: dict[str, Path], traced: list) -> dict[str, TracedValue]:
    """Return the content of JSON files below a folder, by name, as traced values that record in `traced`."""
    return {
        name: TracedValue(read_json(path), f"{path.relative_to(folder).as_posix()}#", traced)
        for name, path in sources.items()
    }


# The cards of a release ---------------------------------------------------------------------------


def metadata_of(part: str, values: dict, *, repository: str | None, base_model: str | None, relation: str) -> dict:
    """Return the metadata of one folder of a release.

    Args:
        part: The folder.
        values: `release`, `facts`, `lineage`, `data` and the results of tasks.
        repository: OWNER/NAME on the Hub of the `llama` folder, if known.
        base_model: Hub name of the model that the run started from.
        relation: `base_model_relation` to it.
    """
    release, fact = values["release"], values["facts"]
    run, origin, head = release.source.run, unwrap(fact.origin), {}
    tuned = origin == "fine-tuning" or base_model and origin != "continued"
    if datasets := hub_datasets(values["data"], run.config if run else None):
        head["datasets"] = datasets
    if part in FORMATS and repository:
        head |= {"base_model": repository, "base_model_relation": "quantized"}
    elif base_model:
        head |= {"base_model": base_model, "base_model_relation": relation}
    trained = [row for row in values["lineage"].runs if unwrap(row.hardware)]
    if unwrap(fact.grams_co2eq) is not None and trained:
        head["co2_eq_emissions"] = {
            "emissions": fact.grams_co2eq,
            "source": trained[-1].measured_by,
            "training_type": "fine-tuning" if tuned else "pre-training",
            "geographical_location": trained[-1].country,
            "hardware_used": trained[-1].hardware,
        }
    results = eval_results(values["tasks"], repository)
    if unwrap(fact.bits_per_byte) is not None and not any(task["task"] == "bits_per_byte" for task in values["tasks"]):
        results[:0] = validation_results(fact)
    data = ModelCardData(
        language=list(release.languages),
        license=release.license,
        library_name="transformers" if part in ("custom", "llama") else None,
        pipeline_tag="text-generation",
        tags=[
            *("pleias", "open-data"),
            *([FORMATS[part].lower()] if part in FORMATS else []),
            *(["custom_code"] if part == "custom" else []),
        ],
        model_name=release.name if results else None,
        eval_results=results or None,
        **head,
    )
    return data.to_dict()


def hub_datasets(data: TracedValue, config: TracedValue | None) -> list[TracedValue]:
    """Return the names of the data sets on the Hub that the text comes from, of data.json and of a run's settings."""
    names = {}
    if config and (unwrap(config).get("corpus") or {}).get("source") == "common_corpus":
        names[unwrap(config.corpus.dataset)] = config.corpus.dataset
    for corpus in data:
        for i, source in enumerate((unwrap(corpus).get("sources") or {}).get("sources", [])):
            if isinstance(source, dict) and source.get("kind") == "hf":
                names.setdefault(source["name"], corpus.sources.sources[i].name)
    return list(names.values())


def validation_results(fact: TracedValue) -> list[EvalResult]:
    """Return the mean bits per byte of the run's last validation as a result."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="Held-out documents of the training corpus",
            dataset_split="validation",
            metric_type="bits_per_byte",
            metric_name="Bits per byte, mean of the languages",
            metric_value=fact.bits_per_byte,
        )
    ]


def eval_results(tasks: list[dict], repository: str | None = None) -> list[EvalResult]:
    """Return the results of tasks: of a comparison with the base model both values, otherwise as on the page.

    A task with a mean has it and the eight languages; its other values are in evidence/.

    Args:
        tasks: Results of `task_results`.
        repository: OWNER/NAME on the Hub, if known, to which the source of each result links.
    """
    results = []
    for task in tasks:
        pairs = [(name, name) for name in map(unwrap, task["names"])]
        if "mean" in task["metrics"]:
            pairs += [(code, name) for code, name in LANGUAGE_NAMES.items() if code in task["metrics"]]
        fingerprint = (unwrap(task["result"]).get("data") or {}).get("fingerprint")
        address = f"https://huggingface.co/{repository}/blob/main/{task['file']}" if repository else None
        for name in map(unwrap, task["compared"]):
            pairs += [(name, name), (name + BEFORE, f"{name} of the model that training started from")]
        for name, title in pairs if task["task"] not in PAGE_ONLY else []:
            metric = task["metrics"][name]
            value = metric["value"] if isinstance(unwrap(metric), dict) else metric
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task["task"],
                    dataset_name=task["task"],
                    dataset_revision=fingerprint,
                    source_name=task["file"] if address else None,
                    source_url=address,
                    metric_type=name,
                    metric_name=title,
                    metric_value=value,
                )
            )
    return results


def task_results(result: TracedValue, file: str) -> dict:
    """Return a task's results for the template, with the names of the metrics that a card shows.

    Args:
        result: The content of eval/TASK.json; a metric is a number, or {value, low, high}.
        file: Its path in the folder, as part of a link.
    """
    metrics = result.metrics
    compared = [name for name in metrics if name + BEFORE in metrics]
    others = [name for name in metrics if name.removesuffix(BEFORE).removesuffix(CHANGE) not in compared]
    names = ["mean"] if "mean" in metrics else others
    task = unwrap(result.task)
    return {"task": task, "file": file, "result": result, "metrics": metrics, "compared": compared, "names": names}


def terms(model: dict) -> str:
    """Describe a baseline of a comparison by its name: whether it was tuned for instructions, and its precision."""
    name = Path(model.get("source") or model["name"]).name.lower()
    bits = re.search(r"(?<![a-z])i?q(\d)_", name)
    tuned = "tuned for instructions" if "instruct" in name else "base model"
    return f"{tuned}, weights quantized to {BITS[bits[1]]} bits" if bits and bits[1] in BITS else tuned


def write_cards(
    out: Path,
    command: str,
    *,
    run: Run | None = None,
    repository: str | None = None,
    base_model: str | None = None,
    relation: str = "finetune",
    documents: Iterable[Path] = (),
    comparison: Path | None = None,
) -> None:
    """Write the evidence and the card of each folder of a release; SHA256SUMS is left to the caller.

    Args:
        out: Folder of the release, with release.json.
        command: Command that wrote the cards.
        run: The run; not needed if the evidence exists already.
        repository: OWNER/NAME on the Hub, if known.
        base_model: Hub name of the model that the run started from, if config.yaml does not state it.
        relation: `base_model_relation` to it.
        documents: The documents of public_summary.py, to be copied next to each card.
        comparison: Folder with the results of training.evaluate for the run and other models. Default: RUN/comparison.

    Raises:
        ReleaseError: If something that the card needs is not recorded, or was measured on other weights.
    """
    release = read_json(out / "release.json")
    base_model = base_model or (release["source"]["run"] or {}).get("base_model")
    for name in filter(None, (repository, base_model)):
        if not HUB_NAME.fullmatch(name):
            raise ReleaseError(f"{name!r} is not the name of a repository on the Hub: OWNER/NAME.")
    if unknown := sorted(release["folders"].keys() - set(PARTS)):
        raise ReleaseError(f"{out / 'release.json'} lists {unknown[0]!r}, which is no folder of a release.")
    new, optional = {}, {}
    if run:
        new = {"data": collect_corpora(run), "lineage": lineage(run)}
        optional["samples"] = last_samples(run) if run.config.get("stages") else None
        optional["comparison"] = read_comparison(comparison or run.folder / "comparison", run)
    for part in release["folders"]:
        evidence = out / part / EVIDENCE
        evidence.mkdir(exist_ok=True)
        shutil.copyfile(out / "release.json", evidence / "release.json")
        shutil.copyfile(out / "llama" / "generation_config.json", evidence / "generation_config.json")
        for name, empty in (("data", []), ("lineage", {"runs": []})):
            if name in new or not (evidence / f"{name}.json").is_file():
                write_json(evidence / f"{name}.json", new.get(name, empty))
        write_attribution(out / part)
        derived = facts(release, read_json(evidence / "data.json"), read_json(evidence / "lineage.json"))
        write_json(evidence / "facts.json", derived)
        for document in documents:
            shutil.copyfile(document, out / part / document.name)
        for result in sorted(run.folder.glob("eval/*.json")) if run else []:
            (evidence / "eval").mkdir(exist_ok=True)
            content = read_json(result)
            facts_only = {key: value for key, value in content.items() if key != "examples"}  # these are texts
            write_json(evidence / "eval" / result.name, content | run.relative(facts_only))
        if part not in FORMATS:
            write_benchmark_results(out / part, repository)
        for name, content in optional.items():
            if content:
                write_json(evidence / f"{name}.json", content)
            else:  # of another run
                (evidence / f"{name}.json").unlink(missing_ok=True)
        write_card(out, part, command, repository=repository, base_model=base_model, relation=relation)


def write_card(out: Path, part: str, command: str, **options) -> None:
    """Write the card of one folder of a release, whose evidence exists."""
    write_folder_card(out / part, part, command, **options)


def write_folder_card(folder: Path, part: str, command: str, **options) -> None:
    """Write the card of a folder, whatever its name, as that of one folder of a release."""
    sources, head, names = card_inputs(folder, part, **options)
    write_card_files(folder, TEMPLATES / "card.md", sources, head, command, **names)


def variant_in(folder: Path) -> str | None:
    """Return which variant of a release a folder alone is, or None for any other folder."""
    if not (folder / EVIDENCE / "release.json").is_file() or not (folder / "config.json").is_file():
        return None
    listed, digest = read_json(folder / EVIDENCE / "release.json")["folders"], sha256(folder / "config.json")
    files = {part: listed[part]["files"].get("config.json", {}) for part in ("llama", "custom") if part in listed}
    return next((part for part, file in files.items() if file.get("sha256") == digest), None)


def rewrite_variant(folder: Path, part: str, command: str, **options) -> None:
    """Write what follows from the evidence in the folder of a variant: sources, facts, card, BOM and SHA256SUMS."""
    evidence = folder / EVIDENCE
    write_attribution(folder)
    inputs = (read_json(evidence / f"{name}.json") for name in ("release", "data", "lineage"))
    write_json(evidence / "facts.json", facts(*inputs))
    write_benchmark_results(folder, options["repository"])
    write_folder_card(folder, part, command, **options)
    write_shard_metadata(folder, [folder], options["repository"])
    write_json(folder / BOM, BomBuilder(folder, folder, options["repository"]).build())
    write_text(folder / SUMS, "\n".join(sums(folder)[Path()]) + "\n")


def card_inputs(folder: Path, part: str, **options) -> tuple[dict[str, Path], Callable, dict]:
    """Return the sources, the metadata and the further names of the card of a folder, as for `write_card_files`."""
    sources = {name: folder / EVIDENCE / f"{name}.json" for name in ("release", "facts", "lineage", "data")}
    sources["generation_config"] = folder / EVIDENCE / "generation_config.json"
    results = sorted((folder / EVIDENCE / "eval").glob("*.json"))
    sources |= {f"task_{i}": path for i, path in enumerate(results)}
    optional = {name: folder / EVIDENCE / f"{name}.json" for name in ("samples", "comparison", "minimal_pairs")}
    optional["origins"] = folder / EVIDENCE / "sources.json"
    sources |= {name: path for name, path in optional.items() if path.is_file()}

    def head(values: dict) -> dict:
        files = [quote(path.relative_to(folder).as_posix()) for path in results]
        values["tasks"] = [task_results(values.pop(f"task_{i}"), file) for i, file in enumerate(files)]
        metadata = metadata_of(part, values, **options)
        comparisons = [values[name] for name in ("comparison", "minimal_pairs") if name in values]
        values["compared"] = {name: content for content in comparisons for name in COMPARED if name in content.tasks}
        for task in values["tasks"]:  # the tables of the comparisons show them
            task["names"] = [] if task["task"] in values["compared"] else task["names"]
        return metadata

    runs = [row["name"] for row in read_json(sources["lineage"])["runs"]]
    exported = [run for run in runs if inside(folder / "runs", run).is_dir()]
    curves = [quote(f"runs/{run}/loss.png") for run in exported if (folder / "runs" / run / "loss.png").is_file()]
    samples = read_json(optional["samples"])["samples"] if "samples" in sources else []
    names = {
        **{"part": part, "formats": FORMATS, "language_names": LANGUAGE_NAMES, "purposes": PURPOSES, "terms": terms},
        **{"before": BEFORE, "change": CHANGE, **options, **dict.fromkeys(optional.keys() - sources.keys())},
        "summary": (folder / "public_summary.md").is_file(),
        "exported": exported,
        "curves": curves if len(curves) < 3 else curves[:1],
        "fence": fence(text for sample in samples for text in sample.values()),
    }
    return sources, head, names


def python_blocks(folder: Path) -> set[str]:
    """Return the Python code that the templates of this package write into the card of a folder, whatever it contains.

    The code is taken before values replace their marks, so no value of a file is taken for a block.
    """
    template, rendered = Path(__file__).parent / folder.resolve().name / "template.md", []
    if (folder / EVIDENCE / "release.json").is_file():
        for part in PARTS:
            sources, head, names = card_inputs(folder, part, repository=None, base_model=None, relation="finetune")
            values = trace(folder, sources, [])
            rendered.append(render_with_marks(TEMPLATES / "card.md", values, head=head(values), **names))
    elif template.is_file():
        values = trace(template.parent, {"facts": template.with_name("facts.json")}, [])
        rendered.append(render_with_marks(template, values, head={}, language_names=LANGUAGE_NAMES))
    return {code for text in rendered for _, language, code in FENCE.findall(text) if language.strip() == "python"}


# A folder with a template of its own --------------------------------------------------------------


def write_standalone_card(folder: Path, command: str) -> None:
    """Write the card of a folder with template.md, metadata.yaml and facts.json, which no run of this project made.

    A value `=POINTER` in metadata.yaml is the value at that pointer of facts.json.
    """
    declared = read_yaml(folder / "metadata.yaml")

    def fill_in(value, values: dict):
        if isinstance(value, dict):
            return {key: fill_in(item, values) for key, item in value.items()}
        if isinstance(value, list):
            return [fill_in(item, values) for item in value]
        pointer = value.removeprefix("=") if isinstance(value, str) and value.startswith("=/") else None
        return resolve_pointer(values["facts"], pointer) if pointer else value

    write_card_files(
        folder,
        folder / "template.md",
        {"facts": folder / "facts.json"},
        lambda values: fill_in(declared, values),
        command,
        language_names=LANGUAGE_NAMES,
    )


def main() -> None:
    """`python -m model_card.card`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="Folder of a release, or one with template.md and facts.json.")
    parser.add_argument("--run", type=Path, help="Run folder, to update the evidence from it. Default: no update.")
    parser.add_argument(
        "--comparison", type=Path, help="Folder with the results of the run and of baselines. Default: RUN/comparison."
    )
    parser.add_argument("--repository", metavar="OWNER/NAME", help="Repository of the release on the Hub.")
    parser.add_argument("--base_model", metavar="OWNER/NAME", help="Hub name of the model that the run started from.")
    parser.add_argument(
        "--base_model_relation", choices=RELATIONS, default="finetune", help="Relation to it. Default: finetune."
    )
    args = parser.parse_args()
    with locked(args.folder):
        write_folder(args)
    for path in sorted(args.folder.rglob("README.md")):
        print(path)


def write_folder(args: argparse.Namespace) -> None:
    """Write the cards of a folder, as the command line requests.

    Raises:
        ReleaseError: If it is not a folder for cards.
    """
    command = shell_line(["python", "-m", "model_card.card", *sys.argv[1:]])
    if (args.folder / "template.md").is_file():
        write_standalone_card(args.folder, command)
    elif (args.folder / "release.json").is_file():
        release = read_json(args.folder / "release.json")
        if release.get("signature"):
            raise ReleaseError(f"{args.folder} is signed, and a new card would break its signature: release it again.")
        options = {"repository": args.repository, "base_model": args.base_model, "relation": args.base_model_relation}
        run = Run(args.run) if args.run else None
        write_cards(args.folder, command, run=run, comparison=args.comparison, **options)
        parts = [args.folder / part for part in release["folders"]]
        write_shard_metadata(args.folder / "llama", parts, args.repository)
        write_boms(args.folder, args.repository)
        write_sums(args.folder)
    elif part := variant_in(args.folder):
        if (args.folder.resolve().parent / "release.json").is_file():
            raise ReleaseError(f"{args.folder} is part of a release: pass the folder of the release.")
        if (args.folder / SIGNATURE).is_file():
            raise ReleaseError(f"{args.folder} is signed, and a new card would break its signature: release it again.")
        options = {"repository": args.repository, "base_model": args.base_model, "relation": args.base_model_relation}
        rewrite_variant(args.folder, part, command, **options)
    else:
        raise ReleaseError(
            f"{args.folder} has no release.json, no template.md, and is no variant of a release: pass one of these."
        )


if __name__ == "__main__":
    run_main(main)
