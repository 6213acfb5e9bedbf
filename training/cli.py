"""The console entry: `pleias PROGRAM ...` runs what `python -m training.PROGRAM ...` runs in a checkout.

`pleias --help` and `--version` need the base install alone; a program's libraries are imported when it is run.
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

ROOT = __package__.removesuffix("training")  # "" in a checkout, "modeling_pleias." once installed


class Program(NamedTuple):
    module: str
    extra: str
    purpose: str


PROGRAMS = {
    "corpus": Program("training.corpus", "training", "gather openly licensed text in eight languages"),
    "tokenizer": Program("training.tokenizer", "training", "train a vocabulary on a corpus"),
    "curation": Program("training.curation.__main__", "curation", "make of a corpus one that may be trained on"),
    "mixture": Program("training.mixture", "training", "hold out a share of a corpus, and mix the rest"),
    "shards": Program("training.shards", "training", "turn a corpus into token shards and their manifest"),
    "embeddings": Program("training.embeddings", "training", "first embeddings from which tokens stand together"),
    "plan": Program("training.plan", "training", "say what a pretraining run costs before it is started"),
    "pretrain": Program("training.pretrain", "training", "pretrain a model on token shards"),
    "average": Program("training.average", "training", "average the weights of two models"),
    "finetune": Program("training.finetune", "training", "fine-tune a model on a task, or on preferences or rewards"),
    "evaluate": Program("training.evaluate", "evaluation", "measure a model, or several side by side"),
    "trace": Program("training.trace", "training", "find which passages of a text stand in the training shards"),
    "nanotron": Program("training.nanotron", "training", "import a nanotron settings file"),
    "nanotron_checkpoint": Program("training.nanotron_checkpoint", "training", "convert a nanotron checkpoint"),
    "demo": Program("training.demo", "curation", "the way from text to a model, in ten minutes, on a laptop"),
    "release": Program("model_card.release", "release", "make of a run what is downloaded, and verify it"),
    "card": Program("model_card.card", "release", "write the card of a folder"),
    "validate": Program("model_card.validate", "release", "check the card of a folder"),
    "public_summary": Program(
        "model_card.public_summary", "release", "fill the forms of the AI Act from a run's files"
    ),
}


def usage(root: str) -> str:
    """What `pleias --help` prints; `root` precedes the names of modules in it."""
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
    """Run the program that the command line names; it reads the rest of the line itself."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage(ROOT))
    elif name == "--version":
        print(f"modeling-pleias {version()}")
    elif name in PROGRAMS:
        sys.argv = [f"pleias {name}", *arguments]
        run(PROGRAMS[name])
    else:
        stop(f"pleias has no program {name!r}; it has {', '.join(PROGRAMS)}.")


def run(program: Program) -> None:
    """Import a program and run its `main`; imported, not executed, so that worker processes find its functions."""
    try:
        module = import_module(ROOT + program.module)
        room = program.module.partition(".")[0]
        end = import_module(ROOT + {"training": "training.config", "model_card": "model_card.files"}[room]).program
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("modeling_pleias", "training", "model_card"):
            raise
        stop(
            f"{sys.argv[0]} needs the extra [{program.extra}] (there is no module {error.name}): "
            f'pip install "modeling-pleias[{program.extra}]".'
        )
    end(module.main)


def stop(sentence: str) -> None:
    """End on bad input: one sentence, exit status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
