"""Translation: the format, rows from aligned segments, the metric, and `translate`.

The published format does not say how the original named the target language. Here its token (`<|fr|>`) is the first
of the translation, and the prompt ends with it:

    <|text_start|>Save the file.<|text_end|><|translation_start|><|fr|> -> Enregistrez le fichier.<|translation_end|>

The token of the source language may stand before the text; half of the training rows have it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import InputError
from ..data.documents import checked_languages
from ..data.licences import decide
from ..data.split import hash_fraction, held_out_groups
from ..generation import complete
from ..intervals import Metric, ratio
from ..language import JUDGED_LETTERS, identify
from .aligned import segments
from .markers import escape, unescape
from .windows import spans

NAME = "translation"
HIGHER_IS_BETTER = True
START, END, STOP = "<|text_start|>", "<|text_end|><|translation_start|>", "<|translation_end|>"
DECODING = {"max_new_tokens": 192, "stop": STOP, "repetition_penalty": 1.0}

LONGEST = 300  # characters of a segment, and of what is translated at a time
RATIO = 2.5  # a segment more than so many times as long as the other says something else
CHRF2PP, BLEU4 = CHRF(word_order=2), BLEU()
Directions = dict[tuple[str, str], list[dict]]  # (source, target) -> segments
PROMPT = re.compile(rf"{re.escape(START)}(?:<\|([a-z]{{2}})\|>)?(.*?){re.escape(END)}<\|([a-z]{{2}})\|>", re.DOTALL)


# The format ---------------------------------------------------------------------------------------


def format_translation(text: str, target: str, translation: str = "", source: str | None = None) -> tuple[str, str]:
    """(prompt, completion) of a text, the ISO code of the language wanted and, where known, that of the text."""
    before = f"<|{source}|>" if source else ""
    return f"{START}{before}{escape(text)}{END}<|{target}|>", f"{escape(translation)}{STOP}"


def parse_translation(text: str) -> tuple[str, str, str, str | None]:
    """(text, target, translation, source or None) of a prompt with or without its completion.

    Raises:
        ValueError: when the text has no such prompt.
    """
    if not (found := PROMPT.match(text)):
        raise ValueError(f"no prompt of translation: {text[:80]!r}")
    return unescape(found[2]), found[3], parse_output(text[found.end() :]), found[1]


def parse_output(output: str) -> str:
    """The translation in what a model wrote after the prompt."""
    return unescape(output.partition(STOP)[0])


# Rows ---------------------------------------------------------------------------------------------


@dataclass
class TranslationData:
    """What translation is trained and measured on.

    Args:
        path: Parquet, a file or a folder, of segments: columns id, source, license, and one for each language (ISO
            codes). When not given: LibreOffice's help in seven languages, and the Vulgate with an English Bible.
        languages: ISO codes; all eight when not given.
        through: ISO code of a language that is one side of every pair; any two languages when null.
        train_rows: most rows to train on, as many in each direction as there are.
        held_out: share of the pages and chapters that is not trained on.
        held_out_rows: most rows to measure on.
        longest: most characters of a text or its translation.
        seed: decides what is held out and what is drawn.
    """

    path: Path | None = None
    languages: list[str] | None = None
    through: str | None = "en"
    train_rows: int = 20_000
    held_out: float = 0.05
    held_out_rows: int = 400
    longest: int = LONGEST
    seed: int = 0


def rows(data: TranslationData) -> dict[str, list[dict]]:
    """{"train": rows, "held_out": rows}; no page or chapter is in both, and no text or translation
    of the same wording.

    Raises:
        InputError: when there are no segments, or a setting makes no sense.
    """
    languages = checked_languages(data.languages)
    if len(languages) < 2 or data.through not in (None, *languages):
        raise InputError(
            f"translation among {', '.join(languages)} through {data.through}: --data.languages needs two languages "
            "at least, and --data.through one of them, or null."
        )
    found = [one for one in segments(data.path, languages) if not decide(one["license"]).refused]
    apart = held_out_groups((("", one["source"]) for one in found), data.held_out, data.seed)
    candidates: dict[str, Directions] = {"train": {}, "held_out": {}}
    for one in found:
        for direction in _directions(one, languages, data):
            candidates["held_out" if one["source"] in apart else "train"].setdefault(direction, []).append(one)
    measured = _take(candidates["held_out"], data.held_out_rows, data, known=set())
    known = {one[code] for direction, some in measured.items() for one in some for code in direction}
    train = _take(candidates["train"], data.train_rows, data, known=known)
    if not train:
        raise InputError(f"no two segments in {', '.join(languages)} say the same: give others with --data.path.")
    return {
        name: sorted(
            (_row(one, *direction, data.seed) for direction, some in taken.items() for one in some),
            key=lambda row: hash_fraction(f"{data.seed}/{row['id']}"),
        )
        for name, taken in (("train", train), ("held_out", measured))
    }


def _directions(one: dict, languages: list[str], data: TranslationData) -> Iterator[tuple[str, str]]:
    """(source, target) that a segment has fitting texts for."""
    present = [code for code in languages if one[code] and len(one[code]) <= data.longest]
    for source in present:
        for target in present:
            a, b = one[source], one[target]
            if source != target and data.through in (None, source, target) and a != b:
                if max(len(a), len(b)) <= RATIO * min(len(a), len(b)):
                    yield source, target


def _take(candidates: Directions, count: int, data: TranslationData, *, known: set[str]) -> Directions:
    """`count` segments, as many for each direction as there are, no text twice, and neither side one that is known."""
    taken: Directions = {}
    left = count
    for i, direction in enumerate(sorted(candidates, key=lambda one: len(candidates[one]))):  # the scarce ones first
        quota = left // (len(candidates) - i)
        seen: set[str] = set()
        mine = taken.setdefault(direction, [])
        for one in sorted(
            candidates[direction], key=lambda one: hash_fraction(f"{data.seed}/{one['id']}/{direction}")
        ):
            if len(mine) >= quota:
                break
            if one[direction[0]] not in seen and known.isdisjoint(one[code] for code in direction):
                seen.add(one[direction[0]])
                mine.append(one)
        left -= len(mine)
    return taken


def _row(one: dict, source: str, target: str, seed: int) -> dict:
    identifier = f"{one['id']}:{source}-{target}"
    stated = source if hash_fraction(f"stated/{seed}/{identifier}") < 0.5 else None
    prompt, completion = format_translation(one[source], target, one[target], stated)
    return {
        **{"id": identifier, "language": target, "source": one["source"], "license": one["license"]},
        **{"source_language": source, "text": one[source], "translation": one[target]},
        **{"prompt": prompt, "completion": completion},
    }


# The metric ---------------------------------------------------------------------------------------


def score(rows: list[dict], outputs: list[str]) -> dict[str, Metric]:
    """How near the translations come to those of people; all in 0 to 100 except the last.

    Returns:
        `chrf2++`, `bleu`: sacrebleu's (`signatures`); `language_match`: share of the translations that are in the
        language asked for, of those whose reference can be told to be.
    """
    made = [parse_output(output).strip() for output in outputs]
    references = [row["translation"] for row in rows]
    right, judged = [], []
    for row, output in zip(rows, made, strict=True):
        reference = row["translation"]
        sure = sum(map(str.isalpha, reference)) >= JUDGED_LETTERS and identify(reference)[0] == row["language"]
        judged.append(sure)
        right.append(sure and bool(output) and identify(output)[0] == row["language"])
    return {
        "chrf2++": _sacrebleu(CHRF2PP, made, references),
        "bleu": _sacrebleu(BLEU4, made, references),
        "language_match": ratio(right, judged),
    }


def _sacrebleu(metric: CHRF | BLEU, outputs: list[str], references: list[str]) -> Metric:
    """A corpus score of sacrebleu, by the statistics that its own significance tests resample."""
    statistics = np.array(metric._extract_corpus_statistics(outputs, [references]), dtype=np.float64)

    def value(sums: np.ndarray) -> float:
        return metric._compute_score_from_stats(sums.astype(int).tolist()).score

    return Metric(statistics, partial(np.apply_along_axis, value, -1))


def signatures() -> dict[str, str]:
    """sacrebleu's account of how each of its scores is computed."""
    for metric in (CHRF2PP, BLEU4):
        metric.corpus_score(["a"], [["a"]])  # what says that there is one reference
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
    """A text of any length as a fine-tuned model translates it, a few sentences at a time; blanks between them stay.

    Args:
        target: ISO code of the language wanted.
        source: ISO code of the text's language, where it is known.
        progress: title of a progress bar; none when not given.

    Raises:
        InputError: when a language is not one of the eight.
    """
    checked_languages([target, *([source] if source else [])])
    pieces = pieces_of(text)
    prompts = [format_translation(piece, target, source=source)[0] for piece in pieces if not piece.isspace()]
    longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0) if prompts else 0
    options = {**DECODING, "max_new_tokens": max(DECODING["max_new_tokens"], 2 * longest)}
    outputs = iter(complete(model, tokenizer, prompts, progress=progress, **options))
    return "".join(piece if piece.isspace() else parse_output(next(outputs)).strip() for piece in pieces)


def pieces_of(text: str, longest: int = LONGEST) -> list[str]:
    """A text as pieces of at most `longest` characters that begin and end with a word, and the blanks between them.

    A line is a piece; one that is longer is cut at the ends of sentences, and a longer sentence at blanks.
    """
    pieces: list[str] = []
    for line in re.split(r"(\s*\n\s*)", text):
        start = 0
        sentences = [found.end() for found in re.finditer(r"[.!?:;][\"'”’»)]*\s+", line)] + [len(line)]
        while start < len(line):
            end = max((one for one in sentences if start < one <= start + longest), default=None)
            if end is None:  # a sentence that is too long
                end = start + spans(line[start:], longest, 0)[0][1]
            inner = line[start:end].strip()
            before, _, after = line[start:end].partition(inner) if inner else (line[start:end], "", "")
            pieces += [piece for piece in (before, inner, after) if piece]
            start = end
    return pieces
