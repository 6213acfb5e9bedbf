"""OCR correction of pairs on disk: error rates, the measures of HIPE-OCRepair, and what happens to clean text."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..common.config import InputError
from ..common.environment import peak_memory
from ..common.files import fingerprint
from ..common.intervals import Metric, ratios_by
from ..data.documents import as_text, checked_languages
from ..data.split import hash_fraction
from ..tasks import ocr
from ..tasks.ocr.metrics import correction_metrics, defined, edit_errors, match_errors
from ..tasks.sources import read_user_files
from .held_out_text import Text, TextConfig, held_out
from .models import EvaluatedModel

COLUMNS = ("ocr", "truth", "language")
LISTED = 40  # sources listed


@dataclass
class OcrCorrectionConfig:
    """Pairs of OCR text and truth, corrected by the model as `training.tasks.ocr.correct` does.

    Args:
        pairs: Parquet or JSON Lines file, or a folder of such files, with columns ocr, truth and language (ISO code
            or English name), and optionally id and source. A pair whose ocr is its truth counts as clean text.
        clean: Correct text in addition: Parquet with Common Corpus columns (file or folder), or .txt files.
        languages: ISO codes. Default: all languages in the data.
        examples: Maximum number of pairs, the same number per language, selected by a hash. Default: all.
        clean_bytes: Maximum bytes of `clean` per language.
        window: Characters per window; best is the window that the model was fine-tuned with.
    """

    pairs: Path | None = None
    clean: Path | None = None
    languages: list[str] | None = None
    examples: int | None = None
    clean_bytes: int = 100_000
    window: int = ocr.WINDOW


def read_units(config: OcrCorrectionConfig) -> list[dict]:
    """Return the units to correct as dicts of id, language, source, ocr, truth and kind (pair or clean).

    Raises:
        InputError: If there is neither a pair nor clean text, or a row lacks a value.
    """
    checked_languages(config.languages)
    if config.pairs is None and config.clean is None:
        raise InputError("ocr_correction needs pairs or clean text: pass --ocr_correction.pairs or .clean.")
    units = _pairs(config) if config.pairs is not None else []
    if config.clean is not None:
        text = TextConfig(path=config.clean, languages=config.languages, bytes_per_language=config.clean_bytes)
        units += [
            {"id": page.identifier, "language": page.language, "source": "clean text", "ocr": page.text}
            | {"truth": page.text, "kind": "clean"}
            for page in held_out(text, None)
        ]
    return units


def _pairs(config: OcrCorrectionConfig) -> list[dict]:
    """Read pairs, the same number per language."""
    rows: dict[str, list[dict]] = {}
    for file, i, raw in read_user_files(config.pairs, f"pairs with {', '.join(COLUMNS)}"):
        place = f"{file}, row {i + 1}"
        row = {name: as_text(raw.get(name), name) for name in COLUMNS} if isinstance(raw, dict) else {}
        for column in COLUMNS:
            if isinstance(row.get(column), bytes):
                raise InputError(f"{place} has {column} that is not UTF-8: convert it.")
            if not (row.get(column) or "").strip():
                raise InputError(f"{place} has no {column}: each row needs {', '.join(COLUMNS)}.")
        row |= {"id": str(raw.get("id") or place), "source": str(raw.get("source") or file.stem)}
        row["kind"] = "clean" if row["ocr"] == row["truth"] else "pair"
        if config.languages is None or row["language"] in config.languages:
            rows.setdefault(row["language"], []).append(row)
    if not rows:
        raise InputError(f"{config.pairs} has no pair in {', '.join(config.languages or [])}: pass other pairs.")
    most = None if config.examples is None else -(-config.examples // len(rows))
    ordered = {
        code: sorted(rows[code], key=lambda row: hash_fraction(f"{row['id']} {row['source']}")) for code in rows
    }
    return [row for language in sorted(ordered) for row in ordered[language][:most]]


class OcrCorrection:
    """OCR correction of pairs and of clean text.

    Args:
        config: Pairs, clean text and window.
    """

    name = "ocr_correction"

    def __init__(self, config: OcrCorrectionConfig):
        self.units, self.window = read_units(config), config.window
        self.data = {
            "source": [str(path) for path in (config.pairs, config.clean) if path is not None],
            "sources": sorted({_collection(unit) for unit in self.units})[:LISTED],
            "languages": dict(Counter(unit["language"] for unit in self.units)),
            "fingerprint": fingerprint(self.units),
        }
        self.settings = {"window": config.window}

    def test_texts(self) -> dict[str, list[Text]]:
        """Return the OCR text and the truth of each pair, and each clean text, whose metrics begin with clean_."""
        texts = {
            kind: [
                Text(
                    unit["id"],
                    unit["language"],
                    unit["source"],
                    "",
                    "\n".join(dict.fromkeys((unit["ocr"], unit["truth"]))),
                )
                for unit in self.units
                if unit["kind"] == kind
            ]
            for kind in ("pair", "clean")
        }
        return {prefix: texts[kind] for prefix, kind in (("", "pair"), ("clean_", "clean")) if texts[kind]}

    def measure(self, subject: EvaluatedModel) -> dict:
        """Correct every unit."""
        bar = tqdm(self.units, desc=f"{subject.name}: {self.name}", unit="text")
        options = {"window": self.window}
        start = time.perf_counter()
        outputs = [
            ocr.correct(subject.model, subject.tokenizer, unit["ocr"], language=unit["language"], **options)
            for unit in bar
        ]
        speed = sum(len(unit["ocr"]) for unit in self.units) / (time.perf_counter() - start)
        how = {"characters per second": speed, "peak memory, GB": peak_memory(subject.device) / 1e9}
        return {"outputs": outputs, "how": how}

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return the metrics over all units."""
        return correction_metrics(self.units, record["outputs"])

    def details(self, record: dict) -> dict:
        """Return errors removed, error rates and worsened texts by language and source, and every unit's numbers."""
        pairs = [
            (unit, text) for unit, text in zip(self.units, record["outputs"], strict=True) if unit["kind"] == "pair"
        ]
        before = np.array([match_errors(unit["truth"], unit["ocr"]) for unit, _ in pairs]).reshape(-1, 2)
        after = np.array([match_errors(unit["truth"], text) for unit, text in pairs]).reshape(-1, 2)
        edits = np.array([[edit_errors(u["truth"], text) for text in (u["ocr"], t)] for u, t in pairs]).reshape(-1, 2)
        changed = np.array([text != unit["ocr"] for unit, text in pairs], dtype=bool)
        groups = {}
        for by, names in (
            ("language", [unit["language"] for unit, _ in pairs]),
            ("source", [_collection(unit) for unit, _ in pairs]),
        ):
            for title, numerator, denominator in (
                ("errors removed", edits[:, 0] - edits[:, 1], edits[:, 0]),
                ("worsened of changed", edits[:, 1] > edits[:, 0], changed),
                ("match errors removed", before[:, 0] - after[:, 0], before[:, 0]),
                ("match error rate", after[:, 0], after[:, 1]),
            ):
                groups[f"{by}, {title}"] = defined(ratios_by(names, numerator, denominator))
        numbers = {"match_errors": after[:, 0], "match_errors_uncorrected": before[:, 0], "match_size": after[:, 1]}
        units = [
            {name: unit[name] for name in ("id", "language", "source")}
            | {key: int(n[i]) for key, n in numbers.items()}
            for i, (unit, _) in enumerate(pairs)
        ]
        return {"groups": groups, "how": record["how"], "units": units, "examples": _examples(pairs)}


def _collection(unit: dict) -> str:
    """Return a unit's source up to its version or the work."""
    return unit["source"].partition(";")[0].partition(" via ")[0].partition("#")[0]


def _examples(pairs: list[tuple[dict, str]]) -> list[dict]:
    """Return the first unit of each language with its correction."""
    examples: dict[str, dict] = {}
    for unit, text in pairs:
        example = {
            "language": unit["language"],
            "prompt": unit["ocr"],
            "continuation": text,
            "expected": unit["truth"],
        }
        examples.setdefault(unit["language"], example)
    return list(examples.values())
