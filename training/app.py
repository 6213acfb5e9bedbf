"""Use a model in the browser: continuation, the sources of a text, OCR correction, translation, answers from sources.

    python -m training.app runs/NAME --index data/NAME/index

The page is served on this machine alone, unless --host says otherwise, and needs no network. A tab is shown if the
model can do its task: translation and answers need a fine-tuned model, and sources an index of training.trace. OCR is
corrected by the corrector in the model's folder, by the fine-tuned model, or by the corrector of this package.
"""

if not __package__:  # run by path; same as `python -m training.app`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr

from .common.config import InputError, parse, read_yaml, run_main
from .common.escaping import terminal_line
from .common.files import fingerprint, model_sha256, read_json
from .common.generation import token_id
from .evaluation.models import EvaluatedModel
from .ocr import OcrConfig, correct_file
from .space.app import Torch, build_page, complete, find_weights, launch, origin
from .space.sources import add_sources_tab
from .space.tasks import FineTunedCorrector, add_ocr_tab, add_rag_tab, add_translation_tab
from .tasks.ocr import format as ocr_format
from .tasks.ocr.corrector import FOLDER, PACKAGED, Corrector
from .tasks.ocr.documents import Passage, read_document
from .tasks.ocr.review import write_review
from .tasks.rag import format as rag_format
from .tasks.translation import format as translation_format
from .tracing.search import TraceIndex

STOPS = {"ocr": ocr_format.STOP, "translation": translation_format.STOP, "rag": rag_format.STOP}


@dataclass
class AppConfig:
    """Model and index of the page, and its address.

    Args:
        model: Model folder, release folder, run folder, GGUF file, or OWNER/NAME on the Hub.
        index: Index of the model's training shards (training.trace), for the tab Sources. Default: no such tab.
        host: Address to listen on; 0.0.0.0 lets the network in.
        port: Port; 0 takes a free one.
    """

    model: Path
    index: Path | None = None
    host: str = "127.0.0.1"
    port: int = 7860


def open_model(path: Path) -> EvaluatedModel:
    """Open the model that a path means; of a release, its `llama` variant.

    Raises:
        InputError: If there is none.
    """
    variant = path / "llama"
    return EvaluatedModel(str(variant if (variant / "config.json").is_file() else path))


def licence(subject: EvaluatedModel) -> str | None:
    """Return the licence that the files of a model state."""
    if subject.gguf:
        from gguf import GGUFReader  # lazy import: transformers also needs it for such a file only

        field = GGUFReader(Path(subject.source) / subject.gguf).get_field("general.license")
        return field.contents() if field else None
    return (release_record(subject) or {}).get("license")


def release_record(subject: EvaluatedModel) -> dict | None:
    """Return the content of a released model's release.json."""
    path = Path(subject.source) / "evidence" / "release.json"
    return read_json(path) if path.is_file() else None


def can(subject: EvaluatedModel, task: str) -> bool:
    """Return whether a model was fine-tuned for a task, or if no file tells, whether it has the task's token."""
    if subject.run:
        return read_yaml(subject.run / "config.yaml").get("task") == task
    if run := (release_record(subject) or {}).get("source", {}).get("run"):
        return run["config"].get("task") == task
    return token_id(subject.tokenizer, STOPS[task]) is not None


def check_index(index: TraceIndex, subject: EvaluatedModel) -> None:
    """Check that an index is of shards that a model was trained on, as far as its files tell.

    Raises:
        InputError: If the tokenizer is another, or no run of the model has read the shards.
    """
    if not index.tokenizer.get_vocab().items() <= subject.tokenizer.get_vocab().items():
        raise InputError(f"--index {index.folder} has another tokenizer than {subject.name}: pass that of its shards.")
    blocks = (read_json(index.folder / f"{number:05}.json") for number in range(len(index.facts["blocks"])))
    indexed = {shards["fingerprint"] for shards in index.facts["shards"]}
    indexed |= {sha256 for block in blocks for sha256, *_ in block["origin"]["pieces"]}
    read = read_shards(subject)
    if read and not read & indexed:
        raise InputError(
            f"--index {index.folder} is of shards that {subject.name} was not trained on: pass that of its shards."
        )


def read_shards(subject: EvaluatedModel) -> set[str]:
    """Return the hashes of all shards that a model has read, and of their manifests; none if its files do not tell."""
    folder = Path(subject.source)
    if subject.run:
        sessions = read_json(subject.run / "run.json")["sessions"]
        # The shards of the model from which a fine-tuning or a continuation started are unknown.
        if not all(session.get("init_from", "unknown") is None for session in sessions):
            return set()
    else:  # a release has all runs of its weights
        sessions = [session for path in folder.glob("runs/*/run.json") for session in read_json(path)["sessions"]]
    shards = [shard for path in folder.glob("runs/*/manifests/*.json") for shard in read_json(path).get("shards", ())]
    return {shard["sha256"] for shard in shards} | {hash for session in sessions for hash in session.get("data", ())}


def open_corrector(subject: EvaluatedModel) -> Corrector | FineTunedCorrector:
    """Open what corrects OCR: the corrector of the model's folder, the fine-tuned model, or this package's corrector.

    Raises:
        InputError: If the corrector of the folder is damaged.
    """
    folder = subject.source if isinstance(subject.source, Path) and not subject.gguf else None
    if folder and (folder / FOLDER).is_dir():
        return Corrector.load(folder / FOLDER, subject.model, subject.tokenizer)
    if can(subject, "ocr"):
        return FineTunedCorrector(subject.model, subject.tokenizer)
    if folder and fingerprint(model_sha256(folder)) == read_json(PACKAGED / "corrector.json")["settings"]["judge"]:
        return Corrector.load(PACKAGED, subject.model, subject.tokenizer)
    return Corrector.load(PACKAGED)


def correct_page(corrector: Corrector | FineTunedCorrector, source: Path, language: str) -> tuple[str, str]:
    """Return the corrected text of a file with OCR, and its review page, as `training.ocr` writes them."""
    target, review = source.parent / "corrected" / source.name, source.parent / "review.html"
    config = OcrConfig([source], target.parent, language=language)
    record = correct_file(source, target, config, {}, corrector)
    write_review(review, {source: record})
    is_text = source.suffix == ".txt"
    text = target.read_text(encoding="utf-8") if is_text else Passage(read_document(target).lines).text
    return text, review.read_text(encoding="utf-8")


def open_page(config: AppConfig) -> tuple[gr.Blocks, str]:
    """Return the page, and the lines that describe it in the terminal.

    Raises:
        InputError: If there is no model, or the index is not of its shards.
    """
    subject = open_model(config.model)
    model = Torch(subject.model, subject.tokenizer)
    parameters = subject.model.num_parameters()
    lines = [
        f"model     {subject.name} ({parameters:,} parameters; context of {subject.context} tokens)",
        f"licence   {licence(subject) or 'not stated'}",
    ]
    tabs = {}
    if config.index:
        index = TraceIndex(config.index)
        check_index(index, subject)
        missing = [shards["folder"] for shards in index.facts["shards"] if not Path(shards["folder"]).is_dir()]
        lines.append(
            f"index     {index.facts['documents']:,} documents, {index.facts['tokens']:,} tokens"
            + (f"; its shards {missing[0]} are missing, and with them the dates of sources" if missing else "")
        )

        def continue_greedily(text: str, count: int) -> Iterator[str]:
            yield from complete(model, text, count, 0, 1)

        tabs["Sources"] = lambda: add_sources_tab(index, continue_greedily)
    corrector = open_corrector(subject)
    tabs["Correct OCR"] = lambda: add_ocr_tab(partial(correct_page, corrector))
    if can(subject, "translation"):
        tabs["Translate"] = lambda: add_translation_tab(subject.model, subject.tokenizer)
    if can(subject, "rag"):
        tabs["Answer from sources"] = lambda: add_rag_tab(subject.model, subject.tokenizer)
    lines.append(f"tabs      {', '.join(['Continue', *tabs])}")
    source = str(Path(subject.source) / subject.gguf) if subject.gguf else str(subject.source)
    mark = origin(subject.name, find_weights(source))
    return build_page(model, subject.name, tabs, mark), "\n".join(map(terminal_line, lines))


def free_port(host: str, port: int) -> int:
    """Return a port on which a program can listen: the given one, or if that is 0, any.

    Raises:
        InputError: If it cannot.
    """
    try:
        with socket.create_server((host, port)) as listener:
            return listener.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{host}:{port} cannot be used ({reason}): choose another --port; 0 takes a free one."
        raise InputError(message) from None


def main() -> None:
    """Run `python -m training.app`."""
    config = parse(AppConfig, description="Use a model in the browser.", positional="model")
    port = free_port(config.host, config.port)
    page, description = open_page(config)
    launch(page, server_name=config.host, server_port=port, quiet=True, prevent_thread_lock=True)
    print(f"{description}\npage      http://{config.host}:{port}\nCtrl-C ends it.", flush=True)
    try:
        threading.Event().wait()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code)  # the server waits for running requests


if __name__ == "__main__":
    run_main(main)
