"""Completions of many prompts by any causal language model: left-padded batches of like length, greedy, in order."""

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
    guide: Callable[[PreTrainedTokenizerBase, list[str]], LogitsProcessor] | None = None,
    batch_tokens: int = 8192,
    progress: str | None = None,
) -> list[str]:
    """The greedy continuation of each prompt, in the order of the prompts.

    Special tokens written out in a prompt are read as such (a task's format is made of them) and stand in the
    continuation, except padding and the end of the text, at which it ends.

    Args:
        stop: text, best a special token, that ends a continuation besides the end of the text; not part of it. A
            tokenizer that has no such token writes on to `max_new_tokens`, and what follows the text is cut off.
        repetition_penalty: 1.2 is what the original's card advises for the base model.
        guide: makes what changes the scores of the next token, for a batch of prompts (training.tasks.near).
        batch_tokens: most tokens of a batch, prompt, padding and continuation together; one prompt at least.
        progress: title of a progress bar; none when not given.
    """
    entries = tokenizer.get_vocab()
    ends = [id for id in (tokenizer.eos_token_id, entries.get(stop)) if id is not None]
    pad = next(id for id in (tokenizer.pad_token_id, *ends, 0) if id is not None)
    encoded = [tokenizer(prompt).input_ids for prompt in prompts]
    outputs: list[str] = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=progress, unit="text", disable=progress is None) as bar:
        for batch in _batches([len(ids) for ids in encoded], batch_tokens, max_new_tokens):
            width = max(len(encoded[i]) for i in batch)
            rows = [[pad] * (width - len(encoded[i])) + encoded[i] for i in batch]
            mask = [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in batch]
            ids = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=repetition_penalty,
                logits_processor=LogitsProcessorList([guide(tokenizer, [prompts[i] for i in batch])] if guide else []),
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
    """Indices in batches of like length, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * (lengths[batch[0]] + new_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
