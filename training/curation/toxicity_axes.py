"""Five axes of toxicity: scores of a document, the scorer protocol, and passages and their combination."""

from dataclasses import dataclass
from typing import Protocol

AXES = ("race", "gender", "religion", "ability", "violence")
PASSAGE = 2_000  # characters: about the 512 tokens that Celadon reads at once
LEAST_SHARE = 0.05  # of a long document's passages that must reach a level for the document to have it


@dataclass(frozen=True)
class Scores:
    """Celadon's five axes, each 0 (none, or told objectively) to 3 (overtly promoted)."""

    race: int = 0  # and origin
    gender: int = 0  # and sex
    religion: int = 0
    ability: int = 0
    violence: int = 0

    @property
    def levels(self) -> tuple[int, ...]:
        """The five, in the order of `AXES`."""
        return self.race, self.gender, self.religion, self.ability, self.violence

    @property
    def total(self) -> int:
        """0 to 15."""
        return sum(self.levels)


class Scorer(Protocol):
    """Scores whole documents, of any length. `name` goes into the account."""

    name: str

    def score(self, texts: list[str], languages: list[str]) -> list[Scores]:
        """Texts and their ISO codes -> a Scores each."""


def passages(text: str) -> list[str]:
    """A text in pieces of at most `PASSAGE` characters that join to it again, cut at the end of a paragraph, sentence
    or word where there is one in the second half."""
    pieces, start = [], 0
    while len(text) - start > PASSAGE:
        half, end = start + PASSAGE // 2, start + PASSAGE
        cuts = (text.rfind(mark, half, end) + len(mark) for mark in ("\n\n", ". ", "\n", " "))
        cut = next((cut for cut in cuts if cut > half), end)
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]


def combine(scored: list[Scores]) -> Scores:
    """A document's Scores from those of its passages: of each axis, the highest level that enough of them reach.

    Enough is one passage in a document of up to thirty (so the highest counts), and `LEAST_SHARE` of them in longer
    ones: one slur in a whole novel would otherwise take the novel out.
    """
    enough = max(1, round(LEAST_SHARE * len(scored)))
    levels = zip(*(scores.levels for scores in scored), strict=True)
    return Scores(*(sorted(level)[-enough] for level in levels))
