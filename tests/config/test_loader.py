"""Reading a suite file into a suite."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from xferbench.analysis.metrics import METRICS
from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    RANDOM,
    ZERO_HEAD,
    Augmentation,
    BatchNormMomentum,
    Finish,
    GhostBatchNorm,
    Head,
    Regularizer,
    TargetPretraining,
    Trainable,
    TransferLowest,
)
from xferbench.core.pipeline import Phase, Recipe, ScratchGrid
from xferbench.core.sections import flat_values
from xferbench.core.strategies import STRATEGIES, resolve_steps
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Rules, ServingSection, Suite
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.study import selection

TOP = {"schema": "1", "name": '"ants-bees"', "plugins": '["all"]'}


TABLES = {"backbone": {"arch": '"tiny-resnet"'}, "target": {"data": '"digits"'}}


CHANGE = re.compile(r"(?:\[(.+?)\] ?)?(\w+)?(?: = (.+))?")


def suite_text(changes=""):
    """Return a suite file with the required keys, changed by lines ``[table] key = value``; a key without a value is removed.

    A line ``[[recipe.phases]]; key = value`` is added literally; "; " starts a new line.
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


def load(tmp_path, changes=""):
    file = tmp_path / "ants.toml"
    file.write_text(suite_text(changes), encoding="utf-8")
    return loader.load_suite(file)


def test_the_required_keys_suffice_and_the_others_have_defaults(tmp_path):
    assert load(tmp_path) == Suite(
        name="ants-bees",
        plugins=("all",),
        invocation=Invocation(path=str(tmp_path / "ants.toml")),
        backbone=BackboneSection(arch="tiny-resnet", weights=None),
        data=DataSection(target="digits"),
        recipe=None,
        serving=ServingSection(preprocessing=None),
        rules=Rules(metric="accuracy", margin=0.02, alpha=0.05, looks=(5, 10), budget=1200.0),
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
        ('[source] data = "synthetic:source"\n[source] keep = true', "keep_source", True),
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
        (
            "[recipe] label_smoothing = 0.1\n[recipe] clip = 1",
            "recipe",
            Recipe(phases=(Phase(label_smoothing=0.1, clip=1.0),)),
        ),
        ('[recipe] schedule = "linear"\n[recipe] epochs = 3', "recipe", Recipe(phases=(Phase(schedule="linear", epochs=3.0),))),
        (
            "[recipe] epochs = 4\n[[recipe.phases]]; steps = 5\n[[recipe.phases]]; lr = 0.2",
            "recipe",
            Recipe(phases=(Phase(steps=5), Phase(lr=0.2, epochs=4.0))),
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
        (
            '[scratch] augment = ["none", "flip+crop"]\n[scratch] label_smoothing = [0, 0.1]',
            "scratch",
            ScratchGrid(augment=(None, Augmentation.parse("flip+crop")), label_smoothing=(0.0, 0.1)),
        ),
    ],
)
def test_each_key_is_read(tmp_path, changes, name, value):
    assert flat_values(load(tmp_path, changes))[name] == value


def test_the_folder_of_an_architecture_is_relative_to_the_suite(tmp_path):
    arch = flat_values(load(tmp_path, '[backbone] arch = "transformers:models/vit"'))["arch"]
    assert arch == f"transformers:{tmp_path.resolve() / 'models/vit'}"


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_accepted(tmp_path, metric):
    assert load(tmp_path, f'metric = "{metric}"').rules.metric == metric


@pytest.mark.parametrize(
    "key_line", ["lr = 2e-2", 'schedule = "constant"', "weight_decay = 0.1", "steps = 33", 'optimizer = "sgd"']
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_keys_that_a_strategy_leaves_open_change_the_recipe(tmp_path, strategy, key_line):
    plain = f'[shifted] data = "digits"\n[recipe] strategy = "{strategy}"'
    assert load(tmp_path, f"{plain}\n[recipe] {key_line}").recipe != load(tmp_path, plain).recipe


def test_a_strategy_divides_epochs_among_its_phases_as_it_divides_steps(tmp_path):
    recipe = load(tmp_path, '[recipe] strategy = "lp-ft"\n[recipe] epochs = 10').recipe
    resolved = resolve_steps(recipe, 320)
    assert [phase.steps for phase in resolved.phases] == [50, 50]  # 320 images are ten batches of 32
    assert [phase.epochs for phase in resolved.phases] == [None, None]
    assert resolve_steps(Recipe(phases=(Phase(epochs=2.0, batch_size=64),)), 10).phases[0].steps == 2  # batches of 10


def test_steps_and_epochs_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="both steps and epochs"):
        load(tmp_path, "[recipe] steps = 5\n[recipe] epochs = 1")
    with pytest.raises(UserError, match="both steps and epochs"):
        load(tmp_path, "[recipe] lr = 0.1\n[[recipe.phases]]; steps = 5; epochs = 1")


def test_a_warmup_must_be_shorter_than_the_epochs(tmp_path):
    recipe = load(tmp_path, "[recipe] epochs = 1\n[recipe] warmup = 5").recipe
    assert resolve_steps(recipe, 192).phases[0].steps == 6
    with pytest.raises(UserError, match="warmup"):
        resolve_steps(recipe, 160)


def test_a_share_of_warmup_becomes_steps_rounded_up(tmp_path):
    recipe = load(tmp_path, "[recipe] epochs = 3\n[recipe] warmup_ratio = 0.1").recipe
    (phase,) = resolve_steps(recipe, 200).phases
    assert (phase.steps, phase.warmup, phase.warmup_ratio) == (19, 2, None)
    own = load(tmp_path, "[recipe] warmup_ratio = 0.5\n[[recipe.phases]]; warmup = 3").recipe
    assert [phase.warmup for phase in resolve_steps(own, 200).phases] == [3]
    with pytest.raises(UserError, match="fewer than the 1 steps") as caught:
        resolve_steps(load(tmp_path, "[recipe] steps = 1\n[recipe] warmup_ratio = 0.5").recipe, 200)
    assert caught.value.what == "recipe.warmup"
    with pytest.raises(UserError, match="both warmup and warmup_ratio"):
        load(tmp_path, "[recipe] warmup = 5\n[recipe] warmup_ratio = 0.1")


@pytest.mark.parametrize("strategy", ["norm-only", "bitfit", "lora", "adapter", "prompt-tuning", "prefix-tuning"])
def test_strategies_with_few_parameters_have_a_higher_default_rate(tmp_path, strategy):
    plain = f'[recipe] strategy = "{strategy}"'
    assert [phase.lr for phase in load(tmp_path, plain).recipe.phases] == [1e-2]
    assert load(tmp_path, plain).recipe == STRATEGIES[strategy]()
    assert [phase.lr for phase in load(tmp_path, f"{plain}\n[recipe] lr = 1e-4").recipe.phases] == [1e-4]


@pytest.mark.parametrize("encode", [lambda text: text.encode("utf-8-sig"), lambda text: text.replace("\n", "\r\n").encode()])
def test_a_file_with_windows_line_ends_or_a_byte_order_mark_is_read(tmp_path, encode):
    file = tmp_path / "ants.toml"
    file.write_bytes(encode(suite_text("[recipe] lr = 1e-2")))
    assert loader.load_suite(file).recipe == Recipe(phases=(Phase(lr=1e-2),))


def test_paths_are_relative_to_the_file_or_to_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    suite = load(
        tmp_path / "suites", '[backbone] weights = "../w.pth"\n[target] data = "folder:ants"\n[source] data = "npz:~/a.npz"'
    )
    assert suite.backbone.weights == str(tmp_path / "w.pth")
    assert suite.data.target == f"folder:{tmp_path / 'suites' / 'ants'}"
    assert suite.data.source == f"npz:{tmp_path / 'home' / 'a.npz'}"
    assert suite.invocation.path == str(tmp_path / "suites" / "ants.toml")


def test_a_file_may_be_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "ants.toml").write_text(suite_text('[target] data = "npz:ants.npz"'))
    monkeypatch.chdir(tmp_path)
    assert loader.load_suite(loader.find_suite("ants.toml")).data.target == f"npz:{tmp_path / 'ants.npz'}"


@pytest.mark.parametrize("name", loader.shipped_suites())
def test_every_shipped_suite_loads_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loader.load_suite(loader.find_suite(name)).name == name


def test_the_suite_quick_is_shipped():
    assert "quick" in loader.shipped_suites()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("0.5m", 30), ("0s", 0)])
def test_durations_are_read_in_seconds(text, seconds):
    assert loader.parse_duration(text) == seconds


def test_seeds_for_tuning_start_above_the_seeds_of_verdicts():
    assert selection.FIRST_TUNING_SEED == loader.SELECTION_SEED_START


def test_seeds_must_stay_below_those_for_tuning(tmp_path):
    suite = load(tmp_path, "seed = 999990")
    assert loader.check_seed_range(suite) is suite
    with pytest.raises(UserError, match=r"^seed"):
        loader.check_seed_range(replace(suite, rules=replace(suite.rules, seed=999991)))


def test_a_file_cannot_allow_user_code(tmp_path):
    with pytest.raises(UserError, match="allow_code: unknown key"):
        load(tmp_path, "allow_code = true")
    assert load(tmp_path, '[recipe] training = "python:a:b"').invocation.allow_code is False
