"""Generate sample continuations of fixed prompts in each language, for samples.jsonl of a run."""

import torch
from transformers import PreTrainedTokenizerBase

from modeling_pleias import PleiasForCausalLM

PROMPTS = {
    "en": "In the beginning of the story, the old man",
    "fr": "Au commencement de cette histoire, le roi",
    "es": "Al principio de esta historia, el rey",
    "de": "Am Anfang dieser Geschichte war der König",
    "it": "All'inizio di questa storia, il re",
    "nl": "Aan het begin van dit verhaal was de koning",
    "la": "In principio huius historiae rex",
    "pt": "No princípio desta história, o rei",
}
NEW_TOKENS = 40
REPETITION_PENALTY = 1.2


@torch.no_grad()
def generate_samples(
    model: PleiasForCausalLM, tokenizer: PreTrainedTokenizerBase, languages: list[str] | None = None
) -> list[dict]:
    """Generate a greedy continuation of each prompt, without random numbers.

    Args:
        model: Model to sample from.
        tokenizer: Its tokenizer.
        languages: ISO codes. Default: all eight.

    Returns:
        {"language": ..., "prompt": ..., "continuation": ...} per language, with at most NEW_TOKENS tokens.
    """
    lines = []
    for language in languages or PROMPTS:
        prompt = tokenizer(PROMPTS[language], return_tensors="pt").to(model.device)
        ids = model.generate(
            **prompt, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=REPETITION_PENALTY
        )
        text = tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
        lines.append({"language": language, "prompt": PROMPTS[language], "continuation": text})
    return lines
