"""Configuration of a pretraining run: stages, model, optimizer and intervals."""

from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import StrictDataclassError

from modeling_pleias import PleiasConfig

from ..common.config import InputError
from ..data.corpus_builder import CorpusConfig
from ..step.optimizer import OptimizerConfig, learning_rate
from .prepare import DataConfig


@dataclass
class Stage:
    """A number of steps on one set of shards.

    Args:
        name: Name in the metrics.
        steps: Optimizer steps.
        sequences: Windows per step, over all processes.
        shards: Folder with manifest.json. Defaults to the run's own shards, data.folder/shards.
        seed: Seed of the data order. Defaults to the run's seed plus the index of the stage.
        learning_rate: Constant learning rate of this stage. Defaults to the run's schedule.
        candidates: Number of tokens that the loss of a step is computed over (sampled softmax,
            training.step.sampled_softmax): half
            of them the most common, half sampled. Faster if the vocabulary is most of the model and a step is small.
            The training loss is then an estimate; validation is always over all tokens. Default: all tokens.
    """

    name: str
    steps: int
    sequences: int
    shards: Path | None = None
    seed: int | None = None
    learning_rate: float | None = None
    candidates: int | None = None


@dataclass
class IntervalConfig:
    """Intervals in optimizer steps, and checkpoint retention.

    Args:
        log: Write a line to metrics.jsonl every N steps.
        validate: Compute the loss on held-out text every N steps, and at the first and the last step.
        samples: Write sample continuations to samples.jsonl every N steps. Default: only at the end.
        checkpoint: Save a checkpoint every N steps, and at the end.
        keep: Number of latest checkpoints to keep.
        background: Save asynchronously. Needs host memory for a copy of the weights and the optimizer state.
    """

    log: int = 10
    validate: int = 1000
    samples: int | None = None
    checkpoint: int = 1000
    keep: int = 2
    background: bool = True


@dataclass
class PretrainConfig:
    """A pretraining run.

    Args:
        name: Name of the run.
        stages: Stages in training order, each with its name, steps, sequences and shards (--stages.help).
        init_from: Folder of a model to continue (continued pretraining). The architecture is that of the model, and
            the shards must be built with its tokenizer. By default weights are randomly initialised.
        model: Fields of PleiasConfig, such as --model.hidden_size 1024. Default: nano 1.2b.
        corpus: Source of the text.
        data: Location of corpus, tokenizer and shards. Missing parts are built.
        optimizer: Optimizer and learning-rate schedule.
        every: Intervals of logging, validation, samples and checkpoints.
        out: Run folder. Defaults to runs/NAME.
        seed: Seed of the weights and of the data order.
        sequence_length: Tokens predicted per window (T), in training and in validation.
        micro_batch: Maximum windows that one process computes at once. Its windows of a step are divided evenly.
        precision: Dtype of matmuls. Weights, optimizer state and reductions stay fp32. auto selects bf16 on devices
            with bf16 instructions (CUDA, CPUs with AMX or AVX512-BF16), else fp32.
        compile: Compile each layer with torch.compile.
        max_nonfinite_steps: Stop the run after N consecutive steps with a NaN or infinite loss or gradient norm. Each
            such step is skipped.
        validation_tokens: Tokens of held-out text per language in each validation.
        trackers: Experiment trackers that receive the values of metrics.jsonl. Each is a package to install.
        country: ISO 3166 alpha-3 code of the country whose electricity mix the emissions are computed with.
        shrink: Divide steps, batches and model by N and train on the text of the demo config: a dry run of all stages
            (training.pretraining.shrink). Default: 1, no dry run.
    """

    name: str
    stages: list[Stage]
    init_from: Path | None = None
    model: dict[str, int | float | bool | str] = field(default_factory=dict)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    every: IntervalConfig = field(default_factory=IntervalConfig)
    out: Path | None = None
    seed: int = 42
    sequence_length: int = 2048
    micro_batch: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    max_nonfinite_steps: int = 10
    validation_tokens: int = 20_000
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
    country: str = "FRA"
    shrink: int = 1

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.out or Path("runs") / self.name

    @property
    def steps(self) -> int:
        """Total optimizer steps."""
        return sum(stage.steps for stage in self.stages)

    def model_config(self) -> PleiasConfig:
        """Return the model config.

        Raises:
            InputError: If a field is unknown, the architecture is impossible, or the model to continue does not exist.
        """
        if self.init_from is not None:
            if self.model:
                raise InputError(f"model: the architecture is that of init_from {self.init_from}. Remove model.")
            if not (self.init_from / "config.json").is_file():
                raise InputError(f"init_from {self.init_from} is not a model folder: it has no config.json.")
            return PleiasConfig.from_pretrained(self.init_from)
        fields = {"max_position_embeddings": self.sequence_length, **self.model}
        if unknown := set(fields) - set(PleiasConfig.__dataclass_fields__):
            raise InputError(f"model: {', '.join(sorted(unknown))} is not a field of PleiasConfig.")
        try:
            config = PleiasConfig(**fields)
        except (StrictDataclassError, ValueError) as error:
            raise InputError(f"model: {str(error).splitlines()[-1].strip()}") from error
        if config.attention_dropout:
            raise InputError("model: attention_dropout must be 0: steps use no random numbers, so that they repeat.")
        return config

    @property
    def first_steps(self) -> list[int]:
        """First optimizer step of each stage, counted from 1."""
        return list(accumulate((stage.steps for stage in self.stages[:-1]), initial=1))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at optimizer step `step`, counted from 1: the stage's, or that of the schedule."""
        for stage, first in zip(self.stages, self.first_steps, strict=True):
            if first <= step < first + stage.steps and stage.learning_rate is not None:
                return stage.learning_rate
        return learning_rate(self.optimizer, step, steps=self.steps)

    def data_seed(self, stage: int) -> int:
        """Return the seed of the data order of a stage, counted from 0."""
        seed = self.stages[stage].seed
        return self.seed + stage if seed is None else seed
