"""Learning of the OCR corrector: texts with their truth, labelled changes, gates of trees, and thresholds."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...data.documents import read_documents
from ...data.licences import decide
from ...data.ocr_noise import recurring_confusions, simulate_page, wrap_lines
from ...data.split import author_key, hash_fraction, held_out_groups, register, work_id
from .changes import KINDS
from .context import second_rows
from .corrector import made_changes, possible_changes
from .data import read_pairs
from .judge import Judge
from .labels import gains
from .metrics import edit_errors
from .passages import wrap_prose
from .proposals import JUDGED, Document, Proposal, Resources, rows
from .trees import Trees

HELD_OUT = 0.3  # of the works of rendered pages: to report on, never learned from
CLEAN_HELD_OUT = 0.5  # of the works of clean text: to calibrate the thresholds
RECURRING = 0.6  # share of the simulated pages on which confusions recur
PASSAGE, SLICE = 1200, 6000  # characters of a passage, and of a document of which it is the beginning
ROUNDS, LEAVES, RATE, SMALLEST = 300, 24, 0.05, 30  # trees, leaves of one, learning rate, rows of a leaf
COLUMNS = 0.3  # share of the features that a split chooses from
CLEAN_EDITS = {"modern": 0.8e-4, "old": 3e-4}  # edits per character of clean text that thresholds allow in total
PAGES = ("rendered", "noise")
TUNED = " (tuned on)"
PRECISION = 0.88  # of the changes of each kind on pages
# Least thresholds, for print that the gates have not learned from.
LEAST = {"word": 0.7, "split": 0.6, "merge": 0.6, "accent": 0.8, "punctuation": 0.65}


class Sample(NamedTuple):
    """A text to learn from or to measure on.

    Args:
        id: Name.
        language: ISO code.
        kind: rendered (page read by OCR), noise (simulated errors), old or modern (clean text of either register).
        work: Work in the corpus whose lone words the lexicon forgets.
        held_out: Whether it is only measured or calibrated on.
        ocr: OCR text.
        truth: What stands there.
    """

    id: str
    language: str
    kind: str
    work: str
    held_out: bool
    ocr: str
    truth: str


class Examples(NamedTuple):
    """Possible changes of samples: number of the sample, change, features, and edits saved."""

    samples: list[Sample]
    sample: np.ndarray
    proposals: list[Proposal]
    features: np.ndarray
    gain: np.ndarray


def _page_work(page: dict) -> str:
    """Return the work in the corpus that the text of a rendered page is from."""
    return work_id(page["source"].partition("text from ")[2].partition(" by ")[0].removeprefix("github:"))


def page_works(pairs: Path, language: str) -> set[str]:
    """Return the works that rendered pages are from, in both ways of writing their source."""
    works = {_page_work(pair) for pair in read_pairs(pairs, [language]) if pair["kind"] == "rendered"}
    return works | {f"github:{work}" for work in works}


def page_samples(pairs: Path, languages: list[str], seed: int = 0) -> list[Sample]:
    """Return rendered pages as samples; complete authors or works are held out."""
    pages = [pair for pair in read_pairs(pairs, languages) if pair["kind"] == "rendered"]
    held_out = held_out_groups(((page["language"], page["group"]) for page in pages), HELD_OUT, seed)
    return [
        Sample(
            page["id"],
            page["language"],
            "rendered",
            _page_work(page),
            page["group"] in held_out,
            page["ocr"],
            page["truth"],
        )
        for page in pages
    ]


def historical_samples(pairs: Path, language: str) -> list[Sample]:
    """Return historical scans, to measure on alone; the kind is the name of their collection.

    `TUNED` follows it in half of the documents: on these, LEAST and the constants of the corrector were chosen.
    """
    samples = []
    for pair in read_pairs(pairs, [language]):
        if pair["kind"] == "historical":
            tuned = hash_fraction(f"half/{pair['id'].partition('#')[0]}") < 0.5
            kind = pair["source"].partition(" via ")[0] + (TUNED if tuned else "")
            samples.append(Sample(pair["id"], language, kind, "", True, pair["ocr"], pair["truth"]))
    return samples


def for_calibration(sample: Sample) -> bool:
    """Return whether a clean text that is held out calibrates thresholds; others are for the report."""
    return hash_fraction(f"calibration/{sample.work}") < 0.6


def clean_samples(corpus: Path, language: str, count: int, seed: int = 0) -> list[Sample]:
    """Return passages of clean text, and as many with simulated errors of those that are not held out.

    Half of them are old and half modern, if there are enough, from all collections evenly.

    Args:
        corpus: Corpus folder or file.
        language: ISO code.
        count: Passages.
        seed: Seed of the choice and of the errors.
    """
    columns = ["identifier", "collection", "open_type", "language", "language_type", "license", "creator"]
    chosen: dict[str, tuple[str, int]] = {}  # kind and passages of a document
    collections: dict[str, dict[str, list[str]]] = {"old": {}, "modern": {}}
    for document in read_documents(corpus, languages=[language], columns=columns):
        kind = register(document)
        if kind in collections and not decide(document["license"]).refused:
            collections[kind].setdefault(document["collection"], []).append(document["identifier"])
    for kind, groups in collections.items():
        ranked = [
            (rank, identifier)
            for _, group in sorted(groups.items())
            for rank, identifier in enumerate(sorted(group, key=lambda name: hash_fraction(f"{seed}/{name}")))
        ]
        wanted = count // 2
        for _, identifier in sorted(ranked)[:wanted]:
            chosen[identifier] = kind, -(-wanted // min(wanted, len(ranked)))
    result = []
    for document in read_documents(corpus, languages=[language], columns=["identifier", "creator", "text"]):
        if document["identifier"] in chosen:
            kind, number = chosen[document["identifier"]]
            draw = random.Random(f"{seed}/{document['identifier']}")
            for i in range(number):
                start = draw.randrange(max(1, len(document["text"]) - SLICE))
                passage = next(wrap_prose(document["text"][start : start + SLICE], PASSAGE, draw.randint(45, 75)), "")
                if passage:
                    result += _clean(document, f"{document['identifier']}#{i}", kind, language, passage, draw)
    return result


def _clean(document: dict, name: str, kind: str, language: str, text: str, draw: random.Random) -> Iterator[Sample]:
    """Yield a passage in the lines of a page, with divided words, or on one line; and with simulated errors."""
    work = work_id(document["identifier"])
    hidden = hash_fraction(f"clean/{author_key(document['creator'] or '') or work}") < CLEAN_HELD_OUT
    layout = draw.random()
    if layout < 0.6:
        text = text.replace("\n", " ")
    if layout < 0.3:
        text = wrap_lines(text, draw)
    yield Sample(name, language, kind, work, hidden, text, text)
    if not hidden:
        noise = simulate_page(text, seed=name, blackletter=language == "de")
        if draw.random() < RECURRING:
            noise = recurring_confusions(noise, draw)
        yield Sample(f"{name}/noise", language, "noise", work, hidden, noise, text)


def make_examples(samples: Iterable[Sample], resources: Resources, works: dict[str, dict[str, int]]) -> Examples:
    """Return the proposed changes of samples of one language, each judged as if its work were not in the lexicon."""
    ordered = sorted(samples, key=lambda sample: (sample.work, sample.id))
    numbers, proposals, entries = [], [], []
    position = 0
    while position < len(ordered):
        work = ordered[position].work
        end = position
        while end < len(ordered) and ordered[end].work == work:
            end += 1
        with resources.lexicon.without(works.get(work, {})):
            resources.candidates.clear()
            for i in range(position, end):
                sample = ordered[i]
                document = Document(sample.ocr, resources)
                lone = document.proposals()
                proposals += lone
                numbers += [i] * len(lone)
                entries += gains(sample.ocr, sample.truth, lone)
        resources.candidates.clear()
        position = end
    return Examples(
        ordered, np.array(numbers, dtype=np.int64), proposals, rows(proposals), np.array(entries, dtype=np.int64)
    )


def joined(parts: list[Examples]) -> Examples:
    """Return the examples of several languages as one."""
    samples = [sample for part in parts for sample in part.samples]
    offsets = np.cumsum([0, *(len(part.samples) for part in parts[:-1])])
    return Examples(
        samples,
        np.concatenate([part.sample + offset for part, offset in zip(parts, offsets, strict=True)]),
        [proposal for part in parts for proposal in part.proposals],
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.gain for part in parts]),
    )


def fit(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> Trees:
    """Fit gradient-boosted trees to rows of features and labels."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # only learning needs it

    model = HistGradientBoostingClassifier(
        max_iter=ROUNDS, max_leaf_nodes=LEAVES, learning_rate=RATE, min_samples_leaf=SMALLEST,
        max_features=COLUMNS, l2_regularization=1.0, early_stopping=False, random_state=seed,
    )  # fmt: skip
    return Trees.from_sklearn(model.fit(features, labels))


def folds(examples: Examples) -> np.ndarray:
    """Return 0 or 1 for each example, by the work of its sample."""
    of_samples = np.array([hash_fraction(f"fold/{sample.work}") < 0.5 for sample in examples.samples], dtype=np.int64)
    return of_samples[examples.sample]


def learned_from(examples: Examples) -> np.ndarray:
    """Return whether each example may be learned from."""
    return ~np.array([sample.held_out for sample in examples.samples], dtype=bool)[examples.sample]


def fit_gate(examples: Examples, numbers: np.ndarray, features: np.ndarray) -> tuple[Trees, np.ndarray]:
    """Fit a gate; return it and the log-odds of each example, from trees that have not seen its work.

    Args:
        examples: All examples.
        numbers: Those that the gate rates; it learns from those of them that may be learned from.
        features: Of each of these.
    """
    usable, fold, labels = (values[numbers] for values in (learned_from(examples), folds(examples), examples.gain > 0))
    trees = fit(features[usable], labels[usable])
    odds = trees.log_odds(features)
    for number in (0, 1):
        other, lone = usable & (fold != number), usable & (fold == number)
        odds[lone] = fit(features[other], labels[other]).log_odds(features[lone])
    return trees, odds


def possible_examples(examples: Examples, odds: np.ndarray) -> np.ndarray:
    """Return the numbers of the examples that the first gate thinks possible."""
    parts = [
        numbers[possible_changes([examples.proposals[i] for i in numbers], odds[numbers])]
        for _, numbers in by_sample(examples)
    ]
    return np.concatenate(parts)


def verdicts(examples: Examples, possible: np.ndarray, judge: Judge) -> np.ndarray:
    """Return the language model's features of possible changes."""
    result = np.zeros((len(possible), len(JUDGED)))
    for sample, places in by_sample(examples, possible):
        result[places] = judge.features(sample.ocr, [examples.proposals[possible[i]] for i in places])
    return result


def gate_rows(
    examples: Examples, odds: np.ndarray, possible: np.ndarray, verdict: np.ndarray | None = None
) -> np.ndarray:
    """Return the features of a second gate for possible changes.

    Args:
        examples: All examples.
        odds: Log-odds of each by the first gate.
        possible: Numbers of all possible changes of some samples, or of all, in increasing order.
        verdict: The language model's features of them. Default: none, for the gate without.
    """
    parts = []
    for (_, numbers), (_, places) in zip(by_sample(examples), by_sample(examples, possible), strict=True):
        chosen = np.searchsorted(numbers, possible[places])
        if len(chosen):
            proposals = [examples.proposals[i] for i in numbers]
            lone = None if verdict is None else verdict[places]
            parts.append(second_rows(proposals, examples.features[numbers], odds[numbers], chosen, lone))
    return np.concatenate(parts)


def calibrate(examples: Examples, probability: np.ndarray) -> dict[str, float]:
    """Return the least threshold of each kind at which pages and clean held-out text are changed rightly enough.

    Thresholds rise until, of the changes of a kind on pages, `PRECISION` are right, and then, beginning with the least
    probable change, until clean text has no more edits than `CLEAN_EDITS`.

    Args:
        examples: Examples of clean held-out text, and of pages that may be learned from.
        probability: Of each, from trees that have not seen its work; -1 where the first gate thinks it impossible.
    """
    kinds = np.array([KINDS.index(proposal.kind) for proposal in examples.proposals])
    pages = np.array([sample.kind in PAGES and not sample.held_out for sample in examples.samples])[examples.sample]
    thresholds = {}
    for number, kind in enumerate(KINDS):
        inside = np.flatnonzero((kinds == number) & pages & (probability > 0))
        order = inside[np.argsort(-probability[inside], kind="stable")]
        right = np.cumsum(examples.gain[order] > 0) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(right >= PRECISION)
        thresholds[kind] = max(LEAST[kind], float(probability[order[good[-1]]]) if len(good) else 1.0)
    texts = [
        (sample, [examples.proposals[i] for i in numbers if probability[i] > 0], probability[numbers])
        for sample, numbers in by_sample(examples)
        if sample.held_out and sample.kind in CLEAN_EDITS and for_calibration(sample)
    ]
    for age, rate in CLEAN_EDITS.items():
        clean = [(text.ocr, proposals, values[values > 0]) for text, proposals, values in texts if text.kind == age]
        allowed = rate * sum(len(text) for text, _, _ in clean)
        while True:
            changes = [change for text in clean for change in made_changes(*text, thresholds)]
            if sum(edit_errors(change.before, change.after) for change in changes) <= allowed:
                break
            least = min(changes, key=lambda change: change.probability)
            thresholds[least.kind] = min(1.0, least.probability + 1e-6)
    return thresholds


def normalised(text: str) -> str:
    """Return a text with one space for each run of whitespace."""
    return " ".join(text.split())


def by_sample(examples: Examples, numbers: np.ndarray | None = None) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield each sample with the positions in `numbers` (default: all) of its examples."""
    of_samples = examples.sample if numbers is None else examples.sample[numbers]
    order = np.argsort(of_samples, kind="stable")
    bounds = np.searchsorted(of_samples[order], np.arange(len(examples.samples) + 1))
    for i, sample in enumerate(examples.samples):
        yield sample, order[bounds[i] : bounds[i + 1]]
