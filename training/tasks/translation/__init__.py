"""Translation: the format, rows from parallel segments, the metrics, and `translate`.

The published format does not specify how the target language is given. Here its token (`<|fr|>`) is the first token of
the translation, and the prompt ends with it:

    <|text_start|>Save the file.<|text_end|><|translation_start|><|fr|> -> Enregistrez le fichier.<|translation_end|>

The token of the source language may precede the text; half of the training rows have it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.config import InputError
from ...common.generation import complete
from ...common.intervals import Metric, ratio
from ...data.documents import checked_languages
from ...data.licences import decide
from ...data.split import hash_fraction, held_out_groups
from ..markers import escape, language_marker, unescape
from ..scoring import language_match
from ..sources import order_by_hash
from ..text_windows import overlapping_windows, split_spaces
from .aligned import segments

NAME = "translation"
HIGHER_IS_BETTER = True
START, END, STOP = "<|text_start|>", "<|text_end|><|translation_start|>", "<|translation_end|>"
DECODING = {"max_new_tokens": 192, "stop": STOP, "repetition_penalty": 1.0}

MAX_CHARACTERS = 300  # per segment, and per piece of a text to translate
RATIO = 2.5  # maximum ratio of lengths of two segments: beyond it they are not translations of each other
CHRF2PP, BLEU4 = CHRF(word_order=2), BLEU()
Directions = dict[tuple[str, str], list[dict]]  # (source, target) -> segments


# Format -------------------------------------------------------------------------------------------


def format_translation(text: str, target: str, translation: str = "", source: str | None = None) -> tuple[str, str]:
    """Return (prompt, completion) of a text.

    Args:
        target: ISO code of the target language.
        source: ISO code of the text's language, if known.
    """
    before = language_marker(source) if source else ""
    return f"{START}{before}{escape(text)}{END}{language_marker(target)}", f"{escape(translation)}{STOP}"


def parse_output(output: str) -> str:
    """Return the translation in a generated completion."""
    return unescape(output.partition(STOP)[0])


# Rows ---------------------------------------------------------------------------------------------


@dataclass
class TranslationData:
    """Training and evaluation data of translation.

    Args:
        path: Parquet file or folder of parallel segments: columns id, source, license, and one per language (ISO
            codes). Default: LibreOffice's help in seven languages, and the Vulgate with an English Bible.
        languages: ISO codes. Default: all eight.
        pivot: ISO code of the language that is one side of every pair; null for any two languages.
        train_rows: Maximum number of training rows, equally many per direction if there are enough.
        held_out: Fraction of the pages and chapters that is not trained on.
        held_out_rows: Maximum number of evaluation rows.
        max_characters: Maximum characters of a text and of its translation.
        seed: Seed of the held-out split and of sampling.
    """

    path: Path | None = None
    languages: list[str] | None = None
    pivot: str | None = "en"
    train_rows: int = 20_000
    held_out: float = 0.05
    held_out_rows: int = 400
    max_characters: int = MAX_CHARACTERS
    seed: int = 0


def rows(data: TranslationData) -> dict[str, list[dict]]:
    """Return {"train": rows, "held_out": rows} without a common page, chapter, text or translation.

    Raises:
        InputError: If there are no segments, or a setting is invalid.
    """
    languages = checked_languages(data.languages)
    if len(languages) < 2 or data.pivot not in (None, *languages):
        raise InputError(
            f"translation of {', '.join(languages)} with pivot {data.pivot}: set --data.languages to at least two "
            "languages, and --data.pivot to one of them or null."
        )
    usable = [segment for segment in segments(data.path, languages) if not decide(segment["license"]).refused]
    groups = held_out_groups((("", segment["source"]) for segment in usable), data.held_out, data.seed)
    candidates: dict[str, Directions] = {"train": {}, "held_out": {}}
    for segment in usable:
        part = candidates["held_out" if segment["source"] in groups else "train"]
        for direction in _directions(segment, languages, data):
            part.setdefault(direction, []).append(segment)
    held_out = _select(candidates["held_out"], data.held_out_rows, data, excluded=set())
    texts = {segment[code] for direction, some in held_out.items() for segment in some for code in direction}
    train = _select(candidates["train"], data.train_rows, data, excluded=texts)
    if not train:
        raise InputError(f"no parallel segments in {', '.join(languages)}: pass others with --data.path.")
    return {
        name: order_by_hash(
            (_row(segment, *direction, data.seed) for direction, some in selected.items() for segment in some),
            data.seed,
        )
        for name, selected in (("train", train), ("held_out", held_out))
    }


def _directions(segment: dict, languages: list[str], data: TranslationData) -> Iterator[tuple[str, str]]:
    """Yield the (source, target) pairs for which a segment has suitable texts."""
    present = [code for code in languages if segment[code] and len(segment[code]) <= data.max_characters]
    for source, target in permutations(present, 2):
        a, b = segment[source], segment[target]
        if data.pivot in (None, source, target) and a != b and max(len(a), len(b)) <= RATIO * min(len(a), len(b)):
            yield source, target


def _select(candidates: Directions, count: int, data: TranslationData, *, excluded: set[str]) -> Directions:
    """Select `count` segments, equally many per direction if possible, no source text twice and no excluded text."""
    selected: Directions = {}
    left = count
    for i, direction in enumerate(sorted(candidates, key=lambda pair: len(candidates[pair]))):  # rarest first
        quota = left // (len(candidates) - i)
        seen: set[str] = set()
        some = selected.setdefault(direction, [])
        for segment in sorted(
            candidates[direction], key=lambda s: hash_fraction(f"{data.seed}/{s['id']}/{direction}")
        ):
            if len(some) >= quota:
                break
            if segment[direction[0]] not in seen and excluded.isdisjoint(segment[code] for code in direction):
                seen.add(segment[direction[0]])
                some.append(segment)
        left -= len(some)
    return selected


def _row(segment: dict, source: str, target: str, seed: int) -> dict:
    identifier = f"{segment['id']}:{source}-{target}"
    stated = source if hash_fraction(f"stated/{seed}/{identifier}") < 0.5 else None
    prompt, completion = format_translation(segment[source], target, segment[target], stated)
    return {
        **{"id": identifier, "language": target, "source": segment["source"], "license": segment["license"]},
        **{"source_language": source, "text": segment[source], "translation": segment[target]},
        **{"prompt": prompt, "completion": completion},
    }


# Metrics ------------------------------------------------------------------------------------------


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """Compare translations with the references.

    Returns:
        `chrf2++`, `bleu`: sacrebleu's, 0 to 100 (`signatures`); `language_match`: fraction of translations in the
        target language, among rows whose reference is identified as it.
    """
    translations = [parse_output(output).strip() for output in outputs]
    references = [row["translation"] for row in rows]
    matches = [
        language_match(translation, reference, row["language"])
        for translation, reference, row in zip(translations, references, rows, strict=True)
    ]
    return {
        "chrf2++": _sacrebleu(CHRF2PP, translations, references),
        "bleu": _sacrebleu(BLEU4, translations, references),
        "language_match": ratio(*zip(*matches, strict=True)),
    }


def _sacrebleu(metric: CHRF | BLEU, outputs: list[str], references: list[str]) -> Metric:
    """Return a corpus score of sacrebleu, from the statistics that its own significance tests resample."""
    statistics = np.array(metric._extract_corpus_statistics(outputs, [references]), dtype=np.float64)

    def value(sums: np.ndarray) -> float:
        return metric._compute_score_from_stats(sums.astype(int).tolist()).score

    return Metric(statistics, partial(np.apply_along_axis, value, -1))


def signatures() -> dict[str, str]:
    """Return sacrebleu's signature of each of its scores, which states how it is computed."""
    for metric in (CHRF2PP, BLEU4):
        metric.corpus_score(["a"], [["a"]])  # sets the number of references in the signature to 1
    return {"chrf2++": str(CHRF2PP.get_signature()), "bleu": str(BLEU4.get_signature())}


# Use ----------------------------------------------------------------------------------------------


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    target: str,
    source: str | None = None,
    progress: str | None = None,
) -> str:
    """Translate a text of any length with a fine-tuned model, a few sentences at a time; whitespace is preserved.

    Args:
        target: ISO code of the target language.
        source: ISO code of the text's language, if known.
        progress: Title of a progress bar. Default: no bar.

    Raises:
        InputError: If a language is not one of the eight.
    """
    checked_languages([target, *([source] if source else [])])
    pieces = split_pieces(text)
    prompts = [format_translation(piece, target, source=source)[0] for piece in pieces if not piece.isspace()]
    longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0) if prompts else 0
    options = {**DECODING, "max_new_tokens": max(DECODING["max_new_tokens"], 2 * longest)}
    outputs = iter(complete(model, tokenizer, prompts, progress=progress, **options))
    return "".join(piece if piece.isspace() else parse_output(next(outputs)).strip() for piece in pieces)


def split_pieces(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """Split a text into pieces of at most `max_characters`, and the whitespace between them.

    A piece is a line. A longer line is split at the ends of sentences, and a longer sentence at spaces.
    """
    pieces: list[str] = []
    for line in re.split(r"(\s*\n\s*)", text):
        start = 0
        sentences = [match.end() for match in re.finditer(r"[.!?:;][\"'”’»)]*\s+", line)] + [len(line)]
        while start < len(line):
            end = max((end for end in sentences if start < end <= start + max_characters), default=None)
            if end is None:  # the sentence is too long
                end = start + overlapping_windows(line[start:], max_characters, 0)[0][1]
            pieces += [piece for piece in split_spaces(line[start:end]) if piece]
            start = end
    return pieces
