"""Findings, gate decisions and a matrix table that must stay as they are, sentence by sentence.

``python tests/test_golden_findings.py`` writes the file again, which is right only where a verdict or a sentence is to change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
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
from test_findings import ALL, EXACT, measured, trusting
from test_schedule import FACTS, SUITE, USUAL, kind, lab, study

from xferbench.core.interventions import PRETRAINED, Edit
from xferbench.core.record import Record
from xferbench.core.run import run_to_json
from xferbench.core.strategies import from_scratch, linear_probe
from xferbench.core.suite import Claim, Matrix
from xferbench.plugins import batchnorm_drift, catastrophic_forgetting, learning_rate, negative_transfer, train_serve_skew
from xferbench.runner import build_run, execute
from xferbench.study import followup, matrix_result
from xferbench.study.study import Study
from xferbench.testing import fake_lab

FILE = Path(__file__).with_name("golden_findings.json")
DIGITS = 8  # significant ones: another machine's sums differ beyond them
NAN = float("nan")
DRIFT, TRANSFER = batchnorm_drift.plugin, negative_transfer.plugin


MEASURED = (DRIFT, learning_rate.plugin, train_serve_skew.plugin)
MEASURES = {reference: {name: 0.5} for plugin in MEASURED for name, reference in plugin.measures.items()}


def close(subject):
    return lab(USUAL | {"subject": subject})


def diverged(answer, seeds):
    """A lab whose subject and controls diverge at some seeds."""

    def diverging(trial):
        record = answer(trial)
        hit = trial.model.base.seed in seeds and kind(trial) in {"subject", "ghost"}
        return replace(record, scalars=record.scalars | {"diverged": 1.0}) if hit and not record.error else record

    return diverging


def crashing_beside(trial):
    if trial.model.base.train_size == 7:
        return Record(key=trial.key, error="Boom: on purpose")
    return measured(ALL)(trial)


def diverged_exact(trial):
    record = measured(ALL | {"subject": [0.0, NAN, 0.0]})(trial)
    dead = trial.view.measure != "predictions" and kind(trial) == "subject" and trial.model.base.seed == 1
    return replace(record, scalars=record.scalars | {"diverged": 1.0}) if dead else record


def missing_predictions(trial):
    record = close(0.7)(trial)
    return replace(record, predictions=None) if kind(trial) == "cured" else record


def broken_trust(pipeline, facts):
    raise KeyError("on purpose")


def forgetting(before, after):
    def accuracy(trial):
        return (after if trial.model.base.phases else before) if trial.view.domain is not None else 0.8

    world = next(
        world for world in fake_lab.scenarios() if world.profile.data.source and world.pipeline.recipe.init == PRETRAINED
    )
    return fake_lab.make_study(catastrophic_forgetting.plugin, pipeline=world.pipeline, facts=world.profile), fake_lab.fake_lab(
        accuracy
    )


def runs():
    """Studies with the labs that answer them, by name."""
    shorter = replace(
        EXACT, extra_arms=lambda pipeline, _: {"shorter": replace(pipeline, data=replace(pipeline.data, train_size=7))}
    )
    one_seed, tuned = replace(SUITE, rules=replace(SUITE.rules, looks=(1,))), replace(SUITE, recipe=None)
    yield "failure", study(DRIFT), close(0.7)
    yield "pass and missed control", study(DRIFT), lab(USUAL | {"subject": 0.8, "momentum": 0.77})
    yield "pass", study(DRIFT, TRANSFER), close(0.8)
    yield "open", study(DRIFT, TRANSFER), lab(USUAL | {"subject": 0.77, "scratch": 0.2})
    yield "open with a budget", study(DRIFT, suite=replace(SUITE, rules=replace(SUITE.rules, budget=1.0))), close(0.77)
    yield "open before the correction", study(DRIFT, TRANSFER), lab(USUAL | {"subject": 0.765, "scratch": 0.738})
    yield "one seed", study(DRIFT, suite=one_seed), close(0.77)
    yield "scratch is better", study(TRANSFER), lab(USUAL | {"scratch": 0.9})
    yield "nothing learnt", study(DRIFT, TRANSFER), lab(dict.fromkeys(USUAL, 0.5))
    yield "not exposed", study(DRIFT, suite=replace(SUITE, recipe=linear_probe())), close(0.7)
    yield "not exposed from scratch", study(TRANSFER, suite=replace(SUITE, recipe=from_scratch())), close(0.7)
    yield "no BatchNorm", study(DRIFT, facts=replace(FACTS, model=replace(FACTS.model, batchnorm=()))), close(0.7)
    for word in ("subject", "cured", "ghost", "scratch"):
        yield f"crash of {word}", study(DRIFT, TRANSFER), lab(USUAL, crash=(word,))
    yield "no predictions", study(DRIFT), missing_predictions
    yield (
        "crash of the backbone",
        study(DRIFT, facts=replace(FACTS, user_code=replace(FACTS.user_code, crash="Boom: no backbone"))),
        close(0.7),
    )
    yield "diverged", study(DRIFT), diverged(close(0.77), {0, 2})
    yield "trust", study(replace(DRIFT, trust=trusting)), close(0.8)
    yield "trust and failure", study(replace(DRIFT, trust=trusting)), close(0.6)
    yield "trust crashes", study(replace(DRIFT, trust=broken_trust)), close(0.7)
    yield "own words", study(replace(DRIFT, explain=lambda *_: "the plugin's own sentence")), close(0.7)
    yield "own words crash", study(replace(DRIFT, explain=lambda *_: {}["none"])), close(0.7)
    yield "own numbers crash", study(replace(DRIFT, derived_metrics=lambda *_: {}["none"])), close(0.7)
    yield "cure changes nothing", study(replace(EXACT, cure=lambda pipeline, _: pipeline)), measured(ALL | {"subject": 1.0})
    yield "tuned", study(DRIFT, TRANSFER, suite=tuned), close(0.77)
    yield "choice", study(learning_rate.plugin), fake_lab.fake_lab(measures=MEASURES)
    yield "choice that none wins", study(learning_rate.plugin), fake_lab.fake_lab(lambda trial: 0.8, MEASURES)
    yield (
        "overridden and remarked",
        study(DRIFT, suite=replace(SUITE, invocation=replace(SUITE.invocation, overrides=("margin=0.03",)))),
        close(0.7),
    )
    left_out = tuple(f"{number} images of another size" for number in range(7))
    noted = replace(FACTS, trust=("preprocessing: recorded nowhere",), data=replace(FACTS.data, dropped_examples=left_out))
    yield "noted", study(DRIFT, facts=noted), close(0.7)
    yield (
        "given and unused",
        fake_lab.make_study(DRIFT, suite=replace(SUITE, data=replace(SUITE.data, source="folder:a", shifted="folder:b"))),
        close(0.7),
    )
    honours = replace(SUITE, training="python:mine:train")
    yield (
        "own training",
        study(DRIFT, suite=honours, facts=replace(FACTS, user_code=replace(FACTS.user_code, supports=("lr", "batchnorm")))),
        close(0.7),
    )
    yield "invariant holds", study(EXACT), measured(ALL | {"ghost": 2.0})
    yield "invariant, missed control", study(EXACT), measured(ALL)
    yield "invariant is broken", study(EXACT), measured(ALL | {"subject": [0.0, 1e-12, 0.0]})
    yield "invariant is broken at one seed", study(EXACT, suite=one_seed), measured(ALL | {"subject": 1.0, "cured": 1.0})
    yield "invariant holds at one seed", study(EXACT, suite=one_seed), measured(ALL)
    yield "invariant not measured", study(EXACT), measured(ALL | {"subject": [1.0, NAN, 0.0]})
    yield "invariant on trust", study(replace(EXACT, trust=trusting)), measured(ALL)
    yield "invariant diverged", study(EXACT), diverged_exact
    yield "beside crashes", study(shorter), crashing_beside
    for before, after in ((0.9, 0.9), (0.9, 0.4), (0.1, 0.1)):
        yield f"source from {before} to {after}", *forgetting(before, after)
    for world in fake_lab.scenarios():
        if world.name in {"LP-FT", "no BatchNorm", "images served in train mode and another form"}:
            asked = fake_lab.make_study(DRIFT, TRANSFER, train_serve_skew.plugin, pipeline=world.pipeline, facts=world.profile)
            yield f"world: {world.name}", asked, fake_lab.fake_lab(measures=MEASURES)


def audits():
    """Findings of a finished network, by name: each audit with the accuracy of its arms."""
    for name, value in (
        ("alike", {}),
        (
            "restored",
            {"classes:assigned@1": 0.9, "batchnorm:recalibrated@2": 0.9, "head:probe": 0.9},
        ),
    ):
        for audit in test_audits.AUDITS:
            yield f"audit {audit.id}, {name}", test_audits.run(audit, test_audits.by_edit(value))
    dead = test_audits.run(test_audits.class_order.audit, lambda trial: 0.3)
    yield "audit of a dead network", dead
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
        yield f"audit, symptoms {name}", mended(scores)


def mended(scores):
    """A run of audits whose largest failure is mended; ``scores`` as in test_symptoms."""
    audits_ = (test_audits.class_order.audit, test_audits.batchnorm_drift.audit, test_audits.linear_probe.audit)
    asked = Study(
        suite=test_audits.SUITE,
        profile=test_audits.FACTS,
        plugins=audits_,
        subject=test_audits.FINISHED,
        context=fake_lab.CONTEXT,
    )
    answer = fake_lab.fake_lab(
        lambda trial: next((value for words, value in scores.items() if {*words} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in audits_ for name, reference in audit.measures.items()},
    )
    step, answers = fake_lab.replay_study(asked, answer)
    left = followup.followup_study(asked, step)
    if left is not None:
        again, answers = fake_lab.replay_study(left[1], answer, answers)
    return build_run.build_run(
        execute.StudyResult(
            study=asked,
            step=step,
            records=answers,
            trials_run=len(answers),
            fits_run=0,
            workers=1,
            seconds=0.0,
            followup=left and followup.Followup(by=left[0], study=left[1], step=again),
        )
    )


def pairs():
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
    shown = make_plugin_run(verdict="INCONCLUSIVE")
    yield (
        "below but for its control",
        replace(shown, findings=tuple(replace(x, p_pass=0.001) for x in shown.findings)),
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
    other = make_plugin_run(verdict="PASS")
    told = other.plugins["batchnorm-drift"]["contrasts"][0] | {"margin": 0.9}
    yield "another contrast", other, replace(other, plugins={"batchnorm-drift": {"version": 1, "contrasts": [told]}})
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
    exposed_alike = replace(
        make_plugin_run(), cells=tuple(replace(x, record=replace(x.record, key="one")) for x in make_plugin_run().cells)
    )
    yield (
        "the cure changes nothing",
        exposed_alike,
        replace(exposed_alike, cells=tuple(keyed(x, "two") for x in exposed_alike.cells)),
    )
    for before, now in (
        (("PASS", 0.0), ("FAIL", 0.1)),
        (("FAIL", 0.1), ("FAIL", 0.1)),
        (("FAIL", 0.1), ("FAIL", 0.2)),
        (("FAIL", 0.1), ("PASS", 0.0)),
        (("FAIL", 0.1), ("INCONCLUSIVE", 0.0)),
        (("FAIL", 0.1), ("FAIL", None)),
        (("FAIL", NAN), ("FAIL", 0.1)),
    ):
        yield f"invariant, {before} and {now}", make_invariant_run(*before), make_invariant_run(*now)


def keyed(cell, key):
    return replace(cell, record=replace(cell.record, key=key))


def matrix():
    """A matrix of one task: comparisons and claims."""
    bounds = {"above": {"at_least": 0.1}, "below": {"at_most": 0.1}, "near": {"at_least": 0.025}}
    common = {"claim": "a", "source": "b", "task": "fake"}
    pair = {"recipe": "linear-probe", "against": "full"}
    effects = [Claim(name=name, **common, **pair, **bound) for name, bound in bounds.items()]
    effects.append(Claim(name="crash", **common, recipe="none", against="full", at_least=0.0))
    effects.append(Claim(name="cost", **common, recipe="full", measure="stored", at_most=9.0))
    effects.append(Claim(name="contrast", **common, contrast="batchnorm-drift/harm", at_most=9.0))

    for name, probe in (("better", 0.9), ("equal", 0.6), ("worse", 0.5), ("open", 0.626)):
        for_probe = {"head": probe}

        def accuracy(trial, known=for_probe):
            words = {str(phase.trainable) for phase in trial.model.base.phases}
            return known.get(next(iter(words)), 0.6) if len(words) == 1 else 0.6

        done = test_matrix_arms.carried_out(fake_lab.fake_lab(accuracy, test_matrix_arms.COST), *effects[:3])
        done = replace(done, skipped={"none": "no such backbone"})
        made = Matrix(
            tasks=(fake_lab.SUITE,), compared=(test_matrix_arms.compared("full"),), against="full", effects=tuple(effects)
        )
        yield name, matrix_result.build_matrix_run(replace(fake_lab.SUITE, matrix=None), made, [done])
    yield "nothing", matrix_result.build_matrix_run(fake_lab.SUITE, made, [replace(done, records={})])


def rounded(value):
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS - 1}e}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, tuple | list) else value


def of_run(run):
    values = run_to_json(run)
    findings = [{name: value for name, value in finding.items() if name != "kind"} for finding in values["findings"]]
    kept = {name: values[name] for name in ("notes", "expected_false_alarms")}
    return rounded(kept | {"findings": [without_empty(finding) for finding in findings]})


def without_empty(entry):
    """An entry without its empty fields."""
    return {name: value for name, value in entry.items() if value is not None and value not in ("", {}, [])}


def of_comparison(comparison):
    values = asdict(comparison)
    return rounded(values | {"outcomes": [without_empty(outcome) for outcome in values["outcomes"]]})


def compute():
    """All cases, by kind and name."""
    found = {"runs": {name: of_run(fake_lab.run_study(asked, answer)) for name, asked, answer in runs()}}
    found["audits"] = {name: of_run(run) for name, run in audits()}
    found["gate"] = {name: of_comparison(compare(old, new)) for name, old, new in pairs()}
    found["matrix"] = {
        name: rounded({"comparisons": run.matrix.comparisons, "claims": run.matrix.claims, "notes": run.notes})
        for name, run in matrix()
    }
    return found


@pytest.fixture(scope="module")
def computed():
    return json.loads(json.dumps(compute()))


@pytest.fixture(scope="module")
def golden():
    return json.loads(FILE.read_text("utf-8"))


@pytest.mark.parametrize("part", ["runs", "audits", "gate", "matrix"])
def test_verdicts_and_sentences_stay_as_they_are(part, computed, golden):
    assert list(computed[part]) == list(golden[part])
    for name, case in golden[part].items():
        assert computed[part][name] == case, name


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
        for part, cases in compute().items()
    ]
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")
