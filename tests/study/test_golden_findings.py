"""Golden findings, gate decisions and a matrix table: a verdict or a sentence must not change unnoticed.

Run ``python tests/study/test_golden_findings.py`` to write the file again after an intended change of a verdict or sentence.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_audits
import test_matrix_arms
from test_compare import (
    compare,
    flip_predictions,
    make_invariant_run,
    make_other_findings,
    make_plugin_run,
    on_another_computer,
)
from test_findings import EXACT_PLUGIN, NO_DRIFT, make_measuring_lab, unrecorded_preprocessing
from test_schedule import ACCURACIES, DRIFT, PROFILE, SUITE, make_lab, make_study, training_kind

from xferbench.core.comparison import comparison_to_json
from xferbench.core.interventions import PRETRAINED, Edit
from xferbench.core.record import Record
from xferbench.core.run import run_to_json
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import from_scratch, linear_probe
from xferbench.core.suite import Claim, Matrix
from xferbench.plugins import catastrophic_forgetting, learning_rate, negative_transfer, train_serve_skew
from xferbench.report.messages import write_matrix
from xferbench.runner import build_run, execute
from xferbench.study import followup, matrix_result
from xferbench.study.study import Study
from xferbench.testing import fake_lab

FILE = Path(__file__).with_name("golden_findings.json")
DIGITS = 8  # significant digits: sums on another machine differ beyond them
NAN = float("nan")
TRANSFER = negative_transfer.plugin


MEASURED_PLUGINS = (DRIFT, learning_rate.plugin, train_serve_skew.plugin)
MEASURES = {reference: {name: 0.5} for plugin in MEASURED_PLUGINS for name, reference in plugin.measures.items()}


def make_close_lab(subject):
    return make_lab(ACCURACIES | {"subject": subject})


def make_diverging_lab(lab, seeds):
    """A lab whose subject and controls diverge at some seeds."""

    def diverge(trial):
        record = lab(trial)
        is_diverged = trial.model.base.seed in seeds and training_kind(trial) in {"subject", "ghost"}
        return replace(record, scalars=record.scalars | {"diverged": 1.0}) if is_diverged and not record.error else record

    return diverge


def crash_extra_arm(trial):
    if trial.model.base.data.train_size == 7:
        return Record(key=trial.key, error="Boom: on purpose")
    return make_measuring_lab(NO_DRIFT)(trial)


def measure_diverged_subject(trial):
    record = make_measuring_lab(NO_DRIFT | {"subject": [0.0, NAN, 0.0]})(trial)
    is_diverged = trial.view.measure != "predictions" and training_kind(trial) == "subject" and trial.model.base.seed == 1
    return replace(record, scalars=record.scalars | {"diverged": 1.0}) if is_diverged else record


def drop_cured_predictions(trial):
    record = make_close_lab(0.7)(trial)
    return replace(record, predictions=None) if training_kind(trial) == "cured" else record


def crash_in_trust(pipeline, profile):
    raise KeyError("on purpose")


def make_forgetting_case(before, after):
    def accuracy(trial):
        return (after if trial.model.base.procedure.phases else before) if trial.view.domain is not None else 0.8

    scenario = next(
        scenario
        for scenario in fake_lab.scenarios()
        if scenario.profile.data.source and scenario.pipeline.recipe.init == PRETRAINED
    )
    return fake_lab.make_study(
        catastrophic_forgetting.plugin, pipeline=scenario.pipeline, facts=scenario.profile
    ), fake_lab.fake_lab(accuracy)


def yield_runs():
    """Studies with the labs that compute their records, by name."""
    shorter = replace(
        EXACT_PLUGIN, extra_arms=lambda pipeline, _: {"shorter": replace(pipeline, data=replace(pipeline.data, train_size=7))}
    )
    one_seed, tuned = replace(SUITE, rules=replace(SUITE.rules, looks=(1,))), replace(SUITE, recipe=None)
    yield "failure", make_study(DRIFT), make_close_lab(0.7)
    yield "pass and missed control", make_study(DRIFT), make_lab(ACCURACIES | {"subject": 0.8, "momentum": 0.774})
    yield "pass", make_study(DRIFT, TRANSFER), make_close_lab(0.8)
    yield "open", make_study(DRIFT, TRANSFER), make_lab(ACCURACIES | {"subject": 0.77, "scratch": 0.2})
    yield (
        "open with a budget",
        make_study(DRIFT, suite=replace(SUITE, rules=replace(SUITE.rules, budget=1.0))),
        make_close_lab(0.77),
    )
    yield "open before the correction", make_study(DRIFT, TRANSFER), make_lab(ACCURACIES | {"subject": 0.765, "scratch": 0.738})
    yield "one seed", make_study(DRIFT, suite=one_seed), make_close_lab(0.77)
    yield "scratch is better", make_study(TRANSFER), make_lab(ACCURACIES | {"scratch": 0.9})
    yield "nothing learnt", make_study(DRIFT, TRANSFER), make_lab(dict.fromkeys(ACCURACIES, 0.5))
    yield "not exposed", make_study(DRIFT, suite=replace(SUITE, recipe=linear_probe())), make_close_lab(0.7)
    yield "not exposed from scratch", make_study(TRANSFER, suite=replace(SUITE, recipe=from_scratch())), make_close_lab(0.7)
    yield (
        "no BatchNorm",
        make_study(DRIFT, profile=replace(PROFILE, model=replace(PROFILE.model, batchnorm=()))),
        make_close_lab(0.7),
    )
    for kind in ("subject", "cured", "ghost", "scratch"):
        yield f"crash of {kind}", make_study(DRIFT, TRANSFER), make_lab(ACCURACIES, crash=(kind,))
    yield "no predictions", make_study(DRIFT), drop_cured_predictions
    yield (
        "crash of the backbone",
        make_study(DRIFT, profile=replace(PROFILE, user_code=replace(PROFILE.user_code, crash="Boom: no backbone"))),
        make_close_lab(0.7),
    )
    yield "diverged", make_study(DRIFT), make_diverging_lab(make_close_lab(0.77), {0, 2})
    yield "trust", make_study(replace(DRIFT, trust=unrecorded_preprocessing)), make_close_lab(0.8)
    yield "trust and failure", make_study(replace(DRIFT, trust=unrecorded_preprocessing)), make_close_lab(0.6)
    yield "trust crashes", make_study(replace(DRIFT, trust=crash_in_trust)), make_close_lab(0.7)
    yield "own words", make_study(replace(DRIFT, explain=lambda *_: "the plugin's own sentence")), make_close_lab(0.7)
    yield "own words crash", make_study(replace(DRIFT, explain=lambda *_: {}["none"])), make_close_lab(0.7)
    yield "own numbers crash", make_study(replace(DRIFT, derived_metrics=lambda *_: {}["none"])), make_close_lab(0.7)
    yield (
        "cure changes nothing",
        make_study(replace(EXACT_PLUGIN, cure=lambda pipeline, _: pipeline)),
        make_measuring_lab(NO_DRIFT | {"subject": 1.0}),
    )
    yield "tuned", make_study(DRIFT, TRANSFER, suite=tuned), make_close_lab(0.77)
    yield "choice", make_study(learning_rate.plugin), fake_lab.fake_lab(measures=MEASURES)
    yield "choice that none wins", make_study(learning_rate.plugin), fake_lab.fake_lab(lambda trial: 0.8, MEASURES)
    yield (
        "overridden and remarked",
        make_study(DRIFT, suite=replace(SUITE, invocation=replace(SUITE.invocation, overrides=("margin=0.03",)))),
        make_close_lab(0.7),
    )
    dropped_examples = tuple(f"{number} images of another size" for number in range(7))
    noted_profile = replace(
        PROFILE, trust=("preprocessing: recorded nowhere",), data=replace(PROFILE.data, dropped_examples=dropped_examples)
    )
    yield "noted", make_study(DRIFT, profile=noted_profile), make_close_lab(0.7)
    yield (
        "given and unused",
        fake_lab.make_study(DRIFT, suite=replace(SUITE, data=replace(SUITE.data, source="folder:a", shifted="folder:b"))),
        make_close_lab(0.7),
    )
    own_training = replace(SUITE, training="python:mine:train")
    yield (
        "own training",
        make_study(
            DRIFT,
            suite=own_training,
            profile=replace(PROFILE, user_code=replace(PROFILE.user_code, supports=("lr", "batchnorm"))),
        ),
        make_close_lab(0.7),
    )
    yield "invariant holds", make_study(EXACT_PLUGIN), make_measuring_lab(NO_DRIFT | {"ghost": 2.0})
    yield "invariant, missed control", make_study(EXACT_PLUGIN), make_measuring_lab(NO_DRIFT)
    yield "invariant is broken", make_study(EXACT_PLUGIN), make_measuring_lab(NO_DRIFT | {"subject": [0.0, 1e-12, 0.0]})
    yield (
        "invariant is broken at one seed",
        make_study(EXACT_PLUGIN, suite=one_seed),
        make_measuring_lab(NO_DRIFT | {"subject": 1.0, "cured": 1.0}),
    )
    yield "invariant holds at one seed", make_study(EXACT_PLUGIN, suite=one_seed), make_measuring_lab(NO_DRIFT)
    yield "invariant not measured", make_study(EXACT_PLUGIN), make_measuring_lab(NO_DRIFT | {"subject": [1.0, NAN, 0.0]})
    yield "invariant on trust", make_study(replace(EXACT_PLUGIN, trust=unrecorded_preprocessing)), make_measuring_lab(NO_DRIFT)
    yield "invariant diverged", make_study(EXACT_PLUGIN), measure_diverged_subject
    yield "beside crashes", make_study(shorter), crash_extra_arm
    for before, after in ((0.9, 0.9), (0.9, 0.4), (0.1, 0.1)):
        yield f"source from {before} to {after}", *make_forgetting_case(before, after)
    for scenario in fake_lab.scenarios():
        if scenario.name in {"LP-FT", "no BatchNorm", "images served in train mode and another form"}:
            study = fake_lab.make_study(
                DRIFT, TRANSFER, train_serve_skew.plugin, pipeline=scenario.pipeline, facts=scenario.profile
            )
            yield f"world: {scenario.name}", study, fake_lab.fake_lab(measures=MEASURES)


def yield_audits():
    """Runs of audits of a finished network, by name: each audit with the accuracy of its arms."""
    for name, value in (
        ("alike", {}),
        (
            "restored",
            {"classes:assigned@1": 0.9, "batchnorm:recalibrated@2": 0.9, "head:probe": 0.9},
        ),
    ):
        for audit in test_audits.AUDITS:
            yield f"audit {audit.id}, {name}", test_audits.run_audit(audit, test_audits.accuracy_by_edit(value))
    run = test_audits.run_audit(test_audits.class_order.audit, lambda trial: 0.3)
    yield "audit of a dead network", run
    order, statistics, probe = (
        Edit.parse("classes:assigned@1"),
        Edit.parse("batchnorm:recalibrated@2"),
        Edit.parse("head:probe"),
    )
    for name, scores in {
        "gone": {(order, statistics): 0.9, (order,): 0.9, (statistics,): 0.5, (probe,): 0.5},
        "stays": {(order, statistics): 0.97, (order,): 0.8, (statistics,): 0.5, (probe,): 0.9},
        "open": {(order, statistics): 0.832, (order,): 0.8, (statistics,): 0.5, (probe,): 0.829},
        "none": {(order,): 0.9},
    }.items():
        yield f"audit, symptoms {name}", run_repaired_audits(scores)


def run_repaired_audits(scores):
    """A run of audits with its followup; ``scores`` maps edits to accuracies as in ``test_followup``."""
    audits = (test_audits.class_order.audit, test_audits.batchnorm_drift.audit, test_audits.linear_probe.audit)
    study = Study(
        suite=test_audits.SUITE,
        profile=test_audits.PROFILE,
        plugins=audits,
        subject=test_audits.FINISHED,
        context=fake_lab.CONTEXT,
    )
    lab = fake_lab.fake_lab(
        lambda trial: next((value for edits, value in scores.items() if {*edits} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in audits for name, reference in audit.measures.items()},
    )
    step, records = fake_lab.replay_study(study, lab)
    followup_plan = followup.followup_study(study, step, records)
    if followup_plan is not None:
        followup_step, records = fake_lab.replay_study(followup_plan[1], lab, records)
    return build_run.build_run(
        execute.StudyResult(
            study=study,
            step=step,
            records=records,
            trials_run=len(records),
            fits_run=0,
            workers=1,
            seconds=0.0,
            followup=followup_plan and followup.Followup(by=followup_plan[0], study=followup_plan[1], step=followup_step),
        )
    )


def yield_pairs():
    """Pairs of an accepted run and a candidate, by name."""
    grown = {"subject": 0.71, "cured": 0.77, "prefix": "other"}
    yield "the same", make_plugin_run(), make_plugin_run()
    yield "worse", make_plugin_run(), make_plugin_run(subject=0.60)
    yield "better", make_plugin_run(), make_plugin_run(subject=0.80)
    yield "open", make_plugin_run(), make_plugin_run(subject=0.68)
    yield "a new failure", make_plugin_run(verdict="PASS"), make_plugin_run(**grown)
    for subject, cured in ((0.71, 0.77), (0.68, 0.765), (0.60, 0.76)):
        yield (
            f"left open, {subject}",
            make_plugin_run(verdict="INCONCLUSIVE"),
            make_plugin_run(subject=subject, cured=cured, prefix="other"),
        )
    inconclusive = make_plugin_run(verdict="INCONCLUSIVE")
    yield (
        "below but for its control",
        replace(inconclusive, findings=tuple(replace_flat(x, p_pass=0.001) for x in inconclusive.findings)),
        make_plugin_run(**grown),
    )
    yield (
        "another computer",
        make_plugin_run(examples=200),
        on_another_computer(flip_predictions(make_plugin_run(examples=200), flips=2)),
    )
    yield (
        "a failure of another computer",
        make_plugin_run(verdict="PASS"),
        on_another_computer(flip_predictions(make_plugin_run(), flips=4)),
    )
    yield "ruined by another computer", make_plugin_run(), on_another_computer(flip_predictions(make_plugin_run(), flips=400))
    yield "the same computer", make_plugin_run(examples=200), flip_predictions(make_plugin_run(examples=200), flips=4)
    yield "no longer asked", make_plugin_run(verdict="PASS"), make_plugin_run(findings=make_other_findings())
    yield "skipped and no longer asked", make_plugin_run(verdict="SKIPPED"), make_plugin_run(findings=make_other_findings())
    yield "passes now", make_plugin_run(cured=0.50, verdict="PASS"), make_plugin_run(cured=0.70, verdict="PASS")
    for verdict in ("FAIL", "PASS", "INCONCLUSIVE", "SKIPPED", "ERROR"):
        yield f"not asked before, {verdict}", make_plugin_run(findings=()), make_plugin_run(verdict=verdict)
    yield "no verdict before", make_plugin_run(verdict="ERROR"), make_plugin_run()
    yield "another version", make_plugin_run(), make_plugin_run(version=2)
    yield "no version", make_plugin_run(plugins={}), make_plugin_run()
    yield "no longer judged", make_plugin_run(), make_plugin_run(verdict="SKIPPED")
    accepted = make_plugin_run(verdict="PASS")
    contrast = accepted.provenance.plugins["batchnorm-drift"]["contrasts"][0] | {"margin": 0.9}
    yield (
        "another contrast",
        accepted,
        replace_flat(accepted, plugins={"batchnorm-drift": {"version": 1, "contrasts": [contrast]}}),
    )
    crashed = make_plugin_run(verdict="ERROR")
    cells = tuple(
        replace(cell, record=Record(key=cell.record.key, error="out of memory")) if cell.arm == "subject" else cell
        for cell in crashed.cells
    )
    yield "a crash", make_plugin_run(), replace(crashed, cells=cells)
    yield "a crash with a verdict", make_plugin_run(), replace(crashed, cells=cells, findings=make_plugin_run().findings)
    yield (
        "no subject",
        replace(make_plugin_run(), cells=tuple(cell for cell in make_plugin_run().cells if cell.arm != "subject")),
        make_plugin_run(),
    )
    yield "fewer seeds", make_plugin_run(seeds=5), make_plugin_run(seeds=3)
    yield "one seed", make_plugin_run(seeds=5), make_plugin_run(seeds=1, subject=0.5)
    yield (
        "other seeds",
        make_plugin_run(),
        replace(make_plugin_run(), cells=tuple(replace(x, seed=x.seed + 4) for x in make_plugin_run().cells)),
    )
    same_records = replace(
        make_plugin_run(), cells=tuple(replace(x, record=replace(x.record, key="one")) for x in make_plugin_run().cells)
    )
    yield (
        "the cure changes nothing",
        same_records,
        replace(same_records, cells=tuple(with_record_key(x, "two") for x in same_records.cells)),
    )
    for accepted_state, candidate_state in (
        (("PASS", 0.0), ("FAIL", 0.1)),
        (("FAIL", 0.1), ("FAIL", 0.1)),
        (("FAIL", 0.1), ("FAIL", 0.2)),
        (("FAIL", 0.1), ("PASS", 0.0)),
        (("FAIL", 0.1), ("INCONCLUSIVE", 0.0)),
        (("FAIL", 0.1), ("FAIL", None)),
        (("FAIL", NAN), ("FAIL", 0.1)),
    ):
        yield (
            f"invariant, {accepted_state} and {candidate_state}",
            make_invariant_run(*accepted_state),
            make_invariant_run(*candidate_state),
        )


def with_record_key(cell, key):
    return replace(cell, record=replace(cell.record, key=key))


def yield_matrix_runs():
    """A matrix of one task: comparisons and claims."""
    bounds = {"above": {"at_least": 0.1}, "below": {"at_most": 0.1}, "near": {"at_least": 0.025}}
    common = {"claim": "a", "source": "b", "task": "fake"}
    pair = {"recipe": "linear-probe", "against": "full"}
    effects = [Claim(name=name, **common, **pair, **bound) for name, bound in bounds.items()]
    effects.append(Claim(name="crash", **common, recipe="none", against="full", at_least=0.0))
    effects.append(Claim(name="cost", **common, recipe="full", measure="stored", at_most=9.0))
    effects.append(Claim(name="contrast", **common, contrast="batchnorm-drift/harm", at_most=9.0))

    for name, probe in (("better", 0.9), ("equal", 0.6), ("worse", 0.5), ("open", 0.626)):
        accuracy_by_trainable = {"head": probe}

        def accuracy(trial, accuracies=accuracy_by_trainable):
            trainable = {str(phase.trainable) for phase in trial.model.base.procedure.phases}
            return accuracies.get(next(iter(trainable)), 0.6) if len(trainable) == 1 else 0.6

        result = test_matrix_arms.run_task(fake_lab.fake_lab(accuracy, test_matrix_arms.COST), *effects[:3])
        result = replace(result, skipped={"none": "no such backbone"})
        matrix = Matrix(
            tasks=(fake_lab.SUITE,), compared=(test_matrix_arms.make_grid("full"),), against="full", effects=tuple(effects)
        )
        run = matrix_result.build_matrix_run(replace(fake_lab.SUITE, matrix=None), matrix, [result])
        yield name, write_matrix(run)
    yield "nothing", write_matrix(matrix_result.build_matrix_run(fake_lab.SUITE, matrix, [replace(result, records={})]))


def round_numbers(value):
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS - 1}e}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): round_numbers(item) for key, item in value.items()}
    return [round_numbers(item) for item in value] if isinstance(value, tuple | list) else value


def run_to_golden(run):
    values = run_to_json(run)
    findings = [{name: value for name, value in finding.items() if name != "kind"} for finding in values["findings"]]
    top_level = {name: values[name] for name in ("notes", "expected_false_alarms")}
    return round_numbers(top_level | {"findings": [without_empty(finding) for finding in findings]})


def without_empty(entry):
    """An entry without its empty fields."""
    return {name: value for name, value in entry.items() if value is not None and value not in ("", {}, [])}


def comparison_to_golden(comparison):
    values = comparison_to_json(comparison)
    return round_numbers(values | {"outcomes": [without_empty(outcome) for outcome in values["outcomes"]]})


def compute_cases():
    """All cases, by part and name."""
    cases = {"runs": {name: run_to_golden(fake_lab.run_study(study, lab)) for name, study, lab in yield_runs()}}
    cases["audits"] = {name: run_to_golden(run) for name, run in yield_audits()}
    cases["gate"] = {name: comparison_to_golden(compare(old, new)) for name, old, new in yield_pairs()}
    cases["matrix"] = {
        name: round_numbers({"comparisons": run.matrix.comparisons, "claims": run.matrix.claims, "notes": run.notes})
        for name, run in yield_matrix_runs()
    }
    return cases


@pytest.fixture(scope="module")
def computed_cases():
    return json.loads(json.dumps(compute_cases()))


@pytest.fixture(scope="module")
def golden():
    return json.loads(FILE.read_text("utf-8"))


@pytest.mark.parametrize("part", ["runs", "audits", "gate", "matrix"])
def test_verdicts_and_sentences_stay_as_they_are(part, computed_cases, golden):
    assert list(computed_cases[part]) == list(golden[part])
    for name, case in golden[part].items():
        assert computed_cases[part][name] == case, name


def test_every_verdict_control_and_decision_is_covered(golden):
    findings = [finding for part in ("runs", "audits") for case in golden[part].values() for finding in case["findings"]]
    assert len(findings) >= 40
    assert {finding["verdict"] for finding in findings} == {"FAIL", "PASS", "INCONCLUSIVE", "ERROR", "SKIPPED", "INFO"}
    assert {finding["control"] for finding in findings} == {"detected", "harmless", "missed", "none"}
    decisions = {outcome["decision"] for case in golden["gate"].values() for outcome in case["outcomes"]}
    assert decisions == {"worse", "not worse", "cannot tell", "crashed", "skipped"}
    rows = [row for case in golden["matrix"].values() for row in case["comparisons"]]
    assert {row["said"] for row in rows} == {"better", "worse", "equal", "open"}
    claims = {claim["outcome"] for case in golden["matrix"].values() for claim in case["claims"]}
    assert claims == {"agrees", "disagrees", "inconclusive", "not measured"}


if __name__ == "__main__":
    parts = [
        f"{json.dumps(part)}: {{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(case, ensure_ascii=False)}" for name, case in cases.items())
        + "\n}"
        for part, cases in compute_cases().items()
    ]
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")
