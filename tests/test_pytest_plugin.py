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
from xferbench.runner import discovery, gate
from xferbench.runner import run as runner

discovery.load_plugins(["all"])  # before a session in this process imports them, and forgets them again
NAMED = any(entry.name == "xferbench" for entry in entry_points(group="pytest11"))
PLUGIN = [] if NAMED else ["-p", "xferbench.pytest_plugin"]
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
OWN = "def test_own(): pass"
USES = "def test_uses(xferbench_run): assert xferbench_run.suite['name'] == 'careless'"


def make(plugin="batchnorm-drift", verdict="PASS", contrast="harm", **more):
    return Finding(id=f"{plugin}/{contrast}", plugin=plugin, contrast=contrast, verdict=verdict, **more)


FINE = (make(), make("train-serve-skew"), make("train-serve-skew", contrast="batch-dependence"))


@pytest.fixture
def ran(monkeypatch):
    """Let a run be these findings, and count how often it is asked for."""
    calls = []

    def told(*findings, ended=None, **more):
        def carried_out(suite, **given):
            calls.append((suite, given))
            if ended is not None:
                raise ended
            return replace(RUN, findings=findings, **more)

        monkeypatch.setattr(runner, "run", carried_out)
        monkeypatch.setattr(gate, "run_gate", carried_out)
        return calls

    return told


@pytest.fixture
def session(pytester):
    """A folder with a suite and, if asked for, tests of its owner; what it is given is a session of pytest."""
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error")
    pytester.mkdir("suites").joinpath("s.toml").write_text(SUITE)

    def run(*words, tests="", suite="suites/s.toml", how=pytester.runpytest_inprocess):
        if tests:
            pytester.makepyfile(test_own=tests)
        given = ["--xferbench", suite] if suite else []
        return how(*PLUGIN, "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *given, *map(str, words))

    return run


def ids(result):
    return sorted(line for line in result.outlines if "::" in line)


def test_every_contrast_is_a_test_that_is_known_without_running_anything(session, ran):
    calls = ran(ended=AssertionError("run"))
    result = session("--collect-only", "-q", tests=OWN)
    assert ids(result) == sorted(["test_own.py::test_own", *(f"suites/s.toml::{name}" for name in NAMES)])
    assert (result.ret, calls) == (0, [])


def test_the_subject_is_a_test_where_there_is_something_to_hold_it_against(session, ran, pytester):
    ran(ended=AssertionError("run"))
    pytester.path.joinpath("accepted.json").touch()
    result = session("--collect-only", "-q", "--xferbench-baseline", "accepted.json")
    assert ids(result) == sorted(f"suites/s.toml::{name}" for name in ["subject", *NAMES])


def test_the_owners_tests_stay_as_they_are_and_a_marker_tells_them_apart(session, ran):
    ran(*FINE)
    session(tests=OWN).assert_outcomes(passed=4)
    session("-m", "xferbench").assert_outcomes(passed=3, deselected=1)
    session("-m", "not xferbench").assert_outcomes(passed=1, deselected=3)
    session(suite="").assert_outcomes(passed=1)


@pytest.mark.parametrize("words", [["."], ["suites"], ["suites/s.toml"], ["suites/s.toml", "test_own.py"]])
def test_a_suite_that_is_named_twice_is_asked_once(session, ran, words):
    ran(*FINE)
    session(*words, tests=OWN).assert_outcomes(passed=3 + ("." in words or "test_own.py" in words))


def test_one_test_is_chosen_by_its_name(session, ran):
    calls = ran(*FINE)
    session("suites/s.toml::batchnorm-drift/harm", tests=OWN).assert_outcomes(passed=1)
    session("-k", "batch-dependence", tests=OWN).assert_outcomes(passed=1, deselected=3)
    session("gate::head-shock/harm", "--collect-only", "-q", suite="gate").assert_outcomes()
    assert len(calls) == 2


def test_a_shipped_suite_is_named_by_its_name(session):
    result = session("--collect-only", "-q", suite="gate")
    assert "gate::head-shock/harm" in ids(result)
    assert ids(session("gate::head-shock/harm", "--collect-only", "-q", suite="gate")) == ["gate::head-shock/harm"]


@pytest.mark.parametrize(
    ("verdict", "outcomes", "strictly"),
    [
        ("PASS", {"passed": 3}, {"passed": 3}),
        ("FAIL", {"passed": 2, "failed": 1}, {"passed": 2, "failed": 1}),
        ("ERROR", {"passed": 2, "failed": 1}, {"passed": 2, "failed": 1}),
        ("INCONCLUSIVE", {"passed": 2, "skipped": 1}, {"passed": 2, "failed": 1}),
        ("SKIPPED", {"passed": 2, "skipped": 1}, {"passed": 2, "skipped": 1}),
    ],
)
def test_a_verdict_is_the_tests_result(session, ran, verdict, outcomes, strictly):
    ran(make(verdict=verdict, reason="so it is"), *FINE[1:])
    result = session("-ra")
    result.assert_outcomes(**outcomes)
    assert ("so it is" in result.stdout.str()) == (verdict != "PASS")
    session("--xferbench-fail-on", "inconclusive").assert_outcomes(**strictly)


def test_a_failure_is_told_in_a_few_lines_and_none_of_them_is_ours(session, ran):
    ran(*RUN.findings, *FINE[1:])
    told = session().stdout.str()
    assert "FAIL: +" in told
    assert "harm is above the margin of 2.0 points" in told
    assert "next: keep the BatchNorm layers of the pretrained backbone in eval mode" in told
    assert '    batchnorm = "eval"    # was train' in told
    assert not any(word in told for word in ("Traceback", "pytest_plugin.py", "raise "))


def test_what_is_skipped_is_told_with_the_suite(session, ran):
    ran(make(verdict="SKIPPED", reason="no BatchNorm"), *FINE[1:])
    session("-rs").stdout.fnmatch_lines(["SKIPPED [[]1[]] *suites*s.toml:1: *batchnorm-drift/harm: SKIPPED: no BatchNorm"])


def test_the_suite_is_carried_out_once_and_a_fixture_has_the_run(session, ran):
    calls = ran(*FINE)
    words = ["--xferbench-store", "s.sqlite", "--xferbench-output", "out", "--xferbench-allow-code"]
    session(*words, tests=USES).assert_outcomes(passed=4)
    (suite, given), *more = calls
    assert (suite.name, suite.allow_code, more) == ("mine", True, [])
    assert [given[name].name for name in ("store", "output")] == ["s.sqlite", "out"]
    assert all(given[name].is_absolute() for name in ("store", "output"))


def test_the_fixture_alone_carries_the_suite_out_too(session, ran):
    calls = ran(*FINE)
    session("-m", "not xferbench", tests=USES).assert_outcomes(passed=1, deselected=3)
    assert len(calls) == 1


def test_without_a_suite_the_fixture_skips_and_says_why(session, ran):
    calls = ran(*FINE)
    result = session("-rs", suite="", tests=USES)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no suite is named; run pytest with --xferbench SUITE"])
    assert calls == []


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (UserError("data: gone", do="bring it back"), ["data: gone", "  do: bring it back"]),
        (RuntimeError("worker\nout of memory"), ["crashed: RuntimeError: out of memory", "xferbench run", "--debug"]),
        (SystemExit(3), ["crashed: SystemExit: 3"]),
    ],
)
def test_a_run_that_does_not_end_is_an_error_of_every_test_and_told_once(session, ran, ended, words):
    calls = ran(ended=ended)
    result = session(tests=f"{OWN}\n{USES}")
    result.assert_outcomes(passed=1, errors=4)
    told = result.stdout.str().partition("short test summary")[0]
    assert all(word in told for word in words)
    assert told.count("the run did not finish: ") == 3
    assert told.count(words[-1]) == (1 if len(words) > 1 else 4)
    assert len(calls) == 1
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("schema = 1", [], "name: missing"),
        ("[", [], "not a TOML file"),
        (SUITE.replace("batchnorm-drift", "batchnorm-dirft"), [], "did you mean 'batchnorm-drift'?"),
        (SUITE, ["--xferbench-baseline", "none.json"], "--xferbench-baseline none.json"),
        (SUITE, ["--xferbench-candidate", "none.json"], "--xferbench-candidate none.json"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_collected(session, ran, pytester, text, words, said):
    calls = ran(*FINE)
    pytester.path.joinpath("suites", "s.toml").write_text(text)
    result = session(*words, tests=OWN)
    assert (result.ret, calls) == (pytest.ExitCode.USAGE_ERROR, [])
    assert said in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_a_suite_that_is_none_is_named(session):
    result = session(suite="suites/none.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "neither a file nor a shipped suite" in result.stderr.str()


def test_an_option_without_a_suite_is_refused(session):
    result = session("--xferbench-baseline", "accepted.json", suite="")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "add --xferbench SUITE" in result.stderr.str()


def outcome(decision, id_="batchnorm-drift/harm", **more):
    plugin = "" if id_ == "subject" else id_.partition("/")[0]
    return Outcome(id=id_, plugin=plugin, decision=decision, reason=f"so {decision}", **more)


def test_with_an_accepted_run_the_comparison_decides(session, ran, pytester):
    for name in ("accepted.json", "results.json"):
        pytester.path.joinpath(name).touch()
    outcomes = (
        outcome("worse", "subject", before=0.833, now=0.802, change=0.031, low=0.012, high=0.05, margin=0.02),
        outcome("not worse", verdict="FAIL", accepted="FAIL"),
        outcome("cannot tell", "train-serve-skew/harm"),
        outcome("crashed", "train-serve-skew/batch-dependence"),
    )
    calls = ran(make(verdict="FAIL"), *FINE[1:], gate=Comparison(outcomes=outcomes))
    words = ["--xferbench-baseline", "accepted.json", "--xferbench-candidate", "results.json"]
    result = session(*words)
    result.assert_outcomes(failed=2, passed=1, skipped=1)
    said = "worse: +3.1 [[]+1.2, +5.0[]] points of accuracy (margin 2.0), 83.3 % → 80.2 %: so worse"
    result.stdout.fnmatch_lines_random([said, "crashed: so crashed"])
    assert {name: calls[0][1][name].name for name in ("baseline", "candidate")} == {
        "baseline": "accepted.json",
        "candidate": "results.json",
    }
    session(*words, "--xferbench-fail-on", "inconclusive").assert_outcomes(failed=3, passed=1)


def test_the_header_says_what_is_asked(session, ran, pytester):
    ran(*FINE)
    pytester.path.joinpath("accepted.json").touch()
    session("--xferbench-baseline", "accepted.json").stdout.fnmatch_lines(
        ["xferbench: suite mine, accuracy, margin 0.02, compared with accepted.json"]
    )
    session(suite="").stdout.no_fnmatch_line("xferbench: *")


def test_the_numbers_go_into_pytests_own_junit_file(session, ran, pytester):
    ran(make(verdict="FAIL", harm=0.05, low=0.03, high=0.07, seeds=5), *FINE[1:])
    session("--junitxml", "j.xml")
    root = ET.parse(pytester.path / "j.xml").getroot()
    case = next(case for case in root.iter("testcase") if case.get("name") == "batchnorm-drift/harm")
    told = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert told | {"verdict": "FAIL", "harm": "0.05", "low": "0.03", "seeds": "5"} == told
    assert "FAIL: +5.0 [+3.0, +7.0]" in case.find("failure").get("message")


WORKER = """
import os, time, xferbench.runner.run
from factory import make_run
from pathlib import Path

def run(suite, **_):
    begun = time.monotonic()
    time.sleep(0.3)
    with Path({place!r}).open("a") as file:
        file.write(f"{{begun}} {{time.monotonic()}}\\n")
    return make_run()

xferbench.runner.run.run = run
"""


def test_workers_of_xdist_never_compute_at_once(session, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makeconftest(WORKER.format(place=str(pytester.path / "turns")))
    words = ["-n", "2", "--xferbench-store", "s.sqlite", "-p", "no:randomly"]
    result = session(*words, tests=f"{USES}\n{USES.replace('uses', 'too')}", how=pytester.runpytest_subprocess)
    result.assert_outcomes(passed=2, failed=3)
    turns = sorted(tuple(map(float, line.split())) for line in pytester.path.joinpath("turns").read_text().splitlines())
    assert len(turns) == 2
    assert turns[0][1] <= turns[1][0]


GROUPS = """
def pytest_collection_finish(session):
    print({item.name: [mark.args for mark in item.iter_markers("xdist_group")] for item in session.items})
"""


def test_what_needs_the_run_is_a_group_for_xdist(session, pytester):
    pytester.makeconftest(GROUPS)
    told = session("--collect-only", "-q", "-k", "own or uses or head-shock", suite="gate", tests=f"{OWN}\n{USES}").stdout.str()
    assert all(f"'{name}': [('xferbench',)]" in told for name in ("head-shock/harm", "test_uses"))
    assert "'test_own': []" in told
    session("-p", "no:xdist", "--collect-only", suite="gate").assert_outcomes()


def imported(code):
    words = [sys.executable, "-c", f"{code}; import sys; print(*sorted(sys.modules))"]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


def test_what_every_session_of_pytest_imports_is_light():
    before = imported("import pytest")
    more = {name.partition(".")[0] for name in imported("import xferbench.pytest_plugin") - before}
    assert more <= {"xferbench", *sys.stdlib_module_names}


def test_the_tests_of_a_suite_are_known_without_torch(pytester):
    pytester.makefile(".toml", s=SUITE)
    words = [*PLUGIN, "--xferbench", "s.toml", "--collect-only", "-q", "-p", "no:randomly", "-p", "no:xdist"]
    assert not imported(f"import pytest; assert pytest.main({words!r}) == 0") & {"torch", "torchvision", "timm"}


@pytest.mark.slow
def test_a_real_suite_from_pytest(session, pytester):
    pytest.importorskip("torch")
    small = SUITE.replace('"batchnorm-drift", "train-serve-skew"', '"train-serve-skew"').replace(
        "[backbone]", "looks = [2]\n[backbone]"
    )
    more = "train_size = 40\ntest_size = 100\n[recipe]\nsteps = 4\n[scratch]\nlr = [1e-2]\nweight_decay = [0.01]\nsteps = 4\n"
    pytester.path.joinpath("suites", "s.toml").write_text(small + more)
    words = ["--xferbench-store", "s.sqlite", "--xferbench-output", "out", "-rA"]
    tests = "def test_uses(xferbench_run): assert len(xferbench_run.to_frame())"
    result = session(*words, tests=tests, how=pytester.runpytest_subprocess)
    assert "suites/s.toml::train-serve-skew/batch-dependence" in result.stdout.str()
    assert result.parseoutcomes().get("errors", 0) == 0
    assert result.parseoutcomes()["passed"] >= 2
    assert pytester.path.joinpath("out", "report.html").is_file()
