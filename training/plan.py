"""Estimate compute, time, memory, energy and disk of a pretraining run, or the memory of fine-tuning.

    python -m training.plan --config nano_1.2b --gpus 192 --device h100 --mfu 0.426
    python -m training.plan --config demo --gpus 1 --json plan.json
    python -m training.plan --config nano_1.2b --finetune true

Every printed value is also in the JSON, in base units (FLOP, bytes, tokens, seconds) unless its key has a unit.
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
from rich.markup import escape
from rich.table import Table

from .common.config import InputError, parse, run_main
from .common.escaping import terminal_line
from .common.files import write_json
from .data.shard_files import TOKEN
from .finetuning.memory import GPUS, finetune_plan
from .run.metrics import PEAK_FLOPS, activation_bytes_per_token, count_parameters, flops_per_token, tokens_per_second

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from .pretraining.recipe import PretrainConfig

CONVENTIONS = {"none": "6N", "causal": "6N + causal attention", "full": "6N + full attention (PaLM)"}
DEVICE_BYTES = {"H200": 141e9, "H100": 80e9, "A100": 80e9}  # NVIDIA's data sheets, SXM
# Per GPU, including an eighth of the machine. Source: NVIDIA's system data sheets, at most 10.2 kW for a DGX H100 or
# H200 and 6.5 kW for a DGX A100 (the GPU alone: 700 and 400 W).
DEVICE_WATTS = {"H200": 1275, "H100": 1275, "A100": 812.5}

# Regulation (EU) 2024/1689. The first threshold is indicative (the Commission's guidelines on general-purpose AI
# models, July 2025), the second a presumption (article 51(2)).
THRESHOLDS = {1e23: "general-purpose AI model, indicative", 1e25: "systemic risk, presumed"}

# Published values of the runs that these configs reproduce. Days, GPUs, CO2: model card. Tokens: sources disagree.
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

# Published MFU (PaLM convention, relative to the bf16 peak) of similar models on H100s.
PUBLISHED_MFU = {
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
    """Hardware and assumptions of an estimate.

    Args:
        gpus: Number of GPUs, one process each.
        device: GPU model.
        mfu: Model FLOPs utilisation: fraction of the dense bf16 peak, FLOPs counted with full attention (PaLM
            convention).
        parallel: ddp (a full copy per GPU), or fsdp2 (weights, gradients and optimizer state sharded over all GPUs).
        micro_batch: Sequences per GPU and forward pass. Defaults to the run's.
        watts: Power of one GPU with its share of the machine. Defaults to the manufacturer's data sheet.
        pue: Power usage effectiveness: power of the data centre over power of the machines. Default: 1.2, Jean Zay, as
            in Luccioni et al. 2022, arXiv 2211.02001.
        country: ISO 3166 alpha-3 code of the country whose electricity is used. Defaults to the run's.
        json: JSON file for all values.
        finetune: Estimate the memory of full fine-tuning of the run's model on one GPU instead.
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
    """Return the bytes on one GPU by purpose: an upper bound, without recomputation or compiled layers.

    fp32 master weights, gradients and two AdamW moments; autocast's bf16 copies of every matrix; DDP's gradient
    buckets; with FSDP2, the unsharded embedding and two layers; the activations of one micro batch; and the loss:
    logits of some positions in bf16 and fp32, the head's weights, their gradient and its last summand.
    """
    from .step.loss import CHUNK_BYTES  # lazy import: brings torch

    config, N = run.model_config(), count_parameters(run.model_config())
    V, D = config.vocab_size, config.hidden_size
    embeddings = V * D * (1 if config.tie_word_embeddings else 2)
    gathered = embeddings + 2 * (N - embeddings) // config.num_hidden_layers
    per_gpu = max(stage.sequences // on.gpus for stage in run.stages)
    tokens = min(per_gpu, on.micro_batch or run.micro_batch) * run.sequence_length
    shards = on.gpus if on.parallel == "fsdp2" else 1
    parts = {
        "weights, fp32": 4 * N / shards,
        "gradients, fp32": 4 * N / shards,
        "AdamW state, fp32": 8 * N / shards,
        "weights, bf16 copies": 2 * N if shards == 1 else 0,
        "DDP gradient buckets, fp32": 4 * N if shards == 1 and on.gpus > 1 else 0,
        "gathered embedding and two layers, fp32 + bf16, and their gradients": 10 * gathered if shards > 1 else 0,
        f"activations of {tokens:,} tokens": activation_bytes_per_token(config) * tokens,
        "loss": 3 * min(CHUNK_BYTES, 2 * V * tokens) + 8 * V * D,
    }
    return {name: size for name, size in parts.items() if size}


def carbon_intensity(country: str) -> float:
    """Return the grams of CO2eq per kWh of a country's electricity, location-based, from codecarbon's table.

    Raises:
        InputError: If the table does not contain the country.
    """
    table = DataSource().get_global_energy_mix_data()
    if country not in table or "carbon_intensity" not in table[country]:
        raise InputError(f"country must be an ISO code in codecarbon's table, such as FRA, got {country}.")
    return table[country]["carbon_intensity"]


def plan(run: "PretrainConfig", on: PlanConfig) -> dict:
    """Return all values, as written to JSON.

    Raises:
        InputError: If the hardware is invalid, or pretraining would reject the run on it.
    """
    if on.gpus < 1:
        raise InputError(f"--gpus must be at least 1, got {on.gpus}.")
    if not 0 < on.mfu <= 1:
        raise InputError(f"--mfu must be above 0 and at most 1, got {on.mfu}.")
    for stage in run.stages:
        if stage.sequences % on.gpus:
            raise InputError(
                f"stage {stage.name}: {stage.sequences} sequences per step are not divisible by {on.gpus} GPUs, which "
                "pretraining requires: change --gpus."
            )
    device = on.device.upper()
    config, T = run.model_config(), run.sequence_length
    N, peak = count_parameters(config), PEAK_FLOPS[device]
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
        per_token = flops_per_token(config, T, attention=attention)
        mfu = per_token * speed / peak
        flops[attention] = {"name": name, "per_token": per_token, "total": per_token * tokens, "mfu": mfu}
    watts = DEVICE_WATTS[device] if on.watts is None else on.watts
    country = on.country or run.country
    intensity = carbon_intensity(country)
    gpu_hours = days * 24 * on.gpus
    mwh = gpu_hours * watts * on.pue / 1e6
    memory = memory_per_gpu(run, on)
    at_published_mfu = {}
    for name, mfu in PUBLISHED_MFU.items():
        rate = tokens_per_second(flops_per_token(config, T), mfu=mfu, peak=PEAK_FLOPS["H100"])
        at_published_mfu[name] = {"mfu": mfu, "tokens_per_second_per_gpu": rate}
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
        "h100_at_published_mfu": at_published_mfu,
        "memory": {
            "parallel": on.parallel,
            "parts": memory,
            "total": sum(memory.values()),
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
            "shards_total": sum(files.values()),
            "checkpoint": 12 * N,
            "checkpoints_total": 12 * N * (run.every.keep + 1),
            "model": 2 * N,
        },
        "thresholds": [
            {"flop": limit, "name": name, "passed": {key: row["total"] > limit for key, row in flops.items()}}
            for limit, name in THRESHOLDS.items()
        ],
        "published": published(run, on, tokens, watts) if run.name in PUBLISHED else None,
    }


def published(run: "PretrainConfig", on: PlanConfig, tokens: int, watts: float) -> dict:
    """Return the published values of the original run, and what follows under the assumptions of this estimate."""
    values = PUBLISHED[run.name]
    gpu_seconds = values["gpus"] * values["days"] * 86400
    rate = tokens / gpu_seconds
    mwh = gpu_seconds / 3600 * watts * on.pue / 1e6
    return {
        **values,
        "tokens_per_second_per_gpu": rate,
        "mfu": rate * flops_per_token(run.model_config(), run.sequence_length) / PEAK_FLOPS["H100"],
        "mwh": mwh,
        "g_co2eq_per_kwh": values["t_co2eq"] * 1e3 / mwh,
    }


def format_si(size: float, unit: str) -> str:
    """Format four digits with a decimal prefix: 14.35 GB."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if size >= 10**power:
            return f"{size / 10**power:#.4g} {prefix}{unit}"
    return f"{size:.0f} {unit}"


def format_duration(days: float) -> str:
    """Format a duration in days, hours, minutes or seconds."""
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if days * 86400 >= seconds:
            return f"{days * 86400 / seconds:.2f} {unit}"
    return f"{days * 86400:.2g} seconds"


def as_text(name: str) -> str:
    """Return a name of a config for rich, without escape codes and markup."""
    return escape(terminal_line(name))


def print_plan(estimate: dict, console: Console) -> None:
    """Print the estimate."""
    time, energy, disk, memory = (estimate[key] for key in ("time", "energy", "disk", "memory"))
    on = f"{estimate['gpus']:,} x {estimate['device']}"
    console.print(f"[bold]{as_text(estimate['run'])}[/bold]: {estimate['parameters']:,} parameters, on {on}")

    rows = build_table("Stages", "stage", "first step", "steps", "sequences", "tokens", "time")
    for s in estimate["stages"]:
        numbers = (f"{s[key]:,}" for key in ("first_step", "steps", "sequences", "tokens"))
        rows.add_row(as_text(s["name"]), *numbers, format_duration(s["days"]))
    rows.add_section()
    rows.add_row("total", "", f"{estimate['steps']:,}", "", f"{estimate['tokens']:,}", format_duration(time["days"]))
    console.print(rows)

    limits = {limit["flop"]: f"{limit['flop']:.0e}".replace("1e+", "10^") for limit in estimate["thresholds"]}
    exceeds = (f"exceeds {limit}" for limit in limits.values())
    rows = build_table("Compute", "convention", "FLOP per token", "total FLOP", "MFU", *exceeds)
    for key, row in estimate["flops"].items():
        passed = ("yes" if limit["passed"][key] else "no" for limit in estimate["thresholds"])
        per_token = format_si(row["per_token"], "FLOP")
        rows.add_row(row["name"], per_token, f"{row['total']:.3e}", f"{row['mfu']:.1%}", *passed)
    console.print(rows)
    act = "; ".join(f"{limits[limit['flop']]} FLOP: {limit['name']}" for limit in estimate["thresholds"])
    console.print(f"EU AI Act: {act}.", highlight=False)

    fits = "fits in" if memory["total"] <= memory["of_device"] else "[bold]does not fit in[/bold]"
    total = f"total; {fits} {format_si(memory['of_device'], 'B')}"
    console.print(build_memory_table(f"Memory per GPU, {memory['parallel']}: upper bound", memory["parts"], total))

    rows = build_table("Time, energy, disk", "", "", "assuming")
    rate = f"{time['tokens_per_second_per_gpu']:,.0f} tokens/s"
    peak = f"MFU {time['mfu']:.1%} (PaLM) of {format_si(time['peak_flops'], 'FLOP/s')}, dense bf16"
    rows.add_row("one GPU", rate, peak)
    rows.add_row("all GPUs", f"{time['tokens_per_second']:,.0f} tokens/s", "linear scaling, no interruptions")
    rows.add_row("time", format_duration(time["days"]), f"{time['gpu_hours']:,.1f} GPU-hours")
    power = f"{energy['watts_per_gpu']:g} W per GPU with its share of the machine, PUE {energy['pue']:g}"
    rows.add_row("energy", format_si(energy["mwh"] * 1e6, "Wh"), power)
    grid = f"{energy['g_co2eq_per_kwh']:.0f} g/kWh: {energy['source']}"
    tonnes = energy["t_co2eq"]
    rows.add_row("emissions", f"{tonnes:.3g} t CO2eq" if tonnes >= 0.01 else f"{tonnes * 1e6:.3g} g CO2eq", grid)
    for folder, size in disk["shards"].items():
        label = f"shards in {as_text(folder)}"
        rows.add_row(label, format_si(size, "B"), "2 bytes per token; no stage repeats its text")
    rows.add_row("one checkpoint", format_si(disk["checkpoint"], "B"), "fp32 weights and two moments")
    rows.add_row(
        "checkpoints, at most", format_si(disk["checkpoints_total"], "B"), "every.keep of them, and one being written"
    )
    rows.add_row("model", format_si(disk["model"], "B"), "bf16")
    console.print(rows)

    rows = build_table("Speed at published MFU", "", "MFU (PaLM)", "this model, tokens/s on an H100")
    for name, row in estimate["h100_at_published_mfu"].items():
        rows.add_row(name, f"{row['mfu']:.1%}", f"{row['tokens_per_second_per_gpu'] / 1e3:.1f}k")
    console.print(rows)

    if original := estimate["published"]:
        rows = build_table("Original run", "", "published", "estimate")
        rows.add_row(
            "time", f"{original['days']} days on {original['gpus']} H100", f"{format_duration(time['days'])} on {on}"
        )
        rows.add_row("t CO2eq", f"{original['t_co2eq']}", f"{energy['t_co2eq']:.3g}")
        speed = f"{original['tokens_per_second_per_gpu']:,.0f} tokens/s, {original['mfu']:.1%}"
        rows.add_row("one GPU, MFU (PaLM)", speed, f"{rate}, {time['mfu']:.1%}")
        grid = f"{original['g_co2eq_per_kwh']:.0f}, if {original['mwh']:.1f} MWh were used"
        rows.add_row("g CO2eq/kWh", grid, f"{energy['g_co2eq_per_kwh']:.0f} in {energy['country']}")
        console.print(rows)
        rows = build_table("Tokens of the original run: the sources disagree", "source", "tokens")
        for name, tokens in original["tokens"].items():
            rows.add_row(name, f"{tokens:,}")
        console.print(rows)


def build_table(title: str, *columns: str) -> Table:
    """Build an empty table, with text columns left and number columns right."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        result.add_column(column, justify="right" if i and column not in ("assuming", "trainer") else "left")
    return result


def build_memory_table(title: str, parts: dict[str, float], total: str) -> Table:
    """Build a table of the bytes by purpose, with their sum in the row `total`."""
    rows = build_table(title, "", "")
    for name, size in parts.items():
        rows.add_row(name, format_si(size, "B"))
    rows.add_section()
    rows.add_row(total, format_si(sum(parts.values()), "B"))
    return rows


def print_finetune_plan(run: "PretrainConfig", estimate: dict, console: Console) -> None:
    """Print the memory of full fine-tuning."""
    console.print(
        f"[bold]{as_text(run.name)}[/bold]: {estimate['parameters']:,} parameters, all fine-tuned on one GPU"
    )
    columns = ("strategy", "trainer", "total", *(f"tokens on {gpu}" for gpu in GPUS))
    rows = build_table(f"Memory with {estimate['tokens']:,} tokens per micro batch", *columns)
    for row in estimate["strategies"]:
        fits = (f"{tokens:,}" if tokens else "does not fit" for tokens in row["most_tokens"].values())
        rows.add_row(row["name"], row["trainer"], format_si(row["total"], "B"), *fits)
    console.print(rows)
    for row in estimate["strategies"][0], estimate["strategies"][-1]:
        console.print(build_memory_table(row["name"], row["parts"], "total"))


def main() -> None:
    """Run `python -m training.plan`: `--config` selects the run, and the other options describe the hardware."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--config", default="nano_1.2b")
    selected, rest = options.parse_known_args()
    description = "Estimate the cost of a pretraining run; --config selects the run (default: nano_1.2b)."
    on = parse(PlanConfig, rest, description=description)
    from .pretraining.recipe import PretrainConfig

    run = parse(PretrainConfig, ["--config", selected.config], description="Run to estimate.")
    if on.finetune:
        estimate = finetune_plan(run.model_config(), on.micro_batch * run.sequence_length if on.micro_batch else 2048)
        print_finetune_plan(run, estimate, Console(width=118))
    else:
        estimate = plan(run, on)
        print_plan(estimate, Console(width=118))
    if on.json:
        write_json(on.json, estimate)


if __name__ == "__main__":
    run_main(main)
