"""Initialise the token embeddings of a model from co-occurrence statistics of its training shards.

    python -m training.embeddings --config femto_embeddings --shards data/femto/base --out data/femto/start

writes a model folder for `init_from`. All weights are initialised randomly, except the embeddings: these are the
leading eigenvectors of the tokens' positive pointwise mutual information (PPMI) in a small window, as in Levy and
Goldberg 2014 ("Neural Word Embedding as Implicit Matrix Factorization"). The shards are counted in one
pass, so that a short run does not need to learn 65,536 rows from few tokens.
"""

if not __package__:  # run by path; same as `python -m training.embeddings`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling_pleias import PleiasForCausalLM

from .common.config import InputError, parse, run_main
from .common.files import UNTRAINED_MARKER, atomic_files, lock_folder, write_json
from .data.loader import ShardDataset
from .data.shard_files import ShardReader, tokenizer_facts
from .pretraining.recipe import PretrainConfig

SMOOTHING = 0.875  # exponent of the counts in the chance expectation: pairs of rare tokens get less weight
RARE = 3  # a token with fewer occurrences has no reliable statistics, and keeps its random embedding


@dataclass
class EmbeddingsConfig:
    """Inputs, output and settings of the initial embeddings.

    Args:
        shards: Folder of token shards. Only the training split is counted.
        tokenizer: Folder of the tokenizer of the shards. It is saved with the model.
        out: Output folder of the model.
        model: Fields of PleiasConfig that differ from nano 1.2b, as in training.pretrain.
        window_size: Maximum distance of two co-occurring tokens; a pair at distance d counts 1/d.
        block_tokens: Tokens counted at once. Needs about 30 bytes of memory per token, and 20 per distinct pair.
        scale: Mean norm of an embedding, relative to random initialisation.
        seed: Seed of the random weights and of the eigenvector solver.
    """

    shards: Path
    tokenizer: Path
    out: Path
    model: dict[str, int | float | bool | str] = field(default_factory=dict)
    window_size: int = 3
    block_tokens: int = 100_000_000
    scale: float = 2.0
    seed: int = 42


def cooccurrence_counts(blocks: Iterable[np.ndarray], *, vocab_size: int, window_size: int) -> csr_array:
    """Count co-occurrences within `window_size` tokens, a pair at distance d as 1/d; (V, V), symmetric.

    Args:
        blocks: Arrays of token ids; pairs across two blocks are not counted.
        vocab_size: V, at most 65,536, because a pair of ids is one 32-bit number.
        window_size: Maximum distance of a pair.
    """
    assert vocab_size <= 1 << 16
    counts = csr_array((vocab_size, vocab_size), dtype=np.float32)
    for block in blocks:
        for distance in range(1, min(window_size, len(block) - 1) + 1):
            pairs, occurrences = np.unique(
                block[:-distance].astype(np.uint32) << 16 | block[distance:].astype(np.uint32), return_counts=True
            )
            weights = occurrences.astype(np.float32) / distance
            ids = (pairs >> 16).astype(np.int32), (pairs & 0xFFFF).astype(np.int32)
            counts = counts + csr_array((weights, ids), shape=counts.shape)
    return (counts + counts.T).tocsr()


def ppmi(counts: csr_array) -> csr_array:
    """Return the positive pointwise mutual information of co-occurrence counts; (V, V), symmetric."""
    counts = counts.tocoo()
    chance = np.asarray(counts.sum(axis=1)).ravel() ** SMOOTHING
    chance = np.log(np.maximum(chance / chance.sum(), np.finfo(np.float32).tiny))
    row, column = counts.coords
    information = np.log(counts.data / counts.data.sum(dtype=np.float64)) - chance[row] - chance[column]
    positive = information > 0
    return csr_array((information[positive].astype(np.float32), (row[positive], column[positive])), shape=counts.shape)


def leading_eigenvectors(information: csr_array, *, size: int, seed: int) -> np.ndarray:
    """Return eigenvectors times fourth roots of their eigenvalues, (V, D); rows have norm 1, or 0 without counts."""
    start = np.random.default_rng(seed).standard_normal(information.shape[0]).astype(np.float32)
    values, vectors = eigsh(information, k=size, which="LM", tol=0.05, v0=start)
    vectors = vectors * np.abs(values) ** 0.25
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def stream(shards: list[ShardReader], block: int) -> Iterator[np.ndarray]:
    """Yield the tokens of some shards in arrays of at most `block` tokens, with a progress bar."""
    total = sum(shard.record["tokens"] for shard in shards)
    with tqdm(total=total, unit="token", unit_scale=True, desc="co-occurrences") as bar:
        for shard in shards:
            for first in range(0, len(shard.tokens), block):
                yield np.asarray(shard.tokens[first : first + block])
                bar.update(len(shard.tokens[first : first + block]))


def build_embeddings(config: EmbeddingsConfig) -> None:
    """Count co-occurrences, factorise them, and write the model.

    Raises:
        InputError: If shards, tokenizer and model do not belong together.
    """
    model_config = PretrainConfig(name=config.out.name, stages=[], model=config.model).model_config()
    vocab_size, hidden_size = model_config.vocab_size, model_config.hidden_size
    shards = ShardDataset(config.shards)
    if tokenizer_facts(config.tokenizer)["sha256"] != shards.manifest["tokenizer"]["sha256"]:
        raise InputError(
            f"{config.shards} was made with another tokenizer than {config.tokenizer}: pass that tokenizer."
        )
    shards.train(sequence_length=1, vocab_size=vocab_size)  # compares their lengths with the manifest
    blocks = stream(shards.readers("train"), config.block_tokens)
    counts = cooccurrence_counts(blocks, vocab_size=vocab_size, window_size=config.window_size)
    print(f"{counts.nnz:,} pairs; computing the {hidden_size} leading eigenvectors of their mutual information")
    vectors = leading_eigenvectors(ppmi(counts), size=hidden_size, seed=config.seed)

    set_seed(config.seed)
    model = PleiasForCausalLM(model_config)
    weights = model.model.embed_tokens.weight.data.numpy()
    weight_of_token = np.asarray(counts.sum(axis=1)).ravel()
    norm = np.linalg.norm(weights, axis=1).mean()
    rare = (weight_of_token < 2 * RARE * sum(1 / d for d in range(1, config.window_size + 1))) | ~vectors.any(axis=1)
    vectors[rare] = weights[rare] / norm
    vectors -= weight_of_token @ vectors / weight_of_token.sum()  # the common component carries no information
    weights[:] = vectors * (config.scale * norm / np.linalg.norm(vectors, axis=1).mean())
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    with atomic_files(config.out, last="config.json") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / UNTRAINED_MARKER, {"shards": shards.manifest["fingerprint"]})
    print(f"{config.out}: {int((~rare).sum()):,} embeddings from the text, {int(rare.sum()):,} random")


def main() -> None:
    """Run `python -m training.embeddings`."""
    config = parse(EmbeddingsConfig, description=__doc__.split("\n\n")[0])
    with lock_folder(config.out):
        build_embeddings(config)


if __name__ == "__main__":
    run_main(main)
