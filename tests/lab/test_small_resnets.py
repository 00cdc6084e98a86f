from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.func import functional_call, stack_module_state, vmap

from xferbench.core.errors import UserError
from xferbench.lab.models.small_resnets import DEPTHS, IdentityShortcut, cifar_resnet, tiny_resnet

NETS = {"tiny": lambda: tiny_resnet(10), "cifar": lambda: cifar_resnet(20)}
every_net = pytest.mark.parametrize("build", NETS.values(), ids=NETS)
CHECKPOINTS = [(20, "resnet20-12fca82f.th", 0.915), (32, "resnet32-d509ac18.th", 0.928), (44, "resnet44-014dd654.th", 0.933)]


@pytest.fixture(autouse=True)
def fixed_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def count_parameters(net):
    return sum(tensor.numel() for tensor in net.parameters())


def build_networks(build, count):
    """Build networks with different weights and different BatchNorm statistics."""
    nets = [build() for _ in range(count)]
    with torch.no_grad():
        for net in nets:
            net.train()(torch.randn(8, 3, 32, 32))
    return nets


def call_networks(nets, images, *, train):
    """Return the logits and new buffers of all networks at once."""
    weights, buffers = stack_module_state([net.train(train) for net in nets])

    def call_network(weights, buffers, image):
        buffers = {name: tensor.clone() for name, tensor in buffers.items()}
        return functional_call(nets[0], (weights, buffers), (image,)), buffers

    with torch.no_grad():
        return vmap(call_network)(weights, buffers, images)


def test_the_tiny_network_has_few_parameters():
    assert 0.1e6 < count_parameters(tiny_resnet(20)) < 0.13e6
    assert count_parameters(tiny_resnet(20, width=8)) < count_parameters(tiny_resnet(20)) / 3


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_networks_have_the_parameter_counts_of_the_paper(depth, millions):
    assert count_parameters(cifar_resnet(depth)) / 1e6 == pytest.approx(millions, abs=0.007)


def test_resnet20_has_269722_parameters():
    assert count_parameters(cifar_resnet(20)) == 269_722


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_convolutions_and_the_linear_layer(depth):
    layers = [m for m in cifar_resnet(depth).modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == depth


def test_another_depth_is_an_error():
    with pytest.raises(UserError, match="20, 32, 44, 56"):
        cifar_resnet(18)


@every_net
def test_logits_have_one_column_per_class(build):
    assert build()(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert build()(torch.randn(2, 3, 24, 24)).shape == (2, 10)


@every_net
def test_shortcuts_have_no_parameters(build):
    net = build()
    shortcuts = [module for module in net.modules() if isinstance(module, IdentityShortcut)]
    assert len(shortcuts) == len(net.stages) - 1
    assert not any(tensor for shortcut in shortcuts for tensor in shortcut.state_dict())
    assert not [name for name in net.state_dict() if "shortcut" in name]


def test_a_shortcut_subsamples_and_pads_with_zero_channels():
    x = torch.arange(32.0).reshape(1, 2, 4, 4) + 1
    out = IdentityShortcut(2, 1, 3)(x)
    assert out.shape == (1, 6, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3, 4, 5]].any()


@every_net
def test_modules_have_the_names_of_the_common_checkpoints(build):
    names = set(build().state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.bn2.num_batches_tracked",
        "linear.bias",
    } <= names


@every_net
@pytest.mark.parametrize("train", [False, True])
def test_torch_fx_can_trace_the_networks(build, train):
    net, images = build_networks(build, 1)[0].train(train), torch.randn(4, 3, 32, 32)
    traced = torch.fx.symbolic_trace(net)
    with torch.no_grad():
        assert torch.equal(traced(images), net(images))


@every_net
@pytest.mark.parametrize("train", [False, True])
def test_stacked_networks_equal_single_ones(build, train):
    nets, images = build_networks(build, 3), torch.randn(3, 4, 3, 32, 32)
    together, buffers = call_networks(nets, images, train=train)
    with torch.no_grad():
        alone = torch.stack([net.train(train)(image) for net, image in zip(nets, images, strict=True)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)
    for i, net in enumerate(nets):
        for name, tensor in net.named_buffers():
            assert torch.allclose(buffers[name][i], tensor, atol=1e-4), name


@every_net
def test_the_memory_layout_does_not_change_the_output(build):
    net, images = build().eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        plain = net(images)
        last = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


def test_gradient_descent_fits_a_few_images():
    net, images, labels = tiny_resnet(4), torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for tensor, slope in zip(net.parameters(), slopes, strict=True):
                tensor.sub_(0.1 * slope)
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < 0.2


@pytest.mark.parametrize(
    ("depth", "file", "accuracy"), [CHECKPOINTS[0], *(pytest.param(*c, marks=pytest.mark.slow) for c in CHECKPOINTS[1:])]
)
def test_published_checkpoints_reach_their_accuracy(shared, depth, file, accuracy):
    state = torch.load(shared / "weights" / file, weights_only=True, map_location="cpu")["state_dict"]
    net = cifar_resnet(depth).eval()
    net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    with np.load(shared / "data" / "cifar10.npz") as data:
        images, labels = data["test_images"], data["test_labels"]
    images = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    images = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = torch.cat([net(part).argmax(1) for part in images.split(250)])
    assert (predicted.numpy() == labels).mean() == pytest.approx(accuracy, abs=0.0015)
