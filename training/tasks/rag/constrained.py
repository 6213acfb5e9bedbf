"""Constrained decoding of citations: a citation can only name one of the sources and quote it verbatim.

Text outside citations is not constrained. From `<ref name="` to `</ref>` only tokens are allowed that spell a source's
id and then a span of that source, from the beginning of a word to the end of a word. So every quote is verbatim by
construction; whether it is relevant still depends on the model. The processor works on bytes, because the tokens of a
quote may differ from those of its source.
"""

import re
from collections.abc import Iterator

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..markers import WORD_JOINER, escape
from ..token_bytes import token_bytes
from .format import FORMATS, PROMPT_END, around_quote, parse_prompt

OPENING = b'<ref name="'
JOINER = WORD_JOINER.encode()  # inside an escaped marker, which a quote must not split
WORD_BYTE = re.compile(rb"[0-9A-Za-z\x80-\xff]")  # as in `_is_word`
LEAST_WORDS = 3  # minimum words of a quote, unless the source ends there: a single word proves nothing


class QuoteLogitsProcessor(LogitsProcessor):
    """Exclude, inside citations, every token that does not quote the sources of a row's prompt.

    Args:
        tokenizer: Tokenizer with a byte-level vocabulary.
        prompts: Prompts of the batch, in either format.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: list[str]):
        ordinary, self.ids, self.longest = token_bytes(tokenizer)
        self.special = {str(token).encode(): i for i, token in tokenizer.added_tokens_decoder.items()}
        self.bytes_of = {**ordinary, **{i: marker for marker, i in self.special.items()}}
        self.sources: list[list[tuple[bytes, bytes, bytes]]] = []
        for prompt in prompts:
            rag_format = next(name for name in FORMATS if prompt.endswith(PROMPT_END[name]))
            sources = []
            for source, text in parse_prompt(prompt, rag_format)[1].items():
                before, after = (markup.encode() for markup in around_quote(source, rag_format))
                sources.append((before.removeprefix(OPENING), escape(text).encode(), after))
            self.sources.append(sources)
        self.outputs = [b""] * len(prompts)
        self.started = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the (B, V) scores with excluded tokens set to minus infinity."""
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if self.started:
                self.outputs[row] += self.bytes_of.get(last, b"")
            if allowed := self.allowed(row):
                ids = torch.tensor(sorted(allowed), device=scores.device)
                allowed_scores = scores[row, ids].clone()
                scores[row] = -torch.inf
                scores[row, ids] = allowed_scores
        self.started = True
        return scores

    def allowed(self, row: int) -> set[int]:
        """Return the tokens that may follow inside a citation; empty outside, where every token may."""
        _, opened, inside = self.outputs[row].rpartition(OPENING)
        if not opened or b"<|answer_start|>" not in self.outputs[row]:
            return set()
        ids: set[int] = set()
        for before, text, after in self.sources[row]:
            if before.startswith(inside) and before != inside:
                ids |= self._first_tokens(before[len(inside) :])
            elif inside.startswith(before):
                if after in inside[len(before) :]:
                    return set()
                for continuation, closes in set(self._continuations(inside[len(before) :], text, after)):
                    ids |= self._first_tokens(continuation, beyond=closes)
        return ids

    def _first_tokens(self, text: bytes, *, beyond: bool = False) -> set[int]:
        """Return the tokens that a text may begin with; if `beyond`, also tokens that extend past its end."""
        for marker, i in self.special.items():
            if text.startswith(marker):
                return {i}
        pieces = (text[:length] for length in range(1, min(len(text), self.longest) + 1))
        ids = {self.ids[piece] for piece in pieces if piece in self.ids}
        if beyond and len(text) <= 2:  # ">" may share a token with a full stop or a line break
            ids |= {i for token, i in self.ids.items() if token.startswith(text)}
        return ids

    def _continuations(self, quote: bytes, text: bytes, after: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield the possible continuations of an incomplete quote, each with whether it closes the quote."""
        for closed in range(len(after)):
            if not quote.endswith(after[:closed]):
                continue
            span = quote[: len(quote) - closed]
            for start in _starts(span, text):
                end = start + len(span)
                if closed:
                    if _may_end(text, start, end):
                        yield after[closed:], True
                    continue
                yield text[end : end + self.longest], False
                for further in range(4):  # a stop or bracket may share a token with the closing markup
                    if all(chr(byte) in ".,;:!?)" for byte in text[end : end + further]):
                        if end + further <= len(text) and _may_end(text, start, end + further):
                            yield text[end : end + further] + after, True


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum()


def _starts(span: bytes, text: bytes) -> Iterator[int]:
    """Yield the positions in a text at which a span occurs at the beginning of a word."""
    start = text.find(span)
    while 0 <= start < len(text):
        if _is_word(text[start]) and (start == 0 or not _is_word(text[start - 1])):
            if not text.startswith(JOINER, start):
                yield start
        start = text.find(span, start + 1)


def _may_end(text: bytes, start: int, end: int) -> bool:
    """Return whether a quote may end here: after a word, with enough words or at the end of the source."""
    if start < end == len(text):
        return True
    if end <= start or not _ends_word(text, end):
        return False
    return len(text[start:end].split()) >= LEAST_WORDS or not WORD_BYTE.search(text, end)


def _ends_word(text: bytes, end: int) -> bool:
    """Return whether a position before the end of a text is after a word, or after the punctuation that follows it."""
    return not (text[end - 1 : end].isspace() or text.endswith(JOINER, 0, end) or _is_word(text[end]))
