"""An augmentation, a finish and a regularizer of an installed package, from the suite's spelling to the trained network."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import CONTEXT, is_equal, make_spec, make_trial, make_workspace, train

from xferbench.cli import main
from xferbench.config import interventions as config
from xferbench.config import json_schema, loader, render, revive
from xferbench.core import interventions
from xferbench.core.errors import UserError
from xferbench.core.interventions import Augmentation, Edit, Finish, Regularizer, as_dict
from xferbench.core.pipeline import Recipe
from xferbench.core.record import json_values
from xferbench.core.trial import ModelSpec, Trial
from xferbench.lab.worker import run_trials
from xferbench.testing import intervention_conforms

MODULE = "third_party_kinds"
SOURCE = '''"""Kinds of a package of its own."""

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions import Augmentation, Finish, Regularizer, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Dim(Augmentation):
    """Images that are darker by a random factor."""

    spelling: ClassVar[str] = "dim"
    words: ClassVar[str] = "down to {share:.0%} of the brightness"
    implementation: ClassVar[str] = "third_party_kinds:dim_images"
    share: float = number(low=0, low_open=True, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune(Finish):
    """The smallest weights of each tensor are 0."""

    spelling: ClassVar[str] = "prune"
    words: ClassVar[str] = "without the smallest {share:.0%} of the weights"
    implementation: ClassVar[str] = "third_party_kinds:prune_weights"
    share: float = number(low=0, high=1, high_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StayClose(Regularizer):
    """The squared distance from the pretrained weights."""

    spelling: ClassVar[str] = "stay-close"
    words: ClassVar[str] = "kept close with strength {strength:g}"
    implementation: ClassVar[str] = "third_party_kinds:squared_distance"
    strength: float = number(low=0, low_open=True)


def dim_images(images, augmentation, rng):
    import torch

    factors = torch.from_numpy(rng.uniform(augmentation.share, 1, len(images))).to(images.device)
    return (images * factors[:, None, None, None]).to(images.dtype)


def prune_weights(tensors, finish, rng, context):
    assert len(context.train.images) == len(context.train.labels) > 0
    for name in dict(context.network.module.named_parameters()):
        size = tensors[name].abs()
        tensors[name][size <= size.flatten().quantile(finish.share)] = 0  # in place: the tensors are copies
    return tensors


def squared_distance(parameters, regularizer, start):
    return regularizer.strength / 2 * sum((parameters[name] - start[name]).square().sum() for name in parameters)
'''
KINDS = {"dim": "Dim", "prune": "Prune", "stay-close": "StayClose"}
WORDS = ("augment down to 50% of the brightness", "without the smallest 25% of the weights")
RECIPE = {"augment": "dim:0.5", "finish": "prune:0.25", "regularizer": "stay-close:0.1"}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of an installed distribution with three kinds, on the path of Python."""
    folder = tmp_path / "site"
    about = folder / f"{MODULE}-0.1.dist-info"
    about.mkdir(parents=True)
    (folder / f"{MODULE}.py").write_text(SOURCE)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 0.1\n")
    entries = "".join(f"{spelling} = {MODULE}:{name}\n" for spelling, name in KINDS.items())
    (about / "entry_points.txt").write_text(f"[{config.GROUP}]\n{entries}")
    monkeypatch.syspath_prepend(folder)
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), inherited))))  # of workers
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    sys.modules.pop(MODULE, None)
    interventions.module_source_digest.cache_clear()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parse_suite(**recipe):
    backbone, target = {"arch": "tiny-resnet"}, {"data": "synthetic:near"}
    table = {"schema": 1, "name": "ants", "plugins": ["all"], "backbone": backbone, "target": target, "recipe": recipe}
    return loader.parse_suite(table, Path("ants.toml"))


def refusal(**recipe):
    with pytest.raises(UserError) as error:
        parse_suite(**recipe)
    return str(error.value)


def test_a_suite_and_its_results_name_installed_kinds(site):
    suite = parse_suite(**RECIPE)
    assert {type(value).__name__ for value in (suite.recipe.augment, suite.recipe.finish, suite.recipe.regularizer)} == {
        *KINDS.values()
    }
    results = json.loads(json.dumps(json_values(as_dict(suite))))
    assert {name: results["recipe"][name] for name in RECIPE} == RECIPE
    assert revive.suite_from_results(results, Path()).recipe == suite.recipe


def test_words_and_lines_name_them(site):
    recipe = parse_suite(**RECIPE).recipe
    text = render.describe_recipe(recipe)
    for words in (*WORDS, "kept close with strength 0.1"):
        assert words in text
    assert {f'{name} = "{spelling}"' for name, spelling in RECIPE.items()} <= {*render.recipe_patch(None, recipe)}


def test_the_source_is_part_of_a_key(site, workspace):
    value = config.parse("dim:0.5", Augmentation)
    assert interventions.intervention_key(value) == f"dim:0.5 {interventions.kind_source(type(value))}"
    before = make_trial(make_spec(workspace, augment=value)).key
    (site / f"{MODULE}.py").write_text(SOURCE + "\n# another way\n")
    interventions.module_source_digest.cache_clear()
    assert make_trial(make_spec(workspace, augment=value)).key != before


@pytest.mark.parametrize(
    ("key", "spelling", "expected"),
    [
        ("augment", "dimm", "flip; crop; flip+crop; or dim:SHARE with SHARE a number above 0 and at most 1"),
        ("augment", "dim:2", "dim:SHARE with SHARE a number above 0 and at most 1"),
        ("augment", 3, "flip; crop; flip+crop; or dim:SHARE"),
        ("augment", "prune:0.5", "flip; crop; flip+crop; or dim:SHARE"),
        ("finish", "interpolate:2", "interpolate:SHARE with SHARE a number at least 0 and at most 1"),
        ("finish", "pruned:0.5", "adabn; interpolate:SHARE with SHARE a number at least 0 and at most 1; or prune:SHARE"),
        ("regularizer", "stay-close", "stay-close:STRENGTH with STRENGTH a number above 0"),
    ],
)
def test_an_unknown_spelling_is_refused_with_every_form(site, key, spelling, expected):
    text = refusal(**{key: spelling})
    assert f"[recipe] {key}" in text
    assert f"found: {json.dumps(spelling)}" in text
    assert expected in text


def test_without_a_package_the_built_in_forms_are_suggested():
    assert "did you mean 'flip'? known: crop, flip, flip+crop" in refusal(augment="flipp")


@pytest.mark.parametrize(("key", "spelling"), RECIPE.items())
def test_the_schema_accepts_installed_kinds_and_refuses_wrong_numbers_of_built_in_ones(key, spelling):
    _, schema = json_schema.suite_schema()["properties"]["recipe"]["properties"][key]["anyOf"]
    assert re.search(schema["pattern"], spelling)
    wrong = {"augment": "flip:1", "finish": "interpolate:2", "regularizer": "dann:0"}[key]
    assert not re.search(schema["pattern"], wrong)


def test_every_kind_conforms_and_is_listed(site, capsys):
    for group in (Augmentation, Finish, Regularizer):
        (kind,) = config.installed(group)
        intervention_conforms(kind)
    assert main.main(["ls", "--format", "json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    assert lists["augmentations"]["dim:SHARE with SHARE a number above 0 and at most 1"].startswith("Images that are darker")
    assert any(form.startswith("prune:") for form in lists["finishes"])
    assert any(form.startswith("stay-close:") for form in lists["regularizers"])


class Entry:
    """An entry point of a kind that is defined in a test."""

    def __init__(self, kind):
        self.name, self.kind = kind.spelling, kind

    def load(self):
        return self.kind


def test_a_package_cannot_add_a_kind_that_the_lab_cannot_call(site, monkeypatch):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Sparse(interventions.Trainable):
        """Every second parameter."""

        spelling: ClassVar[str] = "sparse"
        words: ClassVar[str] = "sparse"
        implementation: ClassVar[str] = f"{MODULE}:dim_images"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Nothing(Finish):
        """No change."""

        spelling: ClassVar[str] = "nothing"
        words: ClassVar[str] = "nothing"

    for kind, expected in ((Sparse, "a subclass of DataIntervention or Augmentation"), (Nothing, "module:function")):
        monkeypatch.setattr(config, "entry_points", lambda kind=kind, **_: [Entry(kind)])
        with pytest.raises(UserError, match=f"the intervention {kind.spelling}"):
            config.installed(Finish)
        with pytest.raises(AssertionError, match=expected):
            intervention_conforms(kind)


def test_an_installed_augmentation_trains_and_is_reproducible_in_a_group(site, workspace):
    value = config.parse("dim:0.5", Augmentation)
    (plain,) = train(workspace, make_spec(workspace))
    (alone,), (again,) = (train(workspace, make_spec(workspace, augment=value)) for _ in range(2))
    assert is_equal(alone.last, again.last)
    assert not is_equal(alone.last, plain.last)
    first, second = train(workspace, make_spec(workspace, augment=value, seed=1), make_spec(workspace, augment=value, seed=0))
    for name, tensor in alone.last.items():
        assert torch.allclose(second.last[name].float(), tensor.float(), atol=1e-4), "a member has the draws of its own seed"
    assert not is_equal(first.last, second.last)


def test_an_augmentation_that_changes_the_shape_is_named(site, workspace, monkeypatch):
    value = config.parse("dim:0.5", Augmentation)
    monkeypatch.setattr(sys.modules[MODULE], "dim_images", lambda images, *_: images.float())
    with pytest.raises(ValueError, match=r"augment dim:0.5 returned torch.float32 \[16, 3, .*expected torch.uint8"):
        train(workspace, make_spec(workspace, augment=value))


def run_with(workspace, *edits):
    """Return the record of a network with some edits."""
    trial = make_trial(make_spec(workspace))
    trial = Trial(model=ModelSpec(base=trial.model.base, edits=edits), view=trial.view, context=CONTEXT)
    (record,), _ = run_trials.run_trials([trial], frozenset({trial.key}), workspace.cache)
    return record


def test_an_installed_finish_changes_the_predictions_and_nothing_that_is_stored(site, workspace):
    plain, pruned = run_with(workspace), run_with(workspace, config.parse("prune:0.9", Finish))
    assert not pruned.error
    assert not np.array_equal(plain.predictions.p_true, pruned.predictions.p_true)
    assert np.array_equal(run_with(workspace, config.parse("prune:0", Finish)).predictions.label, plain.predictions.label)
    assert np.array_equal(run_with(workspace).predictions.p_true, plain.predictions.p_true)


def test_a_finish_that_loses_a_tensor_is_an_error_of_its_trial(site, workspace, monkeypatch):
    value = config.parse("prune:0.5", Finish)
    monkeypatch.setattr(sys.modules[MODULE], "prune_weights", lambda tensors, *_: dict(list(tensors.items())[1:]))
    assert "prune:0.5 must return tensors of the same names and shapes" in run_with(workspace, value).error


def test_an_edit_without_an_implementation_is_an_error_of_its_trial(workspace):
    class Nothing(Edit):
        """No change."""

        __slots__ = ()
        spelling = words = "nothing"

        def __str__(self):
            return self.spelling

    assert "not an edit of the head: nothing" in run_with(workspace, Nothing()).error


def test_an_installed_regularizer_equals_the_built_in_one_with_its_formula(site, workspace):
    for seeds in ((0,), (0, 1)):
        fits = (
            [make_spec(workspace, regularizer=regularizer, seed=seed) for seed in seeds]
            for regularizer in (config.parse("stay-close:0.5", Regularizer), Regularizer.parse("l2-sp:0.5"))
        )
        installed, built_in = (train_with_source(workspace, *specs) for specs in fits)
        for ours, theirs in zip(installed, built_in, strict=True):
            assert all(torch.allclose(ours.last[name], theirs.last[name], atol=1e-5) for name in ours.last)
            assert not is_equal(ours.last, train(workspace, make_spec(workspace))[0].last)


def train_with_source(workspace, *specs):
    """Return the trained networks with the inputs of their regularizer."""
    models, _ = run_trials._trained_models(specs, make_trial(specs[0]), workspace.cache)
    return models


TOML = """
schema = 1
name = "installed"
plugins = ["head-shock"]
margin = 0.3
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
[target]
data = "npz:noise.npz"
[recipe]
strategy = "full"
steps = 4
batch_size = 8
augment = "dim:0.5"
finish = "prune:0.25"
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


def test_a_run_of_a_suite_with_them_says_so(site, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    images = {f"{split}_images": rng.integers(256, size=(32, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("noise.npz", **images, **{f"{split}_labels": np.arange(32) % 2 for split in ("train", "test")})
    Path("installed.toml").write_text(TOML)
    assert main.main(["run", "installed.toml", "-j", "1", "-o", "report"]) in {0, 1}
    results = json.loads(Path("report/results.json").read_text())
    assert all(words in results["arms"]["head-shock"]["subject"]["recipe"] for words in WORDS)
    assert all(words in Path("report/report.html").read_text() for words in WORDS)
    assert set(results["evidence"]["intervention_sources"]) == {"dim", "prune"}
    assert not any(finding["verdict"] == "ERROR" for finding in results["findings"])


def test_a_recipe_with_an_installed_kind_is_not_one_without(site):
    value = config.parse("prune:0.25", Finish)
    assert replace(Recipe(), finish=value) != Recipe()
    assert render.describe_recipe(replace(Recipe(), finish=value)) != render.describe_recipe(Recipe())
