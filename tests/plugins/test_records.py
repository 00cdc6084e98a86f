"""Records by arm, view and seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_cells, make_record, make_run

from xferbench.report import records

CELLS = make_cells("one", {"subject": 0.8, "induced:x30": 0.2}, seeds=2) + make_cells("other", {"subject": 0.5}, seeds=1)


def test_records_of_a_run_are_keyed_by_arm_view_and_seed():
    by_term = records.plugin_records(make_run(cells=tuple(CELLS)), "one")
    assert list(by_term) == [
        ("subject", "test", 0),
        ("subject", "test", 1),
        ("induced:x30", "test", 0),
        ("induced:x30", "test", 1),
    ]


def test_values_are_grouped_by_arm_and_missing_values_are_left_out():
    by_term = {("subject", "test", seed): make_record("k", 0.5, scalars={"heat": float(seed)}) for seed in range(3)}
    by_term |= {("cured", "test", 0): make_record("c", 0.5), ("scratch", "drift", 0): make_record("d", 0.5)}
    get_heat = lambda record: record.scalars.get("heat")  # noqa: E731
    assert records.values_by_arm(by_term, get_heat) == {"subject": [0.0, 1.0, 2.0]}
    assert records.values_by_arm(by_term, get_heat, seeds=[2, 0]) == {"subject": [0.0, 2.0]}
    assert (
        records.values_by_arm(by_term, get_heat, exclude={"subject"}) == records.values_by_arm(by_term, get_heat, "drift") == {}
    )


def test_accuracies_need_every_view_of_an_arm():
    accurate, unpredicted = make_record("r", 0.99), replace(make_record("b", 0.5), predictions=None)
    by_term = {("subject", "test", 0): accurate, ("subject", "cued", 0): unpredicted, ("scratch", "test", 0): accurate}
    ((row,),) = records.accuracies(by_term, "test", "cued").values()
    assert row[0] > 0.9 and np.isnan(row[1])
    assert set(records.accuracies(by_term, "test")) == {"subject", "scratch"}


def test_a_mean_is_over_the_records_that_have_the_number():
    assert records.mean_scalars([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}
    assert np.isnan(records.mean_or_nan([]))


def test_numbers_and_scores_keep_their_order():
    record = make_record("k", 0.6, scalars={"drift": 9.0, "drift/low": 1.0, "drift/high": 2.0})
    assert records.numbered_scalars(record, "drift/") == [(0, 1.0), (1, 2.0)]
    assert records.validation_curve(record)[-1] == (150, pytest.approx(0.6))


def test_arms_are_drawn_in_order():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    records.accuracy_plot("one")(axes, make_run(cells=tuple(CELLS)))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["subject", "x30"]
    assert axes.get_ylabel() == "test accuracy"
