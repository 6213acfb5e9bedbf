"""Share of a test text in passages that occur verbatim in the training documents.

A token of a text is covered if it is in a passage of at least N tokens of the text that occurs verbatim in a training
document; the share of a text is that of its covered tokens, as for Llama 2 (https://arxiv.org/abs/2307.09288, A.6). A
text of fewer than N tokens must occur completely. One of fewer than SHORT tokens is not checked: phrases of that
length occur by chance. Passages are compared as bytes: another line break, spelling or OCR error ends a passage, so
that edited, paraphrased or translated text is found in part or not at all.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..common.files import fingerprint, read_json, write_json
from .search import MatchedDocument, MatchedSpan, Query, TraceIndex

SHORT = 10  # tokens
BATCH = 1 << 20  # characters of texts per pass over the blocks; each needs about 60 bytes of memory


@dataclass(frozen=True)
class TextOverlap:
    """Passages of a text in the training documents.

    Args:
        tokens: Tokens of the text, in the tokenizer of the index.
        covered: Tokens in passages of at least N tokens, by N.
        longest: Tokens of the text in its longest passage; 0 if there is none of SHORT tokens.
        passage: The longest passage, the first of several, with its first document.
    """

    tokens: int
    covered: dict[int, int]
    longest: int
    passage: MatchedSpan | None

    @property
    def checked(self) -> bool:
        """Return whether the text is long enough."""
        return self.tokens >= SHORT

    def share(self, min_tokens: int) -> float:
        """Return the share of tokens in passages of at least `min_tokens` tokens, a key of `covered`."""
        return self.covered[min_tokens] / self.tokens if self.checked else 0.0


def find_overlaps(
    index: TraceIndex,
    texts: list[str],
    lengths: tuple[int, ...],
    *,
    finished: Path | None = None,
    progress: str | None = None,
) -> list[TextOverlap]:
    """Return the overlap of each text with the documents of an index.

    Args:
        index: Index of the training shards.
        texts: Texts.
        lengths: Minimum tokens of a passage; the overlap has the covered tokens of each.
        finished: Folder for the overlaps of finished batches, from which the same call resumes.
        progress: Title of a progress bar.
    """
    overlaps: list[TextOverlap] = []
    with tqdm(total=len(texts), desc=progress, unit="text", disable=progress is None) as bar:
        for number, batch in enumerate(_batches(texts)):
            digest = fingerprint([index.facts["fingerprint"], lengths, batch])
            path = finished / f"{number:05}.json" if finished else None
            part = read_json(path) if path and path.is_file() else {}
            if part.get("fingerprint") == digest:
                overlaps += map(_from_json, part["overlaps"])
            else:
                results = _search(index, batch, lengths)
                overlaps += results
                if path:
                    write_json(path, {"fingerprint": digest, "overlaps": [asdict(overlap) for overlap in results]})
            bar.update(len(batch))
    return overlaps


def _from_json(value: dict) -> TextOverlap:
    passage = value["passage"]
    if passage:
        documents = {name: [MatchedDocument(**row) for row in passage[name]] for name in ("documents", "outside")}
        passage = MatchedSpan(**passage | documents)
    covered = {int(length): tokens for length, tokens in value["covered"].items()}
    return TextOverlap(**value | {"covered": covered, "passage": passage})


def _search(index: TraceIndex, texts: list[str], lengths: tuple[int, ...]) -> list[TextOverlap]:
    """Return the overlap of each text of a batch, in two passes over the blocks and a third for the documents."""
    queries = [Query(text, index.tokenizer, SHORT) for text in texts]
    for block in index.blocks():
        for query in queries:
            query.search(block)
    passages = [_passages(query) for query in queries]
    longest = [max(rows, key=lambda row: row.tokens, default=None) for rows in passages]
    places = [(query, row.start, row.end) for query, row in zip(queries, longest, strict=True) if row]
    matches = iter(index.match(places, max_documents=1))
    return [
        TextOverlap(
            tokens=len(query.tokens),
            covered={length: _covered(query, rows, length) for length in lengths},
            longest=row.tokens if row else 0,
            passage=next(matches) if row else None,
        )
        for query, rows, row in zip(queries, passages, longest, strict=True)
    ]


@dataclass(frozen=True)
class _Passage:
    """Bytes of a passage, its first token that is complete in it, and the number of these."""

    start: int
    end: int
    first: int
    tokens: int


def _passages(query: Query) -> list[_Passage]:
    """Return the passages of a text that contain SHORT of its tokens."""
    passages = []
    for start, end in query.passages():
        first = int(np.searchsorted(query.tokens[:, 0], start))
        last = int(np.searchsorted(query.tokens[:, 1], end, side="right"))
        if last - first >= SHORT:
            passages.append(_Passage(start, end, first, last - first))
    return passages


def _covered(query: Query, passages: list[_Passage], length: int) -> int:
    """Count the tokens in passages of at least `length` tokens, or in all of a shorter text."""
    inside = np.zeros(len(query.tokens), bool)
    for passage in passages:
        if passage.tokens >= min(length, len(inside)):
            inside[passage.first : passage.first + passage.tokens] = True
    return int(inside.sum())


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Yield consecutive texts of about BATCH characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
