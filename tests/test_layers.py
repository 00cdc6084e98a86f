from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "xferbench"

# The straight line, from the ground up: a module may import what stands above it in this list, and nothing else of the
# package. A new module is entered here at the lowest place where it can stand.
LAYERS = (
    "problem environment options design rules overrides report report.text report.svg report.held",
    "report.notebook record events",
    "stats metrics scaling reliability pictures",
    "scored aggregates regret advice strategies asking reading wording movement keys crossed suite honours fitting schema plan",
    "table judge looks effects recipes tabled samples reason findings symptoms pairs outcomes compared alike revived gate",
    "frozen",
    "store discover machine forecast",
    "engines engines.worker engines.local",
    "lab lab.synthetic lab.raw lab.listed lab.fetched lab.foreign lab.inputs lab.arrays lab.sources",
    "lab.pixels lab.prints lab.copies lab.manifest",
    "lab.seeds lab.schedule lab.batch lab.preprocess lab.batchnorm lab.small lab.backbones lab.bottleneck lab.lowrank",
    "lab.heads lab.published lab.likeness lab.adapters lab.reading lab.installed lab.checkpoints lab.guess",
    "lab.data lab.cue lab.samples lab.domains lab.features lab.augment lab.regularize lab.adversary lab.fit",
    "lab.initial lab.callables lab.penultimate lab.scores lab.cost lab.edits lab.finished lab.leaks lab.moved lab.viewed",
    "lab.served lab.shock lab.gap lab.answer lab.repair lab.probe lab.pretrain",
    "lab.traces lab.beliefs lab.causes lab.alarms lab.stock lab.course lab.watch lab.watched watched",
    "callbacks callbacks.lightning callbacks.transformers",
    "plugins plugins.batchnorm_drift plugins.calibration plugins.catastrophic_forgetting plugins.data_efficiency",
    "plugins.data_leakage plugins.domain_gap plugins.feature_distortion plugins.freeze_integrity plugins.head_shock",
    "plugins.input_mismatch plugins.layer_transfer plugins.learning_rate plugins.negative_transfer plugins.overfitting",
    "plugins.preprocessing_mismatch plugins.shortcut_transfer plugins.strategy_regret plugins.train_serve_skew",
    "checks checks.batchnorm_drift checks.calibration checks.catastrophic_forgetting checks.class_order checks.head_size",
    "checks.collapse checks.linear_probe checks.feature_distortion checks.interpolation checks.negative_transfer",
    "checks.preprocessing_mismatch checks.reload checks.train_serve_skew",
    "report.frames report.samples report.drawn report.figures report.forest report.changes report.evidence",
    "report.page report.comparison report.html report.markdown report.junit report.tested report.github report.console",
    "report.predictions report.tex report.latex report.latex_matrix report.checklist report.write report.accepted",
    "report.across report.crossed report.crossed_page report.crossed_files report.checklist_matrix",
    "given execute shard repair finish matrix gating doctor init audit fake testing pytest_plugin matrix_commands cli __main__",
)
LINE = [name for layer in LAYERS for name in layer.split()]

STATISTICS = {
    "stats",
    "scored",
    "aggregates",
    "regret",
    "scaling",
    "metrics",
    "judge",
    "looks",
    "reason",
    "findings",
    "gate",
    "plan",
    "suite",
    "store",
    "forecast",
    "report",
}
READING = {
    *(
        "store",
        "stats",
        "scored",
        "aggregates",
        "regret",
        "advice",
        "scaling",
        "metrics",
        "judge",
        "looks",
        "findings",
        "reason",
        "gate",
        "compared",
        "pairs",
        "outcomes",
        "alike",
        "revived",
        "suite",
        "plan",
        "forecast",
        "machine",
        "keys",
        "wording",
        "movement",
        "frozen",
    ),
    *("design", "record", "problem", "rules", "honours", "overrides", "schema", "strategies", "discover", "environment"),
    *(
        "samples",
        "fitting",
        "advice",
        "asking",
        "reading",
        "pictures",
        "reliability",
        "table",
        "effects",
        "crossed",
        "recipes",
        "tabled",
    ),
    *("scored", "aggregates", "regret"),
}
TORCH = {"torch", "torchvision", "safetensors", "timm"}
HEAVY = {"pandas", "scipy", "matplotlib", "seaborn", "sklearn", "PIL", "rich", "jinja2", "platformdirs"}
TRAINERS = {"lightning", "transformers"}
DEVELOPMENT = {"pytest", "hypothesis", "ruff", "mypy"}


@dataclass(frozen=True)
class Import:
    """Of ``name`` (``lab.inputs``, or another package's), ``late`` in a function or ``typed`` under TYPE_CHECKING."""

    name: str
    own: bool
    late: bool
    typed: bool


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


MODULES = modules()


@cache
def imports(path):
    """Every import of a file, with where it stands."""

    def walk(node, *, late, typed):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (made(alias.name, late=late, typed=typed) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                yield from (made(f"{child.module}.{alias.name}", late=late, typed=typed) for alias in child.names)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                checking = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, late=late or function, typed=typed or checking)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), late=False, typed=False))


def made(dotted, *, late, typed):
    package, _, rest = dotted.partition(".")
    if package != "xferbench":
        return Import(package, own=False, late=late, typed=typed)
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]  # what is imported from a module, and not a module
    return Import(rest, own=True, late=late, typed=typed)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_every_module_stands_in_the_line():
    assert sorted(MODULES) == sorted(LINE)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module):
    below = {"", *LINE[: LINE.index(module)]}  # "" is the package itself, for its version
    up = {one.name for one in imports(MODULES[module]) if one.own and not one.typed} - below
    assert not up, f"{module} imports {', '.join(sorted(up))}, which do not stand below it"


@pytest.mark.parametrize("module", MODULES)
def test_torch_is_known_to_the_lab_alone(module):
    found = {(one.name, one.late) for one in imports(MODULES[module]) if one.name in TORCH and not one.typed}
    if within(module, ["lab", "engines.worker"]):
        return
    if within(module, ["plugins", "checks"]):
        assert all(late for _, late in found), f"{module} imports torch before it measures"
    else:
        assert not found, f"{module} imports {found}"


@pytest.mark.parametrize("module", MODULES)
def test_a_trainer_is_known_to_its_own_callback_alone(module):
    found = {one.name for one in imports(MODULES[module]) if one.name in TRAINERS and not one.typed}
    assert found <= {module.removeprefix("callbacks.")}


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, ["lab"])])
def test_the_lab_knows_no_statistics(module):
    known = {one.name for one in imports(MODULES[module]) if one.own and within(one.name, STATISTICS)}
    assert not known, f"{module} imports {known}"


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, READING | {"report"})])
def test_the_reading_half_knows_no_lab(module):
    known = {one.name for one in imports(MODULES[module]) if one.own and within(one.name, ["lab", "engines"])}
    assert not known, f"{module} imports {known}"


def test_nothing_that_starts_with_the_command_line_reaches_torch():
    reached, left = set(), ["cli", "execute", "finish", "report.write", "report.console", "discover", *plugins()]
    while left:
        module = left.pop()
        reached.add(module)
        left += [one.name for one in imports(MODULES[module]) if one.own and one.name and not (one.late or one.typed)]
        left = [name for name in left if name not in reached]
    early = {
        module for module in reached for one in imports(MODULES[module]) if one.name in TORCH and not (one.late or one.typed)
    }
    assert not early
    assert "lab.inputs" in reached


def plugins():
    return [name for name in MODULES if within(name, ["plugins"])]


@pytest.mark.parametrize("module", [name for name in MODULES if not within(name, ["lab"])])
def test_what_is_slow_to_import_waits_for_the_function_that_needs_it(module):
    early = {one.name for one in imports(MODULES[module]) if one.name in HEAVY and not one.late and not one.typed}
    assert not early, f"{module} imports {early} at its top"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_needs_what_only_a_developer_has(module):
    of_pytest = {"pytest"} if module == "pytest_plugin" else set()  # which nobody but pytest imports
    assert not {one.name for one in imports(MODULES[module])} & (DEVELOPMENT - of_pytest)


def test_the_plugin_of_pytest_is_imported_by_pytest_alone_and_imports_late():
    assert not [name for name, path in MODULES.items() for one in imports(path) if one.name == "pytest_plugin"]
    early = {one.name for one in imports(MODULES["pytest_plugin"]) if not one.late and not one.typed}
    assert {name for name in early if name not in sys.stdlib_module_names} == {"pytest"}


def test_the_table_is_read_as_it_is_meant(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "import torch.nn\nfrom xferbench.lab import VERSION, inputs\nfrom xferbench import __version__, suite\n"
        "if TYPE_CHECKING:\n    from xferbench.lab.fit import Fitted\ndef f():\n    from xferbench.design import Fit\n"
    )
    assert imports(file) == [
        Import("torch", own=False, late=False, typed=False),
        Import("lab", own=True, late=False, typed=False),
        Import("lab.inputs", own=True, late=False, typed=False),
        Import("", own=True, late=False, typed=False),
        Import("suite", own=True, late=False, typed=False),
        Import("lab.fit", own=True, late=False, typed=True),
        Import("design", own=True, late=True, typed=False),
    ]
