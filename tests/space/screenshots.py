"""Generate a French continuation with the app in a headless Chromium, and save a screenshot.

    python screenshot.py --model FOLDER_OR_GGUF --out screenshot.png [--chromium /usr/bin/chromium]

Needs `pip install playwright` and a Chromium: `playwright install chromium`, or the system's.
"""

import argparse
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

PORT = 7861
SECONDS = 300  # timeout of the app's start, and again of the continuation


def wait(address: str, app: subprocess.Popen) -> None:
    """Wait until the app responds; exit if it has ended or takes too long."""
    end = time.monotonic() + SECONDS
    while app.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("The app did not start.")


def main() -> None:
    """`python screenshot.py`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chromium", help="Path of a Chromium. Default: playwright's own.")
    args = parser.parse_args()
    command = [sys.executable, Path(__file__).with_name("app.py"), "--model", args.model, "--port", str(PORT)]
    app = subprocess.Popen(command)
    try:
        wait(f"http://127.0.0.1:{PORT}", app)
        with sync_playwright() as playwright:
            # A sandbox is unavailable to root in a container, and the page is the app's own.
            browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 900, "height": 720})
            page.goto(f"http://127.0.0.1:{PORT}", timeout=120_000)
            page.get_by_label("Opening in").click(timeout=120_000)
            page.get_by_role("option", name="French").click()
            page.wait_for_function(
                "[...document.querySelectorAll('textarea')].some(x => x.value.startsWith('La vie'))"
            )
            prompt = page.get_by_label("Text", exact=True).first.input_value()
            page.get_by_role("button", name="Continue").click()
            text, before = "", None
            end = time.monotonic() + SECONDS
            while not (len(text) > len(prompt) and text == before):  # until it has grown, and grows no more
                if time.monotonic() > end:
                    raise SystemExit("The app generated nothing.")
                page.wait_for_timeout(3000)
                before, text = text, page.get_by_label("Continued").input_value()
            page.screenshot(path=args.out)
            browser.close()
    finally:
        app.terminate()
        app.wait()
    assert text.startswith(prompt), text
    print(text)


if __name__ == "__main__":
    main()
