"""Train the vocabulary on a corpus, balanced by language and register, from weighted counts of its pieces."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

from modeling_pleias import PleiasTokenizer
from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS

from .config import InputError, parse, program
from .words import Stratum, count

BYTE_SPELLING = bytes_to_unicode()  # byte -> the printable character that stands for it in a byte-level vocabulary


@dataclass
class TokenizerConfig:
    """Settings of a vocabulary.

    Args:
        corpus: folder of Parquet files with Common Corpus columns.
        out: folder that the tokenizer is written to.
        vocab_size: entries altogether, the 68 special tokens included.
        language_weights: share of bytes of each language relative to the others, 1 where not given.
        old_share: share of a language's bytes that is old prose (open type "Open Culture"); the rest is modern.
        code_share: share of all bytes that is code, markup and tables (language type "Code").
        noise_share: share of all bytes that is prose made to look like old print and its OCR.
        held_out: share of documents never trained on, by author or source file.
        sample_bytes: how many bytes the weighted counts stand for; what is rarer than once in them is not seen.
        seed: of the noise.
    """

    corpus: Path
    out: Path
    vocab_size: int = 65_536
    language_weights: dict[str, float] = field(default_factory=dict)
    old_share: float = 0.5
    code_share: float = 0.10
    noise_share: float = 0.0
    held_out: float = 0.0
    sample_bytes: int = 40_000_000
    seed: int = 42


def shares(strata: set[Stratum], config: TokenizerConfig) -> dict[Stratum, float]:
    """Share of all bytes that each stratum gets; what an absent stratum would get goes to the others. They sum to 1."""
    weights = {}
    for language, kind in strata:
        weight = config.language_weights.get(language, 1.0)
        if kind == "code":
            continue
        if kind == "noise":
            weights[language, kind] = weight * config.noise_share
            continue
        both = {(language, "old"), (language, "modern")} <= strata
        part = (config.old_share if kind == "old" else 1 - config.old_share) if both else 1.0
        weights[language, kind] = weight * part * (1 - config.code_share - config.noise_share)
    code = [stratum for stratum in strata if stratum[1] == "code"]
    prose = 1 - config.code_share if code else 1.0
    total = sum(weights[stratum] for stratum in sorted(weights))
    result = {stratum: prose * weights[stratum] / total for stratum in weights}
    return result | {stratum: config.code_share / len(code) for stratum in code}


def weighted(strata: dict[Stratum, Counter], config: TokenizerConfig) -> Counter:
    """One count of byte-level pieces in which every stratum has its share of `sample_bytes`."""
    table = {byte: ord(character) for byte, character in BYTE_SPELLING.items()}
    total = Counter()
    for stratum, share in sorted(shares(set(strata), config).items()):
        spelled = {piece.encode().decode("latin-1").translate(table): n for piece, n in strata[stratum].items()}
        factor = share * config.sample_bytes / sum(len(piece) * n for piece, n in spelled.items())
        for piece, n in spelled.items():
            total[piece] += n * factor
    return Counter({piece: round(n) for piece, n in total.items() if n >= 0.5})


def _lines(counts: Counter) -> Iterator[str]:
    """Each piece as often as it counts, separated by spaces, in chunks of a size that trains fast."""
    chunk, size = [], 0
    for piece in sorted(counts):
        chunk.append(f"{piece} " * counts[piece])
        size += len(chunk[-1])
        if size > 1 << 20:
            yield "".join(chunk)
            chunk, size = [], 0
    yield "".join(chunk)


def train(config: TokenizerConfig) -> PleiasTokenizer:
    """Train a tokenizer on a corpus and write it to `config.out`; the same input gives the same files.

    Raises:
        InputError: when the corpus cannot be read, or is too small for so many entries.
    """
    counts = weighted(count(config.corpus, held_out=config.held_out, noise=config.noise_share > 0, seed=config.seed), config)
    # The pieces are cut and spelled already: the trainer only has to split at the spaces between them.
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(DOCUMENT_TOKENS),
        special_tokens=list(BASE_TOKENS),
        initial_alphabet=sorted(BYTE_SPELLING.values()),
        min_frequency=2,
    )
    backend.train_from_iterator(_lines(counts), trainer)
    entries = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    tokens = [token for token, _ in entries] + list(DOCUMENT_TOKENS)
    if len(tokens) < config.vocab_size:
        raise InputError(
            f"--vocab_size {config.vocab_size} is more than {config.corpus} yields ({len(tokens)} entries): "
            "lower it or give more text."
        )
    merges = json.loads(backend.to_str())["model"]["merges"]
    tokenizer = PleiasTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(pair) for pair in merges]
    )
    tokenizer.save_pretrained(config.out)
    return tokenizer


def main() -> None:
    config = parse(TokenizerConfig, description="Train a byte-level BPE vocabulary on a corpus folder.")
    tokenizer = train(config)
    print(f"{len(tokenizer)} entries in {config.out}")


if __name__ == "__main__":
    program(main)
