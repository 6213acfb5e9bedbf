"""Bits per byte: how well a model predicts text, whatever its vocabulary; every byte is scored exactly once."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel

from ..compute import compute_dtype
from ..intervals import Metric, ratio
from .models import Subject
from .texts import CODE, Text, TextConfig, describe

BATCH_TOKENS = 4096  # of a forward pass, padding included
LOGITS_BYTES = 2**27  # held at once, in fp32: with 65,536 entries those of 512 positions
TRIED_TOKENS = 4096  # on which bf16 is held against fp32
TINY = 5e-4  # what bf16 may change of the mean, relatively; intervals span some hundredths of it


@dataclass
class BitsConfig:
    """How text is read.

    Args:
        window: tokens that the model sees at once at most; its context when that is shorter.
        stride: tokens by which a window moves; half a window when not given. Those before them are context only, so
            every scored token has at least window - stride tokens before it, or all there are.
        exact: compute in the precision of the weights, also where the processor is fast in bf16 and that was tried to
            change next to nothing.
    """

    window: int = 2048
    stride: int | None = None
    exact: bool = False


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, stop): inputs start..stop of a sequence, of which first..stop are scored; each exactly once."""
    stop = 0
    while stop < length:
        first, stop = stop, min(length, stop + (stride if stop else window))
        yield max(0, stop - window), first, stop


def plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are the output embedding of the body's last hidden states and nothing else; tried."""
    if model.base_model is model or model.get_output_embeddings() is None:
        return False
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.equal(model.get_output_embeddings()(hidden), model(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def token_nats(
    model: PreTrainedModel,
    sequences: list[list[int]],
    *,
    window: int,
    stride: int,
    dtype: torch.dtype | None = None,
    progress: str | None = None,
) -> list[np.ndarray]:
    """-log p of every token but the first of each sequence, given those before it in its window; double precision.

    Args:
        model: any causal language model.
        sequences: ids, each beginning with the token that stands before a text.
        window: tokens that the model sees at once.
        stride: tokens by which a window moves.
        dtype: of matrix products, under autocast; the weights' own when not given.
        progress: title of a progress bar.

    Returns:
        (len - 1,) for each sequence.
    """
    plain = plain_head(model)
    entries = model.get_input_embeddings().weight.shape[0]
    positions = max(1, LOGITS_BYTES // (4 * entries))
    # Without a plain head all logits of a batch exist at once, so batches are small.
    room = BATCH_TOKENS if plain else max(1, min(BATCH_TOKENS, positions))
    nats = [np.full(max(0, len(ids) - 1), np.nan) for ids in sequences]
    todo = [(i, *span) for i, ids in enumerate(sequences) for span in windows(len(ids) - 1, window, stride)]
    todo.sort(key=lambda one: one[1] - one[3])  # the longest first: little padding, and memory is known at once
    autocast = torch.autocast(model.device.type, dtype, enabled=dtype not in (None, model.dtype))
    with tqdm(total=sum(map(len, nats)), desc=progress, unit="token", disable=progress is None) as bar, autocast:
        for batch in _batches(todo, room):
            width = max(stop - start for _, start, _, stop in batch)
            ids_BT = torch.zeros(len(batch), width, dtype=torch.long)  # padded on the right, where nothing looks
            targets_BT = torch.full((len(batch), width), -1)
            for row, (i, start, first, stop) in enumerate(batch):
                ids_BT[row, : stop - start] = torch.tensor(sequences[i][start:stop])
                targets_BT[row, first - start : stop - start] = torch.tensor(sequences[i][first + 1 : stop + 1])
            ids_BT, targets_BT = ids_BT.to(model.device), targets_BT.to(model.device)
            scored = targets_BT >= 0
            found = (
                torch.cat(list(_losses(model, ids_BT, scored, targets_BT[scored], positions, plain))).double().cpu()
            )
            ends = list(accumulate(stop - first for _, _, first, stop in batch))
            for (i, _, first, stop), end in zip(batch, ends, strict=True):
                nats[i][first:stop] = found[end - (stop - first) : end].numpy()
            bar.update(ends[-1])
    return nats


def _losses(model, ids_BT, scored, targets_N, positions: int, plain: bool) -> Iterator[torch.Tensor]:
    """Cross-entropy of the scored positions, so many at a time."""
    if not plain:
        yield cross_entropy(
            model(input_ids=ids_BT, use_cache=False).logits[scored].float(), targets_N, reduction="none"
        )
        return
    hidden_ND = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[scored]
    head = model.get_output_embeddings()
    for hidden, targets in zip(hidden_ND.split(positions), targets_N.split(positions), strict=True):
        yield cross_entropy(head(hidden).float(), targets, reduction="none")


def _batches(todo: list[tuple[int, int, int, int]], room: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Windows, the longest first, in batches of at most `room` tokens with padding; one window at least."""
    batch: list = []
    for one in todo:
        if batch and (len(batch) + 1) * (batch[0][3] - batch[0][1]) > room:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def encode(subject: Subject, text: str) -> list[int]:
    """Ids of a text after the token that stands before one; special tokens written out in it are text."""
    ids = subject.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    return [subject.start[1], *ids]


class BitsPerByte:
    """The task: a mean over languages, and figures by language, register and collection."""

    name = "bits_per_byte"

    def __init__(self, texts: list[Text], text_config: TextConfig, config: BitsConfig, run):
        self.texts, self.config = texts, config
        self.data = describe(texts, text_config, run)
        self.settings = asdict(config)

    def measure(self, subject: Subject) -> dict:
        """Nats, tokens and bytes of each document, and how they were computed."""
        sequences = [encode(subject, text.text) for text in self.texts]
        decode = subject.tokenizer.decode
        same = [
            decode(ids[1:], skip_special_tokens=False, clean_up_tokenization_spaces=False).removeprefix(" ")
            == text.text.removeprefix(" ")
            for ids, text in zip(sequences, self.texts, strict=True)
        ]
        window = min(self.config.window, subject.context)
        sizes = {"window": window, "stride": min(window, self.config.stride or window // 2)}
        dtype, change = self._precision(subject, sequences, sizes)
        nats = token_nats(subject.model, sequences, **sizes, dtype=dtype, progress=f"{subject.name}: bits per byte")
        return {
            "documents": [
                {
                    "identifier": text.identifier,
                    "language": text.language,
                    "register": text.register,
                    "collection": text.collection,
                    "bytes": len(text.text.encode()),
                    "tokens": len(of),
                    "nats": float(of.sum()),
                }
                for text, of in zip(self.texts, nats, strict=True)
            ],
            "how": {
                **sizes,
                "first token after": subject.start[0],
                "matrix products": str(dtype).removeprefix("torch."),
                "bf16 against fp32, relative": change,
                "texts that the tokenizer gives back": sum(same) / len(same),
            },
        }

    def _precision(
        self, subject: Subject, sequences: list[list[int]], sizes: dict
    ) -> tuple[torch.dtype, float | None]:
        """bf16 where the processor is fast in it and it changes next to nothing here, and what it changes."""
        fast = compute_dtype("auto", subject.device)
        if self.config.exact or subject.dtype != torch.float32 or fast == torch.float32:
            return subject.dtype, None
        share = TRIED_TOKENS // len(sequences) + 2
        tried = [ids[:share] for ids in sequences]
        exact, quick = (
            sum(of.sum() for of in token_nats(subject.model, tried, **sizes, dtype=dtype))
            for dtype in (torch.float32, fast)
        )
        change = float(quick / exact - 1)
        return (fast if abs(change) < TINY else torch.float32), change

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Bits per byte: the mean over languages, then each language, then code."""
        rows = record["documents"]
        spoken = [language for language in dict.fromkeys(row["language"] for row in rows) if language != CODE]
        found = {}
        if spoken:
            sums = np.zeros((len(rows), 2 * len(spoken)))
            for i, row in enumerate(rows):
                if row["language"] != CODE:
                    at = 2 * spoken.index(row["language"])
                    sums[i, at : at + 2] = row["nats"] / math.log(2), row["bytes"]
            found["mean"] = Metric(sums, _mean_of_ratios)
        return found | groups(rows, "language")

    def facts(self, record: dict) -> dict:
        """How it was computed, tokens, and the same figure by register and collection."""
        return {
            "how": record["how"],
            "tokens": sum(row["tokens"] for row in record["documents"]),
            "groups": {name: groups(record["documents"], name) for name in ("register", "collection")},
        }


def groups(rows: list[dict], by: str) -> dict[str, Metric]:
    """Bits per byte of the documents of each value of a field, in order of appearance.

    Documents of other groups count as empty, so that two models' figures are drawn over the same documents.
    """
    found = {}
    for value in dict.fromkeys(row[by] for row in rows if row[by]):
        inside = np.array([row[by] == value for row in rows])
        bits = np.array([row["nats"] for row in rows]) / math.log(2)
        found[value] = ratio(bits * inside, np.array([row["bytes"] for row in rows]) * inside)
    return found


def _mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    return (sums[..., 0::2] / sums[..., 1::2]).mean(-1)
