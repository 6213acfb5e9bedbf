"""What a model answers to rows of a task; the best weights of a run; before and after, compared."""

import copy
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import parallel
from ..files import write_json
from ..generation import complete
from ..intervals import Metric, difference, interval


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    decoding: dict,
    *,
    progress: str | None = None,
) -> list[str]:
    """The model's answer to each row, in order, on every process; each answers its share.

    Args:
        decoding: for training.generation.complete.
    """
    state = PartialState()
    mine = [row["prompt"] for row in rows[state.process_index :: state.num_processes]]
    shown = progress if state.is_main_process else None
    outputs = complete(model.eval(), tokenizer, mine, **decoding, progress=shown)
    parts = gather_object([outputs])
    merged = [""] * len(rows)
    for process, part in enumerate(parts):
        merged[process :: state.num_processes] = part
    return merged


def value(metric: Metric) -> float:
    """The figure of all rows; no number where it is not defined."""
    rows = metric.rows
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(metric(rows.sum(0))) if len(rows) else float("nan")


def compared(before: dict[str, Metric], after: dict[str, Metric]) -> dict[str, dict[str, float]]:
    """Of each metric NAME, with intervals: the tuned model's as NAME, the base's as NAME_before, and NAME_change.

    What is not defined for one of the two, as the correctness of citations where there are none, is left out.
    """
    metrics = {}
    for name, metric in after.items():
        if math.isfinite(value(metric)) and math.isfinite(value(before[name])):
            metrics[name] = interval(metric)
            metrics[f"{name}_before"] = interval(before[name])
            metrics[f"{name}_change"] = difference(metric, before[name])
    return metrics


def shipped(model: PreTrainedModel, task: ModuleType, stop_id: int | None = None) -> PreTrainedModel:
    """A copy in host memory as it is saved, in bf16: what is measured is what is kept, to the bit.

    Args:
        model: in training; whole, or cut over processes, all of which must call this.
        stop_id: token that ends an answer besides the end of text.
    """
    if hasattr(model, "merge_and_unload"):  # an adapter, which was insisted on
        whole = copy.deepcopy(model).merge_and_unload().to("cpu", torch.bfloat16)
    else:
        whole = parallel.gathered(model, torch.bfloat16, keep=True)
    whole.generation_config.update(repetition_penalty=task.DECODING.get("repetition_penalty", 1.0))
    if stop_id is not None:
        whole.generation_config.eos_token_id = [whole.config.eos_token_id, stop_id]
    return whole


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: dict | None = None) -> None:
    """Write a folder that loads with from_pretrained; it is whole or not there."""
    writing = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(writing, ignore_errors=True)
    model.to("cpu", torch.bfloat16).save_pretrained(writing)
    tokenizer.save_pretrained(writing)
    if facts is not None:
        write_json(writing / "best.json", facts)
    shutil.rmtree(folder, ignore_errors=True)
    writing.rename(folder)


class Best:
    """The weights of a run that measured best, in a folder.

    A resumed run measures again what it repeats, with the same figures, so what was kept stays right.
    """

    def __init__(self, folder: Path, *, higher_is_better: bool):
        self.folder, self.sign = folder, 1 if higher_is_better else -1

    @property
    def facts(self) -> dict | None:
        """Step and figure of what is kept, if anything is."""
        path = self.folder / "best.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def beaten_by(self, figure: float | None) -> bool:
        """Whether a figure is as good as what is kept, whose weights have learnt less; None, for no number, is as good
        as None and better than nothing."""
        if (kept := self.facts) is None or kept["value"] is None:
            return True
        return figure is not None and self.sign * figure >= self.sign * kept["value"]
