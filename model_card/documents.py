"""A filled form as data, as Markdown, and as one HTML file that prints on A4.

A form is sections; a section is a title and fields; the answer of a field is text, or a table whose first row is its
head.
"""

import html

from .attested import or_none


def document(title: str, basis: str, link: str, sections: list, provider: dict, inputs: dict[str, str]) -> dict:
    """A document as data: what .json holds, and .md and .html are made from."""
    about = provider["summary"]
    example = "example.org" in provider["provider"]["contact"]
    return {
        "title": f"Example, not a declaration: {title}" if example else title,
        "basis": basis,
        "template": link,
        "version": str(about["version"]),
        "last_update": str(about["date"]),
        "changes_from_previous_version": or_none(about["changes"]),
        "previous_versions": or_none(about["previous_versions"]),
        "published_at": about["published_at"],
        "sections": [
            {
                "title": name,
                "fields": [
                    {"field": field, "table": [list(row) for row in answer]}
                    if isinstance(answer, list)
                    else {"field": field, "answer": answer}
                    for field, answer in fields
                ],
            }
            for name, fields in sections
        ],
        "inputs_sha256": inputs,
    }


def head_of(content: dict) -> list[tuple[str, str]]:
    """The lines at the head of a document."""
    return [
        ("Version", content["version"]),
        ("Last update", content["last_update"]),
        ("Changes from the previous version", content["changes_from_previous_version"]),
        ("Previous versions", content["previous_versions"]),
        ("Authoritative version", content["published_at"]),
        ("Template", content["template"]),
    ]


def markdown(content: dict) -> str:
    """A document as Markdown."""

    def cell(text) -> str:
        return str(text).replace("|", "\\|").replace("\n", " ")

    lines = [f"# {content['title']}", "", content["basis"], ""]
    lines += [f"- **{name}**: {value}" for name, value in head_of(content)]
    for section in content["sections"]:
        lines += ["", f"## {section['title']}"]
        for field in section["fields"]:
            if "answer" in field:
                lines += ["", f"**{field['field']}**: {field['answer']}"]
                continue
            head, *rows = field["table"]
            lines += ["", f"**{field['field']}**:", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
            lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    lines += ["", "## Made from", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {name} | {digest} |" for name, digest in content["inputs_sha256"].items()]
    return "\n".join(lines) + "\n"


STYLE = (
    "@page{size:A4;margin:2cm}body{font:11pt/1.4 serif;max-width:50em;margin:2em auto;padding:0 1em}"
    "h1{font-size:1.5em}h2{font-size:1.15em;border-bottom:1px solid;break-after:avoid}dt{font-weight:bold;"
    "margin-top:.6em}dd{margin:0}table{border-collapse:collapse;width:100%;font-size:.85em}"
    "td,th{border:1px solid #999;padding:.2em .4em;text-align:left;overflow-wrap:anywhere}tr{break-inside:avoid}"
)


def page(content: dict) -> str:
    """A document as one HTML file that needs no other and prints on A4."""

    def rows(table: list[list[str]]) -> str:
        head, *body = table
        cells = [("th", head), *(("td", row) for row in body)]
        return "".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(str(one))}</{tag}>' for one in row)}</tr>" for tag, row in cells
        )

    def entry(name: str, inner: str) -> str:
        return f"<dt>{html.escape(name)}</dt><dd>{inner}</dd>"

    parts = [f"<h1>{html.escape(content['title'])}</h1><p>{html.escape(content['basis'])}</p><dl>"]
    parts += [entry(name, html.escape(value)) for name, value in head_of(content)]
    for section in content["sections"]:
        parts.append(f"</dl><h2>{html.escape(section['title'])}</h2><dl>")
        for field in section["fields"]:
            inner = html.escape(field["answer"]) if "answer" in field else f"<table>{rows(field['table'])}</table>"
            parts.append(entry(field["field"], inner))
    inputs = [["file", "sha256"], *([name, digest] for name, digest in content["inputs_sha256"].items())]
    parts.append(f"</dl><h2>Made from</h2><table>{rows(inputs)}</table>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(content["title"])}</title>'
        f'<link rel="canonical" href="{html.escape(content["published_at"])}"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
