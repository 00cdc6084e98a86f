"""A test set without training images suffices for an audit only."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Data
from xferbench.core.transforms import Preprocessing
from xferbench.data import sources, synthetic
from xferbench.lab.data import datasets
from xferbench.lab.models import small_resnets


def make_images(count=48):
    images, labels = synthetic.generate("near", "test", count)
    return images, labels % 3


@pytest.fixture
def folder(tmp_path):
    images, labels = make_images()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        class_folder = tmp_path / "flat" / f"class-{label}"
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(class_folder / f"{number}.png")
    return tmp_path / "flat"


@pytest.fixture
def arrays(tmp_path):
    images, labels = make_images()
    np.savez(tmp_path / "test.npz", test_images=images, test_labels=labels)
    return tmp_path / "test.npz"


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_a_flat_dataset_is_read_as_a_test_set(kind, tmp_path, request):
    path = request.getfixturevalue(kind)
    spec = f"{'folder' if kind == 'folder' else 'npz'}:{path}"
    dataset = datasets.load_dataset(Data(digest=kind, spec=spec), Preprocessing(), None, tmp_path)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (0, 48)
    assert len(dataset.classes) == 3


def test_an_audit_without_training_images_skips_what_needs_them(folder, tmp_path):
    torch.manual_seed(0)
    path, out = tmp_path / "after.pth", tmp_path / "out"
    torch.save(small_resnets.tiny_resnet(3).state_dict(), path)
    arguments = ["audit", "--arch", "tiny-resnet", "--after", path, "--data", f"folder:{folder}", "-o", out, "-j", 1]
    code = main.main([*map(str, arguments), "--store", str(tmp_path / "s.sqlite")])
    assert code in {exit_code.FAILED, exit_code.INCONCLUSIVE}
    findings = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert findings["audit/reload"]["verdict"] == "PASS"
    assert findings["batchnorm-drift/harm"]["verdict"] == "SKIPPED"
    assert findings["audit/linear-probe"]["verdict"] == "SKIPPED"
    assert not [finding["id"] for finding in findings.values() if finding["verdict"] == "ERROR"]


def test_a_run_without_training_images_is_an_error(arrays, tmp_path, capsys):
    suite = tmp_path / "s.toml"
    suite.write_text(
        f'schema = 1\nname = "alone"\nplugins = ["all"]\n[backbone]\narch = "tiny-resnet"\n[target]\ndata = "npz:{arrays}"\n'
    )
    arguments = ["run", str(suite), "-o", str(tmp_path / "out"), "--store", str(tmp_path / "s.sqlite"), "-j", "1"]
    assert main.main(arguments) == exit_code.USAGE_ERROR
    assert "no training images" in capsys.readouterr().err


def test_a_folder_of_one_class_is_not_a_dataset(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(UserError, match="not a dataset folder"):
        sources.read_dataset(f"folder:{tmp_path}", None)
