"""The licence gate: real spellings with their source, dates, Common Crawl by name, and labels that never pass."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from license_expression import get_spdx_licensing

from training.data import packages
from training.data.corpus_builder import CorpusConfig, build_corpus
from training.data.documents import COLUMNS, read_documents
from training.data.licence_names import LABELS, licensing
from training.data.licences import decide, decide_document

ROOT = Path(__file__).parents[2]
PD = "LicenseRef-scancode-public-domain"
LISTED = [name for family in LABELS["families"].values() for name in family]

with open(ROOT / "tests/licence_labels.csv", encoding="utf-8", newline="") as file:
    ROWS = [tuple(row) for row in csv.reader(file)][1:]  # source, label, decision, SPDX or, where there is none, rule
unhurried = settings(deadline=None)
PASSING = sorted({label for _, label, decision, _ in ROWS if decision != "refused"})


def test_the_table_has_at_least_150_different_spellings():
    assert len({label for _, label, _, _ in ROWS}) == len(ROWS) >= 150


@pytest.mark.parametrize("source, label, decision, expected", ROWS, ids=[row[1] for row in ROWS])
def test_a_real_spelling_is_decided_correctly(source, label, decision, expected):
    result = decide(label)
    assert result.label == label and result.decision == decision, (result, source)
    assert expected in (result.spdx, result.code)
    if decision != "refused":
        assert result.spdx == expected and result.code in ("open licence", "public domain mark", "statute")


@pytest.mark.parametrize("label", PASSING)
def test_the_spdx_expression_of_a_label_is_decided_like_the_label(label):
    result = decide(label)
    again = decide(result.spdx)
    assert (again.decision, again.spdx) == (result.decision, result.spdx)


@pytest.mark.parametrize("label", PASSING)
def test_case_and_space_around_a_label_do_not_matter(label):
    assert {decide(variant).decision for variant in (label.lower(), label.upper(), f"  {label}\t")} == {
        decide(label).decision
    }


def test_every_listed_licence_is_known_to_spdx_or_is_declared_as_the_projects():
    known = get_spdx_licensing().known_symbols
    for name in LISTED:
        assert name in known or name in LABELS["own"]
        assert str(licensing().parse(name, validate=True)) == name


def test_no_licence_is_in_two_families():
    assert len(LISTED) == len(set(LISTED))
    assert not [name for name in LISTED if "-NC" in name or "-ND" in name]


def test_every_spelling_of_the_table_is_parsed_as_its_licence():
    for identifier, spellings in LABELS["spellings"].items():
        for label in spellings:
            assert decide(label).spdx == identifier, label


def test_the_packages_of_the_registry_pass():
    assert {decide(package.licence).decision for package in packages.PACKAGES} <= {
        "open",
        "attribution",
        "share-alike",
    }


# Fail closed --------------------------------------------------------------------------------------

RESERVED = "NC nc ND nd NonCommercial non-commercial NoDerivatives NoDerivs noncommercial no-derivs".split()
JOINTS = st.sampled_from([" ", "-", "/", " / ", ", ", "; ", " AND ", " OR ", " (", "_", " + ", " WITH "])


@unhurried
@given(st.sampled_from(PASSING), st.sampled_from(RESERVED), JOINTS, st.booleans(), st.sampled_from(["", ")", " 4.0"]))
def test_a_label_with_a_token_of_non_commercial_or_no_derivatives_never_passes(label, token, joint, first, end):
    text = f"{token}{joint}{label}{end}" if first else f"{label}{joint}{token}{end}"
    assert decide(text).refused
    assert decide(text, creator="Verne, Jules (1828-1905)", date="1870").refused


@unhurried
@given(
    st.permutations(["by", "nc", "sa"]), st.sampled_from(["", "-", " "]), st.sampled_from(["", "4.0", " 3.0", "-2.5"])
)
def test_non_commercial_is_seen_in_every_order_and_glue(terms, glue, version):
    assert decide("cc" + glue + glue.join(terms) + version).refused
    assert decide(("CC" + glue + glue.join(terms) + version).upper()).refused


@unhurried
@given(st.sampled_from(PASSING), st.text("abcdefghijklmnopqrstuvwxyz0123456789", max_size=12), JOINTS, st.booleans())
def test_an_unknown_word_next_to_a_good_licence_is_refused(label, word, joint, first):
    assert decide(f"zq{word}{joint}{label}" if first else f"{label}{joint}zq{word}").refused


WORDS = """CC BY SA NC ND 0 4.0 3.0 MIT GPL LGPL GFDL Apache BSD license Public Domain official works open data OR AND
WITH or and / ( ) ; , + | - [ ] markup text of the in not only no some except other Google >= :""".split()


@unhurried
@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=40))
def test_whatever_passes_is_an_expression_of_listed_licences_alone(text):
    result = decide(text)
    assert result.refused or {symbol.key for symbol in licensing().license_symbols(result.spdx)} <= set(LISTED)
    words = set(re.findall("[a-z]+", text.lower()))
    assert result.refused or not words & {"nc", "nd", "not", "no", "some", "except", "other", "google"}


@unhurried
@given(st.sampled_from(PASSING), st.sampled_from("?!~^%#@\u2260\u00ac\u274c\u0416\u4e2d"))
def test_a_character_that_no_licence_has_makes_its_name_unknown(label, character):
    assert decide(f"{label}{character}").refused and decide(f"{character}{label}").refused


# Dates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", None, "unknown", "Public Domain", "Public domain in the USA."])
def test_dates_put_a_work_in_the_public_domain_and_the_rule_is_kept(label):
    verne = decide(label, creator="Verne, Jules (1828-1905)")
    assert (verne.decision, verne.spdx, verne.rule) == ("open", PD, "life + 70: the last author died in 1905")
    american = decide(label, creator="Anybody", date="1929-05", published_in_us=True)
    assert american.rule == "US publication + 95: published in the United States in 1929"
    assert decide(label, date="1883").rule == "unknown author before 1884: published in 1883"
    assert decide(label, creator="Doe (1880-1950)").rule == "life + 70: the last author died in 1950"


@pytest.mark.parametrize(
    "about",
    [
        {"creator": "Doe (1900-1956)"},  # protected to the end of the seventieth year
        {"creator": "Verne, Jules (1828-1905); Doe, Jane (1901-1999)"},  # the last author counts
        {"creator": "Verne, Jules (1828-1905); Doe, Jane"},
        {"creator": "Verne, Jules", "date": "1883"},  # an author is named, and nothing is known of the death
        {"creator": "Series 1850-1995"},  # no span of life
        {"creator": "Doe (1819-)"},
        {"date": "1884"},
        {"date": "1870", "creator": "Doe (1960-2060)"},
        {"creator": "Doe", "date": "1931", "published_in_us": True},
        {"creator": "Doe", "date": "1900"},  # published elsewhere
        {},
    ],
)
def test_a_missing_label_without_a_ground_is_refused(about):
    assert decide("", **about, year=2026).code == "no licence"


def test_terms_run_to_the_end_of_their_last_year():
    doe = "Doe (1880-1955)"
    assert decide("", creator=doe, year=2025).refused and not decide("", creator=doe, year=2026).refused
    us = {"date": "1929", "creator": "Doe", "published_in_us": True}
    assert decide("", **us, year=2024).refused and not decide("", **us, year=2025).refused


@pytest.mark.parametrize("label", ["All rights reserved", "CC-BY-NC-4.0", "In Copyright", "my own terms", "llama2"])
def test_dates_never_overrule_a_licence_that_reserves_rights(label):
    assert decide(label, creator="Verne, Jules (1828-1905)", date="1870", published_in_us=True).refused


def test_the_columns_of_a_document_decide_and_us_pd_collections_are_american():
    row = {
        "license": "",
        "collection": "US-PD-Newspapers",
        "identifier": "x",
        "date": "1910-01-02",
        "creator": "The Sun",
    }
    assert decide_document(row).code == "US publication + 95"
    assert decide_document(row | {"collection": "French-PD-Newspapers"}).code == "no licence"
    assert decide_document({"license": "CC-By"}).decision == "attribution"


# Common Crawl -------------------------------------------------------------------------------------


CRAWLED = """
Common Crawl|CC-MAIN-2023-50|commoncrawl|C4|c4|mC4|allenai/c4|MC4 (it)|OSCAR|OSCAR-2301|oscar-corpus/OSCAR-2201
Colossal OSCAR 1.0|RefinedWeb|tiiuae/falcon-refinedweb|FineWeb|FineWeb-Edu|HuggingFaceFW/fineweb-2|RedPajama-CC
RedPajama-Data-V2|SlimPajama|CulturaX|uonlp/CulturaX|CCNet|CC-100|CC-News|HPLT v2|HPLT/HPLT2.0_cleaned|MADLAD-400
The Pile-CC|Pile-CC|DCLM-baseline|Dolma|Dolma-CC|allenai/dolma|Nemotron-CC|OpenWebMath|TxT360|GlotCC|CCAligned
"""


@pytest.mark.parametrize("name", CRAWLED.strip().replace("\n", "|").split("|"))
def test_a_source_derived_from_common_crawl_is_refused_by_name_whatever_its_label(name):
    for decision in (decide("CC0-1.0", collection=name), decide_document({"license": "MIT", "collection": name})):
        assert (decision.decision, decision.code) == ("refused", "Common Crawl")


@pytest.mark.parametrize(
    "identifier", ["CC-MAIN-20231128-0001.warc#17", "hf://datasets/allenai/c4/en/1", "fineweb/77"]
)
def test_an_identifier_that_contains_a_crawl_is_refused(identifier):
    assert decide("Public Domain", identifier=identifier).code == "Common Crawl"


@pytest.mark.parametrize(
    "collection, identifier",
    [
        ("Oscar Wilde's plays and letters", "gutenberg:902"),
        ("Wikipedia", "en/C4 carbon fixation"),
        ("Codes LEGI", "LEGITEXT000044416551#c4"),
        ("Perseus", "phi0972.phi001.perseus-lat2.xml"),
        ("Wikibooks", "recipes/Dolma"),
        ("EurLex", "accident-main-2019"),
    ],
)
def test_an_ordinary_name_that_resembles_a_crawl_passes(collection, identifier):
    assert decide("CC-BY-4.0", collection=collection, identifier=identifier).decision == "attribution"


def test_a_corpus_is_built_through_this_gate(tmp_path):
    labels = ["CC-By", "CC BY-NC 4.0", "my own terms", "", "Public Domain"]
    rows = [
        dict.fromkeys(COLUMNS, "") | {"license": label, "language": "Dutch", "text": f"{label} x"} for label in labels
    ]
    rows += [rows[0] | {"collection": "FineWeb-2"}, rows[3] | {"creator": "Multatuli (1820-1887)"}]
    table = [
        {k: v for k, v in row.items() if k not in ("word_count", "token_count")} | {"word_count": 2} for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    config = CorpusConfig(source="parquet", path=tmp_path / "a.parquet", languages=["nl"])
    content = build_corpus(config, tmp_path / "out")
    assert [row["license"] for row in read_documents(tmp_path / "out")] == ["CC-By", "Public Domain", PD]
    refused = {"Common Crawl": 1, "no licence": 1, "non-commercial": 1, "unknown licence": 1}
    assert content["dropped"] == refused


# The program --------------------------------------------------------------------------------------


def run(*arguments: str, stdin: str = "") -> list[str]:
    command = [sys.executable, "-m", "training.curation.licences", *arguments]
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_program_prints_one_json_object_per_line_with_the_four_fields():
    labels = ["CC-By", "CC BY-NC 4.0", ""]
    results = [json.loads(line) for line in run(*labels)]
    assert [list(result) for result in results] == [["label", "spdx", "decision", "rule"]] * 3
    assert [result["label"] for result in results] == labels
    assert [result["decision"] for result in results] == ["attribution", "refused", "refused"]


def test_the_program_reads_labels_from_stdin_and_checks_sources():
    results = [json.loads(line) for line in run("-", "--collection", "FineWeb", stdin="MIT\nCC0-1.0\n")]
    assert [(result["label"], result["decision"]) for result in results] == [
        ("MIT", "refused"),
        ("CC0-1.0", "refused"),
    ]
    assert "one JSON object per line" in " ".join(run("--help"))
