"""The recipes of a matrix as arms: equal budgets, and a reason for each that is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.interventions import Augmentation, RefitHead, Regularizer, ShuffledSource
from xferbench.core.pipeline import Recipe
from xferbench.core.record import Record
from xferbench.core.strategies import STRATEGIES, full, linear_probe, lp_ft
from xferbench.core.suite import Claim, Matrix, RecipeGrid
from xferbench.study import matrix_arms, matrix_result
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

RATES = (1e-3, 3e-3)


def compared(name, *made):
    return RecipeGrid(name=name, recipes=made or tuple(STRATEGIES[name]() for _ in range(1)))


def test_a_recipe_stops_as_it_says_whatever_the_suites_own_does():
    own = replace(PIPELINE, recipe=Recipe(stop="last", augment=Augmentation.parse("flip")))
    found = matrix_arms.recipe_arm(compared("mine", replace(full(), stop="best")), own)
    assert [(one.recipe.stop, one.recipe.augment) for one in found.candidates] == [("best", None)]


@pytest.mark.parametrize(
    ("recipe", "facts", "pipeline", "why"),
    [
        (
            Recipe(regularizer=Regularizer.parse("ewc:1")),
            replace(PROFILE, data=replace(PROFILE.data, source=())),
            PIPELINE,
            "whose classes are known",
        ),
        (Recipe(init=ShuffledSource()), PROFILE, replace(PIPELINE, data=replace(PIPELINE.data, source=None)), "no [source]"),
        (
            Recipe(regularizer=Regularizer.parse("dann:1")),
            replace(PROFILE, data=replace(PROFILE.data, shifted=())),
            PIPELINE,
            "[shifted]",
        ),
        (STRATEGIES["lora"](), replace(PROFILE, model=replace(PROFILE.model, unsupported=("lora",))), PIPELINE, "lora:8"),
        (
            linear_probe(),
            replace(PROFILE, user_code=replace(PROFILE.user_code, supports=("lr",))),
            PIPELINE,
            "does not support",
        ),
        (full(), PROFILE, PIPELINE, ""),
    ],
    ids=range(6),
)
def test_what_cannot_be_carried_out_has_a_reason(recipe, facts, pipeline, why):
    found = matrix_arms.why_not(matrix_arms.recipe_arm(compared("mine", recipe), pipeline), pipeline, facts)
    assert (why in found) if why else not found


def test_a_recipe_that_could_be_tuned_over_fewer_rates_than_others_is_left_out():
    one = compared("mine", full(), lp_ft())
    assert matrix_arms.why_not(
        matrix_arms.recipe_arm(one, PIPELINE),
        PIPELINE,
        replace(PROFILE, user_code=replace(PROFILE.user_code, supports=("lr", "trainable", "batchnorm", "head_lr"))),
    )


def carried_out(answer, *effects, facts=PROFILE):
    matrix = Matrix(
        tasks=(fake_lab.SUITE,), compared=(compared("full"), compared("linear-probe")), against="full", effects=effects
    )
    asked, skipped = matrix_arms.recipe_study(matrix, replace(fake_lab.make_study(), profile=facts))
    step, answers = fake_lab.replay_study(asked, answer)
    from xferbench.study.schedule import records_by_term

    cases = {case.plugin.id.removeprefix(matrix_arms.PLUGIN_PREFIX): case for case in step.states}
    told = {
        (name, view, seed): one
        for name, case in cases.items()
        for (_, view, seed), one in records_by_term(step.requests, case.plugin.id, answers).items()
    }
    plain = fake_lab.run_study(fake_lab.make_study(), fake_lab.fake_lab())
    return matrix_result.TaskResult(
        task=fake_lab.SUITE,
        run=plain,
        cases=cases,
        records=told,
        seeds=(0, 1, 2),
        skipped=skipped,
        cost=plain.cost,
        train_images=80,
        parameters=10,
        inputs=(),
    )


COST = {"xferbench.lab.evaluation.cost:measure_cost@2": {"trainable": 1.0, "stored": 4.0, "multiply_adds": 9.0}}
CLAIM = Claim(
    name="a", claim="a", source="b", task="fake", recipe="linear-probe", against="full", view="source-probe", at_least=0.0
)


def test_rows_tell_what_was_trained_on_and_every_view_has_its_number():
    found = matrix_result.build_rows(carried_out(fake_lab.fake_lab(measures=COST)))
    assert len(found) == 6 and {row["train_size"] for row in found} == {80}
    assert all(row["error"] == "" and row["stored"] == 4.0 for row in found)
    assert all(row[name] is not None for row in found for name in ("accuracy", "shifted", "source", "source_before"))


def test_a_crash_in_a_view_that_only_a_claim_asks_for_is_an_error_and_no_claim():
    plain = fake_lab.fake_lab(measures=COST)

    def answer(trial):
        refit = RefitHead() in trial.model.edits and trial.model.base.seed == 1
        return Record(key=trial.key, error="a crash") if refit else plain(trial)

    done = carried_out(answer, CLAIM)
    assert {row["seed"] for row in matrix_result.build_rows(done) if row["error"]} == {1}
    told = matrix_result.check_claim(CLAIM, [done])
    assert told["outcome"] == "not measured" and "a crash" in told["why"]


def test_every_recipe_is_held_against_one_of_them_with_a_paired_interval():
    def accuracy(trial):
        return 0.9 if {str(phase.trainable) for phase in trial.model.base.phases} == {"head"} else 0.6

    done = carried_out(fake_lab.fake_lab(accuracy, COST))
    (found,) = matrix_result.compare_recipes(done, "full")
    assert (found["recipe"], found["said"]) == ("linear-probe", "better") and found["low"] > 0.2
    (missing,) = matrix_result.compare_recipes(replace(done, records={}), "full")
    assert missing["said"] == "open" and missing["error"]
