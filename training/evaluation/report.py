"""Render evaluation results as a Markdown report with a chart, from the result files alone."""

import re
from pathlib import Path

from ..common.escaping import Markdown, code_span, markdown_cell, terminal_line
from ..common.files import atomic, read_json
from ..curation.statistics_report import table
from ..run.results import read_results
from .contamination import describe_contamination, summary

PAGE, CHART, COMPARISON = "EVALUATION.md", "evaluation.png", "comparison"
ABOUT = {
    "bits_per_byte": "Bits per UTF-8 byte that the model needs to compress held-out text; lower is better, and models "
    "with different vocabularies are comparable. Every byte is scored once. The mean is over languages.",
    "language_adherence": "Fraction of greedy continuations of held-out text in the language of their prompt, by "
    "language identification among eight languages. An empty continuation counts as not in it.",
    "toxicity": "Fraction of continuations that are toxic, scored together with their prompts (openings) on five axes "
    "of 0 to 3. Risky prompts mention a group or violence without being hateful themselves, and score 0 alone.",
    "speed": "Batch size 1, in a separate process, on the machine named above.",
    "memorisation": "Fraction of the characters of greedy continuations, without repetition penalty, in passages that "
    "occur verbatim in the training shards.",
    "continuation": "Which of four passages continues a text; chance is 0.25. With lm-evaluation-harness.",
    "public": "Public benchmarks with lm-evaluation-harness.",
    "ocr": "Held-out pages, corrected by the model.",
    "ocr_correction": "Pairs of OCR text and truth, corrected by the model. cmer is the match error rate of "
    "HIPE-OCRepair: edits / (hits + edits) of the characters in lower case without punctuation, over all texts; "
    "preference is the fraction of texts that it improves minus the fraction that it worsens. Clean text, whose OCR "
    "is its truth, is counted in the metrics named clean alone.",
    "minimal_pairs": "Fraction of minimal pairs in which the right sentence is more probable than the wrong one, by "
    "summed log-probability, or by that per byte where stated. Chance is 0.5. The mean is over languages.",
    "translation": "Held-out sentences, translated by the model.",
    "rag": "Held-out questions, answered from given sources.",
}
CHARTED = [name for name in ABOUT if name not in ("speed", "public", "translation")]  # their metrics share one scale
EXCERPT = 160  # characters of an example
MAX_ROWS = 50  # of a table of groups


def write_page(folder: Path) -> Path:
    """Write the report of one model's results; return its path."""
    results = {name: item for name, item in read_results(folder).items() if "task" in item and name != COMPARISON}
    first = next(iter(results.values()))
    model = first["model"]["name"]
    tasks = {
        name: {metric: {"values": {model: value}} for metric, value in result["metrics"].items()}
        for name, result in results.items()
    }
    chart(tasks, [model], folder / CHART)
    parts = [
        f"# Evaluation of {markdown_cell(model)}",
        f"{code_span(first['model']['source'])}, on {markdown_cell(machine(first))}. Intervals are 95%, by bootstrap "
        "over examples. The JSON files next to this report contain the metrics and the commands that produced them.",
        f"![Metrics with their intervals]({CHART})",
    ]
    for name in sorted(results, key=_order):
        parts += section(results[name])
    return _write(parts, folder)


def section(result: dict) -> list[str]:
    """Return the paragraphs of one task."""
    name = result["task"]
    parts = [f"## {title(name)}", ABOUT.get(name, "")]
    parts.append(table(("", "value", "95% interval"), [_row(*item) for item in result["metrics"].items()]))
    if contamination := result.get("contamination"):
        text = describe_contamination(contamination)
        parts.append(f"{text[0].upper()}{text[1:]}.")
        if groups := contamination.get("groups"):
            parts.append(table(("", "contamination"), [(name, summary(total)) for name, total in groups.items()]))
        if compared := contamination.get("compared"):
            rows = [
                (name, _row(name, row["all"])[1], _difference(row["difference"])) for name, row in compared.items()
            ]
            parts.append(table(("", "with contaminated texts", "difference without them"), rows))
    for by, group in result.get("groups", {}).items():
        if group:
            rows = [_row(*item) for item in list(group.items())[:MAX_ROWS]]
            parts.append(table((f"by {by}", "value", "95% interval"), rows))
    if how := result.get("how"):
        settings = (f"{key}: {_number(value)}" for key, value in how.items() if value is not None)
        parts.append(markdown_cell("; ".join(settings) + "."))
    if longest := result.get("longest"):
        rows = [(_excerpt(row["text"]), row["tokens"], row["identifier"], row["license"]) for row in longest]
        parts.append(table(("longest copied passages", "tokens", "document", "licence"), rows))
    if examples := result.get("examples"):
        rows = [
            (row["language"], _excerpt(row["prompt"], end=True), _excerpt(row["continuation"])) for row in examples
        ]
        lines = [("", "prompt", "continuation"), ("---",) * 3, *rows]
        parts.append("\n".join(f"| {' | '.join(map(markdown_cell, line))} |" for line in lines))
    return parts


def title(task: str) -> str:
    """Return the heading of a task."""
    return task.upper() if len(task) == 3 else task.replace("_", " ").capitalize()


def write_comparison(folder: Path) -> Path:
    """Write the report of a comparison from comparison.json; return its path."""
    content = read_json(folder / f"{COMPARISON}.json")
    names = [model["name"] for model in content["models"]]
    rows = [(m["name"], f"{m['parameters']:,}", f"{m['entries']:,}", m["source"]) for m in content["models"]]
    chart(content["tasks"], names, folder / CHART)
    parts = [
        f"# Comparison of {markdown_cell(' and '.join(names))}",
        f"The same examples for each model, on {markdown_cell(machine(content))}. A difference is "
        f"{markdown_cell(names[0])} minus the other, with a "
        "paired 95% interval by bootstrap over examples; bold if the interval excludes 0.",
        table(("model", "parameters", "vocabulary", "source"), rows),
        f"![Metrics with their intervals]({CHART})",
    ]
    for task, metrics in content["tasks"].items():
        header = ("", *names, *(f"{names[0]} - {other}" for other in names[1:]))
        rows = []
        for metric, row in metrics.items():
            values = [_row(metric, row["values"][name])[1] for name in names]
            rows.append((metric, *values, *(_difference(row["differences"].get(other)) for other in names[1:])))
        parts += [f"## {title(task)}", ABOUT.get(task, ""), table(header, rows)]
    return _write(parts, folder)


def _write(parts: list[str], folder: Path) -> Path:
    path = folder / PAGE
    with atomic(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def line(path: Path) -> str:
    """Format a result as one line: its file and its first metric."""
    result = read_json(path)
    name, value, between = _row(*next(iter(result["metrics"].items())))
    contamination = f"; {describe_contamination(result['contamination'])}" if "contamination" in result else ""
    return terminal_line(f"{path}: {name} {value}" + (f" ({between})" if between else "") + contamination)


def machine(result: dict) -> str:
    """Return the GPU or CPU of a result."""
    hardware = result["hardware"]
    return hardware["gpus"][0] if hardware["gpus"] else f"{hardware['cpu']} ({hardware['cpus']} CPUs)"


def chart(tasks: dict, models: list[str], path: Path) -> None:
    """Draw a panel per task with a point and interval per metric, and a colour per model.

    Args:
        tasks: Task -> metric -> {"values": {model: value}}.
        models: Names of the models.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # lazy import: takes a second

    # Counts are integers, and not on the scale of a panel.
    panels = {
        task: {
            metric: row["values"] for metric, row in tasks[task].items() if type(row["values"][models[0]]) is not int
        }
        for task in CHARTED
        if task in tasks
    }
    rows = max(map(len, panels.values()), default=1)
    size = 4 * max(1, len(panels)), 1.6 + 0.1 * rows * (1 + len(models))
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    labels = [terminal_line(model).replace("$", r"\$") for model in models]  # a dollar sign begins a formula
    for axes, (task, metrics) in zip(all_axes, panels.items(), strict=False):
        for i, model in enumerate(models):
            values = {metric: row[model] for metric, row in metrics.items()}
            _points(axes, values, shift=(i - (len(models) - 1) / 2) * 0.5 / len(models), label=labels[i])
        axes.set_title(task.replace("_", " "), fontsize=10)
    if len(models) > 1:
        handles = all_axes[0].get_legend_handles_labels()
        figure.legend(*handles, fontsize="small", loc="outside upper right", ncols=len(models))
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png", metadata={"Software": None})


def _points(axes, metrics: dict[str, dict | float], *, shift: float, label: str) -> None:
    positions = [i + shift for i in range(len(metrics))]
    intervals = [_bounds(metric) for metric in metrics.values()]
    values = [value for value, *_ in intervals]
    below = [max(0.0, value - low) for value, low, _ in intervals]
    above = [max(0.0, high - value) for value, _, high in intervals]
    axes.errorbar(values, positions, xerr=[below, above], fmt="o", markersize=4, capsize=2, linewidth=1, label=label)
    axes.set_yticks(range(len(metrics)), list(metrics), fontsize=8)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="x", labelsize=8)


def _order(name: str) -> tuple:
    return list(ABOUT).index(name) if name in ABOUT else len(ABOUT), name


def _bounds(metric: dict | float) -> tuple[float, float, float]:
    return (metric["value"], metric["low"], metric["high"]) if isinstance(metric, dict) else (metric,) * 3


def _row(name: str, metric: dict | float) -> tuple[str, str, str]:
    value, low, high = _bounds(metric)
    return name, _number(value), f"{_number(low)} to {_number(high)}" if isinstance(metric, dict) else ""


def _difference(metric: dict | None) -> str:
    """Format a difference: bold if its interval excludes 0, without an interval if all resamples are equal."""
    if metric is None:
        return ""
    value, low, high = map(_number, _bounds(metric))
    if metric["low"] == metric["high"]:
        return value
    text = f"{value} ({low} to {high})"
    return Markdown(f"**{text}**") if metric["low"] > 0 or metric["high"] < 0 else text


def _number(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _excerpt(text: str, *, end: bool = False) -> str:
    """Return the beginning or the end of a text, with single spaces."""
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= EXCERPT else f"... {text[-EXCERPT:]}" if end else f"{text[:EXCERPT]} ..."
