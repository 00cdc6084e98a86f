"""Gates on a very small study, with the real lab."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_resume import SUITE

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.config import loader as suites
from xferbench.core.errors import UserError
from xferbench.core.sections import replace_flat
from xferbench.report import baseline, files
from xferbench.runner import gate as gating


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a suite and its accepted run."""
    folder = tmp_path_factory.mktemp("gate")
    make_npz(folder / "d.npz", train=80, test=40)
    (folder / "suite.toml").write_text(SUITE)
    suite = suites.load_suite(folder / "suite.toml")
    options = {"store": folder / "store.sqlite", "workers": 1}
    gating.run_gate(suite, accept=folder / "accepted.json", output=folder / "out", **options)
    return folder


def run_gate(folder, *arguments, suite="suite.toml", out="gated"):
    command = [str(folder / suite), "--store", str(folder / "store.sqlite"), "-j", "1", "-o", str(folder / out), *arguments]
    return main.main(["gate", *command])


def read_results(folder, out="gated"):
    return json.loads((folder / out / "results.json").read_text())


def test_an_equal_run_is_not_worse(folder):
    assert run_gate(folder, "--baseline", str(folder / "accepted.json")) == exit_code.PASSED
    results = read_results(folder)
    assert {outcome["decision"] for outcome in results["gate"]["outcomes"]} == {"not worse"}
    assert results["cost"]["fits"]["run"] == 0
    assert results["gate"]["accepted"]["file"].endswith("accepted.json")


def test_a_finished_candidate_is_compared_without_a_run(folder, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    code = main.main(
        [
            "gate",
            str(folder / "suite.toml"),
            "--baseline",
            str(folder / "accepted.json"),
            "--candidate",
            str(folder / "out"),
            "-o",
            str(folder / "elsewhere"),
        ]
    )
    assert code == exit_code.PASSED
    outcome = read_results(folder, "elsewhere")["gate"]["outcomes"][0]
    assert outcome["reason"] == "unchanged: the same trials gave the same results"


def test_a_candidate_of_another_suite_is_refused(folder, capsys):
    arguments = ["--set", "recipe.lr=1e-3", "--baseline", str(folder / "accepted.json"), "--candidate", str(folder / "out")]
    code = main.main(["gate", str(folder / "suite.toml"), *arguments, "-o", str(folder / "never")])
    assert code == exit_code.USAGE_ERROR
    assert "found: recipe.lr 0.01" in capsys.readouterr().err
    assert not (folder / "never" / "results.json").exists()


@pytest.mark.parametrize("option", [["--store", "s"], ["-j", "2"], ["--budget", "5m"], ["--seed", "3"], ["--device", "cpu"]])
def test_options_of_a_run_are_refused_with_a_candidate(folder, option, capsys):
    code = main.main(["gate", str(folder / "suite.toml"), "--baseline", "b", "--candidate", "c", *option])
    assert code == exit_code.USAGE_ERROR and "cannot be combined with --candidate" in capsys.readouterr().err


def test_a_missing_baseline_option_is_an_error_with_advice(folder, capsys):
    assert run_gate(folder) == exit_code.USAGE_ERROR
    assert "--accept accepted.json" in capsys.readouterr().err


def test_a_gate_does_not_overwrite_its_baseline(folder, capsys, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    before = (folder / "out" / "results.json").read_bytes()
    assert run_gate(folder, "--baseline", str(folder / "out" / "results.json"), out="out") == exit_code.USAGE_ERROR
    assert "contains an input of the comparison" in capsys.readouterr().err
    assert (folder / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize("override", ["margin=0.5", "looks=[2]", "alpha=0.2"])
def test_changed_rules_are_refused(folder, override, capsys):
    assert (
        run_gate(folder, "--set", override, "--baseline", str(folder / "accepted.json"), out="unruled") == exit_code.USAGE_ERROR
    )
    assert "do not have the same rules" in capsys.readouterr().err
    assert not (folder / "unruled" / "results.json").exists()


def test_accepting_into_a_folder_is_refused_before_the_run(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    assert run_gate(folder, "--accept", str(tmp_path)) == exit_code.USAGE_ERROR
    assert "is a folder" in capsys.readouterr().err


def test_a_candidate_from_other_files_is_refused(folder, tmp_path, capsys):
    for name in ("suite.toml", "d.npz", "accepted.json"):
        shutil.copy(folder / name, tmp_path / name)
    arguments = [
        str(tmp_path / "suite.toml"),
        "--baseline",
        str(tmp_path / "accepted.json"),
        "--candidate",
        str(folder / "out"),
    ]
    assert main.main(["gate", *arguments, "-o", str(tmp_path / "one")]) == exit_code.PASSED
    make_npz(tmp_path / "d.npz", train=81, test=40)
    assert main.main(["gate", *arguments, "-o", str(tmp_path / "two")]) == exit_code.USAGE_ERROR
    assert "other content of target.data" in capsys.readouterr().err
    (tmp_path / "d.npz").unlink()
    assert main.main(["gate", *arguments, "-o", str(tmp_path / "three")]) == exit_code.PASSED
    assert any("was not checked" in note for note in read_results(tmp_path, "three")["gate"]["notes"])


def test_an_accepted_run_that_crashes_again_is_refused(folder, tmp_path, capsys, monkeypatch):
    accepted = baseline.read_baseline(folder / "accepted.json")
    (tmp_path / "older.json").write_bytes(
        baseline.pack_baseline(
            replace_flat(accepted, environment=accepted.provenance.environment | {"packages": {"torch": "1.9.1"}})
        )
    )
    calls, real = [], gating.runner.run_suite

    def run_once_without_error(*arguments, **options):
        calls.append(arguments)
        run = real(*arguments, **options)
        return (
            run
            if len(calls) == 1
            else replace(run, findings=tuple(replace(finding, verdict="ERROR") for finding in run.findings))
        )

    monkeypatch.setattr("xferbench.runner.run.run_suite", run_once_without_error)
    assert run_gate(folder, "--baseline", str(tmp_path / "older.json")) == exit_code.USAGE_ERROR
    assert len(calls) == 2 and "cannot be evaluated again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.json", "."])
def test_a_missing_baseline_is_refused_before_the_run(folder, name, capsys, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    assert run_gate(folder, "--baseline", str(folder / name)) == exit_code.USAGE_ERROR
    assert "--accept FILE" in capsys.readouterr().err


def test_other_test_examples_are_refused_and_nothing_is_overwritten(folder, capsys):
    make_npz(folder / "other.npz", train=80, test=44)
    before = (folder / "accepted.json").read_bytes()
    arguments = ["--set", 'target.data="npz:other.npz"', "--baseline", str(folder / "accepted.json")]
    assert run_gate(folder, *arguments, "--accept", str(folder / "accepted.json"), out="unwritten") == exit_code.USAGE_ERROR
    assert "different test examples" in capsys.readouterr().err
    assert (folder / "accepted.json").read_bytes() == before
    assert not (folder / "unwritten" / "results.json").exists()


def test_a_new_accepted_file_is_written_next_to_the_comparison(folder):
    accepted = folder / "new.json"
    arguments = ["--set", "recipe.lr=1e-4", "--baseline", str(folder / "accepted.json"), "--accept", str(accepted)]
    assert run_gate(folder, *arguments) == exit_code.PASSED
    assert baseline.read_baseline(accepted).suite["recipe"]["phases"][0]["lr"] == 1e-4
    assert baseline.read_baseline(accepted).gate is None
    assert any("recipe.lr 0.01 → 0.0001" in note for note in read_results(folder)["gate"]["notes"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused_before_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    tmp_path.chmod(0o500)
    arguments = ["--baseline", str(folder / "accepted.json"), "--accept", str(tmp_path / "deep" / "a.json")]
    assert run_gate(folder, *arguments) == exit_code.USAGE_ERROR


def test_a_run_without_a_verdict_is_not_accepted(folder, capsys):
    arguments = ["--set", 'plugins=["catastrophic-forgetting"]', "--baseline", str(folder / "accepted.json")]
    assert run_gate(folder, *arguments, "--accept", str(folder / "nothing.json")) == exit_code.NO_VERDICT
    assert "not accepted" in capsys.readouterr().err and not (folder / "nothing.json").exists()


def test_another_version_of_torch_evaluates_the_accepted_suite_again(folder, tmp_path):
    accepted = baseline.read_baseline(folder / "accepted.json")
    older = replace_flat(accepted, environment=accepted.provenance.environment | {"packages": {"torch": "1.9.1"}})
    (tmp_path / "older.json").write_bytes(baseline.pack_baseline(older))
    assert run_gate(folder, "--baseline", str(tmp_path / "older.json")) == exit_code.PASSED
    notes = read_results(folder)["gate"]["notes"]
    assert any("evaluated again in this job (torch 1.9, here" in note for note in notes)


def test_an_accepted_run_that_cannot_be_evaluated_again_is_refused(folder, tmp_path, capsys):
    accepted = baseline.read_baseline(folder / "accepted.json")
    inputs = [entry | {"digest": "another"} for entry in accepted.provenance.evidence["inputs"]]
    older = replace_flat(
        accepted, environment=accepted.provenance.environment | {"device": "cuda"}, evidence={"inputs": inputs}
    )
    (tmp_path / "older.json").write_bytes(baseline.pack_baseline(older))
    assert run_gate(folder, "--baseline", str(tmp_path / "older.json")) == exit_code.USAGE_ERROR
    message = capsys.readouterr().err
    assert "device cuda, here cpu" in message and "other content: " in message


def test_a_finished_candidate_is_not_compared_across_devices(folder, tmp_path, capsys):
    accepted = baseline.read_baseline(folder / "accepted.json")
    (tmp_path / "older.json").write_bytes(
        baseline.pack_baseline(replace_flat(accepted, environment=accepted.provenance.environment | {"device": "cuda"}))
    )
    arguments = ["--baseline", str(tmp_path / "older.json"), "--candidate", str(folder / "out")]
    assert main.main(["gate", str(folder / "suite.toml"), *arguments, "-o", str(tmp_path / "out")]) == exit_code.USAGE_ERROR
    assert "device cuda, here cpu" in capsys.readouterr().err


USER_TRAINING = """
import pathlib

def train(model, data, recipe, seed):
    with (pathlib.Path(__file__).parent / "calls").open("a") as file:
        file.write("x")
    return model

train.supports = set()
"""


def test_user_training_code_always_runs_again(tmp_path):
    make_npz(tmp_path / "d.npz", train=80, test=40)
    (tmp_path / "mine.py").write_text(USER_TRAINING)
    text = SUITE.replace("lr = 1e-2\nsteps = 3\nbatch_size = 8\n", 'training = "python:mine:train"\n', 1)
    (tmp_path / "suite.toml").write_text(
        text.replace('"batchnorm-drift", "negative-transfer"', '"freeze-integrity"').replace("[2, 3]", "[2]")
    )
    calls, counts = tmp_path / "calls", []
    for arguments in (["--accept", "accepted.json"], ["--baseline", "accepted.json"]):
        arguments[1] = str(tmp_path / arguments[1])
        assert run_gate(tmp_path, *arguments, "--allow-code") == exit_code.PASSED
        counts.append(len(calls.read_text()))
        calls.write_text("")
    assert counts[0] > 0 and counts[1] == counts[0]


def test_an_interrupted_run_is_not_a_baseline(folder, tmp_path, capsys):
    shutil.copytree(folder / "out", tmp_path / "half")
    (tmp_path / "half" / files.RESULTS).unlink()
    assert run_gate(folder, "--baseline", str(tmp_path / "half")) == exit_code.USAGE_ERROR
    assert "results.json" in capsys.readouterr().err


def test_read_candidate_reads_a_run_of_its_suite(folder):
    assert gating.read_candidate(folder / "out", suites.load_suite(folder / "suite.toml")).suite["name"] == "resumed"
    with pytest.raises(UserError, match="is missing"):
        gating.read_candidate(folder / "nowhere", suites.load_suite(folder / "suite.toml"))


@pytest.mark.parametrize("name", gating.PROBABILITIES)
def test_a_candidate_with_predictions_that_are_no_numbers_is_refused(folder, monkeypatch, name):
    suite = suites.load_suite(folder / "suite.toml")
    run = gating.read_candidate(folder / "out", suite)
    first = run.cells[0].record.predictions
    values = getattr(first, name).copy()
    values.flat[3] = float("nan")
    damaged = replace(run.cells[0], record=replace(run.cells[0].record, predictions=replace(first, **{name: values})))
    monkeypatch.setattr(gating, "read_single_task", lambda _: replace(run, cells=(damaged, *run.cells[1:])))
    with pytest.raises(UserError, match="not numbers"):
        gating.read_candidate(folder / "out", suite)


def test_results_with_numbers_that_json_lacks_are_refused(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    file = tmp_path / "out" / "results.json"
    file.write_text(file.read_text().replace('"margin": 0.', '"margin": NaN, "was": 0.', 1))
    with pytest.raises(UserError, match="cannot be read"):
        files.read_run(file)


def test_a_budget_that_ends_before_the_accepted_seeds_is_no_pass(folder, tmp_path):
    arguments = ["--baseline", str(folder / "accepted.json"), "--budget", "1s", "--set", "recipe.steps=9"]
    code = main.main(
        ["gate", str(folder / "suite.toml"), "--store", str(tmp_path / "s"), "-o", str(tmp_path / "o"), *arguments]
    )
    assert code in {exit_code.INCONCLUSIVE, exit_code.USAGE_ERROR, exit_code.FAILED}
