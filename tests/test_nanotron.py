"""A nanotron settings file becomes our config key by key, and its checkpoints become the same model."""

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
from training.config import InputError, parse
from training.nanotron import KEYS, NanotronConfig, convert, imported, leaves
from training.nanotron_checkpoint import ConversionConfig, slices
from training.nanotron_checkpoint import convert as convert_checkpoint
from training.recipe import PretrainConfig

ROOT = Path(__file__).parent.parent


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


def test_the_published_settings_become_the_packaged_recipe(tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(NANO))
    convert(NanotronConfig(nanotron=tmp_path / "theirs.yaml", out=tmp_path / "ours.yaml", replicas=REPLICAS))
    ours = parse(PretrainConfig, ["--config", str(tmp_path / "ours.yaml")], description="")
    recipe = parse(PretrainConfig, ["--config", "nano_1.2b"], description="")
    assert ours.name == "p"
    assert [(one.steps, one.sequences) for one in ours.stages[:4]] == [(o.steps, o.sequences) for o in recipe.stages]
    assert [(one.steps, one.sequences) for one in ours.stages[4:]] == [(73_000, 256)] * 3
    assert ours.stages[0].shards == Path("base_corpus")
    assert ours.model_config().to_dict() == recipe.model_config().to_dict()
    assert ours.optimizer == recipe.optimizer
    assert (ours.seed, ours.sequence_length, ours.micro_batch, ours.precision) == (42, 2048, 8, "bf16")
    assert (ours.every.checkpoint, ours.every.log, ours.data.tokenizer) == (3000, 1, Path("tok"))


def test_every_key_of_the_published_settings_is_mapped_checked_or_listed():
    ours, ignored = imported(NANO, replicas=REPLICAS)
    silent = {key for key, value in leaves(NANO) if value is not None and key not in ignored}
    # What is not listed as ignored changes the result, or is refused, when it changes.
    for key in silent - {"general.project"}:  # the run's name comes first
        if key.startswith("data_stages"):
            continue
        value = dict(leaves(NANO))[key]
        other = {bool: lambda v: not v, str: lambda v: {"bfloat16": "float32"}.get(v, v + "x")}.get(
            type(value), lambda v: v + 1
        )(value)
        try:
            result, _ = imported(changed(key, other), replicas=[])
        except InputError as error:
            assert key in str(error) or "train_steps" in key
        else:
            base, _ = imported(NANO, replicas=[])
            assert result != base or key == "tokens.val_check_interval", key
    assert "parallelism.tp" in ignored and "logging.log_level" in ignored and "general.run" not in ignored


@pytest.mark.parametrize(
    ("key", "value", "said"),
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
        ("optimizer.weight_decay_exclude_named_params", [".*norm.*"], "weight decay is on every parameter"),
        ("model.model_config.rope_theta", 500_000, "rotary theta is 10,000"),
        ("model.model_config.rope_scaling", {"type": "linear"}, "rope_scaling"),
        ("model.model_config.z_loss_enabled", True, "there is no z-loss"),
        ("model.init_method.path", "old", "model.init_method.path is not a key"),
        ("model.dtype", "float16", "float16 cannot be imported: products are computed in bf16 or fp32"),
        ("model.model_config.moe_config", {"num_experts": 8}, "moe_config.num_experts is not a key"),
        ("optimiser", {"weight_decay": 1}, "optimiser.weight_decay is not a key of nanotron's"),
        ("tokens.train_steps", 800_000, "each must have a step"),
        ("tokens.micro_batch_size", None, "tokens.micro_batch_size is missing"),
        ("data_stages", [], "data_stages is missing"),
        (
            "tokens.micro_batch_size",
            "eight",
            "tokens.micro_batch_size: eight in the nanotron file is not of the kind int",
        ),
    ],
)
def test_what_ours_cannot_have_is_refused_by_its_key(key, value, said):
    with pytest.raises(InputError) as error:
        imported(changed(key, value), replicas=[])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_stage_of_several_weighted_folders_is_refused():
    settings = copy.deepcopy(NANO)
    settings["data_stages"][0]["data"]["dataset"] = {"dataset_folder": ["a", "b"]}
    with pytest.raises(InputError, match="data_stages Base Corpus: a stage reads one folder of shards"):
        imported(settings, replicas=[])


def test_replicas_are_one_number_or_one_for_each_stage():
    with pytest.raises(InputError, match="--replicas has 2 numbers for 7 stages"):
        imported(NANO, replicas=[192, 16])
    assert [one["sequences"] for one in imported(NANO, replicas=[])[0]["stages"]] == [256] * 7
    assert [one["sequences"] for one in imported(NANO, replicas=[192])[0]["stages"]] == [3072] * 7


def test_the_program_lists_what_it_ignored_and_a_wrong_file_gets_a_sentence(tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(NANO))
    command = ["training.nanotron", "--out", tmp_path / "ours.yaml", "--nanotron", tmp_path / "theirs.yaml"]
    done = run_program(*command, log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert "ignored optimizer.zero_stage: how the work is cut over GPUs is said at launch\n" in done.stdout
    assert "#   optimizer.zero_stage: how the work" in (tmp_path / "ours.yaml").read_text()
    (tmp_path / "theirs.yaml").write_text("a: [")
    done = run_program(*command, log=tmp_path / "log")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/theirs.yaml is not YAML")
    assert done.stderr.count("\n") == 1


def test_every_mapped_key_leads_to_a_key_of_ours():
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
    """Write a model as nanotron does, by its own account of tensor parallelism: ranks hold chunks of rows or columns.

    Every rank builds its own matrix from its own heads; where that lies in the whole is written beside it.
    """
    c = model.config
    said = {**SHAPE, "is_llama_config": True, "rope_interleaved": False, "rope_theta": 10_000.0, "rope_scaling": None}
    said |= {
        "tie_word_embeddings": c.tie_word_embeddings,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "use_cache": True,
    }
    said |= {"_attn_implementation": "flash_attention_2", "_is_using_mup": False, "pretraining_tp": 1}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(said))
    tensors = model.state_dict()

    def plain(module: str, tensor: torch.Tensor) -> None:
        path = folder / "model" / module.replace(".", "/") / "model_weight.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"data": tensor.clone()}, path)

    def cut(module: str, chunks: list[torch.Tensor], *, dim: int = 0) -> None:
        """Each chunk in `tp` equal parts along `dim`; a rank holds its part of every chunk, one after the other."""
        parent = folder / "model" / module.replace(".", "/")
        parent.mkdir(parents=True, exist_ok=True)
        whole = list(chunks[0].shape)
        whole[dim] = sum(chunk.shape[dim] for chunk in chunks)
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
            # numpy 2 spells the row count of fused matrices this way in nanotron's files
            text = f"({whole[0]}, {whole[1]})" if len(chunks) == 1 else f"(np.int64({whole[0]}), {whole[1]})"
            metadata = {"version": "1.4", "local_global_slices_pairs": ";".join(pairs), "unsharded_shape": text}
            name = f"model_weight_pp-rank-0-of-1_tp-rank-{rank}-of-{tp}.safetensors"
            save_file({"data": torch.cat(parts, dim).contiguous()}, parent / name, metadata)

    cut("model.token_position_embeddings.pp_block.token_embedding", [tensors["model.embed_tokens.weight"]])
    if not c.tie_word_embeddings:
        cut("model.lm_head.pp_block", [tensors["lm_head.weight"]])
    plain("model.final_layer_norm.pp_block", tensors["model.norm.weight"])
    for i in range(c.num_hidden_layers):
        ours = {k.removeprefix(f"model.layers.{i}."): v for k, v in tensors.items() if f"layers.{i}." in k}
        block = f"model.decoder.{i}.pp_block"
        cut(f"{block}.attn.qkv_proj", [ours[f"self_attn.{x}_proj.weight"] for x in "qkv"])
        cut(f"{block}.attn.o_proj", [ours["self_attn.o_proj.weight"]], dim=1)
        cut(f"{block}.mlp.gate_up_proj", [ours[f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
        cut(f"{block}.mlp.down_proj", [ours["mlp.down_proj.weight"]], dim=1)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            plain(f"{block}.{norm}", ours[f"{norm}.weight"])


def random_model(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> PleiasForCausalLM:
    torch.manual_seed(0)
    model = PleiasForCausalLM(PleiasConfig(**SHAPE, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: their initial ones could be anybody's
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_converted_checkpoint_gives_the_same_logits_bit_for_bit(tmp_path, tp, tied):
    model = random_model(tied=tied)
    as_nanotron(model, tmp_path / "theirs", tp=tp)
    convert_checkpoint(ConversionConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "ours"))
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(converted) is PleiasForCausalLM and converted.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "ours" / "model.safetensors")) is not tied
    ids = torch.arange(90).reshape(2, 45)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, converted(ids).logits)


def test_the_precision_is_kept_and_a_tokenizer_put_beside(tmp_path, tiny_tokenizer):
    model = random_model(dtype=torch.bfloat16)
    as_nanotron(model, tmp_path / "theirs", tp=2)
    convert_checkpoint(
        ConversionConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "ours", tokenizer=tiny_tokenizer)
    )
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_slices_are_read_as_nanotron_writes_them():
    assert slices("0,8,None|None,None,None#16,24,None|None,None,None;8,12,None|0,2,2#0,4,None|None,None,None") == [
        ((slice(0, 8), slice(None)), (slice(16, 24), slice(None))),
        ((slice(8, 12), slice(0, 2, 2)), (slice(0, 4), slice(None))),
    ]


QKV = "model/model/decoder/1/pp_block/attn/qkv_proj"
PART = "model_weight_pp-rank-0-of-1_tp-rank-{}-of-2.safetensors"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / QKV / PART.format(1)).unlink(), "qkv_proj lacks the part of tensor-parallel rank 1 of 2"),
        (
            lambda f: [path.unlink() for path in (f / QKV).iterdir()],
            "qkv_proj lacks the part of tensor-parallel rank 0",
        ),
        (
            lambda f: (f / "model/model/final_layer_norm/pp_block/model_weight.safetensors").unlink(),
            "final_layer_norm/pp_block lacks the part of tensor-parallel rank 0 of 1",
        ),
        (
            lambda f: save_file(
                {"data": torch.zeros(47)}, f / "model/model/final_layer_norm/pp_block/model_weight.safetensors"
            ),
            r"final_layer_norm/pp_block/model_weight.safetensors has the shape \(47,\) where .* means \(48,\)",
        ),
        (
            lambda f: edit(f / "model_config.json", intermediate_size=96),
            r"rank-0-of-2.safetensors is part of the shape \(160, 48\) where model_config.json means \(192, 48\)",
        ),
        (
            lambda f: edit(f / "model_config.json", num_hidden_layers=2),
            "decoder/2/.* is nothing that a Pleias model has",
        ),
        (
            lambda f: edit(f / "model_config.json", rope_interleaved=True),
            "does not say that rope_interleaved is false",
        ),
        (
            lambda f: edit(f / "model_config.json", rope_interleaved=None),
            "does not say that rope_interleaved is false",
        ),
        (lambda f: edit(f / "model_config.json", is_llama_config=None), "is not of nanotron's Llama"),
        (lambda f: edit(f / "model_config.json", moe_config={}), "moe_config is nothing that a Pleias model has"),
        (lambda f: edit(f / "model_config.json", num_key_value_heads=4), "not a multiple of the number of key/value"),
        (lambda f: (f / "model_config.json").unlink(), "model_config.json is missing"),
        (
            lambda f: keep_metadata(f / QKV / PART.format(1), torch.zeros(39, 48)),
            r"rank-1-of-2.safetensors has the shape \(39, 48\), which is not what its own metadata says",
        ),
        (
            lambda f: (f / QKV / PART.format(1)).rename(f / QKV / PART.format(1).replace("of-2", "of-3")),
            "qkv_proj lacks the part of tensor-parallel rank 2 of 3",
        ),
        (lambda f: half_a_part(f / QKV / PART.format(1)), r"qkv_proj: its parts hold 3,072 numbers of 3,840"),
        (lambda f: shorten(f / QKV / PART.format(0)), "rank-0-of-2.safetensors is damaged"),
        (
            lambda f: save_file(load_file(f / QKV / PART.format(0)), f / QKV / PART.format(0)),
            "rank-0-of-2.safetensors does not say which part it is",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said_in_one_sentence(tmp_path, harm, said):
    as_nanotron(random_model(), tmp_path / "theirs", tp=2)
    harm(tmp_path / "theirs")
    with pytest.raises(InputError, match=said) as error:
        convert_checkpoint(ConversionConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "ours"))
    assert "\n" not in str(error.value) and not (tmp_path / "ours").exists()


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def half_a_part(path: Path) -> None:
    """A part that holds, and says that it holds, queries alone."""
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
