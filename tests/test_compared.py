from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import SCRATCH, make_cells, make_findings, make_predictions, make_run

from xferbench import stats
from xferbench.compared import CANNOT_TELL, CRASHED, NOT_WORSE, SKIPPED, WORSE, compare
from xferbench.design import HARM
from xferbench.problem import Problem
from xferbench.record import Cell, Finding, Record

DRIFT, TRANSFER = "batchnorm-drift/harm", "negative-transfer/harm"


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


@pytest.mark.parametrize("accepted", ["PASS", "INCONCLUSIVE"])
def test_a_new_failure_fails_the_gate_though_its_harm_has_not_grown(accepted):
    found = outcomes(a_run(verdict=accepted), a_run(subject=0.71, cured=0.77, prefix="other"))[DRIFT]
    assert found.decision == WORSE
    assert accepted in found.reason and "as it was made" in found.reason


def test_the_same_trials_are_no_new_failure_whatever_another_computer_makes_of_them():
    candidate = elsewhere(a_run(), flips=4)
    found = outcomes(a_run(verdict="INCONCLUSIVE"), candidate)
    assert found[DRIFT].decision == NOT_WORSE and found["subject"].decision == NOT_WORSE
    assert 0 < found["subject"].flipped < 0.01
    assert "FAIL (accepted: INCONCLUSIVE)" in found[DRIFT].reason


def test_the_same_trials_are_worse_where_the_other_computer_ruins_them():
    found = outcomes(a_run(), elsewhere(a_run(), flips=400))["subject"]
    assert found.decision == WORSE


def test_the_same_trials_under_a_stricter_margin_are_a_new_failure():
    strict = a_run(suite=a_run().suite | {"margin": 0.01})
    assert outcomes(a_run(verdict="PASS"), strict)[DRIFT].decision == WORSE


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
    with pytest.raises(Problem, match="other test examples") as refused:
        compare(a_run(), a_run(examples=1000))
    assert "1000, of which 0 are among the 2000" in str(refused.value)


def test_other_labels_of_the_same_examples_are_refused():
    def relabelled(cell):
        told = cell.record.predictions
        return replace(cell, record=replace(cell.record, predictions=replace(told, label=told.label[::-1].copy())))

    run = a_run()
    with pytest.raises(Problem, match="with other labels"):
        compare(run, replace(run, cells=tuple(map(relabelled, run.cells))))


def test_runs_that_share_no_seed_are_paired_as_they_come():
    def later(cell):
        return replace(cell, seed=cell.seed + 100, record=replace(cell.record, key=f"later {cell.record.key}"))

    run = a_run()
    found = outcomes(run, replace(run, cells=tuple(map(later, run.cells))))
    assert found["subject"].seeds == 5 and found["subject"].decision == NOT_WORSE


def test_only_seeds_that_both_have_are_paired():
    assert outcomes(a_run(seeds=5), a_run(seeds=3))["subject"].seeds == 3


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
        measures={"subject/copies": share},
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
    ],
)
def test_an_invariant_is_held_by_what_it_measures(before, now, decision):
    assert outcomes(invariant(*before), invariant(*now))["data-leakage/copies"].decision == decision


def test_alpha_is_shared_among_all_that_is_compared():
    found = outcomes(a_run(), a_run(subject=0.675, cured=0.735, prefix="other"))
    alone = stats.crossed(difference(a_run(), a_run(subject=0.675, cured=0.735)), margin=0.02, alpha=0.05)
    assert found["subject"].p_worse >= alone.p_fail


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
            Cell(plugin="batchnorm-drift", arm="subject", variant="", view="test", seed=seed, record=record, recipe="")
        )
    return a_run(cells=tuple(cells), seeds=seeds, findings=(Finding(id="x/y", plugin="x", contrast="y", verdict="PASS"),))


def test_factory_findings_are_held_too():
    cells = make_cells(
        "negative-transfer", {"subject": 0.7, "cured": 0.79, "induced:permuted": 0.3, "scratch": 0.4}, examples=2000
    )
    found = make_findings("negative-transfer", "PASS", cells, contrast=SCRATCH)
    run = make_run(cells=cells, findings=found, plugins=contrasts("negative-transfer"))
    assert outcomes(run, run)[TRANSFER].decision == NOT_WORSE
