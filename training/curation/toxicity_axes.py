"""Five axes of toxicity: the scores of a document, the scorer protocol, and passages and their combination."""

from dataclasses import dataclass
from typing import Protocol

AXES = ("race", "gender", "religion", "ability", "violence")
PASSAGE = 2_000  # characters: about 512 tokens, Celadon's context length
MIN_SHARE = 0.05  # of a long document's passages that must reach a level for the document to have it


@dataclass(frozen=True)
class Scores:
    """Celadon's five axes, each from 0 (none, or described objectively) to 3 (overtly promoted)."""

    race: int = 0  # and origin
    gender: int = 0  # and sex
    religion: int = 0
    ability: int = 0
    violence: int = 0

    @property
    def levels(self) -> tuple[int, ...]:
        """The five scores, in the order of `AXES`."""
        return self.race, self.gender, self.religion, self.ability, self.violence

    @property
    def total(self) -> int:
        """Sum of the scores, from 0 to 15."""
        return sum(self.levels)


class Scorer(Protocol):
    """Scores complete documents of any length. `name` is recorded in the `curation` struct."""

    name: str

    def score(self, texts: list[str], languages: list[str]) -> list[Scores]:
        """Return the scores of each text; `languages` are ISO codes."""


def passages(text: str) -> list[str]:
    """Split a text into pieces of at most `PASSAGE` characters, whose concatenation is the text.

    A piece ends with a paragraph, sentence or word if one ends in its second half.
    """
    pieces, start = [], 0
    while len(text) - start > PASSAGE:
        half, end = start + PASSAGE // 2, start + PASSAGE
        ends = (text.rfind(mark, half, end) + len(mark) for mark in ("\n\n", ". ", "\n", " "))
        end = next((position for position in ends if position > half), end)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def combine(scored: list[Scores]) -> Scores:
    """Combine the scores of passages: per axis, the highest level that enough passages reach.

    Enough is one passage in a document of up to thirty (the maximum counts), and `MIN_SHARE` of the passages in longer
    documents, so that one slur does not drop a novel.
    """
    enough = max(1, round(MIN_SHARE * len(scored)))
    levels = zip(*(scores.levels for scores in scored), strict=True)
    return Scores(*(sorted(level)[-enough] for level in levels))
