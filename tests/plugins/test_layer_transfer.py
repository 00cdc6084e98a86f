"""Cuts: what is transferred, frozen and drawn anew; and a small real run from question to picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_schedule import PIPELINE, PROFILE

torch = pytest.importorskip("torch")

from test_loop import READY, WEIGHTS, make_fit, make_trial, make_world, prepared

from xferbench.core.interventions import PRETRAINED, RANDOM, TransferLowest
from xferbench.core.pipeline import Phase, Recipe, ScratchGrid
from xferbench.core.strategies import linear_probe, partial
from xferbench.core.trial import TrainingSpec
from xferbench.lab.worker import run_trials
from xferbench.plugins import layer_transfer
from xferbench.report import figures
from xferbench.study import trials
from xferbench.testing import fake_lab

GROUPS = ("conv1", "layer1", "layer2", "layer3", "layer4")
FIVE = replace(PROFILE, model=replace(PROFILE.model, groups=GROUPS))


def told(pipeline):
    recipe = pipeline.recipe
    (phase,) = recipe.phases
    return tuple(map(str, (recipe.init, recipe.transferred, phase.trainable, phase.batchnorm)))


def test_four_cuts_of_four_kinds():
    found = layer_transfer.extra_arms(PIPELINE, FIVE)
    assert len(found) == 16
    assert told(found["anb-2"]) == ("pretrained", "low:2", "top:3", "train-above")
    assert told(found["bnb-2"]) == ("target", "low:2", "top:3", "train-above")
    assert told(found["anb-plus-3"]) == ("pretrained", "low:4", "all", "train")
    assert told(found["bnb-4"]) == ("target", "all", "head", "eval")
    steps = {sum(phase.steps for phase in one.recipe.phases) for one in found.values()}
    assert steps == {150}, "equal budgets"
    assert {one.recipe.phases[0].lr for one in found.values()} == {1e-2}, "and equal rates"


def test_of_few_groups_some_cuts_are_the_same_and_of_one_there_is_none():
    found = layer_transfer.extra_arms(PIPELINE, replace(PROFILE, model=replace(PROFILE.model, groups=("lower", "upper"))))
    assert [str(found[f"anb-{cut}"].recipe.transferred) for cut in layer_transfer.CUTS] == ["low:1", "low:1", "all", "all"]
    assert "single layer group" in layer_transfer.applies(
        PIPELINE, replace(PROFILE, model=replace(PROFILE.model, groups=("all",)))
    )


@pytest.mark.parametrize(
    ("recipe", "variant", "expected"),
    [
        (Recipe(), "frozen-top", ("pretrained", "all", "head", "eval")),
        (linear_probe(), "one-too-low", ("pretrained", "low:4", "top:1", "train-above")),
        (partial(groups=3), "one-too-high", ("pretrained", "all", "top:2", "train-above")),
        (
            replace(partial(groups=1), transferred=TransferLowest(groups=4)),
            "one-too-high",
            ("pretrained", "all", "head", "eval"),
        ),
        (
            replace(partial(groups=3), transferred=TransferLowest(groups=2)),
            "one-too-high",
            ("pretrained", "low:3", "top:2", "train-above"),
        ),
    ],
)
def test_the_cut_is_moved_by_one_or_where_nothing_is_frozen_to_the_top(recipe, variant, expected):
    found = layer_transfer.induce(replace(PIPELINE, recipe=recipe), FIVE)
    assert {name: told(one) for name, one in found.items()} == {variant: expected}


def test_what_is_cured_is_chosen_among_the_cuts_of_the_pretrained_network():
    assert {one.recipe.init for one in layer_transfer.cure(PIPELINE, FIVE).candidates} == {PRETRAINED}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_lower_groups_are_those_of_the_network_trained_on_the_target_and_nothing_above_is_where_that_began(world):
    base = make_fit(world, Phase(steps=2, batch_size=16), init=RANDOM)
    one = replace(make_fit(world), start=base, transferred=TransferLowest(groups=2))
    _, (start,), _ = prepared(world, one)
    (trained,), _ = run_trials._trained_models((base,), make_trial(base), world.cache)
    same = {name.partition(".")[0] for name, tensor in start.items() if torch.equal(tensor, trained.last[name])}
    began = {name for name, tensor in start.items() if name.endswith("weight") and torch.equal(tensor, trained.before[name])}
    assert same >= {"conv1", "bn1", "layer1"}
    assert not {name for name in began if "conv" in name or "linear" in name}


def test_a_small_run_asks_each_start_once_a_seed_and_measures_every_cut(world):
    pipeline = replace(
        PIPELINE,
        backbone=replace(PIPELINE.backbone, weights=WEIGHTS),
        data=replace(PIPELINE.data, target=world.data, train_size=60, train_preprocessing=READY),
        recipe=Recipe(phases=(Phase(steps=2, batch_size=8),)),
        baseline=ScratchGrid(lr=(1e-2,), weight_decay=(0.01,), steps=2, batch_size=8),
        serving=replace(PIPELINE.serving, preprocessing=READY),
    )
    suite = replace(
        fake_lab.SUITE,
        rules=replace(fake_lab.SUITE.rules, looks=(1,), tuning_seeds=1),
        recipe=pipeline.recipe,
        scratch=pipeline.baseline,
    )
    facts = replace(
        PROFILE,
        model=replace(PROFILE.model, groups=GROUPS),
        data=replace(PROFILE.data, classes=("0", "1", "2", "3"), train=120, test=60),
    )
    asked = fake_lab.make_study(layer_transfer.plugin, suite=suite, pipeline=pipeline, facts=facts)
    ran = []

    def lab(trial):
        ran.append(trial.model.base)
        return run_trials.run_trials((trial,), frozenset({trial.key}), world.cache)[0][0]

    run = fake_lab.run_study(asked, lab)
    assert not [one.reason for one in run.findings if one.verdict == "ERROR"]
    starts = {one.start for one in ran if isinstance(one.start, TrainingSpec)}
    assert starts == {trials.target_spec(pipeline, 0)} and starts <= set(ran)
    found = {one.id: one for one in run.findings}
    assert {f"layer-transfer/{kind}-{cut}" for kind in ("anb", "specificity") for cut in range(1, 5)} <= found.keys()
    harm = next(one for name, one in found.items() if "/harm/" in name)
    accuracies = {name: value for name, value in harm.measures.items() if name.endswith("accuracy")}
    assert len(accuracies) == 16 and np.isfinite(list(accuracies.values())).all()
    difference = accuracies["bnb-2 accuracy"] - accuracies["anb-2 accuracy"]
    assert found["layer-transfer/specificity-2"].harm == pytest.approx(difference)
    assert "could not be drawn" not in figures.draw_plugin_plot(layer_transfer.plugin, run)
