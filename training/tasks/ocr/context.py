"""Features of possible changes from the others of a text: confusions that recur, errors near, rivals of a place."""

from collections import defaultdict

import numpy as np

from .channel import segments
from .proposals import FEATURES, Proposal

CONTEXT = ("support", "errors", "errors_near", "odds_margin")
NEAR = 100  # characters
WORDS = ("word", "accent")  # kinds of changes that replace letters
NO_RIVAL = -9.0  # log-odds that stand for those of a rival where a place has none


def context_features(proposals: list[Proposal], odds: np.ndarray, possible: np.ndarray, words: int) -> np.ndarray:
    """Return the features `CONTEXT` of the possible changes of a text, (possible, len(CONTEXT)).

    They are, by the probabilities of the first gate: the expected number of other words in which the same confusion is
    undone (-1 for changes of no letter), expected errors per word of the text, expected errors near the change, and
    the log-odds above those of its best rival.

    Args:
        proposals: All proposed changes of the text.
        odds: Log-odds of each by the first gate.
        possible: Numbers of the possible changes.
        words: Words of the text.
    """
    probabilities = 1 / (1 + np.exp(-odds))
    best: dict[int, float] = defaultdict(float)  # by place
    for proposal, probability in zip(proposals, probabilities, strict=True):
        best[proposal.start] = max(best[proposal.start], probability)
    starts = np.array(sorted(best))
    sums = np.cumsum([0.0, *(best[start] for start in starts)])
    undone = [confusions(proposals[i]) for i in possible]
    sources: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # confusion -> word -> probability
    for i, pairs in zip(possible, undone, strict=True):
        word = proposals[i].before.lower()
        for pair in pairs:
            sources[pair][word] = max(sources[pair].get(word, 0.0), probabilities[i])
    margins = above_rivals([proposals[i] for i in possible], odds[possible], NO_RIVAL)
    result = np.zeros((len(possible), len(CONTEXT)))
    for row, (i, pairs) in enumerate(zip(possible, undone, strict=True)):
        start, word = proposals[i].start, proposals[i].before.lower()
        support = min((sum(sources[pair].values()) - sources[pair][word] for pair in pairs), default=-1.0)
        first, last = np.searchsorted(starts, [start - NEAR, start + NEAR])
        result[row] = support, sums[-1] / max(1, words), sums[last] - sums[first] - best[start], margins[row]
    return result


def confusions(proposal: Proposal) -> set[tuple[str, str]]:
    """Return the confusions that a change undoes, as pairs of characters read and right; none if it is of no word."""
    before, after = proposal.before.lower(), proposal.after.lower()
    return {(before[a:b], after[c:d]) for a, b, c, d in segments(before, after)} if proposal.kind in WORDS else set()


def above_rivals(proposals: list[Proposal], values: np.ndarray, alone: float) -> np.ndarray:
    """Return each value less the highest of the other changes of its place, or less `alone` if it has none."""
    places: dict[int, list[int]] = defaultdict(list)
    for i, proposal in enumerate(proposals):
        places[proposal.start].append(i)
    return np.array([
        values[i] - max((values[j] for j in places[proposal.start] if j != i), default=alone)
        for i, proposal in enumerate(proposals)
    ])  # fmt: skip


def second_rows(
    proposals: list[Proposal],
    features: np.ndarray,
    odds: np.ndarray,
    possible: np.ndarray,
    verdict: np.ndarray | None = None,
) -> np.ndarray:
    """Return the features of a second gate for the possible changes of a text.

    Args:
        proposals: All proposed changes of the text.
        features: Features of each for the first gate.
        odds: Log-odds of each by it.
        possible: Numbers of the possible changes.
        verdict: Features `JUDGED` of these from the language model. Default: none, for the gate without.
    """
    words = int(features[:1, FEATURES.index("words")].sum())  # of the text, the same in all rows
    columns = [features[possible], odds[possible, None], context_features(proposals, odds, possible, words)]
    if verdict is not None:
        chosen = [proposals[i] for i in possible]
        columns += [verdict, above_rivals(chosen, verdict[:, 0], 0.0)[:, None]]
    return np.concatenate(columns, axis=1)
