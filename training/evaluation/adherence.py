"""Language adherence: whether a continuation stays in the language of its prompt, and how soon it leaves it."""

from dataclasses import asdict, dataclass

import numpy as np

from ..config import InputError
from ..generation import complete
from ..intervals import Metric, ratio
from ..language import JUDGED_LETTERS, identify
from .models import Subject
from .texts import CODE, Text, TextConfig, by_language, describe

CONFIDENCE = 0.9  # with which a prompt itself must be in its language: what is judged is the model, not the text
PASSAGE = 1000  # characters between two prompts from one document, where there are too few documents


@dataclass
class AdherenceConfig:
    """As published for Pleias-1.2b (paper): greedy, and right when the continuation is identified as the text's.

    Args:
        prompts: in each language.
        prompt_characters: of a prompt, cut at a space.
        new_tokens: of a continuation; fewer where prompt and continuation would exceed the model's context.
        repetition_penalty: the published one.
        segment: characters of a continuation that are judged together for the drift.
    """

    prompts: int = 24
    prompt_characters: int = 160
    new_tokens: int = 128
    repetition_penalty: float = 1.2
    segment: int = 100


def prompts(texts: list[Text], config: AdherenceConfig) -> dict[str, list[str]]:
    """Beginnings by language: of documents, then of passages further on in them, until there are enough.

    Only such as the identifier itself places in the language.

    Raises:
        InputError: when there is none.
    """
    found: dict[str, list[str]] = {}
    for language, of in by_language(texts).items():
        longest = max(len(text.text) for text in of)
        for start in range(0, longest if language != CODE else 0, PASSAGE):
            for text in of:
                mine = found.setdefault(language, [])
                if len(mine) < config.prompts and (prompt := _beginning(text.text[start:], start, config)):
                    if identify(prompt)[0] == language and identify(prompt)[1] >= CONFIDENCE:
                        mine.append(prompt)
    if not any(found.values()):
        raise InputError(
            f"The held-out text gives no prompt of {config.prompt_characters} characters: give longer documents with "
            "--data.path, or ask for shorter prompts."
        )
    return {language: of for language, of in found.items() if of}


def _beginning(text: str, start: int, config: AdherenceConfig) -> str:
    """Whole words of a text, from the first full one on; nothing where there are too few letters to judge."""
    if start:
        text = text.partition(" ")[2]
    text = text.lstrip()
    cut = text.rfind(" ", 0, config.prompt_characters + 1)
    prompt = text[:cut].rstrip() if cut > 0 and len(text) > config.prompt_characters else ""
    return prompt if sum(map(str.isalpha, prompt)) >= JUDGED_LETTERS else ""


def room(subject: Subject, asked: list[str], new_tokens: int) -> int:
    """New tokens for which prompt and continuation fit the model's context."""
    longest = max(len(subject.tokenizer(prompt).input_ids) for prompt in asked)
    return max(1, min(new_tokens, subject.context - longest))


def spoken(subject: Subject, text: str) -> str:
    """A continuation without special tokens, which are in no language."""
    for token in subject.tokenizer.all_special_tokens:
        text = text.replace(token, " ")
    return text


def continuations(subject: Subject, asked: list[str], config, title: str) -> list[str]:
    """What a model writes after each prompt, without special tokens.

    Args:
        config: of the task, with new_tokens and repetition_penalty.
        title: of the progress bar.
    """
    written = complete(
        subject.model,
        subject.tokenizer,
        asked,
        max_new_tokens=room(subject, asked, config.new_tokens),
        repetition_penalty=config.repetition_penalty,
        progress=f"{subject.name}: {title}",
    )
    return [spoken(subject, text) for text in written]


class Adherence:
    """The task: shares of continuations in the language of their prompt."""

    name = "language_adherence"

    def __init__(self, texts: list[Text], text_config: TextConfig, config: AdherenceConfig, run):
        self.prompts, self.config = prompts(texts, config), config
        self.data = describe(texts, text_config, run) | {
            "prompts": {language: len(of) for language, of in self.prompts.items()}
        }
        self.settings = asdict(config)

    def measure(self, subject: Subject) -> dict:
        """Every prompt with its continuation."""
        rows = [{"language": language, "prompt": prompt} for language, of in self.prompts.items() for prompt in of]
        asked = [row["prompt"] for row in rows]
        texts = continuations(subject, asked, self.config, "language adherence")
        return {
            "continuations": [row | {"continuation": text} for row, text in zip(rows, texts, strict=True)],
            "new_tokens": room(subject, asked, self.config.new_tokens),
        }

    def metrics(self, record: dict) -> dict[str, Metric]:
        """The share over all prompts, then by language; an empty continuation is in no language."""
        rows = record["continuations"]
        right = np.array([bool(row["continuation"].strip()) and in_language(row) for row in rows], float)
        found = {"mean": ratio(right, np.ones(len(rows)))}
        for language in dict.fromkeys(row["language"] for row in rows):
            inside = np.array([row["language"] == language for row in rows], float)
            found[language] = ratio(right * inside, inside)
        return found

    def facts(self, record: dict) -> dict:
        """The share still in the language by position, and a continuation in each language."""
        rows, size = record["continuations"], self.config.segment
        positions: dict[str, Metric] = {}
        pieces = [
            [row["continuation"][i : i + size] for i in range(0, len(row["continuation"]), size)] for row in rows
        ]
        for i in range(max(map(len, pieces), default=0)):
            judged = np.array([len(of) > i and _letters(of[i]) >= size // 3 for of in pieces])
            if judged.sum() >= len(rows) / 4:  # fewer say little, and only of continuations that are unlike the rest
                right = [
                    bool(ask) and identify(of[i])[0] == row["language"]
                    for ask, of, row in zip(judged, pieces, rows, strict=True)
                ]
                positions[f"{i * size}-{(i + 1) * size}"] = ratio(right, judged)
        examples = {row["language"]: row for row in reversed(rows)}
        return {
            "new_tokens": record["new_tokens"],
            "groups": {"characters into the continuation": positions},
            "examples": [examples[language] for language in dict.fromkeys(row["language"] for row in rows)],
        }


def in_language(row: dict) -> bool:
    """Whether a continuation is identified as being in its prompt's language."""
    return identify(row["continuation"])[0] == row["language"]


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))
