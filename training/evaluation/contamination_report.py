"""Report the contamination of a benchmark: JSON, Markdown and a table in the terminal."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from ..common.escaping import code_span, markdown_cell, terminal_line
from ..common.files import atomic, fingerprint
from ..curation.statistics_report import table
from ..tracing.contamination import SHORT, TextOverlap
from ..tracing.search import TraceIndex
from .contamination import SHARE, describe_index, percent, summary, text_report, totals
from .held_out_text import Text, by_language

LISTED = 20  # texts with the longest passages in the terminal
LISTED_IN_MARKDOWN = 200
EXCERPT = 100  # characters of a passage


def build_report(benchmark: str, index: TraceIndex, texts: list[Text], overlaps: list[TextOverlap], minimum: int):
    """Return the JSON report of a benchmark, its texts by the length of their longest passage."""
    rows = [text_report(text, overlap, minimum) for text, overlap in zip(texts, overlaps, strict=True)]
    overlap_of = dict(zip(map(id, texts), overlaps, strict=True))
    groups = by_language(texts)
    return {
        "benchmark": benchmark,
        "fingerprint": fingerprint([asdict(text) for text in texts]),
        "index": describe_index(index),
        "min_tokens": minimum,
        "share": SHARE,
        "total": totals(overlaps, minimum),
        "languages": {
            name: totals([overlap_of[id(text)] for text in group], minimum) for name, group in groups.items()
        },
        "texts": sorted(rows, key=lambda row: -row["longest"]),
    }


def definition(report: dict) -> str:
    """Return the sentence that says what counts as contaminated."""
    return (
        f"A token is covered if it is in a passage of at least {report['min_tokens']} tokens of its text (or in all "
        f"of a shorter text) that occurs verbatim in a training document; a text is contaminated if "
        f"{100 * report['share']:.0f}% of its tokens are covered. Texts of fewer than {SHORT} tokens are not checked. "
        f"Compared with {report['index']['documents']:,} documents of {report['index']['tokens']:,} tokens (index "
        f"{report['index']['fingerprint'][:12]}). Intervals are 95%, by bootstrap over texts."
    )


def print_report(report: dict) -> None:
    """Print the totals, and the texts with the longest passages."""
    console = Console()
    console.print(Cell(terminal_line(f"{report['benchmark']}: {summary(report['total'])}")))
    console.print(Cell(definition(report)), "")
    header, rows = _group_rows(report)
    totals_table = Table(*header, box=None, padding=(0, 2, 0, 0))  # fits in 80 columns
    for row in rows:
        totals_table.add_row(*row)
    console.print(totals_table)
    for text, *counts, excerpt, document, source, licence, documents in _text_rows(report, LISTED):
        lines = [
            f"{text}: {counts[2]} of {counts[0]} tokens in the longest passage; {counts[1]} covered",
            f'  "{excerpt}"',
            f"  {document} | {source} | {licence} | {documents} document{'s' * (documents != '1')}",
        ]
        console.print(Cell("\n".join(map(terminal_line, lines))), soft_wrap=True)


def write_markdown(report: dict, path: Path) -> None:
    """Write the report as Markdown; the JSON next to it has all texts."""
    lengths = list(report["total"]["covered_by_length"])
    header, rows = _group_rows(report)
    shares = [
        [f"{100 * share:.1f}%" for share in total["covered_by_length"].values()]
        for total in (report["total"], *report["languages"].values())
    ]
    parts = [
        f"# Contamination of {markdown_cell(report['benchmark'])}",
        f"{summary(report['total']).capitalize()}. {definition(report)}",
        table(header, rows),
        f"Tokens in passages of at least {', '.join(lengths)} tokens:",
        table(("", *lengths), [(row[0], *counts) for row, counts in zip(rows, shares, strict=True)]),
    ]
    if texts := _text_rows(report, LISTED_IN_MARKDOWN):
        header = ("text", "tokens", "covered", "longest", "passage", "document", "source", "licence", "documents")
        parts += ["## Texts with the longest passages", table(header, texts)]
    else:
        parts.append(f"No text has a passage of {SHORT} tokens.")
    parts.append(f"All texts: {code_span(path.with_suffix('.json').name)}.")
    with atomic(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _group_rows(report: dict) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of the table of totals."""
    rows = []
    for name, total in (("all", report["total"]), *report["languages"].items()):
        contaminated = f"{total['contaminated_texts']:,}: {percent(total['contaminated'])}"
        counts = (f"{total['texts']:,}", contaminated, f"{total['tokens']:,}", percent(total["covered_tokens"]))
        rows.append((name, *counts, f"{total['longest']:,}"))
    return ("", "texts", "contaminated", "tokens", "covered", "longest"), rows


def _text_rows(report: dict, most: int) -> list[tuple[str, ...]]:
    """Return the rows of the table of texts with the longest passages."""
    rows = []
    for row in report["texts"][:most]:
        if passage := row["passage"]:
            document, excerpt = passage["document"], " ".join(passage["text"].split())
            excerpt = excerpt if len(excerpt) <= EXCERPT else f"{excerpt[:EXCERPT]} ..."
            counts = (f"{row['tokens']:,}", f"{100 * row['share']:.1f}%", f"{row['longest']:,}")
            licence = f"{document['license']} ({document['decision']})"
            origin = (document["identifier"], document["collection"], licence, f"{passage['in_documents']:,}")
            rows.append((row["identifier"], *counts, excerpt, *origin))
    return rows
