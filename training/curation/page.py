"""The account of a curation to read: a few lines for the screen, and a page with two charts."""

from collections.abc import Iterable
from pathlib import Path

CHARTS = {"curation-languages.png": "language", "curation-collections.png": "collection"}
LARGEST = 15  # rows of a table or chart; the others are summed


def write(folder: Path, content: dict) -> None:
    """Write curation.md and its charts from what is going to be curation.json."""
    for name, column in CHARTS.items():
        chart(content["account"], column, folder / name)
    (folder / "curation.md").write_text(markdown(content), encoding="utf-8")


def markdown(content: dict) -> str:
    """The page."""
    came, kept, dropped = (content[name] for name in ("input", "kept", "dropped"))
    lost = content["lost_files"]
    blocks = [
        (name, f"{one['seconds']:,.1f}", f"{one['megabytes']:,.1f}", one["megabytes_per_second"] or "")
        for name, one in content["blocks"].items()
    ]
    parts = [
        "# What curation kept, changed and dropped",
        f"`{content['command']}`",
        f"{came['documents']:,} documents came in, {came['bytes'] / 1e6:,.1f} MB; {kept['documents']:,} were kept, "
        f"{kept['final_bytes'] / 1e6:,.1f} MB after what was changed; {dropped['documents']:,} were dropped, "
        f"{dropped['bytes'] / 1e6:,.1f} MB. Kept and dropped are the input, document for document.",
        *(f"Dropped whole: {one['file']} ({one['reason']})" for one in lost),
        "![Text kept and dropped by language](curation-languages.png)",
        "## Why documents were dropped",
        table(("reason", "documents", "words", "MB"), [_row(k, v) for k, v in content["reasons"].items()]),
        "## What was changed in kept documents",
        table(("change", "times"), [(name, f"{number:,}") for name, number in content["changes"].items()]),
    ]
    for column, title in (
        ("language", "Languages"),
        ("license", "Licences"),
        ("collection", "Collections"),
        ("source", "Sources"),
    ):
        parts += [f"## {title}", _split(content["account"], column)]
        if column == "collection":
            parts.append("![Text kept and dropped by collection](curation-collections.png)")
    parts += ["## Speed of the blocks, one core", table(("block", "seconds", "MB", "MB/s"), blocks)]
    return "\n\n".join(parts) + "\n"


def summary(content: dict) -> str:
    """What was kept and dropped, in a few lines for the screen."""
    came, kept = content["input"], content["kept"]
    lines = [
        f"{came['documents']:,} documents in, {came['bytes'] / 1e6:,.1f} MB: {kept['documents']:,} kept, "
        f"{kept['final_bytes'] / 1e6:,.1f} MB; {content['dropped']['documents']:,} dropped"
    ]
    for reason, counts in content["reasons"].items():
        lines.append(f"  {reason:24} {counts['documents']:>9,} documents {counts['bytes'] / 1e6:>10,.2f} MB")
    lines += [f"  dropped whole: {one['file']} ({one['reason']})" for one in content["lost_files"]]
    return "\n".join(lines)


def table(header: tuple[str, ...], rows: Iterable[tuple]) -> str:
    """A Markdown table; numbers to the right."""
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def _row(name: str, sums: dict) -> tuple:
    return name, f"{sums['documents']:,}", f"{sums['words']:,}", f"{sums['bytes'] / 1e6:,.2f}"


def _split(rows: list[dict], column: str) -> str:
    """Kept and dropped by one column."""
    header = (column, "documents in", "MB in", "documents kept", "MB kept", "dropped")
    lines = []
    for value, kept, dropped in largest(rows, column):
        came = kept["bytes"] + dropped["bytes"]
        lines.append(
            (
                value,
                f"{kept['documents'] + dropped['documents']:,}",
                f"{came / 1e6:,.2f}",
                f"{kept['documents']:,}",
                f"{kept['final_bytes'] / 1e6:,.2f}",
                f"{dropped['bytes'] / max(1, came):.1%}",
            )
        )
    return table(header, lines)


def largest(rows: list[dict], column: str) -> list[tuple[str, dict, dict]]:
    """(value, sums of kept, sums of dropped) of the values with most bytes, and of all others together."""
    measures = ("documents", "bytes", "final_bytes")
    sums: dict[str, tuple[dict, dict]] = {}
    for row in rows:
        pair = sums.setdefault(row[column] or "(none)", tuple(dict.fromkeys(measures, 0) for _ in range(2)))
        one = pair[row["reason"] is not None]
        for measure in measures:
            one[measure] += row[measure]
    order = sorted(sums.items(), key=lambda item: -item[1][0]["bytes"] - item[1][1]["bytes"])
    found = [(value, *pair) for value, pair in order[:LARGEST]]
    if rest := order[LARGEST:]:
        kept, dropped = ({m: sum(pair[i][m] for _, pair in rest) for m in measures} for i in range(2))
        found.append((f"{len(rest)} others", kept, dropped))
    return found


def chart(rows: list[dict], column: str, path: Path) -> None:
    """Bars of megabytes by a column: kept, and dropped by reason."""
    from matplotlib.figure import Figure  # a second to import, and of use here alone

    values = [value for value, *_ in largest(rows, column) if not value.endswith(" others")]
    reasons = [None, *dict.fromkeys(row["reason"] for row in rows if row["reason"])]
    figure = Figure(figsize=(9, 1 + 0.25 * max(len(values), len(reasons))), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(values)
    for reason in reasons:
        width = [
            sum(row["bytes"] for row in rows if (row[column] or "(none)") == value and row["reason"] == reason) / 1e6
            for value in values
        ]
        axes.barh(values, width, left=left, label=reason or "kept", color="0.75" if reason is None else None)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="MB of text as it came")
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=90)
