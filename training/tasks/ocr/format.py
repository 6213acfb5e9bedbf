"""Published format of OCR correction."""

from ..markers import escape, unescape

START, END = "<|text_start|>", "<|text_end|><|ocr_correction_start|>"
STOP = "<|ocr_correction_end|>"

WINDOW = 300  # characters; a window and its correction fit four times in a context of 1,024 tokens


def format_ocr(ocr: str, truth: str = "") -> tuple[str, str]:
    """Return (prompt, completion) in the published format: the OCR text, and the correct text."""
    return f"{START}{escape(ocr)}{END}", f"{escape(truth)}{STOP}"


def input_of(prompt: str) -> str:
    """Return the OCR text of a prompt, as it is written there; few-shot examples may precede."""
    return prompt.rpartition(START)[2].partition(END)[0]


def parse_correction(output: str) -> str:
    """Return the correction in a generated completion."""
    return unescape(output.partition(STOP)[0])
