"""How toxic a text is: five axes from 0 to 3, the verdict on them, what a policy then does, and how right a scorer is.

    python -m training.curation.toxicity --sentences HATECHECK --corpus CORPUS   # figures of a scorer, as JSON

The axes and the verdict are those of Celadon, the classifier of "Toxicity of the Commons" (arXiv 2410.22587). Two
scorers fill them: the word lists and rules of `lexicon.py`, offline and fast, and Celadon itself (`celadon.py`).
"""

if not __package__:  # run by path; same as `python -m training.curation.toxicity`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import csv
import json
import time
import zlib
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import InputError, parse, program
from ..data.documents import read_documents
from ..language import CODES
from .lexicon import LexiconScorer
from .toxicity_axes import Scorer, Scores

SEEN = ("en",)  # the languages in which errors were looked at while the offline scorer's rules were written

Verdict = Literal["none", "mild", "toxic"]
Policy = Literal["tox", "card", "drop"]
Corpus = Literal["base", "annealing"]
Action = Literal["keep", "leave", "warn", "rewrite", "drop"]

# Policy -> verdict -> what happens in the base corpus and in the annealing corpus.
# tox: the paper (2410.22587) and the README of its repository, Pleias/toxic-commons. card: as the model card of
# Pleias-1.2b-Preview tells it, extremely harmful text taken out and mildly problematic passages rewritten. drop: ours,
# for those who want neither a language model's text nor content warnings.
POLICIES: dict[Policy, dict[Verdict, tuple[Action, Action]]] = {
    "tox": {"none": ("keep", "keep"), "mild": ("leave", "warn"), "toxic": ("leave", "rewrite")},
    "card": {"none": ("keep", "keep"), "mild": ("leave", "rewrite"), "toxic": ("drop", "drop")},
    "drop": {"none": ("keep", "keep"), "mild": ("drop", "drop"), "toxic": ("drop", "drop")},
}


def verdict(scores: Scores) -> Verdict:
    """toxic: a total of 7 or more. mild: 4 to 6, or one single 3. none: the rest (arXiv 2410.22587)."""
    if scores.total >= 7:
        return "toxic"
    return "mild" if scores.total >= 4 or 3 in scores.levels else "none"


def action(verdict: Verdict, *, policy: Policy = "tox", corpus: Corpus = "base") -> Action:
    """What happens to a document. keep: it stays as it is. leave: it is out of this corpus and the annealing corpus
    takes it up. warn: it stays behind a content warning. rewrite: a language model rewrites it. drop: out of both."""
    return POLICIES[policy][verdict][corpus == "annealing"]


def load(name: str = "lexicon", *, device: str = "cpu") -> Scorer:
    """The scorer of a name: `lexicon` (offline), or a Celadon checkpoint by its name on the Hub or its folder.

    Raises:
        InputError: when there is no such checkpoint.
    """
    if name == "lexicon":
        return LexiconScorer()
    from .celadon import CeladonScorer  # lazy import: torch takes seconds

    return CeladonScorer(name, device=device)


# Measuring ----------------------------------------------------------------------------------------


def _auc(positive: list[int], negative: list[int]) -> float:
    """Probability that a hateful sentence scores higher than a harmless one; ties count half."""
    negative = sorted(negative)
    wins = sum(bisect_left(negative, value) + bisect_right(negative, value) for value in positive)
    return wins / (2 * len(positive) * len(negative))


def _figures(rows: list[tuple[bool, int, bool]]) -> dict:
    """Precision, recall, F1 and AUC of (hateful, total, flagged) rows."""
    true = sum(hateful and flagged for hateful, _, flagged in rows)
    flagged = sum(flagged for *_, flagged in rows)
    hateful = sum(hateful for hateful, *_ in rows)
    totals: dict[bool, list[int]] = {True: [], False: []}
    for is_hateful, total, _ in rows:
        totals[is_hateful].append(total)
    return {
        "sentences": len(rows),
        "hateful": hateful,
        "precision": true / max(1, flagged),
        "recall": true / max(1, hateful),
        "f1": 2 * true / max(1, flagged + hateful),
        "auc": _auc(totals[True], totals[False]) if totals[True] and totals[False] else None,
    }


def measure(folder: Path, scorer: Scorer | None = None) -> dict:
    """A scorer on labelled sentences, those of HateCheck and Multilingual HateCheck (CC BY 4.0).

    A sentence counts as found when its verdict is not none. Nothing was trained on these sentences, but the rules of
    the offline scorer were adjusted while looking at its errors in English, so `unseen`, all other languages, is the
    fair figure; fair, not blind, since those tests follow the plan of the English ones. There are none in Latin.

    Args:
        folder: a CSV file per language, named by its ISO code, with the columns functionality, text, label.

    Returns:
        {"scorer", "languages": {code: figures}, "unseen": figures, "functionality": {name: {code: share right}}},
        where figures are sentences, hateful, precision, recall, f1 and auc.

    Raises:
        InputError: when the folder holds no such file.
    """
    scorer = scorer or load()
    by_language, by_functionality = {}, defaultdict(dict)
    everything = []
    for path in sorted(folder.glob("*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            cases = list(csv.DictReader(file))
        scored = scorer.score([case["text"] for case in cases], [path.stem] * len(cases))
        hateful = [case["label"] == "hateful" for case in cases]
        rows = [(is_so, s.total, verdict(s) != "none") for is_so, s in zip(hateful, scored, strict=True)]
        by_language[path.stem] = _figures(rows)
        right = defaultdict(list)
        for case, (is_so, _, flagged) in zip(cases, rows, strict=True):
            right[case["functionality"]].append(is_so == flagged)
        for functionality, found in right.items():
            by_functionality[functionality][path.stem] = sum(found) / len(found)
        everything += rows if path.stem not in SEEN else []
    if not by_language:
        raise InputError(f"{folder} holds no CSV file: give a folder with one per language, as en.csv.")
    return {
        "scorer": scorer.name,
        "languages": by_language,
        "unseen": _figures(everything) if everything else None,
        "functionality": dict(sorted(by_functionality.items())),
    }


def measure_corpus(corpus: Path, scorer: Scorer | None = None, *, every: int = 20) -> dict:
    """What a scorer finds in ordinary text, nearly all of which should pass: a bound on its false alarms.

    Args:
        corpus: a corpus folder.
        every: one in so many documents is scored, chosen by the hash of its identifier.

    Returns:
        Language -> collection -> documents, none, mild, toxic (documents of each verdict), megabytes, and
        megabytes_per_second (of one core).
    """
    scorer = scorer or load()
    found: dict[str, dict[str, dict]] = {}
    for document in read_documents(corpus, columns=["identifier", "collection", "language", "text"]):
        if zlib.crc32(document["identifier"].encode()) % every:
            continue
        row = found.setdefault(document["language"], {}).setdefault(document["collection"], defaultdict(float))
        start = time.process_time()
        [scores] = scorer.score([document["text"]], [CODES.get(document["language"], "en")])
        row["seconds"] += time.process_time() - start
        row["megabytes"] += len(document["text"].encode()) / 1e6
        row["documents"] += 1
        row[verdict(scores)] += 1
    return {
        language: {
            collection: {kind: int(row[kind]) for kind in ("documents", "none", "mild", "toxic")}
            | {"megabytes": row["megabytes"], "megabytes_per_second": row["megabytes"] / max(row["seconds"], 1e-9)}
            for collection, row in sorted(rows.items())
        }
        for language, rows in found.items()
    }


@dataclass
class ToxicityConfig:
    """What a scorer is measured on.

    Args:
        sentences: a folder of labelled sentences, a CSV file per language (HateCheck, Multilingual HateCheck).
        corpus: a corpus folder, to see what is found in ordinary text.
        scorer: lexicon, or a Celadon checkpoint by its name on the Hub or its folder.
        every: of the corpus, one in so many documents is scored.
    """

    sentences: Path | None = None
    corpus: Path | None = None
    scorer: str = "lexicon"
    every: int = 20


def main() -> None:
    """Measure, and print JSON."""
    config = parse(ToxicityConfig, description="Measure a toxicity scorer on labelled sentences and on a corpus.")
    if not (config.sentences or config.corpus):
        raise InputError("There is nothing to measure on: give --sentences, --corpus, or both.")
    scorer = load(config.scorer)
    report = {}
    if config.sentences:
        report["sentences"] = measure(config.sentences, scorer)
    if config.corpus:
        report["corpus"] = measure_corpus(config.corpus, scorer, every=config.every)
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    program(main)
