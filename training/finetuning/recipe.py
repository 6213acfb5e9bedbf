"""Configuration of a fine-tuning run, and the TRL arguments that follow from it."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, SFTConfig

from ..common.config import InputError
from ..step.compute import compute_dtype

METHODS = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}

# Differences from TRL's defaults. Learning rate: about ten times the last one of pretraining, which is 1e-5 for the
# 1.2b, as Pleias-RAG was tuned (arXiv 2504.18225), and like it less than two epochs. AdamW, clipping and weight decay:
# as in pretraining. No activation checkpointing: it costs a fifth of the speed, and the 1.2b fits without it
# (training.plan).
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
    "gradient_checkpointing": None,  # the same option by its old name, which TRL turns on
}
# Fields of TRL's configs that this program sets, and the setting that determines them.
RESERVED_TRAINER_ARGS = {
    "output_dir": "--out",
    "seed": "--seed",
    "data_seed": "--seed",
    "max_length": "--max_length",
    "bf16": "--precision",
    "fp16": "--precision",
    "eval_strategy": "--measure.steps",
    "eval_steps": "--measure.steps",
    "load_best_model_at_end": "--measure.steps",
    "resume_from_checkpoint": "the run folder: run the same command again to resume",
    "use_cpu": "the machine: the CPU is used if there is no accelerator",
}
SFT_RESERVED = {"assistant_only_loss": "--task", "shuffle_dataset": "--shuffle"}


@dataclass
class ReplayConfig:
    """Pretraining text mixed into the SFT examples, to reduce forgetting. All its tokens are in the loss.

    Args:
        share: Fraction of all training tokens per epoch, from 0 (no replay) to below 1.
        path: Folder of token shards built with the base model's tokenizer, or of Parquet files with Common Corpus
            columns.
    """

    share: float = 0.0
    path: Path | None = None


@dataclass
class MeasureConfig:
    """Task metrics on held-out rows, during training and at the end.

    Args:
        steps: Compute the metrics every N optimizer steps and at the last step, and keep the best checkpoint. If null,
            keep the last weights.
        selection_rows: Number of held-out rows that select the best checkpoint; excluded from the final comparison.
        rows: Maximum number of further held-out rows for the final comparison of base and tuned model. Default: all
            remaining rows.
        max_new_tokens: Maximum number of tokens per completion. Defaults to the task's own limit.
    """

    steps: int | None = 100
    selection_rows: int = 64
    rows: int | None = None
    max_new_tokens: int | None = None


@dataclass
class FinetuneConfig:
    """Full fine-tuning run.

    Args:
        name: Name of the run.
        task: Task to train for; it defines data, prompt format, decoding and metrics (training/tasks).
        base_model: Model to fine-tune: the folder of a Pleias model (model/ of a run, custom/ or llama/ of a release),
            or its id on the Hub.
        method: Training method. sft is supervised fine-tuning on reference completions; dpo prefers the reference
            completion to the base model's own; grpo is reinforcement learning with task metrics as reward.
        data: Settings of the task's data, such as --data.path FOLDER: fields of OcrData, TranslationData, RagData or
            InstructData (training/tasks).
        trainer: Fields of TRL's SFTConfig, DPOConfig or GRPOConfig, such as --trainer.learning_rate 1.0e-4. Defaults
            are TRL's, except those in DEFAULTS (training/finetuning/recipe.py).
        optimizer: adamw, or the optimizer that trainer.optim names; or muon as in pretraining, that is Muon for the
            matrices inside the layers and AdamW for all other parameters.
        max_steps: Total optimizer steps. Defaults to the steps of trainer.num_train_epochs epochs.
        max_length: Maximum number of tokens per example, prompt and completion together; longer examples are dropped.
            Defaults to the model's context length.
        shuffle: For SFT, shuffle the examples with `seed`. If false, keep their order, with replay text at the end. In
            both cases examples of similar length share a batch, within groups of 32 batches.
        candidates: For SFT on CPUs, number of tokens over which the loss is estimated, in addition to the tokens of
            the batch: half are the most frequent tokens of the examples, half are sampled at every step. Default: the
            full vocabulary, which GPUs always use.
        replay: Pretraining text mixed into the SFT examples.
        measure: Task metrics on held-out rows.
        preference_prompts: For DPO, number of prompts that the base model completes. A completion that equals the
            reference yields no preference pair.
        rewards: For GRPO, weight of each task metric in the reward, such as {cer: -1}. The weight of a metric of which
            lower values are better must be negative.
        out: Run folder. Defaults to runs/NAME.
        seed: Seed of the data order and of sampling.
        precision: Dtype of matmuls. Weights, optimizer state and reductions stay fp32. auto selects bf16 on devices
            with bf16 instructions (CUDA, CPUs with AMX or AVX512-BF16), else fp32.
        country: ISO 3166 alpha-3 code of the country whose electricity mix the emissions are computed with.
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
    shuffle: bool = True
    candidates: int | None = None
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    preference_prompts: int = 1000
    rewards: dict[str, float] = field(default_factory=dict)
    out: Path | None = None
    seed: int = 42
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    country: str = "FRA"

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.out or Path("runs") / self.name

    def check(self) -> None:
        """Check the settings against each other, before anything is loaded.

        Raises:
            InputError: If a setting is invalid; the message names it.
        """
        fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
        if fsdp or self.trainer.get("fsdp") or self.trainer.get("deepspeed"):
            raise InputError(
                "Fine-tuning keeps the full model on each GPU (DDP), which models of this size allow: launch without "
                "FSDP and DeepSpeed."
            )
        if self.replay.share and self.method != "sft":
            raise InputError(f"replay.share needs --method sft: {self.method} trains on completions, not on text.")
        if self.candidates and self.method != "sft":
            raise InputError(f"candidates needs --method sft: the loss of {self.method} needs the full vocabulary.")
        if not 0 <= self.replay.share < 1:
            raise InputError(f"replay.share must be from 0 to below 1, got {self.replay.share}.")
        if self.replay.share and self.replay.path is None:
            raise InputError("replay.share needs --replay.path: a folder of token shards, or of Parquet files.")
        if self.method == "grpo" and not self.rewards:
            raise InputError("method grpo needs --rewards: a weight for metrics of the task, such as {cer: -1}.")
        if self.measure.selection_rows < 1 or (self.measure.steps is not None and self.measure.steps < 1):
            raise InputError(
                "measure.steps and measure.selection_rows must be at least 1 (or steps null: keep the last weights)."
            )

    def arguments(self, max_length: int) -> TrainingArguments:
        """Return the TRL config of this run on this machine.

        Raises:
            InputError: If a field is unknown to TRL, is set by another option, or has an invalid value.
        """
        config_class = METHODS[self.method]
        known = {field.name for field in fields(config_class)}
        reserved = RESERVED_TRAINER_ARGS | (SFT_RESERVED if self.method == "sft" else {})
        for key in self.trainer:
            if key in reserved:
                raise InputError(f"trainer.{key} is set by {reserved[key]}.")
            if key not in known:
                raise InputError(f"trainer.{key} is not a field of TRL's {config_class.__name__}.")
        if self.trainer.get("packing") or self.trainer.get("padding_free"):
            raise InputError(
                "trainer.packing and padding_free need FlashAttention: with the attention used here, examples would "
                "attend to each other, or the mask would grow with the square of all tokens. Instead, examples of "
                "similar length share a batch."
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
            "disable_tqdm": True,  # StepCallback has its own progress bar
        }
        if self.max_steps is not None:
            values["max_steps"] = self.max_steps
        if self.method == "sft":  # finetuning.examples drops long examples and orders the others
            values |= {"max_length": None, "train_sampling_strategy": "sequential"}
            values["assistant_only_loss"] = self.task == "instruct"
        elif self.method == "dpo":
            values = {"precompute_ref_log_probs": True, **values, "max_length": max_length}
        # TRL opens a reference model by its path, and finds only classes that transformers contains.
        if not values.get("precompute_ref_log_probs", True) or values.get("beta") and self.method == "grpo":
            raise InputError(
                "trainer: TRL cannot open a second copy of a Pleias model. Keep precompute_ref_log_probs true (dpo) "
                "or beta 0 (grpo)."
            )
        try:
            return config_class(**values)
        except (ValueError, TypeError) as error:
            raise InputError(f"trainer: {str(error).splitlines()[0]}") from error
