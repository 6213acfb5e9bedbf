"""Lexicon of a language: its most frequent words with quantised counts, in a compact file, and a letter model."""

import lzma
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from ...common.config import InputError
from ...common.files import atomic

SIZE = 200_000  # words
MIN_COUNT = 2  # rarer words are not known
STEPS = 3  # counts are stored with this many steps per doubling
CASES = 4  # a stored value is CASES times the quantised count, plus the case
CAPITAL = 2  # the case of words that are mostly capitalised: German nouns, and names
MAGIC = b"pleias lexicon 1\n"

ORDER = 5  # letters of the letter model's longest sequences
TABLE = 1 << 20  # entries of its hashed tables
SMOOTHING = 3.0  # weight of the shorter context
SYMBOLS = 48
TYPICAL, PLAUSIBLE = 400, 95  # words, and the percentile of their surprisal up to which others look like words


def quantise(count: float) -> int:
    """Return the stored form of a count, 0 to 63."""
    return min(63, round(STEPS * math.log2(count)))


class Lexicon:
    """Words of a language in folded spelling, with their frequencies.

    Args:
        values: Stored value of each word: `CASES * quantise(count) + case`.
        total: Words of the text that was counted.
    """

    def __init__(self, values: dict[str, int], total: float):
        self.values, self.total = values, total
        shift = math.log2(max(total, 1.0) / 1e6)
        # log2 of the frequency per million words, by stored value
        self.frequencies = [value // CASES / STEPS - shift for value in range(256)]
        self.unknown = -1.0 - shift  # as if it had occurred once in twice the text

    @classmethod
    def from_counts(cls, counts: Counter, capitals: Counter) -> "Lexicon":
        """Build a lexicon from the counts of folded words, and of those that were capitalised."""
        frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SIZE]
        values = {
            word: CASES * quantise(count) + (CAPITAL if capitals[word] > 0.7 * count else 0)
            for word, count in frequent
            if count >= MIN_COUNT
        }
        return cls(values, counts.total())

    def __contains__(self, word: str) -> bool:
        return word in self.values

    def frequency(self, word: str) -> float:
        """Return log2 of a word's frequency per million words."""
        value = self.values.get(word)
        return self.unknown if value is None else self.frequencies[value]

    def is_capitalised(self, word: str) -> bool:
        """Return whether a word is mostly capitalised."""
        return self.values.get(word, 0) % CASES == CAPITAL

    @contextmanager
    def without(self, counts: dict[str, int]) -> Iterator[None]:
        """Forget the occurrences of one work, so that its words are as well known as those of a new text."""
        saved = {word: self.values[word] for word in counts if word in self.values}
        for word, value in saved.items():
            left = 2 ** (value // CASES / STEPS) - counts[word]
            if left < MIN_COUNT - 0.3:
                del self.values[word]
            else:
                self.values[word] = CASES * quantise(left) + value % CASES
        try:
            yield
        finally:
            self.values.update(saved)

    @cached_property
    def accented(self) -> float:
        """Fraction of the text that is words with letters other than a to z."""
        shares = [2 ** self.frequencies[value] for word, value in self.values.items() if not word.isascii()]
        return sum(shares) / 1e6

    @cached_property
    def letters(self) -> "LetterModel":
        """Letter model of the words."""
        return LetterModel(self.values)

    def save(self, path: Path) -> None:
        """Write the lexicon: sorted words without the prefix that each shares with the one before, compressed."""
        words = sorted(self.values)
        shared, endings, previous = bytearray(), [], ""
        for word in words:
            size = next((i for i, (a, b) in enumerate(zip(word, previous, strict=False)) if a != b), None)
            size = min(len(word), len(previous), 255) if size is None else min(size, 255)
            shared.append(size)
            endings.append(word[size:])
            previous = word
        body = "\n".join(endings).encode()
        head = f"{len(words)} {int(self.total)} {len(body)}\n".encode()
        values = bytes(self.values[word] for word in words)
        with atomic(path) as temporary:
            temporary.write_bytes(MAGIC + lzma.compress(head + body + bytes(shared) + values, preset=9))

    @classmethod
    def load(cls, path: Path) -> "Lexicon":
        """Read a lexicon.

        Raises:
            InputError: If the file is missing or damaged.
        """
        try:
            content = path.read_bytes()
            if not content.startswith(MAGIC):
                raise ValueError("it is no lexicon")
            content = lzma.decompress(content[len(MAGIC) :])
            head, _, rest = content.partition(b"\n")
            count, total, size = map(int, head.split())
            endings = rest[:size].decode().split("\n") if count else []
            shared, stored = rest[size : size + count], rest[size + count :]
            if not len(endings) == len(shared) == len(stored) == count:
                raise ValueError("it is incomplete")
        except (OSError, ValueError, lzma.LZMAError) as error:
            raise InputError(
                f"{path} is not a readable lexicon ({error}): learn or download the corrector."
            ) from error
        values, previous = {}, ""
        for prefix, ending, value in zip(shared, endings, stored, strict=True):
            previous = previous[:prefix] + ending
            values[previous] = value
        return cls(values, total)


class LetterModel:
    """Probabilities of letters after the four before them, from the words of a lexicon (a word counts once)."""

    def __init__(self, words: dict[str, int]):
        text = "\n".join(words)
        codes, counts = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_counts=True)
        frequent = codes[np.argsort(-counts, kind="stable")][:SYMBOLS]
        self.symbols = {chr(code): i + 2 for i, code in enumerate(frequent) if code != ord("\n")}
        lookup = np.ones(0x3000, dtype=np.int64)  # 1 is another letter, 0 the border of a word
        for character, symbol in self.symbols.items():
            if ord(character) < len(lookup):
                lookup[ord(character)] = symbol
        lookup[ord("\n")] = 0
        symbols = lookup[np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), len(lookup) - 1)]
        # grams do not cross words: what lies before a border is a border
        position = np.arange(len(symbols))
        border = np.maximum.accumulate(np.where(symbols == 0, position, -1))
        self.tables = []
        for order in range(1, ORDER + 1):
            gram = np.zeros(len(symbols), dtype=np.int64)
            for back in range(order):
                shifted = np.zeros_like(symbols)
                shifted[back:] = symbols[: len(symbols) - back]
                inside = position - back > np.concatenate([[-1], border[:-1]]) if back else np.ones(len(symbols), bool)
                gram += np.where(inside, shifted, 0) << (6 * back)
            self.tables.append(np.bincount(self._hash(gram), minlength=TABLE).astype(np.float32))
        self.total = float(len(symbols))
        step = max(1, len(words) // TYPICAL)
        typical = [self.surprise(word)[0] for word in list(words)[::step]]
        self.plausible = float(np.percentile(typical, PLAUSIBLE)) if typical else 0.0

    @staticmethod
    def _hash(grams: np.ndarray) -> np.ndarray:
        return ((grams * 0x9E3779B1) >> 7) & (TABLE - 1)

    def surprise(self, word: str) -> tuple[float, float]:
        """Return the mean and the maximum surprisal of a word's letters and its end, in bits."""
        symbols = np.array([0] * (ORDER - 1) + [self.symbols.get(c, 1) for c in word] + [0], dtype=np.int64)
        size = len(word) + 1
        probability, context = np.full(size, 1 / SYMBOLS), np.full(size, self.total)
        gram = np.zeros(size, dtype=np.int64)
        for order in range(ORDER):
            gram = gram + (symbols[ORDER - 1 - order : ORDER - 1 - order + size] << (6 * order))
            counts = self.tables[order][self._hash(gram)]
            if order:
                context = self.tables[order - 1][self._hash(gram >> 6)]
            probability = (np.minimum(counts, context) + SMOOTHING * probability) / (context + SMOOTHING)
        bits = -np.log2(probability)
        return float(bits.mean()), float(bits.max())
