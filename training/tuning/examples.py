"""Rows of a task, and text of pretraining, as token ids with labels; and the order in which they are learnt."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from ..config import InputError
from ..data.documents import corpus_files, stored_names
from ..data.shard_files import ShardReader, checked
from ..files import sha256
from ..language import LANGUAGES
from ..loader import Shards, permuted

IGNORED = -100  # the label of a token that is read and not learnt
COLUMNS = ("identifier", "language", "license", "collection", "text")  # of Common Corpus, that replay needs
GROUP = 32  # batches whose examples are sorted by length among themselves: little padding, and still a random order


@dataclass
class Examples:
    """Token ids and labels, of the same lengths, and what they were made of.

    Args:
        rows: of the task that they were made of, where they were.
        account: documents, bytes and tokens by language, licence and collection, as in a shard's manifest.
        sources: the same by source, as in sources.json.
        said: what became of examples that were too long, in a sentence; empty when there were none.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    account: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    sources: dict[str, dict] = field(default_factory=dict)
    said: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)

    def add(self, ids: list[int], labels: list[int], *, of: tuple[str, str, str], source: str, size: int) -> None:
        """Take an example in, and to account: `of` is its language, licence and collection, `size` its bytes."""
        self.input_ids.append(ids)
        self.labels.append(labels)
        counts = self.account.setdefault(of, [0, 0, 0])
        entry = self.sources.setdefault(
            source, {"name": source, "licences": {}, "languages": {}, "documents": 0, "bytes": 0}
        )
        for i, amount in enumerate((1, size, len(ids))):
            counts[i] += amount
        entry["documents"] += 1
        entry["bytes"] += size
        for key, value in (("languages", of[0]), ("licences", of[1])):
            entry[key][value] = entry[key].get(value, 0) + 1

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Examples by language and by licence."""
        by: dict[str, dict[str, int]] = {"languages": {}, "licences": {}}
        for (language, licence, _), (documents, *_) in self.account.items():
            for name, key in (("languages", language), ("licences", licence)):
                by[name][key] = by[name].get(key, 0) + documents
        return by

    @property
    def tokens(self) -> int:
        """Read in one pass."""
        return sum(map(len, self.input_ids))


def encode(row: dict, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of a row and their labels: those of the completion, or of the assistant's turns, are learnt.

    The completion is tokenised by itself, so that what is learnt stands after the very ids that a prompt has when an
    answer is asked for. The end of text, which is learnt too, is appended to completions; a conversation ends as its
    template has it.

    Raises:
        InputError: when the row has no such columns, or nothing is to be learnt from it.
    """
    named = f"row {row.get('id', row)!r}"
    if "messages" in row:
        chat = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids = chat["input_ids"]
        labels = [token if own else IGNORED for token, own in zip(ids, chat["assistant_masks"], strict=True)]
        if all(label == IGNORED for label in labels):
            raise InputError(f"{named} has no turn of the assistant to learn from: add one, or leave the row out.")
        return ids, labels
    for column in ("prompt", "completion"):
        if not isinstance(row.get(column), str):
            raise InputError(
                f"{named} has no text in column {column!r}, but {', '.join(sorted(row))}: rows are prompt and "
                "completion, or messages."
            )
    if not row["completion"].strip():
        raise InputError(f"{named} has an empty completion, from which nothing can be learnt: leave the row out.")
    prompt = tokenizer(row["prompt"]).input_ids
    completion = tokenizer(row["completion"], add_special_tokens=False).input_ids
    if completion[-1] != tokenizer.eos_token_id:
        completion.append(tokenizer.eos_token_id)
    return prompt + completion, [IGNORED] * len(prompt) + completion


def of_task(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, *, task: str, max_length: int, over_long: str
) -> Examples:
    """The rows of a task as examples of at most `max_length` tokens.

    Args:
        over_long: leave_out, or cut, which keeps the beginning.

    Raises:
        InputError: for a row that is none, or when none is short enough.
    """
    examples, cut, left_out = Examples(), 0, 0
    for row in rows:
        ids, labels = encode(row, tokenizer)
        if len(ids) > max_length:
            ids, labels = ids[:max_length], labels[:max_length]
            if over_long == "leave_out" or all(label == IGNORED for label in labels):
                left_out += 1
                continue
            cut += 1
        text = "".join(turn["content"] for turn in row["messages"]) if "messages" in row else row["prompt"]
        size = len(text.encode()) + len(row.get("completion", "").encode()) * ("messages" not in row)
        code = row.get("language") or ""
        of = (LANGUAGES.get(code, code or "unknown"), row.get("license") or "unknown", row.get("collection") or task)
        examples.add(ids, labels, of=of, source=row.get("source") or "unknown", size=size)
        examples.rows.append(row)
    if not len(examples):
        raise InputError(
            f"None of {len(rows)} examples of {task} has at most {max_length} tokens: give a higher --max_length, "
            "up to the model's context, or shorter data."
        )
    if cut or left_out:
        examples.said = (
            f"{cut + left_out} of {len(rows)} examples have more than {max_length} tokens: {left_out} left out, {cut} "
            "cut at the end."
        )
    return examples


def of_pretraining(
    path: Path, tokenizer: PreTrainedTokenizerBase, tokenizer_file: Path, *, tokens: int, max_length: int, seed: int
) -> Examples:
    """Documents drawn from shards or Parquet until there are `tokens` of them; all but the first of each is learnt.

    Args:
        path: folder of either.
        tokenizer_file: the base's tokenizer.json, with which the shards must have been made.

    Raises:
        InputError: when there is no text, it has no licence, or the shards are of another tokenizer.
    """
    examples = Examples()
    shards = (path / "manifest.json").is_file()
    drawn = _from_shards(path, tokenizer_file, seed) if shards else _from_parquet(path, tokenizer, seed)
    for ids, row, source in drawn:
        kept = ids[:max_length]
        of, size = (row["language"], row["license"], row["collection"]), row["bytes"] * len(kept) // len(ids)
        examples.add(kept, [IGNORED, *kept[1:]], of=of, source=source, size=size)
        if examples.tokens >= tokens:
            break
    return examples


def _draw(count: int, seed: int) -> Iterator[int]:
    """Every number below `count`, in an order of the seed."""
    yield from (int(permuted(np.array([i]), size=count, seed=seed, epoch=0)[0]) for i in range(count))


def _from_shards(folder: Path, tokenizer_file: Path, seed: int) -> Iterator[tuple[list[int], dict, str]]:
    shards = Shards(folder)
    if shards.manifest["tokenizer"]["sha256"] != sha256(tokenizer_file):
        raise InputError(f"replay.path: the shards in {folder} are of another tokenizer; give Parquet instead.")
    readers = shards.readers("train")
    starts = np.cumsum([0, *(len(reader.bounds) - 1 for reader in readers)])
    documents = cache(ShardReader.documents)
    for number in _draw(int(starts[-1]), seed):
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        reader, place = readers[shard], number - int(starts[shard])
        start, end = reader.bounds[place : place + 2]
        yield reader.tokens[start:end].tolist(), documents(reader).slice(place, 1).to_pylist()[0], folder.name


def _from_parquet(path: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[tuple[list[int], dict, str]]:
    groups = []
    for file in corpus_files(path):
        with pq.ParquetFile(file) as parquet:
            groups += [(file, i, parquet.metadata.row_group(i).num_rows) for i in range(parquet.num_row_groups)]
    starts = np.cumsum([0, *(rows for *_, rows in groups)])
    places = _draw(int(starts[-1]), seed)
    while numbers := list(islice(places, 512)):  # together, so that a row group is read once for all of them
        drawn, found = np.searchsorted(starts, numbers, side="right") - 1, {}
        for group in np.unique(drawn):
            file, i, _ = groups[group]
            with pq.ParquetFile(file) as parquet:
                names = stored_names(parquet.schema_arrow.names, file)
                table = parquet.read_row_group(i, columns=[names[column] for column in COLUMNS])
            for number in np.asarray(numbers)[drawn == group].tolist():
                row = table.slice(number - int(starts[group]), 1).to_pylist()[0]
                found[number] = file, {column: row[names[column]] for column in COLUMNS}
        for file, row in (found[number] for number in numbers):
            ids = tokenizer(row["text"], add_special_tokens=False, split_special_tokens=True).input_ids
            yield [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], checked(row, file), file.name


def order(lengths: list[int], *, batch: int, steps: int, seed: int, shuffle: bool = True) -> list[int]:
    """Which example stands in which place of `steps` batches: pass after pass, each in an order of its own.

    Examples of like length share a batch; no number of processes changes the order.

    Args:
        lengths: of the examples, in tokens.
        batch: examples that share an optimizer step.
        shuffle: if not, passes keep the order of the examples, but for that of some neighbouring batches.
    """
    size, total = len(lengths), batch * steps
    passes = [
        permuted(np.arange(size), size=size, seed=seed, epoch=epoch) if shuffle else np.arange(size)
        for epoch in range(-(-total // size))
    ]
    stream, draw = np.concatenate(passes)[:total], random.Random(seed)
    length = np.asarray(lengths)
    for start in range(0, total, GROUP * batch):
        group = stream[start : start + GROUP * batch]
        rows = group[np.argsort(length[group], kind="stable")].reshape(-1, batch)
        stream[start : start + GROUP * batch] = rows[draw.sample(range(len(rows)), len(rows))].reshape(-1)
    return stream.tolist()
