"""Altered copies of texts, by which the recall of the search is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.core.suite import TEXT_COPY_KINDS
from xferbench.data.altered_texts import alter_text
from xferbench.data.raw import TextExample
from xferbench.data.text_fingerprints import normalize

TEXT = TextExample("The film, which nobody had wanted to see, was in the end a quiet and generous piece of work.")
DONOR = TextExample("An entirely different sentence about ships")


def alter(kind, example=TEXT, seed=0):
    return alter_text(example, kind, np.random.default_rng(seed), DONOR)


def test_a_copy_without_marks_in_capitals_is_the_same_normalized_text():
    copy = alter("repunctuated")
    assert copy.text.isupper() and "," not in copy.text
    assert normalize(copy.text) == normalize(TEXT.text)


def test_a_misspelled_copy_has_the_same_letters_with_two_neighbors_swapped():
    copy = alter("misspelled").text
    changed = [place for place, (old, new) in enumerate(zip(TEXT.text, copy, strict=True)) if old != new]
    assert sorted(copy) == sorted(TEXT.text)
    assert len(changed) == 2 * round(len(TEXT.text) / 60) == 4


def test_words_are_dropped_cut_added_and_exchanged():
    words = TEXT.text.split()
    count = len(words)
    shortened = alter("shortened").text.split()
    assert len(shortened) == count - round(0.1 * count) and set(shortened) <= set(words)
    assert alter("truncated").text.split() == words[: round(0.75 * count)]
    extended = alter("extended").text.split()
    assert extended[:count] == words and extended[count:] == DONOR.text.split()[: round(count / 3)]
    assert sorted(alter("swapped").text.split()) == sorted(words) != alter("swapped").text.split()


def test_both_texts_of_a_pair_are_altered_and_swapped_ones_change_places():
    pair = TextExample("a man plays a guitar", "somebody makes loud music")
    assert alter("truncated", pair).pair != pair.pair
    swapped = alter("swapped", pair)
    assert set(swapped.text.split()) < set(pair.pair.split()), "a pair that is only swapped has a digest"
    assert set(swapped.pair.split()) <= set(pair.text.split()) and swapped.pair != pair.text


@pytest.mark.parametrize("kind", TEXT_COPY_KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=40).filter(str.strip), pair=st.text(max_size=20).map(str.strip))
def test_no_text_becomes_empty_and_a_single_text_stays_single(kind, text, pair):
    copy = alter(kind, TextExample(text, pair))
    assert copy.text and bool(copy.pair) == bool(pair)


@pytest.mark.parametrize("kind", [kind for kind in TEXT_COPY_KINDS if kind != "repunctuated"])
def test_a_text_without_spaces_is_altered_by_characters(kind):
    text = "今天天气很好我们一起去公园散步吧"
    copy = alter(kind, TextExample(text)).text
    assert copy != text and len(set(copy) & set(text)) > 8
