"""Tracing finds every passage that occurs in the shards, with its document, and nothing else."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import forget_sidecars

from modeling_pleias import PleiasTokenizer
from training.bench.trace import TraceBench, measure_tracing
from training.common.config import InputError
from training.common.files import read_json, write_json
from training.data.licences import decide
from training.data.shard_files import TOKEN
from training.shards import ShardsConfig
from training.shards import build_shards as build_shards
from training.trace import main
from training.tracing import trace_index
from training.tracing.search import MatchedSpan, TraceIndex, copied_characters, copied_share
from training.tracing.suffix_array import BREAK, SHORTEST, Block, anchors, suffix_array
from training.tracing.trace_index import BLOCK_FILES, build_index, write_block

EVERYTHING = 10**9
FOREIGN = "\u0436\u0448\u0449\u044e"  # Cyrillic letters, which the corpus does not contain
# Passages may be split and joined within words and numbers, between spaces and at line ends.
EDGES = ["", " ", "\n", ", ", "  ", "-"]


# The index of a block, compared with Python's own search ---------------------------------------------------


def block_of(documents):
    text = bytes([BREAK]) + b"".join(document + bytes([BREAK]) for document in documents)
    values = np.frombuffer(text, np.uint8).copy()
    suffixes = suffix_array(values)
    return Block(text, suffixes, values[suffixes.astype(int) - 1])


def places(text, passage):
    return [i for i in range(len(text) - len(passage) + 1) if text[i : i + len(passage)] == passage]


# Few letters, so that passages repeat, overlap themselves and differ in their last byte only.
LETTERS = st.sampled_from([b"a", b"b", b"ab", b"aaaaaaaaaaaa", b"abcabcabcabc", b" ", b"\xc3\xa9"])
TEXT = st.lists(LETTERS, max_size=40).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(TEXT, min_size=1, max_size=4), data=st.data())
def test_every_position_of_a_passage_of_ten_bytes_is_found(documents, data):
    block = block_of(documents)
    long = [document for document in documents if len(document) >= SHORTEST] or [b"0123456789"]
    document = data.draw(st.sampled_from(long))
    start = data.draw(st.integers(0, len(document) - SHORTEST))
    passage = document[start : data.draw(st.integers(start + SHORTEST, len(document)))]
    assert block.find(passage).tolist() == places(block.text, passage)
    other = data.draw(TEXT) + b"0123456789"
    assert block.find(other).tolist() == places(block.text, other)


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(TEXT, min_size=1, max_size=4), pieces=st.lists(TEXT, max_size=3), data=st.data())
def test_the_longest_passage_from_every_byte_equals_a_brute_force_search(documents, pieces, data):
    query = data.draw(st.sampled_from(documents)) + b"".join(pieces) + data.draw(st.sampled_from(documents))
    anchor = anchors(np.frombuffer(query, np.uint8))
    ends, known = np.zeros(len(anchor), np.int64), np.zeros(len(anchor), np.int64)
    for document in documents:  # one block each
        block_of([document]).reach(query, anchor, np.arange(len(anchor)) + SHORTEST, ends)
    block_of(documents).reach(query, anchor, np.arange(len(anchor)) + SHORTEST, known)
    for i in range(len(anchor)):
        expected = [
            j for j in range(i + SHORTEST, len(query) + 1) if any(query[i:j] in document for document in documents)
        ]
        for result in (ends, known):
            assert result[i] == expected[-1] if expected else result[i] <= i + SHORTEST


def test_two_bytes_in_nine_are_anchors_and_equal_passages_have_equal_anchors():
    draw = np.random.default_rng(0)
    text = draw.integers(32, 127, 90_000).astype(np.uint8)
    assert len(np.unique(anchors(text))) == pytest.approx(2 / 9 * len(text), rel=0.02)
    assert np.array_equal(anchors(text[1000:1500]) + 1000, anchors(text)[1000 : 1500 - SHORTEST + 1])


# A corpus, its shards and their index ----------------------------------------------------------------


def make_documents():
    draw = random.Random(0)
    syllables = ["ba", "co", "di", "fu", "gel", "hol", "mir", "nat", "pos", "qua", "ré", "sö", "tñ", "vi", "ſch", "œ"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(400)]
    more = [
        lambda: str(draw.randrange(10 ** draw.randint(1, 15))),
        lambda: "東京物語春夏秋冬山川"[draw.randrange(9) :],
        lambda: "\U0001f600" * draw.randint(1, 3),
        lambda: " " * draw.randint(2, 30) + "if (x[i]) {\n\t\treturn;}",
        lambda: "=" * draw.randint(3, 40),
        lambda: "<|end_of_text|>",
    ]
    documents = []
    for i in range(60):
        parts = [draw.choice(more)() if draw.random() < 0.1 else draw.choice(words) for _ in range(400)]
        text = "".join(part + draw.choice([" "] * 9 + [", ", ".\n", "'", ""]) for part in parts)
        licence = draw.choice(["Public Domain", "CC-BY-4.0", "CC-BY-SA-4.0"])
        documents.append({"identifier": f"work/{i}", "text": text, "license": licence, "collection": f"shelf {i % 3}"})
    copy = documents[7]["text"][:1500]
    return [*documents, {"identifier": "a copy", "text": "Copied: " + copy}, {"identifier": "short", "text": "ba"}]


@pytest.fixture(scope="session")
def documents():
    return {document["identifier"]: document for document in make_documents()}


@pytest.fixture(scope="session")
def traced(tmp_path_factory, write_corpus, documents):
    """Folder with corpus/, tokenizer/ (vocabulary of 600), shards/ and index/ in blocks of 30 kB."""
    folder = tmp_path_factory.mktemp("traced")
    rows = list(documents.values())
    write_corpus(folder / "corpus" / "a.parquet", rows[:40])
    write_corpus(folder / "corpus" / "b.parquet", rows[40:])
    texts = [row["text"] for row in rows]
    PleiasTokenizer().train_new_from_iterator(texts, 600).save_pretrained(folder / "tokenizer")
    build_shards(
        ShardsConfig(
            corpus=folder / "corpus",
            tokenizer=folder / "tokenizer",
            out=folder / "shards",
            validation_share=0.05,
            workers=1,
        )
    )
    make_index(folder)
    return folder


def make_index(folder, *, shards=None, **settings):
    settings = {"splits": ["train", "validation"], "block_megabytes": 0.03, "out": folder / "index"} | settings
    return build_index([shards or folder / "shards"], tokenizer=folder / "tokenizer", **settings)


@pytest.fixture(scope="session")
def index(traced):
    return TraceIndex(traced / "index")


@pytest.fixture(scope="session")
def tokens(traced):
    """Ids of each document in the shards by identifier, without its delimiters."""
    ids_of = {}
    for path in (traced / "shards").rglob("*.ds"):
        ids = np.fromfile(path, TOKEN)
        ends = np.fromfile(f"{path}.index", "<u8").astype(int)
        names = pq.read_table(f"{path}.documents.parquet")["identifier"].to_pylist()
        for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True):
            ids_of[name] = ids[start + 1 : end - 1].tolist()
    return ids_of


def test_the_index_has_several_blocks_and_the_counts_of_the_shards(index, traced, documents, tokens):
    facts, manifest = index.facts, read_json(traced / "shards" / "manifest.json")
    assert len(facts["blocks"]) > 5
    assert facts["documents"] == len(documents)
    assert facts["bytes"] == sum(len(document["text"].encode()) for document in documents.values())
    assert facts["tokens"] == sum(shard["tokens"] for shard in manifest["shards"])
    assert sum(map(len, tokens.values())) + 2 * len(tokens) == facts["tokens"]


def test_the_text_of_the_blocks_is_that_of_the_documents(index, documents):
    texts = b"".join(bytes(block.text)[1:] for block in index.blocks()).split(bytes([BREAK]))[:-1]
    assert sorted(texts) == sorted(document["text"].encode() for document in documents.values())


def around(draw):
    """Random text in letters that the corpus does not contain."""
    return "".join(draw.choices([*FOREIGN, " ", "\n"], k=draw.randint(0, 60)))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_planted_passages_of_20_to_200_tokens_are_all_found_with_their_document(index, documents, tokens, seed):
    draw = random.Random(seed)
    text, planted = around(draw), []
    for _ in range(draw.randint(1, 4)):
        name = draw.choice([name for name in tokens if name != "short"])
        ids = tokens[name]
        length = draw.randint(20, 200)
        first = draw.randint(0, len(ids) - length)
        passage = index.text(ids[first : first + length])
        if passage.startswith("\ufffd") or passage.endswith("\ufffd"):
            continue  # begins or ends within a character, so no text contains it
        text += draw.choice(EDGES) + draw.choice(["", FOREIGN[0]])
        planted.append((len(text), passage, name, length))
        text += passage + draw.choice(["", FOREIGN[1]]) + draw.choice(EDGES) + around(draw)
    spans = index.spans(text, max_documents=EVERYTHING)
    for start, passage, name, length in planted:
        covering = [
            span for span in spans if span.start <= start and span.start + len(span.text) >= start + len(passage)
        ]
        document = next(document for span in covering for document in span.documents if document.identifier == name)
        assert max(span.length for span in covering) >= length
        assert (document.license, document.collection) == (
            documents[name].get("license", "Public Domain"),
            documents[name].get("collection", "OpenCulture"),
        )
        assert document.decision == decide(document.license).decision
    for span in spans:
        assert text[span.start : span.start + len(span.text)] == span.text
        assert span.in_documents == len(span.documents) == sum(span.text in d["text"] for d in documents.values())
        for document in span.documents:
            encoded, passage = documents[document.identifier]["text"].encode(), span.text.encode()
            assert encoded.find(passage) == document.position
        assert span.occurrences == sum(
            len(places(documents[document.identifier]["text"], span.text)) for document in span.documents
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_passages_with_any_boundaries_are_found_completely(index, documents, tokens, seed):
    draw = random.Random(seed)
    document = draw.choice([document for document in documents.values() if document["identifier"] != "short"])
    start = draw.randrange(len(document["text"]) - 600)
    passage = document["text"][start : start + draw.randint(150, 600)]
    before, after = FOREIGN[0] + draw.choice(EDGES), draw.choice(EDGES) + FOREIGN[1]
    spans = index.spans(around(draw) + before + passage + after + around(draw), max_documents=EVERYTHING)
    assert any(
        passage in span.text and document["identifier"] in {match.identifier for match in span.documents}
        for span in spans
    )


def test_a_passage_of_n_tokens_between_foreign_letters_has_the_length_n(index, tokens):
    draw = random.Random(5)
    for length in (20, 21, 50, 100, 200):
        for name in ("work/3", "work/50"):
            first = draw.randrange(len(tokens[name]) - length)
            passage = index.text(tokens[name][first : first + length])
            assert "\ufffd" not in passage
            [span] = index.spans(FOREIGN + passage + FOREIGN)
            assert (span.start, span.length, span.text) == (len(FOREIGN), length, passage)
            assert [document.identifier for document in span.documents] == [name]
            assert index.spans(FOREIGN + passage + FOREIGN, min_tokens=length + 1) == []


def test_text_without_a_passage_of_the_corpus_has_no_spans(index, documents, tokens):
    assert index.spans(FOREIGN * 500) == []
    assert index.spans("") == []
    assert index.spans("ba") == []
    draw = random.Random(3)
    ids = [draw.choice(tokens["work/1"]) for _ in range(3000)]
    assert index.spans(ids) == []
    # Runs of 19 tokens of a document with a foreign letter between them.
    runs = [index.text(tokens["work/9"][i : i + 19]) + FOREIGN[0] for i in range(0, 190, 19)]
    assert index.spans("".join(runs)) == []
    assert len(index.spans("".join(runs), min_tokens=19)) == 10


def test_a_passage_does_not_run_from_one_document_into_the_next(index, documents):
    first, second = documents["work/1"]["text"][-300:], documents["work/2"]["text"][:300]
    spans = {(span.text, span.documents[0].identifier) for span in index.spans(first + second)}
    assert spans == {(first, "work/1"), (second, "work/2")}


def test_a_passage_that_occurs_twice_has_both_documents(index, documents):
    [span] = index.spans(FOREIGN + documents["work/7"]["text"][100:700] + FOREIGN)
    assert (span.occurrences, span.in_documents) == (2, 2)
    assert {document.identifier for document in span.documents} == {"work/7", "a copy"}
    position = {document.identifier: document.position for document in span.documents}
    assert position["a copy"] == position["work/7"] + len("Copied: ")
    [span] = index.spans(FOREIGN + documents["work/7"]["text"][100:700] + FOREIGN, max_documents=1)
    assert (span.in_documents, len(span.documents)) == (2, 1)


def test_ids_have_the_spans_of_their_text_and_special_tokens_split_them(index, traced, tokens):
    ids = tokens["work/5"][40:90]
    [ids_span], [text_span] = index.spans(ids), index.spans(index.text(ids))
    assert ids_span == text_span
    eos = index.facts["tokenizer"]["eos"]
    assert [span.length for span in index.spans([*ids[:24], eos, *ids[24:]])] == [24, 26]


def test_spans_do_not_depend_on_the_size_of_blocks(index, traced, documents, tmp_path):
    draw = random.Random(8)
    names = list(documents)
    text = "".join(documents[draw.choice(names)]["text"][200 : draw.randint(201, 900)] for _ in range(30))
    expected = index.spans(text, max_documents=EVERYTHING, min_tokens=10)
    assert len(expected) > 20
    for megabytes, blocks in ((0.000_001, len(documents)), (10, 1)):
        make_index(traced, out=tmp_path / str(blocks), block_megabytes=megabytes)
        other = TraceIndex(tmp_path / str(blocks))
        assert len(other.facts["blocks"]) == blocks
        assert other.spans(text, max_documents=EVERYTHING, min_tokens=10) == expected


def test_padding_and_truncation_in_the_tokenizer_of_an_index_change_no_span(index, traced, documents, tmp_path):
    folder = shutil.copytree(traced / "index", tmp_path / "index")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["padding"] = {"strategy": {"Fixed": 99}, "direction": "Left", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 3, "pad_type_id": 0, "pad_token": "[PAD]"}
    content["truncation"] = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    text = documents["work/0"]["text"][:400]
    assert TraceIndex(folder).spans(text) == index.spans(text) != []


def test_held_out_documents_are_excluded_unless_requested(traced, documents, tokens, tmp_path):
    make_index(traced, out=tmp_path, splits=["train"])
    held_out = [
        name
        for path in (traced / "shards" / "validation").glob("*.parquet")
        for name in pq.read_table(path)["identifier"].to_pylist()
    ]
    text = FOREIGN + documents[held_out[0]]["text"] + FOREIGN
    assert TraceIndex(tmp_path).spans(text, min_tokens=60) == []
    [span] = TraceIndex(traced / "index").spans(text, min_tokens=60)
    assert span.documents[0].split == "validation"


def test_repeated_documents_are_indexed_once(traced, documents, tmp_path, write_corpus):
    """The shards of a later run have two epochs of the first documents, a new one, and one under another licence."""
    new = {"identifier": "new", "text": documents["work/50"]["text"][::-1]}
    relabelled = documents["work/0"] | {"license": "CC0-1.0"}
    repeated = [document for name, document in documents.items() if name != "work/5"]
    write_corpus(tmp_path / "corpus" / "a.parquet", [*repeated, new, *repeated, relabelled])
    settings = {"corpus": tmp_path / "corpus", "tokenizer": traced / "tokenizer", "validation_share": 0.05}
    build_shards(ShardsConfig(**settings, out=tmp_path / "shards", workers=1))
    settings = {"tokenizer": traced / "tokenizer", "out": tmp_path / "index", "block_megabytes": 0.03}
    folders = [tmp_path / "shards", traced / "shards"]
    facts = build_index(folders, **settings)
    index, expected = TraceIndex(tmp_path / "index"), [*documents.values(), new, relabelled]
    texts = b"".join(bytes(block.text)[1:] for block in index.blocks()).split(bytes([BREAK]))[:-1]
    assert sorted(texts) == sorted(document["text"].encode() for document in expected)
    assert facts["documents"] == len(expected)
    for name in ("work/4", "work/5", "work/6", "work/59"):
        [span] = index.spans(FOREIGN + documents[name]["text"] + FOREIGN, min_tokens=700)
        assert [document.identifier for document in span.documents] == [name]
    [span] = index.spans(FOREIGN + relabelled["text"] + FOREIGN, min_tokens=700)
    assert {document.license for document in span.documents} == {documents["work/0"]["license"], "CC0-1.0"}
    before = times(tmp_path / "index")
    assert build_index(folders, **settings) == facts
    unchanged = {name for name, time in times(tmp_path / "index").items() if before[name] == time}
    assert len(facts["blocks"]) > 5 and {f"{block:05}.text" for block in range(len(facts["blocks"]))} <= unchanged


# If every byte is a token, the spans are all maximal passages ---------------------------------------


@pytest.fixture(scope="session")
def bytewise(tmp_path_factory, write_corpus):
    """Texts of few letters, and their index with a tokenizer without merges."""
    folder = tmp_path_factory.mktemp("bytewise")
    draw = random.Random(1)
    texts = ["".join(draw.choices(["a", "b", "é", "è", "ab" * 6], k=40)) for _ in range(12)]
    write_corpus(folder / "corpus" / "a.parquet", [{"text": text} for text in texts])
    PleiasTokenizer().save_pretrained(folder / "tokenizer")
    build_shards(
        ShardsConfig(
            corpus=folder / "corpus", tokenizer=folder / "tokenizer", out=folder / "shards", validation_share=0.2
        )
    )
    make_index(folder, block_megabytes=0.000_2)
    return texts, TraceIndex(folder / "index")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_spans_are_all_maximal_passages_of_a_brute_force_search(bytewise, seed):
    texts, index = bytewise
    draw = random.Random(seed)
    text = ""
    for _ in range(draw.randint(1, 6)):
        source, start = draw.choice(texts), draw.randrange(30)
        text += source[start : start + draw.randint(5, 50)] + "".join(draw.choices("abéèx", k=draw.randint(0, 8)))
    longest, expected = 0, []
    for start in range(len(text)):
        end = max(end for end in range(start, len(text) + 1) if any(text[start:end] in source for source in texts))
        if end > longest and len(text[start:end].encode()) >= 10:
            expected.append((start, text[start:end]))
        longest = max(longest, end)
    spans = index.spans(text, min_tokens=10)
    assert [(span.start, span.text) for span in spans] == expected
    assert [span.length for span in spans] == [len(passage.encode()) for _, passage in expected]


# Shares and licences -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20), st.integers(10, 250)), max_size=8))
def test_the_copied_share_counts_each_character_once(triples):
    text = "x" * 100
    spans = [MatchedSpan(start, length, text[start : start + size], 1, 1, [], []) for start, size, length in triples]
    for tokens, share in copied_share(text, spans).items():
        covered = {i for start, size, length in triples if length >= tokens for i in range(start, start + size)}
        assert share == len(covered) / 100
        assert copied_characters(spans, min_tokens=tokens) == len(covered)


def test_a_document_outside_the_open_list_is_listed(traced, documents, tmp_path, monkeypatch, capsys):
    shards = tmp_path / "shards"
    shutil.copytree(traced / "shards", shards)
    for path in shards.rglob("*.documents.parquet"):  # as written by another program, or before a list became stricter
        table = pq.read_table(path)
        licences = [
            "All rights reserved" if name in ("work/7", "work/8") else licence
            for name, licence in zip(table["identifier"].to_pylist(), table["license"].to_pylist(), strict=True)
        ]
        place = table.schema.get_field_index("license")
        pq.write_table(table.set_column(place, "license", pa.array(licences)), path)
    forget_sidecars(shards)
    make_index(traced, shards=shards, out=tmp_path / "index")
    text = documents["work/7"]["text"][100:700] + FOREIGN + documents["work/9"]["text"][:300]
    first, second = TraceIndex(tmp_path / "index").spans(text, max_documents=0)
    assert [(document.identifier, document.decision) for document in first.outside] == [("work/7", "refused")]
    assert second.outside == []
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    run(monkeypatch, "--index", tmp_path / "index", "--text", tmp_path / "text.txt")
    assert "documents with a span that are OUTSIDE the open lists: 1\n  work/7" in capsys.readouterr().out


# The program --------------------------------------------------------------------------------------------


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["trace.py", *map(str, arguments)])
    main()


def test_the_program_prints_what_it_writes_to_json(traced, documents, tmp_path, monkeypatch, capsys):
    passage = documents["work/20"]["text"][50:650]
    (tmp_path / "text.txt").write_text(FOREIGN * 100 + passage, encoding="utf-8")
    run(
        monkeypatch,
        *("--index", tmp_path / "index", "--shards", traced / "shards", "--tokenizer", traced / "tokenizer"),
        *("--splits", "[train,validation]", "--text", tmp_path / "text.txt", "--json", tmp_path / "result.json"),
    )
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    [span] = [span for span in result["spans"] if span["length"] >= 20]
    assert span["text"] == passage
    assert result["copied"]["100"] == 600 / 1000
    assert result["outside"] == []
    assert f"characters 400-1000: {span['length']} tokens, 1 time in 1 document" in printed
    assert "100 tokens: 60.0%" in printed
    assert "work/20 | shelf 2 | English | " in printed
    assert "every document with a span is on the open lists" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not a file"), (b"", "is empty"), ("\u00e9t\u00e9".encode("latin-1"), "is not UTF-8")],
)
def test_a_text_that_cannot_be_read_is_rejected_with_its_path(traced, tmp_path, monkeypatch, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"text.txt {message}"):
        run(monkeypatch, "--index", traced / "index", "--text", path)


def test_a_program_with_nothing_to_do_lists_its_options(traced, monkeypatch):
    with pytest.raises(InputError, match="--text FILE or --benchmark FILE, or --shards"):
        run(monkeypatch, "--index", traced / "index")
    with pytest.raises(InputError, match="--tokenizer is missing"):
        run(monkeypatch, "--index", traced / "index", "--shards", traced / "shards")


def test_the_benchmark_finds_every_planted_passage(traced, tmp_path, capsys):
    sizes = {"block_megabytes": [0.05], "tokens": [100], "texts": 3, "plants": 5}
    settings = TraceBench(shards=traced / "shards", tokenizer=traced / "tokenizer", **sizes)
    measure_tracing(settings, tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if len(row) == 5 and row[0].isdigit()] == [
        [str(length), "5", "5", "5", "5"] for length in (20, 50, 100, 200)
    ]
    [built] = [row for row in rows if len(row) == 10 and row[0] == "0.05"]
    assert float(built[8]) == pytest.approx(2.4, abs=0.2)  # bytes of index per byte of text


# Errors on disk ----------------------------------------------------------------------------------


@pytest.fixture
def copied(traced, tmp_path):
    """A copy of the shards with its own index, to be damaged."""
    shutil.copytree(traced / "shards", tmp_path / "shards")
    shutil.copytree(traced / "tokenizer", tmp_path / "tokenizer")
    make_index(tmp_path)
    return tmp_path


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_build_resumes_from_the_complete_blocks(copied):
    folder = copied / "index"
    before, facts = times(folder), read_json(folder / "index.json")
    for name in ("index.json", "00003.json", "00004.json"):  # the files that a complete build writes last
        (folder / name).unlink()
    (folder / "00005.suffixes").write_bytes(b"")  # as after a power cut
    (folder / ".00003.text.1.tmp").write_bytes(b"half")
    with pytest.raises(InputError, match="index.json is missing"):
        TraceIndex(folder)
    assert make_index(copied) == facts
    assert times(folder).keys() == before.keys()
    changed = {name.partition(".")[0] for name, time in times(folder).items() if before[name] != time}
    assert changed == {"00003", "00004", "00005", "index", "tokenizer"}


def test_blocks_of_a_larger_build_are_removed(copied):
    make_index(copied, block_megabytes=10)
    assert {path.name.partition(".")[0] for path in (copied / "index").iterdir()} == {"00000", "index", "tokenizer"}
    assert len(TraceIndex(copied / "index").spans((copied / "shards" / "manifest.json").read_text())) == 0


def test_an_index_of_shards_that_were_rebuilt_is_rejected_with_its_path(copied):
    path = copied / "shards" / "manifest.json"
    manifest = read_json(path)
    path.write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    with pytest.raises(InputError, match=r"index is stale: .*shards was rebuilt since"):
        TraceIndex(copied / "index")
    shutil.rmtree(copied / "shards")  # an index can be used without its shards
    assert TraceIndex(copied / "index").facts["documents"] > 0


def test_a_block_that_is_truncated_or_missing_is_rejected_with_its_path(copied):
    path = copied / "index" / "00002.text"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="00002.text is missing or truncated"):
        TraceIndex(copied / "index")
    path.unlink()
    with pytest.raises(InputError, match="00002.text is missing or truncated"):
        TraceIndex(copied / "index")


def test_a_block_that_was_altered_is_rejected_with_its_path_and_built_again(copied):
    facts = read_json(copied / "index" / "index.json")
    for suffix in BLOCK_FILES:
        path = copied / "index" / f"00002{suffix}"
        content = path.read_bytes()
        altered = bytearray(content)
        altered[len(content) // 2] ^= 1  # its size remains
        path.write_bytes(altered)
        with pytest.raises(InputError, match=f"00002{suffix} was altered after the index was built"):
            TraceIndex(copied / "index")
        os.utime(path, (0, 0))  # as a disk that loses a bit
        assert make_index(copied) == facts and path.read_bytes() == content


def test_an_index_of_an_earlier_version_is_read_and_its_blocks_are_built_again(copied):
    folder, facts = copied / "index", read_json(copied / "index" / "index.json")
    for path in [*folder.glob("0*.json"), folder / "index.json"]:
        content = read_json(path)
        for record in content.get("blocks", [content]):
            del record["sha256"]
        write_json(path, content)
    before = times(folder)
    assert len(list(TraceIndex(folder).blocks())) == len(facts["blocks"])
    assert make_index(copied) == facts
    assert not [name for name, time in times(folder).items() if before[name] == time]


def test_an_interrupted_build_leaves_the_earlier_index_and_is_resumed(copied, monkeypatch):
    def interrupted(path, *arguments):
        if path.name == "00002":
            raise KeyboardInterrupt
        write_block(path, *arguments)

    def interrupt(block_megabytes):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(trace_index, "write_block", interrupted)
            make_index(copied, block_megabytes=block_megabytes)

    folder = copied / "index"
    before, facts = times(folder), read_json(folder / "index.json")
    interrupt(0.04)
    unfinished = times(folder / ".unfinished")
    assert before.items() <= times(folder).items() and TraceIndex(folder).facts == facts
    larger = make_index(copied, block_megabytes=0.04)
    assert larger["blocks"] != facts["blocks"] and not (folder / ".unfinished").exists()
    assert {item for item in unfinished.items() if item[0][:5] in ("00000", "00001")} <= times(folder).items()
    interrupt(0.03)
    assert make_index(copied, block_megabytes=0.04) == larger  # the blocks of the other build are not mixed in
    assert make_index(copied, block_megabytes=0.04) == TraceIndex(folder).facts == larger


def shard(folder: Path) -> Path:
    return folder / "shards" / "train" / "a.ds"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shard(folder).unlink(), "a.ds is missing"),
        (lambda folder: Path(f"{shard(folder)}.documents.parquet").unlink(), "a.ds.documents.parquet is missing"),
        (lambda folder: Path(f"{shard(folder)}.documents.parquet").write_bytes(b"x"), "documents.parquet was altered"),
        (lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[:-2]), "a.ds has .* bytes instead of"),
        (lambda folder: shard(folder).write_bytes(shard(folder).read_bytes()[::-1]), "a.ds was altered"),
        (lambda folder: (folder / "shards" / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: PleiasTokenizer().save_pretrained(folder / "tokenizer"), "made with another tokenizer"),
    ],
)
def test_shards_that_are_incomplete_are_rejected_with_their_path(copied, damage, message):
    damage(copied)
    with pytest.raises(InputError, match=message):
        make_index(copied)


def test_a_sidecar_of_other_documents_is_rejected(copied):
    path = Path(f"{shard(copied)}.documents.parquet")
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(1, len(table))) + [0]), path)
    with pytest.raises(InputError, match="documents.parquet was altered after the manifest was written"):
        make_index(copied)
    forget_sidecars(copied / "shards")
    with pytest.raises(InputError, match="a.ds: its tokens do not match the documents in its sidecar"):
        make_index(copied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ["test"]}, "--splits must be among train, validation, got test"),
        ({"block_megabytes": 0}, "--block_megabytes must be above 0 and below 2,147, got 0"),
        ({"block_megabytes": 4000}, "--block_megabytes must be above 0 and below 2,147, got 4000"),
    ],
)
def test_invalid_settings_are_rejected(traced, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        make_index(traced, out=tmp_path, **settings)


def test_a_minimum_below_the_shortest_match_is_rejected(index):
    with pytest.raises(InputError, match=r"min_tokens must be at least 10 \(bytes of a match\), got 9"):
        index.spans("a text", min_tokens=9)
