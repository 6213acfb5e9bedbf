"""Common test setup: no Hub, one hypothesis profile, the marks of transformers' test mixins, and small fixtures."""

import json
import os
import random
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# Set before transformers is imported: a test that would contact the Hub fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"
# transformers skips its slow tests by default; here -m selects them, like this project's.
os.environ["RUN_SLOW"] = "1"
# The models are tiny: threads would only wait for each other and for those of other test workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every run uses the same examples, stores none, and passes on slow machines.
settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

TRANSFORMERS_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in TRANSFORMERS_MARKS:
        config.addinivalue_line("markers", f"{mark}: set by transformers' test mixins")


def pytest_terminal_summary(terminalreporter):
    """Print the number of skipped tests per reason; the many reasons of transformers' tests count as one."""
    reasons = Counter(
        "transformers' tests of a feature or device that is missing here; pytest -rs lists their reasons"
        if "test_transformers_common" in report.nodeid
        else report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.section("skipped tests")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4}  {reason}")


@pytest.fixture(autouse=True, scope="module")
def _reset_accelerate():
    """Reset Accelerate's state, which is global to the process and would affect the trainers of the next test file."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture
def without_bf16():
    """A CPU without bfloat16 instructions, on which a bfloat16 matrix product fails the test."""
    from no_bf16 import cpu_without_bf16

    with cpu_without_bf16():
        yield


# Fixtures of several test files: a tiny corpus, a tokenizer trained on it, its shards ----------------

SENTENCES = {
    "English": "the old house stood|by the river|and nobody came|until the spring|when bells rang|over the hills",
    "French": "la vieille maison|au bord de l'eau|où personne n'allait|jusqu'au printemps|l'été revint|les collines",
}


@pytest.fixture(scope="session")
def write_corpus():
    """Function (path, documents) that writes Parquet with Common Corpus columns; missing values get defaults."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from training.data.documents import SCHEMA

    def write(path, documents):
        empty = {name: 0 if name.endswith("count") else "" for name in SCHEMA.names}
        defaults = {"language": "English", "license": "Public Domain", "collection": "OpenCulture", "text": "a text"}
        rows = [{**empty, **defaults, "identifier": f"{path.stem}/{i}", **row} for i, row in enumerate(documents)]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)

    return write


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory, write_corpus):
    """Folder of two files: 150 English and 100 French documents of 12 authors, two licences, two collections."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for file, language, count in (("en", "English", 150), ("fr", "French", 100)):
        parts = SENTENCES[language].split("|")
        documents = [
            {
                "text": " ".join(draw.choices(parts, k=draw.randint(1, 40))) + draw.choice(["", ".", "\n", " \u0153"]),
                "language": language,
                "license": draw.choice(["Public Domain", "CC-BY-4.0"]),
                "collection": draw.choice(["OpenCulture", "OpenScience"]),
                "creator": f"author {draw.randint(1, 12)}",
            }
            for _ in range(count)
        ]
        write_corpus(folder / f"{file}.parquet", documents)
    (folder / "sources.json").write_text('{"sources": [{"name": "made up", "license": "CC0-1.0"}]}')
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """Folder of a PleiasTokenizer with a vocabulary of 400."""
    from modeling_pleias import PleiasTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    PleiasTokenizer().train_new_from_iterator(list(SENTENCES.values()), 400).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory, tiny_corpus, tiny_tokenizer):
    """Folder of the shards of both, a tenth held out; tests must not change it."""
    from training.shards import ShardsConfig, build_shards

    folder = tmp_path_factory.mktemp("shards")
    build_shards(
        ShardsConfig(corpus=tiny_corpus, tokenizer=tiny_tokenizer, out=folder, validation_share=0.1, workers=2)
    )
    return folder


@pytest.fixture(scope="session")
def base_model(tiny_tokenizer, tmp_path_factory):
    """Folder of a tiny model with random weights and its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    from modeling_pleias import PleiasConfig, PleiasForCausalLM

    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = PleiasConfig(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=128, **shape)
    PleiasForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """File of sixty conversations of random words, where an answer is its question backwards."""
    path, draw = tmp_path_factory.mktemp("data") / "chat.jsonl", random.Random(0)
    known, lines = SENTENCES["English"].replace("|", " ").split(), []
    for _ in range(60):
        words = draw.sample(known, draw.randint(2, 9))
        turns = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": " ".join(words[::-1])}]
        row = {"messages": turns, "language": "en", "license": "CC0-1.0", "source": "made up"}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path
