from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factory import make_run
from test_compare import a_run, contrasts, outcomes

from xferbench.core.errors import UserError
from xferbench.report import baseline, files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "accepted.json"
    path.write_bytes(baseline.pack_baseline(a_run()))
    return path


def test_a_run_compares_with_its_accepted_file_as_with_itself(file):
    found = outcomes(baseline.read_baseline(file), a_run())
    assert {one.reason for one in found.values()} == {"unchanged: the same trials with the same answers"}


def test_it_holds_what_is_compared_and_no_more(file):
    read = baseline.read_baseline(file)
    assert {(one.arm, one.view) for one in read.cells} == {("subject", "test"), ("cured", "test")}
    told = read.cells[0].record.predictions
    assert np.isnan(told.p_true).all() and told.probabilities.shape == (2000, 0)
    assert read.cells[0].record.place == "" and read.cells[0].record.curve == ()


@pytest.mark.parametrize(
    ("metric", "kept"),
    [("nll", {"p_true"}), ("brier", {"p_true", "sum_p2"}), ("auroc", {"probabilities"}), ("balanced_accuracy", set())],
)
def test_it_keeps_what_the_metric_is_made_of(metric, kept, tmp_path):
    run = a_run(suite=a_run().suite | {"metric": metric})
    (tmp_path / "a.json").write_bytes(baseline.pack_baseline(run))
    told = baseline.read_baseline(tmp_path / "a.json").cells[0].record.predictions
    held = {name for name in ("p_true", "sum_p2") if np.isfinite(getattr(told, name)).all()}
    assert held | ({"probabilities"} if told.probabilities.shape[1] else set()) == kept


def test_it_is_small_and_its_verdicts_can_be_read_in_a_diff(file):
    assert file.stat().st_size < 60_000, "2000 examples, 10 records"
    lines = file.read_text().splitlines()
    assert any(line.strip() == '"verdict": "FAIL",' for line in lines)


def test_it_tells_places_relative_to_the_suite(tmp_path):
    suite = a_run().suite | {"path": "/home/somebody/work/suites/gate.toml", "target": "folder:/home/somebody/work/suites/ants"}
    data = baseline.pack_baseline(a_run(suite=suite))
    assert json.loads(data)["results"]["suite"]["target"] == "folder:ants"
    assert b"somebody" not in data


def test_a_folder_at_the_root_takes_no_part_out_of_other_places():
    suite = a_run().suite | {"path": "/data/gate.toml", "weights": "/home/data/w.pth", "target": "folder:/mnt/data/d"}
    told = json.loads(baseline.pack_baseline(a_run(suite=suite)))["results"]["suite"]
    assert (told["weights"], told["target"], told["path"]) == ("/home/data/w.pth", "folder:/mnt/data/d", "gate.toml")


def test_no_place_of_an_input_is_told():
    inputs = [{"key": "backbone.weights", "given": "/home/somebody/w.pth", "digest": "d", "files": 1}]
    assert b"somebody" not in baseline.pack_baseline(
        a_run(evidence={"inputs": inputs, "command": "xferbench gate /home/somebody/x"})
    )


def test_the_results_of_a_finished_run_do_as_well(tmp_path):
    files.write_run(a_run(), tmp_path)
    for place in (tmp_path, tmp_path / "results.json"):
        assert outcomes(baseline.read_baseline(place), a_run())["subject"].change == 0.0


def test_a_missing_one_says_how_one_is_made(tmp_path):
    with pytest.raises(UserError, match="--accept FILE"):
        baseline.read_baseline(tmp_path / "accepted.json")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_one_is_refused(file, share):
    text = file.read_text()
    file.write_text(text[: int(len(text) * share)])
    with pytest.raises(UserError, match="cannot be read"):
        baseline.read_baseline(file)


def test_one_that_was_changed_by_hand_is_refused(file):
    file.write_text(file.read_text().replace('"verdict": "FAIL"', '"verdict": "PASS"'))
    with pytest.raises(UserError, match="another content than was written"):
        baseline.read_baseline(file)


def test_one_of_a_newer_schema_is_refused(file):
    told = json.loads(file.read_text()) | {"accepted": 3, "xferbench": "9.9"}
    file.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"newer[^\0]*schema 3, by 9\.9"):
        baseline.read_baseline(file)


def test_one_of_an_older_schema_is_refused_with_what_to_do(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accepted": 1}))
    with pytest.raises(UserError, match=r"older[^\0]*schema 1[^\0]*--accept FILE"):
        baseline.read_baseline(file)


def test_results_of_a_newer_schema_in_it_are_refused(file):
    told = json.loads(file.read_text())
    results = told["results"] | {"schema": 99}
    file.write_text(json.dumps(told | {"results": results, "sha256": baseline._sha256(results, told["predictions"])}))
    with pytest.raises(UserError, match="schema 99"):
        baseline.read_baseline(file)


@pytest.mark.parametrize(
    "content", ['{"accepted": 0}', "", "[]", "{}", "null", '{"accepted": 1}', '{"accepted": "one"}', "\x00"]
)
def test_what_is_none_is_refused_in_one_message(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(UserError) as refused:
        baseline.read_baseline(path)
    assert str(path) in str(refused.value)


def test_a_crash_is_kept_as_one(tmp_path):
    run = a_run()
    broken = tuple(replace(one, record=replace(one.record, predictions=None, error="killed")) for one in run.cells)
    (tmp_path / "a.json").write_bytes(baseline.pack_baseline(replace(run, cells=broken)))
    assert baseline.read_baseline(tmp_path / "a.json").cells[0].record.error == "killed"


def test_a_run_of_many_plugins_is_packed_with_all_their_terms():
    run = make_run(plugins=contrasts("batchnorm-drift", "negative-transfer"))
    assert json.loads(baseline.pack_baseline(run))["results"]["plugins"].keys() == {"batchnorm-drift", "negative-transfer"}
