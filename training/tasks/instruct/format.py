"""Format of conversations, and the chat template."""

import copy
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..markers import escape

START, END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")

# ChatML, after the begin-of-text token. The loss covers what is between the generation tags: an assistant turn with
# its end token.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_chat_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer with the chat template; the tokenizer itself is not changed."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def format_instruct(messages: Sequence[dict[str, str]]) -> tuple[str, str]:
    """Return (prompt, completion): all turns before the last, and the assistant's last; as the template, without BOS.

    Raises:
        ValueError: If the last turn is not the assistant's, or a role is unknown.
    """
    *context, last = messages
    if unknown := [turn["role"] for turn in messages if turn["role"] not in ROLES]:
        raise ValueError(f"role {unknown[0]!r}: a role is one of {', '.join(ROLES)}")
    if last["role"] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    turns = (f"{START}{turn['role']}\n{escape(turn['content'])}{END}\n" for turn in context)
    return f"{''.join(turns)}{START}assistant\n", f"{escape(last['content'])}{END}"
