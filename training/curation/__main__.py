"""Command line of the curation pipeline: `python -m training.curation`."""

if not __package__:  # run by path; same as `python -m training.curation`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"
    __spec__ = None  # for `python training/curation`, where it contradicts __package__ and Python warns

import sys

from ..common.config import InputError, parse, run_main
from .pipeline import curate
from .recipe import CurationConfig
from .statistics import explain
from .statistics_report import summary

DESCRIPTION = """Filter, clean and deduplicate a corpus for training. The steps are licence, language, line repair, OCR
quality, duplicates, personal data, OCR correction and toxicity. Every document is either kept in --out or written to
--out/dropped with the reason; curation.json and curation.md in --out count both. The same command resumes an
interrupted run. Start from a packaged config: light (base corpus) or enhanced (annealing corpus)."""


def main() -> None:
    """Curate a corpus, or print what happened to one document."""
    # `in` is a keyword in Python, so the option --in sets the field `corpus`.
    argv = [f"--corpus{a.removeprefix('--in')}" if a.split("=")[0] == "--in" else a for a in sys.argv[1:]]
    config = parse(CurationConfig, argv, description=DESCRIPTION)
    if config.explain:
        print(explain(config.out, config.explain))
        return
    if config.corpus is None:
        raise InputError("--in is missing: pass the folder of the corpus to curate.")
    content = curate(config)
    if content is None:
        print(f"Submitted to Slurm. The last job writes {config.out / 'curation.json'}.")
    else:
        print(summary(content))
        print(f"wrote {config.out / 'curation.json'} and {config.out / 'curation.md'}")


if __name__ == "__main__":
    run_main(main)
