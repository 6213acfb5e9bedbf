"""Write the AI Act documents as Markdown and as one HTML file that prints on A4, and render a form from its template.

A printed document has a title, its basis, a head of names and values, sections of fields, and tables; addresses in it
become links. The public summary is printed from its typed answers (summary_form.py).
The template of the Model Documentation Form is Markdown with Jinja expressions. It has a title, the basis, the
address of the official form, and sections (`## `) of fields: `**Field**: answer`, or `**Field**:` and a table whose
first row is the head. Values are traced as those of a card are (provenance.py): each field of the .json lists the
sources of what its answer prints.
"""

import re
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..escaping import markdown_cell
from ..provenance import MARK, TracedValue, block_text, print_traced, unwrap

# An address without the mark that ends a sentence after it; a bar would end the cell of a table.
ADDRESS = re.compile(r"(https?://[^\s<>|\"`\\]*[^\s<>|\"`\\.,;:!?'()\[\]])")

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
    # Two significant figures, as the form requires.
    "significant": lambda value: print_line(value, ".1e" if value else ""),
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


def form_document(template: Path, values: dict, inputs: dict[str, str]) -> dict:
    """Return the Model Documentation Form as data: the content of its .json, from which .md and .html are written.

    Args:
        template: Path of the template.
        values: As for `render_form`; `summary`, `provider` and `facts` are used here, too.
        inputs: Path -> sha256 of each file that the values come from.
    """
    (title, basis, address), sections = render_form(template, values)
    summary, provider = values["summary"][0], values["provider"][0]
    return {
        "title": f"Example, not a declaration: {title}" if "example.org" in str(provider["contact"]) else title,
        "basis": basis,
        "template": address,
        "version": str(summary["version"]),
        "last_update": str(summary["date"]),
        "changes_from_previous_version": as_text(summary["changes"]),
        "sections": sections,
        "facts": values["facts"][0],
        "inputs_sha256": inputs,
    }


def printed_form(content: dict) -> dict:
    """Return the Model Documentation Form as `to_markdown` and `to_html` print it."""
    head = [
        ("Version", content["version"]),
        ("Last update", printed_date(content["last_update"], short=True)),
        ("Changes from the previous version", content["changes_from_previous_version"]),
        ("Template", content["template"]),
    ]
    sections = [{"level": 2, **section} for section in content["sections"]]
    return {"head": head, **content, "sections": sections, "tables": [inputs_of(content)]}


def printed_summary(content: dict) -> dict:
    """Return the public summary as `to_markdown` and `to_html` print it."""
    updated = printed_date(content["last_update"], short=True)
    head = [
        ("Version of the Summary", f"{content['version']} ({content['status'].lower()} on {updated})"),
        ("Last update", updated),
        ("Changes from the previous version", as_text(content["changes"])),
        ("Changes are announced at", as_text(content["changes_announced_at"])),
        ("Authoritative version", as_text(content["published_at"])),
        ("Template", content["template"]),
    ]
    versions = [("Version", "Date", "Link")]
    versions += [
        (row["version"], printed_date(row["date"], short=True), as_text(row["link"])) for row in content["versions"]
    ]
    sections = []
    for number, heading in content["sections"].items():
        prefix = re.compile(rf"{re.escape(number)}\.[a-z]")
        fields = [printed_field(field) for key, field in content["fields"].items() if prefix.match(key)]
        sections.append({"level": number.count(".") + 2, "title": f"{number}. {heading}", "fields": fields})
    tables = [("Versions of the Summary", versions), inputs_of(content)]
    return {**content, "basis": content["basis"]["text"], "head": head, "sections": sections, "tables": tables}


def printed_field(field: dict) -> dict:
    """Return the label and the printed answer, or the printed table, of a field of the public summary."""
    value, kind, comment = field["answer"], field["type"], field.get("comment", "")
    if kind == "table":
        kinds = [column["type"] for column in value["columns"]]
        rows = [[printed_cell(*pair) for pair in zip(row, kinds, strict=True)] for row in value["rows"]]
        table = [[column["name"] for column in value["columns"]], *rows]
        return {"field": field["label"], "answer": comment, "table": table}
    answers = {
        "yes_no": "Yes" if value else "No",
        "text": value,
        "not_applicable": "" if comment else "Not applicable.",
    }
    text = printed_date(value) if kind == "date" else answers[kind]
    stop = "." if text and comment and text[-1] not in ".?!" else ""
    return {"field": field["label"], "answer": f"{text}{stop} {comment}".strip()}


def printed_cell(value, kind: str) -> str:
    """Return a cell of a table as text."""
    if value is None:
        return "-"
    formats = {"integer": ",", "share": ".1%"}
    return printed_date(value) if kind == "month" else format(value, formats[kind]) if kind in formats else str(value)


def printed_date(text: str, short: bool = False) -> str:
    """Return an ISO date as the template prints it: MM/YYYY for a month, DD/MM/YYYY, or DD/MM/YY if `short`."""
    year, *others = text.split("-")
    return "/".join([*reversed(others), year[2:] if short else year])


def inputs_of(content: dict) -> tuple[str, list]:
    """Return title and table of the files that a document comes from."""
    return "Source files", [("file", "sha256"), *content["inputs_sha256"].items()]


def to_markdown(content: dict) -> str:
    """Return a printed document as Markdown."""

    def rows(table: list) -> list[str]:
        head, *body = (f"| {' | '.join(map(linked_cell, row))} |" for row in table)
        return [head, "|---" * len(table[0]) + "|", *body]

    lines = [f"# {markdown_cell(content['title'])}", "", linked_cell(content["basis"]), ""]
    lines += [f"- **{name}**: {linked_cell(value)}" for name, value in content["head"]]
    for section in content["sections"]:
        lines += ["", f"{'#' * section['level']} {section['title']}"]
        for field in section["fields"]:
            colon = "" if field["field"].endswith("?") else ":"
            lines += ["", f"**{field['field']}**{colon} {linked_cell(field.get('answer', ''))}".rstrip()]
            lines += ["", *rows(field["table"])] if "table" in field else []
    for title, table in content["tables"]:
        lines += ["", f"## {title}", "", *rows(table)]
    return "\n".join(lines) + "\n"


def linked_cell(text: str) -> str:
    """Return a text as `markdown_cell` does, with its addresses as links."""
    parts = enumerate(ADDRESS.split(text))  # every second is an address; the marks keep the spaces next to it
    return "".join(f"<{part}>" if i % 2 else markdown_cell(f".{part}.")[1:-1] for i, part in parts).strip()


def to_html(content: dict) -> str:
    """Return a printed document as one self-contained HTML file that prints on A4."""
    jinja = environment(Path(__file__).parent, autoescape=True)
    jinja.filters["addresses"] = ADDRESS.split  # every second part is an address
    return jinja.get_template("form.html").render(content)
