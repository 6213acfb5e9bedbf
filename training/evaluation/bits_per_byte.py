"""Bits per byte: how well a model predicts text, for any vocabulary; every byte is scored exactly once."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel

from ..common.intervals import Metric, ratios_by
from ..step.compute import compute_dtype
from .held_out_text import CODE, Text, TextConfig, describe_texts
from .models import EvaluatedModel

BATCH_TOKENS = 4096  # per forward pass, including padding
LOGITS_BYTES = 2**27  # fp32 logits in memory at once: those of 512 positions with a vocabulary of 65,536
TRIED_TOKENS = 4096  # on which bf16 is compared with fp32
TINY = 5e-4  # maximum relative change of the mean by bf16; intervals span some hundredths of the mean


@dataclass
class BitsConfig:
    """Windows and precision of bits per byte.

    Args:
        window: Maximum tokens per window; at most the model's context length.
        stride: Tokens between windows. Earlier tokens of a window are context only, so every scored token has at least
            window - stride tokens before it, or all tokens before it in the text. Defaults to half a window.
        exact: Compute in the precision of the weights. By default, matmuls are in bf16 on a CPU that is fast in bf16,
            if a trial shows a relative change below 0.0005.
    """

    window: int = 2048
    stride: int | None = None
    exact: bool = False


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first, stop): inputs start..stop, of which first..stop are scored; each token exactly once."""
    stop = 0
    while stop < length:
        first, stop = stop, min(length, stop + (stride if stop else window))
        yield max(0, stop - window), first, stop


def plain_head(model: PreTrainedModel) -> bool:
    """Return whether logits are exactly the output embedding of the last hidden states, as tested on four tokens."""
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
    """Return -log p, in double precision, of every token but the first, given the tokens before it in its window.

    Args:
        model: Any causal language model.
        sequences: Token ids, each beginning with the token before a text.
        window: Tokens per window.
        stride: Tokens between windows.
        dtype: Dtype of matmuls, under autocast. Defaults to the dtype of the weights.
        progress: Title of a progress bar.

    Returns:
        (len - 1,) per sequence.
    """
    plain = plain_head(model)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    positions = max(1, LOGITS_BYTES // (4 * vocab_size))
    # Without a plain head, all logits of a batch are in memory at once, so batches are small.
    batch_tokens = BATCH_TOKENS if plain else max(1, min(BATCH_TOKENS, positions))
    nats = [np.full(max(0, len(ids) - 1), np.nan) for ids in sequences]
    todo = [(i, *span) for i, ids in enumerate(sequences) for span in windows(len(ids) - 1, window, stride)]
    todo.sort(key=lambda span: span[1] - span[3])  # longest first: little padding, and peak memory comes first
    autocast = torch.autocast(model.device.type, dtype, enabled=dtype not in (None, model.dtype))
    with tqdm(total=sum(map(len, nats)), desc=progress, unit="token", disable=progress is None) as bar, autocast:
        for batch in _batches(todo, batch_tokens):
            width = max(stop - start for _, start, _, stop in batch)
            ids_BT = torch.zeros(len(batch), width, dtype=torch.long)  # padded right, where no token attends
            targets_BT = torch.full((len(batch), width), -1)
            for row, (i, start, first, stop) in enumerate(batch):
                ids_BT[row, : stop - start] = torch.tensor(sequences[i][start:stop])
                targets_BT[row, first - start : stop - start] = torch.tensor(sequences[i][first + 1 : stop + 1])
            ids_BT, targets_BT = ids_BT.to(model.device), targets_BT.to(model.device)
            scored = targets_BT >= 0
            losses = _losses(model, ids_BT, scored, targets_BT[scored], positions, plain)
            losses_N = torch.cat(list(losses)).double().cpu()
            ends = list(accumulate(stop - first for _, _, first, stop in batch))
            for (i, _, first, stop), end in zip(batch, ends, strict=True):
                nats[i][first:stop] = losses_N[end - (stop - first) : end].numpy()
            bar.update(ends[-1])
    return nats


def _losses(model, ids_BT, scored, targets_N, positions: int, plain: bool) -> Iterator[torch.Tensor]:
    """Yield the cross-entropy of the scored positions, `positions` at a time."""
    if not plain:
        yield cross_entropy(
            model(input_ids=ids_BT, use_cache=False).logits[scored].float(), targets_N, reduction="none"
        )
        return
    hidden_ND = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[scored]
    head = model.get_output_embeddings()
    for hidden, targets in zip(hidden_ND.split(positions), targets_N.split(positions), strict=True):
        yield cross_entropy(head(hidden).float(), targets, reduction="none")


def _batches(todo: list[tuple[int, int, int, int]], tokens: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield batches of windows, longest first, of at most `tokens` tokens with padding, and at least one window."""
    batch: list = []
    for span in todo:
        if batch and (len(batch) + 1) * (batch[0][3] - batch[0][1]) > tokens:
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def encode(subject: EvaluatedModel, text: str) -> list[int]:
    """Encode a text after its start token; written forms of special tokens in it are text."""
    ids = subject.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    return [subject.start[1], *ids]


class BitsPerByte:
    """Task: bits per byte as a mean over languages, and by language, register and collection."""

    name = "bits_per_byte"

    def __init__(self, texts: list[Text], text_config: TextConfig, config: BitsConfig, run):
        self.texts, self.config = texts, config
        self.data = describe_texts(texts, text_config, run)
        self.settings = asdict(config)

    def test_texts(self) -> dict[str, list[Text]]:
        """Return the documents, whose metrics have any name."""
        return {"": self.texts}

    def measure(self, subject: EvaluatedModel) -> dict:
        """Return nats, tokens and bytes of each document, and the settings of the computation."""
        sequences = [encode(subject, text.text) for text in self.texts]
        decode = subject.tokenizer.decode
        lossless = [
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
                    "tokens": len(nats_N),
                    "nats": float(nats_N.sum()),
                }
                for text, nats_N in zip(self.texts, nats, strict=True)
            ],
            "how": {
                **sizes,
                "first token after": subject.start[0],
                "matrix products": str(dtype).removeprefix("torch."),
                "bf16 against fp32, relative": change,
                "texts that the tokenizer gives back": sum(lossless) / len(lossless),
            },
        }

    def _precision(
        self, subject: EvaluatedModel, sequences: list[list[int]], sizes: dict
    ) -> tuple[torch.dtype, float | None]:
        """Return the dtype of matmuls and the relative change by bf16, which is used if fast and nearly exact."""
        fast = compute_dtype("auto", subject.device)
        if self.config.exact or subject.dtype != torch.float32 or fast == torch.float32:
            return subject.dtype, None
        share = TRIED_TOKENS // len(sequences) + 2
        tried = [ids[:share] for ids in sequences]
        exact, quick = (
            sum(nats_N.sum() for nats_N in token_nats(subject.model, tried, **sizes, dtype=dtype))
            for dtype in (torch.float32, fast)
        )
        change = float(quick / exact - 1)
        return (fast if abs(change) < TINY else torch.float32), change

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return the mean over languages, then each language, then code."""
        metrics = groups(record["documents"], "language")
        languages = [metric.rows for language, metric in metrics.items() if language != CODE]
        mean = {"mean": Metric(np.concatenate(languages, axis=1), mean_of_ratios)} if languages else {}
        return mean | metrics

    def details(self, record: dict) -> dict:
        """Return the settings of the computation, tokens, and bits per byte by register and collection."""
        return {
            "how": record["how"],
            "tokens": sum(row["tokens"] for row in record["documents"]),
            "groups": {name: groups(record["documents"], name) for name in ("register", "collection")},
        }


def groups(rows: list[dict], by: str) -> dict[str, Metric]:
    """Return the bits per byte of the documents with each value of a field."""
    bits = np.array([row["nats"] for row in rows]) / math.log(2)
    return ratios_by((row[by] for row in rows), bits, [row["bytes"] for row in rows])


def mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """Return the mean of ratios whose numerators and denominators alternate on the last axis."""
    return (sums[..., 0::2] / sums[..., 1::2]).mean(-1)
