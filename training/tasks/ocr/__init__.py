"""OCR correction: the published format, rows from pairs and from synthetic errors, the metrics, and `correct`."""

from importlib import import_module

from .corrector import Corrector
from .data import OcrData, rows
from .format import WINDOW, format_ocr, parse_correction
from .metrics import score

NAME = "ocr"
HIGHER_IS_BETTER = False

__all__ = ["DECODING", "WINDOW", "Corrector", "OcrData", "correct", "format_ocr", "parse_correction", "rows", "score"]


def __getattr__(name: str):
    """Import what needs torch on demand: it takes seconds, which the workers of curation are spared."""
    if name in ("DECODING", "correct"):
        return getattr(import_module(".inference", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
