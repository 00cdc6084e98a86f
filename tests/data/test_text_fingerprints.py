"""Fingerprints of texts: what normalization ignores, digests of pairs, and words."""

from __future__ import annotations

import unicodedata
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.core.errors import UserError
from xferbench.core.pipeline import Data
from xferbench.data import text_fingerprints
from xferbench.data.raw import TextExample
from xferbench.data.text_fingerprints import normalize

TEXTS = st.text(max_size=60)
LETTERS = st.characters(min_codepoint=48, max_codepoint=0x5FF, categories=("Ll", "Nd"))
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=8)


def fingerprint(*texts):
    return text_fingerprints.fingerprint_texts(
        TextExample(*text) if isinstance(text, tuple) else TextExample(text) for text in texts
    )


def words_of(prints):
    """Return the sets of digests of the words of the first and the second text of each example."""
    ends = np.cumsum(prints.counts.ravel())
    return [set(part.tolist()) for part in np.split(prints.words, ends[:-1])] if len(prints) else []


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("What is an atom ?", "what is an ATOM"),
        ("it's  fine,\tisn't\nit?", "It 's fine , isn 't it"),
        ("ﬁne ＡＢＣ ½", "fine abc 1⁄2"),  # compatible characters
        ("straße", "STRASSE"),
        ("co\u00adoperate", "cooperate"),  # a soft hyphen
        ("«oui» — non…", "oui non"),
    ],
)
def test_case_punctuation_and_white_space_do_not_matter(text, same):
    assert normalize(text) == normalize(same)
    prints = fingerprint(text, same)
    assert prints.exact[0] == prints.exact[1]
    first, _, second, _ = words_of(prints)
    assert first == second


@pytest.mark.parametrize(
    ("text", "other"), [("résumé", "resume"), ("1 + 1", "1 - 1"), ("room 12", "room 1 2"), (":-)", ":-("), ("a b", "ab")]
)
def test_accents_symbols_numbers_and_marks_alone_matter(text, other):
    prints = fingerprint(text, other)
    assert prints.exact[0] != prints.exact[1]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_normalized_text_stays_as_it_is_and_no_text_vanishes(text):
    once = normalize(text)
    assert normalize(once) == once
    if any(unicodedata.category(character)[0] in "LNS" for character in text):
        assert once


@settings(max_examples=100, deadline=None)
@given(WORDS, st.lists(st.sampled_from([" ", ", ", "  ", " - ", "\n", "; "]), min_size=8, max_size=8))
def test_any_marks_between_the_words_give_the_same_digest(words, separators):
    plain = " ".join(words)
    marked = "".join(word + separator for word, separator in zip(words, separators, strict=False))
    assert fingerprint(plain).exact[0] == fingerprint(marked).exact[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS.filter(bool), TEXTS), max_size=6), st.data())
def test_fingerprints_are_those_of_single_examples_in_any_order(pairs, data):
    prints = fingerprint(*pairs)
    order = np.array(data.draw(st.permutations(range(len(pairs)))), np.int64)
    expected = text_fingerprints.concatenate(fingerprint(pairs[index]) for index in order)
    taken = text_fingerprints.take(prints, order)
    for name in ("exact", "swapped", "counts", "words"):
        assert np.array_equal(getattr(taken, name), getattr(expected, name))


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_texts_share_the_words_that_they_share(first, second):
    first, second = (" ".join(words) for words in (first, second))
    own, no_second_text, other, _ = words_of(fingerprint(first, second))
    assert not no_second_text
    assert len(own & other) == len(set(normalize(first).split()) & set(normalize(second).split()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("今天天气", {"今天", "天天", "天气"}),
        ("東京 Towerへ", {"東京", "tower", "へ"}),
        ("ภาษา", {"ภา", "าษ", "ษา"}),
        ("너무 좋아요", {"너무", "좋아요"}),
        ("a b", {"a", "b"}),
    ],
)
def test_scripts_without_spaces_have_pairs_of_characters(text, words):
    found, _ = words_of(fingerprint(text))
    assert found == {zlib.crc32(word.encode()) for word in words}


def test_a_pair_differs_from_its_texts_in_one_and_is_known_in_the_other_order():
    prints = fingerprint(("a cat", "a dog"), ("a dog", "a cat"), "a cat a dog", ("a", "cat a dog"))
    assert len(set(prints.exact.tolist())) == 4
    assert prints.swapped[0] == prints.exact[1] and prints.swapped[1] == prints.exact[0]
    assert prints.swapped[2] not in prints.exact


def test_texts_of_several_batches_are_one_set(monkeypatch):
    texts = [f"text number {number}" for number in range(20)]
    whole = fingerprint(*texts)
    monkeypatch.setattr(text_fingerprints, "BATCH_CHARACTERS", 40)
    for name in ("exact", "swapped", "counts", "words"):
        assert np.array_equal(getattr(fingerprint(*texts), name), getattr(whole, name))


def test_fingerprints_of_a_table_are_cached_and_have_its_order(tmp_path):
    (tmp_path / "t.csv").write_text(
        "text,label,split\n" + "".join(f"text {n},{n % 2},train\n" for n in range(9)) + "x,0,test\n"
    )
    data = Data(digest="t", spec=f"csv:{tmp_path / 't.csv'}")
    prints = text_fingerprints.dataset_fingerprints(data, "train", tmp_path)
    assert np.array_equal(prints.exact, fingerprint(*(f"text {n}" for n in range(9))).exact)
    (tmp_path / "t.csv").unlink()
    assert np.array_equal(text_fingerprints.dataset_fingerprints(data, "train", tmp_path).words, prints.words)


def test_images_are_not_compared_with_texts(tmp_path):
    with pytest.raises(UserError, match="compared with texts"):
        text_fingerprints.dataset_fingerprints(Data(digest="n", spec="synthetic:near"), "test", tmp_path, 10)
