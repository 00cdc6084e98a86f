from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from xferbench.core.errors import UserError
from xferbench.lab.models import checkpoint_reader, pickle_globals

WEIGHTS = {"stem.weight": torch.ones(3, 4), "stem.bias": torch.zeros(3)}


def in_memory(write):
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def zip_of(members):
    def write(stream):
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return in_memory(write)


def tar_of(name):
    def write(stream):
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name))

    return in_memory(write)


def field(number, content):
    """Return a field of a protocol buffer: an integer or bytes."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    key = number << 3 | 2
    head = bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])
    return head + bytes([len(content)]) + content


TORCH_ZIP = in_memory(lambda stream: torch.save(WEIGHTS, stream))
# Content of a file → what the message says that it is, and what to do.
KINDS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS", "git lfs pull"),
    "html": (b"\n<HTML><title>Sign in</title></HTML>", "a web page", "download"),
    "server": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "error message of a server", "download"),
    "openvino": (b'<?xml version="1.0"?>\n<net name="main" version="11"></net>', "OpenVINO", "torch.save"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "PyTorch"),
    "keras": (zip_of({"config.json": "{}", "model.weights.h5": "x"}), "network of Keras", "PyTorch"),
    "onnx": (field(1, 8) + field(2, b"pytorch") + field(7, b"graph") + field(8, b"\x10\x11"), "ONNX", "torch.save"),
    "coreml": (field(1, 7) + field(2, b"input") + field(500, b"network") + bytes(0), "CoreML", "torch.save"),
    "savedmodel": (field(1, 1) + field(2, b"meta graph of a network"), "SavedModel", "PyTorch"),
    "frozen": (b"".join(field(1, b"node %d" % number) for number in range(20)), "frozen graph", "PyTorch"),
    "tflite": (b"\x20\0\0\0TFL3" + bytes(30), "TensorFlow Lite", "PyTorch"),
    "ckpt index": (b"\x81\x93" * 30 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "index of a TensorFlow checkpoint", "PyTorch"),
    "torchscript": (zip_of({"net/data.pkl": "x", "net/constants.pkl": "x"}), "TorchScript", "torch.jit.load"),
    "exported": (zip_of({"archive/archive_format": "pt2", "archive/data.pkl": "x"}), "torch.export", "torch.save"),
    "npz": (in_memory(lambda stream: np.savez(stream, a=np.ones(2))), r"NumPy \(.npz\)", "torch.save"),
    "npy": (in_memory(lambda stream: np.save(stream, np.ones(2))), r"NumPy \(.npy\)", "torch.save"),
    "gguf": (b"GGUF\x03" + bytes(30), "language model", "PyTorch"),
    "gzip": (gzip.compress(TORCH_ZIP), "packed by gzip", "unpack"),
    "zip": (zip_of({"run/best.pth": TORCH_ZIP}), "a zip archive with run/best.pth", "unpack"),
    "tar": (tar_of("run/last.ckpt"), "a tar archive with run/last.ckpt", "unpack"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "7-Zip", "unpack"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(30), "an image", "as data"),
    "script": (b"#!/bin/sh\npython train.py\n", "a script", "file of weights"),
    "python": (b'"""Train."""\n\nimport torch\nfrom timm import create_model\n', "a Python program", "file of weights"),
    "yaml": (b"lr: 0.1\nepochs: 5\nmodel: resnet18\n", "a text that begins 'lr: 0.1'", "file of weights"),
    "json": (b'{"lr": 0.1, "epochs": 5}', "a JSON text with lr, epochs", "file of weights"),
    "config": (b'{"model_type": "vit", "architectures": ["ViTForImageClassification"]}', "configuration", "its folder"),
    "bert": (b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "BertForMaskedLM, which models text", "images"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "b"}}', "index of a sharded checkpoint", "folder of its files"),
    "adapter": (b'{"peft_type": "LORA", "r": 2, "modules_to_save": null}', "LORA, rank 2.*no head", "modules_to_save"),
    "empty": (b"", "an empty file", "download"),
    "zeros": (bytes(3000), "a file of zeros", "download"),
    "cut zip": (TORCH_ZIP[: len(TORCH_ZIP) // 2], r"its end is missing after \d+ bytes", "copy it again"),
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_named_whatever_its_name(kind, name, tmp_path):
    content, found, do = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        checkpoint_reader.read_checkpoint(tmp_path / name)
    assert re.search(found, refused.value.found) and do in refused.value.do
    assert "\n" not in refused.value.found + refused.value.do


def test_a_torch_file_that_is_named_safetensors_is_read(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(TORCH_ZIP)
    assert checkpoint_reader.read_checkpoint(tmp_path / "weights.safetensors").keys() == WEIGHTS.keys()


def test_cut_safetensors_are_compared_with_their_header(tmp_path):
    path = tmp_path / "a.pth"
    save_file(WEIGHTS, path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"cut after {size - 5} of {size} bytes"):
        checkpoint_reader.read_checkpoint(path)


def optimizer_state():
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"optimizer": state, "epoch": 7}])
def test_the_state_of_an_optimizer_is_named(wrap, tmp_path):
    torch.save(wrap(optimizer_state()), tmp_path / "a.pt")
    with pytest.raises(UserError, match="the state of an optimizer, without a network"):
        checkpoint_reader.read_checkpoint(tmp_path / "a.pt")


def test_a_network_beside_its_optimizer_is_read(tmp_path):
    torch.save({"optimizer": optimizer_state(), "model": WEIGHTS, "epoch": 7}, tmp_path / "a.pt")
    assert checkpoint_reader.read_checkpoint(tmp_path / "a.pt").keys() == WEIGHTS.keys()


# Pickles that name code


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


CALLS = {"builtins.eval": (eval, "1"), "builtins.__import__": (__import__, "this"), "posix.system": (os.system, "true")}


@pytest.mark.skipif(os.name != "posix", reason="os.system has another module")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_functions_are_named_in_pickles_of_every_protocol(protocol, name, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps([{"x": "y"}, Call(*CALLS[name])], protocol=protocol))
    with pytest.raises(UserError, match=f"would run code[\\s\\S]*asks for {name},"):
        checkpoint_reader.read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_functions_are_named_in_files_of_torch(zipped, tmp_path):
    content = {"state_dict": WEIGHTS, "a": Call(eval, "1"), "b": Call(__import__, "this")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks for builtins\.__import__, builtins\.eval, which"):
        checkpoint_reader.read_checkpoint(tmp_path / "a.pth")


def test_a_model_of_scikit_learn_is_named(tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    (tmp_path / "model.joblib").write_bytes(pickle.dumps(linear_model.Ridge()))
    with pytest.raises(UserError, match=r"asks for sklearn\.linear_model\._ridge\.Ridge[\s\S]*a model of scikit-learn"):
        checkpoint_reader.read_checkpoint(tmp_path / "model.joblib")


def test_the_names_of_a_pickle_are_followed_through_its_memo():
    twice = [Call(eval, "1"), Call(compile, "1"), "eval", Call(eval, "2")]
    assert pickle_globals.named_globals(pickle.dumps(twice, protocol=4)) == {"builtins.eval", "builtins.compile"}
    assert pickle_globals.named_globals(b"\x80\x02\x82\x05.") == {"copyreg.extension 5"}


def test_names_with_control_characters_are_printed_on_one_line(tmp_path):
    header = json.dumps({"a\n::error::\x1b[31m" + "b" * 5000: {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError) as refused:
        checkpoint_reader.read_checkpoint(tmp_path / "a.safetensors")
    assert refused.value.found.isprintable() and len(refused.value.found) < 200
