"""Runs of a small matrix on real data, and their files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from test_datasets import make_npz

import xferbench
from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.config import loader
from xferbench.core import run
from xferbench.core.errors import Interrupted, UserError
from xferbench.core.interventions import RANDOM
from xferbench.core.strategies import SCRATCH_NAME
from xferbench.report import files, notebook
from xferbench.runner import gate as gating
from xferbench.runner import matrix
from xferbench.study.matrix_arms import recipe_arm

SUITE = """
schema = 1
name = "small"
plugins = {plugins}
margin = 0.3
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
{more}
[scratch]
lr = [1e-3, 3e-3]
weight_decay = [0.01]
steps = 2
batch_size = 8
[matrix]
recipes = ["linear-probe", "full", "scratch", "dann"]
rates = [1, 3]
steps = 4
batch_size = 8
train_sizes = [30, 40]
against = "full"
[[matrix.targets]]
name = "own"
similar = true
data = "npz:{data}"
[[matrix.effects]]
name = "probe"
claim = "a | probe is better than <b>full</b>"
source = "a tutorial"
task = "own-30"
recipe = "linear-probe"
against = "full"
at_least = -1.0
[[matrix.effects]]
name = "share"
claim = "it trains a part"
source = "a tutorial"
task = "own-40"
recipe = "linear-probe"
measure = "share"
at_most = 0.5
[[matrix.effects]]
name = "away"
claim = "adversaries help"
source = "a tutorial"
task = "own-40"
recipe = "dann"
against = "full"
at_least = 0.0
"""


@pytest.fixture(scope="module")
def matrix_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    data = folder / "own.npz"
    make_npz(data)
    file = folder / "small.toml"
    file.write_text(SUITE.format(plugins="[]", more="", data=data))
    code = main.main(["run", str(file), "-o", str(folder / "out"), "--store", str(folder / "s.sqlite"), "-j", "1"])
    return folder, file, code


def test_each_recipe_has_a_row_per_task_and_seed_or_a_reason_to_be_skipped(matrix_run):
    folder, _, code = matrix_run
    result = files.read_run(folder / "out")
    assert code == 0
    assert {(row["task"], row["recipe"], row["seed"]) for row in result.matrix.rows} == {
        (task, recipe, seed)
        for task in ("own-30", "own-40")
        for recipe in ("linear-probe", "full", "scratch")
        for seed in (0, 1)
    }
    assert {(task, recipe) for task, recipe in result.matrix.skipped} == {("own-30", "dann"), ("own-40", "dann")}
    assert all("[shifted]" in reason for reason in result.matrix.skipped.values())
    frame = result.to_frame()
    assert np.isfinite(frame["accuracy"]).all() and frame["shifted"].isna().all()
    trained = frame.groupby("recipe")["trainable"].first()
    assert 0 < trained["linear-probe"] < trained["full"] and (frame["multiply_adds"] > 0).all()
    with (folder / "out" / "records.csv").open(newline="") as file:
        assert [row["recipe"] for row in csv.DictReader(file)] == list(frame["recipe"])


def test_claims_have_an_outcome_and_the_page_escapes_them(matrix_run):
    folder, *_ = matrix_run
    outcomes_by_name = {claim["name"]: claim["outcome"] for claim in files.read_run(folder / "out").matrix.claims}
    assert outcomes_by_name == {"probe": "agrees", "share": "agrees", "away": "not measured"}
    page, summary = ((folder / "out" / name).read_text() for name in ("report.html", "summary.md"))
    assert "<b>full</b>" not in page and "&lt;b&gt;full" in page
    assert "a \\| probe" in summary and "<b>" not in summary and "P(better than full)" in summary
    assert "Data size" in page, "every task has its similarity to the source"


def test_a_written_matrix_is_read_back(matrix_run):
    folder, *_ = matrix_run
    result = files.read_run(folder / "out")
    assert files.run_from_json(json.loads(json.dumps(run.run_to_json(result))), ()) == result
    assert repr(result) == "<Run 'small': 4 recipes on 2 tasks, 12 rows>" and "linear-probe" in notebook.notebook_table(result)
    before = (folder / "out" / "results.json").read_bytes()
    assert main.main(["report", str(folder / "out")]) == 0
    assert (folder / "out" / "results.json").read_bytes() == before


def test_junit_and_the_job_summary_have_every_recipe(matrix_run, tmp_path, monkeypatch):
    folder, *_ = matrix_run
    root = ET.parse(folder / "out" / "junit.xml").getroot()
    assert (root.get("tests"), root.get("skipped"), root.get("failures")) == ("8", "2", "0")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files.write_run(files.read_run(folder / "out"), tmp_path / "again")
    assert "P(better than full)" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(("form", "fragment"), [("latex", "\\toprule"), ("checklist", "own grid")])
def test_latex_and_checklist_include_the_matrix(matrix_run, capsys, form, fragment):
    folder, *_ = matrix_run
    assert main.main(["report", str(folder / "out"), "--format", form]) == 0
    assert fragment in capsys.readouterr().out


def test_a_second_run_trains_nothing(matrix_run):
    folder, file, _ = matrix_run
    result = xferbench.cross(file, store=folder / "s.sqlite", workers=1)
    assert result.cost["fits"]["run"] == 0
    assert [row["accuracy"] for row in result.matrix.rows] == [
        row["accuracy"] for row in files.read_run(folder / "out").matrix.rows
    ]


def test_plugins_run_on_each_task_with_a_report_each(matrix_run):
    folder, *_ = matrix_run
    file = folder / "plugged.toml"
    file.write_text(
        SUITE.format(plugins='["train-serve-skew"]', more="[recipe]\nsteps = 3\nbatch_size = 8", data=folder / "own.npz")
    )
    code = main.main(["run", str(file), "-o", str(folder / "plugged"), "--store", str(folder / "s.sqlite"), "-j", "1"])
    result = files.read_run(folder / "plugged")
    assert code in {0, 1} and {finding.id.partition(":")[0] for finding in result.findings} == {"own-30", "own-40"}
    assert all((folder / "plugged" / "tasks" / task / "results.json").is_file() for task in ("own-30", "own-40"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate", "SUITE", "--baseline", "a.json"], "[matrix]"),
        (["run", "SUITE", "--shard", "1/2", "--store", "a.sqlite"], "--shard"),
        (["validate", "SUITE", "--freeze", "plan.json"], "--freeze"),
        (["compare", "OUT", "OUT"], "matrix"),
        (["gate", "SUITE", "--baseline", "OUT"], "[matrix]"),
    ],
    ids=range(5),
)
def test_commands_for_one_task_refuse_a_matrix(matrix_run, capsys, arguments, message):
    folder, file, _ = matrix_run
    command = [{"SUITE": str(file), "OUT": str(folder / "out")}.get(argument, argument) for argument in arguments]
    assert main.main(command) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_and_a_validation_list_the_tasks(matrix_run, capsys):
    folder, file, _ = matrix_run
    assert main.main(["validate", str(file)]) == 0
    assert "4 recipes on 2 tasks (own-30, own-40), 3 claims" in capsys.readouterr().out
    assert main.main(["run", str(file), "--dry-run", "--store", str(folder / "none.sqlite"), "-j", "1"]) == 0
    assert "own-40" in capsys.readouterr().out


def test_rules_of_the_suite_apply_to_each_task(matrix_run):
    _, file, _ = matrix_run
    suite = loader.load_suite(file)
    assert {
        matrix.task_suite(task, replace(suite, rules=replace(suite.rules, seed=7))).rules.seed for task in suite.matrix.tasks
    } == {7}


def test_run_and_cross_accept_a_matrix_and_cross_refuses_other_suites(matrix_run):
    folder, file, _ = matrix_run
    results = [function(file, store=folder / "s.sqlite", workers=1) for function in (xferbench.run, xferbench.cross)]
    assert results[0].matrix == results[1].matrix and len(results[0].to_frame()) == 12
    with pytest.raises(UserError, match="matrix"):
        xferbench.cross("quick")
    with pytest.raises(UserError, match="--plan"):
        xferbench.run(file, plan=folder / "plan.json")


def test_scratch_uses_the_grid_of_the_suite(matrix_run):
    suite = loader.load_suite(matrix_run[1])
    from xferbench.testing.fake_lab import PIPELINE

    pipeline = replace(PIPELINE, baseline=suite.scratch)
    selection = recipe_arm(next(candidate for candidate in suite.matrix.compared if candidate.name == SCRATCH_NAME), pipeline)
    assert {candidate.recipe.phases[0].lr for candidate in selection.candidates} == {1e-3, 3e-3}
    assert {str(candidate.recipe.augment) for candidate in selection.candidates} == {"None", "crop", "flip+crop"}
    assert {candidate.recipe.init for candidate in selection.candidates} == {RANDOM}


def test_a_missing_file_of_the_last_task_stops_the_run_before_training(matrix_run, tmp_path, capsys):
    folder, *_ = matrix_run
    text = SUITE.format(plugins="[]", more="", data=folder / "own.npz")
    missing_target = '[[matrix.targets]]\nname = "later"\ndata = "npz:nowhere.npz"\n[[matrix.effects]]\nname = "probe"'
    file = tmp_path / "later.toml"
    file.write_text(text.replace('[[matrix.effects]]\nname = "probe"', missing_target, 1))
    store = tmp_path / "s.sqlite"
    assert main.main(["run", str(file), "-o", str(tmp_path / "out"), "--store", str(store), "-j", "1"]) == 2
    assert "nowhere.npz" in capsys.readouterr().err and not store.exists()


def test_only_reports_of_removed_tasks_are_deleted(tmp_path):
    for name in ("old", "kept", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("notes.txt" if name == "mine" else "results.json")).write_text("{}")
    files.remove_task_reports(tmp_path, ["kept"])
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "mine"}


def test_a_claim_without_a_measurement_is_open(matrix_run):
    folder, file, _ = matrix_run
    arguments = ["run", str(file), "-o", str(folder / "open"), "--store", str(folder / "s.sqlite"), "-j", "1"]
    assert main.main([*arguments, "--fail-on", "inconclusive"]) == 4


def test_a_crash_in_any_view_counts_and_rows_without_a_record_have_an_error(matrix_run):
    result = files.read_run(matrix_run[0] / "out").matrix
    assert exit_code.exit_code((), matrix=result) == 0
    broken = replace(result, rows=(result.rows[0] | {"error": "a crash"}, *result.rows[1:]))
    assert exit_code.exit_code((), matrix=broken) == 3 and broken.crashes == ("own-30, linear-probe: a crash",)
    rows_without_scores = tuple(row | {"accuracy": None} for row in result.rows)
    assert exit_code.exit_code((), matrix=replace(result, rows=rows_without_scores)) == 5
    assert exit_code.exit_code((), matrix=replace(result, rows=rows_without_scores), fail_on="inconclusive") == 5


def test_a_gate_refuses_a_matrix_before_the_run(matrix_run, tmp_path):
    with pytest.raises(UserError, match=r"\[matrix\]"):
        gating.run_gate(matrix_run[1], output=tmp_path / "out")
    with pytest.raises(UserError, match="the result of a suite with"):
        gating.compare_files(matrix_run[0] / "out", matrix_run[0] / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", [{}, [], 3, {"rows": [{}]}], ids=range(4))
def test_a_broken_matrix_is_not_a_finished_run(matrix_run, tmp_path, broken):
    payload = json.loads((matrix_run[0] / "out" / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(payload | {"matrix": broken}))
    with pytest.raises(UserError, match="is not a finished run"):
        files.read_run(tmp_path)


def test_a_matrix_removes_files_of_an_earlier_run_of_one_task(matrix_run, tmp_path):
    for name in (files.PREDICTIONS, "evidence.json", "mine.txt"):
        (tmp_path / name).write_text("old")
    files.write_run(files.read_run(matrix_run[0] / "out"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("records.csv", "report.html", "junit.xml", "summary.md", "results.json", "mine.txt")
    }


def test_a_loss_is_reported_without_percent(matrix_run):
    folder, file, _ = matrix_run
    arguments = [
        "run",
        str(file),
        "-o",
        str(folder / "nll"),
        "--store",
        str(folder / "s.sqlite"),
        "-j",
        "1",
        "--set",
        "metric=nll",
    ]
    assert main.main([*arguments, "--set", "matrix.effects=[]"]) == 2, "an empty list of claims is refused"
    text = file.read_text()
    plain = folder / "nll.toml"
    plain.write_text('metric = "nll"\n' + text[: text.index("[[matrix.effects]]")])
    assert main.main(["run", str(plain), "-o", str(folder / "nll"), "--store", str(folder / "s.sqlite"), "-j", "1"]) == 0
    summary = (folder / "nll" / "summary.md").read_text()
    assert "%" not in summary.partition("mean over seeds")[2].partition("- ")[0]
    frame = files.read_run(folder / "nll").to_frame()
    worst = frame.groupby("recipe")["accuracy"].mean().idxmax()
    rows = [line for line in summary.splitlines() if line.startswith(f"| {worst} |")]
    assert rows[0].count("[") and not rows[0].split("|")[4].strip().startswith("0.000 ["), "the highest loss has regret"


def test_an_interrupted_matrix_counts_the_results_of_the_tasks_before(tmp_path, monkeypatch):
    make_npz(tmp_path / "own.npz")
    (tmp_path / "small.toml").write_text(SUITE.format(plugins="[]", more="", data=tmp_path / "own.npz"))
    tasks = []

    def run_task(task, *_):
        tasks.append(task.name)
        if len(tasks) == 2:
            raise Interrupted(kept=3)
        return SimpleNamespace(run=None, cost={"trials": {"unique": 4}})

    monkeypatch.setattr(matrix, "_run_task", run_task)
    with pytest.raises(Interrupted) as interrupt:
        matrix.run_matrix(loader.load_suite(tmp_path / "small.toml"), path=tmp_path / "s.sqlite")
    assert interrupt.value.kept == 7
