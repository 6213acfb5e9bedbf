"""A small OCR corrector for the tests of curation."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

KNOWN = """the old house stood by the river and nobody came until spring when bells rang over hills while children were
playing in a garden and their mother wrote many long letters to her brother who had gone away some years before with
little money but great hopes for a better life across the sea every evening she looked through her window thinking
about what might have become of him there was no answer only winter wind among trees along the road""".split()


@pytest.fixture(scope="session")
def known():
    """Words that the corrector knows."""
    return KNOWN


@pytest.fixture(scope="session")
def confused():
    """Function (text, share, seed) that reads this share of m as rn and of n as ri, as OCR does."""

    def confuse(text: str, share: float, seed: int) -> str:
        draw = random.Random(seed)
        return "".join({"n": "ri", "m": "rn"}.get(c, c) if draw.random() < share else c for c in text)

    return confuse


@pytest.fixture(scope="session")
def packaged(tmp_path_factory, confused) -> Path:
    """Folder of a corrector of the eight languages that knows `KNOWN`, and changes words like them into them."""
    from training.common.language import LANGUAGES
    from training.tasks.ocr.changes import KINDS
    from training.tasks.ocr.channel import Channel
    from training.tasks.ocr.corrector import GATES, Corrector, Settings
    from training.tasks.ocr.lexicon import Lexicon
    from training.tasks.ocr.trees import Trees

    folder = tmp_path_factory.mktemp("packaged") / "learned"
    folder.mkdir()
    draw = random.Random(3)
    truths = [" ".join(draw.choices(KNOWN, k=200)) for _ in range(10)]
    channel = Channel.learn([(confused(truth, 0.1, i), truth) for i, truth in enumerate(truths)], {})
    lexicon = Lexicon.from_counts(Counter(" ".join(truths).split()), Counter())
    leaf = np.zeros((1, 1), np.int16)
    sure = Trees(leaf, np.zeros((1, 1)), leaf, leaf, np.full((1, 1), 3.0), np.zeros(1))
    thresholds = dict.fromkeys(KINDS, 1.0) | {"word": 0.5}
    settings = Settings(dict.fromkeys(GATES, thresholds), 0.5, dict.fromkeys(LANGUAGES, 1.0))
    Corrector(channel, dict.fromkeys(GATES, sure), settings, dict.fromkeys(LANGUAGES, lexicon)).save(folder)
    return folder
