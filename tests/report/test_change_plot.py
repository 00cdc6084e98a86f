from __future__ import annotations

from dataclasses import replace

import pytest
from factory import changed, make_comparison, make_outcome

from xferbench.core.comparison import SUBJECT
from xferbench.report import change_plot


def test_the_picture_draws_the_subject_first_and_one_unit_only():
    nll = make_outcome("p/nll", "worse", unit="nats", metric="nll", **changed(0.1, 0.2, now=0.3))
    late = make_comparison(make_outcome("q/harm", "worse", **changed(0.0, 0.1, now=0.1)), nll, *make_comparison().outcomes[:1])
    assert [outcome.id for outcome in change_plot.drawable_outcomes(late)] == [SUBJECT, "q/harm"]
    picture = change_plot.draw_changes(late)
    assert "worse to the right" in picture
    assert "subject worse +10.2 [+8.9, +11.5]; q worse +10.0" in picture


def test_the_picture_without_a_subject_has_the_most_common_unit():
    first, *others = [make_outcome(f"p{n}/harm", "not worse", **changed(0.0, 0.0, now=0.0)) for n in range(3)]
    assert change_plot.drawable_outcomes(make_comparison(replace(first, unit="nats"), *others)) == tuple(others)


def test_without_numbers_there_is_no_picture():
    nothing = make_comparison(make_outcome("p/harm", "crashed"))
    assert change_plot.draw_changes(nothing) == ""


def test_missing_numbers_break_no_picture():
    bare = make_outcome(SUBJECT, "cannot tell", change=0.01)
    assert "<svg" in change_plot.draw_changes(make_comparison(bare))


def test_bounds_far_beyond_the_margin_leave_it_visible():
    wide = make_outcome(SUBJECT, "cannot tell", **changed(0.5, 0.0, half=0.9))
    least, most = change_plot._span((wide,), 100.0)
    assert least == pytest.approx(-32.4)
    assert most == pytest.approx(32.4)
