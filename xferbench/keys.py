"""The keys of a suite file: for each table, what every key may hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xferbench import rules
from xferbench.config import interventions
from xferbench.core.interventions import (
    BUILT_IN,
    Augmentation,
    DataIntervention,
    Finish,
    Head,
    Intervention,
    Regularizer,
    Trainable,
    form,
    pattern,
)
from xferbench.design import MADE_HERE, Phase, Preprocessing, Ready, Recipe, Scratch, Spectrogram
from xferbench.metrics import METRICS
from xferbench.problem import Problem
from xferbench.rules import COUNT, POSITIVE, WHOLE, Rule
from xferbench.strategies import STRATEGIES

NAME = r"[a-z0-9][a-z0-9._-]*"
SCHEMA = 1
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
LASTING = f"^{DURATION.pattern}$"
INCREASING = {"items": {"type": "integer", "minimum": 1}, "minItems": 1, "uniqueItems": True}
SECONDS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Of a duration that its rule has matched."""
    number, unit = DURATION.fullmatch(text).groups()  # type: ignore[union-attr]
    return float(number) * SECONDS[unit]


def _increasing(looks: list[Any]) -> bool:
    return bool(looks) and all(map(_is_index, looks)) and looks[0] > 0 and all(a < b for a, b in itertools.pairwise(looks))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


BATCHNORM = "eval, train, train-above, ghost:N with N of 2 or more, or momentum:M with M above 0 and at most 1"
GHOST = r"^(eval|train|train-above|ghost:([2-9]|[1-9]\d+)|momentum:\d*\.?\d+(e-\d+)?)$"


def _batchnorm(value: Any) -> str:
    kind, _, amount = str(value).partition(":")
    ghost = kind == "ghost" and re.fullmatch(r"[1-9]\d*", amount) and int(amount) > 1
    momentum = kind == "momentum" and re.fullmatch(r"\d*\.?\d+(e-\d+)?", amount) and 0 < float(amount) <= 1
    if value not in ("eval", "train", "train-above") and not ghost and not momentum:
        raise ValueError(BATCHNORM)
    return str(value)


def _phases(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(phase, Mapping) for phase in value):
        raise ValueError("one [[recipe.phases]] or more")
    return [rules.ruled(str(number), phase, rules.table(PHASE)) for number, phase in enumerate(value, start=1)]


SEVERAL = rules.of(int, lambda v: v > 1, "a whole number above 1", minimum=2)  # BatchNorm knows nothing of one image


def spelled(group: type[Intervention]) -> Rule:
    """A text that spells a built-in value of a group."""
    forms = " or ".join(map(form, BUILT_IN[group]))
    return rules.of(str, bool, forms, group.parse, pattern=f"^({pattern(BUILT_IN[group])})$")


ONE_OR_THREE = {"oneOf": [{"minItems": 1, "maxItems": 1}, {"minItems": 3, "maxItems": 3}]}
KINDS = {"kind": rules.among("image", "spectrogram")}
IMAGE = rules.table(
    {
        "resize": COUNT,
        "crop": COUNT,
        "interpolation": rules.among("bilinear", "bicubic", "nearest"),
        "antialias": rules.FLAG,
        "channels": rules.among("rgb", "bgr", "grey"),
        "scale": POSITIVE,
        "mean": rules.several(rules.FINITE, "a list of one number, or three", lambda v: len(v) in {1, 3}, **ONE_OR_THREE),
        "std": rules.several(POSITIVE, "a list of one number above 0, or three", lambda v: len(v) in {1, 3}, **ONE_OR_THREE),
        "detail": rules.of(
            rules.NUMBER, lambda v: 0 < v <= 1, "a share above 0, at most 1", float, exclusiveMinimum=0, maximum=1
        ),
        **KINDS,
    },
    lambda kind="image", **rest: Preprocessing(**rest),  # noqa: ARG005 - the kind has chosen the table
)
SPECTROGRAM = rules.table(
    {"channels": COUNT, "mean": rules.FINITE, "std": POSITIVE, **KINDS},
    lambda kind, **rest: Spectrogram(**rest),  # noqa: ARG005 - likewise
)


def _preprocessing(value: Any) -> Ready:
    spectrogram = isinstance(value, Mapping) and value.get("kind") == "spectrogram"
    made: Ready = (SPECTROGRAM if spectrogram else IMAGE)(value)
    return made


PREPROCESSING = rules.Told(_preprocessing, rules.either(rules.schema(IMAGE), rules.schema(SPECTROGRAM)))
PHASE: dict[str, Rule] = {
    "trainable": spelled(Trainable),
    "batchnorm": rules.Told(_batchnorm, {"pattern": GHOST, "type": "string", "description": BATCHNORM}),
    "lr": POSITIVE,
    "head_lr": POSITIVE,
    "layer_decay": rules.of(
        rules.NUMBER, lambda v: 0 < v <= 1, "a number above 0 and at most 1", float, exclusiveMinimum=0, maximum=1
    ),
    "optimizer": rules.among("adamw", "sgd"),
    "weight_decay": rules.NATURAL,
    "warmup": WHOLE,
    "schedule": rules.among("cosine", "constant", "one-cycle"),
    "steps": COUNT,
    "batch_size": SEVERAL,
    "order": rules.among("shuffled", "class"),
}
RECIPE: dict[str, Rule] = {
    **PHASE,
    "strategy": rules.among(*STRATEGIES),
    "phases": rules.Told(_phases, {"type": "array", "minItems": 1, "items": rules.schema(rules.table(PHASE))}),
    "init": rules.among("pretrained", "random", "matched", "permuted", *MADE_HERE, "target"),
    "transferred": rules.matching(r"all|low:[1-9]\d*", "all, or low:N with N of 1 or more"),
    "head": spelled(Head),
    "augment": spelled(Augmentation),
    "regularizer": spelled(Regularizer),
    "finish": spelled(Finish),
    "stop": rules.among("last", "best"),
    "training": rules.matching(r"python:[\w.]+:[\w.]+", "python:module:callable"),
    "train_preprocessing": PREPROCESSING,
    "serve_preprocessing": PREPROCESSING,
    "serve_mode": rules.among("eval", "train"),
}
SCRATCH: dict[str, Rule] = {
    "lr": rules.several(POSITIVE, "a list of numbers above 0"),
    "weight_decay": rules.several(rules.NATURAL, "a list of numbers, 0 or above"),
    "steps": COUNT,
    "batch_size": SEVERAL,
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
INTERVENTIONS = rules.Told(_interventions, {"type": "array", "items": SPELLING, "description": INTERVENTIONS_FORM})


def _recipes(value: Any) -> Any:
    """Names of strategies, or tables of a recipe's keys with a name."""
    if not isinstance(value, list):
        raise ValueError(RECIPES)  # noqa: TRY004 - what a rule raises
    if not value:
        raise ValueError(RECIPES + ", not empty")
    for number, one in enumerate(value):
        if isinstance(one, Mapping):
            rest = {key: own for key, own in one.items() if key != "name"}
            rules.ruled(f"{number}.name", one.get("name", ""), rules.matching(NAME, NAMES))
            rules.ruled(str(number), rest, rules.table({key: rule for key, rule in RECIPE.items() if key not in OF_SERVING}))
        elif not isinstance(one, str):
            raise ValueError(RECIPES)  # noqa: TRY004 - likewise
    return value


OF_SERVING = ("training", "train_preprocessing", "serve_preprocessing", "serve_mode")  # keys of [recipe] that are none of it
NAMES = "lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"
RECIPES = 'a list of strategies, "default" or "all", or of tables with a name and the keys of [recipe]'
CALLED = rules.matching(NAME, NAMES)
EFFECT = rules.table(
    {
        "name": CALLED,
        "claim": rules.TEXT,
        "source": rules.TEXT,
        "task": rules.TEXT,
        "contrast": rules.TEXT,
        "recipe": rules.TEXT,
        "against": rules.TEXT,
        "view": rules.among("test", "shifted", "source", "source-probe", "training", "train-mode"),
        "measure": rules.among("accuracy", "seconds", "trainable", "stored", "share", "speed-up"),
        "published": rules.FINITE,
        "at_least": rules.FINITE,
        "at_most": rules.FINITE,
    },
    required=["name", "claim", "source"],
)
PLACE = {
    "name": CALLED,
    "data": rules.TEXT,
    "train_size": COUNT,
    "test_size": COUNT,
    "interventions": rules.unchanged(INTERVENTIONS),  # each task's own [target] reads them
}
NETWORK = {"name": CALLED, "arch": rules.TEXT, "weights": rules.TEXT, "preprocessing": rules.of(dict, bool, "a table")}
ITEM = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
MATRIX = rules.table(
    {
        "targets": rules.several(
            rules.table(
                PLACE | {"shifted": rules.TEXT, "source": rules.TEXT, "similar": rules.FLAG}, required=["name", "data"]
            ),
            "one [[matrix.targets]] or more",
        ),
        "train_sizes": rules.several(COUNT, "a list of whole numbers above 0"),
        "backbones": rules.several(rules.table(NETWORK, required=["name", "arch"]), "one [[matrix.backbones]] or more"),
        "recipes": rules.Told(_recipes, {"type": "array", "items": ITEM, "description": RECIPES}),
        "rates": rules.several(POSITIVE, "a list of factors above 0, by which each recipe's usual rate is multiplied"),
        "steps": COUNT,
        "batch_size": SEVERAL,
        "against": rules.TEXT,
        "effects": rules.several(EFFECT, "one [[matrix.effects]] or more"),
    },
    required=["recipes"],
)
CLASSES = rules.of(
    dict,
    lambda v: v and all(map(_is_index, v.values())),
    "class = index in the source head, for each class",
    minProperties=1,
    additionalProperties={"type": "integer", "minimum": 0},
)


def believed(value: Any) -> Recipe:
    """A belief about training, ``trainable=head,batchnorm=eval``, as the recipe that it would have been.

    Raises:
        ValueError: for anything else, with what was expected.
    """
    told = {"trainable": PHASE["trainable"], "batchnorm": PHASE["batchnorm"]}
    given = {key.strip(): text.strip() for key, _, text in (word.partition("=") for word in str(value).split(","))}
    if set(given) - set(told):
        raise ValueError(BELIEVED)
    try:
        return Recipe(phases=(replace(Phase(), **{key: told[key](text) for key, text in given.items()}),))
    except ValueError as error:
        raise ValueError(f"{BELIEVED} ({error})") from error


BELIEVED = (
    "what was to be trained, as trainable=head,batchnorm=eval"
    " (trainable: head, top:N, norm, bias, lora:R, all; batchnorm: eval, train)"
)
REQUIRED = ("schema", "name", "plugins", "backbone", "target")


def top_rules(base: Path) -> Mapping[str, Rule]:
    """The rules of a suite file's keys, where paths are relative to a folder."""
    kinds = "folder:DIR, npz:FILE, torchvision:NAME:DIR, synthetic:NAME or digits"
    spec = rules.of(str, bool, kinds, lambda value: _placed(value, base), minLength=1)
    file = rules.of(str, bool, "a path", lambda value: _path(value, base), minLength=1)
    lasting = rules.of(str, DURATION.fullmatch, 'a duration such as "90s", "20m" or "2h"', seconds, pattern=LASTING)
    return {
        "schema": rules.of(int, lambda v: v == SCHEMA, f"{SCHEMA}, the only one so far", const=SCHEMA),
        "name": CALLED,
        "plugins": rules.several(rules.TEXT, 'a list of plugins, or ["all"]', lambda _: True),
        "metric": rules.among(*METRICS),
        "margin": POSITIVE,
        "alpha": rules.of(
            rules.NUMBER,
            lambda v: 0 < v < 0.5,
            "a number above 0 and below 0.5",
            float,
            exclusiveMinimum=0,
            exclusiveMaximum=0.5,
        ),
        "looks": rules.of(
            list, _increasing, "a list of whole numbers from 1 up, each above the one before", tuple, **INCREASING
        ),
        "budget": lasting,
        "max_duplicates": rules.of(
            rules.NUMBER, lambda v: 0 <= v < 1, "a share, 0 or above and below 1", float, minimum=0, exclusiveMaximum=1
        ),
        "seed": WHOLE,
        "tuning_seeds": COUNT,
        "backbone": rules.table({"arch": rules.TEXT, "weights": file, "preprocessing": PREPROCESSING}, required=["arch"]),
        "target": rules.table(
            {"data": spec, "train_size": COUNT, "test_size": COUNT, "interventions": INTERVENTIONS}, required=["data"]
        ),
        "source": _one_of(rules.table({"data": spec, "classes": CLASSES, "manifest": file}), "data", "manifest"),
        "shifted": rules.table({"data": spec}, required=["data"]),
        "recipe": rules.table(RECIPE),
        "scratch": rules.table(SCRATCH, Scratch),
        "checkpoint": rules.table(
            {
                "after": file,
                "before": file,
                "believed": rules.of(str, bool, BELIEVED, believed, minLength=1),
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
            raise Problem(f"{keys[0]}: missing", found=", ".join(made) or "no key at all", expected=" or ".join(keys))
        return made

    return rules.Told(rule, {**rules.schema(table), "anyOf": [{"required": [key]} for key in keys]})


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
