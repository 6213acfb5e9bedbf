"""Contaminated texts of a benchmark are found with their documents, and none in text that contains no passage."""

import json
import random
import re
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pleias import PleiasTokenizer
from training.common.config import InputError
from training.common.files import read_json
from training.shards import ShardsConfig, build_shards
from training.trace import main
from training.tracing import contamination
from training.tracing.contamination import SHORT, find_overlaps
from training.tracing.search import TraceIndex
from training.tracing.trace_index import build_index

FOREIGN = "\u0436\u0448\u0449\u044e"  # Cyrillic letters, which the corpus does not contain
LENGTHS = (10, 20, 50)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, write_corpus):
    """Folder, documents by identifier, those held out, and the index of the others; a byte is a token."""
    folder, draw = tmp_path_factory.mktemp("contamination"), random.Random(0)
    documents = {f"work/{i}": "".join(draw.choices("abcdefghijklm \u00e9\u00e8", k=400)) for i in range(20)}
    rows = [{"identifier": name, "text": text, "license": "CC-BY-4.0"} for name, text in documents.items()]
    write_corpus(folder / "corpus" / "a.parquet", rows)
    PleiasTokenizer().save_pretrained(folder / "tokenizer")
    settings = {"corpus": folder / "corpus", "tokenizer": folder / "tokenizer", "validation_share": 0.2}
    build_shards(ShardsConfig(**settings, out=folder / "shards", workers=1))
    build_index([folder / "shards"], tokenizer=folder / "tokenizer", out=folder / "index", splits=["train"])
    held_out = pq.read_table(next((folder / "shards" / "validation").glob("*.parquet")))["identifier"].to_pylist()
    return folder, documents, held_out, TraceIndex(folder / "index")


def longest_common(text: str, documents: list[str], start: int) -> int:
    """Return the end of the longest passage from a character that occurs in a document."""
    end = start
    while end < len(text) and any(text[start : end + 1] in document for document in documents):
        end += 1
    return end


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_covered_tokens_and_the_longest_passage_equal_a_brute_force_search(trained, seed):
    _, documents, held_out, index = trained
    draw, text = random.Random(seed), ""
    for _ in range(draw.randint(0, 5)):
        document, start = documents[draw.choice(list(documents))], draw.randrange(390)
        text += document[start : start + draw.randint(1, 60)] + FOREIGN[: draw.randint(0, 2)]
    [overlap] = find_overlaps(index, [text], LENGTHS)
    training = [document for name, document in documents.items() if name not in held_out]
    covered = {length: set() for length in LENGTHS}
    longest, tokens = 0, len(text.encode())
    for start in range(len(text)):
        end = longest_common(text, training, start)
        size = len(text[start:end].encode())
        longest = max(longest, size)
        for length in LENGTHS:
            if size >= max(SHORT, min(length, tokens)):
                first = len(text[:start].encode())
                covered[length] |= set(range(first, first + size))
    assert overlap.tokens == tokens
    assert overlap.covered == {length: len(places) for length, places in covered.items()}
    assert overlap.longest == (longest if longest >= SHORT else 0)
    if overlap.longest:
        passage = overlap.passage
        assert len(passage.text.encode()) == longest and text[passage.start :].startswith(passage.text)
        assert passage.text in documents[passage.documents[0].identifier]
        assert passage.in_documents == sum(passage.text in document for document in training)


def test_planted_passages_are_found_and_none_in_text_that_cannot_contain_any(trained):
    _, documents, held_out, index = trained
    name = next(name for name in documents if name not in held_out)
    planted = [FOREIGN * 10 + documents[name][50:200] + FOREIGN * 10, documents[name]]
    runs = "".join(documents[name][i : i + 15].encode()[:19].decode(errors="ignore") + "\u0436" for i in (0, 40, 80))
    clean = [FOREIGN * 100, runs, "", *(documents[other] for other in held_out)]
    overlaps = find_overlaps(index, planted + clean, LENGTHS)
    size = len(documents[name][50:200].encode())
    assert [overlap.covered[20] for overlap in overlaps] == [size, len(documents[name].encode())] + [0] * len(clean)
    assert overlaps[0].share(20) == size / (size + 2 * len((FOREIGN * 10).encode())) and overlaps[1].share(20) == 1
    assert {overlap.passage.documents[0].identifier for overlap in overlaps[:2]} == {name}
    assert len(clean) > 4 and max(overlap.longest for overlap in overlaps[4:]) < 15


def test_a_short_text_must_occur_completely_and_a_very_short_one_is_not_checked(trained):
    _, documents, held_out, index = trained
    text = next(text for name, text in documents.items() if name not in held_out)
    passage = re.search("[a-m ]{14}", text)[0]
    texts = [passage, passage[:9], passage + "\u0436", "\u0436" + passage[:10]]
    overlaps = find_overlaps(index, texts, LENGTHS)
    assert [overlap.share(20) for overlap in overlaps] == [1, 0, 0, 0]
    assert [overlap.checked for overlap in overlaps] == [True, False, True, True]
    assert overlaps[2].longest == 14


def test_an_interrupted_search_resumes_from_the_finished_batches(trained, tmp_path, monkeypatch):
    _, documents, _, index = trained
    texts, search, searched = list(documents.values())[:6], contamination._search, []
    expected = find_overlaps(index, texts, LENGTHS)
    monkeypatch.setattr(contamination, "BATCH", 600)  # two texts

    def interrupted(index, batch, lengths):
        searched.append(batch)
        if len(searched) == 3:
            raise KeyboardInterrupt
        return search(index, batch, lengths)

    monkeypatch.setattr(contamination, "_search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_overlaps(index, texts, LENGTHS, finished=tmp_path)
    assert find_overlaps(index, texts, LENGTHS, finished=tmp_path) == expected
    assert searched[2:] == [texts[4:], texts[4:]]
    changed = [*texts[:2], FOREIGN * 100, *texts[3:]]
    assert find_overlaps(index, changed, LENGTHS, finished=tmp_path)[3:] == expected[3:]
    assert searched[4:] == [changed[2:4]]


# The program --------------------------------------------------------------------------------------------


def trace(monkeypatch, trained, *arguments):
    monkeypatch.setattr(sys, "argv", ["trace.py", "--index", str(trained[0] / "index"), *map(str, arguments)])
    main()


def test_every_kind_of_benchmark_is_reported_with_document_and_licence(trained, tmp_path, monkeypatch, capsys):
    _, documents, held_out, _ = trained
    names = [name for name in documents if name not in held_out][:2]
    first, second = (documents[name][30:130] for name in names)
    rows = [
        {"id": "joined", "prompt": first[:50], "answer": first[50:], "language": "French"},
        {"id": "spaced", "prompt": f"{FOREIGN}:", "completion": second},
        {"id": "pair", "ocr": FOREIGN * 5, "truth": second},
        {"id": "clean", "text": FOREIGN * 50, "language": "de"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace(monkeypatch, trained, "--benchmark", tmp_path / "rows.jsonl", "--json", tmp_path / "report.json")
    report, printed = read_json(tmp_path / "report.json"), capsys.readouterr().out
    texts = {row["identifier"]: row for row in report["texts"]}
    size = len(second.encode())
    assert (
        texts["spaced"]["tokens"] == size + len(f"{FOREIGN}: ".encode()) and texts["spaced"]["covered_tokens"] == size
    )
    assert texts["pair"]["share"] == size / (size + len(FOREIGN * 5) * 2 + 1)
    assert texts["clean"] == {
        **{"identifier": "clean", "language": "de", "tokens": 400, "covered_tokens": 0, "share": 0.0},
        **{"contaminated": False, "longest": 0, "passage": None},
    }
    halves = [len(first[:50].encode()), len(first[50:].encode())]
    assert texts["joined"]["covered_tokens"] == sum(halves) and texts["joined"]["longest"] >= max(halves)
    passage = texts["spaced"]["passage"]
    assert (passage["text"], passage["start"], passage["in_documents"]) == (second, len(f"{FOREIGN}: "), 1)
    document = passage["document"]
    assert (document["identifier"], document["license"], document["decision"]) == (
        names[1],
        "CC-BY-4.0",
        "attribution",
    )
    total = report["total"]
    assert (total["texts"], total["contaminated_texts"], total["contaminated"]["value"]) == (4, 3, 0.75)
    assert total["contaminated"]["low"] < 0.75 < total["contaminated"]["high"]
    assert total["covered_tokens"]["value"] == sum(row["covered_tokens"] for row in texts.values()) / total["tokens"]
    assert {language: group["contaminated_texts"] for language, group in report["languages"].items()} == {
        "fr": 1,
        "de": 0,
    }
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["report.json", "report.md", "rows.jsonl"]
    markdown = (tmp_path / "report.md").read_text()
    for content in (printed, markdown):
        assert names[1] in content and "CC-BY-4.0 (attribution)" in content and "3 of 4 texts" in content
    # The same texts in Parquet, as text files, and as a task of the harness.
    pq.write_table(pa.Table.from_pylist([{"text": second}, {"text": FOREIGN * 50}]), tmp_path / "rows.parquet")
    (tmp_path / "texts").mkdir()
    for name, text in (("de", second), ("fr", FOREIGN * 50)):
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    (tmp_path / "questions.json").write_text(
        json.dumps(
            [{"q": second[:60], "choices": ["x", second[60:]], "a": 1}, {"q": FOREIGN, "choices": [" y"] * 2, "a": 0}]
        )
    )
    declared = {"task": "planted", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test"}
    declared |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.json")}}, "target_delimiter": ""}
    declared |= {"doc_to_text": "{{q}}", "doc_to_target": "{{a|int}}", "doc_to_choice": "choices"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(declared))
    model = tmp_path / "run" / "model"
    shutil.copytree(trained[0] / "tokenizer", model)
    settings = {"stages": [{"shards": str(trained[0] / "shards")}], "data": {"folder": ""}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    trace(monkeypatch, trained, "--benchmark", tmp_path / "run", "--json", tmp_path / "other.json")
    other = read_json(tmp_path / "other.json")
    assert {row["identifier"] for row in other["texts"]} == set(held_out)
    assert other["total"]["contaminated_texts"] == 0
    for benchmark in ("rows.parquet", "texts", "task.yaml"):
        trace(monkeypatch, trained, "--benchmark", tmp_path / benchmark, "--json", tmp_path / "other.json")
        other = read_json(tmp_path / "other.json")
        assert [row["covered_tokens"] for row in other["texts"]] == [size, 0]
        assert other["texts"][0]["passage"]["text"] == second


def test_benchmarks_that_cannot_be_compared_are_refused(trained, tmp_path, monkeypatch):
    def refused(message, *arguments):
        with pytest.raises(InputError, match=message):
            trace(monkeypatch, trained, *arguments)

    refused("nowhere.jsonl does not exist", "--benchmark", tmp_path / "nowhere.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "only a prompt"}\n')
    refused("row 1 has no text: each row needs text or prompt and", "--benchmark", tmp_path / "rows.jsonl")
    refused("min_tokens must be at least 10", "--benchmark", tmp_path / "rows.jsonl", "--min_tokens", 9)
    settings = {"tokenizer": trained[0] / "tokenizer", "splits": ["train", "validation"]}
    build_index([trained[0] / "shards"], **settings, out=tmp_path / "both")
    refused(
        "both contains the held-out documents too",
        "--benchmark",
        tmp_path / "rows.jsonl",
        "--index",
        tmp_path / "both",
    )
