from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import SCRATCH, make_cells, make_findings, make_predictions, make_run

from xferbench.analysis import intervals
from xferbench.analysis.compare import compare as compare_
from xferbench.core.comparison import CANNOT_TELL, CRASHED, NOT_WORSE, SKIPPED, WORSE
from xferbench.core.errors import UserError
from xferbench.core.plugin import HARM
from xferbench.core.record import Record
from xferbench.core.run import Finding, TrialRow
from xferbench.report import messages

DRIFT, TRANSFER = "batchnorm-drift/harm", "negative-transfer/harm"


def compare(accepted, candidate):
    return messages.write_comparison(compare_(accepted, candidate))


def contrasts(*plugins, version=1):
    """What a run tells of its plugins."""
    told = {"batchnorm-drift": HARM, "negative-transfer": SCRATCH}
    return {
        plugin: {
            "version": version,
            "contrasts": [
                {
                    "name": told[plugin].name,
                    "weights": [[*term, weight] for term, weight in told[plugin].weights.items()],
                    "metric": "accuracy",
                    "margin": 0.02,
                }
            ],
        }
        for plugin in plugins
    }


def a_run(*, subject=0.70, cured=0.76, scratch=0.40, verdict="FAIL", seeds=5, examples=2000, version=1, prefix="", **more):
    """One plugin with a subject, a cure and a baseline; records are named by what they answer, so that alike ones are one."""
    how = {"seeds": seeds, "examples": examples}
    cells = make_cells("batchnorm-drift", {"subject": subject, "cured": cured, "scratch": scratch}, **how, share=prefix + "one")
    keyed = tuple(
        replace(cell, record=replace(cell.record, key=f"{cell.record.key} {accuracy(cell.record)}")) for cell in cells
    )
    found = Finding(
        id="batchnorm-drift/harm", plugin="batchnorm-drift", contrast="harm", verdict=verdict, reason="as it was made"
    )
    suite = make_run().suite | {"looks": [seeds], "plugins": ["batchnorm-drift"]}
    told = {"findings": (found,), "cells": keyed, "suite": suite, "plugins": contrasts("batchnorm-drift", version=version)}
    return make_run(**told | more)


def accuracy(record):
    return float((record.predictions.predicted == record.predictions.label).mean())


def outcomes(accepted, candidate):
    return {one.id: one for one in compare(accepted, candidate).outcomes}


def test_a_run_beside_itself_is_unchanged():
    found = outcomes(a_run(), a_run())
    assert {name: one.decision for name, one in found.items()} == {"subject": NOT_WORSE, DRIFT: NOT_WORSE}
    assert found["subject"].change == 0.0 and found["subject"].flipped == 0.0
    assert found["subject"].p_worse is None, "there is nothing to be tested"


def test_a_subject_that_lost_ten_points_is_worse():
    found = outcomes(a_run(), a_run(subject=0.60))["subject"]
    assert found.decision == WORSE
    assert found.low > 0.02 and found.change == pytest.approx(found.before - found.now)
    assert (found.before, found.now) == pytest.approx((0.76, 0.64), abs=0.02)


def test_a_subject_that_gained_is_not_worse():
    assert outcomes(a_run(), a_run(subject=0.80))["subject"].decision == NOT_WORSE


def test_what_lies_at_the_margin_cannot_be_told_and_says_what_would_decide_it():
    found = outcomes(a_run(), a_run(subject=0.68))["subject"]
    assert found.decision == CANNOT_TELL
    assert "to decide it: about" in found.reason


def test_a_failure_that_grew_is_worse_though_it_was_accepted():
    found = outcomes(a_run(), a_run(subject=0.60))[DRIFT]
    assert found.decision == WORSE
    assert found.reason.startswith("the accepted run fails it too, but this is worse by more than the margin")
    assert (found.before, found.now) == pytest.approx((0.06, 0.17), abs=0.04)


def test_a_known_failure_does_not_fail_the_gate():
    found = outcomes(a_run(), a_run(subject=0.71, cured=0.77, prefix="other"))[DRIFT]
    assert (found.decision, found.accepted, found.verdict) == (NOT_WORSE, "FAIL", "FAIL")


def test_a_new_failure_fails_the_gate_though_its_harm_has_not_grown():
    found = outcomes(a_run(verdict="PASS"), a_run(subject=0.71, cured=0.77, prefix="other"))[DRIFT]
    assert found.decision == WORSE
    assert "there PASS" in found.reason and "as it was made" in found.reason


def test_a_failure_that_was_left_open_is_new_only_where_the_harm_has_grown():
    """Else a true failure near the margin would be left open one time and decided another, and the gate would flap."""
    open_ = a_run(verdict="INCONCLUSIVE")
    assert outcomes(open_, a_run(subject=0.71, cured=0.77, prefix="other"))[DRIFT].decision == NOT_WORSE
    grown = outcomes(open_, a_run(subject=0.60))[DRIFT]
    assert grown.decision == WORSE and "there INCONCLUSIVE" in grown.reason
    near = outcomes(open_, a_run(subject=0.68, cured=0.765, prefix="other"))[DRIFT]
    assert near.decision == CANNOT_TELL and "left open" in near.reason


def test_what_was_below_the_margin_but_for_a_missed_control_is_new_when_it_fails():
    accepted = a_run(verdict="INCONCLUSIVE")
    shown = replace(accepted, findings=tuple(replace(one, p_pass=0.001) for one in accepted.findings))
    assert outcomes(shown, a_run(subject=0.71, cured=0.77, prefix="other"))[DRIFT].decision == WORSE


def test_the_same_trials_are_no_new_failure_whatever_another_computer_makes_of_them():
    found = outcomes(a_run(examples=200), on_another(elsewhere(a_run(examples=200), flips=2)))
    assert {one.decision for one in found.values()} == {NOT_WORSE}
    assert 0 < found["subject"].flipped < 0.02
    new = outcomes(a_run(verdict="PASS"), on_another(elsewhere(a_run(), flips=4)))[DRIFT]
    assert new.decision == CANNOT_TELL and "another computer makes a FAIL (accepted: PASS)" in new.reason


def test_on_the_same_computer_the_same_trials_are_judged_by_what_they_answered():
    found = outcomes(a_run(examples=200), elsewhere(a_run(examples=200), flips=4))
    assert found["subject"].decision == CANNOT_TELL and "on the same computer" in found["subject"].reason
    assert outcomes(a_run(verdict="PASS"), elsewhere(a_run(), flips=4))[DRIFT].decision == WORSE


@pytest.mark.parametrize("own", [{"training": "python:mine:train"}, {"arch": "python:mine:net"}])
def test_of_code_of_the_users_own_a_key_is_no_proof(own):
    run = a_run(suite=a_run().suite | own, examples=200)
    found = outcomes(run, on_another(elsewhere(run, flips=4)))
    assert found["subject"].decision == CANNOT_TELL


def test_the_same_trials_are_worse_where_the_other_computer_ruins_them():
    found = outcomes(a_run(), on_another(elsewhere(a_run(), flips=400)))["subject"]
    assert found.decision == WORSE


def test_a_plugin_that_is_no_longer_asked_cannot_be_told():
    found = outcomes(a_run(verdict="PASS"), a_run(findings=other_findings()))
    assert found[DRIFT].decision == CANNOT_TELL
    assert found[DRIFT].reason.startswith("no longer asked (accepted: PASS)")


def test_what_was_skipped_and_is_no_longer_asked_is_nothing():
    assert DRIFT not in outcomes(a_run(verdict="SKIPPED"), a_run(findings=other_findings()))


def other_findings():
    return (Finding(id="head-shock/harm", plugin="head-shock", contrast="harm", verdict="PASS"),)


def test_a_contrast_that_asks_otherwise_is_not_compared():
    run = a_run(verdict="PASS")
    told = run.plugins["batchnorm-drift"]["contrasts"][0] | {"margin": 0.9}
    other = replace(run, plugins={"batchnorm-drift": {"version": 1, "contrasts": [told]}})
    found = outcomes(run, other)[DRIFT]
    assert not found.compared and "another contrast" in found.reason


def on_another(run):
    return replace(run, environment=run.environment | {"instructions": "AVX2"})


def elsewhere(run, *, flips):
    """The same trials, some right answers of the subject wrong."""

    def flipped(cell):
        told = cell.record.predictions
        right = np.flatnonzero(told.predicted == told.label)[:flips]
        predicted = told.predicted.copy()
        predicted[right] = (predicted[right] + 1) % 10
        return replace(cell, record=replace(cell.record, predictions=replace(told, predicted=predicted)))

    return replace(run, cells=tuple(flipped(cell) if cell.arm == "subject" else cell for cell in run.cells))


def test_what_passes_is_not_worse_however_much_the_baseline_gained():
    found = outcomes(a_run(cured=0.50, verdict="PASS"), a_run(cured=0.70, verdict="PASS"))[DRIFT]
    assert found.decision == NOT_WORSE
    assert found.low > 0.02, "its harm has grown, and is still none"


@pytest.mark.parametrize(
    ("verdict", "decision"), [("FAIL", WORSE), ("PASS", NOT_WORSE), ("INCONCLUSIVE", CANNOT_TELL), ("SKIPPED", SKIPPED)]
)
def test_without_an_accepted_result_its_own_verdict_counts(verdict, decision):
    accepted = a_run(findings=())
    found = outcomes(accepted, a_run(verdict=verdict))[DRIFT]
    assert (found.decision, found.compared) == (decision, False)


def test_another_version_of_a_plugin_is_not_compared_and_says_so():
    found = outcomes(a_run(), a_run(version=2))[DRIFT]
    assert (found.decision, found.compared) == (WORSE, False)
    assert "version 1" in found.reason and "version 2" in found.reason


def test_what_is_no_longer_judged_cannot_be_told():
    found = outcomes(a_run(), a_run(verdict="SKIPPED"))[DRIFT]
    assert found.decision == CANNOT_TELL


def test_a_crash_is_a_crash():
    crashed = a_run(verdict="ERROR")
    cells = tuple(
        replace(cell, record=Record(key=cell.record.key, error="out of memory")) if cell.arm == "subject" else cell
        for cell in crashed.cells
    )
    found = outcomes(a_run(), replace(crashed, cells=cells))
    assert found["subject"].decision == CRASHED and found[DRIFT].decision == CRASHED
    assert "out of memory" in found["subject"].reason


def test_other_test_examples_are_refused():
    with pytest.raises(UserError, match="different test examples") as refused:
        compare(a_run(), a_run(examples=1000))
    assert "1000 examples; 0 of them are among the 2000" in str(refused.value)


def test_other_labels_of_the_same_examples_are_refused():
    def relabelled(cell):
        told = cell.record.predictions
        return replace(cell, record=replace(cell.record, predictions=replace(told, label=told.label[::-1].copy())))

    run = a_run()
    with pytest.raises(UserError, match="with different labels"):
        compare(run, replace(run, cells=tuple(map(relabelled, run.cells))))


def test_runs_that_share_no_seed_are_paired_as_they_come():
    def later(cell):
        return replace(cell, seed=cell.seed + 100, record=replace(cell.record, key=f"later {cell.record.key}"))

    run = a_run()
    found = outcomes(run, replace(run, cells=tuple(map(later, run.cells))))
    assert found["subject"].seeds == 5 and found["subject"].decision == NOT_WORSE


def test_seeds_are_paired_where_one_run_has_all_of_the_others():
    comparison = compare(a_run(seeds=5), a_run(seeds=3))
    assert comparison.outcomes[0].seeds == 3
    assert comparison.notes == ("compared at 3 seeds, of 5 that were accepted and 3 of this run",)
    assert comparison.outcomes[0].reason == "unchanged: the same trials with the same answers"


def test_a_few_seeds_in_common_are_not_picked_out():
    """One pair in common with noisy seeds was wrong in 36 of 100 cases: then all are paired as they come."""
    run = a_run()
    later = replace(run, cells=tuple(replace(one, seed=one.seed + 4) for one in run.cells))
    comparison = compare(run, later)
    assert comparison.outcomes[0].seeds == 5
    assert comparison.notes == (
        "not the same seeds: the two runs are paired as independent trainings, which takes more of them",
    )


def test_one_seed_says_nothing_where_there_were_more():
    assert outcomes(a_run(seeds=5), a_run(seeds=1, subject=0.5))["subject"].decision == CANNOT_TELL


def test_a_missing_subject_decides_nothing():
    run = a_run()
    accepted = replace(run, cells=tuple(cell for cell in run.cells if cell.arm != "subject"))
    found = outcomes(accepted, run)
    assert {one.decision for one in found.values()} == {CANNOT_TELL}
    assert "at any seed" in found["subject"].reason


def invariant(verdict, share):
    found = Finding(
        id="data-leakage/copies",
        plugin="data-leakage",
        contrast="copies",
        verdict=verdict,
        measures={} if share is None else {"subject/copies": share},
        reason="copies",
    )
    return a_run(findings=(found,), plugins={"data-leakage": {"version": 1, "contrasts": []}})


@pytest.mark.parametrize(
    ("before", "now", "decision"),
    [
        (("PASS", 0.0), ("FAIL", 0.1), WORSE),
        (("FAIL", 0.1), ("FAIL", 0.1), NOT_WORSE),
        (("FAIL", 0.1), ("FAIL", 0.2), WORSE),
        (("FAIL", 0.1), ("PASS", 0.0), NOT_WORSE),
        (("FAIL", 0.1), ("INCONCLUSIVE", 0.0), CANNOT_TELL),
        (("FAIL", 0.1), ("FAIL", None), CANNOT_TELL),
        (("FAIL", float("nan")), ("FAIL", 0.1), CANNOT_TELL),
        (("FAIL", -0.2), ("FAIL", -0.1), NOT_WORSE),
        (("FAIL", -0.1), ("FAIL", -0.2), WORSE),
    ],
)
def test_an_invariant_is_held_by_what_it_measures(before, now, decision):
    assert outcomes(invariant(*before), invariant(*now))["data-leakage/copies"].decision == decision


def test_alpha_is_shared_among_all_that_is_compared():
    """The subject is worse, the harm has not grown: of two hypotheses the first one's P-value counts twice."""
    both = outcomes(a_run(), a_run(subject=0.66, cured=0.72, prefix="other"))
    alone = intervals.crossed_interval(difference(a_run(), a_run(subject=0.66)), margin=0.02, alpha=0.05)
    assert both[DRIFT].p_worse > 0.5
    assert both["subject"].p_worse == pytest.approx(2 * alone.p_fail)


def test_alpha_is_shared_among_the_looks():
    told = {"suite": a_run().suite | {"looks": [3, 5]}, "findings": other_findings()}
    accepted, candidate = a_run(**told), a_run(subject=0.70, prefix="other", **told)
    closer = elsewhere(candidate, flips=53)
    found = outcomes(accepted, closer)["subject"]
    looked = [intervals.crossed_interval(difference(accepted, closer)[:S], margin=0.02, alpha=0.05).p_fail for S in (3, 5)]
    assert found.seeds == 5, "the first look leaves it open"
    assert found.p_worse == pytest.approx(intervals.sequential_p(looked, [3, 5], 0.05))
    assert found.p_worse > looked[1]


def test_groups_are_part_of_what_is_compared():
    def grouped(run, numbers):
        return replace(
            run,
            cells=tuple(
                replace(one, record=replace(one.record, predictions=replace(one.record.predictions, group=numbers)))
                for one in run.cells
            ),
        )

    groups = np.arange(2000) // 50
    with pytest.raises(UserError, match="in different groups"):
        compare(grouped(a_run(), groups), a_run())
    other = grouped(a_run(subject=0.71), 1000 - groups)
    assert compare(grouped(a_run(), groups), other).outcomes[0].examples == 40


def difference(accepted, candidate):
    told = [
        np.stack(
            [one.record.predictions.predicted == one.record.predictions.label for one in run.cells if one.arm == "subject"]
        )
        for run in (accepted, candidate)
    ]
    return told[0].astype(float) - told[1]


def test_under_new_seeds_a_pipeline_is_seldom_worse_than_itself():
    """A/A in small: the share called worse is at most alpha and its Monte-Carlo error."""
    rng, worse = np.random.default_rng(5), 0
    hardness = rng.normal(size=400)
    for _ in range(200):
        accepted, candidate = (drawn(rng, hardness) for _ in range(2))
        worse += outcomes(accepted, candidate)["subject"].decision == WORSE
    assert worse / 200 <= 0.05 + 1.645 * np.sqrt(0.05 * 0.95 / 200)


def drawn(rng, hardness, seeds=3):
    """A run whose seeds and examples are drawn anew about one true accuracy."""
    base = make_predictions(0.7, examples=len(hardness))
    cells = []
    for seed in range(seeds):
        right = rng.normal(0.6, 0.15) + rng.normal(size=len(hardness)) > hardness
        predicted = np.where(right, base.label, (base.label + 1) % 10)
        record = Record(key=f"{rng.integers(2**60)}", predictions=replace(base, predicted=predicted))
        cells.append(
            TrialRow(plugin="batchnorm-drift", arm="subject", variant="", view="test", seed=seed, record=record, recipe="")
        )
    return a_run(cells=tuple(cells), seeds=seeds, findings=(Finding(id="x/y", plugin="x", contrast="y", verdict="PASS"),))


def test_factory_findings_are_held_too():
    cells = make_cells(
        "negative-transfer", {"subject": 0.7, "cured": 0.79, "induced:permuted": 0.3, "scratch": 0.4}, examples=2000
    )
    found = make_findings("negative-transfer", "PASS", cells, contrast=SCRATCH)
    run = make_run(cells=cells, findings=found, plugins=contrasts("negative-transfer"))
    assert outcomes(run, run)[TRANSFER].decision == NOT_WORSE
