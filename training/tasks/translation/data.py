"""Training and evaluation data of translation: rows from parallel segments."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from ...common.config import InputError
from ...data.documents import checked_languages
from ...data.licences import decide
from ...data.split import hash_fraction, held_out_groups
from ..sources import order_by_hash
from .aligned import segments
from .format import MAX_CHARACTERS, format_translation

RATIO = 2.5  # maximum ratio of lengths of two segments: beyond it they are not translations of each other
Directions = dict[tuple[str, str], list[dict]]  # (source, target) -> segments


@dataclass
class TranslationData:
    """Training and evaluation data of translation.

    Args:
        path: Parquet file or folder of parallel segments: columns id, source, license, and one per language (ISO
            codes). Default: LibreOffice's help in seven languages, and the Vulgate with an English Bible.
        languages: ISO codes. Default: all eight.
        pivot: ISO code of the language that is one side of every pair; null for any two languages.
        train_rows: Maximum number of training rows, equally many per direction if there are enough.
        held_out: Fraction of the pages and chapters that is not trained on.
        held_out_rows: Maximum number of evaluation rows.
        max_characters: Maximum characters of a text and of its translation.
        seed: Seed of the held-out split and of sampling.
    """

    path: Path | None = None
    languages: list[str] | None = None
    pivot: str | None = "en"
    train_rows: int = 20_000
    held_out: float = 0.05
    held_out_rows: int = 400
    max_characters: int = MAX_CHARACTERS
    seed: int = 0


def rows(data: TranslationData) -> dict[str, list[dict]]:
    """Return {"train": rows, "held_out": rows} without a common page, chapter, text or translation.

    Raises:
        InputError: If there are no segments, or a setting is invalid.
    """
    languages = checked_languages(data.languages)
    if len(languages) < 2 or data.pivot not in (None, *languages):
        raise InputError(
            f"translation of {', '.join(languages)} with pivot {data.pivot}: set --data.languages to at least two "
            "languages, and --data.pivot to one of them or null."
        )
    usable = [segment for segment in segments(data.path, languages) if not decide(segment["license"]).refused]
    groups = held_out_groups((("", segment["source"]) for segment in usable), data.held_out, data.seed)
    candidates: dict[str, Directions] = {"train": {}, "held_out": {}}
    for segment in usable:
        part = candidates["held_out" if segment["source"] in groups else "train"]
        for direction in _directions(segment, languages, data):
            part.setdefault(direction, []).append(segment)
    held_out = _select(candidates["held_out"], data.held_out_rows, data, excluded=set())
    texts = {segment[code] for direction, some in held_out.items() for segment in some for code in direction}
    train = _select(candidates["train"], data.train_rows, data, excluded=texts)
    if not train:
        raise InputError(f"no parallel segments in {', '.join(languages)}: pass others with --data.path.")
    return {
        name: order_by_hash(
            (_row(segment, *direction, data.seed) for direction, some in selected.items() for segment in some),
            data.seed,
        )
        for name, selected in (("train", train), ("held_out", held_out))
    }


def _directions(segment: dict, languages: list[str], data: TranslationData) -> Iterator[tuple[str, str]]:
    """Yield the (source, target) pairs for which a segment has suitable texts."""
    present = [code for code in languages if segment[code] and len(segment[code]) <= data.max_characters]
    for source, target in permutations(present, 2):
        a, b = segment[source], segment[target]
        if data.pivot in (None, source, target) and a != b and max(len(a), len(b)) <= RATIO * min(len(a), len(b)):
            yield source, target


def _select(candidates: Directions, count: int, data: TranslationData, *, excluded: set[str]) -> Directions:
    """Select `count` segments, equally many per direction if possible, no source text twice and no excluded text."""
    selected: Directions = {}
    left = count
    for i, direction in enumerate(sorted(candidates, key=lambda pair: len(candidates[pair]))):  # rarest first
        quota = left // (len(candidates) - i)
        seen: set[str] = set()
        some = selected.setdefault(direction, [])
        for segment in sorted(
            candidates[direction], key=lambda s: hash_fraction(f"{data.seed}/{s['id']}/{direction}")
        ):
            if len(some) >= quota:
                break
            if segment[direction[0]] not in seen and excluded.isdisjoint(segment[code] for code in direction):
                seen.add(segment[direction[0]])
                some.append(segment)
        left -= len(some)
    return selected


def _row(segment: dict, source: str, target: str, seed: int) -> dict:
    identifier = f"{segment['id']}:{source}-{target}"
    stated = source if hash_fraction(f"stated/{seed}/{identifier}") < 0.5 else None
    prompt, completion = format_translation(segment[source], target, segment[target], stated)
    return {
        **{"id": identifier, "language": target, "source": segment["source"], "license": segment["license"]},
        **{"source_language": source, "text": segment[source], "translation": segment[target]},
        **{"prompt": prompt, "completion": completion},
    }
