"""What a pretraining run costs before it is started: compute, time, memory, energy, disk; and what tuning takes.

    python -m training.plan --config nano_1.2b --gpus 192 --device h100 --mfu 0.426
    python -m training.plan --config demo --gpus 1 --json plan.json
    python -m training.plan --config nano_1.2b --finetune true

Every figure on the screen is also in the JSON, in base units (FLOP, bytes, tokens, seconds) unless its name says more.
"""

if not __package__:  # run by path; same as `python -m training.plan`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import argparse
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from codecarbon.input import DataSource
from rich.console import Console
from rich.table import Table

from .config import InputError, parse, program
from .data.shard_files import TOKEN
from .files import write_json
from .metrics import PEAK_FLOPS, activation_bytes_per_token, flops_per_token, parameters, tokens_per_second
from .tuning.memory import GPUS, finetune_plan

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from .recipe import PretrainConfig

CONVENTIONS = {"none": "6N", "causal": "6N + causal attention", "full": "6N + full attention (PaLM)"}
DEVICE_BYTES = {"H200": 141e9, "H100": 80e9, "A100": 80e9}  # NVIDIA's data sheets, SXM
# With its eighth of the machine around it. Source: NVIDIA's system data sheets, at most 10.2 kW for a DGX H100 or H200
# and 6.5 kW for a DGX A100 (the GPU alone: 700 and 400 W).
DEVICE_WATTS = {"H200": 1275, "H100": 1275, "A100": 812.5}

# Law: Regulation (EU) 2024/1689. The first figure is indicative (the Commission's guidelines on general-purpose AI
# models, July 2025), the second a presumption (article 51(2)).
THRESHOLDS = {1e23: "general-purpose AI model, indicative", 1e25: "systemic risk, presumed"}

# What is said of the runs that these configs repeat. Days, GPUs, CO2: model card. Tokens: four figures that disagree.
PUBLISHED = {
    "nano_1.2b": {
        "days": 5,
        "gpus": 192,
        "t_co2eq": 4,
        "tokens": {
            "settings file (nanotron YAML), which this config follows": 4_224_712_704_000,
            "card: 518,000 steps x 1,024 sequences x 2,048, which is the run of the 350m": 1_086_324_736_000,
            "card: its phases, 1.6 T + 1.086 T + 1.086 T": 3_772_000_000_000,
            'card: "nearly 5 trillion"': 5_000_000_000_000,
        },
    }
}

# MFU (PaLM convention, against the bf16 peak) that others published for models of this kind on H100s.
MFU_OF_OTHERS = {
    "nanochat d24, 8 GPUs, bf16": 0.500,
    "nanochat d26, 8 GPUs, fp8": 0.597,
    "OLMo-core 1B at 4,096, bf16": 0.478,
    "OLMo-core 1B at 4,096, fp8": 0.565,
    "nanotron 1.34B, 8 GPUs": 0.443,
    "nanotron 1.34B, 32 GPUs": 0.384,
    "MPT-1b (llm-foundry), 16 GPUs": 0.424,
}


@dataclass
class PlanConfig:
    """The machines, and what is assumed of them.

    Args:
        gpus: processes, one GPU each.
        device: what they are.
        mfu: share of the dense bf16 peak that is used, FLOPs counted with full attention (PaLM convention).
        parallel: ddp, a whole copy on each GPU; or fsdp2, weights, gradients and moments cut over all of them.
        micro_batch: sequences that a GPU computes at once; the run's when not given.
        watts: of one GPU with its share of the machine; from the maker's data sheet when not given.
        pue: power usage effectiveness, what the building draws over what the machines draw. Default: Jean Zay, as in
            Luccioni et al. 2022, arXiv 2211.02001.
        country: ISO 3166 alpha-3 code whose electricity is used; the run's when not given.
        json: file for all the figures.
        finetune: say instead what full fine-tuning of the run's model takes of one GPU (training.tuning.memory).
    """

    gpus: int = 8
    device: Literal["h100", "h200", "a100"] = "h100"
    mfu: float = 0.40
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    micro_batch: int | None = None
    watts: float | None = None
    pue: float = 1.2
    country: str | None = None
    json: Path | None = None
    finetune: bool = False


def memory_per_gpu(run: "PretrainConfig", on: PlanConfig) -> dict[str, float]:
    """Bytes on one GPU by what they are for; an estimate from above, nothing recomputed, layers not compiled.

    fp32 master weights, gradients and two AdamW moments; bf16 copies that autocast keeps of every matrix; DDP's
    gradient buckets; under FSDP2 the embedding and two layers gathered whole; the activations of one micro batch; and
    the loss: logits of some positions in bf16 and fp32, and the head's weights, their gradient and its last addend.
    """
    from .loss import CHUNK_BYTES  # lazy import: brings torch

    config, N = run.model_config(), parameters(run.model_config())
    V, D = config.vocab_size, config.hidden_size
    embeddings = V * D * (1 if config.tie_word_embeddings else 2)
    gathered = embeddings + 2 * (N - embeddings) // config.num_hidden_layers
    most = max(stage.sequences // on.gpus for stage in run.stages)
    tokens = min(most, on.micro_batch or run.micro_batch) * run.sequence_length
    cut = on.gpus if on.parallel == "fsdp2" else 1
    parts = {
        "weights, fp32": 4 * N / cut,
        "gradients, fp32": 4 * N / cut,
        "AdamW moments, fp32": 8 * N / cut,
        "weights, bf16 copies": 2 * N if cut == 1 else 0,
        "gradient buckets of DDP, fp32": 4 * N if cut == 1 and on.gpus > 1 else 0,
        "embedding and two layers gathered, fp32 + bf16, and their gradients": 10 * gathered if cut > 1 else 0,
        f"activations of {tokens:,} tokens": activation_bytes_per_token(config) * tokens,
        "loss": 3 * min(CHUNK_BYTES, 2 * V * tokens) + 8 * V * D,
    }
    return {name: size for name, size in parts.items() if size}


def carbon_intensity(country: str) -> float:
    """Grams of CO2eq per kWh of a country's electricity, location-based, from the table that codecarbon carries.

    Raises:
        InputError: when the country is not in it.
    """
    table = DataSource().get_global_energy_mix_data()
    if country not in table or "carbon_intensity" not in table[country]:
        raise InputError(f"country {country} has no carbon intensity in codecarbon; give an ISO code, such as FRA.")
    return table[country]["carbon_intensity"]


def plan(run: "PretrainConfig", on: PlanConfig) -> dict:
    """All the figures, as they are written to JSON.

    Raises:
        InputError: when the machines are impossible, or pretraining would refuse the run on them.
    """
    if on.gpus < 1:
        raise InputError(f"--gpus {on.gpus} is none to run on; give 1 or more.")
    if not 0 < on.mfu <= 1:
        raise InputError(f"--mfu {on.mfu} is not a share of the peak; give a number above 0 and at most 1.")
    for stage in run.stages:
        if stage.sequences % on.gpus:
            raise InputError(
                f"stage {stage.name}: {stage.sequences} sequences a step do not divide among {on.gpus} GPUs, so "
                "pretraining would refuse it; change --gpus."
            )
    device = on.device.upper()
    config, T = run.model_config(), run.sequence_length
    N, peak = parameters(config), PEAK_FLOPS[device]
    speed = tokens_per_second(flops_per_token(config, T), mfu=on.mfu, peak=peak)

    stages, first, files = [], 1, {}
    for stage in run.stages:
        tokens = stage.steps * stage.sequences * T
        seconds = tokens / (speed * on.gpus)
        row = {"name": stage.name, "first_step": first, "steps": stage.steps, "sequences": stage.sequences}
        stages.append({**row, "tokens": tokens, "days": seconds / 86400})
        folder = str(stage.shards or run.data.folder / "shards")
        read = stage.steps * stage.sequences * (T + 1) * TOKEN.itemsize
        files[folder] = max(files.get(folder, 0), read)
        first += stage.steps
    tokens = sum(stage["tokens"] for stage in stages)
    days = sum(stage["days"] for stage in stages)

    flops = {}
    for attention, name in CONVENTIONS.items():
        each = flops_per_token(config, T, attention=attention)
        flops[attention] = {"name": name, "per_token": each, "in_all": each * tokens, "mfu": each * speed / peak}
    watts = DEVICE_WATTS[device] if on.watts is None else on.watts
    country = on.country or run.country
    intensity = carbon_intensity(country)
    gpu_hours = days * 24 * on.gpus
    mwh = gpu_hours * watts * on.pue / 1e6
    memory = memory_per_gpu(run, on)
    others = {}
    for name, mfu in MFU_OF_OTHERS.items():
        rate = tokens_per_second(flops_per_token(config, T), mfu=mfu, peak=PEAK_FLOPS["H100"])
        others[name] = {"mfu": mfu, "tokens_per_second_per_gpu": rate}
    return {
        "run": run.name,
        "gpus": on.gpus,
        "device": device,
        "parameters": N,
        "sequence_length": T,
        "steps": run.steps,
        "tokens": tokens,
        "stages": stages,
        "flops": flops,
        "time": {
            "peak_flops": peak,
            "mfu": on.mfu,
            "tokens_per_second_per_gpu": speed,
            "tokens_per_second": speed * on.gpus,
            "days": days,
            "gpu_hours": gpu_hours,
        },
        "h100_tokens_per_second_at_the_mfu_of_others": others,
        "memory": {
            "parallel": on.parallel,
            "parts": memory,
            "in_all": sum(memory.values()),
            "of_device": DEVICE_BYTES[device],
        },
        "energy": {
            "watts_per_gpu": watts,
            "pue": on.pue,
            "mwh": mwh,
            "country": country,
            "g_co2eq_per_kwh": intensity,
            "t_co2eq": mwh * intensity / 1e3,
            "source": f"codecarbon {version('codecarbon')}, electricity of {country}, location-based",
        },
        "disk": {
            "shards": files,
            "shards_in_all": sum(files.values()),
            "checkpoint": 12 * N,
            "checkpoints_in_all": 12 * N * (run.every.keep + 1),
            "model": 2 * N,
        },
        "thresholds": [
            {"flop": limit, "name": name, "passed": {key: one["in_all"] > limit for key, one in flops.items()}}
            for limit, name in THRESHOLDS.items()
        ],
        "published": published(run, on, tokens, watts) if run.name in PUBLISHED else None,
    }


def published(run: "PretrainConfig", on: PlanConfig, tokens: int, watts: float) -> dict:
    """What was said of the original run, and what that means under the assumptions made here."""
    said = PUBLISHED[run.name]
    gpu_seconds = said["gpus"] * said["days"] * 86400
    rate = tokens / gpu_seconds
    mwh = gpu_seconds / 3600 * watts * on.pue / 1e6
    return {
        **said,
        "tokens_per_second_per_gpu": rate,
        "mfu": rate * flops_per_token(run.model_config(), run.sequence_length) / PEAK_FLOPS["H100"],
        "mwh": mwh,
        "g_co2eq_per_kwh": said["t_co2eq"] * 1e3 / mwh,
    }


def amount(size: float, unit: str) -> str:
    """Four digits and a decimal prefix: 14.35 GB."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if size >= 10**power:
            return f"{size / 10**power:#.4g} {prefix}{unit}"
    return f"{size:.0f} {unit}"


def span(days: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if days * 86400 >= seconds:
            return f"{days * 86400 / seconds:.2f} {unit}"
    return f"{days * 86400:.2g} seconds"


def show(figures: dict, console: Console) -> None:
    """The figures on one screen."""

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            made.add_column(column, justify="right" if i and column != "assuming" else "left")
        return made

    time, energy, disk, memory = (figures[key] for key in ("time", "energy", "disk", "memory"))
    on = f"{figures['gpus']:,} x {figures['device']}"
    console.print(f"[bold]{figures['run']}[/bold]: {figures['parameters']:,} parameters, on {on}")

    rows = table("Stages", "stage", "first step", "steps", "sequences", "tokens", "time")
    for s in figures["stages"]:
        numbers = (f"{s[key]:,}" for key in ("first_step", "steps", "sequences", "tokens"))
        rows.add_row(s["name"], *numbers, span(s["days"]))
    rows.add_section()
    rows.add_row("in all", "", f"{figures['steps']:,}", "", f"{figures['tokens']:,}", span(time["days"]))
    console.print(rows)

    limits = {limit["flop"]: f"{limit['flop']:.0e}".replace("1e+", "10^") for limit in figures["thresholds"]}
    passes = (f"passes {limit}" for limit in limits.values())
    rows = table("Compute", "convention", "FLOP a token", "FLOP in all", "MFU", *passes)
    for key, one in figures["flops"].items():
        passed = ("yes" if limit["passed"][key] else "no" for limit in figures["thresholds"])
        per_token = amount(one["per_token"], "FLOP")
        rows.add_row(one["name"], per_token, f"{one['in_all']:.3e}", f"{one['mfu']:.1%}", *passed)
    console.print(rows)
    said = "; ".join(f"{limits[limit['flop']]} FLOP: {limit['name']}" for limit in figures["thresholds"])
    console.print(f"EU AI Act: {said}.", highlight=False)

    rows = table(f"Memory of one GPU, {memory['parallel']}: upper estimate", "", "")
    for name, size in memory["parts"].items():
        rows.add_row(name, amount(size, "B"))
    rows.add_section()
    fits = "fits in" if memory["in_all"] <= memory["of_device"] else "[bold]does not fit in[/bold]"
    rows.add_row(f"in all; {fits} {amount(memory['of_device'], 'B')}", amount(memory["in_all"], "B"))
    console.print(rows)

    rows = table("Time, energy, disk", "", "", "assuming")
    rate = f"{time['tokens_per_second_per_gpu']:,.0f} tokens/s"
    peak = f"MFU {time['mfu']:.1%} (PaLM) of {amount(time['peak_flops'], 'FLOP/s')}, dense bf16"
    rows.add_row("one GPU", rate, peak)
    rows.add_row("all GPUs", f"{time['tokens_per_second']:,.0f} tokens/s", "no time lost")
    rows.add_row("time", span(time["days"]), f"{time['gpu_hours']:,.1f} GPU-hours")
    power = f"{energy['watts_per_gpu']:g} W a GPU with its share of the machine, PUE {energy['pue']:g}"
    rows.add_row("energy", amount(energy["mwh"] * 1e6, "Wh"), power)
    grid = f"{energy['g_co2eq_per_kwh']:.0f} g/kWh: {energy['source']}"
    tonnes = energy["t_co2eq"]
    rows.add_row("emissions", f"{tonnes:.3g} t CO2eq" if tonnes >= 0.01 else f"{tonnes * 1e6:.3g} g CO2eq", grid)
    for folder, size in disk["shards"].items():
        rows.add_row(f"shards in {folder}", amount(size, "B"), "2 bytes a token; no stage reads its text twice")
    rows.add_row("one checkpoint", amount(disk["checkpoint"], "B"), "fp32 weights and two moments")
    rows.add_row("checkpoints, at most", amount(disk["checkpoints_in_all"], "B"), "those kept, and one being written")
    rows.add_row("the model", amount(disk["model"], "B"), "bf16")
    console.print(rows)

    rows = table("At the MFU that others published", "", "MFU (PaLM)", "this model, tokens/s on an H100")
    for name, one in figures["h100_tokens_per_second_at_the_mfu_of_others"].items():
        rows.add_row(name, f"{one['mfu']:.1%}", f"{one['tokens_per_second_per_gpu'] / 1e3:.1f}k")
    console.print(rows)

    if said := figures["published"]:
        rows = table("The original", "", "published", "here")
        rows.add_row("time", f"{said['days']} days on {said['gpus']} H100", f"{span(time['days'])} on {on}")
        rows.add_row("t CO2eq", f"{said['t_co2eq']}", f"{energy['t_co2eq']:.3g}")
        here = f"{rate}, {time['mfu']:.1%}"
        rows.add_row(
            "a GPU, MFU (PaLM)", f"{said['tokens_per_second_per_gpu']:,.0f} tokens/s, {said['mfu']:.1%}", here
        )
        here = f"{energy['g_co2eq_per_kwh']:.0f} in {energy['country']}"
        rows.add_row("g CO2eq/kWh", f"{said['g_co2eq_per_kwh']:.0f}, if {said['mwh']:.1f} MWh were used", here)
        console.print(rows)
        rows = table("Tokens of the original: the sources disagree", "source", "tokens")
        for name, tokens in said["tokens"].items():
            rows.add_row(name, f"{tokens:,}")
        console.print(rows)


def show_finetune(run: "PretrainConfig", figures: dict, console: Console) -> None:
    """What fine-tuning takes, on one screen."""
    tokens = figures["tokens"]
    console.print(f"[bold]{run.name}[/bold]: {figures['parameters']:,} parameters, all of them fine-tuned on one GPU")
    rows = Table(title=f"Memory with {tokens:,} tokens in a micro batch", title_justify="left", title_style="bold")
    for i, column in enumerate(("strategy", "trainer", "in all", *(f"tokens on {gpu}" for gpu in GPUS))):
        rows.add_column(column, justify="right" if i > 1 else "left")
    for row in figures["strategies"]:
        fits = (f"{most:,}" if most else "does not fit" for most in row["most_tokens"].values())
        rows.add_row(row["name"], row["trainer"], amount(row["in_all"], "B"), *fits)
    console.print(rows)
    for row in figures["strategies"][0], figures["strategies"][-1]:
        parts = Table(title=row["name"], title_justify="left", title_style="bold")
        parts.add_column("for")
        parts.add_column("bytes", justify="right")
        for name, size in row["parts"].items():
            parts.add_row(name, amount(size, "B"))
        console.print(parts)


def main() -> None:
    """`python -m training.plan`: here `--config` names the run, and the other options are of the machines."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--config", default="nano_1.2b")
    chosen, rest = options.parse_known_args()
    on = parse(PlanConfig, rest, description="What a pretraining run costs; --config names the run (nano_1.2b).")
    from .recipe import PretrainConfig

    run = parse(PretrainConfig, ["--config", chosen.config], description="A run to plan.")
    if on.finetune:
        figures = finetune_plan(run.model_config(), on.micro_batch * run.sequence_length if on.micro_batch else 2048)
        show_finetune(run, figures, Console(width=118))
    else:
        figures = plan(run, on)
        show(figures, Console(width=118))
    if on.json:
        write_json(on.json, figures)


if __name__ == "__main__":
    program(main)
