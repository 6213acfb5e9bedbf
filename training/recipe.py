"""A pretraining run as data: its stages, model, optimizer and intervals; what `--config` names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import StrictDataclassError

from modeling_pleias import PleiasConfig

from .config import InputError
from .corpus import CorpusConfig
from .guard import GuardConfig
from .optimizer import OptimizerConfig, learning_rate
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
        candidates: tokens that a step's loss is over, half the most common and half drawn (training.sampled): faster
            where the vocabulary is most of the model and a step is small. The loss is then an estimate, without
            z-loss; held-out text is always measured over all tokens. All of them when not given.
    """

    name: str
    steps: int
    sequences: int
    shards: Path | None = None
    seed: int | None = None
    learning_rate: float | None = None
    candidates: int | None = None


@dataclass
class EveryConfig:
    """Steps between what is done once in a while.

    Args:
        log: a line in metrics.jsonl.
        validate: loss on held-out text; also at the first and the last step.
        samples: continuations in every language into samples.jsonl; at the end alone when not given.
        checkpoint: state on disk; also at the end.
        permanent: a checkpoint that stays for good; none when not given.
        keep: newest checkpoints that stay.
        background: go on training while a checkpoint is written; takes host memory for a copy of weights and moments.
    """

    log: int = 10
    validate: int = 1000
    samples: int | None = None
    checkpoint: int = 1000
    permanent: int | None = None
    keep: int = 2
    background: bool = True


@dataclass
class PretrainConfig:
    """A pretraining run.

    Args:
        name: of the run.
        stages: in order.
        init_from: folder of a model whose weights the run goes on from (continued pretraining); the shape is its own,
            and the shards are those of its tokenizer. Weights are drawn when not given.
        average_with: folder of another model of that shape and tokenizer: the run goes on from the mean of both, which
            for two runs of femto was better than either (training/bench/RESULTS.md).
        model: fields of PleiasConfig that differ from nano 1.2b.
        corpus: where the text comes from.
        data: where corpus, tokenizer and shards lie; what is missing is made.
        optimizer: its settings and its schedule.
        guard: against losses and gradients that are no numbers, and spikes.
        every: how often to log, validate and save.
        out: folder of the run; runs/NAME when not given.
        seed: of the weights and of the order of data.
        sequence_length: tokens predicted in a window (T).
        micro_batch: most windows that one process computes at once; a process's share of a step is cut evenly.
        precision: of matrix products; weights, optimizer and sums stay fp32. auto is bf16 where the processor has
            instructions for it (CUDA, or AMX or AVX512-BF16 on CPUs) and fp32 elsewhere.
        compile: torch.compile each layer.
        document_mask: keep attention inside documents; without it, as in the original, a window is one text.
        z_loss: added times the mean square of the logits' log-sum-exp, which keeps logits small; 1e-4 where used.
        validation_tokens: read per language and validation.
        trackers: that are told what metrics.jsonl is told: tensorboard, trackio, wandb; each is a package to install.
        country: ISO 3166 alpha-3 code whose electricity the emissions are computed with.
        shrink: when not 1, a dry run: steps, batches and model divided by it, on the demo's text (training.shrink).
    """

    name: str
    stages: list[Stage]
    init_from: Path | None = None
    average_with: Path | None = None
    model: dict[str, int | float | bool | str] = field(default_factory=dict)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    every: EveryConfig = field(default_factory=EveryConfig)
    out: Path | None = None
    seed: int = 42
    sequence_length: int = 2048
    micro_batch: int = 8
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    document_mask: bool = False
    z_loss: float = 0.0
    validation_tokens: int = 20_000
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
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
            InputError: when a field is unknown or the shape is impossible, or there is no model to go on from.
        """
        if self.average_with is not None and self.init_from is None:
            raise InputError("average_with: a mean takes two models; name the other as init_from.")
        if self.init_from is not None and self.model:
            raise InputError(f"model: its shape is that of init_from {self.init_from}; leave model out.")
        for name, folder in (("init_from", self.init_from), ("average_with", self.average_with)):
            if folder is not None and not (folder / "config.json").is_file():
                raise InputError(f"{name} {folder} is no folder of a model (it has no config.json).")
        if self.init_from is not None:
            return PleiasConfig.from_pretrained(self.init_from)
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
        """At optimizer step `step`, the first being 1: its stage's, or the schedule's."""
        first = 0
        for stage in self.stages:
            if first < step <= first + stage.steps and stage.learning_rate is not None:
                return stage.learning_rate
            first += stage.steps
        return learning_rate(self.optimizer, step, steps=self.steps)

    def order_seed(self, stage: int) -> int:
        """Of the order of data in the stage of that number, the first being 0."""
        seed = self.stages[stage].seed
        return self.seed + stage if seed is None else seed
