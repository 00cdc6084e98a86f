"""What :func:`xferbench.watch` is given, checked and made into a watch; torch is known to the lab alone."""

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
    """As :func:`xferbench.watch`.

    Raises:
        Problem: for input that cannot be worked with.
    """
    from xferbench.lab import watched as lab

    if on_event not in ON_EVENT:
        raise Problem("watch: on_event", found=repr(on_event), expected=nearest(str(on_event), ON_EVENT))
    if type(every) is not int or every < 1:
        raise Problem("watch: every", found=repr(every), expected="a whole number of steps, 1 or more")
    made, batchnorm = believed(recipe)
    optimizers = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    return lab.made(
        model,
        optimizers,
        phases=made.phases if made else (),
        batchnorm=batchnorm,
        pretrained=None if made is None else made.init == "pretrained",
        head=head,
        shape=shape,
        every=every,
        on_event=on_event,
    )


def believed(recipe: object) -> tuple[Recipe | None, bool]:
    """A recipe, and whether it says how BatchNorm runs.

    Raises:
        Problem: for what is none.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe, True
    if isinstance(recipe, Phase):
        return Recipe(phases=(recipe,)), True
    if isinstance(recipe, Mapping):
        made = suite.recipe(recipe)
        tables = [recipe, *recipe.get("phases", [])]
        return made, "strategy" in recipe or any("batchnorm" in table for table in tables)
    expected = 'a Recipe, a Phase, or a mapping such as {"trainable": "head", "batchnorm": "eval"}'
    raise Problem("watch: recipe", found=f"a {type(recipe).__name__}", expected=expected)
