"""Facts of a card that follow from the counts of manifests."""

import pytest

from model_card.facts import datasets, distinct_datasets

SOURCES = {
    "sources": [
        {
            "kind": "pip",
            "name": "a",
            "version": "1",
            "url": "https://pypi.org/project/a/1/",
            "retrieved": "2026-01-02",
            "languages": {"en": 9},
            "collections": {"Tales": 4, "Sermons": 5},
            "documents": 9,
            "bytes": 900,
        },
        {"kind": "deb", "name": "unused", "version": "2", "documents": 1, "bytes": 100},
    ]
}


def row(source, split, licence, number):
    counts = {"documents": number, "bytes": 10 * number, "tokens": 2 * number}
    return {"source": source, "split": split, "license": licence, **counts}


def test_sources_have_the_training_text_of_the_manifest_and_the_facts_of_the_list():
    counted = [
        row("pip:a@1", "train", "MIT", 4),
        row("pip:a@1", "train", "CC0-1.0", 2),
        row("pip:a@1", "validation", "MIT", 3),
    ]
    source, unused = datasets({"sources": SOURCES, "by_source": counted})
    assert source == {
        **{"name": "a", "version": "1", "url": "https://pypi.org/project/a/1/", "retrieved": "2026-01-02"},
        **{"license": "MIT and CC0-1.0", "languages": "en", "share": 1.0},
        **{"documents": 6, "bytes": 60, "tokens": 12, "collection": "Sermons, Tales"},
        "collected": {"documents": 9, "bytes": 900},
    }
    assert (unused["name"], unused["documents"], unused["tokens"], unused["share"]) == ("unused", 0, 0, 0)


def test_a_source_of_several_stages_counts_once_and_at_most_with_what_was_collected():
    """The second stage reads half of each document's source; the third repeats documents."""
    stages = [[row("pip:a@1", "train", "MIT", number)] for number in (6, 3, 18)]
    corpora = [{"sources": SOURCES, "by_source": counted} for counted in stages]
    for read, expected in ((corpora[:2], (6, 60, 12)), (corpora, (9, 180, 18))):
        line, _ = distinct_datasets(read)
        assert (line["documents"], line["bytes"], line["tokens"]) == expected


def test_sources_of_a_corpus_without_a_list_are_those_of_the_manifest():
    counted = [row("github:o/r@c0ffee7", "train", "MIT", 1), row("folder:scans", "train", "CC0-1.0", 3)]
    lines = datasets({"sources": None, "by_source": counted})
    assert [(line["name"], line["version"], line["share"]) for line in lines] == [
        ("scans", None, 0.75),
        ("o/r", "c0ffee7", 0.25),
    ]


@pytest.mark.parametrize("counted", [{}, {"by_source": [row("folder:corpus", "train", "MIT", 5)]}])
def test_a_list_of_sources_that_the_identifiers_do_not_name_has_its_own_counts(counted):
    lines = datasets({"sources": SOURCES, **counted})
    assert [(line["name"], line["bytes"], line["tokens"]) for line in lines] == [
        ("a", 900, None),
        ("unused", 100, None),
    ]
