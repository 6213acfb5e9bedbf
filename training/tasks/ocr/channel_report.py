"""Report of an OCR corrector: errors removed, units better and worse, edits of clean text, by language and kind."""

from pathlib import Path

import numpy as np

from ...common.files import atomic, write_json
from ...common.intervals import Metric, bootstrap_interval, ratio
from .learning import CLEAN_EDITS, TUNED

READABLE = 0.12  # edits a character: pages below it have a row of their lone


def write_report(out: Path, rows: list[dict], command: str) -> None:
    """Write report.json (a row for each text) and REPORT.md (tables)."""
    write_json(out / "report.json", rows)
    with atomic(out / "REPORT.md") as temporary:
        temporary.write_text(render_markdown(rows, command), encoding="utf-8")


def groups(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the rows by kind of text and language; pages also all together, and those with few errors."""
    entries: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        kinds = [row["kind"]]
        if row["kind"] == "rendered" and row["before"] < READABLE * row["characters"]:
            kinds.append(f"rendered, CER below {READABLE}")
        for kind in kinds:
            shared = ["all"] if kind in CLEAN_EDITS or kind.startswith("rendered") else []
            for language in (row["language"], *shared):
                entries.setdefault((kind, language), []).append(row)
    return dict(sorted(entries.items()))


def render_markdown(rows: list[dict], command: str) -> str:
    """Return the report as Markdown."""
    pages, clean = [], []
    for (kind, language), texts in groups(rows).items():
        sums = {name: sum(text[name] for text in texts) for name in ("characters", "better", "worse", "changes")}
        touched = [text for text in texts if text["changes"]]
        worse = sum(text["after"] > text["before"] for text in touched)
        if kind in CLEAN_EDITS:
            edits = _interval(_ratio(texts, "edits", "characters"), "{:.6f}")
            clean.append([kind, language, len(texts), sums["characters"], edits, len(touched)])
        else:
            before = sum(text["before"] for text in texts) / max(1, sums["characters"])
            removed = ratio([t["before"] - t["after"] for t in texts], [t["before"] for t in texts])
            untouched = sum(text["words"] for text in texts) - sums["changes"]
            pages.append([
                kind, language, len(texts), f"{before:.3f}", _interval(removed, "{:.3f}"), sums["better"],
                sums["worse"], untouched, f"{worse} of {len(touched)}",
            ])  # fmt: skip
    head = ["text", "language", "texts", "CER", "errors removed", "units better", "worse", "untouched", "texts worse"]
    return "\n".join([
        "# OCR corrector", "", f"Written by `{command}`. Intervals: 95%, bootstrap over texts.", "",
        "Rendered pages are of held-out authors or works, and the lexicon forgets the work of each. Historical scans",
        "are never learned from; on half of their documents, tuned on, constants of the corrector were chosen.",
        "A unit is a change; untouched units are the other words. Where the OCR text has no long s, that of the truth",
        f"counts as s; told apart, {_worse(rows)} touched historical texts not tuned on are worse.", "",
        *_table(head, pages), "", "Clean text, which has nothing to correct:", "",
        *_table(["text", "language", "texts", "characters", "edits per character", "texts touched"], clean), "",
    ])  # fmt: skip


def _worse(rows: list[dict]) -> str:
    """Return how many of the touched historical texts are worse, with long s and s told apart."""
    historical = [row for row in rows if row["kind"] not in (*CLEAN_EDITS, "rendered")]
    touched = [row for row in historical if row["changes"] and not row["kind"].endswith(TUNED)]
    return f"{sum(row['strict_after'] > row['strict_before'] for row in touched)} of {len(touched)}"


def _ratio(texts: list[dict], numerator: str, denominator: str) -> Metric:
    return ratio([text[numerator] for text in texts], [text[denominator] for text in texts])


def _interval(metric: Metric, form: str) -> str:
    entry = bootstrap_interval(metric)
    if not np.isfinite(entry["value"]):
        return "-"
    return f"{form.format(entry['value'])} ({form.format(entry['low'])} to {form.format(entry['high'])})"


def _table(head: list[str], rows: list[list]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(f'{c:,}' if isinstance(c, int) else str(c) for c in line)} |" for line in lines]
