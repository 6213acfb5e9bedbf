"""Decoding settings of conversations, and `reply`."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.generation import complete
from ..markers import unescape
from .format import END, format_instruct

DECODING = {"max_new_tokens": 256, "stop": END, "repetition_penalty": 1.1}


def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """Generate the assistant's next turn.

    Args:
        messages: Turns as {"role", "content"}, the last of them the user's.
    """
    prompt, _ = format_instruct([*messages, {"role": "assistant", "content": ""}])
    return unescape(complete(model, tokenizer, [prompt], **DECODING)[0])
