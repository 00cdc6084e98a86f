from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factory import make_run
from test_compare import compare_outcomes, make_contrasts, make_plugin_run

from xferbench.core.errors import UserError
from xferbench.report import baseline, files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "accepted.json"
    path.write_bytes(baseline.pack_baseline(make_plugin_run()))
    return path


def test_a_run_equals_its_accepted_file(file):
    result = compare_outcomes(baseline.read_baseline(file), make_plugin_run())
    assert {outcome.reason for outcome in result.values()} == {"unchanged: the same trials gave the same results"}


def test_the_file_contains_only_the_compared_values(file):
    accepted = baseline.read_baseline(file)
    assert {(cell.arm, cell.view) for cell in accepted.cells} == {("subject", "test"), ("cured", "test")}
    predictions = accepted.cells[0].record.predictions
    assert np.isnan(predictions.p_true).all() and predictions.probabilities.shape == (2000, 0)
    assert accepted.cells[0].record.place == "" and accepted.cells[0].record.curve == ()


@pytest.mark.parametrize(
    ("metric", "stored"),
    [("nll", {"p_true"}), ("brier", {"p_true", "sum_p2"}), ("auroc", {"probabilities"}), ("balanced_accuracy", set())],
)
def test_the_file_contains_the_values_of_the_metric(metric, stored, tmp_path):
    run = make_plugin_run(suite=make_plugin_run().suite | {"metric": metric})
    (tmp_path / "a.json").write_bytes(baseline.pack_baseline(run))
    predictions = baseline.read_baseline(tmp_path / "a.json").cells[0].record.predictions
    finite = {name for name in ("p_true", "sum_p2") if np.isfinite(getattr(predictions, name)).all()}
    assert finite | ({"probabilities"} if predictions.probabilities.shape[1] else set()) == stored


def test_the_file_is_small_and_a_diff_shows_its_verdicts(file):
    assert file.stat().st_size < 60_000, "2000 examples, 10 records"
    lines = file.read_text().splitlines()
    assert any(line.strip() == '"verdict": "FAIL",' for line in lines)


def test_paths_are_relative_to_the_suite(tmp_path):
    suite = make_plugin_run().suite | {
        "path": "/home/somebody/work/suites/gate.toml",
        "target": "folder:/home/somebody/work/suites/ants",
    }
    data = baseline.pack_baseline(make_plugin_run(suite=suite))
    assert json.loads(data)["results"]["suite"]["target"] == "folder:ants"
    assert b"somebody" not in data


def test_a_suite_in_a_top_level_folder_leaves_other_paths_unchanged():
    suite = make_plugin_run().suite | {"path": "/data/gate.toml", "weights": "/home/data/w.pth", "target": "folder:/mnt/data/d"}
    suite_in_file = json.loads(baseline.pack_baseline(make_plugin_run(suite=suite)))["results"]["suite"]
    assert (suite_in_file["weights"], suite_in_file["target"], suite_in_file["path"]) == (
        "/home/data/w.pth",
        "folder:/mnt/data/d",
        "gate.toml",
    )


def test_paths_of_inputs_are_left_out():
    inputs = [{"key": "backbone.weights", "given": "/home/somebody/w.pth", "digest": "d", "files": 1}]
    assert b"somebody" not in baseline.pack_baseline(
        make_plugin_run(evidence={"inputs": inputs, "command": "xferbench gate /home/somebody/x"})
    )


def test_the_results_of_a_finished_run_are_accepted_as_well(tmp_path):
    files.write_run(make_plugin_run(), tmp_path)
    for path in (tmp_path, tmp_path / "results.json"):
        assert compare_outcomes(baseline.read_baseline(path), make_plugin_run())["subject"].estimate.change == 0.0


def test_the_error_for_a_missing_file_has_advice(tmp_path):
    with pytest.raises(UserError, match="--accept FILE"):
        baseline.read_baseline(tmp_path / "accepted.json")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error(file, share):
    text = file.read_text()
    file.write_text(text[: int(len(text) * share)])
    with pytest.raises(UserError, match="cannot be read"):
        baseline.read_baseline(file)


def test_a_file_edited_by_hand_is_an_error(file):
    file.write_text(file.read_text().replace('"verdict": "FAIL"', '"verdict": "PASS"'))
    with pytest.raises(UserError, match="content that differs from the checksum"):
        baseline.read_baseline(file)


def test_a_newer_schema_is_an_error(file):
    content = json.loads(file.read_text()) | {"accepted": 3, "xferbench": "9.9"}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"newer[^\0]*schema 3, by 9\.9"):
        baseline.read_baseline(file)


def test_an_older_schema_is_an_error_with_advice(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accepted": 1}))
    with pytest.raises(UserError, match=r"older[^\0]*schema 1[^\0]*--accept FILE"):
        baseline.read_baseline(file)


def test_results_of_a_newer_schema_in_the_file_are_an_error(file):
    content = json.loads(file.read_text())
    results = content["results"] | {"schema": 99}
    checksum = baseline._sha256(results, content["predictions"])
    file.write_text(json.dumps(content | {"results": results, "sha256": checksum}))
    with pytest.raises(UserError, match="schema 99"):
        baseline.read_baseline(file)


@pytest.mark.parametrize(
    "content", ['{"accepted": 0}', "", "[]", "{}", "null", '{"accepted": 1}', '{"accepted": "one"}', "\x00"]
)
def test_a_file_without_an_accepted_run_is_an_error(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        baseline.read_baseline(path)
    assert str(path) in str(error.value)


def test_a_crash_is_stored(tmp_path):
    run = make_plugin_run()
    cells = tuple(replace(cell, record=replace(cell.record, predictions=None, error="killed")) for cell in run.cells)
    (tmp_path / "a.json").write_bytes(baseline.pack_baseline(replace(run, cells=cells)))
    assert baseline.read_baseline(tmp_path / "a.json").cells[0].record.error == "killed"


def test_a_run_of_several_plugins_is_packed_with_all_plugins():
    run = make_run(plugins=make_contrasts("batchnorm-drift", "negative-transfer"))
    assert json.loads(baseline.pack_baseline(run))["results"]["plugins"].keys() == {"batchnorm-drift", "negative-transfer"}


@pytest.mark.parametrize(
    "change", [{"batchnorm-drift/harm": "PASS"}, {}, {"batchnorm-drift/harm": "FAIL", "more": "PASS"}, None]
)
def test_verdicts_that_the_results_do_not_have_are_refused(file, change):
    content = json.loads(file.read_text())
    assert content["verdicts"] == {"batchnorm-drift/harm": "FAIL"}
    file.write_text(json.dumps(content | {"verdicts": change}))
    with pytest.raises(UserError, match="verdicts that differ"):
        baseline.read_baseline(file)
