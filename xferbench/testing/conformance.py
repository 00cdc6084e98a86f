"""The conformance kit: what every plugin owes, as one call of a plugin's own tests. It needs neither torch nor a test runner.

    from xferbench.testing.conformance import conforms

    def test_it_conforms():
        conforms(plugin)

Each check may be called by itself; all raise AssertionError with what was found, what was expected and what to do. The plugin
is asked about a range of pipelines and goes through a laboratory that trains nothing (:mod:`xferbench.testing.fake_lab`).
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
from xferbench.core.interventions import DataIntervention, Intervention, parse
from xferbench.core.pipeline import Pipeline, Recipe, Selection
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.record import Record
from xferbench.study import trials
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import Scenario, scenarios

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.run import Finding, Run

ID_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SPELLING = re.compile(r"[a-z0-9]+([-:+@][a-z0-9]+)*")
PAGE_HEADINGS = ("Symptom", "Cause", "Remedy", "References")
MEASURE_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*@\d+")
HEAVY_PACKAGES = ("torch", "torchvision", "timm", "pandas", "matplotlib")
PLUGIN_FUNCTIONS = ("applies", "cure", "induce", "trust", "extra_arms", "derived_metrics", "plot")
PIPELINE_FUNCTIONS = ("applies", "cure", "induce", "trust", "extra_arms")  # of a pipeline and facts
KINDS = ("paired", "info", "exact")
ARMS = ("subject", "cured", "scratch")
SUITE = replace(fake_lab.SUITE, looks=(2,), tuning_seeds=1, budget=1e9)
EXAMPLES = 200
NUMBERS = (0.0, 0.001, 0.25, 0.5, 1.0, 2.0, 8.0)  # tried of each field of an intervention


def conforms(plugin: Plugin) -> None:
    """Carry out all checks.

    Raises:
        AssertionError: at the first that fails, with what was found, what was expected and what to do.
    """
    for check in CHECKS:
        check(plugin)


def intervention_conforms(kind: type[Intervention]) -> None:
    """Check a kind of intervention: its spelling, words and range, and for one of the data its implementation.

    Raises:
        AssertionError: at the first check that fails, with what was found, what was expected and what to do.
    """
    what = f"intervention {kind.__name__}"
    _need(SPELLING.fullmatch(kind.spelling), what, found=kind.spelling, expected="lower-case words, as label-noise")
    _need(kind.__doc__ and (kind.__doc__.strip().partition("\n")[0]), what, found="no docstring", expected="one line for lists")
    for value in _examples(kind):
        again = parse(str(value), [kind])
        _need(again == value, what, found=f"{value} read as {again!r}", expected="a spelling that is read as its value")
        _need(
            re.fullmatch(interventions.spelling_pattern([kind]), str(value)),
            what,
            found=value,
            expected="a spelling of its pattern",
        )
        words = value.describe()
        _need(words and "\n" not in words, f"words of {value}", found=repr(words), expected="one line")
    if issubclass(kind, DataIntervention):
        module, _, function = kind.implementation.partition(":")
        expected = "module:function of a module that is installed"
        _need(module and function and importlib.util.find_spec(module), what, found=kind.implementation, expected=expected)


def _examples(kind: type[Intervention]) -> list[Intervention]:
    """Values of a kind with numbers near the ends of each range."""
    limits = interventions.ranges(kind)
    tried = {name: [int(n) if limit.whole else n for n in NUMBERS] for name, limit in limits.items()}
    near = {name: dict.fromkeys(n for n in numbers if n in limits[name]) for name, numbers in tried.items()}
    return [kind(**dict(zip(near, numbers, strict=True))) for numbers in product(*near.values())]


def _need(held: object, what: str, *, found: object = "", expected: str = "", do: str = "") -> None:
    if not held:
        raise AssertionError(str(UserError(what, found=str(found), expected=expected, do=do)))


def check_page(plugin: Plugin) -> None:
    """Its id, version, question, remedy and manual page say what a reader needs."""
    _need(
        isinstance(plugin, Plugin), "this is no plugin", found=type(plugin).__name__, expected="an xferbench.core.plugin.Plugin"
    )
    _need(ID_PATTERN.fullmatch(plugin.id), "id", found=plugin.id, expected="lower-case words with hyphens, as too-hot")
    _need(plugin.version >= 1, "version", found=plugin.version, expected="1, or more once its question has changed its meaning")
    for name in ("question", "remedy"):
        text = getattr(plugin, name)
        _need(text and "\n" not in text, name, found=repr(text), expected="one line")
    _need(plugin.question.endswith("?"), "question", found=plugin.question, expected="one that ends with a question mark")
    missing = [one for one in PAGE_HEADINGS if not re.search(rf"^{one}\n[ \t]+\S", plugin.doc or "", re.MULTILINE)]
    expected = f"the headings {', '.join(PAGE_HEADINGS)}, each on a line of its own with indented text below"
    _need(not missing, "doc", found=f"no {', '.join(missing)}", expected=expected, do="write the module's docstring so")


def check_import(plugin: Plugin) -> None:
    """The modules of its functions and measures can be imported by themselves, and bring in nothing heavy."""
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
        told = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        what = f"module {module} cannot be imported by itself"
        _need(done.returncode == 0, what, found=told, expected="a module of a package that is installed")
        heavy = done.stdout.strip()
        do = "import it inside the functions that measure or draw"
        _need(not heavy, f"importing {module} imports {heavy}", expected="a start in no time, without torch too", do=do)


def check_measures(plugin: Plugin) -> None:
    """Each is ``module:function@version`` of a function that is there, under a name that no view has."""
    for name, reference in plugin.measures.items():
        what = f"measure {name}"
        expected = "module:function@version, as too_hot:heat@1"
        _need(MEASURE_PATTERN.fullmatch(reference), what, found=reference, expected=expected)
        module, _, function = reference.partition("@")[0].partition(":")
        found = getattr(importlib.import_module(module), function, None)
        _need(callable(found), what, found=f"no function {function} in {module}", expected="one that takes what was seen")
        _need(name not in trials.VIEWS, what, found="a view of that name", expected=f"none of {', '.join(trials.VIEWS)}")


def check_contrasts(plugin: Plugin) -> None:
    """Each weighs arms and views that there are; a difference is one, and the subject is in it."""
    names = [one.name for one in plugin.contrasts]
    _need(
        names and len(set(names)) == len(names),
        "contrasts",
        found=", ".join(names),
        expected="one or more, each of its own name",
    )
    if not plugin.has_verdict:
        asked = [world for world in scenarios() if not _said(plugin, "applies", world)]
        told = any(_said(plugin, "cure", one) != one.pipeline or _said(plugin, "induce", one) for one in asked)
        expected = "one that is judged, paired or exact; or a cure that changes nothing, and nothing induced"
        _need(not told, "contrasts", found="measurements alone", expected=expected)
    arms: tuple[str, ...] = ARMS
    if plugin.extra_arms:
        world = next(world for world in scenarios() if not _said(plugin, "applies", world))
        arms += tuple(f"beside:{name}" for name in _said(plugin, "extra_arms", world))
    for one in plugin.contrasts:
        _contrast(one, plugin.measures, arms if one.kind == "info" else ARMS)


def _contrast(one: Contrast, measures: Mapping[str, str], arms: Sequence[str]) -> None:
    what = f"contrast {one.name}"
    _need(
        ID_PATTERN.fullmatch(one.name), what, found=one.name, expected="lower-case words with hyphens, for it is part of an id"
    )
    _need(one.kind in KINDS, what, found=f"kind {one.kind}", expected=suggest(one.kind, KINDS))
    known = measures if one.kind == "exact" else trials.VIEWS
    whose = "a measure of the plugin" if one.kind == "exact" else "a view"
    for arm, view in one.weights:
        do = "an induced arm takes the subject's place by itself"
        _need(arm in arms, what, found=f"arm {arm}", expected=" or ".join(arms), do=do)
        _need(view in known, what, found=f"view {view}", expected=f"{whose}: {suggest(view, known)}")
    weights = list(one.weights.values())
    _need(
        weights and all(map(isfinite, weights)) and any(weights),
        what,
        found=f"weights {weights}",
        expected="numbers, not all 0",
    )
    if one.kind != "info":
        subject = any(arm == "subject" and weight for (arm, _), weight in one.weights.items())
        _need(subject, what, found="no subject", expected="the subject, whose place an induced arm takes in the control")
    if one.kind != "exact":
        difference = abs(sum(weights)) < 1e-9 * max(map(abs, weights))
        expected = "0: where all arms are equal there is no harm"
        _need(difference, what, found=f"weights that sum to {sum(weights):g}", expected=expected)


def check_functions(plugin: Plugin) -> None:
    """What it says of a pipeline is of the right kind, the same each time, and leaves what it was given as it was."""
    asked = [world for world in scenarios() if not _said(plugin, "applies", world)]
    everywhere = f"a pipeline of {sum(1 for _ in scenarios())} that it can be asked about"
    _need(asked, "applies", found="a reason to skip every one", expected=everywhere)
    kinds = {
        "cure": "a pipeline or a choice",
        "induce": "a mapping of arms by variant",
        "trust": "a text",
        "extra_arms": "a mapping of arms by name",
    }
    for world in asked:
        for name, kind in kinds.items():
            if getattr(plugin, name):
                told = _said(plugin, name, world)
                right = {
                    "cure": isinstance(told, Pipeline | Selection),
                    "induce": hasattr(told, "items"),
                    "trust": isinstance(told, str),
                    "extra_arms": hasattr(told, "items"),
                }
                _need(right[name], f"{name} of {world.name}", found=type(told).__name__, expected=kind)


def _said(plugin: Plugin, name: str, world: Scenario) -> Any:
    """What a function says of a world, asked twice."""
    given = deepcopy((world.pipeline, world.facts))
    what = f"{name} of {world.name}"
    try:
        told, again = (getattr(plugin, name)(*given) for _ in range(2))
    except Exception as error:
        do = "say in applies why it cannot be asked here, or deal with it"
        raise AssertionError(str(UserError(f"{what} crashes", found=f"{type(error).__name__}: {error}", do=do))) from error
    _need(told == again, what, found="another answer the second time", expected="a pure function: the same of the same")
    unchanged = given == (world.pipeline, world.facts)
    _need(unchanged, what, found="another pipeline or other facts afterwards", expected="what it is given, as it was")
    if name == "applies":
        text = isinstance(told, str) and "\n" not in told
        _need(text, what, found=repr(told), expected='the reason in one line, or "" where it can be asked')
    return told


def check_arms(plugin: Plugin) -> None:
    """All arms change how one trains or serves, and nothing else; each is something that a suite could ask for."""
    for world in scenarios():
        if _said(plugin, "applies", world):
            continue
        cured = _said(plugin, "cure", world)
        if isinstance(cured, Selection):
            _choice(cured, world)
        else:
            again = _said(plugin, "cure", replace(world, pipeline=cured))
            do = "leave what is cured as it is, or return a Choice"
            _need(again == cured, f"cure of {world.name}", found="curing twice is not curing once", expected="the same", do=do)
        candidates = cured.candidates if isinstance(cured, Selection) else (cured,)
        for number, one in enumerate(candidates, start=1):
            _changed(one, world, f"cure of {world.name}" + (f", candidate {number}" if isinstance(cured, Selection) else ""))
            _statable(one, world, f"cure of {world.name}")
        for settled in dict.fromkeys((world.pipeline, *candidates) if isinstance(cured, Selection) else candidates):
            _induced(plugin, replace(world, pipeline=settled))
        for name, arm in (_said(plugin, "extra_arms", world) if plugin.extra_arms else {}).items():
            for one in arm.candidates if isinstance(arm, Selection) else (arm,):
                _changed(one, world, f"{name} beside {world.name}", "train_size")
                _statable(one, world, f"{name} beside {world.name}")


def _induced(plugin: Plugin, world: Scenario) -> None:
    for variant, arm in _said(plugin, "induce", world).items():
        what = f"induced {variant} of {world.name}"
        expected = "lower-case words with hyphens, for it is part of an id"
        _need(ID_PATTERN.fullmatch(variant), what, found=variant, expected=expected)
        for one in arm.candidates if isinstance(arm, Selection) else (arm,):
            _changed(one, world, what, "expected_training", "injected_duplicates")
            _need(one != world.pipeline, what, found="the cured pipeline itself", expected="one with the failure put in")
            modes = f"one of {', '.join(trials.SERVING_MODES)}"
            _need(one.mode in trials.SERVING_MODES, what, found=f"mode {one.mode}", expected=modes)
            # Only an induced arm is served in training mode on batches of one class each; a suite has no word for that.
            _statable(replace(one, mode=one.mode.removesuffix(":class")), world, what)


def _choice(cured: Selection, world: Scenario) -> None:
    what = f"cure of {world.name}"
    others = set(cured.candidates) - {world.pipeline}
    _need(others, what, found="a choice without an alternative", expected="one or more beside the user's own pipeline")
    for view in (cured.by, cured.keeping):
        chosen_by = [name for name, look in trials.VIEWS.items() if look.examples in {"validation", "held-out"}]
        _need(not view or view in chosen_by, what, found=f"chosen by {view}", expected=suggest(view, chosen_by))


def _changed(arm: object, world: Scenario, what: str, *more: str) -> None:
    """An arm is the world's pipeline, but for how it trains, serves and is scored; what is induced may have more of its own."""
    own = world.pipeline
    names = (
        "recipe",
        "train_preprocessing",
        "serve_preprocessing",
        "mode",
        "evaluation_split",
        "edits",
        "interventions",
        *more,
    )
    free: dict[str, Any] = {name: getattr(own, name) for name in names}
    found = type(arm).__name__ if not isinstance(arm, Pipeline) else "another backbone, data or size"
    expected = "a pipeline with another recipe, preprocessing, mode, edits or interventions, and all else the same"
    _need(isinstance(arm, Pipeline) and replace(arm, **free) == own, what, found=found, expected=expected)


def _statable(arm: Pipeline, world: Scenario, whose: str) -> None:
    """A suite file must be able to ask for an arm: its lines obey the rules of suites and are read as what they stand for."""
    import tomllib
    from pathlib import Path

    recorded = world.facts.preprocessing
    lines = render.pipeline_patch(replace(arm, interventions=world.pipeline.interventions), arm, recorded)
    told = "; ".join(line for line in lines if line)
    table = {"schema": 1, "name": "kit", "plugins": ["all"], "backbone": {"arch": arm.arch}, "target": {"data": "digits"}}
    roles = {"source": arm.source, "shifted": arm.shifted}
    beside = {role: {"data": "digits"} for role, given in roles.items() if given}
    what = f"{whose}: no suite file can ask for it"
    try:
        patch = tomllib.loads("\n".join(lines))
        patch["target"] = table["target"] | patch.get("target", {})
        read = loader.parse_suite(table | beside | patch, Path("kit.toml"))
    except UserError as problem:
        where = problem.what.partition(": ")[2]
        raise AssertionError(str(UserError(what, found=told, expected=problem.expected, do=f"mend {where}"))) from problem
    train = read.train_preprocessing or recorded
    again = replace(
        arm,
        recipe=read.recipe or Recipe(),
        train_preprocessing=train,
        serve_preprocessing=read.serve_preprocessing or train,
        mode=read.serve_mode,
        interventions=read.interventions,
    )
    _need(digest(again) == digest(arm), what, found=told, expected="lines that are read as the pipeline that they stand for")


def check_replay(plugin: Plugin) -> None:
    """It goes from question to findings wherever it applies; a crash or a measure that is none is never a PASS."""
    for world in scenarios():
        for one in _run(plugin, world, 1.0).findings:
            do = "say in applies why it cannot be asked here, or mend what is told"
            _need(one.verdict != "ERROR", f"{one.id} of {world.name}", found=one.reason, expected="a verdict", do=do)
    world = _first(plugin)
    exact = {f"{plugin.id}/{one.name}" for one in plugin.contrasts if one.kind == "exact"}
    for one in _run(plugin, world, float("nan")).findings:
        passed = one.id in exact and one.verdict != "ERROR"
        _need(not passed, f"{one.id} without a measure", found=one.verdict, expected="ERROR")
    for one in _run(plugin, world, 1.0, crash="Boom: on purpose").findings:
        _need(one.verdict == "ERROR", f"{one.id} where every training crashes", found=one.verdict, expected="ERROR")


def check_crashes(plugin: Plugin) -> None:
    """A crash inside any of its functions is an ERROR finding, and ends nothing else."""

    def crash(*_: object) -> Any:
        raise RuntimeError("on purpose")

    for name in (*PIPELINE_FUNCTIONS, "derived_metrics"):
        if getattr(plugin, name):
            found = _run(_with(plugin, name, crash), _first(plugin), 0.0).findings
            paired = [one for one in found if name != "derived_metrics" or _kind(plugin, one) == "paired"]
            silent = [one.id for one in paired if one.verdict != "ERROR"]
            _need(not silent, f"{name} crashes", found=", ".join(silent), expected="ERROR findings")


def _with(plugin: Plugin, name: str, function: Callable[..., Any]) -> Plugin:
    changes: dict[str, Any] = {name: function}
    return replace(plugin, **changes)


def check_report(plugin: Plugin) -> None:
    """A full report is written of it, fresh and read back, and its picture draws."""
    from xferbench.core.run import run_to_json
    from xferbench.report import figures, files, html, junit, markdown

    run = _run(plugin, _first(plugin), 1.0)
    read_back = replace(run, arms=json.loads(json.dumps(run_to_json(run), allow_nan=False))["arms"])
    for one in (run, read_back):
        page = html.render(one, {plugin.id: plugin})
        named = plugin.id in page and plugin.id in markdown.render(one) and plugin.id in junit.render(one)
        _need(named and plugin.id in files.records_csv(one.cells), "the report does not name the plugin")
        drawn = figures.draw_plugin_plot(plugin, one)
        told = re.sub("<.*?>", "", drawn[:400]) if "could not be drawn" in drawn[:400] else ""
        _need(not told, "plot", found=told, expected="a drawing of a finished run, read back from its files too")


def _kind(plugin: Plugin, finding: Finding) -> str:
    return next(one.kind for one in plugin.contrasts if one.name == finding.contrast)


def _first(plugin: Plugin) -> Scenario:
    """The first world that it can be asked about; of these one where its cure changes anything, if there is any."""
    asked = [world for world in scenarios() if not _said(plugin, "applies", world)]
    return next((world for world in asked if _said(plugin, "cure", world) != world.pipeline), asked[0])


def _run(plugin: Plugin, world: Scenario, value: float, crash: str = "") -> Run:
    """A run of it in a laboratory that trains nothing, each measure having one value."""
    measures = {reference: {name: value} for name, reference in plugin.measures.items()}
    answer = fake_lab.fake_lab(measures=measures, examples=EXAMPLES)
    asked = replace(SUITE, plugins=(plugin.id,), recipe=world.pipeline.recipe)
    study = fake_lab.make_study(plugin, suite=asked, pipeline=world.pipeline, facts=world.facts)
    return fake_lab.run_study(study, (lambda trial: Record(key=trial.key, error=crash)) if crash else answer)


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
