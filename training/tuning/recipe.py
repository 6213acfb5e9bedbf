"""A fine-tuning run as data: its base, task, method, data and trainer; what `--config` names."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, SFTConfig

from ..compute import compute_dtype
from ..config import InputError

METHODS = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}
LORA = (
    "the original's card does not recommend LoRA at this size: fine-tune all parameters, which a model this small "
    "allows (training.plan --finetune), or insist with --allow_peft true"
)

# What differs from TRL. Learning rate: about ten times the last one of pretraining, which is 1e-5 for the 1.2b, as
# Pleias-RAG was tuned (arXiv 2504.18225), and like it less than two passes. AdamW, clipping and decay: as in
# pretraining. Nothing is recomputed: that costs a fifth of the speed, and the 1.2b fits without (training.plan).
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "adam_beta2": 0.95,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "save_steps": 200,
    "save_total_limit": 2,
    "activation_checkpointing": False,
    "gradient_checkpointing": None,  # the same by its old name, which TRL turns on
}
# Fields of TRL's configs that a setting of this program decides; None: that this program leaves alone.
OURS = {
    "output_dir": "--out",
    "seed": "--seed",
    "data_seed": "--seed",
    "max_length": "--max_length",
    "bf16": "--precision",
    "fp16": "--precision",
    "eval_strategy": "--measure.steps",
    "eval_steps": "--measure.steps",
    "load_best_model_at_end": "--measure.steps",
    "resume_from_checkpoint": "the same command, which goes on by itself",
    "use_cpu": "the machine: the CPU is used where there is no accelerator",
}


@dataclass
class ReplayConfig:
    """Pretraining text among the examples, against forgetting; all its tokens are learnt.

    Args:
        share: of all tokens read in a pass.
        path: folder of token shards made with the base's tokenizer, or of Parquet with Common Corpus columns.
    """

    share: float = 0.0
    path: Path | None = None


@dataclass
class MeasureConfig:
    """When the task's metric is taken, and on how much of the held-out data.

    Args:
        steps: between two measurements in training, the best of which decides what is kept; without it the last
            weights are.
        watched: held-out rows for them, which the comparison at the end leaves out.
        rows: further held-out rows, on which base and result are compared; all that remain when not given.
        max_new_tokens: most tokens of an answer; the task's own when not given.
        batch_tokens: most tokens of a batch of prompts and answers.
    """

    steps: int | None = 100
    watched: int = 64
    rows: int | None = None
    max_new_tokens: int | None = None
    batch_tokens: int = 8192


@dataclass
class FinetuneConfig:
    """A fine-tuning run.

    Args:
        name: of the run.
        task: what is learnt (training/tasks): format, data and metric.
        base_model: folder of a Pleias model (model/ of a run, custom/ or llama/ of a release) or its name on the Hub.
        method: sft, supervised; dpo, the right answer preferred to the base's own; grpo, the task's metrics as reward.
        data: settings of the task's data: fields of OcrData, TranslationData, RagData or InstructData.
        trainer: fields of TRL's SFTConfig, DPOConfig or GRPOConfig that differ.
        optimizer: muon is pretraining's: Muon for the matrices inside the layers, AdamW for the rest.
        max_steps: optimizer steps; as many as trainer.num_train_epochs takes when not given.
        max_length: most tokens of an example; the model's context when not given.
        over_long: what becomes of longer examples; cut ones do not learn where to end.
        shuffle: learn in an order of the seed; if not, the rows as they come, pretraining text after them.
        candidates: for sft on CPUs, tokens beside the batch's own that the loss is estimated over: half the examples'
            most common, half drawn at each step; the whole vocabulary when not given, and on GPUs.
        replay: pretraining text among the examples.
        measure: when and on what the metric is taken.
        pairs: for dpo, prompts that the base answers; answers that are right make no pair.
        rewards: for grpo, the weight of each metric of the task in the reward; lower is better: below zero.
        allow_peft: let an adapter (peft) be trained instead of all parameters.
        peft: fields of peft.LoraConfig.
        out: folder of the run; runs/NAME when not given.
        seed: of the order of data and of what is sampled.
        precision: of matrix products; weights and optimizer stay fp32. auto is bf16 where the processor has
            instructions for it (CUDA, or AMX or AVX512-BF16 on CPUs) and fp32 elsewhere.
        country: ISO 3166 alpha-3 code whose electricity the emissions are computed with.
    """

    name: str
    task: Literal["ocr", "translation", "rag", "instruct"]
    base_model: str
    method: Literal["sft", "dpo", "grpo"] = "sft"
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    optimizer: Literal["adamw", "muon"] = "adamw"
    max_steps: int | None = None
    max_length: int | None = None
    over_long: Literal["leave_out", "cut"] = "leave_out"
    shuffle: bool = True
    candidates: int | None = None
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    pairs: int = 1000
    rewards: dict[str, float] = field(default_factory=dict)
    allow_peft: bool = False
    peft: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    seed: int = 42
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    country: str = "FRA"

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / self.name

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            InputError: naming the setting.
        """
        if (
            os.environ.get("ACCELERATE_USE_FSDP") == "true"
            or self.trainer.get("fsdp")
            or self.trainer.get("deepspeed")
        ):
            raise InputError(
                "Fine-tuning keeps a whole copy on each GPU (DDP), which models of this size allow: launch without "
                "FSDP and DeepSpeed."
            )
        if self.peft and not self.allow_peft:
            raise InputError(f"peft is asked for, and {LORA}.")
        if self.peft and self.optimizer == "muon":
            raise InputError("optimizer muon is for all parameters: leave it out with peft.")
        if self.replay.share and self.method != "sft":
            raise InputError(f"replay.share needs --method sft: {self.method} learns from answers, not from text.")
        if self.candidates and self.method != "sft":
            raise InputError(f"candidates needs --method sft: {self.method} compares whole answers.")
        if not 0 <= self.replay.share < 1:
            raise InputError(f"replay.share {self.replay.share} is not a share: give a number from 0 to below 1.")
        if self.replay.share and self.replay.path is None:
            raise InputError("replay.share needs --replay.path: a folder of shards, or of Parquet.")
        if self.method == "grpo" and not self.rewards:
            raise InputError("method grpo needs --rewards: a weight for metrics of the task, such as {cer: -1}.")
        if self.measure.watched < 1 or (self.measure.steps is not None and self.measure.steps < 1):
            raise InputError("measure.steps and measure.watched are to be 1 or more (no steps: null).")

    def arguments(self, max_length: int) -> TrainingArguments:
        """TRL's own config for this run, on this machine.

        Raises:
            InputError: for a field that TRL does not know, one that another setting decides, or a value it refuses.
        """
        config_class = METHODS[self.method]
        known = {one.name for one in fields(config_class)}
        for key in self.trainer:
            if key in OURS:
                raise InputError(f"trainer.{key} is decided by {OURS[key]}.")
            if key not in known:
                raise InputError(f"trainer.{key} is not a field of TRL's {config_class.__name__}.")
        if self.trainer.get("packing") or self.trainer.get("padding_free"):
            raise InputError(
                "trainer.packing and padding_free need FlashAttention: with the attention used here one example would "
                "see the other, or the mask be of all tokens squared. Examples of like length share a batch instead."
            )
        accelerator = torch.accelerator.is_available()
        device = torch.accelerator.current_accelerator() if accelerator else torch.device("cpu")
        values = {key: value for key, value in DEFAULTS.items() if key in known} | {
            "report_to": "none",
            "remove_unused_columns": self.method == "sft",
            **self.trainer,
            "output_dir": str(self.folder),
            "seed": self.seed,
            "data_seed": self.seed,
            "bf16": compute_dtype(self.precision, device) == torch.bfloat16,
            "use_cpu": not accelerator,
            "disable_tqdm": True,  # the bar is ours (tuning.trainers)
        }
        if self.max_steps is not None:
            values["max_steps"] = self.max_steps
        if self.method == "sft":  # examples come in lengths and in an order of our own (tuning.examples)
            values |= {"max_length": None, "train_sampling_strategy": "sequential"}
        elif self.method == "dpo":
            values = {"precompute_ref_log_probs": True, **values, "max_length": max_length}
        # TRL opens a reference model by its path, and looks its class up in transformers alone.
        if not values.get("precompute_ref_log_probs", True) or values.get("beta") and self.method == "grpo":
            raise InputError(
                "trainer: TRL cannot open a second copy of a Pleias model; leave precompute_ref_log_probs true (dpo), "
                "or beta 0 (grpo)."
            )
        try:
            return config_class(**values)
        except (ValueError, TypeError) as error:
            raise InputError(f"trainer: {str(error).splitlines()[0]}") from error
