from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from xml.etree import ElementTree as ET

import pytest
from factory import make_run

from xferbench.core.comparison import Comparison, Outcome
from xferbench.core.errors import UserError
from xferbench.core.run import Finding
from xferbench.core.sections import from_flat
from xferbench.runner import discovery, gate
from xferbench.runner import run as runner

discovery.load_plugins(["all"])  # before a pytest session in this process imports and removes them
IS_INSTALLED = any(entry.name == "xferbench" for entry in entry_points(group="pytest11"))
PLUGIN = [] if IS_INSTALLED else ["-p", "xferbench.pytest_plugin"]
SUITE = """
schema = 1
name = "mine"
plugins = ["batchnorm-drift", "train-serve-skew"]
[backbone]
arch = "tiny-resnet"
[target]
data = "synthetic:near"
"""
NAMES = ["batchnorm-drift/harm", "train-serve-skew/harm", "train-serve-skew/batch-dependence"]
RUN = make_run()
UNRELATED_TEST = "def test_other(): pass"
FIXTURE_TEST = "def test_uses(xferbench_run): assert xferbench_run.suite['name'] == 'careless'"


def make_finding(plugin="batchnorm-drift", verdict="PASS", contrast="harm", **fields):
    return from_flat(
        Finding, {"id": f"{plugin}/{contrast}", "plugin": plugin, "contrast": contrast, "verdict": verdict} | fields
    )


PASSING = (make_finding(), make_finding("train-serve-skew"), make_finding("train-serve-skew", contrast="batch-dependence"))


@pytest.fixture
def fake_run(monkeypatch):
    """Return a function that replaces the run by findings or an exception, and returns the list of calls."""
    calls = []

    def replace_run(*findings, error=None, **fields):
        def run_suite(suite, **options):
            calls.append((suite, options))
            if error is not None:
                raise error
            return replace(RUN, findings=findings, **fields)

        monkeypatch.setattr(runner, "run", run_suite)
        monkeypatch.setattr(gate, "run_gate", run_suite)
        return calls

    return replace_run


@pytest.fixture
def session(pytester):
    """Return a function that runs pytest in a folder with a suite and optional other tests."""
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error")
    pytester.mkdir("suites").joinpath("s.toml").write_text(SUITE)

    def run_pytest(*options, tests="", suite="suites/s.toml", run=pytester.runpytest_inprocess):
        if tests:
            pytester.makepyfile(test_other=tests)
        suite_option = ["--xferbench", suite] if suite else []
        disabled = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        return run(*PLUGIN, *disabled, *suite_option, *map(str, options))

    return run_pytest


def ids(result):
    return sorted(line for line in result.outlines if "::" in line)


def test_every_contrast_is_collected_as_a_test_without_a_run(session, fake_run):
    calls = fake_run(error=AssertionError("run"))
    result = session("--collect-only", "-q", tests=UNRELATED_TEST)
    assert ids(result) == sorted(["test_other.py::test_other", *(f"suites/s.toml::{name}" for name in NAMES)])
    assert (result.ret, calls) == (0, [])


def test_the_subject_is_a_test_with_a_baseline(session, fake_run, pytester):
    fake_run(error=AssertionError("run"))
    pytester.path.joinpath("accepted.json").touch()
    result = session("--collect-only", "-q", "--xferbench-baseline", "accepted.json")
    assert ids(result) == sorted(f"suites/s.toml::{name}" for name in ["subject", *NAMES])


def test_other_tests_are_unchanged_and_a_marker_selects_tests_of_suites(session, fake_run):
    fake_run(*PASSING)
    session(tests=UNRELATED_TEST).assert_outcomes(passed=4)
    session("-m", "xferbench").assert_outcomes(passed=3, deselected=1)
    session("-m", "not xferbench").assert_outcomes(passed=1, deselected=3)
    session(suite="").assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [["."], ["suites"], ["suites/s.toml"], ["suites/s.toml", "test_other.py"]])
def test_a_suite_given_twice_is_collected_once(session, fake_run, options):
    fake_run(*PASSING)
    session(*options, tests=UNRELATED_TEST).assert_outcomes(passed=3 + ("." in options or "test_other.py" in options))


def test_a_name_selects_one_test(session, fake_run):
    calls = fake_run(*PASSING)
    session("suites/s.toml::batchnorm-drift/harm", tests=UNRELATED_TEST).assert_outcomes(passed=1)
    session("-k", "batch-dependence", tests=UNRELATED_TEST).assert_outcomes(passed=1, deselected=3)
    session("gate::head-shock/harm", "--collect-only", "-q", suite="gate").assert_outcomes()
    assert len(calls) == 2


def test_a_shipped_suite_is_collected_by_name(session):
    result = session("--collect-only", "-q", suite="gate")
    assert "gate::head-shock/harm" in ids(result)
    assert ids(session("gate::head-shock/harm", "--collect-only", "-q", suite="gate")) == ["gate::head-shock/harm"]


@pytest.mark.parametrize(
    ("verdict", "outcomes", "strict_outcomes"),
    [
        ("PASS", {"passed": 3}, {"passed": 3}),
        ("FAIL", {"passed": 2, "failed": 1}, {"passed": 2, "failed": 1}),
        ("ERROR", {"passed": 2, "failed": 1}, {"passed": 2, "failed": 1}),
        ("INCONCLUSIVE", {"passed": 2, "skipped": 1}, {"passed": 2, "failed": 1}),
        ("SKIPPED", {"passed": 2, "skipped": 1}, {"passed": 2, "skipped": 1}),
    ],
)
def test_a_verdict_determines_the_result_of_its_test(session, fake_run, verdict, outcomes, strict_outcomes):
    fake_run(make_finding(verdict=verdict, reason="a reason"), *PASSING[1:])
    result = session("-ra")
    result.assert_outcomes(**outcomes)
    assert ("a reason" in result.stdout.str()) == (verdict != "PASS")
    session("--xferbench-fail-on", "inconclusive").assert_outcomes(**strict_outcomes)


def test_a_failure_is_a_few_lines_without_a_traceback(session, fake_run):
    fake_run(*RUN.findings, *PASSING[1:])
    output = session().stdout.str()
    assert "FAIL: +" in output
    assert "harm is above the margin of 2.0 points" in output
    assert "next: keep the BatchNorm layers of the pretrained backbone in eval mode" in output
    assert '    batchnorm = "eval"    # was train' in output
    assert not any(text in output for text in ("Traceback", "pytest_plugin.py", "raise "))


def test_a_skipped_test_is_reported_at_the_suite(session, fake_run):
    fake_run(make_finding(verdict="SKIPPED", reason="no BatchNorm"), *PASSING[1:])
    session("-rs").stdout.fnmatch_lines(["SKIPPED [[]1[]] *suites*s.toml:1: *batchnorm-drift/harm: SKIPPED: no BatchNorm"])


def test_the_suite_runs_once_and_a_fixture_has_the_run(session, fake_run):
    calls = fake_run(*PASSING)
    options = ["--xferbench-store", "s.sqlite", "--xferbench-output", "out", "--xferbench-allow-code"]
    session(*options, tests=FIXTURE_TEST).assert_outcomes(passed=4)
    (suite, options), *other_calls = calls
    assert (suite.name, suite.invocation.allow_code, other_calls) == ("mine", True, [])
    assert [options[name].name for name in ("store", "output")] == ["s.sqlite", "out"]
    assert all(options[name].is_absolute() for name in ("store", "output"))


def test_the_fixture_alone_runs_the_suite(session, fake_run):
    calls = fake_run(*PASSING)
    session("-m", "not xferbench", tests=FIXTURE_TEST).assert_outcomes(passed=1, deselected=3)
    assert len(calls) == 1


def test_the_fixture_skips_without_a_suite(session, fake_run):
    calls = fake_run(*PASSING)
    result = session("-rs", suite="", tests=FIXTURE_TEST)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no suite is named; run pytest with --xferbench SUITE"])
    assert calls == []


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (UserError("data: gone", do="bring it back"), ["data: gone", "  do: bring it back"]),
        (RuntimeError("worker\nout of memory"), ["crashed: RuntimeError: out of memory", "xferbench run", "--debug"]),
        (SystemExit(3), ["crashed: SystemExit: 3"]),
    ],
)
def test_a_run_that_does_not_finish_is_an_error_of_every_test_and_shown_once(session, fake_run, error, texts):
    calls = fake_run(error=error)
    result = session(tests=f"{UNRELATED_TEST}\n{FIXTURE_TEST}")
    result.assert_outcomes(passed=1, errors=4)
    output = result.stdout.str().partition("short test summary")[0]
    assert all(text in output for text in texts)
    assert output.count("the run did not finish: ") == 3
    assert output.count(texts[-1]) == (1 if len(texts) > 1 else 4)
    assert len(calls) == 1
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("schema = 1", [], "name: missing"),
        ("[", [], "not a TOML file"),
        (SUITE.replace("batchnorm-drift", "batchnorm-dirft"), [], "did you mean 'batchnorm-drift'?"),
        (SUITE, ["--xferbench-baseline", "none.json"], "--xferbench-baseline none.json"),
        (SUITE, ["--xferbench-candidate", "none.json"], "--xferbench-candidate none.json"),
    ],
)
def test_errors_are_shown_before_collection(session, fake_run, pytester, text, options, message):
    calls = fake_run(*PASSING)
    pytester.path.joinpath("suites", "s.toml").write_text(text)
    result = session(*options, tests=UNRELATED_TEST)
    assert (result.ret, calls) == (pytest.ExitCode.USAGE_ERROR, [])
    assert message in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_a_missing_suite_is_an_error(session):
    result = session(suite="suites/none.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "neither a file nor a shipped suite" in result.stderr.str()


def test_an_option_without_a_suite_is_an_error(session):
    result = session("--xferbench-baseline", "accepted.json", suite="")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "add --xferbench SUITE" in result.stderr.str()


def make_outcome(decision, outcome_id="batchnorm-drift/harm", **fields):
    plugin = "" if outcome_id == "subject" else outcome_id.partition("/")[0]
    names = {"id": outcome_id, "plugin": plugin, "decision": decision, "reason": f"because {decision}"}
    return from_flat(Outcome, names | fields)


def test_the_comparison_with_a_baseline_determines_the_results(session, fake_run, pytester):
    for name in ("accepted.json", "results.json"):
        pytester.path.joinpath(name).touch()
    outcomes = (
        make_outcome("worse", "subject", before=0.833, now=0.802, change=0.031, low=0.012, high=0.05, margin=0.02),
        make_outcome("not worse", verdict="FAIL", accepted="FAIL"),
        make_outcome("cannot tell", "train-serve-skew/harm"),
        make_outcome("crashed", "train-serve-skew/batch-dependence"),
    )
    calls = fake_run(make_finding(verdict="FAIL"), *PASSING[1:], gate=Comparison(outcomes=outcomes))
    options = ["--xferbench-baseline", "accepted.json", "--xferbench-candidate", "results.json"]
    result = session(*options)
    result.assert_outcomes(failed=2, passed=1, skipped=1)
    message = "worse: +3.1 [[]+1.2, +5.0[]] points of accuracy (margin 2.0), 83.3 % → 80.2 %: because worse"
    result.stdout.fnmatch_lines_random([message, "crashed: because crashed"])
    assert {name: calls[0][1][name].name for name in ("baseline", "candidate")} == {
        "baseline": "accepted.json",
        "candidate": "results.json",
    }
    session(*options, "--xferbench-fail-on", "inconclusive").assert_outcomes(failed=3, passed=1)


def test_the_header_describes_the_suite(session, fake_run, pytester):
    fake_run(*PASSING)
    pytester.path.joinpath("accepted.json").touch()
    session("--xferbench-baseline", "accepted.json").stdout.fnmatch_lines(
        ["xferbench: suite mine, accuracy, margin 0.02, compared with accepted.json"]
    )
    session(suite="").stdout.no_fnmatch_line("xferbench: *")


def test_the_numbers_are_properties_of_the_junit_file(session, fake_run, pytester):
    fake_run(make_finding(verdict="FAIL", harm=0.05, low=0.03, high=0.07, seeds=5), *PASSING[1:])
    session("--junitxml", "j.xml")
    root = ET.parse(pytester.path / "j.xml").getroot()
    case = next(case for case in root.iter("testcase") if case.get("name") == "batchnorm-drift/harm")
    properties = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    assert properties | {"verdict": "FAIL", "harm": "0.05", "low": "0.03", "seeds": "5"} == properties
    assert "FAIL: +5.0 [+3.0, +7.0]" in case.find("failure").get("message")


WORKER = """
import os, time, xferbench.runner.run
from factory import make_run
from pathlib import Path

def run(suite, **_):
    start = time.monotonic()
    time.sleep(0.3)
    with Path({path!r}).open("a") as file:
        file.write(f"{{start}} {{time.monotonic()}}\\n")
    return make_run()

xferbench.runner.run.run = run
"""


def test_workers_of_xdist_run_one_after_another(session, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makeconftest(WORKER.format(path=str(pytester.path / "turns")))
    options = ["-n", "2", "--xferbench-store", "s.sqlite", "-p", "no:randomly"]
    result = session(
        *options, tests=f"{FIXTURE_TEST}\n{FIXTURE_TEST.replace('uses', 'too')}", run=pytester.runpytest_subprocess
    )
    result.assert_outcomes(passed=2, failed=3)
    turns = sorted(tuple(map(float, line.split())) for line in pytester.path.joinpath("turns").read_text().splitlines())
    assert len(turns) == 2
    assert turns[0][1] <= turns[1][0]


GROUPS = """
def pytest_collection_finish(session):
    print({item.name: [mark.args for mark in item.iter_markers("xdist_group")] for item in session.items})
"""


def test_tests_that_need_the_run_are_one_group_for_xdist(session, pytester):
    pytester.makeconftest(GROUPS)
    tests = f"{UNRELATED_TEST}\n{FIXTURE_TEST}"
    result = session("--collect-only", "-q", "-k", "other or uses or head-shock", suite="gate", tests=tests)
    output = result.stdout.str()
    assert all(f"'{name}': [('xferbench',)]" in output for name in ("head-shock/harm", "test_uses"))
    assert "'test_other': []" in output
    session("-p", "no:xdist", "--collect-only", suite="gate").assert_outcomes()


def imported_modules(code):
    command = [sys.executable, "-c", f"{code}; import sys; print(*sorted(sys.modules))"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


def test_the_plugin_imports_only_pytest_and_the_standard_library():
    before = imported_modules("import pytest")
    new_modules = {name.partition(".")[0] for name in imported_modules("import xferbench.pytest_plugin") - before}
    assert new_modules <= {"xferbench", *sys.stdlib_module_names}


def test_the_tests_of_a_suite_are_collected_without_torch(pytester):
    pytester.makefile(".toml", s=SUITE)
    options = [*PLUGIN, "--xferbench", "s.toml", "--collect-only", "-q", "-p", "no:randomly", "-p", "no:xdist"]
    assert not imported_modules(f"import pytest; assert pytest.main({options!r}) == 0") & {"torch", "torchvision", "timm"}


@pytest.mark.slow
def test_a_real_suite_from_pytest(session, pytester):
    pytest.importorskip("torch")
    suite = SUITE.replace('"batchnorm-drift", "train-serve-skew"', '"train-serve-skew"').replace(
        "[backbone]", "looks = [2]\n[backbone]"
    )
    sizes = "train_size = 40\ntest_size = 100\n[recipe]\nsteps = 4\n[scratch]\nlr = [1e-2]\nweight_decay = [0.01]\nsteps = 4\n"
    pytester.path.joinpath("suites", "s.toml").write_text(suite + sizes)
    options = ["--xferbench-store", "s.sqlite", "--xferbench-output", "out", "-rA"]
    tests = "def test_uses(xferbench_run): assert len(xferbench_run.to_frame())"
    result = session(*options, tests=tests, run=pytester.runpytest_subprocess)
    assert "suites/s.toml::train-serve-skew/batch-dependence" in result.stdout.str()
    assert result.parseoutcomes().get("errors", 0) == 0
    assert result.parseoutcomes()["passed"] >= 2
    assert pytester.path.joinpath("out", "report.html").is_file()
