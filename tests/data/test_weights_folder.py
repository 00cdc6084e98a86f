from __future__ import annotations

import json
import os

import pytest

from xferbench.core.errors import UserError
from xferbench.data import inputs, weights_folder


def make(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def refused(path):
    with pytest.raises(UserError) as error:
        weights_folder.find_weights(path)
    return error.value


# Files of a folder → what the message says that it is, and what to do.
FOLDERS = {
    "adapter": (
        {"adapter_config.json": {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/vit"}, "adapter_model.bin": ""},
        "an adapter of peft (LORA, rank 8) without the network org/vit; it holds no head",
        "merge_and_unload",
    ),
    "adapter with a head": (
        {"adapter_config.json": {"peft_type": "LORA", "modules_to_save": ["classifier"]}},
        "without the network, whose name it does not record",
        "merge_and_unload",
    ),
    "keras": ({"saved_model.pb": "", "variables/variables.index": ""}, "a TensorFlow SavedModel", "PyTorch"),
    "mlflow": ({"MLmodel": "", "data/model.pth": ""}, "an MLflow model; in it: data/model.pth", "file of weights"),
    "fastai": (
        {"models/stage-2.pth": "", "export.pkl": ""},
        "a folder of fastai; in it: export.pkl, models/stage-2.pth",
        "save",
    ),
    "lightning": (
        {"hparams.yaml": "", "checkpoints/epoch=3.ckpt": ""},
        "a folder of Lightning; in it: checkpoints/epoch=3.ckpt",
        ".ckpt",
    ),
    "distributed": ({".metadata": "", "__0_0.distcp": ""}, "a distributed checkpoint", "dcp_to_torch_save"),
    "trainer": ({"checkpoint-500/config.json": "{}", "checkpoint-500/model.safetensors": ""}, "several models", "one model"),
    "diffusion": ({"model_index.json": "{}", "unet/model.safetensors": ""}, "a diffusion pipeline", "classifies images"),
    "unpacked": ({"best/data.pkl": "", "best/data/0": ""}, "an unpacked file of torch.save", "without unpacking"),
    "checkpoints": ({"b.pth": "", "a.pth": ""}, "a folder with several files that may be weights: a.pth, b.pth", "one file"),
    "one": ({"best.pt": ""}, "a folder with one file that may be weights: best.pt", "give one file"),
    "images": ({"train/ant/0.jpg": ""}, "a folder of images", "as data"),
    "empty": ({}, "an empty folder", "give the file"),
    "no weights": ({"config.json": {"model_type": "vit"}}, "a folder with config.json and no weights", "download"),
    "text": (
        {"config.json": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "pytorch_model.bin": ""},
        "BertForSequenceClassification, which classifies text, without its tokenizer",
        "tokenizer.save_pretrained",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_named_with_its_candidates(kind, tmp_path):
    files, found, do = FOLDERS[kind]
    error = refused(make(tmp_path, files))
    assert found in error.found and do in error.do and "no such file" not in error.found


def test_the_weights_of_a_transformers_folder_are_found(tmp_path):
    make(tmp_path, {"config.json": {"model_type": "vit"}, "pytorch_model.bin": "", "model.safetensors": ""})
    assert weights_folder.find_weights(tmp_path) == tmp_path / "model.safetensors"
    assert weights_folder.find_weights(tmp_path / "pytorch_model.bin") == tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize("name", ["no/such", "/etc", "a\0b", "long" * 5000, "", 5, None])
def test_an_adapter_whose_network_is_not_found_is_refused(name, tmp_path):
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": name}
    error = refused(make(tmp_path, {"adapter_config.json": config, "adapter_model.safetensors": ""}))
    assert "without the network" in error.found and "merge_and_unload" in error.do


def test_an_adapter_is_found_if_its_network_is_on_this_machine(tmp_path):
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "../net"}
    make(tmp_path / "net", {"config.json": {"model_type": "vit"}, "model.safetensors": ""})
    folder = make(tmp_path / "adapter", {"adapter_config.json": config, "adapter_model.bin": ""})
    assert weights_folder.find_weights(folder) == folder / "adapter_model.bin"
    assert weights_folder.base_weights(folder / "adapter_model.bin").samefile(tmp_path / "net" / "model.safetensors")
    (tmp_path / "net" / "model.safetensors").unlink()
    assert "without the network" in refused(folder).found


def test_the_shards_of_an_index_are_found_in_its_folder(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    make(tmp_path, {"model.safetensors.index.json": index, "model-00001-of-00002.safetensors": ""})
    with pytest.raises(UserError, match=r"missing: model-00002-of-00002\.safetensors"):
        weights_folder.shard_files(weights_folder.find_weights(tmp_path))
    make(tmp_path, {"model-00002-of-00002.safetensors": ""})
    names = [file.name for file in weights_folder.weights_files(tmp_path / "model.safetensors.index.json")]
    assert names == ["model.safetensors.index.json", *index["weight_map"].values()]
    assert refused(tmp_path / names[1]).found == "one of 2 files of a sharded checkpoint"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\0b", 5, None])
def test_an_index_names_only_files_in_its_folder(name, tmp_path):
    make(tmp_path, {"model.safetensors.index.json": {"weight_map": {"a": name}}})
    with pytest.raises(UserError, match="no such map"):
        weights_folder.shard_files(tmp_path / "model.safetensors.index.json")


def test_what_is_not_a_regular_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    assert "a pipe or a device" in refused(tmp_path / "pipe.pth").found
    assert "a link that leads nowhere" in refused(tmp_path / "loop.pth").found
    assert refused(tmp_path / "none.pth").found == refused(tmp_path / "a\0b").found == "no such file"


def test_the_digest_of_transformers_weights_covers_their_settings(tmp_path):
    make(tmp_path, {"config.json": {"model_type": "vit"}, "model.safetensors": "x", "notes.json": "1"})
    first = inputs.digest_weights_file(tmp_path)
    make(tmp_path, {"notes.json": "2"})
    assert inputs.digest_weights_file(tmp_path) == first == inputs.digest_weights_file(tmp_path / "model.safetensors")
    make(tmp_path, {"preprocessor_config.json": {"size": 64}})
    second = inputs.digest_weights_file(tmp_path)
    make(tmp_path, {"config.json": {"model_type": "vit", "hidden_act": "relu"}})
    assert len({first.digest, second.digest, inputs.digest_weights_file(tmp_path).digest}) == 3
    plain = make(tmp_path / "plain", {"weights.pth": "x", "config.json": {"model_type": "vit"}})
    assert inputs.digest_weights_file(plain / "weights.pth").digest == inputs.sha256(plain / "weights.pth")
