"""The keys of a suite file: for each table, what every key may hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xferbench.analysis.metrics import METRICS
from xferbench.config import interventions, validation
from xferbench.config.validation import COUNT, POSITIVE, WHOLE, Rule
from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    BUILT_IN,
    Augmentation,
    DataIntervention,
    Finish,
    Head,
    Intervention,
    Regularizer,
    Trainable,
    format_spelling,
    spelling_pattern,
)
from xferbench.core.pipeline import (
    LOCALLY_PRETRAINED_STARTS,
    InputTransform,
    Phase,
    Preprocessing,
    Recipe,
    ScratchGrid,
    Spectrogram,
)
from xferbench.core.strategies import STRATEGIES

NAME = r"[a-z0-9][a-z0-9._-]*"
SUITE_SCHEMA = 1
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
DURATION_PATTERN = f"^{DURATION.pattern}$"
INCREASING_SCHEMA = {"items": {"type": "integer", "minimum": 1}, "minItems": 1, "uniqueItems": True}
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}


def duration_seconds(text: str) -> float:
    """Of a duration that its rule has matched."""
    number, unit = DURATION.fullmatch(text).groups()  # type: ignore[union-attr]
    return float(number) * UNIT_SECONDS[unit]


def _increasing(looks: list[Any]) -> bool:
    return bool(looks) and all(map(_is_index, looks)) and looks[0] > 0 and all(a < b for a, b in itertools.pairwise(looks))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


BATCHNORM_EXPECTED = "eval, train, train-above, ghost:N with N of 2 or more, or momentum:M with M above 0 and at most 1"
BATCHNORM_PATTERN = r"^(eval|train|train-above|ghost:([2-9]|[1-9]\d+)|momentum:\d*\.?\d+(e-\d+)?)$"


def _batchnorm(value: Any) -> str:
    kind, _, amount = str(value).partition(":")
    ghost = kind == "ghost" and re.fullmatch(r"[1-9]\d*", amount) and int(amount) > 1
    momentum = kind == "momentum" and re.fullmatch(r"\d*\.?\d+(e-\d+)?", amount) and 0 < float(amount) <= 1
    if value not in ("eval", "train", "train-above") and not ghost and not momentum:
        raise ValueError(BATCHNORM_EXPECTED)
    return str(value)


def _phases(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(phase, Mapping) for phase in value):
        raise ValueError("one [[recipe.phases]] or more")
    return [
        validation.validate_value(str(number), phase, validation.table(PHASE)) for number, phase in enumerate(value, start=1)
    ]


ABOVE_ONE = validation.typed(int, lambda v: v > 1, "a whole number above 1", minimum=2)  # BatchNorm knows nothing of one image


def spelled(group: type[Intervention]) -> Rule:
    """A text that spells a built-in value of a group."""
    forms = " or ".join(map(format_spelling, BUILT_IN[group]))
    return validation.typed(str, bool, forms, group.parse, pattern=f"^({spelling_pattern(BUILT_IN[group])})$")


ONE_OR_THREE = {"oneOf": [{"minItems": 1, "maxItems": 1}, {"minItems": 3, "maxItems": 3}]}
TRANSFORM_KINDS = {"kind": validation.one_of("image", "spectrogram")}
IMAGE = validation.table(
    {
        "resize": COUNT,
        "crop": COUNT,
        "interpolation": validation.one_of("bilinear", "bicubic", "nearest"),
        "antialias": validation.FLAG,
        "channels": validation.one_of("rgb", "bgr", "grey"),
        "scale": POSITIVE,
        "mean": validation.list_of(
            validation.FINITE, "a list of one number, or three", lambda v: len(v) in {1, 3}, **ONE_OR_THREE
        ),
        "std": validation.list_of(
            POSITIVE, "a list of one number above 0, or three", lambda v: len(v) in {1, 3}, **ONE_OR_THREE
        ),
        "detail": validation.typed(
            validation.NUMBER, lambda v: 0 < v <= 1, "a share above 0, at most 1", float, exclusiveMinimum=0, maximum=1
        ),
        **TRANSFORM_KINDS,
    },
    lambda kind="image", **rest: Preprocessing(**rest),  # noqa: ARG005 - the kind has chosen the table
)
SPECTROGRAM = validation.table(
    {"channels": COUNT, "mean": validation.FINITE, "std": POSITIVE, **TRANSFORM_KINDS},
    lambda kind, **rest: Spectrogram(**rest),  # noqa: ARG005 - likewise
)


def _preprocessing(value: Any) -> InputTransform:
    spectrogram = isinstance(value, Mapping) and value.get("kind") == "spectrogram"
    made: InputTransform = (SPECTROGRAM if spectrogram else IMAGE)(value)
    return made


PREPROCESSING = validation.Validator(
    _preprocessing, validation.either_table(validation.rule_schema(IMAGE), validation.rule_schema(SPECTROGRAM))
)
PHASE: dict[str, Rule] = {
    "trainable": spelled(Trainable),
    "batchnorm": validation.Validator(
        _batchnorm, {"pattern": BATCHNORM_PATTERN, "type": "string", "description": BATCHNORM_EXPECTED}
    ),
    "lr": POSITIVE,
    "head_lr": POSITIVE,
    "layer_decay": validation.typed(
        validation.NUMBER, lambda v: 0 < v <= 1, "a number above 0 and at most 1", float, exclusiveMinimum=0, maximum=1
    ),
    "optimizer": validation.one_of("adamw", "sgd"),
    "weight_decay": validation.NATURAL,
    "warmup": WHOLE,
    "schedule": validation.one_of("cosine", "constant", "one-cycle"),
    "steps": COUNT,
    "batch_size": ABOVE_ONE,
    "order": validation.one_of("shuffled", "class"),
}
RECIPE: dict[str, Rule] = {
    **PHASE,
    "strategy": validation.one_of(*STRATEGIES),
    "phases": validation.Validator(
        _phases, {"type": "array", "minItems": 1, "items": validation.rule_schema(validation.table(PHASE))}
    ),
    "init": validation.one_of("pretrained", "random", "matched", "permuted", *LOCALLY_PRETRAINED_STARTS, "target"),
    "transferred": validation.matching(r"all|low:[1-9]\d*", "all, or low:N with N of 1 or more"),
    "head": spelled(Head),
    "augment": spelled(Augmentation),
    "regularizer": spelled(Regularizer),
    "finish": spelled(Finish),
    "stop": validation.one_of("last", "best"),
    "training": validation.matching(r"python:[\w.]+:[\w.]+", "python:module:callable"),
    "train_preprocessing": PREPROCESSING,
    "serve_preprocessing": PREPROCESSING,
    "serve_mode": validation.one_of("eval", "train"),
}
SCRATCH: dict[str, Rule] = {
    "lr": validation.list_of(POSITIVE, "a list of numbers above 0"),
    "weight_decay": validation.list_of(validation.NATURAL, "a list of numbers, 0 or above"),
    "steps": COUNT,
    "batch_size": ABOVE_ONE,
}


def _interventions(value: Any) -> tuple[DataIntervention, ...]:
    """Data interventions, at most one of each kind, because a kind draws from one random stream."""
    if not isinstance(value, list):
        raise ValueError(INTERVENTIONS_FORM)  # noqa: TRY004 - what a rule raises
    found = tuple(interventions.parse(text, DataIntervention) for text in value)
    if len({type(intervention) for intervention in found}) < len(found):
        raise ValueError("each kind of intervention once")
    return found


INTERVENTIONS_FORM = "a list of changes of the training images, KIND or KIND:NUMBER each; `xferbench ls` lists the kinds"
SPELLING = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9-]*(:[^:]+)*$"}  # open, because installed packages add kinds
INTERVENTIONS = validation.Validator(_interventions, {"type": "array", "items": SPELLING, "description": INTERVENTIONS_FORM})


def _recipes(value: Any) -> Any:
    """Names of strategies, or tables of a recipe's keys with a name."""
    if not isinstance(value, list):
        raise ValueError(RECIPES_EXPECTED)  # noqa: TRY004 - what a rule raises
    if not value:
        raise ValueError(RECIPES_EXPECTED + ", not empty")
    for number, one in enumerate(value):
        if isinstance(one, Mapping):
            rest = {key: own for key, own in one.items() if key != "name"}
            validation.validate_value(f"{number}.name", one.get("name", ""), validation.matching(NAME, NAME_EXPECTED))
            validation.validate_value(
                str(number), rest, validation.table({key: rule for key, rule in RECIPE.items() if key not in PIPELINE_KEYS})
            )
        elif not isinstance(one, str):
            raise ValueError(RECIPES_EXPECTED)  # noqa: TRY004 - likewise
    return value


PIPELINE_KEYS = ("training", "train_preprocessing", "serve_preprocessing", "serve_mode")  # keys of [recipe] that are none of it
NAME_EXPECTED = "lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"
RECIPES_EXPECTED = 'a list of strategies, "default" or "all", or of tables with a name and the keys of [recipe]'
NAME_RULE = validation.matching(NAME, NAME_EXPECTED)
CLAIM = validation.table(
    {
        "name": NAME_RULE,
        "claim": validation.TEXT,
        "source": validation.TEXT,
        "task": validation.TEXT,
        "contrast": validation.TEXT,
        "recipe": validation.TEXT,
        "against": validation.TEXT,
        "view": validation.one_of("test", "shifted", "source", "source-probe", "training", "train-mode"),
        "measure": validation.one_of("accuracy", "seconds", "trainable", "stored", "share", "speed-up"),
        "published": validation.FINITE,
        "at_least": validation.FINITE,
        "at_most": validation.FINITE,
    },
    required=["name", "claim", "source"],
)
TARGET_KEYS = {
    "name": NAME_RULE,
    "data": validation.TEXT,
    "train_size": COUNT,
    "test_size": COUNT,
    "interventions": validation.unchanged(INTERVENTIONS),  # each task's own [target] reads them
}
BACKBONE_KEYS = {
    "name": NAME_RULE,
    "arch": validation.TEXT,
    "weights": validation.TEXT,
    "preprocessing": validation.typed(dict, bool, "a table"),
}
RECIPE_ITEM = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
MATRIX = validation.table(
    {
        "targets": validation.list_of(
            validation.table(
                TARGET_KEYS | {"shifted": validation.TEXT, "source": validation.TEXT, "similar": validation.FLAG},
                required=["name", "data"],
            ),
            "one [[matrix.targets]] or more",
        ),
        "train_sizes": validation.list_of(COUNT, "a list of whole numbers above 0"),
        "backbones": validation.list_of(
            validation.table(BACKBONE_KEYS, required=["name", "arch"]), "one [[matrix.backbones]] or more"
        ),
        "recipes": validation.Validator(_recipes, {"type": "array", "items": RECIPE_ITEM, "description": RECIPES_EXPECTED}),
        "rates": validation.list_of(POSITIVE, "a list of factors above 0, by which each recipe's usual rate is multiplied"),
        "steps": COUNT,
        "batch_size": ABOVE_ONE,
        "against": validation.TEXT,
        "effects": validation.list_of(CLAIM, "one [[matrix.effects]] or more"),
    },
    required=["recipes"],
)
CLASSES = validation.typed(
    dict,
    lambda v: v and all(map(_is_index, v.values())),
    "class = index in the source head, for each class",
    minProperties=1,
    additionalProperties={"type": "integer", "minimum": 0},
)


def parse_expected_training(value: Any) -> Recipe:
    """A belief about training, ``trainable=head,batchnorm=eval``, as the recipe that it would have been.

    Raises:
        ValueError: for anything else, with what was expected.
    """
    told = {"trainable": PHASE["trainable"], "batchnorm": PHASE["batchnorm"]}
    given = {key.strip(): text.strip() for key, _, text in (word.partition("=") for word in str(value).split(","))}
    if set(given) - set(told):
        raise ValueError(EXPECTED_TRAINING)
    try:
        return Recipe(phases=(replace(Phase(), **{key: told[key](text) for key, text in given.items()}),))
    except ValueError as error:
        raise ValueError(f"{EXPECTED_TRAINING} ({error})") from error


EXPECTED_TRAINING = (
    "what was to be trained, as trainable=head,batchnorm=eval"
    " (trainable: head, top:N, norm, bias, lora:R, all; batchnorm: eval, train)"
)
REQUIRED_TABLES = ("schema", "name", "plugins", "backbone", "target")


def suite_rules(base: Path) -> Mapping[str, Rule]:
    """The rules of a suite file's keys, where paths are relative to a folder."""
    kinds = "folder:DIR, npz:FILE, torchvision:NAME:DIR, synthetic:NAME or digits"
    spec = validation.typed(str, bool, kinds, lambda value: _placed(value, base), minLength=1)
    file = validation.typed(str, bool, "a path", lambda value: _path(value, base), minLength=1)
    lasting = validation.typed(
        str, DURATION.fullmatch, 'a duration such as "90s", "20m" or "2h"', duration_seconds, pattern=DURATION_PATTERN
    )
    return {
        "schema": validation.typed(
            int, lambda v: v == SUITE_SCHEMA, f"{SUITE_SCHEMA}, the only one so far", const=SUITE_SCHEMA
        ),
        "name": NAME_RULE,
        "plugins": validation.list_of(validation.TEXT, 'a list of plugins, or ["all"]', lambda _: True),
        "metric": validation.one_of(*METRICS),
        "margin": POSITIVE,
        "alpha": validation.typed(
            validation.NUMBER,
            lambda v: 0 < v < 0.5,
            "a number above 0 and below 0.5",
            float,
            exclusiveMinimum=0,
            exclusiveMaximum=0.5,
        ),
        "looks": validation.typed(
            list, _increasing, "a list of whole numbers from 1 up, each above the one before", tuple, **INCREASING_SCHEMA
        ),
        "budget": lasting,
        "max_duplicates": validation.typed(
            validation.NUMBER, lambda v: 0 <= v < 1, "a share, 0 or above and below 1", float, minimum=0, exclusiveMaximum=1
        ),
        "seed": WHOLE,
        "tuning_seeds": COUNT,
        "backbone": validation.table(
            {"arch": validation.TEXT, "weights": file, "preprocessing": PREPROCESSING}, required=["arch"]
        ),
        "target": validation.table(
            {"data": spec, "train_size": COUNT, "test_size": COUNT, "interventions": INTERVENTIONS}, required=["data"]
        ),
        "source": _one_of(validation.table({"data": spec, "classes": CLASSES, "manifest": file}), "data", "manifest"),
        "shifted": validation.table({"data": spec}, required=["data"]),
        "recipe": validation.table(RECIPE),
        "scratch": validation.table(SCRATCH, ScratchGrid),
        "checkpoint": validation.table(
            {
                "after": file,
                "before": file,
                "believed": validation.typed(str, bool, EXPECTED_TRAINING, parse_expected_training, minLength=1),
                "scratch": lasting,
            },
            required=["after"],
        ),
        "matrix": MATRIX,
    }


def _one_of(table: Rule, *keys: str) -> Rule:
    """A table that has at least one of some keys."""

    def rule(value: Any) -> Any:
        made = table(value)
        if not set(keys) & set(made):
            raise UserError(f"{keys[0]}: missing", found=", ".join(made) or "no key at all", expected=" or ".join(keys))
        return made

    return validation.Validator(rule, {**validation.rule_schema(table), "anyOf": [{"required": [key]} for key in keys]})


def _placed(spec: str, base: Path) -> str:
    kind, colon, rest = spec.partition(":")
    if kind == "torchvision":
        name, colon, rest = rest.partition(":")
        kind = f"{kind}:{name}"
    placed = kind in {"folder", "npz"} or kind.startswith("torchvision:")
    return f"{kind}:{_path(rest, base)}" if colon and rest and placed else spec


def _path(text: str, base: Path) -> str:
    try:
        return str((base / Path(text).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a loop of links, a NUL
        raise ValueError(f"a path ({error})") from error
