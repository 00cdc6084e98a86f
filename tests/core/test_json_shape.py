from __future__ import annotations

import math

import pytest

from xferbench.core.json_shape import check_shape, read_json

SHAPE = {"name": str, "margin": (None, float), "looks": [int], "kind?": frozenset(("a", "b")), str: bool}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "x", "margin": None, "looks": []},
        {"name": "x", "margin": 1, "looks": [1, 2], "kind": "a", "other": True},
    ],
)
def test_values_that_fit(value):
    check_shape(value, SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "name: 1, expected str"),
        ({"margin": "1"}, "margin: '1', expected float"),
        ({"margin": True}, "margin: True, expected float"),
        ({"margin": 10**400}, "margin: 1000"),
        ({"margin": float("inf")}, "margin: inf"),
        ({"looks": [1, True]}, r"looks\[1\]: True, expected int"),
        ({"looks": [2**63]}, r"looks\[0\]"),
        ({"looks": {}}, "looks: {}, expected list"),
        ({"kind": "c"}, "kind: 'c', expected a, b"),
        ({"kind": []}, "kind"),
        ({"other": 1}, "other: 1, expected bool"),
    ],
)
def test_the_error_names_the_first_value_that_does_not_fit(change, message):
    value = {"name": "x", "margin": 0.5, "looks": [1]} | change
    with pytest.raises(ValueError, match=message):
        check_shape(value, SHAPE)


def test_a_key_without_a_question_mark_is_required():
    with pytest.raises(ValueError, match="looks is missing"):
        check_shape({"name": "x", "margin": 1}, SHAPE)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"a": NaN}', b'{"a": -Infinity}', b"", b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_text_that_is_no_plain_json_is_a_value_error(data):
    with pytest.raises(ValueError):
        read_json(data, object)


def test_constants_of_other_programs_are_read_only_if_they_are_allowed():
    value = read_json(b'{"a": [NaN, -Infinity]}', {"a": [object]}, allow_constants=True)
    assert math.isnan(value["a"][0]) and value["a"][1] == -math.inf
    with pytest.raises(ValueError, match=r"a\[0\]: nan, expected float"):
        read_json(b'{"a": [NaN]}', {"a": [float]}, allow_constants=True)
