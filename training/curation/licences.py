"""Print the decision of the licence gate on licence labels, and on dates and creators.

    python -m training.curation.licences "CC-By" "Licence Ouverte / Open Licence" "CC BY-NC 4.0"
    python -m training.curation.licences "" --creator "Verne, Jules (1828-1905)"

The gate itself is `training.data.licences`.
"""

if not __package__:  # run by path; same as `python -m training.curation.licences`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.curation"

import argparse
import json
import sys
from dataclasses import asdict

from ..common.config import run_main
from ..data.licences import YEAR, decide


def main() -> None:
    """Print one JSON object per label."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.licences",
        description="Decide whether text under a licence label may be used for training. Prints one JSON object per "
        "line with label, spdx, decision (open, attribution, share-alike or refused) and rule.",
        epilog='Example: python -m training.curation.licences "CC-By" "Public Domain (official acts)" "CC BY-NC 4.0"',
    )
    parser.add_argument("label", nargs="+", help='Label as in a corpus, "" for none; - reads labels from stdin.')
    parser.add_argument("--collection", default="", help="Collection; those from Common Crawl are refused by name.")
    parser.add_argument("--identifier", default="", help="Document identifier, checked like the collection.")
    parser.add_argument("--date", default="", help="Date of first publication.")
    parser.add_argument("--creator", default="", help='Authors with their years, as in "Verne, Jules (1828-1905)".')
    parser.add_argument("--published-in-us", action="store_true", help="--date is that of a publication in the USA.")
    parser.add_argument("--year", type=int, default=YEAR, help=f"Year for which to decide. Default: {YEAR}.")
    settings = vars(parser.parse_args())
    for argument in settings.pop("label"):
        for label in (line.rstrip("\n") for line in sys.stdin) if argument == "-" else [argument]:
            print(json.dumps(asdict(decide(label, **settings)), ensure_ascii=False))


if __name__ == "__main__":
    run_main(main)
