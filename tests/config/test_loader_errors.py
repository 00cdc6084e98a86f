"""Errors for an invalid suite file name the key, the value and the expected form."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from test_loader import TABLES, TOP, load, suite_text

from xferbench.config import loader
from xferbench.config.fields import PHASE, RECIPE, SCRATCH
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Phase, Recipe, ScratchGrid
from xferbench.core.transforms import Preprocessing


def load_error(tmp_path, changes):
    with pytest.raises(UserError) as error:
        load(tmp_path, changes)
    assert error.value.what.startswith(f"{tmp_path / 'ants.toml'}: "), "the message starts with the file"
    return error.value


# changes of the file, and the key, value and expectation in the error
INVALID = [
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
    ("seed = 999995", "seed", "999995, with 10 seeds at the last look", "below 1000000"),
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
        "folder:DIR, npz:FILE, torchvision:NAME:DIR, csv:FILE, jsonl:FILE, datasets:DIR, synthetic:NAME or digits",
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


@pytest.mark.parametrize(("changes", "key", "found", "expected"), INVALID, ids=lambda value: str(value)[:40])
def test_an_error_names_the_key_the_value_and_the_expected_form(tmp_path, changes, key, found, expected):
    error = load_error(tmp_path, changes)
    assert error.what == f"{tmp_path / 'ants.toml'}: {key}"
    assert found in error.found
    assert expected in error.expected


@pytest.mark.parametrize("table", ["backbone", "target", "recipe", "scratch", "source", "shifted"])
def test_a_string_instead_of_a_table_is_an_error(tmp_path, table):
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


def test_a_suite_without_plugins_is_an_error():
    with pytest.raises(UserError, match="plugins"):
        loader.parse_suite(
            {"schema": 1, "name": "a", "plugins": [], "backbone": {"arch": "tiny-resnet"}, "target": {"data": "digits"}},
            Path("a"),
        )


def test_a_long_value_is_shortened(tmp_path):
    error = load_error(tmp_path, f'name = "{"A" * 1000}"')
    assert len(error.found) == 80
    assert error.found.endswith("…")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[recipe\n", "at line 1"),
        (b"schema = 1\nschema = 2\n", "line 2"),
        (suite_text().encode("utf-16"), "codec can't decode"),
        (b"\x89PNG\r\n\x1a\n\0\0", "codec can't decode"),
        (b"x = " + b"[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_not_toml_is_an_error(tmp_path, content, found):
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


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("quik", "neither a file nor a shipped suite", "did you mean 'quick'?"),
        ("quick.toml", "neither a file nor a shipped suite", "did you mean 'quick'?"),
        (".", "a folder", "known: "),
        ("", "", "quick"),
        ("a" * 5000, "name too long", "quick"),
        ("a\0b", "neither a file", "quick"),
    ],
)
def test_an_unknown_suite_is_an_error_with_a_suggestion(tmp_path, monkeypatch, name, found, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no suite") as error:
        loader.find_suite(name)
    assert found in error.value.found
    assert expected in error.value.expected
    assert len(str(error.value)) < 1000


def test_an_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read") as error:
        loader.load_suite(tmp_path)
    assert "directory" in error.value.found


@pytest.mark.parametrize("text", ["", "20", "m", "-1m", "1d", "1m30s", "1e3s", "∞h"])
def test_a_text_that_is_not_a_duration_is_refused(text):
    with pytest.raises(UserError, match="budget"):
        loader.parse_duration(text)


def test_every_field_is_a_key_of_the_file(tmp_path):
    assert set(PHASE) == {field.name for field in fields(Phase)}
    assert {field.name for field in fields(Recipe)} - {"name"} <= set(RECIPE)
    assert set(SCRATCH) == {field.name for field in fields(ScratchGrid)} - {"is_cut"}
    names = {field.name for field in fields(Preprocessing)} | {"kind"}
    error = load_error(tmp_path, "[backbone] preprocessing = { no = 1 }")
    assert set(error.expected.partition("known: ")[2].split(", ")) == names
