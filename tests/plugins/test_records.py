"""Records by arm, view and seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_cells, make_record, make_run

from xferbench.report import records

CELLS = make_cells("one", {"subject": 0.8, "induced:x30": 0.2}, seeds=2) + make_cells("other", {"subject": 0.5}, seeds=1)


def test_a_run_is_read_as_what_is_derived_is():
    found = records.plugin_records(make_run(cells=tuple(CELLS)), "one")
    assert list(found) == [
        ("subject", "test", 0),
        ("subject", "test", 1),
        ("induced:x30", "test", 0),
        ("induced:x30", "test", 1),
    ]


def test_what_is_told_is_by_arm_and_what_tells_nothing_is_left_out():
    found = {("subject", "test", seed): make_record("k", 0.5, scalars={"heat": float(seed)}) for seed in range(3)}
    found |= {("cured", "test", 0): make_record("c", 0.5), ("scratch", "drift", 0): make_record("d", 0.5)}
    tell = lambda one: one.scalars.get("heat")  # noqa: E731
    assert records.values_by_arm(found, tell) == {"subject": [0.0, 1.0, 2.0]}
    assert records.values_by_arm(found, tell, seeds=[2, 0]) == {"subject": [0.0, 2.0]}
    assert records.values_by_arm(found, tell, exclude={"subject"}) == records.values_by_arm(found, tell, "drift") == {}


def test_accuracies_are_of_arms_that_have_every_view():
    right, blind = make_record("r", 0.99), replace(make_record("b", 0.5), predictions=None)
    found = {("subject", "test", 0): right, ("subject", "cued", 0): blind, ("scratch", "test", 0): right}
    ((row,),) = records.accuracies(found, "test", "cued").values()
    assert row[0] > 0.9 and np.isnan(row[1])
    assert set(records.accuracies(found, "test")) == {"subject", "scratch"}


def test_a_mean_is_over_those_that_have_the_number():
    assert records.mean_scalars([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}
    assert np.isnan(records.mean_or_nan([]))


def test_numbers_and_scores_keep_their_order():
    one = make_record("k", 0.6, scalars={"drift": 9.0, "drift/low": 1.0, "drift/high": 2.0})
    assert records.numbered_scalars(one, "drift/") == [(0, 1.0), (1, 2.0)]
    assert records.validation_curve(one)[-1] == (150, pytest.approx(0.6))


def test_arms_are_drawn_each_at_its_place():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    records.accuracy_plot("one")(axes, make_run(cells=tuple(CELLS)))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["subject", "x30"]
    assert axes.get_ylabel() == "test accuracy"
