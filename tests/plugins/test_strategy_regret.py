"""Another way of adapting: what is weighed, with which budgets, what the rules advise, and what a reader is told."""

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
    found = [one.recipe for one in strategy_regret.plugin.cure(SUBJECT, PROFILE).candidates]
    assert len(found) == len(strategy_regret.CANDIDATES) * len(strategy_regret.LR_FACTORS)
    assert {sum(phase.steps for phase in one.phases) for one in found} == {40}
    assert {phase.batch_size for one in found for phase in one.phases} == {8}


def test_the_default_recipe_shares_its_candidates():
    subject = replace(PIPELINE, recipe=lp_ft(Phase(lr=1e-3)))
    assert trials.training_spec(subject, 0) in [
        trials.training_spec(one, 0) for one in strategy_regret.plugin.cure(subject, PROFILE).candidates
    ]


def test_what_is_induced_is_the_worst_and_never_what_was_chosen():
    cured = strategy_regret.plugin.cure(SUBJECT, PROFILE).candidates[3]
    worst = strategy_regret.induce(cured, PROFILE)["worst"]
    assert isinstance(worst, Selection) and worst.worst and cured not in worst.candidates


def test_a_choice_of_the_worst_takes_the_least_and_of_a_loss_the_greatest():
    asked = fake_lab.make_study(strategy_regret.plugin, pipeline=SUBJECT)
    arm = strategy_regret.plugin.cure(SUBJECT, PROFILE)
    answer = fake_lab.fake_lab(lambda trial: 0.9 if str(trial.model.base.phases[-1].trainable) == "head" else 0.2)
    answers = {one.key: answer(one) for one in selection.selection_trials(arm, asked)}
    assert str(selection.select(arm, asked, answers).pipeline.recipe.phases[-1].trainable) == "head"
    assert str(selection.select(replace(arm, worst=True), asked, answers).pipeline.recipe.phases[-1].trainable) != "head"


@pytest.mark.parametrize(
    ("size", "similar", "different", "gradual"),
    [
        (50, "linear-probe", "partial", "linear-probe"),
        (999, "linear-probe", "partial", "partial"),
        (1000, "full", "full", "partial"),
    ],
)
def test_the_rules_are_arms_of_their_own(size, similar, different, gradual):
    assert (rules_of_thumb.textbook_strategy(size, similar=True), rules_of_thumb.textbook_strategy(size, similar=False)) == (
        similar,
        different,
    )
    assert rules_of_thumb.size_rule_strategy(size) == gradual
    found = strategy_regret.extra_arms(replace(SUBJECT, data=replace(SUBJECT.data, train_size=size)), PROFILE)
    assert list(found) == list(strategy_regret.RULES)
    assert all(len(one.candidates) == 2 for one in found.values())
    assert {str(one.candidates[0].recipe.phases[-1].trainable) for one in found.values()} <= {"head", "top:2", "all"}


@pytest.mark.parametrize(
    ("own", "chosen", "cause"),
    [
        (linear_probe(), lp_ft(), "the frozen features have plateaued"),
        (Recipe(phases=(Phase(trainable=Trainable.parse("top:1")),)), full(), "too little is trained"),
        (full(), linear_probe(), "too much is unfrozen too soon"),
        (full(), lp_ft(), "too much is unfrozen too soon"),
        (full(), discriminative(), "it trains as many layers, at another rate or in another order"),
    ],
    ids=range(5),
)
def test_the_reader_is_told_a_cause(own, chosen, cause):
    subject, cured = replace(PIPELINE, recipe=own), replace(PIPELINE, recipe=chosen)
    assert strategy_regret.explain("harm", {}, subject, cured) == f"validation selected {chosen.name}: {cause}"
    assert strategy_regret.explain("harm", {}, subject, subject) == strategy_regret.explain("by-size", {}, subject, cured) == ""


def test_a_poor_strategy_fails_and_what_the_rules_cost_is_measured():
    def accuracy(trial):
        return 0.9 if str(trial.model.base.phases[-1].trainable) == "head" else 0.5

    told = {"xferbench.plugins.strategy_regret:trainable@1": {"trainable": 10.0, "stored": 40.0}}
    suite = replace(fake_lab.SUITE, recipe=SUBJECT.recipe)
    asked = fake_lab.make_study(strategy_regret.plugin, pipeline=SUBJECT, suite=suite)
    found = {one.contrast: one for one in fake_lab.run_study(asked, fake_lab.fake_lab(accuracy, told)).findings}
    assert (found["harm"].verdict, found["harm"].control) == ("FAIL", "detected")
    assert "too much is unfrozen" in found["harm"].reason
    assert found["textbook-similar"].harm == pytest.approx(0.0)
    assert found["textbook-different"].harm > 0.3
