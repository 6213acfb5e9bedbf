"""Measure what OCR correction changes on held-out rendered pages and their clean text, by estimated OCR quality.

    python -m training.bench.ocr_correction_band --pairs PAIRS

The pages are those that the corrector was not learned from (training.ocr_channel, seed 0). The band of curation's
block ocr_correction follows from the table.
"""

if not __package__:  # run by path; same as `python -m training.bench.ocr_correction_band`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..common.config import parse, run_main
from ..curation import ocr
from ..curation.statistics_report import table
from ..tasks.ocr.corrector import PACKAGED, Corrector
from ..tasks.ocr.learning import page_samples
from ..tasks.ocr.metrics import edit_errors

EDGES = (0, 0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 1.01)
POOR = 0.1  # character error rate, as of the threshold of curation
HEADER = ("text", "OCR quality", "texts", "CER", "errors removed", "share", "touched", "worse", "characters/s")


@dataclass
class BandConfig:
    """Pages and corrector.

    Args:
        pairs: Folder of OCR pages and their truth, as training.tasks.pages writes it.
        corrector: Folder of the corrector. Default: the one of the package.
    """

    pairs: Path
    corrector: Path = PACKAGED


def main() -> None:
    """`python -m training.bench.ocr_correction_band`."""
    config = parse(BandConfig, description="Measure OCR correction by estimated OCR quality.")
    corrector = Corrector.load(config.corrector)
    samples = [sample for sample in page_samples(config.pairs, corrector.languages) if sample.held_out]
    rows, lifted = [], []
    for kind in ("page", "truth"):
        measured = []
        for sample in samples:
            text = sample.ocr if kind == "page" else sample.truth
            corrector.resources(sample.language)  # reads the lexicon, once
            start = time.perf_counter()
            after = corrector.correct(text, sample.language)
            seconds = time.perf_counter() - start
            before, left = (edit_errors(sample.truth, version) for version in (text, after))
            quality, new = (ocr.quality(version, sample.language).score for version in (text, after))
            measured.append((quality, len(sample.truth), before, left, after != text, len(text), seconds))
            if quality < ocr.THRESHOLD <= new:
                lifted.append(left / len(sample.truth))
        values = np.array(measured)
        for low, high in pairwise(EDGES):
            part = values[(low <= values[:, 0]) & (values[:, 0] < high)]
            if len(part):
                _, size, before, left, touched, characters, seconds = part.sum(axis=0)
                share = f"{(before - left) / before:.3f}" if before else ""
                worse = int((part[:, 3] > part[:, 2]).sum())
                name = f"{low:.2f} to {min(high, 1):.2f}"
                removed, speed = f"{before - left:,.0f}", f"{characters / seconds:,.0f}"
                rows.append(
                    (kind, name, len(part), f"{before / size:.3f}", removed, share, int(touched), worse, speed)
                )
    print(table(HEADER, rows))
    print(
        f"lifted over the threshold of {ocr.THRESHOLD}: {len(lifted)} texts, "
        f"{sum(rate > POOR for rate in lifted)} with a CER above {POOR} after correction"
    )


if __name__ == "__main__":
    run_main(main)
