from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.config import loader
from xferbench.core import strategies
from xferbench.core.interventions import (
    BATCHNORM_TRAIN,
    EVAL_MODE,
    HEAD_ONLY,
    PRETRAINED,
    RANDOM,
    TRAIN_MODE,
    ZERO_HEAD,
    Augmentation,
    Finish,
    Head,
    Regularizer,
    Trainable,
)
from xferbench.core.pipeline import (
    Backbone,
    Data,
    Phase,
    Pipeline,
    PipelineData,
    Preprocessing,
    Recipe,
    ScratchGrid,
    Serving,
    WeightsFile,
)
from xferbench.core.strategies import HEAD_LR, STRATEGIES, default_selection, scratch_baseline
from xferbench.study import trials

PIPELINE = Pipeline(
    backbone=Backbone(arch="tiny-resnet", weights=WeightsFile(digest="w")),
    data=PipelineData(target=Data(digest="d"), train_size=200, test_size=None, train_preprocessing=Preprocessing()),
    recipe=Recipe(phases=(Phase(trainable=HEAD_ONLY, steps=50), Phase(lr=3e-3, steps=100, order="class", batch_size=16))),
    serving=Serving(preprocessing=Preprocessing(channels="bgr"), mode=TRAIN_MODE),
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(deadline=None)
@given(steps=st.integers(1, 400))
def test_every_strategy_keeps_the_budget_of_steps(strategy, steps):
    made = STRATEGIES[strategy](Phase(steps=steps))
    assert sum(phase.steps for phase in made.phases) == steps
    assert all(phase.steps > 0 for phase in made.phases)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_keeps_what_is_not_its_own_business(strategy):
    own = Phase(lr=2e-4, optimizer="sgd", weight_decay=0.3, schedule="constant", batch_size=17, order="class", steps=60)
    made = STRATEGIES[strategy](own)
    for phase in made.phases:
        kept = ("optimizer", "weight_decay", "schedule", "batch_size", "order")
        assert [getattr(phase, name) for name in kept] == [getattr(own, name) for name in kept]
    assert made.phases[-1].lr == own.lr
    assert made.init == (RANDOM if strategy in {"scratch", "distillation"} else PRETRAINED)
    assert made.name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_its_first_line_says_what_it_is(strategy):
    line = STRATEGIES[strategy].__doc__.partition("\n")[0]
    assert line.endswith(".")
    assert len(line) < 120


def test_a_linear_probe_trains_the_head_on_features_that_do_not_move():
    (phase,) = strategies.linear_probe(Phase(batchnorm=BATCHNORM_TRAIN, head_lr=0.3)).phases
    assert (str(phase.trainable), str(phase.batchnorm), phase.head_lr) == ("head", "eval", None)


def test_lp_ft_probes_for_half_of_the_steps_at_the_heads_own_rate():
    probe, tune = strategies.lp_ft(Phase(lr=1e-3, steps=151)).phases
    assert (str(probe.trainable), str(probe.batchnorm), probe.lr, probe.steps) == ("head", "eval", HEAD_LR, 75)
    assert (str(tune.trainable), tune.lr, tune.steps) == ("all", 1e-3, 76)


def test_gradual_unfreezing_adds_one_group_at_a_time():
    made = strategies.gradual_unfreezing(Phase(steps=103), groups=3)
    assert [(str(phase.trainable), phase.steps) for phase in made.phases] == [
        ("head", 25),
        ("top:1", 25),
        ("top:2", 25),
        ("all", 28),
    ]


def test_discriminative_rates_fall_from_the_head_down():
    (phase,) = strategies.discriminative(Phase(lr=1e-3), decay=0.3).phases
    assert (phase.head_lr, phase.lr, phase.layer_decay) == (HEAD_LR, 1e-3, 0.3)


def test_what_trains_few_numbers_leaves_the_rest_as_it_is_and_has_a_rate_of_its_own():
    made = [strategies.bitfit(), strategies.lora(rank=4), strategies.adapter(rank=2), strategies.norm_only()]
    assert [str(one.phases[0].trainable) for one in made] == ["bias", "lora:4", "adapter:2", "norm"]
    assert [str(one.phases[0].batchnorm) for one in made] == ["eval", "eval", "eval", "train"]
    assert {one.phases[0].lr for one in made} == {1e-2}
    assert set(strategies.DEFAULT_RATES.values()) == {1e-2} and set(strategies.DEFAULT_RATES) <= set(STRATEGIES)


def test_what_trains_the_head_alone_is_tuned_around_the_heads_own_rate():
    assert {name: strategies.USUAL_LR[name] for name in ("linear-probe", "mlp-head")} == dict.fromkeys(
        ("linear-probe", "mlp-head"), HEAD_LR
    )
    assert strategies.USUAL_LR.items() >= strategies.DEFAULT_RATES.items() and strategies.USUAL_LR.keys() <= STRATEGIES.keys()
    assert loader.parse_recipe({"strategy": "linear-probe"}).phases[0].lr == Phase().lr, (
        "a suite's own words keep their meaning"
    )


def test_warm_up_takes_a_tenth_of_the_steps():
    assert [strategies.warm_up(Phase(steps=steps)).phases[0].warmup for steps in (150, 10, 5)] == [15, 1, 1]


def test_the_three_that_are_not_phases_alone_say_so():
    made = {name: STRATEGIES[name]() for name in ("augmented", "mlp-head", "distillation")}
    assert {name: (str(one.augment or ""), str(one.head), str(one.regularizer or "")) for name, one in made.items()} == {
        "augmented": ("flip+crop", "random", ""),
        "mlp-head": ("", "mlp:256", ""),
        "distillation": ("", "random", "distill:0.5"),
    }
    assert made["augmented"].phases == strategies.full().phases
    assert made["mlp-head"].phases == strategies.linear_probe().phases
    assert made["distillation"].phases == strategies.from_scratch().phases


def test_three_are_lp_ft_with_one_thing_more():
    usual = strategies.lp_ft()
    told = {name: replace(STRATEGIES[name](), name="") for name in ("dann", "adabn", "interpolated")}
    assert told == {
        "dann": replace(usual, name="", regularizer=Regularizer.parse("dann:0.3")),
        "adabn": replace(usual, name="", finish=Finish.parse("adabn")),
        "interpolated": replace(usual, name="", finish=Finish.parse("interpolate:0.5")),
    }


def test_other_phases_keep_a_finish_but_interpolate_only_from_where_a_head_was_trained():
    own, (probe, tune) = strategies.interpolate_to_probe(), strategies.lp_ft().phases
    assert strategies.replace_phases(own, probe, replace(tune, trainable=Trainable.parse("top:1"))).finish == Finish.parse(
        "interpolate:0.5"
    )
    assert [strategies.replace_phases(own, *few).finish for few in ((tune,), (replace(probe, steps=0), tune))] == [None, None]
    assert strategies.replace_phases(strategies.adabn(), tune).finish == Finish.parse("adabn")


def test_what_is_chosen_keeps_the_pipelines_augmentation_and_mlp_head_and_never_takes_one_away():
    own = replace(PIPELINE, recipe=Recipe(head=Head.parse("mlp:8"), augment=Augmentation.parse("flip"), stop="best"))
    tried = [strategies.linear_probe(), replace(strategies.augmented(), head=Head.parse("mlp:4:0"))]
    first, second = (one.recipe for one in strategies.select_among(own, tried).candidates)
    assert (str(first.head), str(first.augment), first.stop) == ("mlp:8", "flip", "best")
    assert (str(second.head), str(second.augment)) == ("mlp:4:0", "flip+crop")
    assert {(str(one.recipe.head), str(one.recipe.augment)) for one in scratch_baseline(own, ScratchGrid()).candidates} == {
        ("mlp:8", "flip")
    }
    zero = replace(PIPELINE, recipe=Recipe(head=ZERO_HEAD))
    assert {str(one.recipe.head) for one in scratch_baseline(zero, ScratchGrid()).candidates} == {"random"}


def test_the_usual_teacher_is_one_of_the_healthy_defaults_candidates():
    usual = strategies.teacher_recipe(strategies.distillation())
    assert usual in [one.recipe for one in default_selection(replace(PIPELINE, recipe=Recipe())).candidates]


def test_a_teacher_has_the_steps_and_the_batches_of_whom_it_teaches():
    own = replace(PIPELINE.recipe, regularizer=Regularizer.parse("distill:0.5"))
    probe, tune = strategies.teacher_recipe(own).phases
    assert (probe.steps, tune.steps, probe.batch_size, tune.batch_size) == (75, 75, 16, 16)
    taught = trials.training_spec(replace(PIPELINE, recipe=own), 3)
    assert taught.teacher == trials.training_spec(replace(PIPELINE, recipe=strategies.lp_ft(Phase(batch_size=16))), 3)


def test_the_healthy_default_changes_nothing_but_the_recipe():
    found = default_selection(PIPELINE).candidates
    assert [replace(one, recipe=PIPELINE.recipe) for one in found] == [PIPELINE] * 3
    assert len({one.recipe for one in found}) == 3


def test_equal_recipes_are_weighed_once():
    one = strategies.full(Phase())
    assert (
        len(strategies.select_among(PIPELINE, [one, replace(one, name="another name"), strategies.linear_probe()]).candidates)
        == 2
    )


def test_scratch_weighs_the_subjects_own_steps_and_rate_and_the_whole_grid():
    grid = ScratchGrid(lr=(1e-3, 1e-2), weight_decay=(0.0, 0.1), steps=300, batch_size=64)
    own, *rest = [one.recipe.phases[0] for one in scratch_baseline(PIPELINE, grid).candidates]
    assert (own.lr, own.steps, own.batch_size) == (3e-3, 150, 16)
    assert {(one.lr, one.weight_decay, one.steps, one.batch_size) for one in rest} == {
        (lr, decay, 300, 64) for lr in grid.lr for decay in grid.weight_decay
    }


def test_scratch_is_trained_whole_from_random_weights_and_served_plainly():
    for one in scratch_baseline(PIPELINE, ScratchGrid()).candidates:
        (phase,) = one.recipe.phases
        assert one.recipe.init == RANDOM
        assert one.serving.mode == EVAL_MODE
        assert (str(phase.trainable), str(phase.batchnorm), phase.order, phase.layer_decay) == ("all", "train", "shuffled", 1.0)
        assert (one.data.target, one.data.train_size, one.data.train_preprocessing) == (
            PIPELINE.data.target,
            PIPELINE.data.train_size,
            PIPELINE.data.train_preprocessing,
        )
