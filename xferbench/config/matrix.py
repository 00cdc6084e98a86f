"""Expand the [matrix] of a suite: targets × sizes × backbones become tasks, and each task is a separate suite. Pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf
from typing import TYPE_CHECKING, Any

from xferbench.analysis.metrics import METRICS
from xferbench.config import validation
from xferbench.config.fields import MATRIX
from xferbench.core.errors import UserError, suggest
from xferbench.core.pipeline import Phase
from xferbench.core.strategies import DEFAULT_NAME, SCRATCH_NAME, STRATEGIES, USUAL_LR
from xferbench.core.suite import Claim, Matrix, RecipeGrid, replace_invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.core.pipeline import Recipe
    from xferbench.core.suite import Suite

    Parse = Callable[[Mapping[str, Any], Path], Suite]


def parse_matrix(
    table: Mapping[str, Any],
    path: Path,
    parse: Parse,
    parse_recipe: Callable[[Mapping[str, Any]], Recipe],
    check_recipe: Callable[[Recipe, Suite], None],
) -> Suite:
    """Return a suite with a matrix; its other fields are those of its first task.

    Args:
        table: the content of the suite file.
        path: the suite file.
        parse: function that turns a table without a matrix into a suite.
        parse_recipe: function that turns keys of [recipe] into a recipe.
        check_recipe: function that raises an error if a suite cannot use a recipe.

    Raises:
        UserError: with the key, the value found and the expected values.
    """
    shared = {key: value for key, value in table.items() if key != "matrix"}
    values = validation.validate_value("matrix", table["matrix"], MATRIX)
    if "checkpoint" in table:
        raise UserError("checkpoint", found="both [checkpoint] and [matrix]", expected="one of them")
    similar, task_tables = build_task_tables(shared, values)
    tasks = tuple(_parse_task(name, task_table, path, parse) for name, task_table in task_tables.items())
    grids = tuple(_parse_recipe(entry, values, parse_recipe) for entry in _expand_all(values["recipes"]))
    _check_grids(grids, tasks, check_recipe)
    names = [grid.name for grid in grids]
    against = values.get("against", names[0] if names else "")
    if names and against not in names:
        raise UserError("matrix.against", found=against, expected=suggest(against, names))
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise UserError("matrix.recipes", found=f"{', '.join(sorted(duplicates))} twice", expected="a different name for each")
    claims = tuple(_parse_claim(entry, tasks, names) for entry in values.get("effects", ()))
    if "recipe" in table and not tasks[0].plugins:
        raise UserError(
            "recipe",
            found="both [recipe] and [matrix] in a suite without plugins",
            expected="plugins, which test the recipe",
            do="leave [recipe] out, or list plugins",
        )
    matrix = Matrix(tasks=tasks, compared=grids, against=against, effects=claims, similar=similar)
    return replace(replace_invocation(tasks[0], path=str(path)), name=str(table.get("name")), matrix=matrix)


def _check_grids(grids: Sequence[RecipeGrid], tasks: Sequence[Suite], check_recipe: Callable[[Recipe, Suite], None]) -> None:
    """Refuse a recipe of the suite that a task cannot use; a strategy that a task cannot use is skipped there instead."""
    for grid, task in product(grids, tasks):
        for recipe in grid.recipes if grid.name not in STRATEGIES else ():
            try:
                check_recipe(recipe, task)
            except UserError as error:
                raise error.at(f"matrix.recipes: {grid.name}: {error.what}") from error


def build_task_tables(table: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, dict[str, Any]]]:
    """Return whether tasks are similar to the source, as far as the suite says so, and the table of each task, by task name.

    A name consists of the target's name, the size if there are several, and the backbone's name if there are several.

    Args:
        table: the suite's table without [matrix].
        values: the values of [matrix].

    Raises:
        UserError: if the targets are missing or defined twice, or if two tasks have the same name.
    """
    shared, backbone_table = (_shared_table(table, name) for name in ("target", "backbone"))
    targets = _list_targets(str(table.get("name")), shared, values)
    sizes = values.get("train_sizes") or [None]
    backbones = values.get("backbones") or [{"name": "", **backbone_table}]
    tables: dict[str, dict[str, Any]] = {}
    similar: dict[str, bool] = {}
    for target, size, backbone in product(targets, sizes, backbones):
        parts = [target["name"], size if len(sizes) > 1 else "", backbone["name"] if len(backbones) > 1 else ""]
        name = "-".join(str(part) for part in parts if part)
        if name in tables:
            expected = "names that distinguish targets and backbones"
            raise UserError("matrix", found=f"two tasks with the name {name}", expected=expected)
        target_values = {key: value for key, value in target.items() if key not in {"name", "shifted", "source", "similar"}}
        similar |= {name: target["similar"]} if "similar" in target else {}
        domains = {role: {"data": target[role]} for role in ("shifted", "source") if role in target}
        tables[name] = {
            **table,
            **domains,
            "name": name,
            "target": shared | target_values | ({"train_size": size} if size else {}),
            "backbone": {key: value for key, value in backbone.items() if key != "name"},
        }
    return similar, tables


def _shared_table(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table that all tasks share, which may be missing."""
    values = table.get(name, {})
    if not isinstance(values, dict):
        raise UserError(name, found=validation.format_value(values), expected=f"a table [{name}]")
    return dict(values)


def _list_targets(suite_name: str, shared: Mapping[str, Any], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the targets of a matrix; without [[matrix.targets]], [target] is the only one and has the suite's name."""
    if "targets" not in values and "data" not in shared:
        expected = "one or more [[matrix.targets]], with name and data"
        raise UserError("matrix.targets", found="no targets, and no [target] data", expected=expected)
    if "targets" in values and "data" in shared:
        expected = "data in [[matrix.targets]] only"
        raise UserError("target.data", found="data in [[matrix.targets]] too", expected=expected, do="leave it out")
    targets = list(values.get("targets") or [{"name": suite_name, **shared}])
    if "train_sizes" in values and (names := [target["name"] for target in targets if "train_size" in target]):
        found = f"train_sizes, and train_size of {', '.join(names)}"
        raise UserError("matrix.train_sizes", found=found, expected="one of them")
    return targets


def _parse_task(name: str, table: Mapping[str, Any], path: Path, parse: Parse) -> Suite:
    """Return the suite of a task; an error names the task."""
    try:
        return parse(table, path)
    except UserError as error:
        raise error.at(f"{error.what} (task {name})") from error


def _expand_all(recipes: Sequence[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """Return the recipes, with ``all`` replaced by the default recipe and every strategy."""
    return [name for entry in recipes for name in ((DEFAULT_NAME, *STRATEGIES) if entry == "all" else (entry,))]


def _parse_recipe(
    entry: str | Mapping[str, Any], values: Mapping[str, Any], parse_recipe: Callable[[Mapping[str, Any]], Recipe]
) -> RecipeGrid:
    """Return a strategy, or a recipe of the suite, with its usual learning rates multiplied by each factor."""
    budget = Phase(steps=values.get("steps", Phase().steps), batch_size=values.get("batch_size", Phase().batch_size))
    factors = values.get("rates", (1.0,))
    if isinstance(entry, str):
        if entry in {DEFAULT_NAME, SCRATCH_NAME}:
            return RecipeGrid(name=entry)
        if entry not in STRATEGIES:
            raise UserError("matrix.recipes", found=entry, expected=suggest(entry, [DEFAULT_NAME, "all", *STRATEGIES]))
        usual_lr = USUAL_LR.get(entry, Phase().lr)
        return RecipeGrid(
            name=entry, recipes=tuple(STRATEGIES[entry](replace(budget, lr=usual_lr * factor)) for factor in factors)
        )
    fields = {key: value for key, value in entry.items() if key != "name"}
    if entry["name"] in {DEFAULT_NAME, SCRATCH_NAME, "all"}:
        raise UserError("matrix.recipes", found=f"a recipe with the name {entry['name']}", expected="another name")
    try:
        recipe = parse_recipe({"steps": budget.steps, "batch_size": budget.batch_size, **fields})
    except UserError as error:
        raise error.at(f"matrix.recipes: {entry['name']}: {error.what}") from error
    return RecipeGrid(name=str(entry["name"]), recipes=tuple(_scale_rates(recipe, factor) for factor in factors))


def _scale_rates(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with the learning rates of all phases multiplied by a factor."""
    phases = (replace(phase, lr=phase.lr * factor, head_lr=phase.head_lr and phase.head_lr * factor) for phase in recipe.phases)
    return replace(recipe, phases=tuple(phases))


def _parse_claim(entry: Mapping[str, Any], tasks: Sequence[Suite], recipes: Sequence[str]) -> Claim:
    """Return a claim about one number.

    Raises:
        UserError: if its task, recipes, plugin or dataset do not exist, or if its limits are not possible.
    """
    what, names = f"matrix.effects: {entry['name']}", [task.name for task in tasks]
    task = entry.get("task", names[0] if len(names) == 1 else "")
    if task not in names:
        raise UserError(f"{what}: task", found=task or "none", expected=suggest(task, names))
    for key in ("recipe", "against"):
        if key in entry and entry[key] not in recipes:
            raise UserError(f"{what}: {key}", found=entry[key], expected=suggest(entry[key], recipes))
    if "recipe" in entry and entry.get("against") == entry["recipe"]:
        raise UserError(f"{what}: against", found="the same recipe", expected="another recipe")
    numbers = [key for key in ("contrast", "recipe") if key in entry]
    kinds = [key for key in ("against", "measure") if key in entry]
    needs_both = entry.get("measure") == "speed-up"  # the only measure of two recipes
    if len(numbers) != 1 or ("recipe" in entry) != (len(kinds) == 1 + needs_both) or (needs_both and "against" not in entry):
        expected = "contrast; or recipe and against; or recipe and measure (speed-up: recipe, against and measure)"
        raise UserError(f"{what}: keys of the number", found=", ".join([*numbers, *kinds]) or "none", expected=expected)
    _check_existence(what, entry, tasks[names.index(task)])
    _check_limits(what, entry, METRICS[tasks[0].rules.metric].span)
    return Claim(**(dict(entry) | {"task": task}))


def _check_limits(what: str, entry: Mapping[str, Any], metric_span: float) -> None:
    """Refuse limits that are missing, contradict each other, or exceed the range of the number."""
    if "at_least" not in entry and "at_most" not in entry:
        raise UserError(f"{what}: at_least, at_most", found="neither", expected="one of them, or both")
    if entry.get("at_least", -inf) > entry.get("at_most", inf):
        raise UserError(f"{what}: at_least, at_most", found="at_least above at_most", expected="at_least below at_most")
    spans = {"share": 1.0, "accuracy": metric_span, "": metric_span}
    span = inf if "contrast" in entry else spans.get(entry.get("measure", ""), inf)
    for key in ("at_least", "at_most", "published"):
        if abs(entry.get(key, 0.0)) > span:
            expected = f"at most {span:g}: two points of accuracy are 0.02"
            raise UserError(f"{what}: {key}", found=f"{entry[key]:g}", expected=expected)


def _check_existence(what: str, entry: Mapping[str, Any], task: Suite) -> None:
    """Refuse a contrast of a plugin that the suite does not list, and a view of a dataset that the task lacks."""
    if "view" in entry and ("contrast" in entry or "measure" in entry):
        raise UserError(f"{what}: view", found=entry["view"], expected="no view, because only recipe and against have one")
    role = entry.get("view", "").partition("-")[0]
    if role in {"source", "shifted"} and getattr(task.data, role) is None:
        raise UserError(f"{what}: view", found=entry["view"], expected=f"a [{role}] of the task {task.name}, or another view")
    plugin = entry.get("contrast", "").partition("/")[0]
    if plugin and not {plugin, "all"} & {*task.plugins}:
        expected = suggest(plugin, task.plugins) if task.plugins else "a plugin that the suite lists; it lists none"
        raise UserError(f"{what}: contrast", found=entry["contrast"], expected=expected)
