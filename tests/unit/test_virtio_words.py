"""The search for words: the same in C as in Python, for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.debug.consolewatch import _SIGNS
from pyvmm.virtio import native, words
from pyvmm.virtio.words import LIMIT, LONGEST, SHORTEST, Words

pytestmark = pytest.mark.skipif(bool(native.PROBLEM), reason=native.PROBLEM)

PARTS = st.one_of(st.sampled_from(_SIGNS), st.sampled_from(_SIGNS).map(lambda sign: sign[:-1]), st.binary(max_size=5))


@given(st.lists(PARTS, max_size=6), st.integers(0, 40), st.integers(0, 40))
def test_c_finds_a_word_wherever_python_does(parts, skip, cut):
    text = b"".join(parts)
    text = text[skip : len(text) - cut]
    assert Words(_SIGNS).are_in(text) == any(sign in text for sign in _SIGNS)


@given(st.lists(st.binary(min_size=SHORTEST, max_size=LONGEST), max_size=LIMIT), st.binary(max_size=300))
def test_any_words_in_any_text(wanted, text):
    assert Words(wanted).are_in(text) == any(word in text for word in wanted)
    for word in wanted:
        assert Words(wanted).are_in(text + word)
        assert Words([word]).are_in(word[:-1]) == (word in word[:-1])


def test_it_works_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(words, "PROBLEM", "not built here")
    assert Words([b"word"]).are_in(b"a word") and not Words([b"word"]).are_in(b"wor")
