"""Full fine-tuning with TRL on a task: supervised (SFT), on preferences (DPO), or with task metrics as reward (GRPO).

    accelerate launch -m training.finetune --config finetune_ocr --base_model runs/NAME/model
    python -m training.finetune --config finetune_instruct --max_steps 2 --trainer.learning_rate 3.0e-4

The base model is evaluated on held-out rows before training and the tuned model after it; the saved weights are those
with the best metric on other held-out rows during training. A run can be killed at any time; the same command resumes
it from its latest checkpoint.

`--config` and `--help` are those of every program of this project (training.common.config), and `trainer` contains
fields of
TRL's configs. TRL's TrlParser was considered: it supports neither nested settings nor packaged configs, lists over a
hundred TRL options among this program's in `--help`, and does not check the types of YAML values.
"""

if not __package__:  # run by path; same as `python -m training.finetune`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import inspect
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.utils import logging

from . import tasks
from .common.config import InputError, dataclass_from_dict, parse, run_main
from .common.environment import peak_memory
from .common.escaping import terminal_line
from .common.files import fingerprint, model_sha256, read_json, write_json
from .finetuning import base_model, data_manifest, model_selection, preferences
from .finetuning.examples import Examples, length_grouped_order, tokenize_replay, tokenize_rows
from .finetuning.recipe import FinetuneConfig
from .finetuning.trainers import PleiasDPOTrainer, PleiasGRPOTrainer, PleiasSFTTrainer, StepCallback
from .run.checkpoint import Checkpoint
from .run.launch import launch_cpu_processes
from .run.metrics import MetricsLog, plot, read_metrics
from .run.record import RunRecord
from .run.results import write_result
from .run.session import exit_stopped, open_checkpoint, save_model
from .run.stopping import forward_launcher_sigterm
from .step.compute import compute_dtype, configure_allocator, flush_denormals, to_compute
from .step.step_guard import finite_or_none

# TRL's settings that run.json records for the card, also those that the config does not set.
LOGGED_TRAINER_ARGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
)


class Run:
    """Settings, base model, tokenizer and TRL arguments of a run, whose folder it locks."""

    def __init__(self, config: FinetuneConfig):
        config.check()
        self.config, self.folder, self.task = config, config.folder, tasks.load_task(config.task)
        self.base_folder = base_model.resolve_base_model(config.base_model)
        self.base_files = model_sha256(self.base_folder)
        self.tokenizer = base_model.open_tokenizer(self.base_folder)
        self.model = base_model.open_model(self.base_folder, torch.float32)
        self.stop_id, self.turn_end = self.tokenizer.convert_tokens_to_ids(self.task.DECODING["stop"]), None
        if config.task == "instruct":  # the end-of-text token alone does not end a turn
            self.tokenizer, self.turn_end = self.task.add_chat_template(self.tokenizer), self.stop_id
        context = self.model.config.max_position_embeddings
        self.max_length = config.max_length or context
        context = self.model.config.max_position_embeddings = max(self.max_length, context)
        self.tokenizer.model_max_length = context
        self.args = args = config.arguments(self.max_length)
        self.batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.state, self.main = args.distributed_state, args.distributed_state.is_main_process
        self.device, self.dtype = args.device, compute_dtype(config.precision, args.device)
        limit = config.measure.max_new_tokens
        self.decoding = self.task.DECODING | ({} if limit is None else {"max_new_tokens": limit})
        self.best = model_selection.BestCheckpoint(self.folder / "best", higher_is_better=self.task.HIGHER_IS_BETTER)
        self.result = self.folder / "eval" / f"{config.task}.json"
        self.record = RunRecord(config, main=self.main)


def finetune(config: FinetuneConfig) -> None:
    """Run or resume a fine-tuning run; write a run folder as pretraining does, with eval/TASK.json.

    Raises:
        InputError: If settings, data, base model or an earlier run in the folder do not fit together.
        SystemExit: With EXIT_RESUMABLE after a signal, once the state is saved.
    """
    prepare_process()
    run = Run(config)
    parts, selection, comparison = load_data(run)
    identity = identify(run, parts)
    earlier = open_checkpoint(run.folder, identity, main=run.main)
    if earlier and (run.folder / "model").is_dir() and run.result.is_file():
        run.state.print(f"{run.folder} is complete.")
        return run.record.close()
    start_record(run, identity)

    before = complete_with_base(run, "before", comparison.rows)
    trainer = build_trainer(run, parts, identity)
    steps = train(run, trainer, selection.rows, earlier)
    if not earlier or not (run.folder / "model").is_dir():  # else an earlier session wrote it
        write_model(run, trainer)
    run.state.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer, run.model  # the tuned model takes their place
    tuned = base_model.open_model(run.folder / "model", run.dtype).to(run.device)
    after = model_selection.generate_completions(tuned, run.tokenizer, comparison.rows, run.decoding, progress="tuned")

    if run.main:
        write_results(run, parts, comparison, before, after)
        run.record.write(steps=steps, peak_memory_bytes=peak_memory(run.device))
    run.record.close()
    run.state.wait_for_everyone()
    run.state.destroy_process_group()


# Settings and data --------------------------------------------------------------------------------


def prepare_process() -> None:
    """Configure arithmetic and memory of this process, and silence the libraries."""
    configure_allocator()
    flush_denormals()
    logging.disable_progress_bar()  # loading and saving weights
    disable_progress_bars()  # datasets
    constants.HF_HUB_DISABLE_TELEMETRY = True  # otherwise TRL reports every run


def load_data(run: Run) -> tuple[dict[str, Examples], Examples, Examples]:
    """Return training examples ("replay" is pretraining text), and those of checkpoint selection and final comparison.

    For SFT, set `args.max_steps`.
    """
    config, args = run.config, run.args
    limits, splits = {"task": config.task, "max_length": run.max_length}, split_rows(config, run.task, run.state)
    train, selection, comparison = (tokenize_rows(rows, run.tokenizer, **limits) for rows in splits)
    for name, examples in (("", train), ("held out: ", selection), ("held out: ", comparison)):
        if examples.overlong_note:
            run.state.print(f"{name}{examples.overlong_note}")
    parts = {config.task: train}
    if share := config.replay.share:
        parts["replay"] = tokenize_replay(
            config.replay.path,
            run.tokenizer,
            run.base_folder / "tokenizer.json",
            tokens=int(train.tokens * share / (1 - share)),
            max_length=run.tokenizer.model_max_length,
            seed=config.seed,
        )
    if config.method == "sft":
        size = sum(map(len, parts.values()))
        if args.max_steps <= 0:
            args.max_steps = max(1, round(args.num_train_epochs * size / run.batch))
        run.state.print(f"{args.max_steps} steps of {run.batch} examples; the data contain {size:,}.")
    return parts, selection, comparison


def split_rows(
    config: FinetuneConfig, task: ModuleType, state: PartialState
) -> tuple[list[dict], list[dict], list[dict]]:
    """Return the rows for training, for the selection of the best checkpoint, and for the final comparison.

    Raises:
        InputError: If a part would be empty.
    """
    data = dataclass_from_dict(tasks.settings(config.task), config.data, "data")
    with state.main_process_first():  # the other processes reuse what the first one downloads
        rows = task.rows(data)
    selection, held_out = config.measure.selection_rows, rows["held_out"]
    comparison = held_out[selection : None if config.measure.rows is None else selection + config.measure.rows]
    if not rows["train"] or not comparison:
        raise InputError(
            f"The data of {config.task} have {len(rows['train'])} training rows and {len(held_out)} held-out rows, of "
            f"which the first {selection} select the checkpoint: provide more data, or lower --measure.selection_rows."
        )
    return rows["train"], held_out[:selection], comparison


def identify(run: Run, parts: dict[str, Examples]) -> dict:
    """Return the settings that must not change between the sessions of a run."""
    return {
        "base": run.base_files,
        "task": run.config.task,
        "method": run.config.method,
        "optimizer": run.config.optimizer,
        "data": {name: data_manifest.fingerprint_of(part) for name, part in parts.items()},
        "seed": run.config.seed,
        "batch": run.batch,
        "steps": [run.args.max_steps, run.args.num_train_epochs],
    }


def start_record(run: Run, identity: dict) -> None:
    """Write config.yaml, and start this session in run.json."""
    settings = {name: getattr(run.args, name) for name in LOGGED_TRAINER_ARGS} | {"max_length": run.max_length}
    if run.config.max_steps is None:
        settings["num_train_epochs"] = run.args.num_train_epochs
    facts = {"processes": run.state.num_processes, "device": str(run.device), "dtype": str(run.dtype)}
    facts |= {"base_model": run.config.base_model, "base_files": run.base_files, "trainer": settings}
    run.record.start(**facts, data=list(identity["data"].values()), trl=version("trl"))


# Training -----------------------------------------------------------------------------------------


def complete_with_base(run: Run, name: str, rows: list[dict]) -> list[str]:
    """Return the base model's completions of rows, from answers/NAME.json if an earlier session wrote them."""
    path = run.folder / "answers" / f"{name}.json"
    key = fingerprint(
        [run.base_files, str(run.dtype), describe_decoding(run.decoding), [row["prompt"] for row in rows]]
    )
    if path.is_file() and (saved := read_json(path))["of"] == key:
        return saved["value"]
    model = base_model.open_model(run.base_folder, run.dtype).to(run.device)
    completions = model_selection.generate_completions(model, run.tokenizer, rows, run.decoding, progress="base")
    if run.main:
        write_json(path, {"of": key, "value": completions})
    return completions


def describe_decoding(decoding: dict) -> dict:
    """Return decoding settings as JSON; a callable becomes its name and the defaults of its parameters."""

    def describe(function: Callable) -> dict:
        parameters = inspect.signature(function).parameters.values()
        return {"name": function.__qualname__} | {p.name: p.default for p in parameters if p.default is not p.empty}

    return {name: describe(value) if callable(value) else value for name, value in decoding.items()}


def build_trainer(run: Run, parts: dict[str, Examples], identity: dict) -> Trainer:
    """Return TRL's trainer for the method, with its dataset.

    Raises:
        InputError: If a parameter is frozen, or rewards or candidates are invalid.
    """
    config, rows = run.config, parts[run.config.task].rows
    common = {"model": run.model, "args": run.args, "processing_class": run.tokenizer}
    if config.method == "sft":
        # TRL tokenizes these columns, and computes the loss on the completions or on the assistant's turns.
        columns = ("messages",) if "messages" in rows[0] else ("prompt", "completion")
        lengths = [len(ids) for part in parts.values() for ids in part.input_ids]
        trainer = PleiasSFTTrainer(
            train_dataset=Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
            replay=parts.get("replay"),
            order=length_grouped_order(
                lengths, batch=run.batch, steps=run.args.max_steps, seed=config.seed, shuffle=config.shuffle
            ),
            dtype=run.dtype,
            candidates=config.candidates,
            **common,
        )
    elif config.method == "dpo":
        rows = rows[: config.preference_prompts]
        pairs = preferences.preference_pairs(rows, complete_with_base(run, "own", rows), run.task)
        trainer = PleiasDPOTrainer(train_dataset=Dataset.from_list(pairs), **common)
    else:
        run.model.generation_config.eos_token_id = [run.tokenizer.eos_token_id, run.stop_id]
        reward = preferences.build_reward(config.rewards, run.task, run.tokenizer, rows[0])
        trainer = PleiasGRPOTrainer(
            train_dataset=Dataset.from_list(preferences.prompts(rows)), reward_funcs=reward, **common
        )
    base_model.check_all_trainable(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.identity, trainer.muon = identity, config.optimizer == "muon"
    return trainer


def train(run: Run, trainer: Trainer, selection_rows: list[dict], earlier: Checkpoint | None) -> int:
    """Train to the last step, with evaluations and checkpoints on the way, and return its number.

    Raises:
        SystemExit: With EXIT_RESUMABLE after a signal, once the state is saved.
    """
    log = None
    if run.main:
        log = MetricsLog(run.folder / "metrics.jsonl", resume_step=earlier.step if earlier else -1)
        if earlier:
            write_json(earlier.path / "trainer_state.json", earlier.state["trainer"])  # Trainer reads it from there
        else:
            shutil.rmtree(run.best.folder, ignore_errors=True)  # left by a session without a checkpoint
    evaluation = partial(evaluate, run, selection_rows, log)
    around = StepCallback(
        run.config.name, log, trainer.accelerator, every=run.config.measure.steps, measure=evaluation
    )
    trainer.add_callback(around)
    run.state.wait_for_everyone()
    trainer.train(resume_from_checkpoint=str(earlier.path) if earlier else None)
    around.stop.restore()  # what follows is not resumed from a checkpoint
    steps = trainer.state.global_step
    if around.stopped and steps < trainer.state.max_steps:
        run.record.write(steps=steps)
        run.record.close()
        trainer.accelerator.end_training()
        exit_stopped(around.stopped, steps, main=run.main)
    return steps


def evaluate(run: Run, rows: list[dict], log: MetricsLog | None, model: PreTrainedModel, step: int) -> str:
    """Compute the task's metrics, save the weights if they are the best, and return a message."""
    copy = model_selection.export_copy(model, run.task, run.turn_end)
    outputs = model_selection.generate_completions(
        to_compute(copy, run.device, run.dtype), run.tokenizer, rows, run.decoding
    )
    metrics = {
        name: finite_or_none(model_selection.metric_value(metric))
        for name, metric in run.task.score(rows, outputs).items()
    }
    name, value = next(iter(metrics.items()))
    if run.main:
        log.write({"step": step, "held_out": metrics})
        if run.best.is_improved_by(value):
            facts = {"step": step, "metric": name, "value": value}
            save_model(copy.to("cpu", torch.bfloat16), run.tokenizer, run.best.folder, {"best.json": facts})
    return f"step {step}: {name} {'undefined' if value is None else f'{value:.4f}'} on {len(rows)} held-out rows"


def write_model(run: Run, trainer: Trainer) -> None:
    """Write model/: the best weights, or the last ones if none were evaluated during training."""
    folder = run.folder / "model"
    last = None if run.config.measure.steps else model_selection.export_copy(trainer.model, run.task, run.turn_end)
    if run.main and last:
        save_model(last, run.tokenizer, folder)
    elif run.main:
        run.record.write(kept=run.best.facts)
        shutil.rmtree(folder, ignore_errors=True)
        run.best.folder.rename(folder)


# Results ------------------------------------------------------------------------------------------


def write_results(
    run: Run, parts: dict[str, Examples], comparison: Examples, before: list[str], after: list[str]
) -> None:
    """Write manifests/, eval/TASK.json, loss.png and the tuned model's completions, and print the comparison."""
    config, rows, model_folder = run.config, comparison.rows, run.folder / "model"
    key = read_json(run.folder / "answers" / "before.json")["of"]  # completions of the same prompts
    write_json(run.folder / "answers" / "after.json", {"of": key, "value": after})
    manifests = {config.task: data_manifest.build_manifest(parts[config.task], comparison, model_folder)}
    if "replay" in parts:
        manifests["replay"] = data_manifest.build_manifest(
            parts["replay"], None, model_folder, path=config.replay.path
        )
    data_manifest.write_data_manifests(run.folder, manifests)
    run.record.write(data=[manifest["fingerprint"] for manifest in manifests.values()])
    metrics = model_selection.compare_metrics(run.task.score(rows, before), run.task.score(rows, after))
    write_result(
        run.result.parent,
        config.task,
        metrics,
        data={"fingerprint": data_manifest.fingerprint_of(comparison), "rows": len(rows), **comparison.counts},
        base_model=config.base_model,
        decoding=describe_decoding(run.decoding),
        **tasks.signatures(run.task),
        examples=[
            {"prompt": row["prompt"], "right": row["completion"], "before": base_output, "after": tuned_output}
            for row, base_output, tuned_output in zip(rows[:5], before, after, strict=False)
        ],
    )
    plot(read_metrics(run.folder / "metrics.jsonl"), run.folder / "loss.png")
    print_comparison(config, metrics, len(rows))
    print(f"{model_folder} loads with from_pretrained; {run.result} contains the metrics.")


def print_comparison(config: FinetuneConfig, metrics: dict[str, dict[str, float]], rows: int) -> None:
    """Print the metrics of base and tuned model."""
    table = Table(title=f"{config.task}: {rows} held-out rows, with 95% intervals", title_justify="left")
    for column in ("metric", "base", "tuned", "change"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in metrics:
        if f"{name}_change" in metrics:
            values = (metrics[key] for key in (f"{name}_before", name, f"{name}_change"))
            table.add_row(
                Text(terminal_line(name)), *(f"{x['value']:.4g} ({x['low']:.4g} to {x['high']:.4g})" for x in values)
            )
    Console(width=118).print(table)


def main() -> None:
    """`accelerate launch -m training.finetune`."""
    forward_launcher_sigterm()
    launch_cpu_processes(["-m", __spec__.name] if __spec__ else [__file__])
    launcher = "accelerate launch -m training.finetune --config NAME"
    finetune(parse(FinetuneConfig, description=f"Fine-tune a model with TRL, or resume a run. Start with: {launcher}"))


if __name__ == "__main__":
    run_main(main)
