"""Pages rendered from clean text, spoilt as scans are, and read by tesseract: pairs with real misreadings.

    python -m training.tasks.pages --out data/ocr_pairs --path CORPUS --pages_per_language 100

leaves a Parquet file for each language with the columns of `training.tasks.ocr`, and pages.json, the account of them.
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
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from ..config import InputError, parse, program
from ..data.documents import checked_languages
from ..files import atomic, write_json
from .ocr import PAIR_COLUMNS, passages
from .sources import corpus_folder

TESSERACT_LANGUAGES = {
    "en": "eng", "fr": "fra", "es": "spa", "de": "deu", "it": "ita", "nl": "nld", "la": "lat", "pt": "por",
}  # fmt: skip
# Fonts that matplotlib carries, so that the same pages come out everywhere: a broad serif, a book serif, a sans.
FONTS = ("DejaVuSerif.ttf", "STIXGeneral.ttf", "STIXGeneral.ttf", "STIXGeneralItalic.ttf", "DejaVuSans.ttf")
PAGE = 1000  # characters: about what stands on the pages of the ICDAR competitions
MARGIN = 40  # pixels
READABLE = (0.005, 0.4)  # edits per character of the pages kept: others have nothing to mend, or nothing left to read


@dataclass
class PagesConfig:
    """Which pages are made.

    Args:
        out: folder for the pairs.
        path: corpus folder with the text; from package registries when not given.
        languages: ISO codes; all eight when not given. One whose tesseract language pack is missing is left out.
        pages_per_language: pages rendered for each; a few are dropped, as nothing or everything was misread.
        workers: pages read at a time; each takes a core for about a second.
        seed: decides which text is taken and how each page is spoilt.
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


def render(text: str, draw: random.Random) -> Image.Image:
    """A text's lines as a grey page, in a font and at a size that tesseract reads well (24 to 34 pixels a line)."""
    size = draw.randint(20, 28)
    font = _font(draw.choice(FONTS), size)
    lines, leading = text.split("\n"), int(size * draw.uniform(1.2, 1.45))
    width = int(max(font.getlength(line) for line in lines))
    page = Image.new("L", (width + 2 * MARGIN, leading * len(lines) + 2 * MARGIN), draw.randint(225, 255))
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + i * leading), line, font=font, fill=draw.randint(0, 60))
    return page


def spoil(page: Image.Image, draw: random.Random) -> Image.Image:
    """A page as a poor scan of poor paper: shrunk, blurred, turned, the reverse shining through, stained, speckled."""
    noise = np.random.default_rng(draw.getrandbits(32))
    width, height = page.size
    degree = draw.uniform(0.4, 1.2)  # how bad this page is altogether
    shrunk = 1 - 0.45 * degree * draw.random()
    page = page.resize((int(width * shrunk), int(height * shrunk)), Image.Resampling.BILINEAR)
    page = page.resize((width, height), Image.Resampling.BICUBIC)
    page = page.rotate(draw.uniform(-1, 1) * degree, Image.Resampling.BICUBIC, fillcolor=240)
    page = page.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.3) * degree))
    grey = np.asarray(page, dtype=np.float32)
    if draw.random() < 0.4:  # the reverse of the leaf
        reverse = np.roll(grey[:, ::-1], (draw.randint(-20, 20), draw.randint(-60, 60)), (0, 1))
        grey = grey - draw.uniform(0.05, 0.3) * degree * (255 - reverse)
    light = np.linspace(draw.uniform(-60, 0) * degree, draw.uniform(-60, 0) * degree, width)  # a bent leaf
    stains = noise.normal(0, 1, (height // 60 + 2, width // 60 + 2)) * 20 * degree
    stains = Image.fromarray(stains.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    grey = grey + light + np.asarray(stains) + noise.normal(0, draw.uniform(2, 30) * degree, grey.shape)
    specks = noise.random(grey.shape)
    grey[specks < 0.003 * degree * draw.random()] = 0
    grey[specks > 1 - 0.02 * degree * draw.random()] = 255
    if draw.random() < 0.3:  # two tones, as old scans are kept
        grey = np.where(grey < draw.uniform(110, 170), 0, 255)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def tesseract_languages() -> set[str]:
    """The language packs that are installed, by tesseract's names.

    Raises:
        InputError: when there is no tesseract.
    """
    if shutil.which("tesseract") is None:
        raise InputError(
            "no page can be read: tesseract is not installed (on Debian, apt-get install tesseract-ocr and "
            "tesseract-ocr-fra for French and so on); training.tasks.ocr does without, with made-up errors."
        )
    listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True, check=True).stdout
    return set(listed.split("\n")[1:])


def read_page(page: Image.Image, language: str) -> str:
    """What tesseract reads on a page, as one block of text, without empty lines."""
    picture = io.BytesIO()
    page.save(picture, "png")
    command = ["tesseract", "stdin", "stdout", "-l", TESSERACT_LANGUAGES[language], "--psm", "6", "--dpi", "150"]
    # one thread a page: tesseract's own threads mostly wait for each other
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(command, input=picture.getvalue(), capture_output=True, check=True, env=environment)
    return "\n".join(line for line in done.stdout.decode().splitlines() if line.strip())


def version() -> str:
    """Of tesseract, such as 5.3.0."""
    done = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).split()[1]


def pairs(folder: Path, language: str, config: PagesConfig, reader: str) -> Iterator[dict]:
    """Pages of one language as pairs, each with its edits per character of truth."""

    def made(passage: dict) -> dict:
        draw = random.Random(f"{config.seed}/{passage['id']}")
        ocr = read_page(spoil(render(passage["text"], draw), draw), language)
        creator = f" by {passage['creator']}" if passage["creator"] else ""
        return {
            **{"id": f"page/{passage['id']}", "ocr": ocr, "truth": passage["text"], "language": language},
            "source": f"rendered page (degraded) read by tesseract {reader}; text from {passage['source']}{creator}",
            "license": passage["license"],
            "distance": Levenshtein.distance(ocr, passage["text"]) / len(passage["text"]),
        }

    found = passages(folder, language, count=config.pages_per_language, size=PAGE, seed=config.seed)
    with ThreadPoolExecutor(config.workers) as pool:
        yield from pool.map(made, found[: config.pages_per_language])


def build(config: PagesConfig) -> dict:
    """Write OUT/LANGUAGE.parquet for each language, and pages.json.

    Returns:
        the content of pages.json: for each language pages rendered and kept and their mean error rate; languages
        left out; settings; tesseract's version.

    Raises:
        InputError: without tesseract, or without a language pack for any wanted language.
    """
    languages, installed = checked_languages(config.languages), tesseract_languages()
    missing = [language for language in languages if TESSERACT_LANGUAGES[language] not in installed]
    packs = ", ".join(f"tesseract-ocr-{TESSERACT_LANGUAGES[language]}" for language in missing)
    if missing == languages:
        raise InputError(f"tesseract has none of the language packs: install {packs}.")
    if missing:
        print(f"without {', '.join(missing)}: {packs} would be needed.", file=sys.stderr)
    wanted = [language for language in languages if language not in missing]
    folder, reader = corpus_folder(config.path, wanted), version()
    account = {}
    for language in wanted:
        stream = pairs(folder, language, config, reader)
        made = list(tqdm(stream, desc=language, total=config.pages_per_language, unit="page", file=sys.stderr))
        kept = [pair for pair in made if READABLE[0] <= pair["distance"] <= READABLE[1]]
        with atomic(config.out / f"{language}.parquet") as path:
            schema = pa.schema([(name, pa.string()) for name in PAIR_COLUMNS])
            pq.write_table(pa.Table.from_pylist(kept, schema=schema), path, compression="zstd")
        rates = [pair["distance"] for pair in kept]
        account[language] = {"rendered": len(made), "kept": len(kept), "cer": float(np.mean(rates)) if kept else None}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    content = {"languages": account, "left_out": missing, "settings": settings, "tesseract": reader}
    write_json(config.out / "pages.json", content)
    return content


def main() -> None:
    """`python -m training.tasks.pages`."""
    content = build(parse(PagesConfig, description="Render pages, spoil them, and have tesseract read them."))
    for language, entry in content["languages"].items():
        rate = "-" if entry["cer"] is None else f"{entry['cer']:.3f}"
        print(f"{language}  {entry['kept']:>6,} of {entry['rendered']:>6,} pages kept, error rate {rate}")


if __name__ == "__main__":
    program(main)
