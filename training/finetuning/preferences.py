"""Datasets and rewards for DPO and GRPO: preference pairs, prompts, and task metrics as a reward function."""

import json
from collections.abc import Callable, Sequence
from types import ModuleType

from transformers import PreTrainedTokenizerBase

from ..common.config import InputError
from .model_selection import metric_value


def preference_pairs(rows: Sequence[dict], outputs: Sequence[str], task: ModuleType) -> list[dict[str, str]]:
    """Return {"prompt", "chosen", "rejected"} of each row whose completion differs from the reference.

    Args:
        outputs: Completions of the base model, without the token that ends them.

    Raises:
        InputError: If every completion equals its reference.
    """
    stop = task.DECODING.get("stop") or ""
    preferences = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": output + stop}
        for row, output in zip(rows, outputs, strict=True)
        if output + stop != row["completion"]
    ]
    if not preferences:
        raise InputError(
            f"The base model completed all {len(rows)} prompts as the references do, so there is no preference pair: "
            "raise --preference_prompts."
        )
    return preferences


def prompts(rows: Sequence[dict]) -> list[dict[str, str]]:
    """Return {"prompt", "row"} of each row, with the row as JSON, from which the reward is computed."""
    return [{"prompt": row["prompt"], "row": json.dumps(row, ensure_ascii=False)} for row in rows]


def build_reward(
    weights: dict[str, float], task: ModuleType, tokenizer: PreTrainedTokenizerBase, row: dict
) -> Callable[..., list[float]]:
    """Return a reward function for TRL: the weighted sum of the task's metrics of each single completion.

    A metric that is undefined for a completion, such as citation correctness without citations, counts 0.

    Args:
        weights: Weight by metric name.
        row: Any row of the task, to check the names with.

    Raises:
        InputError: If a name is not a metric of the task.
    """
    known = task.score([row], [row["completion"]])
    if unknown := sorted(set(weights) - set(known)):
        raise InputError(f"rewards: {unknown[0]} is not a metric of {task.NAME}, which has {', '.join(known)}.")
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    if stop := task.DECODING.get("stop"):
        ends.add(tokenizer.convert_tokens_to_ids(stop))

    def weighted(prompts, completions, completion_ids, row, **kwargs) -> list[float]:
        rewards = []
        for ids, row_json in zip(completion_ids, row, strict=True):
            # TRL decodes completions without the special tokens that the formats consist of.
            length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            metrics = task.score([json.loads(row_json)], [tokenizer.decode(ids[:length], skip_special_tokens=False)])
            values = ((weight, metric_value(metrics[name])) for name, weight in weights.items() if name in metrics)
            rewards.append(sum(weight * number for weight, number in values if number == number))
        return rewards

    weighted.__name__ = task.NAME
    return weighted
