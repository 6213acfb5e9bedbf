"""Fine-tuning: what is learnt, that nothing is frozen, that a run goes on where it stopped, what bad input gets."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)
from trl import SFTConfig, SFTTrainer

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS
from training import checkpoint, finetune, plan
from training.config import InputError, parse
from training.files import model_sha256, read_json
from training.generation import complete
from training.metrics import read_metrics
from training.record import plain
from training.stopping import SIGNALS, STOPPED
from training.tasks import instruct
from training.tuning import account, base, examples, measures, memory, preferences
from training.tuning.examples import IGNORED, encode, of_pretraining, of_task, order
from training.tuning.recipe import FinetuneConfig, MeasureConfig, ReplayConfig
from training.tuning.trainers import Around, Supervised

ROOT = Path(__file__).parent.parent
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WORDS = "the old house stood by the river and nobody came until the spring when bells rang over the hills".split()


@pytest.fixture(scope="module")
def base_model(tiny_tokenizer, tmp_path_factory) -> Path:
    """Folder of a tiny model with random weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    PleiasForCausalLM(PleiasConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return AutoTokenizer.from_pretrained(base_model)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    """Sixty conversations about nothing: an answer is its question backwards."""
    path, draw = tmp_path_factory.mktemp("data") / "chat.jsonl", random.Random(0)
    lines = []
    for _ in range(60):
        words = draw.sample(WORDS, draw.randint(2, 9))
        turns = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": " ".join(words[::-1])}]
        row = {"messages": turns, "language": "en", "license": "CC0-1.0", "source": "made up"}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def config(base_model, chat) -> FinetuneConfig:
    """Six steps, measured and saved on the way."""
    return FinetuneConfig(
        name="tiny",
        task="instruct",
        base_model=str(base_model),
        data={"path": str(chat)},
        trainer={"per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 2, "logging_steps": 2},
        max_steps=6,
        measure=MeasureConfig(steps=3, watched=2, rows=3, max_new_tokens=8),
        precision="fp32",
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> FinetuneConfig:
    """A run that nothing interrupted."""
    config = replace(config, out=tmp_path_factory.mktemp("runs") / "whole")
    run(config)
    return config


def run(config: FinetuneConfig) -> None:
    """Fine-tune in this process, and leave its signal handlers as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        finetune.finetune(config)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def state(config: FinetuneConfig, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    folder = config.folder / "checkpoints" / f"step-{step}"
    return {
        f"{part}:{k}": v for part in checkpoint.PARTS for k, v in load_file(folder / f"{part}.safetensors").items()
    }


def assert_same_run(one: FinetuneConfig, other: FinetuneConfig) -> None:
    a, b = state(one, 6), state(other, 6)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert read_metrics(one.folder / "metrics.jsonl") == read_metrics(other.folder / "metrics.jsonl")
    models = [load_file(config.folder / "model" / "model.safetensors") for config in (one, other)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# What a run leaves --------------------------------------------------------------------------------


def test_a_run_leaves_every_file_of_its_contract(whole):
    folder = whole.folder
    assert parse(FinetuneConfig, ["--config", str(folder / "config.yaml")], description="") == whole
    session = read_json(folder / "run.json")["sessions"][0]
    assert session["base_model"] == whole.base_model and session["steps"] == 6
    assert session["base_files"] == model_sha256(Path(whole.base_model))
    told = {"learning_rate": 1e-2, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 4, "max_length": 128}
    assert told.items() <= session["trainer"].items()  # what the config leaves out as well
    assert read_json(folder / "emissions.json")["kwh"] > 0
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    result = read_json(folder / "eval" / "instruct.json")
    assert result["data"]["rows"] == 3
    for name in ("answer_f1", "answer_f1_before", "answer_f1_change"):
        assert result["metrics"][name].keys() == {"value", "low", "high"}
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] - 0.3


def test_the_model_folder_opens_with_auto_classes_and_carries_the_template_that_the_base_does_not(whole, base_model):
    model = AutoModelForCausalLM.from_pretrained(whole.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(whole.folder / "model")
    assert type(model) is PleiasForCausalLM and model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(base_model).chat_template is None
    assert model.generation_config.eos_token_id == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    turns = [{"role": "user", "content": "bells"}]
    said = pipeline("text-generation", model=str(whole.folder / "model"), max_new_tokens=4)(turns)
    assert said[0]["generated_text"][-1]["role"] == "assistant"
    assert isinstance(instruct.reply(model, tokenizer, turns), str)


def test_the_weights_that_measured_best_are_what_stays(whole):
    measured = {
        line["step"]: line["held_out"] for line in read_metrics(whole.folder / "metrics.jsonl") if "held_out" in line
    }
    assert list(measured) == [3, 6]
    kept = read_json(whole.folder / "model" / "best.json")
    best = max(measured, key=lambda step: measured[step]["answer_f1"])  # the first of equals
    assert kept == {"step": best, "metric": "answer_f1", "value": measured[best]["answer_f1"]}
    if best == 6:
        trained = state(whole, 6)["model:model.layers.0.mlp.up_proj.weight"]
        stays = load_file(whole.folder / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert torch.equal(trained.bfloat16(), stays)


def test_only_a_better_figure_replaces_what_is_kept(tmp_path):
    for higher, better, worse in ((True, 0.6, 0.4), (False, 0.4, 0.6)):
        best = measures.Best(tmp_path / str(higher), higher_is_better=higher)
        assert best.beaten_by(None)
        best.folder.mkdir()
        (best.folder / "best.json").write_text(json.dumps({"step": 1, "value": None}))
        assert best.beaten_by(worse) and not best.beaten_by(None)
        (best.folder / "best.json").write_text(json.dumps({"step": 1, "value": 0.5}))
        assert best.beaten_by(better) and not best.beaten_by(worse) and not best.beaten_by(0.5)


def test_the_account_of_a_run_has_the_form_of_a_shards_manifest_and_adds_up(whole):
    manifest = read_json(whole.folder / "manifests" / "instruct.json")
    session = read_json(whole.folder / "run.json")["sessions"][0]
    assert session["data"] == [manifest["fingerprint"]]
    train, held = manifest["account"]
    assert (train["split"], train["language"], train["license"]) == ("train", "English", "CC0-1.0")
    assert held["split"] == "validation" and held["documents"] == 3
    (source,) = manifest["corpus"]["sources"]["sources"]
    assert source["name"] == "made up" and source["documents"] == train["documents"]
    assert manifest["not_open"] == []
    assert manifest["tokenizer"]["bos"] == 1


def test_an_account_names_the_licences_that_are_not_open(base_model):
    made = examples.Examples()
    for licence in ("CC-BY-4.0", "unknown", "CC-BY-NC-4.0"):
        made.add([1], [1], of=("English", licence, "own"), source="own", size=1)
    assert account.manifest(made, None, base_model)["not_open"] == ["CC-BY-NC-4.0", "unknown"]


def test_an_account_of_pretraining_text_carries_what_its_corpus_says_of_its_curation(base_model, tmp_path):
    made = examples.Examples()
    made.add([1], [1], of=("English", "CC0-1.0", "own"), source="own", size=1)
    said = {"sources": {"sources": [{"name": "books"}]}, "curation": {"settings": {"endpoint": {"model": "writer"}}}}
    shards, corpus = tmp_path / "shards", tmp_path / "corpus"
    shards.mkdir(), corpus.mkdir()
    (shards / "manifest.json").write_text(json.dumps({"corpus": {"files": [], **said}}))
    for name, content in said.items():
        (corpus / f"{name}.json").write_text(json.dumps(content))
    for path in (shards, corpus):
        assert account.manifest(made, None, base_model, path=path)["corpus"] == {"files": [], **said}


# What is learnt -----------------------------------------------------------------------------------


def test_every_parameter_moves_and_none_is_frozen(whole, base_model):
    before = load_file(base_model / "model.safetensors")
    after = {
        name.removeprefix("model:"): value for name, value in state(whole, 6).items() if name.startswith("model:")
    }
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert not torch.equal(value, before[name].float()), name
    moments = [name for name in state(whole, 6) if name.endswith("/exp_avg")]
    assert len(moments) == len(after)


def test_a_frozen_parameter_is_refused_with_the_cards_reason(base_model):
    model = base.open_model(base_model, torch.float32)
    base.refuse_frozen(model)
    model.model.embed_tokens.weight.requires_grad = False
    with pytest.raises(InputError, match="1 parameters are frozen .*card does not recommend LoRA at this size"):
        base.refuse_frozen(model)


ROWS = [
    {"id": 0, "prompt": "<|text_start|>the old house<|text_end|>", "completion": "by the river"},
    {"id": 1, "prompt": "<|text_start|>bells<|text_end|>", "completion": "over the hills when bells rang<|text_end|>"},
]


def trl_arguments(tmp_path, **changes) -> SFTConfig:
    usual = {"bf16": False, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, "max_length": None}
    return SFTConfig(str(tmp_path), **usual | changes)


def test_the_labels_are_those_of_trl(base_model, tokenizer, tmp_path):
    chat = instruct.with_template(tokenizer)
    talk = [{"role": "user", "content": "bells"}, {"role": "assistant", "content": "rang"}]
    talk += [{"role": "user", "content": "and"}, {"role": "assistant", "content": "the hills rang"}]
    for rows, one, option in ((ROWS, tokenizer, {}), ([{"messages": talk}], chat, {"assistant_only_loss": True})):
        data = Dataset.from_list([{key: value for key, value in row.items() if key != "id"} for row in rows])
        model = base.open_model(base_model, torch.float32)
        prepared = SFTTrainer(
            model=model, args=trl_arguments(tmp_path, **option), train_dataset=data, processing_class=one
        ).train_dataset
        for row, theirs in zip(rows, prepared, strict=True):
            ids, labels = encode(row, one)
            assert ids == theirs["input_ids"] and labels == theirs["labels"]
            assert IGNORED in labels and labels != [IGNORED] * len(labels)


def supervised(base_model, tokenizer, tmp_path, **changes) -> Supervised:
    made = of_task(ROWS, tokenizer, task="ocr", max_length=128, over_long="leave_out")
    data = Dataset.from_dict({"input_ids": made.input_ids, "labels": made.labels})
    trainer = Supervised(
        model=base.open_model(base_model, torch.float32),
        args=trl_arguments(tmp_path, **changes),
        train_dataset=data,
        processing_class=tokenizer,
        dtype=torch.float32,
    )
    return trainer


def test_the_loss_is_that_of_completion_tokens_alone_and_equals_trls(base_model, tokenizer, tmp_path):
    trainer = supervised(base_model, tokenizer, tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset))
    count = (batch["labels"] != IGNORED).sum()
    assert count == sum(len(tokenizer(row["completion"]).input_ids) for row in ROWS)  # less BOS, with EOS

    by_hand = torch.zeros(())  # the tokens after each prompt, one row at a time and without padding
    for row in ROWS:
        prompt = tokenizer(row["prompt"]).input_ids
        ids = prompt + tokenizer(row["completion"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        logits = trainer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(len(prompt), len(ids)):
            by_hand = by_hand - logits[place - 1, ids[place]]
    gradients = {}
    for name, own in (("ours", True), ("TRL's", False)):
        trainer.summed = own
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        torch.testing.assert_close(loss, by_hand / count, atol=1e-5, rtol=1e-5)
        gradients[name] = {key: one.grad.clone() for key, one in trainer.model.named_parameters()}
    for name, gradient in gradients["ours"].items():
        torch.testing.assert_close(gradient, gradients["TRL's"][name], atol=1e-6, rtol=1e-4)


def test_accumulated_batches_are_one_batch(config, whole, tmp_path):
    trainer = {**config.trainer, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    other = replace(config, trainer=trainer, out=tmp_path / "run", measure=replace(config.measure, steps=None))
    run(other)
    a, b = state(whole, 6), state(other, 6)
    for name in a:
        if name.startswith("model:"):
            torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-3)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=300), st.integers(1, 9), st.integers(1, 60), st.integers(0, 9)
)
def test_every_pass_takes_every_example_once_and_like_lengths_share_a_batch(lengths, batch, steps, seed):
    places = order(lengths, batch=batch, steps=steps, seed=seed)
    assert len(places) == batch * steps and places == order(lengths, batch=batch, steps=steps, seed=seed)
    counts = [places.count(i) for i in range(len(lengths))]
    assert sum(counts) == batch * steps and max(counts) - min(counts) <= 1
    rows = [[lengths[i] for i in places[start : start + batch]] for start in range(0, len(places), batch)]
    assert all(row == sorted(row) for row in rows)
    if steps <= examples.GROUP:  # no length stands between those of another batch
        ends = sorted((row[0], row[-1]) for row in rows)
        assert all(one[1] <= other[0] for one, other in zip(ends, ends[1:], strict=False))


# Going on -----------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_by_a_signal_goes_on_to_the_same_weights(config, whole, tmp_path, monkeypatch):
    stopped = replace(config, out=tmp_path / "run")
    usual = Around.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        usual(self, args, state, control, **kwargs)
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Around, "on_step_begin", on_step_begin)
        with pytest.raises(SystemExit) as status:
            run(stopped)
    assert status.value.code == STOPPED and checkpoint.steps(stopped.folder / "checkpoints") == [2, 3]
    assert not (stopped.folder / "model").exists()
    run(stopped)
    assert_same_run(whole, stopped)
    assert len(read_json(stopped.folder / "run.json")["sessions"]) == 2


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint_to_the_same_weights(
    config, whole, tmp_path, monkeypatch
):
    killed = replace(config, out=tmp_path / "run")

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:  # after the checkpoint of step 4 and the measurement of step 3
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Around, "on_step_begin", on_step_begin)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    assert checkpoint.steps(killed.folder / "checkpoints") == [2, 4]
    run(killed)
    assert_same_run(whole, killed)


def test_a_run_without_checkpoints_begins_anew_and_leaves_its_own_weights(config, base_model, tmp_path):
    once = replace(config, out=tmp_path / "run", trainer={**config.trainer, "save_strategy": "no"}, max_steps=1)
    for seed in (0, 1):
        run(replace(once, seed=seed))
        weights = load_file(once.folder / "model" / "model.safetensors")["model.norm.weight"]
        assert read_json(once.folder / "run.json")["sessions"][-1]["kept"]["step"] == 1
        assert not (once.folder / "best").exists()
    other = replace(once, seed=1, out=tmp_path / "other")
    run(other)
    assert torch.equal(weights, load_file(other.folder / "model" / "model.safetensors")["model.norm.weight"])


def test_a_complete_run_is_left_as_it_is(whole, capsys):
    before = (whole.folder / "model" / "model.safetensors").stat().st_mtime_ns
    run(whole)
    assert "is complete" in capsys.readouterr().out
    assert (whole.folder / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_run_is_not_gone_on_from(whole):
    with pytest.raises(InputError, match="was trained with another seed; give another --out"):
        run(replace(whole, seed=1))
    with pytest.raises(InputError, match="another batch"):
        run(replace(whole, trainer={**whole.trainer, "per_device_train_batch_size": 2}))


def test_two_processes_learn_what_one_does(config, whole, tmp_path):
    trainer = {**config.trainer, "per_device_train_batch_size": 2}
    two = replace(config, out=tmp_path / "run", trainer=trainer)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(asdict(two))))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "training.finetune", "--config", str(file)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = state(whole, 6), state(two, 6)
    for name in a:
        if name.startswith("model:"):
            torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-3)
    one, other = (read_metrics(each.folder / "metrics.jsonl") for each in (whole, two))
    assert [line["step"] for line in one] == [line["step"] for line in other]
    assert [line["loss"] for line in one if "loss" in line] == pytest.approx(
        [line["loss"] for line in other if "loss" in line], rel=1e-4
    )
    answers = [read_json(each.folder / "answers" / "before.json")["value"] for each in (whole, two)]
    assert answers[0] == answers[1] and len(answers[0]) == 3


# Pretraining text among the examples --------------------------------------------------------------


def replayed(path: Path, base_model: Path, tokenizer, tokens: int = 600, seed: int = 0) -> examples.Examples:
    file = base_model / "tokenizer.json"
    return of_pretraining(path, tokenizer, file, tokens=tokens, max_length=40, seed=seed)


def test_pretraining_text_is_learnt_whole_from_shards_and_from_parquet_alike(
    tiny_corpus, tiny_shards, base_model, tokenizer
):
    one, other = (replayed(path, base_model, tokenizer, tokens=10**9) for path in (tiny_corpus, tiny_shards))
    documents = {tuple(ids) for ids in one.input_ids}
    assert {tuple(ids) for ids in other.input_ids} <= documents  # the shards hold a tenth out
    assert len(one) == 250 and 200 < len(other) < 250
    for made in (one, other):
        for ids, labels in zip(made.input_ids, made.labels, strict=True):
            assert ids[0] == tokenizer.bos_token_id and len(ids) <= 40
            assert labels == [IGNORED, *ids[1:]]
            assert (ids[-1] == tokenizer.eos_token_id) == (len(ids) < 40 or ids[-1] == tokenizer.eos_token_id)
        assert sum(tokens for _, _, tokens in made.account.values()) == made.tokens
        assert {language for language, *_ in made.account} == {"English", "French"}


def test_pretraining_text_is_drawn_from_everywhere_and_the_seed_decides(tiny_corpus, base_model, tokenizer):
    drawn = [replayed(tiny_corpus, base_model, tokenizer, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].input_ids == drawn[1].input_ids != drawn[2].input_ids
    assert 600 <= drawn[0].tokens < 640 and len(drawn[0].account) > 3


def test_shards_of_another_tokenizer_are_refused(tiny_shards, tokenizer, tmp_path):
    PleiasTokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="are of another tokenizer; give Parquet instead"):
        replayed(tiny_shards, tmp_path, tokenizer)


def test_a_share_of_the_tokens_is_pretraining_text_and_is_accounted_for(config, tiny_shards, tmp_path):
    some = replace(config, out=tmp_path / "run", replay=ReplayConfig(share=0.25, path=tiny_shards), max_steps=2)
    run(some)
    parts = {name: read_json(some.folder / "manifests" / f"{name}.json") for name in ("instruct", "replay")}
    tokens = {
        name: sum(row["tokens"] for row in part["account"] if row["split"] == "train") for name, part in parts.items()
    }
    assert tokens["replay"] / sum(tokens.values()) == pytest.approx(0.25, abs=0.02)
    assert parts["replay"]["corpus"]["sources"]["sources"][0]["name"] == "made up"
    assert read_json(some.folder / "run.json")["sessions"][0]["data"] == [one["fingerprint"] for one in parts.values()]


# Bases --------------------------------------------------------------------------------------------


def test_a_folder_labelled_llama_is_a_base_with_the_same_weights(base_model, tmp_path):
    ours = base.open_model(base_model, torch.float32)
    shape = {
        name: value for name, value in ours.config.to_dict().items() if name not in ("model_type", "architectures")
    }
    llama = LlamaForCausalLM(LlamaConfig(**shape))
    llama.load_state_dict(ours.state_dict())
    llama.save_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json")["model_type"] == "llama"
    opened = base.open_model(base.folder_of(str(tmp_path)), torch.float32)
    assert type(opened) is PleiasForCausalLM
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in opened.state_dict().items())


def test_task_tokens_that_a_vocabulary_lacks_take_its_last_places_and_text_comes_back_exactly(tmp_path):
    """As the original's tokenizer: no task tokens, and no role given to those that there are."""
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


GROUPS = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8}  # for GRPO

# What bad input gets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat is not a field of TRL's SFTConfig"),
        ({"trainer": {"seed": 1}}, "trainer.seed is decided by --seed"),
        ({"trainer": {"packing": True}}, "trainer.packing .* need FlashAttention"),
        ({"trainer": {"lr_scheduler_type": "sinus"}}, "trainer: sinus is not a valid SchedulerType"),
        ({"data": {"pfad": "x"}}, "data.pfad is not a setting of InstructData, which has path, "),
        ({"data": {"rows": "many"}}, "data: .*rows"),
        ({"data": {}}, "instruct has no data"),
        ({"data": {"path": "/nowhere"}}, "/nowhere holds no .parquet or .jsonl file"),
        ({"peft": {"r": 8}}, "peft is asked for, and the original's card does not recommend LoRA"),
        ({"replay": ReplayConfig(share=0.1)}, "replay.share needs --replay.path"),
        ({"replay": ReplayConfig(share=1.0, path=Path("x"))}, "replay.share 1.0 is not a share"),
        ({"base_model": "/nowhere"}, "base_model /nowhere is neither a folder nor to be had from the Hub"),
        ({"trainer": {"fsdp": True}}, "keeps a whole copy on each GPU"),
        ({"method": "grpo"}, "method grpo needs --rewards"),
        (
            {"method": "grpo", "rewards": {"cer": -1}, "trainer": GROUPS},
            "cer is not a metric of instruct, which has answer_f1",
        ),
        ({"method": "dpo", "trainer": {"precompute_ref_log_probs": False}}, "cannot open a second copy"),
        ({"max_length": 8}, "None of 5. examples of instruct has at most 8 tokens"),
        ({"measure": MeasureConfig(watched=50)}, "of which the first 50 choose the weights"),
        ({"measure": MeasureConfig(steps=0)}, "measure.steps and measure.watched are to be 1 or more"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(config, tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        run(replace(config, out=tmp_path / "run", **changes))


def test_an_unknown_setting_ends_the_program_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--config", "finetune_ocr", "--learning_rate", "1"])
    with pytest.raises(SystemExit) as status:
        finetune.main()
    assert status.value.code == 2 and "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"turns": []}, r"row 0 has no messages \(columns: turns\)"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"has a turn .*roles? \(system, user, assistant\)"),
        ({"messages": [{"role": "user", "content": "x"}]}, "ends with a turn of the user"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
            "empty turn of the assistant",
        ),
    ],
)
def test_a_conversation_that_is_none_is_named(tmp_path, content, sentence):
    (tmp_path / "chat.jsonl").write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        instruct.rows(instruct.InstructData(path=tmp_path))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"id": 7, "prompt": "x"}, "row 7 has no text in column 'completion', but id, prompt"),
        ({"id": 7, "question": "x", "completion": "y"}, "row 7 has no text in column 'prompt'"),
        ({"id": 7, "prompt": "x", "completion": "\n"}, "row 7 has an empty completion"),
    ],
)
def test_a_row_that_teaches_nothing_is_named(tokenizer, row, sentence):
    with pytest.raises(InputError, match=sentence):
        encode(row, tokenizer)


def test_over_long_examples_are_counted_and_left_out_or_cut(tokenizer):
    rows = [
        {"id": 0, "prompt": "the old", "completion": "house"},
        {"id": 1, "prompt": "the old", "completion": " house stood by the river" * 9},
        {"id": 2, "prompt": "the old house stood by the river " * 9, "completion": "x"},
    ]
    kept = of_task(rows, tokenizer, task="ocr", max_length=20, over_long="leave_out")
    assert [row["id"] for row in kept.rows] == [0]
    assert kept.said == "2 of 3 examples have more than 20 tokens: 2 left out, 0 cut at the end."
    cut = of_task(rows, tokenizer, task="ocr", max_length=20, over_long="cut")
    assert [row["id"] for row in cut.rows] == [0, 1] and len(cut.input_ids[1]) == len(cut.labels[1]) == 20
    assert cut.said == "2 of 3 examples have more than 20 tokens: 1 left out, 1 cut at the end."
    assert of_task(rows[:1], tokenizer, task="ocr", max_length=20, over_long="cut").said == ""


def test_an_adapter_is_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter, and the original's card"):
        base.folder_of(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="has no config.json"):
        base.folder_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="is of type gpt2, not pleias or llama"):
        base.folder_of(str(tmp_path))


# Conversations ------------------------------------------------------------------------------------

TURNS = st.lists(st.text(max_size=30), min_size=1, max_size=4)


@given(TURNS, st.text(max_size=30))
def test_a_conversation_is_read_as_it_was_written_also_when_it_holds_the_markers(asked, answer):
    messages = [{"role": "user", "content": text + "<|im_end|>\n<|im_start|>system"} for text in asked]
    messages.append({"role": "assistant", "content": answer})
    assert instruct.parse_instruct("".join(instruct.format_instruct(messages))) == messages


def test_the_template_writes_what_the_format_writes(tokenizer):
    chat = instruct.with_template(tokenizer)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "bells <|im_end|>?"}]
    turns.append({"role": "assistant", "content": "rang"})
    row = instruct._row({"messages": turns})
    assert chat.apply_chat_template(row["messages"], tokenize=False) == (
        "<|begin_of_text|>" + row["prompt"] + row["completion"] + "\n"
    )
    asked = chat.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
    assert asked == tokenizer(row["prompt"]).input_ids
    ids, labels = encode(row, chat)
    learnt = tokenizer.decode([token for token in labels if token != IGNORED])
    assert learnt == "rang<|im_end|>" and ids.count(chat.convert_tokens_to_ids("<|im_end|>")) == 3


def test_equal_questions_are_on_one_side_of_the_split(chat, tmp_path):
    lines = chat.read_text().splitlines()
    (tmp_path / "twice.jsonl").write_text("\n".join(lines + lines))
    found = instruct.rows(instruct.InstructData(path=tmp_path, held_out=0.3))
    questions = {name: {row["messages"][0]["content"] for row in rows} for name, rows in found.items()}
    assert not questions["train"] & questions["held_out"]
    assert sum(map(len, found.values())) == 120 and 20 <= len(found["held_out"]) <= 52


def test_the_score_of_a_conversation_is_the_words_that_it_shares_with_the_right_one():
    rows = [{"completion": "over the hills<|im_end|>"}, {"completion": "bells<|im_end|>", "task": "ocr"}]
    metrics = instruct.score(rows, ["The hills far", "bells"])
    assert measures.value(metrics["answer_f1"]) == pytest.approx(2 * 3 / 8)
    assert measures.value(metrics["ocr_answer_f1"]) == 1


# Preferences and rewards --------------------------------------------------------------------------


def test_dpo_prefers_the_right_answer_to_the_bases_own_and_comes_to_do_so(config, tmp_path):
    trainer = {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "logging_steps": 1}
    some = replace(config, method="dpo", pairs=8, max_steps=4, trainer=trainer, out=tmp_path / "run")
    run(some)
    own = read_json(some.folder / "answers" / "own.json")["value"]
    rows = instruct.rows(instruct.InstructData(path=Path(config.data["path"])))["train"][:8]
    model, tokenizer = (
        base.open_model(Path(config.base_model), torch.float32),
        AutoTokenizer.from_pretrained(config.base_model),
    )
    decoding = instruct.DECODING | {"max_new_tokens": 8}
    assert own == complete(model, tokenizer, [row["prompt"] for row in rows], **decoding)
    lines = [line for line in read_metrics(some.folder / "metrics.jsonl") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # before the first step policy and reference are equal
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.05


def test_pairs_are_made_of_answers_that_are_not_right():
    rows = [{"prompt": "p", "completion": "right<|im_end|>"}, {"prompt": "q", "completion": "so<|im_end|>"}]
    (pair,) = preferences.pairs(rows, ["wrong", "so"], instruct)
    assert pair == {"prompt": "p", "chosen": "right<|im_end|>", "rejected": "wrong<|im_end|>"}
    with pytest.raises(InputError, match="answered all 2 prompts rightly"):
        preferences.pairs(rows, ["right", "so"], instruct)


@pytest.fixture(scope="module")
def tuned(config, chat, tmp_path_factory) -> FinetuneConfig:
    """One answer to all questions, which is soon learnt; nothing is measured on the way."""
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


def test_tuning_raises_the_tasks_metric_and_leaves_the_last_weights_where_none_are_measured(tuned):
    metrics = read_json(tuned.folder / "eval" / "instruct.json")["metrics"]
    assert metrics["answer_f1_before"]["value"] < 0.1 < 0.5 < metrics["answer_f1"]["value"]
    assert metrics["answer_f1_change"]["low"] > 0
    assert not (tuned.folder / "model" / "best.json").exists() and not (tuned.folder / "best").exists()


def test_grpo_rewards_what_it_samples_with_the_tasks_metric(config, tuned, tmp_path):
    trainer = GROUPS | {"learning_rate": 1e-3, "logging_steps": 1, "temperature": 1.0, "max_completion_length": 16}
    some = replace(config, method="grpo", rewards={"answer_f1": 1.0}, max_steps=3, trainer=trainer)
    some = replace(some, data=tuned.data, base_model=str(tuned.folder / "model"), out=tmp_path / "run")
    run(some)
    lines = [line for line in read_metrics(some.folder / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 3 and any(0 < line["rewards/instruct/mean"] <= 1 for line in lines)
    assert any(line["grad_norm"] > 0 for line in lines)


def test_the_reward_is_the_weighted_metric_of_each_answer_with_its_special_tokens(tokenizer):
    row = {"prompt": "p", "completion": "over the hills<|im_end|>", "task": "rag"}
    give = preferences.reward({"answer_f1": 2.0, "rag_answer_f1": -0.5}, instruct, tokenizer, row)
    answers = ["over the hills<|im_end|><|end_of_text|>", "over<|im_end|> the hills", "<|answer_start|>"]
    ids = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    rewards = give(prompts=["p"] * 3, completions=[""] * 3, completion_ids=ids, row=[json.dumps(row)] * 3)
    assert rewards == pytest.approx([1.5, 1.5 * 2 / 4, 0.0])


# The packaged configs -----------------------------------------------------------------------------


def local_data(task: str, folder: Path, chat: Path, corpus: Path) -> list[str]:
    """Settings that keep a packaged config to a few rows, made of what is here."""
    if task == "instruct":
        return ["--data.path", str(chat), "--data.tasks", "[]"]
    if task == "ocr":
        few = ["--data.synthetic", "40", "--data.held_out_rows", "8", "--data.held_out", "0.3"]
        return ["--data.path", str(corpus), "--data.languages", "[en,fr]", *few]
    if task == "rag":
        lines = []
        for i, word in enumerate(WORDS):
            sources = [f"The {word} number {i} came home in the spring.", "Nobody came to the river."]
            answer = f'It came home <ref name="1">"{sources[0][:-1]}"</ref>.'
            query = f"When did the {word} come home?"
            lines.append(
                json.dumps({"query": query, "sources": sources, "answer": answer, "language": "en", "source": str(i)})
            )
        (folder / "questions.jsonl").write_text("\n".join(lines))
        return ["--data.path", str(folder / "questions.jsonl"), "--data.held_out", "0.4"]
    segments = [
        {
            "id": str(i),
            "source": f"page {i % 9}",
            "license": "CC0-1.0",
            "en": f"The bells of house {i} rang when nobody came.",
            "fr": f"Les cloches de la maison {i} sonnaient quand personne ne venait.",
        }
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(segments), folder / "segments.parquet")
    return ["--data.path", str(folder / "segments.parquet"), "--data.languages", "[en,fr]", "--data.held_out", "0.3"]


FEW = ["--max_steps", "2", "--trainer.per_device_train_batch_size", "2", "--measure.max_new_tokens", "4"]
FEW += ["--measure.watched", "2", "--measure.rows", "2"]
CONFIGS = {
    "ocr": "ocr",
    "translation": "translation",
    "rag": "rag",
    "instruct": "instruct",
    "dpo": "instruct",
    "grpo_ocr": "ocr",
    "grpo_rag": "rag",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packaged_config_runs(name, base_model, chat, tiny_corpus, tmp_path, monkeypatch, capsys):
    arguments = ["--config", f"finetune_{name}", "--base_model", str(base_model), "--out", str(tmp_path / "run"), *FEW]
    arguments += local_data(CONFIGS[name], tmp_path, chat, tiny_corpus) + ["--max_length", "512"]
    if name.startswith("grpo"):
        arguments += ["--trainer.num_generations", "2", "--trainer.max_completion_length", "4"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments])
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        finetune.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert read_json(tmp_path / "run" / "run.json")["sessions"][0]["steps"] == 2
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    result = read_json(tmp_path / "run" / "eval" / f"{CONFIGS[name]}.json")
    signed = {"chrf2++": "nw:2", "bleu": "tok:13a"} if CONFIGS[name] == "translation" else {}
    assert result.get("signatures", {}).keys() == signed.keys()
    assert all(part in result["signatures"][metric] for metric, part in signed.items())
    assert "held-out rows, with 95% intervals" in capsys.readouterr().out


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"num_hidden_layers": 4}, {"hidden_size": 128}], ids=str)
@pytest.mark.parametrize("recomputed", [False, True])
def test_what_autograd_keeps_is_at_most_what_is_planned_and_not_much_less(change, recomputed):
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    config, B, T = PleiasConfig(**{**shape, "num_attention_heads": 4, "num_key_value_heads": 2, **change}), 2, 256
    model = PleiasForCausalLM(config).train()
    if recomputed:
        model.activation_checkpointing_enable()
    matrices = {tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim == 2}
    matrices |= {shape[::-1] for shape in matrices}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own and tuple(tensor.shape) not in matrices:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.model(torch.randint(0, 64, (B, T)), use_cache=False)
    positions = 2 * 4 * T * config.head_dim
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - positions
    planned = memory.kept_per_token(config, recomputed=False) * B * T
    if recomputed:  # without the layer that the backward is computing again
        planned = memory.kept_per_token(config, recomputed=True) * B * T - planned // config.num_hidden_layers
    assert (0.6 if recomputed else 0.9) * planned < measured <= planned


def test_the_1_2b_is_tuned_whole_on_one_gpu_of_24_gb_and_on_one_of_80_gb():
    figures = memory.finetune_plan(PleiasConfig(), 2048)
    fits = {row["name"]: row["most_tokens"] for row in figures["strategies"]}
    assert fits["AdamW"]["80 GB"] >= 8 * 2048 and fits["AdamW"]["24 GB"] < 2048  # one sequence of the context: no
    assert fits["8-bit AdamW"]["24 GB"] >= 2048
    for row in figures["strategies"]:
        assert sum(row["parts"].values()) == row["in_all"]
        assert list(row["parts"].values())[:2] == [4 * figures["parameters"]] * 2
        for gpu, size in memory.GPUS.items():
            most = row["most_tokens"][gpu]
            how = {"eight_bit": "8-bit" in row["name"], "recomputed": "recomputing" in row["name"]}
            taken = [
                sum(memory.finetune_memory(PleiasConfig(), tokens=tokens, **how).values()) + memory.RESERVE
                for tokens in (most, most + 100)
            ]
            assert taken[0] <= size < taken[1]


def test_the_plan_says_what_tuning_takes(monkeypatch, capsys, tmp_path):
    arguments = ["--config", "nano_1.2b", "--finetune", "true", "--json", str(tmp_path / "plan.json")]
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    plan.main()
    said = capsys.readouterr().out
    assert "1,195,468,800 parameters" in said and "8-bit AdamW, recomputing" in said
    assert read_json(tmp_path / "plan.json") == memory.finetune_plan(PleiasConfig(), 2048)


# Other tasks as conversations ---------------------------------------------------------------------


@pytest.mark.parametrize("task", ["ocr", "rag"])
def test_rows_of_another_task_become_requests_in_plain_words(task, chat, tiny_corpus, tmp_path):
    given = local_data(task, tmp_path, chat, tiny_corpus)
    settings = {key.removeprefix("--data."): value for key, value in zip(given[::2], given[1::2], strict=True)}
    settings = {key: yaml.safe_load(value) for key, value in settings.items()}
    found = instruct.rows(instruct.InstructData(tasks=[task], rows=10, settings={task: settings}))
    assert len(found["train"]) == 10 and len(found["held_out"]) == 1
    for row in found["train"]:
        asked, answer = row["messages"]
        assert asked["content"].startswith(instruct.REQUESTS[task][row["language"]] + "\n\n")
        assert "<|" not in asked["content"] + answer["content"] and answer["content"].strip()
        assert row["task"] == task and row["license"] and row["source"]
