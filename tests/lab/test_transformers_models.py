from __future__ import annotations

import json
import sys

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from xferbench.core.errors import UserError
from xferbench.core.pipeline import WeightsFile
from xferbench.lab.models import arch_detection, backbones, checkpoint_reader, checkpoints, transformers_models
from xferbench.lab.worker import profile

VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 48}
PROCESSOR = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}


def make_folder(folder, config=VIT, processor=None):
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"classifier.weight": torch.ones(2, 4)}, folder / "model.safetensors")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("settings", "resize", "crop"),
    [
        ({"size": {"height": 48, "width": 48}}, 48, 48),
        ({"size": 48}, 48, 48),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}, 64, 48),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, 224),
        ({"do_resize": False}, None, None),
    ],
)
def test_the_preprocessing_of_a_folder_is_recorded(settings, resize, crop, tmp_path):
    weights = make_folder(tmp_path, processor=PROCESSOR | settings)
    recorded, _ = profile.checkpoint_preprocessing("transformers:x", WeightsFile(digest="", path=str(weights)))
    assert (recorded.resize, recorded.crop, recorded.interpolation) == (resize, crop, "bicubic")
    assert (recorded.mean, recorded.std, recorded.scale) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1 / 255)


def test_switches_of_the_preprocessing_count(tmp_path):
    switches = {"do_normalize": False, "do_rescale": False, "do_flip_channel_order": True}
    recorded, _ = transformers_models.recorded_preprocessing(make_folder(tmp_path, processor=PROCESSOR | switches))
    assert (recorded.mean, recorded.std, recorded.scale, recorded.channels) == ((0.0,) * 3, (1.0,) * 3, 1.0, "bgr")


def test_a_note_says_what_the_preprocessing_cannot_keep(tmp_path):
    weights = make_folder(tmp_path)
    assert "records the size, 48, only" in transformers_models.recorded_preprocessing(weights)[1]
    weights = make_folder(tmp_path, processor=PROCESSOR | {"size": 48})
    assert "stretches images to 48 × 48" in transformers_models.recorded_preprocessing(weights)[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": "evil"},
        {"image_std": [0, 1, 1]},
        {"image_mean": [float("nan")] * 3},
        {"size": 10**9},
        {"size": {"height": 3, "width": 5}},
        {"resample": 77},
        {"size": 64, "crop_pct": 1e-9},
    ],
)
def test_a_preprocessing_that_is_not_plausible_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match=r"preprocessor_config\.json: recorded preprocessing"):
        transformers_models.recorded_preprocessing(make_folder(tmp_path, processor=PROCESSOR | settings))


def test_without_transformers_the_message_names_the_extra(tmp_path, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"a model of transformers[\s\S]*pip install 'xferbench\[transformers\]'"):
        arch_detection.detect_arch(tmp_path)
    assert list(checkpoint_reader.read_checkpoint(tmp_path)) == ["classifier.weight"]


def saved(kind, folder, classes):
    transformers = pytest.importorskip("transformers")
    if kind == "vit":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=classes)
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=classes)
        model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model.eval()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_classifier_of_transformers_gives_the_same_logits(kind, tmp_path):
    model = saved(kind, tmp_path, classes=3)
    arch, state = arch_detection.detect_arch(tmp_path), checkpoint_reader.read_checkpoint(tmp_path)
    network = backbones.build(arch, 3)
    layout = backbones.layer_layout(network, 32)
    checkpoints.load_backbone(network, state, layout.head)
    head = checkpoints.head_tensors(network, state, layout.head)
    network.load_state_dict(head, strict=False)
    images = torch.rand(2, 3, 32, 32)
    assert len(head) == 2 and torch.equal(network.eval()(images), model(images).logits)


def test_the_head_has_the_number_of_classes_of_the_data(tmp_path):
    saved("vit", tmp_path, classes=3)
    assert backbones.layer_layout(backbones.build(f"transformers:{tmp_path}", 5), 32).classes == 5


def test_a_folder_whose_network_is_code_is_refused(tmp_path):
    pytest.importorskip("transformers")
    proof = tmp_path / "ran"
    (tmp_path / "net.py").write_text(f"open({str(proof)!r}, 'w')")
    code = {"AutoConfig": "net.Config", "AutoModelForImageClassification": "net.Net"}
    make_folder(tmp_path, config={"model_type": "unheard", "architectures": ["NetForImageClassification"], "auto_map": code})
    with pytest.raises(UserError, match="transformers cannot build the network"):
        backbones.build(f"transformers:{tmp_path}", 2)
    assert not proof.exists()
