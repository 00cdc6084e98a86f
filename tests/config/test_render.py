"""Patches and descriptions of recipes and pipelines."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import suite_text
from test_schedule import PIPELINE

from xferbench.config import loader, render
from xferbench.config.fields import PREPROCESSING as PREPROCESSING_RULE
from xferbench.core.canonical import digest
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    BATCHNORM_TRAIN,
    EVAL_MODE,
    HEAD_ONLY,
    L2SP,
    RANDOM,
    TRAIN_MODE,
    ZERO_HEAD,
    Augmentation,
    BatchNormMode,
    Distillation,
    Finish,
    Head,
    Initialization,
    LwF,
    PermutedWeights,
    Regularizer,
    Trainable,
)
from xferbench.core.pipeline import Phase, Recipe, UserCode
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import STRATEGIES, lora
from xferbench.core.transforms import Preprocessing, Spectrogram

NUMBERS = st.floats(1e-6, 10, exclude_min=True).map(lambda value: float(f"{value:.6g}"))


PHASES = st.builds(
    Phase,
    trainable=(
        st.sampled_from(["head", "norm", "bias", "all"])
        | st.builds("{}:{}".format, st.sampled_from(["top", "lora", "adapter", "prompt", "prefix"]), st.integers(1, 99))
    ).map(Trainable.parse),
    batchnorm=(
        st.sampled_from(["eval", "train", "train-above"])
        | st.integers(2, 64).map("ghost:{}".format)
        | st.floats(1e-7, 1, exclude_min=True).map("momentum:{:g}".format)
    ).map(BatchNormMode.parse),
    lr=NUMBERS,
    head_lr=st.none() | NUMBERS,
    layer_decay=st.floats(1e-3, 1).map(lambda value: float(f"{value:.6g}")),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    weight_decay=st.just(0.0) | NUMBERS,
    warmup=st.integers(0, 9),
    schedule=st.sampled_from(["cosine", "constant", "one-cycle"]),
    steps=st.integers(10, 10_000),
    batch_size=st.integers(2, 4096),
    order=st.sampled_from(["shuffled", "class"]),
    decay_norms=st.booleans(),
    dropout=st.none() | st.sampled_from([0.0, 0.1]),
)


RECIPES = st.builds(
    Recipe,
    init=st.sampled_from(["pretrained", "random", "matched", "permuted"]).map(Initialization.parse),
    head=st.sampled_from(["random", "zero", "mlp:8", "mlp:8:0.1"]).map(Head.parse),
    augment=st.sampled_from([None, *map(Augmentation.parse, ("flip", "crop", "flip+crop"))]),
    phases=st.lists(PHASES, min_size=1, max_size=3).map(tuple),
    regularizer=st.sampled_from([None, L2SP(strength=0.5), LwF(strength=1e-3), Distillation(weight=0.25)])
    | NUMBERS.map(lambda strength: LwF(strength=strength)),
    stop=st.sampled_from(["last", "best"]),
    finish=st.sampled_from([None, *map(Finish.parse, ("adabn", "interpolate:0.5"))]),
    name=st.text(max_size=5),
).filter(lambda recipe: not (str(recipe.head).startswith("mlp") and isinstance(recipe.regularizer, LwF)))


@settings(deadline=None, max_examples=50)
@given(after=RECIPES, before=st.none() | RECIPES)
def test_a_patch_reproduces_its_recipe(after, before):
    lines = render.recipe_patch(before, after)
    table = tomllib.loads(suite_text() + "\n".join(lines))
    assert loader.parse_suite(table, Path("ants.toml")).recipe == after


CHANNELS = st.sampled_from([1, 3])


PREPROCESSING = st.builds(
    Preprocessing,
    resize=st.none() | st.integers(1, 999),
    crop=st.none() | st.integers(1, 999),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    antialias=st.booleans(),
    channels=st.sampled_from(["rgb", "bgr", "grey"]),
    scale=st.just(1 / 255) | NUMBERS,
    mean=CHANNELS.flatmap(lambda n: st.tuples(*[st.just(0.0) | NUMBERS | NUMBERS.map(lambda value: -value)] * n)),
    std=CHANNELS.flatmap(lambda n: st.tuples(*[NUMBERS] * n)),
    detail=st.sampled_from([1.0, 0.5]),
    orientation=st.sampled_from(["stored", "upright"]),
    bits=st.sampled_from([16, 12]),
).filter(lambda form: form.resize is None or form.crop is None or form.crop <= form.resize)


PIPELINES = st.builds(
    replace_flat,
    st.just(PIPELINE),
    recipe=RECIPES,
    train_preprocessing=PREPROCESSING,
    serve_preprocessing=PREPROCESSING,
    mode=st.sampled_from([EVAL_MODE, TRAIN_MODE]),
)


def pipeline_from_lines(lines, recorded):
    """Return the pipeline of a suite file with additional lines; ``recorded`` is the preprocessing of the weights."""
    suite = loader.parse_suite(tomllib.loads(suite_text() + "\n".join(lines)), Path("ants.toml"))
    train = suite.data.train_preprocessing or recorded
    serving = {
        "train_preprocessing": train,
        "serve_preprocessing": suite.serving.preprocessing or train,
        "mode": suite.serving.mode,
    }
    return replace_flat(PIPELINE, recipe=suite.recipe, **serving)


@settings(deadline=None, max_examples=100)
@given(after=PIPELINES, before=st.none() | PIPELINES, recorded=PREPROCESSING, kind=st.sampled_from(["all", "recorded", "same"]))
def test_a_patch_reproduces_its_pipeline(after, before, recorded, kind):
    if kind == "recorded":
        after = replace_flat(after, train_preprocessing=recorded, serve_preprocessing=recorded)
    elif kind == "same":
        after = replace_flat(after, serve_preprocessing=after.data.train_preprocessing)
    assert pipeline_from_lines(render.pipeline_patch(before, after, recorded), recorded) == after


def test_a_patch_of_spectrograms_is_read_back():
    spectrogram = Spectrogram(mean=-40.0, std=20.0)
    lines = render.pipeline_patch(
        None,
        replace(
            PIPELINE,
            data=replace(PIPELINE.data, train_preprocessing=spectrogram),
            serving=replace(PIPELINE.serving, preprocessing=spectrogram),
        ),
        Spectrogram(),
    )
    assert lines[1] == 'train_preprocessing = { kind = "spectrogram", mean = -40, std = 20 }'
    assert PREPROCESSING_RULE(tomllib.loads("\n".join(lines))["recipe"]["train_preprocessing"]) == spectrogram


def test_a_patch_of_serving_has_comments_with_old_values_and_omits_defaults():
    recorded = Preprocessing(mean=(0.5,), std=(0.25,))
    after = replace(
        PIPELINE,
        data=replace(PIPELINE.data, train_preprocessing=recorded),
        serving=replace(PIPELINE.serving, preprocessing=recorded),
    )
    before = replace(after, serving=replace(after.serving, preprocessing=replace(recorded, channels="bgr"), mode=TRAIN_MODE))
    assert render.pipeline_patch(before, after, recorded) == [
        "[recipe]",
        'serve_preprocessing = { mean = [0.5], std = [0.25] }    # was { channels = "bgr", mean = [0.5], std = [0.25] }',
        'serve_mode = "eval"    # was "train"',
    ]
    assert render.pipeline_patch(None, after, recorded) == ["[recipe]"]
    assert render.pipeline_patch(after, after, recorded) == ["[recipe]"]


@settings(deadline=None)
@given(lr=st.floats(1e-30, 1e30), decay=st.floats(0, 1e30))
def test_a_patch_keeps_every_digit_of_a_number(lr, decay):
    after = Recipe(phases=(Phase(lr=lr, weight_decay=decay),))
    reread = loader.parse_suite(
        tomllib.loads(suite_text() + "\n".join(render.recipe_patch(None, after))), Path("ants.toml")
    ).recipe
    assert digest(reread) == digest(after)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_can_be_written_as_a_patch(strategy):
    recipe = STRATEGIES[strategy](Phase())
    table = tomllib.loads(suite_text('[shifted] data = "digits"') + "\n".join(render.recipe_patch(None, recipe)))
    assert loader.parse_suite(table, Path("ants.toml")).recipe == recipe


def test_a_patch_has_comments_with_old_values():
    before, after = (
        Recipe(phases=(Phase(lr=0.1, batchnorm=BATCHNORM_TRAIN),)),
        Recipe(phases=(Phase(lr=0.1, batchnorm=BATCHNORM_EVAL),)),
    )
    assert render.recipe_patch(before, after) == ["[recipe]", 'batchnorm = "eval"    # was train', "lr = 0.1"]


@pytest.mark.parametrize(
    ("recipe", "fragments"),
    [
        (Recipe(), ["all, lr 0.001", "BatchNorm train", "150 × 32"]),
        (
            Recipe(name="LP-FT", phases=(Phase(trainable=HEAD_ONLY, head_lr=0.1), Phase())),
            ["LP-FT: head", "head 0.1", "; then all"],
        ),
        (Recipe(init=PermutedWeights(), stop="best"), ["permuted weights: ", "; best step"]),
        (Recipe(phases=(Phase(order="class"),)), ["class-ordered"]),
        (lora(), ["LoRA 8 0.01: LoRA of rank 8, lr 0.01, BatchNorm eval"]),
        (
            Recipe(phases=(Phase(trainable=Trainable.parse("bias")), Phase(trainable=Trainable.parse("adapter:4")))),
            ["biases, lr", "then adapters of 4 channels, lr"],
        ),
        (
            Recipe(phases=(Phase(trainable=Trainable.parse("prompt:4")), Phase(trainable=Trainable.parse("prefix:2")))),
            ["a prompt of 4 virtual tokens, lr", "then a prefix of 2 virtual tokens, lr"],
        ),
        (
            Recipe(head=ZERO_HEAD, phases=(Phase(optimizer="sgd", weight_decay=0.1),)),
            [", optimizer sgd, weight decay 0.1", "; head zero"],
        ),
        (
            Recipe(regularizer=Regularizer.parse("dann:1"), finish=Finish.parse("adabn")),
            ["; dann:1; BatchNorm statistics of each domain's own images"],
        ),
        (Recipe(finish=Finish.parse("interpolate:0.3")), ["; all weights at 0.3 of the way through the last phase"]),
        (
            Recipe(head=Head.parse("mlp:8"), augment=Augmentation.parse("flip"), regularizer=Regularizer.parse("distill:1")),
            ["; head mlp:8", "; augment flip", "; distill:1"],
        ),
        (
            Recipe(phases=(Phase(warmup=9, schedule="constant", layer_decay=0.5),)),
            ["layer decay 0.5, warmup 9, schedule constant"],
        ),
    ],
)
def test_a_description_contains_what_differs_from_the_defaults(recipe, fragments):
    description = render.describe_recipe(recipe)
    assert all(fragment in description for fragment in fragments), description
    assert "\n" not in description


def test_a_description_of_a_default_recipe_is_short():
    assert render.describe_recipe(Recipe()) == "all, lr 0.001, BatchNorm train, 150 × 32"


@settings(deadline=None)
@given(recipe=RECIPES, data=st.data())
def test_different_recipes_have_different_descriptions(recipe, data):
    other_recipe = data.draw(RECIPES | vary_one_field(recipe))
    first, second = replace(recipe, name=""), replace(other_recipe, name="")
    assert (render.describe_recipe(first) == render.describe_recipe(second)) == (digest(first) == digest(second))


def vary_one_field(recipe):
    """Generate the recipe with one field, or one field of its last phase, from another recipe."""

    def replace_field(other_recipe, name):
        if name in {"init", "head", "stop"}:
            return replace(recipe, **{name: getattr(other_recipe, name)})
        last = replace(recipe.phases[-1], **{name: getattr(other_recipe.phases[-1], name)})
        return replace(recipe, phases=(*recipe.phases[:-1], last))

    names = ["init", "head", "stop", *(field.name for field in fields(Phase))]
    return st.builds(replace_field, RECIPES, st.sampled_from(names))


def test_a_patch_keeps_the_training_code_of_the_user():
    lines = render.recipe_patch(None, Recipe(init=RANDOM), UserCode(spec="python:a:b", digest="d"))
    assert lines == ["[recipe]", 'init = "random"', 'training = "python:a:b"']
