"""Words at random: text that nothing but copying can write again, from which a base that does not copy learns it."""

import random
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..language import LANGUAGES

T = TypeVar("T")
WORD = re.compile(r"[^\W\d_]{2,}")
TEXTS = 6  # that give the words of one drill


def jumbled(
    some: Iterable[tuple[str, str, T]], count: int, seed: int
) -> Iterator[tuple[str, list[T], list[str], random.Random]]:
    """What `count` drills are made of, as many in each language.

    Args:
        some: (language, text, what it belongs to) of the training rows or passages.

    Yields:
        a name, what the texts belong to, their words, each once in random order, and the random numbers to go on with.
    """
    by_language: dict[str, list[tuple[str, T]]] = {}
    for language, text, owner in some:
        by_language.setdefault(language, []).append((text, owner))
    for language in sorted(by_language, key=list(LANGUAGES).index):
        draw, own = random.Random(f"{seed}/drill/{language}"), by_language[language]
        for i in range(-(-count // len(by_language))):
            drawn = draw.sample(own, min(TEXTS, len(own)))
            words = sorted({word for text, _ in drawn for word in WORD.findall(text)})
            draw.shuffle(words)
            yield f"drill/{language}/{i}", [owner for _, owner in drawn], words, draw
