"""The source's weights in fp32 arithmetic: what llama.cpp, ONNX Runtime and OpenVINO are held against."""

from contextlib import contextmanager

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from modeling_pleias import PleiasForCausalLM

from .checks import NEW_TOKENS, TEXTS, Checks, Reference

# Between two fp32 implementations of the same arithmetic (nats of a log-probability): 1e-5 is usual, a wrong order of
# rows gives more than 1.
SAME_ARITHMETIC = 1e-3


@contextmanager
def rounded_to_bf16(model: torch.nn.Module):
    """Round inputs and outputs of a float32 model's modules to bfloat16, as bfloat16 arithmetic does with fp32 sums.

    Real bfloat16 matrix products take tens of times as long as float32 ones on a CPU without instructions for them.
    """

    def rounded(value):
        return value.bfloat16().float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def before(module, args):
        return tuple(map(rounded, args))

    def after(module, args, output):
        return tuple(map(rounded, output)) if isinstance(output, tuple) else rounded(output)

    hooks = []
    for module in (*model.model.modules(), model.lm_head):
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Fp32:
    """Answers of the model in fp32.

    Args:
        reference: what is released.
        score_tokens: tokens of each language's passage that perplexity is measured on.
    """

    def __init__(self, reference: Reference, *, score_tokens: int):
        stored = reference.source.model
        self.model = PleiasForCausalLM.from_pretrained(reference.source.folder, dtype=torch.float32).eval()
        self.penalty = stored.generation_config.repetition_penalty or 1.0
        self.eos = stored.config.eos_token_id
        self.tokenizer = Tokenizer.from_file(str(reference.source.folder / "tokenizer.json"))
        self.prompts = reference.prompts
        self.vocabulary = stored.config.vocab_size
        self.context = reference.context
        self.last = {code: self.log_probabilities(self.model, ids)[-1] for code, ids in self.prompts.items()}
        # How far the model itself deviates from fp32 if it computes in bfloat16.
        with rounded_to_bf16(self.model):
            coarse = {code: self.log_probabilities(self.model, ids)[-1] for code, ids in self.prompts.items()}
        self.own_deviation = float(max(abs(coarse[code] - exact).max() for code, exact in self.last.items()))
        self.greedy = {code: self.continuation(ids) for code, ids in self.prompts.items()}
        passages = (reference.ids[i][: min(score_tokens + 1, self.context)] for i in range(len(TEXTS["languages"])))
        self.passages = dict(zip(TEXTS["languages"], passages, strict=True))
        # llama.cpp's server tells no probability of a token that is part of a character only: left out everywhere.
        self.scored = [
            (code, i)
            for code, ids in self.passages.items()
            for i in range(1, len(ids))
            if "\ufffd" not in self.tokenizer.decode([ids[i]], skip_special_tokens=False)
        ]
        tables = {code: self.log_probabilities(self.model, ids) for code, ids in self.passages.items()}
        self.scores = np.array([tables[code][i - 1, self.passages[code][i]] for code, i in self.scored], np.float64)
        self.likeliest = np.array([tables[code][i - 1].argmax() for code, i in self.scored])

    @staticmethod
    @torch.no_grad()
    def log_probabilities(model, ids: list[int]) -> np.ndarray:
        """Log-probabilities (T, V) of what follows each id."""
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()

    def continuation(self, ids: list[int]) -> list[int]:
        """The greedy continuation with the model's repetition penalty, without the end mark."""
        out = self.model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS)[0, len(ids) :].tolist()
        return self.cut(out)

    def cut(self, ids: list[int], *ends: str) -> list[int]:
        """The ids before the end mark, or one of these entries."""
        marks = {self.eos, *(self.tokenizer.token_to_id(end) for end in ends)}
        return next((ids[:i] for i, number in enumerate(ids) if number in marks), ids)

    @torch.no_grad()
    def gap(self, ids: list[int], one: int | None, other: int | None) -> float:
        """How much likelier one id is than another after these ids, in penalised logits; None stands for the end."""
        logits = self.model(torch.tensor([ids])).logits[:, -1]
        penalise = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(self.penalty)])
        scores = penalise(torch.tensor([ids]), logits)[0]
        one, other = (self.eos if x is None else x for x in (one, other))
        return float(scores[one] - scores[other])

    def compare_last(self, checks: Checks, part: str, name: str, found: dict[str, np.ndarray], limit: float) -> None:
        """Note the largest difference of any entry's log-probability after the eight prompts."""
        worst = max(float(abs(found[code] - self.last[code]).max()) for code in self.prompts)
        checks.at_most(part, f"{name}: log-probabilities of all entries", worst, limit)

    def compare_greedy(
        self, checks: Checks, part: str, name: str, found: dict[str, list[int]], tie: float, *ends: str
    ) -> int:
        """Note, and return, in how many languages the greedy text is that of fp32, up to any of these entries.

        Where it is not, the two ids at the first difference have to be a tie: no further apart in fp32 than `tie`.
        """
        gaps = {}
        for code, new in found.items():
            pairs = zip([*self.cut(self.greedy[code], *ends), None], [*self.cut(new, *ends), None], strict=False)
            at, (ours, theirs) = next(((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]), (0, (0, 0)))
            if ours != theirs:
                before = [*self.prompts[code], *self.greedy[code][:at]]
                gaps[code] = round(self.gap(before, ours, theirs), 6)
        same = len(found) - len(gaps)
        figure = f"{same} of {len(found)} identical"
        if gaps:
            told = ", ".join(f"{code} {gap:.4f}" for code, gap in gaps.items())
            figure += f"; elsewhere the two were this close: {told} (at most {tie:.2g})"
        passed = all(gap <= tie for gap in gaps.values())
        name = f"{name}: greedy text, {NEW_TOKENS} tokens"
        checks.add(part, name, figure, passed, equal=same, of=len(found), gaps=gaps)
        return same
