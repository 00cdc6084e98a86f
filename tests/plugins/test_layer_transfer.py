"""Cuts: which groups are transferred, frozen and drawn anew; and a small real run from a study to a plot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_schedule import PIPELINE, PROFILE

torch = pytest.importorskip("torch")

from test_loop import PREPROCESSING, WEIGHTS, make_spec, make_trial, make_workspace, prepare_training

from xferbench.core.interventions import ALL_LAYERS, BATCHNORM_EVAL, BATCHNORM_TRAIN, PRETRAINED, RANDOM, TransferLowest
from xferbench.core.pipeline import Phase, Recipe, ScratchGrid
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import discriminative, full, gradual_unfreezing, linear_probe, lp_ft, partial
from xferbench.core.trial import TrainingSpec
from xferbench.lab.worker import run_trials
from xferbench.plugins import layer_transfer
from xferbench.report import figures
from xferbench.study import trials
from xferbench.testing import fake_lab

GROUPS = ("conv1", "layer1", "layer2", "layer3", "layer4")
FIVE_GROUPS = replace(PROFILE, model=replace(PROFILE.model, groups=GROUPS))


def describe(pipeline):
    recipe = pipeline.recipe
    (phase,) = recipe.phases
    return tuple(map(str, (recipe.init, recipe.transferred, phase.trainable, phase.batchnorm)))


def test_there_are_four_kinds_of_four_cuts():
    arms = layer_transfer.extra_arms(PIPELINE, FIVE_GROUPS)
    assert len(arms) == 16
    assert describe(arms["anb-2"]) == ("pretrained", "low:2", "top:3", "train-above")
    assert describe(arms["bnb-2"]) == ("target", "low:2", "top:3", "train-above")
    assert describe(arms["anb-plus-3"]) == ("pretrained", "low:4", "all", "train")
    assert describe(arms["bnb-4"]) == ("target", "all", "head", "eval")


def schedule(pipeline):
    layers = {"trainable": ALL_LAYERS, "batchnorm": BATCHNORM_TRAIN}
    return tuple(replace(phase, **layers) for phase in pipeline.recipe.phases)


@pytest.mark.parametrize("recipe", [Recipe(), lp_ft(), linear_probe(), discriminative(), gradual_unfreezing()])
def test_a_cut_changes_layers_and_keeps_phases_rates_and_steps(recipe):
    pipeline = replace(PIPELINE, recipe=recipe)
    arms = layer_transfer.extra_arms(pipeline, FIVE_GROUPS) | layer_transfer.induce(pipeline, FIVE_GROUPS)
    assert {schedule(arm) for arm in arms.values()} == {schedule(pipeline)}


@pytest.mark.parametrize("recipe", [Recipe(), full(Phase(batchnorm=BATCHNORM_EVAL)), lp_ft(), gradual_unfreezing()])
def test_a_recipe_that_trains_all_layers_in_the_end_is_the_cut_above_all_of_them(recipe):
    arm = layer_transfer.extra_arms(replace(PIPELINE, recipe=recipe), FIVE_GROUPS)["anb-plus-4"]
    assert arm.recipe == recipe, "BatchNorm and the probe stay, so that a harm is due to layers"


def test_a_phase_of_the_head_also_trains_layers_that_are_new():
    arms = layer_transfer.extra_arms(replace(PIPELINE, recipe=lp_ft()), FIVE_GROUPS)
    trainables = {
        name: [str(phase.trainable) for phase in arms[name].recipe.phases] for name in ("anb-2", "anb-plus-2", "anb-4")
    }
    assert trainables == {"anb-2": ["top:3", "top:3"], "anb-plus-2": ["top:3", "all"], "anb-4": ["head", "head"]}


def test_a_cut_is_compared_with_all_layers_under_the_same_schedule():
    (contrast,) = (contrast for contrast in layer_transfer.plugin.contrasts if contrast.name == "anb-2")
    assert contrast.weights == {("beside:anb-2", "test"): 1.0, ("beside:anb-plus-4", "test"): -1.0}


def test_cuts_coincide_for_few_groups_and_the_plugin_does_not_apply_to_one_group():
    arms = layer_transfer.extra_arms(PIPELINE, replace(PROFILE, model=replace(PROFILE.model, groups=("lower", "upper"))))
    assert [str(arms[f"anb-{cut}"].recipe.transferred) for cut in layer_transfer.CUTS] == ["low:1", "low:1", "all", "all"]
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
def test_the_induced_cut_is_one_too_low_or_too_high_or_frozen_to_the_top(recipe, variant, expected):
    induced = layer_transfer.induce(replace(PIPELINE, recipe=recipe), FIVE_GROUPS)
    assert {name: describe(arm) for name, arm in induced.items()} == {variant: expected}


def test_the_candidates_are_cuts_of_the_pretrained_network():
    assert {candidate.recipe.init for candidate in layer_transfer.cure(PIPELINE, FIVE_GROUPS).candidates} == {PRETRAINED}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_lower_groups_come_from_the_network_trained_on_the_target_and_upper_groups_are_new(workspace):
    base = make_spec(workspace, Phase(steps=2, batch_size=16), init=RANDOM)
    spec = replace_flat(make_spec(workspace), start=base, transferred=TransferLowest(groups=2))
    _, (start,), _ = prepare_training(workspace, spec)
    (trained,), _ = run_trials._trained_models((base,), make_trial(base), workspace.cache)
    same_groups = {name.partition(".")[0] for name, tensor in start.items() if torch.equal(tensor, trained.last[name])}
    unchanged_names = {
        name for name, tensor in start.items() if name.endswith("weight") and torch.equal(tensor, trained.before[name])
    }
    assert same_groups >= {"conv1", "bn1", "layer1"}
    assert not {name for name in unchanged_names if "conv" in name or "linear" in name}


def test_a_small_run_trains_each_start_once_a_seed_and_measures_every_cut(workspace):
    pipeline = replace(
        PIPELINE,
        backbone=replace(PIPELINE.backbone, weights=WEIGHTS),
        data=replace(PIPELINE.data, target=workspace.data, train_size=60, train_preprocessing=PREPROCESSING),
        recipe=Recipe(phases=(Phase(steps=2, batch_size=8),)),
        baseline=ScratchGrid(lr=(1e-2,), weight_decay=(0.01,), steps=2, batch_size=8),
        serving=replace(PIPELINE.serving, preprocessing=PREPROCESSING),
    )
    suite = replace(
        fake_lab.SUITE,
        rules=replace(fake_lab.SUITE.rules, looks=(1,), tuning_seeds=1),
        recipe=pipeline.recipe,
        scratch=pipeline.baseline,
    )
    profile = replace(
        PROFILE,
        model=replace(PROFILE.model, groups=GROUPS),
        data=replace(PROFILE.data, classes=("0", "1", "2", "3"), train=120, test=60),
    )
    study = fake_lab.make_study(layer_transfer.plugin, suite=suite, pipeline=pipeline, facts=profile)
    trained_specs = []

    def lab(trial):
        trained_specs.append(trial.model.base)
        return run_trials.run_trials((trial,), frozenset({trial.key}), workspace.cache)[0][0]

    run = fake_lab.run_study(study, lab)
    assert not [finding.reason for finding in run.findings if finding.verdict == "ERROR"]
    starts = {spec.network.start for spec in trained_specs if isinstance(spec.network.start, TrainingSpec)}
    assert starts == {trials.target_spec(pipeline, 0)} and starts <= set(trained_specs)
    by_id = {finding.id: finding for finding in run.findings}
    assert {f"layer-transfer/{kind}-{cut}" for kind in ("anb", "specificity") for cut in range(1, 5)} <= by_id.keys()
    harm = next(finding for name, finding in by_id.items() if "/harm/" in name)
    accuracies = {name: value for name, value in harm.measures.items() if name.endswith("accuracy")}
    assert len(accuracies) == 16 and np.isfinite(list(accuracies.values())).all()
    difference = accuracies["bnb-2 accuracy"] - accuracies["anb-2 accuracy"]
    assert by_id["layer-transfer/specificity-2"].estimate.harm == pytest.approx(difference)
    assert "could not be drawn" not in figures.draw_plugin_plot(layer_transfer.plugin, run)
