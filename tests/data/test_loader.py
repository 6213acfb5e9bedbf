"""Every window is read once per pass, in an order that depends on seed and position alone."""

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from training_runs import forget_sidecars

from training.common.config import InputError
from training.common.files import read_json, sha256, write_json
from training.data.loader import ShardDataset, TokenStream, batch_windows, batches, feistel_permutation
from training.data.shard_files import GROUP_COLUMNS, manifest_fingerprint, sum_counts

unhurried = settings(deadline=None, max_examples=40)
near_powers_of_two = [2**k + d for k in range(1, 13) for d in (-1, 0, 1)]


def write_shards(folder: Path, lengths: list[int]) -> tuple[list[dict], np.ndarray]:
    """Write shards of these lengths; return their manifest records and all their tokens: 0, 1, 2, ... in order."""
    tokens = np.arange(sum(lengths), dtype="<u2")
    records = []
    for i, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        path = folder / f"{i}.ds"
        part.tofile(path)
        records.append({"file": path.name, "split": "train", "tokens": len(part), "sha256": sha256(path)})
    return records, tokens


@pytest.fixture
def stream(tmp_path):
    """103 windows of 5 tokens in three shards; window i begins with token 5 * i."""
    records, _ = write_shards(tmp_path, [200, 7, 310])
    return TokenStream(tmp_path, records, sequence_length=4, vocab_size=2**16)


# The order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, *near_powers_of_two])
def test_the_order_is_a_permutation_around_every_power_of_two(size):
    assert sorted(feistel_permutation(np.arange(size), size=size, seed=42, epoch=0)) == list(range(size))


@unhurried
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_the_order_is_a_permutation_for_any_size_seed_and_epoch(size, seed, epoch):
    assert sorted(feistel_permutation(np.arange(size), size=size, seed=seed, epoch=epoch)) == list(range(size))


def test_another_seed_or_epoch_is_another_order():
    orders = [feistel_permutation(np.arange(1000), size=1000, seed=s, epoch=e) for s in range(8) for e in range(8)]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert (order == other).mean() < 0.02  # two random orders agree in one place of a thousand


def test_the_order_looks_random():
    size = 100_003
    order = feistel_permutation(np.arange(size), size=size, seed=1, epoch=0)
    # Distance of neighbours: size / 3 on average in a random order, with standard deviation size / sqrt(18 * size).
    assert np.abs(np.diff(order)).mean() == pytest.approx(size / 3, rel=0.01)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 5 / size**0.5
    # The first window is uniformly distributed over the seeds: chi-square with 15 degrees of freedom.
    first = np.array([feistel_permutation(np.zeros(1), size=1000, seed=seed, epoch=0)[0] for seed in range(4000)])
    counts = np.bincount(first * 16 // 1000, minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 45  # exceeded by chance once in ten thousand


@pytest.mark.parametrize("size", [2**40 + 1, 2**50, 2**60 - 1])
def test_the_order_of_trillions_costs_only_what_is_requested(size):
    positions = np.array([i * (size - 1) // 999 for i in range(1000)])
    tracemalloc.start()
    permutation = feistel_permutation(positions, size=size, seed=3, epoch=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(permutation)) == len(np.unique(positions))
    assert 0 <= permutation.min() and permutation.max() < size
    assert peak < 30 * positions.nbytes


# Batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [1, 8, 103, 250])
def test_every_window_is_read_once_per_pass(stream, sequences):
    steps = -(-3 * len(stream) // sequences)
    order = np.concatenate([batch_windows(stream, step, sequences=sequences, seed=7) for step in range(steps)])
    passes = order[: 3 * len(stream)].reshape(3, -1)
    for indices in passes:
        assert sorted(indices) == list(range(len(stream)))
    assert not (passes[0] == passes[1]).all() and not (passes[1] == passes[2]).all()


@unhurried
@given(
    processes=st.sampled_from([1, 2, 4]),
    micro_batch=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    first=st.integers(0, 60),
    seed=st.integers(0, 2**32),
)
def test_the_processes_together_read_the_global_batch_in_its_order(
    tmp_path_factory, processes, micro_batch, accumulation, first, seed
):
    folder = tmp_path_factory.mktemp("shards")
    records, _ = write_shards(folder, [101, 220, 90])
    stream = TokenStream(folder, records, sequence_length=4, vocab_size=2**16)
    sequences, steps = processes * micro_batch * accumulation, range(first, first + 3)
    options = {"sequences": sequences, "micro_batch": micro_batch, "processes": processes, "seed": seed}
    ranks = [list(batches(stream, steps, rank=rank, **options)) for rank in range(processes)]
    for i, step in enumerate(steps):
        micro = [part for a in range(accumulation) for part in (rank[i][1][a] for rank in ranks)]
        assert all(rank[i][0] == step and len(rank[i][1]) == accumulation for rank in ranks)
        assert all(part.shape == (micro_batch, 5) and part.dtype == np.int64 for part in micro)
        # The same for any processes and micro batch: computed without either.
        expected = stream.windows(batch_windows(stream, step, sequences=sequences, seed=seed))
        assert (np.concatenate(micro) == expected).all()


@pytest.mark.parametrize("done", [0, 1, 13, 29, 30])
def test_resuming_from_a_step_gives_the_batches_of_an_uninterrupted_run(stream, done):
    options = {"sequences": 8, "micro_batch": 4, "rank": 1, "processes": 2, "seed": 5}
    full, rest = list(batches(stream, range(30), **options)), list(batches(stream, range(done, 30), **options))
    assert [step for step, _ in rest] == list(range(done, 30))
    for (_, expected), (_, resumed) in zip(full[done:], rest, strict=True):
        assert np.array_equal(expected, resumed)


# Windows -------------------------------------------------------------------------------------------


@unhurried
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8), sequence_length=st.integers(1, 30))
@example(lengths=[5, 5], sequence_length=4)  # a window ends at the end of a shard
@example(lengths=[1, 1, 1, 1, 1, 1], sequence_length=4)  # a window over five shards
def test_windows_are_those_of_the_concatenated_shards(tmp_path_factory, lengths, sequence_length):
    folder = tmp_path_factory.mktemp("shards")
    records, tokens = write_shards(folder, lengths)
    window = sequence_length + 1
    if len(tokens) < window:
        with pytest.raises(InputError, match=rf"only {len(tokens)} tokens here, fewer than one window of {window}"):
            TokenStream(folder, records, sequence_length=sequence_length, vocab_size=2**16)
        return
    stream = TokenStream(folder, records, sequence_length=sequence_length, vocab_size=2**16)
    expected = tokens[: len(tokens) // window * window].reshape(-1, window)
    assert len(stream) == len(expected)
    backwards = np.arange(len(stream))[::-1]
    assert np.array_equal(stream.windows(backwards), expected[::-1])


def test_a_position_five_trillion_tokens_away_reads_its_window_and_nothing_else(tmp_path):
    path, tokens, sequence_length = tmp_path / "huge.ds", 5 * 10**12, 2048
    path.touch()
    os.truncate(path, tokens * 2)  # 10 TB in name; no block of it is written
    records = [{"file": path.name, "split": "train", "tokens": tokens, "sha256": ""}]
    stream = TokenStream(tmp_path, records, sequence_length=sequence_length, vocab_size=2**16)
    assert len(stream) == tokens // 2049
    sequences, step = 3072, 600_000
    wanted = batch_windows(stream, step, sequences=sequences, seed=42)[:2]
    content = np.arange(2 * 2049, dtype="<u2").reshape(2, 2049)
    with open(path, "rb+") as file:
        for index, window in zip(wanted, content, strict=True):
            file.seek(int(index) * 2049 * 2)
            file.write(window.tobytes())
    options = {"sequences": sequences, "micro_batch": 2, "rank": 0, "processes": sequences // 2, "seed": 42}
    (_, (micro,)) = next(batches(stream, range(step, step + 1), **options))
    assert np.array_equal(micro, content)
    assert resident_bytes(path) <= 2 * 2**20  # two windows are 8 kB; the kernel maps what lies around a fault
    assert path.stat().st_blocks * 512 < 2**20


def resident_bytes(path: Path) -> int:
    """Return the bytes of a mapped file that this process has touched."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if not head.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and head == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


# A folder of shards --------------------------------------------------------------------------------


def test_a_folder_has_one_training_stream_and_a_validation_stream_per_language(tiny_shards):
    shards = ShardDataset(tiny_shards)
    train = shards.train(sequence_length=16, vocab_size=400)
    held_out = shards.validation(sequence_length=16, vocab_size=400)
    assert list(held_out) == ["en", "fr"]
    account = shards.manifest["account"]
    assert len(train) == sum(row["tokens"] for row in account if row["split"] == "train") // 17
    for language, (stream, bytes_per_token) in held_out.items():
        name = {"en": "English", "fr": "French"}[language]
        rows = [row for row in account if row["split"] == "validation" and row["language"] == name]
        assert len(stream) == sum(row["tokens"] for row in rows) // 17
        assert bytes_per_token == sum(row["bytes"] for row in rows) / sum(row["tokens"] for row in rows)


def test_a_language_with_less_held_out_text_than_a_window_is_skipped(tiny_shards):
    shards = ShardDataset(tiny_shards)
    tokens = {shard.record["language"]: shard.record["tokens"] for shard in shards.readers("validation")}
    for length in (min(tokens.values()) - 1, min(tokens.values()), max(tokens.values())):
        expected = {language for language, amount in tokens.items() if amount >= length + 1}
        assert set(shards.validation(sequence_length=length, vocab_size=400)) == expected


# Bad input -----------------------------------------------------------------------------------------


def test_a_missing_manifest_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}/manifest\.json is missing: build the shards first"):
        ShardDataset(tmp_path)


def test_a_damaged_manifest_is_refused_by_name(tmp_path):
    (tmp_path / "manifest.json").write_text('{"shards": [')
    with pytest.raises(InputError, match=rf"{tmp_path}/manifest\.json was altered"):
        ShardDataset(tmp_path)


def test_a_missing_shard_is_refused_by_name(tmp_path):
    records, _ = write_shards(tmp_path, [50, 50])
    (tmp_path / "1.ds").unlink()
    with pytest.raises(InputError, match=rf"{tmp_path}/1\.ds is missing: build the shards again"):
        TokenStream(tmp_path, records, sequence_length=4, vocab_size=2**16)


@pytest.mark.parametrize("size", [0, 99, 101, 200])
def test_a_truncated_or_longer_shard_is_refused_by_name(tmp_path, size):
    records, _ = write_shards(tmp_path, [50, 50])
    os.truncate(tmp_path / "1.ds", size)
    message = rf"{tmp_path}/1\.ds has {size} bytes instead of 100: delete it and build the shards again"
    with pytest.raises(InputError, match=message):
        TokenStream(tmp_path, records, sequence_length=4, vocab_size=2**16)


def test_an_altered_shard_is_refused_by_name_when_shards_are_verified(tmp_path):
    records, _ = write_shards(tmp_path, [50, 50])
    stream = TokenStream(tmp_path, records, sequence_length=4, vocab_size=2**16)
    stream.verify()
    with open(tmp_path / "1.ds", "rb+") as file:
        file.seek(31)
        file.write(b"\x01")
    with pytest.raises(InputError, match=rf"{tmp_path}/1\.ds was altered .*: delete it and build the shards again"):
        stream.verify()


def test_an_id_above_the_vocabulary_is_refused_when_read_also_by_the_prefetching_thread(tmp_path):
    records, tokens = write_shards(tmp_path, [50, 50])
    TokenStream(tmp_path, records, sequence_length=4, vocab_size=100).windows(np.arange(20))
    stream = TokenStream(tmp_path, records, sequence_length=4, vocab_size=99)
    assert stream.windows(np.arange(19)).max() == 94
    message = rf"{tmp_path} contains the id 99, but the model's vocabulary size is 99: use the shards and the model"
    with pytest.raises(InputError, match=message):
        stream.windows(np.array([19]))
    with pytest.raises(InputError, match=message):
        list(batches(stream, range(10), sequences=2, micro_batch=2, rank=0, processes=1, seed=0))


def test_the_loader_checks_real_shards_against_the_manifest(tiny_shards, tmp_path):
    manifest = read_json(tiny_shards / "manifest.json")
    shard = next(shard for shard in manifest["shards"] if shard["split"] == "train")
    (tmp_path / "train").mkdir()
    os.link(tiny_shards / shard["file"], tmp_path / shard["file"])

    def open_with(**change):
        rows = [{"split": "train", **row} for row in shard["account"]]
        content = manifest | {"shards": [shard | change], "account": sum_counts(rows, ("split", *GROUP_COLUMNS))}
        write_json(tmp_path / "manifest.json", content | {"fingerprint": manifest_fingerprint(content)})
        return ShardDataset(tmp_path).train(sequence_length=8, vocab_size=400)

    open_with().verify()
    with pytest.raises(InputError, match="instead of"):
        open_with(tokens=shard["tokens"] + 1)
    for name in ("../train/en.ds", "/train/en.ds", "train/../../en.ds"):
        with pytest.raises(InputError, match=f"names '{name}', which is not inside that folder"):
            open_with(file=name)


@pytest.mark.parametrize(
    "alter",
    [
        lambda m: m["account"][0].update(license="CC0-1.0 or so"),
        lambda m: m["shards"][0]["account"][0].update(license="CC0-1.0 or so"),
        lambda m: m["shards"][0]["sidecars"].update({".index": "0"}),
        lambda m: m["corpus"]["sources"].update(more="text"),
        lambda m: m.update(fingerprint="0"),
        lambda m: m.pop("shards"),
        lambda m: m.update(corpus=None),
        lambda m: m["shards"].append("text"),
    ],
)
def test_a_manifest_that_was_altered_is_refused(tiny_shards, tmp_path, alter):
    manifest = read_json(tiny_shards / "manifest.json")
    write_json(tmp_path / "manifest.json", manifest)
    assert ShardDataset(tmp_path).manifest == manifest
    alter(manifest)
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(InputError, match="manifest.json was altered"):
        ShardDataset(tmp_path)


def test_a_manifest_of_an_earlier_version_is_read(tiny_shards, tmp_path):
    shutil.copyfile(tiny_shards / "manifest.json", tmp_path / "manifest.json")
    forget_sidecars(tmp_path)
    assert ShardDataset(tmp_path).manifest == read_json(tmp_path / "manifest.json")


def test_a_sidecar_that_was_altered_is_refused_when_it_is_read(tiny_shards, tmp_path):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    (shard, *_) = ShardDataset(tmp_path / "shards").readers("train")
    table = pq.read_table(shard.sidecar)
    licence = pa.array(["CC0-1.0"] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("license"), "license", licence), shard.sidecar)
    with open(shard.index, "ab") as file:
        file.write(bytes(8))
    for read in (shard.documents, lambda: shard.bounds):
        with pytest.raises(InputError, match="was altered after the manifest was written"):
            read()
