"""Build the corpus, tokenizer and token shards that a pretraining run needs and does not find."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import corpus, shards, tokenizer
from ..common.config import parse
from ..common.files import read_json, sha256, write_json
from ..data.corpus_builder import CorpusConfig
from ..data.documents import corpus_files
from ..data.loader import ShardDataset


@dataclass
class DataConfig:
    """Location of the text, tokenizer and shards of a run. Missing parts are built.

    Args:
        folder: Folder for corpus/, curated/, tokenizer/ and shards/.
        curation: Config of training.curation that filters the corpus: light, enhanced or a path. Requires the extra
            [curation]. By default the corpus is used unchanged.
        tokenizer: Folder of an existing tokenizer. By default one is trained on the corpus, in folder/tokenizer.
        validation_share: Fraction of the documents held out for validation.
        validation_by: Column whose hash selects held-out documents: identifier, or creator to hold out whole authors.
        verify: Compare the sha256 of every shard with the manifest at the start. Lengths are always compared.
    """

    folder: Path = Path("data/demo")
    curation: str | None = None
    tokenizer: Path | None = None
    validation_share: float = 0.01
    validation_by: Literal["identifier", "creator"] = "identifier"
    verify: bool = True

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer in use."""
        return self.tokenizer or self.folder / "tokenizer"


def prepare(data: DataConfig, source: CorpusConfig, *, vocab_size: int) -> ShardDataset:
    """Build the corpus, the tokenizer and the shards of a run, in that order, and reuse those that are complete.

    A curated corpus replaces the corpus; the manifest of the shards records what curation did.

    Raises:
        InputError: If one of the parts cannot be built.
    """
    folder = data.folder / "corpus"
    corpus.build_corpus(source, folder)
    if data.curation:
        folder = curated(folder, data.folder / "curated", data.curation)
    if data.tokenizer is None:
        stamp = data.folder / "tokenizer" / "trained_on.json"
        origin = {"vocab_size": vocab_size, "files": {path.name: sha256(path) for path in corpus_files(folder)}}
        if not stamp.is_file() or read_json(stamp) != origin:
            tokenizer.train(tokenizer.TokenizerConfig(corpus=folder, out=stamp.parent, vocab_size=vocab_size))
            write_json(stamp, origin)
    shards.build_shards(
        shards.ShardsConfig(
            corpus=folder,
            tokenizer=data.tokenizer_folder,
            out=data.folder / "shards",
            validation_share=data.validation_share,
            validation_by=data.validation_by,
        )
    )
    return ShardDataset(data.folder / "shards")


def curated(folder: Path, out: Path, name: str) -> Path:
    """Curate a corpus with a config of training.curation; return the folder of the result."""
    from ..curation.pipeline import curate  # lazy import: requires the extra [curation]
    from ..curation.recipe import CurationConfig

    arguments = ["--config", name, "--corpus", str(folder), "--out", str(out)]
    curate(parse(CurationConfig, arguments, description="Curate a corpus."))
    return out
