"""Language of an output: the metric that translation and RAG share."""

from ..common.language import JUDGED_LETTERS, identify


def language_match(output: str, reference: str, language: str) -> tuple[bool, bool]:
    """Return (output is in the language, row counts: its reference is long enough and identified as the language)."""
    counts = sum(map(str.isalpha, reference)) >= JUDGED_LETTERS and identify(reference)[0] == language
    return counts and bool(output) and identify(output)[0] == language, counts
