"""The published formats of the tasks (Pico and Nano 0.1) as the app writes them, and answers as it shows them.

The same as in the programs that fine-tune; written again here because the app has to run alone.
"""

import re

JOINER = "\u2060"  # goes into whatever reads as a marker in a user's text
OCR_END, TRANSLATION_END, ANSWER_END = "<|ocr_correction_end|>", "<|translation_end|>", "<|answer_end|>"
CITATION = re.compile(r'<ref name="([^"\n]*)">"(.*?)"</ref>', re.DOTALL)


def escape(text: str) -> str:
    """A text in which nothing reads as a marker."""
    return re.sub(rf"([<\[]{JOINER}*)(?=\||/?ref\b|UNK\]|PAD\])", rf"\1{JOINER}", text)


def unescape(text: str) -> str:
    """The text that was escaped."""
    return re.sub(rf"([<\[]{JOINER}*){JOINER}(?=\||/?ref\b|UNK\]|PAD\])", r"\1", text)


def ocr(text: str) -> str:
    """Prompt of a correction."""
    return f"<|text_start|>{escape(text)}<|text_end|><|ocr_correction_start|>"


def translation(text: str, language: str) -> str:
    """Prompt of a translation; the token of the language wanted, as `<|fr|>`, may be empty for models without."""
    return f"<|text_start|>{escape(text)}<|text_end|><|translation_start|>{language}"


def sources_in(text: str) -> dict[str, str]:
    """Sources that stand apart by an empty line, numbered from 1."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return {str(number): part for number, part in enumerate(parts, 1)}


def rag(query: str, sources: dict[str, str]) -> str:
    """Prompt of an answer from sources."""
    marked = "".join(
        f"<|source_start|><|source_id_start|>{name}<|source_id_end|>{escape(text)}<|source_end|>\n"
        for name, text in sources.items()
    )
    return f"<|query_start|>{escape(query)}<|query_end|>\n{marked}<|source_analysis_start|>"


def shown(answer: str, sources: dict[str, str]) -> str:
    """An answer to read: each quotation with whether it stands in the source that it names, sign for sign."""

    def cited(found: re.Match) -> str:
        name, quote = found[1], unescape(found[2])
        literal = quote.strip() and quote in sources.get(name, "")
        return f'["{quote}" {"is in" if literal else "is NOT in"} source {name}]'

    return unescape(CITATION.sub(cited, answer))
