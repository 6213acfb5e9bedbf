"""What fine-tuning learns from: examples as token ids, pretraining text among them, preferences, and their account."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from modeling_pleias import PleiasTokenizer
from training.config import InputError
from training.tasks import instruct
from training.tuning import account, base, examples, preferences
from training.tuning.examples import IGNORED, encode, of_pretraining, of_task, order
from training.tuning.trainers import Draw, Supervised

ROWS = [
    {"id": 0, "prompt": "<|text_start|>the old house<|text_end|>", "completion": "by the river"},
    {"id": 1, "prompt": "<|text_start|>bells<|text_end|>", "completion": "over the hills when bells rang<|text_end|>"},
]


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return AutoTokenizer.from_pretrained(base_model)


# Examples -----------------------------------------------------------------------------------------


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


def supervised(base_model, tokenizer, tmp_path, candidates=None, **changes) -> Supervised:
    made = of_task(ROWS, tokenizer, task="ocr", max_length=128, over_long="leave_out")
    data = Dataset.from_dict({"input_ids": made.input_ids, "labels": made.labels})
    trainer = Supervised(
        model=base.open_model(base_model, torch.float32),
        args=trl_arguments(tmp_path, **changes),
        train_dataset=data,
        processing_class=tokenizer,
        dtype=torch.float32,
        candidates=candidates,
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


def test_a_sampled_loss_whose_candidates_are_all_tokens_is_the_whole_one(base_model, tokenizer, tmp_path):
    found = {}
    for name, candidates in (("whole", None), ("sampled", 2)):
        trainer = supervised(base_model, tokenizer, tmp_path, candidates)
        if candidates:
            trainer.draw.common = torch.arange(trainer.model.config.vocab_size)
        batch = trainer.data_collator(list(trainer.train_dataset))
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7)
        loss.backward()
        found[name] = {"loss": loss.detach()} | {key: one.grad for key, one in trainer.model.named_parameters()}
    for key, whole in found["whole"].items():
        torch.testing.assert_close(found["sampled"][key], whole, atol=1e-5, rtol=1e-4)


def test_candidates_are_the_batchs_tokens_the_most_common_and_a_draw_that_stands_for_the_others():
    draw = Draw([[5, 5, 5, 6], [6, 7]], 4, 1000)
    batch = torch.tensor([[400, 401], [401, 402]])
    torch.manual_seed(0)
    one, other = draw(batch), draw(batch)
    assert set(one.ids[: one.certain].tolist()) == {5, 6, 400, 401, 402}
    assert len(one.ids) == 7 == len(set(one.ids.tolist()))
    assert one.log_weight == pytest.approx(math.log(995 / 2))
    assert one.ids.tolist() != other.ids.tolist()
    for size in (3, 0, 1000):
        with pytest.raises(InputError, match=f"candidates {size} must be an even number below the vocabulary's 1000"):
            Draw([[5]], size, 1000)


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


# Preferences and rewards --------------------------------------------------------------------------


def test_pairs_are_made_of_answers_that_are_not_right():
    rows = [{"prompt": "p", "completion": "right<|im_end|>"}, {"prompt": "q", "completion": "so<|im_end|>"}]
    (pair,) = preferences.pairs(rows, ["wrong", "so"], instruct)
    assert pair == {"prompt": "p", "chosen": "right<|im_end|>", "rejected": "wrong<|im_end|>"}
    with pytest.raises(InputError, match="answered all 2 prompts rightly"):
        preferences.pairs(rows, ["right", "so"], instruct)


def test_the_reward_is_the_weighted_metric_of_each_answer_with_its_special_tokens(tokenizer):
    row = {"prompt": "p", "completion": "over the hills<|im_end|>", "task": "rag"}
    give = preferences.reward({"answer_f1": 2.0, "rag_answer_f1": -0.5}, instruct, tokenizer, row)
    answers = ["over the hills<|im_end|><|end_of_text|>", "over<|im_end|> the hills", "<|answer_start|>"]
    ids = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    rewards = give(prompts=["p"] * 3, completions=[""] * 3, completion_ids=ids, row=[json.dumps(row)] * 3)
    assert rewards == pytest.approx([1.5, 1.5 * 2 / 4, 0.0])


# The account --------------------------------------------------------------------------------------


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
