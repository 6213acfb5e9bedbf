"""Review page of OCR corrections: one HTML file with the text, every change and the image of its word."""

import base64
import hashlib
import html
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ...common.escaping import terminal_line
from ...common.files import atomic
from .changes import KINDS

TEMPLATE = Path(__file__).with_name("review.html")
MARK = "<!-- OCR corrections -->"  # first line of a review
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2", ".webp", ".bmp", ".gif")
CROP = (360, 48)  # maximum width and height of a word's image, in pixels
MARGIN = 0.35  # of the word's height, around it


def is_review(path: Path) -> bool:
    """Return whether a file is a review that this module wrote."""
    with open(path, "rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def write_review(path: Path, records: dict[Path, dict]) -> None:
    """Write the review of corrected files.

    Args:
        path: HTML file.
        records: Record of each file (training.ocr), by the path of the file, next to which its page images may be.
    """
    changes = [change for record in records.values() for change in record["changes"]]
    counts = Counter(change["kind"] for change in changes)
    kinds = [kind for kind in KINDS if counts[kind]]
    style, script = (TEMPLATE.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    characters = sum(sum(record["characters"].values()) for record in records.values())
    numbers = itertools.count()
    documents = [_document(source, record, numbers) for source, record in records.items()]
    values = {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "style": style,
        "script": script,
        "summary": f"{len(changes):,} changes in {characters:,} characters of {len(records):,} files",
        "kinds": "".join(
            f'<label class="{kind}"><input type="checkbox" value="{kind}" checked> {kind} '
            f"<b>{counts[kind]:,}</b></label>"
            for kind in kinds
        ),
        "rows": "".join(row for rows, _ in documents for row in rows),
        "texts": "".join(text for _, text in documents),
    }
    page = re.sub(r"\{\{ (\w+) \}\}", lambda name: values[name[1]], TEMPLATE.read_text(encoding="utf-8"))
    with atomic(path) as temporary:
        temporary.write_text(f"{MARK}\n{page}", encoding="utf-8")


def _document(source: Path, record: dict, count: Iterator[int]) -> tuple[list[str], str]:
    """Return the table rows of the changes of a file, and its text with the changes marked."""
    rows, texts = [], [f"<h2>{escape(record['file'])}</h2>"]
    for index, page in enumerate(record["pages"]):
        groups: dict[tuple[int, int], list[dict]] = {}
        for change in record["changes"]:
            if change["page"] == index:
                groups.setdefault((change["line"], change["word"]), []).append(change)
        crops = _crops(source, index, len(record["pages"]), page, groups)
        parts, covered = [], 0
        for i, line in enumerate(page["lines"]):
            parts.append("" if not i else "\n\n" if i in page["blocks"] else "\n")
            for j, word in enumerate(line):
                if covered:
                    covered -= 1
                    continue
                parts.append(" " if j and not parts[-1].endswith("\n") else "")
                if (changes := groups.get((i, j))) is None:
                    parts.append(escape(word))
                    continue
                numbers = [next(count) for _ in changes]
                parts.append(_marked(changes, numbers))
                where = f"{record['file']}, page {index + 1}" if len(record["pages"]) > 1 else record["file"]
                rows += [
                    _row(change, number, where, crops.get((i, j), ""))
                    for change, number in zip(changes, numbers, strict=True)
                ]
                covered = changes[0]["words"] - 1
        label = f"<h3>page {index + 1}</h3>" if len(record["pages"]) > 1 else ""
        texts.append(f'{label}<div class="page">{"".join(parts)}</div>')
    return rows, "".join(texts)


def escape(text: object) -> str:
    """Return a text of a document as HTML in which nothing is markup, and no character is invisible."""
    return html.escape("\n".join(map(terminal_line, str(text).split("\n"))))


def _marked(changes: list[dict], numbers: list[int]) -> str:
    """Return the unit of changes with each of them marked."""
    unit, parts, position = changes[0]["unit"], [], 0
    for change, number in zip(changes, numbers, strict=True):
        parts.append(escape(unit[position : change["start"]]))
        parts.append(
            f'<mark id="m{number}" class="{change["kind"]}"><del>{escape(change["before"])}</del>'
            f"<ins>{escape(change['after'])}</ins><sup>{_percent(change)}</sup></mark>"
        )
        position = change["end"]
    return "".join([*parts, escape(unit[position:])])


def _percent(change: dict, unit: str = "") -> str:
    """Return the probability of a change; nothing for one of a fine-tuned model, which states none."""
    return "" if math.isnan(change["probability"]) else f"{int(100 * change['probability'])}{unit}"


def _row(change: dict, number: int, where: str, crop: str) -> str:
    picture = f'<img src="data:image/jpeg;base64,{crop}" alt="">' if crop else ""
    start, end, unit = change["start"], change["end"], change["unit"]
    before, after = escape(unit[:start]), escape(unit[end:])
    probability = "" if math.isnan(change["probability"]) else f"{change['probability']:.4f}"
    percent = _percent(change, "%")
    return (
        f'<tr id="r{number}" data-kind="{change["kind"]}" data-probability="{probability}">'
        f"<td>{picture}</td><td><del>{before}<b>{escape(change['before'])}</b>{after}</del></td>"
        f"<td><ins>{before}<b>{escape(change['after'])}</b>{after}</ins></td>"
        f'<td class="{change["kind"]}"><span>{change["kind"]}</span></td><td>{percent}</td>'
        f"<td>{escape(where)}</td></tr>"
    )


def _crops(
    source: Path, index: int, count: int, page: dict, groups: dict[tuple[int, int], list[dict]]
) -> dict[tuple[int, int], str]:
    """Return the images of the changed words of a page, in base64; none if the page's image is missing or damaged."""
    boxes = {place: changes[0]["box"] for place, changes in groups.items() if changes[0]["box"]}
    names = [page["image"]] if page["image"] else []
    names += [source.with_suffix(suffix).name for suffix in IMAGE_SUFFIXES if count == 1]
    path = next((source.parent / name for name in names if (source.parent / name).is_file()), None)
    if not boxes or path is None or not page["size"]:
        return {}
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > index:
                image.seek(index)
            grey = image.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return {}
    scales = [pixels / size for pixels, size in zip(grey.size, page["size"], strict=True)] * 2
    crops = {}
    for place, box in boxes.items():
        left, top, right, bottom = (side * scale for side, scale in zip(box, scales, strict=True))
        margin = MARGIN * (bottom - top)
        if not (0 <= left < right <= grey.width and 0 <= top < bottom <= grey.height):
            continue
        crop = grey.crop(tuple(map(int, (left - margin, top - margin, right + margin, bottom + margin))))
        crop.thumbnail(CROP)
        content = io.BytesIO()
        crop.save(content, "jpeg", quality=70)
        crops[place] = base64.b64encode(content.getvalue()).decode()
    return crops
