"""Render clean text as page images, degrade them like scans, and OCR them with Tesseract: pairs with real OCR errors.

    python -m training.tasks.pages --out data/ocr_pairs --path CORPUS --pages_per_language 100

writes one Parquet file per language with the columns of `training.tasks.ocr`, and pages.json with statistics.
"""

if not __package__:  # run by path; same as `python -m training.tasks.pages`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.tasks"

import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from ..common.config import InputError, parse, run_main
from ..common.files import lock_folder, write_json
from ..common.language import LANGUAGES
from ..data.documents import checked_languages, write_parquet
from ..data.ocr_pairs import PAIR_COLUMNS
from .ocr.passages import read_passages
from .sources import corpus_folder

TESSERACT_LANGUAGES = {
    "en": "eng", "fr": "fra", "es": "spa", "de": "deu", "it": "ita", "nl": "nld", "la": "lat", "pt": "por",
}  # fmt: skip
# Fonts that matplotlib includes, so that pages are the same on every machine: a broad serif, a book serif, a sans.
FONTS = ("DejaVuSerif.ttf", "STIXGeneral.ttf", "STIXGeneral.ttf", "STIXGeneralItalic.ttf", "DejaVuSans.ttf")
PAGE = 1000  # characters, about as many as on the pages of the ICDAR competitions
MARGIN = 40  # pixels
READABLE = (0.005, 0.4)  # edits per character of usable pages: others have nothing to correct, or are unreadable


@dataclass
class PagesConfig:
    """Pages to render.

    Args:
        out: Folder for the pairs.
        path: Corpus folder with the text. Default: a corpus built from package registries.
        languages: ISO codes. Languages without an installed Tesseract language pack are skipped. Default: all eight.
        pages_per_language: Pages to render per language. A few are dropped: without OCR errors, or unreadable.
        workers: Pages processed in parallel; each uses one core for about a second.
        seed: Seed of the sampled text and of the degradation of each page.
    """

    out: Path
    path: Path | None = None
    languages: list[str] | None = None
    pages_per_language: int = 100
    workers: int = 1
    seed: int = 0


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def render_page(text: str, draw: random.Random) -> Image.Image:
    """Render the lines of a text as a greyscale page, in a size suitable for Tesseract (24 to 34 pixels per line)."""
    size = draw.randint(20, 28)
    font = _font(draw.choice(FONTS), size)
    lines, leading = text.split("\n"), int(size * draw.uniform(1.2, 1.45))
    width = int(max(font.getlength(line) for line in lines))
    page = Image.new("L", (width + 2 * MARGIN, leading * len(lines) + 2 * MARGIN), draw.randint(225, 255))
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + i * leading), line, font=font, fill=draw.randint(0, 60))
    return page


def degrade(page: Image.Image, draw: random.Random) -> Image.Image:
    """Degrade a page like a poor scan: downscaling, blur, rotation, show-through, uneven light, stains and specks."""
    noise = np.random.default_rng(draw.getrandbits(32))
    width, height = page.size
    degree = draw.uniform(0.4, 1.2)  # overall severity
    shrunk = 1 - 0.45 * degree * draw.random()
    page = page.resize((int(width * shrunk), int(height * shrunk)), Image.Resampling.BILINEAR)
    page = page.resize((width, height), Image.Resampling.BICUBIC)
    page = page.rotate(draw.uniform(-1, 1) * degree, Image.Resampling.BICUBIC, fillcolor=240)
    page = page.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.3) * degree))
    grey = np.asarray(page, dtype=np.float32)
    if draw.random() < 0.4:  # text of the reverse side
        reverse = np.roll(grey[:, ::-1], (draw.randint(-20, 20), draw.randint(-60, 60)), (0, 1))
        grey = grey - draw.uniform(0.05, 0.3) * degree * (255 - reverse)
    light = np.linspace(draw.uniform(-60, 0) * degree, draw.uniform(-60, 0) * degree, width)  # a bent page
    stains = noise.normal(0, 1, (height // 60 + 2, width // 60 + 2)) * 20 * degree
    stains = Image.fromarray(stains.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    grey = grey + light + np.asarray(stains) + noise.normal(0, draw.uniform(2, 30) * degree, grey.shape)
    specks = noise.random(grey.shape)
    grey[specks < 0.003 * degree * draw.random()] = 0
    grey[specks > 1 - 0.02 * degree * draw.random()] = 255
    if draw.random() < 0.3:  # bilevel, as many old scans are
        grey = np.where(grey < draw.uniform(110, 170), 0, 255)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def tesseract_languages() -> set[str]:
    """Return the installed language packs, by Tesseract's names.

    Raises:
        InputError: If Tesseract is not installed.
    """
    if shutil.which("tesseract") is None:
        raise InputError(
            "tesseract is not installed: install it (on Debian: apt-get install tesseract-ocr, tesseract-ocr-fra for "
            "French, and so on), or fine-tune without pages, on the synthetic errors of training.tasks.ocr."
        )
    listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True, check=True).stdout
    return set(listed.split("\n")[1:])


def missing_language_packs(languages: list[str]) -> tuple[list[str], str]:
    """Return the languages without an installed language pack, and a message with the packages that provide them.

    Raises:
        InputError: If Tesseract is not installed.
    """
    installed = tesseract_languages()
    missing = [language for language in languages if TESSERACT_LANGUAGES[language] not in installed]
    packs = ", ".join(f"tesseract-ocr-{TESSERACT_LANGUAGES[language]}" for language in missing)
    names = ", ".join(LANGUAGES[language] for language in missing)
    return missing, f"Tesseract has no language pack for {names}: install {packs}."


def read_page(page: Image.Image, language: str) -> str:
    """Return the OCR text of a page, recognised as one block of text, without empty lines."""
    picture = io.BytesIO()
    page.save(picture, "png")
    command = ["tesseract", "stdin", "stdout", "-l", TESSERACT_LANGUAGES[language], "--psm", "6", "--dpi", "150"]
    # one thread per page: Tesseract's own threads mostly wait for each other
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    result = subprocess.run(command, input=picture.getvalue(), capture_output=True, check=True, env=environment)
    return "\n".join(line for line in result.stdout.decode().splitlines() if line.strip())


def tesseract_version() -> str:
    """Return Tesseract's version, such as 5.3.0."""
    result = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True)
    return (result.stdout or result.stderr).split()[1]


def page_pairs(folder: Path, language: str, config: PagesConfig, reader: str) -> Iterator[dict]:
    """Yield the pages of one language as pairs, each with its edits per character of truth."""

    def make_pair(passage: dict) -> dict:
        draw = random.Random(f"{config.seed}/{passage['id']}")
        ocr = read_page(degrade(render_page(passage["text"], draw), draw), language)
        creator = f" by {passage['creator']}" if passage["creator"] else ""
        return {
            **{"id": f"page/{passage['id']}", "ocr": ocr, "truth": passage["text"], "language": language},
            "source": f"rendered page (degraded) read by tesseract {reader}; text from {passage['source']}{creator}",
            "license": passage["license"],
            "distance": Levenshtein.distance(ocr, passage["text"]) / len(passage["text"]),
        }

    passages = read_passages(folder, language, count=config.pages_per_language, size=PAGE, seed=config.seed)
    with ThreadPoolExecutor(config.workers) as pool:
        yield from pool.map(make_pair, passages[: config.pages_per_language])


def build_pairs(config: PagesConfig) -> dict:
    """Write OUT/LANGUAGE.parquet per language, and pages.json.

    Returns:
        The content of pages.json: pages rendered, pages kept and their mean error rate per language; skipped
        languages; settings; Tesseract's version.

    Raises:
        InputError: If Tesseract or the language packs of all requested languages are missing.
    """
    languages = checked_languages(config.languages)
    missing, message = missing_language_packs(languages)
    if missing == languages:
        raise InputError(message)
    if missing:
        print(f"skipping {', '.join(missing)}: {message}", file=sys.stderr)
    languages = [language for language in languages if language not in missing]
    folder, reader = corpus_folder(config.path, languages), tesseract_version()
    statistics = {}
    for language in languages:
        stream = page_pairs(folder, language, config, reader)
        rendered = list(tqdm(stream, desc=language, total=config.pages_per_language, unit="page", file=sys.stderr))
        usable = [pair for pair in rendered if READABLE[0] <= pair["distance"] <= READABLE[1]]
        schema = pa.schema([(name, pa.string()) for name in PAIR_COLUMNS])
        table = pa.Table.from_pylist(usable, schema=schema)
        write_parquet(config.out / f"{language}.parquet", table, compression="zstd")
        rate = float(np.mean([pair["distance"] for pair in usable])) if usable else None
        statistics[language] = {"rendered": len(rendered), "kept": len(usable), "cer": rate}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    content = {"languages": statistics, "left_out": missing, "settings": settings, "tesseract": reader}
    write_json(config.out / "pages.json", content)
    return content


def main() -> None:
    """`python -m training.tasks.pages`."""
    config = parse(PagesConfig, description="Render pages, degrade them like scans, OCR them.")
    with lock_folder(config.out):
        content = build_pairs(config)
    for language, entry in content["languages"].items():
        rate = "-" if entry["cer"] is None else f"{entry['cer']:.3f}"
        print(f"{language}  {entry['kept']:>6,} of {entry['rendered']:>6,} pages kept, error rate {rate}")


if __name__ == "__main__":
    run_main(main)
