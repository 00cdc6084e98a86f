"""The recipe that a user of the monitor describes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Phase, Recipe


def recipe_of(recipe: object) -> tuple[Recipe | None, bool]:
    """Return a recipe, and whether it specifies the mode of BatchNorm.

    Args:
        recipe: None, a ``Recipe``, a ``Phase``, or a mapping with the keys of ``[recipe]`` in a suite file.

    Raises:
        UserError: if the argument is none of these.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe, True
    if isinstance(recipe, Phase):
        return Recipe(phases=(recipe,)), True
    if isinstance(recipe, Mapping):
        parsed = loader.parse_recipe(recipe)
        tables = [recipe, *recipe.get("phases", [])]
        return parsed, "strategy" in recipe or any("batchnorm" in table for table in tables)
    expected = 'a Recipe, a Phase, or a mapping such as {"trainable": "head", "batchnorm": "eval"}'
    raise UserError("watch: recipe", found=f"a {type(recipe).__name__}", expected=expected)
