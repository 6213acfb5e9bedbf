"""Parse the name of a licence, in any spelling, to an SPDX expression; None unless every part is understood."""

import re
import unicodedata
from functools import cache
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import yaml

from ..common.unicode_forms import unicode_form

if TYPE_CHECKING:
    from license_expression import Licensing

LABELS = yaml.safe_load((Path(__file__).parent / "licence_labels.yaml").read_text(encoding="utf-8"))

LONGEST = 1_000  # characters of a label; longer ones are texts, not names
DASHES = "[-\u02d7\u058a\u2010-\u2015\u2043\u2212\u2e3a\u2e3b]"
ACCENTS = re.compile("(?<=[A-Za-z])[\u0300-\u0333\u0339-\u036f]+")  # not on symbols, and no strokes through letters
_ALLOWED = re.compile(r"(?:[a-z0-9\s.,:;/()\[\]'\"&+|-]|->|>=|f\*ck)+")  # any other character may mean anything
_BRACKETS = re.compile(
    r"\([^()\[\]]*[^()\[\]\s][^()\[\]]*\)|\[[^()\[\]]*[^()\[\]\s][^()\[\]]*\]"
)  # around a text without any
_PREAMBLE = re.compile(  # PyPI's classifiers, sentences, and Wikimedia's {{self|...}}
    r"^(?:licen[cs]e ?::? (?:osi approved :: )?|(?:this work is )?(?:licen[cs]ed|released) under (?:the |a )?|self\|)"
)
_FILLER = "the license licence licenses licences lizenz licenza licencia licentie version under licensed".split()
_VERSION = re.compile(r"\bv(?:ersion|er)?[\s.]*(?=\d)")
_CREATIVE_COMMONS_URL = re.compile(
    r"creativecommons\.org/(?:licenses/(?P<terms>[a-z-]+)/(?P<version>\d\.\d)(?:/(?P<port>[a-z]{2,4}))?"
    r"|publicdomain/(?P<tool>zero|mark)/1\.0)"
    r"(?:/(?:deed|legalcode)(?:\.[a-z]{2,3}(?:[ -](?:br|pt|tw|cn|hk|latn|es|gb))?)?)?"
)
_LISTED_URL = re.compile(  # sites whose addresses end in the SPDX identifier, or almost
    r"(?:spdx\.org/licenses|opensource\.org/licenses?|choosealicense\.com/licenses|gnu\.org/licenses|gnu\.org/copyleft"
    r"|dcat-ap\.de/def/licenses|opendefinition\.org/licenses|scancode-licensedb\.aboutcode\.org"
    r"|publications\.europa\.eu/resource/authority/licence)/(?P<name>[a-z0-9 .+/-]+?)"
    r"(?:-standalone)?(?:\.(?:en|html|txt|json|php))*"
)
_GNU = re.compile(
    r"(?:gnu )?(?P<family>affero general public|affero gpl|(?:lesser|library|library or lesser) general public"
    r"|general public|free documentation|agpl|lgpl|gfdl|fdl|gpl)(?: gpl| family)? ?(?P<version>\d(?:\.\d)?)?"
    r"(?P<later> ?or (?:any )?(?:later|newer|greater)| ?only)?"
)
_GNU_FAMILIES = {"a": "AGPL", "l": "LGPL", "f": "GFDL"}  # by the first letter of the family
_GNU_OLDEST = {"GPL": "1.0", "LGPL": "2.0", "AGPL": "3.0", "GFDL": "1.1"}  # without a version any may be chosen
_TERMS = {  # names of Creative Commons' terms in the eight languages
    "by": r"attribution|paternite|namensnennung|atribucion|reconocimiento|attribuzione|naamsvermelding|atribuicao",
    "sa": r"share ?alike|partage dans les memes conditions|partage a l.identique"
    r"|partage des conditions initiales a l.identique|weitergabe unter gleichen bedingungen|compartir ?igual"
    r"|condividi allo stesso modo|gelijk ?delen|comparti?lha ?igual|partilha ?igual|partilha nos mesmos termos",
    "cc": r"creative ?commons",
}
_PORTS = """
ar at au be bg br ca cl cn co cr cz dk ec ee eg es fi fr de gr gt hk hr hu ie il in it jo jp kr lu mk mt mx my nl no
nz pe ph pl pr pt ro rs scotland se sg si th tw ug uk us ve vn za igo deutschland france espana italia nederland
portugal brasil brazil germany spain italy netherlands
""".split()
_WIKIMEDIA_OLD = re.compile(  # templates for authors who died 70 years ago or more, also of photographs and scans
    r"(?:template )?(?:pd (?:art|scan) )?pd old(?: (?:70|75|80|90|95|100|auto))?(?: (?:expired|1923|1996))?"
)
_CC_FILLER = """
public international internacional internationale internazionale internationaal unported generic generico generique
deed legalcode migrated license licence licenses licences licenza licencia licentie lizenz licenca the version
""".split()


def normalize(label: str) -> str:
    """Normalise case, accents, quotes, dashes and spaces, drop invisible ones, write the paragraph sign out."""
    text = unicode_form("NFKD", label.replace("\u00a7", " par")).casefold()
    if not text.isascii():
        text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # soft hyphens, zero width, direction
        text = ACCENTS.sub("", text).replace("\u0153", "oe").replace("\u00e6", "ae")
    text = re.sub(DASHES, "-", re.sub("[\u2018\u2019\u201c\u201d\u00ab\u00bb`]", "'", text))
    return re.sub(r"[\s_]+", " ", text).strip().rstrip(".")


_CYRILLIC = "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445"
_CYRILLIC += "\u0455\u0456\u0458\u0475\u04bb\u04cf\u0501\u051b\u051d"  # of other languages than Russian
_GREEK = "\u03b1\u03b2\u03b3\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c3\u03c4\u03c5\u03c7\u03c9"
# Letters that look like Latin ones as small letters or as capitals.
_LOOK_ALIKES = dict(zip(_CYRILLIC + _GREEK, "abekmhopctyxsijvhldqw" + "abyezhikmnopctyxw", strict=True))
_LATIN = re.compile(r"(?:LATIN|INDICATOR SYMBOL) .*?\b([A-Z])\b")  # names of small capitals, letters in squares
_WITH_LATIN = ("LATIN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "THAI")  # without a space between them


def _letters(name: str) -> str:
    """Return a name decoded, in compatible and lower-case letters, without marks and invisible characters."""
    if "%" in name or "&" in name:
        name = unquote(unescape(name))
    if name.isascii():
        return name.casefold()
    text = unicode_form("NFKD", name).casefold()
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn"))


def _look_alike(character: str) -> str:
    """Return the small Latin letter or digit that a character looks like, or the character."""
    if character.isascii() or character in _LOOK_ALIKES:
        return _LOOK_ALIKES.get(character, character)
    if letter := _LATIN.search(unicodedata.name(character, "")):
        return letter[1].lower()
    return str(unicodedata.decimal(character, character))


def mixed_alphabets(*names: str) -> str | None:
    """Return the first word that has letters of the Latin and of another alphabet, which may look like Latin ones."""
    for word in re.findall(r"[^\W\d_]+", _letters(" ".join(names))):
        if word.isascii():
            continue
        scripts = [unicodedata.name(c, "") for c in word if unicodedata.category(c) != "Lm"]
        latin = any(script.startswith("LATIN") for script in scripts)
        if latin and not all(script.startswith(_WITH_LATIN) for script in scripts):
            return word
    return None


def normalize_names(name: str) -> set[str]:
    """Write a collection or identifier in a-z, 0-9 and "/", with one hyphen for each run of other characters.

    Invisible characters may stand inside a word or between two: one result separates at them, the others drop them.
    Letters that look like Latin ones are these in the last result.
    """
    text = _letters(name)
    texts = {text}
    if not name.isascii() or "%" in name or "&" in name:
        name = unicode_form("NFKD", unquote(unescape(name))).casefold()
        texts |= {re.sub(r"[^\x00-\x7f]", " ", name), "".join(map(_look_alike, text))}
    return {re.sub("-?/-?", "/", re.sub("[^a-z0-9/]+", "-", text)).strip("-") for text in texts}


def _compact(text: str) -> str:
    """Remove from a name what spellings differ in: punctuation, spaces, words like "license" and "version"."""
    text = text.replace("creative commons", "cc").replace("open data commons", "odc").replace("+", " orlater")
    text = _VERSION.sub("", re.sub(r"(?<=[a-z])v(?=\d)", " ", text))
    return "".join(word for word in re.findall(r"[a-z0-9*]+", text) if word not in _FILLER)


@cache
def _names() -> dict[str, str]:
    """Map compact names to SPDX identifiers: SPDX's own names, then the spellings of licence_labels.yaml."""
    listed = [e for e in _index() if not e["spdx_license_key"].startswith("LicenseRef-scancode")]
    names = {_compact(normalize(old)): e["spdx_license_key"] for e in listed for old in e["other_spdx_license_keys"]}
    names |= {_compact(normalize(e["spdx_license_key"])): e["spdx_license_key"] for e in listed}
    for identifier, spellings in LABELS["spellings"].items():
        names |= {_compact(normalize(spelling)): identifier for spelling in spellings}
    return names


def parse_name(text: str) -> tuple[str, str] | None:
    """Return the SPDX expression of a normalised label and the statute that it cites, or None if not understood."""
    text = _PREAMBLE.sub("", re.sub(r"^\{\{([^{}]+)\}\}$", r"\1", text.strip()))
    if not text or len(text) > LONGEST or not _ALLOWED.fullmatch(text) or not _is_balanced(text):
        return None
    if name := _name(text):
        return name, ""
    from license_expression import ExpressionError, ParseError  # lazy import: images of rented GPUs lack it

    try:
        return (str(licensing().parse(text, validate=True, strict=True)), "") if _is_expression(text) else _parts(text)
    except (ExpressionError, ParseError):
        return _parts(text)


def _is_balanced(text: str) -> bool:
    """Return whether every bracket is closed and contains something; else the label may be cut off."""
    for _ in range(8):  # levels of brackets
        text = _BRACKETS.sub("x", text)
    return not re.search(r"[()\[\]]", text)


def _is_expression(text: str) -> bool:
    """Return whether a text has the form of an SPDX expression: other texts raise any error in license-expression."""
    form = re.sub(r"(?<![a-z])(?!(?:and|or|with) )[a-z0-9.:+-]+", "x", text)
    for _ in range(16):  # two for each level of brackets
        form = re.sub(r"x(?: (?:and|or|with) x)+|\( ?x ?\)", "x", form)
    return form == "x"


def _parts(text: str) -> tuple[str, str] | None:
    """Parse a label with several licences, notes in brackets, or both."""
    if listed := re.fullmatch(r"\[(.+)\]", text):
        text = re.sub("['\"]", "", listed[1])
    if ";" in text:
        scopes = "|".join(LABELS["scopes"])
        scoped = [re.fullmatch(rf"(?:({scopes}) )?(.+)", part.strip()) for part in text.split(";")]
        if None in scoped or all(part[1] for part in scoped):
            return None  # no licence for the text itself
        return _all([part[2] for part in scoped], "AND")
    if noted := re.fullmatch(r"([^()]+?)\s*\(([^()]+)\)", text):
        return _noted(parse_name(noted[1]), noted[2])
    if bracketed := re.fullmatch(r"\(([^()]+)\)", text):
        return parse_name(bracketed[1])
    if "(" in text:
        return None
    if (exception := text.partition(" with "))[1]:
        main, key = parse_name(exception[0]), _names().get(_compact(exception[2]))
        known = key and any(e["is_exception"] for e in _index() if e["spdx_license_key"] == key)
        return (f"{main[0]} WITH {key}", main[1]) if main and known and " " not in main[0] else None
    for operator, pattern in (("AND", ","), ("OR", r" or |\|"), ("AND", r" and | & | \+ |/")):
        if len(parts := re.split(pattern, text)) > 1:
            return _all(_with_names(parts), operator)
    return None


def _with_names(parts: list[str]) -> list[str]:
    """Repeat the name before a version alone: "cc-by-sa-3.0,2.5" is CC BY-SA 3.0 and CC BY-SA 2.5."""
    for i in range(1, len(parts)):
        version = re.fullmatch(r"\s*v?(\d+(?:\.\d+)?)\s*", parts[i])
        if version and (last := re.search(r"\d+(?:\.\d+)?(?=\D*$)", parts[i - 1])):
            parts[i] = parts[i - 1][: last.start()] + version[1] + parts[i - 1][last.end() :]
    return parts


def _noted(main: tuple[str, str] | None, note: str) -> tuple[str, str] | None:
    """Parse a note in brackets after a licence: another part's licence, a statute, or the same licence again."""
    scope, _, licence = note.partition(" ")
    if main is None or scope in LABELS["scopes"]:
        other = main and parse_name(licence)
        return other and _join([main, other], "AND")
    if _compact(note) in ("text", "texts", "reuseallowed"):  # the last is YouTube's
        return main
    statutes = {_compact(normalize(ground)) for ground in LABELS["grounds"]}
    if _compact(note) in statutes or all(_compact(item) in statutes for item in note.split(",")):
        return main[0], note
    return main if parse_name(note) == main else None


def _all(parts: list[str], operator: str) -> tuple[str, str] | None:
    parsed = [parse_name(part) for part in parts]
    return None if None in parsed else _join(parsed, operator)


def _join(parsed: list[tuple[str, str]], operator: str) -> tuple[str, str]:
    """Join expressions without repetition."""
    expressions = list(dict.fromkeys(f"({name})" if " " in name else name for name, _ in parsed))
    joined = licensing().parse(f" {operator} ".join(expressions))
    grounds = "; ".join(ground for _, ground in parsed if ground)
    return str(joined.flatten() if len(expressions) > 1 else joined), grounds


def _name(text: str) -> str | None:
    """Return the SPDX identifier of one licence's name or address."""
    address = re.sub(r"^<?https?:/+(?:www\.)?|^www\.", "", text).rstrip("/>")
    if match := _CREATIVE_COMMONS_URL.fullmatch(address):
        if match["tool"]:
            return {"zero": "CC0-1.0", "mark": "CC-PDM-1.0"}[match["tool"]]
        return _creative_commons(f"cc {match['terms']} {match['version']} {match['port'] or ''}".strip())
    if (match := _LISTED_URL.fullmatch(address)) and address != text:
        return _name(match["name"].replace("/", " "))
    if _WIKIMEDIA_OLD.fullmatch(re.sub("[^a-z0-9]+", " ", text).strip()):
        return "LicenseRef-scancode-public-domain"
    if re.search("[|&;]", text):
        return None  # several names
    if name := _names().get(_compact(address)) or _gnu(text) or _creative_commons(text):
        return name
    later = re.fullmatch(r"(.+?)(?:\+| or (?:any )?later(?: version)?)", text)  # GNU's identifiers state it themselves
    return (_names().get(_compact(later[1])) or _creative_commons(later[1])) if later else None


def _gnu(text: str) -> str | None:
    text = re.sub(r">= ?(\d(?:\.\d)?)|(\d(?:\.\d)?)\+", r"\1\2 or later", text)
    text = _VERSION.sub("", re.sub(r"(?<=[a-z])v?(?=\d)", " ", re.sub(r"[(),'\"/-]", " ", text)))
    words = " ".join(word for word in text.split() if word not in _FILLER)
    if not (match := _GNU.fullmatch(words)):
        return None
    name = _GNU_FAMILIES.get(match["family"].removeprefix("g")[0], "GPL")
    version, later = match["version"], "only" if "only" in (match["later"] or "") else match["later"]
    if version is None:
        version, later = _GNU_OLDEST[name], later or "or later"
    version = version if "." in version else f"{version}.0"
    return _names().get(_compact(f"{name}-{version}-{'or-later' if later and later != 'only' else 'only'}".lower()))


def _creative_commons(text: str) -> str | None:
    """Parse CC BY or BY-SA in any spelling, version and country; without a version, assume the current one."""
    for term, names in _TERMS.items():
        text = re.sub(rf"\b(?:{names})\b", f" {term} ", text)
    text = re.sub(r"\bcc(?=by|sa)|\bby(?=nc|nd|sa)|\b(?:nc|nd)(?=sa|nd)", r"\g<0> ", text)
    text = re.sub(r"(?<=[a-z])v?(?=\d)", " ", _VERSION.sub("", text))
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)?|[^\s,.:/'\"-]", text)
    terms, version, port = [], None, None
    for word in words:
        if word in ("cc", "by", "sa", "nc", "nd"):
            terms.append(word)
        elif word[0].isdigit() and version is None:
            version = word if "." in word else f"{word}.0"
        elif version and port is None and word in _PORTS:
            port = word
        elif word not in _CC_FILLER:
            return None
    if "by" not in terms or len(set(terms)) < len(terms) or ("cc" not in terms and version is None):
        return None
    order = "-".join(term.upper() for term in ("by", "nc", "nd", "sa") if term in terms).replace("ND-SA", "ND")
    unported = f"CC-{order}-{version or '4.0'}"
    candidates = (f"{unported}-{(port or '').upper()}", unported)
    return next((name for name in candidates if name in set(_names().values())), None)


@cache
def licensing() -> "Licensing":
    """Return the parser of expressions: the identifiers of license-expression's index and this project's own."""
    from license_expression import LicenseSymbol, Licensing  # lazy import: see `parse_name`

    known = [(e["spdx_license_key"], e["other_spdx_license_keys"], e["is_exception"]) for e in _index()]
    return Licensing(
        [LicenseSymbol(key, aliases=aliases, is_exception=exception) for key, aliases, exception in known]
    )


@cache
def _index() -> list[dict]:
    from license_expression import get_license_index  # lazy import: see `parse_name`

    defaults = {"other_spdx_license_keys": [], "is_exception": False}
    return [e for e in get_license_index() if e.get("spdx_license_key")] + [
        {"spdx_license_key": key, **defaults} for key in LABELS["own"]
    ]
