"""From a suite file to a :class:`~xferbench.design.Suite`: every key known, every value possible, or one clear message."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench import keys, overrides, rules
from xferbench.config.matrix import parse_matrix
from xferbench.core.interventions import InterpolatePhase
from xferbench.design import MADE_HERE, Phase, Recipe, Spectrogram, Suite
from xferbench.metrics import METRICS
from xferbench.problem import Problem, nearest
from xferbench.strategies import RATES, STRATEGIES, deep
from xferbench.wording import WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SEEDS = 1_000_000  # judged seeds lie below; those that settle choices begin here
OF_TRAINING = ("looks", "seed", "tuning_seeds", "budget", "scratch")  # what a finished network has no use for


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
    if "matrix" in table:
        return parse_matrix(table, path, _single, recipe, _possible)
    found = _single(table, path)
    if not found.plugins:
        raise Problem("plugins", found="[]", expected='a list of plugins, or ["all"]; none only beside [matrix]')
    return found


def _single(table: Mapping[str, Any], path: Path) -> Suite:
    """A suite without a matrix."""
    top = rules.checked(table, keys.top_rules(path.parent), required=keys.REQUIRED)
    del top["schema"]
    backbone, target, recipe = top.pop("backbone"), top.pop("target"), dict(top.pop("recipe", {}))
    source = top.pop("source", {})
    beside = {"source_classes": tuple(source.pop("classes", {}).items()), "manifest": source.get("manifest")}
    roles = {"source": source.get("data"), "shifted": top.pop("shifted", {}).get("data"), "target": target.pop("data")}
    served = {name: recipe.pop(name) for name in keys.OF_SERVING if name in recipe}
    finished = _finished(top.pop("checkpoint"), table, recipe) if "checkpoint" in top else {}
    given = _recipe(recipe) if "recipe" in table and not finished else None
    asked = Suite(path=str(path), **backbone, **target, **roles, **beside, **top, **served, **finished, recipe=given)
    needing = [("init", "source")] if given is not None and given.init in MADE_HERE else []
    if given is not None and given.regularizer:
        needing += [("regularizer", role) for role in ("source", "shifted") if role in given.regularizer.requires]
    for name, role in needing:
        if getattr(asked, role) is None:
            expected = f"one that needs no [{role}], or a [{role}]"
            raise Problem(f"recipe.{name}", found=str(getattr(given, name)), expected=expected)
    if given is not None:
        _possible(given, asked)
    _one_kind(asked)
    span = METRICS[asked.metric].span
    if asked.margin >= span:
        raise Problem("margin", found=f"{asked.margin:g}", expected=f"less than {span:g}: 0.02 of {asked.metric}, say")
    return apart(asked)


def _finished(checkpoint: Mapping[str, Any], table: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an audit. It looks once at one network, so that what is about training goes unheard, and is refused."""
    odd = [key for key in OF_TRAINING if key in table] + [f"recipe.{key}" for key in recipe]
    odd += ["recipe.training"] if "training" in table.get("recipe", {}) else []
    odd += ["target.interventions"] if "interventions" in table["target"] else []
    odd += ["backbone.weights"] if "weights" in table["backbone"] else []
    if odd:
        do = "leave it out; what was done is [checkpoint] believed" if odd[0] != "backbone.weights" else "name it as before"
        raise Problem(odd[0], found="a key of training, beside [checkpoint]", expected="a finished network alone", do=do)
    given = dict(checkpoint)
    return {"looks": (1,), "tuning_seeds": 1, "scratch_budget": given.pop("scratch", None), **given}


def _possible(recipe: Recipe, asked: Suite) -> None:
    """Refuse words of a recipe that do not go together, or not with the rest."""
    held = recipe.regularizer
    needs = held.requires if held else ()
    if "plain-head" in needs and deep(recipe.head):
        expected = "l2-sp, ewc or distill, or a plain head: the source's cannot stand below another"
        raise Problem("recipe.regularizer", found=f"{held}, beside head {recipe.head}", expected=expected)
    if {"teacher", "shifted"} & {*needs} and asked.training:
        lacking = "teacher" if "teacher" in needs else "images of another domain"
        expected = f"the lab's own loop: training code is given no {lacking}"
        raise Problem("recipe.regularizer", found=f"{held}, beside training", expected=expected)
    if isinstance(recipe.finish, InterpolatePhase) and asked.training:
        expected = "the lab's own loop: of training code nobody knows where its last phase began"
        raise Problem("recipe.finish", found=f"{recipe.finish}, beside training", expected=expected)
    if recipe.augment and isinstance(asked.train_preprocessing or asked.preprocessing, Spectrogram):
        raise Problem("recipe.augment", found=f"{recipe.augment} of spectrograms", expected="images", do="leave it out")


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
    if not keys.DURATION.fullmatch(text):
        raise Problem("budget", found=text, expected="a duration such as 90s, 20m or 2h")
    return keys.seconds(text)


def recipe(table: Mapping[str, Any]) -> Recipe:
    """A recipe of the keys that [recipe] takes, where they are given alone.

    Raises:
        Problem: for an unknown key, or a value that is not possible.
    """
    return _recipe(rules.ruled("recipe", table, rules.table(keys.RECIPE)))


def _recipe(table: Mapping[str, Any]) -> Recipe:
    """A recipe: one phase, several, or a named strategy built from one phase."""
    rest = dict(table)
    whole = {name: rest.pop(name) for name in WHOLE if name in rest}
    phases, strategy = rest.pop("phases", [{}]), rest.pop("strategy", None)
    usual = RATES.get(strategy, Phase().lr) if strategy else Phase().lr
    common = replace(Phase(lr=usual), **rest)
    recipe = Recipe(phases=tuple(replace(common, **phase) for phase in phases), **whole)
    if strategy and "phases" in table:
        raise Problem("recipe.strategy", found="both strategy and phases", expected="one of them")
    if strategy:
        recipe = replace(STRATEGIES[strategy](common), **whole)
        _heard(strategy, STRATEGIES[strategy](common), table)
    if recipe.init == "random" and recipe.transferred != "all":
        expected = "all, where nothing is transferred"
        raise Problem("recipe.transferred", found=recipe.transferred, expected=expected, do="leave it out, or init")
    for phase in recipe.phases:
        if phase.warmup >= phase.steps:
            raise Problem("recipe.warmup", found=f"{phase.warmup}", expected=f"fewer than the {phase.steps} steps of a phase")
    return recipe


def _heard(strategy: str, made: Recipe, given: Mapping[str, Any]) -> None:
    """Refuse a key that would go unheard, since the strategy sets it; it parts the steps among its phases."""
    for name in given.keys() - {"strategy", "steps", "augment", "stop"}:
        whole = name in WHOLE
        own = {getattr(made, name)} if whole else {getattr(phase, name) for phase in made.phases}
        kind = str(given[name]).partition(":")[0]  # mlp:64 is another head of the kind that the strategy has
        free = whole and (own == {getattr(Recipe(), name)} or kind in {str(word or "").partition(":")[0] for word in own})
        if given[name] not in own and not free:
            expected = f"{' or '.join(sorted(map(rules.shown, own)))}, as the strategy {strategy} sets it"
            found = rules.shown(given[name])
            raise Problem(f"recipe.{name}", found=found, expected=expected, do=f"leave {name} or strategy out")
