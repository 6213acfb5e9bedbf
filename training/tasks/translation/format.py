"""Format of translation.

The published format does not specify how the target language is given. Here its token (`<|fr|>`) is the first token of
the translation, and the prompt ends with it:

    <|text_start|>Save the file.<|text_end|><|translation_start|><|fr|> -> Enregistrez le fichier.<|translation_end|>

The token of the source language may precede the text; half of the training rows have it.
"""

from ..markers import escape, language_marker, unescape

START, END, STOP = "<|text_start|>", "<|text_end|><|translation_start|>", "<|translation_end|>"

MAX_CHARACTERS = 300  # per segment, and per piece of a text to translate


def format_translation(text: str, target: str, translation: str = "", source: str | None = None) -> tuple[str, str]:
    """Return (prompt, completion) of a text.

    Args:
        target: ISO code of the target language.
        source: ISO code of the text's language, if known.
    """
    before = language_marker(source) if source else ""
    return f"{START}{before}{escape(text)}{END}{language_marker(target)}", f"{escape(translation)}{STOP}"


def parse_output(output: str) -> str:
    """Return the translation in a generated completion."""
    return unescape(output.partition(STOP)[0])
