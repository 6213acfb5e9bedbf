"""The pretraining program: the files of a run, resuming after any stop, and errors for bad input."""

import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from programs import run_program
from safetensors.torch import load_file
from training_runs import as_yaml, handlers_kept, state
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from training import pretrain
from training.common.config import InputError, parse
from training.common.files import read_json, sha256
from training.common.language import LANGUAGES
from training.data.corpus_builder import CorpusConfig
from training.data.documents import SCHEMA
from training.data.loader import ShardDataset, batch_windows
from training.pretraining.prepare import DataConfig
from training.pretraining.recipe import IntervalConfig, PretrainConfig, Stage
from training.pretraining.samples import NEW_TOKENS, PROMPTS
from training.run import checkpoint
from training.run.metrics import read_metrics
from training.run.stopping import EXIT_RESUMABLE
from training.step import step_guard
from training.step.optimizer import OptimizerConfig

ROOT = Path(__file__).parents[2]
WORDS = {
    "en": "the ship came home from the long sea and its captain told of storms that nobody would believe",
    "fr": "le navire revint de la longue mer et son capitaine parla de tempêtes que personne ne voulut croire",
}
MODEL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TWO = ("--num_processes", "2")  # as a user types it
TIMES = ("tokens_per_second", "mfu")  # metrics that may differ between two equal runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Corpus of two languages with 60 documents each."""
    folder = tmp_path_factory.mktemp("text")
    for language, words in WORDS.items():
        words, rows = words.split(), []
        for i in range(60):
            text = " ".join(
                words[(i * 7 + k * (1 + i % 5)) % len(words)] + ("." if k % 11 == 10 else "") for k in range(120)
            )
            row = dict.fromkeys(SCHEMA.names, "test") | {"identifier": f"{language}-{i}", "text": text}
            row |= {"language": LANGUAGES[language], "license": "CC0-1.0", "word_count": 120, "token_count": 0}
            rows.append(row)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{language}.parquet")
    return folder


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory) -> PretrainConfig:
    """Twelve steps of a tiny model; the first run that needs its data builds them."""
    return PretrainConfig(
        name="tiny",
        stages=[Stage("base", steps=8, sequences=8), Stage("annealing", steps=4, sequences=4)],
        model=MODEL,
        corpus=CorpusConfig(source="parquet", languages=list(WORDS), path=corpus),
        data=DataConfig(folder=tmp_path_factory.mktemp("data"), validation_share=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3),
        every=IntervalConfig(log=2, validate=6, checkpoint=3, keep=2),
        sequence_length=32,
        micro_batch=2,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory) -> PretrainConfig:
    """A run without interruption."""
    config = replace(config, out=tmp_path_factory.mktemp("runs") / "reference")
    run(config)
    return config


def run(config: PretrainConfig) -> None:
    """Pretrain in this process, and restore its signal handlers."""
    with handlers_kept():
        pretrain.pretrain(config)


def start(config: PretrainConfig, tmp_path: Path, prelude: str = "", processes: int = 1) -> tuple[int, str]:
    """Return exit status and output of the program in other processes; `prelude` is Python code that makes it fail."""
    file = as_yaml(config, tmp_path / "config.yaml")
    options = {"log": tmp_path / "log", "cwd": tmp_path, "prelude": prelude, "processes": processes}
    done = run_program("training.pretrain", "--config", file, **options)
    return done.returncode, done.stdout + done.stderr


def launch(config: PretrainConfig, tmp_path: Path, *options: str) -> tuple[int, str]:
    """Return exit status and output of the program under `accelerate launch`, as a user starts it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "training.pretrain"]
    command += ["--config", str(as_yaml(config, tmp_path / "config.yaml"))]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def at_step(step: int, signal_name: str) -> str:
    """Return a prelude with which the process signals itself when that step gets its learning rate."""
    return (
        "import os, signal\n"
        "from training import pretrain\n"
        "def learning_rate(self, step, f=pretrain.PretrainConfig.learning_rate):\n"
        f"    if step == {step}: os.kill(os.getpid(), signal.{signal_name})\n"
        "    return f(self, step)\n"
        "pretrain.PretrainConfig.learning_rate = learning_rate"
    )


def timeless(config: PretrainConfig) -> list[dict]:
    """Return the metrics without those that depend on time."""
    records = read_metrics(config.folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_same_run(first: PretrainConfig, other: PretrainConfig) -> None:
    assert timeless(first) == timeless(other)
    a, b = (state(config, config.steps) for config in (first, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_writes_every_file_of_its_contract(reference):
    folder = reference.folder
    for name in ("config.yaml", "run.json", "metrics.jsonl", "emissions.json", "loss.png", "model/config.json"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    session = read_json(folder / "run.json")["sessions"][0]
    manifest = read_json(reference.data.folder / "shards" / "manifest.json")
    assert session["steps"] == 12 and session["end"] >= session["start"]
    assert session["data"] == [manifest["fingerprint"]] * 2
    assert session["versions"]["torch"] == version("torch") and session["hardware"]["cpus"] == os.cpu_count()
    emissions = read_json(folder / "emissions.json")
    assert emissions["kwh"] > 0 and emissions["kg_co2eq"] > 0
    assert checkpoint.steps(folder / "checkpoints") == [9, 12]
    assert (folder / "checkpoints" / "LATEST").read_text() == "step-12\n"


def test_pretraining_and_its_data_need_neither_trl_nor_datasets(config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run", data=replace(config.data, folder=tmp_path / "data"))
    code = "import runpy, sys; sys.modules.update(trl=None, datasets=None); "  # both imports fail
    code += "runpy.run_module('training.pretrain', run_name='__main__')"
    command = [sys.executable, "-c", code, "--config", str(as_yaml(config, tmp_path / "config.yaml"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert_same_run(config, reference)


def test_the_resolved_config_is_saved_and_is_a_config(reference):
    assert parse(PretrainConfig, ["--config", str(reference.folder / "config.yaml")], description="") == reference


def test_the_model_folder_opens_with_auto_classes_and_pipeline(reference):
    model = AutoModelForCausalLM.from_pretrained(reference.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(reference.folder / "model")
    assert type(model).__name__ == "PleiasForCausalLM"
    assert read_json(reference.folder / "model" / "config.json")["dtype"] == "bfloat16"
    trained = state(reference, reference.steps)["model:model.layers.0.mlp.up_proj.weight"]
    # A CPU without bfloat16 instructions loads it widened to float32.
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight.bfloat16(), trained.bfloat16())
    assert tokenizer.model_max_length == 32 and tokenizer.decode(tokenizer("a ship!").input_ids[1:]) == "a ship!"
    generate = pipeline("text-generation", model=str(reference.folder / "model"), max_new_tokens=5)
    assert generate("the ship")[0]["generated_text"].startswith("the ship")


def test_training_lowers_the_loss_and_the_bits_per_byte_of_held_out_text(reference):
    records = read_metrics(reference.folder / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    held = [record["validation"] for record in records if "validation" in record]
    assert losses[-1] < losses[0] - 0.5
    for language in WORDS:
        assert held[-1][language]["bits_per_byte"] < held[0][language]["bits_per_byte"]


def test_stages_switch_at_their_step_and_the_metrics_show_it(reference):
    records = [record for record in read_metrics(reference.folder / "metrics.jsonl") if "loss" in record]
    assert [(r["step"], r["stage"], r["sequences"]) for r in records] == [
        (2, "base", 8), (4, "base", 8), (6, "base", 8), (8, "base", 8), (10, "annealing", 4), (12, "annealing", 4),
    ]  # fmt: skip


def test_the_learning_rate_warms_up_linearly_and_decays_by_a_cosine(config):
    rates = [config.learning_rate(step) for step in range(1, 13)]
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert rates[11] == pytest.approx(1e-3) and config.learning_rate(100) == pytest.approx(1e-3)
    middle = replace(config, optimizer=replace(config.optimizer, warmup_steps=2)).learning_rate(7)
    assert middle == pytest.approx((1e-2 + 1e-3) / 2)
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize("accident", ["between checkpoints", "during a checkpoint", "before the first checkpoint"])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(accident, config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    prelude = {
        "between checkpoints": at_step(8, "SIGKILL"),
        "before the first checkpoint": at_step(2, "SIGKILL"),
        "during a checkpoint": (  # the tensors of the second are written, its folder is not renamed yet
            "import os, signal\n"
            "from training.run import checkpoint\n"
            "saves = []\n"
            "def save_file(tensors, path, f=checkpoint.save_file):\n"
            "    f(tensors, path); saves.append(path)\n"
            "    if len(saves) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
            "checkpoint.save_file = save_file"
        ),
    }[accident]
    status, output = start(config, tmp_path, prelude=prelude)
    assert status == -signal.SIGKILL, output
    # Two tiny steps after the sixth, its checkpoint may or may not be written: that happens in the background.
    steps = {"between checkpoints": ([3], [3, 6]), "during a checkpoint": ([3],), "before the first checkpoint": ([],)}
    assert checkpoint.steps(config.folder / "checkpoints") in steps[accident]
    run(config)
    assert_same_run(config, reference)
    assert len(read_json(config.folder / "run.json")["sessions"]) == 2


def test_a_run_over_candidates_resumes_bit_for_bit_and_ends_elsewhere_than_one_over_the_vocabulary(
    config, reference, tmp_path
):
    stages = [replace(config.stages[0], candidates=200), config.stages[1]]
    unbroken, stopped = (replace(config, stages=stages, out=tmp_path / name) for name in ("unbroken", "stopped"))
    run(unbroken)
    status, output = start(stopped, tmp_path, prelude=at_step(8, "SIGTERM"))
    assert status == EXIT_RESUMABLE, output
    run(stopped)
    assert_same_run(stopped, unbroken)
    ours, over_all = state(unbroken, 12), state(reference, 12)
    assert any(not torch.equal(ours[key], over_all[key]) for key in ours)
    late = [line["validation"] for line in read_metrics(unbroken.folder / "metrics.jsonl") if "validation" in line]
    assert late[-1]["en"]["loss"] < late[0]["en"]["loss"] - 0.1  # over the vocabulary, and falling


def test_a_kill_while_the_model_folder_is_written_does_not_leave_one_that_looks_complete(config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    prelude = (
        "import os, signal\n"
        "from transformers import PreTrainedTokenizerBase\n"
        "PreTrainedTokenizerBase.save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
    )
    status, output = start(config, tmp_path, prelude=prelude)
    assert status == -signal.SIGKILL, output
    assert not (config.folder / "model").exists()
    run(config)
    names = {file.name for file in (reference.folder / "model").iterdir()}
    assert {file.name for file in (config.folder / "model").iterdir()} == names
    assert_same_run(config, reference)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_exits_with_its_own_status_and_the_run_resumes(name, config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    status, output = start(config, tmp_path, prelude=at_step(5, name))
    assert status == EXIT_RESUMABLE and f"Stopped by {name} after step 5" in output
    assert checkpoint.latest_step(config.folder / "checkpoints") == 5
    run(config)
    assert_same_run(config, reference)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_second_signal_ends_the_process_at_once(name, config, tmp_path):
    every = replace(config.every, background=False)  # so that the save at step 3 is over by then
    config = replace(config, out=tmp_path / "run", every=every)
    status, output = start(config, tmp_path, prelude=f"{at_step(5, name)}\n{at_step(5, 'SIGUSR1')}")
    assert status == 128 + signal.Signals[name] and f"Stopped by {name}, without saving." in output
    assert checkpoint.latest_step(config.folder / "checkpoints") == 3


# Skipped steps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    """Function that multiplies the loss of some steps, in this process, by factors."""

    def poison(factors: dict[int, float]) -> None:
        rate, forward, now = PretrainConfig.learning_rate, pretrain.NextTokenLoss.forward, [0]

        def learning_rate(self, step):
            now[0] = step
            return rate(self, step)

        def poisoned(self, windows):
            return forward(self, windows) * (factors.get(now[0], 1.0) if torch.is_grad_enabled() else 1.0)

        monkeypatch.setattr(PretrainConfig, "learning_rate", learning_rate)
        monkeypatch.setattr(pretrain.NextTokenLoss, "forward", poisoned)

    return poison


def events(config: PretrainConfig) -> list[tuple[int, dict]]:
    return [(line["step"], line["event"]) for line in read_metrics(config.folder / "metrics.jsonl") if "event" in line]


def test_a_non_finite_step_changes_nothing_and_is_logged_with_its_windows(config, poison, tmp_path):
    poison({5: math.nan, 10: math.inf})
    config = replace(config, out=tmp_path / "run", every=replace(config.every, checkpoint=1, keep=100))
    run(config)
    for step in (5, 10):
        before, after = state(config, step - 1), state(config, step)
        assert all(torch.equal(before[key], after[key]) for key in before)
        after = state(config, step + 1)
        assert not any(torch.equal(before[key], after[key]) for key in before)
    stream = ShardDataset(config.data.folder / "shards").train(sequence_length=32, vocab_size=400)
    logged_events = events(config)
    assert [(step, event["kind"]) for step, event in logged_events] == [(5, "not finite"), (10, "not finite")]
    assert all(event["skipped"] for _, event in logged_events)
    assert logged_events[0][1]["windows"] == batch_windows(stream, 4, sequences=8, seed=42).tolist()
    assert logged_events[1][1]["windows"] == batch_windows(stream, 1, sequences=4, seed=43).tolist()
    logged = [line for line in read_metrics(config.folder / "metrics.jsonl") if "loss" in line]
    assert [line["skipped"] for line in logged] == [0, 0, 1, 1, 2, 2]
    assert all(1 < line["loss"] < 7 for line in logged)  # the mean of the steps that were taken


def test_a_run_with_skipped_steps_and_spikes_resumes_bit_for_bit(config, poison, tmp_path, monkeypatch):
    poison({3: math.nan, 4: math.nan, 6: 1e4, 8: math.nan})
    monkeypatch.setattr(step_guard, "WINDOW", 4)
    reference, parts = (replace(config, out=tmp_path / name) for name in ("reference", "parts"))
    run(reference)
    assert {(step, event["kind"]) for step, event in events(reference)} >= {(6, "spike"), (8, "not finite")}
    rate, todo = PretrainConfig.learning_rate, [4, 7, 9]

    def stop(self, step):
        if step in todo:
            todo.remove(step)
            os.kill(os.getpid(), signal.SIGUSR1)
        return rate(self, step)

    monkeypatch.setattr(PretrainConfig, "learning_rate", stop)
    for _ in range(3):
        with pytest.raises(SystemExit, match=str(EXIT_RESUMABLE)):
            run(parts)
    run(parts)
    assert_same_run(parts, reference)


def test_too_many_consecutive_non_finite_steps_end_the_run_with_the_latest_valid_checkpoint(config, poison, tmp_path):
    poison({2: math.nan, **dict.fromkeys(range(5, 13), math.nan)})
    config = replace(config, out=tmp_path / "run", max_nonfinite_steps=4)
    with pytest.raises(InputError, match=r"last 4 steps, up to step 8, were not finite.* is .*step-6\. Resume"):
        run(config)
    assert [step for step, _ in events(config)] == [2, 5, 6, 7, 8]
    assert checkpoint.latest_step(config.folder / "checkpoints") == 6


def test_a_non_finite_loss_of_one_process_makes_all_skip_the_step(config, poison, tmp_path):
    prelude = (
        "import math, os\n"
        "from training import pretrain\n"
        "now = [0]\n"
        "def learning_rate(self, step, f=pretrain.PretrainConfig.learning_rate):\n"
        "    now[0] = step\n"
        "    return f(self, step)\n"
        "def forward(self, windows, f=pretrain.NextTokenLoss.forward):\n"
        "    bad = now[0] == 5 and os.environ['RANK'] == '1'\n"
        "    return f(self, windows) * (math.nan if bad else 1.0)\n"
        "pretrain.PretrainConfig.learning_rate, pretrain.NextTokenLoss.forward = learning_rate, forward\n"
    )
    poison({5: math.nan})
    single, double = (replace(config, out=tmp_path / name) for name in ("single", "double"))
    run(single)
    status, output = start(double, tmp_path, prelude=prelude, processes=2)
    assert status == 0, output
    for a, b in zip(timeless(single), timeless(double), strict=True):
        if "event" in a:
            assert a["step"] == b["step"] == 5 and a["event"]["windows"] == b["event"]["windows"]
        elif "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-3) and a["skipped"] == b["skipped"]


def test_a_complete_run_is_not_changed(reference, capfd):
    before = (
        (reference.folder / "metrics.jsonl").read_bytes(),
        (reference.folder / "model" / "model.safetensors").stat().st_mtime_ns,
    )
    run(reference)
    assert "is complete: 12 of 12 steps" in capfd.readouterr().out
    assert before == (
        (reference.folder / "metrics.jsonl").read_bytes(),
        (reference.folder / "model" / "model.safetensors").stat().st_mtime_ns,
    )


def test_two_processes_use_the_same_batches_and_end_at_the_same_loss(config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    status, output = start(config, tmp_path, processes=2)
    assert status == 0, output
    assert output.count("bits per byte of held-out text") == 3  # of steps 0, 6 and 12, once for all processes
    assert read_json(config.folder / "run.json")["sessions"][0]["processes"] == 2
    for double, single in zip(timeless(config), timeless(reference), strict=True):
        if "loss" in single:
            # Equal up to the order of sums; the first log line covers two steps, so other rows would show at once.
            assert double["loss"] == pytest.approx(single["loss"], abs=1e-5 if single["step"] == 2 else 1e-3)
        else:
            for language, held in single["validation"].items():
                assert double["validation"][language]["loss"] == pytest.approx(held["loss"], abs=1e-3)


def test_a_corrupt_latest_checkpoint_is_reported_and_the_one_before_used(config, reference, tmp_path, capfd):
    config = replace(config, out=tmp_path / "run")
    shutil.copytree(reference.folder, config.folder)
    shutil.rmtree(config.folder / "model")
    file = config.folder / "checkpoints" / "step-12" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    run(config)
    assert "step-12 is corrupt and skipped: model.safetensors has" in capfd.readouterr().err
    assert_same_run(config, reference)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 43}, "step-12: seed changed. Use another --out"),
        ({"sequence_length": 16}, ": model and sequence_length changed"),
        ({"model": MODEL | {"num_hidden_layers": 3}}, ": model changed"),
        ({"optimizer": OptimizerConfig(name="muon")}, ": optimizer changed"),
    ],
)
def test_resuming_with_another_model_or_seed_is_rejected_and_changes_nothing(change, message, reference):
    files = [reference.folder / name for name in ("config.yaml", "run.json", "metrics.jsonl", "emissions.json")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(InputError, match=message):
        run(replace(reference, **change))
    assert [file.read_bytes() for file in files] == before
    assert checkpoint.latest_step(reference.folder / "checkpoints") == 12


def test_resuming_with_another_tokenizer_is_rejected(config, reference, tmp_path):
    other = tmp_path / "tokenizer"
    shutil.copytree(config.data.tokenizer_folder, other)
    vocabulary = read_json(other / "tokenizer.json")
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    data = replace(config.data, folder=tmp_path / "data", tokenizer=other)
    with pytest.raises(InputError, match=": tokenizer and data changed"):
        run(replace(reference, data=data))


def test_only_a_stage_that_has_not_started_may_change(config, reference, tmp_path):
    base, annealing = config.stages
    longer = replace(config, out=tmp_path / "run", stages=[base, replace(annealing, steps=6)])
    shutil.copytree(reference.folder, longer.folder)
    run(longer)  # the last stage continues after its first 4 steps
    assert checkpoint.latest_step(longer.folder / "checkpoints") == 14
    with pytest.raises(InputError, match=": data changed"):
        run(replace(longer, stages=[replace(base, steps=7), annealing]))


def test_another_tokenizer_than_that_of_the_shards_is_rejected_before_the_first_step(config, reference, tmp_path):
    other = tmp_path / "tokenizer"
    shutil.copytree(config.data.tokenizer_folder, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    stages = [replace(stage, shards=config.data.folder / "shards") for stage in config.stages]
    data = replace(config.data, tokenizer=other)
    with pytest.raises(InputError, match="The shards were not built with the tokenizer .*tokenizer. Rebuild"):
        run(replace(config, stages=stages, data=data, out=tmp_path / "run"))


@pytest.mark.parametrize(
    "model, message",
    [
        ({"num_attention_heads": 5}, "model: .*not a multiple of the number of attention heads"),
        ({"num_key_value_heads": 3}, "model: .*not a multiple of the number of key/value heads"),
        ({"hiden_size": 32}, "model: hiden_size is not a field of PleiasConfig"),
        ({"attention_dropout": 0.1}, "attention_dropout must be 0"),
        ({"hidden_size": "wide"}, "model: .*hidden_size"),
    ],
)
def test_an_impossible_model_gets_a_one_line_message(model, message, config, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        run(replace(config, model=MODEL | model, out=tmp_path))
    assert "\n" not in str(error.value)


def test_sequences_that_do_not_divide_among_the_processes_are_rejected_unless_their_stage_is_complete(config):
    config = replace(config, stages=[Stage("odd", steps=2, sequences=7), Stage("even", steps=2, sequences=4)])
    for done in (0, 1):
        with pytest.raises(InputError, match="stage odd: 7 sequences per step do not divide among 2 processes"):
            pretrain.check_divisible(config, done, processes=2)
    pretrain.check_divisible(config, 2, processes=2)
    pretrain.check_divisible(config, 0, processes=1)


@pytest.mark.slow
def test_a_complete_stage_need_not_divide_among_the_processes_that_resume(config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run", stages=[Stage("odd", steps=2, sequences=1), config.stages[1]])
    status, output = launch(config, tmp_path, *TWO)
    assert status != 0 and "stage odd: 1 sequences per step do not divide among 2 processes" in output
    status, output = start(config, tmp_path, prelude=at_step(3, "SIGTERM"))
    assert status == EXIT_RESUMABLE, output
    status, output = launch(config, tmp_path, *TWO)
    assert status == 0, output
    sessions = read_json(config.folder / "run.json")["sessions"]
    assert [(session["processes"], session["steps"]) for session in sessions] == [(1, 3), (2, 6)]


def test_a_folder_that_is_not_writable_is_reported(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="The run folder .*file/run is not writable .*Use another --out"):
        run(replace(config, out=tmp_path / "file" / "run"))


def test_two_runs_in_one_folder_are_rejected(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another run is writing to"):
            run(replace(config, out=folder))


def test_an_unknown_yaml_key_ends_with_a_message_and_a_status(config, tmp_path):
    file = as_yaml(config, tmp_path / "config.yaml")
    file.write_text(file.read_text() + "learning_rat: 3\n")
    done = run_program("training.pretrain", "--config", file, log=tmp_path / "log")
    assert done.returncode == 2
    assert "learning_rat" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_during_a_checkpoint_leaves_the_one_before_usable(config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    prelude = (
        "import errno\nfrom training.run import checkpoint\nsaves = []\n"
        "def save_file(tensors, path, f=checkpoint.save_file):\n"
        "    saves.append(path)\n"
        "    if len(saves) == 4: raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    f(tensors, path)\n"
        "checkpoint.save_file = save_file"
    )
    status, output = start(config, tmp_path, prelude=prelude)
    assert status == 2 and "Traceback" not in output
    assert "step-6 could not be written" in output and "again to resume from" in output and "step-3" in output
    assert list((config.folder / "checkpoints").glob(".*")) == []
    run(config)
    assert_same_run(config, reference)


# Monitoring -------------------------------------------------------------------------------------------------------


def test_samples_trackers_and_the_summary_do_not_change_the_run(config, reference, tmp_path, capsys):
    every = replace(config.every, samples=5)
    run(config := replace(config, out=tmp_path / "run", every=every, trackers=["tensorboard"]))
    assert_same_run(config, reference)

    lines = read_metrics(config.folder / "samples.jsonl")
    assert [(line["step"], line["language"]) for line in lines] == [(s, code) for s in (5, 10, 12) for code in WORDS]
    settings = {"dtype": torch.float32, "max_new_tokens": NEW_TOKENS}  # samples are generated in the run's dtype
    generate = pipeline("text-generation", model=str(config.folder / "model"), **settings)
    for line in lines[-2:]:
        assert line["prompt"] == PROMPTS[line["language"]]
        assert generate(line["prompt"])[0]["generated_text"] == line["prompt"] + line["continuation"]
    assert read_metrics(reference.folder / "samples.jsonl") == lines[-2:]

    tracked = tensorboard(config)
    for record in read_metrics(config.folder / "metrics.jsonl"):
        if "loss" in record:
            assert tracked["loss"][record["step"]] == pytest.approx(record["loss"])
        else:
            value = record["validation"]["fr"]["bits_per_byte"]
            assert tracked["validation/fr/bits_per_byte"][record["step"]] == pytest.approx(value)

    summary = (config.folder / "summary.txt").read_text()
    assert summary in capsys.readouterr().out
    seen = 8 * 8 * 32 + 4 * 4 * 32
    assert f"tiny: {seen:,} tokens in 12 steps" in summary and "0 steps skipped, 0 spikes" in summary
    held = [record["validation"] for record in read_metrics(config.folder / "metrics.jsonl") if "validation" in record]
    for code in WORDS:
        before, after = (f"{scores[code]['bits_per_byte']:.3f}" for scores in (held[0], held[-1]))
        assert re.search(rf"{code} +│ {before} +│ {after} +│", summary)
    assert " ".join(lines[-1]["continuation"].split())[:20] in summary


def tensorboard(config: PretrainConfig) -> dict[str, dict[int, float]]:
    """Return every scalar in the TensorBoard log, by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(config.folder / "trackers" / config.name), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_a_tracker_that_is_not_installed_is_rejected_with_the_command_that_installs_it(config, tmp_path):
    with pytest.raises(InputError, match="trackers: wandb is not installed. Run pip install wandb, or remove it"):
        run(replace(config, out=tmp_path / "run", trackers=["tensorboard", "wandb"]))
    assert not (tmp_path / "run").exists()


def test_a_run_continues_the_model_of_another_and_records_it(reference, tmp_path):
    """Two steps at a learning rate of 0 do not change the model; the record of the run lists its files."""
    still = replace(reference.optimizer, learning_rate=0.0, final_learning_rate=0.0)
    config = replace(
        reference, name="on", model={}, init_from=reference.folder / "model", out=tmp_path / "on", optimizer=still
    )
    run(replace(config, stages=[Stage("more", steps=2, sequences=8)]))
    before, after = (load_file(folder / "model/model.safetensors") for folder in (reference.folder, tmp_path / "on"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    session = read_json(tmp_path / "on/run.json")["sessions"][0]
    assert session["init_from"]["model.safetensors"] == sha256(reference.folder / "model/model.safetensors")
    with pytest.raises(InputError, match=": model and init_from changed"):
        run(replace(config, init_from=None, model=reference.model, stages=[Stage("more", steps=4, sequences=8)]))


def test_continuing_a_model_uses_its_architecture(reference, tmp_path):
    with pytest.raises(InputError, match="Remove model"):
        replace(reference, init_from=reference.folder / "model").model_config()
    with pytest.raises(InputError, match="is not a model folder"):
        replace(reference, init_from=tmp_path, model={}).model_config()
