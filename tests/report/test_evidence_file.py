from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import pytest
from factory import make_run

from xferbench.core.errors import UserError
from xferbench.core.run import run_to_json
from xferbench.core.sections import replace_flat
from xferbench.report import files, html, provenance

LISTED_FILE = ["e" * 64, 2, "a\nb"]
INPUTS = [
    {"key": "target.data", "given": "folder:/a/cats", "digest": "d" * 64, "files": 1, "bytes": 2, "listed": [LISTED_FILE]},
    {"key": "suite", "given": "/a/<mine>.toml", "digest": "f" * 64, "files": 0, "bytes": 0},
]
EVIDENCE = {
    "command": "xferbench run mine.toml",
    "begun": "2026-01-02T03:04:05Z",
    "ended": "2026-01-02T03:05:05Z",
    "hash": "c" * 64,
    "inputs": INPUTS,
}
FROZEN = {"hash": "c" * 64, "written": "2026-01-01T00:00:00Z", "file": "b" * 64}


@pytest.fixture(autouse=True)
def _without_html(monkeypatch):
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")


@pytest.fixture
def run():
    return make_run(seeds=2, examples=20, evidence=EVIDENCE, frozen=FROZEN)


@pytest.fixture
def out(run, tmp_path):
    files.write_run(run, tmp_path / "out")
    return tmp_path / "out"


def evidence_of(out):
    return json.loads((out / "evidence.json").read_text())


def verify_checksums(out):
    process = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=False
    )
    return process.returncode, process.stdout


def test_every_output_is_listed_with_its_digest_and_size(out):
    outputs = {path.name for path in out.iterdir()} - {"evidence.json", "SHA256SUMS"}
    assert {entry["name"] for entry in evidence_of(out)["outputs"]} == outputs
    assert "results.json" in outputs
    for entry in evidence_of(out)["outputs"]:
        data = (out / entry["name"]).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


def test_inputs_environment_plan_and_command_are_listed_and_no_compliance_is_claimed(run, out):
    evidence = evidence_of(out)
    assert (evidence["inputs"], evidence["environment"], evidence["frozen"]) == (INPUTS, run.provenance.environment, FROZEN)
    assert (evidence["command"], evidence["hash"]) == ("xferbench run mine.toml", "c" * 64)
    assert evidence["claim"] == "This report claims no compliance with any standard."


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_the_standard_tool_verifies_all_outputs_and_detects_a_change(out):
    code, output = verify_checksums(out)
    assert code == 0
    assert output.count(": OK") == len(list(out.iterdir())) - 1
    (out / "summary.md").write_text("all is well")
    code, output = verify_checksums(out)
    assert code == 1
    assert "summary.md: FAILED" in output


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
@pytest.mark.parametrize("name", ["plain", "with space", "a\nb", "a\\b", "\\n", "a\rb", " *x"])
def test_names_are_escaped_as_in_coreutils(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "SHA256SUMS").write_text(provenance.checksums({name: b"x"}), newline="")
    assert verify_checksums(tmp_path)[0] == 0
    if "\r" not in name:  # older coreutils do not escape it
        expected = subprocess.run(["sha256sum", "--", name], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert provenance.checksums({name: b"x"}) == expected


def test_results_contain_the_evidence_without_file_lists(run, out):
    results = json.loads((out / "results.json").read_text())
    assert results["frozen"] == FROZEN
    assert [entry.get("listed") for entry in results["evidence"]["inputs"]] == [None, None]
    assert results["evidence"]["inputs"][0]["digest"] == "d" * 64


def test_a_report_that_is_written_again_has_its_own_evidence(out, tmp_path, monkeypatch):
    reread = files.read_run(out)
    assert (reread.provenance.evidence, reread.provenance.preregistration) == (EVIDENCE, FROZEN)
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html><p>another page")
    files.write_run(reread, tmp_path / "again")
    assert evidence_of(tmp_path / "again")["inputs"] == INPUTS
    assert evidence_of(tmp_path / "again")["outputs"] != evidence_of(out)["outputs"]
    assert not shutil.which("sha256sum") or verify_checksums(tmp_path / "again")[0] == 0


def test_results_contain_the_evidence_if_its_file_is_missing(out, tmp_path):
    (out / "evidence.json").unlink()
    reread = files.read_run(out)
    assert reread.provenance.evidence["inputs"][0]["digest"] == "d" * 64
    files.write_run(reread, out)
    assert "listed" not in evidence_of(out)["inputs"][0]
    assert run_to_json(files.read_run(out)) == run_to_json(reread)


@pytest.mark.parametrize(("old", "new"), [("d" * 64, "0" * 64), ('"run": "', '"run": "0'), ("mine.toml", "other.toml")])
def test_evidence_of_other_results_is_an_error(out, old, new):
    file = out / "evidence.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"results\.json and evidence\.json next to it do not belong to the same run"):
        files.read_run(out)


def test_damaged_evidence_is_an_error(out):
    (out / "evidence.json").write_text("{")
    with pytest.raises(UserError, match=r"evidence\.json cannot be read"):
        files.read_run(out)


def test_a_run_without_evidence_removes_the_evidence_of_another_run(run, out):
    files.write_run(replace_flat(run, evidence={}, frozen={}), out)
    assert not (out / "evidence.json").exists()
    assert not (out / "SHA256SUMS").exists()
    assert files.read_run(out).provenance.evidence == {}


def test_results_without_evidence_are_read(run, out, monkeypatch):
    def results_without_evidence(run):
        return {key: value for key, value in run_to_json(run).items() if key not in {"frozen", "evidence"}}

    monkeypatch.setattr(files, "run_to_json", results_without_evidence)
    files.write_run(replace_flat(run, evidence={}, frozen={}), out)
    assert "evidence" not in (out / "results.json").read_text()
    assert (files.read_run(out).provenance.evidence, files.read_run(out).provenance.preregistration) == ({}, {})
