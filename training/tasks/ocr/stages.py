"""Stages of learning the OCR corrector; the result of each is a file, so that a stopped program resumes after it."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from ...common.files import atomic, read_json, write_json
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
    fit_first,
    fit_judged,
    for_calibration,
    historical_samples,
    joined,
    make_examples,
    normalised,
    page_samples,
    page_works,
    verdicts,
)
from .lexicon import Lexicon
from .proposals import FEATURES, JUDGED, Proposal, open_resources
from .word_counts import build_lexicons, count_words

NOISE_PAGES = 150  # simulated pages of each language that the channel learns from
UNREADABLE = 0.3  # edits a character above which a page is not learned from
LIKELY = -2.5  # log-odds of the changes that are counted to choose pages
UNKNOWN = 0.5  # share of unknown words above which a text is not touched
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
    """

    corpus: Path
    pairs: Path
    folder: Path
    out: Path
    languages: tuple[str, ...]
    passages: int
    seed: int


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


def fit_gates(settings: Settings, judge: Judge | None, judged: int, judge_hash: str | None) -> None:
    """Fit both gates, calibrate their thresholds, and write the corrector.

    Args:
        settings: Inputs and outputs.
        judge: Language model. Default: the corrector has the first gate alone.
        judged: Changes per language on pages that the model judges; all of clean text that are possible.
        judge_hash: Hash of the model, for the corrector.
    """
    if (settings.out / "corrector.json").is_file():
        return
    parts = [read_examples(settings, language) for language in settings.languages]
    examples = joined(parts)
    first, odds = fit_first(examples)
    gates, thresholds = {"first": first}, {"first": calibrate(examples, 1 / (1 + np.exp(-odds)))}
    if judge:
        possible, verdict = _judge(settings, parts, odds, judge, judged)
        gates["judged"], entries = fit_judged(examples, odds, possible, verdict)
        probability = np.full(len(odds), -1.0)
        probability[possible] = entries
        thresholds["judged"] = calibrate(examples, probability)
    plausible = {language: _usual(part) for language, part in zip(settings.languages, parts, strict=True)}
    lexicons = {language: settings.out / f"{language}.lexicon" for language in settings.languages}
    calibrated = CorrectorSettings(thresholds, UNKNOWN, plausible, judge_hash)
    Corrector(_channel(settings), gates, calibrated, lexicons).save(settings.out)


def _usual(examples: Examples) -> float:
    """Return the share of unknown words that look like words which hardly any clean text exceeds."""
    clean = np.array([sample.kind in ("old", "modern") for sample in examples.samples])[examples.sample]
    _, first = np.unique(examples.sample[clean], return_index=True)
    shares = examples.features[clean][first, FEATURES.index("plausible")]
    return round(float(np.percentile(shares, USUAL)) + MARGIN if len(shares) else 1.0, 3)


def _judge(
    settings: Settings, parts: list[Examples], odds: np.ndarray, judge: Judge, judged: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of judged examples and the model's features of them; each language is a file."""
    numbers, features, offset = [], [], 0
    for language, part in zip(settings.languages, tqdm(parts, desc="language model", unit="language"), strict=True):
        file = settings.folder / f"{language}.verdicts.safetensors"
        if not file.is_file():
            lone = odds[offset : offset + len(part.proposals)].copy()
            lone[~_sampled(part, lone, judged)] = -np.inf
            possible, verdict = verdicts(part, lone, judge)
            with atomic(file) as temporary:
                save_file({"possible": possible, "verdict": verdict}, temporary)
        arrays = load_file(file)
        numbers.append(arrays["possible"] + offset)
        features.append(arrays["verdict"])
        offset += len(part.proposals)
    return np.concatenate(numbers), np.concatenate(features).reshape(-1, len(JUDGED))


def _sampled(part: Examples, odds: np.ndarray, judged: int) -> np.ndarray:
    """Return which examples are judged.

    These are clean text to calibrate on, a third of other clean text, and pages until `judged` examples are possible.
    """
    taken = np.zeros(len(part.samples), dtype=bool)
    remaining = judged
    possible = np.bincount(part.sample[odds > LIKELY], minlength=len(part.samples))
    for i in sorted(range(len(part.samples)), key=lambda i: hash_fraction(f"judged/{part.samples[i].id}")):
        sample = part.samples[i]
        if sample.kind in CLEAN_EDITS:
            third = hash_fraction(f"third/{sample.id}") < 1 / 3
            taken[i] = for_calibration(sample) if sample.held_out else third
        elif not sample.held_out and remaining > 0:
            taken[i] = True
            remaining -= possible[i]
    return taken[part.sample]


def measure_corrector(settings: Settings, judge: Judge | None, measured: int) -> list[dict]:
    """Return a row for each text of the report: rendered pages, clean text, historical scans."""
    rows: list[dict] = []
    for language in tqdm(settings.languages, desc="report", unit="language"):
        file = settings.folder / f"{language}.measured{measured}.json"
        if not file.is_file():
            corrector = Corrector.load(settings.out)
            corrector.judge = judge
            works = read_json(settings.folder / f"{language}.counts.json")["works"]
            groups: dict[str, list[Sample]] = {}
            for sample in [*_samples(settings, language), *historical_samples(settings.pairs, language)]:
                if sample.held_out and (sample.kind not in CLEAN_EDITS or not for_calibration(sample)):
                    groups.setdefault(sample.kind, []).append(sample)
            lone = []
            for samples in groups.values():
                ordered = sorted(samples, key=lambda sample: hash_fraction(f"measured/{sample.id}"))
                lone += [_measured(corrector, sample, works) for sample in ordered[:measured]]
            _write(file, lone)
        rows += read_json(file)
    return rows


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
    truth = normalised(sample.truth)
    before, after = (normalised(text) for text in (sample.ocr, apply_changes(sample.ocr, changes)))
    entries = gains(sample.ocr, sample.truth, changes)
    return {
        "language": sample.language,
        "kind": sample.kind,
        "characters": len(truth),
        "before": Levenshtein.distance(before, truth),
        "after": Levenshtein.distance(after, truth),
        "edits": Levenshtein.distance(before, after),
        "words": len(before.split()),
        "better": sum(gain > 0 for gain in entries),
        "worse": sum(gain < 0 for gain in entries),
        "changes": len(changes),
    }
