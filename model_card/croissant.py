"""Describe a corpus folder in Croissant, for data set tools: its files, columns, licences, sources and curation.

    python -m model_card.croissant data/demo/curated [--url https://huggingface.co/datasets/OWNER/NAME]

Writes croissant.json into the folder. `mlcroissant.Dataset("croissant.json").records("en")` reads the documents of
en.parquet, and refuses a file that differs from its hash. Run it again after the corpus was built again.
"""

if not __package__:  # run by path; same as `python -m model_card.croissant`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
from importlib.util import find_spec
from pathlib import Path

from .disclosure.dataset_metadata import CROISSANT, INSTALL, corpus_metadata, is_date
from .files import ReleaseError, run_main, write_json


def main() -> None:
    """`python -m model_card.croissant`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="Folder of a corpus.")
    parser.add_argument("--name", help="Name of the corpus. Default: that of the folder.")
    parser.add_argument("--url", help="Address at which it is published. Default: none.")
    parser.add_argument("--creator", help="Name of the organisation that publishes it. Default: none.")
    parser.add_argument(
        "--published", metavar="YYYY-MM-DD", help="Date. Default: the last on which a source was retrieved."
    )
    args = parser.parse_args()
    if find_spec("mlcroissant") is None:
        raise ReleaseError(f"croissant needs mlcroissant: {INSTALL}")
    if not args.folder.is_dir():
        raise ReleaseError(f"{args.folder} is not a folder: pass that of a corpus.")
    if args.published and not is_date(args.published):
        raise ReleaseError(f"--published {args.published} is not a date: write it as YYYY-MM-DD.")
    creator = {"name": args.creator} if args.creator else None
    name = args.name or args.folder.resolve().name
    content = corpus_metadata(args.folder, name, args.url, creator, args.published)
    write_json(args.folder / CROISSANT, content)
    print(f"{args.folder / CROISSANT}: {content['description']}")


if __name__ == "__main__":
    run_main(main)
