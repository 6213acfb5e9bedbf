"""Passages of openly licensed prose, sampled from a corpus."""

import random
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...data.documents import read_documents
from ...data.licences import decide
from ...data.split import author_key, hash_fraction, work_id
from ..sources import order_by_hash

PARAGRAPH, LETTERS = 80, 0.7  # prose: minimum characters of a paragraph, and minimum fraction of letters among them
PASSAGES = 8  # maximum passages per document


def read_passages(folder: Path, language: str, *, count: int, size: int, seed: int) -> list[dict]:
    """Return at least `count` passages of openly licensed prose, or all if there are fewer, in lines as on a page.

    They are sampled from the complete corpus, a few per document, in a reproducible random order.

    Returns:
        Dicts of id, language, source (the document), creator, license, group (the unit of the held-out split) and text
        of at most `size` characters.
    """
    documents = sum(1 for _ in read_documents(folder, languages=[language], columns=["identifier"]))
    share = 2 * count / max(documents, 1)  # not every document has a passage
    passages, columns = [], ["identifier", "license", "creator", "text"]
    for document in read_documents(folder, languages=[language], columns=columns):
        key = f"{seed}/{document['identifier']}"
        if hash_fraction(key) >= share or decide(document["license"]).refused:
            continue
        draw = random.Random(key)
        texts = list(wrap_prose(document["text"], size, draw.randint(45, 75)))
        passages += [
            {
                "id": f"{document['identifier']}#{i}",
                "language": language,
                "source": document["identifier"],
                "creator": document["creator"] or "",
                "license": document["license"],
                "group": author_key(document["creator"] or "") or work_id(document["identifier"]),
                "text": texts[i],
            }
            for i in draw.sample(range(len(texts)), min(PASSAGES, len(texts)))
        ]
    authors = Counter(passage["group"] for passage in passages)
    for passage in passages:  # an author of most of a language's text, such as a Bible translator, is split by work
        if authors[passage["group"]] > len(passages) / 2:
            passage["group"] = work_id(passage["source"])
    return order_by_hash(passages, seed)


def wrap_prose(text: str, size: int, width: int) -> Iterator[str]:
    """Yield the prose of a text in passages of at most `size` characters, in lines of at most `width`."""
    passage = ""
    for paragraph in text.splitlines():
        if len(paragraph) < PARAGRAPH or sum(map(str.isalpha, paragraph)) < LETTERS * len(paragraph):
            continue
        if max(map(len, paragraph.split())) > size:  # no prose, and textwrap takes the square of a word's length
            continue
        for line in textwrap.wrap(paragraph, width):
            if passage and len(passage) + 1 + len(line) > size:
                yield passage
                passage = ""
            passage = f"{passage}\n{line}" if passage else line
    if len(passage) >= PARAGRAPH:
        yield passage
