"""Print a one-screen summary of a finished run, from the files in its folder."""

import re
from io import StringIO
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.escaping import terminal_line
from ..common.files import atomic, read_json
from ..run.metrics import read_metrics
from .recipe import PretrainConfig
from .samples import NEW_TOKENS, REPETITION_PENALTY


def held_out(records: list[dict], folder: Path) -> Table:
    """Return a table of bits per byte by language at the first and the last validation, with the last samples."""
    table = Table(title="Held-out text: bits per byte before and after; greedy continuation", title_justify="left")
    title = f"prompt -> {NEW_TOKENS} tokens, greedy, repetition penalty {REPETITION_PENALTY}"
    for column in ("", "before", "after", title):
        table.add_column(column)
    validations = [record["validation"] for record in records if "validation" in record]
    texts = {line["language"]: line for line in read_metrics(folder / "samples.jsonl")}  # the last per language
    for language in dict.fromkeys([*texts, *validations[-1]]):
        bits = (scores.get(language, {}).get("bits_per_byte") for scores in (validations[0], validations[-1]))
        line = texts.get(language, {"prompt": "", "continuation": ""})
        text = Text.assemble((line["prompt"], "bold"), terminal_line(re.sub(r"\s+", " ", line["continuation"])))
        table.add_row(Text(terminal_line(language)), *(f"{x:.3f}" if x else "-" for x in bits), text)
    return table


def print_summary(config: PretrainConfig, console: Console) -> None:
    """Print the summary of a complete run."""
    folder = config.folder
    records, emissions = read_metrics(folder / "metrics.jsonl"), read_json(folder / "emissions.json")
    sessions = read_json(folder / "run.json")["sessions"]
    steps = [record for record in records if "loss" in record]
    losses = [record["loss"] for record in steps if record["loss"] is not None]
    first, last = (f"{loss:.3f}" for loss in (losses[0], losses[-1])) if losses else ("-", "-")
    tokens = sum(stage.steps * stage.sequences for stage in config.stages) * config.sequence_length
    mfu = [record["mfu"] for record in steps if record["mfu"]]
    peak = max(session.get("peak_memory_bytes", 0) for session in sessions)
    console.print(held_out(records, folder))
    lines = [
        f"{config.name}: {tokens:,} tokens in {config.steps:,} steps and {emissions['seconds']:,.0f} s; "
        f"{median(record['tokens_per_second'] for record in steps):,.0f} tokens/s"
        + (f", {median(mfu):.1%} of the peak" if mfu else "")
        + f"; at most {peak / 1e9:.2f} GB per process.",
        f"Loss {first} -> {last} nats per token; {steps[-1]['skipped']} steps skipped, {steps[-1]['spikes']} spikes.",
        f"{emissions['kwh'] * 1000:,.2f} Wh, {emissions['kg_co2eq'] * 1000:,.2f} g CO2eq ({emissions['source']}).",
        f"Run: {folder}/{{config.yaml,run.json,metrics.jsonl,samples.jsonl,emissions.json,loss.png,checkpoints}}",
        f'Model: pipeline("text-generation", model="{folder}/model")',
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def write_summary(config: PretrainConfig) -> str:
    """Return the summary as text, and write it to summary.txt in the run folder."""
    print_summary(config, Console(file=(output := StringIO()), width=118))
    text = output.getvalue()
    with atomic(config.folder / "summary.txt") as path:
        path.write_text(text, encoding="utf-8")
    return text
