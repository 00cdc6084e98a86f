from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from factory import make_record, make_run

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.core import progress
from xferbench.core.errors import UserError
from xferbench.core.run import Finding, run_to_json
from xferbench.report import files, html
from xferbench.runner import discovery, execute
from xferbench.runner import run as runner
from xferbench.runner.store import open_store, put_record

SURFACE = """
run       suite; -o --output; --store; --device auto|cuda|mps|cpu; -j --workers; --seed; --budget; --set;
          --allow-code; --plan; --dry-run; --shard; --fail-on fail|inconclusive; --format text|json
audit     suite; --arch; --after; --before; --data; --source; --shifted; --manifest; --believed;
          --mean; --std; --interpolation bilinear|bicubic|nearest; --crop-pct; --img-size; --channels rgb|bgr|grey;
          --serve-mean; --serve-std; --serve-interpolation bilinear|bicubic|nearest; --serve-crop-pct; --serve-img-size;
          --serve-channels rgb|bgr|grey; --serve-mode eval|train; --metric; --margin; --max-duplicates; --checks; --limit;
          --scratch; -o --output; --store; --device auto|cuda|mps|cpu; -j --workers; --allow-code;
          --freeze; --plan; --repair; --force; --fail-on fail|inconclusive; --format text|json
gate      suite; --baseline; --candidate; --accept; -o --output; --store; --device auto|cuda|mps|cpu; -j --workers; --seed;
          --budget; --set; --allow-code; --fail-on fail|inconclusive; --format text|json
compare   first; second; -o --output
ls        --format text|json; -v --verbose
explain   plugin
validate  suites; --store; --set; --allow-code; --no-files; --freeze; --force
report    directory; -o --output; --format text|latex|checklist
init      folder; --weights; --arch; -o --output; --force
manifest  data; -o --output; --force
merge     stores; -o --output
doctor    --store; --format text|json
"""

SUITE = """
schema = 1
name = "noise"
plugins = {plugins}
margin = 0.3
looks = {looks}
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
{backbone}
[target]
data = "npz:{data}"
test_size = 40
[recipe]
strategy = "linear-probe"
steps = 4
batch_size = 8
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


@pytest.fixture(autouse=True)
def _at_home(monkeypatch, tmp_path):
    """No runner of actions, and a cache and a current folder of the test's own."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def make_suite(folder, *, plugins='["negative-transfer"]', looks="[2]", backbone=""):
    """A suite on images of noise that a worker carries out in a second or two."""
    rng = np.random.default_rng(0)
    splits = {"train": 24, "test": 40}
    images = {f"{name}_images": rng.integers(256, size=(count, 16, 16, 3), dtype=np.uint8) for name, count in splits.items()}
    np.savez(folder / "noise.npz", **images, **{f"{name}_labels": np.arange(count) % 2 for name, count in splits.items()})
    file = folder / "noise.toml"
    file.write_text(SUITE.format(data=folder / "noise.npz", plugins=plugins, looks=looks, backbone=backbone))
    return file


def command(*words, **more):
    """The command line in a process of its own."""
    started = [sys.executable, "-m", "xferbench", *map(str, words)]
    return subprocess.run(started, capture_output=True, text=True, check=False, timeout=120, **more)


def told(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    code = main.main(list(map(str, words)))
    return code, *capsys.readouterr()


# The surface


def test_the_surface_of_the_command_line_is_frozen():
    (commands,) = (action for action in main.build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    found = {}
    for name, one in commands.choices.items():
        actions = [action for action in one._actions if not {"--help", "--debug"} & set(action.option_strings)]
        found[name] = [
            " ".join([*(action.option_strings or [action.dest]), *(["|".join(action.choices)] if action.choices else [])])
            for action in actions
        ]
        assert {"--help", "--debug"} <= set(one._option_string_actions), name
    lines = SURFACE.replace("\n          ", " ").strip().splitlines()
    assert found == {line.split()[0]: line.partition(" ")[2].strip().split("; ") for line in lines}


def test_the_defaults_of_run_are_frozen():
    asked = vars(main.build_parser().parse_args(["run", "quick"]))
    del asked["command"], asked["parser"]
    assert asked == {
        "debug": False,
        "suite": "quick",
        "output": None,
        "store": None,
        "device": "auto",
        "workers": None,
        "seed": None,
        "budget": None,
        "set": [],
        "allow_code": False,
        "plan": None,
        "dry_run": False,
        "shard": None,
        "fail_on": "fail",
        "format": "text",
    }


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "required: COMMAND"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run"], "required: suite"),
        (["run", "quick", "--workers", "0"], "found '0', expected a whole number above 0"),
        (["run", "quick", "-j", "two"], "found 'two', expected a whole number above 0"),
        (["run", "quick", "--seed", "-1"], "expected a whole number, 0 or above"),
        (["run", "quick", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["validate"], "required: suite"),
        (["merge", "one.sqlite"], "required: -o/--output"),
        (["merge", "-o", "all.sqlite"], "required: STORE"),
        (["run", "quick", "--work", "2"], "unrecognized arguments: --work"),
        (["ls", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_wrong_usage_ends_with_2(capsys, words, fragment):
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    assert ended.value.code == exit_code.USAGE
    assert fragment in capsys.readouterr().err


def test_help_and_version_end_with_0(capsys):
    for words in (
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in ("run", "ls", "explain", "validate", "report", "init", "merge", "doctor")),
    ):
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        assert ended.value.code == 0
    assert "xferbench 0." in capsys.readouterr().out


TORCHLESS = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing either raises
from xferbench.cli.main import main
for words in {commands!r}:
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    print("CODE", code)
"""


def test_reading_and_listing_need_no_torch_and_running_says_so_in_a_line(tmp_path):
    files.write_run(make_run(seeds=2, examples=20), tmp_path / "done")
    suite = str(make_suite(tmp_path))
    commands = [
        ["--help"],
        ["ls"],
        ["ls", "--format", "json"],
        ["explain", "batchnorm-drift"],
        ["validate", "quick"],
        ["validate", suite],
        ["report", str(tmp_path / "done")],
        ["run", suite, "-o", str(tmp_path / "out")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", TORCHLESS.format(commands=commands)], capture_output=True, text=True, check=False, timeout=120
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["CODE 0"] * 7 + ["CODE 2"], done.stderr
    assert "running experiments needs PyTorch" in done.stderr
    assert "pip install 'xferbench[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


# What ends a command


@pytest.fixture
def ending(monkeypatch, capsys, tmp_path):
    """`run` ended by an exception: exit code, standard output, standard error."""

    def end(error, *more):
        def run(*_, **__):
            raise error

        monkeypatch.setattr(runner, "run", run)
        return told(capsys, "run", "quick", "-o", tmp_path / "out", *more)

    return end


ENDS = [
    (
        UserError("ants.toml: margin", found="0", expected="more", do="raise it"),
        2,
        "xferbench: ants.toml: margin\n  found: 0\n",
    ),
    (KeyboardInterrupt(), 130, "xferbench: interrupted; finished results are kept"),
    (RuntimeError("boom"), 3, "xferbench: crashed: RuntimeError: boom\n  do: run it again with --debug"),
    (AssertionError(), 3, "xferbench: crashed: AssertionError: \n"),
    (SystemExit(0), 3, "xferbench: crashed: SystemExit: 0"),
    (
        RuntimeError("Traceback (most recent call last):\n  File x\nValueError: far away"),
        3,
        "RuntimeError: ValueError: far away\n",
    ),
    (
        OSError(errno.ENOSPC, "No space left on device", "/x/y"),
        2,
        "found: [Errno 28] No space left on device: '/x/y'\n  do: free",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "Permission denied: '/x/y'"),
]


@pytest.mark.parametrize(("error", "code", "message"), ENDS, ids=lambda one: type(one).__name__)
def test_each_end_has_its_code_and_one_message(ending, error, code, message):
    found, out, err = ending(error)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert err.count("xferbench: ") == 1


@pytest.mark.parametrize(("error", "code", "message"), ENDS, ids=lambda one: type(one).__name__)
def test_debug_shows_the_traceback_and_keeps_the_code(ending, error, code, message):
    found, out, err = ending(error, "--debug")
    assert (found, out) == (code, "")
    assert message in err
    assert err.startswith("Traceback")


@pytest.mark.parametrize(
    ("verdicts", "fail_on", "code"),
    [
        (["PASS"], "fail", 0),
        (["PASS", "FAIL"], "fail", 1),
        (["PASS", "FAIL", "ERROR"], "fail", 3),
        (["PASS", "INCONCLUSIVE"], "fail", 0),
        (["PASS", "INCONCLUSIVE"], "inconclusive", 4),
        (["SKIPPED", "INFO"], "fail", 5),
    ],
)
def test_verdicts_become_the_exit_code(monkeypatch, capsys, tmp_path, verdicts, fail_on, code):
    findings = tuple(Finding(id=f"p/{at}", plugin="p", contrast="harm", verdict=one) for at, one in enumerate(verdicts))
    monkeypatch.setattr(runner, "run", lambda *_, **__: make_run(seeds=2, examples=20, findings=findings))
    assert told(capsys, "run", "quick", "-o", tmp_path, "--fail-on", fail_on)[0] == code


def test_json_is_all_that_goes_to_standard_output(monkeypatch, capsys, tmp_path):
    run = make_run(seeds=2, examples=20)

    def written(*_, output, on_progress, **__):
        on_progress(progress.Progress(stage="reading", done=0, running=1, total=1, reused=0, left=None))
        files.write_run(run, output)
        return run

    monkeypatch.setattr(runner, "run", written)
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")
    code, out, err = told(capsys, "run", "quick", "-o", tmp_path / "out", "--format", "json")
    assert code == exit_code.FAILED
    assert json.loads(out) == run_to_json(run)
    assert str(tmp_path / "out" / "report.html") in err


def test_a_full_standard_output_is_told():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "xferbench", "ls"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == exit_code.USAGE
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def gone(*words):
    """A command whose reader has left before it says anything."""
    ours, theirs = os.pipe()
    os.close(ours)
    started = [sys.executable, "-m", "xferbench", *map(str, words)]
    try:
        return subprocess.run(started, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    finally:
        os.close(theirs)


def test_a_reader_that_has_gone_is_no_error():
    done = gone("ls")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_lacks_letters_is_no_error():
    done = command("explain", "batchnorm-drift", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03bc" in done.stdout


# ls, explain, validate, report


def test_ls_lists_what_there_is(capsys):
    code, out, err = told(capsys, "ls")
    assert (code, err) == (0, "")
    for word in ("batchnorm-drift", "quick", "torchvision:NAME", "tiny-resnet", "folder:DIR", "npz:FILE", "digits", "lp-ft"):
        assert word in out
    code, out, err = told(capsys, "ls", "--format", "json")
    assert set(json.loads(out)) == {"plugins", "checks", "suites", "backbones", "datasets", "interventions", "strategies"}
    assert err == ""


@pytest.mark.parametrize("plugin", discovery.plugin_names())
def test_explain_prints_the_plugins_page(capsys, plugin):
    code, out, _ = told(capsys, "explain", plugin)
    assert code == 0
    assert out.removeprefix("audit/").startswith(f"{plugin} (version ")
    assert "References" in out


def test_explain_of_an_unknown_plugin_names_the_nearest_and_lists_the_others(capsys):
    code, out, err = told(capsys, "explain", "batchnrom")
    assert (code, out) == (exit_code.USAGE, "")
    assert "no plugin 'batchnrom'" in err
    assert "did you mean 'batchnorm-drift'? known: batchnorm-drift, " in err


def test_a_plugin_that_cannot_be_imported_is_listed_and_explained_as_that(monkeypatch, capsys):
    broken = EntryPoint(name="broken", value="nowhere_to_be_found:plugin", group=discovery.PLUGIN_GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [broken])
    for words in (["ls"], ["explain", "broken"]):
        code, out, _ = told(capsys, *words)
        assert code == 0
        assert "cannot be imported: ModuleNotFoundError" in out


def test_a_good_suite_is_valid_and_the_margin_that_it_can_decide_is_said(capsys, tmp_path):
    code, out, err = told(capsys, "validate", make_suite(tmp_path))
    assert (code, err) == (0, "")
    assert "noise.toml: a valid suite" in out
    assert "smallest margin that this test set can decide with 2 seeds: about 0." in out
    assert "(the suite's: 0.3)" in out


def test_where_the_size_of_the_test_set_is_not_known_that_is_said(capsys, tmp_path):
    file = make_suite(tmp_path)
    file.write_text(file.read_text().replace("test_size = 40\n", ""))
    code, out, _ = told(capsys, "validate", file)
    assert code == 0
    assert "the size of the test set is not known yet" in out


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("margin = 0.3", "marge = 0.3", ["noise.toml: marge: unknown key", "did you mean 'margin'?"]),
        ('["negative-transfer"]', '["negativ-transfer"]', ["unknown plugin 'negativ-transfer'", "'negative-transfer'"]),
        ("npz:", "nzp:", ["noise.toml: [target] data: unknown kind of dataset", "did you mean 'npz'?"]),
        ("noise.npz", "noize.npz", ["noise.toml: [target] data: no such file", "check the path"]),
        ('"tiny-resnet"', '"tiny-resnet"\nweights = "w.pth"', ["noise.toml: [backbone] weights", "w.pth: no such file"]),
        ('"tiny-resnet"', '"torchvision:resnet18"', ["noise.toml: [backbone] weights: missing", "add weights"]),
        ("steps = 4", 'steps = "4"', ["noise.toml: [recipe] steps", 'found: "4"', "a whole number above 0"]),
    ],
)
def test_a_broken_suite_is_told_and_ends_with_2(capsys, tmp_path, old, new, fragments):
    file = make_suite(tmp_path)
    file.write_text(file.read_text().replace(old, new, 1))
    for words in (["validate", file], ["run", file, "-o", tmp_path / "out"], ["run", file, "--dry-run"]):
        code, out, err = told(capsys, *words)
        assert (code, out) == (exit_code.USAGE, "")
        assert all(fragment in err for fragment in fragments), err


@pytest.mark.parametrize("words", [["validate", "quik"], ["run", "quik"]])
def test_a_misspelt_suite_names_the_nearest(capsys, words):
    code, _, err = told(capsys, *words)
    assert code == exit_code.USAGE
    assert "did you mean 'quick'?" in err


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--budget", "20"], "--budget\n  found: 20\n  expected: a duration"),
        (["--seed", "999999"], "--seed\n  found: 999999, with 5"),
    ],
)
def test_what_stands_in_the_suites_place_is_checked_too(capsys, words, fragment):
    code, _, err = told(capsys, "run", "quick", *words)
    assert code == exit_code.USAGE
    assert fragment in err


def test_of_several_suites_each_is_checked_and_every_problem_told(capsys, tmp_path):
    good = make_suite(tmp_path)
    bad, worse = tmp_path / "bad.toml", tmp_path / "worse.toml"
    bad.write_text(good.read_text().replace("margin", "marge"))
    worse.write_text("schema = ")
    alone = told(capsys, "validate", good)
    code, out, err = told(capsys, "validate", bad, worse, good, tmp_path / "none.toml")
    assert (code, out) == (exit_code.USAGE, alone[1])
    lines = [line for line in err.splitlines() if line.startswith("xferbench: ")]
    assert lines[:2] == [f"xferbench: {bad}: marge: unknown key", f"xferbench: {worse}: not a TOML file"]
    assert lines[2].startswith("xferbench: no suite ")  # whose name may be too long to be told whole
    assert len(lines) == 3
    code, out, err = told(capsys, "validate", good, good)
    assert (code, out, err) == (exit_code.PASSED, 2 * alone[1], "")


def test_one_plan_is_not_frozen_of_several_suites(capsys, tmp_path):
    good = make_suite(tmp_path)
    code, out, err = told(capsys, "validate", good, good, "--freeze", "plan.json")
    assert (code, out) == (exit_code.USAGE, "")
    assert "--freeze: a plan belongs to one suite\n  found: 2 suites" in err
    assert not Path("plan.json").exists()


def test_a_merge_says_what_each_store_brought_and_that_answers_differ(capsys, tmp_path):
    for name, accuracy in {"one.sqlite": 0.8, "two.sqlite": 0.7}.items():
        with open_store(tmp_path / name) as db:
            put_record(db, make_record("shared", accuracy))
            put_record(db, make_record(f"of {name}", 0.8))
    code, out, err = told(capsys, "merge", "one.sqlite", "two.sqlite", "-o", "all of it.sqlite")
    assert (code, err) == (exit_code.PASSED, "")
    assert out.splitlines() == [
        "one.sqlite: 2 records added, 0 existed already",
        "two.sqlite: 1 records added, 1 existed already, 1 of them with other predictions or scalars (the first stays)",
        "next: xferbench run SUITE --store 'all of it.sqlite'",
    ]


@pytest.mark.parametrize(
    ("sources", "fragment"),
    [
        (["one.sqlite", "none.sqlite"], "none.sqlite: no such store"),
        (["one.sqlite", "noise.toml"], "noise.toml: the store cannot be read"),
        (["one.sqlite", "all.sqlite"], "all.sqlite: no such store"),
    ],
)
def test_a_merge_that_cannot_be_is_one_message(capsys, tmp_path, sources, fragment):
    make_suite(tmp_path)
    with open_store(tmp_path / "one.sqlite") as db:
        put_record(db, make_record("k", 0.8))
    code, out, err = told(capsys, "merge", "-o", "all.sqlite", *sources)
    assert (code, out, "Traceback" in err) == (exit_code.USAGE, "", False)
    assert f"xferbench: {fragment}" in err
    assert not Path("all.sqlite").exists()


def test_report_writes_the_same_again_or_elsewhere(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")  # what is drawn is tested elsewhere
    run = make_run(seeds=2, examples=20)
    files.write_run(run, tmp_path / "done")
    before = (tmp_path / "done" / "results.json").read_bytes()
    (tmp_path / "done" / "report.html").unlink()
    code, out, _ = told(capsys, "report", tmp_path / "done")
    assert code == 0
    assert "batchnorm-drift" in out
    assert (tmp_path / "done" / "report.html").is_file()
    assert (tmp_path / "done" / "results.json").read_bytes() == before
    assert told(capsys, "report", tmp_path / "done", "-o", tmp_path / "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere" / "results.json").read_bytes() == before


@pytest.mark.parametrize("name", ["results.json", "report.html", "records.csv"])
def test_report_takes_any_file_of_a_run(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")
    files.write_run(make_run(seeds=2, examples=20), tmp_path / "done")
    assert told(capsys, "report", tmp_path / "done" / name)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"done"}


@pytest.mark.parametrize(
    ("form", "name", "start"),
    [("latex", "findings.tex", "% needs"), ("checklist", "checklist.md", "# Reproducibility checklist: careless")],
)
def test_report_prints_another_format_or_writes_it_where_it_is_told_to(capsys, tmp_path, form, name, start):
    files.write_run(make_run(seeds=2, examples=20), tmp_path / "done")
    before = {path.name: path.read_bytes() for path in (tmp_path / "done").iterdir()}
    code, out, err = told(capsys, "report", tmp_path / "done", "--format", form)
    assert (code, err, out.startswith(start)) == (0, "", True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "done").iterdir()} == before
    code, said, _ = told(capsys, "report", tmp_path / "done", "--format", form, "-o", tmp_path / "paper")
    assert (code, said) == (0, f"wrote {tmp_path / 'paper' / name}\n")
    assert (tmp_path / "paper" / name).read_text() == out


def test_report_of_a_file_of_no_run_is_told(capsys, tmp_path):
    code, out, err = told(capsys, "report", make_suite(tmp_path))
    assert (code, out) == (exit_code.USAGE, "")
    assert "noise.toml does not belong to a finished run\n  found: no results.json next to it" in err


def test_report_of_nothing_is_told(capsys, tmp_path):
    code, out, err = told(capsys, "report", tmp_path)
    assert (code, out) == (exit_code.USAGE, "")
    assert "results.json is missing" in err


# Places that cannot be written to


@pytest.mark.parametrize(
    ("option", "fragments"),
    [
        ("-o", ["cannot be written", "Not a directory", "--output"]),
        ("--store", ["the store cannot be opened", "--store"]),
    ],
)
def test_a_place_below_a_file_cannot_be_written(capsys, tmp_path, option, fragments):
    suite = make_suite(tmp_path)
    words = {"-o": tmp_path / "out", "--store": tmp_path / "store.sqlite"} | {option: tmp_path / "noise.npz" / "below"}
    code, out, err = told(capsys, "run", suite, *(str(word) for pair in words.items() for word in pair))
    assert (code, out) == (exit_code.USAGE, "")
    assert all(fragment in err for fragment in fragments), err


def test_a_store_that_is_none_is_told_and_stays_as_it_is(capsys, tmp_path):
    suite = make_suite(tmp_path)
    before = suite.read_bytes()
    code, _, err = told(capsys, "run", suite, "-o", tmp_path / "out", "--store", suite)
    assert code == exit_code.USAGE
    assert "the store cannot be used\n  found: file is not a database" in err
    assert suite.read_bytes() == before


# Runs


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run in a process of its own: its folder, and the process."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("done")
    return folder, command("run", make_suite(folder), "-o", folder / "out", "--store", folder / "store.sqlite", "-j", 1)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_is_told_written_and_kept(done):
    folder, process = done
    assert process.returncode in {0, 1}, process.stderr
    assert "Traceback" not in process.stderr
    assert "negative-transfer" in process.stdout
    assert results(folder / "out")["cost"]["trials"]["run"] > 0


def again(folder, *words):
    return ["run", folder / "noise.toml", "--store", folder / "store.sqlite", "-j", 1, *words]


def test_a_second_run_computes_nothing_and_says_the_same(done, capsys, tmp_path):
    folder, process = done
    code, out, _ = told(capsys, *again(folder, "-o", tmp_path / "out", "--format", "json"))
    first, second = results(folder / "out"), json.loads(out)
    assert code == process.returncode
    assert second["findings"] == first["findings"]
    assert second["cost"]["trials"]["run"] == second["cost"]["fits"]["run"] == 0
    assert second == results(tmp_path / "out")


def test_a_dry_run_knows_that_nothing_is_left_to_do(done, capsys):
    folder, _ = done
    code, out, _ = told(capsys, *again(folder, "--dry-run", "--format", "json"))
    counted = json.loads(out)["last"]
    assert code == 0
    assert counted["trials in the store"] == counted["trials unique"]
    code, out, _ = told(capsys, *again(folder, "--dry-run"))
    assert code == 0
    assert "smallest margin" in out


def test_the_exit_code_holds_where_the_reader_has_gone(done, tmp_path):
    folder, process = done
    ended = gone(*again(folder, "-o", tmp_path / "out", "--format", "json"))
    assert ended.returncode == process.returncode
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


CURELESS = """
from dataclasses import replace
from xferbench.plugins.negative_transfer import plugin as one
plugin = replace(one, id="broken", cure=lambda *_: 1 / 0)
"""
BROKEN = [("cannot be imported", "1 / 0"), ("ZeroDivisionError", CURELESS)]


@pytest.mark.parametrize(("why", "source"), BROKEN)
def test_a_broken_plugin_is_an_error_finding_and_the_others_go_on(done, capsys, monkeypatch, tmp_path, why, source):
    folder, _ = done
    (tmp_path / "of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_a_test", raising=False)
    entries = [one for one in discovery.entry_points(group=discovery.PLUGIN_GROUP) if one.name == "negative-transfer"]
    broken = EntryPoint(name="broken", value="of_a_test:plugin", group=discovery.PLUGIN_GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [*entries, broken])
    suite = make_suite(tmp_path, plugins='["broken", "negative-transfer"]')
    words = ["run", suite, "--store", folder / "store.sqlite", "-j", 1]
    code, out, err = told(capsys, *words, "-o", tmp_path / "out", "--format", "json")
    verdicts = {finding["plugin"]: finding for finding in json.loads(out)["findings"]}
    assert code == exit_code.CRASHED
    assert "Traceback" not in err
    assert verdicts["broken"]["verdict"] == "ERROR"
    assert why in verdicts["broken"]["reason"]
    assert verdicts["negative-transfer"]["verdict"] in {"PASS", "FAIL", "INCONCLUSIVE"}
    code, out, _ = told(capsys, *words, "--dry-run")
    assert code == 0
    assert "broken: skipped, it crashes: " in out


def test_a_report_that_cannot_be_written_loses_nothing_from_the_store(done, capsys, monkeypatch, tmp_path):
    folder, process = done

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    code, _, err = told(capsys, *again(folder, "-o", tmp_path / "out"))
    assert code == exit_code.USAGE
    assert "cannot be written\n  found: No space left on device" in err
    monkeypatch.undo()
    assert told(capsys, *again(folder, "-o", tmp_path / "out"))[0] == process.returncode


class Evil:
    """A pickle that would make a folder when it is opened."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"conv1.weight": Evil(tmp_path / "it ran")}, tmp_path / "evil.pth")
    suite = make_suite(tmp_path, backbone='weights = "evil.pth"')
    process = command("run", suite, "-o", tmp_path / "out", "-j", 1)
    assert process.returncode == exit_code.USAGE, process.stderr
    assert "noise.toml: " in process.stderr
    assert "evil.pth: refused, since opening it in full would run code" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("error", "code", "fragments"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/cache/images.npy"), 2, ["/cache/images.npy", "free some space"]),
        (UserError("the backbone has no head", do="name it"), 2, ["noise.toml: the backbone has no head\n  do: name it"]),
        (RuntimeError("Traceback:\n  line\nKeyError: 'fc'"), 3, ["crashed: RuntimeError: KeyError: 'fc'"]),
    ],
)
def test_what_a_worker_meets_while_it_looks_is_told(monkeypatch, capsys, tmp_path, error, code, fragments):
    pytest.importorskip("torch")

    @contextmanager
    def workers(_):
        broken = Future()
        broken.set_exception(error)
        yield lambda *_: broken

    monkeypatch.setattr(execute.local, "start_workers", workers)
    words = ["run", make_suite(tmp_path), "-o", tmp_path / "out", "--store", tmp_path / "store.sqlite", "--device", "cpu"]
    found, out, err = told(capsys, *words)
    assert (found, out) == (code, "")
    assert all(fragment in err for fragment in fragments), err
    assert "Traceback" not in err


def heard():
    """A process started in the background by a shell ignores the keyboard; this one is to hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as they are on POSIX")
def test_an_interrupted_run_keeps_what_was_finished_and_leaves_no_worker(tmp_path):
    pytest.importorskip("torch")
    suite, store = make_suite(tmp_path, looks="[2, 2000]"), tmp_path / "store.sqlite"
    started = [sys.executable, "-m", "xferbench", "run", suite, "-o", tmp_path / "out", "--store", store, "-j", "1"]
    process = subprocess.Popen(list(map(str, started)), stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    until = time.monotonic() + 100
    while (kept := count(store)) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if sys.platform == "linux" else []
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert kept >= 3, err
    assert process.returncode == exit_code.INTERRUPTED
    assert "interrupted; finished results are kept" in err
    assert "Traceback" not in err
    assert count(store) >= kept
    assert not [one for one in workers if Path(f"/proc/{one}").exists()]


def count(store):
    if not store.is_file():
        return 0
    db = sqlite3.connect(store, timeout=60)
    try:
        return db.execute("select count(*) from records").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # not made yet
    finally:
        db.close()


# The manifest


def test_a_manifest_is_written_once_and_told(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.effect_noise((20, 20), 90).save(tmp_path / "images" / name)
    (tmp_path / "images" / "deep" / "c.jpg").write_text("nothing")
    code, out, _ = told(capsys, "manifest", "folder:images", "-o", "images.npz")
    assert code == 0
    assert "wrote images.npz: 2 images of folder:images" in out
    assert "1 skipped\n  deep/c.jpg: " in out
    held = (tmp_path / "images.npz").read_bytes()
    code, _, err = told(capsys, "manifest", "folder:images", "-o", "images.npz")
    assert (code, "--force" in err) == (2, True)
    assert (tmp_path / "images.npz").read_bytes() == held
    assert told(capsys, "manifest", "folder:images", "-o", "images.npz", "--force")[0] == 0


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        ("folder:nowhere", "no such folder"),
        ("nowhere", "unknown kind"),
        ("npz:a.npz", "no such file"),
        ("folder:.", "no images"),
    ],
)
def test_a_manifest_of_nothing_is_one_message(capsys, tmp_path, data, fragment):
    code, out, err = told(capsys, "manifest", data, "-o", "m.npz")
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert fragment in err
    assert not list(tmp_path.glob("*m.npz*"))


def test_a_manifest_needs_no_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = sys.modules['torchvision'] = None\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    found = command("manifest", "synthetic:near", "-o", tmp_path / "m.npz", env={**os.environ, "PYTHONPATH": paths})
    assert (found.returncode, found.stdout[:5]) == (0, "wrote"), found.stderr


def test_a_misspelt_option_is_told_with_the_one_that_was_meant(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["audit", "--after", "x.pth", "--believd", "trainable=head"])
    told = capsys.readouterr().err
    assert ended.value.code == exit_code.USAGE
    assert "usage: xferbench audit" in told
    assert "unrecognized arguments: --believd; did you mean '--believed'" in told
