"""Render curation statistics as a terminal summary and a Markdown report with two charts."""

from collections.abc import Iterable
from pathlib import Path

from ..common.escaping import code_span, markdown_cell, terminal_line
from ..common.files import atomic

CHARTS = {"curation-languages.png": "language", "curation-collections.png": "collection"}
MAX_ROWS = 15  # of a table or chart; a table sums the others


def write_statistics(folder: Path, content: dict) -> None:
    """Write curation.md and its charts from the content of curation.json."""
    for name, column in CHARTS.items():
        chart(content["account"], column, folder / name)
    with atomic(folder / "curation.md") as path:
        path.write_text(markdown(content), encoding="utf-8")


def markdown(content: dict) -> str:
    """Return the Markdown report."""
    received, retained, dropped = (content[name] for name in ("input", "kept", "dropped"))
    blocks = [
        (name, f"{block['seconds']:,.1f}", f"{block['megabytes']:,.1f}", block["megabytes_per_second"] or "")
        for name, block in content["blocks"].items()
    ]
    reasons = [
        (name, f"{sums['documents']:,}", f"{sums['words']:,}", f"{sums['bytes'] / 1e6:,.2f}")
        for name, sums in content["reasons"].items()
    ]
    parts = [
        "# Curation statistics",
        code_span(content["command"]),
        f"Input: {received['documents']:,} documents, {received['bytes'] / 1e6:,.1f} MB. Kept: "
        f"{retained['documents']:,} documents, {retained['final_bytes'] / 1e6:,.1f} MB after changes. Dropped: "
        f"{dropped['documents']:,} documents, {dropped['bytes'] / 1e6:,.1f} MB. Kept and dropped documents together "
        "are exactly the input.",
        *(
            f"Dropped file: {markdown_cell(file['file'])} ({markdown_cell(file['reason'])})"
            for file in content["lost_files"]
        ),
        "![Text kept and dropped by language](curation-languages.png)",
        "## Reasons for dropping documents",
        table(("reason", "documents", "words", "MB"), reasons),
        "## Changes in kept documents",
        table(("change", "times"), [(name, f"{number:,}") for name, number in content["changes"].items()]),
    ]
    titles = {"language": "Languages", "license": "Licences", "collection": "Collections", "source": "Sources"}
    for column, title in titles.items():
        parts += [f"## {title}", _split(content["account"], column)]
        if column == "collection":
            parts.append("![Text kept and dropped by collection](curation-collections.png)")
    parts += ["## Speed of the blocks on one core", table(("block", "seconds", "MB", "MB/s"), blocks)]
    return "\n\n".join(parts) + "\n"


def summary(content: dict) -> str:
    """Return a terminal summary of what was kept and dropped."""
    received, retained = content["input"], content["kept"]
    lines = [
        f"{received['documents']:,} documents in, {received['bytes'] / 1e6:,.1f} MB: {retained['documents']:,} kept, "
        f"{retained['final_bytes'] / 1e6:,.1f} MB; {content['dropped']['documents']:,} dropped"
    ]
    for reason, counts in content["reasons"].items():
        lines.append(
            f"  {terminal_line(reason):24} {counts['documents']:>9,} documents {counts['bytes'] / 1e6:>10,.2f} MB"
        )
    lines += [terminal_line(f"  dropped file: {file['file']} ({file['reason']})") for file in content["lost_files"]]
    return "\n".join(lines)


def table(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Return a Markdown table, with its cells escaped; all columns but the first are right-aligned."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines)


def _split(rows: list[dict], column: str) -> str:
    """Return a table of kept and dropped text by one column."""
    header = (column, "documents in", "MB in", "documents kept", "MB kept", "dropped")
    lines = []
    for value, retained, dropped in largest(rows, column):
        size = retained["bytes"] + dropped["bytes"]
        lines.append(
            (
                value,
                f"{retained['documents'] + dropped['documents']:,}",
                f"{size / 1e6:,.2f}",
                f"{retained['documents']:,}",
                f"{retained['final_bytes'] / 1e6:,.2f}",
                f"{dropped['bytes'] / max(1, size):.1%}",
            )
        )
    return table(header, lines)


def largest(rows: list[dict], column: str) -> list[tuple[str, dict, dict]]:
    """Return (value, sums of kept, sums of dropped) of the values with most bytes, and of all others together."""
    measures = ("documents", "bytes", "final_bytes")
    sums: dict[str, tuple[dict, dict]] = {}
    for row in rows:
        pair = sums.setdefault(row[column] or "(none)", tuple(dict.fromkeys(measures, 0) for _ in range(2)))
        for measure in measures:
            pair[row["reason"] is not None][measure] += row[measure]
    order = sorted(sums.items(), key=lambda item: -item[1][0]["bytes"] - item[1][1]["bytes"])
    result = [(value, *pair) for value, pair in order[:MAX_ROWS]]
    if rest := order[MAX_ROWS:]:
        others = ({m: sum(pair[i][m] for _, pair in rest) for m in measures} for i in range(2))
        result.append((f"{len(rest)} others", *others))
    return result


def chart(rows: list[dict], column: str, path: Path) -> None:
    """Write a bar chart of megabytes by a column: kept, and dropped by reason."""
    from matplotlib.figure import Figure  # lazy import: takes a second

    values = [value for value, *_ in largest(rows, column) if not value.endswith(" others")]
    reasons = [None, *dict.fromkeys(row["reason"] for row in rows if row["reason"])]
    figure = Figure(figsize=(9, 1 + 0.25 * max(len(values), len(reasons))), layout="constrained")
    axes = figure.subplots()
    labels = [terminal_line(value).replace("$", r"\$") for value in values]  # a dollar sign begins a formula
    left = [0.0] * len(values)
    for reason in reasons:
        width = [
            sum(row["bytes"] for row in rows if (row[column] or "(none)") == value and row["reason"] == reason) / 1e6
            for value in values
        ]
        axes.barh(labels, width, left=left, label=reason or "kept", color="0.75" if reason is None else None)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="MB of text before curation")
    figure.legend(fontsize="small", loc="outside right upper")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
