"""What counts as personal data: Presidio's recognisers and a few of the same kind, with guards for books and laws.

Presidio finds, checks and names the values; no language model is loaded. What it leaves to context (most strings of
nine digits with a right check digit are no citizen's number) is decided here by the words before a value.
"""

import ipaddress
import re
from collections.abc import Callable
from functools import cache
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

# Whose numbers are looked for in a text; one in international form is found whatever the language. Editors of Latin
# are everywhere.
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
BEFORE = 48  # characters before a value in which a word may tell what it is
VALID, EXACT_GROUPING = 1, 3  # of phonenumbers.Leniency: the number exists; it is also written as its country writes

# What stands before numbers that are no one's: books, papers, firms, articles of law, versions, decimals.
PUBLIC = re.compile(
    r"(?:\b(?:ISBN|ISSN|DOI|EAN|UPC|SIRE[NT]|ECLI|CELEX|arXiv|PMID|OCLC|KBO|BCE|KvK|CNPJ|RCS|HRB|art|arts|article"
    r"|vol|pp?|v|ver|version\w*|versi\w+|vers[aã]o|release|build|Nr|No|RFC|UUID)\b|[§#°º])[\s.:=\-]*(?:\d{1,3}[\s,:]*)?$"
    r"|\d[.,] ?$",
    re.I,
)
DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}|(?:1\d|20)\d\d([./-])\d{1,2}\2\d{1,2}")
YEARS = re.compile(r"(?:1[0-9]|20)\d\d(?:\W{1,3}(?:1[0-9]|20)\d\d)+")


def words(these: str) -> re.Pattern:
    """Any of these whole words (patterns, separated by spaces)."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(these.split())})(?!\w)", re.I)


PHONE = words(
    r"t[eé]l t[eé]l[eé][fp]\w* tlf phone fone? fax gsm mob\w* m[oó]vil cell? cellulare handy portable whatsapp sms "
    r"call appel\w* (?:an)?rufen llam\w+ bel(?:len)? ligue ligar chiam\w+ telem[oó]vel conta[ck]t\w* kontakt\w*"
)
CARD = words(r"[ck]r[eé]dit\w* cards? carte carta cart[aã]o tarjeta karte kaart visa amex")
ADDRESS = words(r"ip\w* hosts? hostname server\w* serveur servidor ping")


class Found(NamedTuple):
    """A value in a text."""

    start: int
    end: int
    kind: str  # Presidio's name of the entity


class Kind(NamedTuple):
    """One kind of value."""

    recogniser: EntityRecognizer
    sure: Callable[[str], bool]  # whether a value needs no word before it
    word: re.Pattern | None = None  # one that tells

    @property
    def name(self) -> str:
        """Presidio's name of the entity."""
        return self.recogniser.supported_entities[0]

    def accepts(self, value: str) -> bool:
        """Whether the whole of a string is such a value."""
        found = self.recogniser.analyze(value, [self.name])
        return any((each.start, each.end) == (0, len(value)) for each in found)


class Email(EmailRecognizer):
    """Presidio's, with the list of top-level domains that tldextract carries instead of one from the network."""

    domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def validate_result(self, pattern_text: str) -> bool:
        """Whether the domain can exist, and is not one of those that stand for none."""
        domain = self.domains(pattern_text.rpartition("@")[2])
        return bool(domain.suffix) and domain.domain.lower() not in ("", "example")


class Address(IpRecognizer):
    """Presidio's, for addresses that somebody can have: not those of a home network, of manuals or of masks."""

    def invalidate_result(self, pattern_text: str) -> bool:
        """Whether nobody can have the address."""
        try:
            address = ipaddress.ip_address(pattern_text)
        except ValueError:  # networks too
            return True
        return not address.is_global or address.version == 6 and address.packed[0] >> 5 != 1  # 2000::/3 is in use


class Phone(PhoneRecognizer):
    """Presidio's, without what has the form of a date or of years."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts=None) -> list:
        """See PhoneRecognizer."""
        found = super().analyze(text, entities, nlp_artifacts)
        return [each for each in found if not DATE.fullmatch(v := text[each.start : each.end]) and not YEARS.match(v)]


class Checked(PatternRecognizer):
    """A pattern and a rule for its letters and digits."""

    def __init__(self, entity: str, pattern: str, valid: Callable[[str], bool]):
        super().__init__(entity, patterns=[Pattern(entity, pattern, 0.5)], global_regex_flags=re.ASCII)
        self.valid = valid

    def validate_result(self, pattern_text: str) -> bool:
        """Whether the check digits are right."""
        return self.valid(re.sub(r"\W", "", pattern_text))


def _weighted(number: str, weights: range, modulus: int) -> int:
    return sum(int(digit) * weight for digit, weight in zip(number, weights, strict=False)) % modulus


def _check_digit(number: str, weights: range) -> int:
    """Modulo 11; what would be 10 or 11 is 0."""
    return (11 - _weighted(number, weights, 11)) % 11 % 10


def french(number: str) -> bool:
    """Numéro de sécurité sociale: 13 signs (Corsica has a letter) and 97 less their remainder."""
    body = number[:-2].upper().replace("2A", "19").replace("2B", "18")
    return 97 - int(body) % 97 == int(number[-2:])


def belgian(number: str) -> bool:
    """Rijksregisternummer: 9 digits, with a 2 before them for those born since 2000, and 97 less their remainder."""
    month, day, check = int(number[2:4]), int(number[4:6]), int(number[9:])
    return month <= 12 and 1 <= day <= 31 and check in {97 - int(century + number[:9]) % 97 for century in ("", "2")}


def dutch(number: str) -> bool:
    """Burgerservicenummer: the elfproef."""
    return (_weighted(number, range(9, 1, -1), 11) - int(number[8])) % 11 == 0 and int(number) > 0


def portuguese(number: str) -> bool:
    """Número de identificação fiscal of a person (first digit 1 to 3)."""
    return number[0] in "123" and _check_digit(number[:8], range(9, 1, -1)) == int(number[8])


def brazilian(number: str) -> bool:
    """Cadastro de pessoas físicas: two check digits."""
    first = _check_digit(number[:9], range(10, 1, -1))
    second = _check_digit(number[:10], range(11, 1, -1))
    return len(set(number)) > 1 and number[9:] == f"{first}{second}"


def written(pattern: str) -> Callable[[str], bool]:
    """For values that only stand for themselves in one way of writing."""
    return re.compile(pattern).fullmatch


def always(value: str) -> bool:
    """For values that nothing else looks like."""
    return True


def never(value: str) -> bool:
    """For values that many other numbers look like."""
    return False


def capitals(value: str) -> bool:
    """For values of letters and digits, which OCR and code are full of in small letters."""
    return value.upper() == value


@cache
def kinds(language: str) -> tuple[Kind, ...]:
    """What is looked for in a text of a language; where two find the same place, the first has it."""
    belgian_number = Kind(
        Checked("BE_NATIONAL_NUMBER", r"\b\d{2}\.?\d{2}\.?\d{2}-?\d{3}\.?\d{2}\b", belgian),
        written(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d"),
        words(r"rijksregister\w* registre\snational num[eé]ro\snational insz niss"),
    )
    national = {
        "en": [
            Kind(
                UsSsnRecognizer(patterns=[Pattern("SSN", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", 0.5)]),
                never,
                words("social security ssns?"),
            ),
            Kind(UkNinoRecognizer(), capitals),
            Kind(NhsRecognizer(), never, words("nhs")),
        ],
        "fr": [
            Kind(
                Checked(
                    "FR_SOCIAL_SECURITY",
                    r"\b[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-4]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b",
                    french,
                ),
                always,
            ),
            belgian_number,
        ],
        "es": [
            Kind(
                EsNifRecognizer(patterns=[Pattern("NIF", r"\b\d{8}-?[A-Z]\b", 0.5)]),
                capitals,
            ),
            Kind(EsNieRecognizer(patterns=[Pattern("NIE", r"\b[XYZ]\d{7}-?[A-Z]\b", 0.5)]), capitals),
        ],
        "de": [
            Kind(DeTaxIdRecognizer(), never, words(r"steuer\S* identifikationsnummer idnr tin")),
            Kind(DeSocialSecurityRecognizer(), capitals),
        ],
        "it": [Kind(ItFiscalCodeRecognizer(), capitals)],
        "nl": [
            Kind(
                Checked("NL_BSN", r"\b\d{9}\b|\b\d{4}\.\d{2}\.\d{3}\b", dutch),
                never,
                words(r"bsn\w* burgerservicenummer sofi-?nummer"),
            ),
            belgian_number,
        ],
        "la": [],
        "pt": [
            Kind(
                Checked("BR_CPF", r"\b\d{3}\.?\d{3}\.?\d{3}-?\d{2}\b", brazilian),
                written(r"\d{3}\.\d{3}\.\d{3}-\d\d"),
                words(r"cpf cadastro\sde\spessoas?\sf[ií]sicas?"),
            ),
            Kind(
                Checked("PT_NIF", r"\b\d{3} ?\d{3} ?\d{3}\b", portuguese),
                never,
                words(r"nif contribuinte identifica[cç][aã]o\sfiscal"),
            ),
        ],
    }
    return (
        Kind(Email(), always),
        Kind(IbanRecognizer(), capitals),
        *national[language],
        Kind(CreditCardRecognizer(), written(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}"), CARD),
        Kind(Address(), lambda value: ":" in value or max(map(int, value.split("."))) > 99, ADDRESS),
        Kind(Phone(supported_regions=REGIONS[language], leniency=VALID), international, PHONE),
    )


def international(value: str) -> bool:
    """Whether a valid number is written so that it can be nothing else."""
    return bool(re.match(r"\+|00[1-9]\d{0,2}[ .(]|\(0?\d+\) ?\d", value))


def national_form(value: str, language: str) -> bool:
    """Whether a number stands as its country writes it: with the trunk 0 and its groups, or as 202-555-0143."""
    if re.fullmatch(r"[2-9]\d\d([-.])[2-9]\d\d\1\d{4}", value):
        return "US" in REGIONS[language]
    if not re.match(r"0\d{1,4}[ ./-]", value):
        return False
    return any(
        any(match.raw_string == value for match in phonenumbers.PhoneNumberMatcher(value, region, EXACT_GROUPING))
        for region in REGIONS[language]
    )


def find(text: str, language: str, start: int, end: int) -> list[Found]:
    """Personal data in text[start:end], in order and without overlaps; words before a value count from all of `text`.

    Args:
        text: a document.
        language: ISO code; decides whose national numbers are looked for.
        start: of a stretch; what it cuts in two is not found.
        end: of it.
    """
    stretch, taken = text[start:end], []
    for kind in kinds(language):
        for each in kind.recogniser.analyze(stretch, [kind.name]):
            found = Found(start + each.start, start + each.end, kind.name)
            before = text[max(0, found.start - BEFORE) : found.start].rpartition("\n\n")[2]
            free = all(found.end <= other.start or other.end <= found.start for other in taken)
            inside = text[found.start - 1 : found.start].isalnum() or text[found.end : found.end + 1].isalnum()
            if free and not inside and convincing(kind, text[found.start : found.end], before, language):
                taken.append(found)
    return sorted(taken)


def convincing(kind: Kind, value: str, before: str, language: str) -> bool:
    """Whether a value that has the right form is what it looks like, by the words before it or by itself."""
    if kind.word and kind.word.search(before):
        return True
    if kind.word and PUBLIC.search(before):
        return False
    return kind.sure(value) or kind.name == "PHONE_NUMBER" and national_form(value, language)
