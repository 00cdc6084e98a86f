"""Class imbalance, from the spelling in a suite to the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xferbench.config import loader
from xferbench.core.interventions import ClassImbalance, LabelNoise
from xferbench.core.sections import replace_flat
from xferbench.testing import intervention_conforms


def test_the_intervention_conforms():
    intervention_conforms(ClassImbalance)


def test_a_suite_can_combine_it_with_another_intervention():
    table = {"schema": 1, "name": "ants", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    target = {"data": "synthetic:near", "interventions": ["class-imbalance:100", "label-noise:0.2"]}
    suite = loader.parse_suite(table | {"target": target}, Path("a.toml"))
    assert suite.data.interventions == (ClassImbalance(ratio=100), LabelNoise(rate=0.2))


@pytest.mark.parametrize("ratio", [4.0, 1000.0])
def test_only_the_training_images_get_a_long_tail(tmp_path, ratio):
    pytest.importorskip("torch")
    from test_loop import make_spec, make_workspace, prepare_training

    from xferbench.lab.training.examples import training_subset

    workspace = make_workspace(tmp_path)
    balanced, tailed = make_spec(workspace), make_spec(workspace, interventions=(ClassImbalance(ratio=ratio),))
    _, _, dataset = prepare_training(workspace, balanced)
    before, after = (training_subset(dataset, spec) for spec in (balanced, tailed))
    classes = len(dataset.classes)
    largest = np.bincount(before.labels).max()
    expected = [max(1, round(largest * ratio ** (-index / (classes - 1)))) for index in range(classes)]
    assert np.bincount(after.labels).tolist() == expected
    assert set(after.split.example) <= set(before.split.example[before.index])
    assert np.array_equal(before.validation, after.validation)
    less = training_subset(dataset, replace_flat(tailed, interventions=(ClassImbalance(ratio=2 * ratio),)))
    assert set(less.split.example) <= set(after.split.example)
