"""Join words hyphenated at line ends, and remove running heads and page numbers.

No letter is lost except those of the lines listed in `removed`. Ligatures and the long s are preserved. Code, verse,
and text without hyphenated words, heads and page numbers are returned unchanged, byte for byte.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

from ..common.normalization import HYPHENS as OTHER_HYPHENS
from ..common.normalization import normalize
from .running_heads import FORM_FEED, without_page_lines

PAGE_BREAK = "<|page_break|>"  # the tokenizer's (modeling_pleias.tokenization_pleias)
MAX_ROUNDS = 32  # more than the lines of any head; pages that are alike would take one round per line


@dataclass(frozen=True)
class RepairedText:
    """A repaired text, and counts of the repairs.

    Args:
        text: Result.
        hyphens_joined: Number of words whose hyphen at a line end was removed.
        compounds_joined: Number of words that keep their hyphen and are no longer split by a line end.
        heads_removed: Number of running heads and feet removed, with the page numbers in them.
        page_numbers_removed: Number of lines removed that contain only a page number.
        page_breaks: Number of form feeds, kept or replaced with `page_break`.
        removed: The removed lines, unchanged.
    """

    text: str
    hyphens_joined: int = 0
    compounds_joined: int = 0
    heads_removed: int = 0
    page_numbers_removed: int = 0
    page_breaks: int = 0
    removed: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Counts of the repairs by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type is int}


def repair(text: str, language: str | None = None, *, page_break: str | None = None) -> RepairedText:
    """Repair the lines of a document.

    Args:
        text: Any text. Form feeds are page breaks; without them, page numbers indicate the pages.
        language: ISO code, which decides on hyphens that may be part of a word. Optional.
        page_break: Replacement for form feeds; None keeps them. A replacement of whitespace becomes one line end if a
            sentence continues on the next page.
    """
    if page_break and page_break.strip():
        text = text.replace(page_break, FORM_FEED)  # the text was repaired before
    source, counts, removed = text, Counter(), []
    for _ in range(MAX_ROUNDS):  # removing a head may expose a hyphenated word; the second round rarely finds anything
        before = text
        text = _joined(without_page_lines(text, counts, removed), language, counts)
        if text == before:
            break
        if before is source and _is_code(source):
            text, counts, removed = source, Counter(), []
            break
    breaks = text.count(FORM_FEED)
    if breaks and page_break is not None:
        if not page_break.strip():
            text = _CONTINUED.sub("\n", text)
        text = text.replace(FORM_FEED, page_break)
    return RepairedText(text, page_breaks=breaks, removed=tuple(removed), **counts)


def divided_words(text: str, language: str | None = None) -> Iterator[tuple[int, int, str]]:
    """Yield the place of hyphen and line end of each divided word, and what joins its halves: nothing, or a hyphen."""
    view = normalize(text, keep_lines=True)
    words = _Words(view.text, language)
    for match in _DIVIDED.finditer(view.text):
        if (joint := words.joint(match)) is not None:
            start = view.start(match.start())
            yield start, view.end(match.end()), joint and text[start]


_CONTINUED = re.compile(r"(?<=[^\W\d_]|,)[ \t\r\n]*\f[ \t\r\n]*(?=[^\W\d_A-Z])")
_CODE_MARKS = (*"{};<>[]_\\$#|", "==", " = ", "()")
# Ratio of code marks to characters in the sample. Measured: at most 0.013 in 99 of 100 books, laws and articles of
# eight languages; above 0.027 in half of the programs of ten languages.
_CODE_SHARE = 0.015
_CODE_SAMPLE = 20_000


def _is_code(text: str) -> bool:
    start = text[:_CODE_SAMPLE]
    return sum(map(start.count, _CODE_MARKS)) > _CODE_SHARE * len(start)


# Words hyphenated at line ends --------------------------------------------------------------------

SOFT = "\u00ad\u00ac"  # the soft hyphen, and the not sign that OCR outputs for it
HYPHENS = "-" + SOFT + "\u2e17="  # the last two: the double hyphen of Fraktur, and its OCR error
_DIVIDED = re.compile(rf"([{HYPHENS}])(?=[ \t\r\n\f])((?:[ \t\r\n]*\f[ \t\r\n]*)|(?:[ \t]*\r?\n[ \t]*))")
_ANY_HYPHEN = HYPHENS + OTHER_HYPHENS
_LETTERS = re.compile(r"[^\W\d_]+")
_SPACE = re.compile(r"[ \t]*(?:\r?\n|[ \t\f])")
_TOKEN = re.compile(r"\S*")
_DOUBLE_AT_END = re.compile(r"[^\W\d_]=[ \t]*\r?\n[ \t]*[^\W\d_]")
_DOUBLE_IN_WORD = re.compile(r"[^\W\d_]=[^\W\d_]")
RARE = 0.01  # of line ends
_ACRONYMS_JOIN = {"de", "nl"}  # EG-Konformitaet
# "Haupt- und Nebensachen": the hyphen replaces the second half, which follows later.
_SUSPENDED = {"de": {"und", "oder", "bis", "sowie", "noch"}, "nl": {"en", "of", "dan"}, "en": {"and", "or"}}
# Pronouns and particles that a hyphen attaches to their verb or noun.
_ENCLITICS = {
    "fr": set("il ils elle elles je nous vous moi toi lui leur ci là même mêmes être dire".split()),
    "pt": set("lhe lhes lha lho lhas lhos vos".split()),
    "en": {"law", "like"},
}
_PROCLITICS = {
    "en": {"self", "well", "half", "ill", "semi", "ex", "non"},
    "fr": {"demi", "semi", "ex", "non", "quelques", "celui", "celle", "ceux", "celles", "vis"},
    "de": {"nicht"},
}
_PORTUGUESE_VERB = re.compile(  # a verb and its pronoun; after an s, "se" is a syllable: clas-se
    r"\w*(?:(?:ou|ei|ai|ia|am|em|va|ndo|[aei]r|eu|iu)-(?:se|me|te)|(?:ou|ei|eu|iu|ndo)-[oa]s?|[\u00e1\u00ea\u00ed\u00f4]-l[oa]s?"
    r"|\w{3}[^s]-se)"
)
_VOWEL_ALONE = {"it", "la"}  # hyphenate after a single initial vowel: a-more


def _joined(text: str, language: str | None, counts: Counter) -> str:
    """Join the words that a line end or page break divides."""
    view = normalize(text, keep_lines=True)
    hyphens = [hyphen for hyphen in HYPHENS if hyphen in view.text]
    if not any(hyphen + space in view.text for hyphen in hyphens for space in "\n\r \f\t"):
        return text
    words = _Words(view.text, language)
    out, at, pending = [], 0, ""

    def emit(end: int) -> None:
        """Copy the text up to `end`; insert a pending line end at the first whitespace."""
        nonlocal at, pending
        if pending and (space := _SPACE.search(text, at, end)):
            start, after = space.span()
            separator = space[0]
            if FORM_FEED in pending:
                separator = pending + (separator if FORM_FEED in separator else "")
            elif "\n" not in separator and FORM_FEED not in separator and text[start - 1] not in _ANY_HYPHEN:
                separator = pending
            out.append(text[at:start] + separator)
            at, pending = after, ""
        out.append(text[at:end])
        at = end

    for match in _DIVIDED.finditer(view.text):
        start = view.start(match.start())
        if (joint := words.joint(match)) is None:
            if pending:  # the joined word ends here, so this line end is its line end
                emit(start)
                pending = pending if FORM_FEED in pending else ""
            continue
        emit(start)
        out.append(joint and text[start])
        counts["compounds_joined" if joint else "hyphens_joined"] += 1
        gap = match[2]
        pending = gap if FORM_FEED in gap else pending if FORM_FEED in pending else "\r\n" if "\r" in gap else "\n"
        at = view.end(match.end())
    emit(len(text))
    return "".join([*out, pending if FORM_FEED in pending else ""])


class _Words:
    """Decides how to join the hyphenated words of one text; expensive properties are computed on first use."""

    def __init__(self, text: str, language: str | None):
        self.text, self.language = text, language
        self.suspended, self.enclitics, self.proclitics = (
            words.get(language, set()) for words in (_SUSPENDED, _ENCLITICS, _PROCLITICS)
        )

    def joint(self, match: re.Match) -> str | None:
        """Return what joins the two halves: nothing, or the hyphen. None keeps the line end."""
        text, hyphen, start, end = self.text, match[1], match.start(), match.end()
        reversed_left = _LETTERS.match(text[max(0, start - 40) : start][::-1])
        right = _LETTERS.match(text, end)
        if not reversed_left or not right:
            repeated = self.language == "pt" and reversed_left and hyphen == "-" and text[end : end + 1] == "-"
            return "" if repeated and text[end + 1 : end + 2].isalpha() and FORM_FEED not in match[2] else None
        left, right = reversed_left[0][::-1], right[0]
        token_end = _TOKEN.match(text, end).end()
        if FORM_FEED in match[2] and text[token_end - 1] in HYPHENS:
            return None
        if hyphen == "=" and not self.fraktur:
            return None
        if self._in_verse(start, end):
            return None
        if hyphen in SOFT:
            return ""
        before, after = start - len(left) - 1, end + len(right)
        return self._joint_by_rule(left, right, hyphen, text[max(0, before) : before + 1], text[after : after + 2])

    def _joint_by_rule(self, left: str, right: str, hyphen: str, before: str, after: str) -> str | None:
        pair = f"{left}-{right}".lower()
        if len(right) == 1:
            return None  # probably the first item of a list
        if right[0].isupper():
            if left.isupper() and right.isupper() and len(left) > 1 and len(right) > 1:
                return hyphen if pair in self.compounds else ""
            return hyphen if left[0].isupper() and (not left.isupper() or self.language in _ACRONYMS_JOIN) else None
        if len(left.casefold()) == 1 and before != "-":  # a ligature is two letters
            return "" if self.language in _VOWEL_ALONE and left.lower() in "aeiouy" else None
        if right in self.suspended or (self.rare and left in self.between_blanks and right in self.between_blanks):
            return None
        if left.isupper():  # EU-weit
            return hyphen
        is_compound = (
            right in self.enclitics
            or left.lower() in self.proclitics
            or (before == "-" and len(left) <= 3)  # mother-in-law
            or (after[:1] == "-" and after[1:].isalpha() and len(right) <= 4)  # Montpezat-de-Quercy
            or (self.language == "pt" and _PORTUGUESE_VERB.fullmatch(pair) is not None)
        )
        if is_compound or pair in self.compounds:
            return "" if self._begins_a_word(left + right) else hyphen
        return ""

    def _begins_a_word(self, letters: str) -> bool:
        place = bisect_left(self.sorted_words, letters)
        return place < len(self.sorted_words) and self.sorted_words[place].startswith(letters)

    @cached_property
    def sorted_words(self) -> list[str]:
        """Distinct sequences of letters in the text."""
        return sorted(set(_LETTERS.findall(self.text)))

    @cached_property
    def between_blanks(self) -> set[str]:
        """Words of the text with a blank on both sides."""
        return set(re.findall(r"(?<= )[^\W\d_]+(?= )", self.text))

    @cached_property
    def compounds(self) -> set[str]:
        """Lower-case words with a hyphen in the middle of a line of the text."""
        compounds = set()
        for match in re.finditer(r"-(?=[^\W\d_])", self.text):
            left = _LETTERS.match(self.text[max(0, match.start() - 40) : match.start()][::-1])
            if left:
                compounds.add(f"{left[0][::-1]}-{_LETTERS.match(self.text, match.end())[0]}".lower())
        return compounds

    @cached_property
    def fraktur(self) -> bool:
        """True if equals signs are the double hyphens of a German print."""
        if self.language != "de":
            return False
        ends, within = len(_DOUBLE_AT_END.findall(self.text)), len(_DOUBLE_IN_WORD.findall(self.text))
        return ends >= max(3, within) and ends + within >= 0.8 * self.text.count("=")

    @cached_property
    def rare(self) -> bool:
        """True if so few lines end with a hyphen that it may be a dash; printed books hyphenate often."""
        hyphens = self.text.count("-\n") + self.text.count("-\r\n")
        return hyphens < RARE * self.text.count("\n")

    @cached_property
    def line_starts(self) -> list[int]:
        """Positions after the line ends, and of the first line."""
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def _in_verse(self, start: int, end: int) -> bool:
        """Return whether the surrounding lines (except the one after the hyphen) are short and capitalised."""
        text, line_starts = self.text, self.line_starts
        line = bisect_right(line_starts, start)  # index of the next line
        if text[line_starts[line - 1]].islower():  # true for most prose
            return False
        after = bisect_right(line_starts, end)
        starts = line_starts[max(0, line - 3) : line] + line_starts[after : after + 2]
        lines = [text[at : at + 60].lstrip(" \t\"'\u201c\u2018\u00ab\u201e(") for at in starts]
        lines = [line for line in lines if line[:1].strip()]
        return len(lines) >= 4 and all(line[0].isupper() and ("\n" in line or len(line) < 50) for line in lines)
