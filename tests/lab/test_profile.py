"""Profiles of a backbone and its datasets."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_folder, make_npz
from test_loop import WEIGHTS
from torch import nn

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Checkpoint, WeightsFile
from xferbench.core.plugin import ProfileRequest
from xferbench.core.transforms import Preprocessing
from xferbench.data import inputs
from xferbench.lab.models import backbones, checkpoints
from xferbench.lab.worker import profile


def make_weights(path, arch="tiny-resnet", *, classes=20, **metadata):
    """Write a checkpoint of random weights."""
    checkpoints.save_tensors(backbones.build(arch, classes).state_dict(), path, metadata=metadata)
    return WeightsFile(digest=files.sha256(path), path=str(path))


def make_profile(target, cache, *, weights=WEIGHTS, **more):
    request = {"arch": "tiny-resnet", "weights": weights, "target": target, "train_size": 60} | more
    return profile.profile(ProfileRequest(**request), cache)


def test_the_profile_describes_network_and_dataset(tmp_path):
    result = make_profile(make_npz(tmp_path / "d.npz", test_groups=np.arange(60) // 4), tmp_path / "cache", test_size=40)
    assert result.data.classes == ("0", "1", "2", "3")
    assert (result.data.train, result.data.validation, result.data.test) == (60, 60, 40)
    assert result.data.test_groups == len(np.unique((np.arange(60) // 4)[np.random.default_rng(0).permutation(60)[:40]]))
    assert result.model.head == "linear"
    assert result.model.groups == ("conv1", "layer1", "layer2", "layer3", "layer4")
    assert result.has_batchnorm
    assert len(result.model.batchnorm) == 9
    assert result.model.parameters == sum(parameter.numel() for parameter in backbones.build("tiny-resnet", 4).parameters())
    assert result.model.unsupported == ("prompt", "prefix", "dropout")
    assert 0 < result.timing.seconds_forward < 1
    assert 0 < result.timing.seconds_step < 1


def test_unsupported_names_trainable_kinds_without_a_tensor(tmp_path, monkeypatch):
    def plain(classes):
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    torch.save(plain(4).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(backbones, "build", lambda _arch, classes, *_: plain(classes))
    weights = WeightsFile(digest=files.sha256(tmp_path / "w.pt"), path=str(tmp_path / "w.pt"))
    result = make_profile(make_npz(tmp_path / "d.npz"), tmp_path / "cache", weights=weights)
    assert result.model.unsupported == ("norm", "bias", "prompt", "prefix", "dropout")


class FixedGrid(nn.Module):
    """A network with as many position embeddings as an image of 32 pixels needs; it raises anything at other sizes."""

    def __init__(self, classes):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 16, 16), nn.Linear(16, classes)

    def forward(self, x):
        return self.head({4: self.stem(x)}[(x.shape[-1] // 16) ** 2].flatten(1))


def test_the_profile_names_the_sizes_that_the_network_accepts(tmp_path, monkeypatch):
    target = make_npz(tmp_path / "d.npz", side=32)
    assert make_profile(target, tmp_path / "cache").model.accepted_sizes == profile.COMMON_SIZES
    torch.save(FixedGrid(4).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(backbones, "build", lambda _arch, classes, *_: FixedGrid(classes))
    weights = WeightsFile(digest=files.sha256(tmp_path / "w.pt"), path=str(tmp_path / "w.pt"))
    assert make_profile(target, tmp_path / "cache", weights=weights).model.accepted_sizes == (32,)


def test_unsupported_names_a_shifted_set_without_training_images(tmp_path):
    target, other = make_npz(tmp_path / "d.npz"), tmp_path / "other.npz"
    np.savez(other, test_images=np.zeros((8, 16, 16, 3), np.uint8), test_labels=np.arange(8) % 4)
    tested = inputs.digest_data(f"npz:{other}")
    assert make_profile(target, tmp_path / "cache", shifted=tested).model.unsupported == (
        "prompt",
        "prefix",
        "dropout",
        "unlabelled",
    )
    assert make_profile(target, tmp_path / "cache", shifted=target).model.unsupported == ("prompt", "prefix", "dropout")


def test_the_profile_counts_splits_and_dropped_files(tmp_path):
    folder = make_folder(tmp_path / "d", splits=("train", "val", "test"))
    (folder / "train" / "cat" / "torn.png").write_bytes(b"nothing")
    result = make_profile(inputs.digest_data(f"folder:{folder}"), tmp_path / "cache", train_size=None)
    assert (result.data.train, result.data.validation, result.data.test, result.data.test_groups) == (10, 10, 10, None)
    assert len(result.data.dropped_examples) == 1


def test_the_preprocessing_is_stated_recorded_or_assumed(tmp_path):
    target = make_npz(tmp_path / "d.npz")
    shipped = make_profile(target, tmp_path / "cache")
    assert shipped.preprocessing == Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert shipped.trust == ()
    alike = Preprocessing(mean=(0.5,), std=(0.25,))
    stated = make_profile(target, tmp_path / "cache", preprocessing=alike)
    assert (stated.preprocessing, stated.trust) == (alike, ())
    custom, bare = Preprocessing(mean=(0.1,), std=(0.9,)), make_weights(tmp_path / "bare.safetensors")
    assert make_profile(target, tmp_path / "cache", preprocessing=custom, weights=bare).preprocessing == custom
    unrecorded = make_profile(target, tmp_path / "cache", weights=make_weights(tmp_path / "bare.safetensors"))
    assert unrecorded.preprocessing == Preprocessing()
    assert "recorded nowhere" in unrecorded.trust[0]


def test_a_statement_without_a_record_is_taken_on_trust(tmp_path):
    target, bare = make_npz(tmp_path / "d.npz"), make_weights(tmp_path / "bare.safetensors")
    recorded = Preprocessing(mean=(0.5,), std=(0.25,))
    assert make_profile(target, tmp_path / "cache", preprocessing=recorded).recorded
    stated = make_profile(target, tmp_path / "cache", preprocessing=recorded, weights=bare)
    assert not stated.recorded
    assert stated.trust == ("preprocessing: stated under [backbone], and not recorded with these weights",)
    audited = make_profile(target, tmp_path / "cache", preprocessing=recorded, weights=bare, checkpoint=Checkpoint(after=bare))
    assert audited.trust == (), "an audit tests what is stated"


def test_an_assumed_preprocessing_has_a_note(tmp_path):
    cifar = make_weights(tmp_path / "c.safetensors", "cifar-resnet20", classes=10)
    preprocessing, trust = profile.checkpoint_preprocessing("cifar-resnet20", cifar)
    assert preprocessing == profile.CIFAR_PREPROCESSING
    assert "not recorded" in trust
    resnet = WeightsFile(digest="0" * 64, path=cifar.path)
    preprocessing, trust = profile.checkpoint_preprocessing("torchvision:resnet18", resnet)
    assert (preprocessing.resize, preprocessing.crop, preprocessing.mean) == (256, 224, (0.485, 0.456, 0.406))
    assert "not recorded" in trust
    published = WeightsFile(digest="f37072fd" + "0" * 56, path=cifar.path)  # resnet18-f37072fd.pth
    assert profile.checkpoint_preprocessing("torchvision:resnet18", published) == (preprocessing, "")


def test_the_preprocessing_of_timm_is_assumed_unless_timm_publishes_the_file(tmp_path):
    pytest.importorskip("timm")
    path = make_weights(tmp_path / "r.safetensors").path
    preprocessing, trust = profile.checkpoint_preprocessing("timm:resnet18", WeightsFile(digest="0" * 64, path=path))
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (235, 224, "bicubic")
    assert trust == "preprocessing: not recorded with these weights; that of the published weights of timm:resnet18 is used"
    assert profile.checkpoint_preprocessing("timm:resnet18", WeightsFile(digest="d63eafa0" + "0" * 56, path=path)) == (
        preprocessing,
        "",
    )


def test_notes_name_the_weights_that_were_read_and_the_unused_tensors(tmp_path):
    state = backbones.build("tiny-resnet", 20).state_dict()
    prefixed = {f"net.{name}": tensor for name, tensor in state.items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": prefixed, "state_dict_ema": prefixed}, tmp_path / "last.ckpt")
    weights = WeightsFile(digest=files.sha256(tmp_path / "last.ckpt"), path=str(tmp_path / "last.ckpt"))
    _, average, unused = make_profile(make_npz(tmp_path / "d.npz"), tmp_path / "cache", weights=weights).trust
    assert "not the moving average 'state_dict_ema'" in average
    assert unused == "weights: those named net.…; not used: loss.weight"


def test_weights_that_do_not_fit_and_too_small_datasets_raise(tmp_path):
    target = make_npz(tmp_path / "d.npz")
    with pytest.raises(UserError, match="do not fit"):
        make_profile(target, tmp_path / "cache", weights=make_weights(tmp_path / "c.safetensors", "cifar-resnet20"))
    with pytest.raises(UserError, match="train_size"):
        make_profile(target, tmp_path / "cache", train_size=2)
    with pytest.raises(UserError, match="test_size"):
        make_profile(target, tmp_path / "cache", test_size=1000)


def test_auto_resolves_to_an_accelerator_if_available(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for is_available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_available=is_available: is_available)
        assert profile.resolve_device("auto") == expected
        assert profile.resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert profile.resolve_device("auto") == "mps"


def test_a_missing_device_raises(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for word in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"--device {word}: not found here"):
            profile.resolve_device(word)


def test_a_preprocessing_without_known_mean_and_std_raises(tmp_path):
    target = make_npz(tmp_path / "d.npz", side=16)
    with pytest.raises(UserError, match="mean and std are left out"):
        make_profile(target, tmp_path / "cache", preprocessing=Preprocessing(resize=16, crop=16))
    stated = Preprocessing(resize=16, crop=16, mean=(0.0,), std=(1.0,))
    bare = make_weights(tmp_path / "bare.safetensors")
    assert make_profile(target, tmp_path / "cache", preprocessing=stated, weights=bare).preprocessing == stated


@pytest.mark.parametrize(
    "stated",
    [{"mean": (0.485, 0.456, 0.406)}, {"std": (0.5,)}, {"mean": (0.0,), "std": (1.0,)}, {"scale": 1.0}, {"channels": "bgr"}],
)
def test_a_statement_against_the_record_of_the_weights_raises(tmp_path, stated):
    recorded = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    with pytest.raises(UserError, match="it contradicts the record") as raised:
        make_profile(make_npz(tmp_path / "d.npz"), tmp_path / "cache", preprocessing=Preprocessing(**{**recorded, **stated}))
    assert "0.25" in raised.value.expected
    assert raised.value.found != raised.value.expected
    assert "train_preprocessing" in raised.value.do


def test_a_statement_in_another_range_does_not_contradict_the_record(tmp_path):
    pixels = Preprocessing(scale=1.0, mean=(127.5,), std=(63.75,))
    assert make_profile(make_npz(tmp_path / "d.npz"), tmp_path / "cache", preprocessing=pixels).recorded
