from __future__ import annotations

from dataclasses import replace

import pytest
from factory import make_comparison, make_outcome, make_run, outcome_numbers

from xferbench.core.comparison import DECISIONS, SUBJECT
from xferbench.core.sections import replace_flat
from xferbench.report import comparison_text

WORSE = make_outcome(SUBJECT, "worse", **outcome_numbers(0.812, 0.102, half=0.013, now=0.71))
KEPT = make_outcome(SUBJECT, "not worse", **outcome_numbers(0.812, -0.003, now=0.815))
NEW = make_outcome("drift/harm", "worse", verdict="FAIL", accepted="PASS")
KNOWN = make_outcome("rate/harm", "not worse", verdict="FAIL", accepted="FAIL")
FINE = make_outcome("shock/harm", "not worse", verdict="PASS", accepted="PASS")
OPEN = make_outcome("skew/served", "cannot tell", "why", verdict="INCONCLUSIVE", accepted="PASS")
CRASHED = make_outcome("audit/reload/harm", "crashed", verdict="ERROR")
SKIPPED = make_outcome("leakage/harm", "skipped", verdict="SKIPPED")

KEEPS = "the subject's accuracy is not worse than in the accepted run, with a margin of 2.0 points (81.2 % → 81.5 %)"
NOTHING = "nothing is worse than in the accepted run"


def headline_of(*outcomes, **options):
    return comparison_text.headline(make_comparison(*outcomes), **options)


def test_every_decision_has_a_style_and_an_opening():
    assert set(comparison_text.VERDICT_STYLE) == set(comparison_text.OPENINGS) == set(DECISIONS)
    assert set(comparison_text.ATTENTION_DECISIONS) < set(DECISIONS)


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ((WORSE,), "The gate fails: the subject's accuracy is 10.2 [8.9, 11.5] points worse than in the accepted run."),
        ((KEPT, NEW, FINE), "The gate fails: drift is a new FAIL. Other outcomes: 2 not worse."),
        ((KEPT, KNOWN), f"The gate passes: {KEEPS}. Other outcomes: 1 known FAIL."),
        ((KNOWN, FINE), f"The gate passes: {NOTHING}. Outcomes: 1 not worse, 1 known FAIL."),
        ((OPEN, FINE), "The gate finds nothing worse, but cannot decide on skew/served. Other outcomes: 1 not worse."),
        ((CRASHED, OPEN), "The gate cannot decide: audit/reload crashed. Other outcomes: 1 cannot tell."),
        ((NEW, CRASHED), "The gate fails: drift is a new FAIL; audit/reload crashed."),
        ((SKIPPED,), "The gate has nothing to decide."),
    ],
)  # fmt: skip
def test_the_headline_of_a_gate_describes_its_outcomes(outcomes, sentence):
    assert headline_of(*outcomes) == sentence


def test_a_comparison_without_outcomes_has_nothing_to_decide():
    assert comparison_text.headline(replace(make_comparison(), outcomes=())) == "The gate has nothing to decide."


def test_a_comparison_without_a_gate_does_not_mention_one():
    for outcome in (WORSE, KEPT, OPEN, CRASHED, SKIPPED):
        assert "gate" not in headline_of(outcome, gate=False)
    assert headline_of(NEW, gate=False) == "The comparison finds something worse: drift is a new FAIL."


def test_many_outcomes_are_counted():
    outcomes = [replace(NEW, id=f"p{number}/harm") for number in range(5)]
    assert headline_of(*outcomes).endswith("p2 is a new FAIL; 2 more are worse.")
    assert headline_of(*(replace(outcome, decision="cannot tell") for outcome in outcomes)).endswith(
        "cannot decide on p0, p1, p2 and 2 more."
    )


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"accepted": ""}, "drift is a new FAIL, with no verdict in the accepted run"),
        ({"accepted": "FAIL", "change": 0.05, "low": 0.03, "high": 0.07},
         "drift costs 5.0 [3.0, 7.0] points more than in the accepted run"),
        ({"verdict": "PASS"}, "drift is worse"),
    ],
)  # fmt: skip
def test_the_headline_describes_the_kind_of_change(fields, phrase):
    assert headline_of(replace_flat(NEW, **fields)) == f"The gate fails: {phrase}."


@pytest.mark.parametrize(
    ("metric", "unit", "phrase"),
    [
        ("nll", "nats", "the subject's nll is 0.102 [0.089, 0.115] nats worse than"),
        ("brier", "Brier score", "the subject's brier is 0.102 [0.089, 0.115] worse than"),
        ("balanced_accuracy", "accuracy", "the subject's balanced accuracy is 10.2 [8.9, 11.5] points worse than"),
    ],
)
def test_a_metric_is_printed_in_its_unit(metric, unit, phrase):
    assert phrase in headline_of(replace_flat(WORSE, metric=metric, unit=unit))


def test_a_known_fail_is_accepted_and_not_worse():
    assert comparison_text.is_known_failure(KNOWN)
    assert comparison_text.is_known_failure(replace(KNOWN, decision="cannot tell"))
    assert not any(map(comparison_text.is_known_failure, (replace(KNOWN, decision="worse"), NEW, FINE)))
    assert comparison_text.reason_text(KNOWN) == "known: the accepted run also fails"
    assert comparison_text.reason_text(replace(KNOWN, reason="same")) == "known: the accepted run also fails; same"
    assert comparison_text.reason_text(replace(KNOWN, reason=comparison_text.KNOWN_FAILURE)) == comparison_text.KNOWN_FAILURE


def test_the_subject_is_first_and_the_worst_outcome_is_next():
    comparison = make_comparison(SKIPPED, FINE, KNOWN, OPEN, CRASHED, NEW, KEPT)
    assert comparison_text.in_reading_order(comparison) == (KEPT, NEW, CRASHED, OPEN, KNOWN, FINE, SKIPPED)


def test_worse_crashed_and_open_outcomes_need_attention():
    assert [comparison_text.needs_attention(outcome) for outcome in (WORSE, CRASHED, OPEN, KNOWN, FINE, SKIPPED)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_both_sides_show_the_metric_of_the_subject_or_the_verdicts_of_a_plugin():
    assert comparison_text.both_sides_text(WORSE) == comparison_text.levels_text(WORSE) == "81.2 % → 71.0 %"
    assert comparison_text.both_sides_text(NEW) == "PASS → FAIL"
    assert comparison_text.both_sides_text(CRASHED) == "– → ERROR"
    assert comparison_text.levels_text(replace_flat(NEW, before=0.003, now=0.06)) == "+0.3 → +6.0"
    assert comparison_text.both_sides_text(replace_flat(WORSE, unit="nats", before=0.5, now=0.602)) == "0.500 → 0.602"


def test_figures_list_the_numbers_behind_a_decision():
    complete = replace_flat(WORSE, p_worse=1e-6, p_not_worse=None, flipped=0.14)
    assert (
        comparison_text.figures_text(complete)
        == "5 seeds × 200 test examples; p worse < 0.0001; 14.0 % of the predictions differ"
    )
    assert comparison_text.figures_text(replace_flat(complete, seeds=1)).startswith("200 test examples; ")
    assert not comparison_text.figures_text(CRASHED)


def test_the_baseline_line_has_a_short_revision():
    line = "Compared with careless (xferbench 0.1.0, git 0123456789ab, ended 2026-01-02T03:05:05Z)"
    assert comparison_text.baseline_line(make_comparison()) == line
    assert comparison_text.baseline_line(make_comparison(accepted={})) == "Compared with an accepted run"
    assert comparison_text.short_revision("f" * 40 + "+changes") == "f" * 12 + "+changes"


def test_side_rows_omit_what_both_runs_lack():
    run = make_run(
        seeds=2, examples=20, gate=make_comparison(accepted={"name": "a\nb", "file": "A"}), environment={"git": None}
    )
    assert comparison_text.side_rows(run, "B") == (("suite", "a b", "careless"), ("file", "A", "B"))
