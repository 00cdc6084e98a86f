from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
from xferbench.core.errors import UserError
from xferbench.data import inputs
from xferbench.lab.models import arch_detection, backbones

ARCHS = (
    "tiny-resnet",
    "cifar-resnet20",
    "cifar-resnet56",
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:mnasnet0_5",
    "torchvision:googlenet",
)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_architecture_of_a_checkpoint_is_detected(tmp_path, arch):
    state = backbones.build(arch, 7).state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth")
    assert arch_detection.detect_arch(tmp_path / "w.pth") == arch


def test_counters_may_be_missing(tmp_path):
    state = backbones.build("torchvision:resnet18", 3).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "num_batches" not in name}, tmp_path / "w.pth")
    assert arch_detection.detect_arch(tmp_path / "w.pth") == "torchvision:resnet18"


def test_the_shipped_weights_are_detected():
    assert arch_detection.detect_arch(inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors") == "tiny-resnet"


@pytest.mark.parametrize("change", [lambda state: state.pop("bn1.weight"), lambda state: state.update(odd=torch.zeros(1))])
def test_a_missing_or_additional_tensor_is_another_architecture(tmp_path, change):
    state = dict(backbones.build("torchvision:resnet18", 3).state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    assert arch_detection.detect_arch(tmp_path / "w.pth") == ""


def test_another_shape_is_another_architecture(tmp_path):
    state = dict(backbones.build("cifar-resnet20", 3).state_dict())
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    assert arch_detection.detect_arch(tmp_path / "w.pth") == ""


def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path):
    (tmp_path / "w.pth").write_text("no")
    with pytest.raises(UserError, match="not a checkpoint"):
        arch_detection.detect_arch(tmp_path / "w.pth")


def test_published_weights_are_detected(shared):
    assert arch_detection.detect_arch(shared / "weights" / "resnet44-014dd654.th") == "cifar-resnet44"


@pytest.mark.parametrize(
    ("name", "arguments", "prefix"),
    [
        ("mobilenetv3_small_050", {}, "module."),
        ("vit_tiny_patch16_224", {"img_size": 384}, "model.encoder."),
        ("vit_tiny_patch16_224", {"num_classes": 0}, ""),
        ("resnet18d", {}, ""),
        ("convnext_atto", {}, "net.body."),
    ],
)
def test_architectures_of_timm_are_detected(tmp_path, name, arguments, prefix):
    timm = pytest.importorskip("timm")
    state = timm.create_model(name, **{"num_classes": 3} | arguments).state_dict()
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()}, tmp_path / "w.pth")
    assert arch_detection.detect_arch(tmp_path / "w.pth") == f"timm:{name.replace('224', str(arguments.get('img_size', 224)))}"


def test_names_of_timm_without_timm_are_not_detected(tmp_path, monkeypatch):
    shapes = {"conv_stem.weight": (8, 3, 3, 3), "conv_head.bias": (8,)}
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "w.pth")
    monkeypatch.setattr(arch_detection, "find_spec", lambda _: None)
    assert arch_detection.detect_arch(tmp_path / "w.pth") == ""
