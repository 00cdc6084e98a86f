"""What each module imports. The layers of the packages are contracts of import-linter, in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xferbench"
DOORS = {"__init__", "__main__", "plugin", "pytest_plugin"}
TORCH = {"torch", "torchvision", "safetensors", "timm"}
HEAVY = {"pandas", "scipy", "matplotlib", "seaborn", "sklearn", "PIL", "rich", "jinja2", "platformdirs", "IPython"}
TRAINERS = {"lightning", "transformers"}
DEVELOPMENT = {"pytest", "hypothesis", "ruff", "mypy"}


@dataclass(frozen=True)
class Import:
    """An import of ``name`` (a module of the package, or another package): ``late`` in a function, or ``typed``."""

    name: str
    internal: bool
    late: bool
    typed: bool


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")
}


@cache
def imports(path):
    """Every import of a file, with where it stands."""

    def walk(node, *, late, typed):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (resolve(alias.name, late=late, typed=typed) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                yield from (resolve(f"{child.module}.{alias.name}", late=late, typed=typed) for alias in child.names)
            else:
                in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, late=late or in_function, typed=typed or for_types)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), late=False, typed=False))


def resolve(dotted, *, late, typed):
    package = dotted.partition(".")[0]
    if package != "xferbench":
        return Import(package, internal=False, late=late, typed=typed)
    while dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return Import(dotted, internal=True, late=late, typed=typed)


def within(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_only_the_front_doors_stand_outside_a_package():
    assert {path.stem for path in PACKAGE.glob("*.py")} == DOORS


def test_no_circle_of_imports_type_imports_included():
    graph = {
        module: {found.name for found in imports(path) if found.internal and found.name != module}
        for module, path in MODULES.items()
        if module not in {"xferbench", "xferbench.plugin"}  # what the doors open comes from inside
    }
    try:
        TopologicalSorter({module: names & graph.keys() for module, names in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_layers_are_kept():
    pytest.importorskip("importlinter", reason="import-linter is installed for linting")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "xferbench.plugins")])
def test_a_plugin_imports_torch_only_where_it_measures(module):
    assert not {found.name for found in imports(MODULES[module]) if found.name in TORCH and not found.late and not found.typed}


@pytest.mark.parametrize("module", MODULES)
def test_a_trainer_is_imported_by_its_own_callback_alone(module):
    names = {found.name for found in imports(MODULES[module]) if found.name in TRAINERS and not found.typed}
    assert names <= {module.removeprefix("xferbench.callbacks.")}


@pytest.mark.parametrize("module", [name for name in MODULES if not within(name, "xferbench.lab")])
def test_slow_imports_wait_for_the_function_that_needs_them(module):
    early = {found.name for found in imports(MODULES[module]) if found.name in HEAVY and not found.late and not found.typed}
    assert not early


@pytest.mark.parametrize("module", MODULES)
def test_no_module_needs_what_only_a_developer_has(module):
    allowed = {"pytest"} if module == "xferbench.pytest_plugin" else set()
    assert not {found.name for found in imports(MODULES[module])} & (DEVELOPMENT - allowed)


def test_the_command_line_starts_without_torch():
    reached, left = (
        set(),
        ["xferbench.cli.main", "xferbench.runner.run", *(m for m in MODULES if within(m, "xferbench.plugins"))],
    )
    while left:
        module = left.pop()
        reached.add(module)
        now = [found.name for found in imports(MODULES[module]) if found.internal and not (found.late or found.typed)]
        left += [name for name in now if name not in reached]
    assert "xferbench.data.inputs" in reached
    assert not {
        module
        for module in reached
        for found in imports(MODULES[module])
        if found.name in TORCH and not (found.late or found.typed)
    }


def test_the_reader_of_imports_reads_what_is_meant(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import torch.nn\nfrom xferbench.lab import models\nif TYPE_CHECKING:\n    from xferbench.core.run import Run\n"
        "def f():\n    from xferbench.core.trial import Trial\n"
    )
    assert imports(file) == [
        Import("torch", internal=False, late=False, typed=False),
        Import("xferbench.lab.models", internal=True, late=False, typed=False),
        Import("xferbench.core.run", internal=True, late=False, typed=True),
        Import("xferbench.core.trial", internal=True, late=True, typed=False),
    ]
