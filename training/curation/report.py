"""Measure the accuracy and speed of curation's blocks on labelled text: REPORT.md, report.json and a chart.

python -m training.curation.report --ocr_pairs PAIRS --toxicity SENTENCES --corpus CORPUS
"""

if not __package__:  # run by path; same as `python -m training.curation.report`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import json
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from ..common.config import InputError, parse, run_main
from ..common.escaping import shell_line
from ..common.files import fingerprint, sha256, write_json
from ..common.language import CODES, LANGUAGES, detect_languages
from ..data.documents import corpus_files, read_documents
from ..data.ocr_pairs import read_pairs
from . import ocr, pii, pii_samples, statistics_report, toxicity

POOR = 0.10  # character error rate above which a page should be dropped
CANDIDATES = (0.80, 0.85, 0.90, 0.95)  # thresholds; finer steps would overfit the half that selects one
SAMPLE_EVERY = 5  # measures 1 in N documents of the corpus
RESAMPLES = 200  # of a bootstrap interval
PACKAGES = ("presidio-analyzer", "phonenumbers", "faker", "py3langid", "rapidfuzz", "numpy")


@dataclass
class ReportConfig:
    """Data and output of the report.

    Args:
        ocr_pairs: Folder of Parquet files (columns id, ocr, truth, language, source): OCR output and true text of
            pages.
        toxicity: Folder of CSV files (functionality, text, label), one per language: HateCheck and Multilingual
            HateCheck.
        corpus: Corpus folder, to measure the blocks on ordinary text.
        out: Output folder.
    """

    ocr_pairs: Path
    toxicity: Path
    corpus: Path
    out: Path = Path(__file__).parent


# OCR quality --------------------------------------------------------------------------------------


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 if one of the two is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0


def spearman_interval(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return the 95% bootstrap interval of the rank correlation."""
    random = np.random.default_rng(0)
    samples = (random.integers(0, len(a), len(a)) for _ in range(RESAMPLES))
    return [float(x) for x in np.percentile([spearman(a[sample], b[sample]) for sample in samples], [2.5, 97.5])]


def threshold_metrics(score: np.ndarray, error: np.ndarray, threshold: float) -> dict:
    """Return precision, recall and balanced accuracy of dropping the pages below a threshold as poor."""
    poor, dropped = error > POOR, score < threshold
    recall = (poor & dropped).sum() / max(1, poor.sum())
    return {
        "pages": len(score),
        "poor": float(poor.mean()),
        "left_out": float(dropped.mean()),
        "precision": float((poor & dropped).sum() / max(1, dropped.sum())),
        "recall": float(recall),
        "balanced_accuracy": float((recall + (~poor & ~dropped).sum() / max(1, (~poor).sum())) / 2),
    }


def ocr_metrics(table: np.ndarray, *, with_interval: bool = True) -> dict:
    """Return the metrics of `measure_ocr` for some pages."""
    error, clean, _, score, recognised, non_letters, _ = table
    return {
        "pages": len(error),
        "error_rate": float(error.mean()),
        "estimated": float(1 - score.mean()),
        "estimated_on_truth": float(1 - clean.mean()),
        "rank_correlation": spearman(-score, error),
        **({"interval": spearman_interval(-score, error)} if with_interval else {}),
        "recognised": spearman(-recognised, error),
        "non_letters": spearman(non_letters, error),
    }


def measure_ocr(pairs: Path) -> tuple[dict, dict]:
    """Measure `ocr.quality` on pages with a known error rate.

    Returns:
        The metrics, and for the chart language -> (scores, error rates). The metrics are `all`, `languages` and
        `sources` (per language): pages, mean error rate, mean estimate on OCR output and on the truth, rank
        correlation of each metric with the error rate; and `threshold`: the value in use, the balanced accuracy of
        each candidate (mean over languages) on one half of the pages, and the metrics of the value on the other half.

    Raises:
        InputError: If there is no pair in one of the languages, or a file is damaged or lacks a column.
    """
    pages = defaultdict(list)
    for row in read_pairs(pairs, ["id", "ocr", "truth", "language", "source"]):
        if row["language"] not in LANGUAGES:
            continue
        source = "rendered" if row["source"].startswith("rendered") else row["source"].partition(" via ")[0]
        error = ocr.error_rate(row["ocr"], row["truth"])
        clean = ocr.quality(row["truth"], row["language"]).score
        half = zlib.crc32(row["id"].encode()) % 2
        quality = ocr.quality(row["ocr"], row["language"])
        pages[row["language"], source].append((error, clean, half, *quality))
    if not pages:
        raise InputError(f"{pairs} contains no pair in {', '.join(LANGUAGES)}: pass pairs with their language.")
    by_source = {code: {} for code in LANGUAGES}
    for (code, source), rows in pages.items():
        by_source[code][source] = np.array(rows).T
    by_source = {code: tables for code, tables in by_source.items() if tables}
    by_language = {code: np.concatenate(list(tables.values()), axis=1) for code, tables in by_source.items()}

    def on_half(half: int, threshold: float) -> dict:
        return {
            code: threshold_metrics(table[3][table[2] == half], table[0][table[2] == half], threshold)
            for code, table in by_language.items()
        }

    balance = {
        str(threshold): float(np.mean([row["balanced_accuracy"] for row in on_half(0, threshold).values()]))
        for threshold in CANDIDATES
    }
    return {
        "all": ocr_metrics(np.concatenate(list(by_language.values()), axis=1)),
        "mean_rank_correlation": float(np.mean([spearman(-table[3], table[0]) for table in by_language.values()])),
        "languages": {code: ocr_metrics(table) for code, table in by_language.items()},
        "sources": {
            code: {source: ocr_metrics(table, with_interval=False) for source, table in tables.items()}
            for code, tables in by_source.items()
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
        `languages`: per ISO code the documents, the accuracy, the mean share of paragraphs in the language, and the
        languages of the errors; `documents`, `megabytes`, and `seconds` of identification.
    """
    counts, shares, size, seconds = {code: Counter() for code in LANGUAGES}, Counter(), 0, 0.0
    for row in read_documents(corpus, languages=list(LANGUAGES), columns=["text", "language"]):
        start = time.perf_counter()
        detected = detect_languages(row["text"])
        seconds += time.perf_counter() - start
        size += len(row["text"].encode())
        counts[CODES[row["language"]]][detected.language] += 1
        shares[CODES[row["language"]]] += detected.share
    counts = {code: detected for code, detected in counts.items() if detected}
    return {
        "documents": sum(detected.total() for detected in counts.values()),
        "megabytes": size / 1e6,
        "seconds": seconds,
        "languages": {
            code: {
                "documents": detected.total(),
                "right": detected[code] / detected.total(),
                "paragraphs_in_language": shares[code] / detected.total(),
                "taken_for": {other: n for other, n in detected.most_common() if other != code},
            }
            for code, detected in counts.items()
        },
    }


def measure_corpus(corpus: Path) -> dict:
    """Measure OCR quality and personal data replacement on ordinary text.

    Returns:
        `languages`: documents, megabytes, `left_out` (share of documents below the OCR threshold), `replaced` (values
        by type); `collections`: language -> collection -> share of documents below the threshold;
        `megabytes_per_second` of each block on one core, and of PII on documents without candidates.
    """
    ocr.models()
    pii.replace("nobody@nowhere.invalid 0", "en", seed=0)  # load the recognisers before measuring
    languages = defaultdict(lambda: {"documents": 0, "megabytes": 0.0, "left_out": 0, "replaced": Counter()})
    collections, spent, sizes = defaultdict(lambda: defaultdict(list)), Counter(), Counter()
    columns = ["identifier", "collection", "language", "text"]
    for row in read_documents(corpus, languages=list(LANGUAGES), columns=columns):
        if zlib.crc32(row["identifier"].encode()) % SAMPLE_EVERY:
            continue
        code, text = CODES[row["language"]], row["text"]
        size = len(text.encode()) / 1e6
        times = [time.process_time()]
        low = ocr.quality(text, code).score < ocr.THRESHOLD
        times.append(time.process_time())
        replaced = pii.replace(text, code, seed=row["identifier"]).counts
        times.append(time.process_time())
        blocks = ["ocr", "pii"] if pii.CANDIDATE.search(text) else ["ocr", "pii", "pii without candidates"]
        for block, seconds in zip(blocks, [*np.diff(times), times[2] - times[1]], strict=False):
            spent[block] += seconds
            sizes[block] += size
        entry = languages[code]
        entry["documents"] += 1
        entry["megabytes"] += size
        entry["left_out"] += low
        entry["replaced"] += Counter(replaced)
        collections[code][row["collection"]].append(low)
    return {
        "every": SAMPLE_EVERY,
        "languages": {
            code: entry | {"left_out": entry["left_out"] / entry["documents"], "replaced": dict(entry["replaced"])}
            for code, entry in languages.items()
        },
        "collections": {
            code: {name: float(np.mean(low)) for name, low in sorted(by_name.items())}
            for code, by_name in collections.items()
        },
        "megabytes_per_second": {block: sizes[block] / max(spent[block], 1e-9) for block in spent},
    }


def count_replacements(corpus: Path) -> dict:
    """Count the personal data in ordinary text, nearly all of which is false in print: an upper bound of false values.

    Returns:
        ISO code, or `source code` -> tokens (separated by whitespace), `unchecked` and `checked` values: detected
        without and with the checks of what surrounds them.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in read_documents(corpus, columns=["identifier", "language", "text"]):
        if zlib.crc32(row["identifier"].encode()) % SAMPLE_EVERY == 0:
            code, text = CODES.get(row["language"]), row["text"]
            entry = counts[code or "source code"]
            entry["tokens"] += len(text.split())
            for name in ("unchecked", "checked"):
                entry[name] += pii_samples.count_values(text, code or "en", surroundings=name == "checked")
    return {name: dict(entry) for name, entry in counts.items()}


# Report -------------------------------------------------------------------------------------------


def table(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Return a Markdown table; floats have three decimals, and None is an empty cell."""
    formats = {float: "{:.3f}", int: "{:,}", str: "{}", type(None): ""}
    return statistics_report.table(header, [[formats[type(cell)].format(cell) for cell in row] for row in rows])


def largest_share(shares: dict[str, float]) -> str | None:
    """Return the name with the largest share, and the share; None if all are 0."""
    name = max(shares, key=shares.get)
    return f"{name} ({shares[name]:.3f})" if shares[name] else None


def ocr_section(results: dict, ordinary: dict) -> str:
    """Return the section on OCR quality."""
    header = ["", "pages", "error rate", "estimated", "estimated on the truth", "rank correlation", "95%"]
    header += ["recognised", "non-letters"]

    def row(name: str, metrics: dict) -> list:
        interval = [" to ".join(f"{x:.2f}" for x in metrics["interval"])] if "interval" in metrics else []
        keys = ("pages", "error_rate", "estimated", "estimated_on_truth", "rank_correlation")
        return [name, *(metrics[key] for key in keys), *interval, metrics["recognised"], metrics["non_letters"]]

    threshold = results["threshold"]
    parts = [
        "## OCR quality\n\nThe estimated error rate is 1 minus the score. Rank correlations are Spearman correlations "
        "with the true error rate (edits per character of the truth, whitespace collapsed) of three metrics: the "
        "score, the fraction of segments recognised as the document's language, and the fraction of characters that "
        "are not letters. The score uses the surprisal alone: adding either of the others, with any weight tried, "
        "ranked worse.",
        "![Score against error rate](report.png)",
        table(header, [row(code, m) for code, m in results["languages"].items()] + [row("all", results["all"])]),
        f"Mean over languages: {results['mean_rank_correlation']:.3f}. The next table is by source, whose pages are "
        "more alike and whose ranks are closer. FR1 is from the 14th century, FR3 consists of shop receipts, and some "
        "pairs of NL1 are two different passages of a page: the estimate is unreliable there.",
        table(
            [name for name in header if name != "95%"],
            [row(f"{code}, {source}", m) for code, by in results["sources"].items() for source, m in by.items()],
        ),
        f"A page is poor if more than {POOR:.0%} of its characters are wrong. The threshold {threshold['value']} is "
        "the best of "
        + ", ".join(f"{t} ({value:.3f})" for t, value in threshold["chosen_half"].items())
        + " by balanced accuracy, mean over languages, on one half of the pages. On the other half:",
        table(
            ["", "pages", "poor", "dropped", "precision", "recall", "balanced accuracy"],
            [[code, *metrics.values()] for code, metrics in threshold["other_half"].items()],
        ),
        f"Share of clean documents below the threshold (1 in {ordinary['every']} documents of the corpus; the models "
        "were trained on most of them):",
        table(
            ["", "documents", "dropped", "highest share in"],
            [
                [code, row["documents"], row["left_out"], largest_share(ordinary["collections"][code])]
                for code, row in ordinary["languages"].items()
            ],
        ),
    ]
    return "\n\n".join(parts)


def pii_section(results: dict, clean: dict, ordinary: dict) -> str:
    """Return the section on personal data."""

    def false_rates(counts: dict) -> list[list]:
        return [
            [name, row["tokens"], row["unchecked"], row["checked"]]
            + [1e4 * row[key] / row["tokens"] for key in ("unchecked", "checked")]
            for name, row in counts.items()
        ]

    header = ["", "tokens", "before", "after", "before, per 10,000", "after, per 10,000"]
    rows = ordinary["languages"].items()
    kinds = sorted({kind for _, row in rows for kind in row["replaced"]})
    parts = [
        f"## Personal data\n\n{pii_samples.SENTENCE_COUNT:,} synthetic sentences per language. Half contain one "
        "value, and in a quarter no word identifies the number. A value is found if its type, first and last "
        "character are correct.",
        table(
            ["", "type", "found", "missed", "false", "precision", "recall"],
            [[code, kind, *rates.values()] for code, by_kind in results.items() for kind, rates in by_kind.items()],
        ),
        "False values in clean text without any personal data, generated from the forms in `pii_samples.yaml` (all "
        "languages together; tokens are separated by whitespace). `before` is without the checks of what surrounds a "
        "value: labels such as those of versions and shelfmarks, its row and column of numbers, and the form of an "
        "entry in a list of addresses.",
        table(header, false_rates(clean["generated"])),
        f"The same in ordinary text (1 in {ordinary['every']} documents of the corpus). Some are true values, "
        "such as addresses of publishers and of authors of software.",
        table(header, false_rates(clean["corpus"])),
        f"Replacements per MB of ordinary text (1 in {ordinary['every']} documents of the corpus):",
        table(
            ["", "MB", *kinds],
            [
                [code, row["megabytes"], *(row["replaced"].get(kind, 0) / row["megabytes"] for kind in kinds)]
                for code, row in rows
            ],
        ),
    ]
    return "\n\n".join(parts)


def language_section(results: dict) -> str:
    """Return the section on language identification."""
    rows = [
        [code, row["documents"], row["right"], row["paragraphs_in_language"]]
        + [", ".join(f"{other} {n}" for other, n in row["taken_for"].items())]
        for code, row in results["languages"].items()
    ]
    speed = results["megabytes"] / results["seconds"]
    header = ["", "documents", "accuracy", "paragraphs in the language", "errors"]
    return f"## Language\n\nComplete documents of the corpus, {speed:.1f} MB/s per core.\n\n" + table(header, rows)


def toxicity_section(results: dict) -> str:
    """Return the section on toxicity."""
    keys = ("sentences", "hateful", "precision", "recall", "f1", "auc")
    by_language = results["languages"] | ({"unseen": results["unseen"]} if results["unseen"] else {})
    return (
        f"## Toxicity\n\nThe scorer `{results['scorer']}` on HateCheck and Multilingual HateCheck. A sentence is "
        "flagged if its verdict is not none. `unseen` is all languages except English, because the rules were "
        "adjusted on the errors in English. These data sets have no Latin sentences.\n\n"
        + table(["", *keys], [[code, *(metrics[key] for key in keys)] for code, metrics in by_language.items()])
    )


def markdown(report: dict) -> str:
    """Return REPORT.md from the content of report.json."""
    ordinary = report["corpus"]
    speeds = ", ".join(f"{block} {speed:.1f}" for block, speed in ordinary["megabytes_per_second"].items())
    sections = [
        "# Accuracy of curation",
        f"Generated by `{report['command']}`, with {', '.join(f'{k} {v}' for k, v in report['versions'].items())}. "
        "SHA-256 of the data files: "
        + ", ".join(f"{name} {hash[:12]}" for name, hash in report["data"].items())
        + ".",
        ocr_section(report["ocr"], ordinary),
        pii_section(report["pii"], report["pii_clean"], ordinary),
        f"MB/s on one core, over complete documents of the corpus: {speeds}.",
        language_section(report["language"]),
        toxicity_section(report["toxicity"]),
    ]
    return "\n\n".join(sections) + "\n"


def chart(points: dict, path: Path) -> None:
    """Write a chart of score against true error rate, one panel per language."""
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


def write_report(config: ReportConfig) -> dict:
    """Measure all blocks and write `REPORT.md`, `report.json` and `report.png`; return the content of the JSON file.

    Raises:
        InputError: If a folder contains no data.
    """
    metrics, points = measure_ocr(config.ocr_pairs)
    data = {
        "ocr_pairs": corpus_files(config.ocr_pairs),
        "toxicity": sorted(config.toxicity.glob("*.csv")),
        "corpus": corpus_files(config.corpus),
    }
    report = {
        "command": shell_line(["python", *sys.orig_argv[1:]]),
        "versions": {package: version(package) for package in PACKAGES},
        "data": {name: fingerprint({file.name: sha256(file) for file in files}) for name, files in data.items()}
        | {"models": sha256(ocr.MODEL)},
        "ocr": metrics,
        "pii": pii_samples.measure_detection(list(LANGUAGES)),
        "pii_clean": {
            "generated": pii_samples.measure_clean_text(list(LANGUAGES)),
            "corpus": count_replacements(config.corpus),
        },
        "toxicity": toxicity.measure_sentences(config.toxicity),
        "corpus": measure_corpus(config.corpus),
        "language": language_id_accuracy(config.corpus),
    }
    report = json.loads(json.dumps(report), parse_float=lambda number: round(float(number), 4))
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "report.json", report)
    (config.out / "REPORT.md").write_text(markdown(report), encoding="utf-8")
    chart(points, config.out / "report.png")
    return report


def main() -> None:
    """Write the report."""
    description = (
        "Measure the accuracy of curation's blocks on labelled text; write REPORT.md, report.json and a chart."
    )
    config = parse(ReportConfig, description=description)
    report = write_report(config)
    print(f"{config.out / 'REPORT.md'}: OCR rank correlation {report['ocr']['all']['rank_correlation']:.3f}")


if __name__ == "__main__":
    run_main(main)
