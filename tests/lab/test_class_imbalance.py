"""Class imbalance, from the spelling in a suite to the training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xferbench.config import loader
from xferbench.core.interventions import ClassImbalance, LabelNoise
from xferbench.testing import conformance


def test_the_intervention_conforms():
    conformance.intervention_conforms(ClassImbalance)


def test_a_suite_can_combine_it_with_another_intervention():
    table = {"schema": 1, "name": "ants", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    target = {"data": "synthetic:near", "interventions": ["class-imbalance:100", "label-noise:0.2"]}
    asked = loader.parse_suite(table | {"target": target}, Path("a.toml"))
    assert asked.data.interventions == (ClassImbalance(ratio=100), LabelNoise(rate=0.2))


@pytest.mark.parametrize("ratio", [4.0, 1000.0])
def test_only_the_training_images_get_a_long_tail(tmp_path, ratio):
    pytest.importorskip("torch")
    from test_loop import make_fit, make_world, prepared

    from xferbench.lab.training.examples import training_subset

    world = make_world(tmp_path)
    balanced, tailed = make_fit(world), make_fit(world, interventions=(ClassImbalance(ratio=ratio),))
    _, _, dataset = prepared(world, balanced)
    before, after = (training_subset(dataset, fit) for fit in (balanced, tailed))
    classes = len(dataset.classes)
    many = np.bincount(before.labels).max()
    expected = [max(1, round(many * ratio ** (-k / (classes - 1)))) for k in range(classes)]
    assert np.bincount(after.labels).tolist() == expected
    assert set(after.split.example) <= set(before.split.example[before.index])
    assert np.array_equal(before.validation, after.validation)
    less = training_subset(dataset, replace(tailed, interventions=(ClassImbalance(ratio=2 * ratio),)))
    assert set(less.split.example) <= set(after.split.example)
