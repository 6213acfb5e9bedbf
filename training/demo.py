"""The whole way in one command: text, vocabulary, shards, pretraining, and what came of it; then the shipped model."""

if not __package__:  # run by path; same as `python -m training.demo`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import shards
from .config import CONFIGS, InputError, parse, program
from .corpus import LANGUAGES
from .curation import page
from .metrics import read_metrics
from .prepare import prepare
from .recipe import PretrainConfig

# The small model that the package ships in a checkout; an installed package is without its weights.
SHIPPED = CONFIGS.parent.parent / "model_card" / "femto"


def launch(arguments: list[str], config: PretrainConfig) -> None:
    """Pretrain under `accelerate launch`, in one process with all the CPU's cores (or the GPU).

    Raises:
        InputError: when the run did not end well; its own messages are on the screen.
    """
    package = __package__ or "training"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", f"{package}.pretrain", *arguments]
    print("$ accelerate launch", *command[3:], flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError(f"Pretraining stopped early; start the demo again and it goes on from {config.folder}.")


def licences(manifest: dict) -> Table:
    """Tokens of the shards by language and licence."""
    by = Counter()
    for row in manifest["account"]:
        by[row["language"], row["license"]] += row["tokens"]
    table = Table(title="Text: tokens by language and licence", title_justify="left")
    names = sorted({licence for _, licence in by})
    for column in ("language", *names):
        table.add_column(column, justify="left" if column == "language" else "right")
    for language in LANGUAGES.values():
        table.add_row(language, *(f"{by[language, name]:,}" if by[language, name] else "" for name in names))
    return table


def go_on(config: PretrainConfig, model: Path) -> PretrainConfig:
    """Pretrain the shipped model on, on the text of the demo as its own tokenizer cuts it.

    Args:
        config: of the demo.
        model: folder of the shipped model.

    Returns:
        The config of that run.
    """
    text = config.data.folder / ("curated" if config.data.curation else "corpus")
    share = {"validation": config.data.validation, "validation_by": config.data.validation_by}
    arguments = ["--config", "continue", "--init_from", str(model), "--data.tokenizer", str(model)]
    more = parse(PretrainConfig, arguments, description="The shipped model, pretrained on.")
    shards.build(shards.ShardsConfig(corpus=text, tokenizer=model, out=more.stages[0].shards, **share))
    launch(arguments, more)
    return more


def falling(runs: dict[str, PretrainConfig]) -> Table:
    """Bits per byte of held-out text before and after each of some runs, by language."""
    table = Table(title="Held-out text: bits per byte before -> after", title_justify="left")
    table.add_column("language")
    lines = {}
    for title, config in runs.items():
        table.add_column(title, justify="right")
        measured = [row["validation"] for row in read_metrics(config.folder / "metrics.jsonl") if "validation" in row]
        for language, before in measured[0].items():
            after = measured[-1][language]
            text = f"{before['bits_per_byte']:.3f} -> {after['bits_per_byte']:.3f}"
            lines.setdefault(language, {})[title] = text
    for language, cells in lines.items():
        table.add_row(language, *(cells.get(title, "") for title in runs))
    return table


def main() -> None:
    """`python -m training.demo`: the demo config unless another is given; takes the options of training.pretrain."""
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", "demo", *arguments]
    config = parse(PretrainConfig, arguments, description="Corpus, vocabulary, shards and pretraining.")
    console, start = Console(record=True, width=118), time.perf_counter()
    manifest = prepare(config.data, config.corpus, vocab_size=config.model_config().vocab_size).manifest
    data = time.perf_counter() - start
    if curation := manifest["corpus"]["curation"]:
        console.print(f"Curation: {page.summary(curation)}", highlight=False)
    console.print(licences(manifest))
    launch(arguments, config)
    first, runs = time.perf_counter() - start, {"from scratch": config}
    if (SHIPPED / "config.json").is_file():
        console.print("\nThe shipped model, pretrained on: continued pretraining, on text it has in part read before.")
        runs["the shipped model"] = go_on(config, SHIPPED)
        console.print(falling(runs))
    whole = time.perf_counter() - start
    more = f"continued {whole - first:.0f} s, " if len(runs) > 1 else ""
    console.print(f"Time: data {data:.0f} s, pretraining {first - data:.0f} s, {more}in all {whole:.0f} s.")
    console.print(
        f"Text, vocabulary and shards: {config.data.folder}/{{corpus,tokenizer,shards}}, with their sources."
    )
    # The summary is on the screen already: the run printed it.
    text, summary = console.export_text(), (config.folder / "summary.txt").read_text(encoding="utf-8")
    (config.folder / "demo.txt").write_text(text.replace("Time: data", f"{summary}Time: data", 1), encoding="utf-8")


if __name__ == "__main__":
    program(main)
