"""TRL's trainers with atomic checkpoints, reproducible random numbers and a fast loss on CPUs; and their callback."""

import functools
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback
from trl import DPOTrainer, GRPOTrainer, SFTTrainer

from ..run import checkpoint
from ..run.stopping import StopSignal
from ..step.loss import LinearCrossEntropy
from ..step.optimizer import OptimizerConfig, build_optimizer
from ..step.sampled_softmax import Candidates, SampledCrossEntropy, tokens_by_frequency
from .examples import IGNORE_INDEX, Examples, append_replay


class SafetensorsCheckpointMixin:
    """Trainer mixin that writes atomic safetensors checkpoints, as pretraining does, instead of pickles.

    Besides weights and optimizer state, a checkpoint contains only JSON: trainer state, scheduler state, and
    `identity`, which must match on resume. It stores no RNG state, because `StepCallback` reseeds every step.
    """

    identity: dict
    muon = False  # use pretraining's Muon instead of the optimizer that `args` names
    saver: checkpoint.CheckpointSaver | None = None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Create the optimizer of Trainer, or pretraining's Muon with Trainer's AdamW settings."""
        if not self.muon:
            return super().create_optimizer(model)
        if self.optimizer is None:
            names = {"beta1": "adam_beta1", "beta2": "adam_beta2", "epsilon": "adam_epsilon"}
            names |= {name: name for name in ("learning_rate", "weight_decay")}
            settings = {name: getattr(self.args, trainer_name) for name, trainer_name in names.items()}
            self.optimizer = build_optimizer(OptimizerConfig(name="muon", **settings), self.model)
            self.optimizer.found_inf = torch.zeros((), device=self.args.device)  # never skip a step
        return self.optimizer

    def _save_checkpoint(self, model, trial) -> None:
        optimizer = self.optimizer.optimizer  # Accelerate wraps it
        if self.saver is None:
            folder, keep = Path(self.args.output_dir) / "checkpoints", self.args.save_total_limit or 2
            self.saver = checkpoint.CheckpointSaver(folder, self.model, optimizer, keep=keep, background=False)
        loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean().item()  # sum since the last logged step
        state = {"identity": self.identity, "schedule": self.lr_scheduler.state_dict(), "trainer": asdict(self.state)}
        self.saver.save(self.state.global_step, state | {"loss": [loss, self._globalstep_last_logged]})
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Do nothing: Trainer calls this before it has an optimizer, with which the weights are restored."""

    def _load_optimizer_and_scheduler(self, resume_from_checkpoint) -> None:
        if resume_from_checkpoint is None:
            return
        self.earlier = earlier = checkpoint.Checkpoint(Path(resume_from_checkpoint).parent, self.state.global_step)
        earlier.restore(self.model, self.optimizer.optimizer)
        self.lr_scheduler.load_state_dict(earlier.state["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_rng_state(self, resume_from_checkpoint) -> None:
        """Restore the sum of losses: Trainer calls this last, after it has set the sum to 0. There is no RNG state."""
        loss, self._globalstep_last_logged = self.earlier.state["loss"]
        self._tr_loss += loss


class PleiasSFTTrainer(SafetensorsCheckpointMixin, SFTTrainer):
    """SFTTrainer with replay text, this project's order of examples, and on CPUs this project's loss.

    On CPUs TRL computes the loss of every position, also of prompts and padding, over the full vocabulary with
    PyTorch's own operations; here it is computed for labelled positions only. On GPUs TRL's kernel does that already.
    On CPUs the attention mask is dropped as well: padding is on the right, where causal attention does not look, and
    attention without a mask is faster.

    Args:
        order: Indices of the examples of each step in turn, replay text after the rows of `train_dataset`.
        replay: Pretraining text, or None.
        dtype: Dtype of the loss's matmuls.
        candidates: Size of the vocabulary sample for the loss on CPUs; None for the full vocabulary.
    """

    def __init__(self, *args, order: list[int], replay: Examples | None, dtype, candidates: int | None, **kwargs):
        super().__init__(*args, **kwargs)
        rows = append_replay(self.train_dataset, replay) if replay else self.train_dataset
        self.train_dataset = rows.select(order)
        self.summed = self.args.device.type == "cpu"
        if self.summed:
            sizes = candidates, self.model.config.vocab_size
            self.draw = None if candidates is None else BatchCandidateSampler(self.train_dataset["input_ids"], *sizes)
            add_summed_loss(self.model, dtype, self.draw)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the summed loss of a process's labels, divided by the step's labels on all processes, as in TRL."""
        if not self.summed or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total = model(input_ids=inputs["input_ids"], labels=inputs["labels"], summed_loss=True)
        averaged = self.args.average_tokens_across_devices  # DDP takes the mean over processes
        return total / num_items_in_batch * (self.accelerator.num_processes if averaged else 1)


class BatchCandidateSampler:
    """Sampler of loss candidates: the batch's tokens, the most frequent tokens, and a random sample of the others.

    The tokens of the prompts are always among them, so the model learns to copy against everything else that could be
    copied. Sampling uses the step's random numbers; each process samples for its own part of the batch.

    Args:
        sequences: Token ids of the examples, for the token frequencies.
        size: Number of candidates in addition to the batch's tokens: half the most frequent, half sampled.
        vocab_size: Vocabulary size.

    Raises:
        InputError: If `size` is not an even number below `vocab_size`.
    """

    def __init__(self, sequences: list[list[int]], size: int, vocab_size: int):
        self.common = torch.from_numpy(tokens_by_frequency(sequences, size, vocab_size)[: size // 2].copy())
        self.vocab_size = vocab_size

    def __call__(self, ids_BT: torch.Tensor) -> Candidates:
        """Sample the candidates of a batch."""
        certain = torch.cat([self.common, ids_BT.reshape(-1)]).unique()
        free = torch.ones(self.vocab_size, dtype=torch.bool)
        free[certain] = False
        others = free.nonzero()[:, 0]
        sampled = others[torch.randperm(len(others))[: len(self.common)]]
        log_weight = float(np.log(len(others) / len(sampled))) if len(sampled) else 0.0
        return Candidates(torch.cat([certain, sampled]), len(certain), log_weight)


def add_summed_loss(model: PreTrainedModel, dtype: torch.dtype, draw: BatchCandidateSampler | None = None) -> None:
    """Let `model(input_ids=, labels=, summed_loss=True)` return the summed cross-entropy (nats) of all labels.

    Args:
        dtype: Dtype of the matmuls.
        draw: Sampler of the candidates over which the loss is estimated. Default: the full vocabulary.
    """
    usual_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` inspects the signature
    def forward(self, *args, summed_loss: bool = False, **kwargs):
        if not summed_loss:
            return usual_forward(*args, **kwargs)
        targets = kwargs["labels"][:, 1:]
        hidden = self.model(kwargs["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        in_loss = targets != IGNORE_INDEX
        inputs = hidden[in_loss], self.lm_head.weight, targets[in_loss]
        if draw is None:
            return LinearCrossEntropy.apply(*inputs, dtype) * in_loss.sum()
        return SampledCrossEntropy.apply(*inputs, draw(kwargs["input_ids"]), dtype) * in_loss.sum()

    model.forward = types.MethodType(forward, model)


class PleiasDPOTrainer(SafetensorsCheckpointMixin, DPOTrainer):
    """DPOTrainer with atomic checkpoints."""


class PleiasGRPOTrainer(SafetensorsCheckpointMixin, GRPOTrainer):
    """GRPOTrainer with atomic checkpoints."""


class StepCallback(TrainerCallback):
    """Callback that seeds every step, shows progress, logs, evaluates, and stops on a signal.

    Args:
        title: Title of the progress bar.
        log: MetricsLog on the main process, None on others.
        accelerator: The trainer's accelerator.
        every: Steps between two evaluations; None for no evaluation.
        measure: Evaluation, called on every process with the model and the number of steps done; returns a message.
    """

    def __init__(self, title: str, log, accelerator: Accelerator, *, every: int | None, measure: Callable):
        self.title, self.log, self.accelerator = title, log, accelerator
        self.every, self.measure = every, measure
        self.stop, self.stopped = StopSignal(), None

    def on_train_begin(self, args, state, control, **kwargs):
        total, done = state.max_steps, state.global_step
        self.bar = tqdm(total=total, initial=done, desc=self.title, unit="step", disable=self.log is None)

    def on_step_begin(self, args, state, control, **kwargs):
        number = state.global_step * args.world_size + args.process_index
        set_seed((args.seed + 1_000_003 * number) % 2**32)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step, last = state.global_step, state.global_step == state.max_steps
        self.bar.update()
        if self.every and (step % self.every == 0 or last):
            self.bar.write(self.measure(model, step))
        if stopped := self.stop.received_by_all(self.accelerator, now=step % int(args.logging_steps) == 0):
            self.stopped = stopped
            control.should_save = control.should_training_stop = True
        control.should_log |= last

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.log is not None and "loss" in logs:
            self.log.write({"step": state.global_step} | logs)
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
