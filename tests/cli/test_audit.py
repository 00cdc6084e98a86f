from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xferbench.analysis import exit_code
from xferbench.cli import audit_suite, main
from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.interventions import TRAIN_MODE
from xferbench.core.sections import flat_values
from xferbench.core.transforms import Preprocessing, Tokens
from xferbench.data import inputs
from xferbench.lab.models import checkpoint_reader, checkpoints, small_resnets
from xferbench.runner import profile, store
from xferbench.testing import fake_lab

BEFORE = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    torch.manual_seed(0)
    network = small_resnets.tiny_resnet(10)
    checkpoints.load_backbone(network, checkpoint_reader.read_checkpoint(BEFORE), "linear")
    path = tmp_path_factory.mktemp("after") / "Digits v2.pth"
    torch.save(network.state_dict(), path)
    return path


def audit_arguments(after, *options):
    arguments = ["audit", "--arch", "tiny-resnet", "--after", str(after), "--before", str(BEFORE), "--data", "digits", *options]
    return [str(argument) for argument in arguments]


def parse_audit(*arguments):
    return audit_suite.audit_suite(main.build_parser().parse_args(["audit", *map(str, arguments)]))


def test_the_detected_architecture_is_printed(after, capsys):
    suite = parse_audit("--after", after, "--data", "digits")
    assert suite.backbone.arch == "tiny-resnet"
    assert "architecture: tiny-resnet, detected from the tensors" in capsys.readouterr().err


def suite_table(after):
    return {
        "schema": 1,
        "name": "a",
        "plugins": ["all"],
        "backbone": {"arch": "tiny-resnet"},
        "target": {"data": "digits"},
        "checkpoint": {"after": str(after)},
    }


def test_an_audit_writes_its_findings_and_exits_by_their_verdicts(after, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = audit_arguments(
        after, "--limit", 120, "--believed", "trainable=head", "-o", out, "--store", tmp_path / "s.sqlite", "-j", 1
    )
    code = main.main(arguments)
    results = json.loads((out / "results.json").read_text())
    findings = {finding["id"]: finding for finding in results["findings"]}
    assert findings["audit/linear-probe/permuted"]["verdict"] == "FAIL", "the head is not trained"
    assert code == exit_code.FAILED
    assert findings["audit/reload"]["verdict"] == findings["audit/head-size"]["verdict"] == "PASS"
    assert all(finding["seeds"] == 1 for finding in results["findings"] if finding["harm"] is not None)
    assert "scratch" not in findings["audit/linear-probe/permuted"]["accuracy"]
    output = capsys.readouterr().out
    assert "audit/linear-probe" in output
    assert "time: " in output
    page = (out / "report.html").read_text()
    assert "xferbench audit --arch tiny-resnet" in page


def test_options_and_a_file_give_the_same_suite(after, tmp_path):
    file = tmp_path / "audit.toml"
    file.write_text(
        f'schema = 1\nname = "digits-v2"\nplugins = ["all"]\nmargin = 0.05\n[backbone]\narch = "tiny-resnet"\n'
        f'[target]\ndata = "digits"\n[checkpoint]\nafter = "{after}"\nbefore = "{BEFORE}"\nbelieved = "trainable=head"\n'
    )
    from_options = parse_audit(*audit_arguments(after, "--margin", 0.05, "--believed", "trainable=head")[1:])
    from_file = loader.load_suite(file)
    differing = [name for name, value in flat_values(from_options).items() if value != flat_values(from_file)[name]]
    assert differing == ["path", "command"]
    assert (from_file.rules.looks, from_file.rules.tuning_seeds) == ((1,), 1)


def test_forgetting_is_judged_only_if_the_source_is_kept(after):
    required = ("--after", after, "--data", "digits", "--arch", "tiny-resnet", "--source", "synthetic:source")
    assert not parse_audit(*required).rules.keep_source
    kept = parse_audit(*required, "--keep-source")
    assert kept.rules.keep_source
    assert "--keep-source" in kept.invocation.command
    assert "True" not in kept.invocation.command


def test_keys_of_timm_change_the_recorded_preprocessing():
    recorded = {"resize": 256, "crop": 224, "mean": [0.1], "std": [0.2], "interpolation": "bilinear"}
    assert audit_suite.adjust_preprocessing(recorded, {"mean": [0.5], "std": [0.5]}) == recorded | {"mean": [0.5], "std": [0.5]}
    assert audit_suite.adjust_preprocessing(recorded, {"img_size": 112}) == recorded | {"crop": 112, "resize": 128}
    assert audit_suite.adjust_preprocessing(recorded, {"crop_pct": 1.0}) == recorded | {"crop": 224, "resize": 224}
    assert audit_suite.adjust_preprocessing({}, {"img_size": 32}) == {"crop": 32, "resize": 32}


def test_options_for_serving_change_only_the_serving_preprocessing(after):
    suite = parse_audit(*audit_arguments(after, "--mean", 0.5, "--std", 0.5, "--img-size", 32, "--serve-channels", "bgr")[1:])
    assert suite.backbone.preprocessing.mean == suite.serving.preprocessing.mean == (0.5,)
    assert (suite.backbone.preprocessing.channels, suite.serving.preprocessing.channels) == ("rgb", "bgr")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--after is missing"),
        (["--after", "x.pth"], "--data is missing"),
        (["quick"], r"\[checkpoint\] is missing"),
        (["quick", "--margin", "0.1"], "--margin cannot be combined with a suite file"),
        (["--after", "x.pth", "--data", "digits"], "no such file"),
    ],
)
def test_a_missing_option_is_an_error(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_audit(*arguments)


BAD = {
    "no such belief": (["--believed", "frozen=body"], "a text such as trainable=head"),
    "a belief of no network": (["--believed", "trainable=body"], "a text such as trainable=head"),
    "no such check": (["--checks", "class-ordr"], "class-order"),
    "no such metric": (["--metric", "accurcy"], "accuracy"),
    "the same file twice": (["--before", "AFTER"], "before equals after"),
    "no such manifest": (["--manifest", "none.xfb"], "[source] manifest"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_message_exit_code_2_and_no_files(case, after, tmp_path, capsys):
    arguments, message = BAD[case]
    arguments = [str(after) if argument == "AFTER" else argument for argument in arguments]
    out = tmp_path / "out"
    code = main.main([*audit_arguments(after), *arguments, "-o", str(out), "--store", str(tmp_path / "s.sqlite")])
    error_output = capsys.readouterr().err
    assert code == exit_code.USAGE_ERROR
    assert message in error_output
    assert "Traceback" not in error_output
    assert not out.exists() or not any(out.iterdir())


FILES = {
    "truncated": lambda path, state: (torch.save(state, path), path.write_bytes(path.read_bytes()[:2000])),
    "empty": lambda path, _: path.write_bytes(b""),
    "a pickle": lambda path, _: torch.save(small_resnets.tiny_resnet(10), path),
    "another architecture": lambda path, _: torch.save(small_resnets.cifar_resnet(20, 10).state_dict(), path),
    "no head": lambda path, state: torch.save({k: v for k, v in state.items() if not k.startswith("linear")}, path),
}


@pytest.mark.parametrize("case", FILES)
def test_unusable_weights_give_one_message(case, after, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    FILES[case](path, torch.load(after, weights_only=True))
    out = tmp_path / "out"
    arguments = audit_arguments(path, "-o", out, "--store", tmp_path / "s.sqlite", "-j", 1)
    assert main.main(arguments) == exit_code.USAGE_ERROR
    error_output = capsys.readouterr().err
    assert "xferbench: " in error_output
    assert "Traceback" not in error_output
    assert not list(out.glob("*.json"))


def test_keys_of_training_are_refused_with_a_checkpoint(after):
    table = suite_table(after)
    for key, value in {"looks": [3], "recipe": {"lr": 0.1}, "budget": "3m", "scratch": {"lr": [0.1]}}.items():
        with pytest.raises(UserError, match="a key of training in a suite"):
            loader.parse_suite(table | {key: value}, after)
    assert loader.parse_suite(table | {"recipe": {"serve_mode": "train"}}, after).serving.mode == TRAIN_MODE


def test_the_preprocessing_of_training_alone_does_not_change_how_a_finished_network_is_served(after, tmp_path):
    def profile_with(**recipe):
        suite, result = (
            loader.parse_suite(suite_table(after) | {"recipe": recipe}, after),
            SimpleNamespace(result=lambda: fake_lab.PROFILE),
        )
        with store.open_store(tmp_path / "s.sqlite") as database:
            return profile.profile_pipeline(suite, database, tmp_path, lambda: lambda *_: result)[0]

    trained, served, recorded = Preprocessing(mean=(0.1,)), Preprocessing(mean=(0.2,)), fake_lab.PREPROCESSING
    pipeline = profile_with(train_preprocessing={"mean": [0.1]})
    assert (pipeline.data.train_preprocessing, pipeline.serving.preprocessing) == (trained, recorded)
    pipeline = profile_with(train_preprocessing={"mean": [0.1]}, serve_preprocessing={"mean": [0.2]})
    assert (pipeline.data.train_preprocessing, pipeline.serving.preprocessing) == (trained, served)


def test_a_head_with_too_many_outputs_fails_and_the_other_checks_run(tmp_path):
    torch.manual_seed(0)
    path, out = tmp_path / "wide.pth", tmp_path / "out"
    torch.save(small_resnets.tiny_resnet(12).state_dict(), path)
    main.main(
        audit_arguments(path, "--limit", 60, "--checks", "head-size,class-order", "-o", out, "--store", tmp_path / "s", "-j", 1)
    )
    findings = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert findings["audit/head-size"]["verdict"] == "FAIL"
    assert "12 outputs, 10 classes" in findings["audit/head-size"]["reason"]
    assert findings["audit/class-order/rotated"]["verdict"] in {"FAIL", "INCONCLUSIVE"}


def test_a_head_with_too_few_outputs_fails_and_no_score_is_computed(tmp_path):
    torch.manual_seed(0)
    path, out = tmp_path / "narrow.pth", tmp_path / "out"
    torch.save(small_resnets.tiny_resnet(4).state_dict(), path)
    arguments = audit_arguments(
        path, "--limit", 60, "--checks", "head-size,class-order,collapse", "-o", out, "--store", tmp_path / "s"
    )
    assert main.main([*arguments, "-j", "1"]) == exit_code.FAILED
    findings = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert findings["audit/head-size"]["verdict"] == "FAIL"
    assert findings["audit/class-order"]["verdict"] == "SKIPPED"
    assert "4 outputs and the data 10 classes" in findings["audit/class-order"]["reason"]


def train_with_one_logit(path, images, labels):
    """Train a small network with a sigmoid in plain torch, and return its logits in evaluation mode."""
    torch.manual_seed(0)
    network = small_resnets.tiny_resnet(1)
    checkpoints.load_backbone(network, checkpoint_reader.read_checkpoint(BEFORE), "linear")
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 / 0.25 - 2, torch.from_numpy(labels).float()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(x)[:, 0], y).backward()
        optimizer.step()
    torch.save(network.state_dict(), path)
    with torch.no_grad():
        return network.eval()(x)[:, 0].numpy()


@pytest.mark.parametrize("is_swapped", [False, True], ids=["as trained", "classes exchanged"])
def test_one_logit_for_two_classes_is_a_sigmoid(is_swapped, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 2
    images = rng.integers(0, 200, (160, 32, 32, 3)).astype(np.uint8)
    images[labels == 1, :, :, 0] += 50
    logits = train_with_one_logit(tmp_path / "one.pth", images, labels)
    data, out = tmp_path / "d.npz", tmp_path / "out"
    np.savez(data, test_images=images, test_labels=1 - labels if is_swapped else labels)
    options = [
        "--arch",
        "tiny-resnet",
        "--after",
        tmp_path / "one.pth",
        "--data",
        f"npz:{data}",
        "-j",
        1,
        "--mean",
        0.5,
        "--std",
        0.25,
    ]
    main.main(
        [*map(str, ["audit", *options, "--checks", "head-size,class-order,calibration", "-o", out, "--store", tmp_path / "s"])]
    )
    results = json.loads((out / "results.json").read_text())
    findings = {finding["id"]: finding for finding in results["findings"]}
    assert findings["audit/head-size"]["verdict"] == "PASS"
    order = findings["audit/class-order/rotated"]
    assert order["verdict"] == ("FAIL" if is_swapped else "PASS")
    right = ((logits > 0) == labels).mean()
    assert right > 0.95
    assert order["accuracy"]["subject"] == pytest.approx(1 - right if is_swapped else right, abs=0.03)
    assert findings["audit/calibration/overconfident"]["verdict"] != "SKIPPED"
    assert any("logit of 1, for a sigmoid" in note for note in results["notes"])


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        (["--mean", ".485", ".456", ".406"], [0.485, 0.456, 0.406]),
        (["--mean", ".485,.456,.406"], [0.485, 0.456, 0.406]),
        (["--mean", "-.5,-1e-3,", "-2"], [-0.5, -0.001, -2.0]),
        (["--mean=-1,-1,-1"], [-1.0, -1.0, -1.0]),
    ],
)
def test_numbers_are_separated_by_commas_or_spaces(typed, values):
    assert main.parse_arguments(["audit", *typed, "--limit", "9"]).mean == values


@pytest.mark.parametrize("typed", [["reload", "collapse"], ["reload,collapse"], ["reload,", "collapse"]])
def test_checks_are_separated_by_commas_or_spaces(typed):
    arguments = main.parse_arguments(["audit", "--checks", *typed])
    assert (arguments.checks, arguments.suite) == (["reload", "collapse"], None)


@pytest.mark.parametrize("typed", [["--mean", "x"], ["--checks", ","], ["--std", "1,,y"]])
def test_a_list_without_usable_values_is_refused(typed, capsys):
    with pytest.raises(SystemExit):
        main.parse_arguments(["audit", *typed])
    assert f"argument {typed[0]}" in capsys.readouterr().err


def test_options_state_how_texts_are_served(after):
    suite = parse_audit(
        *("--arch", "tiny-bert", "--after", after, "--data", "synthetic:text-near", "--serve-max-length", "12"),
        *("--serve-padding", "left", "--no-serve-masked", "--serve-extra-padding", "4", "--serve-special", "twice"),
        *("--serve-truncation", "left", "--serve-lowercase"),
    )
    assert suite.serving.preprocessing == Tokens(
        lowercase=True,
        max_length=12,
        padding="left",
        masked=False,
        extra_padding=4,
        special="twice",
        truncation="left",
    )
    assert "--no-serve-masked" in suite.invocation.command
    assert {"--serve-lowercase", "--serve-max-length"} <= set(suite.invocation.command)
    assert parse_audit("--arch", "tiny-bert", "--after", after, "--data", "synthetic:text-near").serving.preprocessing is None
