"""Batched greedy generation with any causal language model: left-padded batches of similar length, in prompt order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from modeling_pleias import cpu_compute_dtype

from .bf16_weights import reading_bf16_weights
from .drafting import DraftDecoder, DraftedRow, InputDraft, PromptDraft, accepts_drafts

SMALL = 2**22  # parameters


class UnpaddedRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Repetition penalty of transformers, except that the padding before a prompt does not count as text.

    A tokenizer without a padding token is padded with its end of text, which would become less probable the shorter a
    prompt is compared with the longest in its batch.

    Args:
        penalty: Scores of tokens in prompt and continuation are divided by it if positive, else multiplied.
        padding: (B,), tokens of padding before each prompt.
    """

    def __init__(self, penalty: float, padding: torch.Tensor):
        self.penalty, self.padding = penalty, padding

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # As transformers does: only the scores of seen tokens are computed, padding goes to a column after the last.
        is_padding_BT = torch.arange(input_ids.shape[1], device=input_ids.device) < self.padding[:, None]
        ids_BT = input_ids.masked_fill(is_padding_BT, scores.shape[-1])
        scores_BV = torch.nn.functional.pad(scores, (0, 1))
        seen_BT = scores_BV.gather(1, ids_BT)
        seen_BT = torch.where(seen_BT < 0, seen_BT * self.penalty, seen_BT / self.penalty)
        return scores_BV.scatter_(1, ids_BT, seen_BT)[:, :-1]


def fast_weights(model: PreTrainedModel) -> AbstractContextManager:
    """Return a context in which a model on a CPU generates fast: `reading_bf16_weights`, except in two cases.

    A bf16 model on a CPU with bf16 instructions is as fast or faster as it is in batches
    (training/bench/RESULTS.md), and in a small model the weights take less time than compiling the C function.
    """
    fast = model.dtype == torch.bfloat16 == cpu_compute_dtype()
    return nullcontext() if fast or model.num_parameters() < SMALL else reading_bf16_weights(model)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str | None) -> int | None:
    """Return the id of a token, None if it has none, without `get_vocab`, which copies the vocabulary in 0.1 s."""
    id = None if token is None else tokenizer.convert_tokens_to_ids(token)
    return id if id is not None and tokenizer.convert_ids_to_tokens(id) == token else None


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: str | None = None,
    repetition_penalty: float = 1.0,
    logits_processor: Callable[[PreTrainedTokenizerBase, list[str]], LogitsProcessor] | None = None,
    draft: Callable[[PreTrainedTokenizerBase, str], InputDraft | PromptDraft] | None = None,
    batch_tokens: int = 8192,
    progress: str | None = None,
    plain: bool = False,
) -> list[str]:
    """Generate the greedy continuation of each prompt, in the order of the prompts.

    Special tokens appear in the continuation, except padding and end of text, at which it ends.

    Args:
        stop: Text, preferably a special token, at which a continuation ends, in addition to the end of text. It is not
            part of the continuation. If the tokenizer has no such token, generation continues to `max_new_tokens` and
            the continuation is truncated at the text.
        repetition_penalty: The original model's card recommends 1.2 for the base model.
        logits_processor: Factory that builds a LogitsProcessor for a batch of prompts
            (training.tasks.ocr.edit_penalty).
        draft: Factory that builds the draft of a prompt's continuation, which makes generation fast where it is right,
            and changes no output (training.common.drafting).
        batch_tokens: Maximum tokens per batch, including prompts, padding and continuations; at least one prompt.
        progress: Title of a progress bar. Default: no bar.
        plain: Encode special tokens that are written in a prompt as text, because the prompts are texts of others. By
            default they are special tokens, of which the formats of tasks consist.
    """
    stop_id = token_id(tokenizer, stop)
    ends = [id for id in (tokenizer.eos_token_id, stop_id) if id is not None]
    pad = next(id for id in (tokenizer.pad_token_id, *ends, 0) if id is not None)
    encoded = [tokenizer(prompt, split_special_tokens=plain).input_ids for prompt in prompts]
    drafted = draft is not None and accepts_drafts(model)
    outputs: list[str] = [""] * len(prompts)
    bar = tqdm(total=len(prompts), desc=progress, unit="text", disable=progress is None)
    with bar, fast_weights(model):
        for batch in _batches([len(ids) for ids in encoded], batch_tokens, max_new_tokens):
            width = max(len(encoded[i]) for i in batch)
            padding = [width - len(encoded[i]) for i in batch]
            rows = [[pad] * n + encoded[i] for n, i in zip(padding, batch, strict=True)]
            mask = [[0] * n + [1] * (width - n) for n in padding]

            def processors(rows: slice, batch=batch, padding=padding) -> LogitsProcessorList:
                """Build the logits processors of some rows of the batch."""
                built = LogitsProcessorList()
                if repetition_penalty != 1:
                    padding_B = torch.tensor(padding[rows], device=model.device)
                    built.append(UnpaddedRepetitionPenaltyLogitsProcessor(repetition_penalty, padding_B))
                if logits_processor:
                    processor = logits_processor(tokenizer, [prompts[i] for i in batch[rows]])
                    built += processor if isinstance(processor, LogitsProcessorList) else [processor]
                return built

            if drafted:
                drafts = [draft(tokenizer, prompts[i]) for i in batch]
                drafted_rows = [DraftedRow(each, processors(slice(n, n + 1))) for n, each in enumerate(drafts)]
                how = {"custom_generate": DraftDecoder(drafted_rows, ends, pad), "use_cache": True}
            else:
                how = {"logits_processor": processors(slice(None))}
            ids = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,  # of the model's generation config; the processor above replaces it
                eos_token_id=ends or None,
                pad_token_id=pad,
                **how,
            )
            for i, row in zip(batch, ids[:, width:].tolist(), strict=True):
                length = next((n for n, token in enumerate(row) if token in ends), len(row))
                text = tokenizer.decode(row[:length], skip_special_tokens=False, clean_up_tokenization_spaces=False)
                outputs[i] = text.partition(stop)[0] if stop else text
            bar.update(len(batch))
    return outputs


def _batches(lengths: list[int], batch_tokens: int, new_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices of similar length, longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * (lengths[batch[0]] + new_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
