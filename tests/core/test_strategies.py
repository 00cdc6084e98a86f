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
from xferbench.core.pipeline import Backbone, Data, Phase, Pipeline, PipelineData, Recipe, ScratchGrid, Serving, WeightsFile
from xferbench.core.strategies import HEAD_LR, STRATEGIES, default_selection, scratch_baseline
from xferbench.core.transforms import Preprocessing, Tokens
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
def test_every_strategy_keeps_the_number_of_steps(strategy, steps):
    recipe = STRATEGIES[strategy](Phase(steps=steps))
    assert sum(phase.steps for phase in recipe.phases) == steps
    assert all(phase.steps > 0 for phase in recipe.phases)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_keeps_the_other_fields_of_a_phase(strategy):
    base = Phase(lr=2e-4, optimizer="sgd", weight_decay=0.3, schedule="constant", batch_size=17, order="class", steps=60)
    recipe = STRATEGIES[strategy](base)
    for phase in recipe.phases:
        fields = ("optimizer", "weight_decay", "schedule", "batch_size", "order")
        assert [getattr(phase, name) for name in fields] == [getattr(base, name) for name in fields]
    assert recipe.phases[-1].lr == base.lr
    assert recipe.init == (RANDOM if strategy in {"scratch", "distillation"} else PRETRAINED)
    assert recipe.name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_docstring_of_a_strategy_starts_with_a_sentence(strategy):
    line = STRATEGIES[strategy].__doc__.partition("\n")[0]
    assert line.endswith(".")
    assert len(line) < 120


def test_a_linear_probe_trains_the_head_on_fixed_features():
    (phase,) = strategies.linear_probe(Phase(batchnorm=BATCHNORM_TRAIN, head_lr=0.3)).phases
    assert (str(phase.trainable), str(phase.batchnorm), phase.head_lr) == ("head", "eval", None)


def test_lp_ft_trains_the_head_for_half_of_the_steps_at_the_rate_of_heads():
    probe, tune = strategies.lp_ft(Phase(lr=1e-3, steps=151)).phases
    assert (str(probe.trainable), str(probe.batchnorm), probe.lr, probe.steps) == ("head", "eval", HEAD_LR, 75)
    assert (str(tune.trainable), tune.lr, tune.steps) == ("all", 1e-3, 76)


def test_gradual_unfreezing_adds_one_group_at_a_time():
    recipe = strategies.gradual_unfreezing(Phase(steps=103), groups=3)
    assert [(str(phase.trainable), phase.steps) for phase in recipe.phases] == [
        ("head", 25),
        ("top:1", 25),
        ("top:2", 25),
        ("all", 28),
    ]


def test_discriminative_rates_fall_from_the_head_to_the_input():
    (phase,) = strategies.discriminative(Phase(lr=1e-3), decay=0.3).phases
    assert (phase.head_lr, phase.lr, phase.layer_decay) == (HEAD_LR, 1e-3, 0.3)


def test_strategies_with_few_parameters_freeze_batchnorm_and_have_their_own_rate():
    recipes = [strategies.bitfit(), strategies.lora(rank=4), strategies.adapter(rank=2), strategies.norm_only()]
    recipes += [strategies.prompt_tuning(tokens=3), strategies.prefix_tuning(tokens=5)]
    trainables = ["bias", "lora:4", "adapter:2", "norm", "prompt:3", "prefix:5"]
    assert [str(recipe.phases[0].trainable) for recipe in recipes] == trainables
    assert [str(recipe.phases[0].batchnorm) for recipe in recipes] == ["eval", "eval", "eval", "train", "eval", "eval"]
    assert {recipe.phases[0].lr for recipe in recipes} == {1e-2}
    assert set(strategies.DEFAULT_RATES.values()) == {1e-2} and set(strategies.DEFAULT_RATES) <= set(STRATEGIES)


def test_head_only_strategies_are_tuned_around_the_rate_of_heads():
    assert {name: strategies.USUAL_LR[name] for name in ("linear-probe", "mlp-head")} == dict.fromkeys(
        ("linear-probe", "mlp-head"), HEAD_LR
    )
    assert strategies.USUAL_LR.items() >= strategies.DEFAULT_RATES.items() and strategies.USUAL_LR.keys() <= STRATEGIES.keys()
    assert loader.parse_recipe({"strategy": "linear-probe"}).phases[0].lr == Phase().lr, (
        "a suite's strategy keeps the default rate"
    )


def test_prompt_and_prefix_take_positions():
    phases = [Phase(trainable=Trainable.parse(spelling)) for spelling in ("prompt:3", "head", "prefix:5", "prompt:3")]
    assert strategies.virtual_tokens(Recipe(phases=tuple(phases))) == 8
    assert strategies.virtual_tokens(strategies.lora()) == 0


def test_warm_up_takes_a_tenth_of_the_steps():
    assert [strategies.warm_up(Phase(steps=steps)).phases[0].warmup for steps in (150, 10, 5)] == [15, 1, 1]


def test_augmentation_head_and_distillation_extend_a_strategy():
    recipes = {name: STRATEGIES[name]() for name in ("augmented", "mlp-head", "distillation")}
    assert {
        name: (str(recipe.augment or ""), str(recipe.head), str(recipe.regularizer or "")) for name, recipe in recipes.items()
    } == {
        "augmented": ("flip+crop", "random", ""),
        "mlp-head": ("", "mlp:256", ""),
        "distillation": ("", "random", "distill:0.5"),
    }
    assert recipes["augmented"].phases == strategies.full().phases
    assert recipes["mlp-head"].phases == strategies.linear_probe().phases
    assert recipes["distillation"].phases == strategies.from_scratch().phases


def test_dann_adabn_and_interpolated_extend_lp_ft():
    base = strategies.lp_ft()
    recipes = {name: replace(STRATEGIES[name](), name="") for name in ("dann", "adabn", "interpolated")}
    assert recipes == {
        "dann": replace(base, name="", regularizer=Regularizer.parse("dann:0.3")),
        "adabn": replace(base, name="", finish=Finish.parse("adabn")),
        "interpolated": replace(base, name="", finish=Finish.parse("interpolate:0.5")),
    }


def test_other_phases_keep_a_finish_but_interpolate_only_after_a_trained_head():
    recipe, (probe, tune) = strategies.interpolate_to_probe(), strategies.lp_ft().phases
    assert strategies.replace_phases(recipe, probe, replace(tune, trainable=Trainable.parse("top:1"))).finish == Finish.parse(
        "interpolate:0.5"
    )
    assert [strategies.replace_phases(recipe, *phases).finish for phases in ((tune,), (replace(probe, steps=0), tune))] == [
        None,
        None,
    ]
    assert strategies.replace_phases(strategies.adabn(), tune).finish == Finish.parse("adabn")


def test_candidates_keep_the_augmentation_and_the_head_of_the_pipeline():
    pipeline = replace(PIPELINE, recipe=Recipe(head=Head.parse("mlp:8"), augment=Augmentation.parse("flip"), stop="best"))
    recipes = [strategies.linear_probe(), replace(strategies.augmented(), head=Head.parse("mlp:4:0"))]
    first, second = (candidate.recipe for candidate in strategies.select_among(pipeline, recipes).candidates)
    assert (str(first.head), str(first.augment), first.stop) == ("mlp:8", "flip", "best")
    assert (str(second.head), str(second.augment)) == ("mlp:4:0", "flip+crop")
    searched = [candidate.recipe for candidate in scratch_baseline(pipeline, ScratchGrid()).candidates]
    assert {str(recipe.head) for recipe in searched} == {"mlp:8"} and str(searched[0].augment) == "flip"
    assert {str(recipe.augment) for recipe in searched[1:]} == {"None", "crop", "flip+crop"}
    zero = replace(PIPELINE, recipe=Recipe(head=ZERO_HEAD))
    assert {str(candidate.recipe.head) for candidate in scratch_baseline(zero, ScratchGrid()).candidates} == {"random"}


def test_the_default_teacher_is_a_candidate_of_the_default_selection():
    teacher = strategies.teacher_recipe(strategies.distillation())
    assert teacher in [candidate.recipe for candidate in default_selection(replace(PIPELINE, recipe=Recipe())).candidates]


def test_a_teacher_has_the_steps_and_the_batch_size_of_its_student():
    student = replace(PIPELINE.recipe, regularizer=Regularizer.parse("distill:0.5"))
    probe, tune = strategies.teacher_recipe(student).phases
    assert (probe.steps, tune.steps, probe.batch_size, tune.batch_size) == (75, 75, 16, 16)
    spec = trials.training_spec(replace(PIPELINE, recipe=student), 3)
    assert spec.procedure.teacher == trials.training_spec(replace(PIPELINE, recipe=strategies.lp_ft(Phase(batch_size=16))), 3)


@pytest.mark.parametrize(
    ("transform", "arch", "rates"),
    [(None, "tiny-resnet", (1e-3, 3e-3)), (Tokens(), "tiny-bert", (1e-3, 3e-3)), (Tokens(), "transformers:DIR", (1e-4, 3e-4))],
)
def test_text_encoders_are_trained_at_lower_rates_by_default(transform, arch, rates):
    backbone = replace(PIPELINE.backbone, arch=arch)
    data = replace(PIPELINE.data, train_preprocessing=transform or PIPELINE.data.train_preprocessing)
    candidates = default_selection(replace(PIPELINE, backbone=backbone, data=data)).candidates
    assert tuple(candidate.recipe.phases[-1].lr for candidate in candidates) == (HEAD_LR, *rates)


def test_the_default_selection_changes_only_the_recipe():
    candidates = default_selection(PIPELINE).candidates
    assert [replace(candidate, recipe=PIPELINE.recipe) for candidate in candidates] == [PIPELINE] * 3
    assert len({candidate.recipe for candidate in candidates}) == 3


def test_equal_recipes_are_compared_once():
    recipe = strategies.full(Phase())
    assert (
        len(
            strategies.select_among(
                PIPELINE, [recipe, replace(recipe, name="another name"), strategies.linear_probe()]
            ).candidates
        )
        == 2
    )


def test_scratch_compares_the_subjects_steps_and_rate_with_the_grid():
    grid = ScratchGrid(
        lr=(1e-3, 1e-2), weight_decay=(0.0, 0.1), label_smoothing=(0.0,), augment=(None,), steps=300, batch_size=64
    )
    subject, *rest = [candidate.recipe.phases[0] for candidate in scratch_baseline(PIPELINE, grid).candidates]
    assert (subject.lr, subject.steps, subject.batch_size) == (3e-3, 150, 16)
    assert {(candidate.lr, candidate.weight_decay, candidate.steps, candidate.batch_size) for candidate in rest} == {
        (lr, decay, 300, 64) for lr in grid.lr for decay in grid.weight_decay
    }


def test_scratch_trains_all_random_weights_and_is_served_in_eval_mode():
    for candidate in scratch_baseline(PIPELINE, ScratchGrid()).candidates:
        (phase,) = candidate.recipe.phases
        assert candidate.recipe.init == RANDOM
        assert candidate.serving.mode == EVAL_MODE
        assert (str(phase.trainable), str(phase.batchnorm), phase.order, phase.layer_decay) == ("all", "train", "shuffled", 1.0)
        assert (candidate.data.target, candidate.data.train_size, candidate.data.train_preprocessing) == (
            PIPELINE.data.target,
            PIPELINE.data.train_size,
            PIPELINE.data.train_preprocessing,
        )
