"""Expands the [matrix] of a suite: targets × sizes × backbones become tasks, and each task is a suite of its own. Pure."""

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
from xferbench.core.suite import Claim, Matrix, RecipeGrid

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
    recipe: Callable[[Mapping[str, Any]], Recipe],
    possible: Callable[[Recipe, Suite], None],
) -> Suite:
    """A suite with a matrix; its other fields are those of its first task.

    Args:
        table: the suite file. path: of the suite file. parse: turns a table without a matrix into a suite.
        recipe: turns keys of [recipe] into a recipe. possible: refuses a recipe that a suite cannot have.

    Raises:
        UserError: with the key, the value found and the values expected.
    """
    rest = {key: value for key, value in table.items() if key != "matrix"}
    values = validation.validate_value("matrix", table["matrix"], MATRIX)
    if "checkpoint" in table:
        raise UserError("checkpoint", found="a finished network, beside [matrix]", expected="one of them")
    similar, task_tables = build_task_tables(rest, values)
    tasks = tuple(_parse_task(name, task_table, path, parse) for name, task_table in task_tables.items())
    compared = tuple(_parse_recipe(entry, values, recipe) for entry in _expand_all(values["recipes"]))
    for grid, task in product(compared, tasks):
        for candidate in grid.recipes if grid.name not in STRATEGIES else ():  # a strategy that does not fit is left out
            try:
                possible(candidate, task)
            except UserError as problem:
                raise problem.at(f"matrix.recipes: {grid.name}: {problem.what}") from problem
    names = [grid.name for grid in compared]
    against = values.get("against", names[0] if names else "")
    if names and against not in names:
        raise UserError("matrix.against", found=against, expected=suggest(against, names))
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError("matrix.recipes", found=f"{', '.join(sorted(twice))} twice", expected="a name for each")
    effects = tuple(_parse_claim(entry, tasks, names) for entry in values.get("effects", ()))
    if "recipe" in table and not tasks[0].plugins:
        raise UserError(
            "recipe",
            found="beside [matrix], in a suite without plugins",
            expected="plugins that ask about it",
            do="leave it out",
        )
    matrix = Matrix(tasks=tasks, compared=compared, against=against, effects=effects, similar=similar)
    return replace(tasks[0], name=str(table.get("name")), path=str(path), matrix=matrix)


def build_task_tables(table: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, dict[str, Any]]]:
    """Which tasks are said to be like the source, and the table of each task by its name.

    A name consists of the target's name, then of the size if there are several, then of the backbone if there are several.
    """
    shared = dict(table.get("target") or {})
    if "targets" not in values and "data" not in shared:
        raise UserError(
            "matrix.targets", found="none, and no [target] data", expected="one [[matrix.targets]] or more, with name and data"
        )
    if "targets" in values and "data" in shared:
        raise UserError("target.data", found="beside [[matrix.targets]]", expected="data in those alone", do="leave it out")
    targets = values.get("targets") or [{"name": str(table.get("name")), **shared}]
    if "train_sizes" in values and (odd := [target["name"] for target in targets if "train_size" in target]):
        expected = "one of them"
        raise UserError("matrix.train_sizes", found=f"train_size of {', '.join(odd)}, beside train_sizes", expected=expected)
    sizes = values.get("train_sizes") or [None]
    backbones = values.get("backbones") or [{"name": "", **dict(table.get("backbone") or {})}]
    tables: dict[str, dict[str, Any]] = {}
    similar: dict[str, bool] = {}
    for target, size, backbone in product(targets, sizes, backbones):
        parts = [target["name"], size if len(sizes) > 1 else "", backbone["name"] if len(backbones) > 1 else ""]
        name = "-".join(str(part) for part in parts if part)
        if name in tables:
            raise UserError("matrix", found=f"two tasks named {name}", expected="names that tell targets and backbones apart")
        own = {key: value for key, value in target.items() if key not in {"name", "shifted", "source", "similar"}}
        similar |= {name: target["similar"]} if "similar" in target else {}
        domains = {role: {"data": target[role]} for role in ("shifted", "source") if role in target}
        tables[name] = {
            **table,
            **domains,
            "name": name,
            "target": shared | own | ({"train_size": size} if size else {}),
            "backbone": {key: value for key, value in backbone.items() if key != "name"},
        }
    return similar, tables


def _parse_task(name: str, table: Mapping[str, Any], path: Path, parse: Parse) -> Suite:
    try:
        return parse(table, path)
    except UserError as problem:
        raise problem.at(f"{problem.what} (task {name})") from problem


def _expand_all(recipes: Sequence[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """The recipes, with the default and every strategy in the place of ``all``."""
    return [name for entry in recipes for name in ((DEFAULT_NAME, *STRATEGIES) if entry == "all" else (entry,))]


def _parse_recipe(
    entry: str | Mapping[str, Any], values: Mapping[str, Any], recipe: Callable[[Mapping[str, Any]], Recipe]
) -> RecipeGrid:
    """A strategy at its usual rate times each factor, or a recipe in the keys of a suite at its own rates times each factor."""
    budget = Phase(steps=values.get("steps", Phase().steps), batch_size=values.get("batch_size", Phase().batch_size))
    factors = values.get("rates", (1.0,))
    if isinstance(entry, str):
        if entry in {DEFAULT_NAME, SCRATCH_NAME}:
            return RecipeGrid(name=entry)
        if entry not in STRATEGIES:
            raise UserError("matrix.recipes", found=entry, expected=suggest(entry, [DEFAULT_NAME, "all", *STRATEGIES]))
        usual = USUAL_LR.get(entry, Phase().lr)
        return RecipeGrid(
            name=entry, recipes=tuple(STRATEGIES[entry](replace(budget, lr=usual * factor)) for factor in factors)
        )
    fields = {key: value for key, value in entry.items() if key != "name"}
    if entry["name"] in {DEFAULT_NAME, SCRATCH_NAME, "all"}:
        raise UserError("matrix.recipes", found=f"a recipe of one's own named {entry['name']}", expected="another name")
    try:
        parsed = recipe({"steps": budget.steps, "batch_size": budget.batch_size, **fields})
    except UserError as problem:
        raise problem.at(f"matrix.recipes: {entry['name']}: {problem.what}") from problem
    scaled = (
        tuple(replace(phase, lr=phase.lr * factor, head_lr=phase.head_lr and phase.head_lr * factor) for phase in parsed.phases)
        for factor in factors
    )
    return RecipeGrid(name=str(entry["name"]), recipes=tuple(replace(parsed, phases=phases) for phases in scaled))


def _parse_claim(entry: Mapping[str, Any], tasks: Sequence[Suite], recipes: Sequence[str]) -> Claim:
    """A claim about one number; its task, recipes, plugin and domain must exist."""
    what, names = f"matrix.effects: {entry['name']}", [task.name for task in tasks]
    task = entry.get("task", names[0] if len(names) == 1 else "")
    if task not in names:
        raise UserError(f"{what}: task", found=task or "none", expected=suggest(task, names))
    for key in ("recipe", "against"):
        if key in entry and entry[key] not in recipes:
            raise UserError(f"{what}: {key}", found=entry[key], expected=suggest(entry[key], recipes))
    if "recipe" in entry and entry.get("against") == entry["recipe"]:
        raise UserError(f"{what}: against", found="the recipe itself", expected="another one")
    numbers = [kind for kind in ("contrast", "recipe") if kind in entry]
    kinds = [kind for kind in ("against", "measure") if kind in entry]
    two = entry.get("measure") == "speed-up"  # a number of two recipes
    if len(numbers) != 1 or ("recipe" in entry) != (len(kinds) == 1 + two) or (two and "against" not in entry):
        expected = "contrast; or recipe and against, or recipe and measure (speed-up: recipe, against and measure)"
        raise UserError(f"{what}: which number", found=", ".join([*numbers, *kinds]) or "none", expected=expected)
    if "at_least" not in entry and "at_most" not in entry:
        raise UserError(f"{what}: at_least, at_most", found="neither", expected="one of them, or both for what lies between")
    if entry.get("at_least", -inf) > entry.get("at_most", inf):
        raise UserError(f"{what}: at_least, at_most", found="the least above the most", expected="the least below the most")
    _check_existence(what, entry, tasks[names.index(task)])
    whole = {"share": 1.0, "accuracy": METRICS[tasks[0].metric].span, "": METRICS[tasks[0].metric].span}
    span = inf if "contrast" in entry else whole.get(entry.get("measure", ""), inf)
    for key in ("at_least", "at_most", "published"):
        if abs(entry.get(key, 0.0)) > span:
            raise UserError(
                f"{what}: {key}", found=f"{entry[key]:g}", expected=f"at most {span:g}: two points of accuracy are 0.02"
            )
    return Claim(**(dict(entry) | {"task": task}))


def _check_existence(what: str, entry: Mapping[str, Any], task: Suite) -> None:
    """Refuse a contrast of a plugin that the suite does not list, and a view of a domain that the task lacks."""
    if "view" in entry and ("contrast" in entry or "measure" in entry):
        raise UserError(f"{what}: view", found=entry["view"], expected="no view: beside recipe and against alone")
    domain = entry.get("view", "").partition("-")[0]
    if domain in {"source", "shifted"} and getattr(task, domain) is None:
        raise UserError(f"{what}: view", found=entry["view"], expected=f"a [{domain}] of the task {task.name}, or another view")
    plugin = entry.get("contrast", "").partition("/")[0]
    if plugin and not {plugin, "all"} & {*task.plugins}:
        expected = suggest(plugin, task.plugins) if task.plugins else "a plugin that the suite lists; it lists none"
        raise UserError(f"{what}: contrast", found=entry["contrast"], expected=expected)
