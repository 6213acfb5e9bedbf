"""Write the public summary of training content (Article 53(1)(d) of the AI Act) and the Model Documentation Form.

    python -m model_card.public_summary --run runs/NAME --provider provider.yaml --out DIR

writes `public_summary` and `model_documentation_form`, each as .md, .json and a standalone .html that prints as PDF.
Sections and fields are those of the Commission's template (24 July 2025; adopted as C(2025) 8311 on 5 December 2025).
Facts come from the run's files; what only the provider can attest comes from provider.yaml, where every field is
required. Nothing is guessed. In the .json each field lists its sources as FILE#POINTER, with FILE in the run's folder,
the provider's file, or empty for the document's own `facts`, which are computed from the files in `inputs_sha256`.
"""

if not __package__:  # run by path; same as `python -m model_card.public_summary`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import math
from pathlib import Path

from .disclosure import documentation_form
from .disclosure.ai_act_inputs import EXAMPLE, in_range, read_provider, read_run, rows_by
from .disclosure.form_writers import document, to_html, to_markdown
from .files import ReleaseError, locked, run_main, sha256, write_json, write_text
from .run import Run

TEXT_SIZES = (  # section 1.3: lower bound in tokens, name of the range
    (0, "Less than 1 billion tokens"),
    (10**9, "1 billion to 10 trillion tokens"),
    (10**13, "More than 10 trillion tokens"),
)
LARGE = 0.03  # section 2.1: a dataset is large above this share of all publicly available datasets of its modality
# Section 2.3: share of the domain names to list, by size of the content; small providers list at most 1,000.
DOMAINS, DOMAINS_SME, DOMAINS_SME_MAX = 0.1, 0.05, 1000


def split_datasets(run: dict, public) -> tuple[list[dict], list[dict]]:
    """Return the public and the other datasets of all corpora, each once, with its share of the bytes of its group.

    Args:
        run: Result of `read_run`.
        public: "all", the names of the publicly available datasets, or None.

    Raises:
        ReleaseError: If no dataset has one of the names.
    """
    datasets = {}
    for entry in (entry for corpus in run["corpora"] for entry in corpus["sources"]):
        largest = datasets.setdefault((entry["name"], entry["version"]), entry)
        if entry["documents"] > largest["documents"]:  # stages may read several mixtures of one corpus
            datasets[entry["name"], entry["version"]] = entry
    names = {name for name, _ in datasets}
    chosen = names if public == "all" else set(public or ())
    if unknown := chosen - names:
        raise ReleaseError(f"data.publicly_available: no manifest lists a source {', '.join(sorted(unknown))}.")
    ordered = sorted(datasets.values(), key=lambda entry: (-entry["bytes"], entry["name"]))
    groups = [[entry for entry in ordered if (entry["name"] in chosen) == is_public] for is_public in (True, False)]
    totals = [sum(entry["bytes"] for entry in group) for group in groups]
    return tuple(
        [{**entry, "share": entry["bytes"] / total} for entry in group]
        for group, total in zip(groups, totals, strict=True)
    )


def summary_facts(provider: dict, run: dict) -> dict:
    """Return the computed facts of the public summary."""
    data, corpora = provider["data"], run["corpora"]
    public, private = split_datasets(run, data["publicly_available"])
    small = [entry for entry in public if entry["share"] <= LARGE]
    languages = rows_by(run, "language")
    tokens = sum(row["tokens"] for row in languages)
    domains = data["crawlers"]["domains"] if data["crawlers"] else []  # largest first
    count = math.ceil(len(domains) * (DOMAINS_SME if provider["provider"]["sme"] else DOMAINS))
    count = min(count, DOMAINS_SME_MAX) if provider["provider"]["sme"] else count
    return {
        "tokens": tokens,
        "size_range": in_range(tokens, TEXT_SIZES),
        "latest_acquisition": max((row["retrieved"] for row in public + private if row["retrieved"]), default=None),
        "undated": [row["name"] for row in public + private if not row["retrieved"]],
        "languages": languages,
        "licences": rows_by(run, "license"),
        "public": len(public),
        "large": [entry for entry in public if entry["share"] > LARGE],
        "small": [entry["name"] for entry in small],
        "small_share": sum(entry["share"] for entry in small),
        "private": private,
        "domains": domains[:count],
        "synthetic": [corpus["synthetic"] for corpus in corpora if corpus["synthetic"]],
        "dropped": [row for corpus in corpora for row in corpus["left_out"]],
    }


def write(run: Run, provider_file: Path, out: Path) -> list[Path]:
    """Write both documents; return the paths of their files. Arguments and errors as in `fill_documents`."""
    return write_documents(fill_documents(run, provider_file), out)


def fill_documents(run: Run, provider_file: Path) -> dict[str, dict]:
    """Return the content of both documents by name.

    Raises:
        ReleaseError: If provider.yaml or a file of the run is missing or incomplete, or the run is a fine-tuning.
    """
    provider, facts = read_provider(provider_file), read_run(run)
    inputs = run.relative({**facts["inputs"], str(provider_file): sha256(provider_file)})
    values = {section: (fields, f"{provider_file.name}#/{section}") for section, fields in provider.items()}
    values |= {"config": (facts["config"], "config.yaml#"), "config_json": (facts["model"], "model/config.json#")}
    forms = {
        "public_summary": ("public_summary.md", summary_facts(provider, facts)),
        "model_documentation_form": ("documentation_form.md", documentation_form.form_facts(facts)),
    }
    return {
        name: document(
            Path(__file__).parent / "disclosure" / template, values | {"facts": (computed, "#/facts")}, inputs
        )
        for name, (template, computed) in forms.items()
    }


def write_documents(documents: dict[str, dict], out: Path) -> list[Path]:
    """Write each document as Markdown, JSON and HTML; return the paths of the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in documents.items():
        files += [out / f"{name}{suffix}" for suffix in (".md", ".json", ".html")]
        write_text(out / f"{name}.md", to_markdown(content))
        write_json(out / f"{name}.json", content)
        write_text(out / f"{name}.html", to_html(content))
    return files


def main() -> None:
    """`python -m model_card.public_summary`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="Folder of a finished run.")
    parser.add_argument(
        "--provider", type=Path, required=True, help=f"YAML file of what only the provider knows, such as {EXAMPLE}."
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder for the documents.")
    args = parser.parse_args()
    with locked(args.out):
        files = write(Run(args.run), args.provider, args.out)
    for path in files:
        print(path)


if __name__ == "__main__":
    run_main(main)
