"""Heads as people build them: found in a checkpoint, read from their tensors, and put on a network."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
from torch import nn

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.finished_head import FinishedHead
from xferbench.core.interventions import as_dict
from xferbench.core.plugin import DataProfile, ModelProfile, Profile, UserCodeProfile
from xferbench.core.transforms import Preprocessing
from xferbench.lab.models import arch_detection, backbones, finished, finished_heads, head_layers, heads
from xferbench.lab.training.network import Architecture
from xferbench.runner import store

WIDTH = 64  # features of tiny-resnet
HEADS = {
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5)),
    "dropout": lambda: nn.Sequential(nn.Dropout(), nn.Linear(WIDTH, 5)),
    "first": lambda: nn.Sequential(nn.Linear(WIDTH, 5, bias=False)),
    "norm": lambda: nn.Sequential(nn.Linear(WIDTH, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5)),
    "norm behind": lambda: nn.Sequential(nn.Linear(WIDTH, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Dropout(), nn.Linear(20, 5)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)),
    "no activation": lambda: nn.Sequential(nn.Linear(WIDTH, 20), nn.Linear(20, 5)),
    "prelu": lambda: nn.Sequential(nn.Linear(WIDTH, 20), nn.PReLU(), nn.Linear(20, 5)),
    "deep": lambda: nn.Sequential(*(nn.Linear(WIDTH, WIDTH), nn.ReLU()) * 3, nn.Linear(WIDTH, 5)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, 20), nn.BatchNorm1d(20), nn.ReLU()), nn.Sequential(nn.Dropout(), nn.Linear(20, 5))
    ),
    "named": lambda: nn.Sequential(
        OrderedDict(norm=nn.BatchNorm1d(WIDTH), hidden=nn.Linear(WIDTH, 20), act=nn.ReLU(), out=nn.Linear(20, 5))
    ),
}


def randomize(module):
    """Give every tensor random values, also statistics."""
    stream = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.1 * torch.rand(tensor.shape, generator=stream) + 0.05)
    return module.eval()


def read_again(arch, head, state, side=32, classes=5):
    """Return the network that is read from a state, with its tensors."""
    plain = backbones.build(arch, classes).eval()
    found = finished_heads.find_head(plain, head, state, classes)
    assert found.finished is not None
    heads.replace_by_finished(plain, found.finished, found.outputs)
    layout = backbones.layer_layout(plain, side, found.place)
    network = Architecture(module=plain, layout=layout, device=torch.device("cpu"), cache=None)
    plain.load_state_dict(finished.checkpoint_tensors(network, state, found.finished))
    return plain, found


@pytest.mark.parametrize("name", HEADS)
def test_the_network_that_is_read_computes_what_the_users_network_computes(name):
    user = backbones.build("tiny-resnet", 5)
    user.linear = HEADS[name]()
    randomize(user)
    actual, _ = read_again("tiny-resnet", "linear", user.state_dict())
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(actual(images), user(images))


def test_a_head_that_is_sorted_by_name_is_read_in_the_order_of_its_widths():
    user = backbones.build("tiny-resnet", 5)
    layers = {
        "wide": nn.Linear(WIDTH, 30),
        "act": nn.ReLU(),
        "mid": nn.Linear(30, 20),
        "act2": nn.ReLU(),
        "a": nn.Linear(20, 5),
    }
    user.linear = nn.Sequential(OrderedDict(layers))
    randomize(user)
    actual, _ = read_again("tiny-resnet", "linear", dict(sorted(user.state_dict().items())))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(actual(images), user(images))


def test_a_note_names_the_layers_and_what_is_assumed():
    user = backbones.build("tiny-resnet", 5)
    user.linear = HEADS["mlp"]()
    _, found = read_again("tiny-resnet", "linear", user.state_dict())
    assert found.note == (
        "head: read from its tensors as Linear 64 → 20 (linear.0), ReLU, Linear 20 → 5 (linear.3); "
        "assumed: ReLU, which has no tensors; no Sigmoid or Softmax behind it"
    )
    user.linear = HEADS["no activation"]()
    assert "ReLU" not in read_again("tiny-resnet", "linear", user.state_dict())[1].note


class Wrapper(nn.Module):
    """A network of the user that calls a backbone."""

    def __init__(self, backbone, **modules):
        super().__init__()
        self.backbone = backbone
        for name, module in modules.items():
            self.add_module(name, module)


def headless(head=None):
    network = backbones.build("tiny-resnet", 5)
    network.linear = head or nn.Identity()
    return network


@pytest.mark.parametrize(
    ("modules", "path"),
    [
        ({"head": nn.Sequential(OrderedDict(fc=nn.Linear(WIDTH, 5)))}, "head.fc"),
        ({"classifier": nn.Linear(WIDTH, 5), "loss": nn.Linear(3, 3)}, "classifier"),
        ({"classifier": HEADS["mlp"]()}, "classifier.3"),
        ({"heads": nn.ModuleList([nn.Sequential(OrderedDict(clf=nn.Linear(WIDTH, 5)))])}, "heads.0.clf"),
    ],
)
def test_a_head_beside_the_network_is_found(modules, path):
    user = Wrapper(headless(), **modules)
    found = finished_heads.find_head(*make_plain(), user.state_dict(), 5)
    assert found.finished.layers[-1].name == path
    assert (found.place, found.outputs) == ("linear", 5)


def make_plain(arch="tiny-resnet", classes=5, head="linear"):
    with torch.device("meta"):
        return backbones.build(arch, classes), head


def test_beside_a_network_with_a_prefix_the_number_of_classes_decides():
    user = Wrapper(headless(nn.Linear(WIDTH, 9)), task=nn.Linear(WIDTH, 5), other=nn.Linear(WIDTH, 7))
    assert finished_heads.find_head(*make_plain(), user.state_dict(), 5).finished.layers[-1].name == "task"
    assert finished_heads.find_head(*make_plain(), user.state_dict(), 9).finished is None
    stacked = Wrapper(headless(nn.Linear(WIDTH, 9)), task=nn.Linear(9, 5))
    assert [layer.inputs for layer in finished_heads.find_head(*make_plain(), stacked.state_dict(), 5).finished.layers] == [
        WIDTH,
        9,
    ]


def test_two_heads_for_the_same_number_of_classes_are_an_error_that_names_both():
    user = Wrapper(headless(), color=nn.Linear(WIDTH, 5), shape=nn.Linear(WIDTH, 5))
    with pytest.raises(UserError, match=r"found: color with 5 outputs, shape with 5 outputs"):
        finished_heads.find_head(*make_plain(), user.state_dict(), 5)


def test_a_head_that_the_network_never_calls_is_left_out_with_a_note():
    network = headless(nn.Linear(WIDTH, 9))
    network.fc = nn.Linear(WIDTH, 5)
    plain, head = make_plain()
    found = finished_heads.find_head(plain, head, network.state_dict(), 5)
    assert (found.finished, found.outputs) == (None, 9)
    assert finished_heads.unused_note(plain, found, network.state_dict()) == "weights: not used: fc.weight, fc.bias"


@pytest.mark.parametrize(
    ("arch", "own", "place", "classifier", "kinds"),
    [
        ("torchvision:vgg11", "classifier.6", "classifier", [nn.Linear(25088, 9), nn.Linear(9, 5)], "linear linear"),
        ("torchvision:efficientnet_b0", "classifier.1", "classifier", [nn.Linear(1280, 5)], "linear"),
        (
            "torchvision:mobilenet_v3_small",
            "classifier.3",
            "classifier",
            [nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(), nn.Linear(1024, 1000), nn.ReLU(), nn.Linear(1000, 5)],
            "linear hardswish identity linear relu linear",
        ),
    ],
)  # fmt: skip
def test_a_whole_classifier_may_be_replaced(arch, own, place, classifier, kinds):
    with torch.device("meta"):
        user = backbones.build(arch, 5)
        user.classifier = nn.Sequential(*classifier)
    found = finished_heads.find_head(*make_plain(arch, head=own), user.state_dict())
    assert found.place == place
    assert " ".join(layer.kind for layer in found.finished.layers) == kinds


def test_one_layer_of_a_classifier_may_be_replaced():
    with torch.device("meta"):
        user = backbones.build("torchvision:efficientnet_b0", 5)
        user.classifier[1] = nn.Sequential(nn.Linear(1280, 30), nn.ReLU(), nn.Linear(30, 5))
    found = finished_heads.find_head(*make_plain("torchvision:efficientnet_b0", head="classifier.1"), user.state_dict())
    assert found.place == "classifier.1"
    assert [layer.name for layer in found.finished.layers] == ["classifier.1.0", "", "classifier.1.2"]


class MaxThenAverage(nn.Module):
    def forward(self, x):
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


def test_a_head_of_fastai_is_read():
    layers = [MaxThenAverage(), nn.Flatten(), nn.BatchNorm1d(1024), nn.Dropout(), nn.Linear(1024, 32, bias=False), nn.ReLU()]
    head = nn.Sequential(*layers, nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 5, bias=False))
    body = nn.Sequential(*list(backbones.build("torchvision:resnet18", 5).children())[:-2])
    user = randomize(nn.Sequential(body, head))
    actual, found = read_again("torchvision:resnet18", "fc", user.state_dict())
    assert "as in fastai" in found.note
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(actual(images), user(images))


def test_a_head_that_cannot_be_read_is_named_with_a_builder_that_works(tmp_path, monkeypatch):
    state = headless(nn.TransformerEncoderLayer(WIDTH, 2, 8)).state_dict()
    with pytest.raises(UserError, match="cannot be read from its tensors") as refused:
        finished_heads.find_head(*make_plain(), state, 5, "tiny-resnet")
    assert "linear.self_attn.in_proj_weight [192, 64]" in refused.value.found
    lines = [line.strip() for line in refused.value.do.splitlines()[1:]]
    (tmp_path / "net.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    import net

    assert net.build(4)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_a_chain_that_does_not_fit_is_not_read():
    assert head_layers.read_layers({"fc.0.weight": (4, 8), "fc.2.weight": (3, 5)}, "fc") == ()
    assert head_layers.read_layers({"fc.0.weight": (4, 8), "fc.1.running_mean": (4,), "fc.1.running_var": (4,)}, "fc") == ()


def test_one_output_for_two_classes_is_the_logit_of_the_second():
    user = headless(nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, 1)))
    randomize(user)
    plain = backbones.build("tiny-resnet", 2).eval()
    head = finished_heads.find_head(plain, "linear", user.state_dict(), 2).finished
    heads.replace_by_finished(plain, head, 2)
    layout = backbones.layer_layout(plain, 32, "linear")
    network = Architecture(module=plain, layout=layout, device=torch.device("cpu"), cache=None)
    plain.load_state_dict(finished.checkpoint_tensors(network, user.state_dict(), head))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images).softmax(1)[:, 1:], user(images).sigmoid())


@pytest.mark.parametrize("prefix", ["", "module.net.", "trunk."])
@pytest.mark.parametrize("name", ["mlp", "dropout", "norm"])
def test_the_architecture_is_detected_under_any_head_and_prefix(tmp_path, name, prefix):
    user = headless(HEADS[name]())
    torch.save({f"{prefix}{key}": tensor for key, tensor in user.state_dict().items()}, tmp_path / "w.pth")
    assert arch_detection.detect_arch(tmp_path / "w.pth") == "tiny-resnet"


def test_the_architecture_is_detected_beside_its_head_and_by_numbers(tmp_path):
    torch.save(Wrapper(headless(), head=nn.Linear(WIDTH, 5)).state_dict(), tmp_path / "a.pth")
    assert arch_detection.detect_arch(tmp_path / "a.pth") == "tiny-resnet"
    body = nn.Sequential(*list(backbones.build("torchvision:resnet18", 5).children())[:-2])
    torch.save(nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(512, 5))).state_dict(), tmp_path / "b.pth")
    assert arch_detection.detect_arch(tmp_path / "b.pth") == "torchvision:resnet18"


def test_a_stored_profile_keeps_the_head(tmp_path):
    head = FinishedHead(place="fc", layers=head_layers.read_layers({"fc.0.weight": (4, 8), "fc.2.weight": (3, 4)}, "fc"))
    profile = Profile(
        model=ModelProfile(parameters=1, groups=(), head="fc", batchnorm=(), finished_head=head),
        data=DataProfile(classes=(), train=0, validation=0, test=0, test_groups=None),
        user_code=UserCodeProfile(),
        preprocessing=Preprocessing(),
    )
    with store.open_store(tmp_path / "store.sqlite") as db:
        store.put_profile(db, "key", profile)
        assert store.get_profile(db, "key") == profile
    assert json.loads(json.dumps(as_dict(head)))["layers"][0]["name"] == "fc.0"
    assert digest(head) != digest(replace(head, place="classifier"))
