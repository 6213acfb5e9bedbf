"""Render a form of the AI Act from its template, and write it as Markdown and as one HTML file that prints on A4.

A template is Markdown with Jinja expressions. It has a title, the legal basis, the address of the official form, and
sections (`## `) of fields: `**Field**: answer`, or `**Field**:` and a table whose first row is the head. Values are
traced as those of a card are (provenance.py): each field of the .json lists the sources of what its answer prints.
"""

import re
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..escaping import markdown_cell
from ..provenance import MARK, TracedValue, block_text, print_traced, unwrap

# The document is data until it is written: Markdown and HTML escape each in their way.
print_line = partial(print_traced, escape=block_text)


def traced_as(value: TracedValue, text: str) -> str:
    """Print a text instead of a value, with the value's source."""
    return print_line(TracedValue(text, value._source, value._traced), "")


def as_text(value) -> str:
    """Return an answer on one line: None as "None.", a list with commas."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "None." if value is None else str(value)
    return " ".join(text.split())


def answer(value: TracedValue) -> str:
    """Print a value, whole numbers with thousands separators."""
    return print_line(value) if isinstance(unwrap(value), int | float) else traced_as(value, as_text(unwrap(value)))


FILTERS = {
    "f": print_line,
    "traced_as": traced_as,
    "count": lambda value: traced_as(value, f"{len(value):,}"),
    # Two significant figures, as the form requires.
    "significant": lambda value: print_line(value, ".1e" if value else ""),
    "yes_no": lambda value: traced_as(value, "Yes" if value else "No"),
}


def environment(folder: Path, **options) -> Environment:
    """Return a Jinja environment for the templates in a folder."""
    loader = FileSystemLoader(folder)
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def render_form(template: Path, values: dict[str, tuple[object, str]]) -> tuple[list[str], list[dict]]:
    """Render a template; return its title, basis and address, and its sections as data.

    Args:
        template: Path of the template.
        values: Name in the template -> value and its source, FILE#POINTER.
    """
    notes: list[tuple[dict, bool]] = []

    def fill(marked: str) -> str:
        return MARK.sub(lambda match: notes[int(match[1])][0]["text"], marked.strip())

    def field(marked: str) -> dict:
        name, content = marked.split("**:", 1)
        table = [line.strip("|").split("|") for line in content.split("\n") if re.match(r"\|[^-]", line)]
        return {
            "field": fill(name),
            **({"table": [list(map(fill, row)) for row in table]} if table else {"answer": fill(content)}),
            "sources": list(dict.fromkeys(notes[int(i)][0]["source"] for i in MARK.findall(marked))),
        }

    jinja = environment(template.parent, finalize=lambda v: answer(v) if isinstance(v, TracedValue) else v)
    jinja.filters |= FILTERS
    traced = {name: TracedValue(value, source, notes) for name, (value, source) in values.items()}
    # Sections and fields are split before values replace their marks, so no value is taken for a section or a field.
    head, *sections = re.split(r"^## ", jinja.get_template(template.name).render(traced), flags=re.M)
    sections = [re.split(r"^\*\*", section, flags=re.M) for section in sections]
    return (
        [fill(line.removeprefix("# ")) for line in head.split("\n") if line],
        [{"title": fill(title), "fields": list(map(field, fields))} for title, *fields in sections],
    )


def document(template: Path, values: dict, inputs: dict[str, str]) -> dict:
    """Return a document as data: the content of its .json, from which .md and .html are written.

    Args:
        template: Path of the template.
        values: As for `render_form`; `summary`, `provider` and `facts` are used here, too.
        inputs: Path -> sha256 of each file that the values come from.
    """
    (title, basis, address), sections = render_form(template, values)
    summary, provider = values["summary"][0], values["provider"][0]
    return {
        "title": f"Example, not a declaration: {title}" if "example.org" in provider["contact"] else title,
        "basis": basis,
        "template": address,
        "version": str(summary["version"]),
        "last_update": str(summary["date"]),
        "changes_from_previous_version": as_text(summary["changes"]),
        "previous_versions": as_text(summary["previous_versions"]),
        "published_at": summary["published_at"],
        "sections": sections,
        "facts": values["facts"][0],
        "inputs_sha256": inputs,
    }


def head_of(content: dict) -> list[tuple[str, str]]:
    """Return names and values of the lines at the head of a document."""
    return [
        ("Version", content["version"]),
        ("Last update", content["last_update"]),
        ("Changes from the previous version", content["changes_from_previous_version"]),
        ("Previous versions", content["previous_versions"]),
        ("Authoritative version", content["published_at"]),
        ("Template", content["template"]),
    ]


def inputs_of(content: dict) -> list[tuple[str, str]]:
    """Return the table of the files that a document comes from."""
    return [("file", "sha256"), *content["inputs_sha256"].items()]


def to_markdown(content: dict) -> str:
    """Return a document as Markdown."""

    def rows(table: list[list[str]]) -> list[str]:
        head, *body = (f"| {' | '.join(map(markdown_cell, row))} |" for row in table)
        return [head, "|---" * len(table[0]) + "|", *body]

    lines = [f"# {markdown_cell(content['title'])}", "", content["basis"], ""]
    lines += [f"- **{name}**: {markdown_cell(value)}" for name, value in head_of(content)]
    for section in content["sections"]:
        lines += ["", f"## {section['title']}"]
        for field in section["fields"]:
            lines += ["", f"**{field['field']}**: {markdown_cell(field.get('answer', ''))}".rstrip()]
            lines += ["", *rows(field["table"])] if "table" in field else []
    lines += ["", "## Source files", "", *rows(inputs_of(content))]
    return "\n".join(lines) + "\n"


def to_html(content: dict) -> str:
    """Return a document as one self-contained HTML file that prints on A4."""
    template = environment(Path(__file__).parent, autoescape=True).get_template("form.html")
    return template.render(content, head=head_of(content), inputs=inputs_of(content))
