"""Which arms training code supports."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_schedule import ACCURACIES, DRIFT, PIPELINE, PROFILE, SUITE, compute_findings, make_lab, make_study

from xferbench.core.interventions import BATCHNORM_EVAL, BATCHNORM_TRAIN, RANDOM, ZERO_HEAD, GhostBatchNorm
from xferbench.core.pipeline import Phase, Recipe, Selection, UserCode
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import from_scratch, full, linear_probe, lp_ft, scratch_baseline
from xferbench.core.transforms import Preprocessing
from xferbench.plugins import batchnorm_drift, negative_transfer
from xferbench.report.messages import write_sentence
from xferbench.study import feasibility, forecast, trials
from xferbench.study.study import subject_arm

PIPELINE_OF_CODE = replace(PIPELINE, recipe=full())


def with_recipe(**changes):
    return replace(PIPELINE_OF_CODE, recipe=replace(PIPELINE_OF_CODE.recipe, **changes))


def with_phase(**changes):
    return with_recipe(phases=(replace(PIPELINE_OF_CODE.recipe.phases[0], **changes),))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (PIPELINE_OF_CODE, set()),
        (with_recipe(init=RANDOM, head=ZERO_HEAD, name="another"), set()),
        (with_recipe(stop="best"), {"stop"}),
        (with_phase(lr=0.5, batchnorm=BATCHNORM_EVAL), {"lr", "batchnorm"}),
        (replace(PIPELINE_OF_CODE, recipe=lp_ft()), {"phases", "trainable", "batchnorm", "lr", "steps"}),
        (with_recipe(phases=(Phase(), Phase())), {"phases"}),
    ],
)
def test_differing_fields_are_those_in_which_the_training_differs(other, expected):
    assert (
        feasibility.differing_fields(PIPELINE_OF_CODE.recipe, other.recipe)
        == feasibility.differing_fields(other.recipe, PIPELINE_OF_CODE.recipe)
        == expected
    )


def test_unsupported_candidates_are_dropped_and_preprocessing_is_always_supported():
    preprocessed = replace(PIPELINE_OF_CODE, data=replace(PIPELINE_OF_CODE.data, train_preprocessing=Preprocessing(crop=8)))
    arms_by_name = {
        "cured": Selection(
            candidates=(PIPELINE_OF_CODE, with_phase(lr=0.5), with_phase(batchnorm=BATCHNORM_EVAL), preprocessed)
        )
    }
    assert feasibility.supported_arms(arms_by_name, PIPELINE_OF_CODE, ["lr"])["cured"].candidates == (
        PIPELINE_OF_CODE,
        with_phase(lr=0.5),
        preprocessed,
    )
    assert feasibility.supported_arms(arms_by_name, PIPELINE_OF_CODE, None) == arms_by_name
    assert feasibility.supported_arms({"induced:a": with_phase(order="class")}, PIPELINE_OF_CODE, ["lr"]) == {}


def test_the_subject_recipe_stays_in_the_scratch_grid_of_any_code():
    probe = replace(PIPELINE_OF_CODE, recipe=linear_probe())
    grid = scratch_baseline(probe, SUITE.scratch)
    arm = feasibility.supported_arms({"scratch": grid}, probe, [])["scratch"]
    assert arm == grid.candidates[0] and arm.recipe.init == RANDOM
    arms_by_name = feasibility.supported_arms(
        {"scratch": scratch_baseline(PIPELINE_OF_CODE, SUITE.scratch)},
        PIPELINE_OF_CODE,
        ["lr", "weight_decay", "label_smoothing", "steps", "batch_size", "schedule", "augment"],
    )
    assert len(arms_by_name["scratch"].candidates) == len(scratch_baseline(PIPELINE_OF_CODE, SUITE.scratch).candidates)


def test_a_plugin_is_unsupported_if_its_cure_is_even_if_a_variant_is_supported():
    reason = feasibility.why_unsupported(
        with_phase(batchnorm=BATCHNORM_EVAL), [with_phase(order="class")], PIPELINE_OF_CODE, ["order"]
    )
    assert write_sentence(reason) == "the training code does not support batchnorm"
    assert feasibility.why_unsupported(with_phase(batchnorm=BATCHNORM_EVAL), [], PIPELINE_OF_CODE, ["batchnorm"]) is None
    assert feasibility.why_unsupported(with_phase(batchnorm=BATCHNORM_EVAL), [], PIPELINE_OF_CODE, None) is None


def test_a_cure_that_changes_nothing_needs_a_supported_variant():
    variants = [with_phase(batchnorm=GhostBatchNorm(examples=2)), with_phase(batchnorm=BATCHNORM_TRAIN, order="class")]
    subject = with_phase(batchnorm=BATCHNORM_EVAL)
    reason = feasibility.why_unsupported(subject, variants, subject, ["order"])
    assert write_sentence(reason) == "the training code does not support batchnorm"
    assert feasibility.why_unsupported(subject, variants, subject, ["batchnorm"]) is None
    assert feasibility.why_unsupported(subject, [], subject, []) is None


def make_study_of_code(*plugins, supports, recipe=None):
    suite = replace(SUITE, recipe=recipe or full())
    study = make_study(*plugins, suite=suite, profile=replace(PROFILE, user_code=replace(PROFILE.user_code, supports=supports)))
    pipeline = replace(PIPELINE, recipe=suite.recipe, training=UserCode(spec="python:a:b", digest="d"))
    return replace(study, subject=subject_arm(suite, pipeline))


def test_a_plugin_whose_factor_the_code_does_not_support_is_skipped_with_the_reason():
    study = make_study_of_code(DRIFT, supports=("lr", "steps"))
    (finding,) = compute_findings(study, make_lab(ACCURACIES)).values()
    assert (finding.verdict, finding.reason) == ("SKIPPED", "the training code does not support batchnorm")
    skipped = forecast.forecast_study(study, {}, 1).skipped
    assert {name: write_sentence(reason) for name, reason in skipped.items()} == {"batchnorm-drift": finding.reason}


def test_a_subject_equal_to_its_cure_is_skipped_if_the_code_does_not_support_the_factor():
    study = make_study_of_code(batchnorm_drift.plugin, supports=("lr",), recipe=linear_probe())
    (finding,) = compute_findings(study, make_lab(ACCURACIES)).values()
    assert (finding.verdict, finding.reason) == ("SKIPPED", "the training code does not support batchnorm")
    assert forecast.forecast_study(study, {}, 1).skipped


def test_supported_variants_are_judged_and_unsupported_ones_are_left_out():
    study = make_study_of_code(batchnorm_drift.plugin, supports=("batchnorm",))
    assert set(compute_findings(study, make_lab(ACCURACIES))) >= {
        "batchnorm-drift/harm/ghost-batch",
        "batchnorm-drift/harm/stale-statistics",
    }
    assert "batchnorm-drift/harm/class-order" not in compute_findings(study, make_lab(ACCURACIES))


def test_negative_transfer_compares_only_the_subject_recipe_if_the_code_supports_nothing():
    study = make_study_of_code(negative_transfer.plugin, supports=())
    by_id = compute_findings(study, make_lab(ACCURACIES | {"scratch": 0.9}))
    finding = by_id["negative-transfer/pipeline"]
    assert finding.verdict == "FAIL" and finding.remedy["patch"] == ["[recipe]", 'init = "random"', 'training = "python:a:b"']


def test_training_code_has_keys_of_its_own_and_other_keys_stay_unchanged():
    plain = trials.training_spec(PIPELINE_OF_CODE, 0)
    user_trained = trials.training_spec(
        replace(PIPELINE_OF_CODE, training=UserCode(spec="python:a:b", digest="d", path="/x")), 0
    )
    stopped_early = trials.training_spec(replace(with_recipe(stop="best"), training=UserCode(spec="python:a:b", digest="d")), 0)
    assert len({plain, user_trained, stopped_early}) == 3
    assert trials.training_spec(with_recipe(stop="best"), 0) == plain
    assert replace_flat(user_trained, training=UserCode(spec="python:a:b", digest="d", path="/y")) == user_trained
    assert from_scratch().init == RANDOM and Recipe().stop == "last"
