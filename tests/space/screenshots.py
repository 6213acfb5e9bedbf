"""Save the screenshots of the README: the tabs Sources and Correct OCR of `pleias app`, in a headless Chromium.

PYTHONPATH=. python tests/space/screenshots.py --model runs/continued --index data/continued/index --out examples
"""

import argparse
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from training.tasks.pages import degrade, render_page

ROOT = Path(__file__).parents[2]
OPENING = "\u00d6ffnen Sie die Aktivit\u00e4ten-\u00dcbersicht und tippen Sie"  # as many pages of GNOME's help do
PAGE = """Longtemps, je me suis couch\u00e9 de bonne heure. Parfois, \u00e0 peine ma
bougie \u00e9teinte, mes yeux se fermaient si vite que je n'avais pas le
temps de me dire : je m'endors. Et, une demi-heure apr\u00e8s, la pens\u00e9e
qu'il \u00e9tait temps de chercher le sommeil m'\u00e9veillait ; je voulais
poser le volume que je croyais avoir encore dans les mains et souffler
ma lumi\u00e8re ; je n'avais pas cess\u00e9 en dormant de faire des r\u00e9flexions
sur ce que je venais de lire, mais ces r\u00e9flexions avaient pris un tour
un peu particulier ; il me semblait que j'\u00e9tais moi-m\u00eame ce dont
parlait l'ouvrage."""  # Proust
SEED = 0  # of the scan


def show_sources(page: Page) -> None:
    """Continue a text, and click the passage in which its continuation begins."""
    page.get_by_role("tab", name="Sources", exact=True).click()
    page.get_by_label("Text; a continuation").fill(OPENING)
    page.get_by_label("number input for Tokens of a passage, at least").fill("10")
    page.get_by_role("button", name="Continue, then find sources").click()
    page.get_by_text("Verbatim in").wait_for(timeout=120_000)
    page.locator("#sources mark", has_text="die Aktivit\u00e4ten").last.click()
    page.locator("#documents blockquote").first.wait_for()


def show_ocr(page: Page) -> None:
    """Read and correct the image of a page that was degraded like a scan."""
    draw = random.Random(SEED)
    page.get_by_role("tab", name="Correct OCR").click()
    page.get_by_label("Language").click()
    page.get_by_role("option", name="French").click()
    with TemporaryDirectory() as folder:
        degrade(render_page(PAGE, draw), draw).save(image := Path(folder) / "scan.png")
        page.locator("input[type=file]").set_input_files(image)
        page.locator("img[alt]").last.wait_for()
        page.get_by_role("button", name="Read and correct the image").click()
        page.frame_locator("iframe").locator("mark").first.wait_for(timeout=120_000)


def main() -> None:
    """`python tests/space/screenshots.py`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("model", "index", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="Default: %(default)s.")
    args = parser.parse_args()
    command = [sys.executable, "-m", "training.app", args.model, "--index", args.index, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as app:
        try:
            screen = list(iter(app.stdout.readline, "Ctrl-C ends it.\n"))
            address = next(line.split()[1] for line in screen if line.startswith("page "))
            with sync_playwright() as playwright:
                # A sandbox is unavailable to root in a container, and the page is the app's own.
                browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
                for name, show in {"app_sources": show_sources, "app_ocr": show_ocr}.items():
                    page = browser.new_page(viewport={"width": 900, "height": 1160})
                    page.goto(address)
                    show(page)
                    page.wait_for_timeout(1000)  # until the page has moved
                    page.evaluate("scrollTo(0, 0)")
                    page.screenshot(path=(path := args.out / f"{name}.png"))
                    with Image.open(path) as image:
                        image.quantize(64).save(path, optimize=True)
                browser.close()
        finally:
            app.terminate()


if __name__ == "__main__":
    main()
