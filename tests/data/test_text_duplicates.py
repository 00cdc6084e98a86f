"""Duplicates among texts: every kind of planted copy is found, and texts of one template are not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.core.suite import TEXT_COPY_KINDS
from xferbench.data import altered_texts, language, text_duplicates, text_fingerprints
from xferbench.data.raw import TextExample

COUNT = 60
MIN_FOUND = {"misspelled": 0.6}  # share; two errors change two of a dozen words


def fingerprint(texts):
    return text_fingerprints.fingerprint_texts(
        TextExample(*text) if isinstance(text, tuple) else TextExample(text) for text in texts
    )


def search(test, train, **options):
    return text_duplicates.find_duplicates(fingerprint(test), fingerprint(train), **options)


def alter(texts, kind, seed=0):
    rng = np.random.default_rng(seed)
    examples = [TextExample(*text) if isinstance(text, tuple) else TextExample(text) for text in texts]
    donors = [*examples[1:], examples[0]]
    copies = [altered_texts.alter_text(example, kind, rng, donor) for example, donor in zip(examples, donors, strict=True)]
    return [tuple(copy) if copy.pair else copy.text for copy in copies]


@pytest.fixture(scope="module")
def stories():
    """Return different texts of two or three invented sentences: 600 for training and 200 for testing."""
    return language.generate("near", "train", 600)[0], language.generate("near", "test", 200)[0]


@pytest.fixture(scope="module")
def pairs(stories):
    """Return different pairs of texts: 300 for training and 100 for testing."""
    return tuple(list(zip(texts[::2], texts[1::2], strict=True)) for texts in stories)


@pytest.mark.parametrize("kind", TEXT_COPY_KINDS)
def test_altered_copies_are_found_with_their_original(stories, kind):
    train, test = stories
    matches = search([*alter(train[:COUNT], kind), *test], train)
    expected = "exact" if kind == "repunctuated" else "near"
    assert ((matches.kind[:COUNT] == expected) & (matches.index[:COUNT] == np.arange(COUNT))).mean() >= MIN_FOUND.get(
        kind, 0.95
    )
    assert not matches.found[COUNT:].any()


@pytest.mark.parametrize("kind", TEXT_COPY_KINDS)
def test_altered_pairs_are_found_with_their_order(pairs, kind):
    train, test = pairs
    matches = search([*alter(train[:COUNT], kind), *test], train)
    expected = {"repunctuated": "exact", "swapped": "swapped"}.get(kind, "near")
    assert ((matches.kind[:COUNT] == expected) & (matches.index[:COUNT] == np.arange(COUNT))).mean() >= MIN_FOUND.get(
        kind, 0.95
    )
    assert not matches.found[COUNT:].any()


def test_a_pair_in_the_other_order_is_a_kind_of_its_own(pairs):
    train, test = pairs
    swapped = [(second, first) for first, second in train[:5]]
    matches = search([*swapped, *train[5:10], *test], train)
    assert matches.kind[:10].tolist() == ["swapped"] * 5 + ["exact"] * 5
    assert matches.index[:10].tolist() == list(range(10))
    assert (matches.distance[:10] == 0).all() and (matches.chance[:10] == 0).all()


def test_a_pair_with_one_text_of_another_pair_is_no_copy(pairs):
    train, test = pairs
    mixed = [(first, other) for (first, _), (_, other) in zip(train[:50], test[:50], strict=True)]
    assert not search([*mixed, *((second, first) for first, second in mixed), *test], train).found.any()
    assert not search([first for first, _ in train[:50]], train).found.any(), "nor is one text of a pair alone"


@pytest.mark.parametrize("size", [70, 200, 1000])
@pytest.mark.parametrize("dataset", ["source", "near", "letters", "number"])
def test_different_texts_are_not_duplicates(dataset, size):
    train, test = (language.generate(dataset, split, count)[0] for split, count in (("train", size), ("test", 500)))
    assert not search(test, train).found.any()


@pytest.mark.parametrize("known", [2, 5, 40])
@pytest.mark.parametrize("template", ["What is the capital of {} ?", "How many people live in {} ?"])
def test_questions_of_one_template_are_not_duplicates(stories, template, known):
    train, test = stories
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    questions = [template.format("".join(rng.choice(letters, 6)).capitalize()) for _ in range(60)]
    assert not search([*questions[known:], *test], [*train, *questions[:known]]).found.any()
    assert search([*questions, *test], [*train, *questions[:known]]).found.sum() == known


@pytest.mark.parametrize(("size", "false_alarms"), [(100, 2), (300, 0), (900, 0)])
def test_commands_that_differ_in_one_of_four_words_are_not_duplicates(size, false_alarms):
    verbs, things = (
        ("dim", "activate", "stop", "repair", "open", "clean"),
        ("lamp", "heater", "fan", "radio", "oven", "printer"),
    )
    rooms, times = ("kitchen", "bedroom", "garage", "attic", "office", "hall"), ("now", "today", "later", "tonight", "tomorrow")
    commands = [
        f"please {verb} the {thing} in the {room} {time}" for verb, thing, room, time in product(verbs, things, rooms, times)
    ]
    order = np.random.default_rng(0).permutation(len(commands))
    train, test = ([commands[index] for index in part] for part in (order[:size], order[size : size + 150]))
    assert search(test, train).found.sum() <= false_alarms


def test_the_copies_among_the_questions_of_trec_are_found(shared):
    """Four of TREC are found next to the identical questions: three ask the same in other words, one is a false alarm."""
    folder = shared / "data" / "text"
    train, test = (
        [line.partition(" ")[2].strip() for line in (folder / name).read_text("latin-1").split("\n") if line]
        for name in ("TREC.train.all", "TREC.test.all")
    )
    matches = search(test, train)
    assert (matches.kind == "exact").sum() == 11
    assert {(test[index], train[matches.index[index]]) for index in np.flatnonzero(matches.kind == "near")} == {
        ("What type of currency is used in Australia ?", "What currency is used in Australia ?"),
        ("Who painted the ceiling of the Sistine Chapel ?", "Who painted the Sistine Chapel ?"),
        ("What is the birthstone for June ?", "What is June 's birthstone ?"),
        ("What is plastic made of ?", "How is plastic made ?"),
    }


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_distance_is_one_minus_the_jaccard_index_by_information(data):
    words = st.lists(st.sampled_from(["red", "green", "blue", "black", "white"]), min_size=1, max_size=5).map(" ".join)
    train, test = (data.draw(st.lists(words, min_size=1, max_size=8)) for _ in range(2))
    matches = search(test, train)
    sets = [set(text.split()) for text in train]

    def information(part):
        return sum(np.log((len(train) + 1) / (sum(word in other for other in sets) + 1)) for word in part)

    for text, distance in zip(test, matches.distance, strict=True):
        own = set(text.split())
        united = [information(own | other) for other in sets]
        similarity = [information(own & other) / total if total else 1.0 for other, total in zip(sets, united, strict=True)]
        assert distance == pytest.approx(1 - max(similarity), abs=1e-4)


@pytest.mark.parametrize("times", [2, 8])
def test_duplicates_are_found_in_a_set_that_was_augmented_before_it_was_split(stories, times):
    kinds = ("repunctuated", "shortened", "swapped", "truncated")
    versions = [alter(stories[0], kinds[number % len(kinds)], number) for number in range(times)]
    augmented = [text for group in zip(*versions, strict=True) for text in group]
    order = np.random.default_rng(0).permutation(len(augmented))
    train = [augmented[index] for index in order[300:]]
    matches = search([*(augmented[index] for index in order[:300]), *stories[1]], train)
    has_duplicate = np.isin(order[:300] // times, order[300:] // times)
    assert matches.found[:300][has_duplicate].mean() > 0.85
    assert (order[300:][matches.index[:300][has_duplicate]] // times == order[:300][has_duplicate] // times).mean() > 0.98
    assert not matches.found[300:].any()
    assert not matches.found[:300][~has_duplicate].any()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_threshold_does_not_depend_on_the_share_of_duplicates(stories, share):
    train, test = stories
    count = round(share * len(test))
    matches = search([*alter(train[:count], "shortened"), *test[count:]], train)
    assert matches.found[:count].mean() > 0.97
    assert not matches.found[count:].any()


def test_a_text_is_not_a_duplicate_of_itself(stories):
    train = [*stories[0][:300], stories[0][0].upper(), *alter(stories[0][1:4], "shortened")]
    prints = fingerprint(train)
    matches = text_duplicates.find_duplicates(prints, prints, same=True)
    assert np.flatnonzero(matches.found).tolist() == [0, 1, 2, 3, 300, 301, 302, 303]
    assert matches.index[[0, 1, 2, 3, 300, 301, 302, 303]].tolist() == [300, 301, 302, 303, 0, 1, 2, 3]


def test_in_a_small_set_only_identical_texts_are_found(stories):
    train, _ = stories
    matches = search([train[3].upper(), *alter(train[4:5], "shortened"), train[100]], train[:60])
    assert matches.kind.tolist() == ["exact", "", ""]
    assert matches.index[:2].tolist() == [3, 4]


def test_a_plain_text_has_only_identical_duplicates(stories):
    common = "all the same words"
    train = [f"{common} {text}" for text in stories[0]]
    matches = search([common, *stories[1]], train)
    assert matches.plain[0] and not matches.plain[1:].any()
    assert not matches.found.any()
    assert search([common], [*train, common]).kind.tolist() == ["exact"]


def test_empty_sets_have_no_duplicates(stories):
    few = stories[0][:5]
    assert search(few, []).index.tolist() == [-1] * 5
    assert not search(few, []).found.any()
    assert len(search([], few).kind) == len(search([], []).kind) == 0


def test_blocks_of_rows_do_not_change_the_result(stories, monkeypatch):
    train, test = stories
    queries = [*alter(train[:20], "truncated"), *test]
    whole = search(queries, train)
    monkeypatch.setattr(text_duplicates, "BLOCK_VALUES", 7 * len(train))
    parts = search(queries, train)
    assert np.array_equal(whole.kind, parts.kind) and np.array_equal(whole.index, parts.index)
    np.testing.assert_allclose(parts.distance, whole.distance, atol=1e-6)
