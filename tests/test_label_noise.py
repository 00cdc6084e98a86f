"""Label noise, from the suite's word to the labels that a network is taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xferbench import fake, plan, suite, testing
from xferbench.core.interventions import LabelNoise
from xferbench.design import digest


def test_it_conforms():
    testing.intervention_conforms(LabelNoise)


def test_a_suite_a_plugin_and_a_matrix_may_ask_for_it():
    base = {"schema": 1, "name": "ants", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    asked = suite.parse(base | {"target": {"data": "synthetic:near", "interventions": ["label-noise:0.2"]}}, Path("a.toml"))
    assert asked.interventions == (LabelNoise(rate=0.2),)
    noisy = {"name": "noisy", "data": "synthetic:near", "interventions": ["label-noise:0.4"]}
    matrix = {"targets": [noisy], "recipes": ["linear-probe"]}
    assert suite.parse(base | {"matrix": matrix}, Path("a.toml")).matrix.tasks[0].interventions == (LabelNoise(rate=0.4),)
    induced = replace(fake.PIPELINE, interventions=(LabelNoise(rate=0.2),))
    assert digest(plan.fit(induced, 0)) != digest(plan.fit(fake.PIPELINE, 0))


@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_that_share_of_the_training_labels_is_wrong_and_nothing_else(tmp_path, rate):
    pytest.importorskip("torch")
    from test_fit import make_fit, make_world, prepared

    from xferbench.lab.training.examples import training_subset

    world = make_world(tmp_path)
    clean, noisy = make_fit(world), make_fit(world, interventions=(LabelNoise(rate=rate),))
    _, _, dataset = prepared(world, clean)
    test = np.array(dataset.test.labels)
    before, after, again = (training_subset(dataset, fit) for fit in (clean, noisy, noisy))
    wrong = before.labels != after.labels
    assert wrong.sum() == round(rate * len(wrong))
    assert np.array_equal(after.labels, again.labels), "the same seed has the same noise"
    assert set(after.labels) <= set(range(len(dataset.classes)))
    assert np.array_equal(before.validation, after.validation)
    assert np.array_equal(dataset.test.labels, test)
    other = training_subset(dataset, replace(noisy, seed=1))
    assert rate == 1 or not np.array_equal(other.labels != training_subset(dataset, replace(clean, seed=1)).labels, wrong)
    more = training_subset(dataset, replace(noisy, interventions=(LabelNoise(rate=min(1.0, 2 * rate)),)))
    assert (more.labels == after.labels)[wrong].all(), "a higher rate keeps the wrong labels of a lower one"
