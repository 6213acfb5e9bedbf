"""Decoding of OCR corrections with a penalty per changed byte, so that the correction stays close to the input.

A small model that copies freely loses its place. Here the score of a complete correction is

    log p(correction) - penalty * rate * (edit distance to the input, in bytes)

as in a noisy channel in which every error is equally probable: the input is kept unless the model prefers another
reading by more than the change costs. `rate` is the model's mean cost per byte of the row so far, in nats, so that a
model that knows little, and is surprised by everything, does not take its surprise for an error. Applied token by
token, this score would favour whatever postpones a rare word, such as a probable comma. So each step also adds an
estimate of the cost of the remaining input at the same rate, as A* search does for the remaining distance.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterator

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from ...common.drafting import DraftLogitsProcessor
from ...common.generation import token_id
from ..token_bytes import is_byte_level, token_bytes
from .format import STOP, input_of

EDIT_PENALTY = 5.0  # per changed byte; training.bench.ocr_price finds the best one for a model
CANDIDATES = 8  # most probable tokens considered per step, in addition to the tokens that continue the input
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that continue a character
PRIOR = (20.0, 20)  # nats and bytes assumed before a row begins: small models need about 1 nat per byte


class EditPenaltyLogitsProcessor(DraftLogitsProcessor):
    """Score the tokens that continue close to each row's input, with an edit penalty; exclude all other tokens.

    Args:
        tokenizer: Tokenizer with a byte-level vocabulary.
        texts: Input text of each row of the batch.
        stops: Ids of the tokens that end a correction.
        penalty: Cost of a changed byte, in unchanged bytes. Higher values cause fewer changes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], stops: list[int], penalty: float):
        self.bytes_of, self.ids, self.longest = token_bytes(tokenizer)
        self.inputs = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        # distances[row][j]: edit distance between the row's output so far and the first j bytes of its input
        self.distances = [np.arange(len(text) + 1) for text in self.inputs]
        self.decoders = [getincrementaldecoder("utf-8")() for _ in texts]  # a character may span several tokens
        self.spent = np.full(len(texts), PRIOR[0])  # nats
        self.stops, self.penalty = stops, penalty
        self.logits: np.ndarray | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the (B, V) scores with the penalties applied."""
        if self.logits is not None:
            for row, last in enumerate(input_ids[:, -1].tolist()):
                self._advance(row, last, self.logits[row])
        self.logits = _log_softmax(scores)
        penalized = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        for row, logits_V in enumerate(self.logits):
            ids, penalized_scores = self._penalize(row, logits_V)
            penalized[row, torch.from_numpy(ids).to(scores.device)] = torch.from_numpy(penalized_scores).to(penalized)
        return penalized

    def choose(self, draft: list[int], scores: torch.FloatTensor) -> list[int]:
        """Return the tokens of the only row that `__call__` would lead to: a draft, as far as chosen, and the next."""
        tokens: list[int] = []
        for logits_V in _log_softmax(scores):
            ids, penalized_scores = self._penalize(0, logits_V)
            tokens.append(int(ids[penalized_scores.argmax()]))
            self._advance(0, tokens[-1], logits_V)
            if draft[len(tokens) - 1 : len(tokens)] != tokens[-1:]:
                break
        return tokens

    def _advance(self, row: int, token: int, logits_V: np.ndarray) -> None:
        """Extend a row's output by a token that was chosen by some log-probabilities."""
        if token in self.bytes_of:
            self.distances[row] = self._after(row, self.bytes_of[token])
            self.decoders[row].decode(self.bytes_of[token])
            self.spent[row] -= logits_V[token]

    def _penalize(self, row: int, logits_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the possible tokens, in ascending order, and their log-probabilities less their costs."""
        costs = self._costs(row, logits_V)
        ids = np.array(sorted(costs))
        return ids, logits_V[ids] - np.array([costs[token] for token in ids.tolist()], dtype=np.float32)

    def _costs(self, row: int, logits_V: np.ndarray) -> dict[int, float]:
        """Return token -> penalty of its changes minus the cost of the input that it completes, per possible token."""
        text, distances = self.inputs[row], self.distances[row]
        least, here = distances.min(), int(distances.argmin())
        rate = self.spent[row] / (PRIOR[1] + here)

        def cost(changed: float, place: int) -> float:
            return float(rate * ((self.penalty + 1) * changed - (place - here)))

        at_character_end = not self.decoders[row].getstate()[0]
        costs = {stop: cost(distances[-1] - least, len(text)) for stop in self.stops if at_character_end}
        for place in np.flatnonzero(distances == least):
            ahead = text[place : place + self.longest].tobytes()
            fits = at_character_end and ahead[:1] not in CONTINUATION  # any part of the input from a character on
            for length in range(1, len(ahead) + 1):
                token = self.ids.get(ahead[:length])
                if token is not None and token not in costs and (fits or self._fits(row, ahead[:length])):
                    costs[token] = cost(0, place + length)
        for token in _most_probable(logits_V):
            if token in costs:
                break  # less probable tokens with more changes cannot rank above it
            if token in self.bytes_of and self._fits(row, self.bytes_of[token], complete=True):
                after = self._after(row, self.bytes_of[token])
                costs[token] = cost(after.min() - least, int(after.argmin()))
        return costs

    def _fits(self, row: int, output: bytes, *, complete: bool = False) -> bool:
        """Return whether the row's output plus some bytes is valid UTF-8; if `complete`, up to its last byte."""
        decoder = getincrementaldecoder("utf-8")()
        decoder.setstate(self.decoders[row].getstate())
        try:
            decoder.decode(output)
        except UnicodeDecodeError:
            return False
        return not (complete and decoder.getstate()[0])

    def _after(self, row: int, output: bytes) -> np.ndarray:
        """Return the distances after some more bytes of output (a row of Levenshtein's table per byte)."""
        text, distances = self.inputs[row], self.distances[row]
        steps = np.arange(len(distances))
        for byte in output:
            new = distances + 1
            new[1:] = np.minimum(new[1:], distances[:-1] + (text != byte))
            distances = np.minimum.accumulate(new - steps) + steps
        return distances


def _log_softmax(scores: torch.Tensor) -> np.ndarray:
    return scores.float().log_softmax(-1).cpu().numpy()


def _most_probable(logits_V: np.ndarray) -> Iterator[int]:
    """Yield the most probable tokens; the first, often the only one that is needed, is found without sorting."""
    yield (best := int(logits_V.argmax()))
    candidates = torch.from_numpy(logits_V).topk(min(CANDIDATES, len(logits_V))).indices.tolist()
    yield from (token for token in candidates if token != best)


def edit_penalty_processor(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], penalty: float = EDIT_PENALTY
) -> DraftLogitsProcessor | LogitsProcessorList:
    """Build the logits processor of a batch of prompts: an edit penalty; none if the vocabulary is not byte-level."""
    if not is_byte_level(tokenizer):
        return LogitsProcessorList()
    texts = [input_of(prompt) for prompt in prompts]
    stops = [token_id(tokenizer, token) for token in (tokenizer.eos_token, STOP)]
    return EditPenaltyLogitsProcessor(tokenizer, texts, [stop for stop in stops if stop is not None], penalty)
