"""What became of a run, read from the files it left and told on one screen."""

import re
from io import StringIO
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .files import read_json
from .metrics import read_metrics
from .recipe import PretrainConfig
from .samples import NEW_TOKENS, REPETITION_PENALTY


def held_out(records: list[dict], folder: Path) -> Table:
    """Bits per byte by language at the first and the last validation, and the last samples."""
    table = Table(title="Held-out text: bits per byte before and after; greedy continuation", title_justify="left")
    opening = f"opening -> {NEW_TOKENS} tokens, greedy, repetition penalty {REPETITION_PENALTY}"
    for column in ("", "before", "after", opening):
        table.add_column(column)
    held = [record["validation"] for record in records if "validation" in record]
    texts = {line["language"]: line for line in read_metrics(folder / "samples.jsonl")}  # the last of each
    for language in list(texts) + [one for one in held[-1] if one not in texts]:
        bits = (one.get(language, {}).get("bits_per_byte") for one in (held[0], held[-1]))
        line = texts.get(language, {"prompt": "", "continuation": ""})
        text = Text.assemble((line["prompt"], "bold"), re.sub(r"\s+", " ", line["continuation"]))
        table.add_row(language, *(f"{x:.3f}" if x else "-" for x in bits), text)
    return table


def show(config: PretrainConfig, console: Console) -> None:
    """Print the summary of a complete run."""
    folder = config.folder
    records, emissions = read_metrics(folder / "metrics.jsonl"), read_json(folder / "emissions.json")
    sessions = read_json(folder / "run.json")["sessions"]
    steps = [record for record in records if "loss" in record]
    losses = [record["loss"] for record in steps if record["loss"] is not None]
    first, last = (f"{one:.3f}" for one in (losses[0], losses[-1])) if losses else ("-", "-")
    tokens = sum(stage.steps * stage.sequences for stage in config.stages) * config.sequence_length
    mfu = [record["mfu"] for record in steps if record["mfu"]]
    peak = max(session.get("peak_memory_bytes", 0) for session in sessions)
    console.print(held_out(records, folder))
    lines = [
        f"{config.name}: {tokens:,} tokens in {config.steps:,} steps and {emissions['seconds']:,.0f} s; "
        f"{median(record['tokens_per_second'] for record in steps):,.0f} tokens/s"
        + (f", {median(mfu):.1%} of the peak" if mfu else "")
        + f"; at most {peak / 1e9:.2f} GB a process.",
        f"Loss {first} -> {last} nats per token; {steps[-1]['skipped']} steps left out, {steps[-1]['spikes']} spikes.",
        f"{emissions['kwh'] * 1000:,.2f} Wh, {emissions['kg_co2eq'] * 1000:,.2f} g CO2eq ({emissions['source']}).",
        f"Run: {folder}/{{config.yaml,run.json,metrics.jsonl,samples.jsonl,emissions.json,loss.png,checkpoints}}",
        f'Model: pipeline("text-generation", model="{folder}/model")',
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def summarise(config: PretrainConfig) -> str:
    """The summary as text, also written to summary.txt of the run folder."""
    show(config, Console(file=(screen := StringIO()), width=118))
    text = screen.getvalue()
    (config.folder / "summary.txt").write_text(text, encoding="utf-8")
    return text
