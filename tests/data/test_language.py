"""The synthetic language: determinism, balance, and what the texts of a class have in common."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from xferbench.core.errors import UserError
from xferbench.data import language, wordpiece
from xferbench.data.generated import SPLITS
from xferbench.data.language import (
    ARCHAIC_WORDS,
    BLOCK,
    CLASSES,
    DATASETS,
    FUNCTION_WORDS,
    NAMES,
    PAIR_LEXICONS,
    TOPIC_LEXICONS,
    generate,
    vocabulary_lines,
)

GOLDEN = {  # of the first two blocks of `test`, at VERSION 1
    "source": "1a99c6cb1b460d3ea8de42b55ff46475d9d8a42eee6358b5d6c72c8be11cc7ae",
    "near": "fcb8287c214436480119f2669d37bfd488f021dead882382b35891cdec134e4a",
    "letters": "ade9c88e18567f8d98c3ab1e6bee679f8e217dd3757906c7d5972d158ee58f20",
    "number": "2272660652cea3d52e3fc390806ca223ff3b172b993bd721246e2ad12c0badf5",
}
VOCABULARY_GOLDEN = "7bd69e3f657577a9757a6067682821ceee26076bf00e92e5ee1c76cade3f09a4"
every_dataset = pytest.mark.parametrize("name", NAMES)
every_split = pytest.mark.parametrize("split", SPLITS)


def digest_of(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def all_words(lexicon):
    return {*lexicon.nouns, *lexicon.verbs, *lexicon.names}


def topic_counts(text, lexicons=TOPIC_LEXICONS):
    """Return how many words of a text each lexicon has."""
    words = text.replace(".", "").replace(",", "").split()
    return [
        sum(word in all_words(lexicon) or word.removesuffix("s") in lexicon.nouns for word in words) for lexicon in lexicons
    ]


def test_classes_have_names_of_their_own():
    assert {name: len(classes) for name, classes in CLASSES.items()} == {"source": 8, "near": 6, "letters": 6, "number": 2}
    assert all(len(set(classes)) == len(classes) for classes in CLASSES.values())
    assert CLASSES["letters"] == CLASSES["near"]


@every_dataset
@every_split
def test_texts_are_sentences_with_integer_labels(name, split):
    texts, labels = generate(name, split, 30)
    assert len(texts) == 30
    assert all(text[0].isupper() and text.endswith(" .") and "  " not in text for text in texts)
    assert (labels.shape, labels.dtype) == ((30,), np.int64)
    assert set(labels.tolist()) == set(range(len(CLASSES[name])))


def test_a_count_of_0_is_valid():
    texts, labels = generate("near", "test", 0)
    assert (texts, labels.shape) == ([], (0,))


@every_dataset
def test_generation_is_deterministic(name):
    first, second = generate(name, "train", 50), generate(name, "train", 50)
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])


@every_dataset
@pytest.mark.parametrize("count", [1, 37, BLOCK - 1, BLOCK, BLOCK + 1])
def test_fewer_texts_are_a_prefix_of_more(name, count):
    longer, shorter = generate(name, "train", 2 * BLOCK), generate(name, "train", count)
    assert longer[0][:count] == shorter[0]
    assert np.array_equal(longer[1][:count], shorter[1])


@every_dataset
def test_no_text_occurs_twice_within_or_between_the_splits(name):
    texts = [text for split in SPLITS for text in generate(name, split, 5 * BLOCK)[0]]
    assert len(set(texts)) == 10 * BLOCK


@every_dataset
def test_the_splits_differ_in_labels_too(name):
    assert not np.array_equal(*(generate(name, split, BLOCK)[1] for split in SPLITS))


@every_dataset
@every_split
def test_every_prefix_is_balanced(name, split):
    labels = generate(name, split, 2 * BLOCK)[1]
    counts = np.cumsum(labels[:, None] == np.arange(len(CLASSES[name])), axis=0)
    assert np.ptp(counts, axis=1).max() == 1
    assert np.ptp(counts[-1]) == 0


@every_dataset
def test_a_block_is_a_multiple_of_the_number_of_classes(name):
    assert BLOCK % len(CLASSES[name]) == 0


def test_no_noun_or_verb_has_two_topics():
    lexicons = [*TOPIC_LEXICONS, *PAIR_LEXICONS]
    counts = Counter(word for lexicon in lexicons for word in (*lexicon.nouns, *lexicon.verbs))
    assert max(counts.values()) == 1
    assert not counts.keys() & {*FUNCTION_WORDS, *ARCHAIC_WORDS.values()}
    assert not {f"{noun}s" for lexicon in lexicons for noun in lexicon.nouns} & counts.keys()


def test_each_name_is_a_noun_of_another_topic_with_a_capital():
    for lexicons in (TOPIC_LEXICONS, PAIR_LEXICONS):
        for lexicon, other in zip(lexicons, (*lexicons[1:], lexicons[0]), strict=True):
            assert {name.lower() for name in lexicon.names} <= set(other.nouns)
            assert all(name[0].isupper() for name in lexicon.names)


@pytest.mark.parametrize(("name", "share"), [("source", 0.5), ("near", 0.65)])
def test_the_words_of_a_class_come_from_its_topics(name, share):
    texts, labels = generate(name, "train", 4 * BLOCK)
    counts = np.array([topic_counts(text, (*TOPIC_LEXICONS, *PAIR_LEXICONS)) for text in texts])
    lexicons = [*TOPIC_LEXICONS, *PAIR_LEXICONS]
    own = np.array([[lexicon in DATASETS[name].lexicons[label] for lexicon in lexicons] for label in labels])
    chance = np.mean([sum(lexicon in TOPIC_LEXICONS for lexicon in set(found)) / 8 for found in DATASETS[name].lexicons])
    assert counts[own].sum() / counts.sum() == pytest.approx(share + (1 - share) * chance, abs=0.03)


def test_the_source_has_no_words_of_the_pairs():
    assert not np.sum([topic_counts(text, PAIR_LEXICONS) for text in generate("source", "train", BLOCK)[0]])


def test_letters_have_other_function_words_and_typing_errors():
    near, letters = (Counter(" ".join(generate(name, "test", BLOCK)[0]).lower().split()) for name in ("near", "letters"))
    assert not letters.keys() & ARCHAIC_WORDS.keys()
    assert not near.keys() & set(ARCHAIC_WORDS.values())
    known = {word.lower() for lexicon in (*TOPIC_LEXICONS, *PAIR_LEXICONS) for word in all_words(lexicon)}
    known |= {f"{word}s" for word in known} | {*FUNCTION_WORDS, *ARCHAIC_WORDS.values(), ".", ","}
    assert not near.keys() - known
    assert 0.01 < sum(letters[word] for word in letters.keys() - known) / letters.total() < 0.05


def test_the_class_of_number_is_the_number_of_the_subject():
    texts, labels = generate("number", "test", BLOCK)
    for text, label in zip(texts, labels, strict=True):
        words = text.split()
        subject = words[words.index(",") + 2 if "," in words else 1]
        assert subject.endswith("s") == bool(label), text


def test_the_other_nouns_of_number_do_not_depend_on_its_class():
    texts, labels = generate("number", "train", 20 * BLOCK)
    last = np.array([text.split()[-2].endswith("s") for text in texts])
    shares = [last[labels == label].mean() for label in range(2)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)


def test_the_vocabulary_is_one_of_wordpiece_and_knows_every_text():
    lines = vocabulary_lines()
    vocabulary = wordpiece.build_vocabulary(lines)
    assert (vocabulary.pad, 700 < len(lines) < 1000) == (0, True)
    for name in NAMES:
        for text in generate(name, "test", BLOCK)[0]:
            assert vocabulary.unknown not in wordpiece.encode(vocabulary, text, lowercase=False), text


@every_dataset
def test_nearly_all_texts_fit_into_64_tokens(name):
    vocabulary = wordpiece.build_vocabulary(vocabulary_lines())
    lengths = [len(wordpiece.encode(vocabulary, text, lowercase=False)) for text in generate(name, "train", 5 * BLOCK)[0]]
    assert min(lengths) >= 6
    assert np.mean(np.array(lengths) > 62) < (0.02 if name == "letters" else 0.001)  # with [CLS] and [SEP], 64


def test_case_and_accents_matter_to_the_vocabulary():
    vocabulary = wordpiece.build_vocabulary(vocabulary_lines())
    texts = generate("source", "test", BLOCK)[0]
    changed = [
        wordpiece.encode(vocabulary, text, lowercase=True) != wordpiece.encode(vocabulary, text, lowercase=False)
        for text in texts
    ]
    assert np.mean(changed) > 0.9


@every_dataset
def test_texts_equal_those_of_the_version(name):
    texts, labels = generate(name, "test", 2 * BLOCK)
    assert (language.VERSION, digest_of(texts, labels.tolist())) == (1, GOLDEN[name]), (
        "texts changed: raise VERSION, train the shipped weights again, and update GOLDEN"
    )


def test_the_vocabulary_equals_that_of_the_version():
    assert (language.VERSION, digest_of(vocabulary_lines())) == (1, VOCABULARY_GOLDEN), (
        "the vocabulary changed: raise VERSION, train the shipped weights again, and update VOCABULARY_GOLDEN"
    )


def test_another_version_gives_other_texts(monkeypatch):
    before = generate("near", "train", 10)[0]
    monkeypatch.setattr(language, "VERSION", language.VERSION + 1)
    assert not set(before) & set(generate("near", "train", 10)[0])


@pytest.mark.parametrize(("name", "split", "suggestion"), [("leters", "train", "letters"), ("near", "tset", "test")])
def test_an_unknown_name_raises_with_a_suggestion(name, split, suggestion):
    with pytest.raises(UserError, match=f"did you mean '{suggestion}'"):
        generate(name, split, 1)


def test_a_negative_count_raises():
    with pytest.raises(UserError, match="-1"):
        generate("near", "train", -1)
