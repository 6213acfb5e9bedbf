"""The whole way in one command: text, vocabulary, shards, pretraining, generation, and one closing screen."""

import os
import subprocess
import sys
import time
from collections import Counter

from rich.console import Console
from rich.table import Table

from .config import InputError, parse, program
from .corpus import LANGUAGES
from .files import read_json
from .metrics import read_metrics
from .prepare import prepare
from .recipe import PretrainConfig

PROMPTS = {
    "en": "In the beginning of the story, the old man",
    "fr": "Au commencement de cette histoire, le roi",
    "es": "Al principio de esta historia, el rey",
    "de": "Am Anfang dieser Geschichte war der König",
    "it": "All'inizio di questa storia, il re",
    "nl": "Aan het begin van dit verhaal was de koning",
    "la": "In principio huius historiae rex",
    "pt": "No princípio desta história, o rei",
}
NEW_TOKENS = 40


def launch(arguments: list[str], config: PretrainConfig) -> None:
    """Pretrain under `accelerate launch`, in one process with all the CPU's cores (or the GPU).

    Raises:
        InputError: when the run did not end well; its own messages are on the screen.
    """
    package = __package__ or "training"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", str(len(os.sched_getaffinity(0)))]
    command += ["-m", f"{package}.pretrain", *arguments]
    print("$ accelerate launch", *command[3:], flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError(f"Pretraining stopped early; start the demo again and it goes on from {config.folder}.")


def continuations(folder) -> dict[str, str]:
    """A greedy continuation in each language by the model in `folder`, as a user would get it."""
    from transformers import pipeline

    import modeling_pleias  # noqa: F401  (registers the classes)

    generate = pipeline("text-generation", model=str(folder), max_new_tokens=NEW_TOKENS)
    return {language: generate(prompt)[0]["generated_text"] for language, prompt in PROMPTS.items()}


def closing_screen(config: PretrainConfig, manifest: dict, texts: dict[str, str], seconds: dict[str, float]) -> None:
    """Everything one wants to know of the run, on one screen and in demo.txt of the run folder."""
    console = Console(record=True, width=118)
    records = read_metrics(config.folder / "metrics.jsonl")
    losses = [record for record in records if "loss" in record]
    held = [record["validation"] for record in records if "validation" in record]
    emissions = read_json(config.folder / "emissions.json")

    by = Counter()
    for row in manifest["account"]:
        by[row["language"], row["license"]] += row["tokens"]
    licences = Table(title="Text: tokens by language and licence", title_justify="left")
    names = sorted({licence for _, licence in by})
    for column in ("language", *names):
        licences.add_column(column, justify="left" if column == "language" else "right")
    for language in LANGUAGES.values():
        licences.add_row(language, *(f"{by[language, name]:,}" if by[language, name] else "" for name in names))
    console.print(licences)

    results = Table(title="Held-out text: bits per byte before and after; greedy continuation", title_justify="left")
    for column in ("", "before", "after", f"prompt -> {NEW_TOKENS} tokens, greedy, repetition penalty 1.2"):
        results.add_column(column)
    for language, text in texts.items():
        before, after = (one.get(language, {}).get("bits_per_byte") for one in (held[0], held[-1]))
        text = f"[bold]{PROMPTS[language]}[/bold]{' '.join(text.removeprefix(PROMPTS[language]).split(' '))}"
        results.add_row(language, *(f"{x:.3f}" if x else "-" for x in (before, after)), " ".join(text.split()))
    console.print(results)

    tokens = sum(stage.steps * stage.sequences for stage in config.stages) * config.sequence_length
    console.print(
        f"Pretrained on {tokens:,} tokens in {config.steps} steps; loss {losses[0]['loss']:.2f} -> "
        f"{losses[-1]['loss']:.2f} nats per token; {emissions['kwh'] * 1000:.2f} Wh, "
        f"{emissions['kg_co2eq'] * 1000:.2f} g CO2eq."
    )
    console.print("Time: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()) + ".")
    console.print(
        f"Text, vocabulary and shards: {config.data.folder}/{{corpus,tokenizer,shards}}, with their sources."
    )
    console.print(f"Run: {config.folder}/{{config.yaml,run.json,metrics.jsonl,emissions.json,loss.png,checkpoints}}")
    console.print(f'Model: pipeline("text-generation", model="{config.folder}/model")')
    console.save_text(config.folder / "demo.txt")


def main() -> None:
    """`python -m training.demo`: the demo config unless another is given; takes the options of training.pretrain."""
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", "demo", *arguments]
    config = parse(PretrainConfig, arguments, description="Corpus, vocabulary, shards, pretraining and generation.")
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = time.perf_counter() - start - sum(seconds.values())

    manifest = prepare(config.data, config.corpus, vocab_size=config.model_config().vocab_size).manifest
    lap("data")
    launch(arguments, config)
    lap("pretraining")
    texts = continuations(config.folder / "model")
    lap("generation")
    closing_screen(config, manifest, texts, {**seconds, "in all": sum(seconds.values())})


if __name__ == "__main__":
    program(main)
