"""Label noise, from the spelling in a suite to the training labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xferbench.config import loader
from xferbench.core.canonical import digest
from xferbench.core.interventions import LabelNoise
from xferbench.core.sections import replace_flat
from xferbench.study import trials
from xferbench.testing import fake_lab, intervention_conforms


def test_the_intervention_conforms():
    intervention_conforms(LabelNoise)


def test_a_suite_a_plugin_and_a_matrix_can_use_it():
    base = {"schema": 1, "name": "ants", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    suite = loader.parse_suite(
        base | {"target": {"data": "synthetic:near", "interventions": ["label-noise:0.2"]}}, Path("a.toml")
    )
    assert suite.data.interventions == (LabelNoise(rate=0.2),)
    noisy = {"name": "noisy", "data": "synthetic:near", "interventions": ["label-noise:0.4"]}
    matrix = {"targets": [noisy], "recipes": ["linear-probe"]}
    assert loader.parse_suite(base | {"matrix": matrix}, Path("a.toml")).matrix.tasks[0].data.interventions == (
        LabelNoise(rate=0.4),
    )
    induced = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, interventions=(LabelNoise(rate=0.2),)))
    assert digest(trials.training_spec(induced, 0)) != digest(trials.training_spec(fake_lab.PIPELINE, 0))


@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_only_the_given_share_of_training_labels_changes(tmp_path, rate):
    pytest.importorskip("torch")
    from test_loop import make_spec, make_workspace, prepare_training

    from xferbench.lab.training.examples import training_subset

    workspace = make_workspace(tmp_path)
    clean, noisy = make_spec(workspace), make_spec(workspace, interventions=(LabelNoise(rate=rate),))
    _, _, dataset = prepare_training(workspace, clean)
    test = np.array(dataset.test.labels)
    before, after, repeated = (training_subset(dataset, spec) for spec in (clean, noisy, noisy))
    is_wrong = before.labels != after.labels
    assert is_wrong.sum() == round(rate * len(is_wrong))
    assert np.array_equal(after.labels, repeated.labels), "the same seed has the same noise"
    assert set(after.labels) <= set(range(len(dataset.classes)))
    assert np.array_equal(before.validation, after.validation)
    assert np.array_equal(dataset.test.labels, test)
    other = training_subset(dataset, replace(noisy, seed=1))
    assert rate == 1 or not np.array_equal(other.labels != training_subset(dataset, replace(clean, seed=1)).labels, is_wrong)
    more = training_subset(dataset, replace_flat(noisy, interventions=(LabelNoise(rate=min(1.0, 2 * rate)),)))
    assert (more.labels == after.labels)[is_wrong].all(), "a higher rate keeps the wrong labels of a lower one"
