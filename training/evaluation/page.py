"""The results of an evaluation to read: one Markdown page and its charts, made of the files alone."""

import re
from pathlib import Path

from ..curation.page import table
from ..files import read_json
from ..results import read_results

PAGE, CHART, COMPARISON = "EVALUATION.md", "evaluation.png", "comparison"
ABOUT = {
    "bits_per_byte": "Bits per UTF-8 byte of held-out text: what a model would need to store it; less is better, and "
    "vocabularies of any size compare. Every byte is scored once. The mean is over languages.",
    "language_adherence": "Greedy continuations of held-out beginnings, judged by language identification among the "
    "eight languages; the share that is in the language of its prompt. An empty one counts as not in it.",
    "toxicity": "Shares of continuations, scored with their openings on five axes of 0 to 3. Risky openings turn "
    "towards a group or towards violence without saying anything hateful themselves, and score 0 alone.",
    "speed": "One text at a time, in a process of its own, on the machine named below.",
    "memorisation": "Shares of the characters of greedy continuations, without repetition penalty, that lie in "
    "passages which stand word for word in the training shards.",
    "continuation": "Which of four passages goes on a text; chance is 0.25. Through lm-evaluation-harness.",
    "public": "Public benchmarks through lm-evaluation-harness.",
    "ocr": "Held-out pages, corrected by the model.",
    "translation": "Held-out sentences, translated by the model.",
    "rag": "Held-out questions, answered from given sources.",
}
CHARTED = [name for name in ABOUT if name not in ("speed", "public", "translation")]  # whose figures share a scale
EXCERPT = 160  # characters of an example
MOST = 30  # rows of a table of groups


def write_page(folder: Path) -> Path:
    """The page of one model's results; returns its path."""
    results = {name: of for name, of in read_results(folder).items() if "task" in of and name != COMPARISON}
    chart({name: of["metrics"] for name, of in results.items()}, folder / CHART)
    first = next(iter(results.values()))
    parts = [
        f"# Evaluation of {first['model']['name']}",
        f"`{first['model']['source']}`, on {machine(first)}. Intervals are 95%, by bootstrap over examples. The files "
        "beside this page hold the figures, with the commands that made them.",
        f"![The figures with their intervals]({CHART})",
    ]
    for name in sorted(results, key=_order):
        parts += section(results[name])
    path = folder / PAGE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def section(result: dict) -> list[str]:
    """Paragraphs of one task."""
    name = result["task"]
    parts = [f"## {title(name)}", ABOUT.get(name, "")]
    parts.append(table(("", "value", "95% interval"), [_row(key, of) for key, of in result["metrics"].items()]))
    for by, group in result.get("groups", {}).items():
        if group:
            rows = [_row(key, of) for key, of in list(group.items())[:MOST]]
            parts.append(table((f"by {by}", "value", "95% interval"), rows))
    if how := result.get("how"):
        parts.append("; ".join(f"{key}: {_number(of)}" for key, of in how.items() if of is not None) + ".")
    if longest := result.get("longest"):
        rows = [(_text(row["text"]), row["tokens"], row["identifier"], row["license"]) for row in longest]
        parts.append(table(("longest copied passages", "tokens", "document", "licence"), rows))
    if examples := result.get("examples"):
        rows = [(row["language"], _text(row["prompt"], end=True), _text(row["continuation"])) for row in examples]
        lines = [("", "prompt", "continuation"), ("---",) * 3, *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return parts


def title(task: str) -> str:
    """A task's name as a heading."""
    return task.upper() if len(task) == 3 else task.replace("_", " ").capitalize()


def write_comparison(folder: Path) -> Path:
    """The page of a comparison, from comparison.json; returns its path."""
    content = read_json(folder / f"{COMPARISON}.json")
    names = [model["name"] for model in content["models"]]
    rows = [(one["name"], f"{one['parameters']:,}", f"{one['entries']:,}", one["source"]) for one in content["models"]]
    chart_comparison(content["tasks"], names, folder / CHART)
    parts = [
        f"# {' beside '.join(names)}",
        f"The same examples for each, on {machine(content)}. A difference is {names[0]} minus the other, with a "
        "paired 95% interval by bootstrap over examples; in bold where that leaves out 0.",
        table(("model", "parameters", "entries", "source"), rows),
        f"![The figures with their intervals]({CHART})",
    ]
    for task, metrics in content["tasks"].items():
        header = ("", *names, *(f"{names[0]} - {other}" for other in names[1:]))
        rows = []
        for metric, of in metrics.items():
            values = [_row(metric, of["values"][name])[1] for name in names]
            rows.append((metric, *values, *(_difference(of["differences"].get(other)) for other in names[1:])))
        parts += [f"## {title(task)}", ABOUT.get(task, ""), table(header, rows)]
    path = folder / PAGE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def line(path: Path) -> str:
    """A result in a line: its file and its first figure."""
    result = read_json(path)
    name, value, between = _row(*next(iter(result["metrics"].items())))
    return f"{path}: {name} {value}" + (f" ({between})" if between else "")


def machine(result: dict) -> str:
    """The processor or GPU of a result."""
    hardware = result["hardware"]
    return hardware["gpus"][0] if hardware["gpus"] else f"{hardware['cpu']} ({hardware['cpus']} CPUs)"


def chart(metrics: dict[str, dict], path: Path) -> None:
    """A panel for each task: its figures as points with their intervals."""
    from matplotlib.figure import Figure  # a second to import, and of use here alone

    names = [name for name in CHARTED if name in metrics]
    rows = max([len(metrics[name]) for name in names], default=1)
    figure = Figure(figsize=(4 * max(1, len(names)), 1.2 + 0.22 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False):
        _points(axes, {key: of for key, of in metrics[name].items() if not isinstance(of, int)})
        axes.set_title(name.replace("_", " "), fontsize=10)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def chart_comparison(tasks: dict, names: list[str], path: Path) -> None:
    """A panel for each task, a colour for each model."""
    from matplotlib.figure import Figure

    charted = [task for task in CHARTED if task in tasks]
    rows = max([len(tasks[task]) for task in charted], default=1)
    size = 4 * max(1, len(charted)), 1.6 + 0.1 * rows * (1 + len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(1, len(charted)), squeeze=False)[0]
    for axes, task in zip(panels, charted, strict=False):
        for i, name in enumerate(names):
            of = {metric: found["values"][name] for metric, found in tasks[task].items()}
            _points(axes, of, shift=(i - (len(names) - 1) / 2) * 0.5 / len(names), label=name)
        axes.set_title(task.replace("_", " "), fontsize=10)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize="small", loc="outside upper right", ncols=len(names))
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _points(axes, figures: dict[str, dict | float], *, shift: float = 0.0, label: str | None = None) -> None:
    places = [i + shift for i in range(len(figures))]
    ends = [(of["value"], of["low"], of["high"]) if isinstance(of, dict) else (of,) * 3 for of in figures.values()]
    values = [value for value, *_ in ends]
    below = [max(0.0, value - low) for value, low, _ in ends]
    above = [max(0.0, high - value) for value, _, high in ends]
    axes.errorbar(values, places, xerr=[below, above], fmt="o", markersize=4, capsize=2, linewidth=1, label=label)
    axes.set_yticks(range(len(figures)), list(figures), fontsize=8)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="x", labelsize=8)


def _order(name: str) -> tuple:
    return list(ABOUT).index(name) if name in ABOUT else len(ABOUT), name


def _row(name: str, figure: dict | float) -> tuple[str, str, str]:
    if isinstance(figure, dict):
        return name, _number(figure["value"]), f"{_number(figure['low'])} to {_number(figure['high'])}"
    return name, _number(figure), ""


def _difference(figure: dict | None) -> str:
    """With its interval, in bold where that leaves out 0; alone where resamples do not differ, which shows nothing."""
    if figure is None:
        return ""
    text = _number(figure["value"])
    if figure["low"] == figure["high"]:
        return text
    text += f" ({_number(figure['low'])} to {_number(figure['high'])})"
    return f"**{text}**" if figure["low"] > 0 or figure["high"] < 0 else text


def _number(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _text(text: str, *, end: bool = False) -> str:
    """An excerpt on one line that Markdown shows as it is."""
    text = re.sub(r"\s+", " ", text).strip()
    short = text if len(text) <= EXCERPT else f"... {text[-EXCERPT:]}" if end else f"{text[:EXCERPT]} ..."
    return re.sub(r"([\\`*_<>\[\]|#$])", r"\\\1", short)
