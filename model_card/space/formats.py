"""Build the published prompts of the tasks (Pico and Nano 0.1), and format answers for display.

These are the formats of the fine-tuning programs, repeated here because the app must run without them.
"""

import re

JOINER = "\u2060"  # inserted where a user's text reads as a marker
OCR_END, TRANSLATION_END, ANSWER_END = "<|ocr_correction_end|>", "<|translation_end|>", "<|answer_end|>"
CITATION, CITATION_END = re.compile(r'<ref name="([^"\n]*)">"(.*?)"</ref>', re.DOTALL), '"</ref>'


def escape(text: str) -> str:
    """Return a text in which nothing reads as a marker."""
    return re.sub(rf"([<\[]{JOINER}*)(?=\||/?ref\b|UNK\]|PAD\])", rf"\1{JOINER}", text)


def unescape(text: str) -> str:
    """Reverse `escape`."""
    return re.sub(rf"([<\[]{JOINER}*){JOINER}(?=\||/?ref\b|UNK\]|PAD\])", r"\1", text)


def ocr(text: str) -> str:
    """Return the prompt of an OCR correction."""
    return f"<|text_start|>{escape(text)}<|text_end|><|ocr_correction_start|>"


def translation(text: str, language: str) -> str:
    """Return the prompt of a translation into a language, whose token (`<|fr|>`) is empty if the model has none."""
    return f"<|text_start|>{escape(text)}<|text_end|><|translation_start|>{language}"


def sources_in(text: str) -> dict[str, str]:
    """Split a text at empty lines into sources, numbered from 1."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return {str(number): part for number, part in enumerate(parts, 1)}


def rag(query: str, sources: dict[str, str]) -> str:
    """Return the prompt of an answer from sources."""
    marked = "".join(
        f"<|source_start|><|source_id_start|>{name}<|source_id_end|>{escape(text)}<|source_end|>\n"
        for name, text in sources.items()
    )
    return f"<|query_start|>{escape(query)}<|query_end|>\n{marked}<|source_analysis_start|>"


def shown(answer: str, sources: dict[str, str]) -> str:
    """Return an answer that states for each quotation whether it occurs verbatim in the source that it cites."""

    def cited(match: re.Match) -> str:
        name, quote = match[1], unescape(match[2])
        literal = quote.strip() and quote in sources.get(name, "")
        return f'["{quote}" {"is in" if literal else "is NOT in"} source {name}]'

    end = answer.rfind(CITATION_END) + len(CITATION_END)  # no search for an end that is missing
    return unescape(CITATION.sub(cited, answer[:end]) + answer[end:])
