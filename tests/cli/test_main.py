from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from factory import make_run
from invoke import invoke, invoke_process, invoke_without_reader, make_suite

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.cli.exit_status import interrupt_on_termination
from xferbench.core.errors import Interrupted, UserError
from xferbench.report import files
from xferbench.runner import run as runner

pytestmark = pytest.mark.usefixtures("isolated")


SURFACE = """
run       suite; -o --output; --store; --device auto|cuda|mps|cpu; -j --workers; --engine; --seed; --budget; --set;
          --allow-code; --plan; --dry-run; --shard; --fail-on fail|inconclusive; --format text|json
audit     suite; --arch; --after; --before; --data; --source; --keep-source; --shifted; --manifest; --believed;
          --mean; --std; --interpolation bilinear|bicubic|nearest; --crop-pct; --img-size; --channels rgb|bgr|grey;
          --orientation auto|stored|upright; --bits;
          --serve-mean; --serve-std; --serve-interpolation bilinear|bicubic|nearest; --serve-crop-pct; --serve-img-size;
          --serve-channels rgb|bgr|grey; --serve-orientation auto|stored|upright; --serve-bits;
          --serve-lowercase --no-serve-lowercase; --serve-max-length; --serve-truncation right|left; --serve-padding right|left;
          --serve-special single|none|twice; --serve-masked --no-serve-masked; --serve-extra-padding; --serve-mode eval|train;
          --metric; --margin; --max-duplicates; --checks; --limit; --scratch; -o --output; --store; --device auto|cuda|mps|cpu;
          -j --workers; --engine; --allow-code;
          --freeze; --plan; --repair; --force; --fail-on fail|inconclusive; --format text|json
gate      suite; --baseline; --candidate; --accept; -o --output; --store; --device auto|cuda|mps|cpu; -j --workers; --seed;
          --budget; --set; --allow-code; --fail-on fail|inconclusive; --format text|json
compare   first; second; -o --output
watch-log log; --classes; --majority; --format text|json
ls        --format text|json; -v --verbose
explain   plugin
validate  suites; --store; --set; --allow-code; --no-files; --freeze; --force
report    directory; -o --output; --format text|latex|checklist
init      folder; --weights; --arch; -o --output; --force
manifest  data; -o --output; --force
merge     stores; -o --output
doctor    --store; --format text|json
"""


def test_surface_is_pinned():
    (commands,) = (action for action in main.build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    surface = {}
    for name, subparser in commands.choices.items():
        actions = [action for action in subparser._actions if not {"--help", "--debug"} & set(action.option_strings)]
        surface[name] = [
            " ".join([*(action.option_strings or [action.dest]), *(["|".join(action.choices)] if action.choices else [])])
            for action in actions
        ]
        assert {"--help", "--debug"} <= set(subparser._option_string_actions), name
    lines = SURFACE.replace("\n          ", " ").strip().splitlines()
    assert surface == {line.split()[0]: line.partition(" ")[2].strip().split("; ") for line in lines}


def test_defaults_of_run_are_pinned():
    defaults = vars(main.build_parser().parse_args(["run", "quick"]))
    del defaults["command"], defaults["parser"]
    assert defaults == {
        "debug": False,
        "suite": "quick",
        "output": None,
        "store": None,
        "device": "auto",
        "workers": None,
        "engine": "local",
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
    ("arguments", "fragment"),
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
def test_wrong_usage_exits_with_2(capsys, arguments, fragment):
    with pytest.raises(SystemExit) as error:
        main.main(arguments)
    assert error.value.code == exit_code.USAGE_ERROR
    assert fragment in capsys.readouterr().err


def test_error_suggests_the_closest_option(capsys):
    with pytest.raises(SystemExit) as error:
        main.main(["audit", "--after", "x.pth", "--believd", "trainable=head"])
    message = capsys.readouterr().err
    assert error.value.code == exit_code.USAGE_ERROR
    assert "usage: xferbench audit" in message
    assert "unrecognized arguments: --believd; did you mean '--believed'" in message


def test_help_and_version_exit_with_0(capsys):
    for arguments in (
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in ("run", "ls", "explain", "validate", "report", "init", "merge", "doctor", "watch-log")),
    ):
        with pytest.raises(SystemExit) as error:
            main.main(arguments)
        assert error.value.code == 0
    assert "xferbench 0." in capsys.readouterr().out


WITHOUT_TORCH = """
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


def test_only_running_needs_torch(tmp_path):
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
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(commands=commands)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    codes = [line for line in process.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["CODE 0"] * 7 + ["CODE 2"], process.stderr
    assert "running experiments needs PyTorch" in process.stderr
    assert "pip install 'xferbench[torch]'" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.fixture
def run_raising(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command ending with an exception; it returns exit code, output and error output."""

    def run_with(error, *options):
        def run(*_, **__):
            raise error

        monkeypatch.setattr(runner, "run", run)
        return invoke(capsys, "run", "quick", "-o", tmp_path / "out", *options)

    return run_with


ERRORS = [
    (
        UserError("ants.toml: margin", found="0", expected="more", do="raise it"),
        2,
        "xferbench: ants.toml: margin\n  found: 0\n",
    ),
    (KeyboardInterrupt(), 130, "xferbench: interrupted; finished results are kept\n  do: to continue, run xferbench run quick"),
    (Interrupted(12), 130, "xferbench: interrupted; 12 finished results are kept\n  do: to continue, run xferbench run quick"),
    (KeyboardInterrupt(15), 143, "xferbench: interrupted by SIGTERM; finished results are kept\n  do: to continue"),
    (Interrupted(3, 1), 129, "xferbench: interrupted by SIGHUP; 3 finished results are kept\n"),
    (MemoryError(), 3, "xferbench: out of memory; finished results are kept\n  do: use fewer workers (-j 1)"),
    (RuntimeError("File x\nRuntimeError: DefaultCPUAllocator: can't allocate memory"), 3, "xferbench: out of memory; "),
    (RuntimeError("File x\ntorch.OutOfMemoryError: CUDA out of memory. Tried to"), 3, "found: torch.OutOfMemoryError: CUDA"),
    (RuntimeError("boom"), 3, "xferbench: crashed: RuntimeError: boom\n  do: run it again with --debug"),
    (AssertionError(), 3, "xferbench: crashed: AssertionError\n"),
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


@pytest.mark.parametrize(("error", "code", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_error_has_an_exit_code_and_one_message(run_raising, error, code, message):
    actual_code, out, err = run_raising(error)
    assert (actual_code, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert err.count("xferbench: ") == 1


@pytest.mark.parametrize(("error", "code", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_debug_shows_the_traceback_and_keeps_the_exit_code(run_raising, error, code, message):
    actual_code, out, err = run_raising(error, "--debug")
    assert (actual_code, out) == (code, "")
    assert message in err
    assert err.startswith("Traceback")


def test_full_standard_output_is_an_error():
    with Path("/dev/full").open("w") as device:
        process = subprocess.run(
            [sys.executable, "-m", "xferbench", "ls"], stdout=device, stderr=subprocess.PIPE, text=True, check=False
        )
    assert process.returncode == exit_code.USAGE_ERROR
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_closed_pipe_is_not_an_error():
    process = invoke_without_reader("ls")
    assert (process.returncode, process.stderr) == (0, "")


def test_an_ascii_terminal_is_not_an_error():
    process = invoke_process("explain", "batchnorm-drift", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (process.returncode, process.stderr) == (0, "")
    assert "\\u03bc" in process.stdout


def test_no_name_becomes_a_command_of_a_workflow(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.chdir(tmp_path)
    names = ("::error::a.toml", "x\n::error::b.toml", "##[error]c.toml", "y" * 70 + " ::error::d.toml", "\x1b[2Je.toml")
    for name in names:
        (tmp_path / name).write_text('schema = 1\nname = "x"\nplugins = ["::error::p\\n##[group]p"]\n"::error::key" = 1\n')
    for arguments in (["validate", *names], *(["run", name] for name in names), ["report", "::error::f"]):
        assert main.main(arguments) == exit_code.USAGE_ERROR
        out, err = capsys.readouterr()
        assert err
        for line in (out + err).splitlines():
            assert not line.strip().startswith("::") and "##[" not in line
            assert line.isprintable()
    with pytest.raises(SystemExit):
        main.main(["run", "quick", "::error::extra\n::error::more"])
    assert "\n::" not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals need POSIX")
def test_an_ignored_signal_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with interrupt_on_termination():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt, match="15"):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
