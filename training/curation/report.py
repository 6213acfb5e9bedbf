"""What curation's blocks get right and wrong, measured on labelled text: REPORT.md, report.json and a chart.

python -m training.curation.report --ocr_pairs PAIRS --toxicity SENTENCES --corpus CORPUS
"""

if not __package__:  # run by path; same as `python -m training.curation.report`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import json
import shlex
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ..config import parse, program
from ..data.documents import corpus_files, read_documents
from ..files import fingerprint, sha256, write_json
from ..language import CODES, LANGUAGES, languages_of
from . import ocr, pii, pii_samples, toxicity

POOR = 0.10  # character error rate above which a page had better be left out
CANDIDATES = (0.80, 0.85, 0.90, 0.95)  # thresholds; finer steps would fit the half that they are chosen on
EVERY = 5  # of a corpus, one document in so many is looked at
RESAMPLES = 200  # for an interval
PACKAGES = ("presidio-analyzer", "phonenumbers", "faker", "py3langid", "rapidfuzz", "numpy")


@dataclass
class ReportConfig:
    """What the report is measured on.

    Args:
        ocr_pairs: folder of Parquet files (columns id, ocr, truth, language, source): pages as a machine read them.
        toxicity: folder of CSV files (functionality, text, label), one per language: see toxicity.measure.
        corpus: a corpus folder, for what the blocks do to ordinary text; those sections are left out without it.
        out: folder to write to.
        sentences: for personal data, how many are made in each language.
        seed: of those sentences.
    """

    ocr_pairs: Path
    toxicity: Path
    corpus: Path | None = None
    out: Path = Path(__file__).parent
    sentences: int = 2000
    seed: int = 0


# OCR quality --------------------------------------------------------------------------------------


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, the mean one among equals."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    a, b = ranks(a), ranks(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def interval(a: np.ndarray, b: np.ndarray) -> list[float]:
    """95% interval of the rank correlation, by resampling."""
    draw = np.random.default_rng(0)
    picks = (draw.integers(0, len(a), len(a)) for _ in range(RESAMPLES))
    return [float(x) for x in np.percentile([spearman(a[pick], b[pick]) for pick in picks], [2.5, 97.5])]


def judged(score: np.ndarray, error: np.ndarray, threshold: float) -> dict:
    """How well a threshold tells poor pages: precision and recall of leaving out, and the mean of both recalls."""
    poor, left = error > POOR, score < threshold
    recall = (poor & left).sum() / max(1, poor.sum())
    return {
        "pages": len(score),
        "poor": float(poor.mean()),
        "left_out": float(left.mean()),
        "precision": float((poor & left).sum() / max(1, left.sum())),
        "recall": float(recall),
        "balanced_accuracy": float((recall + (~poor & ~left).sum() / max(1, (~poor).sum())) / 2),
    }


def measure_ocr(pairs: Path) -> tuple[dict, dict]:
    """Figures of `ocr.quality` on pages of known error, and for the chart language -> (scores, error rates).

    Returns:
        `all`, `languages` and `sources` (per language): pages, mean error rate, the estimate's mean on what was read
        and on the truth, rank correlation of each figure with the error rate; `threshold`: the value in use, the
        balanced accuracy of each candidate (mean over languages) on one half, and what the value does on the other.
    """
    pages = defaultdict(list)
    for file in corpus_files(pairs):
        for row in pq.read_table(file).to_pylist():
            source = "rendered" if row["source"].startswith("rendered") else row["source"].partition(" via ")[0]
            read_as = ocr.quality(row["ocr"], row["language"])
            error = ocr.error_rate(row["ocr"], row["truth"])
            half = zlib.crc32(row["id"].encode()) % 2
            clean = ocr.quality(row["truth"], row["language"]).score
            pages[row["language"], source].append((error, clean, half, *read_as))
    tables = {key: np.array(rows).T for key, rows in pages.items()}
    spoken = {code: [of for (lang, _), of in tables.items() if lang == code] for code in LANGUAGES}
    by_language = {code: np.concatenate(of, axis=1) for code, of in spoken.items() if of}

    def figures(table: np.ndarray, *, with_interval: bool = True) -> dict:
        error, clean, _, score, recognised, non_letters, _ = table
        return {
            "pages": len(error),
            "error_rate": float(error.mean()),
            "estimated": float(1 - score.mean()),
            "estimated_on_truth": float(1 - clean.mean()),
            "rank_correlation": spearman(-score, error),
            **({"interval": interval(-score, error)} if with_interval else {}),
            "recognised": spearman(-recognised, error),
            "non_letters": spearman(non_letters, error),
        }

    def on_half(half: int, threshold: float) -> dict:
        return {
            code: judged(table[3][table[2] == half], table[0][table[2] == half], threshold)
            for code, table in by_language.items()
        }

    balance = {str(t): float(np.mean([of["balanced_accuracy"] for of in on_half(0, t).values()])) for t in CANDIDATES}
    return {
        "all": figures(np.concatenate(list(by_language.values()), axis=1)),
        "mean_rank_correlation": float(np.mean([spearman(-table[3], table[0]) for table in by_language.values()])),
        "languages": {code: figures(table) for code, table in by_language.items()},
        "sources": {
            code: {
                source: figures(table, with_interval=False) for (lang, source), table in tables.items() if lang == code
            }
            for code in by_language
        },
        "threshold": {
            "value": ocr.THRESHOLD,
            "best": float(max(balance, key=balance.get)),
            "chosen_half": balance,
            "other_half": on_half(1, ocr.THRESHOLD),
        },
    }, {code: (table[3], table[0]) for code, table in by_language.items()}


# Ordinary text ------------------------------------------------------------------------------------


def language_id_accuracy(corpus: Path) -> dict:
    """Measure how often `languages_of` identifies the language that a corpus states.

    Returns:
        `languages`: for each ISO code its documents, the share of them found right, the mean share of paragraphs in
        the language, and what the others were taken for; `documents`, `megabytes`, `seconds` of identification.
    """
    seen, shares, size, seconds = {code: Counter() for code in LANGUAGES}, Counter(), 0, 0.0
    for row in read_documents(corpus, languages=list(LANGUAGES), columns=["text", "language"]):
        begun = time.perf_counter()
        found = languages_of(row["text"])
        seconds += time.perf_counter() - begun
        size += len(row["text"].encode())
        seen[CODES[row["language"]]][found.language] += 1
        shares[CODES[row["language"]]] += found.share
    present = {code: counts for code, counts in seen.items() if counts}
    return {
        "documents": sum(counts.total() for counts in present.values()),
        "megabytes": size / 1e6,
        "seconds": seconds,
        "languages": {
            code: {
                "documents": counts.total(),
                "right": counts[code] / counts.total(),
                "paragraphs_in_language": shares[code] / counts.total(),
                "taken_for": {other: n for other, n in counts.most_common() if other != code},
            }
            for code, counts in present.items()
        },
    }


def measure_corpus(corpus: Path) -> dict:
    """What OCR quality and PII do to ordinary text.

    Returns:
        `languages`: documents, megabytes, `left_out` (share of documents below the OCR threshold), `replaced` (values
        by kind); `collections`: language -> collection -> share left out; `megabytes_per_second` of each block (of
        one core) and of PII on the documents in which nothing can be found.
    """
    ocr.models()
    pii.replace("nobody@nowhere.invalid 0", "en", seed=0)  # what is loaded once is not the block's speed
    languages = defaultdict(lambda: {"documents": 0, "megabytes": 0.0, "left_out": 0, "replaced": Counter()})
    collections, spent, sizes = defaultdict(lambda: defaultdict(list)), Counter(), Counter()
    for row in read_documents(
        corpus, languages=list(LANGUAGES), columns=["identifier", "collection", "language", "text"]
    ):
        if zlib.crc32(row["identifier"].encode()) % EVERY:
            continue
        code, text = CODES[row["language"]], row["text"]
        size = len(text.encode()) / 1e6
        times = [time.process_time()]
        low = ocr.quality(text, code).score < ocr.THRESHOLD
        times.append(time.process_time())
        found = pii.replace(text, code, seed=row["identifier"]).found
        times.append(time.process_time())
        blocks = ["ocr", "pii"] if pii.CANDIDATE.search(text) else ["ocr", "pii", "pii without candidates"]
        for block, seconds in zip(blocks, [*np.diff(times), times[2] - times[1]], strict=False):
            spent[block] += seconds
            sizes[block] += size
        entry = languages[code]
        entry["documents"] += 1
        entry["megabytes"] += size
        entry["left_out"] += low
        entry["replaced"] += Counter(found)
        collections[code][row["collection"]].append(low)
    return {
        "every": EVERY,
        "languages": {
            code: entry | {"left_out": entry["left_out"] / entry["documents"], "replaced": dict(entry["replaced"])}
            for code, entry in languages.items()
        },
        "collections": {
            code: {name: float(np.mean(of)) for name, of in sorted(by.items())} for code, by in collections.items()
        },
        "megabytes_per_second": {block: sizes[block] / max(spent[block], 1e-9) for block in spent},
    }


# Pages --------------------------------------------------------------------------------------------


def table(head: list[str], rows: Iterable[list]) -> str:
    """A Markdown table; floats get three places, None an empty cell."""
    styles = {float: "{:.3f}", int: "{:,}", str: "{}", type(None): ""}
    cells = [[styles[type(cell)].format(cell) for cell in row] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def most(shares: dict[str, float]) -> str | None:
    """The name with the largest share, and the share."""
    name = max(shares, key=shares.get)
    return f"{name} ({shares[name]:.3f})" if shares[name] else None


def ocr_section(figures: dict, ordinary: dict | None) -> str:
    """OCR quality in words and tables."""
    head = ["", "pages", "error rate", "estimated", "estimated on the truth", "rank correlation", "95%", "recognised",
            "non-letters"]  # fmt: skip

    def row(name: str, of: dict) -> list:
        between = " to ".join(f"{x:.2f}" for x in of["interval"]) if "interval" in of else ""
        keys = ("pages", "error_rate", "estimated", "estimated_on_truth", "rank_correlation")
        return [name, *(of[key] for key in keys), between, of["recognised"], of["non_letters"]]

    threshold = figures["threshold"]
    parts = [
        "## OCR quality\n\nThe estimate is one minus the score. Rank correlations are Spearman's with the true error "
        "rate (edits per character of the truth, white space collapsed), of the score, of the share of segments "
        "recognised as the document's language, and of the share of signs that are not letters. The score comes from "
        "the surprise alone: adding either of the others, with any weight that was tried, ranked worse.",
        "![Score against error](report.png)",
        table(head, [row(code, of) for code, of in figures["languages"].items()] + [row("all", figures["all"])]),
        f"Mean over languages: {figures['mean_rank_correlation']:.3f}. By source, where pages are more alike and "
        "ranks closer. FR1 is from the 14th century, FR3 are shop receipts, and some pairs of NL1 show two passages "
        "of a page: there the estimate tells little.",
        table(
            [*head[:6], *head[7:]],
            [
                row(f"{code}, {source}", of)[:6] + row("", of)[7:]
                for code, by in figures["sources"].items()
                for source, of in by.items()
            ],
        ),
        f"A page counts as poor above {POOR:.0%} wrong characters. The threshold {threshold['value']} is the best of "
        + ", ".join(f"{t} ({value:.3f})" for t, value in threshold["chosen_half"].items())
        + " by balanced accuracy, mean over languages, on one half of the pages; on the other half:",
        table(
            ["", "pages", "poor", "left out", "precision", "recall", "balanced accuracy"],
            [[code, *of.values()] for code, of in threshold["other_half"].items()],
        ),
    ]
    if ordinary:
        parts += [
            f"Share of clean documents that the threshold leaves out (one in {ordinary['every']} of the corpus; most "
            "of them were trained on):",
            table(
                ["", "documents", "left out", "most in"],
                [
                    [code, of["documents"], of["left_out"], most(ordinary["collections"][code])]
                    for code, of in ordinary["languages"].items()
                ],
            ),
        ]
    return "\n\n".join(parts)


def pii_section(figures: dict, ordinary: dict | None, sentences: int) -> str:
    """Personal data in words and tables."""
    parts = [
        f"## Personal data\n\n{sentences:,} sentences in each language, made from a seed; half hold one value, and in "
        "a quarter no word tells what a number is. Found means: kind, first and last character are right.",
        table(
            ["", "kind", "found", "missed", "false", "precision", "recall"],
            [[code, kind, *of.values()] for code, by in figures.items() for kind, of in by.items()],
        ),
    ]
    if ordinary:
        kinds = sorted({kind for of in ordinary["languages"].values() for kind in of["replaced"]})
        parts += [
            f"Replaced in ordinary text, per megabyte (one document in {ordinary['every']} of the corpus):",
            table(
                ["", "MB", *kinds],
                [
                    [code, of["megabytes"], *(of["replaced"].get(kind, 0) / of["megabytes"] for kind in kinds)]
                    for code, of in ordinary["languages"].items()
                ],
            ),
        ]
    return "\n\n".join(parts)


def language_section(figures: dict) -> str:
    """Language identification in a table."""
    rows = [
        [code, of["documents"], of["right"], of["paragraphs_in_language"]]
        + [", ".join(f"{other} {n}" for other, n in of["taken_for"].items())]
        for code, of in figures["languages"].items()
    ]
    speed = figures["megabytes"] / figures["seconds"]
    return f"## Language\n\nWhole documents of the corpus, {speed:.1f} MB/s a core.\n\n" + table(
        ["", "documents", "right", "paragraphs in the language", "taken for"], rows
    )


def toxicity_section(figures: dict) -> str:
    """Toxicity in a table."""
    keys = ("sentences", "hateful", "precision", "recall", "f1", "auc")
    by_language = figures["languages"] | ({"unseen": figures["unseen"]} if figures["unseen"] else {})
    return (
        f"## Toxicity\n\nThe scorer `{figures['scorer']}` on HateCheck and Multilingual HateCheck; a sentence counts "
        "as found when its verdict is not none. `unseen` is every language but English, whose errors the rules were "
        "made by. There are no such sentences in Latin.\n\n"
        + table(["", *keys], [[code, *(of[key] for key in keys)] for code, of in by_language.items()])
    )


def chart(points: dict, path: Path) -> None:
    """Score against true error rate, a panel per language."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True).ravel()
    for axis, (code, (score, error)) in zip(axes, points.items(), strict=False):
        axis.scatter(np.minimum(error, 1), score, s=2, alpha=0.35, linewidths=0)
        axis.axhline(ocr.THRESHOLD, color="tab:red", linewidth=0.8)
        axis.axvline(POOR, color="silver", linewidth=0.8)
        axis.set_title(f"{code}: {spearman(-score, error):.2f}", fontsize=9)
    figure.supxlabel("true character error rate", fontsize=8)
    figure.supylabel("score", fontsize=8)
    figure.savefig(path, dpi=70, metadata={"Software": None})


def write(config: ReportConfig) -> dict:
    """Measure everything and write `REPORT.md`, `report.json` and `report.png`; returns what the JSON holds.

    Raises:
        InputError: when a folder does not hold what it should.
    """
    figures, points = measure_ocr(config.ocr_pairs)
    report = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {package: version(package) for package in PACKAGES},
        "data": {
            name: fingerprint({file.name: sha256(file) for file in files})
            for name, files in (
                ("ocr_pairs", corpus_files(config.ocr_pairs)),
                ("toxicity", sorted(config.toxicity.glob("*.csv"))),
                ("corpus", corpus_files(config.corpus) if config.corpus else []),
            )
            if files
        }
        | {"models": sha256(ocr.MODEL)},
        "ocr": figures,
        "pii": pii_samples.measure(list(LANGUAGES), count=config.sentences, seed=config.seed),
        "toxicity": toxicity.measure(config.toxicity),
    }
    if config.corpus:
        report |= {"corpus": measure_corpus(config.corpus), "language": language_id_accuracy(config.corpus)}
    report = json.loads(json.dumps(report), parse_float=lambda number: round(float(number), 4))
    ordinary = report.get("corpus")
    sections = [
        "# Curation, measured",
        f"Made by `{report['command']}`, with {', '.join(f'{k} {v}' for k, v in report['versions'].items())}. Data, "
        "sha256 over its files: " + ", ".join(f"{name} {hash[:12]}" for name, hash in report["data"].items()) + ".",
        ocr_section(report["ocr"], ordinary),
        pii_section(report["pii"], ordinary, config.sentences),
    ]
    if ordinary:
        speeds = ", ".join(f"{block} {speed:.1f}" for block, speed in ordinary["megabytes_per_second"].items())
        sections += [f"Megabytes a second on one core, over whole documents of the corpus: {speeds}."]
        sections += [language_section(report["language"])]
    sections += [toxicity_section(report["toxicity"])]
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "report.json", report)
    (config.out / "REPORT.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    chart(points, config.out / "report.png")
    return report


def main() -> None:
    """Command line."""
    config = parse(ReportConfig, description="Measure the blocks of curation on labelled text.")
    report = write(config)
    print(f"{config.out / 'REPORT.md'}: OCR rank correlation {report['ocr']['all']['rank_correlation']:.3f}")


if __name__ == "__main__":
    program(main)
