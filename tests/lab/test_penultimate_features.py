"""What enters the head, and a head that is fitted anew on it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from xferbench.core.pipeline import Preprocessing
from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import penultimate_features
from xferbench.lab.models import backbones
from xferbench.lab.training.network import Architecture

READY = Preprocessing(mean=(0.5,), std=(0.25,))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_network(arch, size, cache):
    torch.manual_seed(0)
    module = backbones.build(arch, 5)
    anatomy = backbones.layer_layout(module, size)
    return Architecture(module=module, anatomy=anatomy, device=torch.device("cpu"), cache=cache)


def pixels(count, size):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def features_of(network, images):
    tensors = {name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}
    return penultimate_features.head_inputs(network, tensors, images, READY)


@torch.no_grad()
def test_a_linear_head_on_its_inputs_gives_the_logits(tmp_path):
    network, images = make_network("tiny-resnet", 16, tmp_path), pixels(70, 16)
    network.module.train()
    found = features_of(network, images)
    assert found.shape == (70, network.anatomy.features)
    assert network.module.training, "its own mode is put back"
    head = network.module.get_submodule(network.anatomy.head)
    expected = network.module.eval()(preprocessing.to_tensor(images, READY))
    torch.testing.assert_close(F.linear(found, head.weight, head.bias), expected, rtol=1e-4, atol=1e-5)
    assert not head._forward_pre_hooks


@torch.no_grad()
def test_a_convolutional_heads_inputs_are_averaged_over_their_places(tmp_path):
    network, images = make_network("torchvision:squeezenet1_0", 64, tmp_path), pixels(2, 64)
    found = features_of(network, images)
    assert found.shape == (2, 512)
    maps = network.module.eval().features(preprocessing.to_tensor(images, READY))
    assert maps.shape[2] > 1
    torch.testing.assert_close(found, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def make_features(count=60):
    """Three classes on far corners, in units and with offsets that differ a thousandfold."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    x = F.one_hot(y, 3) * 4.0 + torch.randn(count, 3, generator=generator) * 0.5
    return x * torch.tensor([1e-3, 1.0, 1e3]) + torch.tensor([5.0, 0.0, -100.0]), y


def test_a_refitted_head_separates_what_can_be_separated_whatever_the_units():
    x, y = make_features()
    weight, bias = penultimate_features.fit_logistic_regression(x, y, 3)
    assert weight.shape == (3, 3) and bias.shape == (3,) and weight.dtype == torch.float64
    assert (F.linear(x.double(), weight, bias).argmax(1) == y).all()


def test_it_has_one_answer_whatever_the_order_of_the_images():
    x, y = make_features()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    first, again, shuffled = (
        penultimate_features.fit_logistic_regression(*one, 3) for one in ((x, y), (x, y), (x[order], y[order]))
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    p, q = (F.linear(x.double(), *one).softmax(1) for one in (first, shuffled))
    torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_at_its_answer_the_gradient_is_nothing():
    x, y = make_features()
    weight, bias = penultimate_features.fit_logistic_regression(x, y, 3)
    mean, scale = x.mean(0).double(), x.std(0).double()
    w, b = (weight * scale).requires_grad_(), (bias + weight @ mean).requires_grad_()
    loss = F.cross_entropy(F.linear((x.double() - mean) / scale, w, b), y) + penultimate_features.L2_PENALTY * w.square().sum()
    assert all(gradient.abs().max() < 1e-3 for gradient in torch.autograd.grad(loss, [w, b]))


def test_an_output_without_an_image_and_a_feature_that_never_varies_do_no_harm():
    x, y = make_features()
    x = torch.cat([x, torch.full((len(x), 1), 7.0)], 1)
    weight, bias = penultimate_features.fit_logistic_regression(x, y, 6)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert (F.linear(x.double(), weight, bias).argmax(1) == y).all()
