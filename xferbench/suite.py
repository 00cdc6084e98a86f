"""From a suite file to a :class:`~xferbench.design.Suite`: every key known, every value possible, or one clear message."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from xferbench.design import Phase, Preprocessing, Recipe, Scratch, Suite
from xferbench.metrics import METRICS
from xferbench.problem import Problem, nearest
from xferbench.strategies import STRATEGIES

T = TypeVar("T")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
SCHEMA = 1
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
SECONDS = {"s": 1, "m": 60, "h": 3600}
LATER = {"checkpoint", "matrix", "max_duplicates"}  # in the contract, for commands and plugins to come

# A rule takes the value as TOML gave it, and returns what is kept; it raises ValueError(what was expected).
Rule = Callable[[Any], Any]


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
    if NAME.fullmatch(word) and word in shipped():
        return folder() / f"{word}.toml"
    path = Path(word)
    if not path.is_file():
        known = nearest(word, shipped())
        raise Problem(
            f"no suite {word!r}", found="neither a file nor a shipped suite", expected=f"a path to a .toml file, or: {known}"
        )
    return path


def load(path: Path) -> Suite:
    """Read and check a suite file.

    Raises:
        Problem: with file, key, what was found and what was expected.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(
            f"{path}: not a TOML file", found=str(error), expected="a suite file; `xferbench ls` shows examples"
        ) from error
    return parse(table, path.resolve())


def parse(table: Mapping[str, Any], path: Path) -> Suite:
    """Check a suite's table; paths in it are relative to the file."""
    later = LATER & set(table)
    if later:
        raise Problem(f"{path}: {min(later)!r} is not used by this version", do="leave it out")
    rules = _top(path.parent)
    top = _checked(table, rules, str(path), required=("schema", "name", "plugins", "backbone", "target"))
    backbone, target = top.pop("backbone"), top.pop("target")
    top.pop("schema")
    recipe = dict(top.pop("recipe", None) or {})
    named = {name: recipe.pop(name) for name in ("train_preprocessing", "serve_preprocessing") if name in recipe}
    for role in ("source", "shifted"):
        if role in top:
            top[role] = top[role]["data"]
    top["target"] = target.pop("data")
    given = _recipe(recipe, str(path)) if "recipe" in table else None
    return Suite(path=str(path), **backbone, **target, **top, **named, recipe=given)


def _checked(table: Any, rules: Mapping[str, Rule], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every key through its rule.

    Raises:
        Problem: for an unknown key, a missing one, or a value that its rule refuses.
    """
    if not isinstance(table, Mapping):
        raise Problem(f"{where}", found=_shown(table), expected="a table: " + ", ".join(rules))
    for key in table:
        if key not in rules:
            raise Problem(f"{where}: unknown key {key!r}", expected=nearest(key, rules))
    for key in required:
        if key not in table:
            raise Problem(f"{where}: {key!r} is missing", expected=", ".join(required) + " are required")
    checked = {}
    for key, value in table.items():
        try:
            checked[key] = rules[key](value)
        except ValueError as error:
            raise Problem(f"{where}: {key}", found=_shown(value), expected=str(error)) from error
        except Problem as problem:
            if problem.what.startswith(where) or where in problem.what:
                raise
            what = f"{where}: {key}{problem.what}" if problem.what[:1] in {".", ":", "["} else f"{where}: {problem.what}"
            raise Problem(what, found=problem.found, expected=problem.expected, do=problem.do) from problem
    return checked


def _shown(value: Any) -> str:
    return f"{value!r}"[:80]


def _is(
    kind: type[T] | tuple[type, ...], test: Callable[[Any], bool], expected: str, make: Callable[[Any], Any] = lambda v: v
) -> Rule:
    def rule(value: Any) -> Any:
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind) or not test(value):
            raise ValueError(expected)
        return make(value)

    return rule


def _among(*words: str) -> Rule:
    def rule(value: Any) -> Any:
        if value not in words:
            raise ValueError(nearest(str(value), words))
        return value

    return rule


def _matching(pattern: str, expected: str) -> Rule:
    return _is(str, lambda value: re.fullmatch(pattern, value) is not None, expected)


def _table(rules: Callable[[], Mapping[str, Rule]], make: Callable[..., Any] = dict, required: tuple[str, ...] = ()) -> Rule:
    return lambda value: make(**_checked(value, rules(), "", required))


def _tuple(rule: Rule, test: Callable[[Any], bool] = bool, expected: str = "a list that is not empty") -> Rule:
    return _is(list, test, expected, lambda values: tuple(rule(value) for value in values))


NUMBER = (int, float)
POSITIVE = _is(NUMBER, lambda v: 0 < v < float("inf"), "a number above 0", float)
NATURAL = _is(NUMBER, lambda v: 0 <= v < float("inf"), "a number, 0 or above", float)
COUNT = _is(int, lambda v: v > 0, "a whole number above 0")
WHOLE = _is(int, lambda v: v >= 0, "a whole number, 0 or above")
TEXT = _is(str, bool, "a text that is not empty")
CHANNELS = _tuple(_is(NUMBER, lambda v: abs(v) < 1e6, "numbers", float), lambda v: len(v) in {1, 3}, "one number, or three")


def _preprocessing_rules() -> Mapping[str, Rule]:
    return {
        "resize": COUNT,
        "crop": COUNT,
        "interpolation": _among("bilinear", "bicubic", "nearest"),
        "antialias": _is(bool, lambda _: True, "true or false"),
        "channels": _among("rgb", "bgr", "grey"),
        "scale": POSITIVE,
        "mean": CHANNELS,
        "std": _is(list, lambda v: CHANNELS(v) and all(one > 0 for one in v), "one number above 0, or three", CHANNELS),
    }


def _phase_rules() -> Mapping[str, Rule]:
    batchnorm = _matching(r"eval|train|ghost:[1-9]\d*|momentum:(0?\.\d+|1|1\.0*)", "eval, train, ghost:N or momentum:M")
    return {
        "trainable": _matching(r"head|norm|all|top:\d+", "head, top:N, norm or all"),
        "batchnorm": batchnorm,
        "lr": POSITIVE,
        "head_lr": POSITIVE,
        "layer_decay": _is(NUMBER, lambda v: 0 < v <= 1, "a number above 0 and at most 1", float),
        "optimizer": _among("adamw", "sgd"),
        "weight_decay": NATURAL,
        "warmup": WHOLE,
        "schedule": _among("cosine", "constant", "one-cycle"),
        "steps": COUNT,
        "batch_size": _is(int, lambda v: v > 1, "a whole number above 1"),
        "order": _among("shuffled", "class"),
    }


def _recipe_rules() -> Mapping[str, Rule]:
    pre = _table(_preprocessing_rules, Preprocessing)
    phases = _tuple(lambda value: _checked(value, _phase_rules(), ".phases"))
    return {
        **_phase_rules(),
        "strategy": _among(*STRATEGIES),
        "phases": phases,
        "init": _among("pretrained", "random", "matched", "permuted"),
        "head": _among("random", "zero"),
        "stop": _among("last", "best"),
        "train_preprocessing": pre,
        "serve_preprocessing": pre,
    }


def _top(base: Path) -> Mapping[str, Rule]:
    pre = _table(_preprocessing_rules, Preprocessing)
    spec = _is(str, bool, "folder:DIR, npz:FILE, synthetic:NAME or digits", lambda value: _placed(value, base))
    file = _is(str, bool, "a path", lambda value: str((base / Path(value).expanduser()).resolve()))
    dataset = _table(lambda: {"data": spec, "train_size": COUNT, "test_size": COUNT}, required=("data",))
    other = _table(lambda: {"data": spec, "classes": _is(dict, bool, "class = index")}, required=("data",))
    grid = {"lr": _tuple(POSITIVE), "weight_decay": _tuple(NATURAL), "steps": COUNT, "batch_size": COUNT}
    return {
        "schema": _is(int, lambda v: v == SCHEMA, f"{SCHEMA}, the only one so far"),
        "name": _is(str, lambda v: NAME.fullmatch(v) is not None, "lower-case letters, digits, '.', '_' and '-'"),
        "plugins": _tuple(TEXT),
        "metric": _among(*METRICS),
        "margin": POSITIVE,
        "alpha": _is(NUMBER, lambda v: 0 < v < 0.5, "a number above 0 and below 0.5", float),
        "looks": _is(list, _increasing, "whole numbers from 1 up, each above the one before", tuple),
        "budget": _is(str, lambda v: DURATION.fullmatch(v) is not None, 'a duration such as "90s", "20m" or "2h"', _seconds),
        "seed": WHOLE,
        "tuning_seeds": COUNT,
        "backbone": _table(lambda: {"arch": TEXT, "weights": file, "preprocessing": pre}, required=("arch",)),
        "target": dataset,
        "source": other,
        "shifted": other,
        "recipe": _table(_recipe_rules),
        "scratch": _table(lambda: grid, Scratch),
    }


def _increasing(looks: list[Any]) -> bool:
    whole = all(isinstance(look, int) and not isinstance(look, bool) and look > 0 for look in looks)
    return bool(looks) and whole and all(a < b for a, b in itertools.pairwise(looks))


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


def _placed(spec: str, base: Path) -> str:
    kind, colon, rest = spec.partition(":")
    return f"{kind}:{(base / Path(rest).expanduser()).resolve()}" if colon and kind in {"folder", "npz"} else spec


def _recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe: one phase, several, or a named strategy built from one phase."""
    rest = dict(table)
    whole = {name: rest.pop(name) for name in ("init", "head", "stop") if name in rest}
    phases, strategy = rest.pop("phases", None), rest.pop("strategy", None)
    common = replace(Phase(), **rest)
    if phases and strategy:
        raise Problem(f"{where}: [recipe] has both strategy and phases", expected="one of them")
    if strategy:
        return replace(STRATEGIES[strategy](common), **whole)
    made = tuple(replace(common, **phase) for phase in phases) if phases else (common,)
    return Recipe(phases=made, **whole)


def patch(before: Recipe | None, after: Recipe) -> list[str]:
    """The lines of a suite file's [recipe] that turn one recipe into another."""
    whole = [
        f'{name} = "{getattr(after, name)}"'
        for name in ("init", "head", "stop")
        if getattr(after, name) != getattr(Recipe(), name)
    ]
    if len(after.phases) == 1:
        was = before.phases[0] if before and len(before.phases) == 1 else None
        return ["[recipe]", *whole, *_lines(after.phases[0], was)]
    body = [line for phase in after.phases for line in ("", "[[recipe.phases]]", *_lines(phase, None))]
    return ["[recipe]", *whole, *body]


def _lines(phase: Phase, before: Phase | None) -> list[str]:
    """A phase's keys that differ from the defaults; marked where they differ from what was there."""
    lines = []
    for name in (f.name for f in fields(Phase)):
        value, default = getattr(phase, name), getattr(Phase(), name)
        was = getattr(before, name) if before else value
        if (value == default and value == was) or value is None:
            continue
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else f"{value}"
        lines.append(f"{name} = {shown}" + ("" if value == was else f"    # was {was}"))
    return lines


def words(recipe: Recipe) -> str:
    """A recipe in one line."""
    told = []
    for phase in recipe.phases:
        rate = f"lr {phase.lr:g}" + (f", head {phase.head_lr:g}" if phase.head_lr else "")
        extra = "" if phase.order == "shuffled" else ", class-ordered"
        told.append(f"{phase.trainable}, {rate}, BatchNorm {phase.batchnorm}, {phase.steps} × {phase.batch_size}{extra}")
    start = "" if recipe.init == "pretrained" else f"{recipe.init} weights: "
    return (
        (f"{recipe.name}: " if recipe.name else "")
        + start
        + "; then ".join(told)
        + ("" if recipe.stop == "last" else "; best step")
    )
