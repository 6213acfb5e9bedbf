"""The card of a folder: a Jinja template + results on file -> README.md; card.json says where its numbers are from.

    python -m model_card.card dist/NAME          the cards of a release anew, one for each of its folders
    python -m model_card.card model_card/nano_1.2b      that of a folder with template.md and facts.json of its own

A template sees files and nothing else: what it prints of them is noted in card.json with its place in README.md, the
file and JSON pointer it came from, its value and format. `model_card.validate` reads all of them again.

    {command, evidence {file: sha256},
     numbers [{line, column, text, source: FILE#POINTER, value, format}],
     metadata [{pointer: in the metadata, source, value}]}

A release's files lie in `evidence/` of each folder, so that the card can be checked wherever the folder is:
`release.json`; `data.json` and `facts.json` (see facts.py); `generation_config.json`; `eval/TASK.json` of the run; and
where it has them `samples.json` and `comparison.json` (see run_files.py).
"""

if not __package__:  # run by path; same as `python -m model_card.card`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .facts import LANGUAGE_NAMES, facts, gather, roots
from .files import ReleaseError, portable, program, read_json, sha256, write_json, write_sums
from .run_files import last_samples, read_comparison

HERE = Path(__file__).parent
EVIDENCE = "evidence"
CURVE = "loss.png"  # in run/, and in run/before/
PURPOSES = {  # of the tasks that a model is tuned for
    "ocr": "correcting the errors of OCR",
    "translation": "translating between the languages it learnt",
    "rag": "answering questions from given sources, with quotations",
    "instruct": "following instructions in conversation",
}
BEFORE, CHANGE = "_before", "_change"  # after the name of a metric: of the base, and from it to the result
RELATIONS = ("adapter", "finetune", "merge", "quantized")  # that the Hub knows between a model and its base
MARK = re.compile("\ue000(\\d+)\ue001")  # in place of what comes from a file, until its place is known
DIGIT = re.compile(r"\d")
# What the folders hold, besides `llama`, and what the Hub calls that.
FORMATS = {"gguf": "GGUF", "onnx": "ONNX", "openvino": "OpenVINO"}


class Doc:
    """A value from a JSON file that knows where it stands; parts of it are such values again.

    Args:
        value: the value.
        source: FILE#POINTER.
        noted: where a printed value is noted, and whether card.json has it; all parts of a card share it.
    """

    def __init__(self, value, source: str, noted: list[tuple[dict, bool]]):
        self._value, self._source, self._noted = value, source, noted

    def __getitem__(self, key) -> "Doc":
        step = str(key).replace("~", "~0").replace("/", "~1")
        return Doc(self._value[key], f"{self._source}/{step}", self._noted)

    def __getattr__(self, name: str) -> "Doc":
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]  # a missing key ends the rendering

    def __iter__(self) -> Iterator:
        return iter(self._value) if isinstance(self._value, dict) else (self[i] for i in range(len(self._value)))

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other) -> bool:
        return self._value == plain(other)

    def __contains__(self, key) -> bool:
        return key in self._value

    def __str__(self) -> str:
        return show(self)


def plain(value):
    """What a `Doc` holds; anything else as it is."""
    return value._value if isinstance(value, Doc) else value


def show(doc: Doc, format: str | None = None, *, always: bool = False) -> str:
    """A mark in place of a value, noted; whole numbers in thousands unless a format says otherwise.

    Args:
        doc: the value.
        format: as `format()` takes it.
        always: whether card.json has it though no digit is in it.

    Raises:
        ReleaseError: when it is no number or text.
    """
    value = plain(doc)
    if isinstance(value, dict | list) or value is None:
        raise ReleaseError(f"The template prints {doc._source}, which is no number or text.")
    if format is None:
        format = "," if isinstance(value, int) and not isinstance(value, bool) else ""
    text = value.__format__(format)
    note = {"text": text, "source": doc._source, "value": value, "format": format}
    doc._noted.append((note, always or bool(DIGIT.search(text))))
    return f"\ue000{len(doc._noted) - 1}\ue001"


def verbatim(doc: Doc) -> str:
    """A text of any kind as it is, noted in any case."""
    return show(doc, "", always=True)


def fence(texts: Iterable[str]) -> str:
    """Backticks that open and close a block in which the texts stand as they are: more than any of them has."""
    return "`" * max(3, 1 + max((len(found) for text in texts for found in re.findall("`+", text)), default=0))


def render(template: Path, docs: dict, noted: list[tuple[dict, bool]], **context) -> tuple[str, list[dict]]:
    """A template with its values, and for each that is to be in card.json where it begins.

    Args:
        template: path of the template.
        docs: name -> `Doc`.
        noted: the list that those documents note in.
        context: further names, which may hold no figures.

    Returns:
        the text, and the numbers as card.json has them.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["f"] = show
    environment.filters["verbatim"] = verbatim
    environment.filters["plain"] = plain
    marked = environment.get_template(template.name).render(**docs, **context)
    numbers, line, column = [], 1, 1

    def place(text: str) -> str:
        nonlocal line, column
        line += text.count("\n")
        column = len(text) - text.rfind("\n") if "\n" in text else column + len(text)
        return text

    written = []
    for i, piece in enumerate(MARK.split(re.sub(r"\n{3,}", "\n\n", marked))):
        if i % 2:  # the number of a mark
            note, kept = noted[int(piece)]
            numbers += [{"line": line, "column": column, **note}] if kept else []
            piece = note["text"]
        written.append(place(piece))
    return "".join(written), numbers


def unwrap(value, pointer: str, noted: list[dict]):
    """Metadata with its documents made plain values; each is noted with its pointer in the metadata."""
    if isinstance(value, dict):
        return {key: unwrap(item, f"{pointer}/{key}", noted) for key, item in value.items()}
    if isinstance(value, list):
        return [unwrap(item, f"{pointer}/{i}", noted) for i, item in enumerate(value)]
    if isinstance(value, Doc):
        noted.append({"pointer": pointer, "source": value._source, "value": value._value})
        return value._value
    return value


def write(folder: Path, template: Path, sources: dict[str, Path], metadata, command: str, **context) -> None:
    """Write README.md and card.json of a folder.

    Args:
        folder: the folder.
        template: the template.
        sources: name in the template -> JSON file below the folder.
        metadata: function of the documents that returns the metadata at the head of the card.
        command: what made the card.
        context: further names in the template.
    """
    noted, in_head = [], []
    docs = {
        name: Doc(read_json(path), f"{path.relative_to(folder).as_posix()}#", noted) for name, path in sources.items()
    }
    head = unwrap(metadata(docs), "", in_head)
    body, numbers = render(template, docs, noted, head=head, **context)
    text = f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)}---\n{body}"
    shift = text[: len(text) - len(body)].count("\n")
    (folder / "README.md").write_text(text, encoding="utf-8")
    content = {
        "command": command,
        "evidence": {path.relative_to(folder).as_posix(): sha256(path) for path in sources.values()},
        "numbers": [{**number, "line": number["line"] + shift} for number in numbers],
        "metadata": in_head,
    }
    write_json(folder / "card.json", content)


# The cards of a release ---------------------------------------------------------------------------


def metadata_of(part: str, docs: dict, *, repository: str | None, base_model: str | None, relation: str) -> dict:
    """The metadata of one folder of a release.

    Args:
        part: the folder.
        docs: `release`, `facts` and the results of tasks.
        repository: OWNER/NAME on the Hub of the `llama` folder, where known.
        base_model: what the run started from, on the Hub.
        relation: how it came from that; what `base_model_relation` says.
    """
    release, fact = docs["release"], docs["facts"]
    run, origin = release.source.run, plain(fact.origin)
    tuned = origin == "fine-tuning" or base_model and origin != "continued"
    head = {
        "language": list(release.languages),
        "license": release.license,
        "library_name": "transformers" if part in ("custom", "llama") else None,
        "pipeline_tag": "text-generation",
        "tags": ["pleias", "open-data", *([FORMATS[part].lower()] if part in FORMATS else [])],
    }
    head["tags"] += ["custom_code"] if part == "custom" else []
    if run and (plain(run.config).get("corpus") or {}).get("source") == "common_corpus":
        head["datasets"] = [run.config.corpus.dataset]
    if part in FORMATS and repository:
        head |= {"base_model": repository, "base_model_relation": "quantized"}
    elif base_model:
        head |= {"base_model": base_model, "base_model_relation": relation}
    if plain(fact.grams_co2eq) is not None and run.run.sessions:
        session = run.run.sessions[0]
        gpus = session.hardware.gpus
        head["co2_eq_emissions"] = {
            "emissions": fact.grams_co2eq,
            "source": run.emissions.source,
            "training_type": "fine-tuning" if tuned else "pre-training",
            "geographical_location": run.config.country,
            "hardware_used": gpus[0] if gpus else session.hardware.cpu,
        }
    results = [*held_out(run), *tasks(docs)]
    if results:
        head["model-index"] = [{"name": release.name, "results": results}]
    return {key: value for key, value in head.items() if value is not None}


def held_out(run: Doc) -> list[dict]:
    """Bits per byte of the run's last validation, as results of a model-index."""
    scores = run.validation.validation if run and run.validation else []
    return [
        {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {
                "type": "held-out",
                "name": f"Held-out documents of the training corpus ({LANGUAGE_NAMES.get(code, code)})",
                "config": code,
                "split": "validation",
            },
            "metrics": [{"type": "bits_per_byte", "name": "Bits per byte", "value": scores[code].bits_per_byte}],
        }
        for code in scores
    ]


def tasks(docs: dict) -> list[dict]:
    """The results in eval/TASK.json, as those of a model-index: a metric is a number, or {value, low, high}.

    Of a comparison both sides are there, the one before named as what it is; the change follows from them.
    """
    results = []
    for task in docs["tasks"]:
        metrics = []
        for name in task.metrics:
            of = name.removesuffix(BEFORE).removesuffix(CHANGE)
            if name == of or of not in task.metrics:
                metrics.append({"type": name, "name": name, "value": central(task.metrics[name])})
            elif name.endswith(BEFORE):
                shown = f"{of} of the model that training started from"
                metrics.append({"type": name, "name": shown, "value": central(task.metrics[name])})
        dataset = {"type": task.task, "name": task.task}
        results.append({"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics})
    return results


def central(metric: Doc) -> Doc:
    """The value itself of a metric that comes with an interval."""
    return metric["value"] if isinstance(plain(metric), dict) else metric


def write_cards(
    out: Path,
    command: str,
    *,
    run: Path | None = None,
    repository: str | None = None,
    base_model: str | None = None,
    relation: str = "finetune",
    documents: Iterable[Path] = (),
    comparison: Path | None = None,
) -> None:
    """Write the evidence and the card of each folder of a release; SHA256SUMS is left to the caller.

    Args:
        out: folder of the release, with release.json.
        command: what made the cards.
        run: the run's folder; not needed when the evidence is there already.
        repository: OWNER/NAME on the Hub, where known.
        base_model: what the run started from, where config.yaml does not name it on the Hub.
        relation: `base_model_relation` of it.
        documents: those of public_summary.py, to be put beside each card.
        comparison: folder of what training.evaluate measured of the run and others; comparison/ of the run when not
            given.

    Raises:
        ReleaseError: when something that the card needs is not on file, or was measured on other weights.
    """
    release = read_json(out / "release.json")
    base_model = base_model or (release["source"]["run"] or {}).get("base_model")
    data, beside = gather(run) if run else None, {}
    if run:
        pretrained = release["source"]["run"]["config"].get("stages")
        beside["samples"] = last_samples(run) if pretrained else None
        beside["comparison"] = read_comparison(comparison or run / "comparison", run)
    for part in release["folders"]:
        evidence = out / part / EVIDENCE
        evidence.mkdir(exist_ok=True)
        shutil.copyfile(out / "release.json", evidence / "release.json")
        shutil.copyfile(out / "llama" / "generation_config.json", evidence / "generation_config.json")
        if data is not None or not (evidence / "data.json").is_file():
            write_json(evidence / "data.json", data or [])
        write_json(evidence / "facts.json", facts(release, read_json(evidence / "data.json")))
        for document in documents:
            shutil.copyfile(document, out / part / document.name)
        for result in sorted(run.glob("eval/*.json")) if run else []:
            (evidence / "eval").mkdir(exist_ok=True)
            content = read_json(result)
            told = {key: content[key] for key in ("command", "model") if key in content}
            write_json(evidence / "eval" / result.name, content | portable(told, *roots(run)))
        for name, content in beside.items():
            if content:
                write_json(evidence / f"{name}.json", content)
            else:  # of another run
                (evidence / f"{name}.json").unlink(missing_ok=True)
        write_card(out, part, command, repository=repository, base_model=base_model, relation=relation)


def write_card(out: Path, part: str, command: str, **options) -> None:
    """Write the card of one folder of a release, whose evidence is there."""
    folder = out / part
    sources = {name: folder / EVIDENCE / f"{name}.json" for name in ("release", "facts", "generation_config")}
    results = sorted((folder / EVIDENCE / "eval").glob("*.json"))
    sources |= {f"task_{i}": path for i, path in enumerate(results)}
    optional = {name: folder / EVIDENCE / f"{name}.json" for name in ("samples", "comparison")}
    sources |= {name: path for name, path in optional.items() if path.is_file()}

    def head(docs: dict) -> dict:
        docs["tasks"] = [docs.pop(name) for name in [*docs] if name.startswith("task_")]
        return metadata_of(part, docs, **options)

    summary = (folder / "public_summary.md").is_file()
    names = {"part": part, "summary": summary, "formats": FORMATS, "language_names": LANGUAGE_NAMES, **options}
    names |= {"before": BEFORE, "change": CHANGE, "purposes": PURPOSES}
    names["curves"] = [path.relative_to(folder).as_posix() for path in (folder / "run").rglob(CURVE)]
    names |= dict.fromkeys(optional.keys() - sources.keys())
    written = read_json(optional["samples"])["samples"] if "samples" in sources else []
    names["fence"] = fence(text for sample in written for text in sample.values())
    write(folder, HERE / "template.md", sources, head, command, **names)


# A folder with a template of its own --------------------------------------------------------------


def write_own(folder: Path, command: str) -> None:
    """Write the card of a folder that has template.md, metadata.yaml and facts.json: one that no run here made.

    A value `=POINTER` in metadata.yaml is the one at that pointer of facts.json.
    """
    declared = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))

    def filled(value, docs: dict):
        if isinstance(value, dict):
            return {key: filled(item, docs) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item, docs) for item in value]
        if isinstance(value, str) and value.startswith("=/"):
            doc = docs["facts"]
            for step in value.removeprefix("=/").split("/"):
                doc = doc[int(step) if isinstance(plain(doc), list) else step]
            return doc
        return value

    write(
        folder,
        folder / "template.md",
        {"facts": folder / "facts.json"},
        lambda docs: filled(declared, docs),
        command,
        language_names=LANGUAGE_NAMES,
    )


def main() -> None:
    """`python -m model_card.card`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="a release, or a folder with template.md and facts.json")
    parser.add_argument("--run", type=Path, help="folder of the run, to read its evidence anew")
    parser.add_argument(
        "--comparison", type=Path, help="folder of the run measured beside others, else RUN/comparison"
    )
    parser.add_argument("--repository", metavar="OWNER/NAME", help="where the release will lie on the Hub")
    parser.add_argument("--base_model", metavar="OWNER/NAME", help="what a fine-tune started from")
    parser.add_argument("--base_model_relation", choices=RELATIONS, default="finetune")
    args = parser.parse_args()
    command = shlex.join(["python", "-m", "model_card.card", *sys.argv[1:]])
    if (args.folder / "template.md").is_file():
        write_own(args.folder, command)
    elif (args.folder / "release.json").is_file():
        options = {"repository": args.repository, "base_model": args.base_model, "relation": args.base_model_relation}
        write_cards(args.folder, command, run=args.run, comparison=args.comparison, **options)
        write_sums(args.folder)
    else:
        raise ReleaseError(f"{args.folder} has neither release.json nor template.md: give a release's folder.")
    for path in sorted(args.folder.rglob("README.md")):
        print(path)


if __name__ == "__main__":
    program(main)
