from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file

from xferbench.core.errors import UserError
from xferbench.lab.models import checkpoint_reader

STATE = {"one.weight": torch.arange(6.0).view(2, 3), "one.bias": torch.ones(2), "count": torch.tensor(3)}


def is_equal(actual, expected):
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def save_state(content, path, **kwargs):
    torch.save(content, path, **kwargs)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_from_both_forms_of_torch_files(zipped, tmp_path):
    assert is_equal(
        checkpoint_reader.read_checkpoint(save_state(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)), STATE
    )


def test_safetensors_are_recognized_by_content(tmp_path):
    save_file(STATE, tmp_path / "weights.bin")
    assert is_equal(checkpoint_reader.read_checkpoint(tmp_path / "weights.bin"), STATE)


def test_a_sharded_checkpoint_is_read_by_its_folder_and_by_its_index(tmp_path):
    shards = {"model-00001-of-00002.safetensors": ["one.weight"], "model-00002-of-00002.safetensors": ["one.bias", "count"]}
    for file, names in shards.items():
        save_file({name: STATE[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert is_equal(checkpoint_reader.read_checkpoint(tmp_path), STATE)
    assert is_equal(checkpoint_reader.read_checkpoint(index), STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32_and_integers_do_not_change(dtype, tmp_path):
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}
    assert is_equal(checkpoint_reader.read_checkpoint(save_state(cast, tmp_path / "a.pt")), STATE)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": STATE, "epoch": 3, "best": torch.tensor(0.5)},
        {"model": STATE, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"model": {"state_dict": STATE}},
        {"ema": {"module": STATE}, "args": {"lr": 0.1}},
        {"teacher": STATE},
        {"net": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {"weights": STATE, "optimizer_state": {"state": {"step": torch.tensor(1.0)}}},
        {"classy_state_dict": {"base_model": {"model": STATE, "meta": {}}, "optimizer": {"m": torch.ones(2)}}, "iteration": 5},
        {f"_orig_mod.module.model.{name}": tensor for name, tensor in STATE.items()},
        {f"base_model.model.backbone.{name}": tensor for name, tensor in STATE.items()},
    ],
)
def test_wrappers_and_shared_prefixes_are_removed(wrapped, tmp_path):
    assert is_equal(checkpoint_reader.read_checkpoint(save_state(wrapped, tmp_path / "a.pth")), STATE)


def test_weights_are_preferred_to_their_moving_average(tmp_path):
    average = {name: tensor * 0 for name, tensor in STATE.items()}
    assert is_equal(
        checkpoint_reader.read_checkpoint(save_state({"model_ema": average, "model": STATE}, tmp_path / "a.pth")), STATE
    )


@pytest.mark.parametrize("keys", [("trunk", "heads"), ("backbone", "fc"), ("model", "criterion"), ("student", "teacher")])
def test_the_parts_of_a_network_may_be_stored_one_by_one(keys, tmp_path):
    parts = dict(zip(keys, (STATE, {"0.clf.weight": torch.ones(2, 3)}), strict=True))
    content = {"model": {"inner": parts}} if keys[0] == "trunk" else parts | {"optimizer": {"state": {"m": torch.ones(1)}}}
    state = checkpoint_reader.read_checkpoint(save_state(content, tmp_path / "a.pth"))
    assert state.keys() == {f"{keys[0]}.{name}" for name in STATE} | {f"{keys[1]}.0.clf.weight"}


def test_a_prefix_of_some_names_is_kept(tmp_path):
    state = {"model.weight": torch.ones(2), "criterion.weight": torch.ones(2)}
    assert is_equal(checkpoint_reader.read_checkpoint(save_state(state, tmp_path / "a.pth")), state)


def test_parameters_are_read_as_plain_tensors(tmp_path):
    shared = torch.nn.Parameter(torch.ones(4))
    state = checkpoint_reader.read_checkpoint(save_state({"a": shared, "b": shared[:2]}, tmp_path / "a.pth"))
    state["a"].zero_()
    assert not state["a"].requires_grad
    assert torch.equal(state["b"], torch.ones(2))


class Malicious:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch '{self.proof}'",)


@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "old", "bare pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(zipped, tmp_path):
    proof, path = tmp_path / "it ran", tmp_path / "weights.pth"
    content = {"state_dict": STATE, "extra": Malicious(proof)}
    if zipped is None:
        path.write_bytes(pickle.dumps({"extra": Malicious(proof)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"would run code[\s\S]*(posix|nt)\.system[\s\S]*trust[\s\S]*weights_only=False"):
        checkpoint_reader.read_checkpoint(path)
    assert not proof.exists()
    if zipped:
        torch.load(path, weights_only=False)
        assert proof.exists(), "the file is harmless, so the test above shows nothing"


class Hyper:
    """An argument of a training script that is not plain data."""


def make_module():
    module = torch.nn.Module()
    module.one = torch.nn.Linear(3, 2)
    module.register_buffer("count", torch.tensor(3))
    module.load_state_dict(STATE)
    return module


MODULE_WRAPPERS = {
    "module": make_module,
    "module under a key": lambda: {
        "model": make_module(),
        "epoch": 3,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    },
    "parallel": lambda: {"net": torch.nn.DataParallel(make_module()), "acc": np.float64(0.5)},
    "average": lambda: {"ema": make_module(), "updates": 7},
    "reference script": lambda: {
        "model": STATE,
        "lr_scheduler": {"f": Hyper()},
        "optimizer": Hyper(),
        "args": Namespace(a=Hyper()),
    },
}


@pytest.mark.parametrize("wrapper", [*checkpoint_reader.WRAPPERS, *MODULE_WRAPPERS])
def test_the_error_names_the_blocked_class_and_a_line_that_works(wrapper, tmp_path, monkeypatch):
    content = MODULE_WRAPPERS.get(wrapper, lambda: {wrapper: STATE, "args": Hyper(), "best": np.float64(0.5)})()
    path = save_state(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"test_checkpoint_reader\.Hyper|torch\.nn\.modules") as refused:
        checkpoint_reader.read_checkpoint(path)
    monkeypatch.chdir(tmp_path)
    exec(refused.value.do.partition("again: ")[2], {})
    assert is_equal(checkpoint_reader.read_checkpoint(Path("weights.pth")), STATE)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE, "optimizer": {}, "lr_scheduler": {}, "epoch": 3, "args": Namespace(lr=0.1, milestones=[3, 5])},
        {"state_dict": STATE, "state_dict_ema": STATE, "args": Namespace(opt=Namespace(name="sgd"))},
    ],
)
def test_arguments_of_a_training_script_are_read(content, zipped, tmp_path):
    path = save_state(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert is_equal(checkpoint_reader.read_checkpoint(path), STATE)


def test_arguments_do_not_let_other_code_in(tmp_path):
    proof, allowed = tmp_path / "it ran", torch.serialization.get_safe_globals()
    for args in (Namespace(x=Malicious(proof)), [Namespace(), Malicious(proof)]):
        with pytest.raises(UserError, match="would run code"):
            checkpoint_reader.read_checkpoint(save_state({"model": STATE, "args": args}, tmp_path / "a.pth"))
    assert not proof.exists()
    assert torch.serialization.get_safe_globals() == allowed, "other code of this process keeps its own rules"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_an_error(zipped, tmp_path):
    path = save_state(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(1, len(content) - 1, len(content) // 60):
        path.write_bytes(content[:length])
        with pytest.raises(
            UserError, match=r"damaged|only \d+ bytes|asks for (collections|torch)"
        ):  # half a name is a strange name
            checkpoint_reader.read_checkpoint(path)


def test_truncated_safetensors_are_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    content = path.read_bytes()
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"damaged|only \d+ bytes"):
            checkpoint_reader.read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"Not a checkpoint.\n", b"\x89PNG\r\n\x1a\n" + bytes(50), b"<html>404</html>", b"\x80\x3c.", bytes(99)]
)
def test_a_file_of_another_kind_is_an_error(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint_reader.read_checkpoint(path)


def test_a_missing_file_an_empty_file_and_a_folder_have_different_errors(tmp_path):
    (tmp_path / "empty").touch()
    save_state(STATE, tmp_path / "a.pth")
    for name, actual in {
        "nowhere": "no such file",
        "empty": "an empty file",
        ".": "a folder with one file that may be weights: a.pth",
    }.items():
        with pytest.raises(UserError, match=actual):
            checkpoint_reader.read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {}, torch.ones(3), {"a": {"b": {"c": {"d": {}}}}}])
def test_a_file_without_named_tensors_is_an_error(content, tmp_path):
    with pytest.raises(UserError, match="it holds no named tensors"):
        checkpoint_reader.read_checkpoint(save_state(content, tmp_path / "a.pth"))


def test_a_torchscript_program_is_an_error(tmp_path):
    path = tmp_path / "program.pt"
    save_state(STATE, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "script.pt", "w") as script:
        for name in archive.namelist():
            script.writestr(name, archive.read(name))
        script.writestr("program/constants.pkl", pickle.dumps((), protocol=2))
    with pytest.raises(UserError, match="TorchScript"):
        checkpoint_reader.read_checkpoint(tmp_path / "script.pt")


# As the tools of the trade write them


def test_the_error_names_every_blocked_class(tmp_path):
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in STATE.items()}, "hyper_parameters": {"x": Hyper()}}
    path = save_state(content | {"args": Namespace(lr=1), "lr": np.float64(0.1)}, tmp_path / "last.ckpt")
    with pytest.raises(UserError) as refused:
        checkpoint_reader.read_checkpoint(path)
    assert re.search(r"asks for numpy.*, test_checkpoint_reader\.Hyper, which is not", refused.value.found)
    assert "argparse" not in refused.value.found
    assert "torch.load('last.ckpt'" in refused.value.do


def test_a_lightning_checkpoint_with_plain_arguments_is_read(tmp_path):
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in STATE.items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        "hyper_parameters": {"lr": 0.1},
    }
    assert is_equal(checkpoint_reader.read_checkpoint(save_state(content, tmp_path / "last.ckpt")), STATE)


@pytest.mark.parametrize(("key", "average_key"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_a_note_says_whether_weights_or_their_average_were_read(key, average_key, tmp_path):
    path = save_state(
        {key: STATE, average_key: {f"module.{name}": tensor * 0 for name, tensor in STATE.items()}}, tmp_path / "a.pth"
    )
    state, note = checkpoint_reader.read_with_note(path)
    assert is_equal(state, STATE)
    assert note == f"weights: {key!r} of the file, not the moving average {average_key!r} in the same file"
    assert checkpoint_reader.read_with_note(save_state({average_key: STATE}, tmp_path / "b.pth"))[1] == ""


def test_a_checkpoint_of_timm_is_read(tmp_path):
    timm, utils = pytest.importorskip("timm"), pytest.importorskip("timm.utils")
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = utils.CheckpointSaver(model, optimizer, model_ema=utils.ModelEmaV3(model), checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=0.5)
    state, note = checkpoint_reader.read_with_note(tmp_path / "last.pth.tar")
    assert is_equal(state, model.state_dict()) and "'state_dict_ema'" in note


def test_prefixes_of_compiled_and_wrapped_networks_are_removed(tmp_path):
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    wrapped = torch.nn.DataParallel(torch.compile(layer))
    path = save_state(wrapped.state_dict(), tmp_path / "a.pt")
    assert next(iter(wrapped.state_dict())).startswith("module._orig_mod.")
    assert is_equal(checkpoint_reader.read_checkpoint(path), layer.state_dict())


PRAISE = r"weights_only|add_safe_globals|safe_globals|arbitrary code"


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"w": np.ones(3)}], ids=["table", "list", "arrays"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_error_for_a_bare_pickle_does_not_quote_unsafe_advice(content, protocol, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError) as refused:
        checkpoint_reader.read_checkpoint(path)
    assert not re.search(PRAISE, refused.value.found)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_error_for_a_damaged_file_does_not_quote_unsafe_advice(zipped, tmp_path):
    path = save_state(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content, rng, actual = path.read_bytes(), np.random.default_rng(0), []
    for position, value in zip(rng.integers(len(content), size=150), rng.integers(256, size=150), strict=True):
        path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
        try:
            checkpoint_reader.read_checkpoint(path)
        except UserError as problem:
            actual.append(problem.found)
    assert actual and not [message for message in actual if re.search(PRAISE, message)]


def test_tensors_that_need_more_memory_than_the_file_holds_are_refused(tmp_path):
    path = save_state({"one.weight": torch.ones(1).expand(2**31), "one.bias": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"repeat the numbers of the file[\s\S]*the largest: one\.weight"):
        checkpoint_reader.read_checkpoint(path)


def test_a_dictionary_that_contains_itself_is_refused(tmp_path):
    content = {"weight": torch.ones(2)}
    content["model"] = content
    with pytest.raises(UserError, match="dictionaries that contain themselves"):
        checkpoint_reader.read_checkpoint(save_state(content, tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [("sparse", torch.ones(2).to_sparse()), ("complex", torch.ones(2) * 1j), ("meta", torch.ones(2, device="meta"))],
)
def test_the_kind_of_a_tensor_that_cannot_be_loaded_is_named(kind, tensor, tmp_path):
    with pytest.raises(UserError, match=rf"{kind}.*: odd"):
        checkpoint_reader.read_checkpoint(save_state(STATE | {"odd": tensor}, tmp_path / "a.pth"))


def test_a_damaged_archive_with_a_readable_end_is_an_error(tmp_path):
    content = save_state(STATE, tmp_path / "a.pth").read_bytes()
    end = content.rindex(b"PK\x05\x06")
    (tmp_path / "a.pth").write_bytes(b"P9" + content[2 : end + 16] + bytes([255] * 4) + content[end + 20 :])
    with pytest.raises(UserError, match="damaged"):
        checkpoint_reader.read_checkpoint(tmp_path / "a.pth")
