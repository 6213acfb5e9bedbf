"""Corpora of other writers: every type is cast or dropped and counted, in bounded memory, for every program alike."""

import datetime
import decimal
import io
import json
import os
import re
import subprocess
import sys
import threading
import uuid
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.common.config import InputError
from training.common.files import read_json
from training.common.language import LANGUAGES, language_name
from training.curation.pipeline import curate
from training.curation.recipe import CurationConfig
from training.data import documents
from training.data.corpus_builder import CorpusConfig, build_corpus
from training.data.documents import COLUMNS, COUNTS, TEXT_COLUMNS, read_documents, read_rows
from training.data.licences import decide_document
from training.data.parquet_pages import page_sizes
from training.evaluation import held_out_text
from training.mixture import MixtureConfig, write_mixtures
from training.shards import ShardsConfig, build_shards
from training.vocabulary.piece_counts import count_pieces

ROOT = Path(__file__).parents[2]
WORDS = (
    "the keeper of the lighthouse climbed the narrow stairs every evening and lit the great lamp above the sea".split()
)


def row(i: int = 0, **changes) -> dict:
    """Return a document in Python's types: an integer identifier, a date, a list of creators, counts with gaps."""
    text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 60)) + f" {i}."
    usual = {"collection": ["OpenCulture", "OpenScience"][i % 2], "open_type": "Open Culture", "license": "CC0-1.0"}
    dated = {"date": datetime.datetime(1871, 1, 1 + i % 20), "title": None if i % 7 == 0 else f"Lamp {i}"}
    counts = {"word_count": None if i % 5 == 0 else 60, "token_count": None if i % 3 else 7}
    language = {"language": "eng" if i % 2 else "English", "language_type": "Spoken"}
    creators = {"creator": ["Jane Doe", f"Ray Roe {i % 9}"]}
    return {"identifier": 1000 + i, **usual, **dated, **creators, **language, **counts, "text": text, **changes}


def expected(i: int) -> dict:
    """Return what every program reads of `row(i)`."""
    document = row(i)
    changes = {"identifier": str(document["identifier"]), "date": f"1871-01-{1 + i % 20:02}", "language": "English"}
    return document | changes | {"creator": "; ".join(document["creator"])}


def as_pyarrow(rows):
    return pa.Table.from_pylist(rows)


def as_pandas(rows):
    frame = pandas.DataFrame(rows)
    frame["collection"] = frame["collection"].astype("category")
    return pa.Table.from_pandas(frame)  # as DataFrame.to_parquet: counts with gaps are floats


def with_types(rows, types: dict[str, pa.DataType]) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    return table.cast(
        pa.schema([(name, types.get(name, table.schema.field(name).type)) for name in table.column_names])
    )


def as_polars(rows):
    """Return the types that polars 2.1 writes: large strings and lists, categories with unsigned indices."""
    text = dict.fromkeys([*TEXT_COLUMNS[1:], "text"], pa.large_string())
    table = with_types(rows, text | {"date": pa.timestamp("us"), "creator": pa.large_list(pa.large_string())})
    indices = table["collection"].dictionary_encode().cast(pa.dictionary(pa.uint32(), pa.large_string()))
    return table.set_column(table.schema.get_field_index("collection"), "collection", indices)


def as_duckdb(rows):
    """Return types that DuckDB 2.0 writes: DATE, DECIMAL, HUGEINT as double, BLOB."""
    types = {"date": pa.date32(), "word_count": pa.decimal128(19, 0), "token_count": pa.float64()}
    return with_types(rows, types | {"text": pa.binary()})


def as_spark(rows):
    """Return types that Spark writes: strings as bytes without annotation, nanoseconds in a time zone."""
    types = dict.fromkeys(["title", "license", "collection"], pa.binary()) | {"word_count": pa.int32()}
    return with_types(rows, types | {"date": pa.timestamp("ns", "UTC")})


WRITERS = (as_pyarrow, as_pandas, as_polars, as_duckdb, as_spark)


def write(path, rows=None, table=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows) if table is None else table, path, **options)
    return path


def column(name: str, values: pa.Array) -> pa.Table:
    """Return documents with one column replaced."""
    table = pa.Table.from_pylist([expected(i) for i in range(len(values))])
    return table.set_column(table.schema.get_field_index(name), name, values)


# Types of other writers -----------------------------------------------------------------------------


def test_one_corpus_is_the_same_to_every_program_whoever_wrote_it(tmp_path, tiny_tokenizer):
    rows, results = [row(i) for i in range(120)], {}
    for writer in WRITERS:
        folder = write(tmp_path / writer.__name__ / "in/part.parquet", table=writer(rows)).parent
        assert list(read_documents(folder)) == [expected(i) for i in range(120)]
        out = folder.parent
        settings = {"tokenizer": tiny_tokenizer, "validation_share": 0.1, "workers": 1}
        manifest = build_shards(ShardsConfig(corpus=folder, out=out / "shards", **settings))
        build_corpus(CorpusConfig(source="parquet", path=folder, languages=["en"]), out / "corpus")
        mixtures = write_mixtures(MixtureConfig(corpus=folder, out=out / "mixture", held_out=0.1))
        content = curate(CurationConfig(out=out / "curated", corpus=folder, workers=1))
        texts = held_out_text.held_out(held_out_text.TextConfig(path=folder), None)
        results[writer] = [
            [(shard["file"], shard["sha256"], shard["tokens"]) for shard in manifest["shards"]],
            *((shard["account"], manifest["account"]) for shard in manifest["shards"]),
            (out / "corpus/en.parquet").read_bytes(),
            (out / "mixture/train/en.parquet").read_bytes(),
            mixtures,
            [content[name] for name in ("input", "kept", "reasons", "account")],
            texts,
            count_pieces(folder, power=1),
        ]
    assert {text.language for text in results[as_pandas][-2]} == {"en"}
    for writer in WRITERS:
        assert results[writer] == results[as_pyarrow], writer.__name__


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        ("date", pa.array([1871]), "1871"),
        ("date", pa.array([1871.0, None])[:1], "1871"),
        ("date", pa.array([float("nan")]), None),
        ("date", pa.array([float("inf")]), None),
        ("date", pa.array([1871.5]), "1871.5"),
        ("date", pa.array([decimal.Decimal("1871.00")]), "1871"),
        ("date", pa.array([datetime.date(1871, 3, 1)]), "1871-03-01"),
        ("date", pa.array([datetime.date(1871, 3, 1)], pa.date64()), "1871-03-01"),
        (
            "date",
            pa.array([datetime.datetime(1871, 3, 1, 2)], pa.timestamp("s", "Europe/Paris")),
            "1871-03-01 02:00:00",
        ),
        ("date", pa.array([2**62], pa.timestamp("ms")), None),
        ("date", pa.nulls(1), None),
        ("creator", pa.array([["A", "B"]], pa.large_list(pa.large_string())), "A; B"),
        ("creator", pa.array([["A", "B"]], pa.list_(pa.string(), 2)), "A; B"),
        ("creator", pa.array([["A", None, " "]]), "A; unknown; unknown"),
        ("creator", pa.array([[None]], pa.list_(pa.string())), None),
        ("creator", pa.array([[]], pa.list_(pa.string())), None),
        ("creator", pa.array([[{"name": "A", "died": 1850}, {"name": "B", "died": None}]]), "A, 1850; B"),
        ("creator", pa.array([[("A", 1850)]], pa.map_(pa.string(), pa.int64())), "A; 1850"),
        ("license", pa.array([["CC0-1.0"]]), "CC0-1.0"),
        ("license", pa.array([["MIT or GPL-3.0-only", "CC-BY-NC-4.0"]]), "(MIT or GPL-3.0-only) AND CC-BY-NC-4.0"),
        ("text", pa.array([["one page", None, "another"]]), "one page\n\nanother"),
        ("text", pa.array(["a"], pa.string_view()), "a"),
        ("text", pa.array([b"caf\xc3\xa9"], pa.large_binary()), "caf\u00e9"),
        ("text", pa.array([b"caf\xe9"]), b"caf\xe9"),
        ("title", pa.array(['["a"]'], pa.json_()), '["a"]'),
        ("title", pa.array([True]), "True"),
        ("identifier", pa.array([uuid.UUID(int=7).bytes], pa.uuid()), str(uuid.UUID(int=7))),
        ("identifier", pa.array([7.0]), "7"),
        ("language", pa.array(["pt-BR"]).dictionary_encode(), "Portuguese"),
        ("language", pa.array([["fra"]]), "French"),
        ("word_count", pa.array([7.0]), 7),
        ("word_count", pa.array([float("nan")]), None),
        ("word_count", pa.array([-1]), None),
        ("word_count", pa.array([2**63], pa.uint64()), None),
        ("word_count", pa.array(["7"]), 7),
        ("word_count", pa.array(["many"]), None),
        ("word_count", pa.array([decimal.Decimal(7)]), 7),
        ("token_count", pa.array([[7]]), None),
    ],
)
def test_a_value_of_any_type_is_text_or_a_count(tmp_path, name, values, read):
    path = write(tmp_path / "a.parquet", table=column(name, values))
    assert [document[name] for document in read_rows(path)] == [read]


STAMPS = st.integers(-(2**63) + 1, 2**63 - 1)
VALUES = st.one_of(
    st.lists(st.one_of(st.none(), strategy), min_size=1, max_size=4).map(
        lambda values, kind=kind: pa.array(values, kind)
    )
    for kind, strategy in (
        (pa.int8(), st.integers(-128, 127)),
        (pa.uint64(), st.integers(0, 2**64 - 1)),
        (pa.float64(), st.floats(allow_subnormal=False)),
        (pa.float32(), st.floats(width=32, allow_subnormal=False)),
        (pa.bool_(), st.booleans()),
        (pa.decimal128(38, 2), st.decimals(-10000, 10000, places=2)),
        (pa.string(), st.text()),
        (pa.large_binary(), st.binary()),
        (pa.dictionary(pa.int32(), pa.string()), st.text(max_size=2)),
        (pa.date32(), st.integers(-(2**31) + 1, 2**31 - 1)),
        (pa.timestamp("us"), STAMPS),
        (pa.timestamp("ms", "UTC"), STAMPS),
        (pa.duration("us"), st.integers(-(2**40), 2**40)),
        (pa.list_(pa.string()), st.lists(st.none() | st.text(max_size=3), max_size=3)),
        (pa.list_(pa.float64()), st.lists(st.none() | st.floats(allow_subnormal=False), max_size=3)),
        (pa.list_(pa.timestamp("us")), st.lists(STAMPS, max_size=3)),
        (pa.struct({"a": pa.string(), "b": pa.int64()}), st.fixed_dictionaries({"a": st.text(), "b": st.none()})),
    )
)


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(COLUMNS), values=VALUES)
def test_no_column_of_any_type_ends_a_program_without_a_message(tmp_path_factory, name, values):
    path = write(tmp_path_factory.mktemp("any") / "a.parquet", table=column(name, values))
    rows = list(read_rows(path))
    assert len(rows) == len(values)
    for document in rows:
        for key, value in document.items():
            assert value is None or type(value) in ((int,) if key in COUNTS else (str, bytes))
            assert key not in COUNTS or value is None or 0 <= value < 2**63
    counts = Counter()
    assert len(list(read_documents(path, dropped=counts))) + counts.total() == len(values)


def test_a_list_of_creators_opens_no_document_that_one_of_them_closes(tmp_path):
    lists = [["Ann Ash (1800-1850)"], ["Ann Ash (1800-1850)", None], ["Ann Ash (1800-1850)", "Bob Birch"]]
    table = column("creator", pa.array(lists))
    table = table.set_column(table.schema.get_field_index("license"), "license", pa.nulls(3, pa.string()))
    decisions = [
        decide_document(document).decision for document in read_rows(write(tmp_path / "a.parquet", table=table))
    ]
    assert decisions == ["open", "refused", "refused"]


def test_casts_and_dropped_rows_are_reported_once(tmp_path, capfd):
    for name in ("a", "b"):
        write(tmp_path / f"in/{name}.parquet", table=as_pandas([row(i) for i in range(4)] + [row(4, text=None)]))
    for _ in range(2):
        assert len(list(read_documents(tmp_path / "in"))) == 8
    written = capfd.readouterr().err
    assert written.count("columns cast to text: identifier (int64), date (timestamp[us]), creator (list<") == 1
    assert written.count("and to whole numbers: word_count (double), token_count (double)") == 1
    assert written.count("language 'eng' is read as English") == 1
    assert written.count(f"{tmp_path / 'in'}: dropped 2 documents (no text 2).") == 1


def test_a_corpus_of_the_usual_types_is_read_without_a_report(tiny_corpus, capfd):
    list(read_documents(tiny_corpus))
    assert capfd.readouterr().err == ""


def test_escape_codes_in_the_name_of_a_folder_are_visible_in_the_report(tmp_path, capfd):
    write(tmp_path / "\x1b[31m/a.parquet", table=as_pandas([row(0), row(1, text=None)]))
    list(read_documents(tmp_path / "\x1b[31m"))
    written = capfd.readouterr().err
    assert "\\x1b[31m: dropped 1 documents" in written and "\x1b" not in written


def test_files_of_different_columns_and_types_in_one_folder_are_read(tmp_path):
    usual = pa.Table.from_pylist([expected(i) for i in range(3)])
    tables = {
        "a": usual.drop_columns(["language_type", "token_count"]),
        "b": usual.append_column("url", pa.array(["u"] * 3)).select([*reversed(COLUMNS), "url"]),
        "c": column("date", pa.nulls(3)),
        "d": column("date", pa.array([1871] * 3)),
        "e": usual.rename_columns([name.title().replace("_", " ") for name in COLUMNS]),
    }
    for name, table in tables.items():
        write(tmp_path / f"in/{name}.parquet", table=table)
    settings = {"source": "common_corpus", "dataset": str(tmp_path / "in"), "megabytes_per_language": 1}
    content = build_corpus(CorpusConfig(languages=["en"], **settings), tmp_path / "out")
    assert content["languages"]["en"]["documents"] == 15 and content["dropped"] == {}
    assert Counter(document["date"][:4] for document in read_documents(tmp_path / "out")) == {"1871": 12, "": 3}


def test_files_of_different_types_on_the_hub_are_streamed(tmp_path):
    for name, writer in (("a", as_pandas), ("b", as_duckdb)):
        write(tmp_path / f"hub/{name}.parquet", table=writer([row(i) for i in range(20)]))
    commit = "0123456789" * 4

    class Hub(BaseHTTPRequestHandler):
        """The addresses that huggingface_hub asks for one data set, whose files are in a folder."""

        def do_GET(self):
            path, status, headers = self.path.partition("?")[0], 200, {"X-Repo-Commit": commit, "ETag": '"x"'}
            file = tmp_path / "hub" / path.rpartition("/")[2]
            if "/resolve/" in path and file.is_file():
                body, span = file.read_bytes(), re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                if span:
                    first, last, size = int(span[1]), int(span[2]), len(body)
                    status, body = 206, body[first : last + 1]
                    headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{size}"
            elif "/tree/" in path:
                files = sorted((tmp_path / "hub").iterdir())
                entries = [{"type": "file", "oid": "x", "size": f.stat().st_size, "path": f.name} for f in files]
                body = json.dumps(entries).encode()
            elif path.startswith("/api/datasets/own/texts"):
                body = json.dumps({"id": "own/texts", "sha": commit, "siblings": []}).encode()
            else:
                status, body = 404, b""
                headers["X-Error-Code"] = "EntryNotFound"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    command = [sys.executable, "-m", "training.corpus", "--source", "common_corpus", "--dataset", "own/texts"]
    command += ["--languages", "[en]", "--megabytes_per_language", "1", "--out", str(tmp_path / "out")]
    # a new Python: huggingface_hub reads its address from the environment when it is imported
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    texts = [document["text"] for document in read_documents(tmp_path / "out")]
    assert texts == 2 * [row(i)["text"] for i in range(20)]
    assert read_json(tmp_path / "out/sources.json")["sources"][0]["version"] == commit
    assert "columns cast to text: identifier (int64), date (date32[day])" in done.stderr


def test_two_columns_of_one_name_are_reported(tmp_path):
    table = pa.Table.from_pylist([expected(0)])
    path = write(tmp_path / "a.parquet", table=table.append_column("Text", pa.array(["other"])))
    assert [document["text"] for document in read_rows(path)] == [expected(0)["text"]]
    path = write(tmp_path / "b.parquet", table=table.append_column("text", pa.array(["other"])))
    with pytest.raises(InputError, match=r"b\.parquet has 2 columns text, text: keep one"):
        next(read_rows(path))


# Rows that cannot be used ---------------------------------------------------------------------------

UNUSABLE = {
    "no identifier": {"identifier": None},
    "no text": {"text": " \n"},
    "invalid UTF-8": {"creator": b"caf\xe9"},
    "more than 0 MB": {"text": "long " * 500},
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_unusable_rows_are_dropped_and_counted_by_every_program(tmp_path, monkeypatch, capfd, reason, tiny_tokenizer):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2000)
    rows = [expected(i) for i in range(40)]
    if reason == "invalid UTF-8":
        rows = [dict(document, creator=document["creator"].encode()) for document in rows]
    folder = write(tmp_path / "in/a.parquet", [*rows, rows[1] | {"identifier": "x"} | UNUSABLE[reason]]).parent
    content = build_corpus(CorpusConfig(source="parquet", path=folder, languages=["en"]), tmp_path / "corpus")
    assert content["dropped"] == {reason: 1} and content["languages"]["en"]["documents"] == 40
    parts = write_mixtures(MixtureConfig(corpus=folder, out=tmp_path / "mixture", held_out=0.1))
    assert sum(row["documents"] for rows in parts.values() for row in rows) == 40
    assert f"dropped 1 documents ({reason} 1)" in capfd.readouterr().err
    assert sum(count_pieces(folder, power=1)["English", "old", "OpenCulture"].values()) > 0
    shards = ShardsConfig(folder, tokenizer=tiny_tokenizer, out=tmp_path / "shards", validation_share=0.2, workers=1)
    if reason == "no identifier":  # shards do not read creators, nor a limit that is patched in another process
        with pytest.raises(InputError, match="build the corpus with training.corpus, which drops such documents"):
            build_shards(shards)
    shards.corpus = tmp_path / "corpus"
    assert sum(row["documents"] for row in build_shards(shards)["account"]) == 40


def test_a_corpus_without_a_requested_language_names_the_labels_and_reasons(tmp_path):
    rows = [expected(0), expected(1) | {"language": "Klingon"}, expected(2) | {"text": None}]
    folder = write(tmp_path / "in/a.parquet", rows).parent
    dropped, labels = r"\(dropped: no text 1, other language 2\)", r"\(labelled 'English' 1, 'Klingon' 1\)"
    message = f"No text in Dutch in the source {dropped} {labels}"
    with pytest.raises(InputError, match=message):
        build_corpus(CorpusConfig(source="parquet", path=folder, languages=["nl"]), tmp_path / "out")


def test_shards_and_mixtures_of_a_file_equal_those_of_its_folder(tmp_path, tiny_tokenizer):
    path = write(tmp_path / "in/one.parquet", [expected(i) for i in range(60)])
    shards, mixtures = [], []
    for corpus, out in ((path, tmp_path / "file"), (path.parent, tmp_path / "folder")):
        settings = {"tokenizer": tiny_tokenizer, "validation_share": 0.2, "workers": 1}
        manifest = build_shards(ShardsConfig(corpus=corpus, out=out / "shards", **settings))
        shards.append([(shard["file"], shard["sha256"]) for shard in manifest["shards"]])
        mixtures.append(write_mixtures(MixtureConfig(corpus=corpus, out=out / "mixture", held_out=0.1)))
    assert shards[0] == shards[1] and mixtures[0] == mixtures[1]


# Languages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "name"),
    [("en", "English"), ("ENG", "English"), ("en_US", "English"), ("eng_Latn", "English"), (" english ", "English")]
    + [
        ("fre", "French"),
        ("fra", "French"),
        ("ger", "German"),
        ("dut", "Dutch"),
        ("la", "Latin"),
        ("pt-BR", "Portuguese"),
    ]
    + [(label, label) for label in ("Python", "PHP", "enm", "English-based creole", "C", "Multilingual", "")],
)
def test_a_language_is_known_by_name_and_by_code(label, name):
    assert language_name(label) == name


def test_every_language_has_its_codes():
    assert [language_name(code) for code in LANGUAGES] == list(LANGUAGES.values())
    assert {language_name(code) for code in ("eng", "fra", "spa", "deu", "ita", "nld", "lat", "por")} == {
        *LANGUAGES.values()
    }


# Memory ---------------------------------------------------------------------------------------------

LARGE = "The old house by the river was quiet in the evening. " * 100_000  # 5 MB


def test_equal_documents_are_read_in_memory_that_does_not_grow_with_their_number(tmp_path):
    rows = [expected(i) | {"text": LARGE} for i in range(200)]
    path = write(tmp_path / "a.parquet", rows, compression="zstd")
    assert path.stat().st_size < 50_000  # of 1 GB
    before = pa.total_allocated_bytes()
    peak, size = 0, 0
    for document in read_documents(path):
        peak, size = max(peak, pa.total_allocated_bytes() - before), size + len(document["text"])
    assert size == 200 * len(LARGE)
    assert peak < 2 * documents.BATCH_BYTES


def test_batches_are_bounded_by_bytes_and_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BATCH_BYTES", 10_000)
    rows = [expected(i) | {"text": "x" * (i % 7) * 300 + "."} for i in range(100)]
    for size in (1, 9, 100):
        path = write(tmp_path / "a.parquet", rows, row_group_size=size)
        with documents.open_parquet(path) as parquet:
            batches = list(documents.batches(parquet))
        assert [text for batch in batches for text in batch["text"].to_pylist()] == [row["text"] for row in rows]
        assert all(len(batch) == 1 or batch.nbytes <= 10_000 for batch in batches)


def test_a_file_that_unpacks_to_thousands_of_times_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "UNPACKED_BYTES", 10_000_000)
    rows = [expected(i) | {"text": f"{LARGE}{i}"} for i in range(4)]
    path = write(tmp_path / "in/a.parquet", rows, compression="zstd")
    with pytest.raises(InputError, match=r"a\.parquet unpacks to 2\d MB of text from 0\.0 MB, in one page"):
        list(read_documents(path))
    with pytest.raises(InputError, match=r"unpacks to 2\d MB of text.*--on_error drop"):
        curate(CurationConfig(out=tmp_path / "out", corpus=path.parent, workers=1, on_error="stop"))
    path = write(tmp_path / "in/a.parquet", rows, compression="zstd", row_group_size=1)
    assert len(list(read_documents(path))) == 4


def test_a_large_page_is_refused_however_little_it_is_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PAGE_BYTES", 100_000)
    rows = [expected(i) | {"text": "".join(map(chr, range(32 + i, 9000 + i)))} for i in range(40)]
    small = write(tmp_path / "small.parquet", rows, use_dictionary=False, data_page_size=1, write_batch_size=1)
    assert len(list(read_documents(small))) == 40
    assert len(list(read_documents(write(tmp_path / "columns.parquet", rows), columns=["identifier"]))) == 40
    with pytest.raises(InputError, match=r"large\.parquet unpacks to 1 MB of text from 1\.\d MB, in one page"):
        list(read_documents(write(tmp_path / "large.parquet", rows, use_dictionary=False, compression=None)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_version": "2.0", "compression": "gzip"},
        {"data_page_size": 100, "write_batch_size": 2, "write_page_index": True, "write_page_checksum": True},
        {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY", "b.list.element": "PLAIN"}},
        {"row_group_size": 7, "write_statistics": False},
    ],
)
def test_the_sizes_of_pages_are_those_of_their_column(tmp_path, options):
    table = pa.table({"a": [f"text {i % 30} " * 9 for i in range(200)], "b": [[1, 2], None, [], [3]] * 50})
    pq.write_table(table, tmp_path / "a.parquet", **options)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    with open(tmp_path / "a.parquet", "rb") as file:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
                pages = list(page_sizes(file, start, chunk.total_compressed_size))
                headers = chunk.total_compressed_size - sum(packed for _, packed in pages)
                assert file.tell() == start + chunk.total_compressed_size
                assert sum(size for size, _ in pages) + headers == chunk.total_uncompressed_size


@given(st.binary(max_size=60))
def test_a_damaged_page_header_is_an_error(content):
    with suppress(ValueError):
        for size, packed in page_sizes(io.BytesIO(content), 0, len(content)):
            assert size >= 0 and packed >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux alone")
def test_a_file_whose_name_is_not_utf_8_is_refused_with_its_escaped_name(tmp_path):
    path = write(tmp_path / "in/a.parquet", [expected(0)])
    path = path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.parquet"))
    for argument in (path, path.parent):
        with pytest.raises(InputError, match=r"in/caf\\udce9\.parquet' is not UTF-8: rename it"):
            list(read_documents(argument))


def test_a_byte_order_mark_in_the_name_of_a_column_is_ignored(tmp_path):
    path = write(tmp_path / "a.parquet", [expected(0)])
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([f"\ufeff{table.column_names[0]}", *table.column_names[1:]]), path)
    assert [document["identifier"] for document in read_documents(path)] == [expected(0)["identifier"]]


def test_a_damaged_page_is_reported_by_file_name(tmp_path):
    path = write(tmp_path / "a.parquet", [expected(i) for i in range(50)], write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet is not a valid Parquet file"):
        list(read_documents(path))
