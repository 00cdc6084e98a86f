from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
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


@pytest.fixture
def on_meta(monkeypatch):
    """Networks of any size without memory; RegNet computes its widths from tensors, which therefore need values."""
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


def check_anatomy(model, size, ceiling):
    anatomy = backbones.layer_layout(model, size)
    parts = [(anatomy.head,), *(group.prefixes for group in anatomy.groups)]
    for name in names(model):
        assert sum(backbones.is_within(name, part) for part in parts) == 1, name
    assert all(any(backbones.is_within(name, part) for name in names(model)) for part in parts)
    assert len({group.name for group in anatomy.groups}) == len(anatomy.groups)
    assert 3 <= len(anatomy.groups) <= ceiling
    head = model.get_submodule(anatomy.head)
    assert head.weight.shape[:2] == (CLASSES, anatomy.features)
    assert anatomy.classes == CLASSES
    assert anatomy.parameters == sum(parameter.numel() for parameter in model.parameters())
    return anatomy


@pytest.mark.parametrize("arch", STAGES)
def test_the_groups_of_a_network_are_its_stages_and_every_tensor_belongs_to_one(arch, on_meta):
    anatomy = check_anatomy(on_meta(arch), 224, 14)
    assert [group.name for group in anatomy.groups] == STAGES[arch]


@pytest.mark.slow
@pytest.mark.parametrize("arch", backbones.known_archs())
def test_every_architecture_has_an_anatomy_and_can_be_cut_anywhere(arch, on_meta):
    model = on_meta(arch)
    anatomy = check_anatomy(model, 299 if "inception" in arch else 224, 40)
    for below in range(1, len(anatomy.groups) + 1):
        assert backbones.split_at(model, anatomy, below) is not None, below


def test_the_class_token_lies_in_the_stem_and_the_last_norm_in_the_last_block(on_meta):
    groups = backbones.layer_layout(on_meta("torchvision:vit_b_32"), 224).groups
    assert set(groups[0].prefixes) == {"class_token", "conv_proj", "encoder.pos_embedding"}
    assert "encoder.ln" in groups[-1].prefixes


def test_probing_changes_neither_modes_nor_values_nor_hooks():
    model = backbones.build("tiny-resnet", CLASSES).train()
    model.layer2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backbones.split_at(model, backbones.layer_layout(model, 32), 3)
    assert model.training
    assert not any(module.training for module in model.layer2.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "arch", ["torchvision:resnet81", "torchvision:fasterrcnn_resnet50_fpn", "resnet18", "tinyresnet", "torchvision:"]
)
def test_an_unknown_architecture_is_told_with_the_nearest_known_one(arch):
    with pytest.raises(UserError, match="known: "):
        backbones.build(arch, CLASSES)
    with pytest.raises(UserError, match=r"did you mean 'torchvision:resnet"):
        backbones.build("torchvision:resnet81", CLASSES)


def test_the_inputs_of_inception_and_googlenet_are_transformed_as_their_published_weights_expect(on_meta):
    for arch in ("torchvision:googlenet", "torchvision:inception_v3"):
        model = on_meta(arch)
        assert model.transform_input
        assert not model.aux_logits


class Shuffling(nn.Module):
    """Depends on the values of its input, so that it cannot run without any."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.first(x)
        if x.sum().item() > 1e9:
            x = x * 2
        return self.last(self.second(x).mean((2, 3)))


def test_a_network_that_needs_values_is_run_for_real_and_left_uncut():
    model = Shuffling()
    anatomy = backbones.layer_layout(model, 16)
    assert [group.name for group in anatomy.groups] == ["first", "second"]
    assert backbones.split_at(model, anatomy, 1) is None


class Dropping(nn.Module):
    """Dropout as a function, whose mode a traced graph would freeze."""

    def __init__(self):
        super().__init__()
        self.body, self.more, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.dropout(self.more(self.body(x)).mean((2, 3)), 0.5, training=self.training)
        return self.last(x)


def test_a_network_whose_outline_depends_on_the_mode_is_left_uncut():
    model = Dropping()
    anatomy = backbones.layer_layout(model, 16)
    assert all(backbones.split_at(model, anatomy, below) is None for below in (1, 2))


class Bypassing(nn.Module):
    """A second value goes round the first two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.last = nn.Linear(3, CLASSES)

    def forward(self, x):
        first = self.one(x)
        return self.last((self.three(self.two(first)) + first).mean((2, 3)))


def test_a_cut_that_two_values_would_cross_is_not_made():
    model = Bypassing()
    anatomy = backbones.layer_layout(model, 8)
    made = [backbones.split_at(model, anatomy, below) is not None for below in range(4)]
    assert made == [False, True, False, True]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES)

    def forward(self, x):
        return self.norm(self.head(self.body(x).mean((2, 3))))


@pytest.mark.parametrize("model", [Normed(), nn.Conv2d(3, 4, 3), nn.Flatten()], ids=["norm above", "a map", "nothing learnt"])
def test_a_network_without_a_head_on_top_is_refused(model):
    with pytest.raises(UserError, match="head"):
        backbones.layer_layout(model, 8)


@pytest.mark.parametrize(("arch", "size"), [("torchvision:vit_b_32", 64), ("torchvision:alexnet", 16)])
def test_images_that_the_network_cannot_take_are_a_problem(arch, size, on_meta):
    with pytest.raises(UserError, match=f"{size} × {size}"):
        backbones.layer_layout(on_meta(arch), size)


def given(model, x, training, *calls):
    """The output of calls one after the other, each on what the one before gave, from one state of the random stream."""
    tensors = model.state_dict()
    state = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(3)
        for call in calls:
            x = call.train(training)(x)
    moved = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(state[name])
    return x, moved


def check_cuts(arch, size, belows=None):
    model = backbones.build(arch, CLASSES)
    anatomy = backbones.layer_layout(model, size)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    whole = {training: given(model, x, training, model) for training in (False, True)}
    for below in belows or range(1, len(anatomy.groups) + 1):
        lower, upper = backbones.split_at(model, anatomy, below)
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        assert {id(tensor) for part in (lower, upper) for tensor in part.parameters()} <= own
        for training, (logits, moved) in whole.items():
            found, moved_too = given(model, x, training, lower, upper)
            assert torch.equal(found, logits), (below, training)
            assert all(torch.equal(moved[name], moved_too[name]) for name in moved)
        above = {
            name for name, distance in backbones.layer_depth(anatomy, model).items() if distance <= len(anatomy.groups) - below
        }
        assert {name for name, _ in upper.named_parameters()} == above & dict(model.named_parameters()).keys()


@pytest.mark.parametrize(("arch", "size"), CUT)
def test_the_parts_of_a_cut_give_what_the_whole_gives_in_both_modes(arch, size):
    count = 4 if "tiny" in arch or "cifar" in arch else None
    check_cuts(arch, size, None if count else (2, 5))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size"), CUT + SLOW_CUT)
def test_the_parts_of_every_cut_of_larger_networks_too(arch, size):
    check_cuts(arch, size)


@pytest.mark.parametrize("arch", ["torchvision:squeezenet1_0", "torchvision:mobilenet_v3_small"])
def test_the_dropout_below_a_head_stays_above_the_cut(arch):
    model = backbones.build(arch, CLASSES)
    anatomy = backbones.layer_layout(model, 64)
    lower, upper = backbones.split_at(model, anatomy, len(anatomy.groups))
    x = lower.eval()(torch.randn(2, 3, 64, 64))
    kept = x.clone()
    assert any(isinstance(module, nn.Dropout) for module in upper.modules())
    assert not torch.equal(upper.train()(x), upper.eval()(x))
    assert torch.equal(x, kept)


def test_a_lower_part_goes_up_to_the_pooled_features():
    model = backbones.build("torchvision:resnet18", CLASSES)
    lower, _ = backbones.split_at(model, backbones.layer_layout(model, 64), 5)
    assert lower.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_a_part_takes_tensors_by_the_names_of_the_whole():
    model = backbones.build("tiny-resnet", CLASSES).eval()
    _, upper = backbones.split_at(model, backbones.layer_layout(model, 32), 5)
    tensors = {name: torch.full_like(model.get_parameter(name), 2) for name, _ in upper.named_parameters()}
    assert set(tensors) == {"linear.weight", "linear.bias"}
    assert (functional_call(upper, tensors, (torch.ones(2, 64),)) == 2 * 64 + 2).all()


def test_what_is_trainable_follows_the_word():
    model = backbones.build("cifar-resnet20", CLASSES)
    anatomy = backbones.layer_layout(model, 32)
    everything = {name for name, _ in model.named_parameters()}
    head = {"linear.weight", "linear.bias"}
    assert backbones.trainable_names(anatomy, model, HEAD_ONLY) == head
    assert backbones.trainable_names(anatomy, model, ALL_LAYERS) == everything
    assert backbones.trainable_names(anatomy, model, Trainable.parse("top:1")) == head | {
        name for name in everything if name.startswith("layer3.")
    }
    assert backbones.trainable_names(anatomy, model, Trainable.parse(f"top:{len(anatomy.groups)}")) == everything
    assert backbones.trainable_names(anatomy, model, Trainable.parse("norm")) == head | {
        name for name in everything if ".bn" in name or name.startswith("bn1")
    }


def test_biases_and_the_weights_of_linear_layers_are_kinds_of_their_own():
    model = backbones.build("tiny-resnet", CLASSES)
    anatomy, head = backbones.layer_layout(model, 32), {"linear.weight", "linear.bias"}
    everything = {name for name, _ in model.named_parameters()}
    kernels = {name for name in everything if "conv" in name or name.endswith("shortcut.0.weight")}
    assert backbones.trainable_names(anatomy, model, Trainable.parse("lora:4")) == head | kernels
    assert backbones.trainable_names(anatomy, model, Trainable.parse("bias")) == head | {
        name for name in everything if name.endswith("bias")
    }
    with pytest.raises(UserError, match="nothing of the kind"):
        backbones.trainable_names(anatomy, model, Trainable.parse("adapter:4"))


def test_attention_has_weights_and_biases_under_names_of_its_own(on_meta):
    found = backbones.names_by_kind(backbones.layer_layout(model := on_meta("torchvision:vit_b_16"), 224), model)
    layer = "encoder.layers.encoder_layer_0.self_attention"
    assert {f"{layer}.in_proj_weight", f"{layer}.out_proj.weight", "conv_proj.weight"} <= found["lora"]
    assert {f"{layer}.in_proj_bias", "encoder.ln.bias"} <= found["bias"]
    assert not found["lora"] & {"class_token", "encoder.pos_embedding", "heads.head.weight", "encoder.ln.weight"}


def test_a_network_that_has_nothing_of_a_kind_is_no_silent_linear_probe():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 2))
    for word in ("norm", "bias"):
        with pytest.raises(UserError, match=r"nothing of the kind below its head[\s\S]*one of lora"):
            backbones.trainable_names(backbones.layer_layout(model, 4), model, Trainable.parse(word))


def test_layer_norms_are_norms_too(on_meta):
    model = on_meta("torchvision:swin_t")
    found = backbones.trainable_names(backbones.layer_layout(model, 224), model, Trainable.parse("norm"))
    assert {"norm.weight", "head.weight", "features.1.0.norm1.bias"} <= found
    assert "features.1.0.attn.qkv.weight" not in found


@pytest.mark.parametrize("word", ["top:5", "top:99"])
def test_a_word_for_what_is_trainable_that_cannot_be_applied_is_a_problem(word):
    model = backbones.build("cifar-resnet20", CLASSES)
    with pytest.raises(UserError, match=r"N from 1 to 4 .*conv1, layer1, layer2, layer3"):
        backbones.trainable_names(backbones.layer_layout(model, 32), model, Trainable.parse(word))


def test_depth_counts_groups_from_the_head_down():
    model = backbones.build("tiny-resnet", CLASSES)
    depth = backbones.layer_depth(backbones.layer_layout(model, 32), model)
    assert set(depth) == names(model)
    some = ("linear.bias", "layer4.0.conv1.weight", "layer1.0.bn1.running_var", "bn1.weight", "conv1.weight")
    assert [depth[name] for name in some] == [0, 1, 4, 5, 5]


OF_TIMM = {
    "resnet18": ("fc", 5),
    "convnext_atto": ("head.fc", 5),
    "vit_tiny_patch16_224": ("head", 13),
    "mobilenetv3_small_050": ("classifier", 8),
    "efficientnet_lite0": ("classifier", 9),
}


@pytest.mark.parametrize("name", OF_TIMM)
def test_backbones_of_timm_have_a_head_and_groups_and_the_parts_of_a_cut_give_what_the_whole_gives(name):
    pytest.importorskip("timm")
    model, size = backbones.build(f"timm:{name}", CLASSES), 224 if "vit" in name else 64
    anatomy = check_anatomy(model, size, 13)
    assert (anatomy.head, len(anatomy.groups)) == OF_TIMM[name]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    parts = backbones.split_at(model, anatomy, len(anatomy.groups) - 1)
    assert (parts is None) == ("vit" in name), "a transformer of timm cannot be traced, and is left whole"
    if parts is not None:
        for training in (False, True):
            logits, _ = given(model, x, training, model)
            assert torch.equal(given(model, x, training, *parts)[0], logits)


def test_a_name_that_timm_does_not_know_is_told_with_the_nearest_one():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="did you mean 'timm:resnet18'"):
        backbones.build("timm:resnet81", CLASSES)


def test_without_timm_its_backbones_are_a_problem_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'xferbench\[timm\]'"):
        backbones.build("timm:resnet18", CLASSES)
