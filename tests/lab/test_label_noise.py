"""Label noise, from the spelling in a suite to the training labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xferbench.config import loader
from xferbench.core.canonical import digest
from xferbench.core.interventions import LabelNoise
from xferbench.study import trials
from xferbench.testing import conformance, fake_lab


def test_the_intervention_conforms():
    conformance.intervention_conforms(LabelNoise)


def test_a_suite_a_plugin_and_a_matrix_can_use_it():
    base = {"schema": 1, "name": "ants", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    asked = loader.parse_suite(
        base | {"target": {"data": "synthetic:near", "interventions": ["label-noise:0.2"]}}, Path("a.toml")
    )
    assert asked.data.interventions == (LabelNoise(rate=0.2),)
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
    from test_loop import make_fit, make_world, prepared

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
