"""Pretraining: the whole loop in sight, on Accelerate.

    accelerate launch -m training.pretrain --config demo
    accelerate launch --num_processes 2 -m training.pretrain --config demo --out runs/two

Accelerate launches, wraps in DDP and reduces; the order of data, the precision, the loss, the checkpoint and how a
model is cut over processes (training.parallel) are ours. A run stopped by SIGTERM, SIGINT or SIGUSR1 saves and exits
with status 75; the same command goes on from there. SIGTERM may be sent to `accelerate launch` as well: it reaches the
run, though the launcher's own status is then another.
"""

if not __package__:  # run by path; same as `python -m training.pretrain`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import accumulate

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling_pleias import PleiasForCausalLM

from . import checkpoint, parallel, trackers
from .compute import NextTokenLoss, compile_layers, compute_dtype, flush_denormals, keep_memory, to_compute
from .config import InputError, parse, program
from .data.shard_files import tokenizer_facts
from .files import START, model_sha256
from .guard import Guard, finite
from .launch import complete_launch
from .loader import Shards, TokenStream, batch_windows, batches
from .metrics import MetricsLog, bits_per_byte, flops_per_token, parameters, peak_flops, plot, read_metrics
from .optimizer import build, step_unless
from .prepare import prepare
from .recipe import PretrainConfig, Stage
from .record import RunRecord
from .sampled import CandidateDraw
from .samples import samples
from .shrink import shrunk
from .stopping import STOPPED, StopSignal, stop_with_the_launcher
from .summary import peak_memory, summarise


def schedule(
    config: PretrainConfig, streams: list[TokenStream], *, done: int, rank: int, processes: int
) -> Iterator[tuple[int, Stage, int, float, list[np.ndarray]]]:
    """What is left to do after `done` steps, over all stages.

    Yields:
        step (the first of all is 1), its stage, the stage's first step, passes over the stage's text at the end of the
        step, and this process's micro batches, each (b, T + 1).
    """
    first = 1
    for number, (stage, stream) in enumerate(zip(config.stages, streams, strict=True)):
        share = max(1, stage.sequences // processes)
        micro_batch = max(n for n in range(1, min(config.micro_batch, share) + 1) if share % n == 0)
        todo = range(max(done - first + 1, 0), stage.steps)
        for index, micro_batches in batches(
            stream,
            todo,
            sequences=stage.sequences,
            micro_batch=micro_batch,
            rank=rank,
            processes=processes,
            seed=config.order_seed(number),
        ):
            yield first + index, stage, first, (index + 1) * stage.sequences / len(stream), micro_batches
        first += stage.steps


def rows(config: PretrainConfig, streams: list[TokenStream], step: int) -> np.ndarray:
    """The windows of one step, over all processes, as indices (sequences,) into its stage's stream."""
    first = 1
    for number, (stage, stream) in enumerate(zip(config.stages, streams, strict=True)):
        if step < first + stage.steps:
            return batch_windows(stream, step - first, sequences=stage.sequences, seed=config.order_seed(number))
        first += stage.steps
    raise AssertionError(f"the run has no step {step}")


def begun(data: list, done: int) -> list[list]:
    """(fingerprint, sequences, steps) of the stages begun after `done` steps, their steps as far as they were done."""
    kept, first = [], 0
    for fingerprint, sequences, steps in data:
        if first < done:
            kept.append([fingerprint, sequences, min(steps, done - first)])
        first += steps
    return kept


def check_shares(config: PretrainConfig, done: int, processes: int) -> None:
    """See that every step after step `done` can be shared out evenly; what a stage that is over read is no matter.

    Raises:
        InputError: for a stage whose sequences do not divide among the processes.
    """
    for stage, last in zip(config.stages, accumulate(stage.steps for stage in config.stages), strict=True):
        if last > done and stage.sequences % processes:
            raise InputError(
                f"stage {stage.name}: {stage.sequences} sequences a step do not divide among "
                f"{processes} processes; change the one or the other."
            )


def train_step(
    accelerator: Accelerator, loss_model, optimizer, micro_batches: list[np.ndarray], *, clip: float, guard: Guard
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward, backward, clip and update for one step, its learning rate already set; nothing waits for the device.

    Args:
        loss_model: a prepared `NextTokenLoss`.
        optimizer: prepared with it.
        micro_batches: this process's windows, each (b, T + 1) ids.
        clip: gradient norm above which gradients are scaled down.
        guard: decides whether the step is taken.

    Returns:
        Mean loss in nats over all processes' windows, the gradient norm before clipping, and 1.0 where the step was
        left out, 0.0 else; scalars on the device.
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
    loss, norm = accelerator.reduce(torch.stack([total, norm]), "mean")  # one verdict for all processes
    skip = guard.judge(loss, norm)
    step_unless(skip, optimizer)
    return loss, norm, skip


@torch.no_grad()
def validate(
    loss: NextTokenLoss, streams: dict[str, tuple[TokenStream, float]], config: PretrainConfig, accelerator, layout
) -> dict[str, dict[str, float]]:
    """Loss in nats per token and bits per byte of each language, on the first windows of its held-out text."""
    results = {}
    for language, (stream, bytes_per_token) in streams.items():
        windows = min(len(stream), max(1, config.validation_tokens // config.sequence_length))
        mine = np.arange(layout.data_rank, windows, layout.data_processes)
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        # As many forwards on every process, each at least of the first window: cut, they gather weights together.
        for start in range(0, -(-windows // layout.data_processes), config.micro_batch):
            rows = mine[start : start + config.micro_batch]
            batch = torch.from_numpy(stream.windows(rows if len(rows) else np.zeros(1, int))).to(accelerator.device)
            total += loss(batch) * len(rows)
        nats = accelerator.reduce(total).item() / (windows * layout.tensor)
        results[language] = {"loss": nats, "bits_per_byte": bits_per_byte(nats, bytes_per_token)}
    parallel.drop_gathered(loss)
    return results


def pretrain(config: PretrainConfig) -> None:
    """Run, or go on with, a pretraining run; leaves the run folder that the README describes.

    Raises:
        InputError: when settings, data or an earlier run in the folder do not fit together.
        SystemExit: with STOPPED after a signal, once the state is saved.
    """
    # ---- Where we are
    keep_memory()
    flush_denormals()
    layout = parallel.Layout.from_launcher()
    trackers.check(config.trackers)
    # Precision is ours (NextTokenLoss). Told to use the CPU it finds the other processes there; else it would not.
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

    # ---- Data
    with accelerator.main_process_first():
        own = None
        if any(stage.shards is None for stage in config.stages):
            own = prepare(config.data, config.corpus, vocab_size=model_config.vocab_size) if main else None
            own = own or Shards(config.data.folder / "shards")
    stage_shards = [own if stage.shards is None else Shards(stage.shards) for stage in config.stages]
    sizes = {"sequence_length": config.sequence_length, "vocab_size": model_config.vocab_size}
    streams = [shards.train(**sizes) for shards in stage_shards]
    held_out = stage_shards[0].validation(**sizes)
    tokenizer_sha256 = stage_shards[0].manifest["tokenizer"]["sha256"]
    if any(shards.manifest["tokenizer"]["sha256"] != tokenizer_sha256 for shards in stage_shards):
        raise InputError("The stages' shards were made with different tokenizers; make them again with one.")
    if tokenizer_facts(config.data.tokenizer_folder)["sha256"] != tokenizer_sha256:
        raise InputError(
            f"{config.data.tokenizer_folder} is not the tokenizer that the shards were made with; name that one "
            "(--data.tokenizer), or make the shards again."
        )
    if main and config.data.verify:
        for stream in streams:
            stream.verify()
    tokenizer = AutoTokenizer.from_pretrained(config.data.tokenizer_folder)
    tokenizer.model_max_length = model_config.max_position_embeddings

    # ---- Model and optimizer
    init_from = None if config.init_from is None else model_sha256(config.init_from)
    set_seed(config.seed)
    if config.init_from is None:
        model = PleiasForCausalLM(model_config)
    else:
        model = PleiasForCausalLM.from_pretrained(config.init_from, dtype=torch.float32)
    loss_model = NextTokenLoss(model, dtype, z_loss=config.z_loss, document_mask=config.document_mask).to(device)
    if config.compile:
        compile_layers(model)
    if layout.sharded:
        layout.cut(loss_model, dtype)
    optimizer = build(config.optimizer, model)

    # ---- What an earlier session of this run left
    identity = {
        "model": model_config.to_diff_dict(),
        "tokenizer": tokenizer_sha256,
        "init_from": init_from,
        "optimizer": config.optimizer.name,
        "data": [
            (shards.manifest["fingerprint"], stage.sequences, stage.steps)
            for shards, stage in zip(stage_shards, config.stages, strict=True)
        ],
        "seed": config.seed,
        "sequence_length": config.sequence_length,
    }
    folder, checkpoints = config.folder, config.folder / "checkpoints"
    newest = [None]
    if main:
        checkpoint.clear_unfinished(checkpoints)
        newest = [checkpoint.latest_step(checkpoints)]
    newest = broadcast_object_list(newest)[0]
    done, guard = 0, Guard(config.guard, device)
    loss_sum, loss_steps = torch.zeros((2,), device=device)  # since the last line of the log, of the steps taken
    if newest is not None:
        earlier = checkpoint.Checkpoint(checkpoints, newest)
        state = earlier.state
        now, then = (dict(one, data=begun(one["data"], newest)) for one in (identity, state["identity"]))
        if changed := [key for key in now if now[key] != then.get(key)]:
            raise InputError(
                f"{checkpoints / f'step-{newest}'} was trained with another {' and '.join(changed)}; give another "
                "--out, or remove that run to start anew."
            )
        earlier.restore(model, optimizer)
        done = state["step"]
        loss_sum += state["loss_sum"]
        loss_steps += state["loss_steps"]
        guard.load(state["guard"])
    check_shares(config, done, layout.data_processes)
    if done >= config.steps and (folder / "model" / "config.json").is_file():
        accelerator.print(f"{folder} is complete: {done} of {config.steps} steps.")
        if main and (folder / "summary.txt").is_file():
            print((folder / "summary.txt").read_text(encoding="utf-8"), end="")
        return record.close()
    data = [fingerprint for fingerprint, *_ in identity["data"]]
    untrained = config.init_from is not None and (config.init_from / START).is_file()
    begun_with = {"init_from": init_from, "init_untrained": untrained}
    record.start(
        processes=processes, parallel=layout.sizes, device=str(device), dtype=str(dtype), data=data, **begun_with
    )
    optimizer = accelerator.prepare(optimizer)
    wrapped = loss_model if layout.sharded else accelerator.prepare(loss_model)

    draws = {
        stage.name: CandidateDraw(stream, stage.candidates, vocab_size=model_config.vocab_size, seed=config.seed)
        for stage, stream in zip(config.stages, streams, strict=True)
        if stage.candidates is not None
    }

    # ---- Things done once in a while
    if main:
        log, sample_log = (
            MetricsLog(folder / f"{name}.jsonl", resume_step=done if newest is not None else -1)
            for name in ("metrics", "samples")
        )
        trackers.start(accelerator, config, begun=record.run["sessions"][0]["start"], done=done)
    peak, flops = peak_flops(device), flops_per_token(model_config, config.sequence_length)
    stop = StopSignal()
    keeping = {"keep": config.every.keep, "permanent": config.every.permanent, "background": config.every.background}
    saver = checkpoint.Saver(checkpoints, model, optimizer.optimizer, **keeping)

    def write(line: dict) -> None:
        if main:
            log.write(line)
            accelerator.log(trackers.numbers(line), step=line["step"])

    def look_back() -> None:
        for line in guard.settle():
            line["event"]["windows"] = rows(config, streams, line["step"]).tolist()
            write(line)
        if guard.in_a_row >= config.guard.stop_after:
            saver.wait()
            good = checkpoint.latest_step(checkpoints)
            raise InputError(
                f"Loss or gradients of the last {guard.in_a_row} steps, up to step {guard.step}, were not finite; "
                f"{folder / 'metrics.jsonl'} names their windows. The last good checkpoint is "
                f"{'none' if good is None else checkpoints / f'step-{good}'}: go on from there with a lower "
                "optimizer.learning_rate or a higher guard.stop_after."
            )

    def save() -> None:
        look_back()
        state = {"identity": identity, "loss_sum": loss_sum.item(), "loss_steps": loss_steps.item()}
        saver.save(done, state | {"guard": guard.state()})
        record.write(steps=done, peak_memory_bytes=peak_memory(device))

    def validation() -> None:
        results = validate(loss_model, held_out, config, accelerator, layout)
        write({"step": done, "validation": results})
        mean = sum(one["bits_per_byte"] for one in results.values()) / max(1, len(results))
        progress.write(f"step {done}: {mean:.4f} bits per byte of held-out text, mean of {len(results)} languages")

    def sample() -> None:
        whole = parallel.gathered(model, torch.bfloat16, keep=main)  # as in model/; training's own stays as it is
        if main:
            for line in samples(to_compute(whole, device, dtype), tokenizer, config.corpus.languages):
                sample_log.write({"step": done} | line)

    # ---- The loop
    accelerator.print(
        f"{parameters(model_config):,} parameters, {config.steps} steps, {dtype} products on {device}, {processes} "
        f"process{'es' if processes > 1 else ''}, run folder {folder}"
    )
    progress = tqdm(total=config.steps, initial=done, desc=config.name, unit="step", disable=not main)
    if done == 0:
        validation()
    clip, mark, tokens, stopping = config.optimizer.clip, time.perf_counter(), 0, None
    place = {"rank": layout.data_rank, "processes": layout.data_processes}
    for step, stage, first, epoch, micro_batches in schedule(config, streams, done=done, **place):
        # -------- one step
        loss_model.candidates = None if stage.candidates is None else draws[stage.name](step, device)
        learning_rate = config.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss, norm, skip = train_step(accelerator, wrapped, optimizer, micro_batches, clip=clip, guard=guard)
        loss_sum += torch.where(skip > 0, 0, loss)
        loss_steps += 1 - skip
        # --------

        done, tokens = step, tokens + stage.sequences * config.sequence_length
        progress.update()
        final = step == config.steps
        if step % config.guard.stop_after == 0:
            look_back()
        if step % config.every.log == 0 or final:
            look_back()
            mean = (loss_sum / loss_steps).item()
            loss_sum, loss_steps = torch.zeros((2,), device=device)
            speed = tokens / (time.perf_counter() - mark)
            write(
                {
                    "step": step,
                    "stage": stage.name,
                    "stage_first_step": first,
                    "loss": finite(mean),
                    "learning_rate": learning_rate,
                    "gradient_norm": finite(norm.item()),
                    "skipped": guard.skipped,
                    "spikes": guard.spikes,
                    "sequences": stage.sequences,
                    "epoch": epoch,
                    "tokens_per_second": speed,
                    "mfu": speed * flops / (peak * processes) if peak else None,
                }
            )
            progress.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s")
            mark, tokens = time.perf_counter(), 0
        if step % config.every.validate == 0 or final:
            validation()
        if config.every.samples and step % config.every.samples == 0 or final:
            sample()
        stopping = stop.agreed(accelerator, now=step % config.every.log == 0)
        saver.check()
        permanent = config.every.permanent and step % config.every.permanent == 0
        if step % config.every.checkpoint == 0 or permanent or final or stopping:
            save()
        if stopping:
            break
    progress.close()
    saver.wait()
    accelerator.wait_for_everyone()

    # ---- What the run leaves
    whole = parallel.gathered(model, torch.bfloat16, keep=main) if done == config.steps else None
    if main and done == config.steps:
        writing = folder / ".model.tmp"  # a kill must not leave a model/ that looks finished
        shutil.rmtree(writing, ignore_errors=True)
        whole.save_pretrained(writing)
        tokenizer.save_pretrained(writing)
        shutil.rmtree(folder / "model", ignore_errors=True)
        writing.rename(folder / "model")
        plot(read_metrics(folder / "metrics.jsonl"), folder / "loss.png")
        record.write(steps=done, peak_memory_bytes=peak_memory(device))
        print(summarise(config), end="")
    record.close()
    # DDP's reducer must not outlive the process group: as its last owner it would wait, holding the interpreter's
    # lock, for gloo's thread, which waits for that lock.
    del wrapped
    accelerator.free_memory()
    accelerator.end_training()
    if done < config.steps:
        accelerator.print(f"stopped by {stopping} after step {done}; the same command goes on from there.")
        raise SystemExit(STOPPED)


def main() -> None:
    """`accelerate launch -m training.pretrain`."""
    stop_with_the_launcher()
    complete_launch(["-m", __spec__.name] if __spec__ else [__file__])
    config = parse(PretrainConfig, description="Pretrain a Pleias model. Start with: accelerate launch -m ...")
    if config.shrink != 1:
        text = parse(PretrainConfig, ["--config", "demo"], description="The text of a dry run.")
        config = shrunk(config, config.shrink, text=text, processes=int(os.environ.get("WORLD_SIZE", "1")))
    pretrain(config)


if __name__ == "__main__":
    program(main)
