"""Bottleneck adapters: their places, their initialization, and training."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import (  # noqa: F401
    BRIEF,
    HEAD,
    changed_names,
    float64,
    is_equal,
    make_spec,
    make_trial,
    one_thread,
    prepare_training,
    train,
    workspace,
)
from torch import nn
from torch.func import functional_call

from xferbench.core.errors import UserError
from xferbench.core.interventions import BATCHNORM_EVAL, BATCHNORM_TRAIN, HEAD_ONLY, TRAIN_MODE, Edit, Trainable
from xferbench.core.pipeline import Phase
from xferbench.core.trial import ModelSpec
from xferbench.lab.data import preprocessing
from xferbench.lab.models import added_parameters, backbones, bottleneck_adapters, checkpoints, graph_split
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials

ADAPTER = Phase(trainable=Trainable.parse("adapter:4"), batchnorm=BATCHNORM_EVAL, optimizer="sgd", lr=3e-2, **BRIEF)


def insert_new_adapters(model, side, rank=3):
    """Return a network with adapters, its layout, and its start tensors."""
    layout = backbones.layer_layout(model.eval(), side)
    bottleneck_adapters.insert_adapters(model, layout, (3, side, side), rank)
    return layout, model.state_dict() | bottleneck_adapters.initial_adapters(model, 0)


def with_nonzero_adapters(tensors):
    """Return the start tensors with nonzero adapters."""
    return {name: torch.randn_like(tensor) if name.endswith("adapter_up") else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("arch", "side", "expected"),
    [
        ("tiny-resnet", 32, {"bn1": (16, 1), "layer1": (16, 1), "layer4": (64, 1)}),
        ("torchvision:convnext_tiny", 64, {"features.0": (96, 1), "features.1": (96, 1)}),
        ("torchvision:swin_t", 64, {"features.1": (96, -1), "norm": (768, -1)}),
        ("torchvision:vit_b_32", 224, {"encoder.layers.encoder_layer_0": (768, -1)}),
        ("torchvision:densenet121", 64, {"features.denseblock1": (256, 1)}),
    ],
)
def test_each_layer_group_has_a_place_with_a_channel_axis(arch, side, expected):
    with torch.device("meta"):
        model = backbones.build(arch, 4).eval()
    layout = backbones.layer_layout(model, side)
    actual = bottleneck_adapters.adapter_places(model, layout, (3, side, side))
    assert len(actual) == len(layout.groups)
    assert {name: actual[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arch", "side"), [("tiny-resnet", 32), ("torchvision:squeezenet1_1", 64), ("torchvision:densenet121", 32)]
)
def test_new_adapters_do_not_change_the_output_and_work_in_every_split(arch, side):
    torch.manual_seed(0)
    model, x = backbones.build(arch, 4).eval(), torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = model(x)
        layout, tensors = insert_new_adapters(model, side)
        torch.testing.assert_close(functional_call(model, tensors, (x,)), before, rtol=0, atol=1e-6)
        tensors = with_nonzero_adapters(tensors)
        after = functional_call(model, tensors, (x,))
        assert not torch.allclose(after, before, atol=1e-3)
        for below in range(1, len(layout.groups) + 1):
            lower, upper = graph_split.split_at(model, layout, below)
            parts = [{name: tensors[name] for name, _ in (*p.named_parameters(), *p.named_buffers())} for p in (lower, upper)]
            actual = functional_call(upper, parts[1], (functional_call(lower, parts[0], (x,)),))
            torch.testing.assert_close(actual, after, rtol=1e-5, atol=1e-5)


def test_checkpoints_load_into_a_network_with_adapters(tmp_path):
    model, plain = backbones.build("tiny-resnet", 4), backbones.build("tiny-resnet", 9)
    insert_new_adapters(model, 32)
    state = {f"model.{name}": tensor for name, tensor in plain.state_dict().items()}
    assert checkpoints.head_tensors(model, state, "linear")["linear.weight"].shape == (9, 64)
    checkpoints.load_backbone(model, state, "linear")
    assert torch.equal(model.conv1.weight, plain.conv1.weight)


def test_adapters_have_the_requested_width_and_depend_on_the_seed():
    model = backbones.build("tiny-resnet", 4)
    layout, tensors = insert_new_adapters(model, 32, rank=5)
    adapters = backbones.names_by_kind(layout, model)["adapter"]
    assert len(adapters) == 4 * len(layout.groups)
    assert tensors["layer4.adapter_down"].shape == (5, 64) and tensors["layer4.adapter_up"].shape == (64, 5)
    assert {name for name in adapters if tensors[name].any()} == {name for name in adapters if name.endswith("_down")}
    other = bottleneck_adapters.initial_adapters(model, 1)
    assert is_equal(bottleneck_adapters.initial_adapters(model, 0), {name: tensors[name] for name in adapters})
    assert not torch.equal(other["layer4.adapter_down"], tensors["layer4.adapter_down"])
    kinds = backbones.names_by_kind(layout, model)
    assert not adapters & (kinds["norm"] | kinds["bias"] | kinds["lora"]), "the kinds are those of the network without adapters"


def test_only_adapters_and_head_are_trained(workspace):  # noqa: F811
    spec = make_spec(workspace, ADAPTER)
    network, (start,), dataset = prepare_training(workspace, spec)
    (actual,) = loop.train([spec], network, [start], dataset)
    assert changed_names(actual) == HEAD | backbones.names_by_kind(network.layout, network.module)["adapter"]
    (plain,) = train(workspace, make_spec(workspace, Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, **BRIEF)))
    assert {name: actual.before[name] for name in plain.before}.keys() == plain.before.keys() < actual.before.keys()


@pytest.mark.parametrize("step", [{}, {"batchnorm": BATCHNORM_TRAIN, "optimizer": "adamw"}])
def test_training_in_lockstep_equals_training_alone(step, workspace, float64):  # noqa: F811
    specs = [make_spec(workspace, replace(ADAPTER, **step), seed=seed) for seed in range(2)]
    network, starts, dataset = prepare_training(workspace, *specs)
    starts = [float64(start) for start in starts]
    together = loop.train(specs, network, starts, dataset)
    for spec, start, actual in zip(specs, starts, together, strict=True):
        (alone,) = loop.train([spec], network, [start], dataset)
        torch.testing.assert_close(actual.last, alone.last, rtol=1e-6, atol=1e-8)
    assert not is_equal(together[0].last, together[1].last)


def test_a_linear_probe_before_adapters_uses_precomputed_activations(workspace, monkeypatch):  # noqa: F811
    probe, rest = replace(ADAPTER, trainable=HEAD_ONLY), replace(ADAPTER, trainable=Trainable.parse("top:1"))
    spec = make_spec(workspace, probe, ADAPTER, rest)
    (cut,) = train(workspace, spec)
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    (whole,) = train(workspace, spec)
    torch.testing.assert_close(cut.last, whole.last, rtol=1e-4, atol=1e-5)
    assert "layer4.0.conv1.weight" in changed_names(whole) and "layer3.adapter_up" in changed_names(whole)
    assert "layer3.0.conv1.weight" not in changed_names(whole)


@pytest.mark.parametrize("edits", [(), (Edit.parse("batchnorm:recalibrated@2"),), (Edit.parse("interpolated:0.5"),)])
@pytest.mark.parametrize("view", [{}, {"mode": TRAIN_MODE}, {"examples": "validation"}])
def test_views_and_edits_use_the_adapted_network_and_its_weights_are_cached(edits, view, workspace):  # noqa: F811
    trial = make_trial(make_spec(workspace, ADAPTER), **view)
    trial = replace(trial, model=ModelSpec(base=trial.model.base, edits=edits))
    (first,), _ = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    run_trials._network.cache_clear()
    (again,), trained_count = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    assert trained_count == 0 and first.error == again.error == ""
    assert (first.predictions.p_true == again.predictions.p_true).all()


def test_a_view_evaluates_the_trained_tensors(workspace):  # noqa: F811
    spec = make_spec(workspace, ADAPTER)
    trial = make_trial(spec)
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    network, starts, dataset = prepare_training(workspace, spec)
    (actual,) = loop.train([spec], network, starts, dataset)
    x = preprocessing.to_tensor(torch.from_numpy(np.array(dataset.test.images)), spec.data.preprocessing)
    with torch.no_grad():
        p = functional_call(network.module, actual.last, (x,)).softmax(1).numpy()
    assert abs(p[range(len(p)), dataset.test.labels] - record.predictions.p_true).max() < 1e-4


def test_a_copy_of_the_network_has_its_own_adapters():
    model, x = backbones.build("tiny-resnet", 4).eval(), torch.randn(2, 3, 32, 32)
    _, tensors = insert_new_adapters(model, 32)
    copy = deepcopy(model)
    copy.load_state_dict(with_nonzero_adapters(tensors))
    with torch.no_grad():
        torch.testing.assert_close(copy(x), functional_call(model, copy.state_dict(), (x,)), rtol=0, atol=1e-5)
        assert not torch.allclose(copy(x), model(x), atol=1e-3)


def test_adapters_of_two_sizes_in_one_training_are_refused():
    with pytest.raises(UserError, match="several sizes"):
        added_parameters.kinds([ADAPTER, replace(ADAPTER, trainable=Trainable.parse("adapter:8"))])
    assert added_parameters.kinds([ADAPTER, replace(ADAPTER, trainable=HEAD_ONLY)]) == (ADAPTER.trainable,)
    assert added_parameters.kinds([replace(ADAPTER, trainable=Trainable.parse("lora:4"))]) == ()


def test_a_network_without_a_place_is_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x):
            return self.layer(x.flatten(1)), x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = Pair(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x)[0])

    model = Net()
    layout = replace(backbones.layer_layout(model, 2), groups=(backbones.LayerGroup(name="body", prefixes=("body",)),))
    with pytest.raises(UserError, match="no place for an adapter"):
        bottleneck_adapters.insert_adapters(model, layout, (3, 2, 2), 2)
