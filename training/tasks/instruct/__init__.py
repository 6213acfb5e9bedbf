"""Conversations: the chat template, rows from user-provided messages and from other tasks, the metric, and `reply`."""

from .data import InstructData, rows
from .format import add_chat_template, format_instruct
from .inference import DECODING, reply
from .metrics import score

NAME = "instruct"
HIGHER_IS_BETTER = True

__all__ = ["DECODING", "InstructData", "add_chat_template", "format_instruct", "reply", "rows", "score"]
