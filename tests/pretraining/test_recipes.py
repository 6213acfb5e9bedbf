"""The packaged recipes equal the published runs in every value; a dry run switches stages at the right steps."""

from dataclasses import replace

import pytest
import torch
from training_runs import handlers_kept

from modeling_pleias import PleiasConfig
from training.common.config import CONFIGS, InputError, parse
from training.common.files import read_json
from training.pretrain import pretrain
from training.pretraining.prepare import DataConfig
from training.pretraining.recipe import PretrainConfig, Stage
from training.pretraining.shrink import shrink_config
from training.run.metrics import count_parameters, read_metrics

# Values in the original's settings files (Pleias/nanotron-pleias, configs/pleias) and config.json, and derived ones.
RECIPES = {
    "pico_350m": {
        "size": PleiasConfig.pico_350m,
        "parameters": 353_424_384,
        "shape": (1024, 2560, 26, 16, 8, 64),
        "stages": [(1, 518_000, 1024, "data/annealing/shards")],
        "tokens": 1_086_324_736_000,
        "sequence_length": 2048,
        "rates": (3e-3, 6e-6, 30_000, 468_000),
        "checkpoint": 5000,
    },
    "nano_1.2b": {
        "size": PleiasConfig.nano_1_2b,
        "parameters": 1_195_468_800,
        "shape": (2048, 6144, 22, 32, 8, 64),
        "stages": [
            (1, 323_500, 3072, "data/base/shards"),
            (323_501, 172_000, 3072, "data/annealing/shards"),
            (495_501, 172_000, 3072, "data/annealing/shards"),
            (667_501, 4_000, 3072, "data/annealing/shards"),
        ],
        "tokens": 4_224_712_704_000,
        "sequence_length": 2048,
        "rates": (1e-3, 1e-5, 60_000, 611_500),
        "checkpoint": 3000,
    },
    "base_3b": {
        "size": PleiasConfig.base_3b,
        "parameters": 3_211_926_528,
        "shape": (3072, 12_288, 22, 32, 8, 96),
        "stages": [
            (1, 165_000, 3072, "data/base/shards"),
            (165_001, 130_000, 3072, "data/base/shards"),
            (295_001, 74_000, 3072, "data/annealing/shards"),
        ],
        "tokens": 4_643_094_528_000,
        "sequence_length": 4096,
        "rates": (5e-4, 5e-6, 30_000, 339_000),
        "checkpoint": 1000,
    },
}
each = pytest.mark.parametrize("name", RECIPES)


def recipe(name: str) -> PretrainConfig:
    return parse(PretrainConfig, ["--config", name], description="")


def first_steps(config: PretrainConfig) -> list[int]:
    return [1 + sum(stage.steps for stage in config.stages[:i]) for i in range(len(config.stages))]


@each
def test_the_model_is_the_published_one(name):
    config, published = recipe(name).model_config(), RECIPES[name]
    assert config.to_dict() == published["size"]().to_dict()
    assert count_parameters(config) == published["parameters"]
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers)
    assert (*shape, config.num_attention_heads, config.num_key_value_heads, config.head_dim) == published["shape"]
    assert config.pretraining_init_std == 0.025


@each
def test_stages_begin_at_the_published_steps_with_the_published_batches(name):
    config, published = recipe(name), RECIPES[name]
    stages = zip(first_steps(config), config.stages, strict=True)
    assert [(first, s.steps, s.sequences, str(s.shards)) for first, s in stages] == published["stages"]
    assert config.sequence_length == published["sequence_length"]
    assert sum(s.steps * s.sequences for s in config.stages) * config.sequence_length == published["tokens"]


@each
def test_the_optimizer_is_the_published_one(name):
    config, published = recipe(name), RECIPES[name]
    o = config.optimizer
    assert (o.learning_rate, o.final_learning_rate, o.warmup_steps, o.decay_steps) == published["rates"]
    assert (o.beta1, o.beta2, o.epsilon, o.weight_decay, o.clip) == (0.9, 0.95, 1e-8, 0.01, 1.0)
    assert (config.seed, config.micro_batch, config.precision) == (42, 8, "bf16")
    assert config.every.checkpoint == published["checkpoint"]


@each
def test_the_learning_rate_is_at_its_peak_after_the_warm_up_and_at_its_end_after_the_cosine(name):
    config, (peak, end, warmup, decay) = recipe(name), RECIPES[name]["rates"]
    assert config.learning_rate(1) == pytest.approx(peak / warmup)
    assert config.learning_rate(warmup) == peak
    assert config.learning_rate(warmup + decay // 2) == pytest.approx((peak + end) / 2, rel=1e-5)
    assert config.learning_rate(warmup + decay) == pytest.approx(end)
    assert config.learning_rate(config.steps) == pytest.approx(end)
    assert config.steps == {"pico_350m": 518_000}.get(name, warmup + decay)


def test_a_stage_may_have_its_own_learning_rate():
    base = recipe("nano_1.2b")
    instruct = [Stage(f"instruct {i}", steps=73_000, sequences=256, learning_rate=2e-5) for i in (1, 2, 3)]
    config = replace(base, stages=[*base.stages, *instruct])
    assert config.steps == 890_500 and first_steps(config)[4:] == [671_501, 744_501, 817_501]
    for step in (1, 60_000, 400_000, 671_500):
        assert config.learning_rate(step) == base.learning_rate(step)
    assert {config.learning_rate(step) for step in (671_501, 744_500, 890_500)} == {2e-5}


# Dry runs ---------------------------------------------------------------------------------------------------------


def test_500_divides_every_step_of_the_nano_run_without_a_remainder():
    config = shrink_config(recipe("nano_1.2b"), 500, text=recipe("demo"))
    assert [(stage.name, stage.steps, stage.sequences, stage.shards) for stage in config.stages] == [
        ("base", 647, 6, None),
        ("annealing pass 1", 344, 6, None),
        ("annealing pass 2", 344, 6, None),
        ("annealing last 4,000 steps", 8, 6, None),
    ]
    assert first_steps(config) == [1, 648, 992, 1336] and config.steps == 1343
    assert (config.optimizer.warmup_steps, config.optimizer.decay_steps) == (120, 1223)
    assert (config.every.validate, config.every.checkpoint) == (6, 6)
    assert config.optimizer.learning_rate == 1e-3 and config.name == "nano_1.2b-shrunk-500"
    assert config.data == recipe("demo").data and config.shrink == 1
    with_samples = replace(recipe("nano_1.2b"), every=replace(recipe("nano_1.2b").every, samples=1000))
    assert shrink_config(with_samples, 500, text=recipe("demo")).every.samples == 2 and config.every.samples is None


@each
@pytest.mark.parametrize("factor", [2, 3, 7, 500, 10**9])
@pytest.mark.parametrize("processes", [1, 3, 4])
def test_a_shrunk_recipe_is_a_recipe(name, factor, processes):
    config, demo = recipe(name), recipe("demo")
    small = shrink_config(config, factor, text=demo, processes=processes)
    assert [stage.name for stage in small.stages] == [stage.name for stage in config.stages]
    assert all(stage.steps >= 1 and stage.sequences % processes == 0 and stage.sequences for stage in small.stages)
    shape, original = small.model_config(), config.model_config()
    assert shape.vocab_size == demo.model_config().vocab_size
    assert shape.hidden_size == shape.num_attention_heads * shape.head_dim
    ratio = original.num_attention_heads // original.num_key_value_heads
    assert shape.num_attention_heads == ratio * shape.num_key_value_heads
    assert count_parameters(shape) < count_parameters(original)
    assert shrink_config(small, 1, text=demo, processes=processes).stages == small.stages


@pytest.mark.parametrize("factor", [0, -5])
def test_a_factor_below_1_is_rejected(factor):
    with pytest.raises(InputError, match=f"--shrink must be at least 1, got {factor}"):
        shrink_config(recipe("demo"), factor, text=recipe("demo"))


def test_a_dry_run_switches_at_every_stage_and_the_metrics_show_it(tmp_path, tiny_corpus, tiny_tokenizer, restore):
    demo = recipe("demo")
    text = replace(
        demo,
        data=DataConfig(folder=tmp_path / "data", tokenizer=tiny_tokenizer, validation_share=0.1),
        corpus=replace(demo.corpus, source="parquet", path=tiny_corpus, languages=["en", "fr"]),
        model=demo.model | {"vocab_size": 400},
    )
    config = replace(shrink_config(recipe("nano_1.2b"), 20_000, text=text), out=tmp_path / "run")
    pretrain(replace(config, every=replace(config.every, validate=100, checkpoint=100), precision="fp32"))
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    stages = [("base", 16), ("annealing pass 1", 9), ("annealing pass 2", 9), ("annealing last 4,000 steps", 1)]
    assert [stage.steps for stage in config.stages] == [steps for _, steps in stages]
    expected, first = [], 1
    for name, steps in stages:
        expected += [(step, name, first) for step in range(first, first + steps)]
        first += steps
    assert [(record["step"], record["stage"], record["stage_first_step"]) for record in records] == expected
    assert [record["learning_rate"] for record in records] == [config.learning_rate(step) for step, _, _ in expected]


PACKAGED = [path.stem for path in CONFIGS.rglob("*.yaml") if "\nstages:" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_pretraining_config_takes_no_bf16_product_on_a_cpu_without_bf16(
    name, tmp_path, tiny_shards, tiny_tokenizer, base_model, restore, without_bf16
):
    text = replace(recipe("demo"), data=DataConfig(tokenizer=tiny_tokenizer, verify=False))
    text = replace(text, model=text.model | {"vocab_size": 400})
    config = recipe(name)
    if config.init_from is not None:  # a run that is not in the checkout
        config = replace(config, init_from=base_model)
    config = shrink_config(config, 10**9, text=text)  # one step per stage of the smallest model
    stages = [replace(stage, shards=tiny_shards, candidates=stage.candidates and 64) for stage in config.stages[:1]]
    corpus = replace(config.corpus, languages=["en"])
    pretrain(replace(config, stages=stages, corpus=corpus, out=tmp_path / "run"))
    session = read_json(tmp_path / "run" / "run.json")["sessions"][0]
    assert session["dtype"] == "torch.float32" and session["steps"] == 1
    assert PleiasConfig.from_pretrained(tmp_path / "run" / "model").dtype == torch.bfloat16  # as stored


@pytest.fixture
def restore():
    with handlers_kept():
        yield
