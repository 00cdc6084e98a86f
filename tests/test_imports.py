"""Imports of each module. The layers of the packages are contracts of import-linter in pyproject.toml."""

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
PUBLIC_MODULES = {"__init__", "__main__", "plugin", "pytest_plugin"}
TORCH = {"torch", "torchvision", "safetensors", "timm"}
HEAVY = {"pandas", "scipy", "matplotlib", "seaborn", "sklearn", "PIL", "rich", "jinja2", "platformdirs", "IPython"}
TRAINERS = {"lightning", "transformers"}
DEVELOPMENT = {"pytest", "hypothesis", "ruff", "mypy"}


@dataclass(frozen=True)
class Import:
    """An import of a module or package: ``late`` within a function, ``typed`` only for type checking."""

    name: str
    internal: bool
    late: bool
    typed: bool


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")
}


@cache
def imports(path):
    """Return every import of a file."""

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


def test_only_public_modules_are_outside_a_subpackage():
    assert {path.stem for path in PACKAGE.glob("*.py")} == PUBLIC_MODULES


def test_modules_have_no_import_cycle():
    graph = {
        module: {imported.name for imported in imports(path) if imported.internal and imported.name != module}
        for module, path in MODULES.items()
        if module not in {"xferbench", "xferbench.plugin"}  # these modules re-export names of the others
    }
    try:
        TopologicalSorter({module: names & graph.keys() for module, names in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_layers_have_no_forbidden_import():
    pytest.importorskip("importlinter", reason="import-linter is installed for linting")
    process = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "xferbench.plugins")])
def test_a_plugin_imports_torch_only_within_functions(module):
    assert not {
        imported.name
        for imported in imports(MODULES[module])
        if imported.name in TORCH and not imported.late and not imported.typed
    }


@pytest.mark.parametrize("module", MODULES)
def test_only_its_callback_imports_a_trainer(module):
    names = {imported.name for imported in imports(MODULES[module]) if imported.name in TRAINERS and not imported.typed}
    builds_networks_of_transformers = module == "xferbench.lab.models.transformers_models"
    assert names <= {"transformers" if builds_networks_of_transformers else module.removeprefix("xferbench.callbacks.")}


@pytest.mark.parametrize("module", [name for name in MODULES if not within(name, "xferbench.lab")])
def test_slow_packages_are_imported_within_functions(module):
    early_imports = {
        imported.name
        for imported in imports(MODULES[module])
        if imported.name in HEAVY and not imported.late and not imported.typed
    }
    assert not early_imports


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_development_package(module):
    allowed = {"pytest"} if module == "xferbench.pytest_plugin" else set()
    assert not {imported.name for imported in imports(MODULES[module])} & (DEVELOPMENT - allowed)


def test_the_command_line_starts_without_torch():
    reached, pending = (
        set(),
        ["xferbench.cli.main", "xferbench.runner.run", *(name for name in MODULES if within(name, "xferbench.plugins"))],
    )
    while pending:
        module = pending.pop()
        reached.add(module)
        names = [
            imported.name
            for imported in imports(MODULES[module])
            if imported.internal and not (imported.late or imported.typed)
        ]
        pending += [name for name in names if name not in reached]
    assert "xferbench.data.inputs" in reached
    assert not {
        module
        for module in reached
        for imported in imports(MODULES[module])
        if imported.name in TORCH and not (imported.late or imported.typed)
    }


def test_imports_reads_late_and_typed_imports(tmp_path):
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


def test_importing_the_package_imports_no_module_of_it_but_the_import_path():
    program = "import sys, xferbench; print(*(name for name in sys.modules if name.startswith('xferbench.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "xferbench.core",
        "xferbench.core.import_path",
    ]  # which removes the current folder from the path
