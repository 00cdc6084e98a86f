"""Lines, points and heat maps on matplotlib axes, and the colors of arms."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from xferbench.report import plotting


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_an_arm_keeps_its_color_next_to_other_arms():
    colors = plotting.arm_colors(["induced:b", "subject", "induced:c", "scratch"])
    assert colors["subject"] == plotting.ARM_COLORS["subject"] and colors["scratch"] == plotting.ARM_COLORS["scratch"]
    assert [colors["induced:b"], colors["induced:c"]] == list(plotting.INDUCED_COLORS[:2])
    assert len(plotting.arm_colors(map(str, range(9)))) == 9, "the cycle starts again"


def test_each_seed_is_a_thin_line_and_the_mean_a_thick_one(axes):
    plotting.draw_lines(axes, {"subject": [[(0, 1.0), (1, 3.0)], [(0, 3.0), (1, np.nan)]], "cured": [[]]})
    *seed_lines, mean = axes.lines
    assert len(seed_lines) == 2 and list(mean.get_ydata()) == [2.0, 3.0], "values that are not finite do not count"
    assert mean.get_label() == "subject" and {line.get_color() for line in axes.lines} == {plotting.ARM_COLORS["subject"]}


def test_a_shorter_curve_is_drawn_but_not_averaged(axes):
    plotting.draw_lines(axes, {"induced:x30": [[(0, 1.0), (1, 1.0)], [(0, 5.0)]]})
    assert len(axes.lines) == 3 and list(axes.lines[-1].get_ydata()) == [1.0, 1.0]
    assert axes.lines[-1].get_label() == "x30"


def test_the_last_point_is_the_mean(axes):
    plotting.draw_points(axes, {"subject": [(0.0, 1.0), (1.0, 2.0)]})
    assert axes.lines[-1].get_xydata().tolist() == [[0.5, 1.5]]


def test_a_heat_map_has_its_first_row_at_the_bottom_and_a_mark_in_a_cell(axes):
    plotting.draw_mesh(axes, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], ["low", "high"], ["1", "2", "3"], "score")
    plotting.draw_mark(axes, 2.5, 0.5, "x")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["low", "high"]
    assert axes.lines[0].get_marker() == "x"
