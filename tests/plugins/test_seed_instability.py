"""Recipes that fail with some seeds: the arms, the verdicts, the gate, and the embedded images and texts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from xferbench.analysis import compare
from xferbench.analysis.compatibility import changed_rules
from xferbench.cli import main
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import RANDOM
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.record import Record
from xferbench.core.run import run_to_json
from xferbench.core.strategies import discriminative, gradual_unfreezing, linear_probe, lp_ft
from xferbench.plugins import seed_instability
from xferbench.report import html, junit, markdown
from xferbench.testing import conforms, fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

RECIPES = [Recipe(), linear_probe(), lp_ft(), gradual_unfreezing(), discriminative(), Recipe(phases=(Phase(steps=1),))]
RECIPES += [Recipe(phases=(Phase(steps=100, warmup=60, clip=0.5),)), Recipe(phases=(Phase(optimizer="sgd", lr=0.1),))]
SUBJECT = replace(PIPELINE, recipe=Recipe(phases=(Phase(lr=1e-2, steps=40),)))
SUITE = """
schema = 1
name = "seeds"
plugins = ["seed-instability"]
margin = 0.05
looks = [5]
tuning_seeds = 1
budget = "2h"
max_failed_runs = 0.5
[backbone]
arch = "{arch}"
[target]
data = "synthetic:{data}"
train_size = 60
test_size = 200
[recipe]
{recipe}
"""
PROBE = 'trainable = "head"\nbatchnorm = "eval"\nlr = {lr}\nsteps = 40\nbatch_size = 16'
TOO_HIGH = 'trainable = "all"\nlr = 0.06\nsteps = 60\nbatch_size = 16'


def test_it_conforms():
    conforms(seed_instability.plugin)


@pytest.mark.parametrize("recipe", RECIPES, ids=describe_recipe)
def test_the_cures_have_warm_up_clipping_and_twice_the_steps_at_two_rates(recipe):
    subject = replace(PIPELINE, recipe=recipe)
    first, *cures = (candidate.recipe for candidate in seed_instability.cure(subject, PROFILE).candidates)
    assert first == recipe
    for factor, cured in zip((1.0, 0.1), cures, strict=True):
        for old, new in zip(recipe.phases, cured.phases, strict=True):
            assert new.steps == 2 * old.steps and new.warmup >= new.steps // 10
            assert new.warmup < new.steps, "a suite requires it"
            assert new.clip == min(old.clip or 1.0, 1.0)
            assert new.lr == pytest.approx(factor * old.lr)
            assert (new.head_lr is None) == (old.head_lr is None)
            same = {"steps": old.steps, "warmup": old.warmup, "clip": old.clip, "lr": old.lr, "head_lr": old.head_lr}
            assert replace(new, **same) == old


@pytest.mark.parametrize("recipe", RECIPES, ids=describe_recipe)
def test_the_induced_arm_trains_all_layers_at_a_constant_rate_that_is_far_too_high(recipe):
    (arm,) = seed_instability.induce(replace(PIPELINE, recipe=recipe), PROFILE).values()
    (phase,) = arm.recipe.phases
    assert (str(phase.trainable), phase.schedule, phase.warmup, phase.clip, phase.head_lr) == ("all", "constant", 0, None, None)
    assert phase.lr >= 1 and phase.steps == sum(old.steps for old in recipe.phases)


def test_random_weights_are_no_transfer():
    assert seed_instability.plugin.applies(replace(PIPELINE, recipe=Recipe(init=RANDOM)), PROFILE)
    assert seed_instability.plugin.applies(SUBJECT, PROFILE) == ""


def arm_of(trial):
    phase = trial.model.base.procedure.phases[-1]
    return "induced" if phase.lr >= 1 else "cured" if phase.clip else "subject"


def run_with(accuracy, *, examples=1000, crash="", diverged=(), **rules):
    """Return the run of a plugin in a lab where an arm has an accuracy at a seed."""
    rules = {"looks": (5,), "tuning_seeds": 1, "budget": 1e9, **rules}
    suite = replace(fake_lab.SUITE, recipe=SUBJECT.recipe, rules=replace(fake_lab.SUITE.rules, **rules))
    lab = fake_lab.fake_lab(lambda trial: accuracy(arm_of(trial), trial.model.base.seed), examples=examples)

    def compute_record(trial):
        arm, seed = arm_of(trial), trial.model.base.seed
        if arm == crash:
            return Record(key=trial.key, error="Boom: on purpose")
        record = lab(trial)
        return replace(record, scalars={"diverged": 1.0}) if arm == "subject" and seed in diverged else record

    return fake_lab.run_study(fake_lab.make_study(seed_instability.plugin, suite=suite, pipeline=SUBJECT), compute_record)


def find(accuracy, **options):
    (finding,) = run_with(accuracy, **options).findings
    return finding


def fail_at(*seeds, accuracy=0.5, cured=0.85, induced=0.5):
    """Return accuracies in which the subject has another one at some seeds."""
    levels = {"cured": cured, "induced": induced}
    return lambda arm, seed: levels.get(arm, accuracy if seed in seeds else 0.8 + 0.005 * (seed % 5))


def test_a_stable_recipe_passes_after_more_seeds_of_the_subject():
    finding = find(fail_at())
    assert (finding.id, finding.verdict) == ("seed-instability/failed-runs/rate-x1000", "PASS")
    assert (finding.control.outcome, finding.control.harm) == ("detected", 1.0)
    assert (finding.estimate.harm, finding.estimate.margin, finding.estimate.seeds) == (0.0, 0.2, 14)
    assert (finding.estimate.metric, finding.estimate.unit) == ("failed_runs", "runs")
    assert (finding.failures.count, finding.failures.low) == (0, 0.0)
    assert finding.measures == {"subject/failed-runs": 0.0, "cured/failed-runs": 0.0}
    assert "fewer runs fail than the allowed share of 20 %" in finding.reason
    assert "scratch" not in finding.accuracy


def test_a_recipe_that_always_fails_fails_and_its_cure_is_verified():
    finding = find(fail_at(*range(99)))
    assert finding.verdict == "FAIL" and finding.estimate.seeds == 5
    assert "5 of 5 runs of subject failed: 5 learned nothing or too little (seeds 0, 1, 2, 3, 4)" in finding.reason
    assert "at the same 5 seeds, 0 runs of cured failed and 5 of subject (McNemar's p = 0.031)" in finding.reason
    assert finding.remedy["verified"] and {"clip = 1    # was not set"} <= set(finding.remedy["patch"])


def test_a_cure_that_fails_as_often_is_not_verified():
    finding = find(lambda arm, seed: 0.85 if arm == "cured" and seed % 2 else 0.5)
    assert finding.verdict == "FAIL"
    assert not finding.remedy["verified"] and "% of runs" in finding.remedy["text"]


def test_some_failed_runs_leave_it_open_and_the_number_of_seeds_that_would_decide_is_stated():
    finding = find(fail_at(2, accuracy=0.55))
    assert finding.verdict == "INCONCLUSIVE" and finding.estimate.seeds == 14
    assert "1 of 14 runs of subject failed" in finding.reason
    assert "seeds without another failed run would show that fewer than 20 % of the runs fail" in finding.reason
    many = find(fail_at(1, 3, 5, 7))
    assert "about 72 seeds would show that more than 20 % of the runs fail" in many.reason or "about" in many.reason
    assert many.verdict == "INCONCLUSIVE"


def test_one_failed_run_passes_if_a_larger_share_is_allowed():
    assert find(fail_at(2), max_failed_runs=0.5, looks=(10,)).verdict == "PASS"
    assert find(fail_at(2), max_failed_runs=0.2, looks=(30,)).verdict == "PASS"
    assert find(fail_at(2, 9, 14, 17, 21, 25, 28), max_failed_runs=0.05, looks=(30,)).verdict == "FAIL"


def test_each_way_of_failing_is_named():
    levels = {3: 0.5, 4: 0.72}
    finding = find(
        lambda arm, seed: {"cured": 0.85, "induced": 0.5}.get(arm, levels.get(seed, 0.85 + 0.001 * (seed % 3))), diverged=(6,)
    )
    assert "1 diverged (seed 6), 1 learned nothing or too little (seed 3), 1 in a lower mode (seed 4)" in finding.reason


def test_seeds_that_merely_vary_are_no_failures():
    finding = find(lambda arm, seed: {"cured": 0.85, "induced": 0.5}.get(arm, 0.72 + 0.01 * (seed % 15)))
    assert finding.verdict == "PASS"


def test_a_lower_mode_with_most_runs_does_not_pass():
    finding = find(lambda arm, seed: {"cured": 0.85, "induced": 0.5}.get(arm, 0.85 if seed % 3 == 0 else 0.68))
    assert finding.verdict == "FAIL" and "in a lower mode" in finding.reason


def test_a_doubtful_run_is_named_and_prevents_a_pass():
    finding = find(lambda arm, seed: {"cured": 0.85, "induced": 0.5}.get(arm, 0.68 if seed == 7 else 0.78 + 0.005 * (seed % 9)))
    assert finding.verdict == "INCONCLUSIVE" and finding.failures.count == 0
    assert "1 run of subject (seed 7) may have failed" in finding.reason


def test_a_worse_but_stable_recipe_is_no_failure():
    assert find(lambda arm, _: {"cured": 0.95, "induced": 0.5}.get(arm, 0.62)).verdict == "PASS"


def test_a_control_that_does_not_fail_gives_no_pass():
    finding = find(fail_at(induced=0.8))
    assert (finding.verdict, finding.control.outcome) == ("INCONCLUSIVE", "missed")
    assert "no power" in finding.reason


def test_where_nothing_learned_there_is_no_verdict():
    finding = find(fail_at(*range(99), cured=0.5))
    assert finding.verdict == "INCONCLUSIVE" and "no run of subject and cured learned anything" in finding.reason


@pytest.mark.parametrize("arm", ["subject", "cured", "induced"])
def test_a_crash_of_any_arm_is_an_error(arm):
    assert find(fail_at(), crash=arm).verdict == "ERROR"


def test_reports_have_the_share_in_percent_of_runs_and_its_plot():
    run = run_with(fail_at(2))
    assert "% of runs" in markdown.render(run) and "seed-instability" in junit.render(run)
    page = html.render(run, {"seed-instability": seed_instability.plugin})
    assert "% of runs" in page and "could not be drawn" not in page and "test accuracy" in page
    assert not any("runs of subject failed" in note for note in run.notes), "the finding says it"
    assert json.loads(json.dumps(run_to_json(run), allow_nan=False))["findings"][0]["failed_runs"] == 1


def test_a_gate_calls_a_new_failure_worse_and_the_same_result_unchanged():
    healthy, failing = run_with(fail_at()), run_with(fail_at(*range(99)))

    def decide(accepted, candidate):
        outcomes = {outcome.id: outcome for outcome, _ in compare.compare(accepted, candidate).outcomes}
        return outcomes["seed-instability/failed-runs"].decision

    assert decide(healthy, failing) == "worse"
    assert decide(healthy, healthy) == "not worse"
    assert decide(failing, failing) == "not worse", "the accepted run fails as often"


def test_another_allowed_share_needs_a_new_accepted_run():
    run = run_with(fail_at())
    older = replace(run, suite={name: value for name, value in run.suite.items() if name != "max_failed_runs"})
    stricter = replace(run, suite={**run.suite, "max_failed_runs": 0.1})
    assert changed_rules(older, run) == [] and changed_rules(run, stricter) == ["max_failed_runs 0.2, here 0.1"]


def run_suite(tmp_path, arch, data, recipe):
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(SUITE.format(arch=arch, data=data, recipe=recipe))
    main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    assert "could not be drawn" not in (out / "report.html").read_text()
    (finding,) = json.loads((out / "results.json").read_text())["findings"]
    return finding


@pytest.mark.parametrize(("arch", "data", "lr"), [("tiny-resnet", "near", 1e-2), ("tiny-bert", "text-near", 3e-2)])
def test_a_linear_probe_of_the_embedded_data_passes_and_its_control_is_detected(tmp_path, arch, data, lr):
    finding = run_suite(tmp_path, arch, data, PROBE.format(lr=lr))
    assert (finding["verdict"], finding["control"]) == ("PASS", "detected")
    assert (finding["failed_runs"], finding["seeds"], finding["control_harm"]) == (0, 5, 1.0)


def test_a_rate_that_is_far_too_high_fails_on_the_embedded_images(tmp_path):
    finding = run_suite(tmp_path, "tiny-resnet", "near", TOO_HIGH)
    assert finding["verdict"] == "FAIL" and finding["accuracy"]["cured"] > finding["accuracy"]["subject"] + 0.2
