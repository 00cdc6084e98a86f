from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from factory import make_plugin, make_record, make_run

from xferbench.core.errors import UserError
from xferbench.core.files import require_writable
from xferbench.core.record import Predictions
from xferbench.core.run import SampleImages, TrialRow, run_to_json
from xferbench.core.sections import replace_flat
from xferbench.report import files, html, predictions

NAMES = {"records.csv", "predictions.npz", "samples.npz", "report.html", "junit.xml", "summary.md", "results.json"}


@pytest.fixture(autouse=True)
def _outside_github(monkeypatch):
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without_html(monkeypatch):
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")  # other tests cover the page


@pytest.fixture(scope="module")
def run():
    return make_run(seeds=2, examples=50)


@pytest.fixture
def folder(run, tmp_path, without_html):
    files.write_run(run, tmp_path / "out")
    return tmp_path / "out"


def assert_same(left, right):
    for field in fields(left):
        left_value, right_value = getattr(left, field.name), getattr(right, field.name)
        if isinstance(left_value, Predictions):
            assert_same(left_value, right_value)
        elif isinstance(left_value, np.ndarray):
            np.testing.assert_array_equal(left_value, right_value)
            assert left_value.dtype == right_value.dtype, field.name
        else:
            assert left_value == right_value, field.name


def test_all_documented_files_and_no_others_are_written(run, tmp_path):
    files.write_run(
        run, tmp_path / "new" / "out", {"batchnorm-drift": make_plugin("batchnorm-drift"), "negative-transfer": None}
    )
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == NAMES


def test_results_are_written_last(run, tmp_path, without_html):
    (tmp_path / "summary.md").mkdir()
    with pytest.raises(UserError, match=r"summary\.md cannot be written"):
        files.write_run(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES - {"results.json"}


def test_a_full_disk_is_an_error_and_changes_nothing(run, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail_on_full_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_on_full_disk)
    with pytest.raises(UserError) as error:
        files.write_run(replace_flat(run, plan="another"), folder)
    assert error.value.found == "No space left on device"
    assert error.value.do
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_crash_while_rendering_changes_nothing(run, folder, monkeypatch):
    before = (folder / "results.json").read_bytes()
    monkeypatch.setattr(html, "render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.write_run(replace_flat(run, plan="another"), folder)
    assert (folder / "results.json").read_bytes() == before


def test_a_folder_that_cannot_be_created_is_an_error_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        require_writable(tmp_path / "file" / "out")
    require_writable(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_is_read_back(run, folder):
    reread = files.read_run(folder)
    assert run_to_json(reread) == run_to_json(run)
    assert [replace(cell, record=None) for cell in reread.cells] == [replace(cell, record=None) for cell in run.cells]
    for left, right in zip(run.cells, reread.cells, strict=True):
        assert_same(left.record, right.record)


def test_a_run_can_be_read_from_its_results_file(folder):
    assert run_to_json(files.read_run(folder / "results.json")) == run_to_json(files.read_run(folder))


def test_reading_and_writing_keeps_the_bytes(folder, tmp_path, without_html):
    files.write_run(files.read_run(folder), tmp_path / "again")
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_records_with_groups_or_without_predictions_are_read_back(run):
    small_record = make_record("other", 0.5, examples=30, classes=30, scalars={"diverged": 1.0, "drift/stem": float("nan")})
    predictions_with_groups = replace(small_record.predictions, group=np.arange(30, dtype=np.int64) % 4 - 1)
    grouped_record = replace(small_record, predictions=predictions_with_groups)
    crashed_record = replace(
        make_record("crashed", 0.5), predictions=None, error="out of memory", curve=((0, float("inf"), 0.1),)
    )
    cells = [
        TrialRow(plugin="p", arm="subject", variant="", view="drift", seed=seed, recipe="", record=record)
        for seed, record in enumerate((grouped_record, crashed_record, run.cells[0].record))
    ]
    _, reread = predictions.unpack_predictions(io.BytesIO(predictions.pack_predictions(cells, "")))
    assert_same(reread[0].record.predictions, predictions_with_groups)
    assert np.isnan(reread[0].record.scalars["drift/stem"])
    assert reread[1].record.predictions is None
    assert reread[1].record.error == "out of memory"
    assert np.isnan(reread[1].record.curve[0][1])
    assert_same(reread[2].record, run.cells[0].record)


def test_examples_and_shared_records_are_stored_once(run):
    packed = predictions.pack_predictions(run.cells, "")
    packed_twice = predictions.pack_predictions([*run.cells, *(replace(cell, plugin="another") for cell in run.cells)], "")
    assert len(packed_twice) < 1.1 * len(packed)
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        assert [name for name in arrays.files if name.endswith("/label")] == ["0/label"]
        assert arrays["0/predicted"].shape == (18, 50)
        assert arrays["0/predicted"].dtype == np.int8


@pytest.mark.parametrize("values", [[0, 127], [0, 128], [-1, 127], [-129, 3], [0, 0], [2**40, -(2**40)], [2**63 - 1, -(2**63)]])
def test_packed_integers_lose_nothing(values):
    values = np.array(values, dtype=np.int64)
    assert predictions._widen(predictions._narrow(values)).tolist() == values.tolist()


def test_results_are_plain_json_with_the_documented_keys(run, tmp_path, without_html):
    incomplete = replace_flat(run.findings[0], harm=float("nan"), measures={"subject/drift": float("inf")})
    files.write_run(replace(run, findings=(incomplete,)), tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert {"schema", "xferbench", "suite", "environment", "findings", "cost"} <= set(results)
    assert results["findings"][0]["harm"] is None


def test_the_csv_has_a_row_for_each_cell(run, folder):
    rows = list(csv.DictReader(io.StringIO((folder / "records.csv").read_text())))
    assert [(row["plugin"], row["arm"], row["variant"], int(row["seed"])) for row in rows] == [
        (cell.plugin, cell.arm, cell.variant, cell.seed) for cell in run.cells
    ]
    assert {float(row["diverged"]) for row in rows} == {0.0}


def test_a_missing_number_is_an_empty_field_and_a_csv_without_cells_has_a_header():
    cell = TrialRow(plugin="a,b\n", arm="subject", variant="", view="test", seed=0, recipe='"', record=make_record("k", 0.5))
    cell_without_predictions = replace(cell, record=replace(cell.record, predictions=None, scalars={"drift": float("nan")}))
    first, second = csv.DictReader(io.StringIO(files.records_csv([cell, cell_without_predictions])))
    assert (first["plugin"], first["recipe"], first["drift"]) == ("a,b\n", '"', "")
    assert (second["accuracy"], second["drift"], second["diverged"]) == ("", "", "")
    assert files.records_csv([]).startswith("plugin,arm,variant,view,seed,")


@pytest.mark.parametrize("name", ["results.json", "predictions.npz", "samples.npz"])
@pytest.mark.parametrize("size", [0, 1, 100, -20])
def test_a_truncated_file_is_an_error(folder, name, size):
    path = folder / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=name):
        files.read_run(folder)


@pytest.mark.parametrize("name", ["results.json", "predictions.npz"])
def test_a_missing_file_is_an_error(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match="is missing"):
        files.read_run(folder)


def test_a_newer_schema_is_an_error(folder):
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"schema": 99, "xferbench": "9.0"}))
    with pytest.raises(UserError, match="newer than this xferbench") as error:
        files.read_run(folder)
    assert "schema 99, by 9.0" in error.value.found


@pytest.mark.parametrize("entries", [{}, {"matrix": {}}], ids=["one task", "many tasks"])
def test_an_older_schema_is_an_error_with_advice(folder, entries):
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"schema": 1, "xferbench": "0.1.0"} | entries))
    with pytest.raises(UserError, match="older than this xferbench") as error:
        files.read_run(folder)
    assert (error.value.found, error.value.expected) == ("schema 1, by 0.1.0", "schema 2")
    assert "run the suite again" in error.value.do


NESTED = '{"schema": 2, "a": ' + "[" * 600 + "]" * 600 + "}"


@pytest.mark.parametrize(
    "content",
    [NESTED, '{"schema": 2, "a": NaN}', "[]", "{}", '{"schema": "1"}', "null", "nonsense", '{"schema": 2}', "[" * 100_000],
)
def test_json_without_a_finished_run_is_an_error(folder, content):
    (folder / "results.json").write_text(content)
    with pytest.raises(UserError):
        files.read_run(folder)


def test_predictions_of_another_run_are_an_error(run, folder, tmp_path):
    files.write_run(replace_flat(run, plan="another"), tmp_path / "other")
    (tmp_path / "other" / "results.json").replace(folder / "results.json")
    with pytest.raises(UserError, match="do not belong to the same run"):
        files.read_run(folder)


def with_samples(run):
    images = np.random.default_rng(0).integers(256, size=(2, 4, 4, 3), dtype=np.uint8)
    return replace(run, samples=(SampleImages(role="target", title="t", arms=("all arms",), images=images, labels=("a", "b")),))


def test_samples_are_read_back(run, tmp_path, without_html):
    files.write_run(with_samples(run), tmp_path)
    assert_same(files.read_run(tmp_path).samples[0], with_samples(run).samples[0])


def test_a_folder_of_an_older_version_has_no_samples(folder):
    (folder / "samples.npz").unlink()
    assert files.read_run(folder).samples == ()


def test_samples_of_another_run_are_an_error(run, folder, tmp_path):
    files.write_run(replace_flat(run, plan="another"), tmp_path / "other")
    (tmp_path / "other" / "samples.npz").replace(folder / "samples.npz")
    with pytest.raises(UserError, match=r"samples\.npz next to it do not belong to the same run"):
        files.read_run(folder)


def test_results_with_another_layout_belong_to_the_same_run(folder):
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results, sort_keys=True))
    assert files.read_run(folder).provenance.plan == results["plan"]


def test_a_pickle_is_never_opened(folder):
    np.savez(folder / "predictions.npz", index=np.array([object()], dtype=object))
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read"):
        files.read_run(folder)


def test_heavy_packages_are_imported_late():
    packages = "{'torch', 'matplotlib', 'rich', 'pandas', 'jinja2'}"
    code = f"import sys; from xferbench.report import console, files; print({packages} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
