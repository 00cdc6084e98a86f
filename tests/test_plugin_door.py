"""Everything that an author of a plugin imports comes from xferbench.plugin."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from xferbench import plugin
from xferbench.core.pipeline import Phase, Recipe
from xferbench.runner import discovery

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "xferbench" / "plugins" / f"{name.replace('-', '_')}.py" for name in discovery.plugin_names())
BUILT_IN = [path for path in FILES if path.is_file()]  # other packages may provide plugins too
OTHER_MODULES = {
    f"xferbench.{name}"
    for name in (
        "core.pipeline",
        "core.plugin",
        "core.strategies",
        "core.record",
        "core.run",
        "core.contrasts",
        "core.requirements",
    )
}


def test_the_module_has_every_name_and_imports_no_torch():
    assert all(hasattr(plugin, name) for name in plugin.__all__)
    code = "import sys, xferbench.plugin; print(*{'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_built_in_plugins_import_from_the_same_module(path):
    modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert "xferbench.plugin" in modules
    assert not modules & OTHER_MODULES


def test_contributing_lists_every_name_and_every_field_of_a_phase_and_a_recipe():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"[\w.]+", text))
    assert set(plugin.__all__) - names <= {"Arm", "InputTransform"}, "the two are unions of types"
    rows = set(re.findall(r"`((?:Phase|Recipe)\.\w+)`", text))
    assert rows == {f"{kind.__name__}.{field.name}" for kind in (Phase, Recipe) for field in fields(kind)} - {"Recipe.name"}
