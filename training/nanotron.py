"""A nanotron settings file (YAML) -> a pretraining config of ours; every key is mapped, refused or listed as ignored.

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

from .config import InputError, parse, program
from .files import atomic


@dataclass
class NanotronConfig:
    """Which file becomes which.

    Args:
        nanotron: the YAML file to read.
        out: the YAML file to write; pretrain takes it as --config.
        replicas: data-parallel replicas of each stage, where the run changed them on the way; one number for all, or
            one for each stage. The file's parallelism.dp, which is the last state of the run, when not given.
    """

    nanotron: Path
    out: Path
    replicas: list[int] = field(default_factory=list)


@dataclass
class To:
    """The value goes to this key of ours."""

    key: str
    convert: Callable[[Any], Any] = lambda value: value


@dataclass
class Only:
    """Ours has these values and no others; `why` ends the sentence that refuses the rest."""

    values: tuple
    why: str


@dataclass
class Ignored:
    """Changes nothing that ours has."""

    why: str


READ = Ignored("")  # by `imported` itself, together with other keys
OURS = "the run folder and its checkpoints are laid out our way"
LAUNCH = "how the work is cut over GPUs is said at launch"
SCREEN = "what is printed"
INFERENCE = "of inference"

# Dotted key -> what becomes of it; a list's elements share one entry; `.*` stands for all below.
KEYS: dict[str, To | Only | Ignored] = {
    "checkpoints.checkpoint_interval": To("every.checkpoint"),
    "checkpoints.*": Ignored(OURS),
    "tracto_checkpoints.*": Ignored(OURS),
    "s3_upload.*": Ignored(OURS),
    "data_stages.name": READ,
    "data_stages.start_training_step": READ,
    "data_stages.data.seed": READ,
    "data_stages.data.dataset.dataset_folder": READ,
    "data_stages.data.dataset.yt_dataset_path": READ,
    "data_stages.data.dataset.tracto_dataset": Ignored("shards are files here"),
    "data_stages.data.dataset.dataset_batch_size": Ignored("the loader reads windows, not rows"),
    "data_stages.data.dataset.vocab_size": Ignored("the shards' manifest says it"),
    "data_stages.data.dataset.tokenizer_name": Ignored("the shards' manifest says it"),
    "data_stages.data.dataset.token_size_in_bytes": Only((2,), "shards hold two bytes a token"),
    "data_stages.data.num_loading_workers": Ignored("one thread reads ahead"),
    "general.project": READ,
    "general.run": READ,
    "general.seed": To("seed"),
    "general.*": Ignored("of nanotron's own bookkeeping"),
    "lighteval.*": Ignored("evaluation is a program of its own"),
    "profiler.*": Ignored("profiling is not part of a run"),
    "logging.iteration_step_info_interval": To("every.log"),
    "logging.*": Ignored(SCREEN),
    "model.ddp_bucket_cap_mb": Ignored(LAUNCH),
    "model.dtype": To("precision", {"bfloat16": "bf16", "float32": "fp32"}.__getitem__),
    "model.init_method.std": To("model.pretraining_init_std"),
    "model.init_method.scaling_method": Only(
        ("NUM_LAYERS", "num_layers"), "output projections are drawn from std / sqrt(2 * layers)"
    ),
    "model.make_vocab_size_divisible_by": Only((1,), "the vocabulary is not padded"),
    "model.model_config._attn_implementation": Ignored("the fastest kernel at hand is taken"),
    "model.model_config.attention_bias": To("model.attention_bias"),
    "model.model_config.bos_token_id": To("model.bos_token_id"),
    "model.model_config.eos_token_id": To("model.eos_token_id"),
    "model.model_config.hidden_act": To("model.hidden_act"),
    "model.model_config.hidden_size": To("model.hidden_size"),
    "model.model_config.initializer_range": To("model.initializer_range"),
    "model.model_config.intermediate_size": To("model.intermediate_size"),
    "model.model_config.is_llama_config": Only((True,), "Pleias models are of Llama's layout"),
    "model.model_config.max_position_embeddings": To("model.max_position_embeddings"),
    "model.model_config.num_attention_heads": To("model.num_attention_heads"),
    "model.model_config.num_hidden_layers": To("model.num_hidden_layers"),
    "model.model_config.num_key_value_heads": To("model.num_key_value_heads"),
    "model.model_config.pad_token_id": To("model.pad_token_id"),
    "model.model_config.pretraining_tp": Ignored(INFERENCE),
    "model.model_config.rms_norm_eps": To("model.rms_norm_eps"),
    "model.model_config.rope_interleaved": Ignored("weights that are drawn anew know no order of dimensions"),
    "model.model_config.rope_scaling": Only((), "positions are not scaled in pretraining"),
    "model.model_config.rope_theta": Only((10_000,), "rotary theta is 10,000 in every Pleias"),
    "model.model_config.tie_word_embeddings": To("model.tie_word_embeddings"),
    "model.model_config.use_cache": Ignored(INFERENCE),
    "model.model_config.vocab_size": To("model.vocab_size"),
    "model.model_config.z_loss_coefficient": Ignored("the z-loss is off"),
    "model.model_config.z_loss_enabled": Only((False,), "there is no z-loss"),
    "optimizer.accumulate_grad_in_fp32": Only((True,), "gradients are summed in fp32"),
    "optimizer.clip_grad": To("optimizer.clip"),
    "optimizer.learning_rate_scheduler.learning_rate": To("optimizer.learning_rate"),
    "optimizer.learning_rate_scheduler.lr_decay_starting_step": READ,
    "optimizer.learning_rate_scheduler.lr_decay_steps": To("optimizer.decay_steps"),
    "optimizer.learning_rate_scheduler.lr_decay_style": Only(("cosine",), "the decay is a cosine"),
    "optimizer.learning_rate_scheduler.lr_warmup_steps": To("optimizer.warmup_steps"),
    "optimizer.learning_rate_scheduler.lr_warmup_style": Only(("linear",), "the warm-up is linear"),
    "optimizer.learning_rate_scheduler.min_decay_lr": To("optimizer.final_learning_rate"),
    "optimizer.optimizer_factory.adam_beta1": To("optimizer.beta1"),
    "optimizer.optimizer_factory.adam_beta2": To("optimizer.beta2"),
    "optimizer.optimizer_factory.adam_eps": To("optimizer.epsilon"),
    "optimizer.optimizer_factory.name": Only(("adamW",), "the optimizer is AdamW"),
    "optimizer.optimizer_factory.torch_adam_is_fused": Ignored("it always is"),
    "optimizer.weight_decay": To("optimizer.weight_decay"),
    "optimizer.weight_decay_exclude_named_params": Only(([],), "weight decay is on every parameter"),
    "optimizer.zero_stage": Ignored(LAUNCH),
    "parallelism.dp": READ,
    "parallelism.expert_parallel_size": Only((1,), "there are no experts"),
    "parallelism.*": Ignored(LAUNCH),
    "tokenizer.tokenizer_name_or_path": To("data.tokenizer"),
    "tokenizer.tokenizer_max_length": Ignored("documents are never cut"),
    "tokenizer.tokenizer_revision": Only((), "a tokenizer is a folder"),
    "tokens.batch_accumulation_per_replica": READ,
    "tokens.limit_test_batches": Ignored("there is no test split"),
    "tokens.limit_val_batches": Ignored("validation_tokens says how much is read"),
    "tokens.micro_batch_size": To("micro_batch"),
    "tokens.sequence_length": To("sequence_length"),
    "tokens.train_steps": READ,
    "tokens.val_check_interval": READ,
}


def leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything in a tree that is neither a mapping nor a list of mappings."""
    if isinstance(value, dict) and value:
        return [leaf for name, below in value.items() for leaf in leaves(below, f"{key}.{name}".lstrip("."))]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return [leaf for one in value for leaf in leaves(one, key)]
    return [(key, value)]


def rule(key: str) -> To | Only | Ignored | None:
    """What becomes of a key: its own entry, else that of the nearest `.*` above it."""
    if key in KEYS:
        return KEYS[key]
    parts = key.split(".")
    above = (".".join(parts[:i]) + ".*" for i in range(len(parts), 0, -1))
    return next((KEYS[one] for one in above if one in KEYS), None)


def imported(settings: dict, *, replicas: list[int]) -> tuple[dict, dict[str, str]]:
    """Our config as a tree for YAML, and the keys that were ignored with the reason.

    A key that is null has nanotron's default, which is as if it were not there.

    Args:
        settings: the nanotron file.
        replicas: see `NanotronConfig`.

    Raises:
        InputError: naming a key that is unknown, missing, or has a value that ours cannot have.
    """
    ours: dict = {"name": ""}
    ignored = {}
    for key, value in leaves(settings):
        found = rule(key)
        section = any(known.startswith(key + ".") for known in KEYS)
        if found is None and not (section and value in (None, [], {})):
            raise InputError(f"{key} is not a key of nanotron's that can be imported; take it out of the file.")
        if found is None or value is None:
            continue
        if isinstance(found, Only) and value not in found.values:
            raise InputError(f"{key}: {value} cannot be imported: {found.why}.")
        if isinstance(found, Ignored) and found is not READ:
            ignored[key] = found.why
        if isinstance(found, To):
            try:
                put(ours, found.key, found.convert(value))
            except KeyError:
                why = "products are computed in bf16 or fp32"  # the one conversion that can fail
                raise InputError(f"{key}: {value} cannot be imported: {why}.") from None
    rates = need(settings, "optimizer.learning_rate_scheduler", dict)
    warmup = need(rates, "lr_warmup_steps")
    if rates.get("lr_decay_starting_step") not in (None, warmup, warmup + 1):
        raise InputError(
            f"optimizer.learning_rate_scheduler.lr_decay_starting_step: {rates['lr_decay_starting_step']} cannot be "
            f"imported: the decay begins where the warm-up ends, at {warmup}."
        )
    if rates.get("min_decay_lr") is None:
        put(ours, "optimizer.final_learning_rate", need(rates, "learning_rate", float))
    if (interval := (settings.get("tokens") or {}).get("val_check_interval") or -1) > 0:
        put(ours, "every.validate", interval)
    run = (settings.get("general") or {}).get("run") or ""
    ours["name"] = re.sub(r"[_-]?%(date|jobid)", "", run) or need(settings, "general.project", str)
    ours["stages"] = stages(settings, replicas=replicas)
    return ours, ignored


def stages(settings: dict, *, replicas: list[int]) -> list[dict]:
    """Our stages: lengths from the first steps, sequences from replicas x micro batch x accumulation."""
    found = sorted(need(settings, "data_stages", list), key=lambda stage: need(stage, "start_training_step"))
    replicas = replicas or [need(settings, "parallelism.dp")]
    if len(replicas) == 1:
        replicas = replicas * len(found)
    if len(replicas) != len(found):
        raise InputError(f"--replicas has {len(replicas)} numbers for {len(found)} stages; give one, or one for each.")
    each = need(settings, "tokens.micro_batch_size") * need(settings, "tokens.batch_accumulation_per_replica")
    starts = [need(stage, "start_training_step") for stage in found]
    ends = [*starts[1:], need(settings, "tokens.train_steps") + 1]
    if starts[0] != 1 or any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise InputError(
            f"data_stages begin at the steps {starts} and tokens.train_steps ends at {ends[-1] - 1}: the first must "
            "be 1, and each must have a step."
        )
    made = []
    for stage, start, end, count in zip(found, starts, ends, replicas, strict=True):
        name, data, dataset = need(stage, "name", str), need(stage, "data", dict), need(stage, "data.dataset", dict)
        folder = dataset.get("dataset_folder") or dataset.get("yt_dataset_path")
        folders = folder if isinstance(folder, list) else [folder]
        if len(folders) != 1 or not folders[0]:
            raise InputError(f"data_stages {name}: a stage reads one folder of shards, and names it.")
        one = {"name": name, "steps": end - start, "sequences": each * count, "shards": folders[0]}
        made.append(one if data.get("seed") is None else {**one, "seed": data["seed"]})
    return made


def need(settings: dict, key: str, kind: type = int) -> Any:
    """The value at a dotted key.

    Raises:
        InputError: when it is missing, empty or of another kind.
    """
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value in (None, [], {}):
        raise InputError(f"{key} is missing from the nanotron file; a run cannot be made without it.")
    if not isinstance(value, kind):
        raise InputError(f"{key}: {value} in the nanotron file is not of the kind {kind.__name__}.")
    return value


def put(tree: dict, key: str, value: Any) -> None:
    """Set a dotted key."""
    *above, last = key.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value


def convert(config: NanotronConfig) -> dict[str, str]:
    """Write `config.out`; return the ignored keys with the reason.

    Raises:
        InputError: as `imported`, or when the result is no pretraining config.
    """
    from .recipe import PretrainConfig  # lazy import: torch takes seconds, and --help does not need it

    try:
        settings = yaml.safe_load(config.nanotron.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config.nanotron} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{config.nanotron} is not a nanotron file: it has no sections.")
    ours, ignored = imported(settings, replicas=config.replicas)
    head = [f"# Imported from {config.nanotron.name} by training.nanotron. Its keys that change nothing here:"]
    head += [f"#   {key}: {why}" for key, why in ignored.items()]
    head += ["# Shards are made once per stage's folder: python -m training.shards --help"]
    with atomic(config.out) as path:
        path.write_text("\n".join(head) + "\n" + yaml.safe_dump(ours, sort_keys=False, allow_unicode=True))
        parse(PretrainConfig, ["--config", str(path)], description="").model_config()
    return ignored


def main() -> None:
    """`python -m training.nanotron`."""
    config = parse(NanotronConfig, description="Import a nanotron settings file as a pretraining config.")
    ignored = convert(config)
    for key, why in ignored.items():
        print(f"ignored {key}: {why}")
    print(f"wrote {config.out}; next: python -m training.plan --config {config.out}")


if __name__ == "__main__":
    program(main)
