"""Toxicity of a text: five scores from 0 to 3, the verdict, the policy, and the accuracy of a scorer.

    python -m training.curation.toxicity --sentences HATECHECK --corpus CORPUS   # measurements of a scorer, as JSON

The axes and the verdict are those of Celadon, the classifier of "Toxicity of the Commons" (arXiv 2410.22587). There
are two scorers: the word lists and rules of `lexicon.py`, offline and fast, and Celadon itself (`celadon.py`).
"""

if not __package__:  # run by path; same as `python -m training.curation.toxicity`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import csv
import io
import json
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..common.config import InputError, parse, run_main
from ..common.files import read_text
from ..common.language import CODES
from ..data.documents import read_documents
from .lexicon import LexiconScorer
from .toxicity_axes import Scorer, Scores

DEVELOPMENT_LANGUAGES = ("en",)  # the offline scorer's rules were adjusted on its errors in these

Verdict = Literal["none", "mild", "toxic"]
Policy = Literal["tox", "card", "drop"]
CorpusStage = Literal["base", "annealing"]
Action = Literal["keep", "leave", "warn", "rewrite", "drop"]

# Policy -> verdict -> action in the base corpus and in the annealing corpus.
# tox: the paper (2410.22587) and the README of its repository, Pleias/toxic-commons. card: the model card of
# Pleias-1.2b-Preview, extremely harmful text removed and mildly problematic passages rewritten. drop: this project's,
# for users who want neither text of a language model nor content warnings.
POLICIES: dict[Policy, dict[Verdict, tuple[Action, Action]]] = {
    "tox": {"none": ("keep", "keep"), "mild": ("leave", "warn"), "toxic": ("leave", "rewrite")},
    "card": {"none": ("keep", "keep"), "mild": ("leave", "rewrite"), "toxic": ("drop", "drop")},
    "drop": {"none": ("keep", "keep"), "mild": ("drop", "drop"), "toxic": ("drop", "drop")},
}


def verdict(scores: Scores) -> Verdict:
    """Return toxic for a total of at least 7, mild for 4 to 6 or any single 3, else none (arXiv 2410.22587)."""
    if scores.total >= 7:
        return "toxic"
    return "mild" if scores.total >= 4 or 3 in scores.levels else "none"


def action(verdict: Verdict, *, policy: Policy = "tox", corpus_stage: CorpusStage = "base") -> Action:
    """Return what a policy does with a document.

    keep: unchanged. leave: dropped from the base corpus, but used in the annealing corpus. warn: kept after a content
    warning. rewrite: rewritten by a language model. drop: dropped from both corpora.
    """
    return POLICIES[policy][verdict][corpus_stage == "annealing"]


def load_scorer(name: str = "lexicon", *, device: str = "cpu") -> Scorer:
    """Load a scorer: `lexicon` (offline), or a Celadon checkpoint by Hub name or folder.

    Raises:
        InputError: If the checkpoint cannot be loaded.
    """
    if name == "lexicon":
        return LexiconScorer()
    from .celadon import CeladonScorer  # lazy import: torch takes seconds

    return CeladonScorer(name, device=device)


# Accuracy -----------------------------------------------------------------------------------------


def _metrics(rows: list[tuple[bool, int, bool]]) -> dict:
    """Return precision, recall, F1 and AUC of (hateful, total, flagged) rows."""
    from scipy.stats import mannwhitneyu  # lazy import: takes a second

    true = sum(hateful and flagged for hateful, _, flagged in rows)
    flagged = sum(flagged for *_, flagged in rows)
    hateful = [total for is_hateful, total, _ in rows if is_hateful]
    harmless = [total for is_hateful, total, _ in rows if not is_hateful]
    return {
        "sentences": len(rows),
        "hateful": len(hateful),
        "precision": true / max(1, flagged),
        "recall": true / max(1, len(hateful)),
        "f1": 2 * true / max(1, flagged + len(hateful)),
        "auc": float(mannwhitneyu(hateful, harmless).statistic) / (len(hateful) * len(harmless))
        if hateful and harmless
        else None,
    }


def measure_sentences(folder: Path, scorer: Scorer | None = None) -> dict:
    """Measure a scorer on labelled sentences of HateCheck and Multilingual HateCheck (CC BY 4.0).

    A sentence is flagged if its verdict is not none. Nothing was trained on these sentences, but the rules of the
    offline scorer were adjusted on its errors in English, so `unseen` (all other languages) is the fairer result. It
    is not blind, because those tests follow the design of the English ones. There are none in Latin.

    Args:
        folder: Folder of CSV files named by ISO code, with the columns functionality, text, label.
        scorer: Scorer. Default: lexicon.

    Returns:
        {"scorer", "languages": {code: metrics}, "unseen": metrics, "functionality": {name: {code: accuracy}}}. The
        metrics are sentences, hateful, precision, recall, f1 and auc.

    Raises:
        InputError: If the folder contains no CSV file, or one is not UTF-8 or lacks a column or a sentence.
    """
    scorer = scorer or load_scorer()
    by_language, by_functionality, unseen = {}, defaultdict(dict), []
    for path in sorted(folder.glob("*.csv")):
        cases = _read_sentences(path)
        scored = scorer.score([case["text"] for case in cases], [path.stem] * len(cases))
        labels = [case["label"] == "hateful" for case in cases]
        rows = [(label, s.total, verdict(s) != "none") for label, s in zip(labels, scored, strict=True)]
        by_language[path.stem] = _metrics(rows)
        correct = defaultdict(list)
        for case, (hateful, _, flagged) in zip(cases, rows, strict=True):
            correct[case["functionality"]].append(hateful == flagged)
        for functionality, values in correct.items():
            by_functionality[functionality][path.stem] = sum(values) / len(values)
        unseen += rows if path.stem not in DEVELOPMENT_LANGUAGES else []
    if not by_language:
        raise InputError(f"{folder} contains no CSV file: pass a folder with one file per language, such as en.csv.")
    return {
        "scorer": scorer.name,
        "languages": by_language,
        "unseen": _metrics(unseen) if unseen else None,
        "functionality": dict(sorted(by_functionality.items())),
    }


def _read_sentences(path: Path) -> list[dict]:
    try:
        cases = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path} is not CSV ({error}): correct it.") from None
    columns = ("functionality", "text", "label")
    if not cases or any(case.get(column) is None for case in cases for column in columns):
        raise InputError(f"{path} needs a first line and sentences with the columns {', '.join(columns)}, by commas.")
    return cases


def measure_corpus(corpus: Path, scorer: Scorer | None = None, *, sample_every: int = 20) -> dict:
    """Count the verdicts on ordinary text, nearly all of which should pass: an upper bound of false positives.

    Args:
        corpus: Corpus folder.
        scorer: Scorer. Default: lexicon.
        sample_every: Score 1 in N documents, selected by a hash of the identifier.

    Returns:
        Language -> collection -> documents, none, mild, toxic (documents per verdict), megabytes, and
        megabytes_per_second (of one core).
    """
    scorer = scorer or load_scorer()
    counts: dict[str, dict[str, dict]] = {}
    for document in read_documents(corpus, columns=["identifier", "collection", "language", "text"]):
        if zlib.crc32(document["identifier"].encode()) % sample_every:
            continue
        row = counts.setdefault(document["language"], {}).setdefault(document["collection"], defaultdict(float))
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
        for language, rows in counts.items()
    }


@dataclass
class ToxicityConfig:
    """Scorer and data of a measurement.

    Args:
        sentences: Folder of labelled sentences, one CSV file per language (HateCheck, Multilingual HateCheck).
        corpus: Corpus folder, to count the verdicts on ordinary text.
        scorer: lexicon, or a Celadon checkpoint by Hub name or folder.
        sample_every: Score 1 in N documents of the corpus, selected by a hash of the identifier.
    """

    sentences: Path | None = None
    corpus: Path | None = None
    scorer: str = "lexicon"
    sample_every: int = 20


def main() -> None:
    """Measure a scorer and print JSON."""
    description = "Measure a toxicity scorer on labelled sentences and on a corpus, and print the results as JSON."
    config = parse(ToxicityConfig, description=description)
    if not (config.sentences or config.corpus):
        raise InputError("There are no data to measure on: pass --sentences, --corpus, or both.")
    scorer = load_scorer(config.scorer)
    report = {}
    if config.sentences:
        report["sentences"] = measure_sentences(config.sentences, scorer)
    if config.corpus:
        report["corpus"] = measure_corpus(config.corpus, scorer, sample_every=config.sample_every)
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    run_main(main)
