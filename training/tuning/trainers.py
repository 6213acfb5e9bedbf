"""TRL's trainers with this project's checkpoints, random numbers and loss on CPUs; and what happens around a step."""

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

from .. import checkpoint
from ..config import InputError
from ..loss import LinearCrossEntropy
from ..metrics import MetricsLog
from ..optimizer import OptimizerConfig, build
from ..sampled import Candidates, SampledCrossEntropy
from ..stopping import StopSignal
from .examples import IGNORED


class Whole:
    """Mixed into a TRL trainer: checkpoints that are whole or not there, pretraining's, in place of its pickles.

    What they hold besides weights and moments is JSON: the trainer's own state, the schedule's, and `identity`, what
    they are good for. No generator is in it, because each step begins with random numbers of its own (`Around`).
    """

    identity: dict
    muon = False  # pretraining's optimizer instead of the one that `args` names
    saver: checkpoint.Saver | None = None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As Trainer, or pretraining's with the settings that Trainer has for AdamW."""
        if not self.muon:
            return super().create_optimizer(model)
        if self.optimizer is None:
            names = {"beta1": "adam_beta1", "beta2": "adam_beta2", "epsilon": "adam_epsilon"}
            names |= {name: name for name in ("learning_rate", "weight_decay")}
            settings = {ours: getattr(self.args, theirs) for ours, theirs in names.items()}
            self.optimizer = build(OptimizerConfig(name="muon", **settings), self.model)
            self.optimizer.found_inf = torch.zeros((), device=self.args.device)  # no step is left out
        return self.optimizer

    def _save_checkpoint(self, model, trial) -> None:
        optimizer = self.optimizer.optimizer  # under Accelerate's wrapper
        if self.saver is None:
            folder, keep = Path(self.args.output_dir) / "checkpoints", self.args.save_total_limit or 2
            self.saver = checkpoint.Saver(folder, self.model, optimizer, keep=keep, background=False)
        loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean().item()  # since the last line of the log
        state = {"identity": self.identity, "schedule": self.lr_scheduler.state_dict(), "trainer": asdict(self.state)}
        self.saver.save(self.state.global_step, state | {"loss": [loss, self._globalstep_last_logged]})
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Called before there is an optimizer; the weights are restored with it."""

    def _load_optimizer_and_scheduler(self, resume_from_checkpoint) -> None:
        if resume_from_checkpoint is None:
            return
        self.earlier = earlier = checkpoint.Checkpoint(Path(resume_from_checkpoint).parent, self.state.global_step)
        earlier.restore(self.model, self.optimizer.optimizer)
        self.lr_scheduler.load_state_dict(earlier.state["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_rng_state(self, resume_from_checkpoint) -> None:
        """There is none: every step seeds its own. It is the last to be called, when the sum of losses is set to 0."""
        loss, self._globalstep_last_logged = self.earlier.state["loss"]
        self._tr_loss += loss


class Supervised(Whole, SFTTrainer):
    """On CPUs the loss is this project's, of learnt positions alone.

    There TRL scores every position, prompts and padding too, with PyTorch's own operations over the whole vocabulary;
    on GPUs its kernel takes the learnt ones, and is left as it is. The mask of a batch goes, too: padding is on the
    right, where causal attention does not look, and without a mask it takes its fast way.
    """

    def __init__(self, *args, dtype: torch.dtype, candidates: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.summed = self.args.device.type == "cpu" and kwargs.get("peft_config") is None
        if self.summed:
            sizes = candidates, self.model.config.vocab_size
            self.draw = None if candidates is None else Draw(self.train_dataset["input_ids"], *sizes)
            sum_losses(self.model, dtype, self.draw)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As TRL: the sum over a process's learnt tokens, by the number of them in the step, over all processes."""
        if not self.summed or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total = model(input_ids=inputs["input_ids"], labels=inputs["labels"], summed_loss=True)
        shared = self.args.average_tokens_across_devices  # DDP will take the mean over processes
        return total / num_items_in_batch * (self.accelerator.num_processes if shared else 1)


class Draw:
    """Draws the candidates of a sampled loss: what the batch is made of, the most common tokens, some of all others.

    Tokens of the prompts are always among them, so that copying is learnt against all that could be copied instead.
    The draw takes the random numbers of the step; each process draws for its own part of the batch.

    Args:
        sequences: token ids of the examples, which are counted.
        size: K, half of them the most common, half drawn; those of the batch come on top.
        vocab_size: V.

    Raises:
        InputError: when `size` is not an even number below `vocab_size`.
    """

    def __init__(self, sequences: list[list[int]], size: int, vocab_size: int):
        if size % 2 or not 0 < size < vocab_size:
            raise InputError(f"candidates {size} must be an even number below the vocabulary's {vocab_size}.")
        counts = np.zeros(vocab_size, dtype=np.int64)
        for ids in sequences:
            np.add.at(counts, ids, 1)
        self.common = torch.from_numpy(np.argsort(-counts, kind="stable")[: size // 2].copy())
        self.vocab_size = vocab_size

    def __call__(self, ids_BT: torch.Tensor) -> Candidates:
        """Those of a batch."""
        certain = torch.cat([self.common, ids_BT.reshape(-1)]).unique()
        free = torch.ones(self.vocab_size, dtype=torch.bool)
        free[certain] = False
        others = free.nonzero()[:, 0]
        drawn = others[torch.randperm(len(others))[: len(self.common)]]
        log_weight = float(np.log(len(others) / len(drawn))) if len(drawn) else 0.0
        return Candidates(torch.cat([certain, drawn]), len(certain), log_weight)


def sum_losses(model: PreTrainedModel, dtype: torch.dtype, draw: Draw | None = None) -> None:
    """Let `model(input_ids=, labels=, summed_loss=True)` be the sum of cross-entropies (nats) of all learnt labels.

    Args:
        dtype: of the matrix products.
        draw: of candidates, over which the loss is estimated in place of the whole vocabulary.
    """
    usual = model.forward

    @functools.wraps(type(model).forward)  # `generate` looks at the signature
    def forward(self, *args, summed_loss: bool = False, **kwargs):
        if not summed_loss:
            return usual(*args, **kwargs)
        targets = kwargs["labels"][:, 1:]
        hidden = self.model(kwargs["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        learnt = targets != IGNORED
        given = hidden[learnt], self.lm_head.weight, targets[learnt]
        if draw is None:
            return LinearCrossEntropy.apply(*given, dtype) * learnt.sum()
        return SampledCrossEntropy.apply(*given, draw(kwargs["input_ids"]), dtype) * learnt.sum()

    model.forward = types.MethodType(forward, model)


class Preferred(Whole, DPOTrainer):
    """DPO."""


class Rewarded(Whole, GRPOTrainer):
    """GRPO."""


class Around(TrainerCallback):
    """Around a step: its random numbers; the bar and the log; a measurement; stopping on a signal.

    Args:
        title: of the bar.
        log: of the first process; None on others.
        accelerator: of the trainer.
        every: steps between measurements; none when None.
        measure: called with the model and the number of steps done, on every process.
    """

    def __init__(
        self,
        title: str,
        log: MetricsLog | None,
        accelerator: Accelerator,
        *,
        every: int | None,
        measure: Callable[[PreTrainedModel, int], str],
    ):
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
        if stopped := self.stop.agreed(self.accelerator, now=step % int(args.logging_steps) == 0):
            self.stopped = stopped
            control.should_save = control.should_training_stop = True
        control.should_log |= last

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.log is not None and "loss" in logs:
            self.log.write({"step": state.global_step} | logs)
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
