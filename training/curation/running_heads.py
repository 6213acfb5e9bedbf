"""Detect and remove running heads and page numbers: lines that repeat, or numbers that increase, from page to page."""

import re
from bisect import bisect
from collections import Counter
from difflib import SequenceMatcher

from ..common.normalization import normalize

FORM_FEED = "\f"
MIN_PAGES = 3  # pages with a head, or with consecutive numbers, for a detection
MIN_CHAIN = 4  # the same in a text without page breaks
PAGE_CHARACTERS = (700, 9_000)  # of one page
SPLIT_SENTENCES = 0.4  # share of page ends within a sentence; chapters, whose numbers look alike, have none
HEAD_CHARACTERS = 80
CHAIN_SHARE = 0.7  # of the numbers between the first and the last of a chain that belong to it
FULL_LINE = 30  # minimum characters of a line of prose; headings and list items are mostly shorter
SIMILAR = 0.8  # minimum difflib ratio of two heads that differ by OCR errors

_ORNAMENT = r"[ \t\-\u2013\u2014\[\](){}*.,:=~|\u2022]*"
_ROMAN = r"[ivxlc]{1,7}|[IVXLC]{1,7}"
_NUMBER = re.compile(rf"{_ORNAMENT}(?:(\d{{1,4}})|({_ROMAN})){_ORNAMENT}\r?")
_NUMBERED_HEAD = re.compile(r"\W*(?:(\d{1,4})\W+(\D{3,}?)|(\D{3,}?)\W+(\d{1,4}))\W*")
_HEADING = re.compile(  # numbered parts of the work, not of the page
    r"\W*(?:art|\u00a7|sec|chap|cap|kap|hoofdst|tit|tab|fig|an[en]ex|alleg|anlage|li[bv]|buch|book|scen|sc[\u00e8\u00e9]n|act"
    r"|toon|psalm|canto|n[or]\b|num)",
    re.IGNORECASE,
)
_NUMBER_AT_START = re.compile(r"\n[ \t\-\u2013\u2014\[(*.]*\d{1,4}(?=[^\w])")
_NUMBER_AT_END = re.compile(r"[0-9][^\w\n]{0,6}(?=\n)")
_OPEN_ENDS = ",-\u00ad\u00ac"  # characters, besides letters, at the end of a line whose sentence continues
_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}


def without_page_lines(text: str, counts: Counter, removed: list[str]) -> str:
    """Remove running heads and page numbers; of a head with several lines, one line per call."""
    view = normalize(text, keep_lines=True)
    by_breaks = text.count(FORM_FEED) >= MIN_PAGES - 1
    spans = _edges_of_pages(view.text) if by_breaks else _numbered_lines(view.text)
    # With the invisible characters around a line, which would otherwise remain alone on it.
    spans = {(view.end(start), view.start(end)): kind for (start, end), kind in spans.items()}
    for (start, end), kind in spans.items():
        removed.append(text[start:end].strip("\r\n\f"))
        counts[kind] += 1
    return _without(text, sorted(spans)) if spans else text


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """Remove lines; the whitespace around them becomes a line end, an empty line or a page break."""
    wide: list[list[int]] = []  # spans with their surrounding whitespace, adjacent ones merged
    for start, end in spans:
        least = wide[-1][1] if wide else 0
        while start > least and text[start - 1] in " \t\r\n":
            start -= 1
        while end < len(text) and text[end] in " \t\r\n":
            end += 1
        if wide and start == least:
            wide[-1][1] = end
        else:
            wide.append([start, end])
    pieces, at = [], 0
    for start, end in wide:
        pieces.append(text[at:start])
        at, before, after = end, text[start - 1 : start], text[end : end + 1]
        if after == FORM_FEED:
            pieces.append("\n")
        elif before and after and before != FORM_FEED:
            continues = after.islower() and (before.isalpha() or before in _OPEN_ENDS)
            apart = "\n\n" in text[start:end].replace("\r", "").replace(" ", "")
            pieces.append("\n\n" if apart and not continues else "\n")
    return "".join([*pieces, text[at:]])


def _value(roman: str) -> int:
    digits = [_VALUES[c] for c in roman.lower()]
    return sum(-digit if digit < after else digit for digit, after in zip(digits, [*digits[1:], 0], strict=True))


def _edges_of_pages(text: str) -> dict[tuple[int, int], str]:
    """Return the spans of page numbers and running heads among the first and last lines of pages, with their kind."""
    edges = []  # page, span
    start = 0
    for page, content in enumerate(text.split(FORM_FEED)):
        if stripped := content.strip():
            first = start + content.index(stripped[0])
            last = first + len(stripped)
            line_end = text.find("\n", first, last)
            edges.append((page, (first, last if line_end < 0 else line_end)))
            if line_end >= 0:
                edges.append((page, (text.rfind("\n", first, last) + 1, last)))
        start += len(content) + 1
    spans: dict[tuple[int, int], str] = {}
    offsets = {}
    for page, span in edges:
        if span[1] - span[0] <= 20 and (number := _NUMBER.fullmatch(text, *span)):
            offset = (int(number[1]), "arabic") if number[1] else (_value(number[2]), "roman")
            offsets.setdefault((offset[0] - page, offset[1]), []).append((page, span))
    for same in offsets.values():
        if len({page for page, _ in same}) >= MIN_PAGES:
            spans |= {span: "page_numbers_removed" for _, span in same}
    short = [(page, span) for page, span in edges if span not in spans and span[1] - span[0] <= HEAD_CHARACTERS]
    for cluster in _similar([(text[slice(*span)], (page, span)) for page, span in short]):
        if len({page for page, _ in cluster}) >= MIN_PAGES:
            spans |= {span: "heads_removed" for _, span in cluster}
    return spans


def _similar(lines: list[tuple[str, tuple]]) -> list[list[tuple]]:
    """Cluster lines that differ only in digits, punctuation, case and a few letters."""
    clusters: list[list[tuple]] = []
    known: dict[str, list[tuple[str, int]]] = {}  # start or end of a line -> lines with it, and their cluster
    seen: set[tuple[str, str, int]] = set()  # all entries of `known`
    for line, item in lines:
        letters = "".join(filter(str.isalpha, line)).casefold()
        if len(letters) < 3:
            continue
        ends = ("^" + letters[:4], "$" + letters[-4:])
        candidates = [candidate for end in ends for candidate in known.get(end, [])[-4:]]
        number = next((n for other, n in candidates if other == letters), None)
        if number is None:
            number = next((n for other, n in candidates if _alike(other, letters)), None)
        if number is None:
            number = len(clusters)
            clusters.append([])
        clusters[number].append(item)
        for end in ends:
            if (end, letters, number) not in seen:
                seen.add((end, letters, number))
                known.setdefault(end, []).append((letters, number))
    return clusters


def _alike(line: str, other: str) -> bool:
    """Return whether two lines differ in a few letters only, and agree in the first or the last third."""
    third = max(4, len(other) // 3)
    intact = line[:third] == other[:third] or line[-third:] == other[-third:]
    return intact and SequenceMatcher(None, line, other, autojunk=False).ratio() >= SIMILAR


def _numbered_lines(text: str) -> dict[tuple[int, int], str]:
    """Return the spans of page numbers, and of heads next to them, in a text without page breaks."""
    starts = {match.start() + 1 for match in _NUMBER_AT_START.finditer(text)}
    starts |= {text.rfind("\n", 0, match.start()) + 1 for match in _NUMBER_AT_END.finditer(text)}
    if len(starts) < MIN_CHAIN:
        return {}
    bare, headed = [], []
    for start in sorted(starts):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if end - start > HEAD_CHARACTERS:
            continue
        if number := _NUMBER.fullmatch(text, start, end):
            if number[1]:
                bare.append((int(number[1]), (start, end)))
        elif (number := _NUMBERED_HEAD.fullmatch(text, start, end)) and not _HEADING.match(number[2] or number[3]):
            headed.append((number[2] or number[3], (int(number[1] or number[4]), (start, end))))
    spans: dict[tuple[int, int], str] = {}
    for chain in _chains(bare, text):
        spans |= {span: "page_numbers_removed" for span in chain}
        neighbours = [other for span in chain for other in _neighbours(text, span)]
        for cluster in _similar([(text[slice(*span)], span) for span in neighbours]):
            if len(cluster) >= MIN_PAGES:
                spans |= {span: "heads_removed" for span in cluster}
    for cluster in _similar(headed):
        for chain in _chains(cluster, text):
            spans |= {span: "heads_removed" for span in chain}
    return spans


def _chains(numbered: list[tuple[int, tuple[int, int]]], text: str) -> list[list[tuple[int, int]]]:
    """Return sequences of numbers that increase with the text and split its sentences, as page numbers do."""
    open_chains: list[list[tuple[int, tuple[int, int]]]] = []
    shortest, longest = PAGE_CHARACTERS
    for number, span in numbered:
        for chain in reversed(open_chains[-8:]):
            last, (_, end) = chain[-1]
            if 1 <= number - last <= 4 and shortest <= (span[0] - end) / (number - last) <= longest:
                chain.append((number, span))
                break
        else:
            open_chains.append([(number, span)])
    chains = [[span for _, span in chain] for chain in open_chains if len(chain) >= MIN_CHAIN]
    positions = [start for _, (start, _) in numbered]
    among = [bisect(positions, chain[-1][0]) - bisect(positions, chain[0][0]) + 1 for chain in chains]
    chains = [chain for chain, n in zip(chains, among, strict=True) if len(chain) >= CHAIN_SHARE * n]
    return [chain for chain in chains if sum(_splits(text, span) for span in chain) >= SPLIT_SENTENCES * len(chain)]


def _splits(text: str, span: tuple[int, int]) -> bool:
    """Return whether a line splits a sentence: a full line ends before it, and one of the next two continues it."""
    before = text[max(0, span[0] - 200) : span[0]].rstrip()
    if len(before) - before.rfind("\n") < FULL_LINE or not (before[-1].isalpha() or before[-1] in _OPEN_ENDS):
        return False
    after = [line for line in text[span[1] : span[1] + 300].split("\n") if line.strip()][:2]
    return any(line.lstrip()[0].islower() for line in after)


def _neighbours(text: str, span: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the spans of the short lines among the nearest non-empty lines before and after a line."""
    spans = []
    after = span[1]
    while after < len(text) and text[after].isspace():
        after += 1
    if after < len(text):
        end = text.find("\n", after)
        spans.append((after, len(text) if end < 0 else end))
    before = span[0]
    while before > 0 and text[before - 1].isspace():
        before -= 1
    if before > 0:
        spans.append((text.rfind("\n", 0, before) + 1, before))
    return [(start, end) for start, end in spans if end - start <= HEAD_CHARACTERS]
