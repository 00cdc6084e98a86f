"""From a suite file to a :class:`~xferbench.design.Suite`: every key known, every value possible, or one clear message."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from xferbench import overrides, rules
from xferbench.design import Code, Phase, Pipeline, Preprocessing, Ready, Recipe, Scratch, Spectrogram, Suite
from xferbench.metrics import METRICS
from xferbench.problem import Problem, nearest
from xferbench.rules import COUNT, POSITIVE, WHOLE, Rule
from xferbench.strategies import STRATEGIES

NAME = r"[a-z0-9][a-z0-9._-]*"
SCHEMA = 1
SEEDS = 1_000_000  # judged seeds lie below; those that settle choices begin here
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
LASTING = f"^{DURATION.pattern}$"
INCREASING = {"items": {"type": "integer", "minimum": 1}, "minItems": 1, "uniqueItems": True}
SECONDS = {"s": 1, "m": 60, "h": 3600}
RECIPES = ("init", "head", "regularizer", "stop")  # keys of a recipe as a whole
LATER = ("checkpoint", "matrix", "max_duplicates")  # in the contract, for commands and plugins to come


def folder() -> Path:
    """Where the shipped suites lie: in the wheel, or at the top of a checkout."""
    inside = Path(__file__).parent / "suites"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "suites"


def shipped() -> tuple[str, ...]:
    """Names of the shipped suites."""
    return tuple(sorted(path.stem for path in folder().glob("*.toml")))


def find(word: str) -> Path:
    """The file that a word on the command line means: a path, or a shipped suite's name.

    Raises:
        Problem: where there is neither.
    """
    if word in shipped():
        return folder() / f"{word}.toml"
    path, found = Path(word), "neither a file nor a shipped suite"
    try:
        if path.is_file():
            return path
        found = "a folder" if path.is_dir() else found
    except OSError as error:
        found = error.strerror or found
    expected = f"a path to a .toml file, or a shipped suite ({nearest(word[:80], shipped())})"
    raise Problem(f"no suite {rules.shown(word)}", found=found, expected=expected)


def load(path: Path, words: Sequence[str] = ()) -> Suite:
    """Read and check a suite file; ``words`` (``recipe.lr=1e-3``) stand in the place of its keys.

    Raises:
        Problem: with file, key, what was found and what was expected.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Problem(f"{path}: cannot be read", found=error.strerror or str(error), expected="a suite file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(f"{path}: not a TOML file", found=str(error), expected="a suite file in UTF-8", do=_compare()) from error
    return parse(table, path.resolve(), words)


def _compare() -> str:
    return f"compare {folder() / 'quick.toml'}"


def parse(table: Mapping[str, Any], path: Path, words: Sequence[str] = ()) -> Suite:
    """Check a suite's table; paths in it are relative to the file, those of the words too.

    Raises:
        Problem: with file, key, what was found and what was expected.
    """
    changed = overrides.applied(table, words)
    try:
        return replace(_parsed(changed, path), overrides=tuple(words))
    except Problem as problem:
        raise problem.at(overrides.place(problem.what, path, words)) from problem


def _parsed(table: Mapping[str, Any], path: Path) -> Suite:
    for later in LATER:
        if later in table:
            raise Problem(f"{later}: not used by this version", do="leave it out")
    top = rules.checked(table, top_rules(path.parent), required=REQUIRED)
    del top["schema"]
    backbone, target, recipe = top.pop("backbone"), top.pop("target"), dict(top.pop("recipe", {}))
    classes = tuple(top.get("source", {}).get("classes", {}).items())
    roles = {role: top.pop(role)["data"] for role in ("source", "shifted") if role in top} | {"target": target.pop("data")}
    serving = ("training", "train_preprocessing", "serve_preprocessing", "serve_mode")
    served = {name: recipe.pop(name) for name in serving if name in recipe}
    given = _recipe(recipe) if "recipe" in table else None
    asked = Suite(path=str(path), **backbone, **target, **roles, source_classes=classes, **top, **served, recipe=given)
    needing = {"init": "shuffled-source", "regularizer": ("ewc", "replay")}
    for name, words in needing.items():
        if given is not None and getattr(given, name).startswith(words) and asked.source is None:
            raise Problem(f"recipe.{name}", found=getattr(given, name), expected="one that needs no [source], or a [source]")
    _one_kind(asked)
    span = METRICS[asked.metric].span
    if asked.margin >= span:
        raise Problem("margin", found=f"{asked.margin:g}", expected=f"less than {span:g}: 0.02 of {asked.metric}, say")
    return apart(asked)


def _one_kind(asked: Suite) -> None:
    """Refuse a pipeline that is trained on one kind of input and served another."""
    named = {
        "backbone.preprocessing": asked.preprocessing,
        "recipe.train_preprocessing": asked.train_preprocessing,
        "recipe.serve_preprocessing": asked.serve_preprocessing,
    }
    kinds = {key: type(value).__name__.lower() for key, value in named.items() if value is not None}
    odd = next((key for key in kinds if kinds[key] != next(iter(kinds.values()))), None)
    if odd:
        first, kind = next(iter(kinds.items()))
        kind = "spectrogram" if kind == "spectrogram" else "image"
        raise Problem(f"{odd}.kind", found="another kind than that of " + first, expected=f'kind = "{kind}"')


def apart(asked: Suite) -> Suite:
    """The same suite, if its judged seeds lie below those that settle choices.

    Raises:
        Problem: where they do not.
    """
    if asked.seed + asked.looks[-1] > SEEDS:
        found = f"{asked.seed}, with {asked.looks[-1]} seeds at the last look"
        raise Problem("seed", found=found, expected=f"seeds below {SEEDS}, where those that settle choices begin")
    return asked


def duration(text: str) -> float:
    """Seconds of a text such as 90s, 20m or 2h.

    Raises:
        Problem: for any other text.
    """
    if not DURATION.fullmatch(text):
        raise Problem("budget", found=text, expected="a duration such as 90s, 20m or 2h")
    return _seconds(text)


def _seconds(text: str) -> float:
    number, unit = DURATION.fullmatch(text).groups()  # type: ignore[union-attr] # its rule has matched it
    return float(number) * SECONDS[unit]


def _increasing(looks: list[Any]) -> bool:
    return bool(looks) and all(map(_is_index, looks)) and looks[0] > 0 and all(a < b for a, b in itertools.pairwise(looks))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


BATCHNORM = "eval, train, ghost:N with N of 2 or more, or momentum:M with M above 0 and at most 1"
GHOST = r"^(eval|train|ghost:([2-9]|[1-9]\d+)|momentum:\d*\.?\d+(e-\d+)?)$"


def _batchnorm(value: Any) -> str:
    kind, _, amount = str(value).partition(":")
    ghost = kind == "ghost" and re.fullmatch(r"[1-9]\d*", amount) and int(amount) > 1
    momentum = kind == "momentum" and re.fullmatch(r"\d*\.?\d+(e-\d+)?", amount) and 0 < float(amount) <= 1
    if value not in ("eval", "train") and not ghost and not momentum:
        raise ValueError(BATCHNORM)
    return str(value)


def _phases(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(phase, Mapping) for phase in value):
        raise ValueError("one [[recipe.phases]] or more")
    return [rules.ruled(str(number), phase, rules.table(PHASE)) for number, phase in enumerate(value, start=1)]


SEVERAL = rules.of(int, lambda v: v > 1, "a whole number above 1", minimum=2)  # BatchNorm knows nothing of one image
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
    "trainable": rules.matching(r"head|norm|all|top:[1-9]\d*", "head, top:N with N of 1 or more, norm or all"),
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
    "init": rules.among("pretrained", "random", "matched", "permuted", "shuffled-source"),
    "head": rules.among("random", "zero"),
    "regularizer": rules.matching(
        r"(l2-sp|ewc|lwf):\d*\.?\d+(e[+-]?\d+)?|replay:[1-9]\d*",
        "l2-sp:A, ewc:L or lwf:W with a strength above 0, or replay:N with N source images a batch",
    ),
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
CLASSES = rules.of(
    dict,
    lambda v: v and all(map(_is_index, v.values())),
    "class = index in the source head, for each class",
    minProperties=1,
    additionalProperties={"type": "integer", "minimum": 0},
)


REQUIRED = ("schema", "name", "plugins", "backbone", "target")


def top_rules(base: Path) -> Mapping[str, Rule]:
    """The rules of a suite file's keys, where paths are relative to a folder."""
    kinds = "folder:DIR, npz:FILE, torchvision:NAME:DIR, synthetic:NAME or digits"
    spec = rules.of(str, bool, kinds, lambda value: _placed(value, base), minLength=1)
    file = rules.of(str, bool, "a path", lambda value: _path(value, base), minLength=1)
    names = "lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit"
    return {
        "schema": rules.of(int, lambda v: v == SCHEMA, f"{SCHEMA}, the only one so far", const=SCHEMA),
        "name": rules.matching(NAME, names),
        "plugins": rules.several(rules.TEXT, 'a list of plugins, or ["all"]'),
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
        "budget": rules.of(str, DURATION.fullmatch, 'a duration such as "90s", "20m" or "2h"', _seconds, pattern=LASTING),
        "seed": WHOLE,
        "tuning_seeds": COUNT,
        "backbone": rules.table({"arch": rules.TEXT, "weights": file, "preprocessing": PREPROCESSING}, required=["arch"]),
        "target": rules.table({"data": spec, "train_size": COUNT, "test_size": COUNT}, required=["data"]),
        "source": rules.table({"data": spec, "classes": CLASSES}, required=["data"]),
        "shifted": rules.table({"data": spec}, required=["data"]),
        "recipe": rules.table(RECIPE),
        "scratch": rules.table(SCRATCH, Scratch),
    }


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


def _recipe(table: Mapping[str, Any]) -> Recipe:
    """A recipe: one phase, several, or a named strategy built from one phase."""
    rest = dict(table)
    whole = {name: rest.pop(name) for name in RECIPES if name in rest}
    phases, strategy = rest.pop("phases", [{}]), rest.pop("strategy", None)
    common = replace(Phase(), **rest)
    recipe = Recipe(phases=tuple(replace(common, **phase) for phase in phases), **whole)
    if strategy and "phases" in table:
        raise Problem("recipe.strategy", found="both strategy and phases", expected="one of them")
    if strategy:
        recipe = replace(STRATEGIES[strategy](common), **whole)
        _heard(strategy, STRATEGIES[strategy](common), table)
    for phase in recipe.phases:
        if phase.warmup >= phase.steps:
            raise Problem("recipe.warmup", found=f"{phase.warmup}", expected=f"fewer than the {phase.steps} steps of a phase")
    return recipe


def _heard(strategy: str, made: Recipe, given: Mapping[str, Any]) -> None:
    """Refuse a key that would go unheard, since the strategy sets it; it parts the steps among its phases."""
    for name in given.keys() - {"strategy", "steps", "head", "regularizer", "stop"}:
        own = {made.init} if name == "init" else {getattr(phase, name) for phase in made.phases}
        if given[name] not in own and (name != "init" or made.init != Recipe().init):
            expected = f"{' or '.join(sorted(map(rules.shown, own)))}, as the strategy {strategy} sets it"
            found = rules.shown(given[name])
            raise Problem(f"recipe.{name}", found=found, expected=expected, do=f"leave {name} or strategy out")


def patch(before: Recipe | None, after: Recipe, training: Code | None = None) -> list[str]:
    """The lines of a suite file's [recipe] that turn one recipe into another; the user's training code stays."""
    whole = [f'{name} = "{getattr(after, name)}"' for name in RECIPES if getattr(after, name) != getattr(Recipe(), name)]
    whole += [f'training = "{training.spec}"'] if training else []
    if len(after.phases) == 1:
        was = before.phases[0] if before and len(before.phases) == 1 else None
        return ["[recipe]", *whole, *_lines(after.phases[0], was)]
    body = [line for phase in after.phases for line in ("", "[[recipe.phases]]", *_lines(phase, None))]
    return ["[recipe]", *whole, *body]


def patched(before: Pipeline | None, after: Pipeline, recorded: Ready) -> list[str]:
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
        if new != default or new != old
    ]
    first, *rest = patch(before.recipe if before else None, after.recipe, after.training)
    return [first, *served, *rest]


def _value(value: Any) -> str:
    """A value as TOML; of a table what differs from its defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        told = {name: one for name, one in named.items() if one != getattr(type(value)(), name)}
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
        lines.append(f"{name} = {_value(value)}" + ("" if value == was else f"    # was {was}"))
    return lines


TOLD = ("trainable", "lr", "head_lr", "batchnorm", "steps", "batch_size", "order")  # in words of their own, always


def words(recipe: Recipe) -> str:
    """A recipe in one line: what matters most, and whatever else differs from the default, so that no two read alike."""
    told = []
    for phase in recipe.phases:
        rate = f"lr {phase.lr:g}" + (f", head {phase.head_lr:g}" if phase.head_lr else "")
        extra = "".join(f", {one}" for one in _unusual(phase, Phase(), TOLD))
        extra += "" if phase.order == "shuffled" else ", class-ordered"
        told.append(f"{phase.trainable}, {rate}, BatchNorm {phase.batchnorm}, {phase.steps} × {phase.batch_size}{extra}")
    start = "" if recipe.init == "pretrained" else f"{recipe.init} weights: "
    whole = "".join(f"; {one}" for one in _unusual(recipe, Recipe(), ("init", "phases", "regularizer", "stop", "name")))
    whole += f"; {recipe.regularizer}" if recipe.regularizer else ""
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
