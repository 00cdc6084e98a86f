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
from xferbench.report import baseline, files
from xferbench.runner import gate as gating


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A suite that was carried out and accepted once."""
    folder = tmp_path_factory.mktemp("gate")
    make_npz(folder / "d.npz", train=80, test=40)
    (folder / "suite.toml").write_text(SUITE)
    loaded = suites.load_suite(folder / "suite.toml")
    options = {"store": folder / "store.sqlite", "workers": 1}
    gating.run_gate(loaded, accept=folder / "accepted.json", output=folder / "out", **options)
    return folder


def run_gate(place, *words, suite="suite.toml", out="gated"):
    arguments = [str(place / suite), "--store", str(place / "store.sqlite"), "-j", "1", "-o", str(place / out), *words]
    return main.main(["gate", *arguments])


def read_results(place, out="gated"):
    return json.loads((place / out / "results.json").read_text())


def test_the_same_again_is_not_worse(place):
    assert run_gate(place, "--baseline", str(place / "accepted.json")) == exit_code.PASSED
    found = read_results(place)
    assert {outcome["decision"] for outcome in found["gate"]["outcomes"]} == {"not worse"}
    assert found["cost"]["fits"]["run"] == 0
    assert found["gate"]["accepted"]["file"].endswith("accepted.json")


def test_a_candidate_made_elsewhere_is_held_without_being_carried_out(place, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    code = main.main(
        [
            "gate",
            str(place / "suite.toml"),
            "--baseline",
            str(place / "accepted.json"),
            "--candidate",
            str(place / "out"),
            "-o",
            str(place / "elsewhere"),
        ]
    )
    assert code == exit_code.PASSED
    outcome = read_results(place, "elsewhere")["gate"]["outcomes"][0]
    assert outcome["reason"] == "unchanged: the same trials gave the same results"


def test_a_candidate_of_another_suite_is_refused(place, capsys):
    arguments = ["--set", "recipe.lr=1e-3", "--baseline", str(place / "accepted.json"), "--candidate", str(place / "out")]
    code = main.main(["gate", str(place / "suite.toml"), *arguments, "-o", str(place / "never")])
    assert code == exit_code.USAGE_ERROR
    assert "found: recipe.lr 0.01" in capsys.readouterr().err
    assert not (place / "never" / "results.json").exists()


@pytest.mark.parametrize("option", [["--store", "s"], ["-j", "2"], ["--budget", "5m"], ["--seed", "3"], ["--device", "cpu"]])
def test_what_is_about_carrying_out_is_refused_beside_a_candidate(place, option, capsys):
    code = main.main(["gate", str(place / "suite.toml"), "--baseline", "b", "--candidate", "c", *option])
    assert code == exit_code.USAGE_ERROR and "cannot be combined with --candidate" in capsys.readouterr().err


def test_without_a_baseline_it_says_how_one_is_made(place, capsys):
    assert run_gate(place) == exit_code.USAGE_ERROR
    assert "--accept accepted.json" in capsys.readouterr().err


def test_a_gate_is_not_written_over_what_it_is_held_against(place, capsys, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    before = (place / "out" / "results.json").read_bytes()
    assert run_gate(place, "--baseline", str(place / "out" / "results.json"), out="out") == exit_code.USAGE_ERROR
    assert "contains an input of the comparison" in capsys.readouterr().err
    assert (place / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize("word", ["margin=0.5", "looks=[2]", "alpha=0.2"])
def test_a_change_of_the_rules_is_refused(place, word, capsys):
    assert run_gate(place, "--set", word, "--baseline", str(place / "accepted.json"), out="unruled") == exit_code.USAGE_ERROR
    assert "do not have the same rules" in capsys.readouterr().err
    assert not (place / "unruled" / "results.json").exists()


def test_a_folder_to_accept_into_is_refused_before_anything_is_run(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    assert run_gate(place, "--accept", str(tmp_path)) == exit_code.USAGE_ERROR
    assert "is a folder" in capsys.readouterr().err


def test_a_candidate_that_was_made_of_other_files_is_refused(place, tmp_path, capsys):
    for name in ("suite.toml", "d.npz", "accepted.json"):
        shutil.copy(place / name, tmp_path / name)
    words = [str(tmp_path / "suite.toml"), "--baseline", str(tmp_path / "accepted.json"), "--candidate", str(place / "out")]
    assert main.main(["gate", *words, "-o", str(tmp_path / "one")]) == exit_code.PASSED
    make_npz(tmp_path / "d.npz", train=81, test=40)
    assert main.main(["gate", *words, "-o", str(tmp_path / "two")]) == exit_code.USAGE_ERROR
    assert "other content of target.data" in capsys.readouterr().err
    (tmp_path / "d.npz").unlink()
    assert main.main(["gate", *words, "-o", str(tmp_path / "three")]) == exit_code.PASSED
    assert any("was not checked" in note for note in read_results(tmp_path, "three")["gate"]["notes"])


def test_an_accepted_run_that_crashes_when_it_is_evaluated_again_is_refused(place, tmp_path, capsys, monkeypatch):
    old = baseline.read_baseline(place / "accepted.json")
    (tmp_path / "older.json").write_bytes(
        baseline.pack_baseline(replace(old, environment=old.environment | {"packages": {"torch": "1.9.1"}}))
    )
    calls, real = [], gating.runner.run_suite

    def once(*arguments, **options):
        calls.append(arguments)
        run = real(*arguments, **options)
        return run if len(calls) == 1 else replace(run, findings=tuple(replace(f, verdict="ERROR") for f in run.findings))

    monkeypatch.setattr("xferbench.runner.run.run_suite", once)
    assert run_gate(place, "--baseline", str(tmp_path / "older.json")) == exit_code.USAGE_ERROR
    assert len(calls) == 2 and "cannot be evaluated again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.json", "."])
def test_a_baseline_that_is_not_there_is_refused_before_anything_is_run(place, name, capsys, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    assert run_gate(place, "--baseline", str(place / name)) == exit_code.USAGE_ERROR
    assert "--accept FILE" in capsys.readouterr().err


def test_other_test_examples_are_refused_and_nothing_is_overwritten(place, capsys):
    make_npz(place / "other.npz", train=80, test=44)
    before = (place / "accepted.json").read_bytes()
    words = ["--set", 'target.data="npz:other.npz"', "--baseline", str(place / "accepted.json")]
    assert run_gate(place, *words, "--accept", str(place / "accepted.json"), out="unwritten") == exit_code.USAGE_ERROR
    assert "different test examples" in capsys.readouterr().err
    assert (place / "accepted.json").read_bytes() == before
    assert not (place / "unwritten" / "results.json").exists()


def test_a_new_accepted_file_is_written_beside_the_comparison(place):
    new = place / "new.json"
    words = ["--set", "recipe.lr=1e-4", "--baseline", str(place / "accepted.json"), "--accept", str(new)]
    assert run_gate(place, *words) == exit_code.PASSED
    assert baseline.read_baseline(new).suite["recipe"]["phases"][0]["lr"] == 1e-4
    assert baseline.read_baseline(new).gate is None
    assert any("recipe.lr 0.01 → 0.0001" in note for note in read_results(place)["gate"]["notes"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_run(place, tmp_path, monkeypatch):
    monkeypatch.setattr("xferbench.runner.run.run_suite", None)
    tmp_path.chmod(0o500)
    words = ["--baseline", str(place / "accepted.json"), "--accept", str(tmp_path / "deep" / "a.json")]
    assert run_gate(place, *words) == exit_code.USAGE_ERROR


def test_all_skipped_is_nothing_judged(place, capsys):
    words = ["--set", 'plugins=["catastrophic-forgetting"]', "--baseline", str(place / "accepted.json")]
    assert run_gate(place, *words, "--accept", str(place / "nothing.json")) == exit_code.NO_VERDICT
    assert "not accepted" in capsys.readouterr().err and not (place / "nothing.json").exists()


def test_another_torch_is_not_compared_silently_but_evaluated_again_here(place, tmp_path):
    old = baseline.read_baseline(place / "accepted.json")
    older = replace(old, environment=old.environment | {"packages": {"torch": "1.9.1"}})
    (tmp_path / "older.json").write_bytes(baseline.pack_baseline(older))
    assert run_gate(place, "--baseline", str(tmp_path / "older.json")) == exit_code.PASSED
    notes = read_results(place)["gate"]["notes"]
    assert any("evaluated again in this job (torch 1.9, here" in note for note in notes)


def test_what_cannot_be_evaluated_again_is_refused(place, tmp_path, capsys):
    old = baseline.read_baseline(place / "accepted.json")
    inputs = [entry | {"digest": "another"} for entry in old.evidence["inputs"]]
    older = replace(old, environment=old.environment | {"device": "cuda"}, evidence={"inputs": inputs})
    (tmp_path / "older.json").write_bytes(baseline.pack_baseline(older))
    assert run_gate(place, "--baseline", str(tmp_path / "older.json")) == exit_code.USAGE_ERROR
    message = capsys.readouterr().err
    assert "device cuda, here cpu" in message and "other content: " in message


def test_a_finished_candidate_is_not_compared_across_devices(place, tmp_path, capsys):
    old = baseline.read_baseline(place / "accepted.json")
    (tmp_path / "older.json").write_bytes(
        baseline.pack_baseline(replace(old, environment=old.environment | {"device": "cuda"}))
    )
    words = ["--baseline", str(tmp_path / "older.json"), "--candidate", str(place / "out")]
    assert main.main(["gate", str(place / "suite.toml"), *words, "-o", str(tmp_path / "out")]) == exit_code.USAGE_ERROR
    assert "device cuda, here cpu" in capsys.readouterr().err


OWN = """
import pathlib

def train(model, data, recipe, seed):
    with (pathlib.Path(__file__).parent / "calls").open("a") as file:
        file.write("x")
    return model

train.supports = set()
"""


def test_training_code_of_the_users_own_is_always_run_again(tmp_path):
    make_npz(tmp_path / "d.npz", train=80, test=40)
    (tmp_path / "mine.py").write_text(OWN)
    text = SUITE.replace("lr = 1e-2\nsteps = 3\nbatch_size = 8\n", 'training = "python:mine:train"\n', 1)
    (tmp_path / "suite.toml").write_text(
        text.replace('"batchnorm-drift", "negative-transfer"', '"freeze-integrity"').replace("[2, 3]", "[2]")
    )
    calls, counts = tmp_path / "calls", []
    for words in (["--accept", "accepted.json"], ["--baseline", "accepted.json"]):
        words[1] = str(tmp_path / words[1])
        assert run_gate(tmp_path, *words, "--allow-code") == exit_code.PASSED
        counts.append(len(calls.read_text()))
        calls.write_text("")
    assert counts[0] > 0 and counts[1] == counts[0]


def test_an_interrupted_run_is_no_baseline(place, tmp_path, capsys):
    shutil.copytree(place / "out", tmp_path / "half")
    (tmp_path / "half" / files.RESULTS).unlink()
    assert run_gate(place, "--baseline", str(tmp_path / "half")) == exit_code.USAGE_ERROR
    assert "results.json" in capsys.readouterr().err


def test_it_reads_a_run_of_the_suite_that_it_is_given(place):
    assert gating.read_candidate(place / "out", suites.load_suite(place / "suite.toml")).suite["name"] == "resumed"
    with pytest.raises(UserError, match="is missing"):
        gating.read_candidate(place / "nowhere", suites.load_suite(place / "suite.toml"))
