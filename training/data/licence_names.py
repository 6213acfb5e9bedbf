"""From the name of a licence, however it is spelt, to its SPDX expression; what is not understood whole gives None."""

import re
import unicodedata
from functools import cache

from license_expression import ExpressionError, LicenseSymbol, Licensing, ParseError, get_license_index

from . import licence_labels as labels

_ALLOWED = re.compile(r"(?:[a-z0-9\s.,:;/()\[\]'\"&+|-]|->|>=|f\*ck)+")  # any other sign may mean anything
_PREAMBLE = re.compile(  # PyPI's classifiers, and sentences
    r"^(?:licen[cs]e ?::? (?:osi approved :: )?|(?:this work is )?(?:licen[cs]ed|released) under (?:the |a )?)"
)
_ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")  # on letters; on a sign they make another sign
_FILLER = "the license licence licenses licences lizenz licenza licencia licentie version under licensed".split()
_VERSION = re.compile(r"\bv(?:ersion|er)?[\s.]*(?=\d)")
_CREATIVE_COMMONS_URL = re.compile(
    r"creativecommons\.org/(?:licenses/(?P<terms>[a-z-]+)/(?P<version>\d\.\d)(?:/(?P<port>[a-z]{2,4}))?"
    r"|publicdomain/(?P<tool>zero|mark)/1\.0)"
    r"(?:/(?:deed|legalcode)(?:\.[a-z]{2,3}(?:[ -](?:br|pt|tw|cn|hk|latn|es|gb))?)?)?"
)
_LISTED_URL = re.compile(  # sites whose addresses end in the SPDX identifier, or nearly
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
_GNU_FAMILIES = {"a": "AGPL", "l": "LGPL", "f": "GFDL"}  # by the first letter after GNU's
_GNU_OLDEST = {"GPL": "1.0", "LGPL": "2.0", "AGPL": "3.0", "GFDL": "1.1"}  # without a version any may be chosen
_TERMS = {  # Creative Commons' own names of its terms in our languages
    "by": r"attribution|paternite|namensnennung|atribucion|reconocimiento|attribuzione|naamsvermelding|atribuicao",
    "sa": r"share ?alike|partage dans les memes conditions|partage a l.identique"
    r"|partage des conditions initiales a l.identique|weitergabe unter gleichen bedingungen|compartir ?igual"
    r"|condividi allo stesso modo|gelijk ?delen|comparti?lha ?igual|partilha ?igual|partilha nos mesmos termos",
    "cc": r"creative ?commons",
}
_PORTS = """
ar at au be br ca cl cn co cr cz dk ec ee es fi fr de gr gt hk hr hu ie il in it jp lu mx nl no nz pe ph pl pt ro rs se
sg si th tw ug uk us ve vn za igo deutschland france espana italia nederland portugal brasil brazil germany spain italy
netherlands
""".split()
_CC_FILLER = """
public international internacional internationale internazionale internationaal unported generic generico generique
deed legalcode license licence licenses licences licenza licencia licentie lizenz licenca the version
""".split()


def plain(label: str) -> str:
    """Lower case, no accents, one sort of quote, dash and space; the paragraph sign written out."""
    text = unicodedata.normalize("NFKD", label.replace("\u00a7", " par").replace("\u00ad", "")).casefold()
    text = _ACCENTS.sub("", text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", re.sub("[\u2018\u2019\u201c\u201d\u00ab\u00bb`]", "'", text))
    return re.sub(r"[\s_]+", " ", text).strip().rstrip(".")


def _compact(text: str) -> str:
    """A name without what spellings differ in: signs, spaces, and words like "license" and "version"."""
    text = text.replace("creative commons", "cc").replace("open data commons", "odc").replace("+", " orlater")
    text = _VERSION.sub("", re.sub(r"(?<=[a-z])v(?=\d)", " ", text))
    return "".join(word for word in re.findall(r"[a-z0-9*]+", text) if word not in _FILLER)


@cache
def _names() -> dict[str, str]:
    """Compact name -> SPDX identifier: all of SPDX's own, then our spellings."""
    listed = [e for e in _index() if not e["spdx_license_key"].startswith("LicenseRef-scancode")]
    names = {_compact(plain(old)): e["spdx_license_key"] for e in listed for old in e["other_spdx_license_keys"]}
    names |= {_compact(plain(e["spdx_license_key"])): e["spdx_license_key"] for e in listed}
    for identifier, spellings in labels.SPELLINGS.items():
        names |= {_compact(plain(each)): identifier for each in re.split(r"[|\n]", spellings) if each.strip()}
    return names


def read(text: str) -> tuple[str, str] | None:
    """SPDX expression of a plain label and the statute that it cites; None unless every part is understood."""
    text = _PREAMBLE.sub("", text.strip())
    if not text or not _ALLOWED.fullmatch(text):
        return None
    if name := _name(text):
        return name, ""
    try:
        return str(licensing().parse(text, validate=True)), ""
    except (ExpressionError, ParseError):
        return _parts(text)


def _parts(text: str) -> tuple[str, str] | None:
    """A label of several licences, with notes in brackets, or both."""
    if listed := re.fullmatch(r"\[(.+)\]", text):
        text = re.sub("['\"]", "", listed[1])
    if ";" in text:
        scoped = [re.fullmatch(rf"(?:({'|'.join(labels.SCOPES)}) )?(.+)", part.strip()) for part in text.split(";")]
        if None in scoped or all(part[1] for part in scoped):
            return None  # nothing is said of the text itself
        return _all([part[2] for part in scoped], "AND")
    if noted := re.fullmatch(r"([^()]+?)\s*\(([^()]+)\)", text):
        return _noted(read(noted[1]), noted[2])
    if bracketed := re.fullmatch(r"\(([^()]+)\)", text):
        return read(bracketed[1])
    if "(" in text:
        return None
    if (exception := text.partition(" with "))[1]:
        main, key = read(exception[0]), _names().get(_compact(exception[2]))
        known = key and any(e["is_exception"] for e in _index() if e["spdx_license_key"] == key)
        return (f"{main[0]} WITH {key}", main[1]) if main and known and " " not in main[0] else None
    for operator, pattern in (("AND", ","), ("OR", r" or |\|"), ("AND", r" and | & | \+ |/")):
        if len(parts := re.split(pattern, text)) > 1:
            return _all(parts, operator)
    return None


def _noted(main: tuple[str, str] | None, note: str) -> tuple[str, str] | None:
    """A licence with a note in brackets: another part's licence, a statute, or the licence's own name once more."""
    scope, _, licence = note.partition(" ")
    if main is None or scope in labels.SCOPES:
        other = main and read(licence)
        return other and _join([main, other], "AND")
    if _compact(note) in ("text", "texts", "reuseallowed"):  # the last is YouTube's
        return main
    statutes = {_compact(plain(each)) for each in labels.GROUNDS}
    if _compact(note) in statutes or all(_compact(item) in statutes for item in note.split(",")):
        return main[0], note
    return main if read(note) == main else None


def _all(parts: list[str], operator: str) -> tuple[str, str] | None:
    found = [read(part) for part in parts]
    return None if None in found else _join(found, operator)


def _join(found: list[tuple[str, str]], operator: str) -> tuple[str, str]:
    """One expression of several, each named once."""
    expressions = list(dict.fromkeys(f"({each})" if " " in each else each for each, _ in found))
    joined = licensing().parse(f" {operator} ".join(expressions))
    grounds = "; ".join(ground for _, ground in found if ground)
    return str(joined.flatten() if len(expressions) > 1 else joined), grounds


def _name(text: str) -> str | None:
    """SPDX identifier of one licence's name or address."""
    address = re.sub(r"^<?https?:/+(?:www\.)?|^www\.", "", text).rstrip("/>")
    if found := _CREATIVE_COMMONS_URL.fullmatch(address):
        if found["tool"]:
            return {"zero": "CC0-1.0", "mark": "CC-PDM-1.0"}[found["tool"]]
        return _creative_commons(f"cc {found['terms']} {found['version']} {found['port'] or ''}".strip())
    if (found := _LISTED_URL.fullmatch(address)) and address != text:
        return _name(found["name"].replace("/", " "))
    if re.search("[|&;]", text):
        return None  # several names
    return _names().get(_compact(address)) or _gnu(text) or _creative_commons(text) or _or_later(text)


def _or_later(text: str) -> str | None:
    """A licence "or any later version", other than GNU's, whose identifiers say so themselves."""
    found = re.fullmatch(r"(.+?)(?:\+| or (?:any )?later(?: version)?)", text)
    return _name(found[1]) if found else None


def _gnu(text: str) -> str | None:
    text = re.sub(r">= ?(\d(?:\.\d)?)|(\d(?:\.\d)?)\+", r"\1\2 or later", text)
    text = _VERSION.sub("", re.sub(r"(?<=[a-z])v?(?=\d)", " ", re.sub(r"[(),'\"/-]", " ", text)))
    words = " ".join(word for word in text.split() if word not in _FILLER)
    if not (found := _GNU.fullmatch(words)):
        return None
    name = _GNU_FAMILIES.get(found["family"].removeprefix("g")[0], "GPL")
    version, later = found["version"], "only" if "only" in (found["later"] or "") else found["later"]
    if version is None:
        version, later = _GNU_OLDEST[name], later or "or later"
    version = version if "." in version else f"{version}.0"
    return _names().get(_compact(f"{name}-{version}-{'or-later' if later and later != 'only' else 'only'}".lower()))


def _creative_commons(text: str) -> str | None:
    """BY or BY-SA in any spelling, version and country; without a version the current one stands for all of them."""
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
    return next((each for each in candidates if each in set(_names().values())), None)


@cache
def licensing() -> Licensing:
    """SPDX's identifiers, as license-expression's index has them, and our own."""
    known = [(e["spdx_license_key"], e["other_spdx_license_keys"], e["is_exception"]) for e in _index()]
    return Licensing(
        [LicenseSymbol(key, aliases=aliases, is_exception=exception) for key, aliases, exception in known]
    )


@cache
def _index() -> list[dict]:
    own = {"other_spdx_license_keys": [], "is_exception": False}
    return [e for e in get_license_index() if e.get("spdx_license_key")] + [
        {"spdx_license_key": key, **own} for key in labels.OWN
    ]
