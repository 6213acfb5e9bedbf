"""Language adherence: whether a continuation stays in the language of its prompt, and where it leaves it."""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from ..common.config import InputError
from ..common.generation import complete
from ..common.intervals import Metric, ratio, ratios_by
from ..common.language import JUDGED_LETTERS, identify, letters
from .held_out_text import CODE, Text, TextConfig, by_language, describe_texts
from .models import EvaluatedModel

CONFIDENCE = 0.9  # minimum for the prompt itself, so that the model is measured and not the text
PASSAGE = 1000  # characters between two prompts from one document, if there are too few documents


@dataclass
class AdherenceConfig:
    """Greedy continuations, correct if identified as the prompt's language, as published for Pleias-1.2b (paper).

    Args:
        prompts: Number of prompts per language.
        prompt_characters: Maximum characters of a prompt, which ends at a space.
        new_tokens: Tokens per continuation; fewer if prompt and continuation exceed the context length.
        repetition_penalty: Repetition penalty of generation. Default: 1.2, as published.
        segment: Characters of a continuation that are classified together to locate the drift.
    """

    prompts: int = 24
    prompt_characters: int = 160
    new_tokens: int = 128
    repetition_penalty: float = 1.2
    segment: int = 100


def prompts(texts: list[Text], config) -> list[dict[str, str]]:
    """Return {"language", "prompt"} rows: beginnings of documents, then of later passages, until there are enough.

    The language identifier must confirm the language of each. The config has prompts and prompt_characters.

    Raises:
        InputError: If there is no prompt.
    """
    rows: list[dict[str, str]] = []
    for language, documents in by_language(texts).items():
        longest, last = max(len(text.text) for text in documents), len(rows) + config.prompts
        for start in range(0, longest if language != CODE else 0, PASSAGE):
            for text in documents:
                if len(rows) < last and (prompt := _beginning(text.text[start:], start, config.prompt_characters)):
                    identified, confidence = identify(prompt)
                    if identified == language and confidence >= CONFIDENCE:
                        rows.append({"language": language, "prompt": prompt})
    if not rows:
        raise InputError(
            f"The held-out text contains no prompt of {config.prompt_characters} characters: pass longer documents "
            "with --data.path, or set shorter prompts."
        )
    return rows


def _beginning(text: str, start: int, characters: int) -> str:
    """Return complete words from the first complete word on, or "" if there are too few letters to classify."""
    if start:
        text = text.partition(" ")[2]
    text = text.lstrip()
    end = text.rfind(" ", 0, characters + 1)
    prompt = text[:end].rstrip() if end > 0 and len(text) > characters else ""
    return prompt if letters(prompt) >= JUDGED_LETTERS else ""


def max_new_tokens(subject: EvaluatedModel, rows: list[dict], new_tokens: int) -> int:
    """Return the new tokens for which every prompt and its continuation fit the context length."""
    longest = max(len(subject.tokenizer(row["prompt"], split_special_tokens=True).input_ids) for row in rows)
    return max(1, min(new_tokens, subject.context - longest))


def strip_special_tokens(subject: EvaluatedModel, text: str) -> str:
    """Remove special tokens, which are in no language."""
    for token in subject.tokenizer.all_special_tokens:
        text = text.replace(token, " ")
    return text


def continuations(subject: EvaluatedModel, rows: list[dict], config, title: str) -> list[dict]:
    """Add a generated "continuation" of the prompt to each row, without special tokens.

    The config has new_tokens and repetition_penalty.
    """
    outputs = complete(
        subject.model,
        subject.tokenizer,
        [row["prompt"] for row in rows],
        max_new_tokens=max_new_tokens(subject, rows, config.new_tokens),
        repetition_penalty=config.repetition_penalty,
        progress=f"{subject.name}: {title}",
        plain=True,
    )
    return [
        row | {"continuation": strip_special_tokens(subject, text)} for row, text in zip(rows, outputs, strict=True)
    ]


class Adherence:
    """Task: fraction of continuations in the language of their prompt."""

    name = "language_adherence"

    def __init__(self, texts: list[Text], text_config: TextConfig, config: AdherenceConfig, run):
        self.config, self.settings, self.rows = config, asdict(config), prompts(texts, config)
        counts = Counter(row["language"] for row in self.rows)
        self.data = describe_texts(texts, text_config, run) | {"prompts": dict(counts)}

    def measure(self, subject: EvaluatedModel) -> dict:
        """Generate a continuation of every prompt."""
        return {
            "continuations": continuations(subject, self.rows, self.config, "language adherence"),
            "new_tokens": max_new_tokens(subject, self.rows, self.config.new_tokens),
        }

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return the fraction over all prompts, then by language; an empty continuation is in no language."""
        rows = record["continuations"]
        correct = [
            bool(row["continuation"].strip()) and identify(row["continuation"])[0] == row["language"] for row in rows
        ]
        total = np.ones(len(rows))
        return {"mean": ratio(correct, total), **ratios_by((row["language"] for row in rows), correct, total)}

    def details(self, record: dict) -> dict:
        """Return the fraction still in the language by position, and an example per language."""
        rows, size = record["continuations"], self.config.segment
        positions: dict[str, Metric] = {}
        segments = [
            [row["continuation"][i : i + size] for i in range(0, len(row["continuation"]), size)] for row in rows
        ]
        for i in range(max(map(len, segments), default=0)):
            valid = np.array([len(parts) > i and letters(parts[i]) >= size // 3 for parts in segments])
            if valid.sum() >= len(rows) / 4:  # fewer are too few, and not representative
                correct = [
                    bool(use) and identify(parts[i])[0] == row["language"]
                    for use, parts, row in zip(valid, segments, rows, strict=True)
                ]
                positions[f"{i * size}-{(i + 1) * size}"] = ratio(correct, valid)
        examples = {row["language"]: row for row in reversed(rows)}
        return {
            "new_tokens": record["new_tokens"],
            "groups": {"characters into the continuation": positions},
            "examples": [examples[language] for language in dict.fromkeys(row["language"] for row in rows)],
        }
