"""Words at random: text that nothing but copying can write again, from which a base that does not copy learns it."""

import random
import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]{2,}")
TEXTS = 6  # that give the words of one drill


def jumbled(texts: Iterable[str], draw: random.Random) -> list[str]:
    """The words of some texts, each once, in random order."""
    found = sorted({word for text in texts for word in WORD.findall(text)})
    draw.shuffle(found)
    return found
