from __future__ import annotations

import importlib.util
import json
import os
import sys
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke import invoke
from test_json_schema import SCHEMA, is_valid

from xferbench.analysis import exit_code
from xferbench.cli import suite_template
from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.data import inputs

TINY = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"


@pytest.fixture(autouse=True)
def _temporary_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def make_folder(folder, classes=("ants", "bees"), splits=("train", "val"), images=3):
    """Make class folders with empty files."""
    for split in splits:
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for index in range(images + number):
                (folder / split / name / f"{index}.jpg").touch()
    return folder


def write_suite(capsys, *arguments):
    """Run init; return the text of the valid suite, the suite, and the output."""
    code, out, err = invoke(capsys, "init", *arguments)
    assert (code, err) == (0, "")
    file = out.partition("wrote ")[2].partition("\nnext: ")[0]
    assert invoke(capsys, "validate", file)[0] == 0
    with open(file, encoding="utf-8") as stream:  # noqa: PTH123 - as a shell would
        text = stream.read()
    assert is_valid(tomllib.loads(text), SCHEMA)
    return text, loader.load_suite(loader.find_suite(file)), out


def test_a_suite_is_written_for_class_folders(capsys, tmp_path):
    make_folder(tmp_path / "my ants")
    text, suite, out = write_suite(capsys, tmp_path / "my ants")
    assert (tmp_path / "my-ants.toml").is_file()
    assert (suite.name, suite.backbone.arch, suite.backbone.weights) == ("my-ants", "tiny-resnet", None)
    assert suite.data.target == f"folder:{tmp_path / 'my ants'}"
    assert 'data = "folder:my ants"' in text
    assert "# 2 classes: ants, bees\n# train: 7 images, 3 to 4 a class\n# test: 7 images, 3 to 4 a class\n" in text
    assert "next: xferbench validate my-ants.toml\n      xferbench run my-ants.toml --dry-run\n" in out


def test_the_working_directory_is_the_default_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path / "ants", splits=("train", "val", "test")))
    text, suite, _ = write_suite(capsys)
    assert suite.data.target == f"folder:{tmp_path / 'ants'}"
    assert "# validation: 7 images" in text


def test_a_suite_is_written_for_an_npz_file(capsys, tmp_path):
    images = {f"{split}_images": np.zeros((40, 8, 8), np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(40) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "a.npz", **images, **labels, train_groups=np.arange(40), test_groups=np.arange(40) // 10)
    text, suite, _ = write_suite(capsys, tmp_path / "a.npz")
    assert suite.data.target == f"npz:{tmp_path / 'a.npz'}"
    assert "# 4 classes: 0, 1, 2, 3\n# train: 40 images, 10 a class" in text
    assert "4 independent test image(s)" in text


def test_the_first_line_names_the_schema(capsys, tmp_path):
    text, *_ = write_suite(capsys, make_folder(tmp_path / "ants"))
    first = text.splitlines()[0]
    assert first == f"#:schema {(loader.shipped_folder() / 'schema.json').as_uri()}"
    assert json.loads((loader.shipped_folder() / "schema.json").read_text(encoding="utf-8")) == SCHEMA


@pytest.mark.parametrize("images", [2, 400])
def test_the_test_images_can_decide_the_margin(capsys, tmp_path, images):
    _, suite, _ = write_suite(capsys, make_folder(tmp_path / "ants", images=images))
    assert (suite.rules.margin == suite_template.MAX_MARGIN) == (images == 2)
    _, out, _ = invoke(capsys, "validate", "ants.toml", "--set", f"target.test_size={2 * images + 1}")
    assert "expect INCONCLUSIVE" not in out or suite.rules.margin == suite_template.MAX_MARGIN


def test_commented_keys_are_valid(capsys, tmp_path):
    text, *_ = write_suite(capsys, make_folder(tmp_path / "ants"))
    lines = [line.removeprefix("# ") for line in text.splitlines() if not line.startswith("#:")]
    active_lines = [line for line in lines if line.startswith("[") or " = " in line.partition("#")[0]]
    (tmp_path / "all.toml").write_text("\n".join(active_lines))
    (tmp_path / "weights.safetensors").write_bytes(TINY.read_bytes())
    suite = loader.load_suite(tmp_path / "all.toml")
    assert (suite.rules.metric, suite.data.train_size, suite.scratch.steps) == ("balanced_accuracy", 200, 100)
    assert suite.recipe is not None
    assert suite.backbone.preprocessing is not None


ODD_NAMES = [
    "with space",
    "it's",
    'say "hi"',
    "Ünï–cödé 中文 🐜",
    "<script>alert(1)<",
    "a#b=c",
    "~",
    "~root",
    "-o",
    "100%",
    "[x]",
    "a\\b",
    "tab\there",
    "line\nbreak",
    "\x7f\x1b[31m",
    "中",
]


@pytest.mark.skipif(sys.platform == "win32", reason="names that only POSIX has")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_folders_and_classes_are_valid(capsys, tmp_path, name):
    make_folder(tmp_path / "in" / name, classes=(name, "b"))
    code, _, err = invoke(capsys, "init", tmp_path / "in" / name, "-o", tmp_path / "in" / "s.toml")
    assert (code, err) == (0, "")
    suite = loader.load_suite(tmp_path / "in" / "s.toml")
    assert suite.data.target == f"folder:{tmp_path / 'in' / name}"
    assert invoke(capsys, "validate", tmp_path / "in" / "s.toml")[0] == 0
    assert is_valid(tomllib.loads((tmp_path / "in" / "s.toml").read_text()), SCHEMA)


def test_a_name_with_markup_is_harmless(capsys, tmp_path):
    make_folder(tmp_path / "<script>alert(1)</script>")
    _, suite, out = write_suite(capsys, tmp_path / "<script>alert(1)</script>")
    assert suite.name == "script"
    assert suite.data.target.endswith("/<script>alert(1)</script>")
    assert "<script>" not in out


@pytest.mark.skipif(sys.platform != "linux", reason="a file's name is bytes there")
def test_a_path_that_is_not_text_is_an_error(capsys, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    make_folder(type(tmp_path)(path))
    code, _, err = invoke(capsys, "init", path)
    assert code == exit_code.USAGE_ERROR
    assert "a name that is not valid text" in err


@given(name=st.text())
def test_every_slug_is_a_valid_name(name):
    table = {
        "schema": 1,
        "name": suite_template.suite_slug(name),
        "plugins": ["all"],
        "backbone": {"arch": "x"},
        "target": {"data": "digits"},
    }
    assert is_valid(table, SCHEMA)


@given(value=st.text())
def test_every_text_can_be_quoted(value):
    assert tomllib.loads(f"x = {suite_template.toml_quote(value)}") == {"x": value}


def test_an_existing_file_is_not_overwritten(capsys, tmp_path):
    make_folder(tmp_path / "ants")
    (tmp_path / "ants.toml").write_text("mine")
    code, out, err = invoke(capsys, "init", "ants")
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "ants.toml already exists\n  do: use --force" in err
    assert (tmp_path / "ants.toml").read_text() == "mine"
    assert invoke(capsys, "init", "ants", "-o", "other.toml")[0] == 0
    assert invoke(capsys, "init", "ants", "--force")[0] == 0
    assert loader.load_suite(tmp_path / "ants.toml").name == "ants"


def test_paths_are_relative_to_the_file(capsys, tmp_path):
    make_folder(tmp_path / "data" / "ants")
    (tmp_path / "w").mkdir()
    (tmp_path / "suites").mkdir()
    (tmp_path / "w" / "tiny.safetensors").write_bytes(TINY.read_bytes())
    arguments = ["data/ants", "--weights", "w/tiny.safetensors", "--arch", "tiny-resnet", "-o", "suites/ants.toml"]
    text, suite, _ = write_suite(capsys, *arguments)
    assert 'weights = "../w/tiny.safetensors"' in text
    assert 'data = "folder:../data/ants"' in text
    assert suite.backbone.weights == str(tmp_path / "w" / "tiny.safetensors")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["nowhere"], ["nowhere: no such folder", "check the path"]),
        (["pictures"], ["not a dataset folder", "train/ and val/ or test/"]),
        (["ants", "--weights", "w.pth"], ["--weights w.pth\n  found: no such file"]),
        (["ants", "--arch", "torchvision:resnet18"], ["[backbone] weights: missing"]),
        (["ants", "--arch", "resnet"], ["[backbone] arch: unknown", "torchvision:NAME"]),
        (["ants", "-o", "no/where.toml"], ["No such file or directory"]),
    ],
)
def test_an_error_writes_no_file(capsys, tmp_path, arguments, fragments):
    make_folder(tmp_path / "ants")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    code, out, err = invoke(capsys, "init", *arguments)
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert all(fragment in err for fragment in fragments), err
    assert {path.name for path in tmp_path.iterdir()} == {"ants", "pictures"}


def test_a_missing_torch_requires_the_option_arch(monkeypatch, tmp_path):
    monkeypatch.setattr(suite_template, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="--arch is missing"):
        suite_template.detect_arch(TINY)
    assert importlib.util.find_spec("xferbench") is not None


def test_another_process_detects_the_arch(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    make_folder(tmp_path / "ants")
    assert write_suite(capsys, "ants", "--weights", TINY)[1].backbone.arch == "tiny-resnet"
    torch.save({"odd.weight": torch.zeros(2, 2)}, tmp_path / "odd.pt")
    code, _, err = invoke(capsys, "init", "ants", "--weights", "odd.pt", "-o", "b.toml")
    assert code == exit_code.USAGE_ERROR
    assert "odd.pt: its tensors match no known architecture" in err
    assert "--arch ARCH" in err


def test_real_images_and_weights_give_a_suite(capsys, shared):
    pytest.importorskip("torch")
    weights = shared / "weights" / "squeezenet1_0_torchvision_norm.pth"
    _, suite, _ = write_suite(capsys, shared / "data" / "hymenoptera", "--weights", weights)
    assert (suite.backbone.arch, suite.backbone.weights) == ("torchvision:squeezenet1_0", str(weights.resolve()))


def test_a_test_set_without_training_images_is_an_error(capsys, tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        (tmp_path / "flat" / name / "0.jpg").touch()
    code, _, err = invoke(capsys, "init", "flat")
    assert code == exit_code.USAGE_ERROR
    assert "flat: no training images" in err
    assert "xferbench audit" in err


def test_a_suite_is_written_for_a_table_of_texts(capsys, tmp_path):
    rows = "".join(f'"text {number}",{"ab"[number % 2]},{split}\n' for number in range(20) for split in ("train", "test"))
    (tmp_path / "Reviews.csv").write_text(f"text,label,split\n{rows}")
    text, suite, _ = write_suite(capsys, tmp_path / "Reviews.csv")
    assert (suite.name, suite.backbone.arch, suite.data.target) == ("reviews", "tiny-bert", f"csv:{tmp_path / 'Reviews.csv'}")
    assert "# 2 classes: a, b\n# train: 20 texts, 10 a class\n# test: 20 texts, 10 a class\n" in text
    assert "image" not in text
