"""Requirements of plugins on a pipeline."""

from __future__ import annotations

from dataclasses import replace

from xferbench.core import requirements
from xferbench.core.interventions import RANDOM
from xferbench.core.pipeline import Phase, Recipe
from xferbench.testing.fake_lab import PIPELINE, PROFILE

SCRATCH = replace(PIPELINE, recipe=Recipe(init=RANDOM))


def test_plugins_for_pretraining_apply_only_to_pretrained_weights():
    for requirement in (
        requirements.requires_pretrained,
        requirements.requires_batchnorm,
        requirements.requires_source,
        lambda *arguments: requirements.requires_several_steps(*arguments, "to choose"),
    ):
        assert requirement(PIPELINE, PROFILE) == ""
        assert requirement(SCRATCH, PROFILE) == "nothing pretrained is adapted"
    assert requirements.always_applies(SCRATCH, PROFILE) == ""


def test_a_reason_names_the_missing_part():
    assert (
        requirements.requires_batchnorm(PIPELINE, replace(PROFILE, model=replace(PROFILE.model, batchnorm=())))
        == "the backbone has no BatchNorm layer"
    )
    assert "no [source]" in requirements.requires_source(PIPELINE, replace(PROFILE, data=replace(PROFILE.data, source=())))
    assert (
        requirements.requires_source(PIPELINE, replace(PROFILE, data=replace(PROFILE.data, source=(), source_error="because")))
        == "because"
    )
    single = replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=1),)))
    assert requirements.requires_several_steps(single, PROFILE, "to choose") == "a single step leaves none to choose"


def test_an_unrecorded_preprocessing_is_reported():
    assert "[backbone]" in requirements.unrecorded_preprocessing(PIPELINE, replace(PROFILE, recorded=False))
    assert requirements.unrecorded_preprocessing(PIPELINE, PROFILE) == ""
    assert requirements.leave_unchanged(PIPELINE, PROFILE) is PIPELINE
