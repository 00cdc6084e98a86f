"""The recipes of a matrix as arms: equal budgets, and a reason for each recipe without an arm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.interventions import Augmentation, RefitHead, Regularizer, ShuffledSource
from xferbench.core.pipeline import Recipe
from xferbench.core.record import Record
from xferbench.core.strategies import STRATEGIES, full, linear_probe, lp_ft
from xferbench.core.suite import Claim, Matrix, RecipeGrid
from xferbench.report.messages import write_sentence
from xferbench.study import matrix_arms, matrix_result
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

RATES = (1e-3, 3e-3)


def make_grid(name, *recipes):
    return RecipeGrid(name=name, recipes=recipes or tuple(STRATEGIES[name]() for _ in range(1)))


def test_a_recipe_of_a_matrix_keeps_its_own_stopping_rule():
    pipeline = replace(PIPELINE, recipe=Recipe(stop="last", augment=Augmentation.parse("flip")))
    arm = matrix_arms.recipe_arm(make_grid("mine", replace(full(), stop="best")), pipeline)
    assert [(candidate.recipe.stop, candidate.recipe.augment) for candidate in arm.candidates] == [("best", None)]


@pytest.mark.parametrize(
    ("recipe", "profile", "pipeline", "reason"),
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
def test_an_infeasible_recipe_has_a_reason(recipe, profile, pipeline, reason):
    arm = matrix_arms.recipe_arm(make_grid("mine", recipe), pipeline)
    actual = write_sentence(matrix_arms.why_not(arm, pipeline, profile))
    assert (reason in actual) if reason else not actual


def test_a_recipe_that_can_be_tuned_over_fewer_rates_than_others_is_left_out():
    grid = make_grid("mine", full(), lp_ft())
    assert matrix_arms.why_not(
        matrix_arms.recipe_arm(grid, PIPELINE),
        PIPELINE,
        replace(PROFILE, user_code=replace(PROFILE.user_code, supports=("lr", "trainable", "batchnorm", "head_lr"))),
    )


def run_task(lab, *effects, profile=PROFILE):
    matrix = Matrix(
        tasks=(fake_lab.SUITE,), compared=(make_grid("full"), make_grid("linear-probe")), against="full", effects=effects
    )
    study, skipped = matrix_arms.recipe_study(matrix, replace(fake_lab.make_study(), profile=profile))
    step, records = fake_lab.replay_study(study, lab)
    from xferbench.study.schedule import records_by_term

    cases = {case.plugin.id.removeprefix(matrix_arms.PLUGIN_PREFIX): case for case in step.states}
    by_recipe = {
        (name, view, seed): record
        for name, case in cases.items()
        for (_, view, seed), record in records_by_term(step.requests, case.plugin.id, records).items()
    }
    run = fake_lab.run_study(fake_lab.make_study(), fake_lab.fake_lab())
    return matrix_result.TaskResult(
        task=fake_lab.SUITE,
        run=run,
        cases=cases,
        records=by_recipe,
        seeds=(0, 1, 2),
        skipped=skipped,
        cost=run.cost,
        train_images=80,
        parameters=10,
        inputs=(),
    )


COST = {"xferbench.lab.evaluation.cost:measure_cost@2": {"trainable": 1.0, "stored": 4.0, "multiply_adds": 9.0}}
CLAIM = Claim(
    name="a", claim="a", source="b", task="fake", recipe="linear-probe", against="full", view="source-probe", at_least=0.0
)


def test_rows_hold_the_training_size_and_a_value_for_every_view():
    rows = matrix_result.build_rows(run_task(fake_lab.fake_lab(measures=COST)))
    assert len(rows) == 6 and {row["train_size"] for row in rows} == {80}
    assert all(row["error"] == "" and row["stored"] == 4.0 for row in rows)
    assert all(row[name] is not None for row in rows for name in ("accuracy", "shifted", "source", "source_before"))


def test_a_crash_in_the_view_of_a_claim_is_an_error_and_the_claim_is_not_measured():
    lab = fake_lab.fake_lab(measures=COST)

    def crash_refit(trial):
        is_refit = RefitHead() in trial.model.edits and trial.model.base.seed == 1
        return Record(key=trial.key, error="a crash") if is_refit else lab(trial)

    result = run_task(crash_refit, CLAIM)
    assert {row["seed"] for row in matrix_result.build_rows(result) if row["error"]} == {1}
    claim = matrix_result.check_claim(CLAIM, [result])
    assert claim["outcome"] == "not measured" and "a crash" in write_sentence(claim["why"])


def test_every_recipe_is_compared_with_the_reference_in_pairs():
    def accuracy(trial):
        return 0.9 if {str(phase.trainable) for phase in trial.model.base.procedure.phases} == {"head"} else 0.6

    result = run_task(fake_lab.fake_lab(accuracy, COST))
    (comparison,) = matrix_result.compare_recipes(result, "full")
    assert (comparison["recipe"], comparison["said"]) == ("linear-probe", "better") and comparison["low"] > 0.2
    (missing,) = matrix_result.compare_recipes(replace(result, records={}), "full")
    assert missing["said"] == "open" and missing["error"]
