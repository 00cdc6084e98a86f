"""Names of tensors under wrappers, and the tensors that a recipe trains."""

from __future__ import annotations

from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.config import recipe_of
from xferbench.core.errors import UserError
from xferbench.core.interventions import Trainable
from xferbench.core.pipeline import Phase, Recipe
from xferbench.lab.models import backbones
from xferbench.lab.monitor import user_model


def make_net():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(body=body, fc=nn.Linear(4, 2), drop=nn.Dropout()))


HEAD = {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("head", HEAD),
        ("norm", HEAD | {"body.1.weight", "body.1.bias"}),
        ("bias", HEAD | {"body.0.bias", "body.1.bias"}),
        ("all", HEAD | {f"body.{index}.{part}" for index in range(2) for part in ("weight", "bias")}),
    ],
)
def test_trainable_has_the_meaning_of_a_suite(spelling, expected):
    net, trainable = make_net(), Trainable.parse(spelling)
    assert user_model.trainable_names(net, trainable, "fc") == expected
    assert backbones.trainable_names(backbones.layer_layout(net, 8), net, trainable) == expected


@pytest.mark.parametrize("spelling", ["lora:4", "adapter:8", "prompt:4", "prefix:4"])
def test_adapters_of_a_watched_model_raise(spelling):
    with pytest.raises(UserError, match=r"its own adapters[\s\S]*to use requires_grad"):
        user_model.trainable_names(make_net(), Trainable.parse(spelling), "fc", 8)


def test_layer_groups_are_those_of_the_layer_layout():
    net, trainable = backbones.build("tiny-resnet", 3), Trainable.parse("top:2")
    names = user_model.trainable_names(net, trainable, user_model.find_head(net), 32)
    assert names == backbones.trainable_names(backbones.layer_layout(net, 32), net, trainable)


def test_the_head_is_the_last_linear_layer_or_the_named_module():
    assert user_model.find_head(make_net()) == "fc"
    assert user_model.find_head(make_net(), "body.0") == "body.0"
    assert not user_model.find_head(nn.ReLU())
    with pytest.raises(UserError, match="did you mean 'fc'"):
        user_model.find_head(make_net(), "fcc")
    with pytest.raises(UserError, match="no such module with parameters"):
        user_model.find_head(make_net(), "drop")


def test_wrappers_change_neither_names_nor_model():
    net = make_net()
    names = list(user_model.named_parameters(net))
    assert user_model.unwrap(nn.DataParallel(torch.compile(net, backend="eager"))) is net
    net.body = torch.compile(net.body, backend="eager")
    assert list(user_model.named_parameters(net)) == names
    assert list(user_model.statistics_layers(net)) == ["body.1"]
    assert list(user_model.layer_statistics("body.1", user_model.statistics_layers(net)["body.1"])) == [
        "body.1.running_mean",
        "body.1.running_var",
        "body.1.num_batches_tracked",
    ]


def test_is_pretrained_detects_changed_normalization_layers():
    net = make_net()
    assert not user_model.is_pretrained(net, "fc")
    net(torch.randn(4, 3, 8, 8))
    assert user_model.is_pretrained(net, "fc")
    assert not user_model.is_pretrained(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "0")
    assert not user_model.is_pretrained(nn.Linear(3, 3), "")


@pytest.mark.parametrize(
    ("recipe", "spellings", "batchnorm"),
    [
        ({"trainable": "head"}, ["head"], False),
        ({"trainable": "head", "batchnorm": "eval"}, ["head"], True),
        ({"strategy": "lp-ft", "steps": 10}, ["head", "all"], True),
        ({"phases": [{"trainable": "head"}, {"batchnorm": "eval"}]}, ["head", "all"], True),
        (Phase(trainable=Trainable.parse("norm")), ["norm"], True),
        (Recipe(phases=(Phase(trainable=Trainable.parse("norm")), Phase())), ["norm", "all"], True),
    ],
)
def test_recipe_of_accepts_every_form_of_a_recipe(recipe, spellings, batchnorm):
    result, has_batchnorm = recipe_of.recipe_of(recipe)
    assert ([str(phase.trainable) for phase in result.phases], has_batchnorm) == (spellings, batchnorm)
    assert recipe_of.recipe_of(None) == (None, True)
