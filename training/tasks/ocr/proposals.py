"""Proposed changes of an OCR text, each with the features from which the gate judges it."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from .candidates import Candidate, Candidates, is_accent_change, is_spelling_change
from .channel import Channel
from .lexicon import Lexicon
from .units import HYPHEN, LONG_S, OLD_UMLAUT, Unit, fold, recase, units

FEATURES = (
    "form", "cost", "edits", "free", "margin", "rank", "frequency_before", "frequency_after", "gain",
    "letters_before", "worst_before", "letters_after", "worst_after", "count_before", "count_after", "length",
    "length_after", "capital", "capitals", "symbols", "capital_word", "first", "last", "accent", "spelling",
    "left", "right", "gap_left", "gap_right", "line_start", "line_end", "unknown", "spelled", "plausible", "words",
    "gap_share", "next_capital",
)  # fmt: skip
JUDGED = (
    "gain", "word_gain", "right_gain", "word_before", "word_after", "right_before", "right_after", "tokens_before",
    "tokens_after",
)  # fmt: skip
FORMS = {"word": 0, "accent": 1, "split": 2, "merge": 3, "divided": 4, "gap": 5, "drop": 6, "mark": 7}
LONGEST_GAP = 12  # characters
LINE = 160  # mean characters of a line above which it is none of a page
LETTERS, CAPITALS = 0.7, 0.5  # minimum fraction of letters in prose, and maximum fraction of capitals among them
SEVERAL = 3  # long s or old vowels in a document that writes them
UNSEEN = 10.0  # bits of a reading of punctuation that the table lacks
KEPT_GAPS = 3  # proposals for one gap
UNACCENTED = 0.001  # fraction of words with accents below which a language has none
MARKS = {"!": "lti1fI|", "?": "27Pp1"}  # what is read where the mark at the end of a sentence stands
COMMON = 6.0  # log2 of the frequency per million of words that are not joined to others
SPACES = re.compile(r"\s+")
DASHED = re.compile(r"[,;:.]\s?[-\u2010-\u2015]")  # as in print of the 19th century
EARLY = re.compile(r"\b[Vv][np]")  # vnd, vpon: v for u at the beginning of a word, as in early modern print
LONG_S_INSIDE = re.compile(r"s(?=[^\W\d_])")


class Proposal(NamedTuple):
    """A possible change of a text: place, replacement, kind (of `changes.KINDS`), and features."""

    start: int
    end: int
    before: str
    after: str
    kind: str
    features: list[float]


class Resources(NamedTuple):
    """Lexicon, channel and cached candidates of a language."""

    lexicon: Lexicon
    channel: Channel
    candidates: Candidates


class Document:
    """An OCR text with its words, and the properties of the whole text.

    Args:
        text: OCR text.
        resources: Those of its language.
    """

    def __init__(self, text: str, resources: Resources):
        self.text, self.resources = text, resources
        lexicon = resources.lexicon
        self.units = units(text)
        self.counts = Counter(unit.folded for unit in self.units)
        self.frequencies = [lexicon.frequency(unit.folded) for unit in self.units]
        self.signs = [not any(map(str.isalpha, unit.text)) for unit in self.units]  # what may be a letter
        self.known = [unit.folded in lexicon.values or sign for unit, sign in zip(self.units, self.signs, strict=True)]
        self.long_s, self.old_vowels = text.count(LONG_S) >= SEVERAL, text.count(OLD_UMLAUT) >= SEVERAL
        self.accented = sum(
            not unit.folded.isascii() and known for unit, known in zip(self.units, self.known, strict=True)
        )
        self.unaccented = lexicon.accented < UNACCENTED  # the language
        letters = [character for character in text if character.isalpha()]
        self.prose = len(letters) >= LETTERS * len(SPACES.sub("", text)) and (
            sum(map(str.isupper, letters)) <= CAPITALS * len(letters)
        )
        self.early = EARLY.search(text) is not None
        self.divided = self._divided()
        unknown = {unit.folded: unit for unit, known in zip(self.units, self.known, strict=True) if not known}
        for i, joined in self.divided.items():
            if joined in lexicon.values:
                unknown.pop(self.units[i].folded, None)
                unknown.pop(self.units[i + 1].folded, None)
        distinct = max(1, len(self.counts))
        self.unknown = len(unknown) / distinct
        spelled = plausible = 0
        limit = lexicon.letters.plausible
        for unit in unknown.values():
            plausible += len(unit.folded) > 2 and self._surprise(unit.folded)[0] <= limit
            entries = resources.candidates.words(unit.text)
            spelled += bool(entries) and is_spelling_change(unit.folded, entries[0].word)
        self.spelled, self.plausible = spelled / distinct, plausible / distinct

    def gap(self, i: int) -> str:
        """Return the characters between word i - 1 and word i, to the start and end of the text."""
        start = self.units[i - 1].end if i else 0
        return self.text[start : self.units[i].start if i < len(self.units) else len(self.text)]

    def _divided(self) -> dict[int, str]:
        """Return the joined word by the number of its first half, for words divided at line ends."""
        entries = {}
        for i in range(len(self.units) - 1):
            gap = self.gap(i + 1)
            if HYPHEN.fullmatch(gap):
                first, second = self.units[i], self.units[i + 1]
                joined = first.folded + second.folded
                if joined in self.resources.lexicon.values or not (self.known[i] and self.known[i + 1]):
                    entries[i] = joined
        return entries

    def proposals(self) -> list[Proposal]:
        """Return all proposed changes, in the order of the text."""
        result: list[Proposal] = []
        skipped = set()
        for i, unit in enumerate(self.units):
            if i in self.divided:
                skipped |= {i, i + 1}
                if self.divided[i] not in self.resources.lexicon.values:
                    result += self._divided_words(i)
            if i not in skipped:
                result += self._words(i, unit)
                result += self._splits(i, unit)
                result += self._marks(i, unit)
            if i + 1 < len(self.units) and i not in self.divided:
                result += self._merges(i)
                result += self._gaps(i + 1)
            result += self._drops(i, unit)
        if self.units:
            result += self._gaps(0) + self._gaps(len(self.units))
        return result

    def _written(self, word: str, unit: str) -> str:
        """Return a candidate in the spelling of the document: case, long s, old vowels."""
        word = recase(word, unit, self.resources.lexicon.is_capitalised(word))
        if self.long_s:
            word = LONG_S_INSIDE.sub(LONG_S, word)
        if self.old_vowels:
            for new, old in (("\xe4", "a"), ("\xf6", "o"), ("\xfc", "u")):
                word = word.replace(new, old + OLD_UMLAUT)
        return word

    def _in_number(self, i: int) -> bool:
        """Return whether a word is the digit of a number, as in 1,000."""
        start, end = self.units[i].start, self.units[i].end
        return self.signs[i] and any(
            c.isdigit() for c in self.text[max(0, start - 2) : start] + self.text[end : end + 2]
        )

    def _words(self, i: int, unit: Unit) -> list[Proposal]:
        if self._in_number(i):
            return []
        result = []
        for rank, candidate in enumerate(self.resources.candidates.words(unit.text)):
            after = self._written(candidate.word, unit.text)
            if after == unit.text:
                continue
            accent = is_accent_change(unit.folded, candidate.word)
            features = self._features(i, i, "accent" if accent else "word", candidate, rank, unit.folded)
            kind = "accent" if accent else "word"
            result.append(Proposal(unit.start, unit.end, unit.text, after, kind, features))
        return result

    def _divided_words(self, i: int) -> list[Proposal]:
        first, second, gap = self.units[i], self.units[i + 1], self.gap(i + 1)
        read = first.text + second.text
        result = []
        for rank, candidate in enumerate(self.resources.candidates.words(read)):
            after, place = self._written(candidate.word, read), len(first.text)
            place = _mapped(read, after, place)
            changed = after[:place] + gap + after[place:]
            features = self._features(i, i + 1, "divided", candidate, rank, self.divided[i])
            accent = is_accent_change(self.divided[i], candidate.word)
            before = self.text[first.start : second.end]
            if changed != before and 0 < place < len(after):
                result.append(
                    Proposal(first.start, second.end, before, changed, "accent" if accent else "word", features)
                )
        return result

    def _splits(self, i: int, unit: Unit) -> list[Proposal]:
        if len(unit.text) != len(unit.folded):
            return []
        result, previous = [], 0.0
        for rank, (place, score) in enumerate(self.resources.candidates.splits(unit.folded)):
            after = unit.text[:place] + " " + unit.text[place:]
            lexicon = self.resources.lexicon
            halves = unit.folded[:place], unit.folded[place:]
            frequency = min(map(lexicon.frequency, halves))
            candidate = Candidate(halves[0], score, min(place, len(unit.folded) - place), False, 0, score - previous)
            features = self._features(i, i, "split", candidate, rank, unit.folded, frequency=frequency)
            result.append(Proposal(unit.start, unit.end, unit.text, after, "split", features))
            previous = score
        return result

    def _merges(self, i: int) -> list[Proposal]:
        first, second = self.units[i], self.units[i + 1]
        joined = first.folded + second.folded
        if not self.gap(i + 1).isspace() or joined not in self.resources.lexicon.values:
            return []
        if min(self.frequencies[i], self.frequencies[i + 1]) > COMMON or second.text[0].isupper():
            return []
        before = self.text[first.start : second.end]
        frequency = max(self.frequencies[i], self.frequencies[i + 1])
        candidate = Candidate(joined, frequency, 1, "\n" in before, 0, 0)
        features = self._features(i, i + 1, "merge", candidate, 0, first.folded, second.folded)
        return [Proposal(first.start, second.end, before, first.text + second.text, "merge", features)]

    def _gaps(self, i: int) -> list[Proposal]:
        """Return proposals for the punctuation before word i."""
        gap = self.gap(i)
        inner = 0 < i < len(self.units)
        if len(gap) > LONGEST_GAP or not gap.strip() or any(c.isalnum() for c in gap) or DASHED.search(gap):
            return []
        if any(self.signs[max(0, i - 1) : i + 1]):  # a number
            return []
        short = gap_key(gap, i == 0, i == len(self.units))
        table = self.resources.channel.gaps.get(short, {})
        options = {right: share for right, share in table.items() if right != short}
        for position, character in enumerate(short):  # without one of its characters
            if not character.isspace() and character not in "\x02\x03":
                fewer = SPACES.sub(" ", short[:position] + short[position + 1 :])
                for right in {fewer, fewer if " " in fewer else fewer + " "}:
                    options.setdefault(right, 0.001)
        result = []
        start = self.units[i - 1].end if i else 0
        ranked = sorted(options.items(), key=lambda item: (-item[1], item[0]))[:KEPT_GAPS]
        for rank, (right, share) in enumerate(ranked):
            written = right.strip("\x02\x03")
            if not inner:
                written = written.strip(" ") if i else written.lstrip(" ")
            after = _with_spaces(written, gap)
            if after is None or after == gap or (inner and not after):
                continue
            candidate = Candidate("", -np.log2(share), Levenshtein.distance(short, right), share == 0.001, 0, 0)
            lone = table.get(short, 0.0 if table else -1.0)
            features = self._features(i - 1, i, "gap", candidate, rank, short, right, share=lone)
            result.append(Proposal(start, start + len(gap), gap, after, "punctuation", features))
        return result

    def _drops(self, i: int, unit: Unit) -> list[Proposal]:
        """Return the removal of a short word that was read at the border of a line where nothing is printed."""
        if len(unit.text) > 2 or self.frequencies[i] > 11.5 or not 0 < i < len(self.units) - 1 or unit.text.isdigit():
            return []
        left, right = self.gap(i), self.gap(i + 1)
        if "\n" not in left + right or any(c.isdigit() for c in left + right):
            return []
        start, end = self.units[i - 1].end, self.units[i + 1].start
        candidate = Candidate("", len(left.strip()), len(right.strip()), False, 0, 0)
        features = self._features(i, i, "drop", candidate, 0, unit.folded)
        keep = re.match(r"[^\s\w]*", left)[0]
        return [Proposal(start, end, self.text[start:end], keep + "\n", "punctuation", features)]

    def _marks(self, i: int, unit: Unit) -> list[Proposal]:
        """Return marks of exclamation and question for the last letter of a word, or a letter alone."""
        if self._in_number(i):
            return []
        if len(unit.text) == 1 and i and self.gap(i) == " ":
            start, stem = self.units[i - 1].end, self.units[i - 1].folded
        elif not self.known[i] and unit.folded[:-1] in self.resources.lexicon.values:
            start, stem = unit.start, unit.folded[:-1]
        else:
            return []
        before, result = self.text[start : unit.end], []
        for rank, (mark, readings) in enumerate(MARKS.items()):
            if unit.text[-1] in readings:
                features = self._features(i, i, "mark", Candidate(stem, 0, 1, False, 0, 0), rank, unit.folded)
                after = before[:-1].rstrip() + mark
                result.append(Proposal(start, unit.end, before, after, "punctuation", features))
        return result

    def _features(
        self, i: int, j: int, form: str, candidate: Candidate, rank: int, before: str, other: str = "",
        frequency: float | None = None, share: float = -1.0,
    ) -> list[float]:  # fmt: skip
        """Return the features of a change from word i to word j."""
        lexicon, letters = self.resources.lexicon, self._surprise
        after = candidate.word
        is_word = form in ("word", "accent", "divided")
        read = self.text[self.units[max(i, 0)].start : self.units[min(j, len(self.units) - 1)].end]
        left, right = i - (form != "gap"), j + (form != "gap")
        old = lexicon.frequency(before) if form != "gap" else 0.0
        new = frequency if frequency is not None else lexicon.frequency(after) if after else 0.0
        if form == "merge":
            old = min(self.frequencies[i], self.frequencies[j])
        letters_before = letters(before) if form != "gap" else (0.0, 0.0)
        letters_after = letters(after) if after else (0.0, 0.0)
        gap_left, gap_right = self.gap(max(left, -1) + 1), self.gap(min(right, len(self.units)))
        if form == "gap":
            gap_left, gap_right = before, other
        capital = self.units[min(j, len(self.units) - 1)].text[0].isupper()
        return [
            FORMS[form], candidate.cost, candidate.edits, candidate.free, candidate.margin, rank, old, new, new - old,
            *letters_before, *letters_after, self.counts[before], self.counts[after] if after else -1.0,
            len(before), len(after) if after else len(other), read[:1].isupper(), read.isupper(),
            sum(not c.isalpha() for c in read), lexicon.is_capitalised(after),
            is_word and before[:1] == after[:1], is_word and before[-1:] == after[-1:],
            is_word and is_accent_change(before, after), is_word and is_spelling_change(before, after),
            self.frequencies[left] if 0 <= left < len(self.units) else 15.0,
            self.frequencies[right] if 0 <= right < len(self.units) else 15.0,
            _gap_code(gap_left), _gap_code(gap_right), "\n" in gap_left, "\n" in gap_right,
            self.unknown, self.spelled, self.plausible, len(self.units), share, capital,
        ]  # fmt: skip

    def _surprise(self, word: str) -> tuple[float, float]:
        cache = self.resources.candidates.surprises
        if word not in cache:
            cache[word] = self.resources.lexicon.letters.surprise(word)
        return cache[word]


def in_paragraphs(text: str) -> bool:
    """Return whether the lines of the page are joined."""
    return len(text) > LINE * (text.count("\n") + 1)


GAP_CODES = {" ": 0, ", ": 1, ". ": 2, "; ": 3, ": ": 4, "": 5, ".": 6, ",": 7, "-": 8, "'": 9, "\u2019": 9,
             "! ": 10, "? ": 11, " - ": 12, " \u2014 ": 12, " \u2013 ": 12}  # fmt: skip


def _gap_code(gap: str) -> int:
    """Return a number for a gap: usual ones have their own, others count their characters."""
    short = SPACES.sub(" ", gap)
    return GAP_CODES.get(short, 16 + min(len(short), 8))


def gap_key(gap: str, first: bool, last: bool) -> str:
    """Return a gap as the channel's table has it: one space for whitespace, marks at both ends of the text."""
    return ("\x02" if first else "") + SPACES.sub(" ", gap) + ("\x03" if last else "")


def _with_spaces(right: str, gap: str) -> str | None:
    """Return punctuation with the line end or spaces of the gap that it replaces; None if it has no place for them."""
    entries = SPACES.findall(gap)
    breaks = [spaces for spaces in entries if "\n" in spaces]
    if not breaks:
        return right
    if " " not in right:
        return None
    place = right.rfind(" ") if gap.rstrip(" ").endswith("\n") else right.find(" ")
    return right[:place] + breaks[0] + right[place + 1 :]


def _mapped(read: str, after: str, place: int) -> int:
    """Return the place in a corrected word that belongs to a place in the word that was read."""
    for operation in Levenshtein.opcodes(read, after):
        if operation.src_start <= place <= operation.src_end and operation.src_end > operation.src_start:
            return min(operation.dest_start + place - operation.src_start, operation.dest_end)
    return place


def rows(proposals: list[Proposal]) -> np.ndarray:
    """Return the features of proposals, (proposals, len(FEATURES))."""
    return np.array([proposal.features for proposal in proposals], dtype=np.float64).reshape(-1, len(FEATURES))


def open_resources(lexicon: Lexicon, channel: Channel) -> Resources:
    """Return the resources of a language."""
    return Resources(lexicon, channel, Candidates(lexicon, channel))


__all__ = ["FEATURES", "Document", "Proposal", "Resources", "fold", "gap_key", "open_resources", "rows"]
