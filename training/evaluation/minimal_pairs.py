"""Minimal pairs: share of pairs of a right and a wrong sentence in which the right one is more probable."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..common.config import InputError
from ..common.files import fingerprint
from ..common.intervals import Metric, ratios_by
from ..common.language import LANGUAGES
from ..data.documents import checked_languages
from ..data.split import hash_fraction
from ..tasks.sources import read_user_files
from .agreement_pairs import PAIRS, agreement_pairs
from .bits_per_byte import encode, mean_of_ratios, token_nats
from .models import EvaluatedModel

SENTENCES = ("sentence_good", "sentence_bad")


@dataclass
class MinimalPairsConfig:
    """Minimal pairs on disk, or pairs of agreement that are made from lexicons in packages.

    Args:
        pairs: Parquet or JSON Lines file, or a folder of such files, with the columns of BLiMP: sentence_good and
            sentence_bad, and optionally language (else the file or its folder is named after it) and phenomenon or
            UID (else the name of the file). By default, pairs of agreement are made from downloaded lexicons.
        languages: ISO codes. Default: all languages in the data.
        examples: Maximum pairs of a phenomenon in a language, selected by a hash. Default: all pairs of files, and
            100 of those that are made.
    """

    pairs: Path | None = None
    languages: list[str] | None = None
    examples: int | None = None


def read_pairs(config: MinimalPairsConfig) -> tuple[list[dict], list[dict]]:
    """Return pairs as dicts of language, phenomenon, sentence_good and sentence_bad; and the packages they are from.

    Raises:
        InputError: If there is no pair, or a row is none.
    """
    languages = checked_languages(config.languages)
    if config.examples is not None and config.examples < 2:
        raise InputError(f"--minimal_pairs.examples must be at least 2, got {config.examples}.")
    if config.pairs is None:
        return agreement_pairs(languages, config.examples or PAIRS)
    groups: dict[tuple[str, str], list[dict]] = {}
    for file, i, raw in read_user_files(config.pairs, f"pairs with {' and '.join(SENTENCES)}"):
        row = _checked(raw, file, f"{file}, row {i + 1}")
        if config.languages is None or row["language"] in languages:
            groups.setdefault((row["language"], row["phenomenon"]), []).append(row)
    if not groups:
        raise InputError(f"{config.pairs} has no pair in {', '.join(languages)}: pass other pairs.")
    for rows in groups.values() if config.examples else ():
        rows.sort(key=lambda row: hash_fraction(" / ".join(row[name] for name in SENTENCES)))
    order = sorted(groups, key=lambda group: list(LANGUAGES).index(group[0]))
    return [row for group in order for row in groups[group][: config.examples]], []


def _checked(raw: object, file: Path, place: str) -> dict:
    """Return a row of a file as a pair."""
    raw = raw if isinstance(raw, dict) else {}
    for name in SENTENCES:
        if not isinstance(raw.get(name), str) or not raw[name].strip():
            raise InputError(f"{place} has no {name}: each row needs {' and '.join(SENTENCES)}.")
    if raw["sentence_good"] == raw["sentence_bad"]:
        raise InputError(f"{place} has two equal sentences: remove it.")
    named = [name for name in (raw.get("language"), file.stem, file.parent.name) if name in LANGUAGES]
    if not named or raw.get("language") not in (None, "", named[0]):
        raise InputError(f"{place} has no language of {', '.join(LANGUAGES)}: add the column, or name the folder so.")
    row = {"language": named[0], "phenomenon": str(raw.get("phenomenon") or raw.get("UID") or file.stem)}
    return row | {name: raw[name] for name in SENTENCES}


class MinimalPairs:
    """Task: accuracy of the summed log-probability over minimal pairs, and of that per byte."""

    name = "minimal_pairs"

    def __init__(self, config: MinimalPairsConfig):
        self.pairs, packages = read_pairs(config)
        counts = {language: Counter() for language in LANGUAGES}
        for pair in self.pairs:
            counts[pair["language"]][pair["phenomenon"]] += 1
        self.data = {
            "source": str(config.pairs) if config.pairs else "made from lexicons in packages",
            **({"packages": packages} if packages else {}),
            "pairs": {language: dict(by_phenomenon) for language, by_phenomenon in counts.items() if by_phenomenon},
            "fingerprint": fingerprint(self.pairs),
        }
        self.settings = asdict(config) | {"pairs": str(config.pairs) if config.pairs else None}

    def measure(self, subject: EvaluatedModel) -> dict:
        """Return every pair with the log-probability (nats) of both sentences."""
        sequences = [encode(subject, pair[name]) for pair in self.pairs for name in SENTENCES]
        window = {"window": subject.context, "stride": subject.context}
        nats = token_nats(subject.model, sequences, **window, progress=f"{subject.name}: minimal pairs")
        sums = [-float(nats_N.sum()) for nats_N in nats]
        return {
            "pairs": [
                pair | {"good": good, "bad": bad}
                for pair, good, bad in zip(self.pairs, sums[::2], sums[1::2], strict=True)
            ]
        }

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return accuracies: the mean over languages, each language, each phenomenon, and the mean per byte."""
        rows = record["pairs"]
        languages = _accuracies([row["language"] for row in rows], rows)
        phenomena = _accuracies([row["phenomenon"] for row in rows], rows)
        per_byte = _accuracies([row["language"] for row in rows], rows, per_byte=True)
        return {"mean": _mean(languages), **languages, **phenomena, "mean, per byte": _mean(per_byte)}

    def details(self, record: dict) -> dict:
        """Return the accuracy by phenomenon in each language, and that per byte by language."""
        rows = record["pairs"]
        phenomena = _accuracies([f"{row['language']}, {row['phenomenon']}" for row in rows], rows)
        per_byte = _accuracies([row["language"] for row in rows], rows, per_byte=True)
        return {"groups": {"language and phenomenon": phenomena, "language, per byte": per_byte}}


def _accuracies(groups: list[str], rows: list[dict], *, per_byte: bool = False) -> dict[str, Metric]:
    """Return the share of right answers by group; a tie is half of one."""
    scores = np.array([[row["good"], row["bad"]] for row in rows])
    if per_byte:
        scores = scores / [[len(row[name].encode()) for name in SENTENCES] for row in rows]
    return ratios_by(groups, (1 + np.sign(scores[:, 0] - scores[:, 1])) / 2, np.ones(len(rows)))


def _mean(languages: dict[str, Metric]) -> Metric:
    return Metric(np.concatenate([metric.rows for metric in languages.values()], axis=1), mean_of_ratios)
