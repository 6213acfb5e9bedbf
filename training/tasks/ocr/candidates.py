"""Candidates for the words of an OCR text: known words that its channel may have turned into what was read."""

from typing import NamedTuple

from .channel import FREE, Channel
from .lexicon import Lexicon
from .units import fold, plain

CHEAP = 16.0  # bits: a confusion above is none
EDITS = 40  # cheapest single edits of a word that are combined to pairs
PAIR = 22.0  # bits that two confusions may cost
KEPT = 3  # candidates of a word
REACH = 10.0  # bits below the best candidate
RARE = 1.0  # log2 of the frequency per million below which a known word is doubted
RATIO = 7.0  # log2 of how many times more frequent a known word's neighbour must be
CACHED = 50_000  # words; more would fill the memory of a program that reads a corpus
LONGEST = 30  # longer words have no candidates
REPEATED = 1.0  # bits of a confusion that a word has again


class Candidate(NamedTuple):
    """A known word, the bits of the edits that lead to it, their number, and whether one of them was never seen."""

    word: str
    cost: float
    edits: int
    free: bool
    score: float  # bits of the word's frequency less those of its edits
    margin: float  # of the score to the best other candidate


class Candidates:
    """Candidates by word, cached up to `CACHED` words.

    Args:
        lexicon: Known words.
        channel: Costs of confusions.
    """

    def __init__(self, lexicon: Lexicon, channel: Channel):
        self.lexicon, self.channel = lexicon, channel
        self._words: dict[str, list[Candidate]] = {}
        self._splits: dict[str, list[tuple[int, float]]] = {}
        self.surprises: dict[str, tuple[float, float]] = {}  # of the letter model
        letters = lexicon.letters.symbols
        self.alphabet = [c for c in letters if c.isalpha()]

    def clear(self) -> None:
        """Empty the cache, after the lexicon has changed."""
        self._words.clear()
        self._splits.clear()

    def words(self, unit: str) -> list[Candidate]:
        """Return candidates for a word as it was read, best first: all edits if it is not known, else cheap ones."""
        if unit not in self._words:
            if len(self._words) >= CACHED:
                self.clear()
                self.surprises.clear()
            self._words[unit] = self._find(unit)
        return self._words[unit]

    def _find(self, unit: str) -> list[Candidate]:
        folded, lexicon = fold(unit), self.lexicon
        if len(folded) > LONGEST:
            return []
        known = folded in lexicon.values
        frequency = lexicon.frequency(folded)
        if known and frequency > RARE + 6:
            return []
        singles = [edit for edit in self.channel.single_edits(unit, folded) if edit[0] <= CHEAP]
        entries: dict[str, tuple[float, int, bool]] = {}
        values = lexicon.values

        def add(word: str, cost: float, edits: int, free: bool) -> None:
            if word in values and word != folded and (word not in entries or cost < entries[word][0]):
                entries[word] = (cost, edits, free)

        repeated: dict[tuple[str, str], list[tuple[float, int, int, str]]] = {}
        for edit in singles:
            cost, start, end, right = edit
            add(folded[:start] + right + folded[end:], cost, 1, False)
            repeated.setdefault((folded[start:end], right), []).append(edit)
        if not known and len(folded) > 2:
            for (_, right), edits in repeated.items():
                if 1 < len(edits) <= 5:
                    self._repeat(folded, right, edits, add)
            self._pairs(folded, singles[:EDITS], add)
            if len(folded) > 3:
                self._free(folded, add)
        scored = []
        for word, (cost, edits, free) in entries.items():
            gain = lexicon.frequency(word)
            if known and gain - frequency < RATIO:
                continue
            scored.append((gain - cost, word, cost, edits, free))
        scored.sort(key=lambda entry: (-entry[0], entry[1]))
        best = [entry for entry in scored[: KEPT + 1] if entry[0] >= scored[0][0] - REACH]
        result = []
        for i, (score, word, cost, edits, free) in enumerate(best[:KEPT]):
            rival = best[1][0] if i == 0 and len(best) > 1 else best[0][0] if i else score - 2 * REACH
            result.append(Candidate(word, cost, edits, free, score, score - rival))
        return result

    @staticmethod
    def _repeat(folded: str, right: str, edits: list, add) -> None:
        """Add the words in which several places have the same confusion, as the f for long s in `poffeffion`."""
        for chosen in range(3, 1 << len(edits)):
            places = [edit for i, edit in enumerate(edits) if chosen >> i & 1]
            if len(places) < 2 or any(a[2] > b[1] for a, b in zip(places, places[1:], strict=False)):
                continue
            parts, position = [], 0
            for _, start, end, _ in places:
                parts += [folded[position:start], right]
                position = end
            add("".join(parts) + folded[position:], places[0][0] + REPEATED * (len(places) - 1), 2, False)

    @staticmethod
    def _pairs(folded: str, singles: list, add) -> None:
        for i, (cost, start, end, right) in enumerate(singles):
            for other_cost, other_start, other_end, other in singles[i + 1 :]:
                if cost + other_cost > PAIR:
                    break
                if end <= other_start:
                    word = folded[:start] + right + folded[end:other_start] + other + folded[other_end:]
                elif other_end <= start:
                    word = folded[:other_start] + other + folded[other_end:start] + right + folded[end:]
                else:
                    continue
                add(word, cost + other_cost, 2, False)

    def _free(self, folded: str, add) -> None:
        lost = self.channel.lost
        for i in range(len(folded) + 1):
            head, tail = folded[:i], folded[i:]
            for letter in self.alphabet:
                add(head + letter + tail, min(lost.get(letter, CHEAP), FREE + 3), 1, True)
                if tail:
                    add(head + letter + tail[1:], FREE + 3, 1, True)
            if tail:
                add(head + tail[1:], FREE, 1, True)

    def splits(self, folded: str) -> list[tuple[int, float]]:
        """Return up to two places at which a word that is not known divides into two known ones, best first."""
        if folded not in self._splits:
            self._splits[folded] = self._find_splits(folded)
        return self._splits[folded]

    def _find_splits(self, folded: str) -> list[tuple[int, float]]:
        lexicon = self.lexicon
        if folded in lexicon.values and lexicon.frequency(folded) > RARE or not 3 <= len(folded) <= LONGEST:
            return []
        places = []
        for i in range(1, len(folded)):
            left, right = folded[:i], folded[i:]
            if left in lexicon.values and right in lexicon.values:
                score = lexicon.frequency(left) + lexicon.frequency(right)
                short = min(i, len(folded) - i)
                if lexicon.frequency(left if i == short else right) > (
                    8.0 if short < 3 else 3.0 if short == 3 else 0.0
                ):
                    places.append((score, i))
        places.sort(key=lambda place: (-place[0], place[1]))
        return [(i, score) for score, i in places[:2]]


def is_accent_change(before: str, after: str) -> bool:
    """Return whether two folded words differ in accents only."""
    return plain(before) == plain(after)


SPELLINGS = (
    *(("\xdf", "ss"), ("y", "i"), ("j", "i"), ("v", "u"), ("w", "u"), ("c", "t"), ("k", "c"), ("z", "s"), ("ph", "f")),
    *(("th", "t"), ("oi", "ai"), ("cq", "q"), ("ct", "t"), ("ae", "e"), ("oe", "e"), ("h", "")),
)


def is_spelling_change(before: str, after: str) -> bool:
    """Return whether two folded words may be an old and a new spelling of one: y and i, u and v, c and t, th and t."""
    old, new = plain(before), plain(after)
    for pair in SPELLINGS:
        old, new = old.replace(*pair), new.replace(*pair)
    return _single_letters(old) == _single_letters(new)


def _single_letters(word: str) -> str:
    return "".join(c for i, c in enumerate(word) if not i or word[i - 1] != c)
