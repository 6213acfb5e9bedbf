"""Correction of OCR text that abstains: words of a noisy channel, a gate of trees, and a language model as judge."""

import math
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...common.config import InputError
from ...common.files import atomic, inside, read_json, sha256, write_json
from .changes import KINDS, Change, apply_changes, compose
from .channel import Channel
from .context import CONTEXT, WORDS, confusions, second_rows
from .lexicon import Lexicon
from .proposals import FEATURES, JUDGED, Document, Proposal, Resources, in_paragraphs, open_resources, rows
from .trees import Trees
from .units import accents, fold

if TYPE_CHECKING:  # torch takes seconds and 300 MB, which the workers of curation, without a model, are spared
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .judge import Judge

FOLDER = "ocr_channel"  # beside the weights of a model
PACKAGED = Path(__file__).with_name("learned")  # the corrector of eight languages that the package ships
# The first gate rates all proposed changes; the others decide on those that are possible, without or with a model.
GATES = ("first", "alone", "judged")
VERSION = 2
COLUMNS = {"features": FEATURES, "context": CONTEXT, "judged": JUDGED}  # that the gates read
PIECE = 4000  # characters of a text that are judged as one document, as gates have learned from pages
POSSIBLE = 0.06  # probability of the first gate above which a change is possible
OLD = 0.75  # share of the limit of unknown words that look like words above which a text may be old
FOREIGN = 0.9  # share of unknown words above which a text is not touched: another language, or nothing is legible
# Least probabilities of changes in texts unlike the pages that the gates have learned from.
IN_OLD, IN_ILLEGIBLE, LONE = 0.9, 0.9, 0.95  # the last: of the only change of a text, which is probably clean
IN_PARAGRAPHS = {"word": 0.8, "accent": 0.8, "punctuation": 0.97}
SURE, SUPPORT, SUPPORTERS = 0.9, 1.0, 4  # log-odds that each sure change adds to others of its confusion; their number
ACCENTED = 3  # known words with accents in a text that writes accents
ACCENT, SPELLING = FEATURES.index("accent"), FEATURES.index("spelling")
PASSES = 2  # the second sees the words that the first has corrected
VARIANTS = 2  # possible changes of a place


class Settings(NamedTuple):
    """Calibrated settings of a corrector.

    Args:
        thresholds: Gate (alone or judged) -> kind -> minimum probability of a change.
        unknown: Share of unknown words above which a text is hardly legible: only words are changed, and only if that
            is almost certain.
        plausible: Language -> share of unknown words that look like words above which a text is not touched: its
            spelling is old, or a dialect's. Above half of it, no change between spellings (y and i, u and v, accents)
            is made.
        judge: Hash of the language model that the second gate was learned with. Default: none, or not recorded.
    """

    thresholds: dict[str, dict[str, float]]
    unknown: float
    plausible: dict[str, float]
    judge: str | None = None


class Corrector:
    """OCR correction of the languages that it has learned.

    Args:
        channel: Costs of confusions.
        gates: Trees by name, those of `GATES`.
        settings: Calibrated thresholds.
        lexicons: Language -> lexicon, or the file to read it from.
        judge: Language model as last judge. Default: none.
    """

    def __init__(
        self,
        channel: Channel,
        gates: dict[str, Trees],
        settings: Settings,
        lexicons: dict[str, Lexicon | Path],
        judge: "Judge | None" = None,
    ):
        self.channel, self.gates, self.settings, self.judge = channel, gates, settings, judge
        self._lexicons = lexicons
        self._resources: dict[str, Resources] = {}

    @property
    def languages(self) -> list[str]:
        """ISO codes of the languages that can be corrected."""
        return list(self._lexicons)

    def resources(self, language: str) -> Resources:
        """Return lexicon, channel and candidates of a language, read on first use.

        Raises:
            InputError: If the corrector has not learned the language, or its lexicon is damaged.
        """
        if language not in self._lexicons:
            known = ", ".join(self._lexicons)
            raise InputError(f"the OCR corrector has no language {language!r}: it corrects {known}.")
        if language not in self._resources:
            lexicon = self._lexicons[language]
            if isinstance(lexicon, Path):
                lexicon = Lexicon.load(lexicon)
            self._resources[language] = open_resources(lexicon, self.channel)
        return self._resources[language]

    def changes(self, text: str, language: str, *, threshold: float = 1.0) -> list[Change]:
        """Return the changes that correct an OCR text, in its order; none if the text is better left alone.

        Args:
            text: OCR text, with the line ends of the page.
            language: ISO code.
            threshold: Caution: 2 demands twice the log-odds above even of a change; 0 takes whatever is more
                probable than not.

        Raises:
            InputError: If the corrector has not learned the language.
        """
        return [change for part in self.by_piece(text, language, threshold=threshold) for change in part or ()]

    def by_piece(self, text: str, language: str, *, threshold: float = 1.0) -> Iterator[list[Change] | None]:
        """Yield the changes of each piece of a text; None for a piece that is better left alone. See `changes`."""
        self.resources(language)  # an unknown language is refused before the first piece
        calibrated = self.settings.thresholds[self._deciding]
        minimum = {kind: scaled(calibrated[kind], threshold) for kind in KINDS}
        for start, end in pieces(text):
            changes = self._piece_changes(text[start:end], language, minimum, threshold)
            yield changes and [c._replace(start=c.start + start, end=c.end + start) for c in changes]

    def _piece_changes(
        self, piece: str, language: str, minimum: dict[str, float], threshold: float
    ) -> list[Change] | None:
        changes: list[Change] = []
        for _ in range(PASSES):
            document = Document(apply_changes(piece, changes), self.resources(language))
            if not changes and self.abstains(document, language):
                return None
            proposals, probabilities = self.judged(document, language)
            probabilities, least = supported(proposals, probabilities), self._least(document, language, minimum)
            latest = made_changes(document.text, proposals, probabilities, least, threshold, lone=not changes)
            if not latest:
                break
            changes = compose(piece, changes, latest)
        return changes

    def correct(self, text: str, language: str, *, threshold: float = 1.0) -> str:
        """Return the corrected text; see `changes`."""
        return apply_changes(text, self.changes(text, language, threshold=threshold))

    def abstains(self, document: Document, language: str) -> bool:
        """Return whether a text as a whole is better left alone.

        It is no prose (a receipt, a table), early modern print, in old spelling, in another language, or illegible.
        """
        strange = document.unknown > FOREIGN or document.plausible > self.settings.plausible[language]
        return strange or document.early or not document.prose

    def _least(self, document: Document, language: str, minimum: dict[str, float]) -> dict[str, float]:
        """Return the kinds of changes that are made in a text, with the minimum probability of each."""
        least = dict(minimum)
        if document.unknown > self.settings.unknown:
            least = {kind: max(least[kind], IN_ILLEGIBLE) for kind in WORDS}
        if document.plausible > OLD * self.settings.plausible[language]:
            least = {kind: max(value, IN_OLD) for kind, value in least.items()}
        return least

    @property
    def _deciding(self) -> str:
        return "judged" if self.judge else "alone"

    def judged(self, document: Document, language: str) -> tuple[list[Proposal], np.ndarray]:
        """Return the possible changes of a text and their probabilities."""
        proposals = document.proposals()
        features = rows(proposals)
        odds = self.gates["first"].log_odds(features)
        possible = possible_changes(proposals, odds)
        chosen = [proposals[i] for i in possible]
        verdict = self.judge.features(document.text, chosen) if self.judge else None
        entries = second_rows(proposals, features, odds, possible, verdict)
        probabilities = self.gates[self._deciding].probability(entries)
        spelled = document.plausible > self.settings.plausible[language] / 2
        errors = [i for i, proposal in enumerate(chosen) if not _is_spelling(proposal, document, spelled)]
        return [chosen[i] for i in errors], probabilities[errors]

    def judged_by(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "Corrector":
        """Return a corrector with a model as last judge, which shares what this one has read from its files.

        Raises:
            InputError: If it was learned without a model.
        """
        from .judge import Judge

        if "judged" not in self.gates:
            raise InputError("the OCR corrector was learned without a language model: no model can judge its changes.")
        corrector = copy(self)
        corrector.judge = Judge(model, tokenizer)
        return corrector

    def save(self, folder: Path) -> None:
        """Write the corrector to a folder; lexicons are written by their own `save`."""
        tensors = {
            f"{name}.{field}": np.ascontiguousarray(values)
            for name, trees in self.gates.items()
            for field, values in trees._asdict().items()
        }
        with atomic(folder / "gates.safetensors") as temporary:
            save_file(tensors, temporary)
        content = {
            "version": VERSION, "languages": self.languages, **COLUMNS,
            "settings": self.settings._asdict(), "costs": self.channel.costs, "gaps": self.channel.gaps,
        }  # fmt: skip
        for language, lexicon in self._lexicons.items():
            if isinstance(lexicon, Lexicon):
                lexicon.save(folder / f"{language}.lexicon")
        names = ["gates.safetensors", *(f"{language}.lexicon" for language in self._lexicons)]
        content["sha256"] = {name: sha256(folder / name) for name in names}
        write_json(folder / "corrector.json", content)

    @classmethod
    def load(
        cls,
        folder: Path,
        model: "PreTrainedModel | None" = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ) -> "Corrector":
        """Read a corrector; with the model that it was learned with, that is the last judge of each change.

        Raises:
            InputError: If the folder has no corrector, or a file is damaged.
        """
        file = folder / "corrector.json"
        if not file.is_file():
            raise InputError(
                f"{folder} contains no OCR corrector (corrector.json): learn one with training.ocr_channel."
            )
        content = read_json(file)
        try:
            names = {name: tuple(content[name]) for name in COLUMNS}
            if content["version"] != VERSION or names != COLUMNS:
                raise ValueError(f"version {content['version']}")
            settings = Settings(**content["settings"])
            channel = Channel(content["costs"], content["gaps"])
            with safe_open(folder / "gates.safetensors", "np") as tensors:
                gates = {
                    name: Trees(*(tensors.get_tensor(f"{name}.{field}") for field in Trees._fields))
                    for name in ("first", *settings.thresholds)
                }
            languages = {language: folder / f"{language}.lexicon" for language in content["languages"]}
            if missing := [path.name for path in languages.values() if not path.is_file()]:
                raise ValueError(f"it has no {missing[0]}")
            for name, known in content.get("sha256", {}).items():  # older correctors record none
                if sha256(inside(folder, name)) != known:
                    raise ValueError(f"{name} is damaged: its sha256 is not the recorded one")
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise InputError(
                f"{folder} contains no OCR corrector that this version reads ({error}): learn or download it again."
            ) from error
        corrector = cls(channel, gates, settings, languages)
        return corrector if model is None else corrector.judged_by(model, tokenizer)


def _is_spelling(proposal: Proposal, document: Document, spelled: bool) -> bool:
    """Return whether a change may be one of spelling.

    These are new accents in a text without, accents of capitals, and all others if the text's spelling is old.
    """
    if not proposal.features[ACCENT]:
        loses_e = fold(proposal.before) == fold(proposal.after) + "e"  # looke, poore
        return spelled and (bool(proposal.features[SPELLING]) or loses_e)
    added = accents(proposal.after) > accents(proposal.before)
    if document.unaccented and not added:
        return False
    if spelled or len(proposal.before) > 1 and proposal.before.isupper():
        return True
    return document.accented < ACCENTED and added


def supported(proposals: list[Proposal], probabilities: np.ndarray) -> np.ndarray:
    """Return the probabilities of changes, higher where sure changes of other words undo the same confusion.

    Changes of spelling stay as they are: a print in old spelling has many of one kind.
    """
    undone, words = [], defaultdict(set)
    for proposal, probability in zip(proposals, probabilities, strict=True):
        is_spelling = proposal.features[SPELLING] and not proposal.features[ACCENT]
        undone.append(set() if is_spelling else confusions(proposal))
        for confusion in undone[-1] if probability >= SURE else ():
            words[confusion].add(proposal.before.lower())
    others = [
        min((len(words[confusion] - {proposal.before.lower()}) for confusion in pairs), default=0)
        for proposal, pairs in zip(proposals, undone, strict=True)
    ]
    odds = probabilities / np.maximum(1 - probabilities, 1e-12) * np.exp(SUPPORT * np.minimum(others, SUPPORTERS))
    return odds / (1 + odds)


def possible_changes(proposals: list[Proposal], odds: np.ndarray) -> np.ndarray:
    """Return the numbers of the possible changes by the log-odds of the first gate: of a place, the best."""
    variants: Counter = Counter()
    numbers = []
    for i in np.argsort(-odds, kind="stable"):
        if odds[i] < math.log(POSSIBLE / (1 - POSSIBLE)):
            break
        if variants[proposals[i].start] < VARIANTS:
            variants[proposals[i].start] += 1
            numbers.append(i)
    return np.array(sorted(numbers), dtype=np.int64)


def scaled(probability: float, caution: float) -> float:
    """Return a minimum probability with its log-odds scaled."""
    if probability >= 1:
        return probability
    return 1 / (1 + ((1 - probability) / probability) ** caution)


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of pieces of a text: at most `PIECE` characters, that end at a line end or else at a space."""
    start = 0
    while start < len(text):
        end = min(start + PIECE, len(text))
        if end < len(text):
            end = (text.rfind("\n", start + PIECE // 2, end) + 1) or (text.rfind(" ", start + 1, end) + 1) or end
        yield start, end
        start = end


def made_changes(
    text: str,
    proposals: list[Proposal],
    probabilities: np.ndarray,
    minimum: dict[str, float],
    caution: float = 1.0,
    lone: bool = True,
) -> list[Change]:
    """Return the changes that are made in a text; if `lone`, no single one that is not almost certain.

    In paragraphs, a space inside a word may be where a line ended, and its lack between words too: none is split or
    merged there.
    """
    if in_paragraphs(text):
        minimum = {kind: max(minimum[kind], value) for kind, value in IN_PARAGRAPHS.items() if kind in minimum}
    changes = selected(proposals, probabilities, minimum)
    return [] if lone and len(changes) == 1 and changes[0].probability < scaled(LONE, caution) else changes


def selected(proposals: list[Proposal], probabilities: np.ndarray, minimum: dict[str, float]) -> list[Change]:
    """Return the most probable changes that do not overlap, of the kinds in `minimum`, each at least so probable."""
    taken: list[Change] = []
    for i in np.argsort(-probabilities, kind="stable"):
        proposal, probability = proposals[i], float(probabilities[i])
        if probability < minimum.get(proposal.kind, math.inf):
            continue
        change = Change(*proposal[:4], proposal.kind, probability)
        place = bisect(taken, change)
        if all(
            change.end <= other.start or other.end <= change.start for other in taken[max(0, place - 1) : place + 1]
        ):
            taken.insert(place, change)
    return taken
