"""Rules determine how often a document is in a mixture, and no author of the held-out text is in any mixture."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.config import InputError
from training.common.files import read_json
from training.data.documents import read_documents
from training.data.split import author_key, hash_fraction, select_held_out, work_id
from training.mixture import MixtureConfig, MixtureRule, write_mixtures
from training.shards import ShardsConfig, build_shards

NAMES = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Joe", "Kim", "Lea"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_corpus):
    """Novels of twelve authors in parts, a second collection with one of them, help pages without an author, code."""
    folder = tmp_path_factory.mktemp("mixture") / "corpus"
    novels = [
        {"identifier": f"novels:{name}/{book}#part00{part}", "creator": f"{name}son, {name} (1812-1870)"}
        | {"collection": "Novels", "text": f"{name} wrote {book} {part}"}
        for name in NAMES
        for book in (1, 2)
        for part in (1, 2, 3)
    ]
    others = [
        {"identifier": f"tales:{i}", "creator": f"{name} {name}son", "collection": "Tales", "text": f"a tale {i}"}
        for i, name in enumerate(NAMES * 5)
    ]
    help_pages = [{"identifier": f"help#en/{i}", "collection": "Help", "text": f"press {i}"} for i in range(300)]
    code = [
        {
            "identifier": f"code:{i}",
            "collection": "Code",
            "language": "C",
            "language_type": "Code",
            "text": f"int x{i};",
        }
        for i in range(100)
    ]
    write_corpus(folder / "en.parquet", [*novels, *others, *help_pages])
    write_corpus(folder / "code.parquet", code)
    (folder / "sources.json").write_text('{"sources": [{"name": "made up"}]}')
    return folder


@pytest.fixture(scope="module")
def mixed(corpus):
    mixtures = {
        "base": [MixtureRule(epochs=0, language_type="Code"), MixtureRule(epochs=0.5, collection="He*")],
        "best": [MixtureRule(epochs=2.25, collection="Novels"), MixtureRule(epochs=0)],
    }
    config = MixtureConfig(corpus=corpus, out=corpus.parent / "out", mixtures=mixtures, held_out=0.05)
    return config, write_mixtures(config)


def identifiers(folder):
    return Counter(row["identifier"] for row in read_documents(folder))


def test_every_document_is_held_out_or_in_the_mixtures_as_often_as_its_rule_says(corpus, mixed):
    config, _ = mixed
    held, base, best = (identifiers(config.out / name) for name in ("held_out", "base", "best"))
    for row in read_documents(corpus):
        key = row["identifier"]
        if held[key]:
            assert held[key] == 1 and not base[key] and not best[key]
            continue
        half = hash_fraction(key) < 0.5
        expected = {"Novels": (1, 2 + (hash_fraction(key) < 0.25)), "Tales": (1, 0), "Help": (half, 0), "Code": (0, 0)}
        assert (base[key], best[key]) == expected[row["collection"]]
    assert sum(held.values()) + len(base) + sum(key not in base for key in identifiers(corpus) - held) == len(
        identifiers(corpus)
    )


def test_documents_are_copied_unchanged_with_their_sources(corpus, mixed):
    config, _ = mixed
    originals = {row["identifier"]: row for row in read_documents(corpus)}
    for name in ("held_out", "base", "best"):
        assert all(row == originals[row["identifier"]] for row in read_documents(config.out / name))
        assert read_json(config.out / name / "sources.json")["sources"] == [{"name": "made up"}]


def test_no_author_of_the_held_out_text_is_in_a_mixture_in_any_spelling(mixed):
    config, _ = mixed
    held, trained = (
        {author_key(r["creator"]) for r in read_documents(config.out / n)} - {""} for n in ("held_out", "base")
    )
    assert held and not held & trained


def test_every_large_source_has_about_its_share_held_out(mixed):
    config, account = mixed
    held = {row["collection"]: row["documents"] for row in account["held_out"]}
    assert held["Help"] == 15 and held["Code"] == 5  # no authors: 5% to the document
    assert held["Novels"] >= 4 and held["Novels"] % 6 == 0  # complete authors, six parts each


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 3)), max_size=60), st.randoms())
def test_the_selection_does_not_depend_on_the_order_and_never_splits_a_work(rows, draw):
    documents = [
        {"identifier": f"{source}/{book}#part{part:03}", "collection": str(source), "language": "English"}
        | {"creator": f"N{book}" if source % 2 else ""}
        for source, book, part in set(rows)
    ]
    chosen = select_held_out(documents, 0.2)
    draw.shuffle(documents)
    assert select_held_out(documents, 0.2) == chosen
    works = {work_id(key) for key in chosen}
    assert chosen == {row["identifier"] for row in documents if work_id(row["identifier"]) in works}


@pytest.mark.parametrize(
    ("creator", "name"),
    [
        ("Dickens, Charles (1812-1870)", "dickens"),
        ("F\u00e9val, Paul Henri Corentin [dit Paul F\u00e9val p\u00e8re] (1816-1887)", "feval"),
        ("Benito P\u00e9rez Gald\u00f3s", "galdos"),
        ("P\u00e9rez Gald\u00f3s, Benito (1843-1920)", "galdos"),
        ("Vran\u010di\u0107, Antun 1504-1573", "vrancic"),
        ("", ""),
        ("1899", ""),
    ],
)
def test_an_author_has_one_spelling(creator, name):
    assert author_key(creator) == name


def test_a_second_call_writes_nothing_and_a_changed_rule_does(mixed):
    config, account = mixed
    times = {path: path.stat().st_mtime_ns for path in config.out.rglob("*.parquet")}
    assert write_mixtures(config) == account
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*.parquet")} == times
    altered = min(times)
    content = altered.read_bytes()
    altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert write_mixtures(config) == account and altered.read_bytes() == content
    again = write_mixtures(MixtureConfig(corpus=config.corpus, out=config.out, mixtures={"base": []}, held_out=0.05))
    assert again["base"] != account["base"] and again["held_out"] == account["held_out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0.0}, "held_out must be a share between 0 and 0.5, .* got 0.0"),
        ({"mixtures": {"held_out": []}}, "use a lower-case folder name"),
        ({"mixtures": {"../x": []}}, "use a lower-case folder name"),
        ({"mixtures": {"base": [MixtureRule(epochs=-1)]}}, "negative epochs"),
    ],
)
def test_invalid_settings_are_refused(corpus, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        write_mixtures(MixtureConfig(corpus=corpus, out=tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_shards_take_the_held_out_folder_as_validation_and_nothing_else(mixed, tiny_tokenizer, tmp_path):
    config, _ = mixed
    options = {
        "corpus": config.out / "base",
        "validation_corpus": config.out / "held_out",
        "tokenizer": tiny_tokenizer,
    }
    manifest = build_shards(ShardsConfig(**options, out=tmp_path, workers=1))
    documents = Counter()
    for row in manifest["account"]:
        documents[row["split"]] += row["documents"]
    assert documents["validation"] == len(identifiers(config.out / "held_out"))
    assert documents["train"] == len(identifiers(config.out / "base"))
    assert manifest["validation"] == {"folder": str(config.out / "held_out")}


def test_a_corpus_without_a_list_of_sources_gets_one_from_its_identifiers(tmp_path, write_corpus):
    named = [{"identifier": f"npm:lodash==4.17.21:{i}.js", "language": "JavaScript"} for i in range(40)]
    write_corpus(tmp_path / "texts" / "en.parquet", [*named, *({"text": "a longer text"} for _ in range(60))])
    config = MixtureConfig(corpus=tmp_path / "texts", out=tmp_path / "out", held_out=0.1)
    write_mixtures(config)
    for name in ("held_out", "train"):
        folder, package = read_json(tmp_path / "out" / name / "sources.json")["sources"]
        assert (folder["kind"], folder["name"], folder["documents"]) == ("folder", "texts", 60)
        assert (package["purl"], package["languages"]) == ("pkg:npm/lodash@4.17.21", {"JavaScript": 40})
