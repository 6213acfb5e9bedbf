"""The sources of a release's text add up to its manifests, and each is credited with version, licence and link."""

from collections import Counter

import pytest

from model_card.disclosure.attribution import (
    CREATORS,
    attribution,
    linked_licence,
    list_sources,
    spdx_expression,
    write_attribution,
)
from model_card.files import write_json
from model_card.validate import check_attribution

MEASURES = ("documents", "bytes", "tokens")


def row(source: str, split: str, license: str, number: int) -> dict:
    return {"source": source, "split": split, "license": license, "label": license, **dict.fromkeys(MEASURES, number)}


@pytest.fixture
def data() -> list[dict]:
    """Two stages that read the same package, one of them with a repository that has no entry."""
    names = [{"name": f"Author {i} (1800-1870)", "documents": 1, "died": 1870} for i in range(CREATORS + 3)]
    package = {"kind": "pip", "name": "a_b", "version": "1.0", "url": "https://pypi.org/project/a_b/1.0/"}
    package |= {"license": "CC-BY-4.0", "documents": 30, "bytes": 3000, "creators": names, "ground": None}
    rows = [row("pip:a_b@1.0", "train", "CC-BY-4.0", 40), row("pip:a_b@1.0", "validation", "CC-BY-4.0", 2)]
    more = [row("github:a/b@1234567", "train", "MIT", 5), row("github:a/b@1234567", "train", "MIT OR Apache-2.0", 6)]
    stages = {"base": rows, "more": [rows[0], *more]}
    return [
        {
            "fingerprint": name * 12,
            "stages": [name],
            "by_source": counted,
            "account": [{**part, "language": "English", "collection": "a"} for part in counted],
            "sources": {"sources": [package]},
        }
        for name, counted in stages.items()
    ]


def test_the_numbers_of_sources_add_up_to_those_of_the_corpora(data):
    content = list_sources(data)
    assert content["count"] == content["in_text"] == len(content["sources"]) == 2
    for corpus in content["corpora"]:
        for split in ("train", "validation"):
            parts = [source["shards"].get(corpus["fingerprint"][:12], {}) for source in content["sources"]]
            sums = {name: sum(part[split][name] for part in parts if split in part) for name in MEASURES}
            assert sums == corpus[split]
    repository, package = content["sources"]
    assert repository["license"] == "MIT AND (MIT OR Apache-2.0)" and repository["version"] == "1234567"
    assert package["documents"] == 30 and len(package["creators"]) == CREATORS + 3


def test_the_rows_of_a_corpus_are_read_as_often_for_many_sources_as_for_few(data):
    read = Counter()

    class Row(dict):
        def __getitem__(self, name):
            read[name] += 1
            return super().__getitem__(name)

    for count in (10, 200):
        rows = [Row(row(f"pip:p{i}@1", "train", "MIT", i)) for i in range(count)]
        data[0] |= {"by_source": rows, "account": []}
        read.clear()
        content = list_sources(data[:1])
        assert read["source"] == 2 * count and content["in_text"] == count
        parts = [source["shards"]["base" * 3]["train"]["tokens"] for source in content["sources"] if source["in_text"]]
        assert sorted(parts) == [*range(count)]


def test_every_source_is_credited(data):
    lines = attribution("tiny", list_sources(data)).splitlines()
    shown = "; ".join(f"Author {i} (1800-1870)" for i in range(CREATORS))
    assert lines[-2] == (
        "| [a_b](https://pypi.org/project/a_b/1.0/) | 1.0 | [CC-BY-4.0](https://spdx.org/licenses/CC-BY-4.0.html) | "
        f"30 | 3,000 | 82 | {shown} and 3 others |"
    )
    data[0]["sources"]["sources"][0]["documents_of_other_creators"] = 7
    assert attribution("tiny", list_sources(data)).splitlines()[-2].endswith(f"{shown} and more than 3 others |")
    assert lines[-1].startswith("| a/b | 1234567 | [MIT](https://spdx.org/licenses/MIT.html) AND (")
    assert lines[-1].endswith(" | - | - | 11 | - |")


def test_a_source_without_text_in_a_shard_is_listed_and_not_credited(data):
    unused = {"kind": "npm", "name": "unused", "version": "1", "license": "MIT"}
    data[0]["sources"]["sources"].append(unused)
    content = list_sources(data)
    assert (content["count"], content["in_text"]) == (3, 2) and "unused" not in attribution("tiny", content)
    assert [source["name"] for source in content["sources"] if not source["in_text"]] == ["unused"]
    del data[0]["by_source"]  # then it may be in the text
    assert "unused" in attribution("tiny", list_sources(data))


def test_the_validator_names_credits_that_do_not_follow_from_the_data(data, tmp_path):
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    assert list(check_attribution("tiny", data, tmp_path)) == []  # of an earlier version
    write_json(evidence / "data.json", data)
    write_json(evidence / "release.json", {"name": "tiny"})
    write_attribution(tmp_path)
    assert list(check_attribution("tiny", data, tmp_path)) == []
    data[0]["by_source"][0]["tokens"] += 1
    names = [problem.partition(" does not follow")[0] for problem in check_attribution("tiny", data, tmp_path)]
    assert names == ["evidence/sources.json", "ATTRIBUTION.md"]
    (tmp_path / "ATTRIBUTION.md").unlink()
    data[0]["by_source"][0]["tokens"] -= 1
    assert list(check_attribution("tiny", data, tmp_path)) == ["ATTRIBUTION.md does not follow from data.json"]
    write_json(evidence / "data.json", [])
    write_attribution(tmp_path)
    assert not (evidence / "sources.json").exists()


def test_words_of_strangers_are_no_markup(data):
    entry = data[0]["sources"]["sources"][0]
    entry |= {"name": "a | [b](c) <i>", "url": "https://x.org/) <script>", "version": "`1`"}
    entry |= {"license": "Various [open] | licences", "creators": [{"name": "*A*\nB", "documents": 1}]}
    for corpus in data:
        del corpus["by_source"]
    (line,) = attribution("`tiny`", list_sources(data)).splitlines()[8:]
    assert line == (
        "| a \\| \\[b\\]\\(c) &lt;i> | \\`1\\` | Various \\[open\\] \\| licences | 30 | 3,000 | - | \\*A\\* B |"
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("apache-2.0", "Apache-2.0"),
        ("LicenseRef-scancode-public-domain AND LicenseRef-IODL-2.0", None),
        ("Public Domain", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_a_licence_is_an_expression_of_spdx_or_the_words_of_its_source(name, expected):
    assert spdx_expression(name) == (name if expected is None else expected or None)


def test_each_identifier_of_a_licence_has_a_link():
    scancode = "https://scancode-licensedb.aboutcode.org/public-domain.html"
    assert linked_licence("LicenseRef-scancode-public-domain AND LicenseRef-IODL-2.0 AND MIT") == (
        f"[LicenseRef-scancode-public-domain]({scancode}) AND LicenseRef-IODL-2.0 AND "
        "[MIT](https://spdx.org/licenses/MIT.html)"
    )
