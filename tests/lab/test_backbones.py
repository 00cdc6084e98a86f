from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torch import nn
from torchvision.models.regnet import BlockParams

from xferbench.core.errors import UserError
from xferbench.core.interventions import ALL_LAYERS, HEAD_ONLY, Trainable
from xferbench.lab.models import backbones

CLASSES = 7
STEMMED = ["conv1", "layer1", "layer2", "layer3", "layer4"]
STAGES = {
    "tiny-resnet": STEMMED,
    "cifar-resnet20": STEMMED[:-1],
    "torchvision:resnet18": STEMMED,
    "torchvision:shufflenet_v2_x0_5": ["conv1", "stage2", "stage3", "stage4", "conv5"],
    "torchvision:squeezenet1_0": [f"features.{index}" for index in (0, 3, 4, 5, 7, 8, 9, 10, 12)],
    "torchvision:alexnet": [*(f"features.{index}" for index in (0, 3, 6, 8, 10)), "classifier.1", "classifier.4"],
    "torchvision:vit_b_32": ["conv_proj", *(f"encoder.layers.encoder_layer_{index}" for index in range(12))],
    "torchvision:mobilenet_v3_small": [*(f"features.{index}" for index in range(13)), "classifier.0"],
    "torchvision:regnet_y_400mf": ["stem", *(f"trunk_output.block{index}" for index in (1, 2, 3, 4))],
    "torchvision:swin_t": [f"features.{index}" for index in range(8)],
    "torchvision:googlenet": [
        "conv1",
        *(f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    ],
    "torchvision:mnasnet0_5": [f"layers.{index}" for index in (0, *range(8, 15))],
}


@pytest.fixture
def on_meta(monkeypatch):
    """Build networks of any size on the meta device. RegNet computes its widths with tensors, which need values."""
    widths = BlockParams.from_init_params.__func__

    def with_values(cls, *args, **kwargs):
        with torch.device("cpu"):
            return widths(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(with_values))

    def build(arch):
        with torch.device("meta"):
            return backbones.build(arch, CLASSES)

    return build


def names(model):
    return {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))}


def check_layout(model, size, ceiling):
    layout = backbones.layer_layout(model, size)
    parts = [(layout.head,), *(group.prefixes for group in layout.groups)]
    for name in names(model):
        assert sum(backbones.is_within(name, part) for part in parts) == 1, name
    assert all(any(backbones.is_within(name, part) for name in names(model)) for part in parts)
    assert len({group.name for group in layout.groups}) == len(layout.groups)
    assert 3 <= len(layout.groups) <= ceiling
    head = model.get_submodule(layout.head)
    assert head.weight.shape[:2] == (CLASSES, layout.features)
    assert layout.classes == CLASSES
    assert layout.parameters == sum(parameter.numel() for parameter in model.parameters())
    return layout


@pytest.mark.parametrize("arch", STAGES)
def test_the_groups_of_a_network_are_its_stages_and_every_tensor_belongs_to_one(arch, on_meta):
    layout = check_layout(on_meta(arch), 224, 14)
    assert [group.name for group in layout.groups] == STAGES[arch]


def test_the_class_token_belongs_to_the_stem_and_the_last_norm_to_the_last_block(on_meta):
    groups = backbones.layer_layout(on_meta("torchvision:vit_b_32"), 224).groups
    assert set(groups[0].prefixes) == {"class_token", "conv_proj", "encoder.pos_embedding"}
    assert "encoder.ln" in groups[-1].prefixes


@pytest.mark.parametrize(
    "arch", ["torchvision:resnet81", "torchvision:fasterrcnn_resnet50_fpn", "resnet18", "tinyresnet", "torchvision:"]
)
def test_the_error_for_an_unknown_architecture_suggests_a_known_one(arch):
    with pytest.raises(UserError, match="known: "):
        backbones.build(arch, CLASSES)
    with pytest.raises(UserError, match=r"did you mean 'torchvision:resnet"):
        backbones.build("torchvision:resnet81", CLASSES)


def test_the_inputs_of_inception_and_googlenet_are_transformed_as_their_published_weights_expect(on_meta):
    for arch in ("torchvision:googlenet", "torchvision:inception_v3"):
        model = on_meta(arch)
        assert model.transform_input
        assert not model.aux_logits


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES)

    def forward(self, x):
        return self.norm(self.head(self.body(x).mean((2, 3))))


@pytest.mark.parametrize("model", [Normed(), nn.Conv2d(3, 4, 3), nn.Flatten()], ids=["norm above", "a map", "nothing learnt"])
def test_a_network_without_a_classification_head_is_refused(model):
    with pytest.raises(UserError, match="head"):
        backbones.layer_layout(model, 8)


@pytest.mark.parametrize(("arch", "size"), [("torchvision:vit_b_32", 64), ("torchvision:alexnet", 16)])
def test_an_unsupported_image_size_is_an_error(arch, size, on_meta):
    with pytest.raises(UserError, match=f"{size} × {size}"):
        backbones.layer_layout(on_meta(arch), size)


def test_trainable_names_of_each_spelling():
    model = backbones.build("cifar-resnet20", CLASSES)
    layout = backbones.layer_layout(model, 32)
    everything = {name for name, _ in model.named_parameters()}
    head = {"linear.weight", "linear.bias"}
    assert backbones.trainable_names(layout, model, HEAD_ONLY) == head
    assert backbones.trainable_names(layout, model, ALL_LAYERS) == everything
    assert backbones.trainable_names(layout, model, Trainable.parse("top:1")) == head | {
        name for name in everything if name.startswith("layer3.")
    }
    assert backbones.trainable_names(layout, model, Trainable.parse(f"top:{len(layout.groups)}")) == everything
    assert backbones.trainable_names(layout, model, Trainable.parse("norm")) == head | {
        name for name in everything if ".bn" in name or name.startswith("bn1")
    }


def test_trainable_names_of_bias_and_lora():
    model = backbones.build("tiny-resnet", CLASSES)
    layout, head = backbones.layer_layout(model, 32), {"linear.weight", "linear.bias"}
    everything = {name for name, _ in model.named_parameters()}
    kernels = {name for name in everything if "conv" in name or name.endswith("shortcut.0.weight")}
    assert backbones.trainable_names(layout, model, Trainable.parse("lora:4")) == head | kernels
    assert backbones.trainable_names(layout, model, Trainable.parse("bias")) == head | {
        name for name in everything if name.endswith("bias")
    }
    with pytest.raises(UserError, match="nothing of the kind"):
        backbones.trainable_names(layout, model, Trainable.parse("adapter:4"))


def test_attention_weights_and_biases_are_recognized(on_meta):
    actual = backbones.names_by_kind(backbones.layer_layout(model := on_meta("torchvision:vit_b_16"), 224), model)
    layer = "encoder.layers.encoder_layer_0.self_attention"
    assert {f"{layer}.in_proj_weight", f"{layer}.out_proj.weight", "conv_proj.weight"} <= actual["lora"]
    assert {f"{layer}.in_proj_bias", "encoder.ln.bias"} <= actual["bias"]
    assert not actual["lora"] & {"class_token", "encoder.pos_embedding", "heads.head.weight", "encoder.ln.weight"}


def test_a_kind_without_parameters_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 2))
    for spelling in ("norm", "bias"):
        with pytest.raises(UserError, match=r"nothing of the kind below its head[\s\S]*one of lora"):
            backbones.trainable_names(backbones.layer_layout(model, 4), model, Trainable.parse(spelling))


def test_layer_norms_are_norm_layers(on_meta):
    model = on_meta("torchvision:swin_t")
    actual = backbones.trainable_names(backbones.layer_layout(model, 224), model, Trainable.parse("norm"))
    assert {"norm.weight", "head.weight", "features.1.0.norm1.bias"} <= actual
    assert "features.1.0.attn.qkv.weight" not in actual


@pytest.mark.parametrize("spelling", ["top:5", "top:99"])
def test_more_top_groups_than_there_are_is_an_error(spelling):
    model = backbones.build("cifar-resnet20", CLASSES)
    with pytest.raises(UserError, match=r"N from 1 to 4 .*conv1, layer1, layer2, layer3"):
        backbones.trainable_names(backbones.layer_layout(model, 32), model, Trainable.parse(spelling))


def test_depth_counts_groups_from_the_head_down():
    model = backbones.build("tiny-resnet", CLASSES)
    depth = backbones.layer_depth(backbones.layer_layout(model, 32), model)
    assert set(depth) == names(model)
    some = ("linear.bias", "layer4.0.conv1.weight", "layer1.0.bn1.running_var", "bn1.weight", "conv1.weight")
    assert [depth[name] for name in some] == [0, 1, 4, 5, 5]


def test_the_error_for_an_unknown_timm_name_suggests_a_known_one():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="did you mean 'timm:resnet18'"):
        backbones.build("timm:resnet81", CLASSES)


def test_without_timm_the_error_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'xferbench\[timm\]'"):
        backbones.build("timm:resnet18", CLASSES)
