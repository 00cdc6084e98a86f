"""A suite's [matrix]: targets × sizes × backbones become tasks, each a suite of its own, on which recipes are compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from xferbench import keys, rules
from xferbench.design import Compared, Effect, Matrix, Phase
from xferbench.problem import Problem, nearest
from xferbench.strategies import HEAD_LR, RATES, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.design import Recipe, Suite

    Parse = Callable[[Mapping[str, Any], Path], Suite]

DEFAULT = "default"  # the recipe of a suite that has none
SCRATCH = "scratch"  # tuned over the suite's own grid, since an untuned baseline is no baseline
USUAL = {"linear-probe": HEAD_LR, "mlp-head": HEAD_LR, **RATES}


def parsed(table: Mapping[str, Any], path: Path, parse: Parse, recipe: Callable[[Mapping[str, Any]], Recipe]) -> Suite:
    """A suite with a matrix, whose other fields are those of its first task.

    Args:
        parse: makes a suite of a table without a matrix. recipe: a recipe of the keys of [recipe].

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
    names = [one.name for one in compared]
    against = given.get("against", names[0] if names else "")
    if names and against not in names:
        raise Problem("matrix.against", found=against, expected=nearest(against, names))
    if twice := {name for name in names if names.count(name) > 1}:
        raise Problem("matrix.recipes", found=f"{', '.join(sorted(twice))} twice", expected="a name for each")
    effects = tuple(_effect(one, [task.name for task in tasks], names) for one in given.get("effects", ()))
    matrix = Matrix(tasks=tasks, compared=compared, against=against, effects=effects, similar=similar)
    return replace(tasks[0], name=str(table.get("name")), path=str(path), matrix=matrix)


def tables(table: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, dict[str, Any]]]:
    """The table of each task by its name, and which are said to be like the source.

    A name is its target's, then its size's where there are several, then its backbone's likewise.
    """
    own = dict(table.get("target") or {})
    targets = given.get("targets") or [{"name": str(table.get("name")), **own}]
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
    try:
        made = recipe({"steps": budget.steps, "batch_size": budget.batch_size, **keyed})
    except Problem as problem:
        raise problem.at(f"matrix.recipes: {one['name']}: {problem.what}") from problem
    scaled = (
        tuple(replace(phase, lr=phase.lr * factor, head_lr=phase.head_lr and phase.head_lr * factor) for phase in made.phases)
        for factor in factors
    )
    return Compared(name=str(one["name"]), recipes=tuple(replace(made, phases=phases) for phases in scaled))


def _effect(given: Mapping[str, Any], tasks: Sequence[str], recipes: Sequence[str]) -> Effect:
    """A claim whose task and recipes are there, about one number."""
    what = f"matrix.effects: {given['name']}"
    task = given.get("task", tasks[0] if len(tasks) == 1 else "")
    if task not in tasks:
        raise Problem(f"{what}: task", found=task or "none", expected=nearest(task, tasks))
    for key in ("recipe", "against"):
        if key in given and given[key] not in recipes:
            raise Problem(f"{what}: {key}", found=given[key], expected=nearest(given[key], recipes))
    numbers = [kind for kind in ("contrast", "recipe") if kind in given]
    beside = [kind for kind in ("against", "measure") if kind in given]
    two = given.get("measure") == "speed-up"  # which is a number of two recipes
    if len(numbers) != 1 or ("recipe" in given) != (len(beside) == 1 + two) or (two and "against" not in given):
        expected = "contrast; or recipe and against, or recipe and measure (speed-up: recipe, against and measure)"
        raise Problem(f"{what}: which number", found=", ".join([*numbers, *beside]) or "none", expected=expected)
    if ("at_least" in given) == ("at_most" in given):
        raise Problem(f"{what}: at_least, at_most", found="both or neither", expected="one of them")
    return Effect(**(dict(given) | {"task": task}))
