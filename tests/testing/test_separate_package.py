"""A plugin in a separate package: it proves that it conforms, and it is listed beside the others."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from test_conformance import PAGE, ROOT

PACKAGE_FILES = {
    "pyproject.toml": """
[project]
name = "too-hot"
version = "0.1"
dependencies = ["xferbench"]

[project.entry-points."xferbench.plugins"]
too-hot = "kit_too_hot:plugin"
""",
    "tests/test_kit_too_hot.py": """
from kit_too_hot import plugin
from xferbench.testing import conforms


def test_it_conforms():
    conforms(plugin)
""",
    "kit_too_hot.py": f'''"""{PAGE}"""

from dataclasses import replace

from xferbench.plugin import Plugin, Selection


def scaled(pipeline, factor):
    phases = tuple(replace(phase, lr=phase.lr * factor) for phase in pipeline.recipe.phases)
    return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases))


def applies(pipeline, profile):
    return ""


def cure(pipeline, profile):
    return Selection(candidates=(scaled(pipeline, 0.3), scaled(pipeline, 0.1)))


def induce(pipeline, profile):
    return {{"x30": scaled(pipeline, 30.0)}}


plugin = Plugin(
    id="too-hot",
    version=1,
    question="Is the learning rate too high?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    remedy="lower the learning rate",
)
''',
}


@pytest.fixture
def package(tmp_path):
    """The folder of the package, and the environment of a process in which the package is installed."""
    folder, site = tmp_path / "too-hot", tmp_path / "site"
    for name, text in PACKAGE_FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    dist_info = site / "too_hot-0.1.dist-info"
    dist_info.mkdir(parents=True)
    (site / "kit_too_hot.py").write_text(PACKAGE_FILES["kit_too_hot.py"], encoding="utf-8")
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: too-hot\nVersion: 0.1\n")
    (dist_info / "entry_points.txt").write_text("[xferbench.plugins]\ntoo-hot = kit_too_hot:plugin\n")
    return folder, {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "PYTEST_ADDOPTS": ""}


def run_module(package, *arguments):
    folder, environment = package
    process = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return process.returncode, process.stdout + process.stderr


def test_a_separate_package_proves_conformance_by_its_own_test(package):
    code, output = run_module(package, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert code == 0 and "1 passed" in output, output


def test_a_separate_package_is_listed_and_explained(package):
    code, output = run_module(package, "xferbench", "ls")
    assert code == 0 and "too-hot" in output and "Is the learning rate too high?" in output and "batchnorm-drift" in output, (
        output
    )
    code, output = run_module(package, "xferbench", "explain", "too-hot")
    assert code == 0 and "Symptom" in output, output


def test_a_verbose_list_names_version_distribution_file_and_source_of_a_plugin(package):
    code, output = run_module(package, "xferbench", "ls", "-v")
    assert code == 0, output
    lines = output.splitlines()
    origin = lines[next(number for number, text in enumerate(lines) if text.startswith("  too-hot ")) + 1]
    file = package[0].parent / "site" / "kit_too_hot.py"  # the installed copy, not the one in the current folder
    source = digest_module(file)
    assert origin.strip() == f"version 1, too-hot 0.1, {file}, source {source[:16]}"
    built_in = lines[next(number for number, text in enumerate(lines) if text.startswith("  batchnorm-drift ")) + 1]
    assert built_in.strip().startswith("version 1, xferbench ") and built_in.endswith("batchnorm_drift.py")
    code, output = run_module(package, "xferbench", "ls", "-v", "--format", "json")
    origins = json.loads(output)["origins"]["plugins"]
    assert origins["too-hot"] == {
        "version": "1",
        "distribution": "too-hot 0.1",
        "file": str(file),
        "source": source,
    }
    assert origins["batchnorm-drift"]["source"] == ""


def digest_module(file):
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashlib.sha256(f"{file.stem}\0{content}\0".encode()).hexdigest()


def test_a_package_that_does_not_conform_fails_its_own_test(package):
    folder, _ = package
    module = folder / "kit_too_hot.py"
    module.write_text(module.read_text().replace('"x30"', '"x 30"'))
    code, output = run_module(package, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert code == 1 and "induced x 30 of full fine-tuning" in output, output
