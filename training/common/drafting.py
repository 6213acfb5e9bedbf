"""Greedy decoding with drafts: tokens of the input that an output probably repeats are checked in one forward pass.

A correction repeats most of its input. So each pass takes, besides the last token, those that follow if the rest of
the input is copied. The model's choice after each of them is computed in order, with all logits processors, and the
first that differs from the draft ends the pass. The output is that of decoding token by token. Only the rounding of a
pass depends on its length, so that outputs may differ after two tokens whose scores are as close as rounding errors.

transformers' assisted generation takes no batches, and no draft of one's own through its public interface; and it
calls the logits processors after rejected tokens, too, which those with a state do not undo.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature

import torch
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from modeling_pleias.modeling_pleias import CACHE

LONGEST, SHORTEST = 64, 8  # tokens of the first draft, and of one after a pass that accepts none
PASS_TOKENS = 512  # maximum draft tokens of a batch per pass, which bounds its logits in memory
REACH, MATCH = 32, 16  # characters around the expected place, and of the output's end, that are compared
NGRAMS = (3, 2)  # tokens of the output's end that are looked up in the prompt
CHARACTERS = 8  # of a token, for the part of the input that is tokenized


class InputDraft:
    """Continuation of an output by the rest of its input, from the place that the output has reached.

    The place is found in the characters of the tokens, because output and input may divide equal text differently.

    Args:
        tokenizer: Tokenizer of input and output.
        text: Input.
        stop: Token that follows the last one of the input; None if nothing does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, stop: int | None):
        self.tokenizer, self.stop = tokenizer, [] if stop is None else [stop]
        self.input = self._characters(self._encode(text))
        self.output, self.seen, self.place = "", 0, 0

    def propose(self, output: list[int], size: int) -> list[int]:
        """Return at most `size` tokens that may follow an output, which extends that of the call before."""
        new = self._characters(output[self.seen :])
        self.output, self.seen, self.place = (self.output + new)[-MATCH:], len(output), self.place + len(new)
        if self.place > len(self.input) or not self.input[: self.place].endswith(self.output):
            near = range(max(0, self.place - REACH), min(self.place + REACH, len(self.input)) + 1)
            self.place = max(near, key=self._score, default=len(self.input))
        rest = self.input[self.place : self.place + CHARACTERS * size]
        ids = self._encode(self.tokenizer.convert_tokens_to_string([rest])) if rest and size else []
        return (ids + self.stop)[:size] if self.place + len(rest) == len(self.input) else ids[:size]

    def _score(self, place: int) -> float:
        """Return how many characters before a place equal the last ones of the output, less the distance to it."""
        limit = min(place, len(self.output))
        before, after = self.input[place - limit : place], self.output[len(self.output) - limit :]
        matches = next((n for n in range(limit) if before[-1 - n] != after[-1 - n]), limit)
        return matches - abs(place - self.place) / 3

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _characters(self, ids: list[int]) -> str:
        return "".join(filter(None, self.tokenizer.convert_ids_to_tokens(ids)))


class PromptDraft:
    """Continuation of an output by what follows its last tokens in the prompt, as for quotes (prompt look-up).

    Args:
        tokenizer: Tokenizer of the prompt.
        prompt: Prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str):
        self.ids = tokenizer(prompt).input_ids
        self.after = {tuple(self.ids[i : i + n]): i + n for n in NGRAMS for i in range(len(self.ids) - n)}

    def propose(self, output: list[int], size: int) -> list[int]:
        """Return at most `size` tokens that may follow an output."""
        ends = (self.after.get(tuple(output[-n:])) for n in NGRAMS)
        place = next((end for end in ends if end is not None), len(self.ids))
        return self.ids[place : place + size]


class DraftLogitsProcessor(LogitsProcessor):
    """Logits processor that can score a whole draft in one call. In Python, a call takes as long as a token's pass."""

    def choose(self, draft: list[int], scores: torch.FloatTensor) -> list[int]:
        """Return what greedy decoding of one row appends by (T + 1, V) scores, those after each token of its draft.

        These are the tokens of the draft up to the first that is not chosen, and the token that is chosen after them.
        """
        raise NotImplementedError


@dataclass
class DraftedRow:
    """Draft, logits processors and output so far of a row of a batch.

    Args:
        draft: Source of the row's drafts.
        processors: Logits processors of the row, called once per token, in order, with the row alone.
        output: Tokens generated so far.
        size: Maximum tokens of the next draft.
    """

    draft: InputDraft | PromptDraft
    processors: Sequence[LogitsProcessor]
    output: list[int] = field(default_factory=list)
    size: int = LONGEST


class DraftDecoder:
    """Greedy decoding of a left-padded batch with drafts, for `generate(custom_generate=...)`.

    Rows accept different numbers of tokens: a rejected one stays in the cache, masked, unless all rows rejected it. A
    row that ends is removed from the batch.

    Args:
        rows: Rows of the batch, without output.
        ends: Tokens that end a row.
        pad: Token that fills rows that end earlier.
    """

    def __init__(self, rows: list[DraftedRow], ends: list[int], pad: int):
        self.rows, self.ends, self.pad = rows, ends, pad

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        """Return prompts and outputs, (B, T)."""
        width, room = input_ids.shape[1], generation_config.max_length - input_ids.shape[1]
        self.ids_BT = torch.nn.functional.pad(input_ids, (0, room), value=self.pad)
        self.processors, cache, alive = logits_processor, inputs[CACHE], list(range(len(self.rows)))
        fed_BT, fed_mask_BT = input_ids, inputs.get("attention_mask")
        if fed_mask_BT is None:
            fed_mask_BT = torch.ones_like(input_ids)
        mask_BT = fed_mask_BT[:, :0]  # of the tokens in the cache
        while alive and room:
            drafts = self._drafts(alive, room)
            longest = max(map(len, drafts))
            drafts_BT = fed_BT.new_tensor([draft + [self.pad] * (longest - len(draft)) for draft in drafts])
            drafted_BT = _first(map(len, drafts), longest, like=mask_BT)
            full_BT = torch.cat([mask_BT, fed_mask_BT, drafted_BT], dim=1)
            fed_BT = torch.cat([fed_BT, drafts_BT.view(drafted_BT.shape).to(fed_BT)], dim=1)
            logits_BTV = model(
                input_ids=fed_BT,
                attention_mask=None if full_BT.all() else full_BT,
                position_ids=(full_BT.cumsum(-1) - 1).clamp(min=0)[:, -fed_BT.shape[1] :],
                use_cache=True,
                **{CACHE: cache},
                **({"logits_to_keep": longest + 1} if "logits_to_keep" in inputs else {}),
            ).logits[:, -longest - 1 :]
            accepted = [
                self._accept(row, draft, logits_TV, width)
                for row, draft, logits_TV in zip(alive, drafts, logits_BTV, strict=True)
            ]
            rejected = longest - max(accepted)
            if rejected:
                cache.crop(-rejected)
            mask_BT = torch.cat([mask_BT, fed_mask_BT, _first(accepted, longest - rejected, like=mask_BT)], dim=1)
            outputs = [self.rows[row].output for row in alive]
            going = [i for i, output in enumerate(outputs) if output[-1] not in self.ends and len(output) < room]
            if len(going) < len(alive):
                alive, mask_BT = [alive[i] for i in going], mask_BT[going]
                cache.batch_select_indices(torch.tensor(going, dtype=torch.long, device=mask_BT.device))
            fed_BT = input_ids.new_tensor([self.rows[row].output[-1:] for row in alive])
            fed_mask_BT = torch.ones_like(fed_BT)
        return self.ids_BT[:, : width + max(len(row.output) for row in self.rows)]

    def _drafts(self, alive: Sequence[int], room: int) -> list[list[int]]:
        """Return a draft per row, of which a pass leaves room for the token after it."""
        most = PASS_TOKENS // len(alive)
        rows = [self.rows[i] for i in alive]
        return [row.draft.propose(row.output, min(row.size, most, room - len(row.output) - 1)) for row in rows]

    def _accept(self, i: int, draft: list[int], logits_TV: torch.Tensor, width: int) -> int:
        """Append the tokens that follow from a pass to a row's output; return how many of the draft they accept."""
        row, processors = self.rows[i], [*self.processors, *self.rows[i].processors]
        if len(processors) == 1 and isinstance(processors[0], DraftLogitsProcessor):
            tokens = iter(processors[0].choose(draft, logits_TV))
        else:
            tokens = self._choose(i, processors, logits_TV, width)
        for accepted, token in enumerate(tokens):
            self.ids_BT[i, width + len(row.output)] = token
            row.output.append(token)
            if token in self.ends or draft[accepted : accepted + 1] != [token]:
                break
        row.size = min(LONGEST, max(SHORTEST, 2 * accepted))
        return accepted

    def _choose(self, i: int, processors: list[LogitsProcessor], logits_TV: torch.Tensor, width: int) -> Iterator[int]:
        """Yield the token that is chosen after each token of a draft, once the row's output contains those before."""
        for scores_BV in logits_TV.float().split(1):
            ids_BT = self.ids_BT[i : i + 1, : width + len(self.rows[i].output)]
            for processor in processors:  # a LogitsProcessorList inspects their signatures
                scores_BV = processor(ids_BT, scores_BV)
            yield int(scores_BV.argmax())


def accepts_drafts(model: PreTrainedModel) -> bool:
    """Return whether tokens in the cache can be masked: every layer attends to all of them, at given positions."""
    full = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    return full and "position_ids" in signature(model.forward).parameters


def _first(counts: Iterable[int], length: int, *, like: torch.Tensor) -> torch.Tensor:
    """Return a mask of the first tokens of each row, (B, length)."""
    return (torch.arange(length) < torch.tensor(list(counts))[:, None]).to(like)
