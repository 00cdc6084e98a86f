"""Recipes as the lines of a suite file, and in words."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from xferbench.core.interventions import BUILT_IN, Edit, Intervention, find_kind
from xferbench.core.pipeline import Phase, Recipe, Spectrogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.pipeline import InputTransform, Pipeline, UserCode

RECIPE_KEYS = ("init", "transferred", "head", "augment", "regularizer", "finish", "stop")  # keys of a recipe as a whole


def recipe_patch(before: Recipe | None, after: Recipe, training: UserCode | None = None) -> list[str]:
    """The lines of a suite file's [recipe] that turn one recipe into another; the user's training code stays."""
    whole = [f'{name} = "{getattr(after, name)}"' for name in RECIPE_KEYS if getattr(after, name) != getattr(Recipe(), name)]
    whole += [f'training = "{training.spec}"'] if training else []
    if len(after.phases) == 1:
        was = before.phases[0] if before and len(before.phases) == 1 else None
        return ["[recipe]", *whole, *_lines(after.phases[0], was)]
    body = [line for phase in after.phases for line in ("", "[[recipe.phases]]", *_lines(phase, None))]
    return ["[recipe]", *whole, *body]


def pipeline_patch(before: Pipeline | None, after: Pipeline, recorded: InputTransform) -> list[str]:
    """The lines of a suite file's [recipe] that turn one pipeline into another, how images are prepared and served too.

    ``recorded`` is the preprocessing that a suite need not state.
    """
    was = before or after
    stated = {
        "train_preprocessing": (was.train_preprocessing, after.train_preprocessing, recorded),
        "serve_preprocessing": (was.serve_preprocessing, after.serve_preprocessing, after.train_preprocessing),
        "serve_mode": (was.mode, after.mode, "eval"),
    }
    served = [
        f"{name} = {_value(new)}" + (f"    # was {_value(old)}" if new != old else "")
        for name, (old, new, default) in stated.items()
        if new != old or (new != default and not after.finished)  # of a finished network what changes is all that is advised
    ]
    edits = [f"# {describe_edit(edit)}" for edit in after.edits]
    if after.finished:
        return (["[recipe]", *served] if served else []) + edits
    first, *rest = recipe_patch(before.recipe if before else None, after.recipe, after.training)
    data = []
    if before and before.interventions != after.interventions:
        data = ["[target]", f"interventions = {json.dumps(list(map(str, after.interventions)))}", ""]
    return [*data, first, *edits, *served, *rest]


def _value(value: Any) -> str:
    """A value as TOML; of a table what differs from its defaults."""
    if isinstance(value, Intervention):
        return json.dumps(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        told = {name: one for name, one in named.items() if one != getattr(type(value)(), name)}
        if isinstance(value, Spectrogram):
            told = {"kind": "spectrogram"} | told
        return "{ " + ", ".join(f"{name} = {_value(one)}" for name, one in told.items()) + " }" if told else "{}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _lines(phase: Phase, before: Phase | None) -> list[str]:
    """A phase's keys that differ from the defaults; marked where they differ from what was there."""
    lines = []
    for name in (f.name for f in fields(Phase)):
        value, default = getattr(phase, name), getattr(Phase(), name)
        was = getattr(before, name) if before else value
        if (value == default and value == was) or value is None:
            continue
        lines.append(f"{name} = {_value(value)}" + ("" if value == was else f"    # was {'not set' if was is None else was}"))
    return lines


DESCRIBED_RECIPE_FIELDS = ("regularizer", "finish", "stop")
DESCRIBED_PHASE_FIELDS = (
    "trainable",
    "lr",
    "head_lr",
    "batchnorm",
    "steps",
    "batch_size",
    "order",
)  # in words of their own, always


def describe_recipe(recipe: Recipe) -> str:
    """A recipe in one line: what matters most, and whatever else differs from the default, so that no two read alike."""
    told = []
    for phase in recipe.phases:
        rate = f"lr {phase.lr:g}" + (f", head {phase.head_lr:g}" if phase.head_lr else "")
        extra = "".join(f", {one}" for one in _unusual(phase, Phase(), DESCRIBED_PHASE_FIELDS))
        extra += "" if phase.order == "shuffled" else ", class-ordered"
        told.append(
            f"{phase.trainable.describe()}, {rate}, BatchNorm {phase.batchnorm}, {phase.steps} × {phase.batch_size}{extra}"
        )
    start = "" if recipe.init == "pretrained" else f"{recipe.init} weights: "
    whole = "".join(f"; {one}" for one in _unusual(recipe, Recipe(), ("init", "phases", *DESCRIBED_RECIPE_FIELDS, "name")))
    whole += f"; {recipe.regularizer}" if recipe.regularizer else ""
    whole += f"; {recipe.finish.describe()}" if recipe.finish else ""
    return (
        (f"{recipe.name}: " if recipe.name else "")
        + start
        + "; then ".join(told)
        + whole
        + ("" if recipe.stop == "last" else "; best step")
    )


def _unusual(one: Phase | Recipe, usual: Phase | Recipe, told: Sequence[str]) -> list[str]:
    """The fields that differ from the default and are not told otherwise: ``weight decay 0.1``."""
    values = {f.name: getattr(one, f.name) for f in fields(one) if f.name not in told}
    return [
        f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for name, value in values.items()
        if value != getattr(usual, name)
    ]


def describe_pipeline(pipeline: Pipeline, recorded: InputTransform) -> str:
    """A pipeline in one line: its recipe, and how images are prepared and served where that is not as recorded."""
    train, serve = pipeline.train_preprocessing, pipeline.serve_preprocessing
    told = [] if pipeline.finished else [describe_recipe(pipeline.recipe)]
    told += list(map(describe_edit, pipeline.edits)) or ["the checkpoint as it is"] * (pipeline.finished is not None)
    told += [f"trained on {describe_preprocessing(train, recorded)}"] if train != recorded else []
    told += [f"served on {describe_preprocessing(serve, recorded)}"] if serve != train else []
    told += [f"served in {pipeline.mode} mode"] if pipeline.mode != "eval" else []
    told += (
        [f"test images in training ({pipeline.injected_duplicates.replace(':', ' ')})"] if pipeline.injected_duplicates else []
    )
    told += [intervention.describe() for intervention in pipeline.interventions]
    told += ["scored without copies"] if pipeline.evaluation_split == "unique" else []
    return "; ".join(told)


def describe_edit(edit: str) -> str:
    """An edit of a network in words; one that is not known as it is spelt, because the lab will refuse it."""
    return Edit.parse(edit).describe() if find_kind(edit, BUILT_IN[Edit]) else edit


def describe_preprocessing(preprocessing: InputTransform, recorded: InputTransform) -> str:
    """In which fields a preprocessing is not the backbone's own."""
    differing = [
        f"{one.name} {_shown(getattr(preprocessing, one.name))}"
        for one in fields(preprocessing)
        if getattr(preprocessing, one.name) != getattr(recorded, one.name, None)
    ]
    return ", ".join(differing) or "the backbone's own preprocessing"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, dict.fromkeys(value) if len(set(value)) == 1 else value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
