"""Every plugin that is installed, and the one that CONTRIBUTING.md adds."""

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
    Head,
    InterpolatePhase,
)
from xferbench.core.pipeline import Phase, Preprocessing, Recipe, Selection
from xferbench.core.sections import flat_values
from xferbench.core.strategies import STRATEGIES, gradual_unfreezing, interpolate_to_probe, linear_probe, lp_ft
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
def test_a_page_says_what_a_reader_needs(plugin):
    for heading in ("Symptom", "Cause", "Remedy", "References"):
        assert f"\n{heading}\n" in plugin.doc
    assert plugin.question.endswith("?") and plugin.remedy


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_cures_and_failures_change_how_one_trains_or_serves_and_nothing_else(plugin):
    cured = plugin.cure(SUBJECT, PROFILE)
    cured, *others = cured.candidates if isinstance(cured, Selection) else (cured,)
    induced = plugin.induce(cured, PROFILE)
    assert bool(induced) == plugin.has_verdict, "what only measures induces nothing"
    assert all(arm.expected_training == SUBJECT.expected_training for arm in (cured, *others))
    made = [one for arm in induced.values() for one in (arm.candidates if isinstance(arm, Selection) else (arm,))]
    for arm in (cured, *others, *made):
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
    assert all(arm != cured for arm in made)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_arms_keep_the_augmentation_and_the_head_of_two_layers_that_a_pipeline_has(plugin):
    own = replace(fake_lab.PIPELINE, recipe=Recipe(head=Head.parse("mlp:16"), augment=Augmentation.parse("flip")))
    asked = fake_lab.make_study(plugin, pipeline=own, facts=fake_lab.PROFILE)
    arms = (plugin_arms(plugin, asked, own) | induced_arms(plugin, asked, own)).values()
    each = [one for arm in arms for one in (arm.candidates if isinstance(arm, Selection) else (arm,))]
    assert {(str(one.recipe.head), str(one.recipe.augment)) for one in each} == {("mlp:16", "flip")}
    assert not any(fake_lab.why_impossible(trials.training_spec(one, 0)) for one in each)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_no_arm_ends_halfway_to_a_head_that_was_only_drawn(plugin):
    own = replace(fake_lab.PIPELINE, recipe=interpolate_to_probe())
    asked = fake_lab.make_study(plugin, pipeline=own, facts=fake_lab.PROFILE)
    arms = (plugin_arms(plugin, asked, own) | induced_arms(plugin, asked, own)).values()
    each = [one.recipe for arm in arms for one in (arm.candidates if isinstance(arm, Selection) else (arm,))]
    assert own.recipe in each
    assert all(len(one.phases) > 1 for one in each if isinstance(one.finish, InterpolatePhase))


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_nothing_pretrained_is_nothing_to_ask_about(plugin):
    asked = plugin.applies(replace(PIPELINE, recipe=Recipe(init=RANDOM)), PROFILE)
    assert asked == (
        "" if plugin.id in {"calibration", "data-leakage", "train-serve-skew"} else "nothing pretrained is adapted"
    )


def seen(before, after, **more):
    fields = {"network": None, "train_images": None, "train_labels": None, "train_preprocessing": None} | more
    nothing = {"test_images": None, "test_labels": None, "preprocessing": None, "mode": EVAL_MODE}
    return MeasureContext(before=before, after=after, **nothing | fields)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_a_plugin_is_one_short_file(plugin):
    assert lines_of(plugin) <= 140


def test_most_plugins_are_a_page():
    assert median(lines_of(plugin) for plugin in PLUGINS) <= 95


def lines_of(plugin):
    """Lines of a plugin's file without its imports, for each plugin in it: the experiment, and the audit where it has one."""
    text = (ROOT / "xferbench" / "plugins" / f"{plugin.id.replace('-', '_')}.py").read_text()
    imports = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom))
    lines = text.count("\n") - sum(node.end_lineno - node.lineno + 1 for node in imports)
    return lines / (2 if "AUDIT_DOC" in text else 1)


def test_the_cure_of_drift_puts_every_phase_into_eval_and_curing_twice_changes_nothing():
    pipeline = replace(PIPELINE, recipe=lp_ft())
    cured = batchnorm_drift.cure(pipeline, PROFILE)
    assert [str(phase.batchnorm) for phase in cured.recipe.phases] == ["eval", "eval"]
    assert batchnorm_drift.cure(cured, PROFILE) == cured
    assert batchnorm_drift.cure(replace(PIPELINE, recipe=linear_probe()), PROFILE) == replace(PIPELINE, recipe=linear_probe())


def test_drift_is_zero_where_nothing_moved_and_follows_its_formula_where_it_did():
    before = {"bn.running_mean": torch.tensor([0.0, 1.0]), "bn.running_var": torch.tensor([1.0, 4.0])}
    same = seen(before, before)
    assert batchnorm_drift.drift(same) == {"drift": 0.0, "drift/bn": 0.0}
    after = {"bn.running_mean": torch.tensor([1.0, 1.0]), "bn.running_var": torch.tensor([1.0, 4.0 * 2.718281828])}
    moved = batchnorm_drift.drift(seen(before, after))
    assert moved["drift/bn"] == pytest.approx(1 / 2 + 1 / 2, abs=1e-4)


def test_the_cures_of_negative_transfer_hold_the_baseline_of_the_study():
    cured = negative_transfer.cure(PIPELINE, PROFILE)
    assert isinstance(cured, Selection)
    assert {one.recipe.init for one in cured.candidates} == {PRETRAINED, RANDOM}


def test_the_rates_that_are_weighed_are_seven_half_a_decade_apart_and_a_warm_up():
    subject = replace(PIPELINE, recipe=Recipe(phases=(Phase(lr=1e-3, head_lr=1e-2),)))
    first, *others, warm = learning_rate.cure(subject, PROFILE).candidates
    assert first == subject
    rates = sorted(one.recipe.phases[0].lr for one in (first, *others))
    assert np.diff(np.log10(rates)) == pytest.approx([0.5] * 6) and rates[3] == 1e-3
    assert all(one.recipe.phases[0].head_lr == pytest.approx(10 * one.recipe.phases[0].lr) for one in others)
    assert warm.recipe.phases == (replace(subject.recipe.phases[0], warmup=15),)
    assert [one.recipe.phases[0].lr for one in learning_rate.induce(subject, PROFILE).values()] == pytest.approx(
        [3e-2, 1e-3 / 30]
    )


def test_every_phases_rate_is_scaled_and_none_without_steps_for_it_warms_up():
    short = replace(PIPELINE, recipe=lp_ft(Phase(steps=8)))
    scaled = learning_rate.cure(short, PROFILE).candidates[1]
    factors = [new.lr / old.lr for new, old in zip(scaled.recipe.phases, short.recipe.phases, strict=True)]
    assert factors == pytest.approx([10**-1.5] * 2)
    assert len(learning_rate.cure(short, PROFILE).candidates) == 7, "a tenth of four steps is none"


def test_how_often_training_diverged_is_told_by_arm():
    told = {
        (arm, "test", seed): make_record("k", 0.5, scalars={"diverged": float(arm == "induced:x30" and seed < 1)})
        for arm in ("subject", "induced:x30", "cured", "scratch")
        for seed in range(2)
    }
    assert learning_rate.diverged(told, range(3)) == {"subject/diverged": 0.0, "induced:x30/diverged": 0.5}


FORGETTING = [Recipe(), linear_probe(), lp_ft(), gradual_unfreezing(), Recipe(phases=(Phase(steps=4, warmup=3),))]
FORGETTING += [Recipe(phases=(Phase(steps=150, warmup=100),)), Recipe(phases=(Phase(steps=1, batch_size=2),))]


@pytest.mark.parametrize("recipe", FORGETTING, ids=describe_recipe)
def test_what_keeps_the_source_takes_no_more_steps_than_the_recipe_has(recipe):
    subject = replace(PIPELINE, recipe=recipe)
    budget = sum(phase.steps for phase in recipe.phases)
    choice = catastrophic_forgetting.cure(subject, PROFILE)
    assert (choice.by, choice.keeping) == ("source-held-out", "validation")
    for one in choice.candidates:
        assert 1 <= sum(phase.steps for phase in one.recipe.phases) <= budget
        assert all(phase.warmup < phase.steps for phase in one.recipe.phases), "as a suite demands"
        assert {phase.batch_size for phase in one.recipe.phases} == {recipe.phases[-1].batch_size}
    kinds = {one.recipe.regularizer.spelling if one.recipe.regularizer else "" for one in choice.candidates}
    assert kinds == {"", "l2-sp", "ewc", "lwf", "replay"}


def test_without_a_known_source_nothing_is_asked_about_forgetting():
    assert catastrophic_forgetting.plugin.applies(PIPELINE, replace(PROFILE, data=replace(PROFILE.data, source=(0, 1)))) == ""
    assert (
        catastrophic_forgetting.plugin.applies(PIPELINE, replace(PROFILE, data=replace(PROFILE.data, source_error="because")))
        == "because"
    )
    assert "no [source]" in catastrophic_forgetting.plugin.applies(PIPELINE, PROFILE)


def test_the_cure_of_distortion_is_lp_ft_at_a_low_rate_and_what_is_such_already_stays():
    subject = replace(PIPELINE, recipe=Recipe(phases=(Phase(lr=3e-3),)))
    cured = feature_distortion.cure(subject, PROFILE)
    assert [(str(phase.trainable), str(phase.batchnorm)) for phase in cured.recipe.phases] == [
        ("head", "eval"),
        ("all", "eval"),
    ]
    assert cured.recipe.phases[1].lr == pytest.approx(3e-4) and sum(phase.steps for phase in cured.recipe.phases) == 150
    assert feature_distortion.cure(cured, PROFILE) == cured
    probe = replace(PIPELINE, recipe=linear_probe())
    assert feature_distortion.cure(probe, PROFILE) == probe
    hot = replace(PIPELINE, recipe=lp_ft(Phase(lr=3e-2, batchnorm=BATCHNORM_EVAL)))
    assert feature_distortion.cure(hot, PROFILE).recipe.phases[1].lr == pytest.approx(3e-4), "LP-FT, but far too hot"
    assert feature_distortion.applies(PIPELINE, PROFILE) == "the suite has no [shifted] set"


def test_the_cure_of_shock_trains_the_head_first_in_the_same_number_of_steps():
    subject = replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=11, warmup=9),)))
    probe, rest = head_shock.cure(subject, PROFILE).recipe.phases
    assert (str(probe.trainable), str(probe.batchnorm), probe.steps, probe.warmup) == ("head", "eval", 5, 0)
    assert (str(rest.trainable), rest.steps, rest.warmup) == ("all", 6, 5)
    assert head_shock.cure(head_shock.cure(subject, PROFILE), PROFILE) == head_shock.cure(subject, PROFILE)
    hasty = (Phase(trainable=HEAD_ONLY, lr=1e-5, steps=1), Phase(lr=3e-2, steps=149))
    probe, rest = head_shock.cure(replace(PIPELINE, recipe=Recipe(phases=hasty)), PROFILE).recipe.phases
    assert (probe.lr, probe.steps, rest.steps) == (1e-2, 75, 75), "one step is no probe"


def test_the_dip_is_cured_minus_subject_at_the_first_checkpoint():
    told = {("cured", "test", 0): make_record("c", 0.8), ("subject", "test", 0): make_record("s", 0.5)}
    told = {at: replace(one, curve=one.curve[1:]) for at, one in told.items()}
    assert head_shock.dip(told, [0]) == {"dip": pytest.approx(0.3 / 15)}


def test_mistakes_change_one_thing_each_and_those_that_change_nothing_are_left_out():
    facts = replace(PROFILE, model=replace(PROFILE.model, size=(32, 32)))
    plain = preprocessing_variants.preprocessing_mistakes(Preprocessing(), facts)
    assert set(plain) == {"raw", "bgr", "zoom"}, "nothing is normalised or resized"
    ready = Preprocessing(resize=40, crop=32, mean=(0.5,), std=(0.25,))
    found = preprocessing_variants.preprocessing_mistakes(ready, facts)
    kinds = {"raw", "unnormalised", "twice-normalised", "bgr", "zoom", "nearest", "no-antialias"}
    assert set(found) == kinds and ready not in found.values()
    assert (found["zoom"].resize, found["zoom"].crop) == (60, 32)
    assert found["unnormalised"] == replace(ready, mean=(0.0,), std=(1.0,))
    sampled = preprocessing_variants.preprocessing_mistakes(replace(ready, interpolation="nearest", antialias=False), facts)
    assert "nearest" not in sampled and "no-antialias" not in sampled


def test_the_cure_of_a_mismatch_is_what_is_recorded_and_is_taken_on_trust_where_nothing_is():
    recorded = replace(PROFILE, preprocessing=Preprocessing(mean=(0.5,)))
    cured = preprocessing_mismatch.cure(SUBJECT, recorded)
    assert cured.data.train_preprocessing == cured.serving.preprocessing == recorded.preprocessing
    assert preprocessing_mismatch.plugin.trust(SUBJECT, recorded) == ""
    assert "no preprocessing is recorded" in preprocessing_mismatch.plugin.trust(SUBJECT, replace(recorded, recorded=False))


def test_flips_are_the_share_of_answers_that_serving_as_trained_would_change():
    def told(arm, seed, predicted):
        record = make_record(f"{arm}{seed}", 0.5, examples=4)
        return {(arm, "test", seed): replace(record, predictions=replace(record.predictions, predicted=np.array(predicted)))}

    answers = told("cured", 0, [0, 1, 2, 3]) | told("subject", 0, [0, 1, 2, 4]) | told("induced:bgr", 0, [4, 4, 4, 4])
    answers |= told("cured", 1, [0, 0, 0, 0]) | told("subject", 1, [0, 0, 0, 0]) | told("scratch", 0, [9, 9, 9, 9])
    assert train_serve_skew.flips(answers, [0, 1]) == {"subject/flips": 0.125, "induced:bgr/flips": 1.0}
    assert train_serve_skew.flips(answers, [1]) == {"subject/flips": 0.0}


def make_run_of(plugin):
    """A run of a plugin by hand: every view and measure that its contrasts name, and a choice of three rates."""
    beside = plugin.extra_arms(SUBJECT, PROFILE) if plugin.extra_arms else {}
    arms = ("subject", "cured", "scratch", *(f"induced:{name}" for name in plugin.induce(SUBJECT, PROFILE)))
    arms += tuple(f"beside:{name}" for name in beside)
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
    weighed = [
        {"recipe": f"lr {lr}", "rate": lr, "validation": 0.5, "chosen": lr == 0.1, "curve": [(10, 0.4), (20, 0.5)]}
        for lr in (0.01, 0.1, 1.0)
    ]
    return make_run(cells=tuple(cells), arms={plugin.id: {"cured": {"weighed": weighed}}})


@pytest.mark.parametrize("plugin", [plugin for plugin in PLUGINS if plugin.plot], ids=lambda plugin: plugin.id)
def test_every_picture_draws_a_run(plugin):
    drawn = figures.draw_plugin_plot(plugin, make_run_of(plugin))
    assert "<svg" in drawn and "could not be drawn" not in drawn


def test_the_plugin_that_contributing_adds_works_as_it_stands_there(tmp_path, monkeypatch):
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    code = next(text for kind, text in blocks if kind == "python")
    name, value = re.search(r"(\S+) = \"(too_hot:plugin)\"", next(text for kind, text in blocks if kind == "toml")).groups()
    (tmp_path / "too_hot.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [EntryPoint(name=name, value=value, group=discovery.PLUGIN_GROUP)]
    monkeypatch.setattr(discovery, "entry_points", lambda group: entries)
    (plugin,) = discovery.load_plugins(["all"])
    assert plugin.doc.startswith("A learning rate")

    told = compute_findings(make_study(plugin), make_lab(ACCURACIES))
    assert [one.id for one in told.values()] == ["too-hot/harm/x30"]
    assert told["too-hot/harm/x30"].verdict == "PASS", "in this lab the rate changes nothing"


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_every_strategy_can_be_asked_about(plugin, strategy):
    own = replace(fake_lab.PIPELINE, recipe=STRATEGIES[strategy](Phase(steps=20)))
    asked = fake_lab.make_study(plugin, pipeline=own, facts=fake_lab.PROFILE)
    if not why_not(plugin, asked, own):
        arms = plugin_arms(plugin, asked, own)
        cured = arms["cured"].candidates[0] if isinstance(arms["cured"], Selection) else arms["cured"]
        assert {"subject", "cured"} <= arms.keys()
        assert induced_arms(plugin, asked, cured).keys() or not plugin.has_verdict
