"""Duplicates: signatures estimate similarity without bias, and of each cluster exactly one document stays."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
from hypothesis import given
from hypothesis import strategies as st

from training.curation.duplicates import (
    CONFIG,
    PIECE,
    Originals,
    Sign,
    digest,
    read_originals,
    shingle_hashes,
    signature,
    word_hashes,
)

WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in ("a", "e", "io", "ou") for c in ("", "n", "r", "st", "nt")]


def text(draw: random.Random, words: int) -> str:
    """A text in which no 5-word shingle is likely to come twice."""
    return " ".join(draw.choices(WORDS, k=words))


def edited(draw: random.Random, original: str, share: float) -> str:
    """A text with some of its words replaced."""
    return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in original.split())


def shingles(of: str) -> set:
    """The 5-word shingles themselves."""
    words = of.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.fixture
def find(tmp_path):
    """Function (files, each a list of texts) -> {identifier: (identifier of its original, exact)}, by all stages."""

    def find(files: list[list[str]]) -> dict[str, tuple[str, bool]]:
        signatures, matches, clusters = (str(tmp_path / name) for name in ("signatures", "matches", "clusters"))
        paths = [tmp_path / f"{rank}.parquet" for rank in range(len(files))]
        for rank, texts in enumerate(files):
            documents = [Document(one, f"{rank}/{i}") for i, one in enumerate(texts)]
            rows = {"identifier": [one.id for one in documents], "digest": [digest(one.text) for one in documents]}
            pq.write_table(pa.table(rows), paths[rank])
            Sign(signatures).run(iter(documents), rank, len(files))
        for bucket in range(CONFIG.num_buckets):
            MinhashDedupBuckets(signatures, matches, config=CONFIG).run(None, bucket, CONFIG.num_buckets)
        MinhashDedupCluster(matches, clusters, CONFIG, save_cluster_id=True).run(None, 0, 1)
        Originals(tmp_path / "clusters", paths).run()
        return {
            f"{rank}/{position}": found
            for rank in range(len(files))
            for position, found in read_originals(tmp_path / "clusters", rank).items()
        }

    return find


# Signatures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_equal_hashes_estimate_the_jaccard_similarity_of_shingles_as_well_as_theory_allows(share):
    draw, errors, true = random.Random(1), [], []
    for _ in range(150):
        one = text(draw, 300)
        other = edited(draw, one, share)
        a, b = shingles(one), shingles(other)
        true.append(len(a & b) / len(a | b))
        errors.append((signature(one)[:14] == signature(other)[:14]).mean() - true[-1])
    deviation = np.sqrt(np.mean(true) * (1 - np.mean(true)) / 112)  # of one estimate out of 112 independent hashes
    assert abs(np.mean(errors)) < 4 * deviation / np.sqrt(150)
    assert np.std(errors) < 1.3 * deviation


def test_unrelated_texts_share_no_bucket():
    draw = random.Random(2)
    signatures = [signature(text(draw, 200)) for _ in range(200)]
    buckets = [(i, bucket.tobytes()) for one in signatures for i, bucket in enumerate(one)]
    assert len(set(buckets)) == len(buckets)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Le Roi l'a DIT ; et la Cour", "le roi l a dit et la cour"),
        ("\u201eDa\u00df e\u017f \u00fcberall\u201c \u2014 ruft sie\u2026", "da\u00df es \u00dcBERALL ruft sie"),
        ("O\u00f9 est-il,\u00a0\u00ab le ma\u00eetre \u00bb ?", "ou est il le maitre"),
    ],
)
def test_case_accents_punctuation_and_the_long_s_do_not_make_a_difference(one, other):
    assert np.array_equal(shingle_hashes(one), shingle_hashes(other))


@given(st.lists(st.text("abz\u00e9\u03b1\u4e00\U0001d4509", min_size=1, max_size=8), max_size=30))
def test_the_hash_of_a_word_does_not_depend_on_where_it_stands(words):
    alone = [word_hashes(word) for word in words]
    assert np.array_equal(word_hashes(" , ".join(words)), np.concatenate([np.empty(0, np.uint64), *alone]))


def test_a_text_longer_than_a_piece_keeps_its_words():
    words = ["word"] + ["other"] * (PIECE // 3)
    found = word_hashes(" ".join(words))
    cut = len(words) * 6 // PIECE  # words that lie across the end of a piece come as two
    assert len(words) <= len(found) <= len(words) + cut
    assert np.count_nonzero(found == word_hashes("other")[0]) >= len(words) - 1 - cut


def test_the_last_bucket_is_equal_for_equal_texts_only():
    one, other = signature("one two  three\nfour five six"), signature("one two three four five six")
    assert np.array_equal(one, other)
    assert not np.array_equal(one[-1], signature("One two three four five six")[-1])
    assert np.array_equal(one[:-1], signature("One two three four five six")[:-1])


# Clusters -------------------------------------------------------------------------------------------------


def test_one_document_of_each_cluster_stays_within_and_across_files(find):
    draw = random.Random(3)
    originals = [text(draw, 200) for _ in range(60)]
    copies = [one.replace(" ", ", ", 9).upper() for one in originals]  # the same words
    files = [
        originals[:20] + originals[:20],
        originals[20:] + copies[:40],
        [text(draw, 200) for _ in range(60)] + copies[40:],
    ]
    found = find(files)
    clusters = [{f"0/{i}", f"0/{i + 20}", f"1/{i + 40}"} for i in range(20)]
    clusters += [{f"1/{i}", f"1/{i + 60}"} for i in range(20)] + [{f"1/{i + 20}", f"2/{i + 60}"} for i in range(20)]
    removed = set(found)
    assert all(len(cluster - removed) == 1 for cluster in clusters) and removed <= set().union(*clusters)
    for name, (original, exact) in found.items():
        assert original not in removed
        texts = [files[int(file)][int(i)] for file, i in (one.split("/") for one in (name, original))]
        assert exact == (texts[0] == texts[1])


def test_edited_copies_are_found_as_often_as_theory_says(find):
    draw = random.Random(4)
    originals = [text(draw, 150) for _ in range(200)]
    copies = [edited(draw, one, draw.choice([0.01, 0.03, 0.06])) for one in originals]
    similar = [
        len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) for a, b in zip(originals, copies, strict=True)
    ]
    chances = np.array([1 - (1 - s**8) ** 14 for s in similar])
    found = find([originals, copies])
    assert len(found) == pytest.approx(chances.sum(), abs=3 * np.sqrt((chances * (1 - chances)).sum()))
    assert 100 < len(found) < 190  # so that both outcomes were there


def test_texts_of_fewer_words_than_a_shingle_are_duplicates_only_when_equal(find):
    found = find([["", "Page 3", "Page 4", "one two three four"], ["page 3!", "Page 4", "one two three five", ""]])
    pairs = {frozenset((name, original)): exact for name, (original, exact) in found.items()}
    assert pairs == {
        frozenset(("0/1", "1/0")): False,
        frozenset(("0/2", "1/1")): True,
        frozenset(("0/0", "1/3")): True,
    }


def test_files_without_documents_and_corpora_without_duplicates_pass(find):
    assert find([[], ["one two three four five six"], []]) == {}
