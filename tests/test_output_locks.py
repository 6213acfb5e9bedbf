"""Every program that writes a folder refuses one that another program writes, and reuses a complete one."""

import pytest

from training import mixture, shards, tokenizer
from training.common.config import InputError
from training.common.files import lock_folder
from training.curation.pipeline import curate
from training.curation.recipe import CurationConfig
from training.data.corpus_builder import CorpusConfig, build_corpus
from training.tracing import trace_index


@pytest.fixture
def programs(tiny_corpus, tiny_tokenizer, tiny_shards):
    """Function (folder) of each program that writes the folder."""
    corpus = CorpusConfig(source="parquet", path=tiny_corpus, languages=["en"])
    light = {"corpus": tiny_corpus, "ocr_threshold": 0, "workers": 1}
    return {
        "corpus": lambda out: build_corpus(corpus, out),
        "mixture": lambda out: mixture.write_mixtures(mixture.MixtureConfig(corpus=tiny_corpus, out=out)),
        "shards": lambda out: shards.build_shards(
            shards.ShardsConfig(corpus=tiny_corpus, tokenizer=tiny_tokenizer, out=out, validation_share=0.1, workers=1)
        ),
        "curation": lambda out: curate(CurationConfig(out=out, **light)),
        "tokenizer": lambda out: tokenizer.train(
            tokenizer.TokenizerConfig(corpus=tiny_corpus, out=out, vocab_size=340)
        ),
        "trace": lambda out: trace_index.build_index([tiny_shards], tokenizer=tiny_tokenizer, out=out),
    }


@pytest.mark.parametrize("name", ["corpus", "mixture", "shards", "curation", "tokenizer", "trace"])
def test_a_folder_that_another_program_writes_is_refused_unchanged(programs, tmp_path, name):
    out = tmp_path / "out"
    with lock_folder(out):
        with pytest.raises(InputError, match="Another run is writing to .*out"):
            programs[name](out)
        assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["corpus", "mixture", "shards"])
def test_a_complete_folder_is_reused_by_many_programs_at_once(programs, tmp_path, name):
    content = programs[name](tmp_path)
    with lock_folder(tmp_path):
        assert programs[name](tmp_path) == content
