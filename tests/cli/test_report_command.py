from __future__ import annotations

import pytest
from factory import make_run
from invoke import invoke, make_suite

from xferbench.analysis import exit_code
from xferbench.report import files, html

pytestmark = pytest.mark.usefixtures("isolated")


def test_report_is_written_again_or_into_another_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")  # other tests cover the page
    run = make_run(seeds=2, examples=20)
    files.write_run(run, tmp_path / "done")
    before = (tmp_path / "done" / "results.json").read_bytes()
    (tmp_path / "done" / "report.html").unlink()
    code, out, _ = invoke(capsys, "report", tmp_path / "done")
    assert code == 0
    assert "batchnorm-drift" in out
    assert (tmp_path / "done" / "report.html").is_file()
    assert (tmp_path / "done" / "results.json").read_bytes() == before
    assert invoke(capsys, "report", tmp_path / "done", "-o", tmp_path / "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere" / "results.json").read_bytes() == before


@pytest.mark.parametrize("name", ["results.json", "report.html", "records.csv"])
def test_report_accepts_any_file_of_a_run(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")
    files.write_run(make_run(seeds=2, examples=20), tmp_path / "done")
    assert invoke(capsys, "report", tmp_path / "done" / name)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"done"}


@pytest.mark.parametrize(
    ("form", "name", "start"),
    [("latex", "findings.tex", "% needs"), ("checklist", "checklist.md", "# Reproducibility checklist: careless")],
)
def test_report_prints_or_writes_another_format(capsys, tmp_path, form, name, start):
    files.write_run(make_run(seeds=2, examples=20), tmp_path / "done")
    before = {path.name: path.read_bytes() for path in (tmp_path / "done").iterdir()}
    code, out, err = invoke(capsys, "report", tmp_path / "done", "--format", form)
    assert (code, err, out.startswith(start)) == (0, "", True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "done").iterdir()} == before
    code, message, _ = invoke(capsys, "report", tmp_path / "done", "--format", form, "-o", tmp_path / "paper")
    assert (code, message) == (0, f"wrote {tmp_path / 'paper' / name}\n")
    assert (tmp_path / "paper" / name).read_text() == out


def test_report_refuses_a_file_without_a_run(capsys, tmp_path):
    code, out, err = invoke(capsys, "report", make_suite(tmp_path))
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "noise.toml does not belong to a finished run\n  found: no results.json next to it" in err


def test_report_refuses_an_empty_folder(capsys, tmp_path):
    code, out, err = invoke(capsys, "report", tmp_path)
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "results.json is missing" in err
