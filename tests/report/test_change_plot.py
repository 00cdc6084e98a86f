from __future__ import annotations

import pytest
from factory import make_comparison, make_outcome, outcome_numbers

from xferbench.core.comparison import SUBJECT
from xferbench.core.sections import replace_flat
from xferbench.report import change_plot


def test_the_figure_draws_the_subject_first_and_only_one_unit():
    nll = make_outcome("p/nll", "worse", unit="nats", metric="nll", **outcome_numbers(0.1, 0.2, now=0.3))
    comparison = make_comparison(
        make_outcome("q/harm", "worse", **outcome_numbers(0.0, 0.1, now=0.1)), nll, *make_comparison().outcomes[:1]
    )
    assert [outcome.id for outcome in change_plot.drawable_outcomes(comparison)] == [SUBJECT, "q/harm"]
    figure = change_plot.draw_changes(comparison)
    assert "worse to the right" in figure
    assert "subject worse +10.2 [+8.9, +11.5]; q worse +10.0" in figure


def test_the_figure_without_a_subject_has_the_most_common_unit():
    first, *others = [make_outcome(f"p{n}/harm", "not worse", **outcome_numbers(0.0, 0.0, now=0.0)) for n in range(3)]
    assert change_plot.drawable_outcomes(make_comparison(replace_flat(first, unit="nats"), *others)) == tuple(others)


def test_an_outcome_without_numbers_is_not_drawn():
    comparison = make_comparison(make_outcome("p/harm", "crashed"))
    assert change_plot.draw_changes(comparison) == ""


def test_missing_bounds_do_not_prevent_a_figure():
    outcome = make_outcome(SUBJECT, "cannot tell", change=0.01)
    assert "<svg" in change_plot.draw_changes(make_comparison(outcome))


def test_wide_bounds_leave_the_margin_visible():
    outcome = make_outcome(SUBJECT, "cannot tell", **outcome_numbers(0.5, 0.0, half=0.9))
    low, high = change_plot._span((outcome,), 100.0)
    assert low == pytest.approx(-32.4)
    assert high == pytest.approx(32.4)
