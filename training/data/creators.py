"""Parse creators with their years of life, and dates of publication; None unless every part is understood."""

import re

from ..common.unicode_forms import unicode_form
from .licence_names import ACCENTS, DASHES, LABELS

_UPPER = "A-Z\u00c6\u00d8\u00de\u0110\u0141\u0152"  # Latin letters that have no accent to remove, too
_LETTER = f"{_UPPER}a-z\u00df\u00e6\u00f0\u00f8\u00fe\u0111\u0131\u0142\u0153"
_WORD = re.compile(f"(?:[dlDLO]')?[{_UPPER}][{_LETTER}]+(?:-[{_UPPER}][{_LETTER}]+)*|St\\.")
_INITIALS = re.compile(f"(?:[{_UPPER}]\\.-?)+")
_PARTICLE = re.compile(
    r"\b(?:(?:de|van|von) (?:la|las|los|der|den|dem)|d'|da|das|de|do|dos|del|della|di|du|te|ten|ter"
    r"|van|von|zu|zum|zur)(?: |$)"
)
_ARTICLES = frozenset(
    "the le la les el los las il lo gli der die das den de het een un une os as van von du st.".split()
)
_NOT_A_PERSON = frozenset(" ".join(LABELS["not_a_person"]).split())
_COMPOUND = re.compile(f"(?:{'|'.join(LABELS['compounds'])})")
_COMMA = re.compile(rf"(?<=\)),(?= [{_UPPER}])")
_SEPARATOR = re.compile(rf" *(?:[;|&\n]|{_COMMA.pattern}|,? (?i:and|et|und|u\.|ed|en) |,? [ey] ) *")
_PERSON = re.compile(
    r"(?P<name>[^0-9()]+?),? ?(?P<bracket>\()?(?P<born>[0-9]{3,4})-(?P<died>[0-9]{3,4})(?(bracket)\))"
    r"(?:[.,]? ?(?P<role>[A-Za-z ]+|\([A-Za-z ]+\)|\[[A-Za-z ]+\]))?\.?"
)
_DATE = re.compile(  # year, month or range; ISO date and time; day, month and year
    r"([0-9]{4})(?:[-/]([0-9]{2}|[0-9]{4}))?"
    r"|([0-9]{4})-[01][0-9]-[0-3][0-9](?:[T ][0-9]{2}:[0-9]{2}[0-9:.]*(?:Z|[+-][0-9:]+)?)?"
    r"|[0-3]?[0-9]([./-])[0-3]?[0-9]\4([0-9]{4})"
)


def parse_lives(creators: str) -> list[tuple[int, int]] | None:
    """Return the years of birth and death of every creator; None unless all are persons whose years are stated.

    A person is "Verne, Jules (1828-1905)", "Verne, Jules, 1828-1905" or "Jules Verne (1828-1905)", if need be with a
    role at the end. Whatever else the text contains, it may name someone else or qualify the years.
    """
    text = ACCENTS.sub("", unicode_form("NFKD", creators))
    text = text.replace("\u2010", "-").replace("\u2019", "'")
    text = re.sub(f"(?<=[0-9]) ?{DASHES} ?(?=[0-9])", "-", text)
    text = re.sub(r"[^\S ]\s*| {2,}", "\n", text)  # columns and lines may be lists
    lives, authors, inverted = [], 0, set()
    for part in _SEPARATOR.split(text.strip("; \n")):
        match = _PERSON.fullmatch(part)
        if match is None or not _is_person(match["name"]) or not (match["bracket"] or "," in match["name"]):
            return None
        born, died, role = int(match["born"]), int(match["died"]), (match["role"] or "").strip("()[] ").lower()
        if not 15 < died - born <= 100 or role not in ("", *LABELS["author_roles"], *LABELS["other_roles"]):
            return None
        lives.append((born, died))
        inverted.add("," in match["name"])
        authors += role not in LABELS["other_roles"]
    if len(inverted) == 2 and _COMMA.search(text):
        return None  # "Vale (1801-1850), Moor, Lee (1820-1880)" may be three persons
    return lives if authors else None


def parse_year(date: str) -> int | None:
    """Return the year of a date of publication, the last of a range; None if it is qualified or before printing."""
    text = re.sub(f" ?{DASHES} ?", "-", unicode_form("NFKD", date).strip()).removesuffix(".")
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    first, end = int(match[1] or match[3] or match[5]), match[2]
    last = int(end if len(end) == 4 else f"{first // 100}{end}") if end else first
    if last < first:  # "1870-05" is a month, "1905-06" may be a range
        last = first if 1 <= int(end) <= 12 else 0
    return last if 1450 <= first <= last else None


def _is_person(name: str) -> bool:
    """Return whether a name, "Family, Given" or "Given Family", is surely one person's and no body's.

    Each part has at most three names, and one part has only one: "Jane Doe, Ray Roe" is two persons.
    """
    parts, counts = name.split(","), []
    for part in parts:
        words = re.sub(rf"({_INITIALS.pattern}) (?={_INITIALS.pattern})", r"\1", _PARTICLE.sub("", part)).split()
        if not all(_INITIALS.fullmatch(word) or _is_name(word) for word in words):
            return False
        counts.append(sum(word.lower() not in _ARTICLES for word in words))
    if not 0 < min(counts) <= max(counts) <= 3:
        return False
    if len(parts) == 1:  # a name ends in a family name, not in "S.A."
        return words[0].lower() not in _ARTICLES and not _INITIALS.fullmatch(words[-1])
    return len(parts) == 2 and min(counts) == 1


def _is_name(word: str) -> bool:
    lower = word.lower()
    return (
        bool(_WORD.fullmatch(word)) and not _COMPOUND.search(lower) and not _NOT_A_PERSON & {lower, *lower.split("-")}
    )
