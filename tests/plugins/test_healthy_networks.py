"""The exact checks of an audit never fail on healthy networks: all families of torchvision and timm, with random weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.core.errors import UserError
from xferbench.core.interventions import EVAL_MODE
from xferbench.core.record import Record
from xferbench.core.transforms import Preprocessing
from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import context
from xferbench.lab.models import backbones, batchnorm, finished
from xferbench.lab.training.network import Architecture
from xferbench.plugins import collapse, reload, train_serve_skew

CLASSES, IMAGES = 4, 8
SIDES = (64, 96, 128, 160, 224, 240, 256, 288, 384, 448, 768)  # pixels; the first one that a network accepts
MAX_LAYER_SCALE = 0.01  # layer scales start so small that the class token of an untrained network is the same for all images
HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FAST = ("torchvision:mobilenet_v3_small", "torchvision:mnasnet0_5", "torchvision:regnet_y_400mf", "timm:test_convnext")
# The smallest network of each family of torchvision, and of each module of timm 1.0.
ARCHITECTURES = Path(__file__).with_name("architectures.txt").read_text(encoding="utf-8").split()
SLOW = [arch for arch in ARCHITECTURES if arch not in FAST]


def make_images(side):
    """Return images [n, 3, side, side] with coarse patches of color and some noise."""
    generator = np.random.default_rng(0)
    patches = generator.integers(0, 256, (IMAGES, 3, 4, 4)).repeat(side // 4, 2).repeat(side // 4, 3)
    noise = generator.integers(-20, 21, (IMAGES, 3, side, side))
    return torch.from_numpy(np.clip(patches + noise, 0, 255).astype(np.uint8))


def first_layout(module):
    """Return the first accepted side, and the layout of the network."""
    for side in SIDES:
        try:
            return side, backbones.layer_layout(module, side)
        except UserError:
            continue
    pytest.fail(f"the network accepts none of {SIDES} pixels")


def make_context(build, folder):
    """Return the context of a finished network: random weights, a random head, and statistics that fit them."""
    torch.manual_seed(0)
    module = build()
    side, layout = first_layout(module)
    nn.init.normal_(module.get_submodule(layout.head).weight)
    for parameter in module.parameters():
        if 0 < parameter.min() == parameter.max() < MAX_LAYER_SCALE:
            nn.init.ones_(parameter)
    network = Architecture(module=module, layout=layout, device=torch.device("cpu"), cache=folder)
    after = finished.checkpoint_tensors(network, module.state_dict())
    images = make_images(side)
    after |= batchnorm.recalibrate(module, after, [preprocessing.to_tensor(images, HALF)])
    examples = context.Examples(images=images, labels=torch.arange(IMAGES) % CLASSES, preprocessing=HALF)
    torch.manual_seed(1)  # what a network draws at random when it is built differs between processes
    return context.MeasureContext(
        before=after,
        after=after,
        network=network,
        train=examples,
        test=examples,
        mode=EVAL_MODE,
        trial=None,
        build_random=build,
    )


@pytest.mark.parametrize("arch", [*FAST, *(pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW)])
def test_the_exact_checks_hold_for_a_healthy_network(arch, tmp_path):
    if arch.startswith(backbones.TIMM_PREFIX) and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    measured = make_context(partial(backbones.build, arch, CLASSES), tmp_path)
    assert reload.reload(measured)["reload"] == 0
    assert collapse.collapse(measured)["collapse"] == 0
    assert train_serve_skew.batch_dependence(measured)["batch-dependence"] == 0


class TableOfRandomValues(nn.Module):
    """A network that computes with random values which its state dict does not contain."""

    def __init__(self, size):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)
        self.table = 1 + size * torch.randn(8)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)) * self.table)


@pytest.mark.parametrize(("size", "share"), [(0.0, 0.0), (0.01, 1.0)])
def test_reload_sees_values_that_the_state_dict_lacks(size, share, tmp_path):
    assert reload.reload(make_context(partial(TableOfRandomValues, size), tmp_path))["reload"] == share


class ClippedNetwork(nn.Module):
    """A network with a bound that clips nothing, as some vision transformers have."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)
        self.register_buffer("highest", torch.tensor(float("inf")))

    def forward(self, x):
        return self.head(self.body(x).clamp(max=self.highest).relu().mean((2, 3)))


def test_a_collapse_by_batchnorm_statistics_is_not_blamed_on_the_weights(tmp_path):
    healthy = make_context(partial(backbones.build, "tiny-resnet", CLASSES), tmp_path)
    names = [name for name in healthy.after if name.endswith("running_var")]

    def explain(after):
        scalars = collapse.collapse(replace(healthy, after=after))
        assert scalars["collapse"] == 1
        record = Record(key="k", scalars=scalars)
        return collapse.explain("harm", {("subject", "collapse", 0): record}, None, None)

    infinite = explain(healthy.after | {name: torch.full_like(healthy.after[name], float("inf")) for name in names})
    assert infinite.startswith("values that are not finite in ")
    assert "the cause is the running statistics" in infinite
    means = [name.replace("running_var", "running_mean") for name in names]
    large = explain(healthy.after | {name: torch.full_like(healthy.after[name], 1e6) for name in means})
    assert "the cause is the running statistics" in large
    kernels = [name for name, tensor in healthy.after.items() if tensor.ndim == 4]
    zeros = explain(healthy.after | {name: torch.zeros_like(healthy.after[name]) for name in kernels})
    assert "the cause is" not in zeros
    head = f"{healthy.network.layout.head}.weight"
    for value in (0.0, float("nan")):
        broken_head = explain(healthy.after | {head: torch.full_like(healthy.after[head], value)})
        assert "the cause is" not in broken_head, "the features are sound, so the statistics are not the cause"


def test_an_infinite_bound_is_no_collapse_and_an_infinite_weight_is(tmp_path):
    healthy = make_context(ClippedNetwork, tmp_path)
    assert collapse.collapse(healthy)["collapse"] == 0
    weight = healthy.after["body.weight"].clone()
    weight[0, 0, 0, 0] = float("inf")
    scalars = collapse.collapse(replace(healthy, after=healthy.after | {"body.weight": weight}))
    assert scalars["collapse"] == scalars["not finite/body.weight"] == 1
