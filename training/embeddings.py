"""A model whose token embeddings know which tokens stand near each other before the first step of pretraining.

    python -m training.embeddings --config femto_embeddings --shards data/femto/base --out data/femto/start

writes the folder of a model for `init_from`: everything is drawn as always, except the embeddings. Those are the
leading eigenvectors of the tokens' positive pointwise mutual information within a few places, as in Levy and Goldberg
2014 ("Neural Word Embedding as Implicit Matrix Factorization"). Counting goes over all shards once; what the few
tokens of a short run would have to teach 65,536 rows one by one is there at its start.
"""

if not __package__:  # run by path; same as `python -m training.embeddings`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling_pleias import PleiasForCausalLM

from .config import InputError, parse, program
from .data.shard_files import ShardReader, tokenizer_facts
from .files import START, write_json
from .loader import Shards
from .recipe import PretrainConfig

SMOOTHING = 0.875  # power of the counts in what is expected by chance: pairs of rare tokens weigh less
RARE = 3  # a token seen less often says nothing about its place, and keeps its drawn embedding


@dataclass
class EmbeddingsConfig:
    """What `training.embeddings` reads and writes.

    Args:
        shards: folder of the token shards that are counted, its training split.
        tokenizer: folder of the tokenizer they were made with; it is copied to the model.
        out: folder of the model.
        model: fields of PleiasConfig that differ from nano 1.2b, as in training.pretrain.
        reach: places between two tokens that stand near each other; a pair d places apart counts 1/d.
        block_tokens: counted at once; memory is about 30 bytes for each, and 20 for each pair that was seen.
        scale: mean length of an embedding, in lengths of a drawn one.
        seed: of all that is drawn, and of the eigenvectors' first guess.
    """

    shards: Path
    tokenizer: Path
    out: Path
    model: dict[str, int | float | bool | str] = field(default_factory=dict)
    reach: int = 3
    block_tokens: int = 100_000_000
    scale: float = 2.0
    seed: int = 42


def neighbours(blocks, *, vocab_size: int, reach: int) -> csr_array:
    """(V, V) symmetric: how often two tokens stand within `reach` places of each other, a pair d apart counted 1/d.

    Args:
        blocks: arrays of token ids; pairs across the end of one are not counted.
        vocab_size: V, at most 65,536: a pair of ids is one 32-bit number.
    """
    assert vocab_size <= 1 << 16
    counts = csr_array((vocab_size, vocab_size), dtype=np.float32)
    for block in blocks:
        for distance in range(1, min(reach, len(block) - 1) + 1):
            pairs, seen = np.unique(
                block[:-distance].astype(np.uint32) << 16 | block[distance:].astype(np.uint32), return_counts=True
            )
            weights = seen.astype(np.float32) / distance
            places = (pairs >> 16).astype(np.int32), (pairs & 0xFFFF).astype(np.int32)
            counts = counts + csr_array((weights, places), shape=counts.shape)
    return (counts + counts.T).tocsr()


def mutual_information(counts: csr_array) -> csr_array:
    """(V, V) symmetric: log of how much more often two tokens meet than by chance, where that is above 0."""
    counts = counts.tocoo()
    by_chance = np.asarray(counts.sum(axis=1)).ravel() ** SMOOTHING
    by_chance = np.log(np.maximum(by_chance / by_chance.sum(), np.finfo(np.float32).tiny))
    row, column = counts.coords
    information = np.log(counts.data / counts.data.sum(dtype=np.float64)) - by_chance[row] - by_chance[column]
    more = information > 0
    return csr_array((information[more].astype(np.float32), (row[more], column[more])), shape=counts.shape)


def directions(information: csr_array, *, size: int, seed: int) -> np.ndarray:
    """(V, D) eigenvectors times the fourth roots of their values; rows of length 1, or 0 for a token that met none."""
    start = np.random.default_rng(seed).standard_normal(information.shape[0]).astype(np.float32)
    values, vectors = eigsh(information, k=size, which="LM", tol=0.05, v0=start)
    vectors = vectors * np.abs(values) ** 0.25
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def stream(shards: list[ShardReader], block: int):
    """The tokens of some shards in arrays of at most `block`, with a bar."""
    total = sum(shard.record["tokens"] for shard in shards)
    with tqdm(total=total, unit="token", unit_scale=True, desc="neighbours") as bar:
        for shard in shards:
            for first in range(0, len(shard.tokens), block):
                yield np.asarray(shard.tokens[first : first + block])
                bar.update(len(shard.tokens[first : first + block]))


def build(config: EmbeddingsConfig) -> None:
    """Count, factor, and write the model.

    Raises:
        InputError: when shards, tokenizer and shape do not belong together.
    """
    shape = PretrainConfig(name=config.out.name, stages=[], model=config.model).model_config()
    shards = Shards(config.shards)
    if tokenizer_facts(config.tokenizer)["sha256"] != shards.manifest["tokenizer"]["sha256"]:
        raise InputError(f"{config.shards} was made with another tokenizer than {config.tokenizer}; name that one.")
    shards.train(sequence_length=1, vocab_size=shape.vocab_size)  # their lengths are the manifest's
    blocks = stream(shards.readers("train"), config.block_tokens)
    counts = neighbours(blocks, vocab_size=shape.vocab_size, reach=config.reach)
    print(f"{counts.nnz:,} pairs; the {shape.hidden_size} leading eigenvectors of their mutual information")
    found = directions(mutual_information(counts), size=shape.hidden_size, seed=config.seed)

    set_seed(config.seed)
    model = PleiasForCausalLM(shape)
    drawn = model.model.embed_tokens.weight.data.numpy()
    seen = np.asarray(counts.sum(axis=1)).ravel()
    length = np.linalg.norm(drawn, axis=1).mean()
    rare = (seen < 2 * RARE * sum(1 / d for d in range(1, config.reach + 1))) | ~found.any(axis=1)
    found[rare] = drawn[rare] / length
    found -= seen @ found / seen.sum()  # what all tokens share says nothing
    drawn[:] = found * (config.scale * length / np.linalg.norm(found, axis=1).mean())
    model.save_pretrained(config.out)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    tokenizer.save_pretrained(config.out)
    write_json(config.out / START, {"shards": shards.manifest["fingerprint"]})
    print(f"{config.out}: {shape.vocab_size - int(rare.sum()):,} embeddings from the text, {int(rare.sum()):,} drawn")


def main() -> None:
    """Command line."""
    build(parse(EmbeddingsConfig, description=__doc__.split("\n\n")[0]))


if __name__ == "__main__":
    program(main)
