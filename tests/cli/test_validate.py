from __future__ import annotations

from pathlib import Path

import pytest
from invoke import invoke, make_suite

from xferbench.analysis import exit_code
from xferbench.runner import profile

pytestmark = pytest.mark.usefixtures("isolated")


def test_valid_suite_shows_the_smallest_margin(capsys, tmp_path):
    code, out, err = invoke(capsys, "validate", make_suite(tmp_path))
    assert (code, err) == (0, "")
    assert "noise.toml: a valid suite" in out
    assert "smallest margin that this test set can decide with 2 seeds: about 0." in out
    assert "(the suite's: 0.3)" in out
    assert "of a PASS without harm, " in out


def test_unknown_size_of_the_test_set_is_reported(capsys, tmp_path):
    file = make_suite(tmp_path)
    file.write_text(file.read_text().replace("test_size = 40\n", ""))
    code, out, _ = invoke(capsys, "validate", file)
    assert code == 0
    assert "the size of the test set is not known yet" in out


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("margin = 0.3", "marge = 0.3", ["noise.toml: marge: unknown key", "did you mean 'margin'?"]),
        ('["negative-transfer"]', '["negativ-transfer"]', ["unknown plugin 'negativ-transfer'", "'negative-transfer'"]),
        ("npz:", "nzp:", ["noise.toml: [target] data: unknown kind of dataset", "did you mean 'npz'?"]),
        ("noise.npz", "noize.npz", ["noise.toml: [target] data: no such file", "check the path"]),
        ('"tiny-resnet"', '"tiny-resnet"\nweights = "w.pth"', ["noise.toml: [backbone] weights", "w.pth: no such file"]),
        ('"tiny-resnet"', '"torchvision:resnet18"', ["noise.toml: [backbone] weights: missing", "add weights"]),
        (
            '"tiny-resnet"',
            '"tiny-resnet"\npreprocessing = { resize = 16, crop = 24 }',
            ["noise.toml: [backbone.preprocessing] crop: larger", "crop = 24, resize = 16", "set resize to 24 or more"],
        ),
        (
            "steps = 4",
            "steps = 4\nserve_preprocessing = { resize = 16, crop = 17 }",
            ["noise.toml: [recipe.serve_preprocessing] crop: larger", "at most 16 pixels"],
        ),
        ("steps = 4", 'steps = "4"', ["noise.toml: [recipe] steps", 'found: "4"', "a whole number above 0"]),
    ],
)
def test_invalid_suite_exits_with_2(capsys, tmp_path, old, new, fragments):
    file = make_suite(tmp_path)
    file.write_text(file.read_text().replace(old, new, 1))
    for arguments in (["validate", file], ["run", file, "-o", tmp_path / "out"], ["run", file, "--dry-run"]):
        code, out, err = invoke(capsys, *arguments)
        assert (code, out) == (exit_code.USAGE_ERROR, "")
        assert all(fragment in err for fragment in fragments), err


@pytest.mark.parametrize("arguments", [["validate", "quik"], ["run", "quik"]])
def test_error_suggests_the_closest_suite(capsys, arguments):
    code, _, err = invoke(capsys, *arguments)
    assert code == exit_code.USAGE_ERROR
    assert "did you mean 'quick'?" in err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--budget", "20"], "--budget\n  found: 20\n  expected: a duration"),
        (["--seed", "999999"], "--seed\n  found: 999999, with 5"),
    ],
)
def test_options_that_override_the_suite_are_checked(capsys, arguments, fragment):
    code, _, err = invoke(capsys, "run", "quick", *arguments)
    assert code == exit_code.USAGE_ERROR
    assert fragment in err


def test_all_suites_are_checked(capsys, tmp_path):
    valid = make_suite(tmp_path)
    invalid, malformed = tmp_path / "bad.toml", tmp_path / "worse.toml"
    invalid.write_text(valid.read_text().replace("margin", "marge"))
    malformed.write_text("schema = ")
    expected = invoke(capsys, "validate", valid)
    code, out, err = invoke(capsys, "validate", invalid, malformed, valid, tmp_path / "none.toml")
    assert (code, out) == (exit_code.USAGE_ERROR, expected[1])
    lines = [line for line in err.splitlines() if line.startswith("xferbench: ")]
    assert lines[:2] == [f"xferbench: {invalid}: marge: unknown key", f"xferbench: {malformed}: not a TOML file"]
    assert lines[2].startswith("xferbench: no suite ")  # a long name may be shortened
    assert len(lines) == 3
    code, out, err = invoke(capsys, "validate", valid, valid)
    assert (code, out, err) == (exit_code.PASSED, 2 * expected[1], "")


def test_freeze_refuses_several_suites(capsys, tmp_path):
    suite = make_suite(tmp_path)
    code, out, err = invoke(capsys, "validate", suite, suite, "--freeze", "plan.json")
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "--freeze: a plan belongs to one suite\n  found: 2 suites" in err
    assert not Path("plan.json").exists()


def write_weights(path, arch, *, classes=5, prefix=""):
    """Write the random weights of a network."""
    torch = pytest.importorskip("torch")
    from xferbench.lab.models import backbones

    state = backbones.build(arch, classes).state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)


def make_suite_with_weights(folder, arch):
    file = make_suite(folder, backbone=f'weights = "{folder / "w.pth"}"')
    file.write_text(file.read_text().replace('"tiny-resnet"', f'"{arch}"'))
    return file


@pytest.mark.parametrize("written", ["cifar-resnet32", "torchvision:squeezenet1_1"])
def test_weights_of_another_architecture_are_refused_before_anything_is_trained(capsys, tmp_path, written):
    write_weights(tmp_path / "w.pth", written)
    file = make_suite_with_weights(tmp_path, "cifar-resnet20")
    for arguments in (["validate", file], ["run", file, "-o", tmp_path / "out"]):
        code, out, err = invoke(capsys, *arguments)
        assert (code, out) == (exit_code.USAGE_ERROR, "")
        assert "noise.toml: the weights do not fit the backbone\n  found: " in err
        assert "not in the network: " in err and "set arch under [backbone] to the architecture of the weights" in err
    assert invoke(capsys, "validate", file, "--no-files")[0] == exit_code.PASSED


@pytest.mark.parametrize("changes", [{"classes": 3}, {"classes": 1000}, {"prefix": "model."}])
def test_weights_with_another_head_or_prefix_are_accepted(capsys, tmp_path, changes):
    write_weights(tmp_path / "w.pth", "cifar-resnet20", **changes)
    code, out, err = invoke(capsys, "validate", make_suite_with_weights(tmp_path, "cifar-resnet20"))
    assert (code, err) == (exit_code.PASSED, "")
    assert "a valid suite" in out


def test_weights_that_cannot_be_read_are_refused(capsys, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "w.pth").write_text("no weights")
    code, _, err = invoke(capsys, "validate", make_suite_with_weights(tmp_path, "cifar-resnet20"))
    assert code == exit_code.USAGE_ERROR and "w.pth" in err


def test_without_torch_the_weights_are_not_checked(capsys, tmp_path, monkeypatch):
    write_weights(tmp_path / "w.pth", "cifar-resnet32")
    monkeypatch.setattr(profile, "find_spec", lambda _: None)
    assert invoke(capsys, "validate", make_suite_with_weights(tmp_path, "cifar-resnet20"))[0] == exit_code.PASSED


def test_classes_and_splits_of_a_folder_are_printed(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "valid", "test"):
        for number, name in enumerate(("fox", "owl")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "pets" / split / name / "a.png")
    suite = tmp_path / "pets.toml"
    suite.write_text(
        'schema = 1\nname = "pets"\nplugins = ["data-leakage"]\n[backbone]\narch = "tiny-resnet"\n'
        '[target]\ndata = "folder:pets"\n'
    )
    code, out, _ = invoke(capsys, "validate", suite, "--store", tmp_path / "s.sqlite")
    assert code == 0
    assert "note: classes: 0 fox, 1 owl\n" in out
    assert "note: train/ is for training; valid/ is for selection; test/ is for testing" in out
    (tmp_path / "pets" / "valid" / "elk").mkdir()
    image.new("RGB", (4, 4)).save(tmp_path / "pets" / "valid" / "elk" / "a.png")
    code, _, err = invoke(capsys, "validate", suite, "--store", tmp_path / "s.sqlite")
    assert code == 2
    assert "pets.toml: [target] data: " in err
