"""Fine-tuning: files of a run, training of all parameters, resume, base models, error messages, packaged configs."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from no_bf16 import cpu_without_bf16
from programs import run_program
from safetensors.torch import load_file
from training_runs import WORDS, as_yaml, handlers_kept, local_data, state
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

from modeling_pleias import PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS
from training import finetune
from training.common.config import InputError, parse
from training.common.files import fingerprint, model_sha256, read_json
from training.common.generation import complete
from training.finetuning import base_model as base
from training.finetuning import model_selection
from training.finetuning.recipe import FinetuneConfig, MeasureConfig, ReplayConfig
from training.finetuning.trainers import StepCallback
from training.run import checkpoint
from training.run.metrics import read_metrics
from training.run.stopping import EXIT_RESUMABLE
from training.tasks import instruct, ocr
from training.tasks.ocr.edit_penalty import edit_penalty_processor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(base_model, chat) -> FinetuneConfig:
    """Six steps with evaluations and checkpoints."""
    return FinetuneConfig(
        name="tiny",
        task="instruct",
        base_model=str(base_model),
        data={"path": str(chat)},
        trainer={"per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 2, "logging_steps": 2},
        max_steps=6,
        measure=MeasureConfig(steps=3, selection_rows=2, rows=3, max_new_tokens=8),
        precision="fp32",
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> FinetuneConfig:
    """An uninterrupted run."""
    config = replace(config, out=tmp_path_factory.mktemp("runs") / "complete")
    run(config)
    return config


def run(config: FinetuneConfig) -> None:
    """Fine-tune in this process, and restore its signal handlers."""
    with handlers_kept():
        finetune.finetune(config)


def assert_same_run(first: FinetuneConfig, second: FinetuneConfig) -> None:
    a, b = state(first, 6), state(second, 6)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert read_metrics(first.folder / "metrics.jsonl") == read_metrics(second.folder / "metrics.jsonl")
    models = [load_file(config.folder / "model" / "model.safetensors") for config in (first, second)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# The files of a run -------------------------------------------------------------------------------


def test_a_run_writes_every_file_of_its_contract(finished):
    folder = finished.folder
    assert parse(FinetuneConfig, ["--config", str(folder / "config.yaml")], description="") == finished
    session = read_json(folder / "run.json")["sessions"][0]
    assert session["base_model"] == finished.base_model and session["steps"] == 6
    assert session["base_files"] == model_sha256(Path(finished.base_model))
    logged = {"learning_rate": 1e-2, "lr_scheduler_type": "cosine", "max_length": 128}
    logged["per_device_train_batch_size"] = 4
    assert logged.items() <= session["trainer"].items()  # also settings that the config does not contain
    assert read_json(folder / "emissions.json")["kwh"] > 0
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    result = read_json(folder / "eval" / "instruct.json")
    assert result["data"]["rows"] == 3
    for name in ("answer_f1", "answer_f1_before", "answer_f1_change"):
        assert result["metrics"][name].keys() == {"value", "low", "high"}
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] - 0.3


def test_the_model_folder_loads_with_auto_classes_and_has_a_chat_template_unlike_the_base(finished, base_model):
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "model")
    assert type(model) is PleiasForCausalLM
    assert read_json(finished.folder / "model" / "config.json")["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(base_model).chat_template is None
    assert model.generation_config.eos_token_id == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    turns = [{"role": "user", "content": "bells"}]
    outputs = pipeline("text-generation", model=str(finished.folder / "model"), max_new_tokens=4)(turns)
    assert outputs[0]["generated_text"][-1]["role"] == "assistant"
    assert isinstance(instruct.reply(model, tokenizer, turns), str)


def test_the_weights_with_the_best_metric_are_saved(finished):
    measured = {
        line["step"]: line["held_out"]
        for line in read_metrics(finished.folder / "metrics.jsonl")
        if "held_out" in line
    }
    assert list(measured) == [3, 6]
    saved = read_json(finished.folder / "model" / "best.json")
    best = max(measured, key=lambda step: (measured[step]["answer_f1"], step))  # the later one of equals
    assert saved == {"step": best, "metric": "answer_f1", "value": measured[best]["answer_f1"]}
    if best == 6:
        trained = state(finished, 6)["model:model.layers.0.mlp.up_proj.weight"]
        weights = load_file(finished.folder / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert torch.equal(trained.bfloat16(), weights)


def test_only_a_value_at_least_as_good_replaces_the_earlier_best_checkpoint(tmp_path):
    for higher, better, worse in ((True, 0.6, 0.4), (False, 0.4, 0.6)):
        best = model_selection.BestCheckpoint(tmp_path / str(higher), higher_is_better=higher)
        assert best.is_improved_by(None)
        best.folder.mkdir()
        (best.folder / "best.json").write_text(json.dumps({"step": 1, "value": None}))
        assert best.is_improved_by(worse) and best.is_improved_by(None)
        (best.folder / "best.json").write_text(json.dumps({"step": 1, "value": 0.5}))
        assert best.is_improved_by(better) and best.is_improved_by(0.5)
        assert not best.is_improved_by(worse) and not best.is_improved_by(None)


def test_the_manifest_of_a_run_has_the_form_of_a_shard_manifest_and_adds_up(finished):
    manifest = read_json(finished.folder / "manifests" / "instruct.json")
    session = read_json(finished.folder / "run.json")["sessions"][0]
    assert session["data"] == [manifest["fingerprint"]]
    train, held_out = manifest["account"]
    assert (train["split"], train["language"], train["license"]) == ("train", "English", "CC0-1.0")
    assert held_out["split"] == "validation" and held_out["documents"] == 3
    (source,) = manifest["corpus"]["sources"]["sources"]
    assert source["name"] == "made up" and source["documents"] == train["documents"]
    assert manifest["not_open"] == []
    assert manifest["tokenizer"]["bos"] == 1


# Training -----------------------------------------------------------------------------------------


def test_every_parameter_changes_and_has_optimizer_state(finished, base_model):
    before = load_file(base_model / "model.safetensors")
    after = {
        name.removeprefix("model:"): value for name, value in state(finished, 6).items() if name.startswith("model:")
    }
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert not torch.equal(value, before[name].float()), name
    moments = [name for name in state(finished, 6) if name.endswith("/exp_avg")]
    assert len(moments) == len(after)


def test_a_frozen_parameter_is_refused_with_the_reason_from_the_card(base_model):
    model = base.open_model(base_model, torch.float32)
    base.check_all_trainable(model)
    model.model.embed_tokens.weight.requires_grad = False
    with pytest.raises(InputError, match="1 parameters are frozen.*card does not recommend LoRA at this size"):
        base.check_all_trainable(model)


def test_accumulated_batches_equal_one_batch(config, finished, tmp_path):
    trainer = {**config.trainer, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    other = replace(config, trainer=trainer, out=tmp_path / "run", measure=replace(config.measure, steps=None))
    run(other)
    a, b = state(finished, 6), state(other, 6)
    for name in a:
        if name.startswith("model:"):
            torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-3)


def test_a_share_of_the_tokens_is_replay_text_with_its_own_manifest(config, tiny_shards, tmp_path):
    config = replace(config, out=tmp_path / "run", replay=ReplayConfig(share=0.25, path=tiny_shards), max_steps=2)
    run(config)
    parts = {name: read_json(config.folder / "manifests" / f"{name}.json") for name in ("instruct", "replay")}
    tokens = {
        name: sum(row["tokens"] for row in part["account"] if row["split"] == "train") for name, part in parts.items()
    }
    assert tokens["replay"] / sum(tokens.values()) == pytest.approx(0.25, abs=0.02)
    assert parts["replay"]["corpus"]["sources"]["sources"][0]["name"] == "made up"
    session = read_json(config.folder / "run.json")["sessions"][0]
    assert session["data"] == [part["fingerprint"] for part in parts.values()]


# Resume -------------------------------------------------------------------------------------------


def test_a_run_stopped_by_a_signal_resumes_to_the_same_weights(config, finished, tmp_path, monkeypatch):
    stopped = replace(config, out=tmp_path / "run")
    usual = StepCallback.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        usual(self, args, state, control, **kwargs)
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StepCallback, "on_step_begin", on_step_begin)
        with pytest.raises(SystemExit) as status:
            run(stopped)
    assert status.value.code == EXIT_RESUMABLE and checkpoint.steps(stopped.folder / "checkpoints") == [2, 3]
    assert not (stopped.folder / "model").exists()
    run(stopped)
    assert_same_run(finished, stopped)
    assert len(read_json(stopped.folder / "run.json")["sessions"]) == 2


def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_weights(config, finished, tmp_path, monkeypatch):
    killed = replace(config, out=tmp_path / "run")

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:  # after the checkpoint of step 4 and the measurement of step 3
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepCallback, "on_step_begin", on_step_begin)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    assert checkpoint.steps(killed.folder / "checkpoints") == [2, 4]
    run(killed)
    assert_same_run(finished, killed)


def test_with_muon_every_parameter_changes_and_a_killed_run_resumes_to_the_same_weights(
    config, base_model, tmp_path, monkeypatch
):
    config = replace(config, optimizer="muon")
    complete, killed = (replace(config, out=tmp_path / name) for name in ("complete", "killed"))
    run(complete)
    trained, before = state(complete, 6), load_file(base_model / "model.safetensors")
    assert not any(torch.equal(trained[f"model:{name}"], value.float()) for name, value in before.items())
    momentum = {name.split(":")[1] for name in trained if name.endswith("/momentum_buffer")}
    matrices = [name for name, weight in before.items() if "layers" in name and weight.ndim == 2]
    assert momentum == {f"{name}/momentum_buffer" for name in matrices}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepCallback, "on_step_begin", on_step_begin)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    with pytest.raises(InputError, match=r"Cannot resume from .*: optimizer changed\. Use another --out"):
        run(replace(killed, optimizer="adamw"))
    run(killed)
    assert_same_run(complete, killed)


def test_a_run_without_checkpoints_starts_over_and_saves_its_own_weights(config, base_model, tmp_path):
    single_step = replace(config, out=tmp_path / "run", trainer={**config.trainer, "save_strategy": "no"}, max_steps=1)
    for seed in (0, 1):
        run(replace(single_step, seed=seed))
        weights = load_file(single_step.folder / "model" / "model.safetensors")["model.norm.weight"]
        assert read_json(single_step.folder / "run.json")["sessions"][-1]["kept"]["step"] == 1
        assert not (single_step.folder / "best").exists()
    other = replace(single_step, seed=1, out=tmp_path / "other")
    run(other)
    assert torch.equal(weights, load_file(other.folder / "model" / "model.safetensors")["model.norm.weight"])


def test_a_complete_run_is_not_changed(finished, capsys):
    before = (finished.folder / "model" / "model.safetensors").stat().st_mtime_ns
    run(finished)
    assert "is complete" in capsys.readouterr().out
    assert (finished.folder / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_run_is_not_resumed(finished):
    with pytest.raises(InputError, match=r"Cannot resume from .*: seed changed\. Use another --out"):
        run(replace(finished, seed=1))
    with pytest.raises(InputError, match="batch changed"):
        run(replace(finished, trainer={**finished.trainer, "per_device_train_batch_size": 2}))


def test_two_processes_train_as_one_process_does(config, finished, tmp_path):
    trainer = {**config.trainer, "per_device_train_batch_size": 2}
    two = replace(config, out=tmp_path / "run", trainer=trainer)
    file = as_yaml(two, tmp_path / "config.yaml")
    done = run_program("training.finetune", "--config", file, log=tmp_path / "log", processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = state(finished, 6), state(two, 6)
    for name in a:
        if name.startswith("model:"):
            torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-3)
    metrics = [read_metrics(run_config.folder / "metrics.jsonl") for run_config in (finished, two)]
    steps = [[line["step"] for line in lines] for lines in metrics]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in metrics]
    assert steps[0] == steps[1] and losses[0] == pytest.approx(losses[1], rel=1e-4)
    completions = [read_json(each.folder / "answers" / "before.json")["value"] for each in (finished, two)]
    assert completions[0] == completions[1] and len(completions[0]) == 3


def test_saved_completions_of_the_base_depend_on_the_logits_processor(monkeypatch):
    before = fingerprint(finetune.describe_decoding(ocr.DECODING))
    assert before == fingerprint(finetune.describe_decoding(dict(ocr.DECODING)))
    monkeypatch.setattr(edit_penalty_processor, "__defaults__", (1.0,))  # another price of a change
    assert before != fingerprint(finetune.describe_decoding(ocr.DECODING))


# Base models --------------------------------------------------------------------------------------


def test_a_folder_in_llama_format_is_a_base_model_with_the_same_weights(base_model, tmp_path):
    model = base.open_model(base_model, torch.float32)
    settings = model.config.to_dict().items()
    llama = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in settings if k not in ("model_type", "architectures")}))
    llama.load_state_dict(model.state_dict())
    llama.save_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json")["model_type"] == "llama"
    opened = base.open_model(base.resolve_base_model(str(tmp_path)), torch.float32)
    assert type(opened) is PleiasForCausalLM
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())


def test_missing_task_tokens_replace_the_last_tokens_of_a_vocabulary_and_text_round_trips(tmp_path):
    """A tokenizer like the original's: without task tokens, and without declared special tokens."""
    words = " ".join(f"{a}{b}" for a in WORDS for b in WORDS)
    trained = PleiasTokenizer(extra_special_tokens=[]).train_new_from_iterator([words] * 2, 700)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokens = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in DOCUMENT_TOKENS]
    vocab = {token: i for i, token in enumerate(tokens)}
    old = PleiasTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    plain = PreTrainedTokenizerFast(tokenizer_object=old.backend_tokenizer)
    plain.save_pretrained(tmp_path)
    assert "<|text_start|>" not in plain.get_vocab() and plain.eos_token is None

    new = base.open_tokenizer(tmp_path)
    assert len(new) == len(vocab) and new.eos_token_id == 2 and new.pad_token_id == 3
    ids = [new.convert_tokens_to_ids(token) for token in DOCUMENT_TOKENS]
    assert ids == list(range(len(vocab) - 64, len(vocab)))
    assert all(new.convert_tokens_to_ids(token) == i for token, i in list(vocab.items())[:-64])
    for text in ("the old house stood by the river\n", "Où l'on voit, en 1789, la ſaiſon ¬\r\n\f\t…", words):
        assert new.decode(new(text).input_ids[1:]) == text
    new.save_pretrained(tmp_path / "saved")
    again = base.open_tokenizer(tmp_path / "saved")
    assert again("<|text_start|>bells").input_ids == new("<|text_start|>bells").input_ids


@pytest.mark.parametrize("content", ["[" * 100_000, "\ufeff{}", '{"version": "1.0"}'])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="The tokenizer in .* cannot be read"):
        base.open_tokenizer(tmp_path)


GROUPS = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8}  # for GRPO

# Error messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat is not a field of TRL's SFTConfig"),
        ({"trainer": {"seed": 1}}, "trainer.seed is set by --seed"),
        ({"trainer": {"packing": True}}, "trainer.packing .* need FlashAttention"),
        ({"trainer": {"lr_scheduler_type": "sinus"}}, "trainer: sinus is not a valid SchedulerType"),
        ({"data": {"pfad": "x"}}, "data.pfad is not a setting of InstructData, which has path, "),
        ({"data": {"rows": "many"}}, "data: .*rows"),
        ({"data": {}}, "instruct has no data"),
        ({"data": {"path": "/nowhere"}}, "/nowhere contains no .parquet or .jsonl file"),
        ({"trainer": {"assistant_only_loss": False}}, "trainer.assistant_only_loss is set by --task"),
        ({"trainer": {"shuffle_dataset": True}}, "trainer.shuffle_dataset is set by --shuffle"),
        ({"replay": ReplayConfig(share=0.1)}, "replay.share needs --replay.path"),
        ({"replay": ReplayConfig(share=1.0, path=Path("x"))}, "replay.share must be from 0 to below 1, got 1.0"),
        ({"base_model": "/nowhere"}, "base_model /nowhere is not a folder and could not be downloaded from the Hub"),
        ({"trainer": {"fsdp": True}}, "keeps the full model on each GPU"),
        ({"method": "grpo"}, "method grpo needs --rewards"),
        (
            {"method": "grpo", "rewards": {"cer": -1}, "trainer": GROUPS},
            "cer is not a metric of instruct, which has answer_f1",
        ),
        ({"method": "dpo", "trainer": {"precompute_ref_log_probs": False}}, "cannot open a second copy"),
        ({"max_length": 8}, "None of 5. examples of instruct has at most 8 tokens"),
        ({"measure": MeasureConfig(selection_rows=50)}, "of which the first 50 select the checkpoint"),
        ({"measure": MeasureConfig(steps=0)}, "measure.steps and measure.selection_rows must be at least 1"),
    ],
)
def test_invalid_settings_have_a_one_line_error(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(replace(config, out=tmp_path / "run", **changes))


def test_an_unknown_setting_ends_the_program_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--config", "finetune_ocr", "--learning_rate", "1"])
    with pytest.raises(SystemExit) as status:
        finetune.main()
    assert status.value.code == 2 and "learning_rate" in capsys.readouterr().err


def test_an_adapter_is_not_a_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter. The original's card does not recommend LoRA at this size"):
        base.resolve_base_model(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="has no config.json"):
        base.resolve_base_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="is of type gpt2, not pleias or llama"):
        base.resolve_base_model(str(tmp_path))


# Preferences and rewards --------------------------------------------------------------------------


def test_dpo_learns_to_prefer_the_reference_to_the_base_models_completion(config, tmp_path):
    trainer = {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "logging_steps": 1}
    dpo = replace(config, method="dpo", preference_prompts=8, max_steps=4, trainer=trainer, out=tmp_path / "run")
    run(dpo)
    base_completions = read_json(dpo.folder / "answers" / "own.json")["value"]
    rows = instruct.rows(instruct.InstructData(path=Path(config.data["path"])))["train"][:8]
    model = base.open_model(Path(config.base_model), torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(config.base_model)
    decoding = instruct.DECODING | {"max_new_tokens": 8}
    assert base_completions == complete(model, tokenizer, [row["prompt"] for row in rows], **decoding)
    lines = [line for line in read_metrics(dpo.folder / "metrics.jsonl") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # before the first step policy and reference are equal
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.05


@pytest.fixture(scope="module")
def tuned(config, chat, tmp_path_factory) -> FinetuneConfig:
    """The same answer to all questions, which is learned fast; no evaluation during training."""
    data = tmp_path_factory.mktemp("one") / "chat.jsonl"
    rows = [json.loads(line) for line in chat.read_text().splitlines()]
    for row in rows:
        row["messages"][1]["content"] = "bells rang over the hills"
    data.write_text("\n".join(map(json.dumps, rows)))
    trainer = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "save_strategy": "no"}
    measure = replace(config.measure, steps=None, rows=None, max_new_tokens=16)
    out = tmp_path_factory.mktemp("tuned") / "run"
    config = replace(config, data={"path": str(data)}, trainer=trainer, max_steps=40, measure=measure, out=out)
    run(config)
    return config


def test_fine_tuning_raises_the_metric_and_saves_the_last_weights_without_evaluations(tuned):
    metrics = read_json(tuned.folder / "eval" / "instruct.json")["metrics"]
    assert metrics["answer_f1_before"]["value"] < 0.1 < 0.5 < metrics["answer_f1"]["value"]
    assert metrics["answer_f1_change"]["low"] > 0
    assert not (tuned.folder / "model" / "best.json").exists() and not (tuned.folder / "best").exists()


def test_grpo_rewards_completions_with_the_metric_of_the_task(config, tuned, tmp_path):
    trainer = GROUPS | {"learning_rate": 1e-3, "logging_steps": 1, "temperature": 1.0, "max_completion_length": 16}
    grpo = replace(config, method="grpo", rewards={"answer_f1": 1.0}, max_steps=3, trainer=trainer)
    grpo = replace(grpo, data=tuned.data, base_model=str(tuned.folder / "model"), out=tmp_path / "run")
    run(grpo)
    lines = [line for line in read_metrics(grpo.folder / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 3 and any(0 < line["rewards/instruct/mean"] <= 1 for line in lines)
    assert any(line["grad_norm"] > 0 for line in lines)


# The packaged configs -----------------------------------------------------------------------------


FEW = ["--max_steps", "2", "--trainer.per_device_train_batch_size", "2", "--measure.max_new_tokens", "4"]
FEW += ["--measure.selection_rows", "2", "--measure.rows", "2"]
CONFIGS = {
    "ocr": "ocr",
    "translation": "translation",
    "rag": "rag",
    "instruct": "instruct",
    "dpo": "instruct",
    "grpo_ocr": "ocr",
    "grpo_rag": "rag",
}


@pytest.mark.parametrize(("name", "precision"), [*((name, "auto") for name in CONFIGS), ("rag", "bf16")])
def test_a_packaged_config_runs_without_a_bf16_product_on_a_cpu_without_bf16_and_in_bf16_if_requested(
    name, precision, base_model, chat, tiny_corpus, tmp_path, monkeypatch, capsys
):
    arguments = ["--config", f"finetune_{name}", "--base_model", str(base_model), "--out", str(tmp_path / "run"), *FEW]
    arguments += local_data(CONFIGS[name], tmp_path, chat, tiny_corpus) + ["--max_length", "512"]
    if name in ("ocr", "translation", "rag"):  # the vocabulary of the tests is smaller than these configs' candidates
        arguments += ["--candidates", "100"]
    if name == "ocr":  # instead of 51,200
        arguments += ["--data.copy_rows", "50"]
    if name == "rag":  # user-provided questions
        arguments += ["--data.copy_rows", "0"]
    if name.startswith("grpo"):
        arguments += ["--trainer.num_generations", "2", "--trainer.max_completion_length", "4"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments, "--precision", precision])
    with handlers_kept(), cpu_without_bf16() if precision == "auto" else nullcontext():
        finetune.main()
    session = read_json(tmp_path / "run" / "run.json")["sessions"][0]
    assert session["steps"] == 2
    assert session["dtype"] == {"auto": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    result = read_json(tmp_path / "run" / "eval" / f"{CONFIGS[name]}.json")
    signed = {"chrf2++": "nw:2", "bleu": "tok:13a"} if CONFIGS[name] == "translation" else {}
    assert result.get("signatures", {}).keys() == signed.keys()
    assert all(part in result["signatures"][metric] for metric, part in signed.items())
    assert "held-out rows, with 95% intervals" in capsys.readouterr().out
