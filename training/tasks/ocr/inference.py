"""Decoding settings of OCR correction, and `correct`, by the corrector or the fine-tuned model of a folder."""

from functools import lru_cache, partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.drafting import InputDraft
from ...common.generation import complete, token_id
from ...common.language import identify
from ..text_windows import over_windows
from .corrector import FOLDER, Corrector
from .edit_penalty import EDIT_PENALTY, edit_penalty_processor
from .format import STOP, WINDOW, format_ocr, input_of, parse_correction


def input_draft(tokenizer: PreTrainedTokenizerBase, prompt: str) -> InputDraft:
    """Build the draft of a correction: its input."""
    return InputDraft(tokenizer, input_of(prompt), token_id(tokenizer, STOP))


DECODING = {
    "max_new_tokens": 320,
    "stop": STOP,
    "repetition_penalty": 1.0,
    "logits_processor": edit_penalty_processor,
    "draft": input_draft,
}


@lru_cache(maxsize=1)
def opened(folder: Path, modified: int) -> Corrector:
    """Open a corrector once for all calls, until a file of it is replaced; without a model, which its user keeps."""
    return Corrector.load(folder)


def correct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    language: str | None = None,
    window: int = WINDOW,
    overlap: int | None = None,
    edit_penalty: float = EDIT_PENALTY,
    progress: str | None = None,
) -> str:
    """Correct a text of any length with the corrector of the model's folder, or with a fine-tuned model.

    If the folder that the model was loaded from contains a corrector (`ocr_channel/`), that proposes changes and the
    model judges them. Else the model writes the correction, in overlapping windows that are rejoined without loss.

    Args:
        language: ISO code of the text, for a corrector. Default: identified.
        window: Characters per window; best is the window that the model was fine-tuned with.
        overlap: Characters that neighbouring windows share. Default: a fifth of `window`.
        edit_penalty: Penalty per changed byte (training.tasks.ocr.edit_penalty). Higher values cause fewer changes.
        progress: Title of a progress bar. Default: no bar.

    Raises:
        InputError: If the corrector is damaged, or has not learned the language.
    """
    folder = Path(model.name_or_path) / FOLDER
    if model.name_or_path and folder.is_dir():  # no path: built in memory
        corrector = opened(folder, folder.stat().st_mtime_ns).judged_by(model, tokenizer)
        return corrector.correct(text, language or identify(text)[0])

    def change(windows: list[str]) -> list[str]:
        prompts = [format_ocr(content)[0] for content in windows]
        longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0)
        options = {
            **DECODING,
            "max_new_tokens": longest + longest // 2,
            "logits_processor": partial(edit_penalty_processor, penalty=edit_penalty),
        }
        outputs = complete(model, tokenizer, prompts, progress=progress, **options)
        return [parse_correction(output) for output in outputs]

    return over_windows(text, window, window // 5 if overlap is None else overlap, change)
