"""Rebuild a suite from the values in ``results.json``, so that its trials can be requested again. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.config.interventions import parse
from xferbench.core.errors import UserError
from xferbench.core.interventions import Augmentation, DataIntervention, ServingMode
from xferbench.core.pipeline import INTERVENTION_GROUPS, Phase, Recipe, ScratchGrid
from xferbench.core.sections import from_flat
from xferbench.core.suite import LOCATION_KEYS, Suite
from xferbench.core.transforms import transform_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.transforms import InputTransform

TRANSFORM_KEYS = ("preprocessing", "train_preprocessing", "serve_preprocessing")
RECIPE_KEYS = ("recipe", "believed")


def suite_from_results(values: Mapping[str, Any], folder: Path) -> Suite:
    """Return the suite of a run; paths relative to the suite file are resolved in ``folder``.

    Raises:
        UserError: if this version cannot read the values.
    """
    arguments = {name: _to_tuples(value) for name, value in values.items()}
    try:
        arguments |= {name: _preprocessing_from(values[name]) for name in TRANSFORM_KEYS if values.get(name)}
        arguments |= {name: _recipe_from(values[name]) for name in RECIPE_KEYS if values.get(name)}
        arguments["interventions"] = tuple(parse(text, DataIntervention) for text in values.get("interventions", ()))
        arguments["serve_mode"] = ServingMode.parse(values["serve_mode"])
        arguments["scratch"] = _scratch_from(values["scratch"])
        arguments |= {name: _resolve(arguments[name], folder) for name in LOCATION_KEYS if arguments.get(name)}
        path = str(folder / Path(values["path"]).name) if values["path"] else ""
        return from_flat(Suite, arguments | {"path": path})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            "the accepted run's suite cannot be read", found=str(error), do="accept a run of this version"
        ) from error


def _resolve(location: str, folder: Path) -> str:
    """Return a location resolved in a folder, with the kind of dataset in front if there is one."""
    kind, colon, rest = location.rpartition(":")
    if kind in {"synthetic", "python"} or location == "digits":
        return location
    return f"{kind}{colon}{folder / rest}"  # joining keeps an absolute path


def _scratch_from(values: Mapping[str, Any]) -> ScratchGrid:
    """Return the search of a stored suite; one of an earlier version had neither augmentations nor label smoothing."""
    older: dict[str, Any] = {"augment": (None,), "label_smoothing": (0.0,), "halvings": 0}
    search = older | _with_tuples(values)
    augment = tuple(parse(text, Augmentation) if text else None for text in search["augment"])
    return ScratchGrid(**search | {"augment": augment})


def _recipe_from(values: Mapping[str, Any]) -> Recipe:
    phases = tuple(Phase(**_with_interventions(phase)) for phase in values["phases"])
    return Recipe(**_with_interventions(values) | {"phases": phases})


def _with_interventions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe or a phase, with the interventions in place of their spellings; "" spells None."""
    spellings = {name: text for name, text in values.items() if name in INTERVENTION_GROUPS}
    parsed = {name: parse(text, INTERVENTION_GROUPS[name]) if text else None for name, text in spellings.items()}
    return _with_tuples(values) | parsed


def _preprocessing_from(values: Mapping[str, Any]) -> InputTransform:
    return transform_class(values)(**_with_tuples(values))


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _to_tuples(value) for name, value in values.items()}


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value
