"""What a model writes when it is given the beginning of a story in each language: samples.jsonl of a run."""

import torch
from transformers import PreTrainedTokenizerBase

from modeling_pleias import PleiasForCausalLM

OPENINGS = {
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
def samples(
    model: PleiasForCausalLM, tokenizer: PreTrainedTokenizerBase, languages: list[str] | None = None
) -> list[dict]:
    """A greedy continuation of each opening, which draws no random number.

    Args:
        languages: ISO codes; all eight when not given.

    Returns:
        {"language": ..., "prompt": ..., "continuation": ...} for each, of at most NEW_TOKENS tokens.
    """
    lines = []
    for language in languages or OPENINGS:
        prompt = tokenizer(OPENINGS[language], return_tensors="pt").to(model.device)
        asked = prompt.input_ids.shape[1]
        ids = model.generate(
            **prompt, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=REPETITION_PENALTY
        )
        text = tokenizer.decode(ids[0, asked:], skip_special_tokens=True)
        lines.append({"language": language, "prompt": OPENINGS[language], "continuation": text})
    return lines
