"""Licence gate: classify a document by label and dates as open, attribution, share-alike or refused, with the rule.

It fails closed: a label passes only if every part of it is understood and is in a family of licence_labels.yaml. The
terms of a licence are inferred from its name alone. This is no legal advice.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from .creators import parse_lives, parse_year
from .licence_names import LABELS, licensing, mixed_alphabets, normalize, normalize_names, parse_name

PUBLIC_DOMAIN = "LicenseRef-scancode-public-domain"
YEAR = 2026  # for the terms of the public domain; a constant, so that the same corpus gives the same decisions
STRICTNESS = ("open", "attribution", "share-alike", "refused")
MEANS = {
    "open": "no condition",
    "attribution": "credit is due",
    "share-alike": "credit is due, and derived works keep the licence",
}


@dataclass(frozen=True)
class LicenceDecision:
    """Decision on the licence of a document.

    Args:
        label: Licence in the corpus.
        spdx: SPDX expression; None if the label identifies no licence.
        decision: One of open, attribution (credit is due), share-alike and refused.
        rule: `code: reason`; documents with the same code were decided by the same rule.
    """

    label: str
    spdx: str | None
    decision: str
    rule: str

    @property
    def code(self) -> str:
        """Rule without its reason, for counts."""
        return self.rule.partition(":")[0]

    @property
    def refused(self) -> bool:
        return self.decision == "refused"


def decide(
    label: str | None,
    *,
    collection: str | None = "",
    identifier: str | None = "",
    date: str | None = "",
    creator: str | None = "",
    published_in_us: bool = False,
    year: int = YEAR,
) -> LicenceDecision:
    """Decide on one document.

    Dates count only if the label is missing or claims the public domain, never against a licence that reserves rights.

    Args:
        label: Licence in the corpus.
        collection: Collection of the document; sources derived from Common Crawl are refused by name, and names that
            mix alphabets.
        identifier: Identifier of the document, checked for the same names.
        date: Date of first publication: a year, an ISO date, or a range, of which the last year counts.
        creator: Authors with their years ("Verne, Jules (1828-1905)"), separated by semicolons.
        published_in_us: Whether `date` is the date of a publication in the United States.
        year: Year for which the terms are computed.
    """
    label = (label or "").strip()
    if source := common_crawl_source(collection or "", identifier or ""):
        return LicenceDecision(
            label, None, "refused", f"Common Crawl: {source} is derived from it, whatever the label"
        )
    if word := mixed_alphabets(collection or "", identifier or ""):
        reason = f"look-alike letters: {word!r} mixes alphabets, so the name of the source is not known"
        return LicenceDecision(label, None, "refused", reason)
    decision = _by_label(label)
    if decision.code in ("no licence", "public domain mark", "public domain in one country"):
        if ground := _public_domain_ground(date or "", creator or "", published_in_us, year):
            return LicenceDecision(label, decision.spdx or PUBLIC_DOMAIN, "open", ground)
    return decision


def decide_document(document: dict, *, year: int = YEAR) -> LicenceDecision:
    """Decide on a document by its Common Corpus columns; `US-PD` collections were printed in the United States."""
    columns = {name: document.get(name) for name in ("collection", "identifier", "date", "creator")}
    american = bool(re.match(r"us-pd(?![a-z0-9])", (columns["collection"] or "").lower()))
    return decide(document.get("license"), **columns, published_in_us=american, year=year)


def spdx_name(label: str) -> str:
    """Return the SPDX expression of a corpus's licence label, or the label if it identifies no licence."""
    return _by_label((label or "").strip()).spdx or label


def common_crawl_source(collection: str, identifier: str) -> str | None:
    """Return the Common Crawl derivative that a collection or identifier contains, if any."""
    return _crawled_collection(collection) or _named_crawl(normalize_names(identifier))


# Public domain by dates ---------------------------------------------------------------------------


def _public_domain_ground(date: str, creators: str, in_us: bool, year: int) -> str:
    """Return the Common Corpus paper's rule that puts a work in the public domain, or "". Terms end with a year.

    Years of death do not count if the date is not understood, is before an author's birth, or is later than both the
    term and 1883: whoever edits or first publishes an old text may have rights in it.
    """
    published, lives = parse_year(date), parse_lives(creators)
    if lives and (published or not date.strip()):
        born, died = max(born for born, _ in lives), max(died for _, died in lives)
        if died + 70 < year and (published is None or born < published <= max(died + 70, 1883)):
            return f"life + 70: the last author died in {died}"
    if in_us and published is not None and published + 95 < year:
        return f"US publication + 95: published in the United States in {published}"
    if not creators.strip() and published is not None and published < 1884:
        return f"unknown author before 1884: published in {published}"
    return ""


# Common Crawl by name -----------------------------------------------------------------------------

_CRAWL_WORDS = {name: words.replace("-", "-?") for name, words in LABELS["common_crawl"].items()}
_CRAWLS = {name: re.compile(rf"(?<![a-z0-9])(?:{words})(?![a-z])") for name, words in _CRAWL_WORDS.items()}
_ANY_CRAWL = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(_CRAWL_WORDS.values())})(?![a-z])")


def _named_crawl(spellings: set[str]) -> str | None:
    if not any(map(_ANY_CRAWL.search, spellings)):
        return None
    return next(name for name, pattern in _CRAWLS.items() if any(map(pattern.search, spellings)))


@lru_cache(100_000)
def _crawled_collection(collection: str) -> str | None:
    spellings = normalize_names(collection)
    for name, word in LABELS["common_crawl_exact"].items():
        pattern = re.compile(rf"{word}(?:[-/](?:v?\d+|[a-z]{{2,3}}))*(?:[-/][a-z]+)?")
        if any(map(pattern.fullmatch, spellings)):
            return name
    return _named_crawl(spellings)


# Decision by the label alone ----------------------------------------------------------------------

# Words that refuse a label wherever they occur, then words that give the reason if a label is not understood.
_NON_COMMERCIAL = re.compile(
    r"\b(?:nc|non ?comm(?:ercial\w*)?|not for commercial|nicht ?kommerziell\w*|niet ?commercieel|no ?comercial"
    r"|nao ?comercial|usage commercial|utilisation commerciale|academic use|personal use)\b"
)
_NO_DERIVATIVES = re.compile(
    r"\b(?:nd|no ?deriv\w*|pas de modification\w*|keine ?bearbeitung\w*|sin ?(?:obras? ?)?derivad\w*"
    r"|non opere derivate|geen ?afgeleide ?werken|sem ?deriva\w*)\b"
)
_GLUED = re.compile(r"\b(?:cc)?(?:by)?(?:sa)*(?:nc|nd)(?:sa|nc|nd)*\b")  # CCBYNC, by-ncsa
_REASONS = {
    "public domain in one country": r"(?:public domain|\bpd|no copyright|\bnoc|not in copyright)[\s:,(-]*"
    r"(?:in )?(?:the )?(?:usa?\b|united states|u\.s|canad|austral|ireland|india)|\bus[- ]pd\b",
    "use restricted": r"rail\b|rail\+|llama|gemma|community licen|research|educational|fair use|fair dealing"
    r"|acceptable use|ethical|evaluation|terms of|user agreement|non-?exclusive|\btdm\b|c-uda|commons clause|edu\b",
    "rights reserved": r"reserved|copyright|\binc\b|proprietary|confidential|commercial|closed|restricted|unlicensed"
    r"|\(c\)|\u00a9|oklr|contractual|noc-cr|standard youtube|embargo|orphan",
    "names no licence": r"open|various|other|mixed|multiple|see |free|cc|creative commons|public|attribution|copyleft",
}
_SILENT = re.compile(
    r"(?:none|null|nan|n/?a|-|unknown|unk|not ?specified|unspecified|undefined|undetermined|und|no licen[cs]e|missing"
    r"|licen[cs]e not specified|copyright (?:not evaluated|undetermined)|cne|nkc|no known copyright(?: restrictions)?"
    r"|(?:https?://)?rightsstatements\.org/(?:vocab|page)/(?:cne|und|nkc)/1\.0/?)?"
)


@lru_cache(100_000)
def _by_label(label: str) -> LicenceDecision:
    """Decide by the label alone."""
    text = normalize(label)
    if _SILENT.fullmatch(text):
        return LicenceDecision(label, None, "refused", "no licence: the label states no rights")
    spaced = re.sub(r"(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])|[^a-z0-9]+", " ", text).strip()
    expression, ground = parse_name(text) or (None, "")
    glued = [word for word in _GLUED.findall(spaced) if word != "ncsa" or re.search(r"\bby ncsa", spaced)]
    if _NON_COMMERCIAL.search(spaced) or any("nc" in word for word in glued):
        return LicenceDecision(label, expression, "refused", "non-commercial: commercial use is not allowed")
    if _NO_DERIVATIVES.search(spaced) or glued:
        return LicenceDecision(label, expression, "refused", "no derivatives: modified versions are not allowed")
    if expression is None:
        code = next((code for code, words in _REASONS.items() if re.search(words, text)), "unknown licence")
        return LicenceDecision(label, None, "refused", f"{code}: the label identifies no licence of the open lists")
    tree = licensing().parse(expression)
    decision = _weigh(tree)
    if decision == "refused":
        return LicenceDecision(label, expression, decision, f"not on the open lists: {expression}")
    if expression == PUBLIC_DOMAIN:
        by = f"statute: {ground}" if ground else "public domain mark: the label places the work in the public domain"
        return LicenceDecision(label, expression, decision, by)
    assumed = "" if re.search(r"\d", text) or not re.search(r"\d", expression) else "; the label gives no version"
    return LicenceDecision(label, expression, decision, f"open licence: {MEANS[decision]}{assumed}")


def _weigh(tree) -> str:
    """Decide on a parsed expression: the strictest part of AND, the lightest of OR; no part of OR may be refused."""
    from license_expression import AND, OR  # lazy import: images of rented GPUs lack it

    if isinstance(tree, (AND, OR)):
        parts = {_weigh(part) for part in tree.args}
        choose = min if isinstance(tree, OR) and "refused" not in parts else max
        return choose(parts, key=STRICTNESS.index)
    exception = getattr(tree, "exception_symbol", None)  # of "licence WITH exception"; it only adds permissions
    if exception is not None and exception.key.startswith("LicenseRef"):
        return "refused"
    key = tree.license_symbol.key if exception is not None else tree.key
    return _classes().get(key, "refused")


@cache
def _classes() -> dict[str, str]:
    return {name: decision for decision, names in LABELS["families"].items() for name in names}
