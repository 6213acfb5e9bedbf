"""Pretrain a model: the training loop, on Accelerate.

    accelerate launch -m training.pretrain --config demo
    accelerate launch --num_processes 2 -m training.pretrain --config demo --out runs/two

Accelerate launches processes, wraps the model in DDP and reduces values. The order of the data, the precision, the
loss, the checkpoints and the sharding of the model (training.step.parallel) are defined here. A run that receives
SIGTERM,
SIGINT or SIGUSR1 saves a checkpoint and exits with status 75; run the same command again to resume. SIGTERM also
reaches the run through `accelerate launch`, which exits with a status of its own.
"""

if not __package__:  # run by path; same as `python -m training.pretrain`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import os
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_pleias import PleiasConfig, PleiasForCausalLM

from .common.config import InputError, parse, run_main
from .common.environment import peak_memory
from .common.files import UNTRAINED_MARKER, model_sha256
from .data.loader import ShardDataset, TokenStream, batch_windows, batches
from .data.shard_files import tokenizer_facts, tokens_fingerprint
from .pretraining.prepare import prepare
from .pretraining.recipe import PretrainConfig, Stage
from .pretraining.samples import generate_samples
from .pretraining.shrink import shrink_config
from .pretraining.summary import write_summary
from .run import checkpoint, trackers
from .run.launch import launch_cpu_processes
from .run.metrics import MetricsLog, bits_per_byte, count_parameters, flops_per_token, peak_flops, plot, read_metrics
from .run.record import RunRecord
from .run.session import exit_stopped, open_checkpoint, save_model
from .run.stopping import StopSignal, forward_launcher_sigterm
from .step import parallel
from .step.compute import (
    NextTokenLoss,
    compile_layers,
    compute_dtype,
    configure_allocator,
    flush_denormals,
    to_compute,
)
from .step.optimizer import build_optimizer, conditional_step
from .step.sampled_softmax import CandidateSampler
from .step.step_guard import StepGuard, finite_or_none

# Data --------------------------------------------------------------------------------------------------------------


class RunData(NamedTuple):
    """The opened data of a run.

    Args:
        streams: Training text of each stage.
        held_out: Validation text and its UTF-8 bytes per token, by language.
        fingerprints: Fingerprint of each stage's tokens.
        manifests: Fingerprint of each stage's manifest.
        tokenizer: The model's tokenizer.
        tokenizer_sha256: Hash of the tokenizer, the same for all shards.
    """

    streams: list[TokenStream]
    held_out: dict[str, tuple[TokenStream, float]]
    fingerprints: list[str]
    manifests: list[str]
    tokenizer: PreTrainedTokenizerBase
    tokenizer_sha256: str


def open_data(config: PretrainConfig, model_config: PleiasConfig, *, accelerator: Accelerator) -> RunData:
    """Open the shards and the tokenizer of a run; the main process first builds what is missing.

    Raises:
        InputError: If data cannot be built or were altered, or if shards were built with another tokenizer.
    """
    with accelerator.main_process_first():
        if accelerator.is_main_process and any(stage.shards is None for stage in config.stages):
            prepare(config.data, config.corpus, vocab_size=model_config.vocab_size)
    stage_shards = [ShardDataset(stage.shards or config.data.folder / "shards") for stage in config.stages]
    sizes = {"sequence_length": config.sequence_length, "vocab_size": model_config.vocab_size}
    streams = [shards.train(**sizes) for shards in stage_shards]
    tokenizer_sha256 = stage_shards[0].manifest["tokenizer"]["sha256"]
    if any(shards.manifest["tokenizer"]["sha256"] != tokenizer_sha256 for shards in stage_shards):
        raise InputError("The stages' shards were built with different tokenizers. Rebuild them with one tokenizer.")
    if tokenizer_facts(config.data.tokenizer_folder)["sha256"] != tokenizer_sha256:
        raise InputError(
            f"The shards were not built with the tokenizer {config.data.tokenizer_folder}. Rebuild the shards, or set "
            "--data.tokenizer to the one that they were built with."
        )
    if accelerator.is_main_process and config.data.verify:
        for stream in streams:
            stream.verify()
    tokenizer = AutoTokenizer.from_pretrained(config.data.tokenizer_folder)
    tokenizer.model_max_length = model_config.max_position_embeddings
    fingerprints = [tokens_fingerprint(shards.manifest) for shards in stage_shards]
    manifests = [shards.manifest["fingerprint"] for shards in stage_shards]
    held_out = stage_shards[0].validation(**sizes)
    return RunData(streams, held_out, fingerprints, manifests, tokenizer, tokenizer_sha256)


def remaining_batches(
    config: PretrainConfig, streams: list[TokenStream], *, done: int, rank: int, processes: int
) -> Iterator[tuple[int, Stage, int, float, list[np.ndarray]]]:
    """Yield the batches that remain after `done` steps, over all stages.

    Yields:
        The step (counted from 1), its stage, the stage's first step, the passes over the stage's text at the end of
        the step, and the micro batches of this process, each (b, T + 1).
    """
    for number, (stage, stream, first) in enumerate(zip(config.stages, streams, config.first_steps, strict=True)):
        share = max(1, stage.sequences // processes)
        micro_batch = max(n for n in range(1, min(config.micro_batch, share) + 1) if share % n == 0)
        remaining = range(max(done - first + 1, 0), stage.steps)
        for index, micro_batches in batches(
            stream,
            remaining,
            sequences=stage.sequences,
            micro_batch=micro_batch,
            rank=rank,
            processes=processes,
            seed=config.data_seed(number),
        ):
            yield first + index, stage, first, (index + 1) * stage.sequences / len(stream), micro_batches


def window_indices(config: PretrainConfig, streams: list[TokenStream], step: int) -> np.ndarray:
    """Return the windows of one step, over all processes, as indices (sequences,) into the stream of its stage."""
    number = bisect(config.first_steps, step) - 1
    index, sequences = step - config.first_steps[number], config.stages[number].sequences
    return batch_windows(streams[number], index, sequences=sequences, seed=config.data_seed(number))


def started_stages(data: list, done: int) -> list[list]:
    """Reduce (fingerprint, sequences, steps) of the stages to those that `done` steps started, and to steps done."""
    started, first = [], 0
    for fingerprint, sequences, steps in data:
        if first < done:
            started.append([fingerprint, sequences, min(steps, done - first)])
        first += steps
    return started


def check_divisible(config: PretrainConfig, done: int, processes: int) -> None:
    """Check that the windows of every step after step `done` can be divided evenly among the processes.

    Raises:
        InputError: If the sequences of a stage that is not finished are not a multiple of the processes.
    """
    for stage, first in zip(config.stages, config.first_steps, strict=True):
        if first + stage.steps > done + 1 and stage.sequences % processes:
            raise InputError(
                f"stage {stage.name}: {stage.sequences} sequences per step do not divide among {processes} processes. "
                "Change one of the two numbers."
            )


# Steps -------------------------------------------------------------------------------------------------------------


def train_step(
    accelerator: Accelerator, loss_model, optimizer, micro_batches: list[np.ndarray], *, clip: float, guard: StepGuard
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run forward, backward, clipping and update of one step without synchronising the device.

    Args:
        accelerator: The accelerator that prepared model and optimizer.
        loss_model: A prepared `NextTokenLoss`.
        optimizer: The prepared optimizer, with the learning rate of the step.
        micro_batches: Windows of this process, each (b, T + 1) ids.
        clip: Maximum gradient norm.
        guard: Decides whether the step is skipped.

    Returns:
        Mean loss in nats over the windows of all processes, the gradient norm before clipping, and 1.0 if the step was
        skipped, else 0.0; scalars on the device.
    """
    total = torch.zeros((), device=accelerator.device)
    for i, micro in enumerate(micro_batches):
        last = i + 1 == len(micro_batches)
        with nullcontext() if last else accelerator.no_sync(loss_model):
            windows = torch.from_numpy(micro).to(accelerator.device, non_blocking=True)
            loss = loss_model(windows) / len(micro_batches)
            accelerator.backward(loss)
        total += loss.detach()
    norm = parallel.clip_gradients(loss_model.parameters(), clip)
    loss, norm = accelerator.reduce(torch.stack([total, norm]), "mean")  # the same decision on all processes
    skip = guard.check(loss, norm)
    conditional_step(skip, optimizer)
    return loss, norm, skip


@torch.no_grad()
def validate(
    loss: NextTokenLoss, streams: dict[str, tuple[TokenStream, float]], config: PretrainConfig, accelerator, layout
) -> dict[str, dict[str, float]]:
    """Return loss in nats per token and bits per byte of each language, on the first windows of its held-out text."""
    results = {}
    for language, (stream, bytes_per_token) in streams.items():
        windows = min(len(stream), max(1, config.validation_tokens // config.sequence_length))
        local = np.arange(layout.data_rank, windows, layout.data_processes)
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        # Every process runs as many forwards, if need be of the first window: sharded, they gather weights together.
        for start in range(0, -(-windows // layout.data_processes), config.micro_batch):
            indices = local[start : start + config.micro_batch]
            batch = stream.windows(indices if len(indices) else np.zeros(1, int))
            total += loss(torch.from_numpy(batch).to(accelerator.device)) * len(indices)
        nats = accelerator.reduce(total).item() / (windows * layout.tensor)
        results[language] = {"loss": nats, "bits_per_byte": bits_per_byte(nats, bytes_per_token)}
    parallel.reshard(loss)
    return results


class TrainingLog:
    """Metrics, samples, trackers and progress bar of a run. Every process has one; only the main process writes.

    Args:
        config: Config of the run.
        accelerator: Accelerator, created with the config's trackers.
        record: Record of the run, started.
        guard: Checks of the run's steps.
        saver: Writer of the run's checkpoints.
        streams: Training text of each stage.
        state: State of the checkpoint that the run resumes from; None for a new run.
    """

    def __init__(self, config: PretrainConfig, accelerator: Accelerator, *, record, guard, saver, streams, state):
        self.config, self.accelerator, self.main = config, accelerator, accelerator.is_main_process
        self.guard, self.saver, self.streams = guard, saver, streams
        done = state["step"] if state else 0
        # Sums over the steps taken since the last line.
        self.loss_sum, self.loss_steps = torch.zeros((2,), device=accelerator.device)
        if state:
            self.loss_sum += state["loss_sum"]
            self.loss_steps += state["loss_steps"]
        self.start_clock()
        self.peak = peak_flops(accelerator.device)
        self.flops = flops_per_token(config.model_config(), config.sequence_length)
        self.bar = tqdm(total=config.steps, initial=done, desc=config.name, unit="step", disable=not self.main)
        if self.main:
            self.metrics_log, self.sample_log = (
                MetricsLog(config.folder / f"{name}.jsonl", resume_step=done if state else -1)
                for name in ("metrics", "samples")
            )
            trackers.start(accelerator, config, begun=record.run["sessions"][0]["start"], done=done)

    def write(self, line: dict) -> None:
        """Write a line to metrics.jsonl and the trackers."""
        if self.main:
            self.metrics_log.write(line)
            self.accelerator.log(trackers.numbers(line), step=line["step"])

    def add(self, loss: torch.Tensor, skip: torch.Tensor, *, tokens: int) -> None:
        """Add one step to the sums of the next line."""
        self.loss_sum += torch.where(skip > 0, 0, loss)
        self.loss_steps += 1 - skip
        self.tokens += tokens
        self.bar.update()

    def log_step_events(self) -> None:
        """Write the skipped steps and the spikes since the last call, with their windows.

        Raises:
            InputError: If too many steps in a row were not finite.
        """
        for line in self.guard.collect_events():
            line["event"]["windows"] = window_indices(self.config, self.streams, line["step"]).tolist()
            self.write(line)
        if self.guard.in_a_row >= self.guard.limit:
            self.saver.wait()
            count, step = self.guard.in_a_row, checkpoint.latest_step(self.saver.folder)
            good = "none" if step is None else self.saver.folder / f"step-{step}"
            raise InputError(
                f"Loss or gradients of the last {count} steps, up to step {self.guard.step}, were not finite; "
                f"{self.config.folder / 'metrics.jsonl'} lists their windows. The latest valid checkpoint is {good}. "
                "Resume from it with a lower --optimizer.learning_rate."
            )

    def start_clock(self) -> None:
        """Count tokens and time from now on."""
        self.tokens, self.start = 0, time.perf_counter()

    def write_steps(
        self, step: int, stage: Stage, *, first: int, epoch: float, learning_rate: float, norm: torch.Tensor
    ) -> None:
        """Write events, then mean loss and speed of the steps since the last line. `first`: the stage's first step."""
        self.log_step_events()
        mean = (self.loss_sum / self.loss_steps).item()
        speed = self.tokens / (time.perf_counter() - self.start)
        self.write(
            {
                "step": step,
                "stage": stage.name,
                "stage_first_step": first,
                "loss": finite_or_none(mean),
                "learning_rate": learning_rate,
                "gradient_norm": finite_or_none(norm.item()),
                "skipped": self.guard.skipped,
                "spikes": self.guard.spikes,
                "sequences": stage.sequences,
                "epoch": epoch,
                "tokens_per_second": speed,
                "mfu": self.peak and speed * self.flops / (self.peak * self.accelerator.num_processes),
            }
        )
        self.bar.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s")
        self.loss_sum, self.loss_steps = torch.zeros((2,), device=self.accelerator.device)
        self.start_clock()

    def state(self) -> dict[str, float]:
        """Return the sums for a checkpoint, as JSON."""
        return {"loss_sum": self.loss_sum.item(), "loss_steps": self.loss_steps.item()}


# Run ---------------------------------------------------------------------------------------------------------------


def run_identity(config: PretrainConfig, model_config: PleiasConfig, data: RunData, init_from: dict | None) -> dict:
    """Return what must not change between the sessions of a run, as JSON.

    Args:
        init_from: sha256 of the files of the model that the run continues.
    """
    stages = zip(data.fingerprints, config.stages, strict=True)
    return {
        "model": model_config.to_diff_dict(),
        "tokenizer": data.tokenizer_sha256,
        "init_from": init_from,
        "optimizer": config.optimizer.name,
        "data": [[fingerprint, stage.sequences, stage.steps] for fingerprint, stage in stages],
        "seed": config.seed,
        "sequence_length": config.sequence_length,
    }


def pretrain(config: PretrainConfig) -> None:
    """Run or resume a pretraining run; write its run folder, whose files the README lists.

    Raises:
        InputError: If settings, data and an earlier session in the run folder do not match.
        SystemExit: With EXIT_RESUMABLE after a signal, once the checkpoint is saved.
    """
    # ---- Processes and settings
    configure_allocator()
    flush_denormals()
    layout = parallel.ParallelLayout.from_launcher()
    trackers.check_trackers(config.trackers)
    # NextTokenLoss handles precision. On CPU, Accelerate joins the other processes only with cpu=True.
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=not torch.accelerator.is_available(),
        log_with=config.trackers or None,
        project_dir=config.folder / "trackers",
    )
    main, device, processes = accelerator.is_main_process, accelerator.device, accelerator.num_processes
    assert processes == layout.data_processes * layout.tensor, "the launcher does not set WORLD_SIZE"
    model_config = config.model_config()
    dtype = compute_dtype(config.precision, device)
    record = RunRecord(config, main=main)
    data = open_data(config, model_config, accelerator=accelerator)

    # ---- Model and optimizer
    init_from = None if config.init_from is None else model_sha256(config.init_from)
    set_seed(config.seed)
    if config.init_from is None:
        model = PleiasForCausalLM(model_config)
    else:
        model = PleiasForCausalLM.from_pretrained(config.init_from, dtype=torch.float32)
    loss_model = NextTokenLoss(model, dtype).to(device)
    if config.compile:
        compile_layers(model)
    if layout.sharded:
        layout.shard_model(loss_model, dtype)
    optimizer = build_optimizer(config.optimizer, model)

    # ---- Resume from the latest checkpoint
    identity = run_identity(config, model_config, data, init_from)
    earlier = open_checkpoint(
        config.folder,
        identity,
        main=main,
        used_until=lambda old, step: old | {"data": started_stages(old["data"], step)},
    )
    state, guard = None, StepGuard(config.max_nonfinite_steps, device)
    if earlier is not None:
        state = earlier.state
        earlier.restore(model, optimizer)
        guard.load(state["guard"])
    done = state["step"] if state else 0
    check_divisible(config, done, layout.data_processes)
    if done >= config.steps and (config.folder / "model" / "config.json").is_file():
        accelerator.print(f"{config.folder} is complete: {done} of {config.steps} steps.")
        if main and (config.folder / "summary.txt").is_file():
            print((config.folder / "summary.txt").read_text(encoding="utf-8"), end="")
        return record.close()
    untrained = config.init_from is not None and (config.init_from / UNTRAINED_MARKER).is_file()
    facts = {"processes": processes, "parallel": layout.sizes, "device": str(device), "dtype": str(dtype)}
    record.start(**facts, data=data.manifests, init_from=init_from, init_untrained=untrained)
    optimizer = accelerator.prepare(optimizer)
    wrapped = loss_model if layout.sharded else accelerator.prepare(loss_model)
    candidates = {
        stage.name: CandidateSampler(stream, stage.candidates, vocab_size=model_config.vocab_size, seed=config.seed)
        for stage, stream in zip(config.stages, data.streams, strict=True)
        if stage.candidates is not None
    }
    accelerator.print(
        f"{count_parameters(model_config):,} parameters, {config.steps} steps, {dtype} matmuls on {device}, "
        f"{processes} process{'es' if processes > 1 else ''}, run folder {config.folder}"
    )

    # ---- Log, validation, samples, checkpoints
    every, stop = config.every, StopSignal()
    keeping = {"keep": every.keep, "background": every.background}
    saver = checkpoint.CheckpointSaver(config.folder / "checkpoints", model, optimizer.optimizer, **keeping)
    log = TrainingLog(config, accelerator, record=record, guard=guard, saver=saver, streams=data.streams, state=state)

    def run_validation() -> None:
        results = validate(loss_model, data.held_out, config, accelerator, layout)
        log.write({"step": done, "validation": results})
        mean = sum(scores["bits_per_byte"] for scores in results.values()) / max(1, len(results))
        if main:
            log.bar.write(f"step {done}: {mean:.4f} bits per byte of held-out text, mean of {len(results)} languages")

    def write_samples() -> None:
        full_model = parallel.gather_full_model(model, torch.bfloat16, keep=main)  # a copy, in the dtype of model/
        if main:
            full_model = to_compute(full_model, device, dtype)
            for line in generate_samples(full_model, data.tokenizer, config.corpus.languages):
                log.sample_log.write({"step": done} | line)

    def save() -> None:
        log.log_step_events()
        saver.save(done, {"identity": identity, **log.state(), "guard": guard.state()})
        record.write(steps=done, peak_memory_bytes=peak_memory(device))

    # ---- Training loop
    if done == 0:
        run_validation()
    log.start_clock()
    clip, stopped = config.optimizer.clip, None
    place = {"rank": layout.data_rank, "processes": layout.data_processes}
    for step, stage, first, epoch, micro_batches in remaining_batches(config, data.streams, done=done, **place):
        loss_model.candidates = None if stage.candidates is None else candidates[stage.name](step, device)
        learning_rate = config.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss, norm, skip = train_step(accelerator, wrapped, optimizer, micro_batches, clip=clip, guard=guard)
        log.add(loss, skip, tokens=stage.sequences * config.sequence_length)

        done, final = step, step == config.steps
        if step % guard.limit == 0:
            log.log_step_events()
        if step % every.log == 0 or final:
            log.write_steps(step, stage, first=first, epoch=epoch, learning_rate=learning_rate, norm=norm)
        if step % every.validate == 0 or final:
            run_validation()
        if every.samples and step % every.samples == 0 or final:
            write_samples()
        stopped = stop.received_by_all(accelerator, now=step % every.log == 0)
        saver.check()
        if step % every.checkpoint == 0 or final or stopped:
            save()
        if stopped:
            break
    log.bar.close()
    saver.wait()
    accelerator.wait_for_everyone()

    # ---- Model, plot and summary
    if done == config.steps:
        full_model = parallel.gather_full_model(model, torch.bfloat16, keep=main)
        if main:
            tokenizer_json = config.data.tokenizer_folder / "tokenizer.json"
            save_model(full_model, data.tokenizer, config.folder / "model", tokenizer_json=tokenizer_json)
            plot(read_metrics(config.folder / "metrics.jsonl"), config.folder / "loss.png")
            record.write(steps=done, peak_memory_bytes=peak_memory(device))
            print(write_summary(config), end="")
    record.close()
    # DDP's reducer must not outlive the process group: as its last owner it would wait, holding the interpreter's
    # lock, for gloo's thread, which waits for that lock.
    del wrapped
    accelerator.free_memory()
    accelerator.end_training()
    if done < config.steps:
        exit_stopped(stopped, done, main=main)


def main() -> None:
    """`accelerate launch -m training.pretrain`."""
    forward_launcher_sigterm()
    launch_cpu_processes(["-m", __spec__.name] if __spec__ else [__file__])
    launcher = "accelerate launch -m training.pretrain --config NAME"
    config = parse(PretrainConfig, description=f"Pretrain a Pleias model, or resume a run. Start with: {launcher}")
    if config.shrink != 1:
        text = parse(PretrainConfig, ["--config", "demo"], description="Text of the dry run.")
        config = shrink_config(config, config.shrink, text=text, processes=int(os.environ.get("WORLD_SIZE", "1")))
    pretrain(config)


if __name__ == "__main__":
    run_main(main)
