"""What preference tuning and reinforcement learn from: the base's own answers beside the right ones, and rewards."""

import json
from collections.abc import Callable, Sequence
from types import ModuleType

from transformers import PreTrainedTokenizerBase

from ..config import InputError
from .measures import value


def pairs(rows: Sequence[dict], outputs: Sequence[str], task: ModuleType) -> list[dict[str, str]]:
    """{"prompt", "chosen", "rejected"} of each row whose answer was not the right one.

    Args:
        outputs: what the base answered, without the token that ends it.

    Raises:
        InputError: when every answer was right.
    """
    stop = task.DECODING.get("stop") or ""
    made = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": output + stop}
        for row, output in zip(rows, outputs, strict=True)
        if output + stop != row["completion"]
    ]
    if not made:
        raise InputError(
            f"The base answered all {len(rows)} prompts rightly: nothing is to be preferred; raise --pairs."
        )
    return made


def prompts(rows: Sequence[dict]) -> list[dict[str, str]]:
    """{"prompt", "row"} of each row, the row as JSON: what the reward is computed from."""
    return [{"prompt": row["prompt"], "row": json.dumps(row, ensure_ascii=False)} for row in rows]


def reward(
    weights: dict[str, float], task: ModuleType, tokenizer: PreTrainedTokenizerBase, row: dict
) -> Callable[..., list[float]]:
    """A reward function for TRL: the weighted sum of the task's metrics of each answer by itself.

    A metric that is not defined for an answer (as the correctness of citations where there is none) counts 0.

    Args:
        weights: by name of metric.
        row: any, on which the names are tried.

    Raises:
        InputError: when a name is none of the task's.
    """
    known = task.score([row], [row["completion"]])
    if unknown := sorted(set(weights) - set(known)):
        raise InputError(f"rewards: {unknown[0]} is not a metric of {task.NAME}, which has {', '.join(known)}.")
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    if stop := task.DECODING.get("stop"):
        ends.add(tokenizer.convert_tokens_to_ids(stop))

    def weighted(prompts, completions, completion_ids, row, **kwargs) -> list[float]:
        rewards = []
        for ids, one in zip(completion_ids, row, strict=True):
            # TRL's own text lacks the special tokens that formats are made of.
            length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            metrics = task.score([json.loads(one)], [tokenizer.decode(ids[:length], skip_special_tokens=False)])
            figures = ((weight, value(metrics[name])) for name, weight in weights.items() if name in metrics)
            rewards.append(sum(weight * figure for weight, figure in figures if figure == figure))
        return rewards

    weighted.__name__ = task.NAME
    return weighted
