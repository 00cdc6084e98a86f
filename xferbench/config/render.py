"""Format recipes as lines of a suite file, or as text. Pure."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from xferbench.core.interventions import EVAL_MODE, PRETRAINED, Augmentation, Intervention
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.transforms import INPUT_KINDS, Spectrogram, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.pipeline import Pipeline, UserCode
    from xferbench.core.transforms import InputTransform

RECIPE_KEYS = ("init", "transferred", "head", "augment", "regularizer", "finish", "stop")  # keys of a recipe as a whole


def recipe_patch(before: Recipe | None, after: Recipe, training: UserCode | None = None) -> list[str]:
    """Return the lines of a suite file's [recipe] for the recipe ``after``, with comments on values that change.

    Args:
        before: the recipe that the lines replace, or None.
        after: the new recipe.
        training: user training code, which stays.
    """
    lines = [f'{name} = "{getattr(after, name)}"' for name in RECIPE_KEYS if getattr(after, name) != getattr(Recipe(), name)]
    lines += [f'training = "{training.spec}"'] if training else []
    if len(after.phases) == 1:
        previous = before.phases[0] if before and len(before.phases) == 1 else None
        return ["[recipe]", *lines, *_phase_lines(after.phases[0], previous)]
    phase_lines = [line for phase in after.phases for line in ("", "[[recipe.phases]]", *_phase_lines(phase, None))]
    return ["[recipe]", *lines, *phase_lines]


def pipeline_patch(before: Pipeline | None, after: Pipeline, recorded: InputTransform) -> list[str]:
    """Return the lines of a suite file that turn one pipeline into another, including preprocessing and serving.

    Args:
        before: the pipeline that the lines change, or None.
        after: the new pipeline.
        recorded: the preprocessing of the backbone, which a suite does not have to name.
    """
    previous = before or after
    values = {
        "train_preprocessing": (previous.data.train_preprocessing, after.data.train_preprocessing, recorded),
        "serve_preprocessing": (previous.serving.preprocessing, after.serving.preprocessing, after.data.train_preprocessing),
        "serve_mode": (previous.serving.mode, after.serving.mode, EVAL_MODE),
    }
    serving = [
        f"{name} = {_toml_value(new)}" + (f"    # was {_toml_value(old)}" if new != old else "")
        for name, (old, new, default) in values.items()
        if new != old or (new != default and not after.checkpoint)  # for a finished network, only changes are advised
    ]
    edits = [f"# {edit.describe()}" for edit in after.edits]
    if after.checkpoint:
        return (["[recipe]", *serving] if serving else []) + edits
    first, *rest = recipe_patch(before.recipe if before else None, after.recipe, after.training)
    data = []
    if before and before.data.interventions != after.data.interventions:
        data = ["[target]", f"interventions = {json.dumps(list(map(str, after.data.interventions)))}", ""]
    return [*data, first, *edits, *serving, *rest]


def _toml_value(value: Any) -> str:
    """Return a value as TOML; a table has only the fields that differ from their defaults."""
    if isinstance(value, Intervention):
        return json.dumps(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in fields(value)}
        changed = {name: item for name, item in items.items() if item != getattr(type(value)(), name)}
        if isinstance(value, Spectrogram | Tokens):
            stated = {name: item for name, item in changed.items() if not name.startswith("tokenizer")}
            changed = {"kind": INPUT_KINDS[type(value)]} | stated
        return "{ " + ", ".join(f"{name} = {_toml_value(item)}" for name, item in changed.items()) + " }" if changed else "{}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _phase_lines(phase: Phase, previous: Phase | None) -> list[str]:
    """Return the lines of a phase's values that differ from the defaults or from the previous phase, with comments."""
    lines = []
    for name in (field.name for field in fields(Phase)):
        value, default = getattr(phase, name), getattr(Phase(), name)
        old = getattr(previous, name) if previous else value
        if (value == default and value == old) or value is None:
            continue
        comment = "" if value == old else f"    # was {'not set' if old is None else old}"
        lines.append(f"{name} = {_toml_value(value)}{comment}")
    return lines


# fields that have their own form in the text of a recipe or phase
DESCRIBED_RECIPE_FIELDS = ("init", "phases", "regularizer", "finish", "stop", "name")
DESCRIBED_PHASE_FIELDS = ("trainable", "lr", "head_lr", "batchnorm", "steps", "batch_size", "order")


def describe_recipe(recipe: Recipe) -> str:
    """Return a recipe as one line of text: the main values, and all others that differ from the default.

    Different recipes have different texts.
    """
    phases = "; then ".join(map(_describe_phase, recipe.phases))
    name = f"{recipe.name}: " if recipe.name else ""
    start = "" if recipe.init == PRETRAINED else f"{recipe.init} weights: "
    parts = _unusual_values(recipe, Recipe(), DESCRIBED_RECIPE_FIELDS)
    parts += [recipe.regularizer.describe()] if recipe.regularizer else []
    parts += [recipe.finish.describe()] if recipe.finish else []
    parts += [] if recipe.stop == "last" else ["best step"]
    return name + start + "; ".join([phases, *parts])


def _describe_phase(phase: Phase) -> str:
    rate = f"lr {phase.lr:g}" + (f", head {phase.head_lr:g}" if phase.head_lr else "")
    parts = [phase.trainable.describe(), rate, f"BatchNorm {phase.batchnorm}", f"{phase.steps} × {phase.batch_size}"]
    parts += _unusual_values(phase, Phase(), DESCRIBED_PHASE_FIELDS)
    parts += [] if phase.order == "shuffled" else ["class-ordered"]
    return ", ".join(parts)


def _unusual_values(value: Phase | Recipe, default: Phase | Recipe, excluded: Sequence[str]) -> list[str]:
    """Return the fields that differ from the default, such as ``weight decay 0.1``, without the excluded ones."""
    items = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in excluded}
    return [f"{name.replace('_', ' ')} {_format_field(item)}" for name, item in items.items() if item != getattr(default, name)]


def _format_field(value: Any) -> str:
    """Return the value of a field as text; an augmentation has words of its own."""
    if isinstance(value, Augmentation):
        return value.describe()
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_pipeline(pipeline: Pipeline, recorded: InputTransform) -> str:
    """Return a pipeline as one line of text: its recipe, and preprocessing that differs from ``recorded``."""
    train, serve = pipeline.data.train_preprocessing, pipeline.serving.preprocessing
    parts = [] if pipeline.checkpoint else [describe_recipe(pipeline.recipe)]
    parts += [edit.describe() for edit in pipeline.edits] or ["the checkpoint as it is"] * (pipeline.checkpoint is not None)
    parts += [f"trained on {describe_preprocessing(train, recorded)}"] if train != recorded else []
    parts += [f"served on {describe_preprocessing(serve, recorded)}"] if serve != train else []
    parts += [f"served in {pipeline.serving.mode} mode"] if pipeline.serving.mode != EVAL_MODE else []
    duplicates = pipeline.data.injected_duplicates
    parts += [f"test examples in training ({duplicates.describe()})"] if duplicates else []
    parts += [intervention.describe() for intervention in pipeline.data.interventions]
    parts += ["scored without copies"] if pipeline.evaluation_split == "unique" else []
    return "; ".join(parts)


def describe_preprocessing(preprocessing: InputTransform, recorded: InputTransform) -> str:
    """Return the fields of a preprocessing that differ from the backbone's own, as text."""
    changes = [
        f"{field.name} {_format_value(getattr(preprocessing, field.name))}"
        for field in fields(preprocessing)
        if getattr(preprocessing, field.name) != getattr(recorded, field.name, None)
    ]
    return ", ".join(changes) or "the backbone's own preprocessing"


def _format_value(value: Any) -> str:
    """Return a value as text; equal elements of a tuple appear once."""
    if isinstance(value, tuple):
        return " ".join(map(_format_value, dict.fromkeys(value) if len(set(value)) == 1 else value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
