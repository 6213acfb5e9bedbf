"""Offline toxicity scorer: word lists of groups, insults and harm in eight languages, and rules on their combination.

It needs no model and no download: `toxicity.yaml` lists the words, and a few rules decide when a sentence with them is
hostile. It detects explicit hostility (insults, contempt, degradation, denied rights, calls for violence against a
group) and ignores sentences that deny or denounce it. It misses irony, allusion and obfuscated spelling. REPORT.md has
its accuracy.
"""

import re
from bisect import bisect_left, bisect_right
from functools import cache
from pathlib import Path

import yaml

from ..common.normalization import normalize
from .toxicity_axes import AXES, Scores, combine, passages

WORDS = Path(__file__).with_name("toxicity.yaml")
KINDS = "hate base deed harm be must not good they you all counter gore".split()
GROUPS = AXES[:4]
FALLBACK = "en"  # for other languages and source code
TOKEN = re.compile(r"""[^\W\d_]+|[.!?;"\u201c\u201d\u201e\u00ab\u00bb]|\n(?=\n)""")
STOPS = frozenset(".!?;\n")  # a blank line ends a sentence too
QUOTES = frozenset('"\u201c\u201d\u201e\u00ab\u00bb')
# The kinds of a word are bits: four groups, four kinds of insult, then KINDS.
BITS = {axis: 1 << i for i, axis in enumerate(GROUPS)}
BITS |= {f"{axis}_slur": 16 << i for i, axis in enumerate(GROUPS)}
BITS |= {kind: 256 << i for i, kind in enumerate(KINDS)}
HATE, BASE, DEED, HARM, BE, MUST, NOT, GOOD, THEY, YOU, ALL, COUNTER, GORE = (BITS[kind] for kind in KINDS)
STARTS_PHRASE, QUOTED = 256 << len(KINDS), 512 << len(KINDS)
ANY_GROUP, ANY_SLUR = 15, 240
TRIGGERS = ANY_GROUP | ANY_SLUR | HARM | GORE  # only sentences with one of these are analysed
VERB_LAST = {"de", "nl", "la"}  # the object of hate may precede the verb
NEAR, SPAN, REACH = 3, 8, 12  # maximum distances in words: adjacent; within a predicate; within a demand
GORE_COUNTS = (6, 12)  # distinct words of graphic violence in a passage for levels 1 and 2


def endings(entry: str) -> list[str]:
    """Return the forms of an entry: `hat{e|ed}` is hate and hated. An entry may have several braces."""
    before, brace, rest = entry.partition("{")
    if not brace:
        return [entry]
    inside, _, after = rest.partition("}")
    return [before + ending + tail for ending in inside.split("|") for tail in endings(after)]


@cache
def _entries() -> dict[str, dict[str, str]]:
    return yaml.safe_load(WORDS.read_text(encoding="utf-8"))


@cache
def lists(language: str) -> tuple[dict[str, int], dict[str, int], dict[str, list[tuple[list[str], int]]]]:
    """Return a language's words with their bits, its trigger words (of a phrase, the longest word), and its phrases by
    their first word."""
    words: dict[str, int] = {}
    triggers: dict[str, int] = {}
    phrases: dict[str, list[tuple[list[str], int]]] = {}
    for kind, entries in _entries().get(language, _entries()[FALLBACK]).items():
        for entry in entries.split(","):
            for form in endings(entry.strip()):
                first, *rest = form.split()
                if rest:
                    phrases.setdefault(first, []).append((rest, BITS[kind]))
                words[first] = words.get(first, 0) | (STARTS_PHRASE if rest else BITS[kind])
                if BITS[kind] & TRIGGERS:
                    longest = max(first, *rest, key=len) if rest else first
                    triggers[longest] = triggers.get(longest, 0) | BITS[kind]
    return words, triggers, phrases


def _hits(tokens: list[str], start: int, end: int, quotes: list[int], language: str) -> list[tuple[int, int]]:
    """Return position and bits of the listed words of one sentence, with `QUOTED` for words in quotation marks."""
    words, _, phrases = lists(language)
    hits = []
    for i in range(start, end):
        bits = words.get(tokens[i])
        if bits is None:
            continue
        if bits & STARTS_PHRASE:
            for rest, meaning in phrases[tokens[i]]:
                if tokens[i + 1 : i + 1 + len(rest)] == rest:
                    bits |= meaning
            bits &= ~STARTS_PHRASE
        if bits:
            hits.append((i, bits | QUOTED if bisect_left(quotes, i) % 2 else bits))
    return hits


def _groups(bits: int) -> int:
    return bits & ANY_GROUP | (bits & ANY_SLUR) >> 4


class _Sentence:
    """Rules on the listed words of one sentence. Pronouns refer to `previous_groups` if it names no group.

    A rule looks at the words within its distance only, so that a sentence takes time in proportion to its length.
    """

    def __init__(self, hits: list[tuple[int, int]], previous_groups: int, language: str) -> None:
        self.hits = hits
        self.scores = [0] * 5
        self.groups = {i: _groups(bits) for i, bits in hits if _groups(bits)}
        self.named = 0
        for groups in self.groups.values():
            self.named |= groups
        self.meant = self.named or previous_groups
        self.verb_last = language in VERB_LAST
        self.places: dict[int, list[int]] = {}

    def at(self, kind: int) -> list[int]:
        if kind not in self.places:
            self.places[kind] = [i for i, bits in self.hits if bits & kind]
        return self.places[kind]

    def near(self, kind: int, first: int, last: int) -> list[int]:
        """Return the words of a kind from one position to another, both included."""
        places = self.at(kind)
        return places[bisect_left(places, first) : bisect_right(places, last)]

    def groups_near(self, first: int, last: int) -> list[tuple[int, int]]:
        return [(g, self.groups[g]) for g in self.near(ANY_GROUP | ANY_SLUR, first, last)]

    def pronouns_near(self, first: int, last: int) -> list[tuple[int, int]]:
        return [(p, self.meant) for p in self.near(THEY, first, last)] if self.meant else []

    def denied(self, first: int, last: int) -> bool:
        return bool(self.near(NOT, first, last - 1))

    def raise_to(self, level: int, groups: int, quoted: int) -> None:
        """Raise the scores of groups to a level; a quotation counts at most 2."""
        for axis in range(4):
            if groups >> axis & 1:
                self.scores[axis] = max(self.scores[axis], min(level, 2) if quoted else level)

    def despised(self, h: int, quoted: int) -> None:
        """Match "I hate them"; in some languages, "them I hate"."""
        if self.denied(h - NEAR, h) or self.near(YOU, h - 2, h - 1):
            return  # negated, or "you hate"
        for _, groups in self.groups_near(h - SPAN if self.verb_last else h + 1, h + SPAN):
            self.raise_to(3, groups, quoted)
        for p, groups in self.pronouns_near(h - 2, h + 2):
            if p != h:
                self.raise_to(3, groups, quoted)

    def degraded(self, b: int, quoted: int) -> None:
        """Match "they are vermin", "vermin like you" and "all those vermin"."""
        reach = b - SPAN - 2, b + SPAN + 2
        for g, groups in self.groups_near(*reach) + self.pronouns_near(*reach):
            first, last = min(g, b), max(g, b)
            if g == b or self.denied(first - 2 * NEAR, b):
                continue
            named = self.groups.get(g) == groups
            stated = 0 < b - g <= SPAN and self.near(BE, g + 1, b - 1)
            around = [a for a in self.near(ALL | YOU, first - NEAR, last + NEAR) if a not in (g, b)]
            marked = last - first <= NEAR and around
            if stated or (named and (marked or last - first == 1)):
                self.raise_to(3, groups, quoted)
            elif named:
                self.raise_to(1, groups, quoted)

    def degraded_by_predicate(self, d: int, quoted: int) -> None:
        """Match "they make me sick" and "they do not matter"."""
        for _, groups in self.groups_near(d - SPAN, d - 1) + self.pronouns_near(d - SPAN, d - 1):
            self.raise_to(3, groups, quoted)

    def harmed(self, h: int, quoted: int) -> None:
        """Match "they should be killed", "kill all of them" and, to an individual, "I will kill you"."""
        for g, groups in self.groups_near(h - REACH, h + REACH) + self.pronouns_near(h - 2, h + 2):
            first, last = min(g, h), max(g, h)
            addressed = self.verb_last or self.near(YOU, g + 1, g + NEAR)  # "women like you": any order
            demanded = self.near(MUST, last - REACH, first + REACH if addressed else min(first + REACH, h - 1))
            wholesale = 0 < g - h <= NEAR + 1 and self.near(ALL, h + 1, g)
            if (demanded or wholesale) and not self.denied(first - 2 * NEAR, h):
                self.raise_to(3, groups, quoted)
                self.scores[4] = max(self.scores[4], 2 if quoted else 3)
        if self.near(MUST, h - 5, h - 1) and self.near(YOU, h + 1, h + 2):
            self.scores[4] = max(self.scores[4], 1 if quoted else 2)

    def refused(self, n: int, quoted: int) -> None:
        """Match "they are not human", "they should not have rights" and "none of them is good"."""
        for g, groups in self.groups_near(n - SPAN, n + SPAN):
            first, last = min(g, n), max(g, n)
            if self.near(GOOD, last + 1, last + SPAN) and self.near(BE | MUST, first + 1, last + NEAR + 1):
                self.raise_to(3, groups, quoted)

    def score(self) -> list[int]:
        """Return the sentence's five scores."""
        denounced = bool(self.at(COUNTER))
        rules = (
            (HATE, self.despised),
            (BASE, self.degraded),
            (DEED, self.degraded_by_predicate),
            (HARM, self.harmed),
            (NOT, self.refused),
        )
        target = YOU | ALL | BE | BASE | HATE | HARM | MUST
        for i, bits in self.hits:
            quoted = bits & QUOTED
            if bits & ANY_SLUR:
                targeted = self.near(target, i - SPAN, i - 1) or self.near(target, i + 1, i + SPAN)
                self.raise_to(1 if denounced else 3 if targeted else 2, (bits & ANY_SLUR) >> 4, quoted)
            if denounced:
                continue
            for kind, rule in rules:
                if bits & kind:
                    rule(i, quoted)
        return self.scores


def score_passage(text: str, language: str) -> Scores:
    """Return the scores of one passage: per axis, the maximum over its sentences."""
    tokens = TOKEN.findall(normalize(text).text.lower())
    triggers = lists(language)[1]
    hits = [i for i, token in enumerate(tokens) if token in triggers]
    graphic = len({tokens[i] for i in hits if triggers[tokens[i]] & GORE})
    highest = [0, 0, 0, 0, sum(graphic >= count for count in GORE_COUNTS)]
    hits = [i for i in hits if triggers[tokens[i]] & ~GORE]
    if not hits:
        return Scores(*highest)
    stops = [-1, *(i for i, token in enumerate(tokens) if token in STOPS), len(tokens)]
    breaks = [-1, *(i for i in stops[1:-1] if tokens[i] == "\n")]
    quotes = [i for i, token in enumerate(tokens) if token in QUOTES]
    # Sentence n ends at stops[n]. The sentence after a hit is analysed too, for its pronouns.
    with_hit = {bisect_left(stops, i) for i in hits}
    groups, last = 0, -1
    for n in sorted(with_hit | {n + 1 for n in with_hit if n + 1 < len(stops)}):
        opened = bisect_left(quotes, breaks[bisect_left(breaks, stops[n]) - 1])  # a paragraph closes quotations
        words = _hits(tokens, stops[n - 1] + 1, stops[n], quotes[opened:], language)
        sentence = _Sentence(words, groups if last == n - 1 else 0, language)
        highest = [max(pair) for pair in zip(highest, sentence.score(), strict=True)]
        groups, last = sentence.named, n
    return Scores(*highest)


class LexiconScorer:
    """Toxicity scorer by word lists and rules."""

    name = "lexicon"

    def score(self, texts: list[str], languages: list[str]) -> list[Scores]:
        """Return the scores of each text; a language without word lists uses those of English."""
        return [
            combine([score_passage(passage, language) for passage in passages(text)])
            for text, language in zip(texts, languages, strict=True)
        ]
