"""Hold-out rules: pinned results, on which the shipped tokenizer and the held-out text of femto depend."""

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from training.data.split import author_key, hash_fraction, in_tokenizer_evaluation, in_validation_split

NAMES = [f"pip:package==1.0:text{i}" for i in range(400)]


def test_the_hashes_are_those_of_the_first_release():
    fractions = {
        "pip:vulgata-spacy==0.0.1:Genesis#part001": 0.05521635616302524,
        "npm:argon2@0.40.1:README.md": 0.5622785074540039,
        "Verne, Jules (1828-1905)": 0.27602785072829494,
        "": 0.8931675160897388,
    }
    assert {key: hash_fraction(key) for key in fractions} == fractions


def test_the_same_documents_are_validation_text_of_shards():
    chosen = [i for i, name in enumerate(NAMES) if in_validation_split(name, 0.02)]
    assert chosen == [49, 56, 91, 213, 268, 344, 370, 386, 387, 394]


def test_the_same_documents_evaluate_tokenizers():
    documents = [
        {
            "identifier": f"{name}#part00{i % 3}",
            "language": "French",
            "language_type": "Spoken",
            "open_type": "Open Culture" if i % 2 else "Open Web",
            "creator": f"Author {i % 40}" if i % 4 else "",
        }
        for i, name in enumerate(NAMES)
    ]
    chosen = [i for i, document in enumerate(documents) if in_tokenizer_evaluation(document, share=0.05, seed=3)]
    assert chosen == [13, 53, 70, 93, 122, 133, 173, 180, 213, 253, 254, 293, 333, 364, 373, 394]


@given(st.text("()[]\n,-19aB\u0301 ", max_size=30))
def test_the_author_of_a_creator_is_that_of_the_first_release(creator):
    """The expression of the first release takes quadratic time on brackets that are not closed."""
    name = re.sub(r"\(.*?\)|\[.*?\]|\d[\d-]*", " ", creator)
    words = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower().split(",")[0].split()
    assert author_key(creator) == (words[-1] if words else "")
