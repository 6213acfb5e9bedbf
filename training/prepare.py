"""Corpus -> curation -> vocabulary -> token shards: whatever of it a run needs and does not find."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import corpus, shards, tokenizer
from .config import parse
from .corpus import CorpusConfig
from .data.documents import corpus_files
from .files import read_json, sha256, write_json
from .loader import Shards


@dataclass
class DataConfig:
    """Where a run's text, vocabulary and shards lie; what is missing is made.

    Args:
        folder: holds corpus/, curated/, tokenizer/ and shards/.
        curation: config of training.curation that the corpus goes through: light, enhanced or a path; it needs the
            extra [curation]. The corpus is taken as it is when not given.
        tokenizer: folder of an existing tokenizer; trained on the corpus into folder/tokenizer when not given.
        validation_share: share of the documents held out.
        validation_by: the column whose hash chooses them: identifier, or creator to hold out whole authors.
        verify: compare every shard with its sha256 at start; lengths are always compared.
    """

    folder: Path = Path("data/demo")
    curation: str | None = None
    tokenizer: Path | None = None
    validation_share: float = 0.01
    validation_by: Literal["identifier", "creator"] = "identifier"
    verify: bool = True

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer in use."""
        return self.tokenizer or self.folder / "tokenizer"


def prepare(data: DataConfig, source: CorpusConfig, *, vocab_size: int) -> Shards:
    """Make the corpus, the tokenizer and the shards of a run, in that order; each is reused where it is whole.

    A curated corpus takes the place of the corpus; what curation did is in the manifest of the shards.

    Raises:
        InputError: from the step that could not be done.
    """
    folder = data.folder / "corpus"
    corpus.build(source, folder)
    if data.curation:
        folder = curated(folder, data.folder / "curated", data.curation)
    if data.tokenizer is None:
        stamp = data.folder / "tokenizer" / "trained_on.json"
        origin = {"vocab_size": vocab_size, "files": {path.name: sha256(path) for path in corpus_files(folder)}}
        if not stamp.is_file() or read_json(stamp) != origin:
            tokenizer.train(tokenizer.TokenizerConfig(corpus=folder, out=stamp.parent, vocab_size=vocab_size))
            write_json(stamp, origin)
    shards.build(
        shards.ShardsConfig(
            corpus=folder,
            tokenizer=data.tokenizer_folder,
            out=data.folder / "shards",
            validation_share=data.validation_share,
            validation_by=data.validation_by,
        )
    )
    return Shards(data.folder / "shards")


def curated(folder: Path, out: Path, name: str) -> Path:
    """Curate a corpus with a config of training.curation; returns the folder of the result."""
    from .curation.pipeline import CurationConfig, curate  # needs an extra of its own, where it is asked for

    arguments = ["--config", name, "--corpus", str(folder), "--out", str(out)]
    curate(parse(CurationConfig, arguments, description="Curate a corpus."))
    return out
