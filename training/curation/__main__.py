"""`python -m training.curation`: the command line of the pipeline."""

if not __package__:  # run by path; same as `python -m training.curation`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"
    __spec__ = None  # run as `python training/curation`, it contradicts __package__, and Python warns

import sys

from ..config import InputError, parse, program
from .account import explain
from .page import summary
from .pipeline import CurationConfig, curate


def main() -> None:
    """Curate a corpus, or tell one document's story."""
    # `in` is no name for a Python field: on the command line it is one for `corpus`.
    argv = [f"--corpus{a.removeprefix('--in')}" if a.split("=")[0] == "--in" else a for a in sys.argv[1:]]
    config = parse(CurationConfig, argv, description="Make the corpus that is trained on, and the account of it.")
    if config.explain:
        print(explain(config.out, config.explain))
        return
    if config.corpus is None:
        raise InputError("--in is missing: give the folder of the corpus to curate.")
    content = curate(config)
    if content is None:
        print(f"submitted to Slurm; {config.out / 'curation.json'} is written when the last job ends")
    else:
        print(summary(content))
        print(f"wrote {config.out / 'curation.json'} and {config.out / 'curation.md'}")


if __name__ == "__main__":
    program(main)
