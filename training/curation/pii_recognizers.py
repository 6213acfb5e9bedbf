"""Recognisers of personal data: Presidio's and additional national ones, adapted to books and laws.

Presidio detects, validates and names the values; no language model is loaded. Its surroundings decide whether a value
is personal data, because most strings of nine digits with a valid check digit are not a citizen's number: the words
before it, the numbers in its row and column, and the label of a version, shelfmark or article.
"""

import ipaddress
import re
from bisect import bisect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import phonenumbers
import tldextract
from presidio_analyzer import EntityRecognizer, Pattern, PatternRecognizer
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    DeSocialSecurityRecognizer,
    DeTaxIdRecognizer,
    EmailRecognizer,
    EsNieRecognizer,
    EsNifRecognizer,
    IbanRecognizer,
    IpRecognizer,
    ItFiscalCodeRecognizer,
    NhsRecognizer,
    PhoneRecognizer,
    UkNinoRecognizer,
    UsSsnRecognizer,
)

# Countries whose telephone numbers are detected in a language. Numbers in international format are always detected.
# Latin texts have editors in all countries.
REGIONS = {
    "en": ("GB", "US"),
    "fr": ("FR", "BE"),
    "es": ("ES",),
    "de": ("DE", "AT"),
    "it": ("IT",),
    "nl": ("NL", "BE"),
    "la": ("IT", "DE", "FR", "GB", "US", "ES", "NL", "PT"),
    "pt": ("PT", "BR"),
}
CONTEXT = 48  # characters before a value in which a word may identify it
VALID, EXACT_GROUPING = 1, 3  # phonenumbers.Leniency: the number is valid; it also has the format of its country

HEADER = 2000  # maximum characters from the header of a table to a value in it
NEAR = 400  # characters around a value in which its row and column are read

# Labels of numbers that are not personal data. Those in NUMBERED are overruled by an identifying word.
LABELS = (
    "ISBN ISSN DOI EAN UPC SIRE[NT] ECLI CELEX arXiv PMID OCLC KBO BCE KvK CNPJ RCS HRB RFC UUID OID CAS "
    r"arts? articles? artikel\w* art[i\xed]culos? artigos? articol[io] sections? clauses? annex anlage vol pp? "
    r"v ver \w*versi(?:on\w{0,2}|\xf3n|es?|\xf5es) vers[a\xe3]o release build firmware kernel driver rev revision "
    r"tari\w+ zolltarif\w* heading HS CN KN EC (?:sub|tarif)?positi\w+ codes? patents? serial serien\w* lots? items? "
    r"ref inv invent\w+ cat catal\w+ kat katalog\w* bestell-?n\w+ cod mss? shelf-?marks? pressmarks? call\snum\w+ "
    r"signat\w+ sign? cotes? segnatur\w* collocazione cota plaatskenmerk"
)
_BEFORE_VALUE = r"[\s.:=#\-(\[\"']*(?:\d{1,4}[\s,:]*)?$"
NUMBERED = re.compile(rf"(?:\b(?:Nr|No|n)\b|[#\xb0\xba]){_BEFORE_VALUE}|\d[.,] ?$", re.I)
PUBLIC = re.compile(rf"(?:\b(?:{'|'.join(LABELS.split())})\b(?:[-. ]+(?:Nr|No|n)\b)?|\xa7){_BEFORE_VALUE}", re.I)
# A person or place and a comma, as in lists of addresses: without a label, a number may be a telephone or card number
# only there. On a line of numbers, or after the letters of a shelfmark, it is something else.
ENTRY = re.compile(r"\b[A-Z\xc0-\xde][^\W\d_]+\b.*[,;:|(] ?$")
ENTRY_END = re.compile(r"\s*(?:[,;.:)|\n]|$)")
ROW = re.compile(r"\d[ \t]*[-./]?[ \t]*$"), re.compile(r"[ \t]*[-./]?[ \t]*\d")  # numbers before and after
ROW_OF_CODES = re.compile(r"\d\.\d+[ \t]+$"), re.compile(r"[ \t]+\d+\.\d")
CELLS = re.compile(r"(?<!\S)[(+\-]?\d[\d.,]*(?!\S)")
YEAR = re.compile(r"1\d\d\d|20\d\d")
DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}|(?:1\d|20)\d\d([./-])\d{1,2}\2\d{1,2}")
YEARS = re.compile(r"(?:1[0-9]|20)\d\d(?:\W{1,3}(?:1[0-9]|20)\d\d)+")


def words(patterns: str) -> re.Pattern:
    """Return a pattern that matches any of these space-separated patterns as a complete word."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(patterns.split())})(?!\w)", re.I)


PHONE = words(
    r"t[eé]l t[eé]l[eé][fp]\w* tlf phone fone? fax gsm mob mobil(?:e|nummer|telefon)? mobiel m[oó]vil cell? cellulare "
    r"handy portable whatsapp sms call(?!\snum) appel\w* (?:an)?rufen llam\w+ bel(?:len)? ligue ligar chiam\w+ "
    r"telem[oó]vel conta[ck]t\w* kontakt\w* reach joindre erreich\w* bereik\w* raggiung\w* "
    r"number\sis num[eé]ro\sest n[uú]mero\s[eé]s? nummer\s(?:ist|is) numero\s[eè]"
)
CARD_ISSUERS = re.compile(r"4|5[1-5]|3(?:0[0-5]|[4-9])|6")  # first digits
CARD = words(r"[ck]r[eé]dit\w* cards? carte carta cart[aã]o tarjeta karte kaart visa amex")
ADDRESS = words(r"ip ipv[46] hosts? hostname server\w* serveur servidor ping")


class PiiMatch(NamedTuple):
    """A value in a text."""

    start: int
    end: int
    kind: str  # Presidio entity


class PiiType(NamedTuple):
    """A type of personal data."""

    recogniser: EntityRecognizer
    is_unambiguous: Callable[[str], bool]  # True if a value needs no identifying word before it
    word: re.Pattern | None = None  # matches identifying words

    @property
    def name(self) -> str:
        """Presidio entity."""
        return self.recogniser.supported_entities[0]

    def accepts(self, value: str) -> bool:
        """Return whether a complete string is such a value."""
        matches = self.recogniser.analyze(value, [self.name])
        return any((match.start, match.end) == (0, len(value)) for match in matches)


class Email(EmailRecognizer):
    """Presidio's e-mail recogniser with tldextract's bundled list of top-level domains, without network access."""

    domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def validate_result(self, pattern_text: str) -> bool:
        """Return whether the domain can exist and is not a reserved example domain."""
        domain = self.domains(pattern_text.rpartition("@")[2])
        return bool(domain.suffix) and domain.domain.lower() not in ("", "example")


class Address(IpRecognizer):
    """Presidio's IP recogniser, restricted to public addresses: not private, documentation or mask addresses."""

    def invalidate_result(self, pattern_text: str) -> bool:
        """Return whether the address is not public."""
        try:
            address = ipaddress.ip_address(pattern_text)
        except ValueError:  # such as a network
            return True
        return not address.is_global or address.version == 6 and address.packed[0] >> 5 != 1  # 2000::/3 is in use


class Phone(PhoneRecognizer):
    """Presidio's telephone recogniser, without dates and years."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts=None) -> list:
        """See PhoneRecognizer."""
        matches = super().analyze(text, entities, nlp_artifacts)
        return [m for m in matches if not DATE.fullmatch(v := text[m.start : m.end]) and not YEARS.match(v)]


class ChecksumRecognizer(PatternRecognizer):
    """Recogniser with a pattern and a checksum over its letters and digits."""

    def __init__(self, entity: str, pattern: str, valid: Callable[[str], bool]):
        super().__init__(entity, patterns=[Pattern(entity, pattern, 0.5)], global_regex_flags=re.ASCII)
        self.valid = valid

    def validate_result(self, pattern_text: str) -> bool:
        """Return whether the check digits are correct."""
        return self.valid(re.sub(r"\W", "", pattern_text))


def _weighted(number: str, weights: range, modulus: int) -> int:
    return sum(int(digit) * weight for digit, weight in zip(number, weights, strict=False)) % modulus


def _check_digit(number: str, weights: range) -> int:
    """Return the check digit modulo 11, where 10 and 11 become 0."""
    return (11 - _weighted(number, weights, 11)) % 11 % 10


def french(number: str) -> bool:
    """Check a numéro de sécurité sociale: 13 characters (Corsica has a letter) and 97 minus their remainder."""
    body = number[:-2].upper().replace("2A", "19").replace("2B", "18")
    return 97 - int(body) % 97 == int(number[-2:])


def belgian(number: str) -> bool:
    """Check a rijksregisternummer: 9 digits, prefixed with 2 for births since 2000, and 97 minus their remainder."""
    month, day, check = int(number[2:4]), int(number[4:6]), int(number[9:])
    return month <= 12 and 1 <= day <= 31 and check in {97 - int(century + number[:9]) % 97 for century in ("", "2")}


def dutch(number: str) -> bool:
    """Check a burgerservicenummer: the elfproef."""
    return (_weighted(number, range(9, 1, -1), 11) - int(number[8])) % 11 == 0 and int(number) > 0


def portuguese(number: str) -> bool:
    """Check a número de identificação fiscal of a person (first digit 1 to 3)."""
    return number[0] in "123" and _check_digit(number[:8], range(9, 1, -1)) == int(number[8])


def brazilian(number: str) -> bool:
    """Check a number of the cadastro de pessoas físicas: two check digits."""
    first = _check_digit(number[:9], range(10, 1, -1))
    second = _check_digit(number[:10], range(11, 1, -1))
    return len(set(number)) > 1 and number[9:] == f"{first}{second}"


def written(pattern: str) -> Callable[[str], bool]:
    """Return a predicate: the value is unambiguous in this format only."""
    return re.compile(pattern).fullmatch


def always(value: str) -> bool:
    """Accept all values: nothing else has their format."""
    return True


def never(value: str) -> bool:
    """Accept no value: many other numbers have the same format."""
    return False


def capitals(value: str) -> bool:
    """Accept upper-case values: OCR text and code contain many lower-case strings of the same format."""
    return value.upper() == value


def checked(
    entity: str, pattern: str, valid: Callable[[str], bool], is_unambiguous: Callable[[str], bool], word: str = ""
) -> PiiType:
    """Return a type with a checksum; `word` are the patterns of its identifying words."""
    return PiiType(ChecksumRecognizer(entity, pattern, valid), is_unambiguous, words(word) if word else None)


@cache
def kinds(language: str) -> tuple[PiiType, ...]:
    """Return the types to detect in a language; the first has priority if matches overlap."""
    ssn = Pattern("SSN", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", 0.5)
    nif, nie = Pattern("NIF", r"\b\d{8}-?[A-Z]\b", 0.5), Pattern("NIE", r"\b[XYZ]\d{7}-?[A-Z]\b", 0.5)
    nir = r"\b[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-4]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b"
    insz, insz_written = r"\b\d{2}\.?\d{2}\.?\d{2}-?\d{3}\.?\d{2}\b", written(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d")
    insz_words = r"rijksregister\w* registre\snational num[eé]ro\snational insz niss"
    cpf, cpf_written = r"\b\d{3}\.?\d{3}\.?\d{3}-?\d{2}\b", written(r"\d{3}\.\d{3}\.\d{3}-\d\d")
    cpf_words = r"cpf cadastro\sde\spessoas?\sf[ií]sicas?"
    pt_nif_words = r"nif contribuinte identifica[cç][aã]o\sfiscal"
    bsn, bsn_words = r"\b\d{9}\b|\b\d{4}\.\d{2}\.\d{3}\b", r"bsn\w* burgerservicenummer sofi-?nummer"
    belgian_number = checked("BE_NATIONAL_NUMBER", insz, belgian, insz_written, insz_words)
    national = {
        "en": [
            PiiType(UsSsnRecognizer(patterns=[ssn]), never, words("social security ssns?")),
            PiiType(UkNinoRecognizer(), capitals, words(r"national\sinsurance nino ni")),
            PiiType(NhsRecognizer(), never, words("nhs")),
        ],
        "fr": [checked("FR_SOCIAL_SECURITY", nir, french, always), belgian_number],
        "es": [PiiType(EsNifRecognizer(patterns=[nif]), capitals), PiiType(EsNieRecognizer(patterns=[nie]), capitals)],
        "de": [
            PiiType(DeTaxIdRecognizer(), never, words(r"steuer\S* identifikationsnummer idnr tin")),
            PiiType(DeSocialSecurityRecognizer(), capitals),
        ],
        "it": [PiiType(ItFiscalCodeRecognizer(), capitals)],
        "nl": [checked("NL_BSN", bsn, dutch, never, bsn_words), belgian_number],
        "la": [],
        "pt": [
            checked("BR_CPF", cpf, brazilian, cpf_written, cpf_words),
            checked("PT_NIF", r"\b\d{3} ?\d{3} ?\d{3}\b", portuguese, never, pt_nif_words),
        ],
    }
    return (
        PiiType(Email(), always),
        PiiType(IbanRecognizer(), capitals),
        *national[language],
        PiiType(CreditCardRecognizer(), written(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}"), CARD),
        PiiType(Address(), lambda value: ":" in value or max(map(int, value.split("."))) > 99, ADDRESS),
        PiiType(Phone(supported_regions=REGIONS[language], leniency=VALID), international, PHONE),
    )


def international(value: str) -> bool:
    """Return whether a valid telephone number has an unambiguous international format."""
    return bool(re.match(r"\+|00[1-9]\d{0,2}[ .(]|\(0?\d+\) ?\d", value))


def national_form(value: str, language: str) -> bool:
    """Return whether a number has the format of its country: trunk 0 and groups, or like 202-555-0143."""
    if re.fullmatch(r"[2-9]\d\d([-.])[2-9]\d\d\1\d{4}", value):
        return "US" in REGIONS[language]
    if not re.match(r"0\d{1,4}[ ./-]", value):
        return False
    return any(
        any(match.raw_string == value for match in phonenumbers.PhoneNumberMatcher(value, region, EXACT_GROUPING))
        for region in REGIONS[language]
    )


def find(text: str, language: str, start: int, end: int, *, surroundings: bool = True) -> list[PiiMatch]:
    """Return the personal data in text[start:end], in order and without overlaps.

    Args:
        text: Normalised text of a document; what is around the span may identify a value.
        language: ISO code; decides which countries' national numbers are detected.
        start: Start of the span; a value that crosses it is not detected.
        end: End of the span.
        surroundings: False skips the checks of what surrounds a value, to measure them.
    """
    values: list[PiiMatch] = []  # in order
    for kind in kinds(language):
        for match in kind.recogniser.analyze(text[start:end], [kind.name]):
            value = PiiMatch(start + match.start, start + match.end, kind.name)
            before = context_before(text, value.start)
            at = bisect(values, value)
            neighbours = values[max(0, at - 1) : at + 1]
            overlaps = any(value.start < other.end and other.start < value.end for other in neighbours)
            inside = text[value.start - 1 : value.start].isalnum() or text[value.end : value.end + 1].isalnum()
            if overlaps or inside or not is_personal(kind, text[value.start : value.end], before, language):
                continue
            if not surroundings or surroundings_agree(kind, text, value, before, language):
                values.insert(at, value)
    return values


def context_before(text: str, start: int) -> str:
    """Return the characters of the same paragraph before a value; in a table, after its header."""
    paragraph = text[max(0, start - HEADER) : start].rpartition("\n\n")[2]
    header, _, rest = paragraph.partition("\n")
    before = paragraph[-CONTEXT:]
    return f"{header}\n{before}" if rest and re.search(r"[|;\t]", paragraph.rpartition("\n")[2]) else before


def is_personal(kind: PiiType, value: str, before: str, language: str) -> bool:
    """Decide whether a value of the right format is personal data, by the words before it or by its format."""
    if kind.word and kind.word.search(before):
        return True
    if kind.word and (NUMBERED.search(before) or PUBLIC.search(before)):
        return False
    return is_unambiguous(kind, value, language)


def is_unambiguous(kind: PiiType, value: str, language: str) -> bool:
    """Return whether a value needs no identifying word before it."""
    return bool(kind.is_unambiguous(value)) or kind.name == "PHONE_NUMBER" and national_form(value, language)


# Surroundings -------------------------------------------------------------------------------------


def surroundings_agree(kind: PiiType, text: str, value: PiiMatch, before: str, language: str) -> bool:
    """Return whether a value can be personal data at its place, and not one of the numbers around it.

    Neither a label that it follows nor its row and column may say otherwise; an identifying word overrules the latter.
    """
    written, line = text[value.start : value.end], before.rpartition("\n")[2]
    after = text[value.end : value.end + CONTEXT]
    if kind.name == "EMAIL_ADDRESS":
        return not is_expression(written, after)
    if kind.name == "IBAN_CODE":
        return True
    if PUBLIC.search(before) or all(map(YEAR.fullmatch, re.findall(r"\d+", written))):
        return False
    if kind.name == "CREDIT_CARD" and not CARD_ISSUERS.match(written):
        return False
    if kind.name == "IP_ADDRESS" and (re.search(r"\d\.$", before) or re.match(r"\.?\d|:\w*:", after)):
        return False
    if kind.word and kind.word.search(before):
        return True
    if kind.name == "IP_ADDRESS" and "." in written and len(re.findall(r"\b[12]\d\d\b", written)) < 2:
        return False
    before_row, after_row = ROW_OF_CODES if kind.name == "IP_ADDRESS" else ROW
    if written[0] != "+" and (before_row.search(line) or after_row.match(after)):
        return False
    if kind.name in ("PHONE_NUMBER", "CREDIT_CARD", "UK_NINO") and written[0] != "+":
        in_prose = kind.name == "UK_NINO" and re.search(r"[a-z] $", line)
        if not (in_prose or ENTRY.search(line) and ENTRY_END.match(after)):
            return False
    return not is_in_table(kind, text, value, language)


def is_expression(address: str, after: str) -> bool:
    """Return whether an address is source code: a product of matrices, a call, or the start of a path."""
    return bool(re.search("[a-z][A-Z]", address.rpartition(".")[2]) or re.match(r"[(\[]|:[\w/~]", after))


@lru_cache(maxsize=4096)  # the rows of a table are compared with each other
def _is_valid(kind: PiiType, value: str, language: str) -> bool:
    return kind.accepts(value) and is_unambiguous(kind, value, language)


def is_in_table(kind: PiiType, text: str, value: PiiMatch, language: str) -> bool:
    """Return whether most strings of the same form nearby are no values, or the next lines are rows of numbers."""
    written = text[value.start : value.end]
    near = text[max(0, value.start - NEAR) : value.start] + "\n" + text[value.end : value.end + NEAR]
    form = re.sub(r"\d", r"\\d", re.sub(r"[A-Z]", "[A-Z]", re.escape(written)))
    others = re.findall(rf"(?<![\w.,\-]){form}(?!\w)", near)
    valid = sum(_is_valid(kind, other, language) for other in others)
    if 2 * valid < len(others):
        return True
    groups = len(re.findall(r"\d+", written))
    above = text[max(0, value.start - NEAR) : value.start].rpartition("\n")[0].rstrip().rpartition("\n")[2]
    below = text[value.end : value.end + NEAR].partition("\n")[2].lstrip().partition("\n")[0]
    return not valid and any(len(CELLS.findall(line)) >= max(3, groups) for line in (above, below))
