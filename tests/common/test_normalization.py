"""Normalised view: what is alike on the page is equal, and every offset leads back to the original."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.normalization import normalize

PIECES = st.sampled_from(
    [*"ab1 .\n\r\f\u00e9\u00ad\u200b\ufeff\u00a0\u2009\u2010\u2028\u2029", "e\u0301", "\u0323\u0301"]
    + ["\ufb01", "\u017f", "\u0661", "\uff11", "\U0001d400", "\u00b2", "\u2013", "\U0001f600", "\ud800", "\u0132"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join)


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("co\u00adop\u200be\u2060ra\ufefftion", "cooperation"),
        ("a\u00a0b\u202fc\u2007d\u3000e", "a b c d e"),
        ("a\u2010b\u2011c\u2012d\u2212e", "a-b-c-d-e"),
        ("\u0661\u0662 \u0967 \uff12\uff13 \U0001d7ce", "12 1 23 0"),
        ("e\u0301te\u0301 \u212b", "\u00e9t\u00e9 \u00c5"),
        ("\ufb01n \ufb03 \u017f\u0133", "fin ffi sij"),
        ("\uff21\uff20\uff42 \U0001d400\U0001d41a", "A@b Aa"),
        ("one\u2028two\x85three\u2029four", "one\ntwo\nthree\n\nfour"),
        ("wo\u00adrds di\u00ad\nvided, di\u00ad\u200b\u00a0\r\n  vided\u00ad\n\n1", "words divided, divided\n\n1"),
    ],
)
def test_characters_that_look_alike_become_one(text, view):
    assert normalize(text).text == view


def test_soft_hyphens_at_line_ends_are_kept_with_the_lines():
    text = "wo\u00adrds di\u00ad\nvided \u00ad\u200b\r\n"
    assert normalize(text, keep_lines=True).text == "words di\u00ad\nvided \u00ad\r\n"


@pytest.mark.parametrize(
    "text", ["x\u00b2 + \u00bd \u2460", "\u2013 \u2014 c\u2026 \u2e17 \u00ac", "\u00ab \u2019 \u00bb \u20ac 1\u00ba"]
)  # fmt: skip
def test_superscripts_dashes_quotes_and_letters_are_unchanged(text):
    assert normalize(text).text is text


@given(st.text(st.characters(codec="latin-1", exclude_characters="\x85\u00a0\u00ad\u00b5"), max_size=60))
def test_an_ordinary_text_is_its_own_view(text):
    view = normalize(text)
    assert view.text is text
    assert all(view.span(i, i + 1) == slice(i, i + 1) for i in range(len(text)))


@given(TEXTS, st.booleans())
def test_every_character_of_the_view_has_its_own_part_of_the_original_in_order(text, keep_lines):
    view = normalize(text, keep_lines=keep_lines)
    spans = [view.span(i, i + 1) for i in range(len(view.text))]
    assert all(0 <= span.start < span.stop <= len(text) for span in spans)
    assert all(a == b or a.stop <= b.start for a, b in zip(spans, spans[1:], strict=False))
    covered = {i for span in spans for i in range(span.start, span.stop)}
    hidden = "\u00ad\u200b\ufeff" if keep_lines else "\u00ad\u200b\ufeff \r\n\u00a0\u2009\u2028"
    assert all(text[i] in hidden for i in set(range(len(text))) - covered)


@given(TEXTS, st.data())
def test_the_part_of_the_original_has_the_part_of_the_view_as_its_view(text, data):
    view = normalize(text, keep_lines=True)
    start = data.draw(st.integers(0, len(view.text)))
    end = data.draw(st.integers(start, len(view.text)))
    part = normalize(text[view.span(start, end)], keep_lines=True).text
    assert view.text[start:end].replace("\u00ad", "") in part.replace("\u00ad", "")
    assert (view.start(0) == 0 or not view.text or text[0] in "\u00ad\u200b\ufeff") and view.end(0) == 0
    assert view.start(len(view.text)) == len(text)


def test_thousands_of_accents_on_a_letter_are_kept():
    text = "a" + "\u0323\u0301" * 5000
    assert len(text) - len(normalize(text).text) <= 2
