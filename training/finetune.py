"""Full fine-tuning with TRL on a task: supervised, on preferences (DPO), or with the task's metrics as reward (GRPO).

    accelerate launch -m training.finetune --config finetune_ocr --base_model runs/NAME/model
    python -m training.finetune --config finetune_instruct --max_steps 2 --trainer.learning_rate 3.0e-4

`--config` and `--help` are this project's (training.config), as for every program; `trainer` holds fields of TRL's own
configs. TRL's TrlParser was considered: it knows neither nested settings nor packaged configs, lists TRL's options,
over a hundred, among ours in `--help`, and takes values out of YAML without looking at their types.

The base is measured on held-out rows before, the result after; what stays is the weights that measured best on other
held-out rows on the way. A run can be killed at any time and goes on from its last checkpoint by the same command.
"""

if not __package__:  # run by path; same as `python -m training.finetune`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import inspect
import shutil
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import ModuleType

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, disable_progress_bars
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from . import checkpoint, tasks
from .compute import compute_dtype, flush_denormals, keep_memory, to_compute
from .config import InputError, parse, program, typed
from .environment import peak_memory
from .files import fingerprint, model_sha256, read_json, write_json
from .guard import finite
from .launch import complete_launch
from .metrics import MetricsLog, plot, read_metrics
from .record import RunRecord
from .results import write_result
from .stopping import STOPPED, stop_with_the_launcher
from .tuning import account, base, measures, preferences
from .tuning.examples import Examples, of_pretraining, of_task, order
from .tuning.recipe import FinetuneConfig
from .tuning.trainers import Around, Preferred, Rewarded, Supervised

# What a card tells of TRL's settings; those that a config leaves out as well.
TOLD = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
)


def split(config: FinetuneConfig, task: ModuleType, state: PartialState) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows to learn from, rows that choose the weights, and rows on which base and result are compared.

    Raises:
        InputError: when a part would be empty.
    """
    data = typed(tasks.settings(config.task), config.data, "data")
    with state.main_process_first():  # the others find what the first has fetched
        rows = task.rows(data)
    watched, held_out = config.measure.watched, rows["held_out"]
    compared = held_out[watched : None if config.measure.rows is None else watched + config.measure.rows]
    if not rows["train"] or not compared:
        raise InputError(
            f"The data of {config.task} has {len(rows['train'])} rows to learn from and {len(held_out)} held out, of "
            f"which the first {watched} choose the weights: give more data, or a lower --measure.watched."
        )
    return rows["train"], held_out[:watched], compared


def learnt(
    config: FinetuneConfig, args: TrainingArguments, parts: dict[str, Examples], tokenizer, base_folder: Path
) -> Dataset:
    """Examples in the order in which they are learnt; text of pretraining joins `parts` as "replay".

    Args:
        args: gets the number of steps.
    """
    if share := config.replay.share:
        tokens = int(parts[config.task].tokens * share / (1 - share))
        parts["replay"] = of_pretraining(
            config.replay.path,
            tokenizer,
            base_folder / "tokenizer.json",
            tokens=tokens,
            max_length=tokenizer.model_max_length,
            seed=config.seed,
        )
    ids, labels = (list(chain(*(getattr(part, name) for part in parts.values()))) for name in ("input_ids", "labels"))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps <= 0:
        args.max_steps = max(1, round(args.num_train_epochs * len(ids) / batch))
    places = order(
        [len(one) for one in ids], batch=batch, steps=args.max_steps, seed=config.seed, shuffle=config.shuffle
    )
    return Dataset.from_dict({"input_ids": ids, "labels": labels}).select(places)


def trainer_for(
    config: FinetuneConfig, task: ModuleType, model: PreTrainedModel, tokenizer, args, dataset: Dataset, row: dict
) -> Trainer:
    """TRL's trainer for the method, with every parameter to be trained.

    Args:
        row: any of the task.

    Raises:
        InputError: when a parameter would not be, and that is not allowed.
    """
    given = {"model": model, "args": args, "processing_class": tokenizer, "train_dataset": dataset}
    if config.peft:
        try:
            from peft import LoraConfig  # advised against, so in no extra
        except ImportError:
            raise InputError("peft is not installed: pip install peft.") from None
        given["peft_config"] = LoraConfig(**{"task_type": "CAUSAL_LM", **config.peft})
    if config.method == "sft":
        given["candidates"] = config.candidates
        trainer = Supervised(dtype=compute_dtype(config.precision, args.device), **given)
    elif config.method == "dpo":
        trainer = Preferred(**given)
    else:
        trainer = Rewarded(reward_funcs=preferences.reward(config.rewards, task, tokenizer, row), **given)
    if not config.peft:
        base.refuse_frozen(trainer.model)
    trainer.remove_callback(PrinterCallback)
    return trainer


def once(path: Path, key: str, make: Callable[[], list], *, main: bool) -> list:
    """What `make` gives, kept in a file for the sessions after this one."""
    if path.is_file() and (kept := read_json(path))["of"] == key:
        return kept["value"]
    value = make()
    if main:
        write_json(path, {"of": key, "value": value})
    return value


def spelt(decoding: dict) -> dict:
    """Decoding settings as JSON: of a guide its name and its own settings."""

    def guide(make: Callable) -> dict:
        own = inspect.signature(make).parameters.values()
        return {"name": make.__qualname__} | {one.name: one.default for one in own if one.default is not one.empty}

    return {name: guide(value) if callable(value) else value for name, value in decoding.items()}


def show(config: FinetuneConfig, metrics: dict[str, dict[str, float]], rows: int) -> None:
    """The comparison on one screen."""
    table = Table(title=f"{config.task}: {rows} held-out rows, with 95% intervals", title_justify="left")
    for column in ("metric", "base", "tuned", "change"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in metrics:
        if f"{name}_change" in metrics:
            found = (metrics[key] for key in (f"{name}_before", name, f"{name}_change"))
            table.add_row(name, *(f"{x['value']:.4g} ({x['low']:.4g} to {x['high']:.4g})" for x in found))
    Console(width=118).print(table)


def finetune(config: FinetuneConfig) -> None:
    """Run, or go on with, a fine-tuning run; leaves a run folder as pretraining does, with eval/TASK.json.

    Raises:
        InputError: when settings, data, base or an earlier run in the folder do not fit together.
        SystemExit: with STOPPED after a signal, once the state is saved.
    """
    # ---- Where we start from
    keep_memory()
    flush_denormals()
    logging.disable_progress_bar()  # of loading and saving weights
    disable_progress_bars()  # of passing examples around
    constants.HF_HUB_DISABLE_TELEMETRY = True  # or TRL tells its makers of every run
    config.check()
    folder, base_folder = config.folder, base.folder_of(config.base_model)
    task, tokenizer = tasks.load(config.task), base.open_tokenizer(base_folder)
    model = base.open_model(base_folder, torch.float32)
    stop_id, turn_end = tokenizer.convert_tokens_to_ids(task.DECODING["stop"]), None
    if config.task == "instruct":
        tokenizer, turn_end = task.with_template(tokenizer), stop_id  # the end of text alone does not end a turn
    limit = config.max_length or model.config.max_position_embeddings
    model.config.max_position_embeddings = max(limit, model.config.max_position_embeddings)
    tokenizer.model_max_length = model.config.max_position_embeddings
    args = config.arguments(limit)
    state, device, dtype = args.distributed_state, args.device, compute_dtype(config.precision, args.device)
    main = state.is_main_process
    record = RunRecord(config, main=main)

    # ---- Data
    limits = {"task": config.task, "max_length": limit, "over_long": config.over_long}
    train, watched, compared = (of_task(rows, tokenizer, **limits) for rows in split(config, task, state))
    parts, chosen = {config.task: train}, train.rows[: config.pairs] if config.method == "dpo" else train.rows
    for named, examples in (("", train), ("held out: ", watched), ("held out: ", compared)):
        if examples.said:
            state.print(f"{named}{examples.said}")
    if config.method == "sft":
        dataset = learnt(config, args, parts, tokenizer, base_folder)
        state.print(f"{len(dataset):,} examples are learnt in {args.max_steps} steps, of {len(train):,} in the data.")
    data = {name: account.fingerprint_of(part) for name, part in parts.items()}

    # ---- What an earlier session of this run left
    identity = {
        "base": model_sha256(base_folder),
        "task": config.task,
        "method": config.method,
        "optimizer": config.optimizer,
        "data": data,
        "seed": config.seed,
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "steps": [args.max_steps, args.num_train_epochs],
    }
    checkpoints, newest = folder / "checkpoints", [None]
    if main:
        checkpoint.clear_unfinished(checkpoints)
        newest = [checkpoint.latest_step(checkpoints)]
    newest = broadcast_object_list(newest)[0]
    path = None if newest is None else checkpoints / f"step-{newest}"
    if path:
        earlier = read_json(path / "state.json")
        if changed := [key for key in identity if identity[key] != earlier["identity"].get(key)]:
            raise InputError(
                f"{path} was trained with another {' and '.join(changed)}; give another --out, or remove that run to "
                "start anew."
            )
        if main:
            write_json(path / "trainer_state.json", earlier["trainer"])  # where Trainer looks for it
    if path and (folder / "model").is_dir() and (folder / "eval" / f"{config.task}.json").is_file():
        state.print(f"{folder} is complete.")
        return record.close()
    facts = {"base_model": config.base_model, "base_files": identity["base"], "data": list(data.values())}
    facts["trainer"] = {name: getattr(args, name) for name in TOLD} | {"max_length": limit}
    if config.max_steps is None:
        facts["trainer"]["num_train_epochs"] = args.num_train_epochs
    record.start(processes=state.num_processes, device=str(device), dtype=str(dtype), trl=version("trl"), **facts)

    # ---- The base, before
    decoding = task.DECODING | {"batch_tokens": config.measure.batch_tokens}
    if config.measure.max_new_tokens is not None:
        decoding["max_new_tokens"] = config.measure.max_new_tokens
    told = spelt(decoding)
    key = fingerprint([identity["base"], str(dtype), told, [row["prompt"] for row in compared.rows]])

    def answers_of_base(rows: list[dict], title: str) -> list[str]:
        opened = base.open_model(base_folder, dtype).to(device)
        return measures.answers(opened, tokenizer, rows, decoding, progress=title)

    before = once(folder / "answers" / "before.json", key, lambda: answers_of_base(compared.rows, "base"), main=main)
    if config.method == "dpo":
        own = once(
            folder / "answers" / "own.json",
            fingerprint([key, [row["prompt"] for row in chosen]]),
            lambda: answers_of_base(chosen, "own answers"),
            main=main,
        )
        dataset = Dataset.from_list(preferences.pairs(chosen, own, task))
    elif config.method == "grpo":
        dataset = Dataset.from_list(preferences.prompts(chosen))
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop_id]

    # ---- Training
    best = measures.Best(folder / "best", higher_is_better=task.HIGHER_IS_BETTER)
    if main and path is None:
        shutil.rmtree(best.folder, ignore_errors=True)  # of a session that left no checkpoint
    log = MetricsLog(folder / "metrics.jsonl", resume_step=-1 if newest is None else newest) if main else None

    def measure(model: PreTrainedModel, step: int) -> str:
        whole = measures.shipped(model, task, turn_end)
        outputs = measures.answers(to_compute(whole, device, dtype), tokenizer, watched.rows, decoding)
        metrics = task.score(watched.rows, outputs)
        figures = {name: finite(measures.value(metric)) for name, metric in metrics.items()}
        name, figure = next(iter(figures.items()))
        if main:
            log.write({"step": step, "held_out": figures})
            if best.beaten_by(figure):
                measures.save(whole, tokenizer, best.folder, {"step": step, "metric": name, "value": figure})
        shown = "undefined" if figure is None else f"{figure:.4f}"
        return f"step {step}: {name} {shown} on {len(watched)} held-out rows"

    trainer = trainer_for(config, task, model, tokenizer, args, dataset, chosen[0])
    trainer.identity, trainer.muon = identity, config.optimizer == "muon"
    around = Around(config.name, log, trainer.accelerator, every=config.measure.steps, measure=measure)
    trainer.add_callback(around)
    state.wait_for_everyone()
    trainer.train(resume_from_checkpoint=str(path) if path else None)
    done = trainer.state.global_step
    if around.stopped and done < trainer.state.max_steps:
        record.write(steps=done)
        record.close()
        trainer.accelerator.end_training()
        state.print(f"stopped by {around.stopped} after step {done}; the same command goes on from there.")
        raise SystemExit(STOPPED)

    # ---- What the run leaves
    if path is None or not (folder / "model").is_dir():  # else the session before got as far
        whole = None if config.measure.steps else measures.shipped(trainer.model, task, turn_end)
        if main and whole:
            measures.save(whole, tokenizer, folder / "model")
        elif main:
            record.write(kept=best.facts)
            shutil.rmtree(folder / "model", ignore_errors=True)
            best.folder.rename(folder / "model")
    state.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer, model
    tuned = base.open_model(folder / "model", dtype).to(device)
    after = measures.answers(tuned, tokenizer, compared.rows, decoding, progress="tuned")
    if main:
        metrics = measures.compared(*(task.score(compared.rows, outputs) for outputs in (before, after)))
        write_json(folder / "answers" / "after.json", {"of": key, "value": after})
        corpora = {config.task: account.manifest(train, compared, folder / "model")}
        if "replay" in parts:
            corpora["replay"] = account.manifest(parts["replay"], None, folder / "model", path=config.replay.path)
        account.write(folder, corpora)
        write_result(
            folder / "eval",
            config.task,
            metrics,
            data={"fingerprint": account.fingerprint_of(compared), "rows": len(compared), **compared.counts},
            base_model=config.base_model,
            decoding=told,
            **tasks.signatures(task),
            examples=[
                {"prompt": row["prompt"], "right": row["completion"], "before": one, "after": other}
                for row, one, other in zip(compared.rows[:5], before, after, strict=False)
            ],
        )
        plot(read_metrics(folder / "metrics.jsonl"), folder / "loss.png")
        record.write(steps=done, peak_memory_bytes=peak_memory(device))
        show(config, metrics, len(compared))
        print(f"{folder / 'model'} opens with from_pretrained; {folder / 'eval' / config.task}.json has the figures.")
    record.close()
    state.wait_for_everyone()
    state.destroy_process_group()


def main() -> None:
    """`accelerate launch -m training.finetune`."""
    stop_with_the_launcher()
    complete_launch(["-m", __spec__.name] if __spec__ else [__file__])
    finetune(parse(FinetuneConfig, description="Fine-tune a Pleias model on a task. Start with: accelerate launch -m"))


if __name__ == "__main__":
    program(main)
