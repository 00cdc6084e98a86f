"""Validates the arguments of :func:`xferbench.watch` and builds the monitor. Imports torch inside functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from xferbench import suite
from xferbench.design import Phase, Recipe
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from xferbench.lab.watch import Watch

ON_EVENT = ("warn", "raise", "collect")


def watch(model: Any, optimizer: Any, *, recipe: object, head: str, shape: Any, every: int, on_event: str) -> Watch:
    """Build the monitor of :func:`xferbench.watch`.

    Raises:
        Problem: if an argument is not valid.
    """
    from xferbench.lab import watched as lab

    if on_event not in ON_EVENT:
        raise Problem("watch: on_event", found=repr(on_event), expected=nearest(str(on_event), ON_EVENT))
    if type(every) is not int or every < 1:
        raise Problem("watch: every", found=repr(every), expected="a whole number of steps, 1 or more")
    expected, states_batchnorm = believed(recipe)
    optimizers = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    return lab.made(
        model,
        optimizers,
        phases=expected.phases if expected else (),
        batchnorm=states_batchnorm,
        pretrained=None if expected is None else expected.init == "pretrained",
        head=head,
        shape=shape,
        every=every,
        on_event=on_event,
    )


def believed(recipe: object) -> tuple[Recipe | None, bool]:
    """Return a recipe, and whether it says how BatchNorm runs.

    Args:
        recipe: None, a ``Recipe``, a ``Phase``, or a mapping with the keys of ``[recipe]`` in a suite file.

    Raises:
        Problem: if the argument is none of these.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe, True
    if isinstance(recipe, Phase):
        return Recipe(phases=(recipe,)), True
    if isinstance(recipe, Mapping):
        parsed = suite.recipe(recipe)
        tables = [recipe, *recipe.get("phases", [])]
        return parsed, "strategy" in recipe or any("batchnorm" in table for table in tables)
    expected = 'a Recipe, a Phase, or a mapping such as {"trainable": "head", "batchnorm": "eval"}'
    raise Problem("watch: recipe", found=f"a {type(recipe).__name__}", expected=expected)
