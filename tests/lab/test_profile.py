"""Facts about a backbone and a dataset, before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_folder, make_npz
from test_loop import WEIGHTS
from torch import nn

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Preprocessing, WeightsFile
from xferbench.data import inputs
from xferbench.lab.models import backbones, checkpoints
from xferbench.lab.worker import profile


def make_weights(path, arch="tiny-resnet", *, classes=20, **metadata):
    """A checkpoint of random weights."""
    checkpoints.save_tensors(backbones.build(arch, classes).state_dict(), path, metadata=metadata)
    return WeightsFile(digest=files.sha256(path), path=str(path))


NOTHING = (None, (), None)


def probed(target, cache, *, weights=WEIGHTS, preprocessing=None, train_size=60, test_size=None, beside=NOTHING):
    return profile.profile("tiny-resnet", weights, target, preprocessing, (train_size, test_size), beside, cache)


def test_it_tells_what_there_is(tmp_path):
    facts = probed(make_npz(tmp_path / "d.npz", test_groups=np.arange(60) // 4), tmp_path / "cache", test_size=40)
    assert facts.classes == ("0", "1", "2", "3")
    assert (facts.train, facts.validation, facts.test) == (60, 60, 40)
    assert facts.test_groups == len(np.unique((np.arange(60) // 4)[np.random.default_rng(0).permutation(60)[:40]]))
    assert facts.head == "linear"
    assert facts.groups == ("conv1", "layer1", "layer2", "layer3", "layer4")
    assert facts.has_batchnorm
    assert len(facts.batchnorm) == 9
    assert facts.parameters == sum(one.numel() for one in backbones.build("tiny-resnet", 4).parameters())
    assert facts.lacks == ()
    assert 0 < facts.seconds_forward < 1
    assert 0 < facts.seconds_step < 1


def test_what_a_backbone_has_nothing_of_is_told(tmp_path, monkeypatch):
    def plain(classes):
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    torch.save(plain(4).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(backbones, "build", lambda _arch, classes, _code: plain(classes))
    weights = WeightsFile(digest=files.sha256(tmp_path / "w.pt"), path=str(tmp_path / "w.pt"))
    assert probed(make_npz(tmp_path / "d.npz"), tmp_path / "cache", weights=weights).lacks == ("norm", "bias")


def test_a_shifted_set_without_training_images_is_told(tmp_path):
    target, other = make_npz(tmp_path / "d.npz"), tmp_path / "other.npz"
    np.savez(other, test_images=np.zeros((8, 16, 16, 3), np.uint8), test_labels=np.arange(8) % 4)
    tested = inputs.digest_data(f"npz:{other}")
    assert probed(target, tmp_path / "cache", beside=(None, (), tested)).lacks == ("unlabelled",)
    assert probed(target, tmp_path / "cache", beside=(None, (), target)).lacks == ()


def test_what_was_left_out_of_a_folder_and_its_validation_split_are_told(tmp_path):
    folder = make_folder(tmp_path / "d", splits=("train", "val", "test"))
    (folder / "train" / "cat" / "torn.png").write_bytes(b"nothing")
    facts = probed(inputs.digest_data(f"folder:{folder}"), tmp_path / "cache", train_size=None)
    assert (facts.train, facts.validation, facts.test, facts.test_groups) == (10, 10, 10, None)
    assert len(facts.left_out) == 1


def test_the_preprocessing_is_the_given_one_or_the_recorded_one_or_taken_on_trust(tmp_path):
    target = make_npz(tmp_path / "d.npz")
    shipped = probed(target, tmp_path / "cache")
    assert shipped.preprocessing == Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert shipped.trust == ()
    own = Preprocessing(mean=(0.1,), std=(0.9,))
    given = probed(target, tmp_path / "cache", preprocessing=own)
    assert (given.preprocessing, given.trust) == (own, ())
    bare = probed(target, tmp_path / "cache", weights=make_weights(tmp_path / "bare.safetensors"))
    assert bare.preprocessing == Preprocessing()
    assert "recorded nowhere" in bare.trust[0]


def test_a_guess_at_a_preprocessing_is_said_to_be_one(tmp_path):
    cifar = make_weights(tmp_path / "c.safetensors", "cifar-resnet20", classes=10)
    found, trust = profile.checkpoint_preprocessing("cifar-resnet20", cifar)
    assert found == profile.CIFAR_PREPROCESSING
    assert "not recorded" in trust
    resnet = WeightsFile(digest="0" * 64, path=cifar.path)
    found, trust = profile.checkpoint_preprocessing("torchvision:resnet18", resnet)
    assert (found.resize, found.crop, found.mean) == (256, 224, (0.485, 0.456, 0.406))
    assert "not recorded" in trust
    published = WeightsFile(digest="f37072fd" + "0" * 56, path=cifar.path)  # resnet18-f37072fd.pth
    assert profile.checkpoint_preprocessing("torchvision:resnet18", published) == (found, "")


def test_the_preprocessing_of_timm_is_a_guess_unless_the_file_is_one_that_it_publishes(tmp_path):
    pytest.importorskip("timm")
    path = make_weights(tmp_path / "r.safetensors").path
    found, trust = profile.checkpoint_preprocessing("timm:resnet18", WeightsFile(digest="0" * 64, path=path))
    assert (found.resize, found.crop, found.interpolation) == (235, 224, "bicubic")
    assert trust == "preprocessing: not recorded with these weights; that of the published weights of timm:resnet18 is used"
    assert profile.checkpoint_preprocessing("timm:resnet18", WeightsFile(digest="d63eafa0" + "0" * 56, path=path)) == (
        found,
        "",
    )


def test_which_of_two_weights_was_read_and_what_lay_beside_them_is_told(tmp_path):
    state = backbones.build("tiny-resnet", 20).state_dict()
    named = {f"net.{name}": tensor for name, tensor in state.items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": named, "state_dict_ema": named}, tmp_path / "last.ckpt")
    weights = WeightsFile(digest=files.sha256(tmp_path / "last.ckpt"), path=str(tmp_path / "last.ckpt"))
    _, average, beside = probed(make_npz(tmp_path / "d.npz"), tmp_path / "cache", weights=weights).trust
    assert "not the moving average 'state_dict_ema'" in average
    assert beside == "weights: those named net.…; not used: loss.weight"


def test_weights_that_do_not_fit_and_datasets_that_are_too_small_are_problems(tmp_path):
    target = make_npz(tmp_path / "d.npz")
    with pytest.raises(UserError, match="do not fit"):
        probed(target, tmp_path / "cache", weights=make_weights(tmp_path / "c.safetensors", "cifar-resnet20"))
    with pytest.raises(UserError, match="train_size"):
        probed(target, tmp_path / "cache", train_size=2)
    with pytest.raises(UserError, match="test_size"):
        probed(target, tmp_path / "cache", test_size=1000)


def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert profile.resolve_device("auto") == expected
        assert profile.resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert profile.resolve_device("auto") == "mps"


def test_a_device_that_is_not_there_is_a_problem_and_not_a_crash_of_every_trial(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for word in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"--device {word}: not found here"):
            profile.resolve_device(word)


def test_a_preprocessing_without_the_mean_and_deviation_that_are_known_is_refused(tmp_path):
    target = make_npz(tmp_path / "d.npz", side=16)
    with pytest.raises(UserError, match="mean and std are left out"):
        probed(target, tmp_path / "cache", preprocessing=Preprocessing(resize=16, crop=16))
    said = Preprocessing(resize=16, crop=16, mean=(0.0,), std=(1.0,))
    assert probed(target, tmp_path / "cache", preprocessing=said).preprocessing == said
