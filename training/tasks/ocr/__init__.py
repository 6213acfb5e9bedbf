"""OCR correction: the published format, rows from pairs and from synthetic errors, the metrics, and `correct`."""

from .corrector import Corrector
from .data import OcrData, rows
from .format import WINDOW, format_ocr, parse_correction
from .inference import DECODING, correct
from .metrics import score

NAME = "ocr"
HIGHER_IS_BETTER = False

__all__ = ["DECODING", "WINDOW", "Corrector", "OcrData", "correct", "format_ocr", "parse_correction", "rows", "score"]
