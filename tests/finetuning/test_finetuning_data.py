"""Fine-tuning data: token ids and labels, the loss, order, replay text, preference pairs and rewards, manifests."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl import SFTConfig

from modeling_pleias import PleiasTokenizer
from training.common.config import InputError
from training.data.shard_files import manifest_fingerprint
from training.finetuning import base_model as base
from training.finetuning import data_manifest, examples, preferences
from training.finetuning.examples import (
    IGNORE_INDEX,
    append_replay,
    length_grouped_order,
    tokenize_replay,
    tokenize_row,
    tokenize_rows,
)
from training.finetuning.trainers import BatchCandidateSampler, PleiasSFTTrainer
from training.tasks import instruct, ocr, translation
from training.tasks.rag.format import Citation, Response, format_rag

ROWS = [
    {"id": 0, "prompt": "<|text_start|>the old house<|text_end|>", "completion": "by the river"},
    {"id": 1, "prompt": "<|text_start|>bells<|text_end|>", "completion": "over the hills when bells rang<|text_end|>"},
]


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return AutoTokenizer.from_pretrained(base_model)


# Examples -----------------------------------------------------------------------------------------


def supervised(base_model, tokenizer, tmp_path, rows=ROWS, candidates=None, **arguments) -> PleiasSFTTrainer:
    columns = ("messages",) if "messages" in rows[0] else ("prompt", "completion")
    usual = {"bf16": False, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, "max_length": None}
    return PleiasSFTTrainer(
        model=base.open_model(base_model, torch.float32),
        args=SFTConfig(str(tmp_path), **usual | arguments),
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in rows]),
        processing_class=tokenizer,
        order=list(range(len(rows))),
        replay=None,
        dtype=torch.float32,
        candidates=candidates,
    )


RESPONSE = Response(
    ("They rang ", Citation("1", "The bells rang")), {"language": "English", "source_analysis": "From 1."}
)
# What each task's row is formatted to: the prompt, and the completion, which alone is in the loss.
FORMATTED = {
    "ocr": (
        ocr.format_ocr("Tbe hou\u017fe <|text_end|>", "The house <|text_end|>"),
        "<|begin_of_text|><|text_start|>Tbe hou\u017fe <\u2060|text_end|><|text_end|><|ocr_correction_start|>",
        "The house <\u2060|text_end|><|ocr_correction_end|><|end_of_text|>",
    ),
    "translation": (
        translation.format_translation("The bells rang.", "fr", "Les cloches sonnaient.", "en"),
        "<|begin_of_text|><|text_start|><|en|>The bells rang.<|text_end|><|translation_start|><|fr|>",
        "Les cloches sonnaient.<|translation_end|><|end_of_text|>",
    ),
    "rag-0.1": (
        format_rag("Did they?", {"1": "The bells rang."}, RESPONSE, "rag-0.1"),
        "<|begin_of_text|><|query_start|>Did they?<|query_end|>\n<|source_start|><|source_id_start|>1<|source_id_end|>"
        "The bells rang.<|source_end|>\n<|source_analysis_start|>",
        'From 1.<|source_analysis_end|>\n<|answer_start|>They rang <ref name="1">"The bells rang"</ref><|answer_end|>'
        "<|end_of_text|>",
    ),
    "rag-2025": (
        format_rag("Did they?", {"1": "The bells rang."}, RESPONSE, "rag-2025"),
        "<|begin_of_text|><|query_start|>Did they?<|query_end|>\n<|source_start|><|source_id|>1 The bells rang."
        "<|source_end|>\n<|language_start|>\n",
        "English\n<|language_end|>\n<|query_analysis_start|>\n\n<|query_analysis_end|>\n<|query_report_start|>\n\n"
        "<|query_report_end|>\n<|source_analysis_start|>\nFrom 1.\n<|source_analysis_end|>\n<|source_report_start|>\n"
        "\n<|source_report_end|>\n<|draft_start|>\n\n<|draft_end|>\n<|answer_start|>\nThey rang <ref name="
        '"<|source_id|>1">The bells rang</ref>\n<|answer_end|><|end_of_text|>',
    ),
    "a completion that ends with the end-of-text token": (
        ("<|text_start|>bells<|text_end|>", "rang<|end_of_text|>"),
        "<|begin_of_text|><|text_start|>bells<|text_end|>",
        "rang<|end_of_text|>",
    ),
}


def assert_tokenized(
    trainer: PleiasSFTTrainer, rows: list[dict], tokenizer, texts: list[list[tuple[str, bool]]]
) -> None:
    """Check ids and labels of TRL, and the ids that this project counts, against texts that are (not) in the loss."""
    for example, row, parts in zip(trainer.train_dataset, rows, texts, strict=True):
        batch = trainer.data_collator([example])
        ids, labels = [], []
        for text, in_loss in parts:
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            ids += tokens
            labels += tokens if in_loss else [IGNORE_INDEX] * len(tokens)
        assert batch["input_ids"][0].tolist() == ids == tokenize_row(row, tokenizer)
        assert batch["labels"][0].tolist() == labels


def test_trl_computes_the_loss_on_the_completion_after_the_ids_of_the_prompt(base_model, tokenizer, tmp_path):
    rows = [dict(zip(("prompt", "completion"), row, strict=True)) for row, *_ in FORMATTED.values()]
    texts = [[(prompt, False), (completion, True)] for _, prompt, completion in FORMATTED.values()]
    assert_tokenized(supervised(base_model, tokenizer, tmp_path, rows), rows, tokenizer, texts)
    for row, (_, prompt, completion) in zip(rows, FORMATTED.values(), strict=True):
        ids = tokenizer(row["prompt"]).input_ids  # as in generation
        assert tokenize_row(row, tokenizer)[: len(ids)] == ids == tokenizer(prompt, add_special_tokens=False).input_ids
        markers = [token for token in tokenizer.all_special_tokens if token in prompt + completion]
        assert set(tokenizer.convert_tokens_to_ids(markers)) <= set(tokenize_row(row, tokenizer)) and len(markers) > 3


def test_trl_computes_the_loss_on_the_assistants_turns_with_the_tokens_that_end_them(base_model, tokenizer, tmp_path):
    chat = instruct.add_chat_template(tokenizer)
    turns = [("system", "Be brief."), ("user", "bells"), ("assistant", "rang"), ("user", "and"), ("assistant", "you")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    before = "<|begin_of_text|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nbells<|im_end|>\n"
    between = "\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"
    parts = [(f"{before}<|im_start|>assistant\n", False), ("rang<|im_end|>", True), (between, False)]
    parts += [("you<|im_end|>", True), ("\n", False)]
    trainer = supervised(base_model, chat, tmp_path, rows, assistant_only_loss=True)
    assert_tokenized(trainer, rows, chat, [parts])


def test_the_loss_covers_the_completion_tokens_only_and_equals_that_of_trl(base_model, tokenizer, tmp_path):
    trainer = supervised(base_model, tokenizer, tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset))
    count = (batch["labels"] != IGNORE_INDEX).sum()
    assert count == sum(len(tokenizer(row["completion"]).input_ids) for row in ROWS)  # EOS instead of BOS

    by_hand = torch.zeros(())  # the tokens after each prompt, one row at a time and without padding
    for row in ROWS:
        prompt = tokenizer(row["prompt"]).input_ids
        ids = prompt + tokenizer(row["completion"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        logits = trainer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(len(prompt), len(ids)):
            by_hand = by_hand - logits[place - 1, ids[place]]
    gradients = {}
    for name, summed in (("this project's", True), ("TRL's", False)):
        trainer.summed = summed
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        torch.testing.assert_close(loss, by_hand / count, atol=1e-5, rtol=1e-5)
        gradients[name] = {key: weight.grad.clone() for key, weight in trainer.model.named_parameters()}
    for name, gradient in gradients["this project's"].items():
        torch.testing.assert_close(gradient, gradients["TRL's"][name], atol=1e-6, rtol=1e-4)


def test_a_sampled_loss_with_all_tokens_as_candidates_equals_the_full_loss(base_model, tokenizer, tmp_path):
    values = {}
    for name, candidates in (("full", None), ("sampled", 2)):
        trainer = supervised(base_model, tokenizer, tmp_path, candidates=candidates)
        if candidates:
            trainer.draw.common = torch.arange(trainer.model.config.vocab_size)
        batch = trainer.data_collator(list(trainer.train_dataset))
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7)
        loss.backward()
        gradients = {key: weight.grad for key, weight in trainer.model.named_parameters()}
        values[name] = {"loss": loss.detach()} | gradients
    for key, full in values["full"].items():
        torch.testing.assert_close(values["sampled"][key], full, atol=1e-5, rtol=1e-4)


def test_candidates_are_the_batchs_tokens_the_most_frequent_ones_and_a_weighted_sample_of_the_others():
    draw = BatchCandidateSampler([[5, 5, 5, 6], [6, 7]], 4, 1000)
    batch = torch.tensor([[400, 401], [401, 402]])
    torch.manual_seed(0)
    first, second = draw(batch), draw(batch)
    assert set(first.ids[: first.certain].tolist()) == {5, 6, 400, 401, 402}
    assert len(first.ids) == 7 == len(set(first.ids.tolist()))
    assert first.log_weight == pytest.approx(math.log(995 / 2))
    assert first.ids.tolist() != second.ids.tolist()
    for size in (3, 0, 1000):
        with pytest.raises(InputError, match=f"candidates must be even and below the vocabulary's 1000, got {size}"):
            BatchCandidateSampler([[5]], size, 1000)


def test_rows_that_are_too_long_are_dropped_and_counted(tokenizer):
    rows = [
        {"id": 0, "prompt": "the old", "completion": "house"},
        {"id": 1, "prompt": "the old", "completion": " house stood by the river" * 9},
        {"id": 2, "prompt": "the old house stood by the river " * 9, "completion": "x"},
    ]
    short = tokenize_rows(rows, tokenizer, task="ocr", max_length=20)
    assert [row["id"] for row in short.rows] == [0] and short.tokens == len(short.input_ids[0]) <= 20
    assert short.overlong_note == "2 of 3 examples have more than 20 tokens and were dropped."
    assert tokenize_rows(rows[:1], tokenizer, task="ocr", max_length=20).overlong_note == ""
    with pytest.raises(InputError, match="None of 3 examples of ocr has at most 2 tokens: raise --max_length"):
        tokenize_rows(rows, tokenizer, task="ocr", max_length=2)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=300), st.integers(1, 9), st.integers(1, 60), st.integers(0, 9)
)
def test_every_epoch_contains_every_example_once_and_similar_lengths_share_a_batch(lengths, batch, steps, seed):
    places = length_grouped_order(lengths, batch=batch, steps=steps, seed=seed)
    assert len(places) == batch * steps and places == length_grouped_order(
        lengths, batch=batch, steps=steps, seed=seed
    )
    counts = [places.count(i) for i in range(len(lengths))]
    assert sum(counts) == batch * steps and max(counts) - min(counts) <= 1
    rows = [[lengths[i] for i in places[start : start + batch]] for start in range(0, len(places), batch)]
    assert all(row == sorted(row) for row in rows)
    if steps <= examples.GROUP:  # the ranges of lengths of the batches do not overlap
        ends = sorted((row[0], row[-1]) for row in rows)
        assert all(previous[1] <= following[0] for previous, following in zip(ends, ends[1:], strict=False))


# Replay -------------------------------------------------------------------------------------------


def replayed(path: Path, base_model: Path, tokenizer, tokens: int = 600, seed: int = 0) -> examples.Examples:
    file = base_model / "tokenizer.json"
    return tokenize_replay(path, tokenizer, file, tokens=tokens, max_length=40, seed=seed)


def test_replay_text_is_the_same_from_shards_and_from_parquet(tiny_corpus, tiny_shards, base_model, tokenizer):
    parquet, shards = (replayed(path, base_model, tokenizer, tokens=10**9) for path in (tiny_corpus, tiny_shards))
    documents = {tuple(ids) for ids in parquet.input_ids}
    assert {tuple(ids) for ids in shards.input_ids} <= documents  # a tenth of the shards is held out
    assert len(parquet) == 250 and 200 < len(shards) < 250
    for replay in (parquet, shards):
        for ids in replay.input_ids:
            assert ids[0] == tokenizer.bos_token_id and len(ids) <= 40
            assert (ids[-1] == tokenizer.eos_token_id) == (len(ids) < 40 or ids[-1] == tokenizer.eos_token_id)
        assert sum(tokens for _, _, tokens in replay.group_counts.values()) == replay.tokens
        assert {language for language, *_ in replay.group_counts} == {"English", "French"}


def test_replay_text_is_read_from_parquet_of_other_writers(tiny_corpus, base_model, tokenizer, tmp_path):
    expected = replayed(tiny_corpus, base_model, tokenizer, tokens=10**9)
    for file in tiny_corpus.glob("*.parquet"):
        table = pq.read_table(file)
        for name in ("text", "identifier"):
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.large_binary()))
        codes = table["language"].to_pylist()
        codes = pa.array([{"English": "eng", "French": "fr"}[code] for code in codes]).dictionary_encode()
        table = table.set_column(table.schema.get_field_index("language"), "language", codes)
        pq.write_table(table, tmp_path / file.name)
    read = replayed(tmp_path, base_model, tokenizer, tokens=10**9)
    assert (read.input_ids, read.group_counts) == (expected.input_ids, expected.group_counts)


@pytest.mark.parametrize(("column", "values"), [("labels", [IGNORE_INDEX, 8, 9]), ("completion_mask", [0, 1, 1])])
def test_all_tokens_but_the_first_of_replay_text_are_in_the_loss_in_either_form_of_trl(column, values):
    prepared = Dataset.from_dict({"prompt": ["p"], "input_ids": [[1, 2]], column: [[0, 2]]})
    replay = examples.Examples(input_ids=[[1, 8, 9]])
    mixed = append_replay(prepared, replay)
    assert mixed.to_list() == [{"input_ids": [1, 2], column: [0, 2]}, {"input_ids": [1, 8, 9], column: values}]


def test_replay_text_is_sampled_from_all_files_and_depends_on_the_seed(tiny_corpus, base_model, tokenizer):
    samples = [replayed(tiny_corpus, base_model, tokenizer, seed=seed) for seed in (0, 0, 1)]
    assert samples[0].input_ids == samples[1].input_ids != samples[2].input_ids
    assert 600 <= samples[0].tokens < 640 and len(samples[0].group_counts) > 3


def test_shards_of_another_tokenizer_are_refused(tiny_shards, tokenizer, tmp_path):
    PleiasTokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="have another tokenizer; pass Parquet instead"):
        replayed(tiny_shards, tmp_path, tokenizer)


# Preferences and rewards --------------------------------------------------------------------------


def test_preference_pairs_come_from_completions_that_differ_from_the_reference():
    rows = [{"prompt": "p", "completion": "right<|im_end|>"}, {"prompt": "q", "completion": "so<|im_end|>"}]
    (pair,) = preferences.preference_pairs(rows, ["wrong", "so"], instruct)
    assert pair == {"prompt": "p", "chosen": "right<|im_end|>", "rejected": "wrong<|im_end|>"}
    with pytest.raises(InputError, match="completed all 2 prompts as the references do.*raise --preference_prompts"):
        preferences.preference_pairs(rows, ["right", "so"], instruct)


def test_the_reward_is_the_weighted_metric_of_each_completion_with_its_special_tokens(tokenizer):
    row = {"prompt": "p", "completion": "over the hills<|im_end|>", "task": "rag"}
    reward = preferences.build_reward({"answer_f1": 2.0, "rag_answer_f1": -0.5}, instruct, tokenizer, row)
    answers = ["over the hills<|im_end|><|end_of_text|>", "over<|im_end|> the hills", "<|answer_start|>"]
    ids = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    rewards = reward(prompts=["p"] * 3, completions=[""] * 3, completion_ids=ids, row=[json.dumps(row)] * 3)
    assert rewards == pytest.approx([1.5, 1.5 * 2 / 4, 0.0])


# Manifests ----------------------------------------------------------------------------------------


def test_a_manifest_lists_the_licences_that_are_not_open(base_model):
    train = examples.Examples()
    for licence in ("CC-BY-4.0", "unknown", "CC-BY-NC-4.0"):
        train.add([1], group=("English", licence, "own"), source="own", size=1)
    assert data_manifest.build_manifest(train, None, base_model)["not_open"] == ["CC-BY-NC-4.0", "unknown"]


def test_a_manifest_of_replay_text_contains_sources_and_curation_of_its_corpus(base_model, tmp_path):
    replay = examples.Examples()
    replay.add([1], group=("English", "CC0-1.0", "own"), source="own", size=1)
    origin = {"sources": {"sources": [{"name": "books"}]}, "curation": {"settings": {"endpoint": {"model": "writer"}}}}
    shards, corpus = tmp_path / "shards", tmp_path / "corpus"
    shards.mkdir(), corpus.mkdir()
    manifest = {"shards": [], "account": [], "corpus": {"files": [], **origin}}
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    for name, content in origin.items():
        (corpus / f"{name}.json").write_text(json.dumps(content))
    for path in (shards, corpus):
        assert data_manifest.build_manifest(replay, None, base_model, path=path)["corpus"] == {"files": [], **origin}
