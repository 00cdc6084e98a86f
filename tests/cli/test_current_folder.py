"""Files in the current folder are data: no command runs one of them, whatever its name is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from invoke import make_suite

from xferbench.core.import_path import without_current_folder
from xferbench.core.installed import entry_points
from xferbench.runner import environment
from xferbench.runner.engines.child_process import child_command, child_environment

ROOT = str(Path(__file__).parents[2])
MODULE = ["-m", "xferbench"]
COMMAND = [
    "-c",
    "import sys; sys.argv[0] = 'xferbench'; sys.path.pop(0); from xferbench.cli.main import main; sys.exit(main())",
]
# Python itself imports some modules, such as warnings and collections, before the package that -m names.
SHADOWING = [
    "__future__",
    "typing",
    "argparse",
    "json",
    "sqlite3",
    "subprocess",
    "random",
    "csv",
    "logging",
    "pickle",
    "tempfile",
    "email",
    "platform",
    "hashlib",
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "PIL",
    "rich",
    "pandas",
    "scipy",
    "matplotlib",
    "jinja2",
    "platformdirs",
    "safetensors",
    "sklearn",
    "sitecustomize",
    "usercustomize",
    "readline",
    "secrets",
    "queue",
    "ctypes",
    "multiprocessing",
    "importlib_metadata",
    "typing_extensions",
]


def shadow(folder, names):
    """Write modules that leave a mark when they run."""
    for name in names:
        text = f"import os; os.close(os.open({str(folder / ('ran-' + name))!r}, os.O_CREAT)); raise SystemExit(97)\n"
        (folder / f"{name}.py").write_text(text)


def marks(folder):
    return sorted(path.name for path in folder.glob("ran-*"))


def call(folder, *arguments, path=ROOT):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def hostile(tmp_path):
    """Return a folder with a suite next to modules that shadow all others, and a distribution that nobody installed."""
    suite = make_suite(tmp_path)
    shadow(tmp_path, [*SHADOWING, "evil"])
    about = tmp_path / "evil-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[xferbench.plugins]\nevil = evil\n[xferbench.interventions]\nevil = evil:Evil\n[pytest11]\nxferbench-evil = evil\n"
    )
    return suite


@pytest.mark.parametrize(
    ("start", "arguments"),
    [
        (MODULE, ["ls"]),
        (MODULE, ["validate", "noise.toml"]),
        (COMMAND, ["run", "noise.toml", "-j", 1, "-o", "out"]),
        pytest.param(COMMAND, ["validate", "noise.toml"], marks=pytest.mark.slow),
        pytest.param(COMMAND, ["doctor"], marks=pytest.mark.slow),
        pytest.param(MODULE, ["run", "noise.toml", "-j", 1, "-o", "out"], marks=pytest.mark.slow),
        pytest.param(MODULE, ["doctor"], marks=pytest.mark.slow),
    ],
)
def test_no_command_runs_a_file_of_the_current_folder(hostile, start, arguments):
    folder = hostile.parent
    process = call(folder, *start, *arguments)
    assert marks(folder) == []
    assert process.returncode in {0, 1} or arguments == ["doctor"], process.stderr
    assert "evil" not in process.stdout
    assert (folder / "out" / "results.json").is_file() or arguments[0] != "run"


def test_an_empty_entry_of_pythonpath_is_not_the_current_folder(tmp_path):
    shadow(tmp_path, ["torch", "json", "sitecustomize"])
    for path in (f":{ROOT}", f"{ROOT}:", f"{ROOT}::{tmp_path / 'none'}"):
        process = call(tmp_path, *child_command("xferbench.core.version")[1:], path=child_path(path))
        assert process.returncode == 0 and marks(tmp_path) == [], process.stderr


def child_path(path):
    """Return the PYTHONPATH of a child of a process with this PYTHONPATH."""
    code = "from xferbench.runner.engines.child_process import child_environment as e; print(e()['PYTHONPATH'])"
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env={"PYTHONPATH": path}, cwd="/", capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_that_pythonpath_names_stays_on_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library = str(Path(os.__file__).parent)
    path = ["", str(tmp_path), library, str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}")
    assert without_current_folder(path) == [library, str(tmp_path)], "a .pth file may name the folder"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert without_current_folder(path) == path
    assert child_environment()["PYTHONPATH"] == str(tmp_path)


def test_another_program_keeps_its_import_path(tmp_path):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").write_text("import xferbench, mine\n")
    (tmp_path / "tool" / "__main__.py").write_text("import mine; print('imported')\n")
    assert call(tmp_path, "-m", "tool").stdout == "imported\n"


def test_a_worker_finds_the_package_of_its_caller(tmp_path):
    (tmp_path / "xferbench").symlink_to(Path(ROOT) / "xferbench")
    command = child_command("xferbench.core.version")  # as in a notebook in a checkout, without an installation
    process = call(tmp_path, "-S", *command[1:-1], tmp_path, path="")
    assert process.returncode == 0, process.stderr
    assert "No module named 'xferbench'" in call(tmp_path, "-S", *command[1:-1], tmp_path / "none", path="").stderr


def test_a_distribution_in_the_current_folder_is_not_installed(hostile, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.chdir(hostile.parent)
    monkeypatch.syspath_prepend(hostile.parent)  # as python -m pytest does
    for group in ("xferbench.plugins", "xferbench.interventions"):
        assert "evil" not in {entry.name for entry in entry_points(group=group)}
    monkeypatch.setenv("PYTHONPATH", str(hostile.parent))
    assert "evil" in {entry.name for entry in entry_points(group="xferbench.plugins")}


def git(folder, *arguments):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], check=True, capture_output=True
    )


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a repository with one commit, and a function that returns a command which leaves a mark."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "-m", "first")
    monkeypatch.chdir(folder)
    return folder, lambda name: f"touch {tmp_path / ('ran-' + name)}; false"


def test_the_revision_of_a_repository_is_read_without_running_its_configuration(repository, monkeypatch, tmp_path):
    folder, leave_mark = repository
    commit = environment.git_revision()
    assert len(commit) == 40
    (folder / "file").write_text("two")
    assert environment.git_revision() == f"{commit}+changes"
    for key in ("core.fsmonitor", "core.pager", "pager.status", "diff.external", "core.sshCommand", "core.editor"):
        git(folder, "config", key, leave_mark(key))
    hook = folder / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{leave_mark('hook')}\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", leave_mark("variable"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    assert environment.git_revision() == f"{commit}+changes"
    assert marks(tmp_path) == []


def test_a_repository_with_its_own_filters_is_not_compared(repository, tmp_path):
    folder, leave_mark = repository
    commit = environment.git_revision()
    (folder / "file").write_text("two")
    (folder / ".gitattributes").write_text("* filter=evil=x\n")
    git(folder, "config", "filter.evil=x.clean", leave_mark("filter"))
    assert environment.git_revision() == f"{commit}+unchecked"
    assert marks(tmp_path) == []


def test_a_git_in_the_current_folder_is_not_run(repository, monkeypatch, tmp_path):
    folder, leave_mark = repository
    (folder / "git").write_text(f"#!/bin/sh\n{leave_mark('git')}\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", os.environ["PATH"]]))
    assert len(environment.git_revision().partition("+")[0]) == 40
    monkeypatch.setenv("PATH", str(folder))
    assert environment.git_revision() is None
    assert marks(tmp_path) == []
