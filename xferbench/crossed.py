"""A suite's [matrix]: targets × sizes × backbones become tasks, each a suite of its own, on which recipes are compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf
from typing import TYPE_CHECKING, Any

from xferbench import keys, rules
from xferbench.design import Compared, Effect, Matrix, Phase
from xferbench.metrics import METRICS
from xferbench.problem import Problem, nearest
from xferbench.strategies import STRATEGIES, USUAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.design import Recipe, Suite

    Parse = Callable[[Mapping[str, Any], Path], Suite]

DEFAULT = "default"  # the recipe of a suite that has none
SCRATCH = "scratch"  # tuned over the suite's own grid, since an untuned baseline is no baseline


def parsed(
    table: Mapping[str, Any],
    path: Path,
    parse: Parse,
    recipe: Callable[[Mapping[str, Any]], Recipe],
    possible: Callable[[Recipe, Suite], None],
) -> Suite:
    """A suite with a matrix, whose other fields are those of its first task.

    Args:
        parse: makes a suite of a table without a matrix. recipe: a recipe of the keys of [recipe]. possible: refuses a recipe
            that a suite cannot have.

    Raises:
        Problem: with file, key, what was found and what was expected.
    """
    rest = {key: value for key, value in table.items() if key != "matrix"}
    given = rules.ruled("matrix", table["matrix"], keys.MATRIX)
    if "checkpoint" in table:
        raise Problem("checkpoint", found="a finished network, beside [matrix]", expected="one of them")
    similar, made = tables(rest, given)
    tasks = tuple(_task(name, told, path, parse) for name, told in made.items())
    compared = tuple(_compared(one, given, recipe) for one in _named(given["recipes"]))
    for one, own in product(compared, tasks):
        for candidate in one.recipes if one.name not in STRATEGIES else ():  # of those it is said that they are left out
            try:
                possible(candidate, own)
            except Problem as problem:
                raise problem.at(f"matrix.recipes: {one.name}: {problem.what}") from problem
    names = [one.name for one in compared]
    against = given.get("against", names[0] if names else "")
    if names and against not in names:
        raise Problem("matrix.against", found=against, expected=nearest(against, names))
    if twice := {name for name in names if names.count(name) > 1}:
        raise Problem("matrix.recipes", found=f"{', '.join(sorted(twice))} twice", expected="a name for each")
    effects = tuple(_effect(one, tasks, names) for one in given.get("effects", ()))
    if "recipe" in table and not tasks[0].plugins:
        raise Problem(
            "recipe",
            found="beside [matrix], in a suite without plugins",
            expected="plugins that ask about it",
            do="leave it out",
        )
    matrix = Matrix(tasks=tasks, compared=compared, against=against, effects=effects, similar=similar)
    return replace(tasks[0], name=str(table.get("name")), path=str(path), matrix=matrix)


def tables(table: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, dict[str, Any]]]:
    """The table of each task by its name, and which are said to be like the source.

    A name is its target's, then its size's where there are several, then its backbone's likewise.
    """
    own = dict(table.get("target") or {})
    if "targets" not in given and "data" not in own:
        raise Problem(
            "matrix.targets", found="none, and no [target] data", expected="one [[matrix.targets]] or more, with name and data"
        )
    if "targets" in given and "data" in own:
        raise Problem("target.data", found="beside [[matrix.targets]]", expected="data in those alone", do="leave it out")
    targets = given.get("targets") or [{"name": str(table.get("name")), **own}]
    if "train_sizes" in given and (odd := [one["name"] for one in targets if "train_size" in one]):
        expected = "one of them"
        raise Problem("matrix.train_sizes", found=f"train_size of {', '.join(odd)}, beside train_sizes", expected=expected)
    sizes = given.get("train_sizes") or [None]
    backbones = given.get("backbones") or [{"name": "", **dict(table.get("backbone") or {})}]
    found: dict[str, dict[str, Any]] = {}
    similar: dict[str, bool] = {}
    for target, size, backbone in product(targets, sizes, backbones):
        parts = [target["name"], size if len(sizes) > 1 else "", backbone["name"] if len(backbones) > 1 else ""]
        name = "-".join(str(part) for part in parts if part)
        if name in found:
            raise Problem("matrix", found=f"two tasks named {name}", expected="names that tell targets and backbones apart")
        one = {key: value for key, value in target.items() if key not in {"name", "shifted", "source", "similar"}}
        similar |= {name: target["similar"]} if "similar" in target else {}
        beside = {role: {"data": target[role]} for role in ("shifted", "source") if role in target}
        found[name] = {
            **table,
            **beside,
            "name": name,
            "target": own | one | ({"train_size": size} if size else {}),
            "backbone": {key: value for key, value in backbone.items() if key != "name"},
        }
    return similar, found


def _task(name: str, table: Mapping[str, Any], path: Path, parse: Parse) -> Suite:
    try:
        return parse(table, path)
    except Problem as problem:
        raise problem.at(f"{problem.what} (task {name})") from problem


def _named(recipes: Sequence[str | Mapping[str, Any]]) -> list[str | Mapping[str, Any]]:
    """Recipes with ``all`` made into every strategy."""
    return [own for one in recipes for own in ((DEFAULT, *STRATEGIES) if one == "all" else (one,))]


def _compared(
    one: str | Mapping[str, Any], given: Mapping[str, Any], recipe: Callable[[Mapping[str, Any]], Recipe]
) -> Compared:
    """A strategy at its usual rate times each factor, or a recipe in a suite's own keys at its own rates so multiplied."""
    budget = Phase(steps=given.get("steps", Phase().steps), batch_size=given.get("batch_size", Phase().batch_size))
    factors = given.get("rates", (1.0,))
    if isinstance(one, str):
        if one in {DEFAULT, SCRATCH}:
            return Compared(name=one)
        if one not in STRATEGIES:
            raise Problem("matrix.recipes", found=one, expected=nearest(one, [DEFAULT, "all", *STRATEGIES]))
        usual = USUAL.get(one, Phase().lr)
        return Compared(name=one, recipes=tuple(STRATEGIES[one](replace(budget, lr=usual * factor)) for factor in factors))
    keyed = {key: value for key, value in one.items() if key != "name"}
    if one["name"] in {DEFAULT, SCRATCH, "all"}:
        raise Problem("matrix.recipes", found=f"a recipe of one's own named {one['name']}", expected="another name")
    try:
        made = recipe({"steps": budget.steps, "batch_size": budget.batch_size, **keyed})
    except Problem as problem:
        raise problem.at(f"matrix.recipes: {one['name']}: {problem.what}") from problem
    scaled = (
        tuple(replace(phase, lr=phase.lr * factor, head_lr=phase.head_lr and phase.head_lr * factor) for phase in made.phases)
        for factor in factors
    )
    return Compared(name=str(one["name"]), recipes=tuple(replace(made, phases=phases) for phases in scaled))


def _effect(given: Mapping[str, Any], tasks: Sequence[Suite], recipes: Sequence[str]) -> Effect:
    """A claim whose task, recipes, plugin and domain are there, about one number."""
    what, names = f"matrix.effects: {given['name']}", [task.name for task in tasks]
    task = given.get("task", names[0] if len(names) == 1 else "")
    if task not in names:
        raise Problem(f"{what}: task", found=task or "none", expected=nearest(task, names))
    for key in ("recipe", "against"):
        if key in given and given[key] not in recipes:
            raise Problem(f"{what}: {key}", found=given[key], expected=nearest(given[key], recipes))
    if "recipe" in given and given.get("against") == given["recipe"]:
        raise Problem(f"{what}: against", found="the recipe itself", expected="another one")
    numbers = [kind for kind in ("contrast", "recipe") if kind in given]
    beside = [kind for kind in ("against", "measure") if kind in given]
    two = given.get("measure") == "speed-up"  # which is a number of two recipes
    if len(numbers) != 1 or ("recipe" in given) != (len(beside) == 1 + two) or (two and "against" not in given):
        expected = "contrast; or recipe and against, or recipe and measure (speed-up: recipe, against and measure)"
        raise Problem(f"{what}: which number", found=", ".join([*numbers, *beside]) or "none", expected=expected)
    if "at_least" not in given and "at_most" not in given:
        raise Problem(f"{what}: at_least, at_most", found="neither", expected="one of them, or both for what lies between")
    if given.get("at_least", -inf) > given.get("at_most", inf):
        raise Problem(f"{what}: at_least, at_most", found="the least above the most", expected="the least below the most")
    _there(what, given, tasks[names.index(task)])
    whole = {"share": 1.0, "accuracy": METRICS[tasks[0].metric].span, "": METRICS[tasks[0].metric].span}
    span = inf if "contrast" in given else whole.get(given.get("measure", ""), inf)
    for key in ("at_least", "at_most", "published"):
        if abs(given.get(key, 0.0)) > span:
            raise Problem(
                f"{what}: {key}", found=f"{given[key]:g}", expected=f"at most {span:g}: two points of accuracy are 0.02"
            )
    return Effect(**(dict(given) | {"task": task}))


def _there(what: str, given: Mapping[str, Any], task: Suite) -> None:
    """Refuse a number of a plugin that is not asked, and a view of what the task has not."""
    if "view" in given and ("contrast" in given or "measure" in given):
        raise Problem(f"{what}: view", found=given["view"], expected="no view: beside recipe and against alone")
    domain = given.get("view", "").partition("-")[0]
    if domain in {"source", "shifted"} and getattr(task, domain) is None:
        raise Problem(f"{what}: view", found=given["view"], expected=f"a [{domain}] of the task {task.name}, or another view")
    plugin = given.get("contrast", "").partition("/")[0]
    if plugin and not {plugin, "all"} & {*task.plugins}:
        expected = nearest(plugin, task.plugins) if task.plugins else "a plugin that the suite lists; it lists none"
        raise Problem(f"{what}: contrast", found=given["contrast"], expected=expected)
