"""Messages of the page: bad input is a one-line message in the browser, as in a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from ..common.config import InputError


@contextmanager
def one_sentence(text: str | None = None) -> Iterator[None]:
    """Show an `InputError` in the page as its sentence, and that a text is empty."""
    try:
        if text is not None and not text.strip():
            raise InputError("The text is empty: enter one.")
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None
