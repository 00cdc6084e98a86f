"""The scripts of tests/benchmarks, which no other test runs: they import, and the names that they use of xferbench exist."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
EXTRAS = ("torch", "torchvision", "safetensors", "PIL", "sklearn")  # the base installation lacks them
CODE = re.compile(r"^\s*(?:from|import) xferbench\b", re.MULTILINE)


@pytest.fixture
def import_script(monkeypatch):
    """Import a script by its name, beside the scripts that it imports, and forget all of them afterwards."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    names = {path.stem for path in SCRIPTS}
    shadowed = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}

    def load(name):
        with skip_without_extra():
            return importlib.import_module(name)

    yield load
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(shadowed)


@contextmanager
def skip_without_extra():
    """Skip the test if a module of an extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in EXTRAS:
            pytest.skip(f"needs {error.name}, which an extra installs")
        raise


def embedded_scripts(tree):
    """Yield the strings of a module that are programs and import xferbench."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.search(node.value):
            try:
                yield ast.parse(node.value)
            except SyntaxError as error:  # a docstring with an example is prose around code
                if node.value.lstrip().startswith(("from ", "import ")):
                    raise AssertionError(f"line {node.lineno}: {error}") from error


def check_names(tree):
    """Import what a program imports from xferbench, and look up each attribute that it takes from a module of xferbench."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "xferbench":
            for alias in node.names:
                modules[alias.asname or alias.name] = import_name(node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "xferbench":
                    modules[alias.asname or "xferbench"] = importlib.import_module(alias.name)
    modules = {name: value for name, value in modules.items() if isinstance(value, type(sys))}
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assigned |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    missing = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules.keys() - assigned
        and not hasattr(modules[node.value.id], node.attr)
    ]
    assert not missing


def import_name(module, name):
    """Return what ``from module import name`` returns."""
    value = importlib.import_module(module)
    try:
        return getattr(value, name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_imports_and_its_names_exist(path, import_script):
    import_script(path.stem)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    with skip_without_extra():  # of an import in a function
        check_names(tree)
        for script in embedded_scripts(tree):
            check_names(script)


def test_the_check_finds_embedded_scripts_and_missing_names():
    program = 'PROBE = """\nfrom xferbench.study import schedule\nschedule.next_schedule\nschedule.no_such_name\n"""'
    (script,) = embedded_scripts(ast.parse(program))
    with pytest.raises(AssertionError, match="no_such_name"):
        check_names(script)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        check_names(ast.parse("from xferbench.study import no_such_module"))


def test_tox_runs_scripts_that_exist():
    tox = (FOLDER.parents[1] / "tox.ini").read_text(encoding="utf-8")
    assert set(re.findall(r"python tests/benchmarks/(\w+)\.py", tox)) <= {path.stem for path in SCRIPTS}


def test_embedded_suite_tables_are_valid(import_script):
    from xferbench.config import loader

    trained, times = import_script("trained"), import_script("times")
    gate, embedded = import_script("gate"), import_script("embedded")
    target = {"data": "synthetic:near", "train_size": 200}
    for recipe in (gate.FULL_TUNING, gate.LINEAR_PROBE):
        loader.parse_suite(trained.TABLE | {"recipe": recipe, "target": target}, Path("gate.toml"))
    loader.parse_suite(times.LINEAR_PROBE, Path("probe.toml"))
    loader.parse_suite(embedded.TABLE | {"target": target}, Path("embedded.toml"))
