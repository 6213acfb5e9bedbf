"""Generate copy-task examples (random words) that teach a small base model to copy: nothing else predicts the text."""

import random
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..common.language import LANGUAGES

T = TypeVar("T")
WORD = re.compile(r"[^\W\d_]{2,}")
TEXTS = 6  # number of texts that the words of one example come from


def random_word_rows(
    texts: Iterable[tuple[str, str, T]], count: int, seed: int
) -> Iterator[tuple[str, list[T], list[str], random.Random]]:
    """Yield the parts of `count` copy-task examples, equally many per language.

    Args:
        texts: (language, text, row or passage of the text), from the training part.

    Yields:
        Name, the rows or passages of the texts, their distinct words in random order, and the random generator.
    """
    by_language: dict[str, list[tuple[str, T]]] = {}
    for language, text, owner in texts:
        by_language.setdefault(language, []).append((text, owner))
    for language in sorted(by_language, key=list(LANGUAGES).index):
        draw, candidates = random.Random(f"{seed}/drill/{language}"), by_language[language]
        for i in range(-(-count // len(by_language))):
            sample = draw.sample(candidates, min(TEXTS, len(candidates)))
            words = sorted({word for text, _ in sample for word in WORD.findall(text)})
            draw.shuffle(words)
            yield f"drill/{language}/{i}", [owner for _, owner in sample], words, draw
