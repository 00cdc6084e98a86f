"""What is drawn, and in which colours."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from xferbench.report import plotting


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_an_arm_has_the_same_colour_whatever_stands_beside_it():
    found = plotting.arm_colours(["induced:b", "subject", "induced:c", "scratch"])
    assert found["subject"] == plotting.ARM_COLOURS["subject"] and found["scratch"] == plotting.ARM_COLOURS["scratch"]
    assert [found["induced:b"], found["induced:c"]] == list(plotting.INDUCED_COLOURS[:2])
    assert len(plotting.arm_colours(map(str, range(9)))) == 9, "they begin again where there are many"


def test_a_mean_stands_among_thin_lines_a_seed(axes):
    plotting.draw_lines(axes, {"subject": [[(0, 1.0), (1, 3.0)], [(0, 3.0), (1, np.nan)]], "cured": [[]]})
    *thin, mean = axes.lines
    assert len(thin) == 2 and list(mean.get_ydata()) == [2.0, 3.0], "what is not finite counts for nothing"
    assert mean.get_label() == "subject" and {line.get_color() for line in axes.lines} == {plotting.ARM_COLOURS["subject"]}


def test_a_shorter_curve_is_drawn_and_in_no_mean(axes):
    plotting.draw_lines(axes, {"induced:x30": [[(0, 1.0), (1, 1.0)], [(0, 5.0)]]})
    assert len(axes.lines) == 3 and list(axes.lines[-1].get_ydata()) == [1.0, 1.0]
    assert axes.lines[-1].get_label() == "x30"


def test_a_point_lies_at_the_means(axes):
    plotting.draw_points(axes, {"subject": [(0.0, 1.0), (1.0, 2.0)]})
    assert axes.lines[-1].get_xydata().tolist() == [[0.5, 1.5]]


def test_a_map_has_its_rows_from_the_lowest_up_and_a_mark_in_a_cell(axes):
    plotting.draw_mesh(axes, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], ["low", "high"], ["1", "2", "3"], "score")
    plotting.draw_mark(axes, 2.5, 0.5, "x")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["low", "high"]
    assert axes.lines[0].get_marker() == "x"
