"""A nanotron settings file converts to a pretraining config key by key, and its checkpoints to the same model."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from programs import run_program
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.common.config import InputError, parse
from training.nanotron import KEYS, NanotronConfig, convert, convert_settings, flatten
from training.nanotron_checkpoint import ConversionConfig, slices
from training.nanotron_checkpoint import convert as convert_checkpoint
from training.pretraining.recipe import PretrainConfig

ROOT = Path(__file__).parents[2]


def stage(name: str, start: int, corpus: str) -> dict:
    dataset = {"tracto_dataset": "yt_table", "yt_dataset_path": corpus, "dataset_batch_size": 4}
    return {"name": name, "start_training_step": start, "data": {"dataset": dataset}}


# The published settings of the 1.2b, key for key.
NANO = {
    "checkpoints": {"checkpoint_interval": 3000, "checkpoints_path": "c", "save_initial_state": False},
    "tracto_checkpoints": {"checkpoints_medium": "nvme", "use_async_saver": True},
    "data_stages": [
        stage("Base Corpus", 1, "base_corpus"),
        stage("Annealing Corpus Epoch 1", 323_501, "annealing_corpus"),
        stage("Annealing Corpus Epoch 2", 495_501, "annealing_corpus"),
        stage("Annealing Corpus Epoch 3 (last 4k steps)", 667_501, "annealing_corpus"),
        stage("Instruct+RAG Corpus Epoch 1", 671_501, "instruct_rag_corpus"),
        stage("Instruct+RAG Corpus Epoch 2", 744_501, "instruct_rag_corpus"),
        stage("Instruct+RAG Corpus Epoch 3", 817_501, "instruct_rag_corpus"),
    ],
    "general": {"benchmark_csv_path": None, "ignore_sanity_checks": True, "project": "pleias", "run": "p_%date_%jobid"}
    | {"seed": 42, "step": None, "consumed_train_samples": None},
    "lighteval": None,
    "logging": {"iteration_step_info_interval": 1, "log_level": "info", "log_level_replica": "info"},
    "model": {
        "ddp_bucket_cap_mb": 25,
        "dtype": "bfloat16",
        "init_method": {"std": 0.025},
        "make_vocab_size_divisible_by": 1,
        "model_config": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 6144,
            "is_llama_config": True,
            "max_position_embeddings": 2048,
            "num_attention_heads": 32,
            "num_hidden_layers": 22,
            "num_key_value_heads": 8,
            "pad_token_id": None,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 10_000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": 65_536,
        },
    },
    "optimizer": {
        "accumulate_grad_in_fp32": True,
        "clip_grad": 1.0,
        "learning_rate_scheduler": {
            "learning_rate": 0.001,
            "lr_decay_starting_step": 60_001,
            "lr_decay_steps": 611_500,
            "lr_decay_style": "cosine",
            "lr_warmup_steps": 60_000,
            "lr_warmup_style": "linear",
            "min_decay_lr": 0.00001,
        },
        "optimizer_factory": {"adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "name": "adamW"}
        | {"torch_adam_is_fused": True},
        "weight_decay": 0.01,
        "zero_stage": 0,
    },
    "parallelism": {
        "dp": 16,
        "expert_parallel_size": 1,
        "pp": 1,
        "pp_engine": "1f1b",
        "recompute_layer": False,
        "tp": 1,
    },
    "profiler": None,
    "tokenizer": {"tokenizer_max_length": None, "tokenizer_name_or_path": "tok", "tokenizer_revision": None},
    "tokens": {
        "batch_accumulation_per_replica": 2,
        "limit_test_batches": 0,
        "limit_val_batches": 0,
        "micro_batch_size": 8,
        "sequence_length": 2048,
        "train_steps": 890_500,
        "val_check_interval": -1,
    },
}
REPLICAS = [192] * 4 + [16] * 3


def changed(key: str, value) -> dict:
    """NANO with one dotted key set."""
    settings = copy.deepcopy(NANO)
    *above, last = key.split(".")
    tree = settings
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value
    return settings


def test_the_published_settings_convert_to_the_packaged_recipe(tmp_path):
    (tmp_path / "nanotron.yaml").write_text(yaml.safe_dump(NANO))
    convert(NanotronConfig(nanotron=tmp_path / "nanotron.yaml", out=tmp_path / "pleias.yaml", replicas=REPLICAS))
    result = parse(PretrainConfig, ["--config", str(tmp_path / "pleias.yaml")], description="")
    recipe = parse(PretrainConfig, ["--config", "nano_1.2b"], description="")
    assert result.name == "p"
    stages = [(stage.steps, stage.sequences) for stage in result.stages]
    assert stages == [(stage.steps, stage.sequences) for stage in recipe.stages] + [(73_000, 256)] * 3
    assert result.stages[0].shards == Path("base_corpus")
    assert result.model_config().to_dict() == recipe.model_config().to_dict()
    assert result.optimizer == recipe.optimizer
    assert (result.seed, result.sequence_length, result.micro_batch, result.precision) == (42, 2048, 8, "bf16")
    assert (result.every.checkpoint, result.every.log, result.data.tokenizer) == (3000, 1, Path("tok"))


def test_every_key_of_the_published_settings_is_mapped_checked_or_listed():
    _, ignored = convert_settings(NANO, replicas=REPLICAS)
    silent = {key for key, value in flatten(NANO) if value is not None and key not in ignored}
    # A change of a key that is not listed as ignored changes the result, or is rejected.
    for key in silent - {"general.project"}:  # the run's name comes first
        if key.startswith("data_stages"):
            continue
        value = dict(flatten(NANO))[key]
        other = {bool: lambda v: not v, str: lambda v: {"bfloat16": "float32"}.get(v, v + "x")}.get(
            type(value), lambda v: v + 1
        )(value)
        try:
            result, _ = convert_settings(changed(key, other), replicas=[])
        except InputError as error:
            assert key in str(error) or "train_steps" in key
        else:
            base, _ = convert_settings(NANO, replicas=[])
            assert result != base or key == "tokens.val_check_interval", key
    assert "parallelism.tp" in ignored and "logging.log_level" in ignored and "general.run" not in ignored


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "optimizer.learning_rate_scheduler.lr_decay_style",
            "1-sqrt",
            "1-sqrt cannot be imported: the decay is a cosine",
        ),
        (
            "optimizer.learning_rate_scheduler.lr_decay_starting_step",
            90_000,
            "90000 cannot be imported: the decay begins",
        ),
        ("optimizer.optimizer_factory.name", "sgd", "the optimizer is AdamW"),
        ("optimizer.weight_decay_exclude_named_params", [".*norm.*"], "weight decay applies to every parameter"),
        ("model.model_config.rope_theta", 500_000, "rotary theta is 10,000"),
        ("model.model_config.rope_scaling", {"type": "linear"}, "rope_scaling"),
        ("model.model_config.z_loss_enabled", True, "there is no z-loss"),
        ("model.init_method.path", "old", "model.init_method.path is not a supported"),
        ("model.dtype", "float16", "float16 cannot be imported: matmuls are in bf16 or fp32"),
        ("model.model_config.moe_config", {"num_experts": 8}, "moe_config.num_experts is not a supported"),
        ("optimiser", {"weight_decay": 1}, "optimiser.weight_decay is not a supported nanotron key"),
        ("tokens.train_steps", 800_000, "each stage must have a step"),
        ("tokens.micro_batch_size", None, "tokens.micro_batch_size is missing"),
        ("data_stages", [], "data_stages is missing"),
        ("tokens.micro_batch_size", "eight", "tokens.micro_batch_size must be of type int, got eight"),
    ],
)
def test_an_unsupported_value_is_rejected_with_its_key(key, value, message):
    with pytest.raises(InputError) as error:
        convert_settings(changed(key, value), replicas=[])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_stage_of_several_weighted_folders_is_rejected():
    settings = copy.deepcopy(NANO)
    settings["data_stages"][0]["data"]["dataset"] = {"dataset_folder": ["a", "b"]}
    with pytest.raises(InputError, match="data_stages Base Corpus: a stage must have exactly one folder of shards"):
        convert_settings(settings, replicas=[])


def test_replicas_are_one_number_or_one_per_stage():
    with pytest.raises(InputError, match="--replicas must be one number or one per stage, got 2 for 7 stages"):
        convert_settings(NANO, replicas=[192, 16])
    assert [stage["sequences"] for stage in convert_settings(NANO, replicas=[])[0]["stages"]] == [256] * 7
    assert [stage["sequences"] for stage in convert_settings(NANO, replicas=[192])[0]["stages"]] == [3072] * 7


def test_the_program_lists_ignored_keys_and_rejects_an_invalid_file_in_a_one_line_message(tmp_path):
    (tmp_path / "nanotron.yaml").write_text(yaml.safe_dump(NANO))
    command = ["training.nanotron", "--out", tmp_path / "pleias.yaml", "--nanotron", tmp_path / "nanotron.yaml"]
    done = run_program(*command, log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert "ignored optimizer.zero_stage: parallelism is specified at launch\n" in done.stdout
    assert "#   optimizer.zero_stage: parallelism" in (tmp_path / "pleias.yaml").read_text()
    (tmp_path / "nanotron.yaml").write_text("a: [")
    done = run_program(*command, log=tmp_path / "log")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/nanotron.yaml is not YAML")
    assert done.stderr.count("\n") == 1


def test_every_mapped_key_is_a_key_of_the_pretraining_config():
    targets = {entry.key for entry in KEYS.values() if hasattr(entry, "key")}
    for key in targets:
        if key.startswith("model."):
            assert key.removeprefix("model.") in PleiasConfig.__dataclass_fields__
        else:
            config = parse(PretrainConfig, ["--config", "demo"], description="")
            for part in key.split("."):
                assert hasattr(config, part), key
                config = getattr(config, part)


# Checkpoints ------------------------------------------------------------------------------------------------------

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def as_nanotron(model: PleiasForCausalLM, folder: Path, *, tp: int) -> None:
    """Write a model as nanotron does with tensor parallelism: each rank stores chunks of rows or columns.

    Every rank builds its matrix from its own heads; its slices in the full matrix are in its metadata.
    """
    c = model.config
    content = {
        **SHAPE,
        "tie_word_embeddings": c.tie_word_embeddings,
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "use_cache": True,
        "_attn_implementation": "flash_attention_2",
        "_is_using_mup": False,
        "pretraining_tp": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(content))
    tensors = model.state_dict()

    def plain(module: str, tensor: torch.Tensor) -> None:
        path = folder / "model" / module.replace(".", "/") / "model_weight.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"data": tensor.clone()}, path)

    def cut(module: str, chunks: list[torch.Tensor], *, dim: int = 0) -> None:
        """Split each chunk in `tp` equal parts along `dim`; a rank stores its parts of all chunks, concatenated."""
        parent = folder / "model" / module.replace(".", "/")
        parent.mkdir(parents=True, exist_ok=True)
        full = list(chunks[0].shape)
        full[dim] = sum(chunk.shape[dim] for chunk in chunks)
        for rank in range(tp):
            pairs, parts, local, start = [], [], 0, 0
            for chunk in chunks:
                n = chunk.shape[dim] // tp
                parts.append(chunk.narrow(dim, rank * n, n))
                pair = []
                for first in (local, start + rank * n):
                    axes = ["None,None,None"] * 2
                    axes[dim] = f"{first},{first + n},None"
                    pair.append("|".join(axes))
                pairs.append("#".join(pair))
                local, start = local + n, start + chunk.shape[dim]
            # numpy 2 formats the row count of fused matrices this way in nanotron's files
            text = f"({full[0]}, {full[1]})" if len(chunks) == 1 else f"(np.int64({full[0]}), {full[1]})"
            metadata = {"version": "1.4", "local_global_slices_pairs": ";".join(pairs), "unsharded_shape": text}
            name = f"model_weight_pp-rank-0-of-1_tp-rank-{rank}-of-{tp}.safetensors"
            save_file({"data": torch.cat(parts, dim).contiguous()}, parent / name, metadata)

    cut("model.token_position_embeddings.pp_block.token_embedding", [tensors["model.embed_tokens.weight"]])
    if not c.tie_word_embeddings:
        cut("model.lm_head.pp_block", [tensors["lm_head.weight"]])
    plain("model.final_layer_norm.pp_block", tensors["model.norm.weight"])
    for i in range(c.num_hidden_layers):
        layer = {k.removeprefix(f"model.layers.{i}."): v for k, v in tensors.items() if f"layers.{i}." in k}
        block = f"model.decoder.{i}.pp_block"
        cut(f"{block}.attn.qkv_proj", [layer[f"self_attn.{x}_proj.weight"] for x in "qkv"])
        cut(f"{block}.attn.o_proj", [layer["self_attn.o_proj.weight"]], dim=1)
        cut(f"{block}.mlp.gate_up_proj", [layer[f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
        cut(f"{block}.mlp.down_proj", [layer["mlp.down_proj.weight"]], dim=1)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            plain(f"{block}.{norm}", layer[f"{norm}.weight"])


def random_model(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> PleiasForCausalLM:
    torch.manual_seed(0)
    model = PleiasForCausalLM(PleiasConfig(**SHAPE, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: their initial value, 1, would hide a mix-up
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_converted_checkpoint_has_bit_equal_logits(tmp_path, tp, tied):
    model = random_model(tied=tied)
    as_nanotron(model, tmp_path / "nanotron", tp=tp)
    convert_checkpoint(ConversionConfig(checkpoint=tmp_path / "nanotron", out=tmp_path / "pleias"))
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "pleias").eval()
    assert type(converted) is PleiasForCausalLM and converted.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "pleias" / "model.safetensors")) is not tied
    ids = torch.arange(90).reshape(2, 45)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, converted(ids).logits)


def test_the_dtype_is_preserved_and_a_tokenizer_is_saved_with_the_model(tmp_path, tiny_tokenizer):
    model = random_model(dtype=torch.bfloat16)
    as_nanotron(model, tmp_path / "nanotron", tp=2)
    convert_checkpoint(
        ConversionConfig(checkpoint=tmp_path / "nanotron", out=tmp_path / "pleias", tokenizer=tiny_tokenizer)
    )
    tensors = load_file(tmp_path / "pleias" / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert json.loads((tmp_path / "pleias" / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "pleias" / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_slices_are_read_as_nanotron_writes_them():
    assert slices("0,8,None|None,None,None#16,24,None|None,None,None;8,12,None|0,2,2#0,4,None|None,None,None") == [
        ((slice(0, 8), slice(None)), (slice(16, 24), slice(None))),
        ((slice(8, 12), slice(0, 2, 2)), (slice(0, 4), slice(None))),
    ]


QKV = "model/model/decoder/1/pp_block/attn/qkv_proj"
PART = "model_weight_pp-rank-0-of-1_tp-rank-{}-of-2.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / QKV / PART.format(1)).unlink(), "qkv_proj has no shard of tensor-parallel rank 1 of 2"),
        (
            lambda f: [path.unlink() for path in (f / QKV).iterdir()],
            "qkv_proj has no shard of tensor-parallel rank 0",
        ),
        (
            lambda f: (f / "model/model/final_layer_norm/pp_block/model_weight.safetensors").unlink(),
            "final_layer_norm/pp_block has no shard of tensor-parallel rank 0 of 1",
        ),
        (
            lambda f: save_file(
                {"data": torch.zeros(47)}, f / "model/model/final_layer_norm/pp_block/model_weight.safetensors"
            ),
            r"final_layer_norm/pp_block/model_weight.safetensors has shape \(47,\), but .* requires \(48,\)",
        ),
        (
            lambda f: edit(f / "model_config.json", intermediate_size=96),
            r"rank-0-of-2.safetensors is a shard of shape \(160, 48\), but model_config.json requires \(192, 48\)",
        ),
        (
            lambda f: edit(f / "model_config.json", num_hidden_layers=2),
            "decoder/2/.*: a Pleias model has no such parameter",
        ),
        (
            lambda f: edit(f / "model_config.json", rope_interleaved=True),
            "rope_interleaved must be false",
        ),
        (
            lambda f: edit(f / "model_config.json", rope_interleaved=None),
            "rope_interleaved must be false",
        ),
        (lambda f: edit(f / "model_config.json", is_llama_config=None), "does not describe nanotron's Llama"),
        (lambda f: edit(f / "model_config.json", moe_config={}), "a Pleias model has no moe_config"),
        (lambda f: edit(f / "model_config.json", num_key_value_heads=4), "not a multiple of the number of key/value"),
        (lambda f: (f / "model_config.json").unlink(), "model_config.json is missing"),
        (
            lambda f: keep_metadata(f / QKV / PART.format(1), torch.zeros(39, 48)),
            r"rank-1-of-2.safetensors has shape \(39, 48\), unlike its own metadata",
        ),
        (
            lambda f: (f / QKV / PART.format(1)).rename(f / QKV / PART.format(1).replace("of-2", "of-3")),
            "qkv_proj has no shard of tensor-parallel rank 2 of 3",
        ),
        (lambda f: half_a_part(f / QKV / PART.format(1)), r"qkv_proj: its shards contain 3,072 of 3,840 values"),
        (lambda f: shorten(f / QKV / PART.format(0)), "rank-0-of-2.safetensors is corrupt"),
        (
            lambda f: save_file(load_file(f / QKV / PART.format(0)), f / QKV / PART.format(0)),
            "rank-0-of-2.safetensors has no local_global_slices_pairs",
        ),
    ],
)
def test_a_damaged_checkpoint_is_rejected_in_a_one_line_message(tmp_path, damage, message):
    as_nanotron(random_model(), tmp_path / "nanotron", tp=2)
    damage(tmp_path / "nanotron")
    with pytest.raises(InputError, match=message) as error:
        convert_checkpoint(ConversionConfig(checkpoint=tmp_path / "nanotron", out=tmp_path / "pleias"))
    assert "\n" not in str(error.value) and not (tmp_path / "pleias").exists()


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def half_a_part(path: Path) -> None:
    """Replace a shard with one that contains only queries, in data and metadata."""
    with safe_open(path, "pt") as file:
        metadata, tensor = file.metadata(), file.get_tensor("data")
    metadata["local_global_slices_pairs"] = metadata["local_global_slices_pairs"].partition(";")[0]
    save_file({"data": tensor[:24].clone()}, path, metadata)


def keep_metadata(path: Path, tensor: torch.Tensor) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"data": tensor}, path, metadata)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])
