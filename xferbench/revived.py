"""A suite out of the plain values that a finished run tells of it, so that what it asked can be asked again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.alike import PLACES
from xferbench.config.interventions import parse
from xferbench.core.interventions import Augmentation, DataIntervention, Finish, Head, Regularizer, Trainable
from xferbench.design import Phase, Preprocessing, Recipe, Scratch, Spectrogram, Suite
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.design import Ready

READY = ("preprocessing", "train_preprocessing", "serve_preprocessing")
RECIPES = ("recipe", "believed")


def suite(told: Mapping[str, Any], folder: Path) -> Suite:
    """A run's suite; places that it tells relative to the suite file lie in ``folder``.

    Raises:
        Problem: for what this version cannot read.
    """
    values = {name: _tuples(value) for name, value in told.items()}
    try:
        values |= {name: _ready(told[name]) for name in READY if told.get(name)}
        values |= {name: _recipe(told[name]) for name in RECIPES if told.get(name)}
        values["interventions"] = tuple(parse(text, DataIntervention) for text in told.get("interventions", ()))
        values["scratch"] = Scratch(**_within(told["scratch"]))
        values |= {name: _placed(values[name], folder) for name in PLACES if values.get(name)}
        return Suite(**values | {"path": str(folder / Path(told["path"]).name) if told["path"] else ""})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Problem("the accepted run's suite cannot be read", found=str(error), do="accept a run of this version") from error


def _placed(word: str, folder: Path) -> str:
    """A place relative to a folder, with what kind of dataset it is in front where it is one."""
    kind, colon, rest = word.rpartition(":")
    if kind in {"synthetic", "python"} or word == "digits":
        return word
    return f"{kind}{colon}{folder / rest}"  # what is absolute stays where it is


def _recipe(told: Mapping[str, Any]) -> Recipe:
    values: dict[str, Any] = {"phases": tuple(_phase(phase) for phase in told["phases"])}
    values["head"] = Head.parse(told["head"])
    values["augment"] = Augmentation.parse(told["augment"]) if told["augment"] else None
    values["finish"] = Finish.parse(told["finish"]) if told["finish"] else None
    values["regularizer"] = Regularizer.parse(told["regularizer"]) if told["regularizer"] else None
    return Recipe(**_within(told) | values)


def _phase(told: Mapping[str, Any]) -> Phase:
    return Phase(**_within(told) | {"trainable": Trainable.parse(told["trainable"])})


def _ready(told: Mapping[str, Any]) -> Ready:
    spectrogram = told.keys() <= {one.name for one in fields(Spectrogram)}
    return Spectrogram(**_within(told)) if spectrogram else Preprocessing(**_within(told))


def _within(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in told.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
