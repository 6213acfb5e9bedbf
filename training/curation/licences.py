"""Program of the licence gate: print the decision on licence labels, and on dates and creators.

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

from ..config import program
from ..data.licences import YEAR, decide


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.licences",
        description="Say of each licence label whether text under it may be trained on: one JSON object a line with "
        "label, spdx, decision (open, attribution, share-alike or refused) and rule.",
        epilog='Example: python -m training.curation.licences "CC-By" "Public Domain (official acts)" "CC BY-NC 4.0"',
    )
    parser.add_argument("label", nargs="+", help='as a corpus spells it, "" for none; - reads one a line from stdin')
    parser.add_argument("--collection", default="", help="where the text comes from: Common Crawl is refused by name")
    parser.add_argument("--identifier", default="", help="likewise")
    parser.add_argument("--date", default="", help="of first publication")
    parser.add_argument("--creator", default="", help='authors with their years: "Verne, Jules (1828-1905)"')
    parser.add_argument("--published-in-us", action="store_true", help="the date is that of a publication in the USA")
    parser.add_argument("--year", type=int, default=YEAR, help=f"in which the question is asked (default {YEAR})")
    settings = vars(parser.parse_args())
    for label in settings.pop("label"):
        for each in (line.rstrip("\n") for line in sys.stdin) if label == "-" else [label]:
            print(json.dumps(asdict(decide(each, **settings)), ensure_ascii=False))


if __name__ == "__main__":
    program(main)
