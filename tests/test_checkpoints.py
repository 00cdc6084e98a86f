from __future__ import annotations

import json
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file  # noqa: E402

from xferbench.design import Preprocessing  # noqa: E402
from xferbench.lab import backbones, checkpoints  # noqa: E402
from xferbench.problem import Problem  # noqa: E402

STATE = {"one.weight": torch.arange(6.0).view(2, 3), "one.bias": torch.ones(2), "count": torch.tensor(3)}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def saved(content, path, **kwargs):
    torch.save(content, path, **kwargs)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_from_both_forms_of_torch_files(zipped, tmp_path):
    assert same(checkpoints.read(saved(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)), STATE)


def test_safetensors_are_known_by_content_too(tmp_path):
    save_file(STATE, tmp_path / "weights.bin")
    assert same(checkpoints.read(tmp_path / "weights.bin"), STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_is_read_as_float32_and_integers_stay(dtype, tmp_path):
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}
    assert same(checkpoints.read(saved(cast, tmp_path / "a.pt")), STATE)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": STATE, "epoch": 3, "best": torch.tensor(0.5)},
        {"model": STATE, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"model": {"state_dict": STATE}},
        {"ema": {"module": STATE}, "args": {"lr": 0.1}},
        {"teacher": STATE},
        {"net": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {f"_orig_mod.module.model.{name}": tensor for name, tensor in STATE.items()},
        {f"base_model.model.backbone.{name}": tensor for name, tensor in STATE.items()},
    ],
)
def test_wrappers_and_shared_prefixes_are_taken_off(wrapped, tmp_path):
    assert same(checkpoints.read(saved(wrapped, tmp_path / "a.pth")), STATE)


def test_the_weights_themselves_come_before_their_moving_average(tmp_path):
    average = {name: tensor * 0 for name, tensor in STATE.items()}
    assert same(checkpoints.read(saved({"model_ema": average, "model": STATE}, tmp_path / "a.pth")), STATE)


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    state = {"model.weight": torch.ones(2), "criterion.weight": torch.ones(2)}
    assert same(checkpoints.read(saved(state, tmp_path / "a.pth")), state)


def test_parameters_are_read_as_plain_tensors_of_their_own(tmp_path):
    shared = torch.nn.Parameter(torch.ones(4))
    state = checkpoints.read(saved({"a": shared, "b": shared[:2]}, tmp_path / "a.pth"))
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
    with pytest.raises(Problem, match=r"would run code[\s\S]*(posix|nt)\.system[\s\S]*trust[\s\S]*safetensors"):
        checkpoints.read(path)
    assert not proof.exists()
    if zipped:
        torch.load(path, weights_only=False)
        assert proof.exists(), "the file is harmless, so the test above shows nothing"


@pytest.mark.parametrize(
    "content", [{"state_dict": STATE, "args": Namespace(lr=0.1)}, torch.nn.Linear(2, 2)], ids=["args", "module"]
)
def test_the_blocked_class_is_named_and_the_way_out_works(content, tmp_path, monkeypatch):
    path = saved(content, tmp_path / "model.pt")
    with pytest.raises(Problem, match=r"argparse\.Namespace|torch\.nn\.modules\.linear\.Linear") as refused:
        checkpoints.read(path)
    monkeypatch.chdir(tmp_path)
    code = refused.value.do.partition("anew: ")[2]
    exec(f"import torch, safetensors.torch; {code}")  # what the message tells the user to do must work
    assert set(checkpoints.read(Path("weights.safetensors"))) in ({*STATE}, {"weight", "bias"})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_a_problem_wherever_it_was_cut(zipped, tmp_path):
    path = saved(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(1, len(content) - 1, len(content) // 60):
        path.write_bytes(content[:length])
        with pytest.raises(Problem, match=r"damaged|asks for (collections|torch)"):  # half a name is a strange name
            checkpoints.read(path)


def test_truncated_safetensors_are_a_problem(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    content = path.read_bytes()
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(Problem, match="damaged"):
            checkpoints.read(path)


@pytest.mark.parametrize(
    "content", [b"Not a checkpoint.\n", b"\x89PNG\r\n\x1a\n" + bytes(50), b"<html>404</html>", b"\x80\x3c.", bytes(99)]
)
def test_a_file_of_another_kind_is_a_problem(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(Problem, match="no checkpoint"):
        checkpoints.read(path)


def test_a_missing_an_empty_file_and_a_folder_are_told_apart(tmp_path):
    (tmp_path / "empty").touch()
    for name, found in {"nowhere": "no such file", "empty": "an empty file", ".": "a folder"}.items():
        with pytest.raises(Problem, match=found):
            checkpoints.read(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {}, torch.ones(3), {"a": {"b": {"c": {"d": {}}}}}])
def test_a_file_without_named_tensors_is_a_problem(content, tmp_path):
    with pytest.raises(Problem, match="no tensors by name"):
        checkpoints.read(saved(content, tmp_path / "a.pth"))


def test_a_torchscript_program_is_a_problem(tmp_path):
    path = tmp_path / "program.pt"
    saved(STATE, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "script.pt", "w") as script:
        for name in archive.namelist():
            script.writestr(name, archive.read(name))
        script.writestr("program/constants.pkl", pickle.dumps((), protocol=2))
    with pytest.raises(Problem, match="TorchScript"):
        checkpoints.read(tmp_path / "script.pt")


def of(arch, classes=10):
    model = backbones.build(arch, classes)
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_all_but_the_head_is_loaded():
    model, own = of("tiny-resnet", 5)
    _, source = of("tiny-resnet", 20)
    assert checkpoints.load(model, source, "linear") == ("linear.weight", "linear.bias")
    loaded = model.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, own[name] if name.startswith("linear.") else source[name]), name


def test_the_head_stays_out_even_where_it_would_fit_and_need_not_be_there():
    model, own = of("tiny-resnet")
    _, source = of("tiny-resnet")
    headless = {name: tensor for name, tensor in source.items() if not name.startswith("linear.") and "num_batches" not in name}
    assert checkpoints.load(model, source, "linear")
    assert checkpoints.load(model, headless, "linear") == ()
    assert torch.equal(model.linear.weight, own["linear.weight"])


def test_all_that_does_not_fit_is_told_in_one_message():
    model, source = of("tiny-resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del source["conv1.weight"]
    source["stranger.weight"] = torch.ones(2)
    source["bn1.weight"] = torch.ones(3)
    with pytest.raises(Problem) as refused:
        checkpoints.load(model, source, "linear")
    assert "1 missing in the file: conv1.weight" in refused.value.found
    assert "1 not in the network: stranger.weight" in refused.value.found
    assert "1 of another shape: bn1.weight (3,) for (16,)" in refused.value.found
    assert same(model.state_dict(), before), "a refused checkpoint changed the network"


@pytest.mark.parametrize(
    ("source", "likeness"),
    [
        ("torchvision:resnet18", "resnet18"),
        ("torchvision:resnet50", "resnet50"),
        ("cifar-resnet32", "cifar-resnet32"),
        ("torchvision:squeezenet1_1", "SqueezeNet"),
        ("torchvision:shufflenet_v2_x0_5", "ShuffleNet"),
        ("torchvision:mobilenet_v3_small", "MobileNetV3"),
    ],
)
def test_weights_of_another_architecture_are_told_with_what_they_look_like(source, likeness):
    model, _ = of("cifar-resnet20")
    _, state = of(source)
    with pytest.raises(Problem, match=rf"look like {likeness};") as refused:
        checkpoints.load(model, state, "linear")
    assert "in all)" in refused.value.found
    assert len(refused.value.found) < 3000


def test_weights_that_are_not_finite_are_a_problem():
    model, source = of("tiny-resnet")
    source["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(Problem, match=r"NaN or infinity in layer2\.0\.conv1\.weight"):
        checkpoints.load(model, source, "linear")


def test_names_of_published_torchvision_weights_are_understood():
    with torch.device("meta"):
        densenet, vit = backbones.build("torchvision:densenet121", 7), backbones.build("torchvision:vit_b_32", 7)
    found = {checkpoints._renamed(f"features.denseblock1.denselayer2.{name}") for name in ("norm.1.weight", "conv.2.weight")}
    assert found == {"features.denseblock1.denselayer2.norm1.weight", "features.denseblock1.denselayer2.conv2.weight"}
    assert found < set(densenet.state_dict())
    found = {checkpoints._renamed(f"encoder.layers.encoder_layer_11.mlp.linear_{part}.bias") for part in (1, 2)}
    assert len(found & set(vit.state_dict())) == 2


def test_auxiliary_classifiers_count_as_heads():
    model, source = of("torchvision:googlenet")
    extra = {"aux1.fc1.weight": torch.ones(2), "aux2.conv.conv.weight": torch.ones(2)}
    assert set(checkpoints.load(model, source | extra, "fc")) == {"fc.weight", "fc.bias", *extra}


def test_a_network_that_rebuilds_itself_on_old_files_is_loaded_as_it_is():
    model, source = of("torchvision:mnasnet0_5")
    assert checkpoints.load(model, source, "classifier.1") == ("classifier.1.weight", "classifier.1.bias")


@pytest.mark.parametrize(
    ("file", "arch", "size"),
    [("squeezenet1_0_torchvision_norm.pth", "torchvision:squeezenet1_0", 64), ("resnet20-12fca82f.th", "cifar-resnet20", 32)],
)
def test_published_weights_load_and_give_sensible_features(file, arch, size, shared):
    model = backbones.build(arch, 5).eval()
    anatomy = backbones.anatomy(model, size)
    assert len(checkpoints.load(model, checkpoints.read(shared / "weights" / file), anatomy.head)) == 2
    lower, _ = backbones.split(model, anatomy, len(anatomy.groups))
    with torch.no_grad():
        features = lower.eval()(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(features).all()
    assert features.std(0).mean() > 0.05


def test_what_is_saved_is_recalled_exactly(tmp_path):
    path = tmp_path / "new folder" / "a.safetensors"
    state = STATE | {
        "model.nan": torch.tensor([float("nan"), 1.0]),
        "view": torch.arange(6.0).view(2, 3).T,
        "half": torch.ones(2).half(),
    }
    checkpoints.save(state, path, half=False, metadata={"fit": "{}"})
    found, metadata = checkpoints.recall(path)
    assert metadata == {"fit": "{}"}
    assert found["half"].dtype == torch.float16
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in state.items())
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_halved_weights_take_half_the_space_unless_they_overflow(tmp_path):
    checkpoints.save(
        {"a": torch.full((1000,), 0.1), "b": torch.tensor([1e6]), "n": torch.tensor(7)}, tmp_path / "a.safetensors"
    )
    assert (tmp_path / "a.safetensors").stat().st_size < 2500
    found, _ = checkpoints.recall(tmp_path / "a.safetensors")
    assert (found["a"].dtype, found["b"].dtype, found["n"].dtype) == (torch.float16, torch.float32, torch.int64)
    assert checkpoints.read(tmp_path / "a.safetensors")["b"].item() == 1e6


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoints.save(STATE, path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save({"other": torch.ones(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_recorded_preprocessing_comes_back(tmp_path):
    path = tmp_path / "a.safetensors"
    preprocessing = Preprocessing(resize=40, crop=32, interpolation="bicubic", channels="bgr", mean=(0.1, 0.2, 0.3), std=(1.0,))
    checkpoints.save(STATE, path, metadata=checkpoints.record(preprocessing))
    assert checkpoints.recorded_preprocessing(path) == preprocessing
    checkpoints.save(STATE, path)
    assert checkpoints.recorded_preprocessing(path) is None
    assert checkpoints.recorded_preprocessing(saved(STATE, tmp_path / "a.pth")) is None


@pytest.mark.parametrize("text", ["{", "[1]", "null", json.dumps({"size": 3})])
def test_a_record_that_cannot_be_read_is_a_problem(text, tmp_path):
    checkpoints.save(STATE, tmp_path / "a.safetensors", metadata={checkpoints.RECORD: text})
    with pytest.raises(Problem, match="recorded preprocessing"):
        checkpoints.recorded_preprocessing(tmp_path / "a.safetensors")
