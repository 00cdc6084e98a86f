"""The conformance kit: the checks that every plugin must pass, as one call in the plugin's own tests. Imports no torch.

Each check may be called alone; it calls the plugin with many pipelines or runs it in a lab that trains nothing
(:mod:`xferbench.testing.fake_lab`).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import suggest
from xferbench.core.pipeline import Pipeline, Selection
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.record import Record
from xferbench.core.suite import Rules, replace_rules
from xferbench.study import trials
from xferbench.testing import fake_lab
from xferbench.testing.arm_checks import check_arms
from xferbench.testing.fake_lab import Scenario, scenarios
from xferbench.testing.need import ID_PATTERN, applicable_scenarios, call_twice, need

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.run import Finding, Run
    from xferbench.core.suite import Suite

PAGE_HEADINGS = ("Symptom", "Cause", "Remedy", "References")
MEASURE_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*@\d+")
HEAVY_PACKAGES = ("torch", "torchvision", "timm", "pandas", "matplotlib")
PLUGIN_FUNCTIONS = ("applies", "cure", "induce", "trust", "extra_arms", "derived_metrics", "plot")
PIPELINE_FUNCTIONS = ("applies", "cure", "induce", "trust", "extra_arms")  # functions of a pipeline and a profile
KINDS = ("paired", "share", "info", "exact")
ARMS = ("subject", "cured", "scratch")
SUITE = replace_rules(fake_lab.SUITE, looks=(2,), tuning_seeds=1, budget=1e9)
EXAMPLES = 200


def conforms(plugin: Plugin) -> None:
    """Run all checks on a plugin.

    Raises:
        AssertionError: At the first check that fails, with what was found, what was expected and what to do.
    """
    for check in CHECKS:
        check(plugin)


def check_page(plugin: Plugin) -> None:
    """Check id, version, question, remedy and manual page."""
    need(
        isinstance(plugin, Plugin),
        "this is not a plugin",
        found=type(plugin).__name__,
        expected="an xferbench.core.plugin.Plugin",
    )
    need(ID_PATTERN.fullmatch(plugin.id), "id", found=plugin.id, expected="lower-case words with hyphens, as too-hot")
    need(plugin.version >= 1, "version", found=plugin.version, expected="1, or higher after its question changed its meaning")
    for name in ("question", "remedy"):
        text = getattr(plugin, name)
        need(text and "\n" not in text, name, found=repr(text), expected="one line")
    need(plugin.question.endswith("?"), "question", found=plugin.question, expected="one that ends with a question mark")
    missing = [heading for heading in PAGE_HEADINGS if not re.search(rf"^{heading}\n[ \t]+\S", plugin.doc or "", re.MULTILINE)]
    expected = f"the headings {', '.join(PAGE_HEADINGS)}, each on a line of its own with indented text below"
    need(not missing, "doc", found=f"no {', '.join(missing)}", expected=expected, do="add them to the module's docstring")


def check_import(plugin: Plugin) -> None:
    """Check that the modules of its functions and measures can be imported alone and import no heavy package."""
    modules = {getattr(getattr(plugin, name), "__module__", "") for name in PLUGIN_FUNCTIONS if getattr(plugin, name)}
    modules |= {reference.partition(":")[0] for reference in plugin.measures.values()}
    for module in sorted(modules):
        code = (
            f"import importlib, sys; importlib.import_module({module!r}); print(*({set(HEAVY_PACKAGES)!r} & set(sys.modules)))"
        )
        path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        done = subprocess.run(  # noqa: S603 - this interpreter, on a module that is imported here already
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        error = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        what = f"module {module} cannot be imported alone"
        need(done.returncode == 0, what, found=error, expected="a module of an installed package")
        heavy = done.stdout.strip()
        do = "import it inside the functions that measure or draw"
        need(not heavy, f"importing {module} imports {heavy}", expected="a fast start, also without torch", do=do)


def check_measures(plugin: Plugin) -> None:
    """Check that each measure is ``module:function@version`` of an existing function, with a name that no view has."""
    for name, reference in plugin.measures.items():
        what = f"measure {name}"
        expected = "module:function@version, as too_hot:heat@1"
        need(MEASURE_PATTERN.fullmatch(reference), what, found=reference, expected=expected)
        module, _, function = reference.partition("@")[0].partition(":")
        target = getattr(importlib.import_module(module), function, None)
        need(callable(target), what, found=f"no function {function} in {module}", expected="a function of a MeasureContext")
        need(name not in trials.VIEWS, what, found="a view of that name", expected=f"none of {', '.join(trials.VIEWS)}")


def check_contrasts(plugin: Plugin) -> None:
    """Check that each contrast weighs known arms and views; weights of a difference sum to 0 and include the subject."""
    names = [contrast.name for contrast in plugin.contrasts]
    need(
        names and len(set(names)) == len(names),
        "contrasts",
        found=", ".join(names),
        expected="one or more, each with a unique name",
    )
    if not plugin.has_verdict:
        changes = any(
            call_twice(plugin, "cure", scenario) != scenario.pipeline or call_twice(plugin, "induce", scenario)
            for scenario in applicable_scenarios(plugin)
        )
        expected = "a paired or exact contrast; or a cure that changes nothing, and no induced arms"
        need(not changes, "contrasts", found="only measurements", expected=expected)
    arms: tuple[str, ...] = ARMS
    if plugin.extra_arms:
        arms += tuple(f"beside:{name}" for name in call_twice(plugin, "extra_arms", applicable_scenarios(plugin)[0]))
    for contrast in plugin.contrasts:
        _check_contrast(contrast, plugin.measures, arms if contrast.kind == "info" else ARMS)


def _check_contrast(contrast: Contrast, measures: Mapping[str, str], arms: Sequence[str]) -> None:
    what = f"contrast {contrast.name}"
    need(
        ID_PATTERN.fullmatch(contrast.name),
        what,
        found=contrast.name,
        expected="lower-case words with hyphens, because it is part of an id",
    )
    need(contrast.kind in KINDS, what, found=f"kind {contrast.kind}", expected=suggest(contrast.kind, KINDS))
    views = measures if contrast.kind == "exact" else trials.VIEWS
    kind = "a measure of the plugin" if contrast.kind == "exact" else "a view"
    for arm, view in contrast.weights:
        do = "name the subject: in the control an induced arm takes the subject's place"
        need(arm in arms, what, found=f"arm {arm}", expected=" or ".join(arms), do=do)
        need(view in views, what, found=f"view {view}", expected=f"{kind}: {suggest(view, views)}")
    weights = list(contrast.weights.values())
    need(
        weights and all(map(isfinite, weights)) and any(weights),
        what,
        found=f"weights {weights}",
        expected="numbers, not all 0",
    )
    if contrast.kind != "info":
        replaced = ("subject", "cured") if contrast.kind == "paired" else ("subject",)
        has_replaced = any(arm in replaced and weight for (arm, _), weight in contrast.weights.items())
        found, expected = f"no {' or '.join(replaced)}", "one, which an induced arm replaces in the control"
        need(has_replaced, what, found=found, expected=expected)
    if contrast.kind == "share":
        need(len(weights) == 1, what, found=f"{len(weights)} pairs", expected="one arm and view, whose runs are counted")
        fields = {field.name for field in dataclasses.fields(Rules)}
        need(
            contrast.allowed in fields, what, found=f"allowed {contrast.allowed!r}", expected=suggest(contrast.allowed, fields)
        )
    elif contrast.kind != "exact":
        difference = abs(sum(weights)) < 1e-9 * max(map(abs, weights))
        expected = "0: if all arms are equal there is no harm"
        need(difference, what, found=f"weights that sum to {sum(weights):g}", expected=expected)


def check_functions(plugin: Plugin) -> None:
    """Check that its functions return the right type, the same value each time, and leave their arguments unchanged."""
    applicable = applicable_scenarios(plugin)
    expected = f'"" for at least one of {sum(1 for _ in scenarios())} pipelines'
    need(applicable, "applies", found="a reason to skip every pipeline", expected=expected)
    kinds = {
        "cure": "a Pipeline or a Selection",
        "induce": "a mapping of arms by variant",
        "trust": "a text",
        "extra_arms": "a mapping of arms by name",
    }
    for scenario in applicable:
        for name, kind in kinds.items():
            if getattr(plugin, name):
                value = call_twice(plugin, name, scenario)
                right = {
                    "cure": isinstance(value, Pipeline | Selection),
                    "induce": hasattr(value, "items"),
                    "trust": isinstance(value, str),
                    "extra_arms": hasattr(value, "items"),
                }
                need(right[name], f"{name} of {scenario.name}", found=type(value).__name__, expected=kind)


def check_replay(plugin: Plugin) -> None:
    """Check that it reaches findings in every scenario, and that a crash or a missing measure is never a PASS."""
    for scenario in scenarios():
        for finding in _run(plugin, scenario, 1.0).findings:
            do = "return the reason in applies, or correct the error"
            need(
                finding.verdict != "ERROR",
                f"{finding.id} of {scenario.name}",
                found=finding.reason,
                expected="a verdict",
                do=do,
            )
    scenario = _first(plugin)
    exact = {f"{plugin.id}/{contrast.name}" for contrast in plugin.contrasts if contrast.kind == "exact"}
    for finding in _run(plugin, scenario, float("nan")).findings:
        wrong = finding.id in exact and finding.verdict != "ERROR"
        need(not wrong, f"{finding.id} without a measure", found=finding.verdict, expected="ERROR")
    for finding in _run(plugin, scenario, 1.0, crash="Boom: on purpose").findings:
        what = f"{finding.id} if every training crashes"
        need(finding.verdict == "ERROR", what, found=finding.verdict, expected="ERROR")


def check_crashes(plugin: Plugin) -> None:
    """Check that a crash inside any of its functions gives an ERROR finding and affects no other plugin."""

    def crash(*_: object) -> Any:
        raise RuntimeError("on purpose")

    for name in (*PIPELINE_FUNCTIONS, "derived_metrics"):
        if getattr(plugin, name):
            findings = _run(_with(plugin, name, crash), _first(plugin), 0.0).findings
            paired = [finding for finding in findings if name != "derived_metrics" or _kind(plugin, finding) == "paired"]
            silent = [finding.id for finding in paired if finding.verdict != "ERROR"]
            need(not silent, f"{name} crashes", found=", ".join(silent), expected="ERROR findings")


def _with(plugin: Plugin, name: str, function: Callable[..., Any]) -> Plugin:
    changes: dict[str, Any] = {name: function}
    return replace(plugin, **changes)


def check_report(plugin: Plugin) -> None:
    """Check that reports of a run, new and loaded from its files, have the plugin and its plot."""
    from xferbench.core.run import run_to_json
    from xferbench.report import figures, files, html, junit, markdown

    run = _run(plugin, _first(plugin), 1.0)
    read_back = replace(run, arms=json.loads(json.dumps(run_to_json(run), allow_nan=False))["arms"])
    for finished in (run, read_back):
        reports = [html.render(finished, {plugin.id: plugin}), markdown.render(finished), junit.render(finished)]
        reports.append(files.records_csv(finished.cells))
        need(all(plugin.id in report for report in reports), "the report does not name the plugin")
        svg = figures.draw_plugin_plot(plugin, finished)
        error = re.sub("<.*?>", "", svg[:400]) if "could not be drawn" in svg[:400] else ""
        need(not error, "plot", found=error, expected="a drawing of a finished run, also if it is loaded from its files")


def _kind(plugin: Plugin, finding: Finding) -> str:
    return next(contrast.kind for contrast in plugin.contrasts if contrast.name == finding.contrast)


def _first(plugin: Plugin) -> Scenario:
    """Return the first scenario that its cure changes, or the first to which it applies; if possible, one that it judges."""
    scenarios = applicable_scenarios(plugin)
    applicable = [scenario for scenario in scenarios if plugin.judges and plugin.judges(_suite(plugin, scenario))] or scenarios
    return next(
        (scenario for scenario in applicable if call_twice(plugin, "cure", scenario) != scenario.pipeline), applicable[0]
    )


def _suite(plugin: Plugin, scenario: Scenario) -> Suite:
    return replace(SUITE, plugins=(plugin.id,), recipe=scenario.pipeline.recipe)


def _run(plugin: Plugin, scenario: Scenario, value: float, crash: str = "") -> Run:
    """Return a run of the plugin in the fake lab, with one value for each measure."""
    measures = {reference: {name: value} for name, reference in plugin.measures.items()}
    lab = fake_lab.fake_lab(measures=measures, examples=EXAMPLES)
    study = fake_lab.make_study(plugin, suite=_suite(plugin, scenario), pipeline=scenario.pipeline, facts=scenario.profile)
    return fake_lab.run_study(study, (lambda trial: Record(key=trial.key, error=crash)) if crash else lab)


CHECKS: tuple[Callable[[Plugin], None], ...] = (
    check_page,
    check_measures,
    check_contrasts,
    check_functions,
    check_arms,
    check_replay,
    check_crashes,
    check_report,
    check_import,
)
