"""Translation: the format, rows from parallel segments, the metrics, and `translate`."""

from .data import TranslationData, rows
from .format import format_translation, parse_output
from .inference import DECODING, translate
from .metrics import score, signatures

NAME = "translation"
HIGHER_IS_BETTER = True

__all__ = [
    "DECODING",
    "TranslationData",
    "format_translation",
    "parse_output",
    "rows",
    "score",
    "signatures",
    "translate",
]
