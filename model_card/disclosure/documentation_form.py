"""Compute the facts that the Model Documentation Form of the Code of Practice for general-purpose AI models asks for.

documentation_form.md has its sections and items, those of the form in the Code's Transparency Chapter (10 July 2025).
"""

from ..facts import command_of, distinct_rows, total, totals_by
from .ai_act_inputs import in_range

SIZES = (  # lower bound in parameters, name of the range
    (0, "1-500M"),
    (5e8, "500M-5B"),
    (5e9, "5B-15B"),
    (15e9, "15B-50B"),
    (50e9, "50B-100B"),
    (100e9, "100B-500B"),
    (500e9, "500B-1T"),
    (1e12, ">1T"),
)
INFERENCE_TOKENS = 100_000  # generated tokens for which the form states the computation of inference


def form_facts(run: dict) -> dict:
    """Return the computed facts of the form."""
    hardware, corpora = run["sessions"][0]["hardware"], run["corpora"]
    rows = distinct_rows(run["data"])  # each document once
    optimizer = {key.replace("_", " "): value for key, value in run["config"]["optimizer"].items() if value}
    return {
        **{key: run[key] for key in ("parameters", "weights", "stages", "tokens", "method")},
        "parameter_range": in_range(run["parameters"], SIZES),
        "optimizer": ", ".join(f"{key} {value}" for key, value in optimizer.items()),
        "command": command_of(run["sessions"]),
        "documents": {
            "train": total(rows)["documents"],
            "held_out": max(corpus["held_out"]["documents"] for corpus in corpora),  # stages share it
        },
        "languages": [row["language"] for row in totals_by(rows, "language")],
        "corpus_tokens": total(rows)["tokens"],
        "dropped": [row["reason"] for corpus in corpora for row in corpus["left_out"]],
        "synthetic": [corpus["synthetic"] for corpus in corpora if corpus["synthetic"]],
        "hours": run["seconds"] / 3600,
        "processes": run["sessions"][0].get("processes", 1),
        "hardware": hardware["gpus"][0] if hardware["gpus"] else hardware["cpu"],
        "training_flop": 6 * run["parameters"] * run["tokens"],
        "training_mwh": run["kwh"] / 1000,
        "inference_tokens": INFERENCE_TOKENS,
        "inference_flop": 2 * run["parameters"] * INFERENCE_TOKENS,
    }
