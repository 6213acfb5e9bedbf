"""Config of a curation run: input, output, filters and execution."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .endpoint import Endpoint

# Options that do not change the result.
EXECUTION = ("out", "corpus", "executor", "workers", "executor_options", "explain", "device")
# Below 0.85, correction removes 0.6% of the errors and makes 3 of the 33 pages worse that it changes; above 0.98 are 9
# of 488 pages, and 120 of their 488 clean texts (training.bench.ocr_correction_band).
OCR_CORRECTION_BAND = (0.85, 0.98)
HALVES = ("select", "finish")  # stages before and after duplicates are known


@dataclass
class CurationConfig:
    """Input, output, filters and execution.

    Args:
        out: Folder of the curated corpus: Parquet files named like those of the input, dropped/, curation.json and
            curation.md.
        corpus: Folder of Parquet files with Common Corpus columns. --in is the same option.
        corpus_stage: base, or annealing. The annealing corpus also keeps toxic text that --endpoint rewrote or put
            behind a content warning; the base corpus drops it.
        languages: ISO codes of the languages to keep, among en fr es de it nl la pt. Text in other languages, and
            source code, is dropped. Default: all eight.
        repair_lines: Join words that are hyphenated at line ends, and remove running heads and page numbers.
        page_break: Replacement for form feeds, such as the tokenizer's <|page_break|>. Default: keep form feeds.
        ocr_threshold: Minimum OCR quality, from 0 to 1; 0 keeps everything. Default: the calibrated threshold.
        pii: Replace personal data with fictitious values.
        ocr_correction: Correct OCR errors with the corrector of this package, without a language model.
        ocr_correction_band: Minimum and maximum OCR quality of the documents that are corrected.
        toxicity: Toxicity scorer: lexicon (offline), or a Celadon checkpoint by Hub name or folder. Empty: no filter.
        policy: Action in the annealing corpus. tox (paper): warn before mildly toxic text, rewrite toxic text. card
            (model card): rewrite mildly toxic text, drop toxic text. drop: drop both. The base corpus drops both.
        device: Device of a Celadon scorer.
        endpoint: Language model that rewrites toxic text and writes content warnings. Default: none, and text that
            needs one is dropped.
        max_megabytes: Maximum size of a document in MB. Larger ones are dropped.
        on_error: drop: record unreadable files and documents with the reason, and continue. stop: end the run with
            a one-line message.
        executor: Where tasks run: in local processes, on Slurm or on Ray.
        workers: Number of tasks (files) that run at the same time; 1 runs everything in this process. Default: one per
            CPU.
        executor_options: Arguments of datatrove's Slurm or Ray executor, such as {partition: cpu, time: "24:00:00"}.
            Slurm requires these two.
        explain: Identifier of a document in --out. Only print what each step found, and why the document was kept
            or dropped.
    """

    out: Path
    corpus: Path | None = None
    corpus_stage: Literal["base", "annealing"] = "base"
    languages: list[str] | None = None
    repair_lines: bool = True
    page_break: str | None = None
    ocr_threshold: float | None = None
    pii: bool = True
    ocr_correction: bool = False
    ocr_correction_band: list[float] = field(default_factory=lambda: list(OCR_CORRECTION_BAND))
    toxicity: str = "lexicon"
    policy: Literal["tox", "card", "drop"] = "tox"
    device: str = "cpu"
    endpoint: Endpoint | None = None
    max_megabytes: float = 50
    on_error: Literal["drop", "stop"] = "drop"
    executor: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = None
    executor_options: dict = field(default_factory=dict)
    explain: str | None = None

    @property
    def work(self) -> Path:
        """Working folder; hidden, so not part of the curated corpus."""
        return self.out / ".curation"

    @property
    def folder(self) -> Path:
        """Folder of the input files, because `corpus` may be a single file."""
        return self.corpus if self.corpus.is_dir() else self.corpus.parent
