"""Printed pages to running text: words divided at line ends joined, running heads and page numbers taken out.

Apart from the lines that it names in `removed` no letter is lost, ligatures and the long s stay, and a text without
divided words, heads and numbers comes back byte for byte. So do code and verse.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from .running_heads import FORM_FEED, without_page_lines

PAGE_BREAK = "<|page_break|>"  # the tokenizer's (modeling_pleias.tokenization_pleias)


@dataclass(frozen=True)
class Repair:
    """A repaired text, and what was done.

    Args:
        text: the result.
        hyphens_joined: words whose division at a line end was undone.
        compounds_joined: words that keep their hyphen but are no longer cut by a line end.
        heads_removed: running heads and feet, with the page numbers that stood in them.
        page_numbers_removed: lines with nothing but a page number.
        page_breaks: form feeds, kept or turned into `page_break`.
        removed: the lines that were removed, as they stood.
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
        """What was done, by name."""
        names = "hyphens_joined compounds_joined heads_removed page_numbers_removed page_breaks".split()
        return {name: getattr(self, name) for name in names}


def repair(text: str, language: str | None = None, *, page_break: str | None = None) -> Repair:
    """Repair the lines of a document.

    Args:
        text: any text; form feeds are page breaks. Without them pages are found by their numbers.
        language: ISO code; it decides on hyphens that might be part of the word. Not needed.
        page_break: what a form feed becomes; None keeps it. White space narrows to one line end where a sentence goes
            on over the page.
    """
    if page_break and page_break.strip():
        text = text.replace(page_break, FORM_FEED)  # its own work, seen again
    source, before, counts, removed = text, None, Counter(), []
    while text != before:  # what one round brings together the next may join; nearly always the second finds nothing
        before = text
        text = _joined(without_page_lines(text, counts, removed), language, counts)
        if text != before and before is source and _is_code(source):
            text, counts, removed = source, Counter(), []
            break
    breaks = text.count(FORM_FEED)
    if breaks and page_break is not None:
        if not page_break.strip():
            text = _CONTINUED.sub("\n", text)
        text = text.replace(FORM_FEED, page_break)
    return Repair(text, page_breaks=breaks, removed=tuple(removed), **counts)


_CONTINUED = re.compile(r"(?<=[^\W\d_]|,)[ \t\r\n]*\f[ \t\r\n]*(?=[^\W\d_A-Z])")
_CODE_SIGNS = (*"{};<>[]_\\$#|", "==", " = ", "()")
# Of code signs among the first characters. Measured: at most 0.013 in 99 of 100 books, laws and articles of eight
# languages; in programs of ten languages half have more than 0.027.
_CODE_SHARE = 0.015
_CODE_SAMPLE = 20_000


def _is_code(text: str) -> bool:
    start = text[:_CODE_SAMPLE]
    return sum(map(start.count, _CODE_SIGNS)) > _CODE_SHARE * len(start)


# Words divided at line ends -----------------------------------------------------------------------

SOFT = "\u00ad\u00ac"  # the soft hyphen, and the sign that OCR writes for a hyphen which divides a word
HYPHENS = "-" + SOFT + "\u2e17="  # the last two: the slanted double hyphen of Fraktur, and how OCR spells it
_DIVIDED = re.compile(rf"([{HYPHENS}])(?=[ \t\r\n\f])((?:[ \t\r\n]*\f[ \t\r\n]*)|(?:[ \t]*\r?\n[ \t]*))")
_LETTERS = re.compile(r"[^\W\d_]+")
_SPACE = re.compile(r"[ \t]*(?:\r?\n|[ \t\f])")
_TOKEN = re.compile(r"\S*")
_DOUBLE_AT_END = re.compile(r"[^\W\d_]=[ \t]*\r?\n[ \t]*[^\W\d_]")
_DOUBLE_IN_WORD = re.compile(r"[^\W\d_]=[^\W\d_]")
RARE = 0.01  # of line ends
_ACRONYMS_JOIN = {"de", "nl"}  # EG-Konformitaet
# "Haupt- und Nebensachen": the hyphen stands for the second half, which follows later.
_SUSPENDED = {"de": {"und", "oder", "bis", "sowie", "noch"}, "nl": {"en", "of", "dan"}, "en": {"and", "or"}}
# Pronouns and particles that their verb or noun holds by a hyphen.
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
_PORTUGUESE_VERB = re.compile(  # and its pronoun; after an s, "se" is a syllable: clas-se
    r"\w*(?:(?:ou|ei|ai|ia|am|em|va|ndo|[aei]r|eu|iu)-(?:se|me|te)|(?:ou|ei|eu|iu|ndo)-[oa]s?|[\u00e1\u00ea\u00ed\u00f4]-l[oa]s?"
    r"|\w{3}[^s]-se)"
)
_VOWEL_ALONE = {"it", "la"}  # divide after a first letter that is a vowel: a-more


def _joined(text: str, language: str | None, counts: Counter) -> str:
    """Text with the words joined that a line end or page break divides."""
    signs = [sign for sign in HYPHENS if sign in text]
    if not any(sign + space in text for sign in signs for space in "\n\r \f\t"):
        return text
    words = _Words(text, language)
    out, at, pending = [], 0, ""

    def emit(end: int) -> None:
        """Copy up to `end`; a line end that is due goes to the first white space."""
        nonlocal at, pending
        if pending and (space := _SPACE.search(text, at, end)):
            where, after = space.span()
            own = space[0]
            if FORM_FEED in pending:
                own = pending + (own if FORM_FEED in own else "")
            elif "\n" not in own and FORM_FEED not in own and text[where - 1] not in HYPHENS:
                own = pending
            out.append(text[at:where] + own)
            at, pending = after, ""
        out.append(text[at:end])
        at = end

    for match in _DIVIDED.finditer(text):
        if (how := words.how(match)) is None:
            if pending:  # the word just joined runs up to here: this line end is its line end
                emit(match.start())
                pending = pending if FORM_FEED in pending else ""
            continue
        emit(match.start())
        out.append(how)
        counts["compounds_joined" if how else "hyphens_joined"] += 1
        gap = match[2]
        pending = gap if FORM_FEED in gap else pending if FORM_FEED in pending else "\r\n" if "\r" in gap else "\n"
        at = match.end()
    emit(len(text))
    return "".join([*out, pending if FORM_FEED in pending else ""])


class _Words:
    """How the words of one text are to be joined; what is costly to know is found out when first asked."""

    def __init__(self, text: str, language: str | None):
        self.text, self.language = text, language
        self.suspended, self.enclitics, self.proclitics = (
            words.get(language, set()) for words in (_SUSPENDED, _ENCLITICS, _PROCLITICS)
        )

    def how(self, match: re.Match) -> str | None:
        """What stands between the halves once joined: nothing, or the hyphen; None to leave the line end alone."""
        text, sign, start, end = self.text, match[1], match.start(), match.end()
        reversed_left = _LETTERS.match(text[max(0, start - 40) : start][::-1])
        right = _LETTERS.match(text, end)
        if not reversed_left or not right:
            repeated = self.language == "pt" and reversed_left and sign == "-" and text[end : end + 1] == "-"
            return "" if repeated and text[end + 1 : end + 2].isalpha() and FORM_FEED not in match[2] else None
        left, right = reversed_left[0][::-1], right[0]
        token_end = _TOKEN.match(text, end).end()
        if FORM_FEED in match[2] and text[token_end - 1] in HYPHENS:
            return None
        if sign == "=" and not self.fraktur:
            return None
        if self._in_verse(start, end):
            return None
        if sign in SOFT:
            return ""
        before, after = start - len(left) - 1, end + len(right)
        return self._kept(left, right, sign, text[max(0, before) : before + 1], text[after : after + 2])

    def _kept(self, left: str, right: str, sign: str, before: str, after: str) -> str | None:
        whole, pair = left + right, f"{left}-{right}".lower()
        if len(right) == 1:
            return None  # the first item of a list, more likely
        if right[0].isupper():
            if left.isupper() and right.isupper() and len(left) > 1 and len(right) > 1:
                return sign if pair in self.compounds else ""
            return sign if left[0].isupper() and (not left.isupper() or self.language in _ACRONYMS_JOIN) else None
        if len(left.casefold()) == 1 and before != "-":  # a ligature is two letters
            return "" if self.language in _VOWEL_ALONE and left.lower() in "aeiouy" else None
        if right in self.suspended or (self.rare and f" {left} " in self.text and f" {right} " in self.text):
            return None
        if left.isupper():  # EU-weit
            return sign
        held = (
            right in self.enclitics
            or left.lower() in self.proclitics
            or (before == "-" and len(left) <= 3)  # mother-in-law
            or (after[:1] == "-" and after[1:].isalpha() and len(right) <= 4)  # Montpezat-de-Quercy
            or (self.language == "pt" and _PORTUGUESE_VERB.fullmatch(pair) is not None)
        )
        if held or pair in self.compounds:
            return "" if whole in self.text else sign
        return ""

    @cached_property
    def compounds(self) -> set[str]:
        """Words that have a hyphen in the middle of a line somewhere in the text, in lower case."""
        found = set()
        for match in re.finditer(r"-(?=[^\W\d_])", self.text):
            left = _LETTERS.match(self.text[max(0, match.start() - 40) : match.start()][::-1])
            if left:
                found.add(f"{left[0][::-1]}-{_LETTERS.match(self.text, match.end())[0]}".lower())
        return found

    @cached_property
    def fraktur(self) -> bool:
        """Whether an equals sign is the double hyphen of a German print here."""
        if self.language != "de":
            return False
        ends, within = len(_DOUBLE_AT_END.findall(self.text)), len(_DOUBLE_IN_WORD.findall(self.text))
        return ends >= max(3, within) and ends + within >= 0.8 * self.text.count("=")

    @cached_property
    def rare(self) -> bool:
        """Whether so few lines end in a hyphen that it may be a dash: print that divides words does so often."""
        hyphens = self.text.count("-\n") + self.text.count("-\r\n")
        return hyphens < RARE * self.text.count("\n")

    def _in_verse(self, start: int, end: int) -> bool:
        """Whether the lines around are short and all begin with a capital, but for the one that follows the hyphen."""
        text = self.text
        at = text.rfind("\n", 0, start) + 1
        if text[at].islower():  # prose mostly stops here
            return False
        begins = [at]
        while len(begins) < 3 and at > 0:
            at = text.rfind("\n", 0, at - 1) + 1
            begins.append(at)
        at = end
        for _ in range(2):
            if (at := text.find("\n", at)) < 0:
                break
            at += 1
            begins.append(at)
        lines = [text[begin : begin + 60].lstrip(" \t\"'\u201c\u2018\u00ab\u201e(") for begin in begins]
        lines = [line for line in lines if line[:1].strip()]
        return len(lines) >= 4 and all(line[0].isupper() and ("\n" in line or len(line) < 50) for line in lines)
