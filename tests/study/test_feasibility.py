"""A recipe that a backbone cannot carry out is no arm, and is never a linear probe under another name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_schedule import FACTS, PIPELINE, study

from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.interventions import Finish, Regularizer, Trainable
from xferbench.core.pipeline import Phase, Recipe, Selection
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import adapter, bitfit, full, lora, norm_only
from xferbench.plugins import learning_rate
from xferbench.runner import execute, store
from xferbench.study import arms, feasibility

PLAIN = replace(FACTS, model=replace(FACTS.model, unsupported=("norm", "bias", "adapter"), groups=("stem", "top")))


def arm(recipe):
    return replace(PIPELINE, recipe=recipe)


def recipe(*words):
    return Recipe(phases=tuple(Phase(trainable=Trainable.parse(word)) for word in words))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("all", "head", "top:2", "lora:4"), ""),
        (("head", "norm"), "norm: the backbone has no trainable normalization layers"),
        (("bias",), "bias: the backbone has no biases below its head"),
        (("adapter:8",), "adapter:8: the backbone has no place for an adapter"),
        (("top:3",), "top:3: the backbone has 2 layer groups"),
    ],
)
def test_why_a_recipe_does_not_fit(words, reason):
    assert feasibility.why_not_trainable(recipe(*words), PLAIN) == reason


def test_adapters_are_of_one_size_and_none_are_in_a_finished_network():
    assert (
        feasibility.why_not_trainable(recipe("adapter:4", "adapter:8"), FACTS)
        == "adapter:4, adapter:8: a network has adapters of one size"
    )
    assert feasibility.why_not_trainable(recipe("adapter:4", "head", "adapter:4"), FACTS) == ""
    assert "a finished network has no adapters" in feasibility.why_not_trainable(
        recipe("adapter:4"), replace(FACTS, model=replace(FACTS.model, outputs=3))
    )


@pytest.mark.parametrize(
    ("asked", "known", "reason"),
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
def test_why_what_makes_domains_alike_or_ends_a_recipe_does_not_fit(asked, known, reason):
    found = feasibility.why_not_trainable(Recipe(**asked), replace_flat(FACTS, **{"shifted": (), "supports": None} | known))
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_a_suite_that_lacks_what_its_recipe_needs_is_refused_before_anything_is_trained(tmp_path):
    asked = replace(loader.load_suite(loader.find_suite("quick")), recipe=Recipe(finish=Finish.parse("adabn")))
    facts = replace(FACTS, model=replace(FACTS.model, batchnorm=()))
    with store.open_store(tmp_path / "s.sqlite") as db, pytest.raises(UserError) as caught:
        execute.profile_pipeline(asked, db, tmp_path, lambda: lambda *_: SimpleNamespace(result=lambda: facts))
    assert "no BatchNorm" in caught.value.found and "[recipe]" in caught.value.what


def test_candidates_that_do_not_fit_are_left_out_and_an_arm_of_nothing_else_is_none():
    both = Selection(candidates=(arm(full()), arm(bitfit()), arm(lora())))
    asked = {"cured": both, "one": Selection(candidates=(arm(full()), arm(norm_only()))), "induced:x": arm(adapter())}
    found = feasibility.feasible_arms(asked, PLAIN)
    assert found == {"cured": Selection(candidates=(arm(full()), arm(lora()))), "one": Selection(candidates=(arm(full()),))}
    assert feasibility.feasible_arms(asked, FACTS) == asked


def test_a_plugin_nothing_of_whose_cure_fits_is_skipped_with_the_reason():
    subject = arm(full())
    plugin = replace(learning_rate.plugin, applies=lambda *_: "", cure=lambda pipeline, _: replace(pipeline, recipe=bitfit()))
    asked = replace(study(), profile=PLAIN)
    assert arms.why_not(plugin, asked, subject) == "bias: the backbone has no biases below its head"
    several = replace(plugin, cure=lambda pipeline, _: Selection(candidates=(pipeline, arm(bitfit()), arm(lora()))))
    assert arms.why_not(several, asked, subject) == ""
    assert arms.plugin_arms(several, asked, subject)["cured"] == Selection(candidates=(subject, arm(lora())))


@pytest.mark.parametrize("key", ["recipe", "believed"])
def test_it_is_refused_before_anything_is_trained(key, tmp_path):
    asked = replace_flat(loader.load_suite(loader.find_suite("quick")), **{key: recipe("head", "bias")})
    with store.open_store(tmp_path / "s.sqlite") as db, pytest.raises(UserError) as caught:
        execute.profile_pipeline(asked, db, tmp_path, lambda: lambda *_: SimpleNamespace(result=lambda: PLAIN))
    assert caught.value.found == "bias: the backbone has no biases below its head"
    assert ("[checkpoint] believed" if key == "believed" else "[recipe] trainable") in caught.value.what


def test_what_may_be_trained_is_told():
    assert (
        feasibility.describe_trainable(PLAIN)
        == "head, lora, all, or top:N with N up to 2 (groups from the input up: stem, top)"
    )
