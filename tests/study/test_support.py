"""What training code can be asked, given what it honours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_schedule import FACTS, PIPELINE, SUITE, USUAL, found, lab, study

from xferbench.core.interventions import BATCHNORM_EVAL, BATCHNORM_TRAIN, RANDOM, ZERO_HEAD, GhostBatchNorm
from xferbench.core.pipeline import Phase, Preprocessing, Recipe, Selection, UserCode
from xferbench.core.strategies import from_scratch, full, linear_probe, lp_ft, scratch_baseline
from xferbench.plugins import batchnorm_drift, negative_transfer
from xferbench.study import forecast, support, trials
from xferbench.study.study import subject_arm

OWN = replace(PIPELINE, recipe=full())


def with_recipe(**changes):
    return replace(OWN, recipe=replace(OWN.recipe, **changes))


def with_phase(**changes):
    return with_recipe(phases=(replace(OWN.recipe.phases[0], **changes),))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (OWN, set()),
        (with_recipe(init=RANDOM, head=ZERO_HEAD, name="another"), set()),
        (with_recipe(stop="best"), {"stop"}),
        (with_phase(lr=0.5, batchnorm=BATCHNORM_EVAL), {"lr", "batchnorm"}),
        (replace(OWN, recipe=lp_ft()), {"phases", "trainable", "batchnorm", "lr", "steps"}),
        (with_recipe(phases=(Phase(), Phase())), {"phases"}),
    ],
)
def test_recipes_differ_in_what_their_training_differs_in(other, expected):
    assert support.differing_fields(OWN.recipe, other.recipe) == support.differing_fields(other.recipe, OWN.recipe) == expected


def test_candidates_that_are_not_honoured_are_dropped_and_preprocessing_always_is_honoured():
    prepared = replace(OWN, data=replace(OWN.data, train_preprocessing=Preprocessing(crop=8)))
    asked = {"cured": Selection(candidates=(OWN, with_phase(lr=0.5), with_phase(batchnorm=BATCHNORM_EVAL), prepared))}
    assert support.supported_arms(asked, OWN, ["lr"])["cured"].candidates == (OWN, with_phase(lr=0.5), prepared)
    assert support.supported_arms(asked, OWN, None) == asked
    assert support.supported_arms({"induced:a": with_phase(order="class")}, OWN, ["lr"]) == {}


def test_of_scratch_the_subjects_own_recipe_stays_whatever_is_honoured():
    probe = replace(OWN, recipe=linear_probe())
    grid = scratch_baseline(probe, SUITE.scratch)
    only = support.supported_arms({"scratch": grid}, probe, [])["scratch"]
    assert only == grid.candidates[0] and only.recipe.init == RANDOM
    kept = support.supported_arms(
        {"scratch": scratch_baseline(OWN, SUITE.scratch)}, OWN, ["lr", "weight_decay", "steps", "batch_size", "schedule"]
    )
    assert len(kept["scratch"].candidates) == len(scratch_baseline(OWN, SUITE.scratch).candidates)


def test_a_cure_that_is_ignored_is_no_question_even_if_a_variant_is_honoured():
    told = support.why_unsupported(with_phase(batchnorm=BATCHNORM_EVAL), [with_phase(order="class")], OWN, ["order"])
    assert told == "the training code does not support batchnorm"
    assert support.why_unsupported(with_phase(batchnorm=BATCHNORM_EVAL), [], OWN, ["batchnorm"]) == ""
    assert support.why_unsupported(with_phase(batchnorm=BATCHNORM_EVAL), [], OWN, None) == ""


def test_a_cure_that_changes_nothing_needs_a_variant_that_is_honoured():
    variants = [with_phase(batchnorm=GhostBatchNorm(examples=2)), with_phase(batchnorm=BATCHNORM_TRAIN, order="class")]
    subject = with_phase(batchnorm=BATCHNORM_EVAL)
    assert support.why_unsupported(subject, variants, subject, ["order"]) == "the training code does not support batchnorm"
    assert support.why_unsupported(subject, variants, subject, ["batchnorm"]) == ""
    assert support.why_unsupported(subject, [], subject, []) == ""


def told(*plugins, words, recipe=None):
    suite = replace(SUITE, recipe=recipe or full())
    asked = study(*plugins, suite=suite, facts=replace(FACTS, user_code=replace(FACTS.user_code, supports=words)))
    own = replace(PIPELINE, training=UserCode(spec="python:a:b", digest="d"))
    return replace(asked, subject=subject_arm(suite, own))


def test_a_plugin_whose_factor_the_code_ignores_is_skipped_and_says_so():
    asked = told(batchnorm_drift.plugin, words=("lr", "steps"))
    (one,) = found(asked, lab(USUAL)).values()
    assert (one.verdict, one.reason) == ("SKIPPED", "the training code does not support batchnorm")
    assert forecast.forecast_study(asked, {}, 1).skipped == {"batchnorm-drift": one.reason}


def test_a_subject_that_is_its_own_cure_is_skipped_too_for_the_code_may_do_the_contrary():
    asked = told(batchnorm_drift.plugin, words=("lr",), recipe=linear_probe())
    (one,) = found(asked, lab(USUAL)).values()
    assert (one.verdict, one.reason) == ("SKIPPED", "the training code does not support batchnorm")
    assert forecast.forecast_study(asked, {}, 1).skipped


def test_what_is_honoured_is_judged_and_variants_that_are_not_are_left_out():
    asked = told(batchnorm_drift.plugin, words=("batchnorm",))
    assert set(found(asked, lab(USUAL))) >= {"batchnorm-drift/harm/ghost-batch", "batchnorm-drift/harm/stale-statistics"}
    assert "batchnorm-drift/harm/class-order" not in found(asked, lab(USUAL))


def test_negative_transfer_is_asked_of_code_that_honours_nothing_as_far_as_the_subjects_own_recipe_goes():
    asked = told(negative_transfer.plugin, words=())
    (one,) = found(asked, lab(USUAL | {"scratch": 0.9})).values()
    assert one.verdict == "FAIL" and one.remedy["patch"] == ["[recipe]", 'init = "random"', 'training = "python:a:b"']


def test_fits_of_training_code_have_keys_of_their_own_and_others_stay_as_they_were():
    plain = trials.training_spec(OWN, 0)
    own = trials.training_spec(replace(OWN, training=UserCode(spec="python:a:b", digest="d", path="/x")), 0)
    stopped = trials.training_spec(replace(with_recipe(stop="best"), training=UserCode(spec="python:a:b", digest="d")), 0)
    assert len({plain, own, stopped}) == 3
    assert trials.training_spec(with_recipe(stop="best"), 0) == plain
    assert replace(own, training=UserCode(spec="python:a:b", digest="d", path="/y")) == own
    assert from_scratch().init == RANDOM and Recipe().stop == "last"
