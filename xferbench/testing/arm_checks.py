"""The check that arms change only what an arm may change, and that a suite file can express them. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.config import loader, render
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import TRAIN_MODE, TrainModeByClass
from xferbench.core.pipeline import Pipeline, Recipe, Selection, replace_data, replace_serving
from xferbench.core.sections import flat_fields
from xferbench.study import trials
from xferbench.testing.need import ID_PATTERN, applicable_scenarios, call_twice, need

if TYPE_CHECKING:
    from xferbench.core.plugin import Plugin
    from xferbench.testing.fake_lab import Scenario


def check_arms(plugin: Plugin) -> None:
    """Check that all arms change only training, serving or data interventions, and that a suite file can express each."""
    for scenario in applicable_scenarios(plugin):
        cured = call_twice(plugin, "cure", scenario)
        if isinstance(cured, Selection):
            _check_selection(cured, scenario)
        else:
            again = call_twice(plugin, "cure", replace(scenario, pipeline=cured))
            do = "return a cured pipeline unchanged, or return a Selection"
            need(
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
        for name, arm in (call_twice(plugin, "extra_arms", scenario) if plugin.extra_arms else {}).items():
            for candidate in arm.candidates if isinstance(arm, Selection) else (arm,):
                _check_changes(candidate, scenario, f"extra arm {name} of {scenario.name}", "train_size")
                _check_expressible(candidate, scenario, f"extra arm {name} of {scenario.name}")


def _check_induced(plugin: Plugin, scenario: Scenario) -> None:
    for variant, arm in call_twice(plugin, "induce", scenario).items():
        what = f"induced {variant} of {scenario.name}"
        expected = "lower-case words with hyphens, because it is part of an id"
        need(ID_PATTERN.fullmatch(variant), what, found=variant, expected=expected)
        for candidate in arm.candidates if isinstance(arm, Selection) else (arm,):
            _check_changes(candidate, scenario, what, "expected_training", "injected_duplicates")
            need(
                candidate != scenario.pipeline, what, found="the cured pipeline itself", expected="a pipeline with the failure"
            )
            # Only an induced arm may be served in training mode on batches ordered by class; a suite file cannot express it.
            _check_expressible(_with_mode_of_suites(candidate), scenario, what)


def _with_mode_of_suites(arm: Pipeline) -> Pipeline:
    return replace_serving(arm, mode=TRAIN_MODE) if arm.serving.mode == TrainModeByClass() else arm


def _check_selection(cured: Selection, scenario: Scenario) -> None:
    what = f"cure of {scenario.name}"
    others = set(cured.candidates) - {scenario.pipeline}
    need(
        others,
        what,
        found="a selection without an alternative",
        expected="at least one candidate other than the user's pipeline",
    )
    for view in (cured.by, cured.keeping):
        allowed = [name for name, named_view in trials.VIEWS.items() if named_view.examples in {"validation", "held-out"}]
        need(not view or view in allowed, what, found=f"selected by {view}", expected=suggest(view, allowed))


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
    need(is_allowed, what, found=found, expected=expected)


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
    need(digest(reloaded) == digest(arm), what, found=text, expected="lines that load as the same pipeline")
