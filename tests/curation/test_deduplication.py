"""Duplicates: signatures estimate similarity without bias, and exactly one document of each cluster is kept."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
from hypothesis import given
from hypothesis import strategies as st

from training.curation.deduplication import (
    CONFIG,
    PIECE,
    DuplicateOriginals,
    MinhashSignature,
    digest,
    read_originals,
    shingle_hashes,
    signature,
    word_hashes,
)

WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in ("a", "e", "io", "ou") for c in ("", "n", "r", "st", "nt")]


def text(draw: random.Random, words: int) -> str:
    """Return a text in which a repeated 5-word shingle is improbable."""
    return " ".join(draw.choices(WORDS, k=words))


def edited(draw: random.Random, original: str, share: float) -> str:
    """Replace some words of a text."""
    return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in original.split())


def shingles(text: str) -> set:
    """Return the 5-word shingles of a text."""
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.fixture
def find(tmp_path):
    """Function that runs all stages: files (lists of texts) -> {identifier: (identifier of the original, exact)}."""

    def find(files: list[list[str]]) -> dict[str, tuple[str, bool]]:
        signatures, matches, clusters = (str(tmp_path / name) for name in ("signatures", "matches", "clusters"))
        paths = [tmp_path / f"{rank}.parquet" for rank in range(len(files))]
        for rank, texts in enumerate(files):
            documents = [Document(text, f"{rank}/{i}") for i, text in enumerate(texts)]
            rows = {"identifier": [d.id for d in documents], "digest": [digest(d.text) for d in documents]}
            pq.write_table(pa.table(rows), paths[rank])
            MinhashSignature(signatures).run(iter(documents), rank, len(files))
        for bucket in range(CONFIG.num_buckets):
            MinhashDedupBuckets(signatures, matches, config=CONFIG).run(None, bucket, CONFIG.num_buckets)
        MinhashDedupCluster(matches, clusters, CONFIG, save_cluster_id=True).run(None, 0, 1)
        DuplicateOriginals(tmp_path / "clusters", paths).run()
        return {
            f"{rank}/{position}": original
            for rank in range(len(files))
            for position, original in read_originals(tmp_path / "clusters", rank).items()
        }

    return find


# Signatures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_equal_hashes_estimate_the_jaccard_similarity_of_shingles_as_precisely_as_expected(share):
    draw, errors, true = random.Random(1), [], []
    for _ in range(150):
        original = text(draw, 300)
        copy = edited(draw, original, share)
        a, b = shingles(original), shingles(copy)
        true.append(len(a & b) / len(a | b))
        errors.append((signature(original)[:14] == signature(copy)[:14]).mean() - true[-1])
    deviation = np.sqrt(np.mean(true) * (1 - np.mean(true)) / 112)  # of an estimate from 112 independent hashes
    assert abs(np.mean(errors)) < 4 * deviation / np.sqrt(150)
    assert np.std(errors) < 1.3 * deviation


def test_unrelated_texts_share_no_bucket():
    draw = random.Random(2)
    signatures = [signature(text(draw, 200)) for _ in range(200)]
    buckets = [(i, bucket.tobytes()) for hashes in signatures for i, bucket in enumerate(hashes)]
    assert len(set(buckets)) == len(buckets)


@pytest.mark.parametrize(
    ("original", "other"),
    [
        ("Le Roi l'a DIT ; et la Cour", "le roi l a dit et la cour"),
        ("\u201eDa\u00df e\u017f \u00fcberall\u201c \u2014 ruft sie\u2026", "da\u00df es \u00dcBERALL ruft sie"),
        ("O\u00f9 est-il,\u00a0\u00ab le ma\u00eetre \u00bb ?", "ou est il le maitre"),
    ],
)
def test_case_accents_punctuation_and_the_long_s_are_ignored(original, other):
    assert np.array_equal(shingle_hashes(original), shingle_hashes(other))


@given(st.lists(st.text("abz\u00e9\u03b1\u4e00\U0001d4509", min_size=1, max_size=8), max_size=30))
def test_the_hash_of_a_word_does_not_depend_on_its_position(words):
    alone = [word_hashes(word) for word in words]
    assert np.array_equal(word_hashes(" , ".join(words)), np.concatenate([np.empty(0, np.uint64), *alone]))


def test_a_text_longer_than_a_piece_keeps_its_words():
    words = ["word"] + ["other"] * (PIECE // 3)
    hashes = word_hashes(" ".join(words))
    split = len(words) * 6 // PIECE  # words across the end of a piece become two
    assert len(words) <= len(hashes) <= len(words) + split
    assert np.count_nonzero(hashes == word_hashes("other")[0]) >= len(words) - 1 - split


def test_the_last_bucket_is_equal_for_equal_texts_only():
    text, spaced, capital = map(
        signature, ("one two three four five six", "one two  three\nfour five six", "One two three four five six")
    )
    assert np.array_equal(text, spaced)
    assert not np.array_equal(text[-1], capital[-1])
    assert np.array_equal(text[:-1], capital[:-1])


# Clusters -------------------------------------------------------------------------------------------------


def test_one_document_of_each_cluster_is_kept_within_and_across_files(find):
    draw = random.Random(3)
    originals = [text(draw, 200) for _ in range(60)]
    copies = [original.replace(" ", ", ", 9).upper() for original in originals]  # the same words
    files = [
        originals[:20] + originals[:20],
        originals[20:] + copies[:40],
        [text(draw, 200) for _ in range(60)] + copies[40:],
    ]
    duplicates = find(files)
    clusters = [{f"0/{i}", f"0/{i + 20}", f"1/{i + 40}"} for i in range(20)]
    clusters += [{f"1/{i}", f"1/{i + 60}"} for i in range(20)] + [{f"1/{i + 20}", f"2/{i + 60}"} for i in range(20)]
    removed = set(duplicates)
    assert all(len(cluster - removed) == 1 for cluster in clusters) and removed <= set().union(*clusters)
    for name, (original, exact) in duplicates.items():
        assert original not in removed
        texts = [files[int(file)][int(i)] for file, i in (name.split("/"), original.split("/"))]
        assert exact == (texts[0] == texts[1])


def test_edited_copies_are_found_as_often_as_expected(find):
    draw = random.Random(4)
    originals = [text(draw, 150) for _ in range(200)]
    copies = [edited(draw, original, draw.choice([0.01, 0.03, 0.06])) for original in originals]
    similar = [
        len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) for a, b in zip(originals, copies, strict=True)
    ]
    chances = np.array([1 - (1 - s**8) ** 14 for s in similar])
    duplicates = find([originals, copies])
    assert len(duplicates) == pytest.approx(chances.sum(), abs=3 * np.sqrt((chances * (1 - chances)).sum()))
    assert 100 < len(duplicates) < 190  # both outcomes occur


def test_texts_of_fewer_words_than_a_shingle_are_duplicates_only_when_equal(find):
    files = [["", "Page 3", "Page 4", "one two three four"], ["page 3!", "Page 4", "one two three five", ""]]
    pairs = {frozenset((name, original)): exact for name, (original, exact) in find(files).items()}
    assert pairs == {
        frozenset(("0/1", "1/0")): False,
        frozenset(("0/2", "1/1")): True,
        frozenset(("0/0", "1/3")): True,
    }


def test_files_without_documents_and_corpora_without_duplicates_are_accepted(find):
    assert find([[], ["one two three four five six"], []]) == {}
