"""Edits of tensors: interpolation, class order, temperature and initial statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xferbench.core.interventions import Edit
from xferbench.lab.evaluation import edits

HEAD = {"fc.weight": torch.arange(6.0).view(3, 2), "fc.bias": torch.tensor([1.0, 2.0, 3.0])}


def test_interpolate_checkpoints_returns_both_ends():
    before = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(1)}
    after = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(9)} | HEAD
    none, half, whole = (edits.interpolate_checkpoints(before, after, share, "fc") for share in (0, 0.5, 1))
    assert torch.equal(none["w"], before["w"])
    assert (int(none["n"]), int(half["n"])) == (1, 9)
    assert half["w"].tolist() == [0.5, 3.0]
    assert torch.equal(whole["w"], after["w"])
    assert torch.equal(half["fc.weight"], HEAD["fc.weight"]), "the head stays"


def test_interpolate_phase_includes_the_head_and_has_exact_ends():
    start = {"w": torch.tensor([0.1, -0.0]), "n": torch.tensor(1)} | HEAD
    end = {"w": torch.tensor([0.7, -0.0]), "n": torch.tensor(9), "fc.weight": torch.ones(3, 2), "fc.bias": torch.zeros(3)}
    assert edits.interpolate_phase(start, end, 0) is start and edits.interpolate_phase(start, end, 1.0) is end
    half = edits.interpolate_phase(start, end, 0.5)
    assert half["fc.weight"].tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]] and int(half["n"]) == 9


def test_assign_classes_maximizes_the_correct_examples():
    logits = np.eye(3)[[1, 1, 2, 0, 0]]
    assert edits.assign_classes(logits, np.array([0, 0, 1, 2, 2])).tolist() == [1, 2, 0]


def test_assign_classes_keeps_a_correct_order():
    assert edits.assign_classes(np.eye(4)[[0, 1, 2]], np.array([0, 1, 2])).tolist() == [0, 1, 2, 3]


def test_outputs_of_no_class_come_last():
    assert edits.assign_classes(np.eye(4)[[3, 3, 1]], np.array([0, 0, 1])).tolist() == [3, 1, 0, 2]


@given(st.permutations(range(6)))
def test_assign_classes_undoes_any_permutation(order):
    labels = np.repeat(np.arange(6), 3)
    assert edits.assign_classes(np.eye(6)[np.array(order)[labels]], labels).tolist() == list(order)


def test_assigned_classes_reorder_the_rows_of_the_head():
    edited = edits.edit_head(Edit.parse("classes:assigned@1"), dict(HEAD), "fc", lambda: (np.eye(3)[[2, 0, 1]], np.arange(3)))
    assert edited["fc.bias"].tolist() == [3.0, 1.0, 2.0]
    assert torch.equal(edited["fc.weight"], HEAD["fc.weight"][[2, 0, 1]])


def test_rotated_classes_are_all_wrong():
    edited = edits.edit_head(Edit.parse("classes:rotated"), dict(HEAD), "fc", lambda: (np.empty(0), np.empty(0)))
    assert edited["fc.bias"].tolist() == [3.0, 1.0, 2.0]


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_a_fitted_bias_undoes_any_bias_of_the_head(shift):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(300, 3)), generator.integers(0, 3, 300)
    plain, shifted = (other + edits.fit_class_bias(other, labels) for other in (logits, logits + shift))
    centered, shifted_centered = (other - other.mean(1, keepdims=True) for other in (plain, shifted))
    np.testing.assert_allclose(centered, shifted_centered, atol=0.02)


def test_the_fitted_bias_of_an_absent_class_is_finite_and_low():
    bias = edits.fit_class_bias(np.zeros((50, 3)), np.arange(50) % 2)
    assert np.isfinite(bias).all() and bias[2] < bias[:2].min() - 3


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_fit_temperature_recovers_a_scale(scale):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5)) * 2
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    assert edits.fit_temperature(scale * true, labels) == pytest.approx(scale, rel=0.1)


def test_a_temperature_divides_the_weights_of_the_head():
    edited = edits.edit_head(Edit.parse("temperature:2"), dict(HEAD), "fc", lambda: (np.empty(0), np.empty(0)))
    assert torch.equal(edited["fc.weight"], HEAD["fc.weight"] / 2)
    assert torch.equal(edited["fc.bias"], HEAD["fc.bias"] / 2)


def test_an_edit_of_another_kind_raises():
    with pytest.raises(TypeError, match="head:probe"):
        edits.edit_head(Edit.parse("head:probe"), dict(HEAD), "fc", lambda: (np.empty(0), np.empty(0)))


def test_initial_statistics_equal_those_of_a_new_layer():
    layer = torch.nn.BatchNorm2d(3)
    fresh = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    layer(torch.randn(8, 3, 4, 4))
    edited = edits.initial_statistics(dict(layer.named_buffers()))
    assert all(torch.equal(edited[name], fresh[name]) for name in fresh)
