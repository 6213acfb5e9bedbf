"""Write the public summary of training content (Article 53(1)(d) of the AI Act) and the Model Documentation Form.

    python -m model_card.public_summary --run runs/NAME --provider provider.yaml --out DIR
    python -m model_card.public_summary --release dist/NAME/llama --provider provider.yaml --out DIR

writes `public_summary` and, for a run, `model_documentation_form`, each as .md, .json and a standalone .html that
prints as PDF, and public_summary.schema.json, a JSON Schema. The summary has the sections and fields of the
Commission's template (disclosure/summary_template.py); its .md and .html are printed from its .json. The form is not
for publication: authorities receive it on request.
Facts come from the run's files, or from the evidence of a released folder; what only the provider can state comes from
provider.yaml, where every field is required. Nothing is guessed. In the .json each field lists its sources as
FILE#POINTER, with FILE in the run's folder or the release, the provider's file, or empty for the form's own `facts`.
"""

if not __package__:  # run by path; same as `python -m model_card.public_summary`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

from .disclosure import documentation_form
from .disclosure.ai_act_inputs import (
    EXAMPLE,
    check_dependencies,
    read_provider,
    read_release,
    read_run,
    thin_answers,
)
from .disclosure.form_writers import form_document, printed_form, printed_summary, to_html, to_markdown
from .disclosure.summary_form import fill_summary
from .disclosure.summary_template import SCHEMA, summary_schema
from .escaping import terminal_line
from .files import locked, run_main, sha256, write_json, write_text
from .run import Run

SUMMARY, FORM = "public_summary", "model_documentation_form"
PUBLISHED = (*(f"{SUMMARY}{suffix}" for suffix in (".md", ".json", ".html")), SCHEMA)  # files of a released folder
PRINTED = {SUMMARY: printed_summary, FORM: printed_form}


def fill_documents(source: Run | Path, provider_file: Path) -> dict[str, dict]:
    """Return the content of the documents by name, and print a warning for each answer that leaves a field thin.

    Args:
        source: The run, for both documents; or a folder of a release, for the summary alone.
        provider_file: Path of provider.yaml.

    Raises:
        ReleaseError: If provider.yaml or a file of the run is missing or incomplete, contradicts the model's history,
            or the run is a fine-tuning.
    """
    provider = read_provider(provider_file)
    facts = read_run(source) if isinstance(source, Run) else read_release(source)
    check_dependencies(provider_file, provider, facts)
    for warning in thin_answers(provider):
        print(f"warning: {terminal_line(f'{provider_file}: {warning}')}", file=sys.stderr)
    facts["inputs"] |= {provider_file.name: sha256(provider_file)}
    documents = {SUMMARY: fill_summary(provider, facts, provider_file.name)}
    if isinstance(source, Run):
        values = {section: (fields, f"{provider_file.name}#/{section}") for section, fields in provider.items()}
        values |= {"config": (facts["config"], "config.yaml#"), "config_json": (facts["model"], "model/config.json#")}
        values |= {"facts": (documentation_form.form_facts(facts), "#/facts")}
        template = Path(__file__).parent / "disclosure" / "documentation_form.md"
        documents[FORM] = source.relative(form_document(template, values, facts["inputs"]))
    return documents


def write_documents(documents: dict[str, dict], out: Path) -> list[Path]:
    """Write each document as Markdown, JSON and HTML, and the schema of the summary; return the paths of the files."""
    out.mkdir(parents=True, exist_ok=True)
    schema = summary_schema()
    Draft202012Validator(schema).validate(documents[SUMMARY])
    write_json(out / SCHEMA, schema)
    files = [out / SCHEMA]
    for name, content in documents.items():
        printed = PRINTED[name](content)
        files += [out / f"{name}{suffix}" for suffix in (".md", ".json", ".html")]
        write_text(out / f"{name}.md", to_markdown(printed))
        write_json(out / f"{name}.json", content)
        write_text(out / f"{name}.html", to_html(printed))
    return files


def main() -> None:
    """`python -m model_card.public_summary`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="Folder of a finished run.")
    source.add_argument("--release", type=Path, help="Folder of a release, such as dist/NAME/llama.")
    parser.add_argument(
        "--provider", type=Path, required=True, help=f"YAML file of what only the provider knows, such as {EXAMPLE}."
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder for the documents.")
    args = parser.parse_args()
    with locked(args.out):
        files = write_documents(fill_documents(Run(args.run) if args.run else args.release, args.provider), args.out)
    for path in files:
        print(path)


if __name__ == "__main__":
    run_main(main)
