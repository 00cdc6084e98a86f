"""The keys of a suite file: for each table, a rule for every key. Pure."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xferbench.analysis.metrics import METRICS
from xferbench.config import interventions, validation
from xferbench.config.interventions import SPELLING_PATTERN, extensible_rule, spelling_rule
from xferbench.config.validation import COUNT, POSITIVE, WHOLE, Rule
from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    Augmentation,
    BatchNormMode,
    DataIntervention,
    EvalMode,
    Finish,
    Head,
    Initialization,
    LayerTransfer,
    Regularizer,
    ServingMode,
    Trainable,
    TrainMode,
)
from xferbench.core.pipeline import POOLINGS, Phase, Recipe, ScratchGrid
from xferbench.core.strategies import STRATEGIES
from xferbench.core.suite import COPY_KINDS, TEXT_COPY_KINDS
from xferbench.core.transforms import INPUT_KINDS, InputTransform, Preprocessing, Spectrogram, Tokens

NAME = r"[a-z0-9][a-z0-9._-]*"
SUITE_SCHEMA = 1
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
DURATION_PATTERN = f"^{DURATION.pattern}$"
INCREASING_SCHEMA = {"items": {"type": "integer", "minimum": 1}, "minItems": 1, "uniqueItems": True}
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}


def duration_seconds(text: str) -> float:
    """Return the seconds of a text that :data:`DURATION` matches."""
    number, unit = DURATION.fullmatch(text).groups()  # type: ignore[union-attr]
    return float(number) * UNIT_SECONDS[unit]


def _is_increasing(looks: list[Any]) -> bool:
    return bool(looks) and all(map(_is_index, looks)) and looks[0] > 0 and all(a < b for a, b in itertools.pairwise(looks))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _parse_phases(value: Any) -> list[dict[str, Any]]:
    """Return the tables of [[recipe.phases]] with their values parsed."""
    if not isinstance(value, list) or not value or not all(isinstance(phase, Mapping) for phase in value):
        raise ValueError("one or more [[recipe.phases]]")
    return [
        validation.validate_value(str(number), phase, validation.table(PHASE)) for number, phase in enumerate(value, start=1)
    ]


ABOVE_ONE = validation.typed(
    int, lambda v: v > 1, "a whole number above 1", minimum=2
)  # BatchNorm has no variance over a single image


def _build_preprocessing(kind: str = "image", **values: Any) -> Preprocessing:  # noqa: ARG001 - the kind selects the table
    """Return the preprocessing of images.

    Raises:
        UserError: if the crop is larger than the resized image, which would surround every image with a black border.
    """
    preprocessing = Preprocessing(**values)
    resize, crop = preprocessing.resize, preprocessing.crop
    if resize is not None and crop is not None and crop > resize:
        raise UserError(
            "crop: larger than the resized image",
            found=f"crop = {crop}, resize = {resize}",
            expected=f"a crop of at most {resize} pixels, because resize is the length of the shorter side",
            do=f"set resize to {crop} or more, or crop to {resize} or less",
        )
    return preprocessing


ONE_OR_THREE = {"oneOf": [{"minItems": 1, "maxItems": 1}, {"minItems": 3, "maxItems": 3}]}
TRANSFORM_KINDS = {"kind": validation.one_of(*INPUT_KINDS.values())}
SIDE = validation.one_of("right", "left")
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
        "orientation": validation.one_of("auto", "stored", "upright"),
        "bits": validation.typed(int, lambda v: 8 <= v <= 16, "a whole number from 8 to 16", minimum=8, maximum=16),
        "detail": validation.typed(
            validation.NUMBER, lambda v: 0 < v <= 1, "a share above 0, at most 1", float, exclusiveMinimum=0, maximum=1
        ),
        **TRANSFORM_KINDS,
    },
    _build_preprocessing,
)
SPECTROGRAM = validation.table(
    {"channels": COUNT, "mean": validation.FINITE, "std": POSITIVE, **TRANSFORM_KINDS},
    lambda kind, **rest: Spectrogram(**rest),  # noqa: ARG005 - the kind selects the table
)


TOKENS = validation.table(
    {
        "lowercase": validation.FLAG,
        "max_length": ABOVE_ONE,
        "special": validation.one_of("single", "none", "twice"),
        "truncation": SIDE,
        "padding": SIDE,
        "extra_padding": WHOLE,
        "masked": validation.FLAG,
        "shuffled": validation.FLAG,
        **TRANSFORM_KINDS,
    },
    lambda kind, **rest: Tokens(**rest),  # noqa: ARG005 - the kind selects the table
)
TRANSFORMS = {"image": IMAGE, "spectrogram": SPECTROGRAM, "text": TOKENS}


def _parse_preprocessing(value: Any) -> InputTransform:
    """Return the preprocessing of the kind that a table states; without one, of images."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    transform: InputTransform = TRANSFORMS.get(str(kind), IMAGE)(value)
    return transform


PREPROCESSING = validation.Validator(
    _parse_preprocessing, functools.reduce(validation.either_table, map(validation.rule_schema, TRANSFORMS.values()))
)
SHARE_BELOW_ONE = validation.typed(
    validation.NUMBER, lambda v: 0 <= v < 1, "a share, 0 or above and below 1", float, minimum=0, exclusiveMaximum=1
)
PHASE: dict[str, Rule] = {
    "trainable": spelling_rule(Trainable),
    "batchnorm": spelling_rule(BatchNormMode),
    "lr": POSITIVE,
    "head_lr": POSITIVE,
    "layer_decay": validation.typed(
        validation.NUMBER, lambda v: 0 < v <= 1, "a number above 0 and at most 1", float, exclusiveMinimum=0, maximum=1
    ),
    "optimizer": validation.one_of("adamw", "sgd"),
    "weight_decay": validation.NATURAL,
    "decay_norms": validation.FLAG,
    "warmup": WHOLE,
    "warmup_ratio": SHARE_BELOW_ONE,
    "schedule": validation.one_of("cosine", "linear", "constant", "one-cycle"),
    "steps": COUNT,
    "epochs": POSITIVE,
    "batch_size": ABOVE_ONE,
    "order": validation.one_of("shuffled", "class"),
    "label_smoothing": SHARE_BELOW_ONE,
    "dropout": SHARE_BELOW_ONE,
    "clip": POSITIVE,
}
RECIPE: dict[str, Rule] = {
    **PHASE,
    "strategy": validation.one_of(*STRATEGIES),
    "phases": validation.Validator(
        _parse_phases, {"type": "array", "minItems": 1, "items": validation.rule_schema(validation.table(PHASE))}
    ),
    "init": spelling_rule(Initialization),
    "transferred": spelling_rule(LayerTransfer),
    "head": spelling_rule(Head),
    "augment": extensible_rule(Augmentation),
    "regularizer": extensible_rule(Regularizer),
    "finish": extensible_rule(Finish),
    "stop": validation.one_of("last", "best"),
    "training": validation.matching(r"python:[\w.]+:[\w.]+", "python:module:callable"),
    "train_preprocessing": PREPROCESSING,
    "serve_preprocessing": PREPROCESSING,
    "serve_mode": spelling_rule(ServingMode, EvalMode, TrainMode),
}


def _parse_augmentations(value: Any) -> tuple[Augmentation | None, ...]:
    """Return a list of augmentations; ``none`` keeps that of the recipe."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(AUGMENTATIONS_EXPECTED)
    rule = extensible_rule(Augmentation)
    return tuple(None if text == "none" else rule(text) for text in value)


AUGMENTATIONS_EXPECTED = 'a list of augmentations, such as ["none", "crop"]'
SCRATCH: dict[str, Rule] = {
    "lr": validation.list_of(POSITIVE, "a list of numbers above 0"),
    "weight_decay": validation.list_of(validation.NATURAL, "a list of numbers, 0 or above"),
    "label_smoothing": validation.list_of(SHARE_BELOW_ONE, "a list of shares, 0 or above and below 1"),
    "augment": validation.Validator(
        _parse_augmentations,
        {"type": "array", "minItems": 1, "items": {"type": "string"}, "description": AUGMENTATIONS_EXPECTED},
    ),
    "steps": COUNT,
    "batch_size": ABOVE_ONE,
    "halvings": WHOLE,
}


def _parse_interventions(value: Any) -> tuple[DataIntervention, ...]:
    """Return data interventions, at most one of each kind, because each kind has one random stream."""
    if not isinstance(value, list):
        raise ValueError(INTERVENTIONS_EXPECTED)  # noqa: TRY004 - rules raise ValueError
    parsed = tuple(interventions.parse(text, DataIntervention) for text in value)
    if len({type(intervention) for intervention in parsed}) < len(parsed):
        raise ValueError("each kind of intervention at most once")
    return parsed


INTERVENTIONS_EXPECTED = "a list of changes of the training images, each KIND or KIND:NUMBER; `xferbench ls` lists the kinds"
SPELLING = {"type": "string", "pattern": f"^{SPELLING_PATTERN}$"}
INTERVENTIONS = validation.Validator(
    _parse_interventions, {"type": "array", "items": SPELLING, "description": INTERVENTIONS_EXPECTED}
)


def _check_recipes(value: Any) -> Any:
    """Return a list of names of strategies, and of tables with a name and a recipe's keys; refuse any other value."""
    if not isinstance(value, list):
        raise ValueError(RECIPES_EXPECTED)  # noqa: TRY004 - rules raise ValueError
    if not value:
        raise ValueError(RECIPES_EXPECTED + "; not empty")
    recipe_rule = validation.table({key: rule for key, rule in RECIPE.items() if key not in PIPELINE_KEYS})
    for index, entry in enumerate(value):
        if isinstance(entry, Mapping):
            recipe = {key: item for key, item in entry.items() if key != "name"}
            validation.validate_value(f"{index}.name", entry.get("name", ""), NAME_RULE)
            validation.validate_value(str(index), recipe, recipe_rule)
        elif not isinstance(entry, str):
            raise ValueError(RECIPES_EXPECTED)  # noqa: TRY004 - rules raise ValueError
    return value


PIPELINE_KEYS = (
    "training",
    "train_preprocessing",
    "serve_preprocessing",
    "serve_mode",
)  # keys of [recipe] that belong to the pipeline
NAME_EXPECTED = "lower-case letters, digits, '.', '_' and '-', starting with a letter or digit"
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
    "interventions": validation.unchanged(INTERVENTIONS),  # the [target] of each task parses them
}
BACKBONE_KEYS = {
    "name": NAME_RULE,
    "arch": validation.TEXT,
    "weights": validation.TEXT,
    "preprocessing": validation.typed(dict, bool, "a table"),
    "pooling": validation.one_of(*POOLINGS),
}
RECIPE_ITEM = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
MATRIX = validation.table(
    {
        "targets": validation.list_of(
            validation.table(
                TARGET_KEYS | {"shifted": validation.TEXT, "source": validation.TEXT, "similar": validation.FLAG},
                required=["name", "data"],
            ),
            "one or more [[matrix.targets]]",
        ),
        "train_sizes": validation.list_of(COUNT, "a list of whole numbers above 0"),
        "backbones": validation.list_of(
            validation.table(BACKBONE_KEYS, required=["name", "arch"]), "one or more [[matrix.backbones]]"
        ),
        "recipes": validation.Validator(
            _check_recipes, {"type": "array", "items": RECIPE_ITEM, "description": RECIPES_EXPECTED}
        ),
        "rates": validation.list_of(POSITIVE, "a list of factors above 0 that multiply each recipe's usual rate"),
        "steps": COUNT,
        "batch_size": ABOVE_ONE,
        "against": validation.TEXT,
        "effects": validation.list_of(CLAIM, "one or more [[matrix.effects]]"),
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
    """Return the recipe that a text such as ``trainable=head,batchnorm=eval`` describes.

    Raises:
        ValueError: for any other value, with the expected form.
    """
    rules = {"trainable": PHASE["trainable"], "batchnorm": PHASE["batchnorm"]}
    texts = {key.strip(): text.strip() for key, _, text in (part.partition("=") for part in str(value).split(","))}
    if set(texts) - set(rules):
        raise ValueError(EXPECTED_TRAINING)
    try:
        return Recipe(phases=(replace(Phase(), **{key: rules[key](text) for key, text in texts.items()}),))
    except ValueError as error:
        raise ValueError(f"{EXPECTED_TRAINING} ({error})") from error


EXPECTED_TRAINING = (
    "a text such as trainable=head,batchnorm=eval (trainable: head, top:N, norm, bias, lora:R, all; batchnorm: eval, train)"
)
REQUIRED_TABLES = ("schema", "name", "plugins", "backbone", "target")


def suite_rules(base: Path) -> Mapping[str, Rule]:
    """Return the rules for the keys of a suite file; relative paths are resolved in the folder ``base``."""
    kinds = "folder:DIR, npz:FILE, torchvision:NAME:DIR, csv:FILE, jsonl:FILE, datasets:DIR, synthetic:NAME or digits"
    dataset = validation.typed(str, bool, kinds, lambda value: _resolve_dataset(value, base), minLength=1)
    file = validation.typed(str, bool, "a path", lambda value: _resolve_path(value, base), minLength=1)
    arch = validation.typed(str, bool, "a non-empty string", lambda value: _resolve_arch(value, base), minLength=1)
    duration = validation.typed(
        str, DURATION.fullmatch, 'a duration such as "90s", "20m" or "2h"', duration_seconds, pattern=DURATION_PATTERN
    )
    return {
        "schema": validation.typed(
            int, lambda v: v == SUITE_SCHEMA, f"{SUITE_SCHEMA}, the only version so far", const=SUITE_SCHEMA
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
            list, _is_increasing, "a list of increasing whole numbers, 1 or above", tuple, **INCREASING_SCHEMA
        ),
        "budget": duration,
        "max_duplicates": validation.typed(
            validation.NUMBER, lambda v: 0 <= v < 1, "a share, 0 or above and below 1", float, minimum=0, exclusiveMaximum=1
        ),
        "max_failed_runs": validation.typed(
            validation.NUMBER,
            lambda v: 0 < v < 1,
            "a share above 0 and below 1: no number of seeds shows that no run fails",
            float,
            exclusiveMinimum=0,
            exclusiveMaximum=1,
        ),
        "unsearched_copies": validation.list_of(
            validation.one_of(*COPY_KINDS, *TEXT_COPY_KINDS),
            f"a list of {', '.join(COPY_KINDS)}; for texts, of {', '.join(TEXT_COPY_KINDS)}",
            lambda _: True,
        ),
        "seed": WHOLE,
        "tuning_seeds": COUNT,
        "backbone": validation.table(
            {"arch": arch, "weights": file, "preprocessing": PREPROCESSING, "pooling": validation.one_of(*POOLINGS)},
            required=["arch"],
        ),
        "target": validation.table(
            {"data": dataset, "train_size": COUNT, "test_size": COUNT, "interventions": INTERVENTIONS}, required=["data"]
        ),
        "source": _require_any(
            validation.table({"data": dataset, "classes": CLASSES, "keep": validation.FLAG, "manifest": file}),
            "data",
            "manifest",
        ),
        "shifted": validation.table({"data": dataset}, required=["data"]),
        "recipe": validation.table(RECIPE),
        "scratch": validation.table(SCRATCH, ScratchGrid),
        "checkpoint": validation.table(
            {
                "after": file,
                "before": file,
                "believed": validation.typed(str, bool, EXPECTED_TRAINING, parse_expected_training, minLength=1),
                "scratch": duration,
            },
            required=["after"],
        ),
        "matrix": MATRIX,
    }


def _require_any(table: Rule, *keys: str) -> Rule:
    """Return a rule for a table that has at least one of some keys."""

    def parse(value: Any) -> Any:
        result = table(value)
        if not set(keys) & set(result):
            raise UserError(f"{keys[0]}: missing", found=", ".join(result) or "no key at all", expected=" or ".join(keys))
        return result

    return validation.Validator(parse, {**validation.rule_schema(table), "anyOf": [{"required": [key]} for key in keys]})


def _resolve_dataset(dataset: str, base: Path) -> str:
    """Return a dataset with its path resolved, if its kind has one."""
    kind, colon, rest = dataset.partition(":")
    if kind == "torchvision":
        name, colon, rest = rest.partition(":")
        kind = f"{kind}:{name}"
    has_path = kind in {"folder", "npz", "csv", "jsonl", "datasets"} or kind.startswith("torchvision:")
    return f"{kind}:{_resolve_path(rest, base)}" if colon and rest and has_path else dataset


def _resolve_arch(text: str, base: Path) -> str:
    """Return the spelling of an architecture; the folder of one of transformers becomes absolute."""
    kind, colon, folder = text.partition(":")
    return f"{kind}:{_resolve_path(folder, base)}" if kind == "transformers" and colon else text


def _resolve_path(text: str, base: Path) -> str:
    try:
        return str((base / Path(text).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a cycle of links or a NUL character
        raise ValueError(f"a path ({error})") from error
