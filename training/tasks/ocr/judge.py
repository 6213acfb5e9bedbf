"""Judgement of proposed changes by a causal language model: log-probability of the passage with and without each."""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modeling_pleias import cpu_compute_dtype  # the import also registers the model with transformers

from .proposals import JUDGED, Proposal

LEFT, RIGHT = 80, 16  # characters of the passage before and after a change
BATCH = 16  # places of a text at a time
DIVIDED = re.compile(r"[-\xac\xad\u2010]\s*\n\s*|\xac\s*")
SPACES = re.compile(r"\s+")


class Judge:
    """Language model that compares passages.

    Args:
        model: Causal language model with a decoder and an output embedding.
        tokenizer: Its tokenizer, a fast one.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.head = model.get_output_embeddings().weight
        self.begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """Load a model in the precision in which this CPU computes fast."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=cpu_compute_dtype())
        return cls(model, AutoTokenizer.from_pretrained(folder))

    def features(self, text: str, proposals: list[Proposal]) -> np.ndarray:
        """Return `JUDGED` for each change: nats gained by it, in its place and on the right, and nats and tokens."""
        places: dict[str, list[int]] = {}
        passages = [_passages(text, proposal) for proposal in proposals]
        for i, (left, *_) in enumerate(passages):
            places.setdefault(left, []).append(i)
        texts = list(dict.fromkeys(passage for _, before, after, _ in passages for passage in (before, after)))
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True) if texts else {}
        tokens = {text: [self.begin, *ids] for text, ids in zip(texts, encoded.get("input_ids", ()), strict=True)}
        starts = {
            text: np.array([0, *(start for start, _ in offsets)])
            for text, offsets in zip(texts, encoded.get("offset_mapping", ()), strict=True)
        }
        groups = []
        for left, numbers in places.items():
            variants = list(dict.fromkeys(passage for i in numbers for passage in passages[i][1:3]))
            groups.append((left, variants, _shared([tokens[passage] for passage in variants])))
        scores: dict[tuple[str, str], tuple[int, np.ndarray]] = {}  # shared tokens, log-probabilities of the others
        order = sorted(groups, key=lambda group: sum(len(tokens[passage]) - group[2] for passage in group[1]))
        for first in range(0, len(order), BATCH):
            self._score(order[first : first + BATCH], tokens, scores)
        result = np.zeros((len(proposals), len(JUDGED)))
        for i, (left, before, after, right) in enumerate(passages):
            shared = _shared([tokens[before], tokens[after]])
            sums = []
            for passage in (before, after):
                first, entries = scores[left, passage]
                entries, changed = entries[shared - first :], starts[passage][shared:] < len(passage) - right
                sums.append((entries[changed].sum(), entries[~changed].sum(), changed.sum()))
            (word, rest, size), (new_word, new_rest, new_size) = sums
            gains = new_word + new_rest - word - rest, new_word - word, new_rest - rest
            result[i] = *gains, word, new_word, rest, new_rest, size, new_size
        return result

    @torch.inference_mode()
    def _score(self, groups: list[tuple[str, list[str], int]], tokens: dict, scores: dict) -> None:
        """Score variants of passages: the tokens that those of a place share are read once, in one sequence with all.

        A variant sees the shared tokens and itself, at the positions that it has alone.
        """
        lengths = [shared + sum(len(tokens[p]) - shared for p in variants) for _, variants, shared in groups]
        size_b, size_t = len(groups), max(lengths)
        ids_BT, positions_BT = (torch.zeros(size_b, size_t, dtype=torch.long) for _ in range(2))
        seen_BTT = torch.eye(size_t, dtype=torch.bool).repeat(size_b, 1, 1)
        rows, columns, targets, owners = [], [], [], []
        for row, (left, variants, shared) in enumerate(groups):
            ids_BT[row, :shared] = torch.tensor(tokens[variants[0]][:shared])
            positions_BT[row, :shared] = torch.arange(shared)
            seen_BTT[row, :shared, :shared] = torch.ones(shared, shared, dtype=torch.bool).tril()
            start = shared
            for passage in variants:
                ending = tokens[passage][shared:]
                end = start + len(ending)
                ids_BT[row, start:end] = torch.tensor(ending)
                positions_BT[row, start:end] = torch.arange(shared, shared + len(ending))
                seen_BTT[row, start:end, :shared] = True
                seen_BTT[row, start:end, start:end] = torch.ones(len(ending), len(ending), dtype=torch.bool).tril()
                rows += [row] * len(ending)
                columns += [shared - 1, *range(start, end - 1)]  # the token before
                targets += ending
                owners.append((left, passage, shared, len(ending)))
                start = end
        mask_B1TT = torch.zeros(seen_BTT.shape, dtype=self.head.dtype).masked_fill_(~seen_BTT, -torch.inf)[:, None]
        hidden_BTD = self.model.model(
            input_ids=ids_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False
        ).last_hidden_state
        # variants of a place share the distribution of their first token
        places, of_targets = torch.tensor([rows, columns]).unique(dim=1, return_inverse=True)
        logits_PV = (hidden_BTD[places[0], places[1]] @ self.head.T).float()
        entries = logits_PV[of_targets, torch.tensor(targets)] - logits_PV.logsumexp(1)[of_targets]
        sizes = np.cumsum([owner[-1] for owner in owners])[:-1]
        for (left, passage, shared, _), part in zip(owners, np.split(entries.numpy(), sizes), strict=True):
            scores[left, passage] = shared, part


def _passages(text: str, proposal: Proposal) -> tuple[str, str, str, int]:
    """Return passages on one line: the text before a change, and all of it as read and as changed.

    The last value is the number of characters after the change.
    """
    start, end = max(0, proposal.start - LEFT), min(len(text), proposal.end + RIGHT)
    left, right = text[start : proposal.start], text[proposal.end : end]
    if start and (space := re.search(r"\s", left)):
        left = left[space.end() :]
    if end < len(text) and (space := max(right.rfind(" "), right.rfind("\n"))) > 0:
        right = right[:space]
    mark = "\x00"
    left = _line(left + mark)[:-1].lstrip()
    before, after = (_line(mark + inner + right)[1:].rstrip() for inner in (proposal.before, proposal.after))
    return left, left + before, left + after, len(_line(mark + right)[1:].rstrip())


def _line(passage: str) -> str:
    return SPACES.sub(" ", DIVIDED.sub("", passage))


def _shared(sequences: list[list[int]]) -> int:
    """Return the number of tokens that sequences begin with, at least 1 and fewer than each has."""
    shared = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return max(1, min(shared, min(map(len, sequences)) - 1))
