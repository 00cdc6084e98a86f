"""Bottleneck adapters: where they sit, that they begin as nothing, and that they alone move."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import BRIEF, HEAD, double, make_fit, make_trial, moved, one_thread, prepared, same, trained, world  # noqa: F401
from torch import nn
from torch.func import functional_call

from xferbench.core.errors import UserError
from xferbench.core.interventions import HEAD_ONLY, Trainable
from xferbench.core.pipeline import Phase
from xferbench.core.trial import ModelSpec
from xferbench.lab.data import preprocessing
from xferbench.lab.models import backbones, bottleneck_adapters, checkpoints
from xferbench.lab.training import loop as lab_fit
from xferbench.lab.worker import run_trials

ADAPTER = Phase(trainable=Trainable.parse("adapter:4"), batchnorm="eval", optimizer="sgd", lr=3e-2, **BRIEF)


def adapted(model, side, rank=3):
    """A network with adapters, its anatomy, and its tensors at the start."""
    anatomy = backbones.layer_layout(model.eval(), side)
    bottleneck_adapters.insert_adapters(model, anatomy, (3, side, side), rank)
    return anatomy, model.state_dict() | bottleneck_adapters.initial_adapters(model, 0)


def lively(tensors):
    """The same with adapters that add something."""
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
def test_each_layer_group_has_a_place_and_its_channels_an_axis(arch, side, expected):
    with torch.device("meta"):
        model = backbones.build(arch, 4).eval()
    anatomy = backbones.layer_layout(model, side)
    found = bottleneck_adapters.adapter_places(model, anatomy, (3, side, side))
    assert len(found) == len(anatomy.groups)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arch", "side"), [("tiny-resnet", 32), ("torchvision:squeezenet1_1", 64), ("torchvision:densenet121", 32)]
)
def test_a_network_begins_as_what_it_was_and_any_cut_of_it_adapts_as_the_whole_does(arch, side):
    torch.manual_seed(0)
    model, x = backbones.build(arch, 4).eval(), torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = model(x)
        anatomy, tensors = adapted(model, side)
        torch.testing.assert_close(functional_call(model, tensors, (x,)), before, rtol=0, atol=1e-6)
        tensors = lively(tensors)
        after = functional_call(model, tensors, (x,))
        assert not torch.allclose(after, before, atol=1e-3)
        for below in range(1, len(anatomy.groups) + 1):
            lower, upper = backbones.split_at(model, anatomy, below)
            parts = [{name: tensors[name] for name, _ in (*p.named_parameters(), *p.named_buffers())} for p in (lower, upper)]
            found = functional_call(upper, parts[1], (functional_call(lower, parts[0], (x,)),))
            torch.testing.assert_close(found, after, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_loads_as_if_there_were_none_with_whatever_prefix(tmp_path):
    model, plain = backbones.build("tiny-resnet", 4), backbones.build("tiny-resnet", 9)
    adapted(model, 32)
    state = {f"model.{name}": tensor for name, tensor in plain.state_dict().items()}
    assert checkpoints.head_tensors(model, state, "linear")["linear.weight"].shape == (9, 64)
    checkpoints.load_backbone(model, state, "linear")
    assert torch.equal(model.conv1.weight, plain.conv1.weight)


def test_adapters_are_as_wide_as_asked_and_drawn_by_the_seed():
    model = backbones.build("tiny-resnet", 4)
    anatomy, tensors = adapted(model, 32, rank=5)
    own = backbones.names_by_kind(anatomy, model)["adapter"]
    assert len(own) == 4 * len(anatomy.groups)
    assert tensors["layer4.adapter_down"].shape == (5, 64) and tensors["layer4.adapter_up"].shape == (64, 5)
    assert {name for name in own if tensors[name].any()} == {name for name in own if name.endswith("_down")}
    other = bottleneck_adapters.initial_adapters(model, 1)
    assert same(bottleneck_adapters.initial_adapters(model, 0), {name: tensors[name] for name in own})
    assert not torch.equal(other["layer4.adapter_down"], tensors["layer4.adapter_down"])
    kinds = backbones.names_by_kind(anatomy, model)
    assert not own & (kinds["norm"] | kinds["bias"] | kinds["lora"]), "whose words mean what they mean of the plain network"


def test_the_adapters_and_the_head_move_and_nothing_else(world):  # noqa: F811
    one = make_fit(world, ADAPTER)
    network, (start,), dataset = prepared(world, one)
    (found,) = lab_fit.train([one], network, [start], dataset)
    assert moved(found) == HEAD | backbones.names_by_kind(network.anatomy, network.module)["adapter"]
    (plain,) = trained(world, make_fit(world, Phase(trainable=HEAD_ONLY, batchnorm="eval", **BRIEF)))
    assert {name: found.before[name] for name in plain.before}.keys() == plain.before.keys() < found.before.keys()


@pytest.mark.parametrize("step", [{}, {"batchnorm": "train", "optimizer": "adamw"}])
def test_fits_trained_in_lock_step_are_as_if_each_were_alone(step, world, double):  # noqa: F811
    fits = [make_fit(world, replace(ADAPTER, **step), seed=seed) for seed in range(2)]
    network, starts, dataset = prepared(world, *fits)
    starts = [double(start) for start in starts]
    together = lab_fit.train(fits, network, starts, dataset)
    for one, start, found in zip(fits, starts, together, strict=True):
        (alone,) = lab_fit.train([one], network, [start], dataset)
        torch.testing.assert_close(found.last, alone.last, rtol=1e-6, atol=1e-8)
    assert not same(together[0].last, together[1].last)


def test_a_probe_before_them_is_computed_once_and_what_follows_trains_them_too(world, monkeypatch):  # noqa: F811
    probe, rest = replace(ADAPTER, trainable=HEAD_ONLY), replace(ADAPTER, trainable=Trainable.parse("top:1"))
    one = make_fit(world, probe, ADAPTER, rest)
    (cut,) = trained(world, one)
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    (whole,) = trained(world, one)
    torch.testing.assert_close(cut.last, whole.last, rtol=1e-4, atol=1e-5)
    assert "layer4.0.conv1.weight" in moved(whole) and "layer3.adapter_up" in moved(whole)
    assert "layer3.0.conv1.weight" not in moved(whole)


@pytest.mark.parametrize("edits", [(), ("batchnorm:recalibrated@2",), ("interpolated:0.5",)])
@pytest.mark.parametrize("view", [{}, {"mode": "training"}, {"examples": "validation"}])
def test_views_and_edits_see_the_adapted_network_and_its_weights_are_recalled(edits, view, world):  # noqa: F811
    trial = make_trial(make_fit(world, ADAPTER), **view)
    trial = replace(trial, model=ModelSpec(base=trial.model.base, edits=edits))
    (first,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world.cache)
    run_trials._network.cache_clear()
    (again,), fits = run_trials.run_trials([trial], frozenset([trial.key]), world.cache)
    assert fits == 0 and first.error == again.error == ""
    assert (first.predictions.p_true == again.predictions.p_true).all()


def test_what_a_view_sees_is_what_the_trained_tensors_compute(world):  # noqa: F811
    one = make_fit(world, ADAPTER)
    trial = make_trial(one)
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world.cache)
    network, starts, dataset = prepared(world, one)
    (found,) = lab_fit.train([one], network, starts, dataset)
    x = preprocessing.to_tensor(torch.from_numpy(np.array(dataset.test.images)), one.preprocessing)
    with torch.no_grad():
        p = functional_call(network.module, found.last, (x,)).softmax(1).numpy()
    assert abs(p[range(len(p)), dataset.test.labels] - record.predictions.p_true).max() < 1e-4


def test_a_copy_of_the_network_adapts_by_tensors_of_its_own():
    model, x = backbones.build("tiny-resnet", 4).eval(), torch.randn(2, 3, 32, 32)
    _, tensors = adapted(model, 32)
    copy = deepcopy(model)
    copy.load_state_dict(lively(tensors))
    with torch.no_grad():
        torch.testing.assert_close(copy(x), functional_call(model, copy.state_dict(), (x,)), rtol=0, atol=1e-5)
        assert not torch.allclose(copy(x), model(x), atol=1e-3)


def test_adapters_of_two_sizes_in_one_fit_are_refused():
    with pytest.raises(UserError, match="several sizes"):
        bottleneck_adapters.adapter_channels([ADAPTER, replace(ADAPTER, trainable=Trainable.parse("adapter:8"))])
    assert bottleneck_adapters.adapter_channels([ADAPTER, replace(ADAPTER, trainable=HEAD_ONLY)]) == 4
    assert bottleneck_adapters.adapter_channels([replace(ADAPTER, trainable=Trainable.parse("lora:4"))]) == 0


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
    anatomy = replace(backbones.layer_layout(model, 2), groups=(backbones.LayerGroup(name="body", prefixes=("body",)),))
    with pytest.raises(UserError, match="no place for an adapter"):
        bottleneck_adapters.insert_adapters(model, anatomy, (3, 2, 2), 2)
