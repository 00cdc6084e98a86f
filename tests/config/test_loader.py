from __future__ import annotations

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedule import PIPELINE

from xferbench.analysis.metrics import METRICS
from xferbench.config import loader, render
from xferbench.config.fields import PHASE, RECIPE, SCRATCH
from xferbench.config.fields import PREPROCESSING as PREPROCESSING_RULE
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
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
    BatchNormMomentum,
    Distillation,
    Finish,
    GhostBatchNorm,
    Head,
    Initialization,
    LwF,
    PermutedWeights,
    Regularizer,
    TargetPretraining,
    Trainable,
    TransferLowest,
)
from xferbench.core.pipeline import Phase, Preprocessing, Recipe, ScratchGrid, Spectrogram, UserCode
from xferbench.core.sections import flat_values, replace_flat
from xferbench.core.strategies import STRATEGIES, lora
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Rules, ServingSection, Suite
from xferbench.study import selection

TOP = {"schema": "1", "name": '"ants-bees"', "plugins": '["all"]'}
TABLES = {"backbone": {"arch": '"tiny-resnet"'}, "target": {"data": '"digits"'}}


CHANGE = re.compile(r"(?:\[(.+?)\] ?)?(\w+)?(?: = (.+))?")


def written(changes=""):
    """A suite file with the required keys, changed by lines ``[table] key = value``; a key without a value goes.

    A line ``[[recipe.phases]]; key = value`` is added as it is, "; " beginning a new line.
    """
    tables, phases = {"": dict(TOP), **{name: dict(keys) for name, keys in TABLES.items()}}, []
    for line in changes.splitlines():
        if line.startswith("[["):
            phases.append(line.replace("; ", "\n") + "\n")
            continue
        table, key, value = CHANGE.fullmatch(line).groups(default="")
        keys = tables.setdefault(table, {})
        keys.pop(key, None)
        keys |= {key: value} if value else {}
    bodies = ["".join(f"{key} = {value}\n" for key, value in keys.items()) for keys in tables.values()]
    heads = [f"\n[{name}]\n" if name else "" for name in tables]
    return "".join([*(head + body for head, body in zip(heads, bodies, strict=True)), *phases])


def loaded(tmp_path, changes=""):
    file = tmp_path / "ants.toml"
    file.write_text(written(changes), encoding="utf-8")
    return loader.load_suite(file)


def problem(tmp_path, changes):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, changes)
    assert error.value.what.startswith(f"{tmp_path / 'ants.toml'}: "), "the file comes first"
    return error.value


def test_the_required_keys_are_enough_and_the_rest_has_the_contracts_defaults(tmp_path):
    assert loaded(tmp_path) == Suite(
        name="ants-bees",
        plugins=("all",),
        invocation=Invocation(path=str(tmp_path / "ants.toml")),
        backbone=BackboneSection(arch="tiny-resnet", weights=None),
        data=DataSection(target="digits"),
        recipe=None,
        serving=ServingSection(preprocessing=None),
        rules=Rules(metric="accuracy", margin=0.02, alpha=0.05, looks=(5, 10, 20), budget=1200.0),
    )


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ('plugins = ["batchnorm-drift"]', "plugins", ("batchnorm-drift",)),
        ("margin = 0.05", "margin", 0.05),
        ('metric = "nll"\nmargin = 2', "margin", 2.0),
        ("alpha = 0.01", "alpha", 0.01),
        ("looks = [3]", "looks", (3,)),
        ('budget = "90s"', "budget", 90.0),
        ('budget = "1.5 h"', "budget", 5400.0),
        ('budget = "20m"', "budget", 1200.0),
        ("seed = 100", "seed", 100),
        ("tuning_seeds = 1", "tuning_seeds", 1),
        ("[target] train_size = 200", "train_size", 200),
        ("[target] test_size = 4000", "test_size", 4000),
        ('[source] data = "synthetic:source"\n[source] classes = { ant = 310, bee = 309 }', "source", "synthetic:source"),
        ('[shifted] data = "synthetic:sketch"', "shifted", "synthetic:sketch"),
        ("[recipe]", "recipe", Recipe()),
        ("[recipe] lr = 1e-2", "recipe", Recipe(phases=(Phase(lr=1e-2),))),
        ("[recipe] lr = 1", "recipe", Recipe(phases=(Phase(lr=1.0),))),
        ('[recipe] trainable = "top:2"', "recipe", Recipe(phases=(Phase(trainable=Trainable.parse("top:2")),))),
        ('[recipe] batchnorm = "ghost:4"', "recipe", Recipe(phases=(Phase(batchnorm=GhostBatchNorm(examples=4)),))),
        (
            '[recipe] batchnorm = "momentum:1e-05"',
            "recipe",
            Recipe(phases=(Phase(batchnorm=BatchNormMomentum(momentum=1e-05)),)),
        ),
        ('[recipe] batchnorm = "momentum:1"', "recipe", Recipe(phases=(Phase(batchnorm=BatchNormMomentum(momentum=1.0)),))),
        ('[recipe] init = "random"\n[recipe] stop = "best"', "recipe", Recipe(init=RANDOM, stop="best")),
        (
            '[recipe] init = "target"\n[recipe] transferred = "low:2"',
            "recipe",
            Recipe(init=TargetPretraining(), transferred=TransferLowest(groups=2)),
        ),
        ('[recipe] head = "zero"', "recipe", Recipe(head=ZERO_HEAD)),
        ('[recipe] head = "mlp:64"', "recipe", Recipe(head=Head.parse("mlp:64"))),
        (
            '[recipe] head = "mlp:64:0.25"\n[recipe] augment = "flip"',
            "recipe",
            Recipe(head=Head.parse("mlp:64:0.25"), augment=Augmentation.parse("flip")),
        ),
        ('[recipe] regularizer = "distill:0.7"', "recipe", Recipe(regularizer=Regularizer.parse("distill:0.7"))),
        (
            '[recipe] strategy = "distillation"\n[recipe] regularizer = "distill:1"',
            "recipe",
            replace(STRATEGIES["distillation"](), regularizer=Regularizer.parse("distill:1")),
        ),
        (
            '[recipe] regularizer = "dann:0.5"\n[shifted] data = "synthetic:sketch"',
            "recipe",
            Recipe(regularizer=Regularizer.parse("dann:0.5")),
        ),
        ('[recipe] finish = "interpolate:0.25"', "recipe", Recipe(finish=Finish.parse("interpolate:0.25"))),
        (
            '[recipe] strategy = "full"\n[recipe] finish = "adabn"',
            "recipe",
            replace(STRATEGIES["full"](), finish=Finish.parse("adabn")),
        ),
        (
            '[recipe] strategy = "interpolated"\n[recipe] finish = "interpolate:1"',
            "recipe",
            replace(STRATEGIES["interpolated"](), finish=Finish.parse("interpolate:1")),
        ),
        (
            '[recipe] strategy = "mlp-head"\n[recipe] head = "mlp:9:0"',
            "recipe",
            replace(STRATEGIES["mlp-head"](), head=Head.parse("mlp:9:0")),
        ),
        (
            '[recipe] strategy = "linear-probe"\n[recipe] augment = "crop"',
            "recipe",
            replace(STRATEGIES["linear-probe"](), augment=Augmentation.parse("crop")),
        ),
        ('[recipe] strategy = "lp-ft"\n[recipe] steps = 50', "recipe", STRATEGIES["lp-ft"](Phase(steps=50))),
        (
            "[recipe] lr = 0.1\n[[recipe.phases]]; steps = 5\n[[recipe.phases]]; lr = 0.2",
            "recipe",
            Recipe(phases=(Phase(lr=0.1, steps=5), Phase(lr=0.2))),
        ),
        ('[backbone] preprocessing = { kind = "image", crop = 8 }', "preprocessing", Preprocessing(crop=8)),
        (
            '[backbone] preprocessing = { kind = "spectrogram", mean = -30, std = 12.5 }',
            "preprocessing",
            Spectrogram(mean=-30.0, std=12.5),
        ),
        ('[recipe.serve_preprocessing] kind = "spectrogram"', "serve_preprocessing", Spectrogram()),
        (
            '[backbone] preprocessing = { resize = 256, crop = 224, channels = "bgr", scale = 1, mean = [123, 117, 104] }',
            "preprocessing",
            Preprocessing(resize=256, crop=224, channels="bgr", scale=1.0, mean=(123.0, 117.0, 104.0)),
        ),
        ("[recipe.serve_preprocessing] antialias = false", "serve_preprocessing", Preprocessing(antialias=False)),
        ("[recipe.train_preprocessing] mean = [0.5]", "train_preprocessing", Preprocessing(mean=(0.5,))),
        ('[recipe] training = "python:mine.loop:train"', "training", "python:mine.loop:train"),
        ("[scratch] lr = [1e-3]\n[scratch] weight_decay = [0]", "scratch", ScratchGrid(lr=(1e-3,), weight_decay=(0.0,))),
    ],
)
def test_a_key_is_read(tmp_path, changes, name, value):
    assert flat_values(loaded(tmp_path, changes))[name] == value


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_accepted(tmp_path, metric):
    assert loaded(tmp_path, f'metric = "{metric}"').rules.metric == metric


# changes of the file, with the place, the value and the expected form of the error
WRONG = [
    ("schema", "schema: missing", "name, plugins, backbone, target", "schema, name, plugins, backbone, target"),
    ("name", "name: missing", "schema, plugins", "schema, name"),
    ("plugins", "plugins: missing", "schema, name", "plugins"),
    ("schema = 2", "schema", "2", "1, the only version so far"),
    ("schema = true", "schema", "true", "1"),
    ('name = "Ants and Bees"', "name", '"Ants and Bees"', "lower-case letters"),
    ('name = "../ants"', "name", '"../ants"', "lower-case letters"),
    ("plugins = []", "plugins", "[]", 'a list of plugins, or ["all"]'),
    ('plugins = "all"', "plugins", '"all"', 'a list of plugins, or ["all"]'),
    ("plugins = [1]", "plugins", "[1]", 'a list of plugins, or ["all"]'),
    ("marge = 0.02", "marge: unknown key", "", "did you mean 'margin'? known: alpha, backbone, budget"),
    ("[recpie] lr = 1", "recpie: unknown key", "", "did you mean 'recipe'?"),
    ('margin = "x"', "margin", '"x"', "a number above 0"),
    ("margin = 0", "margin", "0", "a number above 0"),
    ("margin = -0.02", "margin", "-0.02", "a number above 0"),
    ("margin = nan", "margin", "NaN", "a number above 0"),
    ("margin = inf", "margin", "Infinity", "a number above 0"),
    ("margin = true", "margin", "true", "a number above 0"),
    ("margin = 2026-01-01", "margin", '"2026-01-01"', "a number above 0"),
    ("margin = 2", "margin", "2", "less than 1, for example 0.02"),
    ('metric = "acuracy"', "metric", '"acuracy"', "did you mean 'accuracy'? known: accuracy, auroc"),
    ('metric = ["accuracy"]', "metric", '["accuracy"]', "accuracy, auroc"),
    ("metric = 1", "metric", "1", "accuracy, auroc"),
    ("alpha = 0.5", "alpha", "0.5", "a number above 0 and below 0.5"),
    ("looks = [5, 5]", "looks", "[5, 5]", "increasing whole numbers"),
    ("looks = [10, 5]", "looks", "[10, 5]", "increasing whole numbers"),
    ("looks = [0, 5]", "looks", "[0, 5]", "whole numbers, 1 or above"),
    ("looks = [5.0]", "looks", "[5.0]", "whole numbers, 1 or above"),
    ("looks = []", "looks", "[]", "whole numbers, 1 or above"),
    ("looks = 5", "looks", "5", "a list of increasing whole numbers"),
    ("budget = 20", "budget", "20", 'a duration such as "90s", "20m" or "2h"'),
    ('budget = "20"', "budget", '"20"', "a duration"),
    ('budget = "-5m"', "budget", '"-5m"', "a duration"),
    ("seed = -1", "seed", "-1", "a whole number, 0 or above"),
    ("seed = 999990", "seed", "999990, with 20 seeds at the last look", "below 1000000"),
    ("tuning_seeds = 0", "tuning_seeds", "0", "a whole number above 0"),
    ("[backbone] arch", "[backbone] arch: missing", "no key at all", "arch"),
    ("[backbone] arch = 18", "[backbone] arch", "18", "a non-empty string"),
    ("[backbone] weights = 1", "[backbone] weights", "1", "a path"),
    ('[backbone] weights = "~nobody-at-all/w.pth"', "[backbone] weights", "~nobody-at-all", "a path ("),
    ('[backbone] weights = "a\\u0000b"', "[backbone] weights", "a\\u0000b", "a path ("),
    ("[backbone] preprocessing = 3", "[backbone] preprocessing", "3", "a table of resize, crop"),
    ("[backbone] preprocessing = { means = [1] }", "[backbone.preprocessing] means: unknown key", "", "did you mean 'mean'?"),
    ("[backbone] preprocessing = { mean = [1, 2] }", "[backbone.preprocessing] mean", "[1, 2]", "one number, or three"),
    ("[backbone] preprocessing = { std = [1, 0, 1] }", "[backbone.preprocessing] std", "[1, 0, 1]", "above 0, or three"),
    ('[backbone] preprocessing = { std = ["a"] }', "[backbone.preprocessing] std", '["a"]', "above 0, or three"),
    ("[backbone] preprocessing = { resize = 2.5 }", "[backbone.preprocessing] resize", "2.5", "a whole number above 0"),
    ("[backbone] preprocessing = { antialias = 1 }", "[backbone.preprocessing] antialias", "1", "true or false"),
    ('[backbone] preprocessing = { channels = "gbr" }', "[backbone.preprocessing] channels", '"gbr"', "known: bgr, grey, rgb"),
    (
        '[backbone] preprocessing = { interpolation = "bilinar" }',
        "[backbone.preprocessing] interpolation",
        "bili",
        "'bilinear'",
    ),
    ("[target] data", "[target] data: missing", "no key at all", "data"),
    (
        '[target] data = ["digits"]',
        "[target] data",
        '["digits"]',
        "folder:DIR, npz:FILE, torchvision:NAME:DIR, synthetic:NAME or digits",
    ),
    ("[target] train_szie = 10", "[target] train_szie: unknown key", "", "did you mean 'train_size'?"),
    ("[target] train_size = 0", "[target] train_size", "0", "a whole number above 0"),
    ("[target] train_size = 10.0", "[target] train_size", "10.0", "a whole number above 0"),
    ("[target] test_size = 0", "[target] test_size", "0", "a whole number above 0"),
    ("[source] classes = { a = 1 }", "[source] data: missing", "classes", "data"),
    ('[source] data = "digits"\n[source] classes = { a = "b" }', "[source] classes", '{"a": "b"}', "class = index"),
    ('[shifted] data = "digits"\n[shifted] classes = { a = 1 }', "[shifted] classes: unknown key", "", "known: data"),
    ("[recipe] lr = 0", "[recipe] lr", "0", "a number above 0"),
    ('[recipe] lr = "1e-3"', "[recipe] lr", '"1e-3"', "a number above 0"),
    ("[recipe] learning_rate = 0.1", "[recipe] learning_rate: unknown key", "", "did you mean 'lr'?"),
    ('[recipe] trainable = "lora"', "[recipe] trainable", '"lora"', "lora:RANK with RANK a whole number at least 1"),
    ('[recipe] trainable = "top:0"', "[recipe] trainable", '"top:0"', "a whole number at least 1"),
    (
        '[recipe] batchnorm = "ghost:1"',
        "[recipe] batchnorm",
        '"ghost:1"',
        "ghost:EXAMPLES with EXAMPLES a whole number at least 2",
    ),
    ('[recipe] batchnorm = "momentum:2"', "[recipe] batchnorm", '"momentum:2"', "above 0 and at most 1"),
    ('[recipe] batchnorm = "momentum:0"', "[recipe] batchnorm", '"momentum:0"', "above 0 and at most 1"),
    ('[recipe] batchnorm = "momentum:fast"', "[recipe] batchnorm", "fast", "momentum:M"),
    ("[recipe] batchnorm = false", "[recipe] batchnorm", "false", "eval; train"),
    ('[recipe] batchnorm = ["eval"]', "[recipe] batchnorm", '["eval"]', "eval; train"),
    ("[recipe] layer_decay = 1.1", "[recipe] layer_decay", "1.1", "at most 1"),
    ('[recipe] optimizer = "adam"', "[recipe] optimizer", '"adam"', "did you mean 'adamw'? known: adamw, sgd"),
    ("[recipe] weight_decay = -1", "[recipe] weight_decay", "-1", "0 or above"),
    ("[recipe] warmup = 1.5", "[recipe] warmup", "1.5", "a whole number, 0 or above"),
    ("[recipe] warmup = 100\n[recipe] steps = 100", "[recipe] warmup", "100", "fewer than the 100 steps"),
    ('[recipe] schedule = "one_cycle"', "[recipe] schedule", '"one_cycle"', "did you mean 'one-cycle'?"),
    ("[recipe] steps = 0", "[recipe] steps", "0", "a whole number above 0"),
    ("[recipe] steps = 1e3", "[recipe] steps", "1000.0", "a whole number above 0"),
    ("[recipe] batch_size = 1", "[recipe] batch_size", "1", "a whole number above 1"),
    ('[recipe] order = "sorted"', "[recipe] order", '"sorted"', "class, shuffled"),
    ('[recipe] init = "pretraind"', "[recipe] init", '"pretraind"', "did you mean 'pretrained'?"),
    ('[recipe] init = "shuffled-source"', "[recipe] init", "shuffled-source", "a table [source]"),
    ('[recipe] transferred = "low:0"', "[recipe] transferred", '"low:0"', "low:GROUPS with GROUPS a whole number at least 1"),
    ('[recipe] transferred = "low:1"\n[recipe] init = "random"', "[recipe] transferred", "low:1", "nothing is transferred"),
    ('[recipe] head = "ones"', "[recipe] head", '"ones"', "random; zero"),
    ('[recipe] head = "mlp"', "[recipe] head", '"mlp"', "mlp:UNITS"),
    ('[recipe] head = "mlp:0"', "[recipe] head", '"mlp:0"', "UNITS a whole number"),
    ('[recipe] head = "mlp:8:1"', "[recipe] head", '"mlp:8:1"', "below 1"),
    ('[recipe] augment = "rotate"', "[recipe] augment", '"rotate"', "known: crop, flip, flip+crop"),
    ('[recipe] regularizer = "distill:0"', "[recipe] regularizer", '"distill:0"', "above 0"),
    ('[recipe] regularizer = "dann:0"', "[recipe] regularizer", '"dann:0"', "above 0"),
    ('[recipe] regularizer = "dann:1"', "[recipe] regularizer", "dann:1", "a table [shifted]"),
    ('[recipe] finish = "interpolate:1.5"', "[recipe] finish", '"interpolate:1.5"', "at least 0 and at most 1"),
    ('[recipe] finish = "interpolated:0.5"', "[recipe] finish", '"interpolated:0.5"', "adabn; or interpolate:SHARE"),
    (
        '[recipe] strategy = "adabn"\n[recipe] finish = "interpolate:0.5"',
        "[recipe] finish",
        '"interpolate:0.5"',
        "as the strategy adabn sets it",
    ),
    (
        '[recipe] finish = "interpolate:0.5"\n[recipe] training = "python:mine.loop:train"',
        "[recipe] finish",
        "interpolate:0.5 with user training code",
        "the start of the last phase",
    ),
    (
        '[recipe] regularizer = "dann:1"\n[shifted] data = "digits"\n[recipe] training = "python:mine.loop:train"',
        "[recipe] regularizer",
        "dann:1 with user training code",
        "no images of another domain",
    ),
    ('[recipe] regularizer = "distill:1.5"', "[recipe] regularizer", '"distill:1.5"', "at most 1"),
    (
        '[recipe] regularizer = "lwf:1"\n[recipe] head = "mlp:8"',
        "[recipe] regularizer",
        "lwf:1 with head mlp:8",
        "cannot follow another layer",
    ),
    (
        '[recipe] regularizer = "distill:1"\n[recipe] training = "python:mine.loop:train"',
        "[recipe] regularizer",
        "distill:1 with user training code",
        "gets no teacher",
    ),
    (
        '[recipe] augment = "flip"\n[backbone] preprocessing = { kind = "spectrogram" }',
        "[recipe] augment",
        "flip of spectrograms",
        "images",
    ),
    ('[recipe] strategy = "mlp-head"\n[recipe] head = "zero"', "[recipe] head", '"zero"', "as the strategy mlp-head sets it"),
    (
        '[recipe] strategy = "distillation"\n[recipe] regularizer = "ewc:1"',
        "[recipe] regularizer",
        '"ewc:1"',
        "as the strategy distillation sets it",
    ),
    ('[recipe] stop = "early"', "[recipe] stop", '"early"', "best, last"),
    ('[recipe] strategy = "lpft"', "[recipe] strategy", '"lpft"', "did you mean 'lp-ft'?"),
    (
        '[recipe] strategy = "linear-probe"\n[recipe] trainable = "all"',
        "[recipe] trainable",
        '"all"',
        '"head", as the strategy',
    ),
    (
        '[recipe] strategy = "scratch"\n[recipe] init = "pretrained"',
        "[recipe] init",
        '"pretrained"',
        '"random", as the strategy',
    ),
    ('[recipe] strategy = "discriminative"\n[recipe] layer_decay = 0.7', "[recipe] layer_decay", "0.7", "0.5, as the strategy"),
    (
        '[recipe] strategy = "full"\n[[recipe.phases]]; lr = 1',
        "[recipe] strategy",
        "both strategy and phases",
        "one of the two",
    ),
    ("[recipe] phases = 3", "[recipe] phases", "3", "one or more [[recipe.phases]]"),
    ("[recipe] phases = []", "[recipe] phases", "[]", "one or more [[recipe.phases]]"),
    ("[recipe] phases = [3]", "[recipe] phases", "[3]", "one or more [[recipe.phases]]"),
    ("[recipe] phases = { lr = 1 }", "[recipe] phases", '{"lr": 1}', "one or more [[recipe.phases]]"),
    ("[[recipe.phases]]; lr = 0.1\n[[recipe.phases]]; rl = 0.1", "[recipe.phases.2] rl: unknown key", "", "did you mean 'lr'?"),
    ("[[recipe.phases]]; lr = -1", "[recipe.phases.1] lr", "-1", "a number above 0"),
    ('[[recipe.phases]]; strategy = "full"', "[recipe.phases.1] strategy: unknown key", "", "known: batch_size"),
    ("[recipe.train_preprocessing] scal = 1", "[recipe.train_preprocessing] scal: unknown key", "", "did you mean 'scale'?"),
    ("[recipe.serve_preprocessing] scale = 0", "[recipe.serve_preprocessing] scale", "0", "a number above 0"),
    ('[recipe.serve_preprocessing] kind = "sound"', "[recipe.serve_preprocessing] kind", "sound", "known: image, spectrogram"),
    (
        '[backbone] preprocessing = { kind = "spectrogram", crop = 8 }',
        "[backbone.preprocessing] crop: unknown key",
        "",
        "known: channels, kind, mean, std",
    ),
    ('[backbone] preprocessing = { kind = "spectrogram", std = 0 }', "[backbone.preprocessing] std", "0", "a number above 0"),
    ('[backbone] preprocessing = { kind = "spectrogram", mean = [1] }', "[backbone.preprocessing] mean", "[1]", "a number"),
    (
        '[backbone] preprocessing = { kind = "spectrogram" }\n[recipe.serve_preprocessing] mean = [0.5]',
        "[recipe.serve_preprocessing] kind",
        "a kind other than that of backbone.preprocessing",
        'kind = "spectrogram"',
    ),
    ('[recipe] training = "mine:train"', "[recipe] training", '"mine:train"', "python:module:callable"),
    ("[scratch] lr = 3", "[scratch] lr", "3", "a list of numbers above 0"),
    ("[scratch] lr = [0]", "[scratch] lr", "[0]", "a list of numbers above 0"),
    ("[scratch] weight_decay = []", "[scratch] weight_decay", "[]", "a list of numbers, 0 or above"),
    ("[scratch] batch_size = 1", "[scratch] batch_size", "1", "a whole number above 1"),
    ("[scratch] lrs = [1]", "[scratch] lrs: unknown key", "", "did you mean 'lr'?"),
]


@pytest.mark.parametrize(("changes", "place", "found", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_an_error_names_the_key_the_value_and_the_expected_form(tmp_path, changes, place, found, expected):
    error = problem(tmp_path, changes)
    assert error.what == f"{tmp_path / 'ants.toml'}: {place}"
    assert found in error.found
    assert expected in error.expected


@pytest.mark.parametrize("table", ["backbone", "target", "recipe", "scratch", "source", "shifted"])
def test_a_string_in_place_of_a_table(tmp_path, table):
    file = tmp_path / "ants.toml"
    tables = {name: keys for name, keys in TABLES.items() if name != table}
    lines = [*(f"{key} = {value}" for key, value in TOP.items()), f'{table} = "resnet"']
    lines += [f"[{name}]\n" + "\n".join(f"{key} = {value}" for key, value in keys.items()) for name, keys in tables.items()]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        loader.load_suite(file)
    assert error.value.what == f"{file}: {table}"
    assert error.value.found == '"resnet"'
    assert error.value.expected.startswith("a table of ")


def test_a_suite_asks_something():
    with pytest.raises(UserError, match="plugins"):
        loader.parse_suite(
            {"schema": 1, "name": "a", "plugins": [], "backbone": {"arch": "tiny-resnet"}, "target": {"data": "digits"}},
            Path("a"),
        )


@pytest.mark.parametrize(
    "changed", ["lr = 2e-2", 'schedule = "constant"', "weight_decay = 0.1", "steps = 33", 'optimizer = "sgd"']
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_keys_that_a_strategy_leaves_open_have_an_effect(tmp_path, strategy, changed):
    plain = f'[shifted] data = "digits"\n[recipe] strategy = "{strategy}"'
    assert loaded(tmp_path, f"{plain}\n[recipe] {changed}").recipe != loaded(tmp_path, plain).recipe


@pytest.mark.parametrize("strategy", ["norm-only", "bitfit", "lora", "adapter"])
def test_a_strategy_that_trains_few_numbers_has_a_higher_rate_unless_one_is_given(tmp_path, strategy):
    plain = f'[recipe] strategy = "{strategy}"'
    assert [phase.lr for phase in loaded(tmp_path, plain).recipe.phases] == [1e-2]
    assert loaded(tmp_path, plain).recipe == STRATEGIES[strategy]()
    assert [phase.lr for phase in loaded(tmp_path, f"{plain}\n[recipe] lr = 1e-4").recipe.phases] == [1e-4]


def test_a_long_value_is_shortened(tmp_path):
    error = problem(tmp_path, f'name = "{"A" * 1000}"')
    assert len(error.found) == 80
    assert error.found.endswith("…")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[recipe\n", "at line 1"),
        (b"schema = 1\nschema = 2\n", "line 2"),
        (written().encode("utf-16"), "codec can't decode"),
        (b"\x89PNG\r\n\x1a\n\0\0", "codec can't decode"),
        (b"x = " + b"[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path, content, found):
    file = tmp_path / "ants.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="not a TOML file") as error:
        loader.load_suite(file)
    assert found in error.value.found
    assert "quick.toml" in error.value.do


def test_an_empty_file_lacks_its_keys(tmp_path):
    file = tmp_path / "ants.toml"
    file.write_text("")
    with pytest.raises(UserError, match="schema: missing") as error:
        loader.load_suite(file)
    assert error.value.expected == "schema, name, plugins, backbone, target"


@pytest.mark.parametrize("encoded", [lambda text: text.encode("utf-8-sig"), lambda text: text.replace("\n", "\r\n").encode()])
def test_a_file_as_windows_writes_it_is_read(tmp_path, encoded):
    file = tmp_path / "ants.toml"
    file.write_bytes(encoded(written("[recipe] lr = 1e-2")))
    assert loader.load_suite(file).recipe == Recipe(phases=(Phase(lr=1e-2),))


def test_paths_are_relative_to_the_file_and_know_a_users_home(tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    suite = loaded(
        tmp_path / "suites", '[backbone] weights = "../w.pth"\n[target] data = "folder:ants"\n[source] data = "npz:~/a.npz"'
    )
    assert suite.backbone.weights == str(tmp_path / "w.pth")
    assert suite.data.target == f"folder:{tmp_path / 'suites' / 'ants'}"
    assert suite.data.source == f"npz:{tmp_path / 'home' / 'a.npz'}"
    assert suite.invocation.path == str(tmp_path / "suites" / "ants.toml")


def test_a_file_may_be_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "ants.toml").write_text(written('[target] data = "npz:ants.npz"'))
    monkeypatch.chdir(tmp_path)
    assert loader.load_suite(loader.find_suite("ants.toml")).data.target == f"npz:{tmp_path / 'ants.npz'}"


@pytest.mark.parametrize("name", loader.shipped_suites())
def test_every_shipped_suite_loads_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loader.load_suite(loader.find_suite(name)).name == name


def test_there_is_a_suite_to_begin_with():
    assert "quick" in loader.shipped_suites()


@pytest.mark.parametrize(
    ("word", "found", "expected"),
    [
        ("quik", "neither a file nor a shipped suite", "did you mean 'quick'?"),
        ("quick.toml", "neither a file nor a shipped suite", "did you mean 'quick'?"),
        (".", "a folder", "known: "),
        ("", "", "quick"),
        ("a" * 5000, "name too long", "quick"),
        ("a\0b", "neither a file", "quick"),
    ],
)
def test_an_unknown_suite_suggests_the_nearest_shipped_one(tmp_path, monkeypatch, word, found, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no suite") as error:
        loader.find_suite(word)
    assert found in error.value.found
    assert expected in error.value.expected
    assert len(str(error.value)) < 1000


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read") as error:
        loader.load_suite(tmp_path)
    assert "directory" in error.value.found


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("0.5m", 30), ("0s", 0)])
def test_durations(text, seconds):
    assert loader.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-1m", "1d", "1m30s", "1e3s", "∞h"])
def test_a_text_that_is_not_a_duration_is_refused(text):
    with pytest.raises(UserError, match="budget"):
        loader.parse_duration(text)


def test_tuning_seeds_start_above_the_seeds_of_verdicts():
    assert selection.FIRST_TUNING_SEED == loader.SELECTION_SEED_START


NUMBERS = st.floats(1e-6, 10, exclude_min=True).map(lambda value: float(f"{value:.6g}"))
PHASES = st.builds(
    Phase,
    trainable=(
        st.sampled_from(["head", "norm", "bias", "all"])
        | st.builds("{}:{}".format, st.sampled_from(["top", "lora", "adapter"]), st.integers(1, 99))
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
def test_the_lines_of_a_patch_make_the_recipe_that_they_stand_for(after, before):
    lines = render.recipe_patch(before, after)
    table = tomllib.loads(written() + "\n".join(lines))
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
)
PIPELINES = st.builds(
    replace_flat,
    st.just(PIPELINE),
    recipe=RECIPES,
    train_preprocessing=PREPROCESSING,
    serve_preprocessing=PREPROCESSING,
    mode=st.sampled_from([EVAL_MODE, TRAIN_MODE]),
)


def as_asked(lines, recorded):
    """The pipeline of a suite file with some lines in it, where ``recorded`` goes with the weights."""
    suite = loader.parse_suite(tomllib.loads(written() + "\n".join(lines)), Path("ants.toml"))
    train = suite.data.train_preprocessing or recorded
    served = {
        "train_preprocessing": train,
        "serve_preprocessing": suite.serving.preprocessing or train,
        "mode": suite.serving.mode,
    }
    return replace_flat(PIPELINE, recipe=suite.recipe, **served)


@settings(deadline=None, max_examples=100)
@given(after=PIPELINES, before=st.none() | PIPELINES, recorded=PREPROCESSING, what=st.sampled_from(["all", "recorded", "same"]))
def test_the_lines_of_a_patch_make_the_pipeline_that_they_stand_for(after, before, recorded, what):
    if what == "recorded":
        after = replace_flat(after, train_preprocessing=recorded, serve_preprocessing=recorded)
    elif what == "same":
        after = replace_flat(after, serve_preprocessing=after.data.train_preprocessing)
    assert as_asked(render.pipeline_patch(before, after, recorded), recorded) == after


def test_a_patch_of_spectrograms_is_read_as_one():
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


def test_a_patch_of_serving_names_old_values_and_omits_defaults():
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
def test_a_patch_keeps_every_digit_that_a_key_has(lr, decay):
    after = Recipe(phases=(Phase(lr=lr, weight_decay=decay),))
    again = loader.parse_suite(tomllib.loads(written() + "\n".join(render.recipe_patch(None, after))), Path("ants.toml")).recipe
    assert digest(again) == digest(after)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_can_be_written_as_a_patch(strategy):
    recipe = STRATEGIES[strategy](Phase())
    table = tomllib.loads(written('[shifted] data = "digits"') + "\n".join(render.recipe_patch(None, recipe)))
    assert loader.parse_suite(table, Path("ants.toml")).recipe == recipe


def test_a_patch_names_the_old_values():
    before, after = (
        Recipe(phases=(Phase(lr=0.1, batchnorm=BATCHNORM_TRAIN),)),
        Recipe(phases=(Phase(lr=0.1, batchnorm=BATCHNORM_EVAL),)),
    )
    assert render.recipe_patch(before, after) == ["[recipe]", 'batchnorm = "eval"    # was train', "lr = 0.1"]


def test_every_field_can_be_set_in_a_file(tmp_path):
    assert set(PHASE) == {field.name for field in fields(Phase)}
    assert {field.name for field in fields(Recipe)} - {"name"} <= set(RECIPE)
    assert set(SCRATCH) == {field.name for field in fields(ScratchGrid)}
    every = {field.name for field in fields(Preprocessing)} | {"kind"}
    error = problem(tmp_path, "[backbone] preprocessing = { no = 1 }")
    assert set(error.expected.partition("known: ")[2].split(", ")) == every


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
def test_a_recipe_as_text(recipe, fragments):
    error = render.describe_recipe(recipe)
    assert all(fragment in error for fragment in fragments), error
    assert "\n" not in error


def test_the_usual_goes_without_saying():
    assert render.describe_recipe(Recipe()) == "all, lr 0.001, BatchNorm train, 150 × 32"


@settings(deadline=None)
@given(recipe=RECIPES, data=st.data())
def test_two_recipes_never_read_alike(recipe, data):
    other = data.draw(RECIPES | changed(recipe))
    first, two = replace(recipe, name=""), replace(other, name="")
    assert (render.describe_recipe(first) == render.describe_recipe(two)) == (digest(first) == digest(two))


def changed(recipe):
    """The recipe with one field of it, or of its last phase, as another recipe has it."""

    def of(other, name):
        if name in {"init", "head", "stop"}:
            return replace(recipe, **{name: getattr(other, name)})
        last = replace(recipe.phases[-1], **{name: getattr(other.phases[-1], name)})
        return replace(recipe, phases=(*recipe.phases[:-1], last))

    names = ["init", "head", "stop", *(field.name for field in fields(Phase))]
    return st.builds(of, RECIPES, st.sampled_from(names))


def test_seeds_stay_apart_from_those_of_tuning(tmp_path):
    suite = loaded(tmp_path, "seed = 999980")
    assert loader.check_seed_range(suite) is suite
    with pytest.raises(UserError, match=r"^seed"):
        loader.check_seed_range(replace(suite, rules=replace(suite.rules, seed=999981)))


def test_no_file_can_allow_user_code(tmp_path):
    with pytest.raises(UserError, match="allow_code: unknown key"):
        loaded(tmp_path, "allow_code = true")
    assert loaded(tmp_path, '[recipe] training = "python:a:b"').invocation.allow_code is False


def test_a_patch_keeps_the_users_training_code():
    lines = render.recipe_patch(None, Recipe(init=RANDOM), UserCode(spec="python:a:b", digest="d"))
    assert lines == ["[recipe]", 'init = "random"', 'training = "python:a:b"']
