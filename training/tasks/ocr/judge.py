"""Judgement of proposed changes by a causal language model: log-probability of the passage with and without each."""

import re

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .proposals import Proposal

LEFT, RIGHT = 150, 30  # characters of the passage before and after a change
BATCH = 32  # sequences
JUDGED = ("gain", "before", "after", "tokens_before", "tokens_after")  # features from the model
DIVIDED = re.compile(r"[-\xac\xad\u2010]\s*\n\s*|\xac\s*")
SPACES = re.compile(r"\s+")


class Judge:
    """Language model that compares passages.

    Args:
        model: Causal language model with a decoder and an output embedding.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.head = model.get_output_embeddings().weight
        self.begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def features(self, text: str, proposals: list[Proposal]) -> np.ndarray:
        """Return `JUDGED` for each change: nats gained, of the passage before and after, and tokens of both."""
        passages = [_passages(text, proposal) for proposal in proposals]
        texts = list(dict.fromkeys(passage for pair in passages for passage in pair))
        encoded = self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        tokens = {passage: [self.begin, *ids] for passage, ids in zip(texts, encoded, strict=True)}
        prefixes: dict[str, int] = {}
        for before, after in passages:
            shared = _shared(tokens[before], tokens[after])
            for passage in (before, after):
                prefixes[passage] = min(shared, prefixes.get(passage, shared))
        scores = self._score([(tokens[passage], prefixes[passage]) for passage in texts])
        by_passage = dict(zip(texts, scores, strict=True))
        result = np.zeros((len(proposals), len(JUDGED)))
        for i, (before, after) in enumerate(passages):
            shared = _shared(tokens[before], tokens[after])
            old = by_passage[before][shared - prefixes[before] :].sum()
            new = by_passage[after][shared - prefixes[after] :].sum()
            result[i] = new - old, old, new, len(tokens[before]) - shared, len(tokens[after]) - shared
        return result

    @torch.inference_mode()
    def _score(self, sequences: list[tuple[list[int], int]]) -> list[np.ndarray]:
        """Return the log-probabilities of the tokens of each sequence from a place on, in batches of one length."""
        result: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
        for first in range(0, len(order), BATCH):
            numbers = order[first : first + BATCH]
            longest = len(sequences[numbers[-1]][0])
            ids = torch.zeros(len(numbers), longest, dtype=torch.long)
            mask = torch.zeros(len(numbers), longest, dtype=torch.long)
            for row, number in enumerate(numbers):
                length = len(sequences[number][0])
                ids[row, :length] = torch.tensor(sequences[number][0])
                mask[row, :length] = 1
            hidden = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            rows, columns, sizes = [], [], []
            for row, number in enumerate(numbers):
                tokens, start = sequences[number]
                places = range(start, len(tokens))
                rows += [row] * len(places)
                columns += places
                sizes.append(len(places))
            rows_, columns_ = torch.tensor(rows), torch.tensor(columns)
            logits = hidden[rows_, columns_ - 1] @ self.head.T
            targets = ids[rows_, columns_]
            scores = (logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)).float().numpy()
            for number, part in zip(numbers, np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
                result[number] = part
        return result


def _passages(text: str, proposal: Proposal) -> tuple[str, str]:
    """Return the passage around a change as read and as changed, on one line."""
    start, end = max(0, proposal.start - LEFT), min(len(text), proposal.end + RIGHT)
    left, right = text[start : proposal.start], text[proposal.end : end]
    if start and (space := re.search(r"\s", left)):
        left = left[space.end() :]
    if end < len(text) and (space := max(right.rfind(" "), right.rfind("\n"))) > 0:
        right = right[:space]
    return _line(left + proposal.before + right), _line(left + proposal.after + right)


def _line(passage: str) -> str:
    return SPACES.sub(" ", DIVIDED.sub("", passage)).strip()


def _shared(first: list[int], second: list[int]) -> int:
    """Return the number of tokens that two sequences begin with, at least 1 and less than both have."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return max(i, 1)
    return max(1, min(len(first), len(second)) - 1)
