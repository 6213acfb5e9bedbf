"""Unicode normalisation in pieces equals that of the complete text, for runs of marks of any length too."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.common import unicode_forms
from training.common.unicode_forms import unicode_form

# Letters, marks of several classes, syllables that compose, ligatures, and a mark that decomposes to a space.
PARTS = ["a", "e", "\u0301", "\u0323", "\u1100", "\u1161", "\u11a8", "\ufb03", "\u00a8", "\u0344", "\n", " ", " "]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=60).map("".join) | st.text())
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_words_shorter_than_a_piece_are_normalised_as_in_the_complete_text(form, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unicode_forms, "PIECE", 2 + max(map(len, text.split(" "))))
        assert unicode_form(form, text) == unicodedata.normalize(form, text)


def test_a_million_marks_are_normalised():
    text = "a" + "\u0301\u0323" * 500_000
    assert len(unicode_form("NFKD", text)) == len(text)


@pytest.mark.parametrize("form", ["NFC", "NFKD"])
def test_thirty_marks_on_a_letter_are_normalised_as_in_the_complete_text(form):
    text = "e" + "\u0301\u0323" * 16 + "o\u0302\u0323"
    assert unicode_form(form, text) == unicodedata.normalize(form, text)
    more = "e" + "\u0301\u0323" * 500 + "o\u0302\u0323"
    assert unicode_form(form, more).endswith(unicodedata.normalize(form, "o\u0302\u0323"))
