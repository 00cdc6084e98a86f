"""Calibration: predicted probabilities against observed frequencies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_binary_predictions

from xferbench.analysis import reliability


def make_predictions(correct, confidence):
    return replace(make_binary_predictions(correct), p_max=np.asarray(confidence, np.float32))


def test_a_diagram_is_sorted_by_confidence():
    confidence = np.repeat([0.9, 0.5], 300)
    diagram = reliability.reliability_diagram(make_predictions(np.arange(600) % 2 == 0, confidence))
    assert diagram.shape == (15, 2) and diagram[0, 0] == pytest.approx(0.5) and diagram[-1, 0] == pytest.approx(0.9)
    assert diagram[:, 1] == pytest.approx(0.5)


def test_few_images_have_one_bin_each():
    _, _, size = reliability.confidence_bins(make_predictions([True, False], [0.9, 0.8]))
    assert size.tolist() == [1, 1]


def test_the_unbiased_squared_error_may_be_negative():
    assert reliability.squared_calibration_error(make_predictions(np.arange(300) % 2 == 0, np.full(300, 0.5))) < 0
