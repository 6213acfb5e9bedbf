"""Batched greedy generation with any causal language model: left-padded batches of similar length, in prompt order."""

from collections.abc import Callable, Iterator, Sequence

import torch
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase


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
    batch_tokens: int = 8192,
    progress: str | None = None,
) -> list[str]:
    """Generate the greedy continuation of each prompt, in the order of the prompts.

    Special tokens written in a prompt are encoded as such, because task formats consist of them. They also appear in
    the continuation, except padding and end of text, at which it ends.

    Args:
        stop: Text, preferably a special token, at which a continuation ends, in addition to the end of text. It is not
            part of the continuation. If the tokenizer has no such token, generation continues to `max_new_tokens` and
            the continuation is truncated at the text.
        repetition_penalty: The original model's card recommends 1.2 for the base model.
        logits_processor: Factory that builds a LogitsProcessor for a batch of prompts
            (training.tasks.ocr.edit_penalty).
        batch_tokens: Maximum tokens per batch, including prompts, padding and continuations; at least one prompt.
        progress: Title of a progress bar. Default: no bar.
    """
    vocabulary = tokenizer.get_vocab()
    ends = [id for id in (tokenizer.eos_token_id, vocabulary.get(stop)) if id is not None]
    pad = next(id for id in (tokenizer.pad_token_id, *ends, 0) if id is not None)
    encoded = [tokenizer(prompt).input_ids for prompt in prompts]
    outputs: list[str] = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=progress, unit="text", disable=progress is None) as bar:
        for batch in _batches([len(ids) for ids in encoded], batch_tokens, max_new_tokens):
            width = max(len(encoded[i]) for i in batch)
            rows = [[pad] * (width - len(encoded[i])) + encoded[i] for i in batch]
            mask = [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in batch]
            processors = [logits_processor(tokenizer, [prompts[i] for i in batch])] if logits_processor else []
            ids = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=repetition_penalty,
                logits_processor=LogitsProcessorList(processors),
                eos_token_id=ends or None,
                pad_token_id=pad,
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
