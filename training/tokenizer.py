"""Train the vocabulary on a corpus, balanced by language and register.

    python -m training.tokenizer --corpus data/corpus --out runs/tokenizer --vocab_size 8192
    python -m training.tokenizer --config tokenizer_65k --corpus data/corpus --out runs/tokenizer

The pieces of the corpus are counted once, the counts are weighted so that each language and register has its share,
and byte-pair merges are learned from the weighted counts. With `held_out`, a report on the documents left out is
written beside the tokenizer; `training.bench.tokenizers` adds other texts and other tokenizers to it.
"""

if not __package__:  # run by path; same as `python -m training.tokenizer`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import base64
import json
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from .config import InputError, parse, program
from .tokenizer_report import compare, held_out_texts, write
from .words import Source, weigh

if TYPE_CHECKING:  # transformers takes seconds to import, and --help does not need it
    from modeling_pleias import PleiasTokenizer


@dataclass
class TokenizerConfig:
    """Settings of a vocabulary.

    Args:
        corpus: folder of Parquet files with Common Corpus columns.
        out: folder that the tokenizer is written to.
        vocab_size: entries altogether, the 68 special tokens included.
        language_weights: bytes of a language relative to the others, by its English name; 1 where not given.
        old_share: share of a language's bytes that is old prose (open type "Open Culture"); the rest is modern.
        code_share: share of all bytes that is code, markup, tables and laid-out text (language type "Code").
        noise_share: share of all bytes that is old prose made to look like old print and its machine readings.
        collection_caps: largest share that a collection may have of its language and register; 1 where not given.
        count_power: a document counts a piece that stands in it n times as n ** count_power.
        held_out: share of documents never trained on, by author or source file.
        seed: of what is held out, and of the noise.
        sample_bytes: bytes that the weighted counts stand for; what is rarer than once in them is not seen.
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


def shares(sizes: dict[Source, float], config: TokenizerConfig) -> dict[Source, float]:
    """Share of all bytes that each source gets; what an absent one would have had goes to the others. They sum to 1.

    Args:
        sizes: bytes of each source: collections share a language and register in proportion, up to their caps.
    """
    strata = defaultdict(dict)
    for source in sorted(sizes):
        strata[source.language, source.register][source] = sizes[source]
    prose = 1 - config.code_share - config.noise_share
    of_register = {
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
            share = of_register[register] * config.language_weights.get(language, 1.0)
            # A language with one register only, as Latin has no modern prose, keeps its weight.
            if register != "noise" and len({(language, "old"), (language, "modern")} & set(strata)) == 1:
                share = prose * config.language_weights.get(language, 1.0)
            share /= sum(config.language_weights.get(name, 1.0) for name in sorted(languages))
        whole = sum(members.values())
        capped = {
            source: min(size / whole, config.collection_caps.get(source.collection, 1.0))
            for source, size in members.items()
        }
        for source, part in capped.items():
            result[source] = share * part / sum(capped.values())
    total = sum(result.values())
    return {source: share / total for source, share in result.items()}


def mixed(weights: dict[Source, dict[str, float]], config: TokenizerConfig) -> dict[str, int]:
    """Counts of byte-level pieces in which every source has its share of `sample_bytes`."""
    table = {byte: ord(character) for byte, character in byte_spelling().items()}
    spelled = {}
    for source in sorted(weights):
        pieces = weights[source].items()
        spelled[source] = {piece.encode().decode("latin-1").translate(table): weight for piece, weight in pieces}
    sizes = {source: sum(len(piece) * weight for piece, weight in of.items()) for source, of in spelled.items()}
    total = Counter()
    for source, share in shares(sizes, config).items():
        factor = share * config.sample_bytes / sizes[source]
        for piece, weight in spelled[source].items():
            total[piece] += weight * factor
    return {piece: round(count) for piece, count in sorted(total.items()) if count >= 0.5}


def _lines(counts: dict[str, int]) -> Iterator[str]:
    """Each piece as often as it counts, separated by spaces, in strings of about a megabyte."""
    chunk, size = [], 0
    for piece, count in counts.items():
        chunk.append(f"{piece} " * count)
        size += len(chunk[-1])
        if size > 1 << 20:
            yield "".join(chunk)
            chunk, size = [], 0
    yield "".join(chunk)


def write_ranks(tokenizer: "PleiasTokenizer", path: Path) -> None:
    """The vocabulary in tiktoken's format: a line per entry, the bytes in base 64 and the rank, which is the id.

    Ranks start at 4, after `BASE_TOKENS`, and end before `DOCUMENT_TOKENS`. A `tiktoken.Encoding` made of these ranks,
    `PATTERN` and the special tokens gives equal ids.
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
        InputError: when the corpus cannot be read, or is too small for so many entries.
    """
    from modeling_pleias import PleiasTokenizer
    from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS

    counts = mixed(
        weigh(
            config.corpus,
            power=config.count_power,
            noise=config.noise_share > 0,
            held_out=config.held_out,
            seed=config.seed,
        ),
        config,
    )
    # The pieces are cut and spelled already: the trainer only has to split at the spaces between them.
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
            f"--vocab_size {config.vocab_size} is more than {config.corpus} yields ({len(tokens)} entries): "
            "lower it or give more text."
        )
    tokenizer = PleiasTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(pair) for pair in model["merges"]]
    )
    tokenizer.save_pretrained(config.out)
    write_ranks(tokenizer, Path(config.out) / "ranks.tiktoken")
    return tokenizer


def main() -> None:
    config = parse(TokenizerConfig, description="Train a byte-level BPE vocabulary on a corpus folder.")
    tokenizer = train(config)
    print(f"{len(tokenizer)} entries in {config.out}")
    if config.held_out:
        texts = held_out_texts(config.corpus, share=config.held_out, seed=config.seed)
        report = compare({"pleias": tokenizer.backend_tokenizer}, texts)
        write(config.out, report, shlex.join(["python", "-m", "training.tokenizer", *sys.argv[1:]]))
        print(f"report on the held-out documents in {config.out / 'REPORT.md'}")


if __name__ == "__main__":
    program(main)
