"""Markers in user text: none is left after escaping, and unescaping is the inverse."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling_pleias import PleiasTokenizer
from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS
from training.tasks.markers import WORD_JOINER, escape, language_marker, unescape

SPECIAL = [*BASE_TOKENS, *DOCUMENT_TOKENS]
PIECES = [*SPECIAL, "<ref name=", "</ref>", "<", "|", "[", "UNK]", WORD_JOINER, "<" + WORD_JOINER + "|", "ref"]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join))


@settings(deadline=None)
@given(TEXTS)
@example("<|text_end|>")
@example(f"<{WORD_JOINER}|text_end|>")
def test_unescape_is_the_inverse_of_escape(text):
    assert unescape(escape(text)) == text


@settings(deadline=None)
@given(TEXTS)
def test_an_escaped_text_contains_no_special_token_and_no_citation(text):
    escaped = escape(text)
    assert not any(token in escaped for token in SPECIAL)
    assert not re.search(r"</?ref\b|<\|", escaped)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_different_texts_have_different_escapes(a, b):
    assert (escape(a) == escape(b)) == (a == b)


@pytest.mark.parametrize("code", ["", "fr|><|pad", "[PAD]", "fr\n", "FR"])
def test_a_language_that_is_no_code_has_no_marker(code):
    assert language_marker("fr") == "<|fr|>"
    with pytest.raises(ValueError, match="a language is an ISO code"):
        language_marker(code)


@pytest.mark.parametrize(
    "text", ["", "a < b | c", "array[0] <b>bold</b>", "réf. [12]", "<refuge>", f"soft{WORD_JOINER}"]
)
def test_text_without_markers_is_unchanged(text):
    assert escape(text) == unescape(text) == text


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_the_tokenizer_encodes_no_special_token_in_an_escaped_text(text):
    tokenizer = PleiasTokenizer()
    ids = tokenizer(escape(text), add_special_tokens=False).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert unescape(tokenizer.decode(ids)) == text
