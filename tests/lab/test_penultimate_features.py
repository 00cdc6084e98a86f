"""Penultimate features, and a linear head fitted to them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from xferbench.core.transforms import Preprocessing
from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import penultimate_features
from xferbench.lab.models import backbones
from xferbench.lab.training.network import Architecture

PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.25,))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_network(arch, size, cache):
    torch.manual_seed(0)
    module = backbones.build(arch, 5)
    layout = backbones.layer_layout(module, size)
    return Architecture(module=module, layout=layout, device=torch.device("cpu"), cache=cache)


def pixels(count, size):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def extract_features(network, images):
    tensors = {name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}
    return penultimate_features.head_inputs(network, tensors, images, PREPROCESSING)


@torch.no_grad()
def test_a_linear_head_on_its_inputs_computes_the_logits(tmp_path):
    network, images = make_network("tiny-resnet", 16, tmp_path), pixels(70, 16)
    network.module.train()
    features = extract_features(network, images)
    assert features.shape == (70, network.layout.features)
    assert network.module.training, "the mode is restored"
    head = network.module.get_submodule(network.layout.head)
    expected = network.module.eval()(preprocessing.to_tensor(images, PREPROCESSING))
    torch.testing.assert_close(F.linear(features, head.weight, head.bias), expected, rtol=1e-4, atol=1e-5)
    assert not head._forward_pre_hooks


@torch.no_grad()
def test_inputs_of_a_convolutional_head_are_averaged_over_positions(tmp_path):
    network, images = make_network("torchvision:squeezenet1_0", 64, tmp_path), pixels(2, 64)
    features = extract_features(network, images)
    assert features.shape == (2, 512)
    maps = network.module.eval().features(preprocessing.to_tensor(images, PREPROCESSING))
    assert maps.shape[2] > 1
    torch.testing.assert_close(features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def make_features(count=60):
    """Return three distant classes, in units and with offsets that differ by factors of a thousand."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    x = F.one_hot(y, 3) * 4.0 + torch.randn(count, 3, generator=generator) * 0.5
    return x * torch.tensor([1e-3, 1.0, 1e3]) + torch.tensor([5.0, 0.0, -100.0]), y


def test_a_fitted_head_separates_classes_in_any_units():
    x, y = make_features()
    weight, bias = penultimate_features.fit_logistic_regression(x, y, 3)
    assert weight.shape == (3, 3) and bias.shape == (3,) and weight.dtype == torch.float64
    assert (F.linear(x.double(), weight, bias).argmax(1) == y).all()


def test_the_fit_does_not_depend_on_the_order_of_images():
    x, y = make_features()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    first, again, shuffled = (
        penultimate_features.fit_logistic_regression(*examples, 3) for examples in ((x, y), (x, y), (x[order], y[order]))
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    p, q = (F.linear(x.double(), *head).softmax(1) for head in (first, shuffled))
    torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_fit_is_zero():
    x, y = make_features()
    weight, bias = penultimate_features.fit_logistic_regression(x, y, 3)
    mean, scale = x.mean(0).double(), x.std(0).double()
    w, b = (weight * scale).requires_grad_(), (bias + weight @ mean).requires_grad_()
    loss = F.cross_entropy(F.linear((x.double() - mean) / scale, w, b), y) + penultimate_features.L2_PENALTY * w.square().sum()
    assert all(gradient.abs().max() < 1e-3 for gradient in torch.autograd.grad(loss, [w, b]))


def test_an_unused_output_and_a_constant_feature_are_harmless():
    x, y = make_features()
    x = torch.cat([x, torch.full((len(x), 1), 7.0)], 1)
    weight, bias = penultimate_features.fit_logistic_regression(x, y, 6)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert (F.linear(x.double(), weight, bias).argmax(1) == y).all()
