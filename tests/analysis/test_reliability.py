"""How far stated probabilities are from what comes true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_told

from xferbench.analysis import reliability


def make_stated(correct, stated):
    return replace(make_told(correct), p_max=np.asarray(stated, np.float32))


def test_a_diagram_rises_from_the_least_sure_to_the_surest():
    stated = np.repeat([0.9, 0.5], 300)
    diagram = reliability.reliability_diagram(make_stated(np.arange(600) % 2 == 0, stated))
    assert diagram.shape == (15, 2) and diagram[0, 0] == pytest.approx(0.5) and diagram[-1, 0] == pytest.approx(0.9)
    assert diagram[:, 1] == pytest.approx(0.5)


def test_bins_of_few_images_are_as_many_as_there_are():
    _, _, size = reliability.confidence_bins(make_stated([True, False], [0.9, 0.8]))
    assert size.tolist() == [1, 1]


def test_the_unbiased_square_may_be_negative():
    assert reliability.squared_calibration_error(make_stated(np.arange(300) % 2 == 0, np.full(300, 0.5))) < 0
