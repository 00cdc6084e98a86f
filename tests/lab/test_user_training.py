"""User code: found without running it, run in workers, and checked against its declarations."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from invoke import make_suite
from test_loop import BRIEF, CONTEXT, WEIGHTS, is_equal, make_spec, make_trial, make_workspace
from test_profile import make_weights

import xferbench
from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY
from xferbench.core.pipeline import Phase
from xferbench.core.plugin import ProfileRequest
from xferbench.core.sections import replace_flat
from xferbench.data import user_code
from xferbench.lab.models import backbones
from xferbench.lab.training import user_training
from xferbench.lab.worker import profile, run_trials
from xferbench.runner.engines import local

NETWORK = """
from torch import nn
from xferbench.lab.models.small_resnets import tiny_resnet

def build(classes):
    return tiny_resnet(classes)

def other(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def wrong(classes):
    return tiny_resnet(classes + 1)

def nothing(classes):
    return {"classes": classes}

def broken(classes):
    raise KeyError("on purpose")

def gone(classes):
    raise SystemExit(3)

class Falling(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(3, classes)

    def forward(self, x):
        return self.last(x.mean((2, 3)))[self.nowhere]
"""

TRAIN = """
import random
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

def train(model, data, recipe, seed):
    phase = recipe.phases[-1]
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=phase.lr)
    loader = DataLoader(data.train, batch_size=phase.batch_size, shuffle=True)
    done = 0
    while done < phase.steps:
        for x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == phase.steps:
                break
    return model

train.supports = {"lr", "steps", "batch_size"}

def wrapped(model, data, recipe, seed):
    return torch.nn.DataParallel(train(model, data, recipe, seed))

wrapped.supports = []

def silent(model, data, recipe, seed):
    return model

def vague(model, data, recipe, seed):
    return model

vague.supports = {"learning_rate"}

def lying(model, data, recipe, seed):
    return train(model, data, recipe, seed)

lying.supports = {"trainable", "batchnorm"}

def nothing(model, data, recipe, seed):
    train(model, data, recipe, seed)

nothing.supports = ()

def other(model, data, recipe, seed):
    return model.layer1

other.supports = ()

def failing(model, data, recipe, seed):
    raise OSError("no such disk")

failing.supports = ()

def exploding(model, data, recipe, seed):
    with torch.no_grad():
        model.linear.weight.fill_(float("inf"))
    return model

exploding.supports = ()

def drawing(model, data, recipe, seed):
    with torch.no_grad():
        drawn = [random.random(), np.random.random(), torch.rand(()).item(), recipe.stop == "best"]
        model.linear.bias.copy_(torch.tensor(drawn))
    return model

drawing.supports = ("stop",)
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Return a function that writes a module with a unique name and returns the spec of a callable in it."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    module = f"own_{abs(hash(tmp_path))}"

    def write(text, name):
        (tmp_path / f"{module}.py").write_text(dedent(text))
        return user_code.find_callable(f"python:{module}:{name}", tmp_path, files.sha256)

    yield write
    user_code.load_callable.cache_clear()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def train_with_code(workspace, code, *phases, seed=0, **more):
    spec = replace_flat(make_spec(workspace, *phases, seed=seed), training=code, **more)
    trial = make_trial(spec)
    dataset, network = run_trials.training_inputs(spec, trial, workspace.cache)
    return user_training.train_with_user_code(
        spec, network, run_trials.start_tensors(spec, network, trial, workspace.cache), dataset
    )


# Found, without being run


def test_the_digest_of_a_callable_covers_its_package(tmp_path):
    package = tmp_path / "mine"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py", "deep/nets.py"):
        (package / name).write_text("raise RuntimeError('this must not run')")

    def digest(folder=tmp_path):
        return user_code.find_callable("python:mine.deep.nets:build", folder, files.sha256).digest

    before = digest()
    (package / "notes.txt").write_text("no source")
    assert digest() == before
    (package / "other.py").write_text("")
    assert digest() != before
    (package / "other.py").unlink()
    package.parent.joinpath("moved").mkdir()
    package.rename(tmp_path / "moved" / "mine")
    assert digest(tmp_path / "moved") == before, "where it lies is no content"


def test_the_digest_covers_imported_neighbor_files(tmp_path):
    (tmp_path / "one.py").write_text("from two import layer\nimport torch\n")
    (tmp_path / "two.py").write_text("import three.deep")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "deep.py").write_text("")
    digests = set()
    for changed in ("", "one.py", "two.py", "three/deep.py", "unused.py"):
        if changed:
            with (tmp_path / changed).open("a") as file:
                file.write("\n# changed")
        digests.add(user_code.find_callable("python:one:build", tmp_path, files.sha256).digest)
    assert len(digests) == 4


def test_modules_are_found_next_to_the_suite_first_and_then_on_the_path(tmp_path, monkeypatch):
    for folder, text in (("suite", "here"), ("path", "there")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both_places.py").write_text(f"# {text}")
    (tmp_path / "path" / "path_only.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "path")
    first = user_code.find_callable("python:both_places:f", tmp_path / "suite", files.sha256)
    assert first.digest != user_code.find_callable("python:both_places:f", tmp_path / "path", files.sha256).digest
    assert user_code.find_callable("python:path_only:f", tmp_path / "suite", files.sha256)


@pytest.mark.parametrize(
    "spelling", ["python:mine", "python:mine:", "python::build", "python:a/b:c", "python:1a:b", "python:a:b:c"]
)
def test_a_malformed_spec_is_an_error(spelling, tmp_path):
    with pytest.raises(UserError, match="python:module:callable"):
        user_code.find_callable(spelling, tmp_path, files.sha256)


@pytest.mark.parametrize("module", ["nowhere_at_all", "sys", "__main__x"])
def test_a_missing_module_is_an_error(module, tmp_path):
    with pytest.raises(UserError, match="no module"):
        user_code.find_callable(f"python:{module}:build", tmp_path, files.sha256)


# Loaded


def test_a_missing_callable_is_an_error(write_module):
    with pytest.raises(UserError, match="not a callable"):
        user_code.load_callable(write_module("x = 1", "x"))
    with pytest.raises(UserError, match="not a callable"):
        user_code.load_callable(write_module("x = 1", "y.z"))


def test_a_missing_submodule_is_an_error_and_a_missing_library_a_crash(write_module, tmp_path):
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "__init__.py").touch()
    with pytest.raises(UserError, match="no such module"):
        user_code.load_callable(user_code.find_callable("python:own_pkg.sub:f", tmp_path, files.sha256))
    with pytest.raises(user_code.UserCodeError, match=r"python:own_\d+:f crashed: ModuleNotFoundError.*no_such_library"):
        user_code.load_callable(write_module("import no_such_library", "f"))


def test_files_that_changed_since_the_digest_are_an_error(write_module):
    code = write_module("def f(): pass", "f")
    write_module("def f(): return 2", "f")
    with pytest.raises(UserError, match="changed since"):
        user_code.load_callable(code)


def test_a_name_of_a_loaded_module_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "statistics.py").write_text("def f(): pass")
    import statistics  # noqa: F401 - so that it is loaded

    with pytest.raises(UserError, match=r"is loaded[\s\S]*rename your module"):
        user_code.load_callable(user_code.find_callable("python:statistics:f", tmp_path, files.sha256))


# Backbones


def profile_code(workspace, code, weights=WEIGHTS, training=None):
    return profile.profile(make_request(workspace, code, weights=weights, training=training), workspace.cache)


def make_request(workspace, code, *, weights=WEIGHTS, training=None):
    return ProfileRequest(arch=code.spec, weights=weights, target=workspace.data, train_size=60, code=code, training=training)


def test_a_user_network_is_profiled_and_trained(write_module, workspace):
    code = write_module(NETWORK, "build")
    code_profile = profile_code(workspace, code)
    assert (code_profile.model.head, code_profile.user_code.crash, code_profile.user_code.supports) == ("linear", "", None)
    spec = replace_flat(make_spec(workspace), arch=code.spec, code=code)
    (record,), trained_count = run_trials.run_trials([make_trial(spec)], frozenset([make_trial(spec).key]), workspace.cache)
    (renamed,), _ = run_trials.run_trials(
        [make_trial(make_spec(workspace))], frozenset([make_trial(make_spec(workspace)).key]), workspace.cache
    )
    assert (record.error, trained_count) == ("", 1)
    assert record.key != renamed.key
    assert np.array_equal(record.predictions.p_true, renamed.predictions.p_true), "it is the same network"


@pytest.mark.parametrize(("name", "message"), [("nothing", "returned no network"), ("wrong", "a head of the wrong size")])
def test_an_invalid_user_network_is_an_error(name, message, write_module, workspace):
    with pytest.raises(UserError, match=message):
        profile_code(workspace, write_module(NETWORK, name))


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "KeyError: 'on purpose'"), ("gone", "SystemExit"), ("Falling", "nowhere")]
)
def test_a_crash_in_user_code_names_the_network(name, message, write_module, workspace):
    crash = profile_code(workspace, write_module(NETWORK, name)).user_code.crash
    assert f":{name} crashed: " in crash and message in crash and "Traceback" not in crash


def test_a_user_network_depends_on_its_seed_only(write_module):
    code = write_module(NETWORK, "other")
    states = []
    for value in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(value)
            states.append(backbones.build(code.spec, 4, code).state_dict())
    assert is_equal(states[0], states[1]) and not is_equal(states[0], states[2])


# Training


def test_the_function_declares_the_supported_fields(write_module):
    assert user_training.supported_fields(write_module(TRAIN, "train")) == ("lr", "steps", "batch_size")
    with pytest.raises(UserError, match=r'silent\.supports = \{"lr", "steps"\}'):
        user_training.supported_fields(write_module(TRAIN, "silent"))
    with pytest.raises(UserError, match="known: augment, batch_size"):
        user_training.supported_fields(write_module(TRAIN, "vague"))


def test_user_training_is_reproducible(write_module, workspace):
    code = write_module(TRAIN, "train")
    phase = Phase(lr=0.05, steps=20, batch_size=16)
    first, repeated, other = (train_with_code(workspace, code, phase, seed=seed) for seed in (0, 0, 1))
    ((steps, loss, score),) = first.curve
    assert steps == 20 and 0 < loss < 3 and 0 <= score <= 1 and not first.diverged
    assert is_equal(first.last, repeated.last) and first.curve == repeated.curve and not is_equal(first.last, other.last)
    assert is_equal(first.last, first.best) and not torch.equal(first.last["conv1.weight"], first.before["conv1.weight"])
    assert first.prior == pytest.approx((0.25,) * 4, abs=0.05)


def test_every_global_stream_is_seeded_and_restored(write_module, workspace):
    code = write_module(TRAIN, "drawing")
    train_with_code(workspace, code)  # the first call builds the structure, which draws unused weights
    before = torch.random.get_rng_state()
    biases = [
        train_with_code(workspace, code, seed=seed, stop=stop).last["linear.bias"]
        for seed, stop in ((0, "last"), (0, "best"), (1, "last"))
    ]
    assert torch.equal(biases[0][:3], biases[1][:3]) and (biases[0][:3] != biases[2][:3]).all()
    assert [float(bias[3]) for bias in biases] == [0.0, 1.0, 0.0], "the code gets the stopping rule"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_wrapper_around_the_network_is_removed(write_module, workspace):
    assert is_equal(
        train_with_code(workspace, write_module(TRAIN, "wrapped")).last,
        train_with_code(workspace, write_module(TRAIN, "train")).last,
    )


@pytest.mark.parametrize(("name", "message"), [("nothing", "returned no network"), ("other", "returned another network")])
def test_user_training_must_return_the_network(name, message, write_module, workspace):
    with pytest.raises(UserError, match=message):
        train_with_code(workspace, write_module(TRAIN, name))


def test_divergence_is_detected(write_module, workspace):
    assert train_with_code(workspace, write_module(TRAIN, "exploding")).diverged


@pytest.mark.parametrize("phase", [Phase(trainable=HEAD_ONLY, **BRIEF), Phase(batchnorm=BATCHNORM_EVAL, **BRIEF)])
def test_a_change_of_tensors_that_the_code_claims_to_freeze_is_a_crash(phase, write_module, workspace):
    with pytest.raises(user_code.UserCodeError, match="says that it supports trainable, batchnorm, but moved frozen"):
        train_with_code(workspace, write_module(TRAIN, "lying"), phase)
    train_with_code(workspace, write_module(TRAIN, "lying"), Phase(**BRIEF))


def test_a_crash_in_user_training_is_recorded_even_for_a_disk_error(write_module, workspace):
    spec = replace_flat(make_spec(workspace), training=write_module(TRAIN, "failing"))
    (record,), _ = run_trials.run_trials([make_trial(spec)], frozenset([make_trial(spec).key]), workspace.cache)
    assert ":failing crashed: OSError: no such disk (own_" in record.error


def test_results_of_user_training_are_cached(write_module, workspace):
    spec = replace_flat(make_spec(workspace, Phase(lr=0.05, steps=4, batch_size=16)), training=write_module(TRAIN, "train"))
    trial = make_trial(spec)
    (first,), trained_count = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    (again,), retrained_count = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    assert (trained_count, retrained_count) == (1, 0)
    assert np.array_equal(first.predictions.p_true, again.predictions.p_true) and first.curve == again.curve
    assert trial.context == CONTEXT


# The whole line


def make_suite_of_code(folder, *, arch=None, training=None, plugins='["batchnorm-drift", "negative-transfer"]'):
    make_weights(folder / "w.safetensors")
    (folder / "mine.py").write_text(NETWORK + TRAIN)
    file = make_suite(folder, plugins=plugins, backbone='weights = "w.safetensors"')
    text = file.read_text()
    if arch:
        text = text.replace('"tiny-resnet"', f'"python:mine:{arch}"')
    if training:
        text = text.replace('strategy = "linear-probe"', f'training = "python:mine:{training}"')
    file.write_text(text)
    return file


@pytest.fixture
def temporary_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("callables", [{"arch": "build"}, {"training": "train"}])
def test_user_code_runs_only_where_it_is_allowed(callables, temporary_home, tmp_path, capsys):
    file = make_suite_of_code(tmp_path, **callables)
    for arguments in (["run", str(file)], ["validate", str(file)]):
        assert main.main(arguments) == exit_code.USAGE_ERROR
        assert "add --allow-code" in capsys.readouterr().err
    assert main.main(["validate", str(file), "--allow-code"]) == 0
    assert "mine" not in sys.modules


def test_a_suite_with_user_network_and_training_runs(temporary_home, tmp_path):
    file = make_suite_of_code(tmp_path, arch="build", training="train")
    run = xferbench.run(file, allow_code=True, device="cpu", workers=1, output=tmp_path / "out")
    findings = {finding.plugin: finding for finding in run.findings}
    drift = {finding.contrast: finding.verdict for finding in run.findings if finding.plugin == "batchnorm-drift"}
    assert drift["harm"] == "INCONCLUSIVE", "without its controls, nothing passes"
    assert any("python:mine:train supports lr, steps, batch_size: " in note for note in run.notes)
    assert findings["negative-transfer"].verdict != "ERROR" and findings["negative-transfer"].estimate.harm is not None
    again = xferbench.run(file, allow_code=True, device="cpu", workers=1)
    assert again.cost["trials"]["run"] == 0
    with (tmp_path / "mine.py").open("a") as changed:
        changed.write("\n# changed")
    assert xferbench.run(file, allow_code=True, device="cpu", workers=1).cost["trials"]["run"] > 0
    assert "mine" not in sys.modules, "it ran in the workers only"


@pytest.mark.parametrize("callables", [{"arch": "broken"}, {"training": "failing"}])
def test_a_crash_of_user_code_is_an_error_finding(callables, temporary_home, tmp_path, capsys):
    file = make_suite_of_code(tmp_path, plugins='["negative-transfer"]', **callables)
    run = xferbench.run(file, allow_code=True, device="cpu", workers=1, output=tmp_path / "out")
    for finding in run.findings:
        assert finding.verdict == "ERROR" and "Traceback" not in finding.reason
        assert f"python:mine:{next(iter(callables.values()))} crashed: " in finding.reason
    assert run.findings
    assert (tmp_path / "out" / "report.html").is_file()
    if "arch" in callables:
        assert main.main(["run", str(file), "--allow-code", "--dry-run"]) == exit_code.USAGE_ERROR
        assert "python:mine:broken crashed: KeyError" in capsys.readouterr().err
        assert main.main(["run", str(file), "--allow-code", "--device", "cpu", "-j", "1"]) == exit_code.CRASHED


def test_a_worker_reports_errors_in_user_code(tmp_path, workspace):
    (tmp_path / "mine_too.py").write_text(NETWORK)
    code = user_code.find_callable("python:mine_too:nothing", tmp_path, files.sha256)
    arguments = (make_request(workspace, code), workspace.cache)
    with local.start_workers(1) as call, pytest.raises(UserError, match="returned no network"):
        call("xferbench.lab.worker.profile:profile", *arguments).result()
    assert Path(code.path) == tmp_path
