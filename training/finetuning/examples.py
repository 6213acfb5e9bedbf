"""Training examples as token ids: task rows and pretraining text (replay), with counts, and their training order."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..common.config import InputError
from ..common.files import sha256
from ..common.language import LANGUAGES
from ..data.documents import corpus_files, stored_names
from ..data.loader import ShardDataset, feistel_permutation
from ..data.shard_files import ShardReader, validate_document

IGNORE_INDEX = -100  # label of a token that is not in the loss
COLUMNS = ("identifier", "language", "license", "collection", "text")  # of Common Corpus, that replay needs
GROUP = 32  # batches whose examples are sorted by length together: little padding, and the order is still random


@dataclass
class Examples:
    """Token ids of examples, and counts of what they were built from.

    Args:
        input_ids: Token ids of each example.
        rows: Task rows of the examples; empty for replay.
        group_counts: Documents, bytes and tokens by (language, licence, collection), as in the manifest of shards.
        sources: Documents and bytes by source, as in sources.json.
        overlong_note: Message with the number of rows that were too long; empty if there were none.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    group_counts: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    sources: dict[str, dict] = field(default_factory=dict)
    overlong_note: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)

    def add(self, ids: list[int], *, group: tuple[str, str, str], source: str, size: int) -> None:
        """Add an example and count it.

        Args:
            group: Language, licence and collection.
            size: Size of the text in bytes.
        """
        self.input_ids.append(ids)
        counts = self.group_counts.setdefault(group, [0, 0, 0])
        entry = self.sources.setdefault(
            source, {"name": source, "licences": {}, "languages": {}, "documents": 0, "bytes": 0}
        )
        for i, amount in enumerate((1, size, len(ids))):
            counts[i] += amount
        entry["documents"] += 1
        entry["bytes"] += size
        for key, value in (("languages", group[0]), ("licences", group[1])):
            entry[key][value] = entry[key].get(value, 0) + 1

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of examples by language and by licence."""
        by: dict[str, dict[str, int]] = {"languages": {}, "licences": {}}
        for (language, licence, _), (documents, *_) in self.group_counts.items():
            for name, key in (("languages", language), ("licences", licence)):
                by[name][key] = by[name].get(key, 0) + documents
        return by

    @property
    def tokens(self) -> int:
        """Total number of tokens."""
        return sum(map(len, self.input_ids))


def tokenize_row(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a row, which are those that TRL trains on (a test compares them).

    TRL tokenizes and labels SFT rows itself, but only inside of SFTTrainer. The ids are needed before it is built, and
    for other methods and held-out rows: to drop long rows, to order the others by length, to count steps and tokens,
    and to recognise the data of an earlier session.
    """
    if "messages" in row:
        return tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
    text = row["prompt"] + row["completion"]
    return tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token).input_ids


def tokenize_rows(rows: list[dict], tokenizer: PreTrainedTokenizerBase, *, task: str, max_length: int) -> Examples:
    """Return the task rows that have at most `max_length` tokens as examples.

    Raises:
        InputError: If no row is short enough.
    """
    examples = Examples()
    for row in rows:
        ids = tokenize_row(row, tokenizer)
        if len(ids) > max_length:
            continue
        messages = row.get("messages")
        text = "".join(turn["content"] for turn in messages) if messages else row["prompt"] + row["completion"]
        code = row.get("language") or ""
        language, licence = LANGUAGES.get(code, code or "unknown"), row.get("license") or "unknown"
        group = (language, licence, row.get("collection") or task)
        examples.add(ids, group=group, source=row.get("source") or "unknown", size=len(text.encode()))
        examples.rows.append(row)
    if not len(examples):
        raise InputError(
            f"None of {len(rows)} examples of {task} has at most {max_length} tokens: raise --max_length, up to the "
            "model's context length, or provide shorter data."
        )
    if dropped := len(rows) - len(examples):
        examples.overlong_note = (
            f"{dropped} of {len(rows)} examples have more than {max_length} tokens and were dropped."
        )
    return examples


def tokenize_replay(
    path: Path, tokenizer: PreTrainedTokenizerBase, tokenizer_file: Path, *, tokens: int, max_length: int, seed: int
) -> Examples:
    """Sample documents from token shards or Parquet until they have `tokens` tokens; truncate each to `max_length`.

    Args:
        path: Folder of token shards or of Parquet files.
        tokenizer_file: The base model's tokenizer.json, with which the shards must have been built.

    Raises:
        InputError: If there is no text, a document has no open licence, or the shards have another tokenizer.
    """
    examples = Examples()
    is_shards = (path / "manifest.json").is_file()
    documents = _from_shards(path, tokenizer_file, seed) if is_shards else _from_parquet(path, tokenizer, seed)
    for ids, document, source in documents:
        window = ids[:max_length]
        group = (document["language"], document["license"], document["collection"])
        examples.add(window, group=group, source=source, size=document["bytes"] * len(window) // len(ids))
        if examples.tokens >= tokens:
            break
    return examples


def append_replay(dataset: Dataset, replay: Examples) -> Dataset:
    """Append replay text to a dataset that TRL has tokenized; every token but the first of each window is in the loss.

    TRL cannot tokenize this part: shards contain token ids, and windows end without an end-of-text token.
    """
    values = {"input_ids": replay.input_ids, "labels": [[IGNORE_INDEX, *ids[1:]] for ids in replay.input_ids]}
    # Older releases of TRL have masks instead of labels in the dataset.
    values["completion_mask"] = values["assistant_masks"] = [[0] + [1] * (len(ids) - 1) for ids in replay.input_ids]
    dataset = dataset.select_columns([name for name in values if name in dataset.column_names])
    values = {name: values[name] for name in dataset.column_names}
    return concatenate_datasets([dataset, Dataset.from_dict(values, features=dataset.features)])


def _draw(count: int, seed: int) -> Iterator[int]:
    """Yield every number below `count`, in an order that depends on the seed."""
    yield from (int(feistel_permutation(np.array([i]), size=count, seed=seed, epoch=0)[0]) for i in range(count))


def _from_shards(folder: Path, tokenizer_file: Path, seed: int) -> Iterator[tuple[list[int], dict, str]]:
    """Yield token ids, sidecar row and source of the training documents of shards."""
    shards = ShardDataset(folder)
    if shards.manifest["tokenizer"]["sha256"] != sha256(tokenizer_file):
        raise InputError(f"replay.path: the shards in {folder} have another tokenizer; pass Parquet instead.")
    readers = shards.readers("train")
    starts = np.cumsum([0, *(len(reader.bounds) - 1 for reader in readers)])
    documents = cache(ShardReader.documents)
    for number in _draw(int(starts[-1]), seed):
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        reader, place = readers[shard], number - int(starts[shard])
        start, end = reader.bounds[place : place + 2]
        yield reader.tokens[start:end].tolist(), documents(reader).slice(place, 1).to_pylist()[0], folder.name


def _from_parquet(path: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[tuple[list[int], dict, str]]:
    """Yield token ids, checked document and source of the documents of Parquet files."""
    groups = []
    for file in corpus_files(path):
        with pq.ParquetFile(file) as parquet:
            groups += [(file, i, parquet.metadata.row_group(i).num_rows) for i in range(parquet.num_row_groups)]
    starts = np.cumsum([0, *(rows for *_, rows in groups)])
    places = _draw(int(starts[-1]), seed)
    while numbers := list(islice(places, 512)):  # together, so that a row group is read once for all of them
        group_numbers, documents = np.searchsorted(starts, numbers, side="right") - 1, {}
        for group in np.unique(group_numbers):
            file, i, _ = groups[group]
            with pq.ParquetFile(file) as parquet:
                names = stored_names(parquet.schema_arrow.names, file)
                table = parquet.read_row_group(i, columns=[names[column] for column in COLUMNS])
            for number in np.asarray(numbers)[group_numbers == group].tolist():
                row = table.slice(number - int(starts[group]), 1).to_pylist()[0]
                documents[number] = file, {column: row[names[column]] for column in COLUMNS}
        for file, document in (documents[number] for number in numbers):
            ids = tokenizer(document["text"], add_special_tokens=False, split_special_tokens=True).input_ids
            yield [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], validate_document(document, file), file.name


def length_grouped_order(lengths: list[int], *, batch: int, steps: int, seed: int, shuffle: bool = True) -> list[int]:
    """Return the indices of the examples of `steps` batches: epoch after epoch, each in another order.

    Examples of similar length share a batch. Unlike the order of TRL's samplers, this one is the same for any number
    of processes and after a resume.

    Args:
        lengths: Tokens of each example.
        batch: Examples per optimizer step.
        shuffle: If false, keep the order of the examples, except within groups of `GROUP` batches.
    """
    size, total = len(lengths), batch * steps
    epochs = [
        feistel_permutation(np.arange(size), size=size, seed=seed, epoch=epoch) if shuffle else np.arange(size)
        for epoch in range(-(-total // size))
    ]
    stream, draw = np.concatenate(epochs)[:total], random.Random(seed)
    length = np.asarray(lengths)
    for start in range(0, total, GROUP * batch):
        group = stream[start : start + GROUP * batch]
        rows = group[np.argsort(length[group], kind="stable")].reshape(-1, batch)
        stream[start : start + GROUP * batch] = rows[draw.sample(range(len(rows)), len(rows))].reshape(-1)
    return stream.tolist()
