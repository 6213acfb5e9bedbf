"""Train a tokenizer on a corpus, balanced by language and register.

    python -m training.tokenizer --corpus data/corpus --out runs/tokenizer --vocab_size 8192
    python -m training.tokenizer --config tokenizer_65k --corpus data/corpus --out runs/tokenizer

The pre-tokenised pieces of the corpus are counted once, the counts are weighted so that each language and register has
its share, and byte-pair merges are learned from the weighted counts. With `held_out`, a report on held-out text is
written next to the tokenizer; `training.bench.tokenizers` compares it with other tokenizers and on other texts.
"""

if not __package__:  # run by path; same as `python -m training.tokenizer`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import base64
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from .common.config import InputError, parse, run_main
from .common.escaping import shell_line
from .common.files import atomic_files, lock_folder
from .vocabulary.piece_counts import TextSource, count_pieces
from .vocabulary.tokenizer_report import compare_tokenizers, held_out_texts, write_report

if TYPE_CHECKING:  # transformers takes seconds to import and --help does not need it
    from modeling_pleias import PleiasTokenizer


@dataclass
class TokenizerConfig:
    """Settings of a tokenizer.

    Args:
        corpus: Folder of Parquet files with Common Corpus columns.
        out: Folder for the tokenizer.
        vocab_size: Vocabulary size, including the 68 special tokens.
        language_weights: Bytes of a language relative to the others, by its English name. Default: 1 each.
        old_share: Share of a language's bytes that is old prose (open type "Open Culture"); the rest is modern.
        code_share: Share of all bytes that is code, markup, tables and formatted text (language type "Code").
        noise_share: Share of all bytes that is old prose converted to simulated old print and simulated OCR output.
        collection_caps: Maximum share of a collection in its language and register. Default: 1 each.
        count_power: A piece that occurs n times in a document counts as n ** count_power.
        held_out: Share of documents held out from training, by author or source file.
        seed: Random seed of the held-out selection and of the noise.
        sample_bytes: Total bytes of the weighted counts; pieces that are rarer than once in them are dropped.
    """

    corpus: Path
    out: Path
    vocab_size: int = 65_536
    language_weights: dict[str, float] = field(default_factory=dict)
    old_share: float = 0.5
    code_share: float = 0.10
    noise_share: float = 0.0
    collection_caps: dict[str, float] = field(default_factory=dict)
    count_power: float = 1.0
    held_out: float = 0.0
    seed: int = 42
    sample_bytes: int = 40_000_000


@cache
def byte_spelling() -> dict[int, str]:
    """Map each byte to the printable character that represents it in a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def source_shares(sizes: dict[TextSource, float], config: TokenizerConfig) -> dict[TextSource, float]:
    """Compute the share of all bytes of each source; the shares of missing sources are divided among the others.

    Args:
        sizes: Bytes of each source. Collections share a language and register in proportion, up to their caps.

    Returns:
        Shares that sum to 1.
    """
    strata = defaultdict(dict)
    for source in sorted(sizes):
        strata[source.language, source.register][source] = sizes[source]
    prose = 1 - config.code_share - config.noise_share
    register_shares = {
        "old": prose * config.old_share,
        "modern": prose * (1 - config.old_share),
        "noise": config.noise_share,
    }
    languages = {language for language, register in strata if register != "code"}
    result = {}
    for (language, register), members in strata.items():
        if register == "code":
            share = config.code_share
        else:
            share = register_shares[register] * config.language_weights.get(language, 1.0)
            # A language with one register only, as Latin has no modern prose, keeps its weight.
            if register != "noise" and len({(language, "old"), (language, "modern")} & set(strata)) == 1:
                share = prose * config.language_weights.get(language, 1.0)
            share /= sum(config.language_weights.get(name, 1.0) for name in sorted(languages))
        size_of_stratum = sum(members.values())
        capped = {
            source: min(size / size_of_stratum, config.collection_caps.get(source.collection, 1.0))
            for source, size in members.items()
        }
        for source, part in capped.items():
            result[source] = share * part / sum(capped.values())
    total = sum(result.values())
    return {source: share / total for source, share in result.items()}


def weighted_counts(weights: dict[TextSource, dict[str, float]], config: TokenizerConfig) -> dict[str, int]:
    """Combine the piece weights of all sources to counts in which every source has its share of `sample_bytes`."""
    table = {byte: ord(character) for byte, character in byte_spelling().items()}
    spelled = {}
    for source in sorted(weights):
        pieces = weights[source].items()
        spelled[source] = {piece.encode().decode("latin-1").translate(table): weight for piece, weight in pieces}
    sizes = {source: sum(len(piece) * n for piece, n in pieces.items()) for source, pieces in spelled.items()}
    total = Counter()
    for source, share in source_shares(sizes, config).items():
        factor = share * config.sample_bytes / sizes[source]
        for piece, weight in spelled[source].items():
            total[piece] += weight * factor
    return {piece: round(count) for piece, count in sorted(total.items()) if count >= 0.5}


def _lines(counts: dict[str, int]) -> Iterator[str]:
    """Yield each piece as often as it is counted, separated by spaces, in strings of about a megabyte."""
    chunk, size = [], 0
    for piece, count in counts.items():
        chunk.append(f"{piece} " * count)
        size += len(chunk[-1])
        if size > 1 << 20:
            yield "".join(chunk)
            chunk, size = [], 0
    yield "".join(chunk)


def write_ranks(tokenizer: "PleiasTokenizer", path: Path) -> None:
    """Write the vocabulary in tiktoken's format: one line per token, its bytes in base 64 and its id as rank.

    Ranks start at 4, after `BASE_TOKENS`, and end before `DOCUMENT_TOKENS`. A `tiktoken.Encoding` of these ranks,
    `PATTERN` and the special tokens returns the same ids.
    """
    byte = {character: value for value, character in byte_spelling().items()}
    special = set(tokenizer.all_special_tokens)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    lines = [
        f"{base64.b64encode(bytes(byte[character] for character in token)).decode()} {rank}\n"
        for token, rank in vocab
        if token not in special
    ]
    path.write_text("".join(lines), encoding="ascii")


def train(config: TokenizerConfig) -> "PleiasTokenizer":
    """Train a tokenizer on a corpus and write it to `config.out`; the same input gives the same files.

    Raises:
        InputError: If the corpus cannot be read, or is too small for the vocabulary size.
    """
    with lock_folder(config.out):
        return _train(config)


def _train(config: TokenizerConfig) -> "PleiasTokenizer":
    """Write the tokenizer into a locked folder; see `train`."""
    from modeling_pleias import PleiasTokenizer
    from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS

    counts = weighted_counts(
        count_pieces(
            config.corpus,
            power=config.count_power,
            noise=config.noise_share > 0,
            held_out=config.held_out,
            seed=config.seed,
        ),
        config,
    )
    # The pieces are already split and in byte-level characters: the trainer only splits at the spaces between them.
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(DOCUMENT_TOKENS),
        special_tokens=list(BASE_TOKENS),
        initial_alphabet=sorted(byte_spelling().values()),
        min_frequency=2,
    )
    backend.train_from_iterator(_lines(counts), trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), *DOCUMENT_TOKENS]
    if len(tokens) < config.vocab_size:
        raise InputError(
            f"--vocab_size {config.vocab_size} is more than the {len(tokens)} tokens that {config.corpus} yields: "
            "lower it or use more text."
        )
    tokenizer = PleiasTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(pair) for pair in model["merges"]]
    )
    with atomic_files(config.out, last="tokenizer.json") as folder:
        tokenizer.save_pretrained(folder)
        write_ranks(tokenizer, folder / "ranks.tiktoken")
    return tokenizer


def main() -> None:
    """Run `python -m training.tokenizer`."""
    config = parse(TokenizerConfig, description="Train a byte-level BPE tokenizer on a corpus.")
    tokenizer = train(config)
    print(f"tokenizer of {len(tokenizer)} tokens in {config.out}")
    if config.held_out:
        texts = held_out_texts(config.corpus, share=config.held_out, seed=config.seed)
        report = compare_tokenizers({"pleias": tokenizer.backend_tokenizer}, texts)
        write_report(config.out, report, shell_line(["python", "-m", "training.tokenizer", *sys.argv[1:]]))
        print(f"report on held-out documents in {config.out / 'REPORT.md'}")


if __name__ == "__main__":
    run_main(main)
