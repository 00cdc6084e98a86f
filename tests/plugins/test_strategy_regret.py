"""Other strategies: the candidates and their budgets, the advice of the rules of thumb, and the explanation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.analysis import rules_of_thumb
from xferbench.core.interventions import Trainable
from xferbench.core.pipeline import Phase, Recipe, Selection
from xferbench.core.strategies import discriminative, full, linear_probe, lp_ft
from xferbench.plugins import strategy_regret
from xferbench.study import selection, trials
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

SUBJECT = replace(PIPELINE, recipe=full(Phase(steps=40, batch_size=8)))


def test_every_strategy_has_the_same_budget_of_rates_steps_and_images():
    recipes = [candidate.recipe for candidate in strategy_regret.plugin.cure(SUBJECT, PROFILE).candidates]
    assert len(recipes) == len(strategy_regret.CANDIDATES) * len(strategy_regret.LR_FACTORS)
    assert {sum(phase.steps for phase in recipe.phases) for recipe in recipes} == {40}
    assert {phase.batch_size for recipe in recipes for phase in recipe.phases} == {8}


def test_the_default_recipe_shares_its_candidates():
    subject = replace(PIPELINE, recipe=lp_ft(Phase(lr=1e-3)))
    assert trials.training_spec(subject, 0) in [
        trials.training_spec(candidate, 0) for candidate in strategy_regret.plugin.cure(subject, PROFILE).candidates
    ]


def test_the_induced_arm_is_the_worst_and_never_the_selected_candidate():
    cured = strategy_regret.plugin.cure(SUBJECT, PROFILE).candidates[3]
    worst = strategy_regret.induce(cured, PROFILE)["worst"]
    assert isinstance(worst, Selection) and worst.worst and cured not in worst.candidates


def test_the_worst_candidate_has_the_lowest_accuracy_or_the_highest_loss():
    study = fake_lab.make_study(strategy_regret.plugin, pipeline=SUBJECT)
    arm = strategy_regret.plugin.cure(SUBJECT, PROFILE)
    lab = fake_lab.fake_lab(lambda trial: 0.9 if str(trial.model.base.procedure.phases[-1].trainable) == "head" else 0.2)
    records = {trial.key: lab(trial) for trial in selection.selection_trials(arm, study, {})}
    assert str(selection.select(arm, study, records).pipeline.recipe.phases[-1].trainable) == "head"
    assert str(selection.select(replace(arm, worst=True), study, records).pipeline.recipe.phases[-1].trainable) != "head"


@pytest.mark.parametrize(
    ("size", "similar", "different", "gradual"),
    [
        (50, "linear-probe", "partial", "linear-probe"),
        (999, "linear-probe", "partial", "partial"),
        (1000, "full", "full", "partial"),
    ],
)
def test_the_rules_of_thumb_are_extra_arms(size, similar, different, gradual):
    assert (rules_of_thumb.textbook_strategy(size, similar=True), rules_of_thumb.textbook_strategy(size, similar=False)) == (
        similar,
        different,
    )
    assert rules_of_thumb.size_rule_strategy(size) == gradual
    arms = strategy_regret.extra_arms(replace(SUBJECT, data=replace(SUBJECT.data, train_size=size)), PROFILE)
    assert list(arms) == list(strategy_regret.RULES)
    assert all(len(arm.candidates) == 2 for arm in arms.values())
    assert {str(arm.candidates[0].recipe.phases[-1].trainable) for arm in arms.values()} <= {"head", "top:2", "all"}


@pytest.mark.parametrize(
    ("recipe", "selected_recipe", "cause"),
    [
        (linear_probe(), lp_ft(), "the frozen features have plateaued"),
        (Recipe(phases=(Phase(trainable=Trainable.parse("top:1")),)), full(), "too little is trained"),
        (full(), linear_probe(), "too much is unfrozen too soon"),
        (full(), lp_ft(), "too much is unfrozen too soon"),
        (full(), discriminative(), "it trains as many layers, at another rate or in another order"),
    ],
    ids=range(5),
)
def test_the_explanation_names_a_cause(recipe, selected_recipe, cause):
    subject, cured = replace(PIPELINE, recipe=recipe), replace(PIPELINE, recipe=selected_recipe)
    assert strategy_regret.explain("harm", {}, subject, cured) == f"validation selected {selected_recipe.name}: {cause}"
    assert strategy_regret.explain("harm", {}, subject, subject) == strategy_regret.explain("by-size", {}, subject, cured) == ""


def test_a_poor_strategy_fails_and_the_cost_of_the_rules_is_measured():
    def accuracy(trial):
        return 0.9 if str(trial.model.base.procedure.phases[-1].trainable) == "head" else 0.5

    measures = {"xferbench.plugins.strategy_regret:trainable@1": {"trainable": 10.0, "stored": 40.0}}
    suite = replace(fake_lab.SUITE, recipe=SUBJECT.recipe)
    study = fake_lab.make_study(strategy_regret.plugin, pipeline=SUBJECT, suite=suite)
    by_contrast = {
        finding.contrast: finding for finding in fake_lab.run_study(study, fake_lab.fake_lab(accuracy, measures)).findings
    }
    assert (by_contrast["harm"].verdict, by_contrast["harm"].control.outcome) == ("FAIL", "detected")
    assert "too much is unfrozen" in by_contrast["harm"].reason
    assert by_contrast["textbook-similar"].estimate.harm == pytest.approx(0.0)
    assert by_contrast["textbook-different"].estimate.harm > 0.3
