from __future__ import annotations

import pickle

import pytest

from xferbench.core.errors import UserError, suggest

KEYS = ("batch_size", "batchnorm", "lr", "margin", "metric", "target", "weight_decay", "warmup")


def test_a_message_shows_what_was_found_what_was_expected_and_what_to_do():
    error = UserError("ants.toml: margin", found="0", expected="a number above 0", do="raise it")
    assert str(error).splitlines() == [
        "ants.toml: margin",
        "  found: 0",
        "  expected: a number above 0",
        "  do: raise it",
    ]


def test_a_message_omits_missing_parts():
    assert str(UserError("matrix: not used", do="leave it out")) == "matrix: not used\n  do: leave it out"


def test_at_replaces_the_place_of_an_error():
    error = UserError("lr", found="0", expected="more", do="raise it").at("[recipe] lr")
    assert (error.what, error.found, error.expected, error.do) == ("[recipe] lr", "0", "more", "raise it")


def test_an_error_survives_pickling():
    error = UserError("what", found="this", expected="that", do="so")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.what, copy.found, copy.expected, copy.do) == ("what", "this", "that", "so")


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_suggest_names_the_nearest_known_name(name, expected):
    assert suggest(name, KEYS).startswith(f"did you mean {expected!r}? known: ")


def test_suggest_lists_all_known_names_in_order():
    assert suggest("margins", reversed(KEYS)).endswith("known: " + ", ".join(sorted(KEYS)))


@pytest.mark.parametrize("name", ["xyzzy", "", "…"])
def test_suggest_does_not_guess_for_a_name_unlike_all_others(name):
    assert suggest(name, KEYS).startswith("known: ")
    assert suggest(name, ()) == "known: "


def test_each_part_of_a_message_is_one_printable_line():
    error = UserError("a\n::error::b.toml", found="x\x1b[2J\r\ny", expected="\u202eabc", do="run a\nthen\x07 b")
    assert str(error).splitlines() == [
        "a ::error::b.toml",
        "  found: x [2J y",
        "  expected: abc",
        "  do: run a",
        "      then  b",
    ]
