"""Adapters of peft: merged as in peft, or refused."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from xferbench.core.errors import UserError
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints

LAYERS = ["conv1", "conv2"]


def save_adapted_model(folder, *, saved=True, config=True, **more):
    """Save a network with random adapters and their configuration. Return the peft model and the file."""
    torch.manual_seed(0)
    lora_config = peft.LoraConfig(**{"r": 3, "lora_alpha": 8, "target_modules": LAYERS, "init_lora_weights": False} | more)
    model = peft.get_peft_model(backbones.build("tiny-resnet", 4), lora_config)
    if config:
        model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "whole.pt")
    return model.eval(), folder / "whole.pt"


def check_merged(model, file):
    merged = model.merge_and_unload().state_dict()
    actual = checkpoint_reader.read_checkpoint(file)
    assert actual.keys() == merged.keys()
    torch.testing.assert_close(actual, dict(merged), rtol=1e-5, atol=1e-6)
    checkpoints.load_backbone(backbones.build("tiny-resnet", 9), actual, "linear")


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"rank_pattern": {"layer1.0.conv1": 5}}, {"modules_to_save": ["linear"]}]
)
def test_adapters_are_merged_as_peft_merges_them(more, tmp_path):
    model, file = save_adapted_model(tmp_path, **more)
    check_merged(model, file)


def test_adapters_of_linear_layers_and_of_wrapped_networks_are_merged(tmp_path):
    model, _ = save_adapted_model(tmp_path, target_modules=["linear"])
    wrapped = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 1}, tmp_path / "last.ckpt")
    check_merged(model, tmp_path / "last.ckpt")


def test_a_saved_module_replaces_the_original(tmp_path):
    model, file = save_adapted_model(tmp_path, modules_to_save=["linear"])
    with torch.no_grad():
        model.base_model.model.linear.modules_to_save["default"].bias.fill_(7.0)
    torch.save(model.state_dict(), file)
    assert (checkpoint_reader.read_checkpoint(file)["linear.bias"] == 7).all()


def test_an_adapter_without_a_known_scale_is_refused(tmp_path):
    _, file = save_adapted_model(tmp_path, config=False)
    with pytest.raises(UserError, match=r"adapter_config\.json in the same folder[\s\S]*model\.merge_and_unload\(\)"):
        checkpoint_reader.read_checkpoint(file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": None}))
    with pytest.raises(UserError, match="merge_and_unload"):
        checkpoint_reader.read_checkpoint(file)


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"alpha_pattern": {"conv1": 2}}, {"lora_bias": True, "target_modules": ["linear"]}]
)
@pytest.mark.filterwarnings("ignore")  # of peft, which calls a bias a broken tensor
def test_an_adapter_of_another_kind_is_refused(more, tmp_path):
    _, file = save_adapted_model(tmp_path, **more)
    with pytest.raises(UserError, match="merge_and_unload"):
        checkpoint_reader.read_checkpoint(file)


def test_an_adapter_without_its_network_is_refused(tmp_path):
    save_adapted_model(tmp_path)
    with pytest.raises(UserError, match=r"without the network[\s\S]*merge_and_unload"):
        checkpoint_reader.read_checkpoint(tmp_path / "adapter_model.safetensors")


def test_several_adapters_are_refused(tmp_path):
    model, file = save_adapted_model(tmp_path)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=LAYERS))
    torch.save(model.state_dict(), file)
    with pytest.raises(UserError, match="several adapters"):
        checkpoint_reader.read_checkpoint(file)


def test_a_merged_network_is_read_like_any_other(tmp_path):
    model, _ = save_adapted_model(tmp_path)
    torch.save(model.merge_and_unload().state_dict(), tmp_path / "merged.pt")
    assert (
        checkpoint_reader.read_checkpoint(tmp_path / "merged.pt").keys()
        == backbones.build("tiny-resnet", 4).state_dict().keys()
    )
