from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import SCRATCH, make_cells, make_record, make_run

from xferbench.core.plugin import HARM, Contrast
from xferbench.core.reason import Code, because
from xferbench.core.run import Finding, Provenance, Run, TrialRow
from xferbench.core.sections import from_flat, replace_flat
from xferbench.report import format, tables
from xferbench.report.messages import write_sentence


@pytest.fixture(scope="module")
def run():
    return make_run()


def make_finding(plugin, verdict, **fields):
    return from_flat(Finding, {"id": f"{plugin}/harm", "plugin": plugin, "contrast": "harm", "verdict": verdict} | fields)


def make_run_of(*findings):
    return Run(suite={}, findings=findings, cells=(), cost={}, arms={}, provenance=Provenance(environment={}))


def test_variants_with_equal_verdict_and_harm_share_a_row(run):
    assert [[finding.control.variant for finding in group] for group in tables.finding_groups(run)] == [
        ["ghost-batch", "class-order"],
        ["permuted"],
    ]


def test_variants_with_different_verdicts_have_adjacent_rows():
    passing, inconclusive = (
        make_finding("a", "PASS", variant="x", harm=0.0),
        make_finding("a", "INCONCLUSIVE", variant="y", harm=0.0),
    )
    groups = tables.finding_groups(make_run_of(passing, make_finding("b", "PASS"), inconclusive))
    assert groups == ((passing,), (inconclusive,), (make_finding("b", "PASS"),))


def make_audit_of(*findings):
    return replace(make_run_of(*findings), suite={"after": "model.pth", "metric": "accuracy"})


def test_an_audit_has_one_row_for_each_check_with_its_worst_verdict():
    passing = make_finding("a", "PASS", variant="x", harm=0.0, reason="harm is below the margin")
    missed = make_finding("a", "INCONCLUSIVE", variant="y", harm=0.0, reason="no power")
    (group,) = tables.finding_groups(make_audit_of(passing, missed))
    assert group == (missed, passing)
    assert tables.group_reason(group) == "no power"


def test_failures_of_an_audit_are_ordered_by_consequence():
    symptom = make_finding("symptom", "FAIL", harm=0.9, symptom_of="large")
    exact = make_finding("exact", "FAIL")
    nats = make_finding("nats", "FAIL", harm=2.0, unit="nats")
    small, large = make_finding("small", "FAIL", harm=0.05), make_finding("large", "FAIL", harm=0.3)
    groups = tables.finding_groups(make_audit_of(symptom, exact, nats, small, large))
    assert [group[0].plugin for group in groups] == ["large", "small", "nats", "exact", "symptom"]


def test_failures_of_a_run_are_ordered_by_consequence_and_the_rows_of_a_plugin_stay_together():
    small, open_ = make_finding("small", "FAIL", harm=0.05), make_finding("open", "INCONCLUSIVE", harm=0.4)
    mixed = [make_finding("mixed", verdict, harm=harm) for verdict, harm in (("PASS", 0.0), ("FAIL", 0.3))]
    exact, middle = make_finding("exact", "FAIL"), make_finding("middle", "FAIL", harm=0.2)
    groups = tables.finding_groups(make_run_of(open_, exact, small, *mixed, middle))
    assert [group[0].plugin for group in groups] == ["mixed", "mixed", "middle", "small", "exact", "open"]


def test_the_headline_does_not_count_symptoms_as_failures():
    bounds = {"low": 0.2, "high": 0.4}
    cause = make_finding("form", "FAIL", harm=0.3, **bounds)
    symptoms = [make_finding(name, "FAIL", harm=0.3, symptom_of="form", **bounds) for name in ("a", "b")]
    start = "Transfer fails here: form costs +30.0 [+20.0, +40.0] points of accuracy. "
    assert tables.headline(make_audit_of(cause, symptoms[0])) == (
        f"{start}1 other failure is a symptom: the repair of form removes it."
    )
    assert tables.headline(make_audit_of(cause, *symptoms)) == (
        f"{start}2 other failures are symptoms: the repair of form removes them."
    )


def test_a_harm_in_another_unit_than_that_of_the_suite_has_its_unit():
    finding = make_finding("calibration", "FAIL", metric="nll", unit="nats", harm=0.2, low=0.1, high=0.3)
    assert tables.harm_text(finding, "nats") == "+0.200 [+0.100, +0.300]"
    assert tables.harm_text(finding, "accuracy") == "+0.200 [+0.100, +0.300] nats"


def test_the_plugin_with_the_worst_verdict_is_first_and_measurements_have_no_row():
    verdicts = ("INFO", "SKIPPED", "PASS", "INCONCLUSIVE", "ERROR", "FAIL")
    run = make_run_of(*(make_finding(verdict.lower(), verdict) for verdict in verdicts))
    assert [group[0].verdict for group in tables.finding_groups(run)] == ["FAIL", "ERROR", "INCONCLUSIVE", "PASS", "SKIPPED"]
    assert tables.plugin_names(run)[-1] == "info"
    assert tables.measurements(run, "info")
    assert not tables.measurements(run, "pass")


def test_shared_parts_of_reasons_appear_once():
    group = (make_finding("a", "PASS", reason="below; x costs 3"), make_finding("a", "PASS", reason="below; y costs 4"))
    assert tables.group_reason(group) == "below; x costs 3; y costs 4"


def test_a_control_has_its_variant_result_and_harm(run):
    ghost_batch, class_order = tables.control_texts(tables.finding_groups(run)[0])
    assert ghost_batch.startswith("ghost-batch detected +")
    assert class_order.startswith("class-order detected +")


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (("PASS", "PASS"), "This pipeline shows none of the tested failures. Checks: 2 passed."),
        (
            ("PASS", "INCONCLUSIVE"),
            "No failure was found, but not every failure could be ruled out. Checks: 1 passed, 1 undecided.",
        ),
        (("PASS", "ERROR"), "No failure was found, but not every failure could be ruled out. Checks: 1 passed, 1 crashed."),
        (("INCONCLUSIVE",), "There is no verdict. Checks: 1 undecided."),
        (("ERROR", "SKIPPED"), "There is no verdict. Checks: 1 crashed, 1 skipped."),
        ((), "There is no verdict."),
    ],
)
def test_the_headline_claims_no_more_than_the_verdicts(verdicts, sentence):
    assert (
        tables.headline(make_run_of(*(make_finding(f"p{rank}", verdict) for rank, verdict in enumerate(verdicts)))) == sentence
    )


def test_the_headline_names_failures_and_their_costs():
    run = make_run_of(
        make_finding("a", "FAIL", harm=0.05, low=0.03, high=0.07), make_finding("b", "FAIL"), make_finding("c", "FAIL")
    )
    assert tables.headline(run) == "Transfer fails here: a costs +5.0 [+3.0, +7.0] points of accuracy and b, and 1 more."


def test_the_headline_claims_nothing_for_a_subject_that_learned_nothing():
    note = write_sentence(because(Code.SUBJECT_LEARNT_NOTHING, share=0.5))
    run = replace(make_run_of(make_finding("a", "PASS")), notes=(note,))
    assert tables.headline(run) == "The subject learned nothing, so no failure can be ruled out. Checks: 1 passed."


def test_a_plugin_counts_with_its_worst_verdict():
    run = make_run_of(make_finding("a", "PASS", harm=0.0), make_finding("a", "INCONCLUSIVE", harm=0.0))
    assert tables.headline(run).endswith("Checks: 1 undecided.")


@pytest.mark.parametrize(("plugin", "contrast"), [("batchnorm-drift", HARM), ("negative-transfer", SCRATCH)])
def test_the_mean_of_the_harms_by_seed_is_the_harm_of_the_finding(run, plugin, contrast):
    group = next(group for group in tables.finding_groups(run) if group[0].plugin == plugin)
    rows = list(tables.paired_harms(run, group, contrast))
    assert [name for name, _, _ in rows] == ["subject", *(f"induced: {member.control.variant}" for member in group)]
    for _, by_seed, (mean, low, high) in rows:
        assert list(by_seed) == list(range(5))
        assert np.mean(list(by_seed.values())) == pytest.approx(mean)
        assert low < mean < high


def test_the_harm_of_a_loss_is_positive_if_the_subject_loses_more(run):
    assert all(harm > 0 for harm in tables.harms_by_seed(run, "batchnorm-drift", HARM, "brier").values())
    assert all(harm < 0 for harm in tables.harms_by_seed(run, "negative-transfer", SCRATCH, "brier").values())


def test_a_seed_without_all_arms_has_no_harm(run):
    cells = tuple(cell for cell in run.cells if (cell.arm, cell.seed) != ("cured", 3))
    assert list(tables.harms_by_seed(replace(run, cells=cells), "batchnorm-drift", HARM, "accuracy")) == [0, 1, 2, 4]


def test_a_view_outside_the_contrast_does_not_count(run):
    restored = Contrast(name="restored", weights={("subject", "restored"): 1.0, ("subject", "test"): -1.0})
    assert not tables.harms_by_seed(run, "batchnorm-drift", restored, "accuracy")


def test_a_contrast_decided_early_shows_the_seeds_of_its_verdict(run):
    group = tuple(replace_flat(member, seeds=3) for member in tables.finding_groups(run)[0])
    (_, subject_harms, _), (_, control_harms, _), _ = tables.paired_harms(run, group, HARM)
    assert (len(subject_harms), len(control_harms)) == (3, 5)


def test_the_arms_are_in_reading_order_with_recipe_accuracy_and_candidates(run):
    arms = tables.arm_rows(run, "negative-transfer")
    assert [arm.name for arm in arms] == ["subject", "cured", "induced:permuted", "scratch"]
    assert arms[0].mean == pytest.approx(run.findings[-1].accuracy["subject"])
    assert arms[0].sd == pytest.approx(np.std(arms[0].accuracy, ddof=1))
    assert [chosen for _, _, chosen in arms[3].weighed] == [False, True]


def test_crashed_and_diverged_seeds_are_counted():
    cell, *_ = make_cells("p", {"subject": 0.7}, seeds=1)
    diverged_cell = replace(cell, seed=1, record=make_record("lost", 0.1, scalars={"diverged": 1.0}))
    crashed_cell = replace(cell, seed=2, record=replace(make_record("crashed", 0.7), predictions=None, error="out of memory"))
    (arm,) = tables.arm_rows(replace(make_run_of(), cells=(cell, diverged_cell, crashed_cell)), "p")
    assert (len(arm.accuracy), arm.diverged, arm.crashed) == (2, 1, 1)


def test_an_arm_without_seeds_has_no_mean_and_one_seed_no_deviation():
    (arm,) = tables.arm_rows(replace(make_run_of(), arms={"p": {"cured": {"error": "no candidate could be scored"}}}), "p")
    assert (arm.mean, arm.sd, arm.recipe) == (None, None, "no candidate could be scored")
    (arm,) = tables.arm_rows(replace(make_run_of(), cells=tuple(make_cells("p", {"subject": 0.7}, seeds=1))), "p")
    assert arm.mean is not None
    assert arm.sd is None


def test_curves_are_thinned_without_non_finite_values():
    curve = tuple((step, float("nan") if step % 2 else 1.0 + seed, 0.5) for seed in (0, 1) for step in range(1000))
    cell = TrialRow(plugin="p", arm="subject", variant="", view="test", seed=0, recipe="", record=make_record("k", 0.7))
    curve_of_arm = tables.learning_curves(
        replace(make_run_of(), cells=(replace(cell, record=replace(cell.record, curve=curve)),)), "p"
    )["subject"]
    assert len(curve_of_arm.steps) <= 50
    assert (curve_of_arm.steps[0], curve_of_arm.steps[-1]) == (0, 999)
    assert curve_of_arm.loss[0].tolist() == [1.5, 1.0, 2.0]
    assert np.isnan(curve_of_arm.loss[-1]).all()


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(0.0549, "accuracy", "+5.5"), (-0.0001, "accuracy", "+0.0"), (None, "accuracy", "–"), (0.1234, "nats", "+0.123")],
)
def test_a_harm_has_the_unit_of_its_metric(value, unit, expected):
    assert format.format_harm(value, unit) == expected


def test_one_line_removes_escapes_and_changes_of_direction():
    assert format.one_line("a\n\x1b[31mb\u202ec\ud800") == "a [31mb c"
    assert format.printable_block("a\x00\n b") == "a\n b"
    assert format.shorten("abcdef", 4) == "abc…"


def test_durations_have_a_suitable_unit():
    assert [format.format_seconds(value) for value in (0.44, 85, 1260, 12600)] == ["0.4 s", "85 s", "21 min", "3.5 h"]
    assert [format.format_p_value(value) for value in (0.0312, 1e-9)] == ["= 0.031", "< 0.0001"]
