"""Recipes that a backbone cannot train: each has a reason and is no arm."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_schedule import PIPELINE, PROFILE, make_study

from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.interventions import Finish, Regularizer, Trainable
from xferbench.core.pipeline import Phase, Recipe, Selection
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import adapter, bitfit, full, lora, norm_only
from xferbench.plugins import learning_rate
from xferbench.report.messages import write_sentence
from xferbench.runner import execute, store
from xferbench.study import arms, feasibility

BACKBONE_WITHOUT_NORMS = replace(
    PROFILE, model=replace(PROFILE.model, unsupported=("norm", "bias", "adapter", "prompt", "prefix"), groups=("stem", "top"))
)


def make_arm(recipe):
    return replace(PIPELINE, recipe=recipe)


def make_recipe(*spellings):
    return Recipe(phases=tuple(Phase(trainable=Trainable.parse(spelling)) for spelling in spellings))


@pytest.mark.parametrize(
    ("spellings", "reason"),
    [
        (("all", "head", "top:2", "lora:4"), ""),
        (("head", "norm"), "norm: the backbone has no trainable normalization layers"),
        (("bias",), "bias: the backbone has no biases below its head"),
        (("adapter:8",), "adapter:8: the backbone has no place for an adapter"),
        (("prompt:8",), "prompt:8: the backbone has no input embeddings of tokens, or none that a prompt can precede"),
        (("prefix:8",), "prefix:8: the backbone has no attention layers that take a prefix of keys and values"),
        (("top:3",), "top:3: the backbone has 2 layer groups"),
    ],
)
def test_an_infeasible_recipe_has_a_reason(spellings, reason):
    assert write_sentence(feasibility.why_not_trainable(make_recipe(*spellings), BACKBONE_WITHOUT_NORMS)) == reason


def test_adapters_have_one_size_and_a_finished_network_has_none():
    sizes = feasibility.why_not_trainable(make_recipe("adapter:4", "adapter:8"), PROFILE)
    assert write_sentence(sizes) == "adapter:4, adapter:8: a network can have only one of these"
    assert feasibility.why_not_trainable(make_recipe("adapter:4", "head", "adapter:4"), PROFILE) is None
    finished = replace(PROFILE, model=replace(PROFILE.model, outputs=3))
    reason = feasibility.why_not_trainable(make_recipe("adapter:4"), finished)
    assert "a finished network has no adapters" in write_sentence(reason)


def test_virtual_tokens_take_positions_from_the_texts():
    profile = replace(PROFILE, model=replace(PROFILE.model, size=(2, 24), accepted_sizes=(32, 48)))
    assert feasibility.why_not_trainable(make_recipe("prompt:24"), profile) is None
    assert feasibility.why_not_trainable(make_recipe("prefix:9", "lora:99"), profile) is None
    for spellings in (("prompt:25",), ("prefix:25",), ("prompt:20", "head", "prefix:5")):
        reason = write_sentence(feasibility.why_not_trainable(make_recipe(*spellings), profile))
        assert reason == "25 virtual tokens before texts of 24 tokens: the backbone reads at most 48"


@pytest.mark.parametrize(
    ("recipe_fields", "profile_fields", "reason"),
    [
        ({"regularizer": Regularizer.parse("dann:1")}, {}, "dann:1: the suite has no [shifted]"),
        ({"regularizer": Regularizer.parse("dann:1")}, {"shifted": (0, 1)}, ""),
        (
            {"regularizer": Regularizer.parse("dann:1")},
            {"shifted": (0, 1), "supports": ("lr",)},
            "dann:1: the training code receives no images",
        ),
        (
            {"regularizer": Regularizer.parse("dann:1")},
            {"shifted": (0, 1), "unsupported": ("unlabelled",)},
            "dann:1: the [shifted] set has no training",
        ),
        ({"finish": Finish.parse("adabn")}, {"batchnorm": ("bn",)}, ""),
        ({"finish": Finish.parse("adabn")}, {"batchnorm": ()}, "adabn: the backbone has no BatchNorm"),
        (
            {"finish": Finish.parse("adabn")},
            {"batchnorm": ("bn",), "unsupported": ("unlabelled",)},
            "adabn: the [shifted] set has no training",
        ),
        ({"finish": Finish.parse("adabn")}, {"batchnorm": ("bn",), "supports": ("lr",)}, ""),
        ({"finish": Finish.parse("interpolate:0.5")}, {"batchnorm": ()}, ""),
        (
            {"finish": Finish.parse("interpolate:0.5")},
            {"supports": ()},
            "interpolate:0.5: it is not known where the training code's last",
        ),
    ],
)
def test_an_infeasible_regularizer_or_finish_has_a_reason(recipe_fields, profile_fields, reason):
    profile = replace_flat(PROFILE, **{"shifted": (), "supports": None} | profile_fields)
    actual = write_sentence(feasibility.why_not_trainable(Recipe(**recipe_fields), profile))
    assert actual.startswith(reason) and bool(actual) == bool(reason)


def test_a_suite_without_the_inputs_of_its_recipe_is_refused_before_training(tmp_path):
    suite = replace(loader.load_suite(loader.find_suite("quick")), recipe=Recipe(finish=Finish.parse("adabn")))
    profile = replace(PROFILE, model=replace(PROFILE.model, batchnorm=()))
    with store.open_store(tmp_path / "s.sqlite") as database, pytest.raises(UserError) as error:
        execute.profile_pipeline(suite, database, tmp_path, lambda: lambda *_: SimpleNamespace(result=lambda: profile))
    assert "no BatchNorm" in error.value.found and "[recipe]" in error.value.what


def test_infeasible_candidates_are_dropped_and_an_arm_without_candidates_disappears():
    both = Selection(candidates=(make_arm(full()), make_arm(bitfit()), make_arm(lora())))
    arms_by_name = {
        "cured": both,
        "one": Selection(candidates=(make_arm(full()), make_arm(norm_only()))),
        "induced:x": make_arm(adapter()),
    }
    feasible = feasibility.feasible_arms(arms_by_name, BACKBONE_WITHOUT_NORMS)
    assert feasible == {
        "cured": Selection(candidates=(make_arm(full()), make_arm(lora()))),
        "one": Selection(candidates=(make_arm(full()),)),
    }
    assert feasibility.feasible_arms(arms_by_name, PROFILE) == arms_by_name


def test_a_plugin_without_a_feasible_cure_is_skipped_with_the_reason():
    subject = make_arm(full())
    plugin = replace(learning_rate.plugin, applies=lambda *_: "", cure=lambda pipeline, _: replace(pipeline, recipe=bitfit()))
    study = replace(make_study(), profile=BACKBONE_WITHOUT_NORMS)
    assert write_sentence(arms.why_not(plugin, study, subject)) == "bias: the backbone has no biases below its head"
    several = replace(plugin, cure=lambda pipeline, _: Selection(candidates=(pipeline, make_arm(bitfit()), make_arm(lora()))))
    assert arms.why_not(several, study, subject) is None
    assert arms.plugin_arms(several, study, subject)["cured"] == Selection(candidates=(subject, make_arm(lora())))


@pytest.mark.parametrize("key", ["recipe", "believed"])
def test_an_infeasible_recipe_is_refused_before_training(key, tmp_path):
    suite = replace_flat(loader.load_suite(loader.find_suite("quick")), **{key: make_recipe("head", "bias")})
    with store.open_store(tmp_path / "s.sqlite") as database, pytest.raises(UserError) as error:
        execute.profile_pipeline(
            suite, database, tmp_path, lambda: lambda *_: SimpleNamespace(result=lambda: BACKBONE_WITHOUT_NORMS)
        )
    assert error.value.found == "bias: the backbone has no biases below its head"
    assert ("[checkpoint] believed" if key == "believed" else "[recipe] trainable") in error.value.what
    assert error.value.do == "choose one of them"


def test_too_many_virtual_tokens_are_refused_before_training(tmp_path):
    suite = replace_flat(loader.load_suite(loader.find_suite("quick")), recipe=make_recipe("prompt:9"))
    profile = replace(PROFILE, model=replace(PROFILE.model, size=(2, 24), accepted_sizes=(32,)))
    with store.open_store(tmp_path / "s.sqlite") as database, pytest.raises(UserError, match="9 virtual tokens") as error:
        execute.profile_pipeline(suite, database, tmp_path, lambda: lambda *_: SimpleNamespace(result=lambda: profile))
    assert error.value.do == "use fewer, or a lower max_length"


def test_a_dropout_that_no_layer_applies_is_refused_before_training(tmp_path):
    suite = loader.load_suite(loader.find_suite("quick"))
    suite = replace(suite, recipe=replace(make_recipe("all"), phases=(Phase(dropout=0.1),)))
    profile = replace(PROFILE, model=replace(PROFILE.model, unsupported=("dropout",)))
    with store.open_store(tmp_path / "s.sqlite") as database, pytest.raises(UserError, match="dropout") as error:
        execute.profile_pipeline(suite, database, tmp_path, lambda: lambda *_: SimpleNamespace(result=lambda: profile))
    assert error.value.found == "dropout: the backbone has no dropout layers below its head"
    assert feasibility.why_not_trainable(suite.recipe, profile) is not None
    assert feasibility.why_not_trainable(suite.recipe, PROFILE) is None


def test_the_trainable_layers_are_described():
    assert (
        feasibility.describe_trainable(BACKBONE_WITHOUT_NORMS)
        == "head, lora, all, or top:N with N up to 2 (groups from the input up: stem, top)"
    )
