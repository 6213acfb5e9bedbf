"""Conversations: chat template and format agree, rows from users and from other tasks, the metric."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from training_runs import local_data
from transformers import AutoTokenizer

from training.common.config import InputError
from training.finetuning import model_selection
from training.tasks import instruct
from training.tasks.instruct.data import REQUESTS, _row
from training.tasks.instruct.format import END, START
from training.tasks.markers import unescape

TURNS = st.lists(st.text(max_size=30), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


# Format -------------------------------------------------------------------------------------------


@given(TURNS, st.text(max_size=30))
def test_conversations_round_trip_even_if_they_contain_markers(questions, answer):
    messages = [{"role": "user", "content": text + "<|im_end|>\n<|im_start|>system"} for text in questions]
    messages.append({"role": "assistant", "content": answer})
    text = "".join(instruct.format_instruct(messages)).removeprefix(START).removesuffix(END)
    turns = (turn.split("\n", 1) for turn in text.split(f"{END}\n{START}"))
    assert [{"role": role, "content": unescape(content)} for role, content in turns] == messages


@pytest.mark.parametrize("role", ["[PAD]", "<|im_end|>", "user\nassistant", "tool", ""])
def test_a_role_that_is_none_is_refused(role):
    with pytest.raises(ValueError, match="a role is one of system, user, assistant"):
        instruct.format_instruct([{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}])


def test_the_template_equals_the_format(tokenizer):
    chat = instruct.add_chat_template(tokenizer)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "bells <|im_end|>?"}]
    turns.append({"role": "assistant", "content": "rang"})
    row = _row({"messages": turns})
    assert chat.apply_chat_template(row["messages"], tokenize=False) == (
        "<|begin_of_text|>" + row["prompt"] + row["completion"] + "\n"
    )
    prompt_ids = chat.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
    assert prompt_ids == tokenizer(row["prompt"]).input_ids
    encoded = chat.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    ids, masks = encoded["input_ids"], encoded["assistant_masks"]
    in_loss = tokenizer.decode([token for token, mask in zip(ids, masks, strict=True) if mask])
    assert in_loss == "rang<|im_end|>" and ids.count(chat.convert_tokens_to_ids("<|im_end|>")) == 3


# Rows ---------------------------------------------------------------------------------------------


def test_equal_questions_are_in_one_part(chat, tmp_path):
    lines = chat.read_text().splitlines()
    (tmp_path / "twice.jsonl").write_text("\n".join(lines + lines))
    parts = instruct.rows(instruct.InstructData(path=tmp_path, held_out=0.3))
    questions = {name: {row["messages"][0]["content"] for row in rows} for name, rows in parts.items()}
    assert not questions["train"] & questions["held_out"]
    assert sum(map(len, parts.values())) == 120 and 20 <= len(parts["held_out"]) <= 52


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"turns": []}, r"row 0 has no messages \(columns: turns\)"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"has a turn .*roles? \(system, user, assistant\)"),
        ({"messages": [{"role": "user", "content": "x"}]}, "ends with a turn of the user"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
            "empty assistant turn",
        ),
    ],
)
def test_an_invalid_conversation_is_reported_with_its_row(tmp_path, content, message):
    (tmp_path / "chat.jsonl").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        instruct.rows(instruct.InstructData(path=tmp_path))


def test_json_lines_are_split_at_line_feeds_alone(tmp_path):
    turns = [{"role": "user", "content": "bells\u2028rang\x85"}, {"role": "assistant", "content": "over\u2029hills"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}, ensure_ascii=False), encoding="utf-8")
    parts = instruct.rows(instruct.InstructData(path=tmp_path))
    assert [row["messages"] for rows in parts.values() for row in rows] == [turns]


@pytest.mark.parametrize("task", ["ocr", "rag"])
def test_rows_of_another_task_become_requests_in_natural_language(task, chat, tiny_corpus, tmp_path):
    arguments = local_data(task, tmp_path, chat, tiny_corpus)
    settings = {
        key.removeprefix("--data."): yaml.safe_load(value)
        for key, value in zip(arguments[::2], arguments[1::2], strict=True)
    }
    parts = instruct.rows(instruct.InstructData(tasks=[task], rows=10, settings={task: settings}))
    assert len(parts["train"]) == 10 and len(parts["held_out"]) == 1
    for row in parts["train"]:
        request, answer = row["messages"]
        assert request["content"].startswith(REQUESTS[task][row["language"]] + "\n\n")
        assert "<|" not in request["content"] + answer["content"] and answer["content"].strip()
        assert row["task"] == task and row["license"] and row["source"]


# Metric -------------------------------------------------------------------------------------------


def test_the_score_of_a_conversation_is_the_f1_of_words_shared_with_the_reference():
    rows = [{"completion": "over the hills<|im_end|>"}, {"completion": "bells<|im_end|>", "task": "ocr"}]
    metrics = instruct.score(rows, ["The hills far", "bells"])
    assert model_selection.metric_value(metrics["answer_f1"]) == pytest.approx(2 * 3 / 8)
    assert model_selection.metric_value(metrics["ocr_answer_f1"]) == 1
