"""Pretraining: the whole loop in sight, on Accelerate.

    accelerate launch -m training.pretrain --config demo
    accelerate launch --num_processes 2 -m training.pretrain --config demo --out runs/two

Accelerate launches, places, wraps and reduces; the order of data, the precision, the loss and the checkpoint are ours.
A run stopped by SIGTERM or SIGINT saves and exits with status 75; started again with the same command it goes on.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from tqdm import tqdm
from transformers import AutoTokenizer

from modeling_pleias import PleiasForCausalLM

from . import checkpoint
from .config import InputError, parse, program
from .loader import Shards, TokenStream, batches
from .loss import next_token_loss
from .metrics import MetricsLog, bits_per_byte, flops_per_token, parameters, peak_flops, plot, read_metrics
from .prepare import prepare
from .recipe import PretrainConfig, Stage
from .record import RunRecord
from .shards import tokenizer_facts
from .shrink import shrunk

STOPPED = 75  # exit status of a run that saved and stopped on a signal: EX_TEMPFAIL, "try again"


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What matrix products are computed in."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        precision = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


class NextTokenLoss(torch.nn.Module):
    """Model and loss as one module: what DDP wraps sees one forward, and logits never leave it."""

    def __init__(self, model: PleiasForCausalLM, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(B, T + 1) ids to the mean loss in nats."""
        with torch.autocast(windows.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return next_token_loss(self.model, windows, dtype=self.dtype)


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
        share = stage.sequences // processes
        micro_batch = max(n for n in range(1, min(config.micro_batch, share) + 1) if share % n == 0)
        todo = range(max(done - first + 1, 0), stage.steps)
        for index, micro_batches in batches(
            stream,
            todo,
            sequences=stage.sequences,
            micro_batch=micro_batch,
            rank=rank,
            processes=processes,
            seed=config.seed + number if stage.seed is None else stage.seed,
        ):
            yield first + index, stage, first, (index + 1) * stage.sequences / len(stream), micro_batches
        first += stage.steps


def begun(data: list, done: int) -> list[list]:
    """(fingerprint, sequences, steps) of the stages begun after `done` steps, their steps as far as they were done."""
    kept, first = [], 0
    for fingerprint, sequences, steps in data:
        if first < done:
            kept.append([fingerprint, sequences, min(steps, done - first)])
        first += steps
    return kept


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the step under way is finished and saved; a second one ends at once."""

    def __init__(self):
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number).name

    def agreed(self, accelerator: Accelerator, *, now: bool) -> str | None:
        """Name of the signal once every process knows of it; several processes compare only where `now` is true."""
        if accelerator.num_processes == 1:
            return self.received
        if not now:
            return None
        flag = torch.tensor(float(self.received is not None), device=accelerator.device)
        return (self.received or "a signal to another process") if accelerator.reduce(flag).item() else None


@torch.no_grad()
def validate(loss: NextTokenLoss, streams: dict[str, tuple[TokenStream, float]], config: PretrainConfig, accelerator):
    """Loss in nats per token and bits per byte of each language, on the first windows of its held-out text."""
    results = {}
    for language, (stream, bytes_per_token) in streams.items():
        windows = min(len(stream), max(1, config.validation_tokens // config.sequence_length))
        mine = torch.arange(accelerator.process_index, windows, accelerator.num_processes)
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for rows in mine.split(config.micro_batch):
            batch = torch.from_numpy(stream.windows(rows.numpy())).to(accelerator.device)
            total += loss(batch) * len(rows)
        nats = accelerator.reduce(total).item() / windows
        results[language] = {"loss": nats, "bits_per_byte": bits_per_byte(nats, bytes_per_token)}
    return results


def pretrain(config: PretrainConfig) -> None:
    """Run, or go on with, a pretraining run; leaves the run folder of DESIGN's contract.

    Raises:
        InputError: when settings, data or an earlier run in the folder do not fit together.
        SystemExit: with STOPPED after a signal, once the state is saved.
    """
    # ---- Where we are
    # Precision is ours (NextTokenLoss). Told to use the CPU it finds the other processes there; else it would not.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    main, device, processes = accelerator.is_main_process, accelerator.device, accelerator.num_processes
    model_config = config.model_config()
    dtype = compute_dtype(config.precision, device)
    for stage in config.stages:
        if stage.sequences % processes:
            raise InputError(
                f"stage {stage.name}: {stage.sequences} sequences a step do not divide among {processes} processes; "
                "change the one or the other."
            )

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

    # ---- Model and optimizer
    set_seed(config.seed)
    model = PleiasForCausalLM(model_config)
    o = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay, fused=True
    )
    loss_model = NextTokenLoss(model, dtype)
    if config.compile:
        for layer in model.model.layers:
            layer.compile()

    # ---- What an earlier session of this run left
    identity = {
        "model": model_config.to_diff_dict(),
        "tokenizer": tokenizer_sha256,
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
    done, loss_sum, loss_steps = 0, torch.zeros((), device=device), 0
    if newest is not None:
        tensors, state = checkpoint.load(checkpoints, newest)
        now, then = (dict(one, data=begun(one["data"], newest)) for one in (identity, state["identity"]))
        if changed := [key for key in now if now[key] != then[key]]:
            raise InputError(
                f"{checkpoints / f'step-{newest}'} was trained with another {' and '.join(changed)}; give another "
                "--out, or remove that run to start anew."
            )
        checkpoint.restore(tensors, model, optimizer)
        done, loss_steps = state["step"], state["loss_steps"]
        if main:
            loss_sum += state["loss_sum"]
    if done >= config.steps and (folder / "model" / "config.json").is_file():
        accelerator.print(f"{folder} is complete: {done} of {config.steps} steps.")
        return record.close()
    data = [fingerprint for fingerprint, *_ in identity["data"]]
    record.start(processes=processes, device=str(device), dtype=str(dtype), data=data)
    wrapped, optimizer = accelerator.prepare(loss_model, optimizer)

    # ---- Things done once in a while
    log = MetricsLog(folder / "metrics.jsonl", resume_step=done if newest is not None else -1) if main else None
    peak, flops = peak_flops(device), flops_per_token(model_config, config.sequence_length)
    stop = StopSignal()

    def write(record: dict) -> None:
        if main:
            log.write(record)

    def save() -> None:
        nonlocal loss_sum
        loss_sum = accelerator.reduce(loss_sum)  # on the main process alone it would miss the others' share
        if main:
            tensors = {
                "model": dict(model.named_parameters()),
                "optimizer": checkpoint.optimizer_tensors(model, optimizer.optimizer),
            }
            state = {"identity": identity, "loss_sum": loss_sum.item(), "loss_steps": loss_steps}
            checkpoint.save(checkpoints, done, tensors=tensors, state=state, keep=config.every.keep)
            record.write(steps=done)
        else:
            loss_sum.zero_()
        accelerator.wait_for_everyone()

    def validation() -> None:
        results = validate(loss_model, held_out, config, accelerator)
        write({"step": done, "validation": results})
        mean = sum(one["bits_per_byte"] for one in results.values()) / max(1, len(results))
        progress.write(f"step {done}: {mean:.4f} bits per byte of held-out text, mean of {len(results)} languages")

    # ---- The loop
    accelerator.print(
        f"{parameters(model_config):,} parameters, {config.steps} steps, {dtype} products on {device}, {processes} "
        f"process{'es' if processes > 1 else ''}, run folder {folder}"
    )
    progress = tqdm(total=config.steps, initial=done, desc=config.name, unit="step", disable=not main)
    if done == 0:
        validation()
    mark, tokens, stopping = time.perf_counter(), 0, None
    place = {"rank": accelerator.process_index, "processes": processes}
    for step, stage, first, epoch, micro_batches in schedule(config, streams, done=done, **place):
        # -------- one step
        learning_rate = config.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for i, micro in enumerate(micro_batches):
            last = i + 1 == len(micro_batches)
            with nullcontext() if last else accelerator.no_sync(wrapped):
                loss = wrapped(torch.from_numpy(micro).to(device, non_blocking=True)) / len(micro_batches)
                accelerator.backward(loss)
            loss_sum += loss.detach() / processes
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), o.clip)
        optimizer.step()
        optimizer.zero_grad()
        # --------

        done, loss_steps, tokens = step, loss_steps + 1, tokens + stage.sequences * config.sequence_length
        progress.update()
        final = step == config.steps
        if step % config.every.log == 0 or final:
            mean = accelerator.reduce(loss_sum).item() / loss_steps
            loss_sum, loss_steps = torch.zeros((), device=device), 0
            speed = tokens / (time.perf_counter() - mark)
            write(
                {
                    "step": step,
                    "stage": stage.name,
                    "stage_first_step": first,
                    "loss": mean,
                    "learning_rate": learning_rate,
                    "gradient_norm": norm.item(),
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
        stopping = stop.agreed(accelerator, now=step % config.every.log == 0)
        if step % config.every.checkpoint == 0 or final or stopping:
            save()
        if stopping:
            break
    progress.close()

    # ---- What the run leaves
    if main and done == config.steps:
        tokenizer = AutoTokenizer.from_pretrained(config.data.tokenizer_folder)
        tokenizer.model_max_length = model_config.max_position_embeddings
        writing = folder / ".model.tmp"  # a kill must not leave a model/ that looks finished
        shutil.rmtree(writing, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(writing)
        tokenizer.save_pretrained(writing)
        shutil.rmtree(folder / "model", ignore_errors=True)
        writing.rename(folder / "model")
        plot(read_metrics(folder / "metrics.jsonl"), folder / "loss.png")
        record.write(steps=done)
        print(
            f"{folder / 'model'} loads with AutoModelForCausalLM.from_pretrained; {folder / 'loss.png'} shows the run."
        )
    record.close()
    # DDP's reducer must not outlive the process group: as its last owner it would wait, holding the interpreter's
    # lock, for gloo's thread, which waits for that lock.
    del wrapped
    accelerator.free_memory()
    accelerator.end_training()
    if done < config.steps:
        accelerator.print(f"stopped by {stopping} after step {done}; the same command goes on from there.")
        raise SystemExit(STOPPED)


def start_the_others() -> None:
    """Where there is no GPU, `accelerate launch --num_processes N` starts one process and says nothing: start all N.

    Accelerate leaves MASTER_ADDR without a rank behind in that case, and the number on its own command line.
    """
    if "MASTER_ADDR" not in os.environ or "LOCAL_RANK" in os.environ or torch.accelerator.is_available():
        return
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--num_processes", "--num-processes", type=int, default=1)
    processes = options.parse_known_args(psutil.Process(os.getppid()).cmdline())[0].num_processes
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        os.execv(sys.executable, [*command, "-m", __spec__.name, *sys.argv[1:]])


def main() -> None:
    """`accelerate launch -m training.pretrain`."""
    start_the_others()
    config = parse(PretrainConfig, description="Pretrain a Pleias model. Start with: accelerate launch -m ...")
    if config.shrink != 1:
        text = parse(PretrainConfig, ["--config", "demo"], description="The text of a dry run.")
        config = shrunk(config, config.shrink, text=text, processes=int(os.environ.get("WORLD_SIZE", "1")))
    pretrain(config)


if __name__ == "__main__":
    program(main)
