"""Splits of a network: both parts together equal the network in both modes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from test_backbones import CLASSES, check_layout, on_meta  # noqa: F401
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.lab.models import backbones, graph_split

CUT = [
    ("tiny-resnet", 32),
    ("cifar-resnet20", 32),
    ("torchvision:squeezenet1_0", 64),
    ("torchvision:shufflenet_v2_x0_5", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:resnet18", 64),
]


SLOW_CUT = [
    ("torchvision:mnasnet0_5", 64),
    ("torchvision:alexnet", 96),
    ("torchvision:convnext_tiny", 64),
    ("torchvision:densenet121", 64),
    ("torchvision:efficientnet_b0", 64),
    ("torchvision:efficientnet_v2_s", 64),
    ("torchvision:googlenet", 64),
    ("torchvision:inception_v3", 96),
    ("torchvision:maxvit_t", 224),
    ("torchvision:mobilenet_v2", 64),
    ("torchvision:regnet_y_400mf", 64),
    ("torchvision:swin_t", 64),
    ("torchvision:swin_v2_t", 64),
    ("torchvision:vgg11_bn", 64),
    ("torchvision:vit_b_32", 224),
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", backbones.known_archs())
def test_every_architecture_has_a_layout_and_can_be_split_anywhere(arch, on_meta):  # noqa: F811
    model = on_meta(arch)
    layout = check_layout(model, 299 if "inception" in arch else 224, 40)
    for below in range(1, len(layout.groups) + 1):
        assert graph_split.split_at(model, layout, below) is not None, below


def test_layout_and_split_leave_modes_values_and_hooks_unchanged():
    model = backbones.build("tiny-resnet", CLASSES).train()
    model.layer2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph_split.split_at(model, backbones.layer_layout(model, 32), 3)
    assert model.training
    assert not any(module.training for module in model.layer2.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Shuffling(nn.Module):
    """A network that depends on the values of its input, so it cannot run on the meta device."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.first(x)
        if x.sum().item() > 1e9:
            x = x * 2
        return self.last(self.second(x).mean((2, 3)))


def test_a_network_that_needs_values_has_a_layout_but_no_split():
    model = Shuffling()
    layout = backbones.layer_layout(model, 16)
    assert [group.name for group in layout.groups] == ["first", "second"]
    assert graph_split.split_at(model, layout, 1) is None


class Dropping(nn.Module):
    """A network with functional dropout, whose mode a traced graph would fix."""

    def __init__(self):
        super().__init__()
        self.body, self.more, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.dropout(self.more(self.body(x)).mean((2, 3)), 0.5, training=self.training)
        return self.last(x)


def test_a_network_whose_trace_depends_on_the_mode_is_not_split():
    model = Dropping()
    layout = backbones.layer_layout(model, 16)
    assert all(graph_split.split_at(model, layout, below) is None for below in (1, 2))


class Bypassing(nn.Module):
    """A network with a second path around the first two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.last = nn.Linear(3, CLASSES)

    def forward(self, x):
        first = self.one(x)
        return self.last((self.three(self.two(first)) + first).mean((2, 3)))


def test_no_split_where_two_values_cross_the_cut():
    model = Bypassing()
    layout = backbones.layer_layout(model, 8)
    is_split = [graph_split.split_at(model, layout, below) is not None for below in range(4)]
    assert is_split == [False, True, False, True]


def run_calls(model, x, training, *calls):
    """Run modules in sequence from a fixed random state. Return the output and the tensors of the model after it."""
    tensors = model.state_dict()
    state = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(3)
        for call in calls:
            x = call.train(training)(x)
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(state[name])
    return x, changed


def check_cuts(arch, size, belows=None):
    model = backbones.build(arch, CLASSES)
    layout = backbones.layer_layout(model, size)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    whole = {training: run_calls(model, x, training, model) for training in (False, True)}
    for below in belows or range(1, len(layout.groups) + 1):
        lower, upper = graph_split.split_at(model, layout, below)
        tensor_ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        assert {id(tensor) for part in (lower, upper) for tensor in part.parameters()} <= tensor_ids
        for training, (logits, changed) in whole.items():
            actual, moved_too = run_calls(model, x, training, lower, upper)
            assert torch.equal(actual, logits), (below, training)
            assert all(torch.equal(changed[name], moved_too[name]) for name in changed)
        above = {
            name for name, distance in backbones.layer_depth(layout, model).items() if distance <= len(layout.groups) - below
        }
        assert {name for name, _ in upper.named_parameters()} == above & dict(model.named_parameters()).keys()


@pytest.mark.parametrize(("arch", "size"), CUT)
def test_both_parts_together_equal_the_network_in_both_modes(arch, size):
    count = 4 if "tiny" in arch or "cifar" in arch else None
    check_cuts(arch, size, None if count else (2, 5))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size"), CUT + SLOW_CUT)
def test_both_parts_together_equal_larger_networks_at_every_cut(arch, size):
    check_cuts(arch, size)


@pytest.mark.parametrize("arch", ["torchvision:squeezenet1_0", "torchvision:mobilenet_v3_small"])
def test_dropout_below_the_head_belongs_to_the_upper_part(arch):
    model = backbones.build(arch, CLASSES)
    layout = backbones.layer_layout(model, 64)
    lower, upper = graph_split.split_at(model, layout, len(layout.groups))
    x = lower.eval()(torch.randn(2, 3, 64, 64))
    copy = x.clone()
    assert any(isinstance(module, nn.Dropout) for module in upper.modules())
    assert not torch.equal(upper.train()(x), upper.eval()(x))
    assert torch.equal(x, copy)


def test_the_lower_part_includes_the_pooling():
    model = backbones.build("torchvision:resnet18", CLASSES)
    lower, _ = graph_split.split_at(model, backbones.layer_layout(model, 64), 5)
    assert lower.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_a_part_uses_the_tensor_names_of_the_network():
    model = backbones.build("tiny-resnet", CLASSES).eval()
    _, upper = graph_split.split_at(model, backbones.layer_layout(model, 32), 5)
    tensors = {name: torch.full_like(model.get_parameter(name), 2) for name, _ in upper.named_parameters()}
    assert set(tensors) == {"linear.weight", "linear.bias"}
    assert (functional_call(upper, tensors, (torch.ones(2, 64),)) == 2 * 64 + 2).all()


TIMM_LAYOUTS = {
    "resnet18": ("fc", 5),
    "convnext_atto": ("head.fc", 5),
    "vit_tiny_patch16_224": ("head", 13),
    "mobilenetv3_small_050": ("classifier", 8),
    "efficientnet_lite0": ("classifier", 9),
}


@pytest.mark.parametrize("name", TIMM_LAYOUTS)
def test_backbones_of_timm_have_a_layout_and_can_be_split(name):
    pytest.importorskip("timm")
    model, size = backbones.build(f"timm:{name}", CLASSES), 224 if "vit" in name else 64
    layout = check_layout(model, size, 13)
    assert (layout.head, len(layout.groups)) == TIMM_LAYOUTS[name]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    parts = graph_split.split_at(model, layout, len(layout.groups) - 1)
    assert (parts is None) == ("vit" in name), "a transformer of timm cannot be traced, and is left whole"
    if parts is not None:
        for training in (False, True):
            logits, _ = run_calls(model, x, training, model)
            assert torch.equal(run_calls(model, x, training, *parts)[0], logits)
