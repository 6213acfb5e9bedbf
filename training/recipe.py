"""A pretraining run as data: its stages, model, optimizer and intervals; what `--config` names."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import StrictDataclassError

from modeling_pleias import PleiasConfig

from .config import InputError
from .corpus import CorpusConfig
from .prepare import DataConfig


@dataclass
class Stage:
    """One stretch of steps on one set of shards.

    Args:
        name: for the metrics.
        steps: optimizer steps.
        sequences: windows in a step, over all processes.
        shards: folder with manifest.json; the run's own (data.folder/shards) when not given.
        seed: of the order of data; the run's seed plus the stage's number when not given.
        learning_rate: constant in this stage; the run's schedule when not given.
    """

    name: str
    steps: int
    sequences: int
    shards: Path | None = None
    seed: int | None = None
    learning_rate: float | None = None


@dataclass
class OptimizerConfig:
    """AdamW and its learning rate. Defaults: the published 1.2b settings (nanotron YAML).

    Args:
        learning_rate: at its highest.
        final_learning_rate: at the end of the cosine, and from there on.
        warmup_steps: linear from 0.
        decay_steps: length of the cosine after the warm-up; to the end of the last stage when not given.
        beta1: of the first moment.
        beta2: of the second moment.
        epsilon: in the denominator.
        weight_decay: on every parameter, norms and embeddings too, as published.
        clip: gradient norm above which gradients are scaled down.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 60_000
    decay_steps: int | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0


@dataclass
class EveryConfig:
    """Steps between what is done once in a while.

    Args:
        log: a line in metrics.jsonl.
        validate: loss on held-out text; also at the first and the last step.
        checkpoint: state on disk; also at the end.
        keep: newest checkpoints that stay.
    """

    log: int = 10
    validate: int = 1000
    checkpoint: int = 1000
    keep: int = 2


@dataclass
class PretrainConfig:
    """A pretraining run.

    Args:
        name: of the run.
        stages: in order.
        model: fields of PleiasConfig that differ from nano 1.2b.
        corpus: where the text comes from.
        data: where corpus, tokenizer and shards lie; what is missing is made.
        optimizer: AdamW and its schedule.
        every: how often to log, validate and save.
        out: folder of the run; runs/NAME when not given.
        seed: of the weights and of the order of data.
        sequence_length: tokens predicted in a window (T).
        micro_batch: most windows that one process computes at once; a process's share of a step is cut evenly.
        precision: of matrix products; weights, optimizer and sums stay fp32. auto is bf16 where the processor has
            matrix units for it (CUDA, or AMX on CPUs) and fp32 elsewhere.
        compile: torch.compile each layer.
        validation_tokens: read per language and validation.
        country: ISO 3166 alpha-3 code whose electricity the emissions are computed with.
        shrink: when not 1, a dry run: steps, batches and model divided by it, on the demo's text (training.shrink).
    """

    name: str
    stages: list[Stage]
    model: dict[str, int | float | bool | str] = field(default_factory=dict)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    every: EveryConfig = field(default_factory=EveryConfig)
    out: Path | None = None
    seed: int = 42
    sequence_length: int = 2048
    micro_batch: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    validation_tokens: int = 20_000
    country: str = "FRA"
    shrink: int = 1

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / self.name

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def model_config(self) -> PleiasConfig:
        """The model's shape.

        Raises:
            InputError: when a field is unknown or the shape is impossible.
        """
        fields = {"max_position_embeddings": self.sequence_length, **self.model}
        if unknown := set(fields) - set(PleiasConfig.__dataclass_fields__):
            raise InputError(f"model: {', '.join(sorted(unknown))} is not a field of PleiasConfig.")
        try:
            config = PleiasConfig(**fields)
        except (StrictDataclassError, ValueError) as error:
            raise InputError(f"model: {str(error).splitlines()[-1].strip()}") from error
        if config.attention_dropout:
            raise InputError(
                "model: attention_dropout must be 0: a step draws no random numbers, so it can be repeated."
            )
        return config

    def learning_rate(self, step: int) -> float:
        """At optimizer step `step`, the first being 1: linear warm-up, then cosine, then flat."""
        o, first = self.optimizer, 0
        for stage in self.stages:
            if first < step <= first + stage.steps and stage.learning_rate is not None:
                return stage.learning_rate
            first += stage.steps
        if step <= o.warmup_steps:
            return o.learning_rate * step / o.warmup_steps
        decay = o.decay_steps or max(1, self.steps - o.warmup_steps)
        progress = min(1.0, (step - o.warmup_steps) / decay)
        return (
            o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
        )
