"""Decoding that keeps a correction near what is to be corrected: every changed byte has a price.

A small model that copies freely loses its place. Here the score of a whole correction is

    log p(correction) - price * rate * (edit distance to the input, in bytes)

as in a noisy channel in which every error is as likely: what the input says stands unless the model is surer of
something else than the change costs. `rate` is what a byte of the row has taken so far, in nats, so that a model that
knows little, and is surprised by everything, does not take its surprise for an error. Token by token that would favour
whatever puts off a rare word, as a likely comma. So each step also counts what it leaves to be written, at the same
rate, as A* search does with what is left of the way.
"""

from codecs import getincrementaldecoder
from functools import lru_cache

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONSIDERED = 8  # tokens that the model likes best at a step, beside those that spell the input on
EXPECTED = (20.0, 20)  # nats and bytes that count as written before a row begins: small models take about one a byte


@lru_cache(maxsize=2)
def spelling(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[int, bytes], dict[bytes, int], int]:
    """id -> bytes of each ordinary token of a byte-level vocabulary, the reverse, and the most bytes of one."""
    signs = {sign: byte for byte, sign in bytes_to_unicode().items()}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    spelt = {
        i: bytes(signs[sign] for sign in token)
        for token, i in tokenizer.get_vocab().items()
        if i not in special and all(sign in signs for sign in token)
    }
    return spelt, {written: i for i, written in spelt.items()}, max(map(len, spelt.values()), default=0)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every text can be spelt in the vocabulary's own bytes, as `NearInput` needs."""
    return all(bytes([byte]) in spelling(tokenizer)[1] for byte in range(256))


class NearInput(LogitsProcessor):
    """Scores of the tokens that go on near each row's input; all other tokens are ruled out.

    Args:
        tokenizer: with a byte-level vocabulary.
        texts: the input of each row of the batch.
        stops: ids of the tokens that end a correction.
        price: of a changed byte, in bytes that are left as they are; the higher the fewer changes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], stops: list[int], price: float):
        self.spelt, self.ids, self.longest = spelling(tokenizer)
        self.inputs = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        # distances[row][j]: edit distance of what the row has written to the first j bytes of its input
        self.distances = [np.arange(len(one) + 1) for one in self.inputs]
        self.decoders = [getincrementaldecoder("utf-8")() for _ in texts]  # a character may be cut between tokens
        self.spent = np.full(len(texts), EXPECTED[0])  # nats
        self.stops, self.price = stops, price
        self.logits: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, V) scores -> the same, with prices."""
        lasts = input_ids[:, -1].tolist()
        if self.logits is not None:
            for row, last in enumerate(lasts):
                if last in self.spelt:
                    self.distances[row] = self._after(row, self.spelt[last])
                    self.decoders[row].decode(self.spelt[last])
                    self.spent[row] -= self.logits[row, last].item()
        self.logits = scores.float().log_softmax(-1)
        priced = torch.full_like(self.logits, -torch.inf)
        best = self.logits.topk(min(CONSIDERED, scores.shape[-1])).indices.tolist()
        for row, liked in enumerate(best):
            costs = self._costs(row, liked)
            ids = torch.tensor(list(costs), device=scores.device)
            priced[row, ids] = self.logits[row, ids] - torch.tensor(list(costs.values()), device=scores.device)
        return priced

    def _costs(self, row: int, liked: list[int]) -> dict[int, float]:
        """Token -> price of its changes less what it saves of the way, for the tokens that come into question."""
        text, distances = self.inputs[row], self.distances[row]
        least, here = distances.min(), int(distances.argmin())
        rate = self.spent[row] / (EXPECTED[1] + here)

        def cost(changed: float, place: int) -> float:
            return float(rate * ((self.price + 1) * changed - (place - here)))

        whole = not self.decoders[row].getstate()[0]
        costs = {stop: cost(distances[-1] - least, len(text)) for stop in self.stops if whole}
        for place in np.flatnonzero(distances == least):
            ahead = text[place : place + self.longest].tobytes()
            for length in range(1, len(ahead) + 1):
                token = self.ids.get(ahead[:length])
                if token is not None and token not in costs and self._fits(row, ahead[:length]):
                    costs[token] = cost(0, place + length)
        for token in liked:
            if token in costs:
                break  # what the model likes less and what changes more cannot come before it
            if token in self.spelt and self._fits(row, self.spelt[token], whole=True):
                after = self._after(row, self.spelt[token])
                costs[token] = cost(after.min() - least, int(after.argmin()))
        return costs

    def _fits(self, row: int, written: bytes, *, whole: bool = False) -> bool:
        """Whether the row is text with some bytes more: no character broken and, for `whole`, none cut either."""
        decoder = getincrementaldecoder("utf-8")()
        decoder.setstate(self.decoders[row].getstate())
        try:
            decoder.decode(written)
        except UnicodeDecodeError:
            return False
        return not (whole and decoder.getstate()[0])

    def _after(self, row: int, written: bytes) -> np.ndarray:
        """The distances when some bytes more are written (a row of Levenshtein's table for each)."""
        text, distances = self.inputs[row], self.distances[row]
        steps = np.arange(len(distances))
        for byte in written:
            new = distances + 1
            new[1:] = np.minimum(new[1:], distances[:-1] + (text != byte))
            distances = np.minimum.accumulate(new - steps) + steps
        return distances
