"""Decoding in which a citation can only name one of the sources and quote its words.

Free text stays free. From `<ref name="` to `</ref>` only those tokens remain that spell a source's id and then go on
with a span of that source, from the beginning of a word to the end of one. So every quote is literal by construction;
whether it is to the point is still the model's own doing. Works on bytes, since a quote may be cut into other tokens
than its source was.
"""

from collections.abc import Iterator

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from .markers import WORD_JOINER, escape
from .near import spelling
from .rag_formats import FORMATS, PROMPT_END, around_quote, parse_prompt

OPENING = b'<ref name="'
JOINER = WORD_JOINER.encode()  # within an escaped marker, which no quote may cut
LEAST_WORDS = 3  # of a quote, unless the source ends there: a word alone proves nothing


class QuotesFromSources(LogitsProcessor):
    """Rules out, inside citations, every token that leaves the sources of a row's prompt.

    Args:
        tokenizer: with a byte-level vocabulary.
        prompts: of the rows of the batch, in either format.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: list[str]):
        spelt, self.ids, self.longest = spelling(tokenizer)
        self.special = {str(token).encode(): i for i, token in tokenizer.added_tokens_decoder.items()}
        self.spelt = {**spelt, **{i: spelling for spelling, i in self.special.items()}}
        self.sources: list[list[tuple[bytes, bytes, bytes]]] = []
        for prompt in prompts:
            rag_format = next(one for one in FORMATS if prompt.endswith(PROMPT_END[one]))
            found = []
            for source, text in parse_prompt(prompt, rag_format)[1].items():
                before, after = (one.encode() for one in around_quote(source, rag_format))
                found.append((before.removeprefix(OPENING), escape(text).encode(), after))
            self.sources.append(found)
        self.written = [b""] * len(prompts)
        self.started = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, V) scores -> the same, minus infinity for what is ruled out."""
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if self.started:
                self.written[row] += self.spelt.get(last, b"")
            if allowed := self.allowed(row):
                ids = torch.tensor(sorted(allowed), device=scores.device)
                kept = scores[row, ids].clone()
                scores[row] = -torch.inf
                scores[row, ids] = kept
        self.started = True
        return scores

    def allowed(self, row: int) -> set[int]:
        """The tokens that may follow; empty outside a citation, where all may."""
        _, opened, inside = self.written[row].rpartition(OPENING)
        if not opened or b"<|answer_start|>" not in self.written[row]:
            return set()
        ids: set[int] = set()
        for before, text, after in self.sources[row]:
            if before.startswith(inside) and before != inside:
                ids |= self._spell(before[len(inside) :])
            elif inside.startswith(before):
                if after in inside[len(before) :]:
                    return set()
                for way, closes in self._ways(inside[len(before) :], text, after):
                    ids |= self._spell(way, beyond=closes)
        return ids

    def _spell(self, way: bytes, *, beyond: bool = False) -> set[int]:
        """Tokens that a text begins with, or (where it may go on freely) that begin with it."""
        for marker, i in self.special.items():
            if way.startswith(marker):
                return {i}
        pieces = (way[:length] for length in range(1, min(len(way), self.longest) + 1))
        found = {self.ids[piece] for piece in pieces if piece in self.ids}
        if beyond and len(way) <= 2:  # ">" may be one token with a full stop or a line end
            found |= {i for spelling, i in self.ids.items() if spelling.startswith(way)}
        return found

    def _ways(self, begun: bytes, text: bytes, after: bytes) -> Iterator[tuple[bytes, bool]]:
        """How a quote can go on, of which some is written; True with those that close it."""
        for closed in range(len(after)):
            if not begun.endswith(after[:closed]):
                continue
            span = begun[: len(begun) - closed]
            for start in _starts(span, text):
                end = start + len(span)
                if closed:
                    if _may_end(text, start, end):
                        yield after[closed:], True
                    continue
                yield text[end : end + self.longest], False
                for further in range(4):  # a stop or bracket may be one token with what closes the quote
                    if all(chr(byte) in ".,;:!?)" for byte in text[end : end + further]):
                        if end + further <= len(text) and _may_end(text, start, end + further):
                            yield text[end : end + further] + after, True


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum()


def _starts(span: bytes, text: bytes) -> Iterator[int]:
    """Where a span stands in a text at the beginning of a word; every such beginning for an empty one."""
    start = text.find(span)
    while 0 <= start < len(text):
        if _is_word(text[start]) and (start == 0 or not _is_word(text[start - 1])):
            if not text.startswith(JOINER, start):
                yield start
        start = text.find(span, start + 1)


def _may_end(text: bytes, start: int, end: int) -> bool:
    """Whether a quote may end here: at a word's end, with some words or at the end of the source."""
    if start < end == len(text):
        return True
    if end <= start or text[end - 1 : end].isspace() or text.endswith(JOINER, 0, end) or _is_word(text[end]):
        return False
    return len(text[start:end].split()) >= LEAST_WORDS or not any(map(_is_word, text[end:]))
