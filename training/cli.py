"""Console script: `pleias PROGRAM ...` runs the program that `python -m training.PROGRAM ...` runs in a checkout.

`pleias --help` and `--version` need only the base install; the libraries of a program are imported when it runs.
"""

if not __package__:  # run by path; same as `python -m training.cli`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .common.signals import end_on_signals

ROOT = __package__.removesuffix("training")  # "" in a checkout, "modeling_pleias." if installed


class Program(NamedTuple):
    """A program: its module, the extra that it needs, and its line in `pleias --help`."""

    module: str
    extra: str
    purpose: str


_PROGRAMS = {  # name -> extra, line in `pleias --help`
    "corpus": ("training", "build a corpus of openly licensed text in eight languages"),
    "tokenizer": ("training", "train a byte-level BPE tokenizer on a corpus"),
    "curation": ("curation", "filter, clean and deduplicate a corpus for training"),
    "mixture": ("training", "hold out part of a corpus and mix the rest in chosen shares"),
    "shards": ("training", "tokenise a corpus into shards with a manifest"),
    "embeddings": ("training", "initialise token embeddings from co-occurrence statistics"),
    "plan": ("training", "estimate the cost of a pretraining run"),
    "pretrain": ("training", "pretrain a model on token shards"),
    "average": ("training", "average the weights of two models"),
    "ocr_channel": ("training", "learn the OCR corrector of a corpus and OCR pages"),
    "finetune": ("training", "fine-tune a model on a task, preferences or rewards"),
    "evaluate": ("evaluation", "evaluate a model, or compare several"),
    "ocr": ("training", "correct OCR text, hOCR, ALTO, PAGE XML and searchable PDFs, with their coordinates"),
    "trace": ("training", "find passages of a text that occur verbatim in the training data"),
    "app": ("app", "use a model in the browser: continuation, sources of a text, OCR correction and other tasks"),
    "nanotron": ("training", "convert a nanotron settings file to a config"),
    "nanotron_checkpoint": ("training", "convert a nanotron checkpoint to safetensors"),
    "demo": ("curation", "run the pipeline from text to a model in ten minutes on a laptop"),
    "release": ("release", "export a run as verified folders for the Hub (safetensors, GGUF, ONNX, OpenVINO)"),
    "serve": ("release", "serve a release, a run or a GGUF file over OpenAI's interface, with a web page"),
    "card": ("release", "write the model card of a release folder"),
    "validate": ("release", "check the model card of a release folder against its files"),
    "verify": ("release", "verify the hashes, the BOM, the card and the signature of a release"),
    "croissant": ("release", "describe a corpus in Croissant, for data set tools"),
    "public_summary": ("release", "fill in the AI Act forms from the files of a run"),
}
_MODULES = {"curation": "training.curation.__main__"}
PROGRAMS = {
    name: Program(_MODULES.get(name, f"{'model_card' if extra == 'release' else 'training'}.{name}"), extra, purpose)
    for name, (extra, purpose) in _PROGRAMS.items()
}


def usage(root: str) -> str:
    """Return the text of `pleias --help`; `root` is prepended to module names."""
    width = max(map(len, PROGRAMS))
    return "\n".join(
        [
            "usage: pleias PROGRAM [--help] [--config NAME_OR_PATH] [--KEY VALUE ...]",
            "       pleias --help | --version",
            "",
            *(f"  {name:{width}}  {program.purpose}" for name, program in PROGRAMS.items()),
            "",
            f"On several processes: accelerate launch -m {root}training.pretrain ...",
        ]
    )


def version() -> str:
    """Return `modeling_pleias.__version__` without importing the package, which takes seconds."""
    source = Path(find_spec("modeling_pleias").origin).read_text(encoding="utf-8")
    return re.search('^__version__ = "(.+)"$', source, re.MULTILINE)[1]


def main() -> None:
    """Run the program given on the command line, which parses the remaining arguments."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage(ROOT))
    elif name == "--version":
        print(f"modeling-pleias {version()}")
    elif name in PROGRAMS:
        sys.argv = [f"pleias {name}", *arguments]
        end_on_signals()  # importing the program takes seconds
        run_installed(PROGRAMS[name])
    else:
        exit_with_error(f"unknown program {name!r}: choose from {', '.join(PROGRAMS)}.")


def run_installed(program: Program) -> None:
    """Import a program and run its `main`; importing, not executing it, lets worker processes find its functions."""
    try:
        module = import_module(ROOT + program.module)
        package = program.module.partition(".")[0]
        runner = import_module(
            ROOT + {"training": "training.common.config", "model_card": "model_card.files"}[package]
        )
        runner.run_main(module.main)  # which imports some libraries at their first use
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("modeling_pleias", "training", "model_card"):
            raise
        exit_with_error(
            f"{sys.argv[0]} needs the extra [{program.extra}] (module {error.name} is missing): "
            f'pip install "modeling-pleias[{program.extra}]".'
        )


def exit_with_error(message: str) -> None:
    """Print an error message and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
