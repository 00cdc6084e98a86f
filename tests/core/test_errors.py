from __future__ import annotations

import pickle

import pytest

from xferbench.core.errors import UserError, suggest

KEYS = ("batch_size", "batchnorm", "lr", "margin", "metric", "target", "weight_decay", "warmup")


def test_a_message_says_what_was_found_what_was_expected_and_what_to_do():
    problem = UserError("ants.toml: margin", found="0", expected="a number above 0", do="raise it")
    assert str(problem).splitlines() == [
        "ants.toml: margin",
        "  found: 0",
        "  expected: a number above 0",
        "  do: raise it",
    ]


def test_what_is_not_known_is_left_out():
    assert str(UserError("matrix: not used", do="leave it out")) == "matrix: not used\n  do: leave it out"


def test_its_place_can_be_told_more_fully():
    told = UserError("lr", found="0", expected="more", do="raise it").at("[recipe] lr")
    assert (told.what, told.found, told.expected, told.do) == ("[recipe] lr", "0", "more", "raise it")


def test_it_comes_whole_out_of_a_worker_process():
    problem = UserError("what", found="this", expected="that", do="so")
    again = pickle.loads(pickle.dumps(problem))
    assert str(again) == str(problem)
    assert (again.what, again.found, again.expected, again.do) == ("what", "this", "that", "so")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("marge", "margin"),
        ("Margin", "margin"),
        ("learning_rate", "lr"),
        ("bs", "batch_size"),
        ("wd", "weight_decay"),
        ("batchnrom", "batchnorm"),
        ("weightdecay", "weight_decay"),
        ("warm_up", "warmup"),
    ],
)
def test_the_nearest_known_name_is_the_one_that_was_meant(name, meant):
    assert suggest(name, KEYS).startswith(f"did you mean {meant!r}? known: ")


def test_all_known_names_are_listed_in_order():
    assert suggest("margins", reversed(KEYS)).endswith("known: " + ", ".join(sorted(KEYS)))


@pytest.mark.parametrize("name", ["xyzzy", "", "…"])
def test_a_name_that_is_like_no_other_is_not_guessed_at(name):
    assert suggest(name, KEYS).startswith("known: ")
    assert suggest(name, ()) == "known: "
