"""The source's weights in fp32 arithmetic, with which llama.cpp, ONNX Runtime and OpenVINO are compared."""

from contextlib import contextmanager

import numpy as np
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from modeling_pleias import PleiasForCausalLM

from .checks import NEW_TOKENS, TEXTS, Checks, ReferenceModel

# Largest difference in a log-probability (nats) between two fp32 implementations: 1e-5 is usual, a wrong order of rows
# causes more than 1.
SAME_ARITHMETIC = 1e-3


@contextmanager
def rounded_to_bf16(model: torch.nn.Module):
    """Round inputs and outputs of a float32 model's modules to bfloat16, as bfloat16 arithmetic does with fp32 sums.

    On a CPU without bfloat16 instructions, real bfloat16 matmuls are tens of times slower than float32 ones.
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


class Fp32Reference:
    """Outputs of the model in fp32.

    Args:
        reference: Outputs of the source of the release.
        score_tokens: Tokens of each language's passage on which perplexity is measured.
    """

    def __init__(self, reference: ReferenceModel, *, score_tokens: int):
        stored = reference.source.model
        self.model = PleiasForCausalLM.from_pretrained(reference.source.folder, dtype=torch.float32).eval()
        self.penalty = stored.generation_config.repetition_penalty or 1.0
        # Of a model fine-tuned on conversations also the end of a turn.
        ends = stored.generation_config.eos_token_id or stored.config.eos_token_id
        self.ends = [ends] if isinstance(ends, int) else ends
        self.tokenizer, self.prompts = reference.tokenizer, reference.prompts
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
        # llama.cpp's server returns no probability of a token that is only part of a character: excluded everywhere.
        self.scored = [
            (code, i)
            for code, ids in self.passages.items()
            for i in range(1, len(ids))
            if "\ufffd" not in self.tokenizer.decode([ids[i]], skip_special_tokens=False)
        ]
        tables = {code: self.log_probabilities(self.model, ids) for code, ids in self.passages.items()}
        self.scores = np.array([tables[code][i - 1, self.passages[code][i]] for code, i in self.scored], np.float64)
        self.greedy_ids = np.array([tables[code][i - 1].argmax() for code, i in self.scored])

    @staticmethod
    @torch.no_grad()
    def log_probabilities(model, ids: list[int]) -> np.ndarray:
        """Return the log-probabilities (T, V) of the token after each id."""
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()

    def continuation(self, ids: list[int]) -> list[int]:
        """Return the greedy continuation with the model's repetition penalty, without the end token."""
        return self.cut(self.model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS)[0, len(ids) :].tolist())

    def cut(self, ids: list[int], *ends: str) -> list[int]:
        """Return the ids before the first end token, which is the model's or one of `ends`."""
        end_ids = {*self.ends, *(self.tokenizer.token_to_id(end) for end in ends)}
        return next((ids[:i] for i, token in enumerate(ids) if token in end_ids), ids)

    @torch.no_grad()
    def gap(self, ids: list[int], first: int | None, second: int | None) -> float:
        """Return the difference of two next tokens' logits after `ids`, with penalty; None is the end token."""
        logits = self.model(torch.tensor([ids])).logits[:, -1]
        penalise = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(self.penalty)])
        scores = penalise(torch.tensor([ids]), logits)[0]
        first, second = (self.ends[0] if token is None else token for token in (first, second))
        return float(scores[first] - scores[second])

    def compare_last(self, checks: Checks, part: str, name: str, actual: dict[str, np.ndarray], limit: float) -> None:
        """Record the largest difference of any token's log-probability after the eight prompts."""
        worst = max(float(abs(actual[code] - self.last[code]).max()) for code in self.prompts)
        checks.at_most(part, f"{name}: log-probabilities of all tokens", worst, limit)

    def compare_greedy(
        self, checks: Checks, part: str, name: str, actual: dict[str, list[int]], tie: float, *ends: str
    ) -> int:
        """Record and return the number of languages whose greedy text equals that of fp32, up to a token of `ends`.

        In the other languages the first two ids that differ must be a tie: their gap in fp32 is at most `tie`.
        """
        gaps = {}
        for code, new in actual.items():
            pairs = zip([*self.cut(self.greedy[code], *ends), None], [*self.cut(new, *ends), None], strict=False)
            for i, (expected, token) in enumerate(pairs):
                if expected != token:
                    prefix = [*self.prompts[code], *self.greedy[code][:i]]
                    gaps[code] = round(self.gap(prefix, expected, token), 6)
                    break
        same = len(actual) - len(gaps)
        figure = f"{same} of {len(actual)} identical"
        if gaps:
            listed = ", ".join(f"{code} {gap:.4f}" for code, gap in gaps.items())
            figure += f"; elsewhere the gap of the first two that differ: {listed} (at most {tie:.2g})"
        passed = all(gap <= tie for gap in gaps.values())
        name = f"{name}: greedy text, {NEW_TOKENS} tokens"
        checks.add(part, name, figure, passed, equal=same, of=len(actual), gaps=gaps)
        return same
