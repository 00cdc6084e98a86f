from __future__ import annotations

import json
import shlex
import tomllib

import pytest
from factory import make_run
from hypothesis import given
from hypothesis import strategies as st
from invoke import invoke, make_suite
from test_loader import suite_text

from xferbench.analysis import exit_code
from xferbench.cli import main, options
from xferbench.config import loader, overrides
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.sections import flat_values
from xferbench.core.strategies import STRATEGIES
from xferbench.report import html


@pytest.fixture(autouse=True)
def _temporary_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def load(tmp_path, *arguments, changes=""):
    file = tmp_path / "ants.toml"
    file.write_text(suite_text(changes), encoding="utf-8")
    return loader.load_suite(file, arguments)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["margin=0.1"], "margin", 0.1),
        (["margin=0.1", "margin=0.2"], "margin", 0.2),
        (["budget=90s"], "budget", 90.0),
        (['budget="90s"'], "budget", 90.0),
        (["looks=[3, 6]"], "looks", (3, 6)),
        (['plugins=["batchnorm-drift"]'], "plugins", ("batchnorm-drift",)),
        (["recipe.lr=1e-2"], "recipe", Recipe(phases=(Phase(lr=1e-2),))),
        (["recipe.strategy=full"], "recipe", STRATEGIES["full"]()),
        (["recipe={ lr = 0.5 }"], "recipe", Recipe(phases=(Phase(lr=0.5),))),
        (["source.data=digits", 'source.classes."red ant"=3'], "source", "digits"),
    ],
)
def test_an_override_replaces_a_key(tmp_path, arguments, name, value):
    suite = load(tmp_path, *arguments)
    assert flat_values(suite)[name] == value
    assert suite.invocation.overrides == tuple(arguments)


def test_an_index_from_0_names_an_entry_of_an_array(tmp_path):
    phases = "[[recipe.phases]]; lr = 0.1\n[[recipe.phases]]; lr = 0.2"
    recipe = load(tmp_path, "recipe.phases.1.lr=0.9", "recipe.phases.0.steps=7", changes=phases).recipe
    assert recipe == Recipe(phases=(Phase(lr=0.1, steps=7), Phase(lr=0.9)))


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    suite = load(tmp_path, "target.data=folder:a b", "backbone.weights=w.pth")
    assert (suite.data.target, suite.backbone.weights) == (f"folder:{tmp_path / 'a b'}", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("argument", "what", "found", "expected"),
    [
        ("recipe.learning_rate=1", "with --set recipe.learning_rate=1: [recipe] learning_rate: unknown", "", "mean 'lr'?"),
        ("recpie.lr=1", "with --set recpie.lr=1: recpie: unknown key", "", "did you mean 'recipe'?"),
        ("recipe.lr=fast", "with --set recipe.lr=fast: [recipe] lr", '"fast"', "a number above 0"),
        ("plugins=all", "with --set plugins=all: plugins", '"all"', 'a list of plugins, or ["all"]'),
        ("recipe.warmup=500", "with --set recipe.warmup=500: [recipe] warmup", "500", "fewer than the 150 steps"),
        ("margin=", "with --set margin=: margin", '""', "a number above 0"),
        ("margin", "--set margin", "no key and value", "recipe.lr=1e-3"),
        ("=1", "--set =1", "the key ''", "KEY=VALUE"),
        ("a b=1", "--set a b=1", "the key 'a b'", "KEY=VALUE"),
        ("#=1", "--set #=1", "no key and value", "KEY=VALUE"),
        ("name.of=1", "--set name.of=1", "\"ants-bees\" above 'of'", "a table"),
        ("plugins.1=x", "--set plugins.1=x", "'1' in a list of 1", "counted from 0"),
        ("plugins.x.y=x", "--set plugins.x.y=x", "'x' in a list of 1", "counted from 0"),
    ],
)
def test_an_error_names_the_override(tmp_path, argument, what, found, expected):
    with pytest.raises(UserError) as error:
        load(tmp_path, "seed=7", argument)
    assert what in error.value.what
    assert "seed=7" not in error.value.what
    assert found in error.value.found
    assert expected in error.value.expected


def test_an_error_without_a_matching_override_names_all(tmp_path):
    with pytest.raises(UserError, match="with --set seed=7 --set metric=accuracy: margin"):
        load(tmp_path, "seed=7", "metric=accuracy", changes="margin = 2")


def test_overrides_do_not_change_their_input():
    table = {"recipe": {"phases": [{"lr": 1}]}}
    assert overrides.apply_overrides(table, ["recipe.phases.0.lr=2"]) == {"recipe": {"phases": [{"lr": 2}]}}
    assert table == {"recipe": {"phases": [{"lr": 1}]}}


@given(text=st.text())
def test_an_override_sets_only_its_key(text):
    value = overrides.toml_value(f"name={text}")
    assert value == text or tomllib.loads(f"x = {text}") == {"x": value} or value != value  # noqa: PLR0124 - NaN is itself


def test_validate_applies_overrides_and_names_them(capsys, tmp_path):
    file = make_suite(tmp_path)
    code, out, err = invoke(capsys, "validate", file, "--set", "margin=0.4", "--set", "recipe.lr=0.5")
    assert (code, err) == (0, "")
    assert "a valid suite with --set margin=0.4 --set recipe.lr=0.5\n" in out
    assert "(the suite's: 0.4)" in out
    for arguments in (["validate", file], ["run", file, "--dry-run"]):
        code, _, err = invoke(capsys, *arguments, "--set", "marge=1")
        assert code == exit_code.USAGE_ERROR
        assert "--set marge=1: marge: unknown key" in err
        assert "did you mean 'margin'?" in err


def test_options_for_seed_and_budget_are_overrides(tmp_path):
    arguments = ["run", str(make_suite(tmp_path)), "--set", "margin=0.4", "--seed", "5", "--budget", "9m"]
    suite = options.load_suite(main.build_parser().parse_args(arguments))
    assert (suite.rules.seed, suite.rules.budget) == (5, 540.0)
    assert suite.invocation.overrides == ("margin=0.4", "seed=5", "budget=9m")
    assert loader.load_suite(tmp_path / "noise.toml", suite.invocation.overrides) == suite


def test_results_and_report_name_the_overrides(capsys, tmp_path):
    pytest.importorskip("torch")
    arguments = ["--set", "margin=0.4", "--set", "recipe.trainable=head", "--store", tmp_path / "s.sqlite", "-j", 1]
    invoke(capsys, "run", make_suite(tmp_path), "-o", tmp_path / "out", *arguments)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["suite"]["overrides"] == ["margin=0.4", "recipe.trainable=head"]
    assert results["suite"]["margin"] == 0.4
    assert "the command line overrides the suite file: --set margin=0.4 --set recipe.trainable=head" in results["notes"]
    assert "--set margin=0.4 --set recipe.trainable=head --output DIR" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_in_the_report_is_quoted_for_a_shell():
    run = make_run(seeds=2, examples=20)
    arguments = ['plugins=["all"]', "name=x; rm -rf $HOME", "recipe.lr=1e-3"]
    run.suite["overrides"] = arguments
    split = shlex.split(html.command_line(run.suite))
    assert [split[index + 1] for index, part in enumerate(split) if part == "--set"] == arguments
