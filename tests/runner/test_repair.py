from __future__ import annotations

import importlib
import json
import tomllib
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.run import Finding
from xferbench.core.sections import from_flat
from xferbench.core.suite import BackboneSection, CheckpointSection, DataSection, Invocation, Suite
from xferbench.data.inputs import SHIPPED_WEIGHTS_FOLDER
from xferbench.lab.data import preprocessing
from xferbench.lab.models import backbones, batchnorm, checkpoint_reader, checkpoints
from xferbench.lab.training.network import Architecture
from xferbench.lab.worker import repair_checkpoint as lab
from xferbench.runner import discovery, repair
from xferbench.runner.engines import local

SHIPPED = SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"
READY = checkpoints.recorded_preprocessing(SHIPPED)


@pytest.fixture(autouse=True)
def _at_home(monkeypatch, tmp_path):
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    entry_points = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    groups = {
        group: EntryPoints(EntryPoint(name, value, group) for name, value in modules.items())
        for group, modules in entry_points.items()
    }
    monkeypatch.setattr(discovery, "entry_points", lambda group: groups[group])  # independent of installed packages


@contextmanager
def run_inline(_):
    """Replace workers by this process."""

    def call(function, *arguments):
        module, _, name = function.partition(":")
        future = Future()
        future.set_result(getattr(importlib.import_module(module), name)(*arguments))
        return future

    yield call


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(local, "start_workers", run_inline)


def make_images(count, rng):
    """Return images of two classes that differ in stripes."""
    pixels = rng.integers(120, size=(count, 16, 16, 3))
    pixels[1::2, :, ::2] += 100
    return pixels.astype(np.uint8)


def make_state(arrays, *, recalibrated=False):
    """Return the state of a tiny-resnet with a head fitted to training images.

    With ``recalibrated``, its BatchNorm statistics come from the training images too.
    """
    module = backbones.build("tiny-resnet", 2).eval()
    head = backbones.layer_layout(module, (3, 16, 16)).head
    checkpoints.load_backbone(module, checkpoint_reader.read_checkpoint(SHIPPED), head)
    x = preprocessing.to_tensor(torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2), READY)
    if recalibrated:
        tensors = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        module.load_state_dict(batchnorm.recalibrate(module, tensors, [x]), strict=False)
    linear, features = module.get_submodule(head), []
    hook = linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    module(x)
    hook.remove()
    x = torch.cat([features[0], torch.ones(len(features[0]), 1)], 1)
    y = 2.0 * torch.nn.functional.one_hot(torch.from_numpy(arrays["train_labels"]), 2) - 1
    weight = 3 * torch.linalg.solve(x.T @ x + 0.01 * torch.eye(x.shape[1]), x.T @ y)
    with torch.no_grad():
        linear.weight.copy_(weight[:-1].T)
        linear.bias.copy_(weight[-1])
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def drift_statistics(state):
    """Return the state with different running statistics."""
    stream = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(tensor.shape, generator=stream) for name, tensor in state.items()}
    means = {name: tensor + 4 * noise[name] for name, tensor in state.items() if name.endswith("running_mean")}
    return (
        state
        | means
        | {name: tensor * torch.exp(2 * noise[name]) for name, tensor in state.items() if name.endswith("running_var")}
    )


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    sizes = {"train": 64, "test": 160}
    images_by_name = {f"{name}_images": make_images(count, rng) for name, count in sizes.items()}
    return images_by_name | {f"{name}_labels": np.arange(count) % 2 for name, count in sizes.items()}


@pytest.fixture(scope="module")
def states(arrays):
    """Return the tensors before and after, the latter with drifted statistics."""
    before = make_state(arrays)
    return before, drift_statistics(before)


@pytest.fixture
def checkpoints_folder(tmp_path, arrays, states):
    np.savez(tmp_path / "data.npz", **arrays)
    for name, state in zip(("before", "after"), states, strict=True):
        save_file(state, tmp_path / f"{name}.safetensors", checkpoints.preprocessing_metadata(READY) | {"mine": "kept"})
    return tmp_path


def audit(capsys, *options, after="after.safetensors", before="before.safetensors"):
    arguments = ["audit", "--arch", "tiny-resnet", "--after", after, "--data", "npz:data.npz", "--margin", "0.15"]
    arguments += ["--before", before] if before else []
    code = main.main([*arguments, "--checks", "batchnorm-drift", "-j", "1", "-o", "out", "--device", "cpu", *options])
    return code, *capsys.readouterr()


def read_metadata(file):
    with safe_open(file, "pt") as tensors:
        return tensors.metadata()


def test_a_confirmed_repair_restores_the_statistics_and_nothing_else(checkpoints_folder, states, capsys):
    code, out, err = audit(capsys, "--repair", "mended.safetensors")
    assert code == 1, err  # the examined network still fails
    assert "repaired: mended.safetensors, BatchNorm statistics restored, predictions verified" in out
    before, after = states
    repaired = load_file("mended.safetensors")
    assert repaired.keys() == after.keys()
    for name, tensor in repaired.items():
        expected = before if "running_" in name else after
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    metadata = json.loads(read_metadata("mended.safetensors")["xferbench.repair"])
    assert metadata["edits"] == ["batchnorm:restored"]
    assert metadata["sha256"] == {name: files.sha256(Path(f"{name}.safetensors")) for name in ("after", "before")}
    assert metadata["finding"].startswith("batchnorm-drift/harm")
    assert metadata["low"] > metadata["margin"] == 0.15
    assert read_metadata("mended.safetensors")["mine"] == "kept"
    evidence = json.loads(Path("out/evidence.json").read_text())
    assert evidence["repair"]["sha256"] == files.sha256(Path("mended.safetensors"))
    code, out, _ = audit(capsys, "--repair", "again.safetensors", after="mended.safetensors", before=None)
    assert code == 0, out
    assert "no repair was written: batchnorm-drift is PASS: the statistics are right for this network" in out
    assert not Path("again.safetensors").exists()


def test_a_repair_keeps_names_types_and_wrappers_of_the_file(checkpoints_folder, states, capsys, inline):
    _, after = states
    half_precision = {
        f"module.{name}": tensor.half() if tensor.is_floating_point() else tensor for name, tensor in after.items()
    }
    torch.save({"epoch": 3, "state_dict": half_precision}, "after.pt")
    code, out, err = audit(capsys, "--repair", "mended.safetensors", after="after.pt")
    assert (code, "predictions verified" in out) == (1, True), out + err
    repaired = load_file("mended.safetensors")
    assert repaired.keys() == half_precision.keys()
    for name, tensor in repaired.items():
        assert tensor.dtype == half_precision[name].dtype
        assert "running_" in name or torch.equal(tensor, half_precision[name])
    assert any(not torch.equal(repaired[name], half_precision[name]) for name in repaired)


def test_a_repair_keeps_the_names_of_a_head_that_the_user_built(checkpoints_folder, states, capsys, inline):
    _, after = states
    body = {f"backbone.{name}": tensor for name, tensor in after.items() if not name.startswith("linear.")}
    weight = after["linear.weight"]
    split = {"0.weight": torch.cat([torch.eye(64), -torch.eye(64)]), "0.bias": torch.zeros(128)}
    split |= {"1.running_mean": torch.zeros(128), "1.running_var": torch.ones(128) - 1e-5}
    split |= {"4.weight": torch.cat([weight, -weight], 1), "4.bias": after["linear.bias"]}
    state = body | {f"head.{name}": tensor for name, tensor in split.items()}
    torch.save({"state_dict": state}, "after.pt")
    code, out, err = audit(capsys, "--repair", "mended.safetensors", after="after.pt")
    assert (code, "predictions verified" in out) == (1, True), out + err
    assert "Linear 64 → 128 (head.0), BatchNorm (head.1), ReLU, Linear 128 → 2 (head.4)" in " ".join(out.split())
    repaired = load_file("mended.safetensors")
    assert repaired.keys() == state.keys()
    changed = {name for name, tensor in repaired.items() if not torch.equal(tensor, state[name])}
    assert {"backbone.bn1.running_mean"} <= changed
    assert all("running_" in name for name in changed)


def test_a_repair_without_earlier_weights_recalibrates_the_statistics(checkpoints_folder, arrays, capsys, inline):
    after = drift_statistics(make_state(arrays, recalibrated=True))
    save_file(after, "after.safetensors", checkpoints.preprocessing_metadata(READY))
    code, out, err = audit(capsys, "--repair", "mended.safetensors", before=None)
    assert (code, "BatchNorm statistics recalibrated, predictions verified" in out) == (1, True), out + err
    metadata = json.loads(read_metadata("mended.safetensors")["xferbench.repair"])
    assert metadata["edits"] == ["batchnorm:recalibrated@2"]
    assert metadata["sha256"]["before"] is None
    repaired = load_file("mended.safetensors")
    changed = {name for name, tensor in repaired.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_an_existing_file_is_refused_before_the_run(checkpoints_folder, capsys, inline):
    Path("mended.safetensors").write_text("precious")
    code, _, err = audit(capsys, "--repair", "mended.safetensors")
    assert code == exit_code.USAGE_ERROR
    assert "mended.safetensors: already exists" in err
    assert "or --force" in err
    assert Path("mended.safetensors").read_text() == "precious"
    assert not Path("cache").exists()
    code, out, _ = audit(capsys, "--repair", "mended.safetensors", "--force")
    assert (code, "predictions verified" in out) == (1, True)
    assert load_file("mended.safetensors")


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("x.pth", "a file of another kind"),
        ("nowhere/x.safetensors", "cannot be written"),
        ("after.safetensors", "one of the inputs"),
        ("link.safetensors", "one of the inputs"),
        ("folder.safetensors", "already exists"),
        ("dangling.safetensors", "already exists"),
    ],
)
def test_an_unusable_path_is_refused_even_with_force(tmp_path, name, fragment):
    (tmp_path / "after.safetensors").write_text("a")
    (tmp_path / "link.safetensors").symlink_to("after.safetensors")
    (tmp_path / "dangling.safetensors").symlink_to("nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    suite = Suite(
        name="s",
        plugins=(),
        invocation=Invocation(path="s"),
        backbone=BackboneSection(arch="a"),
        data=DataSection(target="t"),
        checkpoint=CheckpointSection(after=str(tmp_path / "after.safetensors")),
    )
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=fragment):
        repair.require_repairable(suite, tmp_path / name, force=True)
    assert sorted(tmp_path.iterdir()) == before


def make_finding(verdict, plugin="batchnorm-drift", contrast="harm", **fields):
    return from_flat(
        Finding, {"id": f"{plugin}/{contrast}", "plugin": plugin, "contrast": contrast, "verdict": verdict} | fields
    )


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ([], "batchnorm-drift was not run"),
        ([make_finding("INCONCLUSIVE")], "batchnorm-drift is INCONCLUSIVE: no harm of the statistics was confirmed"),
        ([make_finding("SKIPPED", reason="no such layer")], "batchnorm-drift is SKIPPED: no such layer"),
        ([make_finding("PASS"), make_finding("ERROR", reason="boom")], "batchnorm-drift is ERROR: boom"),
        ([make_finding("FAIL", remedy={"verified": False})], "is FAIL: it was not confirmed that the cure removes the harm"),
        ([make_finding("FAIL", remedy=None)], "is FAIL: it was not confirmed"),
        (
            [make_finding("PASS"), make_finding("FAIL", "audit/reload"), make_finding("FAIL", "head-size")],
            "this network; the report describes patches for audit/reload, head-size",
        ),
    ],
)
def test_an_unconfirmed_repair_is_not_written_and_one_line_gives_the_reason(tmp_path, findings, message):
    executed = SimpleNamespace(step=SimpleNamespace(requests=()), records={})
    result = repair.write_repair(executed, findings, tmp_path / "x.safetensors", tmp_path)
    assert list(result) == ["said"]
    assert result["said"].startswith("no repair was written: ")
    assert message in result["said"]
    assert "\n" not in result["said"]


def test_a_file_with_other_predictions_is_removed(checkpoints_folder, capsys, monkeypatch, inline):
    def keep_statistics(network, state, tensors, head):
        return dict(state), ""  # unchanged

    monkeypatch.setattr(lab, "replace_statistics", keep_statistics)
    code, out, _ = audit(capsys, "--repair", "mended.safetensors")
    assert code == 1
    assert "no repair was written: read back, the file predicts otherwise for " in out
    assert not list(checkpoints_folder.glob("*mended*"))
    assert Path("out/results.json").exists()


def build_network():
    module = backbones.build("tiny-resnet", 2).eval()
    return Architecture(
        module=module, layout=backbones.layer_layout(module, (3, 16, 16)), device=torch.device("cpu"), cache=Path()
    )


def test_tensor_names_of_the_file_are_found_as_loading_finds_them(states):
    state = {f"student.{name}": tensor for name, tensor in states[1].items()} | {"teacher.x": torch.zeros(2)}
    names = lab.file_names(build_network(), state)
    assert names == {name: f"student.{name}" for name in states[1]}


def test_missing_counters_are_not_added_and_missing_statistics_are_an_error(states):
    before, after = states
    without_counters = {name: tensor for name, tensor in after.items() if not name.endswith("num_batches_tracked")}
    repaired, error = lab.replace_statistics(build_network(), without_counters, before)
    assert (repaired.keys(), error) == (without_counters.keys(), "")
    without_means = {name: tensor for name, tensor in without_counters.items() if not name.endswith("running_mean")}
    assert "in another form" in lab.replace_statistics(build_network(), without_means, before)[1]
