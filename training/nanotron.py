"""Convert a nanotron settings file (YAML) to a pretraining config; every key is mapped, rejected or listed as ignored.

    python -m training.nanotron --nanotron pleias-nano-1.2b.yaml --replicas 192 192 192 192 16 16 16 --out nano.yaml

The keys are those of nanotron's config dataclasses and of Pleias' fork of it (`tracto_*`, `yt_*`).
"""

if not __package__:  # run by path; same as `python -m training.nanotron`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .common.config import InputError, parse, read_yaml, run_main
from .common.escaping import terminal_line
from .common.files import atomic


@dataclass
class NanotronConfig:
    """Input and output files, and replicas.

    Args:
        nanotron: YAML file to read.
        out: YAML file to write, for training.pretrain --config.
        replicas: Data-parallel replicas, one number for all stages or one per stage, if the run changed them. Defaults
            to parallelism.dp of the file, which is the last state of the run.
    """

    nanotron: Path
    out: Path
    replicas: list[int] = field(default_factory=list)


@dataclass
class MapTo:
    """Map the value to this key of the pretraining config."""

    key: str
    convert: Callable[[Any], Any] = lambda value: value


@dataclass
class RequireValue:
    """Require one of these values; `why` is the end of the error message."""

    values: tuple
    why: str


@dataclass
class Ignored:
    """Ignore the key, for the reason `why`."""

    why: str


READ = Ignored("")  # converted by `imported`, together with other keys
LAYOUT = "the run folder has its own layout of checkpoints"
LAUNCH = "parallelism is specified at launch"
OUTPUT = "terminal output only"
INFERENCE = "inference only"

# Rule per dotted key; the elements of a list share one rule; `.*` matches all keys below.
KEYS: dict[str, MapTo | RequireValue | Ignored] = {
    "checkpoints.checkpoint_interval": MapTo("every.checkpoint"),
    "checkpoints.*": Ignored(LAYOUT),
    "tracto_checkpoints.*": Ignored(LAYOUT),
    "s3_upload.*": Ignored(LAYOUT),
    "data_stages.name": READ,
    "data_stages.start_training_step": READ,
    "data_stages.data.seed": READ,
    "data_stages.data.dataset.dataset_folder": READ,
    "data_stages.data.dataset.yt_dataset_path": READ,
    "data_stages.data.dataset.tracto_dataset": Ignored("shards are files"),
    "data_stages.data.dataset.dataset_batch_size": Ignored("the loader reads windows, not rows"),
    "data_stages.data.dataset.vocab_size": Ignored("stored in the shards' manifest"),
    "data_stages.data.dataset.tokenizer_name": Ignored("stored in the shards' manifest"),
    "data_stages.data.dataset.token_size_in_bytes": RequireValue((2,), "shards store two bytes per token"),
    "data_stages.data.num_loading_workers": Ignored("one thread prefetches"),
    "general.project": READ,
    "general.run": READ,
    "general.seed": MapTo("seed"),
    "general.*": Ignored("nanotron's internal state"),
    "lighteval.*": Ignored("evaluation is a separate program"),
    "profiler.*": Ignored("profiling is not part of a run"),
    "logging.iteration_step_info_interval": MapTo("every.log"),
    "logging.*": Ignored(OUTPUT),
    "model.ddp_bucket_cap_mb": Ignored(LAUNCH),
    "model.dtype": MapTo("precision", {"bfloat16": "bf16", "float32": "fp32"}.__getitem__),
    "model.init_method.std": MapTo("model.pretraining_init_std"),
    "model.init_method.scaling_method": RequireValue(
        ("NUM_LAYERS", "num_layers"), "output projections are initialised with std / sqrt(2 * layers)"
    ),
    "model.make_vocab_size_divisible_by": RequireValue((1,), "the vocabulary is not padded"),
    "model.model_config._attn_implementation": Ignored("the fastest available kernel is used"),
    "model.model_config.attention_bias": MapTo("model.attention_bias"),
    "model.model_config.bos_token_id": MapTo("model.bos_token_id"),
    "model.model_config.eos_token_id": MapTo("model.eos_token_id"),
    "model.model_config.hidden_act": MapTo("model.hidden_act"),
    "model.model_config.hidden_size": MapTo("model.hidden_size"),
    "model.model_config.initializer_range": MapTo("model.initializer_range"),
    "model.model_config.intermediate_size": MapTo("model.intermediate_size"),
    "model.model_config.is_llama_config": RequireValue((True,), "Pleias models have the Llama architecture"),
    "model.model_config.max_position_embeddings": MapTo("model.max_position_embeddings"),
    "model.model_config.num_attention_heads": MapTo("model.num_attention_heads"),
    "model.model_config.num_hidden_layers": MapTo("model.num_hidden_layers"),
    "model.model_config.num_key_value_heads": MapTo("model.num_key_value_heads"),
    "model.model_config.pad_token_id": MapTo("model.pad_token_id"),
    "model.model_config.pretraining_tp": Ignored(INFERENCE),
    "model.model_config.rms_norm_eps": MapTo("model.rms_norm_eps"),
    "model.model_config.rope_interleaved": Ignored("irrelevant to randomly initialised weights"),
    "model.model_config.rope_scaling": RequireValue((), "positions are not scaled in pretraining"),
    "model.model_config.rope_theta": RequireValue((10_000,), "rotary theta is 10,000 in every Pleias model"),
    "model.model_config.tie_word_embeddings": MapTo("model.tie_word_embeddings"),
    "model.model_config.use_cache": Ignored(INFERENCE),
    "model.model_config.vocab_size": MapTo("model.vocab_size"),
    "model.model_config.z_loss_coefficient": Ignored("the z-loss is off"),
    "model.model_config.z_loss_enabled": RequireValue((False,), "there is no z-loss"),
    "optimizer.accumulate_grad_in_fp32": RequireValue((True,), "gradients are summed in fp32"),
    "optimizer.clip_grad": MapTo("optimizer.clip"),
    "optimizer.learning_rate_scheduler.learning_rate": MapTo("optimizer.learning_rate"),
    "optimizer.learning_rate_scheduler.lr_decay_starting_step": READ,
    "optimizer.learning_rate_scheduler.lr_decay_steps": MapTo("optimizer.decay_steps"),
    "optimizer.learning_rate_scheduler.lr_decay_style": RequireValue(("cosine",), "the decay is a cosine"),
    "optimizer.learning_rate_scheduler.lr_warmup_steps": MapTo("optimizer.warmup_steps"),
    "optimizer.learning_rate_scheduler.lr_warmup_style": RequireValue(("linear",), "the warm-up is linear"),
    "optimizer.learning_rate_scheduler.min_decay_lr": MapTo("optimizer.final_learning_rate"),
    "optimizer.optimizer_factory.adam_beta1": MapTo("optimizer.beta1"),
    "optimizer.optimizer_factory.adam_beta2": MapTo("optimizer.beta2"),
    "optimizer.optimizer_factory.adam_eps": MapTo("optimizer.epsilon"),
    "optimizer.optimizer_factory.name": RequireValue(("adamW",), "the optimizer is AdamW"),
    "optimizer.optimizer_factory.torch_adam_is_fused": Ignored("always fused"),
    "optimizer.weight_decay": MapTo("optimizer.weight_decay"),
    "optimizer.weight_decay_exclude_named_params": RequireValue(([],), "weight decay applies to every parameter"),
    "optimizer.zero_stage": Ignored(LAUNCH),
    "parallelism.dp": READ,
    "parallelism.expert_parallel_size": RequireValue((1,), "there are no experts"),
    "parallelism.*": Ignored(LAUNCH),
    "tokenizer.tokenizer_name_or_path": MapTo("data.tokenizer"),
    "tokenizer.tokenizer_max_length": Ignored("documents are never truncated"),
    "tokenizer.tokenizer_revision": RequireValue((), "a tokenizer is a folder"),
    "tokens.batch_accumulation_per_replica": READ,
    "tokens.limit_test_batches": Ignored("there is no test split"),
    "tokens.limit_val_batches": Ignored("validation_tokens sets the amount"),
    "tokens.micro_batch_size": MapTo("micro_batch"),
    "tokens.sequence_length": MapTo("sequence_length"),
    "tokens.train_steps": READ,
    "tokens.val_check_interval": READ,
}


def flatten(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of every value in a tree that is neither a mapping nor a list of mappings."""
    if isinstance(value, dict) and value:
        return [leaf for name, below in value.items() for leaf in flatten(below, f"{key}.{name}".lstrip("."))]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [leaf for item in value for leaf in flatten(item, key)]
    return [(key, value)]


def rule(key: str) -> MapTo | RequireValue | Ignored | None:
    """Return the rule of a key, else of the nearest `.*` above it."""
    if key in KEYS:
        return KEYS[key]
    parts = key.split(".")
    above = (".".join(parts[:i]) + ".*" for i in range(len(parts), 0, -1))
    return next((KEYS[pattern] for pattern in above if pattern in KEYS), None)


def convert_settings(settings: dict, *, replicas: list[int]) -> tuple[dict, dict[str, str]]:
    """Return the pretraining config as a tree for YAML, and the ignored keys with the reason.

    A null value means nanotron's default, as if the key were missing.

    Args:
        settings: Content of the nanotron file.
        replicas: See `NanotronConfig`.

    Raises:
        InputError: If a key is unknown or missing, or its value is unsupported (the message gives the key).
    """
    config: dict = {"name": ""}
    ignored = {}
    for key, value in flatten(settings):
        action = rule(key)
        section = any(known.startswith(key + ".") for known in KEYS)
        if action is None and not (section and value in (None, [], {})):
            raise InputError(f"{key} is not a supported nanotron key: remove it from the file.")
        if action is None or value is None:
            continue
        if isinstance(action, RequireValue) and value not in action.values:
            raise InputError(f"{key}: {value} cannot be imported: {action.why}.")
        if isinstance(action, Ignored) and action is not READ:
            ignored[key] = action.why
        if isinstance(action, MapTo):
            try:
                put(config, action.key, action.convert(value))
            except KeyError:
                why = "matmuls are in bf16 or fp32"  # the only conversion that can fail
                raise InputError(f"{key}: {value} cannot be imported: {why}.") from None
    rates = require_key(settings, "optimizer.learning_rate_scheduler", dict)
    warmup = require_key(rates, "lr_warmup_steps")
    if rates.get("lr_decay_starting_step") not in (None, warmup, warmup + 1):
        raise InputError(
            f"optimizer.learning_rate_scheduler.lr_decay_starting_step: {rates['lr_decay_starting_step']} cannot be "
            f"imported: the decay begins at the end of the warm-up, at {warmup}."
        )
    if rates.get("min_decay_lr") is None:
        put(config, "optimizer.final_learning_rate", require_key(rates, "learning_rate", float))
    if (interval := (settings.get("tokens") or {}).get("val_check_interval") or -1) > 0:
        put(config, "every.validate", interval)
    run = (settings.get("general") or {}).get("run") or ""
    config["name"] = re.sub(r"[_-]?%(date|jobid)", "", run) or require_key(settings, "general.project", str)
    config["stages"] = stages(settings, replicas=replicas)
    return config, ignored


def stages(settings: dict, *, replicas: list[int]) -> list[dict]:
    """Build the stages: lengths from their first steps, sequences = replicas x micro batch x accumulation."""
    source = sorted(
        require_key(settings, "data_stages", list), key=lambda stage: require_key(stage, "start_training_step")
    )
    replicas = replicas or [require_key(settings, "parallelism.dp")]
    if len(replicas) == 1:
        replicas = replicas * len(source)
    if len(replicas) != len(source):
        got = f"{len(replicas)} for {len(source)} stages"
        raise InputError(f"--replicas must be one number or one per stage, got {got}.")
    per_replica = require_key(settings, "tokens.micro_batch_size") * require_key(
        settings, "tokens.batch_accumulation_per_replica"
    )
    starts = [require_key(stage, "start_training_step") for stage in source]
    ends = [*starts[1:], require_key(settings, "tokens.train_steps") + 1]
    if starts[0] != 1 or any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise InputError(
            f"data_stages begin at the steps {starts} and tokens.train_steps is {ends[-1] - 1}: the first stage must "
            "begin at step 1, and each stage must have a step."
        )
    result = []
    for stage, start, end, count in zip(source, starts, ends, replicas, strict=True):
        name, data, dataset = (
            require_key(stage, "name", str),
            require_key(stage, "data", dict),
            require_key(stage, "data.dataset", dict),
        )
        folder = dataset.get("dataset_folder") or dataset.get("yt_dataset_path")
        folders = folder if isinstance(folder, list) else [folder]
        if len(folders) != 1 or not folders[0]:
            raise InputError(f"data_stages {name}: a stage must have exactly one folder of shards, got {folders}.")
        seed = {} if data.get("seed") is None else {"seed": data["seed"]}
        steps, sequences = end - start, per_replica * count
        result.append({"name": name, "steps": steps, "sequences": sequences, "shards": folders[0], **seed})
    return result


def require_key(settings: dict, key: str, kind: type = int) -> Any:
    """Return the value at a dotted key.

    Raises:
        InputError: If it is missing, empty or of another type.
    """
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value in (None, [], {}):
        raise InputError(f"{key} is missing from the nanotron file: a pretraining config requires it.")
    if not isinstance(value, kind):
        raise InputError(f"{key} must be of type {kind.__name__}, got {value}.")
    return value


def put(tree: dict, key: str, value: Any) -> None:
    """Set the value at a dotted key."""
    *above, last = key.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value


def convert(config: NanotronConfig) -> dict[str, str]:
    """Write `config.out`; return the ignored keys with the reason.

    Raises:
        InputError: As in `imported`, or if the file is not YAML or the result is not a valid pretraining config.
    """
    from .pretraining.recipe import PretrainConfig  # lazy import: torch takes seconds, and --help does not need it

    settings = read_yaml(config.nanotron)
    result, ignored = convert_settings(settings, replicas=config.replicas)
    head = [f"# Converted from {config.nanotron.name} by training.nanotron. Ignored keys:"]
    head += [f"#   {key}: {why}" for key, why in ignored.items()]
    head += ["# Build the shards once per stage's folder: python -m training.shards --help"]
    with atomic(config.out) as path:
        text = yaml.safe_dump(result, sort_keys=False, allow_unicode=True)
        path.write_text("\n".join([*head, text]), encoding="utf-8")
        parse(PretrainConfig, ["--config", str(path)], description="").model_config()
    return ignored


def main() -> None:
    """Run `python -m training.nanotron`."""
    config = parse(NanotronConfig, description="Convert a nanotron settings file to a pretraining config.")
    ignored = convert(config)
    for key, why in ignored.items():
        print(terminal_line(f"ignored {key}: {why}"))
    print(f"wrote {config.out}; next: python -m training.plan --config {config.out}")


if __name__ == "__main__":
    run_main(main)
