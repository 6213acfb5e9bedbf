"""Decoding settings of translation, and `translate`."""

import re
from bisect import bisect_right

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.generation import complete
from ...data.documents import checked_languages
from ..text_windows import overlapping_windows, split_spaces
from .format import MAX_CHARACTERS, STOP, format_translation, parse_output

DECODING = {"max_new_tokens": 192, "stop": STOP, "repetition_penalty": 1.0}


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    target: str,
    source: str | None = None,
    progress: str | None = None,
) -> str:
    """Translate a text of any length with a fine-tuned model, a few sentences at a time; whitespace is preserved.

    Args:
        target: ISO code of the target language.
        source: ISO code of the text's language, if known.
        progress: Title of a progress bar. Default: no bar.

    Raises:
        InputError: If a language is not one of the eight.
    """
    checked_languages([target, *([source] if source else [])])
    pieces = split_pieces(text)
    prompts = [format_translation(piece, target, source=source)[0] for piece in pieces if not piece.isspace()]
    longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0) if prompts else 0
    options = {**DECODING, "max_new_tokens": max(DECODING["max_new_tokens"], 2 * longest)}
    outputs = iter(complete(model, tokenizer, prompts, progress=progress, **options))
    return "".join(piece if piece.isspace() else parse_output(next(outputs)).strip() for piece in pieces)


def split_pieces(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """Split a text into pieces of at most `max_characters`, and the whitespace between them.

    A piece is a line. A longer line is split at the ends of sentences, and a longer sentence at spaces.
    """
    pieces: list[str] = []
    for line in re.split(r"((?<!\s)\s*\n\s*)", text):  # the lookbehind keeps the search for line ends linear
        start = 0
        sentences = [match.end() for match in re.finditer(r"[.!?:;][\"'”’»)]*\s+", line)] + [len(line)]
        while start < len(line):
            end = sentences[bisect_right(sentences, start + max_characters, lo=1) - 1]
            if not start < end <= start + max_characters:  # the sentence is too long
                end = start + overlapping_windows(line[start : start + max_characters + 1], max_characters, 0)[0][1]
            pieces += [piece for piece in split_spaces(line[start:end]) if piece]
            start = end
    return pieces
