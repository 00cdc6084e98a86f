"""The preprocessing that libraries record for published weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torchvision")
from xferbench.lab.models import backbones, published_preprocessing


def test_torchvision_records_a_preprocessing_for_each_of_its_architectures():
    for arch in backbones.known_archs():
        actual = published_preprocessing.published_preprocessing(arch)
        assert (actual is None) == (not arch.startswith("torchvision:")), arch
        assert actual is None or len(actual.mean) == len(actual.std) == 3
    assert published_preprocessing.published_preprocessing("torchvision:nothing") is None


def test_weights_are_distinguished_by_digest():
    first, second = (
        published_preprocessing.published_preprocessing("torchvision:resnet50", digest * 8)
        for digest in ("0676ba61", "11ad3fa6")
    )
    assert (first.resize, second.resize) == (256, 232)
    assert published_preprocessing.published_preprocessing("torchvision:resnet50", "0" * 64) is None
    assert published_preprocessing.published_preprocessing("torchvision:resnet50") == second


def test_timm_records_a_preprocessing_for_each_tag_of_an_architecture():
    pytest.importorskip("timm")
    actual = published_preprocessing.published_preprocessing("timm:vit_tiny_patch16_224")
    assert (actual.resize, actual.crop, actual.interpolation, actual.mean) == (248, 224, "bicubic", (0.5, 0.5, 0.5))
    assert published_preprocessing.published_preprocessing("timm:resnet18.tv_in1k").interpolation == "bilinear"
    assert published_preprocessing.published_preprocessing("timm:nothing") is None


def test_a_file_that_timm_publishes_is_recognized_by_digest():
    pytest.importorskip("timm")
    actual = published_preprocessing.published_preprocessing("timm:resnet18", "d63eafa0" * 8)  # resnet18_a1_0-d63eafa0.pth
    assert (actual.resize, actual.crop) == (235, 224)
    assert published_preprocessing.published_preprocessing("timm:resnet18", "0" * 64) is None


def test_a_geometry_that_cannot_be_described_gives_none(monkeypatch):
    fields = {"input_size": (3, 64, 64), "crop_pct": 1.0, "interpolation": "random", "mean": (0.5,) * 3, "std": (0.2,) * 3}
    squashed = SimpleNamespace(url="https://a/one-01234567.pth", crop_mode="squash", **fields)
    library = SimpleNamespace(
        is_model=lambda _: True, list_pretrained=lambda _: ["one.a"], get_pretrained_cfg=lambda *_, **__: squashed
    )
    monkeypatch.setattr(backbones, "import_timm", lambda: library)
    assert published_preprocessing.published_preprocessing("timm:one", "01234567" * 8) is None
    assert published_preprocessing.published_preprocessing("timm:one").interpolation == "bilinear", "a guess, said to be one"
