"""The [matrix] of a suite: its tasks, recipes with equal budgets, claims, and errors."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.strategies import STRATEGIES

HERE = Path("/nowhere/m.toml")
TEXT = """
schema = 1
name = "m"
plugins = []
margin = 0.03
[backbone]
arch = "tiny-resnet"
[matrix]
recipes = ["linear-probe", "full", {name = "mine", lr = 3e-3, trainable = "top:2"}]
rates = [1, 3]
steps = 40
train_sizes = [50, 200]
against = "full"
[[matrix.targets]]
name = "near"
similar = true
data = "synthetic:near"
shifted = "synthetic:tinted"
[[matrix.targets]]
name = "own"
data = "npz:own.npz"
test_size = 500
[[matrix.effects]]
name = "probe"
claim = "the probe is better"
source = "a tutorial"
task = "near-50"
recipe = "linear-probe"
against = "full"
at_least = 0.02
"""


def parse_suite(*changes, text=TEXT):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return loader.parse_suite(tomllib.loads(text), HERE)


def test_each_target_and_size_is_a_task_with_a_suite():
    tasks = parse_suite().matrix.tasks
    assert [(task.name, task.data.train_size, task.data.test_size) for task in tasks] == [
        ("near-50", 50, None),
        ("near-200", 200, None),
        ("own-50", 50, 500),
        ("own-200", 200, 500),
    ]
    assert [task.data.shifted for task in tasks] == ["synthetic:tinted"] * 2 + [None] * 2
    assert all(task.rules.margin == 0.03 and task.matrix is None for task in tasks)
    assert tasks[2].data.target == "npz:/nowhere/own.npz", "paths are relative to the file"
    assert parse_suite().matrix.similar == {"near-50": True, "near-200": True}


def test_names_of_tasks_contain_only_sizes_and_backbones_that_vary():
    suite = parse_suite(("train_sizes = [50, 200]", "train_sizes = [50]"), ("near-50", "near"))
    assert [task.name for task in suite.matrix.tasks] == ["near", "own"]
    backbones = (
        '[[matrix.backbones]]\nname = "a"\narch = "tiny-resnet"\n[[matrix.backbones]]\nname = "b"\narch = "cifar-resnet20"\n'
    )
    tasks = parse_suite(("[[matrix.effects]]", backbones + "[[matrix.effects]]"), ("near-50", "near-50-a")).matrix.tasks
    assert [(task.name, task.backbone.arch) for task in tasks][:2] == [
        ("near-50-a", "tiny-resnet"),
        ("near-50-b", "cifar-resnet20"),
    ]


def test_the_target_of_the_suite_is_the_only_task_without_targets():
    text = TEXT[: TEXT.index("[[matrix.targets]]")].replace("train_sizes = [50, 200]\n", "")
    tasks = parse_suite(text=text + '[target]\ndata = "digits"\ntrain_size = 70\n').matrix.tasks
    assert [(task.name, task.data.target, task.data.train_size) for task in tasks] == [("m", "digits", 70)]


def test_every_recipe_has_the_same_budget():
    compared = parse_suite().matrix.compared
    assert [grid.name for grid in compared] == ["linear-probe", "full", "mine"]
    assert {len(grid.recipes) for grid in compared} == {2}
    assert {sum(phase.steps for phase in recipe.phases) for grid in compared for recipe in grid.recipes} == {40}
    rates = [[recipe.phases[-1].lr for recipe in grid.recipes] for grid in compared]
    assert rates == [pytest.approx([1e-2, 3e-2]), pytest.approx([1e-3, 3e-3]), pytest.approx([3e-3, 9e-3])]


def test_all_stands_for_every_strategy_and_the_default():
    names = [grid.name for grid in parse_suite(('recipes = ["linear-probe", "full", {', 'recipes = ["all", {')).matrix.compared]
    assert names == ["default", *STRATEGIES, "mine"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ((('"full", {', '"ful", {'),), "matrix.recipes"),
        ((('against = "full"\n[[', 'against = "fall"\n[['),), "matrix.against"),
        ((('task = "near-50"', 'task = "near-51"'),), "matrix.effects: probe: task"),
        (
            (('recipe = "linear-probe"\nagainst = "full"', 'recipe = "linear-probe"'),),
            "matrix.effects: probe: keys of the number",
        ),
        ((("at_least = 0.02", "at_least = 0.02\nat_most = 0.01"),), "matrix.effects: probe: at_least, at_most"),
        ((("at_least = 0.02", "published = 0.1"),), "matrix.effects: probe: at_least, at_most"),
        ((("at_least = 0.02", 'at_least = 0.02\nview = "source"'),), "matrix.effects: probe: view"),
        (
            (('recipe = "linear-probe"\nagainst = "full"', 'recipe = "full"\nmeasure = "seconds"\nview = "shifted"'),),
            "matrix.effects: probe: view",
        ),
        (
            (('recipe = "linear-probe"\nagainst = "full"', 'contrast = "head-shock/harm"'),),
            "matrix.effects: probe: contrast",
        ),
        ((('{name = "mine", ', '{name = "default", '),), "matrix.recipes"),
        ((('recipe = "linear-probe"\nagainst', 'recipe = "full"\nagainst'),), "matrix.effects: probe: against"),
        ((("at_least = 0.02", "at_least = 2"),), "matrix.effects: probe: at_least"),
        ((("test_size = 500", "train_size = 30"),), "matrix.train_sizes"),
        ((("[matrix]", "[recipe]\nlr = 0.1\n[matrix]"),), "recipe"),
        ((("[matrix]", '[target]\ndata = "digits"\n[matrix]'),), "target.data"),
        ((('trainable = "top:2"', 'regularizer = "lwf:1", head = "mlp:8"'),), "matrix.recipes: mine"),
        ((('trainable = "top:2"', 'serve_mode = "train"'),), "matrix.recipes.2.serve_mode"),
        ((('name = "own"', 'name = "near"'),), "matrix"),
        ((('trainable = "top:2"', 'trainable = "tip:2"'),), "matrix.recipes.2.trainable"),
        ((('{name = "mine", ', '{name = "full", '),), "matrix.recipes"),
        ((('data = "npz:own.npz"', 'data = ""'),), "matrix.targets"),
        ((("rates = [1, 3]", "rates = [0]"),), "matrix.rates"),
        ((("[matrix]", "[checkpoint]\nafter = 'a.pth'\n[matrix]"),), "checkpoint"),
    ],
    ids=range(23),
)
def test_an_impossible_matrix_is_an_error_that_names_the_key(changes, key):
    with pytest.raises(UserError) as error:
        parse_suite(*changes)
    assert key in error.value.what.replace("[matrix] ", "matrix.").replace("[matrix.", "matrix.").replace("] ", ".")
    assert error.value.expected
