"""Searchable PDFs: OCRmyPDF reads their pages with Tesseract, and sets the corrected hOCR as their text layer."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...common.config import InputError
from ...common.signals import end_with_parent
from .documents import Document, Line, Page, Word, read_document
from .documents.document import Box, Note

# Runs in OCRmyPDF's own Python: reads a page with Tesseract, or takes its hOCR from the folder if it is there.
PLUGIN = """\
import os
import shutil
from pathlib import Path

from ocrmypdf import hookimpl
from ocrmypdf.builtin_plugins.tesseract_ocr import TesseractOcrEngine


class Engine(TesseractOcrEngine):
    @staticmethod
    def generate_hocr(input_file, output_hocr, output_text, options):
        page = Path(os.environ["OCR_PAGES"], Path(output_hocr).name)
        if page.exists():
            shutil.copy(page, output_hocr)
            Path(output_text).write_text("")
        else:
            TesseractOcrEngine.generate_hocr(input_file, output_hocr, output_text, options)
            shutil.copy(output_hocr, page)


@hookimpl
def get_ocr_engine():
    return Engine()
"""


class SearchablePdf(Document):
    """PDF whose scanned pages get a text layer; pages with text of their own stay as they are.

    Args:
        path: Path of the PDF.
        language: Tesseract's name of the language to read.
        jobs: Pages read at the same time.

    Raises:
        InputError: If OCRmyPDF is missing or cannot read the file, or no page has text in an image.
    """

    def __init__(self, path: Path, language: str, jobs: int = 1):
        if shutil.which("ocrmypdf") is None:
            raise InputError(f"{path} needs OCRmyPDF: install it (on Debian: apt-get install ocrmypdf).")
        self._path, self._language, self._jobs = path, language, jobs
        self._folder = tempfile.TemporaryDirectory(prefix="ocr_")
        self._pages = Path(self._folder.name, "pages")
        self._pages.mkdir()
        Path(self._folder.name, "plugin.py").write_text(PLUGIN, encoding="ascii")
        self._run()
        self._documents, self.pages = [], []
        for page in sorted(self._pages.iterdir()):
            try:
                document = read_document(page)
            except InputError:  # without text
                self.pages.append(Page())
                self._documents.append(None)
                continue
            self.pages += document.pages
            self._documents.append((page, document))
            document.pages[0].image = None  # a temporary file
        if not self.lines:
            raise InputError(f"{path} has no text in images: nothing to correct.")
        self.number_lines()

    def rewrite(
        self, line: Line, first: int, count: int, tokens: list[str], boxes: list[Box | None], note: Note | None
    ) -> list[Word]:
        """Replace words in the hOCR of the page."""
        return self._documents[line.page][1].rewrite(line, first, count, tokens, boxes, note)

    def to_bytes(self) -> bytes:
        """Return the PDF with the corrected text layer."""
        for page, document in filter(None, self._documents):
            page.write_bytes(document.to_bytes())
        self._run()
        return self._output.read_bytes()

    @property
    def _output(self) -> Path:
        return Path(self._folder.name, "out.pdf")

    def _run(self) -> None:
        command = [
            *("ocrmypdf", "--plugin", str(Path(self._folder.name, "plugin.py")), "--pdf-renderer", "hocr"),
            *(
                "--redo-ocr",
                "--output-type",
                "pdf",
                "--language",
                self._language,
                "--jobs",
                str(self._jobs),
                "--quiet",
            ),
            *(str(self._path.absolute()), str(self._output)),
        ]
        environment = {**os.environ, "OCR_PAGES": str(self._pages), "OMP_THREAD_LIMIT": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", preexec_fn=end_with_parent
        )
        if done.returncode:
            reason = " ".join(done.stderr.split())[:200] or f"status {done.returncode}"
            raise InputError(f"{self._path} cannot be read by OCRmyPDF ({reason}).")
