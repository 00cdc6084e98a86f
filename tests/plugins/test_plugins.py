"""Every installed plugin, and the plugin that CONTRIBUTING.md adds."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from factory import make_cells, make_record, make_run
from test_schedule import ACCURACIES, PIPELINE, PROFILE, compute_findings, make_lab, make_study

from xferbench.config.render import describe_recipe
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    EVAL_MODE,
    HEAD_ONLY,
    PRETRAINED,
    RANDOM,
    Augmentation,
    GhostBatchNorm,
    Head,
    InterpolatePhase,
)
from xferbench.core.pipeline import Phase, Recipe, Selection
from xferbench.core.sections import flat_values
from xferbench.core.strategies import (
    STRATEGIES,
    gradual_unfreezing,
    interpolate_to_probe,
    linear_probe,
    lp_ft,
    scratch_baseline,
)
from xferbench.core.transforms import Preprocessing
from xferbench.lab.evaluation.context import MeasureContext
from xferbench.plugins import (
    batchnorm_drift,
    catastrophic_forgetting,
    feature_distortion,
    head_shock,
    learning_rate,
    negative_transfer,
    preprocessing_mismatch,
    preprocessing_variants,
    train_serve_skew,
)
from xferbench.report import figures
from xferbench.runner import discovery
from xferbench.study import trials
from xferbench.study.arms import induced_arms, plugin_arms, why_not
from xferbench.testing import fake_lab

PLUGINS = discovery.load_plugins(["all"])
SUBJECT = replace(PIPELINE, serving=replace(PIPELINE.serving, preprocessing=Preprocessing(mean=(0.5,), std=(0.5,))))
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_the_page_of_a_plugin_is_complete(plugin):
    for heading in ("Symptom", "Cause", "Remedy", "References"):
        assert f"\n{heading}\n" in plugin.doc
    assert plugin.question.endswith("?") and plugin.remedy


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_arms_change_training_or_serving_and_nothing_else(plugin):
    cured = plugin.cure(SUBJECT, PROFILE)
    cured, *others = cured.candidates if isinstance(cured, Selection) else (cured,)
    induced = plugin.induce(cured, PROFILE)
    assert bool(induced) == plugin.has_verdict, "a plugin without a verdict induces nothing"
    assert all(arm.expected_training == SUBJECT.expected_training for arm in (cured, *others))
    induced_pipelines = [
        candidate for arm in induced.values() for candidate in (arm.candidates if isinstance(arm, Selection) else (arm,))
    ]
    for arm in (cured, *others, *induced_pipelines):
        changed = {name for name, value in flat_values(arm).items() if value != flat_values(SUBJECT)[name]}
        assert changed <= {
            "recipe",
            "train_preprocessing",
            "serve_preprocessing",
            "mode",
            "judged",
            "planted",
            "believed",
            "edits",
        }
    assert all(arm != cured for arm in induced_pipelines)


@pytest.mark.parametrize("plugin", [plugin for plugin in PLUGINS if plugin.id != "augmentation"], ids=lambda plugin: plugin.id)
def test_arms_keep_the_augmentation_and_the_mlp_head_of_the_pipeline(plugin):
    pipeline = replace(fake_lab.PIPELINE, recipe=Recipe(head=Head.parse("mlp:16"), augment=Augmentation.parse("flip")))
    study = fake_lab.make_study(plugin, pipeline=pipeline, facts=fake_lab.PROFILE)
    arms = plugin_arms(plugin, study, pipeline) | induced_arms(plugin, study, pipeline)
    for name, arm in arms.items():
        candidates = arm.candidates if isinstance(arm, Selection) else (arm,)
        assert {str(candidate.recipe.head) for candidate in candidates} == {"mlp:16"}
        searches_augmentations = "scratch" in name or (isinstance(arm, Selection) and arm.halvings)
        assert searches_augmentations or {str(candidate.recipe.augment) for candidate in candidates} == {"flip"}
    assert not any(fake_lab.why_impossible(trials.training_spec(candidate, 0)) for candidate in candidates)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_no_arm_interpolates_to_an_untrained_head(plugin):
    pipeline = replace(fake_lab.PIPELINE, recipe=interpolate_to_probe())
    study = fake_lab.make_study(plugin, pipeline=pipeline, facts=fake_lab.PROFILE)
    arms = (plugin_arms(plugin, study, pipeline) | induced_arms(plugin, study, pipeline)).values()
    recipes = [candidate.recipe for arm in arms for candidate in (arm.candidates if isinstance(arm, Selection) else (arm,))]
    assert pipeline.recipe in recipes
    assert all(len(recipe.phases) > 1 for recipe in recipes if isinstance(recipe.finish, InterpolatePhase))


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_a_plugin_about_transfer_does_not_apply_to_random_weights(plugin):
    reason = plugin.applies(replace(PIPELINE, recipe=Recipe(init=RANDOM)), PROFILE)
    assert reason == (
        ""
        if plugin.id in {"augmentation", "calibration", "data-leakage", "train-serve-skew"}
        else "nothing pretrained is adapted"
    )


def make_measure_context(before, after, **changes):
    unused = {"network": None, "train": None, "test": None, "mode": EVAL_MODE, "trial": None}
    return MeasureContext(before=before, after=after, **unused | changes)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_a_plugin_is_one_short_file(plugin):
    assert count_lines(plugin) <= 140


def test_most_plugins_are_a_page():
    assert median(count_lines(plugin) for plugin in PLUGINS) <= 95


def count_lines(plugin):
    """Lines of a plugin's file without its imports; an experiment and an audit in one file count half of it each."""
    text = (ROOT / "xferbench" / "plugins" / f"{plugin.id.replace('-', '_')}.py").read_text()
    imports = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom))
    lines = text.count("\n") - sum(node.end_lineno - node.lineno + 1 for node in imports)
    return lines / (2 if "AUDIT_DOC" in text else 1)


def describe_drift_candidate(pipeline):
    return [(str(phase.batchnorm), phase.steps) for phase in pipeline.recipe.phases], [str(edit) for edit in pipeline.edits]


def test_the_candidates_against_drift_are_both_modes_one_after_the_other_and_recalibrated_statistics():
    recalibrated = ["batchnorm:recalibrated@2"]
    candidates = batchnorm_drift.cure(replace(PIPELINE, recipe=Recipe()), PROFILE).candidates
    assert [describe_drift_candidate(candidate) for candidate in candidates] == [
        ([("eval", 150)], []),
        ([("train", 150)], []),
        ([("eval", 75), ("train", 75)], []),
        ([("train", 150)], recalibrated),
    ]
    two_phases = batchnorm_drift.cure(replace(PIPELINE, recipe=lp_ft()), PROFILE).candidates
    modes = [[mode for mode, _ in describe_drift_candidate(candidate)[0]] for candidate in two_phases]
    assert modes == [["eval", "eval"], ["train", "train"], ["eval", "train"], ["eval", "train"]]


def test_statistics_that_never_change_are_not_exposed_to_drift():
    for recipe in (linear_probe(), lp_ft(Phase(batchnorm=BATCHNORM_EVAL))):
        pipeline = replace(PIPELINE, recipe=recipe)
        assert batchnorm_drift.cure(pipeline, PROFILE) == pipeline


def test_an_induced_drift_is_not_recalibrated_away():
    *_, recalibrated = batchnorm_drift.cure(replace(PIPELINE, recipe=Recipe()), PROFILE).candidates
    assert recalibrated.edits and not any(arm.edits for arm in batchnorm_drift.induce(recalibrated, PROFILE).values())


def test_a_drift_that_the_selected_recipe_has_is_not_induced():
    pipeline = replace(PIPELINE, recipe=Recipe(phases=(Phase(batchnorm=GhostBatchNorm(examples=2)),)))
    assert set(batchnorm_drift.induce(pipeline, PROFILE)) == {"class-order", "stale-statistics"}


def test_a_mode_that_costs_the_target_is_not_the_cure_of_drift():
    def accuracy(trial):
        return 0.6 if trial.model.base.procedure.phases[-1].batchnorm == BATCHNORM_EVAL else 0.8

    measures = {reference: {name: 0.5} for name, reference in batchnorm_drift.plugin.measures.items()}
    run = fake_lab.run_study(fake_lab.make_study(batchnorm_drift.plugin), fake_lab.fake_lab(accuracy, measures))
    finding = next(finding for finding in run.findings if finding.contrast == "harm")
    assert finding.accuracy["cured"] == finding.accuracy["subject"] > 0.75, "evaluation mode costs 20 points here"


def test_drift_is_zero_without_movement_and_follows_its_formula():
    before = {"bn.running_mean": torch.tensor([0.0, 1.0]), "bn.running_var": torch.tensor([1.0, 4.0])}
    unchanged = make_measure_context(before, before)
    assert batchnorm_drift.drift(unchanged) == {"drift": 0.0, "drift/bn": 0.0}
    after = {"bn.running_mean": torch.tensor([1.0, 1.0]), "bn.running_var": torch.tensor([1.0, 4.0 * 2.718281828])}
    drift = batchnorm_drift.drift(make_measure_context(before, after))
    assert drift["drift/bn"] == pytest.approx(1 / 2 + 1 / 2, abs=1e-4)


def test_both_sides_of_negative_transfer_have_the_same_search():
    baseline = scratch_baseline(PIPELINE, PIPELINE.baseline)
    cured = negative_transfer.cure(PIPELINE, PROFILE)
    assert isinstance(cured, Selection) and cured.halvings == baseline.halvings > 0
    assert {candidate.recipe.init for candidate in cured.candidates} == {PRETRAINED}
    assert {candidate.recipe.init for candidate in baseline.candidates} == {RANDOM}

    def settings(arm, factor):
        phases = [(candidate.recipe.augment, candidate.recipe.phases[-1]) for candidate in arm.candidates]
        return {
            (str(augment), round(phase.lr * factor, 6), phase.label_smoothing, phase.steps, phase.batch_size)
            for augment, phase in phases
        }

    assert settings(replace(baseline, candidates=baseline.candidates[1:]), 1) <= settings(cured, 3)


def test_the_candidate_rates_are_seven_half_a_decade_apart_and_a_warm_up():
    subject = replace(PIPELINE, recipe=Recipe(phases=(Phase(lr=1e-3, head_lr=1e-2),)))
    first, *others, warm = learning_rate.cure(subject, PROFILE).candidates
    assert first == subject
    rates = sorted(arm.recipe.phases[0].lr for arm in (first, *others))
    assert np.diff(np.log10(rates)) == pytest.approx([0.5] * 6) and rates[3] == 1e-3
    assert all(arm.recipe.phases[0].head_lr == pytest.approx(10 * arm.recipe.phases[0].lr) for arm in others)
    assert warm.recipe.phases == (replace(subject.recipe.phases[0], warmup=15),)
    assert [arm.recipe.phases[0].lr for arm in learning_rate.induce(subject, PROFILE).values()] == pytest.approx(
        [3e-2, 1e-3 / 30]
    )


def test_the_rate_of_every_phase_is_scaled_and_a_phase_without_enough_steps_has_no_warm_up():
    short = replace(PIPELINE, recipe=lp_ft(Phase(steps=8)))
    scaled = learning_rate.cure(short, PROFILE).candidates[1]
    factors = [new.lr / old.lr for new, old in zip(scaled.recipe.phases, short.recipe.phases, strict=True)]
    assert factors == pytest.approx([10**-1.5] * 2)
    assert len(learning_rate.cure(short, PROFILE).candidates) == 7, "a tenth of four steps is zero steps"


def test_the_share_of_diverged_seeds_is_measured_by_arm():
    records = {
        (arm, "test", seed): make_record("k", 0.5, scalars={"diverged": float(arm == "induced:x30" and seed < 1)})
        for arm in ("subject", "induced:x30", "cured", "scratch")
        for seed in range(2)
    }
    assert learning_rate.diverged(records, range(3)) == {"subject/diverged": 0.0, "induced:x30/diverged": 0.5}


RECIPES = [Recipe(), linear_probe(), lp_ft(), gradual_unfreezing(), Recipe(phases=(Phase(steps=4, warmup=3),))]
RECIPES += [Recipe(phases=(Phase(steps=150, warmup=100),)), Recipe(phases=(Phase(steps=1, batch_size=2),))]


@pytest.mark.parametrize("recipe", RECIPES, ids=describe_recipe)
def test_candidates_against_forgetting_train_no_longer_than_the_recipe(recipe):
    subject = replace(PIPELINE, recipe=recipe)
    budget = sum(phase.steps for phase in recipe.phases)
    choice = catastrophic_forgetting.cure(subject, PROFILE)
    assert (choice.by, choice.keeping) == ("source-held-out", "validation")
    for candidate in choice.candidates:
        assert 1 <= sum(phase.steps for phase in candidate.recipe.phases) <= budget
        assert all(phase.warmup < phase.steps for phase in candidate.recipe.phases), "a suite requires it"
        assert {phase.batch_size for phase in candidate.recipe.phases} == {recipe.phases[-1].batch_size}
    regularizers = {
        candidate.recipe.regularizer.spelling if candidate.recipe.regularizer else "" for candidate in choice.candidates
    }
    assert regularizers == {"", "l2-sp", "ewc", "lwf", "replay"}


def test_forgetting_needs_a_source_with_known_classes():
    assert catastrophic_forgetting.plugin.applies(PIPELINE, replace(PROFILE, data=replace(PROFILE.data, source=(0, 1)))) == ""
    assert (
        catastrophic_forgetting.plugin.applies(PIPELINE, replace(PROFILE, data=replace(PROFILE.data, source_error="because")))
        == "because"
    )
    assert "no [source]" in catastrophic_forgetting.plugin.applies(PIPELINE, PROFILE)


def run_forgetting(keep):
    """The findings, and the kinds of trained recipes, where adaptation loses 30 points of the source."""
    trained = set()

    def accuracy(trial):
        trained.add(trial.model.base.procedure)
        return 0.5 if trial.view.domain is not None and trial.model.base.procedure.phases else 0.8

    suite = replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, keep_source=keep))
    run = fake_lab.run_study(fake_lab.make_study(catastrophic_forgetting.plugin, suite=suite), fake_lab.fake_lab(accuracy))
    return {finding.contrast: finding for finding in run.findings}, trained


def test_forgetting_fails_only_if_the_source_matters():
    findings, trained = run_forgetting(keep=True)
    assert findings["harm"].verdict == "FAIL" and len(trained) > 10
    findings, trained = run_forgetting(keep=False)
    assert findings["harm"].verdict == "INFO" and findings["harm"].estimate.harm == pytest.approx(0.3, abs=0.04)
    assert {finding.verdict for finding in findings.values()} == {"INFO"}
    assert len(trained) == 2, "the recipe and the network before it: no cure is searched for what is not judged"


def find_gentle_candidates(recipe, profile=PROFILE):
    choice = feature_distortion.cure(replace(PIPELINE, recipe=recipe), profile)
    assert choice.keeping == "validation", "a remedy must not cost the target more than the margin"
    assert choice.candidates[0].recipe == recipe, "the accuracy to keep is that of the recipe"
    return choice.by, [candidate.recipe for candidate in choice.candidates[1:]]


def test_the_candidates_against_distortion_are_lp_ft_at_low_rates_and_a_probe():
    view, candidates = find_gentle_candidates(Recipe(phases=(Phase(lr=3e-3),)))
    assert view == "shifted-held-out"
    kinds = [tuple(str(phase.trainable) for phase in recipe.phases) for recipe in candidates]
    assert kinds == [("head", "all")] * 4 + [("head",)]
    assert [recipe.phases[-1].lr for recipe in candidates] == pytest.approx([3e-4, 1e-3, 3e-3, 3e-3, 1e-2])
    assert [str(recipe.phases[-1].batchnorm) for recipe in candidates] == ["eval", "eval", "eval", "train", "eval"]
    assert {sum(phase.steps for phase in recipe.phases) for recipe in candidates} == {150}
    without_images = replace(PROFILE, model=replace(PROFILE.model, unsupported=("unlabelled",)))
    assert find_gentle_candidates(Recipe(), without_images)[0] == "validation"


def test_what_keeps_its_features_or_is_lp_ft_at_a_low_rate_is_not_exposed_to_distortion():
    for recipe in (linear_probe(), lp_ft(Phase(lr=3e-4, batchnorm=BATCHNORM_EVAL))):
        pipeline = replace(PIPELINE, recipe=recipe)
        assert feature_distortion.cure(pipeline, PROFILE) == pipeline
    high_rate = lp_ft(Phase(lr=3e-2, batchnorm=BATCHNORM_EVAL))
    assert find_gentle_candidates(high_rate)[1][0].phases[1].lr == pytest.approx(3e-4), "the rate of this LP-FT is too high"
    assert feature_distortion.applies(PIPELINE, PROFILE) == "the suite has no [shifted] set"


def find_distortion(target_cost):
    """The finding if LP-FT gains 10 points under the shift, and 20 at the lowest rate, which costs the target something."""

    def accuracy(trial):
        phases = trial.model.base.procedure.phases
        is_lowest, is_lp_ft = len(phases) > 1 and phases[-1].lr < 5e-4, len(phases) > 1
        if trial.view.domain is not None:
            return 0.5 + 0.1 * is_lp_ft + 0.1 * is_lowest
        return 0.8 - target_cost * is_lowest

    measures = {reference: {name: 0.5} for name, reference in feature_distortion.plugin.measures.items()}
    lab = fake_lab.fake_lab(accuracy, measures)
    findings = fake_lab.run_study(fake_lab.make_study(feature_distortion.plugin), lab).findings
    return next(finding for finding in findings if finding.contrast == "harm")


def test_a_remedy_of_distortion_that_costs_the_target_more_than_the_margin_is_not_selected():
    assert find_distortion(target_cost=0.0).estimate.harm == pytest.approx(0.2, abs=0.03)
    costly = find_distortion(target_cost=0.1)
    assert costly.verdict == "FAIL" and costly.estimate.harm == pytest.approx(0.1, abs=0.03)
    assert costly.accuracy["cured"] == pytest.approx(costly.accuracy["subject"], abs=0.01)


def test_the_cure_of_shock_trains_the_head_first_in_the_same_number_of_steps():
    subject = replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=11, warmup=9),)))
    probe, rest = head_shock.cure(subject, PROFILE).recipe.phases
    assert (str(probe.trainable), str(probe.batchnorm), probe.steps, probe.warmup) == ("head", "eval", 5, 0)
    assert (str(rest.trainable), rest.steps, rest.warmup) == ("all", 6, 5)
    assert head_shock.cure(head_shock.cure(subject, PROFILE), PROFILE) == head_shock.cure(subject, PROFILE)
    phases = (Phase(trainable=HEAD_ONLY, lr=1e-5, steps=1), Phase(lr=3e-2, steps=149))
    probe, rest = head_shock.cure(replace(PIPELINE, recipe=Recipe(phases=phases)), PROFILE).recipe.phases
    assert (probe.lr, probe.steps, rest.steps) == (1e-2, 75, 75), "a single step is no linear probe"


def test_the_dip_is_cured_minus_subject_at_the_first_checkpoint():
    records = {("cured", "test", 0): make_record("c", 0.8), ("subject", "test", 0): make_record("s", 0.5)}
    records = {key: replace(record, curve=record.curve[1:]) for key, record in records.items()}
    assert head_shock.dip(records, [0]) == {"dip": pytest.approx(0.3 / 15)}


def test_each_mistake_changes_one_thing_and_mistakes_without_effect_are_left_out():
    profile = replace(PROFILE, model=replace(PROFILE.model, size=(32, 32)))
    mistakes_on_raw = preprocessing_variants.preprocessing_mistakes(Preprocessing(), profile)
    assert set(mistakes_on_raw) == {"raw", "bgr", "zoom"}, "the images are neither normalised nor resized"
    form = Preprocessing(resize=40, crop=32, mean=(0.5,), std=(0.25,))
    mistakes = preprocessing_variants.preprocessing_mistakes(form, profile)
    kinds = {"raw", "unnormalised", "twice-normalised", "bgr", "zoom", "nearest", "no-antialias"}
    assert set(mistakes) == kinds and form not in mistakes.values()
    assert (mistakes["zoom"].resize, mistakes["zoom"].crop) == (60, 32)
    assert mistakes["unnormalised"] == replace(form, mean=(0.0,), std=(1.0,))
    mistakes_on_nearest = preprocessing_variants.preprocessing_mistakes(
        replace(form, interpolation="nearest", antialias=False), profile
    )
    assert "nearest" not in mistakes_on_nearest and "no-antialias" not in mistakes_on_nearest


def test_the_cure_of_a_mismatch_is_the_recorded_preprocessing():
    profile = replace(PROFILE, preprocessing=Preprocessing(mean=(0.5,)))
    cured = preprocessing_mismatch.cure(SUBJECT, profile)
    assert cured.data.train_preprocessing == cured.serving.preprocessing == profile.preprocessing
    assert preprocessing_mismatch.plugin.trust(SUBJECT, profile) == ""
    assert "no preprocessing is recorded" in preprocessing_mismatch.plugin.trust(SUBJECT, replace(profile, recorded=False))


def test_flips_are_the_share_of_answers_that_serving_changes():
    def make_records(arm, seed, predicted):
        record = make_record(f"{arm}{seed}", 0.5, examples=4)
        return {(arm, "test", seed): replace(record, predictions=replace(record.predictions, predicted=np.array(predicted)))}

    records = (
        make_records("cured", 0, [0, 1, 2, 3])
        | make_records("subject", 0, [0, 1, 2, 4])
        | make_records("induced:bgr", 0, [4, 4, 4, 4])
    )
    records |= (
        make_records("cured", 1, [0, 0, 0, 0])
        | make_records("subject", 1, [0, 0, 0, 0])
        | make_records("scratch", 0, [9, 9, 9, 9])
    )
    assert train_serve_skew.flips(records, [0, 1]) == {"subject/flips": 0.125, "induced:bgr/flips": 1.0}
    assert train_serve_skew.flips(records, [1]) == {"subject/flips": 0.0}


def make_plugin_run(plugin):
    """A run of a plugin with every view and measure of its contrasts, and with a selection among three rates."""
    extra_arms = plugin.extra_arms(SUBJECT, PROFILE) if plugin.extra_arms else {}
    arms = ("subject", "cured", "scratch", *(f"induced:{name}" for name in plugin.induce(SUBJECT, PROFILE)))
    arms += tuple(f"beside:{name}" for name in extra_arms)
    cells = make_cells(plugin.id, {arm: 0.9 - 0.8 * rank / len(arms) for rank, arm in enumerate(arms)}, seeds=2)
    views = {view for contrast in plugin.contrasts for _, view in contrast.weights} - {"test"} - set(plugin.measures)
    cells += [replace(cell, view=view) for view in views for cell in cells if cell.arm == "subject"]
    for name in plugin.measures:
        scalars = {name: 0.5, f"{name}/first": 0.2, f"{name}/second": 0.8}
        cells += [
            replace(cell, view=name, record=replace(cell.record, predictions=None, scalars=scalars))
            for cell in cells
            if cell.view == "test"
        ]
    candidates = [
        {"recipe": f"lr {lr}", "rate": lr, "validation": 0.5, "chosen": lr == 0.1, "curve": [(10, 0.4), (20, 0.5)]}
        for lr in (0.01, 0.1, 1.0)
    ]
    return make_run(cells=tuple(cells), arms={plugin.id: {"cured": {"weighed": candidates}}})


@pytest.mark.parametrize("plugin", [plugin for plugin in PLUGINS if plugin.plot], ids=lambda plugin: plugin.id)
def test_every_plot_draws_a_run(plugin):
    svg = figures.draw_plugin_plot(plugin, make_plugin_run(plugin))
    assert "<svg" in svg and "could not be drawn" not in svg


def test_the_plugin_of_the_contributing_guide_works_as_printed(tmp_path, monkeypatch):
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    code = next(text for kind, text in blocks if kind == "python")
    name, value = re.search(r"(\S+) = \"(too_hot:plugin)\"", next(text for kind, text in blocks if kind == "toml")).groups()
    (tmp_path / "too_hot.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [EntryPoint(name=name, value=value, group=discovery.PLUGIN_GROUP)]
    monkeypatch.setattr(discovery, "entry_points", lambda group: entries)
    (plugin,) = discovery.load_plugins(["all"])
    assert plugin.doc.startswith("A learning rate")

    by_id = compute_findings(make_study(plugin), make_lab(ACCURACIES))
    assert [finding.id for finding in by_id.values()] == ["too-hot/harm/x30"]
    assert by_id["too-hot/harm/x30"].verdict == "PASS", "the rate changes nothing in this lab"


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_every_strategy_is_a_valid_subject(plugin, strategy):
    pipeline = replace(fake_lab.PIPELINE, recipe=STRATEGIES[strategy](Phase(steps=20)))
    study = fake_lab.make_study(plugin, pipeline=pipeline, facts=fake_lab.PROFILE)
    if not why_not(plugin, study, pipeline):
        arms = plugin_arms(plugin, study, pipeline)
        cured = arms["cured"].candidates[0] if isinstance(arms["cured"], Selection) else arms["cured"]
        assert {"subject", "cured"} <= arms.keys()
        assert induced_arms(plugin, study, cured).keys() or not plugin.has_verdict
