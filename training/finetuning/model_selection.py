"""Generate completions for task rows, compare base and tuned model, and keep the best checkpoint."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.files import read_json
from ..common.generation import complete
from ..common.intervals import Metric, bootstrap_interval, paired_difference
from ..step import parallel


def generate_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    decoding: dict,
    *,
    progress: str | None = None,
) -> list[str]:
    """Generate a completion for each row. Each process generates its share, and all return all completions in order.

    Args:
        decoding: Arguments of training.common.generation.complete.
    """
    state = PartialState()
    prompts = [row["prompt"] for row in rows[state.process_index :: state.num_processes]]
    title = progress if state.is_main_process else None
    outputs = complete(model.eval(), tokenizer, prompts, **decoding, progress=title)
    merged = [""] * len(rows)
    for process, part in enumerate(gather_object([outputs])):
        merged[process :: state.num_processes] = part
    return merged


def metric_value(metric: Metric) -> float:
    """Return the metric over all rows, NaN if it is undefined."""
    rows = metric.rows
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(metric(rows.sum(0))) if len(rows) else float("nan")


def compare_metrics(before: dict[str, Metric], after: dict[str, Metric]) -> dict[str, dict[str, float]]:
    """Return each metric NAME with intervals: NAME of the tuned model, NAME_before of the base, and NAME_change.

    A metric that is undefined for one of the two, such as citation correctness without citations, is omitted.
    """
    metrics = {}
    for name, metric in after.items():
        if math.isfinite(metric_value(metric)) and math.isfinite(metric_value(before[name])):
            metrics[name] = bootstrap_interval(metric)
            metrics[f"{name}_before"] = bootstrap_interval(before[name])
            metrics[f"{name}_change"] = paired_difference(metric, before[name])
    return metrics


def export_copy(model: PreTrainedModel, task: ModuleType, stop_id: int | None = None) -> PreTrainedModel:
    """Return a bf16 copy in host memory, as it is saved, so that evaluated and saved weights are bit-identical.

    Args:
        model: Model in training, full or sharded; all processes must call this function.
        stop_id: Token that ends a completion, in addition to the end-of-text token.
    """
    copy = parallel.gather_full_model(model, torch.bfloat16, keep=True)
    copy.generation_config.update(repetition_penalty=task.DECODING.get("repetition_penalty", 1.0))
    if stop_id is not None:
        copy.generation_config.eos_token_id = [copy.config.eos_token_id, stop_id]
    return copy


class BestCheckpoint:
    """Folder with the weights of a run that have the best metric so far.

    A resumed run repeats evaluations with the same values, so the saved weights stay the right ones.
    """

    def __init__(self, folder: Path, *, higher_is_better: bool):
        self.folder, self.sign = folder, 1 if higher_is_better else -1

    @property
    def facts(self) -> dict | None:
        """Step, metric and value of the saved weights; None if nothing is saved."""
        path = self.folder / "best.json"
        return read_json(path) if path.is_file() else None

    def is_improved_by(self, score: float | None) -> bool:
        """Return whether a value is at least as good as the saved one, whose weights were trained for fewer steps.

        An undefined value (None) is as good as another undefined one, and better than no saved weights.
        """
        if (saved := self.facts) is None or saved["value"] is None:
            return True
        return score is not None and self.sign * score >= self.sign * saved["value"]
