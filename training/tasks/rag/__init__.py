"""Retrieval-augmented generation (RAG): both published formats, rows, the metrics, and `answer`."""

from .data import RagData, rows
from .format import format_rag, parse_completion
from .grammar import completion_request, grammar
from .inference import CONSTRAINED, DECODING, Answer, answer
from .metrics import score

NAME = "rag"
HIGHER_IS_BETTER = True

__all__ = [
    "CONSTRAINED",
    "DECODING",
    "Answer",
    "RagData",
    "answer",
    "completion_request",
    "format_rag",
    "grammar",
    "parse_completion",
    "rows",
    "score",
]
