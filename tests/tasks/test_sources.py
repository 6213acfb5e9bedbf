"""Files of users: JSON Lines are cut at line feeds alone, and what cannot be read is named by file and line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.config import InputError
from training.common.files import read_text
from training.data.documents import read_columns
from training.tasks.instruct import InstructData, rows
from training.tasks.rag.user_rows import read_user_rows
from training.tasks.sources import read_user_files
from training.tasks.text_windows import over_windows

SEPARATORS = st.sampled_from(
    ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\n", "\ufeff"]
)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | SEPARATORS).map("".join)


def read(path) -> list:
    return [row for _, _, row in read_user_files(path, "rows")]


def turns(user="q", assistant="a", **columns) -> dict:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], **columns}


@given(st.lists(TEXTS, max_size=5), st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
def test_json_lines_round_trip(tmp_path_factory, texts, escaped, marked, end):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=escaped) + end for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" * marked + lines.encode())
    assert read(path) == [{"text": text} for text in texts]
    path.write_bytes(path.read_bytes().rstrip())  # the last line has no end
    assert read(path) == [{"text": text} for text in texts]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is JSON nested too deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "is JSON nested too deeply"),
        (b'{"text": "cut \\ud83d"}', "has half of a surrogate pair"),
        (b'{"text": [{"a": "\\udE00 cut"}]}', "has half of a surrogate pair"),
        (b'{"cut \\uD83D": 1}', "has half of a surrogate pair"),
        (b'{"text": "caf\xe9"}', "is not JSON .*utf-8"),
        (b'{"text": ', "is not JSON"),
        (b'{"text": "a"} {"text": "b"}', "is not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_file(tmp_path, line, problem):
    path = tmp_path / "talks.jsonl"
    path.write_bytes(b'{"text": "\\ud83d\\ude00"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"line 3 of {path} {problem}"):
        read(path)
    for reader in (lambda: rows(InstructData(path=path)), lambda: read_user_rows(path, "rag-0.1")):
        path.write_bytes(line + b"\n")
        with pytest.raises(InputError, match=rf"line 1 of {path} {problem}"):
            reader()


def test_files_with_byte_order_marks_may_be_joined(tmp_path):
    (tmp_path / "talks.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": "\xef\xbb\xbf2"}\n\xef\xbb\xbf\n')
    assert read(tmp_path / "talks.jsonl") == [{"a": 1}, {"a": "\ufeff2"}]


def test_metadata_of_any_type_is_text(tmp_path):
    talks = [turns(f"q{i}", language="eng", license=["CC0-1.0", "MIT"], source=i, id=i) for i in range(12)]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in talks))
    parts = rows(InstructData(path=path, held_out=0.3))
    pq.write_table(pa.Table.from_pylist(talks), tmp_path / "talks.parquet")
    assert parts == rows(InstructData(path=tmp_path / "talks.parquet", held_out=0.3))
    first = next(row for part in parts.values() for row in part if row["id"] == "7")
    assert (first["language"], first["license"], first["source"]) == ("en", "CC0-1.0 AND MIT", "7")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": 1, "sources": ["s"], "answer": "a"}, "has query of type int: provide a text"),
        ({"query": "q", "sources": "s", "answer": "a"}, "has sources of type str: provide a list"),
        ({"query": "q", "sources": {"1": "s"}, "answer": "a"}, "has sources of type dict: provide a list"),
        ({"query": "q", "sources": ["s"], "answer": ["a"]}, "has answer of type list: provide a text"),
        ({"query": "q", "sources": [7], "answer": "a"}, "has a source without id or text"),
    ],
)
def test_questions_of_other_types_are_reported(tmp_path, row, problem):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=problem):
        read_user_rows(path, "rag-0.1")


def test_messages_that_are_no_list_are_reported(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": 7}))
    with pytest.raises(InputError, match="row 0 has messages of type int: provide a list of turns"):
        rows(InstructData(path=path))


def test_columns_are_read_as_text_with_iso_codes(tmp_path):
    table = {"id": pa.array([1, 2]), "language": pa.array(["French", "deu"]).dictionary_encode()}
    table["ocr"] = pa.array([b"caf\xc3\xa9", None])
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    read = list(read_columns(tmp_path / "a.parquet", ["id", "ocr", "language"], ""))
    expected = [{"id": "1", "ocr": "caf\u00e9", "language": "fr"}, {"id": "2", "ocr": None, "language": "de"}]
    assert read == expected
    table["ocr"] = pa.array(["ok", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has text that is not UTF-8 in row 1"):
        list(read_columns(tmp_path / "a.parquet", ["id", "ocr", "language"], ""))


@given(TEXTS)
def test_a_text_file_is_read_as_it_is(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_text(path) == text


@pytest.mark.parametrize("page", ["", " ", " \n\f \n", "\u2003\r\n"])
def test_a_blank_page_stays_as_it_is_without_a_call_of_the_model(page):
    assert over_windows(page, 300, 60, pytest.fail) == page
