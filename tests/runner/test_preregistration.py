from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factory import make_plugin

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Recipe
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Suite
from xferbench.core.transforms import Preprocessing
from xferbench.runner import preregistration
from xferbench.runner.preregistration import FileDigest, InputDigest

SUITE = Suite(
    name="mine",
    plugins=("all",),
    invocation=Invocation(path="/a/mine.toml"),
    backbone=BackboneSection(arch="tiny-resnet"),
    data=DataSection(target="folder:/a/cats"),
    recipe=Recipe(),
)
FILES = tuple(FileDigest(name=f"train/cat/{n}.png", size=3, sha256=f"{n:064}") for n in range(3))
DATA = InputDigest(key="target.data", value="folder:/a/cats", digest="d" * 64, files=FILES)
SUITE_FILE = InputDigest(key="suite", value="/a/mine.toml", digest="e" * 64, counts=False)
PLUGINS = (make_plugin("batchnorm-drift"),)


def plan_hash(suite=SUITE, inputs=(DATA, SUITE_FILE), plugins=PLUGINS):
    return digest(preregistration.plan_content(suite, inputs, plugins))


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "plan.json"
    preregistration.write_plan(file, preregistration.plan_to_json(SUITE, (DATA, SUITE_FILE), PLUGINS, "2026-01-02T03:04:05Z"))
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": replace(SUITE, rules=replace(SUITE.rules, margin=0.05))},
        {"suite": replace(SUITE, rules=replace(SUITE.rules, seed=1))},
        {"suite": replace(SUITE, serving=replace(SUITE.serving, preprocessing=Preprocessing(channels="bgr")))},
        {"inputs": (replace(DATA, digest="f" * 64), SUITE_FILE)},
        {"inputs": (DATA, replace(DATA, key="shifted.data"), SUITE_FILE)},
        {"plugins": (replace(PLUGINS[0], version=2),)},
        {"plugins": (*PLUGINS, make_plugin("learning-rate"))},
    ],
)
def test_everything_that_affects_a_verdict_changes_the_hash(changes):
    assert plan_hash(**changes) != plan_hash()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "suite": replace(
                SUITE,
                name="renamed",
                invocation=replace(SUITE.invocation, path="/b/x.toml", allow_code=True),
                data=replace(SUITE.data, target="folder:/b/cats"),
            )
        },
        {"suite": replace(SUITE, recipe=Recipe(name="what I call it"))},
        {"inputs": (replace(DATA, value="folder:/b/cats"), replace(SUITE_FILE, digest="f" * 64))},
        {"plugins": (replace(PLUGINS[0], doc="a better manual"),)},
    ],
)
def test_names_and_paths_do_not_change_the_hash(changes):
    assert plan_hash(**changes) == plan_hash()


def test_another_version_changes_the_hash(monkeypatch):
    before = plan_hash()
    monkeypatch.setattr(preregistration, "__version__", "99.0")
    assert plan_hash() != before


def test_a_written_plan_is_read_back_and_accepts_its_suite(plan):
    content = preregistration.read_plan(plan)
    assert (content["suite"], content["written"], content["hash"]) == ("mine", "2026-01-02T03:04:05Z", plan_hash())
    preregistration.check_plan(
        content, plan, replace(SUITE, invocation=replace(SUITE.invocation, path="/elsewhere.toml")), (DATA, SUITE_FILE), PLUGINS
    )


def test_differences_name_key_and_file(plan):
    files = (FILES[0], replace(FILES[1], sha256="9" * 64), replace(FILES[2], name="train/cat/new.png"))
    with pytest.raises(UserError) as error:
        preregistration.check_plan(
            preregistration.read_plan(plan),
            plan,
            replace(SUITE, rules=replace(SUITE.rules, margin=0.05)),
            (replace(DATA, digest="f" * 64, files=files), SUITE_FILE),
            PLUGINS,
        )
    assert "margin: 0.02 was frozen, 0.05 now" in error.value.found
    assert "inputs: target.data: dddddddddddd… was frozen, ffffffffffff… now" in error.value.found
    for difference in ("1.png was changed", "2.png is gone", "new.png is new"):
        assert f"target.data: train/cat/{difference}" in error.value.found
    assert "0.png" not in error.value.found


def test_many_differences_are_counted(plan):
    inputs = [replace(DATA, key=f"k{number}") for number in range(20)]
    with pytest.raises(UserError, match=r"; and 15 more"):
        preregistration.check_plan(preregistration.read_plan(plan), plan, SUITE, inputs, PLUGINS)


def test_a_plan_changed_by_hand_is_refused(plan):
    plan.write_text(plan.read_text().replace('"margin": 0.02', '"margin": 0.2'))
    with pytest.raises(UserError, match="the plan does not match its hash"):
        preregistration.read_plan(plan)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', "null", '{"schema":1,"hash":"","plan":3,"inputs":[]}'])
def test_an_invalid_plan_is_an_error(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read as a frozen plan"):
        preregistration.read_plan(tmp_path / "x.json")


def test_a_missing_plan_and_a_newer_schema_are_errors(plan, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        preregistration.read_plan(tmp_path / "none.json")
    plan.write_text(plan.read_text().replace('"schema": 1', '"schema": 2', 1))
    with pytest.raises(UserError, match="another version of xferbench"):
        preregistration.read_plan(plan)


def test_a_plan_is_overwritten_only_on_request(plan):
    before = plan.read_bytes()
    with pytest.raises(UserError, match="already exists"):
        preregistration.write_plan(plan, "another")
    assert plan.read_bytes() == before
    preregistration.write_plan(plan, "another", force=True)
    assert plan.read_text() == "another"
    assert [path.name for path in plan.parent.iterdir()] == ["plan.json"]


def test_many_files_are_summarized_by_number_and_digest():
    data = replace(DATA, files=FILES[:1] * (preregistration.MAX_LISTED_FILES + 1))
    assert "listed" not in preregistration.input_to_json(data, listed=True)
    assert preregistration.input_to_json(data, listed=True)["files"] == preregistration.MAX_LISTED_FILES + 1
    assert preregistration.input_to_json(DATA, listed=True)["listed"][0] == ["0" * 64, 3, "train/cat/0.png"]


# From the command line

TOML = """
schema = 1
name = "noise"
plugins = ["negative-transfer"]
margin = 0.3
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
[target]
data = "npz:noise.npz"
[recipe]
strategy = "linear-probe"
steps = 4
batch_size = 8
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


@pytest.fixture
def noise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    np.savez(
        "noise.npz",
        **{f"{name}_images": rng.integers(256, size=(32, 16, 16, 3), dtype=np.uint8) for name in ("train", "test")},
        **{f"{name}_labels": np.arange(32) % 2 for name in ("train", "test")},
    )
    Path("noise.toml").write_text(TOML)


def run_command(capsys, *arguments):
    code = main.main([*arguments])
    return code, *capsys.readouterr()


def test_a_run_of_a_frozen_suite_records_the_plan(noise, capsys):
    code, out, _ = run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json")
    frozen = json.loads(Path("plan.json").read_text())
    assert code == 0
    assert f"frozen: plan.json, plan {frozen['hash']}" in out
    code, *_ = run_command(capsys, "run", "noise.toml", "--plan", "plan.json", "-o", "out")
    assert code in {0, 1}
    results = json.loads(Path("out/results.json").read_text())
    assert results["frozen"] == {
        "hash": frozen["hash"],
        "written": frozen["written"],
        "file": preregistration.read_plan(Path("plan.json"))["file"],
    }
    assert results["evidence"]["hash"] == frozen["hash"]
    assert results["evidence"]["command"] == "xferbench run noise.toml --plan plan.json -o out"
    assert frozen["written"] <= results["evidence"]["begun"] <= results["evidence"]["ended"]
    assert (
        f'The run follows the plan that was frozen on <b class="nowrap">{frozen["written"]}</b>'
        in Path("out/report.html").read_text()
    )


def test_a_changed_byte_with_equal_size_and_time_is_noticed_before_the_run(noise, capsys):
    run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json")
    run_command(capsys, "run", "noise.toml", "-o", "first")  # the store now holds the digest of the file
    file, status = Path("noise.npz"), Path("noise.npz").stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, _, err = run_command(capsys, "run", "noise.toml", "--plan", "plan.json", "-o", "out")
    assert code == exit_code.USAGE_ERROR
    assert "found: inputs: target.data:" in err
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--seed", "5"], "seed: 0 was frozen, 5 now"),
        (["--set", "recipe.lr=0.5"], "recipe: phases: 1: lr: "),
        (["--budget", "1h"], "budget: 1200 was"),
    ],
)
def test_options_that_change_the_frozen_suite_are_refused(noise, capsys, options, fragment):
    run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json")
    for mode in ([], ["--dry-run"]):
        code, _, err = run_command(capsys, "run", "noise.toml", *options, "--plan", "plan.json", "-o", "out", *mode)
        assert code == exit_code.USAGE_ERROR
        assert fragment in err


def test_freezing_twice_needs_force(noise, capsys):
    assert run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json")[0] == 0
    code, _, err = run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json")
    assert code == exit_code.USAGE_ERROR
    assert "plan.json already exists" in err
    assert run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json", "--force")[0] == 0


def test_freezing_creates_no_store(noise, capsys, tmp_path):
    run_command(capsys, "validate", "noise.toml", "--freeze", "plan.json")
    assert not (tmp_path / "cache").exists()
