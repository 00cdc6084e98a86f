"""The conformance kit: the checks that every plugin must pass, as one call in the plugin's own tests. Imports no torch.

Each check may be called alone; it calls the plugin with many pipelines or runs it in a lab that trains nothing
(:mod:`xferbench.testing.fake_lab`).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import product
from math import isfinite
from typing import TYPE_CHECKING, Any

from xferbench.config import loader, render
from xferbench.core import interventions
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import TRAIN_MODE, Intervention, TrainModeByClass, parse
from xferbench.core.pipeline import Pipeline, Recipe, Selection, replace_data, replace_serving
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.record import Record
from xferbench.core.sections import flat_fields
from xferbench.core.suite import replace_rules
from xferbench.study import trials
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import Scenario, scenarios

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.run import Finding, Run

ID_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
PAGE_HEADINGS = ("Symptom", "Cause", "Remedy", "References")
MEASURE_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*@\d+")
HEAVY_PACKAGES = ("torch", "torchvision", "timm", "pandas", "matplotlib")
PLUGIN_FUNCTIONS = ("applies", "cure", "induce", "trust", "extra_arms", "derived_metrics", "plot")
PIPELINE_FUNCTIONS = ("applies", "cure", "induce", "trust", "extra_arms")  # functions of a pipeline and a profile
KINDS = ("paired", "info", "exact")
ARMS = ("subject", "cured", "scratch")
SUITE = replace_rules(fake_lab.SUITE, looks=(2,), tuning_seeds=1, budget=1e9)
EXAMPLES = 200
NUMBERS = (0.0, 0.001, 0.25, 0.5, 1.0, 2.0, 8.0)  # tested for each field of an intervention


def conforms(plugin: Plugin) -> None:
    """Run all checks on a plugin.

    Raises:
        AssertionError: At the first check that fails, with what was found, what was expected and what to do.
    """
    for check in CHECKS:
        check(plugin)


def intervention_conforms(kind: type[Intervention]) -> None:
    """Check a kind of intervention: spelling, words, range and, unless the lab finds it by its type, group and implementation.

    Raises:
        AssertionError: At the first check that fails, with what was found, what was expected and what to do.
    """
    what = f"intervention {kind.__name__}"
    _need(
        re.fullmatch(interventions.SPELLING, kind.spelling),
        what,
        found=kind.spelling,
        expected="lower-case words, as label-noise",
    )
    _need(kind.__doc__ and (kind.__doc__.strip().partition("\n")[0]), what, found="no docstring", expected="one line for lists")
    for value in _examples(kind):
        again = parse(str(value), [kind])
        _need(again == value, what, found=f"{value} read as {again!r}", expected="a spelling that parses to its value")
        _need(
            re.fullmatch(interventions.spelling_pattern([kind]), str(value)),
            what,
            found=value,
            expected="a spelling of its pattern",
        )
        words = value.describe()
        _need(words and "\n" not in words, f"words of {value}", found=repr(words), expected="one line")
    if kind.implementation or interventions.kind_source(kind):
        groups = interventions.EXTENSIBLE_GROUPS
        expected = f"a subclass of {' or '.join(group.__name__ for group in groups)}"
        _need(issubclass(kind, groups), what, found=", ".join(base.__name__ for base in kind.__bases__), expected=expected)
        module, _, function = kind.implementation.partition(":")
        expected = "module:function of a module that is installed"
        is_installed = module and function and importlib.util.find_spec(module)
        _need(is_installed, what, found=repr(kind.implementation), expected=expected)
        needs_start = issubclass(kind, interventions.Regularizer) and "pretrained" not in kind.requires
        _need(not needs_start, f"requires of {what}", found=kind.requires, expected="pretrained, whose weights it is given")


def _examples(kind: type[Intervention]) -> list[Intervention]:
    """Return values of a kind with numbers near the ends of each range."""
    limits = interventions.ranges(kind)
    numbers = {name: [int(n) if limit.whole else n for n in NUMBERS] for name, limit in limits.items()}
    valid = {name: dict.fromkeys(n for n in row if n in limits[name]) for name, row in numbers.items()}
    return [kind(**dict(zip(valid, values, strict=True))) for values in product(*valid.values())]


def _need(condition: object, what: str, *, found: object = "", expected: str = "", do: str = "") -> None:
    if not condition:
        raise AssertionError(str(UserError(what, found=str(found), expected=expected, do=do)))


def check_page(plugin: Plugin) -> None:
    """Check id, version, question, remedy and manual page."""
    _need(
        isinstance(plugin, Plugin),
        "this is not a plugin",
        found=type(plugin).__name__,
        expected="an xferbench.core.plugin.Plugin",
    )
    _need(ID_PATTERN.fullmatch(plugin.id), "id", found=plugin.id, expected="lower-case words with hyphens, as too-hot")
    _need(plugin.version >= 1, "version", found=plugin.version, expected="1, or higher after its question changed its meaning")
    for name in ("question", "remedy"):
        text = getattr(plugin, name)
        _need(text and "\n" not in text, name, found=repr(text), expected="one line")
    _need(plugin.question.endswith("?"), "question", found=plugin.question, expected="one that ends with a question mark")
    missing = [heading for heading in PAGE_HEADINGS if not re.search(rf"^{heading}\n[ \t]+\S", plugin.doc or "", re.MULTILINE)]
    expected = f"the headings {', '.join(PAGE_HEADINGS)}, each on a line of its own with indented text below"
    _need(not missing, "doc", found=f"no {', '.join(missing)}", expected=expected, do="add them to the module's docstring")


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
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        error = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        what = f"module {module} cannot be imported alone"
        _need(done.returncode == 0, what, found=error, expected="a module of an installed package")
        heavy = done.stdout.strip()
        do = "import it inside the functions that measure or draw"
        _need(not heavy, f"importing {module} imports {heavy}", expected="a fast start, also without torch", do=do)


def check_measures(plugin: Plugin) -> None:
    """Check that each measure is ``module:function@version`` of an existing function, with a name that no view has."""
    for name, reference in plugin.measures.items():
        what = f"measure {name}"
        expected = "module:function@version, as too_hot:heat@1"
        _need(MEASURE_PATTERN.fullmatch(reference), what, found=reference, expected=expected)
        module, _, function = reference.partition("@")[0].partition(":")
        target = getattr(importlib.import_module(module), function, None)
        _need(callable(target), what, found=f"no function {function} in {module}", expected="a function of a MeasureContext")
        _need(name not in trials.VIEWS, what, found="a view of that name", expected=f"none of {', '.join(trials.VIEWS)}")


def check_contrasts(plugin: Plugin) -> None:
    """Check that each contrast weighs known arms and views; weights of a difference sum to 0 and include the subject."""
    names = [contrast.name for contrast in plugin.contrasts]
    _need(
        names and len(set(names)) == len(names),
        "contrasts",
        found=", ".join(names),
        expected="one or more, each with a unique name",
    )
    if not plugin.has_verdict:
        changes = any(
            _call(plugin, "cure", scenario) != scenario.pipeline or _call(plugin, "induce", scenario)
            for scenario in _applicable(plugin)
        )
        expected = "a paired or exact contrast; or a cure that changes nothing, and no induced arms"
        _need(not changes, "contrasts", found="only measurements", expected=expected)
    arms: tuple[str, ...] = ARMS
    if plugin.extra_arms:
        arms += tuple(f"beside:{name}" for name in _call(plugin, "extra_arms", _applicable(plugin)[0]))
    for contrast in plugin.contrasts:
        _check_contrast(contrast, plugin.measures, arms if contrast.kind == "info" else ARMS)


def _check_contrast(contrast: Contrast, measures: Mapping[str, str], arms: Sequence[str]) -> None:
    what = f"contrast {contrast.name}"
    _need(
        ID_PATTERN.fullmatch(contrast.name),
        what,
        found=contrast.name,
        expected="lower-case words with hyphens, because it is part of an id",
    )
    _need(contrast.kind in KINDS, what, found=f"kind {contrast.kind}", expected=suggest(contrast.kind, KINDS))
    views = measures if contrast.kind == "exact" else trials.VIEWS
    kind = "a measure of the plugin" if contrast.kind == "exact" else "a view"
    for arm, view in contrast.weights:
        do = "name the subject: in the control an induced arm takes the subject's place"
        _need(arm in arms, what, found=f"arm {arm}", expected=" or ".join(arms), do=do)
        _need(view in views, what, found=f"view {view}", expected=f"{kind}: {suggest(view, views)}")
    weights = list(contrast.weights.values())
    _need(
        weights and all(map(isfinite, weights)) and any(weights),
        what,
        found=f"weights {weights}",
        expected="numbers, not all 0",
    )
    if contrast.kind != "info":
        has_subject = any(arm == "subject" and weight for (arm, _), weight in contrast.weights.items())
        _need(has_subject, what, found="no subject", expected="the subject, which an induced arm replaces in the control")
    if contrast.kind != "exact":
        difference = abs(sum(weights)) < 1e-9 * max(map(abs, weights))
        expected = "0: if all arms are equal there is no harm"
        _need(difference, what, found=f"weights that sum to {sum(weights):g}", expected=expected)


def check_functions(plugin: Plugin) -> None:
    """Check that its functions return the right type, the same value each time, and leave their arguments unchanged."""
    applicable = _applicable(plugin)
    expected = f'"" for at least one of {sum(1 for _ in scenarios())} pipelines'
    _need(applicable, "applies", found="a reason to skip every pipeline", expected=expected)
    kinds = {
        "cure": "a Pipeline or a Selection",
        "induce": "a mapping of arms by variant",
        "trust": "a text",
        "extra_arms": "a mapping of arms by name",
    }
    for scenario in applicable:
        for name, kind in kinds.items():
            if getattr(plugin, name):
                value = _call(plugin, name, scenario)
                right = {
                    "cure": isinstance(value, Pipeline | Selection),
                    "induce": hasattr(value, "items"),
                    "trust": isinstance(value, str),
                    "extra_arms": hasattr(value, "items"),
                }
                _need(right[name], f"{name} of {scenario.name}", found=type(value).__name__, expected=kind)


def _applicable(plugin: Plugin) -> list[Scenario]:
    """Return the scenarios to which the plugin applies."""
    return [scenario for scenario in scenarios() if not _call(plugin, "applies", scenario)]


def _call(plugin: Plugin, name: str, scenario: Scenario) -> Any:
    """Return the result of a function of the plugin, called twice with a scenario."""
    arguments = deepcopy((scenario.pipeline, scenario.profile))
    what = f"{name} of {scenario.name}"
    try:
        result, again = (getattr(plugin, name)(*arguments) for _ in range(2))
    except Exception as error:
        do = "return the reason in applies, or handle this pipeline"
        raise AssertionError(str(UserError(f"{what} crashes", found=f"{type(error).__name__}: {error}", do=do))) from error
    _need(result == again, what, found="another result the second time", expected="a pure function: the same result each time")
    unchanged = arguments == (scenario.pipeline, scenario.profile)
    _need(unchanged, what, found="a changed pipeline or profile", expected="arguments that stay unchanged")
    if name == "applies":
        text = isinstance(result, str) and "\n" not in result
        _need(text, what, found=repr(result), expected='the reason in one line, or "" if it applies')
    return result


def check_arms(plugin: Plugin) -> None:
    """Check that all arms change only training, serving or data interventions, and that a suite file can express each."""
    for scenario in _applicable(plugin):
        cured = _call(plugin, "cure", scenario)
        if isinstance(cured, Selection):
            _check_selection(cured, scenario)
        else:
            again = _call(plugin, "cure", replace(scenario, pipeline=cured))
            do = "return a cured pipeline unchanged, or return a Selection"
            _need(
                again == cured,
                f"cure of {scenario.name}",
                found="curing twice differs from curing once",
                expected="the same pipeline",
                do=do,
            )
        candidates = cured.candidates if isinstance(cured, Selection) else (cured,)
        for number, candidate in enumerate(candidates, start=1):
            _check_changes(
                candidate,
                scenario,
                f"cure of {scenario.name}" + (f", candidate {number}" if isinstance(cured, Selection) else ""),
            )
            _check_expressible(candidate, scenario, f"cure of {scenario.name}")
        for subject in dict.fromkeys((scenario.pipeline, *candidates) if isinstance(cured, Selection) else candidates):
            _check_induced(plugin, replace(scenario, pipeline=subject))
        for name, arm in (_call(plugin, "extra_arms", scenario) if plugin.extra_arms else {}).items():
            for candidate in arm.candidates if isinstance(arm, Selection) else (arm,):
                _check_changes(candidate, scenario, f"extra arm {name} of {scenario.name}", "train_size")
                _check_expressible(candidate, scenario, f"extra arm {name} of {scenario.name}")


def _check_induced(plugin: Plugin, scenario: Scenario) -> None:
    for variant, arm in _call(plugin, "induce", scenario).items():
        what = f"induced {variant} of {scenario.name}"
        expected = "lower-case words with hyphens, because it is part of an id"
        _need(ID_PATTERN.fullmatch(variant), what, found=variant, expected=expected)
        for candidate in arm.candidates if isinstance(arm, Selection) else (arm,):
            _check_changes(candidate, scenario, what, "expected_training", "injected_duplicates")
            _need(
                candidate != scenario.pipeline, what, found="the cured pipeline itself", expected="a pipeline with the failure"
            )
            # Only an induced arm may be served in training mode on batches ordered by class; a suite file cannot express it.
            _check_expressible(_with_mode_of_suites(candidate), scenario, what)


def _with_mode_of_suites(arm: Pipeline) -> Pipeline:
    return replace_serving(arm, mode=TRAIN_MODE) if arm.serving.mode == TrainModeByClass() else arm


def _check_selection(cured: Selection, scenario: Scenario) -> None:
    what = f"cure of {scenario.name}"
    others = set(cured.candidates) - {scenario.pipeline}
    _need(
        others,
        what,
        found="a selection without an alternative",
        expected="at least one candidate other than the user's pipeline",
    )
    for view in (cured.by, cured.keeping):
        allowed = [name for name, named_view in trials.VIEWS.items() if named_view.examples in {"validation", "held-out"}]
        _need(not view or view in allowed, what, found=f"selected by {view}", expected=suggest(view, allowed))


def _check_changes(arm: object, scenario: Scenario, what: str, *more: str) -> None:
    """Check that an arm differs from the scenario's pipeline only in fields that an arm may change."""
    allowed = {
        "recipe",
        "train_preprocessing",
        "preprocessing",
        "mode",
        "evaluation_split",
        "edits",
        "interventions",
        *more,
    }
    found = type(arm).__name__ if not isinstance(arm, Pipeline) else "another backbone, data or size"
    expected = "a pipeline that changes only recipe, preprocessing, mode, edits or interventions"
    is_allowed = isinstance(arm, Pipeline) and _changed_fields(arm, scenario.pipeline) <= allowed
    _need(is_allowed, what, found=found, expected=expected)


def _changed_fields(arm: Pipeline, pipeline: Pipeline) -> set[str]:
    """Return the names of the fields, within their sections, that differ between two pipelines."""
    pairs = zip(flat_fields(arm), flat_fields(pipeline), strict=True)
    return {field.name for (field, value), (_, other) in pairs if field.compare and value != other}


def _check_expressible(arm: Pipeline, scenario: Scenario, name: str) -> None:
    """Check that a suite file can express an arm: its lines are valid and load as the same pipeline."""
    import tomllib
    from pathlib import Path

    recorded = scenario.profile.preprocessing
    lines = render.pipeline_patch(replace_data(arm, interventions=scenario.pipeline.data.interventions), arm, recorded)
    text = "; ".join(line for line in lines if line)
    table = {
        "schema": 1,
        "name": "kit",
        "plugins": ["all"],
        "backbone": {"arch": arm.backbone.arch},
        "target": {"data": "digits"},
    }
    roles = {"source": arm.data.source, "shifted": arm.data.shifted}
    auxiliary = {role: {"data": "digits"} for role, dataset in roles.items() if dataset}
    what = f"{name}: no suite file can express it"
    try:
        patch = tomllib.loads("\n".join(lines))
        patch["target"] = table["target"] | patch.get("target", {})
        suite = loader.parse_suite(table | auxiliary | patch, Path("kit.toml"))
    except UserError as error:
        location = error.what.partition(": ")[2]
        raise AssertionError(str(UserError(what, found=text, expected=error.expected, do=f"correct {location}"))) from error
    train = suite.data.train_preprocessing or recorded
    reloaded = replace(
        arm,
        recipe=suite.recipe or Recipe(),
        data=replace(arm.data, train_preprocessing=train, interventions=suite.data.interventions),
        serving=replace(arm.serving, preprocessing=suite.serving.preprocessing or train, mode=suite.serving.mode),
    )
    _need(digest(reloaded) == digest(arm), what, found=text, expected="lines that load as the same pipeline")


def check_replay(plugin: Plugin) -> None:
    """Check that it reaches findings in every scenario, and that a crash or a missing measure is never a PASS."""
    for scenario in scenarios():
        for finding in _run(plugin, scenario, 1.0).findings:
            do = "return the reason in applies, or correct the error"
            _need(
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
        _need(not wrong, f"{finding.id} without a measure", found=finding.verdict, expected="ERROR")
    for finding in _run(plugin, scenario, 1.0, crash="Boom: on purpose").findings:
        what = f"{finding.id} if every training crashes"
        _need(finding.verdict == "ERROR", what, found=finding.verdict, expected="ERROR")


def check_crashes(plugin: Plugin) -> None:
    """Check that a crash inside any of its functions gives an ERROR finding and affects no other plugin."""

    def crash(*_: object) -> Any:
        raise RuntimeError("on purpose")

    for name in (*PIPELINE_FUNCTIONS, "derived_metrics"):
        if getattr(plugin, name):
            findings = _run(_with(plugin, name, crash), _first(plugin), 0.0).findings
            paired = [finding for finding in findings if name != "derived_metrics" or _kind(plugin, finding) == "paired"]
            silent = [finding.id for finding in paired if finding.verdict != "ERROR"]
            _need(not silent, f"{name} crashes", found=", ".join(silent), expected="ERROR findings")


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
        _need(all(plugin.id in report for report in reports), "the report does not name the plugin")
        svg = figures.draw_plugin_plot(plugin, finished)
        error = re.sub("<.*?>", "", svg[:400]) if "could not be drawn" in svg[:400] else ""
        _need(not error, "plot", found=error, expected="a drawing of a finished run, also if it is loaded from its files")


def _kind(plugin: Plugin, finding: Finding) -> str:
    return next(contrast.kind for contrast in plugin.contrasts if contrast.name == finding.contrast)


def _first(plugin: Plugin) -> Scenario:
    """Return the first scenario that its cure changes, or the first to which it applies."""
    applicable = _applicable(plugin)
    return next((scenario for scenario in applicable if _call(plugin, "cure", scenario) != scenario.pipeline), applicable[0])


def _run(plugin: Plugin, scenario: Scenario, value: float, crash: str = "") -> Run:
    """Return a run of the plugin in the fake lab, with one value for each measure."""
    measures = {reference: {name: value} for name, reference in plugin.measures.items()}
    lab = fake_lab.fake_lab(measures=measures, examples=EXAMPLES)
    suite = replace(SUITE, plugins=(plugin.id,), recipe=scenario.pipeline.recipe)
    study = fake_lab.make_study(plugin, suite=suite, pipeline=scenario.pipeline, facts=scenario.profile)
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
