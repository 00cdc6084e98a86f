from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from test_checkpoint_reader import STATE, is_equal, save_state

from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints, graph_split, state_dict_names


def make_model_and_state(arch, classes=10):
    model = backbones.build(arch, classes)
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_everything_but_the_head_is_loaded():
    model, initial = make_model_and_state("tiny-resnet", 5)
    _, source = make_model_and_state("tiny-resnet", 20)
    assert checkpoints.load_backbone(model, source, "linear") == ("linear.weight", "linear.bias")
    loaded = model.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, initial[name] if name.startswith("linear.") else source[name]), name


def test_the_head_is_never_loaded_and_may_be_missing():
    model, initial = make_model_and_state("tiny-resnet")
    _, source = make_model_and_state("tiny-resnet")
    headless = {name: tensor for name, tensor in source.items() if not name.startswith("linear.") and "num_batches" not in name}
    assert checkpoints.load_backbone(model, source, "linear")
    assert checkpoints.load_backbone(model, headless, "linear") == ()
    assert torch.equal(model.linear.weight, initial["linear.weight"])


def test_one_message_lists_every_mismatch():
    model, source = make_model_and_state("tiny-resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del source["conv1.weight"]
    source["stranger.weight"] = torch.ones(2)
    source["bn1.weight"] = torch.ones(3)
    with pytest.raises(UserError) as refused:
        checkpoints.load_backbone(model, source, "linear")
    assert "1 missing in the file: conv1.weight" in refused.value.found
    assert "1 not in the network: stranger.weight" in refused.value.found
    assert "1 of another shape: bn1.weight (3,) for (16,)" in refused.value.found
    assert is_equal(model.state_dict(), before), "a refused checkpoint changed the network"


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
def test_the_error_for_another_architecture_names_the_family(source, likeness):
    model, _ = make_model_and_state("cifar-resnet20")
    _, state = make_model_and_state(source)
    with pytest.raises(UserError, match=rf"look like {likeness};") as refused:
        checkpoints.load_backbone(model, state, "linear")
    assert "in all)" in refused.value.found
    assert len(refused.value.found) < 3000


def test_weights_that_are_not_finite_are_an_error():
    model, source = make_model_and_state("tiny-resnet")
    source["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinity in layer2\.0\.conv1\.weight"):
        checkpoints.load_backbone(model, source, "linear")


def test_old_names_of_torchvision_weights_are_translated():
    with torch.device("meta"):
        densenet, vit = backbones.build("torchvision:densenet121", 7), backbones.build("torchvision:vit_b_32", 7)
    actual = {
        state_dict_names.current_name(f"features.denseblock1.denselayer2.{name}") for name in ("norm.1.weight", "conv.2.weight")
    }
    assert actual == {"features.denseblock1.denselayer2.norm1.weight", "features.denseblock1.denselayer2.conv2.weight"}
    assert actual < set(densenet.state_dict())
    actual = {state_dict_names.current_name(f"encoder.layers.encoder_layer_11.mlp.linear_{part}.bias") for part in (1, 2)}
    assert len(actual & set(vit.state_dict())) == 2


def test_auxiliary_classifiers_count_as_heads():
    model, source = make_model_and_state("torchvision:googlenet")
    extra = {"aux1.fc1.weight": torch.ones(2), "aux2.conv.conv.weight": torch.ones(2)}
    assert set(checkpoints.load_backbone(model, source | extra, "fc")) == {"fc.weight", "fc.bias", *extra}


def test_a_network_that_rebuilds_itself_is_loaded_unchanged():
    model, source = make_model_and_state("torchvision:mnasnet0_5")
    assert checkpoints.load_backbone(model, source, "classifier.1") == ("classifier.1.weight", "classifier.1.bias")


@pytest.mark.parametrize(
    ("file", "arch", "size"),
    [("squeezenet1_0_torchvision_norm.pth", "torchvision:squeezenet1_0", 64), ("resnet20-12fca82f.th", "cifar-resnet20", 32)],
)
def test_published_weights_load_and_give_plausible_features(file, arch, size, shared):
    model = backbones.build(arch, 5).eval()
    layout = backbones.layer_layout(model, size)
    assert len(checkpoints.load_backbone(model, checkpoint_reader.read_checkpoint(shared / "weights" / file), layout.head)) == 2
    lower, _ = graph_split.split_at(model, layout, len(layout.groups))
    with torch.no_grad():
        features = lower.eval()(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(features).all()
    assert features.std(0).mean() > 0.05


def test_saved_tensors_are_read_exactly(tmp_path):
    path = tmp_path / "new folder" / "a.safetensors"
    state = STATE | {
        "model.nan": torch.tensor([float("nan"), 1.0]),
        "view": torch.arange(6.0).view(2, 3).T,
        "half": torch.ones(2).half(),
    }
    checkpoints.save_tensors(state, path, half=False, metadata={"fit": "{}"})
    actual, metadata = checkpoint_reader.read_saved(path)
    assert metadata == {"fit": "{}"}
    assert actual["half"].dtype == torch.float16
    assert actual.keys() == state.keys()
    assert all(torch.equal(actual[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in state.items())
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_float16_halves_the_size_unless_a_value_overflows(tmp_path):
    checkpoints.save_tensors(
        {"a": torch.full((1000,), 0.1), "b": torch.tensor([1e6]), "n": torch.tensor(7)}, tmp_path / "a.safetensors"
    )
    assert (tmp_path / "a.safetensors").stat().st_size < 2500
    actual, _ = checkpoint_reader.read_saved(tmp_path / "a.safetensors")
    assert (actual["a"].dtype, actual["b"].dtype, actual["n"].dtype) == (torch.float16, torch.float32, torch.int64)
    assert checkpoint_reader.read_checkpoint(tmp_path / "a.safetensors")["b"].item() == 1e6


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoints.save_tensors(STATE, path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save_tensors({"other": torch.ones(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_recorded_preprocessing_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    preprocessing = Preprocessing(resize=40, crop=32, interpolation="bicubic", channels="bgr", mean=(0.1, 0.2, 0.3), std=(1.0,))
    checkpoints.save_tensors(STATE, path, metadata=checkpoints.preprocessing_metadata(preprocessing))
    assert checkpoints.recorded_preprocessing(path) == preprocessing
    checkpoints.save_tensors(STATE, path)
    assert checkpoints.recorded_preprocessing(path) is None
    assert checkpoints.recorded_preprocessing(save_state(STATE, tmp_path / "a.pth")) is None


@pytest.mark.parametrize("text", ["{", "[1]", "null", json.dumps({"size": 3})])
def test_an_unreadable_record_is_an_error(text, tmp_path):
    checkpoints.save_tensors(STATE, tmp_path / "a.safetensors", metadata={checkpoints.PREPROCESSING_METADATA: text})
    with pytest.raises(UserError, match="recorded preprocessing"):
        checkpoints.recorded_preprocessing(tmp_path / "a.safetensors")


# Names under which training code keeps a network


def with_prefix(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["model.", "net.", "encoder.", "module._orig_mod.backbone."])
def test_a_network_next_to_losses_and_metrics_is_found(prefix):
    model, source = make_model_and_state("tiny-resnet")
    beside = {"criterion.weight": torch.ones(4), "train_acc.total": torch.ones(())}
    placed, note = checkpoints.match_names(model, with_prefix(prefix, source) | beside, "linear")
    assert is_equal(placed, source)
    assert note == f"weights: those named {prefix}…; not used: criterion.weight, train_acc.total"
    checkpoints.load_backbone(model, with_prefix(prefix, source) | beside, "linear")
    assert torch.equal(model.state_dict()["conv1.weight"], source["conv1.weight"])


def test_matching_names_do_not_change():
    model, source = make_model_and_state("tiny-resnet")
    state = source | with_prefix("ema.", source)
    placed, note = checkpoints.match_names(model, state, "linear")
    assert placed.keys() == state.keys() and note.startswith("weights: not used: ema.bn1.bias, ema.")
    checkpoints.load_backbone(model, state, "linear")


@pytest.mark.parametrize(
    ("prefix", "average"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("student.backbone.", "teacher.backbone."),
        ("online_network.", "target_network."),
        ("model.", "ema.module."),
    ],
)
def test_an_average_of_the_weights_is_not_a_second_network(prefix, average):
    model, source = make_model_and_state("tiny-resnet")
    slow = {name: tensor * 0 for name, tensor in source.items()}
    placed, note = checkpoints.match_names(model, with_prefix(average, slow) | with_prefix(prefix, source), "linear")
    assert is_equal(placed, source)
    assert note.startswith(f"weights: those named {prefix}…; not used: {average}")
    alone, _ = checkpoints.match_names(model, with_prefix(average, slow), "linear")
    assert is_equal(alone, slow)


@pytest.mark.parametrize("prefix", ["", "0.", "trunk."])
def test_the_children_of_a_network_may_be_numbered(prefix):
    model, source = make_model_and_state("torchvision:resnet18")
    children = torch.nn.Sequential(*model.children()).state_dict()
    body = {name: tensor for name, tensor in children.items() if not name.startswith("9.")}
    placed, _ = checkpoints.match_names(model, with_prefix(prefix, body), "fc")
    assert placed.keys() == {name for name in source if not name.startswith("fc.")}
    assert torch.equal(placed["layer2.1.bn2.weight"], children["5.1.bn2.weight"])


@pytest.mark.parametrize(
    "extra", [{"odd": (1,)}, {"gate.weight": (4, 4)}, {"layer1.0.se.weight": (4, 64), "layer1.0.se.bias": (4,)}]
)
def test_a_tensor_that_is_neither_of_the_network_nor_of_a_head_is_an_error(extra):
    model, source = make_model_and_state("tiny-resnet")
    state = source | {name: torch.zeros(shape) for name, shape in extra.items()}
    with pytest.raises(UserError, match=f"not in the network: {next(iter(extra))}"):
        checkpoints.load_backbone(model, state, "linear")


def test_a_wrapped_network_accepts_weights_without_its_prefix():
    wrapped = torch.nn.Sequential()
    wrapped.add_module("model", backbones.build("tiny-resnet", 10))
    _, source = make_model_and_state("tiny-resnet")
    checkpoints.load_backbone(wrapped, source, "model.linear")
    assert torch.equal(wrapped.state_dict()["model.conv1.weight"], source["conv1.weight"])


def test_a_file_with_the_network_twice_is_an_error_that_names_both():
    model, source = make_model_and_state("tiny-resnet")
    with pytest.raises(UserError, match=r"more than once, under (left\., right\.|right\., left\.)"):
        checkpoints.load_backbone(model, with_prefix("left.", source) | with_prefix("right.", source), "linear")


def test_the_error_names_a_prefix_that_would_help():
    model, source = make_model_and_state("tiny-resnet")
    del source["layer4.0.conv1.weight"]
    with pytest.raises(UserError, match=r"with 'trunk\.' removed from the names, 44 of 45 tensors would fit"):
        checkpoints.load_backbone(model, with_prefix("trunk.", source), "linear")
    wrapped = torch.nn.Sequential()
    wrapped.add_module("trunk", model)
    with pytest.raises(UserError, match=r"with 'trunk\.' put before the names, 44 of 45 tensors would fit"):
        checkpoints.load_backbone(wrapped, source, "trunk.linear")


def test_prefixes_are_matched_by_shape_too():
    wanted = {"a.w": (2,), "b.w": (3,)}
    assert state_dict_names.matching_prefixes({"x.a.w": (2,), "x.b.w": (3,), "y.a.w": (9,)}, wanted) == {("x.", ""): 2}
    assert state_dict_names.describe_prefix({("x.", ""): 1}, 3) == ""
