"""Stages of learning the OCR corrector; the result of each is a file, so that a stopped program resumes after it."""

import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ...common.files import atomic, fingerprint, model_sha256, read_json, write_json
from ...data.split import hash_fraction
from .changes import apply_changes
from .channel import Channel
from .corrector import Corrector
from .corrector import Settings as CorrectorSettings
from .judge import Judge
from .labels import gains, punctuation_readings
from .learning import (
    CLEAN_EDITS,
    Examples,
    Sample,
    calibrate,
    clean_samples,
    fit_gate,
    for_calibration,
    gate_rows,
    historical_samples,
    joined,
    make_examples,
    normalised,
    page_samples,
    page_works,
    possible_examples,
    verdicts,
)
from .lexicon import Lexicon
from .metrics import edit_errors
from .proposals import FEATURES, Proposal, open_resources
from .trees import Trees
from .units import LONG_S
from .word_counts import build_lexicons, count_words

NOISE_PAGES = 150  # simulated pages of each language that the channel learns from
UNREADABLE = 0.3  # edits a character above which a page is not learned from
UNKNOWN = 0.5  # share of unknown words above which a text is hardly legible
USUAL, MARGIN = 98, 0.03  # percentile of unknown words that look like words in clean text, and what is added to it


class Settings(NamedTuple):
    """Inputs and outputs of the stages.

    Args:
        corpus: Corpus folder or file.
        pairs: Folder of OCR pages and their truth.
        folder: Folder of finished stages.
        out: Folder of the corrector.
        languages: ISO codes.
        passages: Clean passages per language.
        seed: Seed of every choice.
        model: Folder of the language model that judges changes. Default: none, the corrector has no gate for one.
        judged: Possible changes per language on pages that the model judges to learn from.
        measured: Texts of each kind and language in the report.
    """

    corpus: Path
    pairs: Path
    folder: Path
    out: Path
    languages: tuple[str, ...]
    passages: int
    seed: int
    model: Path | None
    judged: int
    measured: int

    def judge(self) -> Judge | None:
        """Load the language model, if there is one; a worker process computes on one core."""
        if self.model is None:
            return None
        if multiprocessing.parent_process():
            torch.set_num_threads(1)
        return Judge.load(self.model)


def _samples(settings: Settings, language: str) -> list[Sample]:
    """Return the samples of a language, written by `count`."""
    rows = read_json(settings.folder / f"{language}.samples.json")
    return [Sample(*row) for row in rows]


def count(settings: Settings, language: str | None) -> None:
    """Choose the texts of a language and count its words, and those of the works that the texts are from."""
    file = settings.folder / f"{language or 'code'}.counts.json"
    if file.is_file():
        return
    settings.folder.mkdir(parents=True, exist_ok=True)
    works: set[str] = set()
    if language:
        samples = page_samples(settings.pairs, [language], settings.seed)
        samples += clean_samples(settings.corpus, language, settings.passages, settings.seed)
        works = {sample.work for sample in samples} | page_works(settings.pairs, language)
        _write(settings.folder / f"{language}.samples.json", samples)
    counted = count_words(settings.corpus, language, works)
    _write(file, counted._asdict())


def _write(path: Path, value) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lexicons(settings: Settings) -> None:
    """Write the lexicon of each language."""
    files = {language: settings.out / f"{language}.lexicon" for language in settings.languages}
    if all(file.is_file() for file in files.values()):
        return
    counted = {language: read_json(settings.folder / f"{language}.counts.json") for language in settings.languages}
    code = Counter(read_json(settings.folder / "code.counts.json")["counts"])
    counts = {language: Counter(entry["counts"]) for language, entry in counted.items()}
    capitals = {language: Counter(entry["capitals"]) for language, entry in counted.items()}
    for language, lexicon in build_lexicons(counts, capitals, code).items():
        lexicon.save(files[language])


def learn_channel(settings: Settings) -> None:
    """Learn confusions from rendered and simulated pages, and readings of punctuation from rendered ones."""
    file = settings.folder / "channel.json"
    if file.is_file():
        return
    rendered, simulated = [], []
    for language in settings.languages:
        samples = [sample for sample in _samples(settings, language) if not sample.held_out]
        rendered += [(sample.ocr, sample.truth) for sample in samples if sample.kind == "rendered"]
        simulated += [(s.ocr, s.truth) for s in samples if s.kind == "noise"][:NOISE_PAGES]
    pairs = [(normalised(ocr), normalised(truth)) for ocr, truth in rendered + simulated]
    channel = Channel.learn(pairs, punctuation_readings(rendered))
    write_json(file, {"costs": channel.costs, "gaps": channel.gaps})


def _channel(settings: Settings) -> Channel:
    return Channel(**read_json(settings.folder / "channel.json"))


def propose(settings: Settings, language: str) -> None:
    """Write the labelled changes of the samples of a language."""
    file = settings.folder / f"{language}.examples.safetensors"
    if file.is_file():
        return
    samples = [
        sample
        for sample in _samples(settings, language)
        if sample.held_out or sample.kind not in ("rendered", "noise") or _readable(sample)
    ]
    works = read_json(settings.folder / f"{language}.counts.json")["works"]
    resources = open_resources(Lexicon.load(settings.out / f"{language}.lexicon"), _channel(settings))
    examples = make_examples(samples, resources, works)
    changes = [proposal[:5] for proposal in examples.proposals]
    _write(file.with_suffix(".json"), {"samples": examples.samples, "changes": changes})
    arrays = {"sample": examples.sample, "features": examples.features.astype(np.float32), "gain": examples.gain}
    with atomic(file) as temporary:
        save_file(arrays, temporary)


def _readable(sample: Sample) -> bool:
    ocr, truth = normalised(sample.ocr), normalised(sample.truth)
    missing = gains(truth, ocr, [Proposal(0, len(truth), truth, ocr, "word", [])])
    return missing[0] <= UNREADABLE * len(truth)


def read_examples(settings: Settings, language: str) -> Examples:
    """Return the examples of a language."""
    file = settings.folder / f"{language}.examples.safetensors"
    arrays, texts = load_file(file), read_json(file.with_suffix(".json"))
    features = arrays["features"].astype(np.float64)
    samples = [Sample(*row) for row in texts["samples"]]
    proposals = [Proposal(*row, []) for row in texts["changes"]]
    return Examples(samples, arrays["sample"], proposals, features, arrays["gain"])


def fit_first(settings: Settings) -> None:
    """Fit the first gate, and rate all examples with it."""
    file = settings.folder / "first.safetensors"
    if file.is_file():
        return
    parts = [read_examples(settings, language) for language in settings.languages]
    examples = joined(parts)
    trees, odds = fit_gate(examples, np.arange(len(examples.gain)), examples.features)
    entries = np.split(odds, np.cumsum([len(part.gain) for part in parts])[:-1])
    names = [f"odds.{language}" for language in settings.languages]
    with atomic(file) as temporary:
        save_file({**trees._asdict(), **dict(zip(names, entries, strict=True))}, temporary)


def judge_examples(settings: Settings, language: str) -> None:
    """Write the language model's features of possible changes of a language, those of sampled texts."""
    file = settings.folder / f"{language}.verdicts.safetensors"
    if file.is_file() or settings.model is None:
        return
    examples = read_examples(settings, language)
    possible = possible_examples(examples, load_file(settings.folder / "first.safetensors")[f"odds.{language}"])
    possible = possible[_sampled(examples, possible, settings.judged)]
    verdict = verdicts(examples, possible, settings.judge())
    with atomic(file) as temporary:
        save_file({"possible": possible, "verdict": verdict}, temporary)


def fit_gates(settings: Settings) -> None:
    """Fit the gates that decide, calibrate their thresholds, and write the corrector."""
    if (settings.out / "corrector.json").is_file():
        return
    parts = [read_examples(settings, language) for language in settings.languages]
    examples, arrays = joined(parts), load_file(settings.folder / "first.safetensors")
    odds = np.concatenate([arrays.pop(f"odds.{language}") for language in settings.languages])
    rated = {"alone": (possible_examples(examples, odds), None)}
    if settings.model:
        rated["judged"] = _verdicts(settings, parts)
    gates, thresholds = {"first": Trees(**arrays)}, {}
    for name, (possible, verdict) in rated.items():
        gates[name], lone = fit_gate(examples, possible, gate_rows(examples, odds, possible, verdict))
        probability = np.full(len(odds), -1.0)
        probability[possible] = 1 / (1 + np.exp(-lone))
        thresholds[name] = calibrate(examples, probability)
    plausible = {language: _usual(part) for language, part in zip(settings.languages, parts, strict=True)}
    lexicons = {language: settings.out / f"{language}.lexicon" for language in settings.languages}
    model_hash = fingerprint(model_sha256(settings.model)) if settings.model else None
    calibrated = CorrectorSettings(thresholds, UNKNOWN, plausible, model_hash)
    Corrector(_channel(settings), gates, calibrated, lexicons).save(settings.out)


def _usual(examples: Examples) -> float:
    """Return the share of unknown words that look like words which hardly any clean text exceeds."""
    clean = np.array([sample.kind in ("old", "modern") for sample in examples.samples])[examples.sample]
    _, first = np.unique(examples.sample[clean], return_index=True)
    shares = examples.features[clean][first, FEATURES.index("plausible")]
    return round(float(np.percentile(shares, USUAL)) + MARGIN if len(shares) else 1.0, 3)


def _verdicts(settings: Settings, parts: list[Examples]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of judged examples among those of all languages, and the model's features of them."""
    offsets = np.cumsum([0, *(len(part.gain) for part in parts[:-1])])
    arrays = [load_file(settings.folder / f"{language}.verdicts.safetensors") for language in settings.languages]
    numbers = [entry["possible"] + offset for entry, offset in zip(arrays, offsets, strict=True)]
    return np.concatenate(numbers), np.concatenate([entry["verdict"] for entry in arrays])


def _sampled(part: Examples, possible: np.ndarray, judged: int) -> np.ndarray:
    """Return which of the possible changes are judged.

    These are clean text to calibrate on, a third of other clean text, and pages until `judged` changes are possible.
    """
    taken = np.zeros(len(part.samples), dtype=bool)
    remaining = judged
    counts = np.bincount(part.sample[possible], minlength=len(part.samples))
    for i in sorted(range(len(part.samples)), key=lambda i: hash_fraction(f"judged/{part.samples[i].id}")):
        sample = part.samples[i]
        if sample.kind in CLEAN_EDITS:
            third = hash_fraction(f"third/{sample.id}") < 1 / 3
            taken[i] = for_calibration(sample) if sample.held_out else third
        elif not sample.held_out and remaining > 0:
            taken[i] = True
            remaining -= counts[i]
    return taken[part.sample[possible]]


def measure(settings: Settings, language: str) -> None:
    """Write a row for each text of the report in a language: rendered pages, clean text, historical scans."""
    file = _measured_file(settings, language)
    if file.is_file():
        return
    corrector = Corrector.load(settings.out)
    corrector.judge = settings.judge()
    works = read_json(settings.folder / f"{language}.counts.json")["works"]
    groups: dict[str, list[Sample]] = {}
    for sample in [*_samples(settings, language), *historical_samples(settings.pairs, language)]:
        if sample.held_out and (sample.kind not in CLEAN_EDITS or not for_calibration(sample)):
            groups.setdefault(sample.kind, []).append(sample)
    rows = []
    for samples in groups.values():
        ordered = sorted(samples, key=lambda sample: hash_fraction(f"measured/{sample.id}"))
        rows += [_measured(corrector, sample, works) for sample in ordered[: settings.measured]]
    _write(file, rows)


def _measured_file(settings: Settings, language: str) -> Path:
    return settings.folder / f"{language}.measured{settings.measured}.json"


def measured_rows(settings: Settings) -> list[dict]:
    """Return the rows of the report, written by `measure`."""
    return [row for language in settings.languages for row in read_json(_measured_file(settings, language))]


def _measured(corrector: Corrector, sample: Sample, works: dict[str, dict[str, int]]) -> dict:
    """Correct a text as if its work were not in the lexicon, and count errors before and after."""
    resources = corrector.resources(sample.language)
    lone = works.get(sample.work, {})
    if lone:
        resources.candidates.clear()
    with resources.lexicon.without(lone):
        changes = corrector.changes(sample.ocr, sample.language)
    if lone:
        resources.candidates.clear()
    read = sample.ocr, apply_changes(sample.ocr, changes)
    # where the OCR text writes no long s, neither does the corrector
    truth = sample.truth if LONG_S in sample.ocr else sample.truth.replace(LONG_S, "s")
    entries = gains(sample.ocr, truth, changes)
    before, after = (edit_errors(truth, text) for text in read)
    strict_before, strict_after = (edit_errors(sample.truth, text) for text in read)
    return {
        "language": sample.language,
        "kind": sample.kind,
        "characters": len(normalised(truth)),
        "before": before,
        "after": after,
        "strict_before": strict_before,
        "strict_after": strict_after,
        "edits": edit_errors(*read),
        "words": len(sample.ocr.split()),
        "better": sum(gain > 0 for gain in entries),
        "worse": sum(gain < 0 for gain in entries),
        "changes": len(changes),
    }
