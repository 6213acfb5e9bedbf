"""The offline toxicity scorer: words of groups, insults and harm in eight languages, and how they stand together.

No model and no download: `toxicity.yaml` names the words, a few rules say when a sentence with them is hostile. It
knows what is said outright (insults, contempt, degradation, denied rights, calls for violence against a group) and
lets pass what denies or denounces it. Irony, allusion and disguised spelling escape it; REPORT.md has the figures.
"""

import re
from bisect import bisect_left
from functools import cache
from pathlib import Path

import yaml

from .toxicity_axes import AXES, Scores, combine, passages

WORDS = Path(__file__).with_name("toxicity.yaml")
KINDS = "hate base deed harm be must not good they you all counter gore".split()
GROUPS = AXES[:4]
FALLBACK = "en"  # for text in no language of ours: source code, and what curation is about to refuse
TOKEN = re.compile(r"""[^\W\d_]+|[.!?;"\u201c\u201d\u201e\u00ab\u00bb]|\n(?=\n)""")
STOPS = frozenset(".!?;\n")  # a blank line ends a sentence too
QUOTES = frozenset('"\u201c\u201d\u201e\u00ab\u00bb')
# A word's kinds are bits: the four groups, the four kinds of insult, then KINDS; the last opens a phrase.
BITS = {axis: 1 << i for i, axis in enumerate(GROUPS)}
BITS |= {f"{axis}_slur": 16 << i for i, axis in enumerate(GROUPS)}
BITS |= {kind: 256 << i for i, kind in enumerate(KINDS)}
HATE, BASE, DEED, HARM, BE, MUST, NOT, GOOD, THEY, YOU, ALL, COUNTER, GORE = (BITS[kind] for kind in KINDS)
OPENS, QUOTED = 256 << len(KINDS), 512 << len(KINDS)
ANY_GROUP, ANY_SLUR = 15, 240
TELLING = ANY_GROUP | ANY_SLUR | HARM | GORE  # what a passage is searched for first
VERB_LAST = {"de", "nl", "la"}  # where what is hated may stand before the verb
NEAR, SPAN, REACH = 3, 8, 12  # words: beside; within a predicate; within a sentence's one demand
GORE_COUNTS = (6, 12)  # different words of graphic violence in a passage that make it 1 and 2


def endings(entry: str) -> list[str]:
    """The forms of an entry: `hat{e|ed}` is hate and hated; braces may come more than once."""
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
    """A language's words with their bits; those that make a sentence worth a look, of a phrase its longest; and its
    phrases by their first word."""
    words: dict[str, int] = {}
    telling: dict[str, int] = {}
    phrases: dict[str, list[tuple[list[str], int]]] = {}
    for kind, entries in _entries().get(language, _entries()[FALLBACK]).items():
        for entry in entries.split(","):
            for form in endings(entry.strip()):
                first, *rest = form.split()
                if rest:
                    phrases.setdefault(first, []).append((rest, BITS[kind]))
                words[first] = words.get(first, 0) | (OPENS if rest else BITS[kind])
                if BITS[kind] & TELLING:
                    rarest = max(first, *rest, key=len) if rest else first
                    telling[rarest] = telling.get(rarest, 0) | BITS[kind]
    return words, telling, phrases


def _hits(tokens: list[str], start: int, end: int, quotes: list[int], language: str) -> list[tuple[int, int]]:
    """Position and bits of the listed words of one sentence; in quotation marks they have `QUOTED` too."""
    words, _, phrases = lists(language)
    hits = []
    for i in range(start, end):
        bits = words.get(tokens[i])
        if bits is None:
            continue
        if bits & OPENS:
            for rest, meaning in phrases[tokens[i]]:
                if tokens[i + 1 : i + 1 + len(rest)] == rest:
                    bits |= meaning
            bits &= ~OPENS
        if bits:
            hits.append((i, bits | QUOTED if bisect_left(quotes, i) % 2 else bits))
    return hits


def _groups(bits: int) -> int:
    return bits & ANY_GROUP | (bits & ANY_SLUR) >> 4


class _Sentence:
    """The rules, on the listed words of one sentence. `before`: the groups of the sentence before, for pronouns."""

    def __init__(self, hits: list[tuple[int, int]], before: int, language: str) -> None:
        self.hits = hits
        self.scores = [0] * 5
        self.groups = [(i, _groups(bits)) for i, bits in hits if _groups(bits)]
        self.named = 0
        for _, groups in self.groups:
            self.named |= groups
        meant = self.named or before
        self.pronouns = [(i, meant) for i in self.at(THEY)] if meant else []
        self.verb_last = language in VERB_LAST

    def at(self, kind: int) -> list[int]:
        return [i for i, bits in self.hits if bits & kind]

    def denied(self, first: int, last: int) -> bool:
        return any(first <= n < last for n in self.at(NOT))

    def raise_to(self, level: int, groups: int, quoted: int) -> None:
        """What is quoted is reported, not said: 2 at most."""
        for axis in range(4):
            if groups >> axis & 1:
                self.scores[axis] = max(self.scores[axis], min(level, 2) if quoted else level)

    def despised(self, h: int, quoted: int) -> None:
        """I hate them; in some languages, them I hate."""
        if self.denied(h - NEAR, h) or any(0 < h - y <= 2 for y in self.at(YOU)):
            return  # not I who hate, or you who do
        for g, groups in self.groups:
            if 0 < g - h <= SPAN or (self.verb_last and abs(g - h) <= SPAN):
                self.raise_to(3, groups, quoted)
        for p, groups in self.pronouns:
            if 0 < abs(p - h) <= 2:
                self.raise_to(3, groups, quoted)

    def degraded(self, b: int, quoted: int) -> None:
        """They are vermin; vermin like you; all those vermin."""
        for g, groups in self.groups + self.pronouns:
            first, last = min(g, b), max(g, b)
            if g == b or last - first > SPAN + 2 or self.denied(first - 2 * NEAR, b):
                continue
            named = (g, groups) in self.groups
            said = 0 < b - g <= SPAN and any(g < j < b for j in self.at(BE))
            around = [a for a in self.at(ALL | YOU) if first - NEAR <= a <= last + NEAR and a not in (g, b)]
            marked = last - first <= NEAR and around
            if said or (named and (marked or last - first == 1)):
                self.raise_to(3, groups, quoted)
            elif named:
                self.raise_to(1, groups, quoted)

    def told(self, d: int, quoted: int) -> None:
        """They make me sick; they do not matter."""
        for g, groups in self.groups + self.pronouns:
            if 0 < d - g <= SPAN:
                self.raise_to(3, groups, quoted)

    def harmed(self, h: int, quoted: int) -> None:
        """They should be killed; kill all of them; and, to an individual, I will kill you."""
        wished = self.at(MUST)
        for g, groups in self.groups + [(p, meant) for p, meant in self.pronouns if abs(p - h) <= 2]:
            addressed = self.verb_last or any(0 < y - g <= NEAR for y in self.at(YOU))  # women like you: in any order
            demanded = any(max(h, g, m) - min(h, g, m) <= REACH and (m < h or addressed) for m in wished)
            wholesale = 0 < g - h <= NEAR + 1 and any(h < a <= g for a in self.at(ALL))
            if (demanded or wholesale) and not self.denied(min(g, h) - 2 * NEAR, h):
                self.raise_to(3, groups, quoted)
                self.scores[4] = max(self.scores[4], 2 if quoted else 3)
        if any(0 < h - m <= 5 for m in self.at(MUST)) and any(0 < y - h <= 2 for y in self.at(YOU)):
            self.scores[4] = max(self.scores[4], 1 if quoted else 2)

    def refused(self, n: int, quoted: int) -> None:
        """They are not human; they should not have rights; none of them is good."""
        good, verbs = self.at(GOOD), self.at(BE | MUST)
        for g, groups in self.groups:
            first, last = min(g, n), max(g, n)
            if last - first <= SPAN and any(last < w <= last + SPAN for w in good):
                if any(first < v <= last + NEAR + 1 for v in verbs):
                    self.raise_to(3, groups, quoted)

    def judge(self) -> list[int]:
        """The sentence's five scores."""
        denounced = bool(self.at(COUNTER))
        rules = (
            (HATE, self.despised),
            (BASE, self.degraded),
            (DEED, self.told),
            (HARM, self.harmed),
            (NOT, self.refused),
        )
        aiming = self.at(YOU | ALL | BE | BASE | HATE | HARM | MUST)
        for i, bits in self.hits:
            quoted = bits & QUOTED
            if bits & ANY_SLUR:
                aimed = any(0 < abs(i - t) <= SPAN for t in aiming)
                self.raise_to(1 if denounced else 3 if aimed else 2, (bits & ANY_SLUR) >> 4, quoted)
            if denounced:
                continue
            for kind, rule in rules:
                if bits & kind:
                    rule(i, quoted)
        return self.scores


def score_passage(text: str, language: str) -> Scores:
    """The Scores of one passage: of each axis, the highest among its sentences."""
    tokens = TOKEN.findall(text.lower())
    telling = lists(language)[1]
    found = [i for i, token in enumerate(tokens) if token in telling]
    graphic = len({tokens[i] for i in found if telling[tokens[i]] & GORE})
    highest = [0, 0, 0, 0, sum(graphic >= count for count in GORE_COUNTS)]
    found = [i for i in found if telling[tokens[i]] & ~GORE]
    if not found:
        return Scores(*highest)
    stops = [-1, *(i for i, token in enumerate(tokens) if token in STOPS), len(tokens)]
    breaks = [-1, *(i for i in stops[1:-1] if tokens[i] == "\n")]
    quotes = [i for i, token in enumerate(tokens) if token in QUOTES]
    here = {bisect_left(stops, i) for i in found}  # the sentence that ends at stops[n]; and the next, for its pronouns
    groups, judged = 0, -1
    for n in sorted(here | {n + 1 for n in here if n + 1 < len(stops)}):
        opened = bisect_left(quotes, breaks[bisect_left(breaks, stops[n]) - 1])  # a paragraph's end closes quotations
        hits = _hits(tokens, stops[n - 1] + 1, stops[n], quotes[opened:], language)
        sentence = _Sentence(hits, groups if judged == n - 1 else 0, language)
        highest = [max(pair) for pair in zip(highest, sentence.judge(), strict=True)]
        groups, judged = sentence.named, n
    return Scores(*highest)


class LexiconScorer:
    """Scores documents by word lists and rules (this module)."""

    name = "lexicon"

    def score(self, texts: list[str], languages: list[str]) -> list[Scores]:
        """Texts and their ISO codes -> a Scores each; a language without lists is read by those of English."""
        return [
            combine([score_passage(passage, language) for passage in passages(text)])
            for text, language in zip(texts, languages, strict=True)
        ]
