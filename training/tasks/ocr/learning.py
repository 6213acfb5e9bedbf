"""Learning of the OCR corrector: texts with their truth, labelled changes, gates of trees, and calibrated thresholds."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from ...data.ocr_noise import simulate_page, wrap_lines
from ...data.split import hash_fraction, held_out_groups, work_id
from .changes import KINDS, apply_changes
from .corrector import POSSIBLE, judged_rows, selected
from .data import read_pairs
from .judge import Judge
from .labels import gains
from .passages import read_passages
from .proposals import Document, Proposal, Resources, rows
from .trees import Trees

HELD_OUT = 0.3  # of the works of rendered pages: to report on, never learned from
CLEAN_HELD_OUT = 0.5  # of the works of clean text: to calibrate the thresholds
PASSAGE = 1200  # characters of a passage
ROUNDS, LEAVES, RATE, SMALLEST = 150, 24, 0.08, 30  # trees, leaves of one, learning rate, rows of a leaf
CLEAN_EDITS = {"modern": 0.6e-4, "old": 2.5e-4}  # edits a character of clean text that thresholds allow in all
SHARES = {"word": 0.4, "split": 0.15, "merge": 0.1, "accent": 0.1, "punctuation": 0.25}  # of them for each kind
PRECISION = 0.93  # of the changes of each kind on pages


class Sample(NamedTuple):
    """A text to learn from or to measure on.

    Args:
        id: Name.
        language: ISO code.
        kind: rendered (page read by OCR), noise (simulated errors), old or modern (clean text of either register).
        work: Work in the corpus whose own words the lexicon forgets.
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


def page_samples(pairs: Path, languages: list[str], seed: int = 0) -> list[Sample]:
    """Return rendered pages as samples; complete authors or works are held out."""
    pages = [pair for pair in read_pairs(pairs, languages) if pair["kind"] == "rendered"]
    held_out = held_out_groups(((page["language"], page["group"]) for page in pages), HELD_OUT, seed)
    result = []
    for page in pages:
        origin = page["source"].partition("text from ")[2].partition(" by ")[0]
        work = work_id(origin.removeprefix("github:"))
        hidden = page["group"] in held_out
        result.append(Sample(page["id"], page["language"], "rendered", work, hidden, page["ocr"], page["truth"]))
    return result


def clean_samples(corpus: Path, language: str, count: int, old: set[str], seed: int = 0) -> list[Sample]:
    """Return passages of clean text, and as many with simulated errors of those that are not held out.

    Args:
        corpus: Corpus folder or file.
        language: ISO code.
        count: Passages.
        old: Works of old text; others are modern.
        seed: Seed of the choice and of the errors.
    """
    result = []
    for passage in read_passages(corpus, language, count=count, size=PASSAGE, seed=seed)[:count]:
        work, draw = work_id(passage["source"]), random.Random(f"{seed}/{passage['id']}")
        hidden = hash_fraction(f"clean/{passage['group']}") < CLEAN_HELD_OUT
        text = passage["text"]
        if draw.random() < 0.3:  # as in plain text files; others keep the lines of a page, some with divided words
            text = text.replace("\n", " ")
        elif draw.random() < 0.4:
            text = wrap_lines(text.replace("\n", " "), draw)
        kind = "old" if work in old else "modern"
        result.append(Sample(passage["id"], language, kind, work, hidden, text, text))
        if not hidden:
            spoiled = simulate_page(text, seed=f"{seed}/{passage['id']}", blackletter=language == "de")
            result.append(Sample(f"{passage['id']}/noise", language, "noise", work, hidden, spoiled, text))
    return result


def make_examples(samples: Iterable[Sample], resources: Resources, works: dict[str, dict[str, int]]) -> Examples:
    """Return the proposed changes of samples of one language, each judged as if its work were not in the lexicon."""
    ordered = sorted(samples, key=lambda sample: (sample.work, sample.id))
    numbers, proposals, found = [], [], []
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
                own = document.proposals()
                proposals += own
                numbers += [i] * len(own)
                found += gains(sample.ocr, sample.truth, own)
        resources.candidates.clear()
        position = end
    return Examples(
        ordered, np.array(numbers, dtype=np.int64), proposals, rows(proposals), np.array(found, dtype=np.int64)
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
        l2_regularization=1.0, early_stopping=False, random_state=seed,
    )  # fmt: skip
    return Trees.from_sklearn(model.fit(features, labels))


def folds(examples: Examples) -> np.ndarray:
    """Return 0 or 1 for each example, by the work of its sample."""
    of_samples = np.array([hash_fraction(f"fold/{sample.work}") < 0.5 for sample in examples.samples], dtype=np.int64)
    return of_samples[examples.sample]


def learned_from(examples: Examples) -> np.ndarray:
    """Return whether each example may be learned from."""
    return ~np.array([sample.held_out for sample in examples.samples], dtype=bool)[examples.sample]


def fit_first(examples: Examples) -> tuple[Trees, np.ndarray]:
    """Fit the first gate; return it and the log-odds of all examples, each from trees that have not seen its work."""
    usable, fold, labels = learned_from(examples), folds(examples), examples.gain > 0
    trees = fit(examples.features[usable], labels[usable])
    odds = trees.log_odds(examples.features)
    for number in (0, 1):
        other = usable & (fold != number)
        odds[usable & (fold == number)] = fit(examples.features[other], labels[other]).log_odds(
            examples.features[usable & (fold == number)]
        )
    return trees, odds


def verdicts(examples: Examples, odds: np.ndarray, judge: Judge) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the examples that the first gate thinks possible, and the model's features of them."""
    possible = np.flatnonzero(odds >= np.log(POSSIBLE / (1 - POSSIBLE)))
    parts = []
    for number, sample in enumerate(examples.samples):
        inside = possible[examples.sample[possible] == number]
        if len(inside):
            parts.append((inside, judge.features(sample.ocr, [examples.proposals[i] for i in inside])))
    if not parts:
        return possible, np.zeros((0, 5))
    return np.concatenate([inside for inside, _ in parts]), np.concatenate([verdict for _, verdict in parts])


def fit_judged(
    examples: Examples, odds: np.ndarray, possible: np.ndarray, verdict: np.ndarray
) -> tuple[Trees, np.ndarray]:
    """Fit the second gate; return it and the probability of each possible example, from trees that have not seen it."""
    features = judged_rows(examples.features[possible], odds[possible], verdict)
    usable, fold, labels = (
        values[possible] for values in (learned_from(examples), folds(examples), examples.gain > 0)
    )
    trees = fit(features[usable], labels[usable])
    probability = trees.probability(features)
    for number in (0, 1):
        other, own = usable & (fold != number), usable & (fold == number)
        probability[own] = fit(features[other], labels[other]).probability(features[own])
    return trees, probability


def calibrate(examples: Examples, probability: np.ndarray) -> dict[str, float]:
    """Return the least threshold of each kind at which clean held-out text and pages are changed rarely enough.

    Args:
        examples: Examples of clean held-out text, and of pages that may be learned from.
        probability: Of each, from trees that have not seen its work; -1 where the first gate thinks it impossible.
    """
    kinds = np.array([KINDS.index(proposal.kind) for proposal in examples.proposals])
    of_kind = np.array([sample.kind for sample in examples.samples])[examples.sample]
    held_out = ~learned_from(examples)
    sizes = {kind: sum(len(s.ocr) for s in examples.samples if s.kind == kind and s.held_out) for kind in CLEAN_EDITS}
    thresholds = {}
    for number, kind in enumerate(KINDS):
        least = 0.5
        for register, rate in CLEAN_EDITS.items():
            inside = (kinds == number) & (of_kind == register) & held_out & (probability > 0)
            order = np.flatnonzero(inside)[np.argsort(-probability[inside], kind="stable")]
            edits = np.cumsum(-np.minimum(examples.gain[order], 0))
            allowed = rate * SHARES[kind] * sizes[register]
            above = np.flatnonzero(edits > allowed)
            if len(above):
                least = max(least, float(probability[order[above[0]]]) + 1e-6)
        inside = (kinds == number) & (of_kind == "rendered") & ~held_out & (probability > 0)
        order = np.flatnonzero(inside)[np.argsort(-probability[inside], kind="stable")]
        right = np.cumsum(examples.gain[order] > 0) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(right >= PRECISION)
        least = max(least, float(probability[order[good[-1]]]) if len(good) else 1.0)
        thresholds[kind] = min(least, 1.0)
    return thresholds


def normalised(text: str) -> str:
    """Return a text with one space for each run of whitespace."""
    return " ".join(text.split())


def corrected(
    sample: Sample, proposals: list[Proposal], probability: np.ndarray, least: dict[str, float]
) -> list[int]:
    """Return characters, errors before and after, and changes made, better and worse, of a sample."""
    changes = selected(proposals, probability, least)
    truth, before = normalised(sample.truth), normalised(sample.ocr)
    after = normalised(apply_changes(sample.ocr, changes))
    found = gains(sample.ocr, sample.truth, changes)
    return [
        len(truth), Levenshtein.distance(before, truth), Levenshtein.distance(after, truth), len(changes),
        sum(gain > 0 for gain in found), sum(gain < 0 for gain in found),
    ]  # fmt: skip


def by_sample(examples: Examples, numbers: np.ndarray) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield each sample with the positions in `numbers` of its examples."""
    of = examples.sample[numbers]
    order = np.argsort(of, kind="stable")
    bounds = np.searchsorted(of[order], np.arange(len(examples.samples) + 1))
    for i, sample in enumerate(examples.samples):
        yield sample, order[bounds[i] : bounds[i + 1]]
