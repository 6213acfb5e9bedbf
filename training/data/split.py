"""Rules of which text is held out: validation of shards, mixtures, task rows, and the evaluation of tokenizers.

Every rule hashes names, so its result is the same in every run and on every machine. The hashes never change: the
shipped tokenizer and femto's held-out text depend on them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from hashlib import blake2b, sha256
from typing import Literal

from ..common.unicode_forms import unicode_form

AUTHORS = 10  # a source with fewer names (an office, a company, none) is held out by work and not by author
LARGEST = 0.1  # share of a source above which an author is not held out: too much text would be lost

Register = Literal["old", "modern", "code", "noise"]


def hash_bits(key: str) -> int:
    """Hash a key to 64 bits, the same in every run and on every machine."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def hash_fraction(key: str) -> float:
    """Hash a key to a number in [0, 1): a reproducible order, or a share of the keys."""
    return hash_bits(key) / 2**64


def in_validation_split(key: str, share: float) -> bool:
    """Return whether the documents with this key belong to the `share` that token shards hold out for validation."""
    return hash_bits(key) < share * 2**64


def work_id(identifier: str) -> str:
    """Return the work that a document is part of: long works are stored in parts named `WORK#part007`."""
    return re.sub(r"#part\d+$", "", identifier)


def author_key(creator: str) -> str:
    """Normalise a creator to a family name: sources differ in the order of names, accents and dates.

    Authors who share a family name count as one, so that none is held out in one source and trained on in another.
    """
    name = re.sub(r"\d[\d-]*", " ", _without_brackets(creator))
    plain = unicode_form("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = plain.split(",")[0].split()
    return words[-1] if words else ""


def _without_brackets(text: str) -> str:
    """Replace texts in brackets by a space, as `re.sub(r"\\(.*?\\)|\\[.*?\\]", " ", text)`, but in linear time."""
    pieces, at, after = [], 0, {"(": -1, "[": -1, "\n": -1}  # next closing bracket and line end
    closing = {"(": ")", "[": "]", "\n": "\n"}
    for match in re.finditer(r"[(\[]", text):
        start = match.start()
        if start < at:
            continue
        for kind in (match[0], "\n"):
            if after[kind] < start:
                after[kind] = text.find(closing[kind], start) % (len(text) + 1)  # the end of the text if there is none
        if after[match[0]] < after["\n"]:
            pieces += [text[at:start], " "]
            at = after[match[0]] + 1
    return "".join([*pieces, text[at:]])


def select_held_out(documents: Iterable[dict], share: float) -> set[str]:
    """Select identifiers of `share` of the documents of each source (language and collection), in complete works.

    If a source names at least `AUTHORS` authors, complete authors are held out, and with them their documents in other
    such sources. A hash decides, so the selection does not depend on the order of documents.

    Args:
        documents: Dictionaries with identifier, collection, language and creator.
    """
    sources: dict[tuple, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    authors: dict[tuple, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for document in documents:
        source = document["language"], document["collection"]
        sources[source][work_id(document["identifier"])].append(document["identifier"])
        if name := author_key(document["creator"] or ""):
            authors[source][name].append(document["identifier"])
    named = {source: groups for source, groups in authors.items() if len(groups) >= AUTHORS}
    chosen: set[str] = set()
    gone: set[str] = set()
    for source in sorted(sources):
        total = sum(map(len, sources[source].values()))
        groups = named.get(source, sources[source])
        held, target = 0, share * total
        for key in sorted(groups, key=hash_fraction):
            if held >= target or target < 0.5:
                break
            if len(groups[key]) <= max(1, LARGEST * total):
                held += len(groups[key])
                chosen.update(groups[key])
                if source in named:
                    gone.add(key)
    for groups in named.values():
        for name in gone & set(groups):
            chosen.update(groups[name])
    return chosen


def held_out_groups(groups: Iterable[tuple[str, str]], share: float, seed: int) -> set[str]:
    """Select groups, such as authors, that no training row may come from: about `share` of each language's rows.

    Groups are held out completely, in an order that depends on the seed and their names alone. A group with more than
    half of its language's rows is kept for training.

    Args:
        groups: (language, group) of each row.
    """
    sizes: dict[str, Counter] = {}
    for language, group in groups:
        sizes.setdefault(language, Counter())[group] += 1
    chosen: set[str] = set()
    for _, counts in sorted(sizes.items()):
        target, size = share * counts.total(), sum(counts[group] for group in chosen)
        for group in sorted(counts, key=lambda group: hash_fraction(f"{seed}/{group}")):
            if size >= target:
                break
            if group not in chosen and counts[group] <= counts.total() / 2:
                chosen.add(group)
                size += counts[group]
    return chosen


def register(document: dict) -> Register:
    """Return the register of a document: code (and markup), old (cultural heritage, and all Latin) or modern."""
    if document["language_type"] == "Code":
        return "code"
    return "old" if document["open_type"] == "Open Culture" or document["language"] == "Latin" else "modern"


def in_tokenizer_evaluation(document: dict, *, share: float, seed: int) -> bool:
    """Return whether a document is kept to evaluate tokenizers, by a hash of its author (old) or work (others)."""
    key = document["identifier"].split("#part")[0]
    if register(document) == "old" and document["creator"]:
        key = document["creator"]
    return int.from_bytes(sha256(f"{seed} {key}".encode()).digest()[:8], "big") < share * 2**64
