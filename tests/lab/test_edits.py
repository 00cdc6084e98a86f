from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xferbench.core.interventions import Edit
from xferbench.lab.evaluation import edits

HEAD = {"fc.weight": torch.arange(6.0).view(3, 2), "fc.bias": torch.tensor([1.0, 2.0, 3.0])}


def test_interpolation_gives_the_ends():
    before = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(1)}
    after = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(9)} | HEAD
    none, half, whole = (edits.interpolate_checkpoints(before, after, share, "fc") for share in (0, 0.5, 1))
    assert torch.equal(none["w"], before["w"])
    assert (int(none["n"]), int(half["n"])) == (1, 9)
    assert half["w"].tolist() == [0.5, 3.0]
    assert torch.equal(whole["w"], after["w"])
    assert torch.equal(half["fc.weight"], HEAD["fc.weight"]), "the head stays"


def test_between_beginning_and_end_lie_all_weights_and_both_ends_are_exact():
    begun = {"w": torch.tensor([0.1, -0.0]), "n": torch.tensor(1)} | HEAD
    ended = {"w": torch.tensor([0.7, -0.0]), "n": torch.tensor(9), "fc.weight": torch.ones(3, 2), "fc.bias": torch.zeros(3)}
    assert edits.interpolate_phase(begun, ended, 0) is begun and edits.interpolate_phase(begun, ended, 1.0) is ended
    half = edits.interpolate_phase(begun, ended, 0.5)
    assert half["fc.weight"].tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]] and int(half["n"]) == 9


def test_the_order_of_classes_is_the_one_with_the_most_right_answers():
    logits = np.eye(3)[[1, 1, 2, 0, 0]]
    assert edits.assign_classes(logits, np.array([0, 0, 1, 2, 2])).tolist() == [1, 2, 0]


def test_a_network_that_is_right_keeps_its_order():
    assert edits.assign_classes(np.eye(4)[[0, 1, 2]], np.array([0, 1, 2])).tolist() == [0, 1, 2, 3]


def test_outputs_of_no_class_stay_behind_the_others():
    assert edits.assign_classes(np.eye(4)[[3, 3, 1]], np.array([0, 0, 1])).tolist() == [3, 1, 0, 2]


@given(st.permutations(range(6)))
def test_any_exchange_of_classes_is_found(order):
    labels = np.repeat(np.arange(6), 3)
    assert edits.assign_classes(np.eye(6)[np.array(order)[labels]], labels).tolist() == list(order)


def test_the_order_is_that_of_the_heads_rows():
    told = edits.edit_head(Edit.parse("classes:assigned@1"), dict(HEAD), "fc", lambda: (np.eye(3)[[2, 0, 1]], np.arange(3)))
    assert told["fc.bias"].tolist() == [3.0, 1.0, 2.0]
    assert torch.equal(told["fc.weight"], HEAD["fc.weight"][[2, 0, 1]])


def test_rotated_classes_are_wrong_everywhere():
    told = edits.edit_head(Edit.parse("classes:rotated"), dict(HEAD), "fc", lambda: (np.empty(0), np.empty(0)))
    assert told["fc.bias"].tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5)) * 2
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    assert edits.fit_temperature(scale * true, labels) == pytest.approx(scale, rel=0.1)


def test_a_temperature_divides_logits_and_changes_no_answer():
    told = edits.edit_head(Edit.parse("temperature:2"), dict(HEAD), "fc", lambda: (np.empty(0), np.empty(0)))
    assert torch.equal(told["fc.weight"], HEAD["fc.weight"] / 2)
    assert torch.equal(told["fc.bias"], HEAD["fc.bias"] / 2)


def test_an_order_that_is_not_known_is_refused():
    with pytest.raises(TypeError, match="head:probe"):
        edits.edit_head(Edit.parse("head:probe"), dict(HEAD), "fc", lambda: (np.empty(0), np.empty(0)))


def test_fresh_statistics_are_those_of_a_fresh_layer():
    layer = torch.nn.BatchNorm2d(3)
    fresh = {name: one.clone() for name, one in layer.named_buffers()}
    layer(torch.randn(8, 3, 4, 4))
    told = edits.initial_statistics(dict(layer.named_buffers()))
    assert all(torch.equal(told[name], fresh[name]) for name in fresh)
