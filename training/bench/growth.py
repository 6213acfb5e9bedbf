"""Measure how the time of functions on text grows with the length of adversarial texts; fail above linear growth.

    python -m training.bench.growth     # all functions on all texts; exit status 1 if one fails
    python -m training.bench.growth --functions '[dehyphenation.repair]' --texts '[heads alike, blanks]'

Each text is four times as long as the one before. The time is CPU time, the least of several runs.
"""

if not __package__:  # run by path; same as `python -m training.bench.growth`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import csv
import gc
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from ..common.config import InputError, parse, run_main
from ..common.language import detect_languages, paragraphs_in
from ..curation import dehyphenation, ocr, pii, rewriting, running_heads
from ..curation.deduplication import signature
from ..curation.lexicon import LexiconScorer
from ..curation.statistics_report import table
from ..curation.toxicity_axes import passages
from ..data import licences, ocr_noise, readers
from ..data.split import author_key
from ..tasks import markers, rag, text_windows, translation
from ..tasks import ocr as ocr_task
from ..tasks.copy_task import random_word_rows
from ..tasks.instruct.data import remove_markers
from ..tasks.ocr.corrector import PACKAGED, Corrector
from ..tasks.ocr.passages import wrap_prose
from ..tasks.rag import format as rag_formats
from ..tasks.rag import passages as rag_passages
from ..tasks.rag.constrained import QuoteLogitsProcessor
from ..tasks.scoring import language_match
from ..tasks.translation.inference import split_pieces

FACTOR = 4  # between the lengths of two texts
SMALLEST = 256  # characters
ENOUGH = 0.05  # seconds: texts of a function become no longer than this needs
NOISE = 0.002  # seconds: shorter times have no meaning
RUNS, STABLE = 8, 1.2  # maximum runs of a measurement; its two shortest times differ by at most this factor
WINDOW = 300  # characters of a row of a task, which bounds every pair of texts that is compared
ROOT = Path(__file__).parents[2]


@dataclass
class GrowthBench:
    """Functions and texts to measure.

    Args:
        functions: Names of functions. Default: all.
        texts: Names of texts. Default: all.
        characters: Length of the longest text, if a function needs less than 0.05 s for a shorter one.
        limit: Maximum ratio of the times of two texts, of which one is four times as long as the other.
    """

    functions: list[str] | None = None
    texts: list[str] | None = None
    characters: int = SMALLEST * FACTOR**5
    limit: float = 8.0


class Growth(NamedTuple):
    """Cost of a function on texts of increasing length."""

    sizes: list[int]  # characters
    costs: list[float]  # seconds, or another unit

    @property
    def ratio(self) -> float:
        """Ratio of the costs of the last two texts."""
        return self.costs[-1] / max(self.costs[-2], 1e-9)


# Texts --------------------------------------------------------------------------------------------


def words(draw: random.Random, alphabet: str = "abdegilmnorstu", shortest: int = 3) -> str:
    """Return a random word."""
    return "".join(draw.choices(alphabet, k=draw.randint(shortest, shortest + 7)))


def _pages_alike(size: int, draw: random.Random) -> str:
    page = "\n".join(f"{words(draw)} {words(draw)}" for _ in range(size // 45 + 1))
    return "\f".join([page] * 3)


def _sentence_of_names(size: int, draw: random.Random) -> str:
    return ", ".join(f"et {words(draw).capitalize()}" for _ in range(size // 8))


# Texts of repeated strings, then of random parts.
REPEATED = {
    "one letter": "a",
    "one word": "word ",
    "short words": "a ",
    "blanks": " ",
    "blanks after a letter": f"a{' ' * 999}",
    "tabs": "\t",
    "no-break spaces": "\u00a0",
    "line ends": "\n",
    "blank lines": " \n",
    "line ends after a hyphen": f"a-{chr(10) * 999}b",
    "carriage returns": "\r\n",
    "form feeds": "\f",
    "hyphens": "-",
    "hyphens at page ends": "ab-\fcd ",
    "hyphens at line ends in one-letter words": "a-\nb-\n",
    "soft hyphens": "a\u00ad",
    "soft hyphens at line ends": "ab\u00ad\ncd ",
    "equals signs": "a=b ",
    "digits": "1234567890",
    "one-digit numbers": "1 ",
    "years": "1848-1871, ",
    "telephone numbers": "+49 30 1234567, ",
    "account numbers": "DE89 3704 0044 0532 0130 00 ",
    "dotted digits": "1.2.3.4.",
    "page numbers of one page": "12\n",
    "full stops": ".",
    "quotes": '"',
    "quotes in sentences": '."a" ',
    "commas": ",",
    "at signs": "@",
    "at signs in one word": "a.b@",
    "e-mail addresses": "ab.cd@ef.org ",
    "dots before an at sign": "a." * 120 + "@",
    "colons": "a:",
    "underscores": "_",
    "slashes": "/",
    "brackets opened": "(",
    "brackets nested": "([{<",
    "square brackets opened": "[",
    "angle brackets opened": "<",
    "markup": "<b>a</b>",
    "markup without an end": "<a ",
    "markers": "<|text_end|>",
    "begins of markers": "<|",
    "joiners": "<\u2060\u2060|",
    "a joiner run": "\u2060",
    "blocks opened": "<|answer_start|><|draft_start|>",
    "sources opened": "<|source_start|><|source_id_start|>",
    "ids of sources closed": "1<|source_id_end|>",
    "citations opened": '<ref name="1">"',
    "citations without quotes": '<ref name="1">',
    "citations": '<ref name="1">"a b c"</ref> ',
    "equal quotes": 'a <ref name="1">"word"</ref>. ',
    "control characters": "\x00\x01\x02\x1b\x7f\x85",
    "zero-width characters": "a\u200b",
    "combining marks": "\u0301",
    "marks on letters": "a\u0301\u0302",
    "compatibility characters": "\ufdfa",
    "ligatures": "\ufb03",
    "alternating scripts": "a\u0430\u03b1\u4e2d\u05d0",
    "ideographs": "\u4e2d\u6587",
    "emoji": "\U0001f600\u200d",
    "capitals": "ABC ",
    "hostile words": "they are not vermin, we must kill you all, ",
    "insults": "women vermin ",
    "negations": "they not human never good ",
    "licence versions": "gpl+",
    "licence terms": "or later ",
    "licence abbreviations": "bync",
    "licences": "mit or ",
    "colons of a classifier": "license :: osi approved :: ",
    "crawl": "c4.",
}
RANDOM: dict[str, Callable[[random.Random], str]] = {
    "random letters": lambda draw: words(draw),
    "random words": lambda draw: words(draw) + " ",
    "random lines": lambda draw: " ".join(words(draw) for _ in range(9)) + "\n",
    "random paragraphs": lambda draw: " ".join(words(draw) for _ in range(80)).capitalize() + ".\n\n",
    "words divided by hyphens": lambda draw: f"{words(draw)} {words(draw)}-\n{words(draw)} ",
    "words divided by equals signs": lambda draw: f"{words(draw)} {words(draw)}=\n{words(draw)} ",
    "words divided rarely": lambda draw: (
        f"{words(draw)} {words(draw)}-\n{words(draw)} " + f"{words(draw)}\n" * 110 + f"{words(draw)} "
    ),
    "compounds": lambda draw: f"self-\n{words(draw)} {words(draw)} ",
    "compounds of the text": lambda draw: (lambda a, b: f"{a}-{b} {a}-\n{b} ")(words(draw), words(draw)),
    "verse": lambda draw: f"{words(draw).capitalize()} {words(draw)}-\n",
    "heads alike": lambda draw: f"Line{words(draw, shortest=50)}\n some text\f",
    "heads repeated": lambda draw: f"CHAPTER THE FIRST\n{words(draw)} {words(draw)}\f",
    "numbered heads alike": lambda draw: f"\nLine{words(draw, shortest=30)} {draw.randint(1, 999)}\n",
    "dots before page numbers": lambda draw: f"{draw.randint(1, 9)} {'. ' * 30}{draw.randint(1, 999)}\n",
    "numbers in lines": lambda draw: f"{draw.randint(1, 999)}\n{' '.join(words(draw) for _ in range(99))}\n",
    "telephone directory": lambda draw: f"{words(draw)} 0{draw.randint(10, 99)} {draw.randint(10**6, 10**7)}\n",
    "initials": lambda draw: f"{draw.choice('ABCDEFG')}. ",
    "sentences": lambda draw: " ".join(words(draw) for _ in range(6)).capitalize() + ". ",
}
COMPLETE: dict[str, Callable[[int, random.Random], str]] = {
    "pages alike": _pages_alike,
    "a sentence of names": _sentence_of_names,
    "blanks before a letter": lambda size, draw: " " * size + "a",
    "brackets opened and closed": lambda size, draw: "(" * (size // 2) + ")" * (size // 2),
    "a word of letters and marks": lambda size, draw: "a" + "\u0301\u0323" * (size // 2),
    "numbered pages": lambda size, draw: "".join(
        f"{' '.join(words(draw) for _ in range(110))}\n{number}\nHead {words(draw)}\n"
        for number in range(1, size // 900 + 2)
    ),
}
TEXTS = (*REPEATED, *RANDOM, *COMPLETE)


@cache
def adversarial_text(name: str, size: int) -> str:
    """Return the text of a name, of about `size` characters; the same at every call."""
    draw = random.Random(name)
    if name in REPEATED:
        return (REPEATED[name] * (size // len(REPEATED[name]) + 1))[:size]
    if name in COMPLETE:
        return COMPLETE[name](size, draw)
    parts, length = [], 0
    while length < size:
        parts.append(RANDOM[name](draw))
        length += len(parts[-1])
    return "".join(parts)


# Functions ----------------------------------------------------------------------------------------


def _scored(text: str, language: str) -> None:
    LexiconScorer().score([text], [language])


def _decided(**columns: str) -> None:
    licences._by_label.cache_clear()
    licences._crawled_collection.cache_clear()
    licences.decide(**{"label": "", **columns})


def _repeats(text: str) -> None:
    for passage in passages(text):
        rewriting.repeats(passage, passage[::-1], "en", LexiconScorer())


def _rows(text: str) -> list[str]:
    """Return a text in parts of the length of a row, as the tasks split theirs."""
    return [text[start : start + WINDOW] for start in range(0, len(text), WINDOW)]


def _ocr_scores(text: str) -> None:
    parts = _rows(text)
    ocr_task.score([{"truth": part, "ocr": part[1:], "kind": "rendered"} for part in parts], [p[::-1] for p in parts])


def _translation_scores(text: str) -> None:
    parts = _rows(text)
    translation.score([{"translation": part, "language": "en"} for part in parts], [part[::-1] for part in parts])


def _rag_scores(text: str) -> None:
    row = {"format": "rag-0.1", "sources": [{"id": "1", "text": text[:WINDOW]}], "answer": text, "language": "en"}
    rag.score([{**row, "cited": ["1"], "refused": False}], [f"<|answer_start|>{text}"])


def _parsed(text: str, rag_format: rag_formats.Format) -> None:
    opening = rag_formats.format_prompt("", {}, rag_format).removesuffix(rag_formats.PROMPT_END[rag_format])
    for prompt in (
        rag_formats.format_prompt(text, {"1": text}, rag_format),
        f"{opening}<|source_start|><|source_id_start|>{text}",
        f"{opening}<|source_start|><|source_id|>{text}",
    ):
        with suppress(ValueError):
            rag_formats.parse_prompt(prompt, rag_format)
    rag_formats.parse_completion(text, rag_format)
    answer = rag_formats.parse_answer(text, rag_format)
    assert isinstance(answer.plain + answer.text, str)


@cache
def _corrector() -> Corrector:
    """Return the packaged OCR corrector, which here abstains from no text."""
    corrector = Corrector.load(PACKAGED)
    plausible = dict.fromkeys(corrector.languages, 1.0)
    corrector.settings = corrector.settings._replace(unknown=1.0, plausible=plausible)
    return corrector


def _corrected(text: str) -> None:
    """Correct a text in German, whose words are longest, as if none of its words had been seen before."""
    _corrector().resources("de").candidates.clear()
    _corrector().changes(text, "de")


@cache
def _tokenizer():
    from modeling_pleias import PleiasTokenizer

    return PleiasTokenizer.from_pretrained(ROOT / "modeling_pleias" / "tokenizer")


def _constrained(text: str) -> None:
    """Decode the begin of a quote of the text's first words, from the text as a source."""
    processor = QuoteLogitsProcessor(_tokenizer(), [rag_formats.format_prompt("", {"1": text})])
    quote = markers.escape(text.lstrip())[:40]
    for end in range(0, len(quote), 5):
        processor.outputs[0] = f'<|answer_start|><ref name="1">"{quote[:end]}'.encode("utf-8", "replace")
        processor.allowed(0)


def _passages(text: str, title: str, language: str) -> None:
    row = {"page": "", "language": language, "license": "", "title": title, "text": text}
    rag_passages.passages([row], 40, 30)


def _splits(text: str) -> Iterator[tuple[str, str]]:
    return text_windows.split_aligned_pair(
        "".join("x" if i % 37 == 5 else c for i, c in enumerate(text)), text, WINDOW
    )


def _read_packages(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        leads, verses, novel = (Path(folder, name) for name in ("leads.json", "verses.csv", "novel.php"))
        leads.write_text(json.dumps({"title": {"extract": text}}), encoding="utf-8")
        with open(verses, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("book", "chapter", "latin"), *(("I", "1", part) for part in _rows(text))])
        novel.write_text(f"$baseText = <<<'EOT'\n{text}\nEOT;", encoding="utf-8")
        for reader, file, tag in (
            (readers.wikipedia_leads, leads, "en"),
            (readers.vulgate, verses, "la"),
            (readers.novels, novel, "en_US"),
        ):
            list(reader(Path(folder), [file.name], tag))


def _each(function: Callable[[str], Iterable]) -> Callable[[str], int]:
    """Return a function that exhausts the iterator of another."""
    return lambda text: sum(1 for _ in function(text))


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "dehyphenation.repair": lambda text: dehyphenation.repair(text, "en"),
    "dehyphenation.repair, German": lambda text: dehyphenation.repair(text, "de", page_break="\n\n"),
    "running_heads": lambda text: running_heads.without_page_lines(text, Counter(), []),
    "ocr.quality": lambda text: ocr.quality(text, "en"),
    "ocr.codes": ocr.codes,
    "pii.replace": lambda text: pii.replace(text, "en", seed=0),
    "pii.replace, Latin": lambda text: pii.replace(text, "la", seed=0),
    "deduplication.signature": signature,
    "language.detect_languages": detect_languages,
    "language.paragraphs_in": lambda text: paragraphs_in("en", text.split("\n")),
    "lexicon": lambda text: _scored(text, "en"),
    "lexicon, German": lambda text: _scored(text, "de"),
    "rewriting.repeats": _repeats,
    "licences.decide, label": lambda text: _decided(label=text),
    "licences.decide, collection": lambda text: _decided(collection=text, identifier=text),
    "licences.decide, creator": lambda text: _decided(creator=text, date=text),
    "split.author_key": author_key,
    "readers": _read_packages,
    "ocr_noise.simulate_page": lambda text: ocr_noise.simulate_page(text, seed=text[:9]),
    "text_windows.over_windows": lambda text: text_windows.over_windows(
        text, WINDOW, WINDOW // 5, lambda parts: [part[:-9] + part[:9] for part in parts]
    ),
    "text_windows.split_aligned_pair": _each(_splits),
    "markers": lambda text: markers.unescape(markers.escape(text)),
    "rag_formats, 0.1": lambda text: _parsed(text, "rag-0.1"),
    "rag_formats, 2025": lambda text: _parsed(text, "rag-2025"),
    "rag_constrained": _constrained,
    "rag_passages, leads": lambda text: _passages(text, "A title", "en"),
    "rag_passages, topics": lambda text: _passages(text, "", "en"),
    "rag_passages, names": lambda text: _passages(text, "", "la"),
    "rag.score": _rag_scores,
    "copy_task": _each(lambda text: random_word_rows([("en", text, None)] * 6, 2, 0)),
    "ocr task, parse_correction": ocr_task.parse_correction,
    "ocr task, score": _ocr_scores,
    "ocr corrector": _corrected,
    "ocr task, wrap_prose": _each(lambda text: wrap_prose(text, WINDOW, 60)),
    "translation.split_pieces": split_pieces,
    "translation.score": _translation_scores,
    "instruct.remove_markers": remove_markers,
    "scoring.language_match": lambda text: language_match(text, text, "en"),
}


# Measurement --------------------------------------------------------------------------------------


def cpu_seconds(function: Callable[[str], object], text: str, runs: int = 1) -> float:
    """Return the CPU time of a call: the least of several runs, repeated until two agree."""
    times: list[float] = []
    gc.disable()  # collections depend on the objects of other measurements
    while len(times) < runs and (len(times) < 2 or times[1] > STABLE * times[0]):
        start = time.process_time()
        function(text)
        times = sorted([*times, time.process_time() - start])
    gc.enable()
    return times[0]


def measure_growth(
    function: Callable[[str], object],
    text: Callable[[int], str],
    *,
    largest: int,
    cost: Callable[[Callable[[str], object], str], float],
) -> Growth:
    """Measure a function on longer and longer texts, until it needs `ENOUGH` or the longest text is reached.

    Args:
        function: Function of a text.
        text: Returns a text of about as many characters.
        largest: Characters of the longest text.
        cost: Returns the cost of a call.
    """
    sizes, costs = [], []
    while not sizes or (sizes[-1] * FACTOR <= largest and (len(sizes) < 2 or costs[-1] < ENOUGH)):
        sizes.append(sizes[-1] * FACTOR if sizes else SMALLEST)
        costs.append(cost(function, text(sizes[-1])))
    return Growth(sizes, costs)


def is_superlinear(growth: Growth, limit: float, noise: float = NOISE) -> bool:
    """Return whether the cost grows faster than `limit` at the end, and is more than noise."""
    return growth.costs[-1] > noise and growth.ratio > limit


def _selected(names: list[str] | None, known: Iterable[str], kind: str) -> list[str]:
    if unknown := set(names or ()) - set(known):
        raise InputError(f"no {kind} is called {', '.join(sorted(unknown))}: choose from {', '.join(known)}.")
    return list(names or known)


def measure_all(config: GrowthBench) -> list[tuple]:
    """Measure all pairs of a function and a text, and print a table; return the rows of those that fail.

    Raises:
        InputError: If a function or text is unknown.
    """
    texts = _selected(config.texts, TEXTS, "text")
    failed, rows = [], []
    for name in _selected(config.functions, FUNCTIONS, "function"):
        results = []
        for text in texts:
            try:
                growth = _measure(FUNCTIONS[name], text, config)
            except Exception as error:
                failed.append((name, text, "", "", type(error).__name__))
                continue
            if is_superlinear(growth, config.limit):
                failed.append((name, text, *_times(growth), f"{growth.ratio:.1f}"))
            results.append((text, growth))
        slowest = max(results, key=lambda result: result[1].costs[-1] / result[1].sizes[-1])
        steepest = max(results, key=lambda result: result[1].ratio if result[1].costs[-1] > NOISE else 0)
        rows.append((name, _speed(slowest[1]), slowest[0], f"{steepest[1].ratio:.1f}", steepest[0]))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(("function", "slowest, MB/s", "on", f"most for {FACTOR} times the text", "on"), rows))
    print(f"\n{len(rows)} functions on {len(texts)} texts: {len(failed)} above a ratio of {config.limit:g}")
    if failed:
        print("\n" + table(("function", "text", "characters", "seconds", "ratio"), failed))
    return failed


def _measure(function: Callable[[str], object], text: str, config: GrowthBench) -> Growth:
    """Measure once; if the growth is above the limit, measure the last two texts until the times are stable."""
    function(adversarial_text(text, SMALLEST))  # loads what the function needs
    growth = measure_growth(function, partial(adversarial_text, text), largest=config.characters, cost=cpu_seconds)
    if is_superlinear(growth, config.limit):
        growth.costs[-2:] = [cpu_seconds(function, adversarial_text(text, size), RUNS) for size in growth.sizes[-2:]]
    return growth


def _speed(growth: Growth) -> str:
    return f"{growth.sizes[-1] / max(growth.costs[-1], 1e-6) / 1e6:.2f}"


def _times(growth: Growth) -> tuple[str, str]:
    """Return the last three lengths, and their times."""
    return ", ".join(f"{n:,}" for n in growth.sizes[-3:]), ", ".join(f"{cost:.3f}" for cost in growth.costs[-3:])


def main() -> None:
    """Run the benchmark."""
    config = parse(GrowthBench, description="Measure how the time of the functions on text grows with the text.")
    sys.exit(bool(measure_all(config)))


if __name__ == "__main__":
    run_main(main)
