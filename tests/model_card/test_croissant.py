"""Training text is described in Croissant so that mlcroissant reads it back, and refuses a changed file."""

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_card import card, croissant, run_export
from model_card.disclosure import dataset_metadata
from model_card.files import ReleaseError, read_json, write_json

mlcroissant = pytest.importorskip("mlcroissant", reason="pip install '.[release]'")
FEMTO = Path(card.__file__).parent / "femto"
SOURCE = {
    "kind": "pip",
    "name": "old-tales",
    "version": "1.2",
    "purl": "pkg:pypi/old-tales@1.2",
    "retrieved": "2026-11-02",
}
SOURCE |= {"url": "https://pypi.org/project/old-tales/1.2/", "licences": {"CC-BY-4.0": 240, "Public Domain": 10}}


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """Folder of a curated corpus in two files, one in a subfolder whose name has a space."""
    folder = tmp_path / "runs" / "a corpus"
    (folder / "more text").mkdir(parents=True)
    for name, target in (("en", "en"), ("fr", "more text/fr")):
        table = pq.read_table(tiny_corpus / f"{name}.parquet")
        findings = pa.array([{"reason": None}] * len(table), pa.struct([("reason", pa.string())]))
        pq.write_table(table.append_column("curation", findings), folder / f"{target}.parquet")
    for left_out in ("dropped", ".building"):
        (folder / left_out).mkdir()
        shutil.copyfile(folder / "en.parquet", folder / left_out / "en.parquet")
    command = f"python -m training.corpus --out '{folder}'"
    write_json(folder / "sources.json", {"command": command, "sources": [SOURCE, "../x"], "dropped": {"short": 7}})
    reasons = {"near duplicate": {"documents": 3, "bytes": 99}}
    curation = {"command": "python -m training.curation", "settings": {"toxicity": "lexicon", "pii": True}}
    changes = {"pii: EMAIL_ADDRESS": 52, "documents with a licence label made SPDX": 4}
    write_json(folder / "curation.json", curation | {"reasons": reasons, "changes": changes})
    return folder


@pytest.fixture
def describe(monkeypatch):
    """Function (folder, options) -> content of the croissant.json that the program writes."""

    def main(folder: Path, *options: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["croissant", str(folder), *options])
        croissant.main()
        return read_json(folder / "croissant.json")

    return main


def opened(path: Path):
    """Data set of a file, which has neither errors nor warnings: what `mlcroissant validate` does."""
    dataset = mlcroissant.Dataset(str(path))
    assert dataset.metadata.ctx.issues.report() == ""
    return dataset


def test_the_documents_of_every_language_are_read_back_and_equal_the_parquet_rows(corpus, describe):
    describe(corpus)
    dataset = opened(corpus / "croissant.json")
    for name, records in (("en", "en"), ("more text/fr", "more%20text/fr")):
        rows = pq.read_table(corpus / f"{name}.parquet").drop_columns("curation").to_pylist()
        read = [
            {
                key.rpartition("/")[2]: value.decode() if isinstance(value, bytes) else value
                for key, value in row.items()
            }
            for row in dataset.records(records)
        ]
        assert read == rows and rows


def test_a_changed_byte_is_named_by_the_reader(corpus, describe):
    describe(corpus)
    data = bytearray((corpus / "en.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (corpus / "en.parquet").write_bytes(data)
    with pytest.raises(mlcroissant.GenerationError, match="en.parquet") as error:
        next(iter(opened(corpus / "croissant.json").records("en")))
    assert "en.parquet is not identical with the reference" in str(error.value.__cause__)
    assert next(iter(opened(corpus / "croissant.json").records("more%20text/fr")))


def test_sources_licences_curation_and_counts_are_stated_and_no_path_of_the_machine(corpus, describe):
    content = describe(corpus, "--url", "https://example.org/c", "--creator", "A Library")
    assert content["creator"] == {"@type": "sc:Organization", "name": "A Library"}
    assert (content["name"], content["datePublished"]) == ("a corpus", "2026-11-02")
    assert sorted(content["license"]) == ["Public Domain", "https://spdx.org/licenses/CC-BY-4.0.html"]
    assert content["description"].startswith("250 documents in 2 Parquet files")
    assert content["inLanguage"] == ["en", "fr"]
    (entity,) = content["prov:wasDerivedFrom"]
    assert (entity["@id"], entity["prov:label"]) == (SOURCE["purl"], "old-tales 1.2")
    assert content["@context"]["prov"] == "http://www.w3.org/ns/prov#"
    assert [activity["prov:label"] for activity in content["prov:wasGeneratedBy"]] == [
        "python -m training.corpus --out 'runs/a corpus'",
        "python -m training.curation",
    ]
    assert content["rai:dataPreprocessingProtocol"] == [
        "Dropped when the corpus was built: short: 7.",
        "Dropped in curation: near duplicate: 3 documents.",
        "Changed in curation: documents with a licence label made SPDX: 4.",
    ]
    assert content["rai:personalSensitiveInformation"] == "pii: EMAIL_ADDRESS, in the source text: 52."
    records = {entry["@id"]: entry["cr:annotation"]["value"] for entry in content["recordSet"]}
    assert records == {"en": 150, "more%20text/fr": 100}
    assert all("curation" not in field["@id"] for entry in content["recordSet"] for field in entry["field"])
    assert str(corpus.parent.parent) not in (text := (corpus / "croissant.json").read_text())
    describe(corpus, "--url", "https://example.org/c", "--creator", "A Library")
    assert (corpus / "croissant.json").read_text() == text


def test_what_strangers_write_into_sources_keeps_the_file_valid(corpus, describe):
    strange = {"name": None, "purl": "a b", "url": "\x07", "retrieved": "2026-13-45", "licences": {"<>": 1, "": 2}}
    write_json(corpus / "sources.json", {"sources": [strange, {}]})
    assert "datePublished" not in describe(corpus)
    describe(corpus, "--published", "2026-11-30")
    opened(corpus / "croissant.json")


def test_many_files_are_listed_without_a_record_set_for_each(corpus, describe, monkeypatch):
    monkeypatch.setattr(dataset_metadata, "MANY", 1)
    content = describe(corpus)
    assert len(content["distribution"]) == 2 and "recordSet" not in content
    opened(corpus / "croissant.json")


def test_a_folder_without_documents_and_a_file_that_is_none_are_refused_by_name(corpus, describe):
    with pytest.raises(ReleaseError, match="--published May 2026 is not a date"):
        describe(corpus, "--published", "May 2026")
    shutil.rmtree(corpus / "more text")
    (corpus / "en.parquet").unlink()
    with pytest.raises(ReleaseError, match="contains no .parquet file"):
        describe(corpus)
    pq.write_table(pa.table({"text": ["a"], "language": ["English"]}), corpus / "x.parquet")
    with pytest.raises(ReleaseError, match="x.parquet lacks the column license"):
        describe(corpus)
    (corpus / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ReleaseError, match="x.parquet is not Parquet"):
        describe(corpus)


# Shards ------------------------------------------------------------------------------------------


def test_each_corpus_of_the_shipped_model_is_described_with_the_hashes_of_its_shards(tmp_path):
    contents = dataset_metadata.shard_metadata(FEMTO, "someone/femto")
    corpora = read_json(FEMTO / "evidence" / "data.json")
    manifests = {m["fingerprint"]: m for m in map(read_json, FEMTO.glob("runs/*/manifests/*.json"))}
    assert len(contents) == len(corpora) == 7
    for corpus, (name, content) in zip(corpora, contents.items(), strict=True):
        listed = {(file["name"], file["sha256"]) for file in content["distribution"]}
        shards = manifests[corpus["fingerprint"]]["shards"]
        assert listed == {(shard["file"], shard["sha256"]) for shard in shards}
        tokens = sum(row["tokens"] for row in corpus["account"])
        assert f" documents, {tokens:,} tokens in {len(shards)} token shards" in content["description"]
        assert corpus["fingerprint"][:12] in name and content["version"] == f"1.0.0+{corpus['fingerprint'][:12]}"
        assert content["url"] == "https://huggingface.co/someone/femto" and "recordSet" not in content
    write_json(tmp_path / "croissant.json", content)
    opened(tmp_path / "croissant.json")


def test_a_manifest_of_hundreds_of_shards_is_described_without_their_names(tmp_path):
    for name in ("evidence/release.json", "evidence/data.json", "runs/1/manifests/base.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FEMTO / name, tmp_path / name)
    manifest = read_json(tmp_path / "runs/1/manifests/base.json")
    shards = [manifest["shards"][0] | {"file": f"train/{i}.ds"} for i in range(400)]
    manifest = run_export.trim_manifest(manifest | {"shards": shards})
    assert "shards" not in manifest
    write_json(tmp_path / "runs/1/manifests/base.json", manifest)
    content = next(iter(dataset_metadata.shard_metadata(tmp_path, None).values()))
    assert " tokens in 400 token shards, training and validation." in content["description"]
    assert "distribution" not in content
