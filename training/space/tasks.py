"""Tabs of the tasks, which call training.tasks: OCR correction with its review, translation, answers from sources."""

import html
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.config import InputError
from ..common.language import CODES, LANGUAGES, identify
from ..tasks import ocr, rag, translation
from ..tasks.ocr.changes import Change
from ..tasks.pages import TESSERACT_LANGUAGES, missing_language_packs
from ..tasks.text_windows import align_characters
from .messages import one_sentence

IDENTIFY = "as identified"
STYLE = "width:100%;height:40rem;border:0"


class FineTunedCorrector:
    """OCR correction by a fine-tuned model, as changes without probabilities; line ends stay.

    Args:
        model: Model fine-tuned for OCR correction.
        tokenizer: Its tokenizer.
    """

    languages = tuple(LANGUAGES)

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer

    def changes(self, text: str, language: str, *, threshold: float = 1.0) -> list[Change]:
        """Return the changes that turn a text into the model's correction of it."""
        corrected = ocr.correct(self.model, self.tokenizer, text, language=language, progress="correcting")
        return changes_between(text, corrected)


def changes_between(text: str, corrected: str) -> list[Change]:
    """Return the changes that turn a text into its correction, without those of line ends."""
    changes, start, other = [], 0, 0
    for i, place in [*enumerate(align_characters(text, corrected).tolist()), (len(text), len(corrected))]:
        if place < 0:
            continue
        before, after = text[start:i], corrected[other:place]
        if before + after and "\n" not in before + after:
            changes.append(Change(start, i, before, after, "word", math.nan))
        start, other = i + 1, place + 1
    return changes


def read_page(image: Path, language: str, folder: Path) -> Path:
    """Read a page image with Tesseract, and return its hOCR, next to a copy of the image.

    Raises:
        InputError: If Tesseract lacks the language or does not read the image.
    """
    missing, message = missing_language_packs([language])
    if missing:
        raise InputError(message)
    page = shutil.copyfile(image, folder / f"page{image.suffix}")
    command = ["tesseract", page, folder / "page", "-l", TESSERACT_LANGUAGES[language], "hocr"]
    # one thread: Tesseract's own threads mostly wait for each other
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_THREAD_LIMIT": "1"})
    if result.returncode:
        raise InputError(f"Tesseract does not read the image ({result.stderr.strip().splitlines()[-1]}): use another.")
    return folder / "page.hocr"


def add_ocr_tab(correct: Callable[[Path, str], tuple[str, str]]) -> None:
    """Add the components of OCR correction.

    Args:
        correct: Function of a file and an ISO code that returns the corrected text and the review page.
    """

    def review(source: Path, language: str) -> tuple[str, str]:
        text, page = correct(source, language)
        return text, f'<iframe sandbox="allow-scripts" style="{STYLE}" srcdoc="{html.escape(page)}"></iframe>'

    def correct_text(text: str, language: str) -> tuple[str, str]:
        with one_sentence(text), TemporaryDirectory() as folder:
            source = Path(folder) / "pasted.txt"
            source.write_text(text, encoding="utf-8", newline="")
            return review(source, CODES.get(language) or identify(text)[0])

    def correct_image(image: str | None, language: str) -> tuple[str, str]:
        with one_sentence(), TemporaryDirectory() as folder:
            if image is None or language == IDENTIFY:
                raise InputError("Upload a page image, and choose its language, in which Tesseract reads it.")
            return review(read_page(Path(image), CODES[language], Path(folder)), CODES[language])

    language = gr.Dropdown([IDENTIFY, *CODES], value=IDENTIFY, label="Language")
    with gr.Row():
        text = gr.Textbox(lines=5, label="OCR text")
        if shutil.which("tesseract"):
            image = gr.Image(type="filepath", image_mode=None, format="png", sources=["upload"], label="Page image")
    with gr.Row():
        button = gr.Button("Correct the text", variant="primary")
        out = gr.Textbox(lines=5, label="Corrected", buttons=["copy"], elem_id="corrected", render=False)
        page = gr.HTML(render=False)
        button.click(correct_text, [text, language], [out, page])
        if shutil.which("tesseract"):
            gr.Button("Read and correct the image").click(correct_image, [image, language], [out, page])
        else:
            gr.Markdown("Page images are read where Tesseract is installed.")
    out.render()
    page.render()


def add_translation_tab(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the components of translation, by a model fine-tuned for it."""

    def translate(text: str, language: str, progress=gr.Progress(track_tqdm=True)) -> str:  # noqa: B008
        with one_sentence(text):
            return translation.translate(model, tokenizer, text, target=CODES[language], progress="translating")

    text, language = gr.Textbox(lines=8, label="Text"), gr.Dropdown(list(CODES), value="French", label="Into")
    out = gr.Textbox(lines=8, label="Translation (AI-generated)")
    gr.Button("Translate", variant="primary").click(translate, [text, language], out)


def add_rag_tab(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the components of answers from sources, by a model fine-tuned for them."""

    def answer(query: str, text: str) -> tuple[str, str]:
        with one_sentence(query), one_sentence(text):
            sources = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
            result = rag.answer(model, tokenizer, query, sources)
        quotes = [
            f'"{citation.quote}" {"is" if literal else "is NOT"} in source {citation.source}'
            for citation, literal in result.citations
        ]
        return "\n\n".join([result.plain, *quotes]), result.analysis

    query = gr.Textbox(label="Question")
    sources = gr.Textbox(lines=8, label="Sources, separated by empty lines")
    out = gr.Textbox(lines=8, label="Answer, and its quotes (AI-generated)")
    analysis = gr.Textbox(lines=3, label="The model's analysis of the sources (AI-generated)")
    gr.Button("Answer", variant="primary").click(answer, [query, sources], [out, analysis])
